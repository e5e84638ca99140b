"""What `vdd info` says of a checkpoint."""
from __future__ import annotations

import json
import os

from torch import Tensor

from ..checkpoint.store import CONFIG, CheckpointError, config_of, fitting, open_checkpoint, read_training
from ..media.files import in_bytes

# The model's parts in the order `info` lists them; the longest matching prefix counts.
PARTS = ("unet", "encoder1.semantic_head", "encoder1.spatial_head", "encoder2.semantic_head", "encoder2.spatial_head", "adapter",
         "vae.encoder", "vae.decoder", "vae.fidelity", "vae.detail", "vae.informed", "vae.fusion", "vae", "null_text")


def info(path: str | os.PathLike) -> str:
    """A description for people: configuration, sizes by part, where the weights come from, and what the file lacks.

    Of the `vdd.training` mapping the keys `sources` (list of {file, kind, bytes}), `untrained` (parts that still hold their initial
    values) and `note` are written out as sentences, everything else as it is. Raises CheckpointError.
    """
    file = open_checkpoint(path)
    size = in_bytes(file.path.stat().st_size)
    if "vdd.prior" in file.metadata:
        return "\n".join([f"{file.path}: {size}, {len(file.tensors)} tensors", *map(": ".join, file.metadata.items())])
    config, training = config_of(file), read_training(path)
    parts: dict[str, list[Tensor]] = {}
    for name, t in file.tensors.items():
        part = max((part for part in PARTS if f"{name}.".startswith(f"{part}.")), key=len, default=name.partition(".")[0])
        parts.setdefault(part, []).append(t)
    rows = sorted(parts.items(), key=lambda row: PARTS.index(row[0]) if row[0] in PARTS else len(PARTS))
    sources, untrained = (known if isinstance(known := training.pop(key, []), list) else [known] for key in ("sources", "untrained"))
    lines = [f"{file.path}: {size}, format {file.metadata['vdd.format']}",
             f"model {config.name}: window of {config.num_frames} frames, {config.vae.factor} pixels per latent, "
             f"frames padded to multiples of {config.divisor}", "", f"{'part':<24}{'tensors':>8}{'parameters':>15}{'size':>11}  type",
             *(_row(title, tensors) for title, tensors in rows), _row("total", list(file.tensors.values())), "",
             *(f"source: {s.get('file')} ({s.get('kind')}, {in_bytes(s['bytes'])})"
               if isinstance(s, dict) and isinstance(s.get("bytes"), int) else f"source: {s}" for s in sources)]
    if untrained:
        lines.append(f"lacks trained weights for: {', '.join(map(str, untrained))} (initial values; train before use)")
    try:
        fitting(path)
        lines.append("complete: every tensor of the configuration is there, with the right shape")
    except CheckpointError as error:
        lines.append(f"cannot be loaded: {error}")
    lines += [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in training.items()]
    if not (training or sources or untrained):
        lines.append("no training record")
    return "\n".join([*lines, "", "configuration: " + json.dumps(json.loads(file.metadata[CONFIG]), indent=1)])


def _row(title: str, tensors: list[Tensor]) -> str:
    types = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))
    return f"{title:<24}{len(tensors):>8}{sum(t.numel() for t in tensors):>15,}{in_bytes(sum(t.nbytes for t in tensors)):>11}  {types}"
