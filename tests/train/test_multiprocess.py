"""Two CPU processes give the weights of one with the same global batch; sharded (FSDP) processes too."""
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
from training_tools import NO_VALIDATION, STAGES, losses, write_config

from train import config as configs
from train.__main__ import main
from train.data.clips import PhotoClips
from train.loop import run
from vdd_model.checkpoint.store import load

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train.loop", "train.data.clips"])


def process(rank: int, world: int, port: int, arguments: list[str]) -> None:
    """What `accelerate launch --cpu` starts: the environment of one process of a group."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    batch = PhotoClips.batch

    def watched(self, *args, **options):
        """A batch for which no photograph was copied: all are on the CPU already, whatever a process of a group calls it."""
        photos = self.photos
        made = batch(self, *args, **options)
        assert self.photos is photos
        return made

    PhotoClips.batch = watched
    raise SystemExit(main(arguments))


def launch(path: Path, *options: str, world: int = 2) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = [CONTEXT.Process(target=process, args=(rank, world, port, [str(path), *options])) for rank in range(world)]
    for one in group:
        one.start()
    for one in group:
        one.join(300)
        assert one.exitcode == 0


def reference(folder: Path, stages: list[dict]) -> Path:
    """The same run on one process."""
    run(configs.load(write_config(folder, stages, export_dtype="float32", validation=NO_VALIDATION)), say=lambda text: None)
    return folder


def compare(ours: Path, alone: Path) -> float:
    """Largest difference of any weight; the loss curves must agree too."""
    for (*step, loss, norm), (*same, loss_alone, norm_alone) in zip(losses(ours / "run"), losses(alone / "run"), strict=True):
        assert step == same and abs(loss - loss_alone) < 1e-5 and abs(norm - norm_alone) < 1e-4 * norm_alone
    a, b = (load(folder / "run" / "vdd.safetensors").state_dict() for folder in (ours, alone))
    return max((a[name] - b[name]).abs().max().item() for name in b)


@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_equal_one_and_states_pass_between_them(tmp_path, fsdp):
    """14 steps over two stages, with and without accumulation, from each other's states: every weight within 1e-5. A validation shows a
    sharded model whole."""
    stages = [{**STAGES[2], "steps": 6, "eps": 1e-5},
              {**STAGES[3], "steps": 8, "eps": 1e-5, "accumulation": 2, "min_lr": 1.0}]      # constant: the schedule looks at the length
    alone = reference(tmp_path / "alone", stages)
    path = write_config(tmp_path, stages, export_dtype="float32", **({} if fsdp else {"validation": NO_VALIDATION}))
    states, several = tmp_path / "run" / "states", ("--set", f"fsdp={str(fsdp).lower()}")

    def back_to(step: int) -> None:
        """As if killed: the state at the end of the shortened stage goes, the one inside it stays."""
        for file in states.glob("state-02-*"):
            file.unlink()
        assert [file.stem for file in sorted(states.glob("state-*"))][-1] == f"state-01-{step:08d}"

    launch(path, "--set", "stages.1.steps=2", *several)
    back_to(2)
    assert main([str(path), "--resume", "--set", "stages.1.steps=4"]) == 0
    back_to(4)
    launch(path, "--resume", *several)
    assert compare(tmp_path, alone) < 1e-5
    assert fsdp == any((tmp_path / "run" / "panels").glob("*.png"))
