"""One-file checkpoints: tensors under `unet.`, `encoder1.`, `encoder2.`, `adapter.`, `vae.`, `null_text`; configuration as metadata."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import ConfigError, ModelConfig
from .tensorfile import CheckpointError, Header, megabytes, read_header, read_tensors, write_tensors

if TYPE_CHECKING:
    from ..networks.model import DeblurModel

__all__ = ["BUILT_IN", "CONFIG", "FORMAT", "CheckpointError", "config_tensor", "info", "load", "read_config", "read_state",
           "read_training", "resolve", "save", "save_state"]

FORMAT = 1
CONFIG = "vdd.config"          # in the metadata; a tensor in a file that ComfyUI saved, which fills the metadata itself
FROM_COMFYUI = (CONFIG, "v_pred", "ztsnr")     # what it adds to the tensors
BUILT_IN = {"small": Path(__file__).parents[1] / "weights" / "vdd-small.safetensors"}
# The model's parts in the order `info` lists them; the longest matching prefix counts.
PARTS = ("unet", "encoder1.semantic_head", "encoder1.spatial_head", "encoder2.semantic_head", "encoder2.spatial_head", "adapter",
         "vae.encoder", "vae.decoder", "vae.fidelity", "vae.detail", "vae.fusion", "vae", "null_text")


def resolve(name: str | os.PathLike) -> Path:
    """The file of a built-in name ("small") or of a path. Raises CheckpointError when there is none."""
    path = BUILT_IN.get(str(name))
    if path is not None:
        if not path.exists():
            raise CheckpointError(f"the built-in model {str(name)!r} is not part of this installation (expected at {path})")
        return path
    path = Path(name).expanduser()
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {path}; the built-in ones are: {', '.join(BUILT_IN)}")
    return path


def save(model: DeblurModel, path: str | os.PathLike, training: Mapping | None = None, dtype: torch.dtype | None = None) -> None:
    """Write `model` as one safetensors file, aside and then renamed.

    `training` is any JSON-able mapping, kept as `vdd.training` (see `info` for the keys it knows); `dtype` converts floating tensors.
    Raises CheckpointError (disk full, folder not writable); an older file of that name then stays as it was.
    """
    save_state(model.state_dict(), model.config, path, training, dtype)


def save_state(state: Mapping[str, Tensor], config: ModelConfig, path: str | os.PathLike, training: Mapping | None = None,
               dtype: torch.dtype | None = None) -> None:
    """`save` for a state dict that is at hand without its module (an exponential moving average, a conversion)."""
    metadata = {"vdd.format": str(FORMAT), "vdd.config": config.to_json()}
    if training is not None:
        metadata["vdd.training"] = json.dumps(training)
    write_tensors(path, state, metadata, dtype)


def config_tensor(config: ModelConfig) -> Tensor:
    """The configuration as bytes, for a writer that has no metadata of ours."""
    return torch.frombuffer(bytearray(config.to_json().encode()), dtype=torch.uint8)


def load(path: str | os.PathLike = "small", device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DeblurModel:
    """Build the model of a checkpoint, in eval mode.

    The modules are made on the meta device and take the tensors of the memory-mapped file as they are: peak memory is about the file's
    size, or nothing until first use. `dtype` None keeps the stored types. Raises CheckpointError, naming the file, what was expected
    and what was found.
    """
    path = resolve(path)
    header = _header(path)
    model = _empty_model(header)
    _check(header, model)
    state = _tensors(header)
    for name in list(state):
        to = dtype if dtype is not None and state[name].is_floating_point() else None
        state[name] = state[name].to(device=device, dtype=to)      # one at a time: no second copy of the whole model
    model.load_state_dict(state, assign=True)
    left = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise CheckpointError(f"{path} leaves tensors of the model empty ({', '.join(left[:3])})")
    return model.eval()


def read_state(path: str | os.PathLike) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the tensors of a checkpoint, mapped from the file, for a caller that builds the modules itself.

    Names and shapes are those of the configuration. Raises CheckpointError as `load` does.
    """
    path = resolve(path)
    header = _header(path)
    model = _empty_model(header)
    _check(header, model)
    return model.config, _tensors(header)


def read_config(path: str | os.PathLike) -> ModelConfig:
    """The configuration in a checkpoint, without its tensors. Raises CheckpointError."""
    return _config(_header(resolve(path)))


def read_training(path: str | os.PathLike) -> dict:
    """The `vdd.training` mapping of a checkpoint; empty when it has none. Raises CheckpointError."""
    header = read_header(resolve(path))
    try:
        training = json.loads(header.metadata.get("vdd.training", "{}"))
    except json.JSONDecodeError:
        raise CheckpointError(f"{header.path}: its training record is not JSON") from None
    return training if isinstance(training, dict) else {}


def _header(path: Path) -> Header:
    """The header of a checkpoint; of one that ComfyUI saved, as if it had been written here."""
    header = read_header(path)
    if CONFIG not in header.entries:
        return header
    text = bytes(read_tensors(path, CONFIG)[""].tolist()).decode(errors="replace")
    return replace(header, entries={name: entry for name, entry in header.entries.items() if name not in FROM_COMFYUI},
                   metadata={**header.metadata, "vdd.format": str(FORMAT), CONFIG: text})


