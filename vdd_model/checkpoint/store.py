"""One-file checkpoints: tensors under `unet.`, `encoder1.`, `encoder2.`, `adapter.`, `vae.`, `null_text`; configuration as metadata."""
from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import ConfigError, ModelConfig
from ..networks.model import DeblurModel
from .tensorfile import CheckpointError, TensorFile, read_file, write_tensors

FORMAT = 1
CONFIG = "vdd.config"          # in the metadata; a tensor in a file that ComfyUI saved, which fills the metadata itself
FROM_COMFYUI = (CONFIG, "v_pred", "ztsnr")     # what it adds to the tensors
BUILT_IN = {"small": Path(__file__).parents[1] / "weights" / "vdd-small.safetensors"}


def resolve(name: str | os.PathLike) -> Path:
    """The file of a built-in name ("small") or of a path. Raises CheckpointError when there is none."""
    path = BUILT_IN.get(str(name)) or Path(name).expanduser()
    if not path.exists():
        raise CheckpointError(f"the built-in model {str(name)!r} is not part of this installation (expected at {path})"
                              if str(name) in BUILT_IN else f"there is no checkpoint {path}; the built-in ones are: {', '.join(BUILT_IN)}")
    return path


def save(model: DeblurModel, path: str | os.PathLike, training: Mapping | None = None, dtype: torch.dtype | None = None) -> None:
    """Write `model` as one safetensors file, by `write_tensors`; `dtype` converts floating tensors. `training` is any JSON-able mapping,
    kept as `vdd.training` (`vdd info` knows some of its keys). Raises CheckpointError."""
    save_state(model.state_dict(), model.config, path, training, dtype)


def save_state(state: Mapping[str, Tensor], config: ModelConfig, path: str | os.PathLike, training: Mapping | None = None,
               dtype: torch.dtype | None = None) -> None:
    """`save` for a state dict that is at hand without its module (an exponential moving average, a conversion)."""
    metadata = {"vdd.format": str(FORMAT), "vdd.config": config.to_json()}
    if training is not None:
        metadata["vdd.training"] = json.dumps(training)
    write_tensors(path, state, metadata, dtype)


