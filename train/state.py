"""A run's states on disk: one safetensors file each, written aside and renamed, the last few kept; whole, however many processes
share a run."""
from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vdd_model.checkpoint.tensorfile import CheckpointError, read_file, write_tensors
from vdd_model.config import ModelConfig, from_dict
from vdd_model.errors import UserError
from vdd_model.networks.model import DeblurModel

from .config import TRAINABLE
from .muon import is_matrix
from .shard import like, part, whole


@dataclass
class Position:
    """Where a run stands. Everything random is a function of these numbers and the seed."""

    stage: int = 0                 # index into config.stages; len(stages) when the run is finished
    step: int = 0                  # optimiser steps done in this stage
    total: int = 0                 # optimiser steps done in all stages
    seconds: float = 0.0           # wall time spent in this stage, without validation
    total_seconds: float = 0.0     # wall time spent in the finished stages
    averaged: int = 0              # updates of the EMA in this stage

    @property
    def hours(self) -> float:
        """Of training so far."""
        return round((self.total_seconds + self.seconds) / 3600, 4)


@dataclass(frozen=True)
class State:
    """One saved state, read back."""

    path: Path
    position: Position
    record: dict                   # the run's configuration ("config"), the model's ("model")
    tensors: dict[str, Tensor] = field(repr=False)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under `name` + "/", without it: model, ema, exp_avg, exp_avg_sq, step."""
        return {key[len(name) + 1:]: value for key, value in self.tensors.items() if key.startswith(name + "/")}


def files(folder: Path) -> list[Path]:
    """The states in `folder`, the newest first."""
    return sorted(folder.glob("state-*.safetensors"), reverse=True)


def save(folder: Path, position: Position, record: Mapping, tensors: Mapping[str, Tensor], keep: int) -> Path:
    """Write a state and delete all but the newest `keep`. Raises CheckpointError (disk full, not writable); older states stay."""
    path = folder / f"state-{position.stage:02d}-{position.step:08d}.safetensors"
    metadata = {"train.progress": json.dumps(dataclasses.asdict(position)), "train.record": json.dumps(record)}
    write_tensors(path, tensors, metadata)
    for old in files(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def newest(folder: Path, say=print) -> State | None:
    """The newest state that can be read, or None. A damaged file is passed over and named. Half-written files are removed."""
    for half in folder.glob(".*.part"):
        half.unlink(missing_ok=True)
    for path in files(folder):
        try:
            return read(path)
        except UserError as error:
            say(f"passing over a state that cannot be read: {error}")
    if damaged := files(folder):
        raise UserError(f"{folder}: none of its {len(damaged)} states can be read; start again in another folder (--out)")
    return None


def read(path: Path) -> State:
    """A state of which all that is said of the run is there. Raises UserError naming the file and what it lacks."""
    _, tensors, metadata = read_file(path)
    try:
        position, record = (json.loads(metadata[key]) for key in ("train.progress", "train.record"))
        position, config = from_dict(Position, position), record["config"]
        texts = [text for stage in config["stages"] for text in (stage["kind"], *stage["trainable"])]
        ModelConfig.from_json(record["model"])
        if min(dataclasses.asdict(position).values()) < 0 or position.stage + bool(position.step) > len(config["stages"]):
            raise ValueError(f"stage {position.stage}, step {position.step} of {len(config['stages'])} stages")
        if not (isinstance(config["seed"], int) and all(isinstance(text, str) for text in texts)):
            raise TypeError("its seed, kinds or prefixes are of another type")
    except (LookupError, TypeError, ValueError, UserError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path} is no state of a training, or a damaged one ({what})") from None
    return State(path, position, record, tensors)


def check_room(folder: Path, needed: int) -> None:
    """Raise UserError unless `needed` bytes are free where `folder` is or will be, and it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be written: {error.strerror}") from None
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"the output folder {folder} has room for {free / 1e9:.2f} GB, this run's states need about {needed / 1e9:.2f} GB; "
                        "free some space, choose another --out or lower `keep`")


