"""Inference checkpoints of a run: averaged weights, with a record of where they come from."""
from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

import torch

from vdd_model.checkpoint import store as checkpoint
from vdd_model.errors import UserError
from vdd_model.media.files import written_aside

from . import state as states
from .config import TrainConfig
from .stages import with_followers


def export(run, work, note: str) -> Path:
    """vdd.safetensors in the run's folder. run, work: `train.start.Run`, `train.loop.Work` (None between two stages)."""
    path = run.folder / "vdd.safetensors"
    with work.average.shown() if work is not None else contextlib.nullcontext():
        state = with_followers(states.whole_state(run.model))
        if run.main:
            # where files lay on the machine that trained is nobody else's business
            config = {k: v for k, v in dataclasses.asdict(run.config).items() if k not in ("root", "out", "init")}
            training = {**origin(run.config, run.position.stage), "run": note, "steps": run.position.total, "hours": run.position.hours,
                        "stage": run.position.stage, "scores": run.journal.scores, "config": config}
            checkpoint.save_state(state, run.model.config, path, training, getattr(torch, run.config.export_dtype))
            run.say(f"wrote {path} ({note})")
    run.accelerator.wait_for_everyone()
    return path


def stage_file(run, number: int) -> Path:
    """The checkpoint of the weights behind a stage: a later one can be worse."""
    return run.folder / f"vdd-stage{number}.safetensors"


def export_stage(run, number: int) -> None:
    """Both checkpoints behind stage `number`: one file of two names, whose first the next export takes over."""
    path = export(run, None, f"after stage {number} ({run.config.stages[number].kind})")
    if run.main:
        with written_aside(stage_file(run, number)) as copy:
            try:
                os.link(path, copy)
            except OSError:                                  # a disk that knows no second names
                shutil.copyfile(path, copy)


def catch_up(run) -> None:
    """The checkpoint of the stage behind which a run goes on, where a kill has kept it from being written."""
    number = run.position.stage - 1
    lacking = run.main and not stage_file(run, number).exists()
    if number >= 0 and not run.position.step and run.anywhere(lacking):
        export_stage(run, number)


def origin(config: TrainConfig, stages_done: int) -> dict:
    """What the record of the checkpoint `init` says of where weights come from, and which parts no stage has trained since."""
    try:
        known = checkpoint.read_training(config.init) if config.init else {}
    except UserError:                                        # it is gone; a resumed run does not need it
        known = {}
    trained = [prefix for stage in config.stages[:stages_done] for prefix in stage.prefixes]
    untrained = [part for part in known.get("untrained", [])
                 if not any(f"{part}.".startswith(prefix) or prefix.startswith(f"{part}.") for prefix in trained)]
    found = {"sources": known.get("sources"), "untrained": untrained}
    return {key: value for key, value in found.items() if value}