def _tensors(header: Header) -> dict[str, Tensor]:
    """A checkpoint's own tensors, mapped from the file."""
    return {name: t for name, t in read_tensors(header.path).items() if name in header.entries}


def _config(header: Header) -> ModelConfig:
    version, text = header.metadata.get("vdd.format"), header.metadata.get("vdd.config")
    if version is None or text is None:
        some = ", ".join(list(header.entries)[:2]) or "no tensors"
        raise CheckpointError(f"{header.path} is of another model: it holds no `vdd.config` (it holds {some}, ...); "
                              "`vdd convert` builds a checkpoint from official files")
    if not version.isdigit():
        raise CheckpointError(f"{header.path} has the format {version!r}, a number was expected")
    if int(version) > FORMAT:
        raise CheckpointError(f"{header.path} has format {version}, this version reads up to {FORMAT}: update the package")
    try:
        return ModelConfig.from_json(text)
    except ConfigError as error:
        raise CheckpointError(f"{header.path} has a configuration that this version does not know ({error}): "
                              "use it with the version that wrote it, or convert or train it again with this one") from None


def _empty_model(header: Header) -> DeblurModel:
    """The model of the configuration in a file, on the meta device."""
    from ..networks.model import DeblurModel

    config = _config(header)
    try:
        with torch.device("meta"):
            return DeblurModel(config)
    except (ValueError, ZeroDivisionError, RuntimeError, TypeError, IndexError) as error:
        raise CheckpointError(f"{header.path} has a configuration of which no model can be built ({error}): "
                              "the file is damaged or was written by another program") from None


def _check(header: Header, model: torch.nn.Module) -> None:
    """Compare the file's names and shapes with the model's; the first few differences go into one sentence."""
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    shapes = [f"{name} is {header.entries[name].shape}, expected {shape}" for name, shape in expected.items()
              if name in header.entries and header.entries[name].shape != shape]
    missing = [name for name in expected if name not in header.entries]
    extra = [name for name in header.entries if name not in expected]
    problems = [f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
                for what, found in (("of the wrong shape", shapes), ("missing", missing), ("unknown", extra)) if found]
    if problems:
        raise CheckpointError(f"{header.path} does not fit its own configuration: tensors " + ", ".join(problems))


def _part(name: str) -> str:
    matches = [part for part in PARTS if name == part or name.startswith(part + ".")]
    return max(matches, key=len) if matches else name.split(".")[0]


def _dtype_names(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))


def info(path: str | os.PathLike) -> str:
    """A description for people: configuration, sizes by part, where the weights come from, and what the file lacks.

    Of the `vdd.training` mapping the keys `sources` (list of {file, kind, bytes}), `untrained` (parts that still hold their initial
    values) and `note` are written out as sentences, everything else as it is. Raises CheckpointError.
    """
    path = resolve(path)
    header = _header(path)
    if "vdd.prior" in header.metadata:
        return "\n".join([f"{path}: {megabytes(header.size)}, {len(header.entries)} tensors",
                          *(f"{key}: {text}" for key, text in header.metadata.items())])
    config, training = _config(header), read_training(path)
    lines = [f"{path}: {megabytes(header.size)}, format {header.metadata['vdd.format']}",
             f"model {config.name}: window of {config.num_frames} frames, {config.vae.factor} pixels per latent, "
             f"frames padded to multiples of {config.divisor}", "", f"{'part':<24}{'tensors':>8}{'parameters':>15}{'size':>11}  type"]
    parts: dict[str, list] = {}
    for name, entry in header.entries.items():
        parts.setdefault(_part(name), []).append(entry)
    for part in sorted(parts, key=lambda p: PARTS.index(p) if p in PARTS else len(PARTS)):
        lines.append(_row(part, parts[part]))
    lines += [_row("total", list(header.entries.values())), ""]
    sources, untrained = (known if isinstance(known := training.pop(key, []), list) else [known] for key in ("sources", "untrained"))
    lines += [f"source: {s.get('file')} ({s.get('kind')}, {megabytes(s['bytes'])})"
              if isinstance(s, dict) and isinstance(s.get("bytes"), int) else f"source: {s}" for s in sources]
    if untrained:
        lines.append(f"lacks trained weights for: {', '.join(map(str, untrained))} (initial values; train before use)")
    lines.append(_lacking(header))
    lines += [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in training.items()]
    if not (training or sources or untrained):
        lines.append("no training record")
    lines += ["", "configuration: " + json.dumps(json.loads(header.metadata["vdd.config"]), indent=1)]
    return "\n".join(lines)


def _row(title: str, entries: list) -> str:
    count = sum(e.numel for e in entries)
    size, types = megabytes(sum(e.end - e.start for e in entries)), _dtype_names({e.dtype for e in entries})
    return f"{title:<24}{len(entries):>8}{count:>15,}{size:>11}  {types}"


def _lacking(header: Header) -> str:
    try:
        _check(header, _empty_model(header))
    except CheckpointError as error:
        return f"cannot be loaded: {error}"
    return "complete: every tensor of the configuration is there, with the right shape"
