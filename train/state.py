"""A run's states on disk: one safetensors file each, written aside and renamed, the last few kept; and the log beside them."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vdd_model.checkpoint.tensorfile import CheckpointError, read_header, read_tensors, write_tensors
from vdd_model.errors import UserError
from vdd_model.media.files import written_aside

from .backend.muon import Muon, is_matrix
from .backend.shard import local, part_of, whole, whole_state
from .config import TRAINABLE


@dataclass
class Progress:
    """Where a run stands. Everything random is a function of these numbers and the seed."""

    stage: int = 0                 # index into config.stages; len(stages) when the run is finished
    step: int = 0                  # optimiser steps done in this stage
    total: int = 0                 # optimiser steps done in all stages
    seconds: float = 0.0           # wall time spent in this stage
    total_seconds: float = 0.0     # wall time spent in the finished stages
    averaged: int = 0              # updates of the EMA in this stage


@dataclass(frozen=True)
class State:
    """One saved state, read back."""

    path: Path
    progress: Progress
    record: dict                   # the run's configuration ("config"), the model's ("model")
    tensors: dict[str, Tensor] = field(repr=False)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under `name` + "/", without it: model, ema, exp_avg, exp_avg_sq, step."""
        return {key[len(name) + 1:]: value for key, value in self.tensors.items() if key.startswith(name + "/")}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.safetensors"), reverse=True)


def exists(folder: Path) -> bool:
    """Whether `folder` holds the states of a run."""
    return bool(_files(folder))


def save(folder: Path, progress: Progress, record: Mapping, tensors: Mapping[str, Tensor], keep: int) -> Path:
    """Write a state and delete all but the newest `keep`. Raises CheckpointError (disk full, not writable); older states stay."""
    path = folder / f"state-{progress.stage:02d}-{progress.step:08d}.safetensors"
    metadata = {"train.progress": json.dumps(asdict(progress)), "train.record": json.dumps(record)}
    write_tensors(path, tensors, metadata)
    for old in _files(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def newest(folder: Path, say=print) -> State | None:
    """The newest state that can be read, or None. A damaged file is passed over and named. Half-written files are removed."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)
    damaged = []
    for path in _files(folder):
        try:
            metadata = read_header(path).metadata
            progress, record = (json.loads(metadata[key]) for key in ("train.progress", "train.record"))
            state = State(path, Progress(**progress), record, read_tensors(path))
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            damaged.append(path)
            say(f"passing over a state that cannot be read: {error}")
            continue
        return state
    if damaged:
        raise UserError(f"{folder}: none of its {len(damaged)} states can be read; start again in another folder (--out)")
    return None


def check_room(folder: Path, needed: int) -> None:
    """Raise UserError unless `needed` bytes are free where `folder` is or will be, and it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}.part"
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be written: {error.strerror}") from None
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"the output folder {folder} has room for {free / 1e9:.2f} GB, this run's states need about {needed / 1e9:.2f} GB; "
                        "free some space, choose another --out or lower `keep`")


def keep_copy(path: Path, copy: Path) -> None:
    """Give a file that is going to be replaced a second name. Where the disk knows no such thing, its bytes are copied."""
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:
        shutil.copyfile(path, copy)


class Log:
    """log.jsonl: one JSON object a line, a "step" or a "validation" record. Lines of steps that a resumed run repeats are cut off."""

    def __init__(self, path: Path, total: int):
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _total(line) <= total]
            with written_aside(path) as aside:
                aside.write_text("".join(line + "\n" for line in kept))

    def write(self, records: list[dict]) -> None:
        """Append. Raises UserError when the disk is full."""
        try:
            with self.path.open("a") as file:
                file.write("".join(json.dumps(record) + "\n" for record in records))
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from None

    def read(self) -> list[dict]:
        """All records so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def _total(line: str) -> float:
    try:
        return json.loads(line)["total"]
    except (ValueError, KeyError, TypeError):          # the half line of a killed process
        return float("inf")


class Average:
    """Exponential moving average of some parameters, float32, with the usual short memory at the start. Decay 0: none is kept."""

    def __init__(self, parameters: list[Tensor], decay: float):
        self.parameters, self.decay, self.updates = [local(p.detach()) for p in parameters], decay, 0
        self.values = [p.clone().float() for p in self.parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters' present values."""
        if self.decay:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            self.updates += 1
            torch._foreach_lerp_(self.values, [p.float() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the parameters; calling it twice restores both bit for bit."""
        for average, parameter in zip(self.values, self.parameters):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)


MOMENTS = ("exp_avg", "exp_avg_sq")


def collect(model: nn.Module, work) -> dict[str, Tensor]:
    """Every tensor of a state, whole; `work` (train.loop.Work) is None between two stages. All processes must call it."""
    tensors = {f"model/{name}": value for name, value in whole_state(model).items()}
    if work is not None:
        for i, (name, parameter) in enumerate(zip(work.names, work.parameters)):
            if work.average.values:
                tensors[f"ema/{name}"] = whole(work.average.values[i], parameter)
            moments = work.optimizer.state.get(parameter, {})
            tensors |= {f"{key}/{name}": whole(local(moments[key]), parameter) for key in MOMENTS if key in moments}
            if "step" in moments:                       # its own: a branch that only some batches train has made fewer
                tensors[f"step/{name}"] = moments["step"].detach().float().cpu()
    return tensors


@torch.no_grad()
def restore(state: State, work, progress: Progress) -> None:
    """Averages and moments of the stage that the state belongs to, as they were. Raises UserError when it trained other parameters.

    A parameter that no gradient has reached has no moments: the optimiser makes them with its first one.
    """
    if not progress.step:
        return                                          # saved between two stages
    moments, average, steps = [state.part(key) for key in MOMENTS], state.part("ema"), state.part("step")
    seconds = {name for name, p in zip(work.names, work.parameters) if not (isinstance(work.optimizer, Muon) and is_matrix(p))}
    same = _chosen(state, state.record["config"]["stages"][progress.stage]) == _chosen(state, asdict(work.stage))
    same = same and set(moments[0]) <= set(work.names) and set(moments[1]) == set(moments[0]) & seconds
    if not same or (work.average.values and set(average) != set(work.names)):
        raise UserError(f"{state.path}: its stage trains other parameters, or keeps other averages or moments, than this configuration's "
                        f"stage {progress.stage}; start a new run with `init` instead")
    for i, (name, parameter) in enumerate(zip(work.names, work.parameters)):
        if work.average.values:
            work.average.values[i].copy_(part_of(average[name], parameter))
        if name not in moments[0]:
            continue
        count = steps.get(name, torch.tensor(float(progress.step)))        # states of older versions have none
        held = {"step": count.to(parameter.device, copy=True)}              # the state's file must not stay mapped
        for key, values in zip(MOMENTS, moments):
            if name not in values:
                continue                                # a matrix that Muon steps has no second moment
            held[key] = torch.zeros_like(parameter)
            local(held[key]).copy_(part_of(values[name], parameter))
        work.optimizer.state[parameter] = held
    work.average.updates = progress.averaged


def _chosen(state: State, stage: Mapping) -> set[str]:
    """The state's tensors of the model that a stage (as a dict) trains."""
    return {name for name in state.part("model") if name.startswith(tuple(stage["trainable"] or TRAINABLE[stage["kind"]]))}