class Average:
    """Exponential moving average of some parameters, float32, with the usual short memory at the start. Decay 0: none is kept."""

    def __init__(self, parameters: Iterable[Tensor], decay: float):
        self.decay, self.updates = decay, 0
        self.parameters = [part(p) for p in parameters]
        self.values = [p.clone().float() for p in self.parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters' present values."""
        if self.decay:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            self.updates += 1
            torch._foreach_lerp_(self.values, [p.float() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While entered, the parameters hold the averages."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the parameters; calling it twice restores both bit for bit."""
        for average, parameter in zip(self.values, self.parameters):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)


MOMENTS = ("exp_avg", "exp_avg_sq", "step")                       # steps of its own: a branch that only some batches train has made fewer


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict, from all its parts. All processes must call it."""
    return {name: whole(value) for name, value in model.state_dict().items()}


def whole_model(model: DeblurModel) -> DeblurModel:
    """A copy of a model that is spread over the processes, whole. All processes must call it."""
    copy = DeblurModel(model.config)
    copy.load_state_dict(whole_state(model), assign=True)
    return copy


def collect(model: nn.Module, work) -> dict[str, Tensor]:
    """Every tensor of a state, whole; `work` (train.loop.Work) is None between two stages. All processes must call it."""
    tensors = {f"model/{name}": value for name, value in whole_state(model).items()}
    if work is not None:
        if work.average.values:
            with work.average.shown():
                tensors |= {f"ema/{name}": whole(parameter).clone() for name, parameter in work.parameters.items()}
        tensors |= {f"{key}/{name}": whole(value) for name, parameter in work.parameters.items()
                    for key, value in work.optimizer.state.get(parameter, {}).items()}
    return tensors


@torch.no_grad()
def restore(state: State, work) -> None:
    """Averages and moments of the stage that the state belongs to, as they were. Raises UserError when it trained other parameters.

    A parameter that no gradient has reached has no moments: the optimiser makes them with its first one.
    """
    position = state.position
    if not position.step:
        return                                          # saved between two stages
    parts, average, then = {key: state.part(key) for key in MOMENTS}, state.part("ema"), state.record["config"]["stages"][position.stage]
    same = (_chosen(state, then), then.get("optimizer", "adamw")) == (_chosen(state, dataclasses.asdict(work.stage)), work.stage.optimizer)
    if not same or work.average.values and average.keys() != work.parameters.keys():
        raise UserError(f"{state.path}: its stage trains other parameters, or keeps other averages or moments, than this configuration's "
                        f"stage {position.stage}; start a new run with `init` instead")
    work.average.updates = position.averaged
    for number, (name, parameter) in enumerate(work.parameters.items()):
        found = {key: values[name].float() for key, values in ({"ema": average} | parts).items() if name in values}
        wanted = {"exp_avg"} if work.stage.optimizer == "muon" and is_matrix(parameter) else {"exp_avg", "exp_avg_sq"}
        if found.keys() & set(MOMENTS) and not wanted <= found.keys() or any(
                value.shape != (() if key == "step" else parameter.shape) for key, value in found.items()):
            raise UserError(f"{state.path} is damaged: it lacks a moment of {name}, or holds one of another shape; delete it, and the run "
                            "goes on from the one before")
        if (value := found.pop("ema", None)) is not None and work.average.values:
            work.average.values[number].copy_(part(like(value, parameter)))
        if found:
            found.setdefault("step", torch.tensor(float(position.step)))                 # states of older versions have no counts
            # copies, or the state's file would stay mapped; in the parameter's memory format: torch's fused AdamW looks at no strides
            work.optimizer.state[parameter] = {key: like(value, parameter) if key != "step" else
                                               value.clone().to(parameter.device) for key, value in found.items()}


def _chosen(state: State, stage: Mapping) -> set[str]:
    """The state's tensors of the model that a stage (as a dict) trains."""
    return {name for name in state.part("model") if name.startswith(tuple(stage["trainable"] or TRAINABLE[stage["kind"]]))}
