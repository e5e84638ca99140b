"""A run that is killed at any moment continues with the identical loss curve; what stops a run says so in one sentence."""
import dataclasses
import functools
import json
import multiprocessing
import operator
import os
import signal
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from training_tools import BLUR, NO_VALIDATION, STAGES, losses, write_config

from train import ablate, export, loop, start, state
from train import config as configs
from train.__main__ import main
from train.data.clips import PhotoClips
from train.data.readers import DataError
from train.loop import run
from train.stages import StageLoss
from vdd_model.checkpoint import tensorfile
from vdd_model.checkpoint.store import load, read_state, read_training
from vdd_model.config import ConfigError
from vdd_model.errors import UserError

# A server that has imported everything once and forks the runs that are to be killed.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train.loop", "train.data.clips"])
STEPS = [{**stage, "steps": 6} for stage in STAGES[2:4]]


def quiet(text: str) -> None:
    pass


def train(path: Path, slow_write: str = "", slow_step: float = 0.0) -> None:
    """One call of the program; `slow_write` names a file that is made when a state is half written, then it waits to be killed."""
    if slow_write:
        def wait(handle):
            Path(slow_write).touch()
            time.sleep(60)

        tensorfile.os.fsync = wait
    if slow_step:
        update = state.Average.update

        def slowly(self):
            time.sleep(slow_step)
            update(self)

        state.Average.update = slowly
    raise SystemExit(main([str(path), "--resume"]))


def start_process(*arguments) -> multiprocessing.Process:
    process = CONTEXT.Process(target=train, args=arguments)
    process.start()
    return process