def load(path: str | os.PathLike = "small", device: torch.device | str | None = None, dtype: torch.dtype | None = None,
         later: Sequence[str] = (), ready: Callable[[nn.Module], object] = lambda part: None) -> DeblurModel:
    """Build the model of a checkpoint, in eval mode.

    The modules are made on the meta device and take the tensors of the memory-mapped file as they are: peak memory is about the file's
    size, or nothing until first use. `dtype` None keeps the stored types. The parts `later` ("vae.detail") are no part of the model
    until somebody asks for them by name, and their weights stay on the disk; `ready` is called with every part, and with the model,
    when they have their weights. Raises CheckpointError, naming the file, what was expected and what was found.
    """
    path = resolve(path)
    changed = path.stat().st_mtime_ns
    state, model = fitting(path)

    def filled(part: nn.Module, prefix: str = "", tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The part with its weights, `prefix` before their names; by default the file's. Raises CheckpointError where that has changed."""
        tensors = tensors or read_file(path, prefix).tensors
        if path.stat().st_mtime_ns != changed:
            raise CheckpointError(f"{path} is another file than the one that this model was loaded from: load it again")
        own = {name: tensors[prefix + name] for name, _ in part.named_parameters()}
        part.load_state_dict({name: t.to(device=device, dtype=dtype if t.is_floating_point() else None) for name, t in own.items()},
                             assign=True)
        ready(part.eval())
        return part

    modules = dict(model.named_modules())
    for name in filter(modules.__contains__, later):
        place, _, own = name.rpartition(".")
        put_off(modules[place], own, functools.partial(filled, modules[name], name + "."))
    return filled(model, tensors=state)


class _Waits(nn.Module):
    """A module with children that are made when somebody asks for them."""

    def __getattr__(self, name: str):
        if name in (waiting := vars(self)["waiting"]):
            setattr(self, name, waiting[name]())
            del waiting[name]
        return super().__getattr__(name)

    def _apply(self, *arguments, **keywords):
        """Another device or type is for all children."""
        return self._whole()._apply(*arguments, **keywords)

    def state_dict(self, *arguments, **keywords):
        """Nothing is missing in what is saved."""
        return self._whole().state_dict(*arguments, **keywords)

    def _whole(self):
        """What this is without waiting: the module below, with all children made."""
        for name in [*vars(self)["waiting"]]:
            getattr(self, name)
        return super()


def put_off(module: nn.Module, name: str, make: Callable[[], nn.Module]) -> None:
    """Take the child of this name out of a module, until it is asked for: then it is what `make()` gives."""
    delattr(module, name)
    if not isinstance(module, _Waits):
        module.__class__, module.waiting = type(type(module).__name__, (_Waits, type(module)), {}), {}
    module.waiting[name] = make


def read_state(path: str | os.PathLike) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the tensors of a checkpoint, mapped, for a caller that builds the modules itself. Raises as `load` does."""
    state, model = fitting(path)
    return model.config, state


def read_training(path: str | os.PathLike) -> dict:
    """The `vdd.training` mapping of a checkpoint; empty when it has none. Raises CheckpointError."""
    file = open_checkpoint(path)
    try:
        training = json.loads(file.metadata.get("vdd.training", "{}"))
    except json.JSONDecodeError:
        raise CheckpointError(f"{file.path}: its training record is not JSON") from None
    return training if isinstance(training, dict) else {}


def open_checkpoint(path: str | os.PathLike) -> TensorFile:
    """A checkpoint's file; one that ComfyUI saved, as if it had been written here."""
    file = read_file(resolve(path))
    if CONFIG not in file.tensors:
        return file
    text = bytes(file.tensors[CONFIG].tolist()).decode(errors="replace")
    return file._replace(tensors={name: t for name, t in file.tensors.items() if name not in FROM_COMFYUI},
                         metadata={**file.metadata, "vdd.format": str(FORMAT), CONFIG: text})


def config_of(file: TensorFile) -> ModelConfig:
    """The configuration in the metadata of a file of `open_checkpoint`. Raises CheckpointError where there is none, or one that this
    version does not know."""
    version, text = file.metadata.get("vdd.format"), file.metadata.get(CONFIG)
    if version is None or text is None:
        some = ", ".join(list(file.tensors)[:2]) or "no tensors"
        raise CheckpointError(f"{file.path} is a state of a training, whose checkpoint is vdd.safetensors in the run's folder" if
                              "train.record" in file.metadata else f"{file.path} is of another model: it holds no `vdd.config` (it holds "
                              f"{some}, ...); `vdd convert` builds a checkpoint from official files")
    if not version.isdecimal() or int(version) > FORMAT:
        raise CheckpointError(f"{file.path} has format {version}, this version reads up to {FORMAT}: update the package")
    try:
        return ModelConfig.from_json(text)
    except ConfigError as error:
        raise CheckpointError(f"{file.path} has a configuration that this version does not know ({error}): "
                              "use it with the version that wrote it, or convert or train it again with this one") from None


def fitting(path: str | os.PathLike, operations=nn) -> tuple[dict[str, Tensor], DeblurModel]:
    """The tensors of a checkpoint and its model on the meta device, of these layers, whose names and shapes are theirs."""
    file = open_checkpoint(path)
    config = config_of(file)
    try:
        with torch.device("meta"):
            model = DeblurModel(config, operations=operations)
    except (ValueError, ZeroDivisionError, RuntimeError, TypeError, IndexError) as error:
        raise CheckpointError(f"{file.path} has a configuration of which no model can be built ({error}): "
                              "the file is damaged or was written by another program") from None
    if misfit := misfits(file.tensors, model):
        raise CheckpointError(f"{file.path} does not fit its own configuration: tensors {misfit}")
    return file.tensors, model


def misfits(tensors: Mapping[str, Tensor], model: nn.Module) -> str:
    """Which of these are not the model's by name or shape, "" where all are, and which it lacks."""
    expected, found = ({name: tuple(t.shape) for name, t in each.items()} for each in (model.state_dict(), tensors))
    problems = {"of the wrong shape": [f"{name} is {found[name]}, expected {shape}" for name, shape in expected.items()
                                       if found.get(name, shape) != shape],
                "not of floating point": [name for name, tensor in tensors.items() if name in expected and not tensor.is_floating_point()],
                "missing": [name for name in expected if name not in found], "unknown": [name for name in found if name not in expected]}
    return ", ".join(f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                     for what, names in problems.items() if names)