def wait_for(condition, process, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end, f"exit code {process.exitcode}"
        time.sleep(0.01)


def kill(process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def lines(folder: Path) -> int:
    log = folder / "run" / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def test_killed_runs_continue_with_the_identical_curve_and_weights(tmp_path):
    """kill -9 between steps, twice, and twice while a state is being written."""
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    for folder in (reference, killed):
        path = write_config(folder, STEPS, export_dtype="float32", validation=NO_VALIDATION)
    run(configs.load(reference / path.name), say=quiet)
    for wanted in (1, 8):                                   # in the first stage, in the second
        process = start_process(path, "", 0.3)
        wait_for(lambda n=wanted: lines(killed) > n, process)
        kill(process)
        marker = killed / f"writing{wanted}"
        process = start_process(path, str(marker))
        wait_for(marker.exists, process)
        assert list((killed / "run" / "states").glob(".*.part"))
        kill(process)
    process = start_process(path)
    process.join()
    assert process.exitcode == 0
    assert losses(killed / "run") == losses(reference / "run")
    ours, theirs = (load(folder / "run" / "vdd.safetensors").state_dict() for folder in (killed, reference))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not list((killed / "run" / "states").glob(".*.part"))
    assert len(list((killed / "run" / "states").glob("state-*"))) == 2          # keep


def test_minutes_end_a_call_and_resume_goes_on(tmp_path):
    config = configs.load(write_config(tmp_path, STEPS[:1]))
    assert run(config, minutes=1e-9, say=quiet) is None
    assert (tmp_path / "run" / "vdd.safetensors").exists()
    with pytest.raises(UserError, match="already holds a run"):
        run(config, say=quiet)
    with pytest.raises(UserError, match="is a state of a training, whose checkpoint is vdd.safetensors in the run's folder"):
        load(state.files(tmp_path / "run" / "states")[0])
    assert run(config, resume=True, say=lambda text: text.startswith("stage 0") and signal.raise_signal(signal.SIGINT)) is None
    assert run(config, resume=True, say=quiet) is not None
    assert [step for _, step, _, _ in losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    wider = {**config.model, "adapter": {"channels": 24}}
    for change, words in (({"seed": 7}, "seed 0, not 7"), ({"model": wider}, "another model: adapter"),
                          ({"stages": STEPS[1:]}, "has done the stages stage1")):
        other = configs.load(write_config(tmp_path, **({"stages": STEPS[:1]} | change)))
        with pytest.raises(UserError, match=words):
            run(other, resume=True, say=quiet)


def whole_and_stopped(tmp_path: Path, stage: dict, step: int, **changes) -> tuple[Path, Path]:
    """Folders of a run of this stage from end to end, and of the same one that was killed behind `step`."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        path = write_config(folder, [stage], validation=NO_VALIDATION, log_every=1, **changes)
    run(configs.load(whole / path.name), say=quiet)

    def stop(text: str) -> None:
        if f" step {step}/" in text:
            for _ in range(2):                              # the second one stops it at once
                signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(configs.load(path), say=stop)
    return whole, stopped


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_parameters_that_no_gradient_reaches_do_not_hinder_a_resume(tmp_path, optimizer):
    """Encoder 2's last convolution makes latents alone, which this stage's loss never sees."""
    stage = {**STAGES[4], "steps": 4, "denoise": False, "trainable": ["vae.fidelity.", "encoder2."], "optimizer": optimizer}
    whole, halves = whole_and_stopped(tmp_path, stage, 3, ema=0.0)
    found = state.newest(halves / "run" / "states")
    assert found.position.step == 2
    assert 0 < len(found.part("exp_avg")) < len([n for n in found.part("model") if n.startswith(("vae.fidelity.", "encoder2."))])
    other = "adamw" if optimizer == "muon" else "muon"
    for change in ({"trainable": ["vae.fidelity."]}, {"trainable": ["vae.fidelity.", "encoder2.", "adapter."]}, {"optimizer": other}):
        with pytest.raises(UserError, match="trains other parameters"):
            run(configs.load(write_config(halves, [{**stage, **change}], validation=NO_VALIDATION, ema=0.0)), resume=True, say=quiet)
    path = write_config(halves, [stage], validation=NO_VALIDATION, log_every=1, ema=0.0)
    run(configs.load(path), resume=True, say=quiet)
    assert losses(halves / "run") == losses(whole / "run")


def test_branches_that_train_in_turn_go_on_with_their_own_step_counts(tmp_path):
    """Stage 3 trains one of two branches in every batch; Adam corrects the moments of each by how often it was stepped."""
    stage = {**STAGES[4], "steps": 10, "last_timestep": 0.3}
    whole, halves = whole_and_stopped(tmp_path, stage, 6, save_every=5, channels_last=True)      # moments in the weights' memory format too
    counts = {name.split(".")[1]: float(count) for name, count in state.newest(halves / "run" / "states").part("step").items()}
    assert counts["fidelity"] != counts["detail"] and sum(counts.values()) == 5
    run(configs.load(halves / "config.yaml"), resume=True, say=quiet)
    assert losses(halves / "run") == losses(whole / "run")


def test_a_kill_before_a_stages_checkpoint_loses_neither_it_nor_the_scores(tmp_path, monkeypatch):
    path = write_config(tmp_path, STEPS)

    def killed(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(export, "export", killed)
        with pytest.raises(KeyboardInterrupt):
            run(configs.load(path), say=quiet)
    run(configs.load(path), resume=True, say=quiet)
    assert sorted(p.name for p in (tmp_path / "run").glob("*.safetensors")) == [
        "vdd-stage0.safetensors", "vdd-stage1.safetensors", "vdd.safetensors"]
    assert read_training(tmp_path / "run" / "vdd-stage0.safetensors")["run"] == "after stage 0 (stage1)"
    scores = read_training(tmp_path / "run" / "vdd.safetensors")["scores"]
    run(configs.load(path), resume=True, say=quiet)           # nothing is left to do
    assert scores and read_training(tmp_path / "run" / "vdd.safetensors")["scores"] == scores


def test_a_resumed_stage_does_not_scale_the_latents_again(tmp_path):
    """Encoder 2 learns on behind the scaling: measured once more, its errors would give another scale."""
    stage = {**STAGES[4], "steps": 4, "denoise": False, "rescale": True, "trainable": ["vae.fidelity.", "encoder2."],
             "loss": {"latent": 1.0}}
    (whole, halves), said = whole_and_stopped(tmp_path, stage, 3, export_dtype="float32"), []
    run(configs.load(halves / "config.yaml"), resume=True, say=said.append)
    assert losses(halves / "run") == losses(whole / "run") and not any("latent_scale" in text for text in said)
    ours, theirs = (read_state(folder / "run" / "vdd.safetensors")[0] for folder in (halves, whole))
    assert ours == theirs and ours.vae.latent_scale != 1.0


@pytest.mark.parametrize("command", [main, ablate.main])
def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch, capsys, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "run", interrupted)
    assert command([str(write_config(tmp_path)), "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "interrupted; go on with --resume\n"


def test_damaged_state_is_passed_over(tmp_path):
    """And panels that cannot be written are said, and no more."""
    config, told = configs.load(write_config(tmp_path, STEPS[:1])), []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "panels").touch()
    run(config, say=told.append)
    assert any(text.startswith("validation: ") and "panels" in text for text in told)
    states = sorted((tmp_path / "run" / "states").glob("state-*"))
    states[-1].write_bytes(states[-1].read_bytes()[:1000])
    said: list[str] = []
    run(config, resume=True, say=said.append)
    assert any("passing over" in text for text in said) and any("step 6" in text for text in said)


def without(values: dict, *keys) -> dict:
    """A deep copy of nested dicts and lists in which the value at `keys` is missing."""
    copy = json.loads(json.dumps(values))
    node = functools.reduce(operator.getitem, keys[:-1], copy)
    del node[keys[-1]]
    return copy


def test_a_state_that_lacks_something_is_one_sentence(tmp_path):
    """Of what it says of the run: as if it could not be read. Of its tensors: by name, since an older state may be whole."""
    path = write_config(tmp_path, STEPS[:1], validation=NO_VALIDATION, keep=3)
    run(configs.load(path), say=quiet)
    folder = tmp_path / "run" / "states"
    for later in state.files(folder)[:2]:
        later.unlink()
    file, tensors, metadata = tensorfile.read_file(state.files(folder)[0])
    tensors = {name: value.clone() for name, value in tensors.items()}
    position, record = (json.loads(metadata[f"train.{key}"]) for key in ("progress", "record"))
    kind = dict(record["config"], stages=[dict(record["config"]["stages"][0], kind=None)])
    for told, words in (({}, "train.progress"), ((position | {"step": "x"}, record), "step: expected int"),
                        ((position | {"total": -1}, record), "step 4"), ((position | {"stage": 9}, record), "stage 9"),
                        (([1], record), "mapping"), ((position, []), "indices"), ((position, record | {"model": 3}), "JSON"),
                        ((position, without(record, "config")), "'config' is missing"), ((position, record | {"config": kind}), "kinds"),
                        ((position, without(record, "config", "seed")), "'seed' is missing"),
                        ((position, without(record, "config", "stages", 0)), "of 0 stages"),
                        ((position, without(record, "config", "stages", 0, "trainable")), "'trainable' is missing")):
        said: list[str] = []
        tensorfile.write_tensors(file, tensors, dict(zip(("train.progress", "train.record"), map(json.dumps, told))))
        with pytest.raises(UserError, match="none of its 1 states can be read"):
            state.newest(folder, said.append)
        assert len(said) == 1 and file.name in said[0] and words in said[0]

    name = "exp_avg_sq/adapter.conv1.weight"
    for damage, words in ((without_part(tensors, "model/"), "does not fit"), (without_part(tensors, name), "a moment of adapter.conv1"),
                          (tensors | {name: tensors[name][:1]}, "another shape"), (without_part(tensors, "ema/adapter"), "other averages"),
                          (tensors | {"ema/adapter.conv1.bias": torch.zeros(1)}, "another shape")):
        tensorfile.write_tensors(file, damage, metadata)
        with pytest.raises(UserError, match=words):
            run(configs.load(path), resume=True, say=quiet)
    tensorfile.write_tensors(file, {key: value.double() for key, value in tensors.items()}, metadata)       # other types are no damage
    assert run(configs.load(path), resume=True, say=quiet) is not None


def without_part(tensors: dict, prefix: str) -> dict:
    """But for those whose names begin with it."""
    return {name: value for name, value in tensors.items() if not name.startswith(prefix)}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), MemoryError(),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")])
def test_a_batch_that_does_not_fit_says_what_to_lower(tmp_path, monkeypatch, error):
    def forward(*_):
        raise error

    monkeypatch.setattr(StageLoss, "forward", forward)
    with pytest.raises(UserError, match="not enough memory for step 1 of stage 0: lower its batch"):
        run(configs.load(write_config(tmp_path, STEPS[:1], validation=NO_VALIDATION)), say=quiet)


@pytest.mark.parametrize("number", [2, 4])
def test_a_stage_whose_parameters_take_no_part_says_so(tmp_path, number):
    stage = {**STAGES[number], "trainable": ["vae.detail."], "last_timestep": 1.0}
    with pytest.raises(ConfigError, match=r"stages\[0\]: nothing that it trains takes part in the batch of step 1"):
        run(configs.load(write_config(tmp_path, [stage], validation=NO_VALIDATION)), say=quiet)


def test_data_that_vanish_cost_no_step(tmp_path, monkeypatch):
    """Once nothing is left to be read the run ends behind its last step, and goes on from there when the data are back."""
    path, batch = write_config(tmp_path, STEPS[:1], validation=NO_VALIDATION), PhotoClips.batch

    def gone(self, seed, indices, **shape):
        if indices[0] == 3 * STEPS[0]["batch"]:
            raise DataError("a.png: gone")
        return batch(self, seed, indices, **shape)

    with monkeypatch.context() as patch, pytest.raises(DataError, match="gone"):
        patch.setattr(PhotoClips, "batch", gone)
        run(configs.load(path), say=quiet)
    assert state.newest(tmp_path / "run" / "states").position.step == 3
    run(configs.load(path), resume=True, say=quiet)
    assert [step for _, step, _, _ in losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_nan_stops_with_the_step_the_files_and_the_last_state(tmp_path, monkeypatch):
    batch, calls = PhotoClips.batch, []

    def poisoned(self, *args, **kwargs):
        calls.append(args[1])
        clips = batch(self, *args, **kwargs)
        return clips._replace(sharp=clips.sharp * float("nan")) if len(calls) == 4 else clips

    monkeypatch.setattr(PhotoClips, "batch", poisoned)
    with pytest.raises(UserError, match="the loss is nan") as caught:
        run(configs.load(write_config(tmp_path, STEPS[:1])), say=quiet)
    message = str(caught.value)
    assert "step 4 of stage 0 (stage1)" in message
    assert all(f"sample {index}" in message for index in calls[3]) and "train_photos" in message
    assert "state-00-00000002" in message
    good = state.newest(tmp_path / "run" / "states")
    assert good.position.step == 2 and all(bool(torch.isfinite(value).all()) for value in good.tensors.values())


def test_full_disk_is_one_sentence_before_any_work(tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(state.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    assert main([str(write_config(tmp_path, STEPS[:1]))]) == 2
    error = capsys.readouterr().err
    assert "room" in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize("place, words", [("os.fsync", "no room on the disk"), ("os.replace", "No space left"), ("os.link", ""),
                                          ("Path.write_bytes", "cannot be written: No space left")])
def test_a_disk_that_fills_up_is_one_sentence_and_keeps_the_older_state(tmp_path, monkeypatch, capsys, place, words):
    """While a state is written, or renamed; while the log, panels and curves are. Second names of files may be unknown there."""
    def full(*_):
        raise OSError(28, "No space left on device")

    path = write_config(tmp_path, STEPS[:1])
    assert main([str(path), "--set", "stages.0.steps=2"]) == 0
    monkeypatch.setattr({"os": os, "Path": Path}[place.split(".")[0]], place.split(".")[1], full)
    assert main([str(path), "--resume"]) == (2 if words else 0)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == bool(words)
    assert state.newest(tmp_path / "run" / "states") is not None and not list((tmp_path / "run").rglob(".*"))


def test_checkpoint_of_another_model_is_refused(tmp_path, tiny_checkpoint, capsys):
    changes = {"init": str(tiny_checkpoint), "model": {"unet": {"dim": 64}}}
    assert main([str(write_config(tmp_path, STEPS[:1], **changes))]) == 2
    assert "checkpoint of another model: name" not in (error := capsys.readouterr().err) and "another model" in error
    path = write_config(tmp_path, STEPS[:1], init=str(tiny_checkpoint))
    model = start.make_model(configs.load(path), None, quiet)
    expected = load(tiny_checkpoint).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    config = configs.load(path)                             # a part that came later starts untrained
    vae = {**config.model["vae"], "temporal": {"channels": [8, 8], "blocks": [1, 1]}}
    grown = start.make_model(dataclasses.replace(config, model={**config.model, "vae": vae}), None, quiet)
    state = grown.state_dict()
    assert state.keys() > expected.keys() and all(torch.equal(state[name], value) for name, value in expected.items())
    assert grown.config.vae.temporal.channels == (8, 8) and not grown.vae.temporal.head.weight.any()


def test_fixed_samples_come_again_in_every_epoch(tmp_path, monkeypatch):
    seen, batch = [], PhotoClips.batch
    monkeypatch.setattr(PhotoClips, "batch", lambda self, seed, indices, **shape: seen.append((seed, *indices)) or batch(
        self, seed, indices, **shape))
    stages = [{**STAGES[0], "steps": 3}, {**STAGES[2], "steps": 3}]
    run(configs.load(write_config(tmp_path, stages, data={"samples": 8, "blur": BLUR}, validation=NO_VALIDATION)), say=quiet)
    (_, *first), (_, *second), *rest = [taken for taken in seen if len(taken) == 5]
    assert first == [0, 1, 2, 3] and second == [4, 5, 6, 7] and [row[1:] for row in rest] == [(*first,), (*first,), (*second,), (*first,)]
    assert len({row[0] for row in rest}) == 1                # the same clips in every stage


def test_scenes_that_a_process_would_render_and_drop_are_refused(tmp_path):
    config = configs.load(write_config(tmp_path, [{**STAGES[0], "batch": 8}], data={"blur": {**BLUR, "cut": 2}}))
    start.check_split(config, 2)
    with pytest.raises(ConfigError, match=r"stages\[0\].batch: 8 cannot be shared by 4 processes x 1 parts, each of whole scenes of 4"):
        start.check_split(config, 4)
    for path in sorted((Path(start.__file__).parents[1] / "configs").glob("*.yaml")):
        start.check_split(configs.load(path), 1)


def test_an_unreadable_photograph_is_left_out_and_named_once(tmp_path):
    path = write_config(tmp_path, [STAGES[0]], validation=NO_VALIDATION, log_every=1)
    (tmp_path / "data/train_photos/broken.jpg").write_bytes(b"\xff\xd8\xff")
    said: list[str] = []
    assert run(configs.load(path), say=lambda text: said.append(text)) is not None
    assert len([text for text in said if text.startswith("left out: ") and "broken.jpg" in text]) == 1
