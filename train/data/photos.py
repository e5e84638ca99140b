"""Photographs: a folder of them, or all in one file (`python -m train.data pack`)."""
from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .readers import DataError, find, pool, read_picture


def read_photos(source: str | Path, split: str = "") -> tuple[list[str], list[Tensor], dict[str, str]]:
    """Photographs of a folder (of one split), or of a pack made by `write_pack`: names, uint8 (3, H, W) tensors, what could not be read.

    Raises DataError when there is none.
    """
    source = Path(source)
    if source.is_file():
        items = [(name, io.BytesIO(data)) for name, data in _read_pack(source)]
    else:
        items = [(s.name, s.sharp.paths[0]) for s in find(source, "photos", split).sequences]

    def load(item):
        """One photograph, uint8 (3, H, W), or the reason why it cannot be read."""
        try:
            return read_picture(item[1], name=str(source / item[0]))
        except DataError as error:
            return str(error)

    loaded = list(pool().map(load, items))
    unreadable = {name: text for (name, _), text in zip(items, loaded) if isinstance(text, str)}
    pairs = [(name, photo) for (name, _), photo in zip(items, loaded) if not isinstance(photo, str)]
    if not pairs:
        raise DataError(f"{source}: not one photograph could be read; the first: {next(iter(unreadable.values()))}")
    return [name for name, _ in pairs], [photo for _, photo in pairs], unreadable


def _read_pack(path: Path) -> Iterator[tuple[str, bytes]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("vdd.pack") != "1":
                raise DataError(f"{path}: not a pack of photographs (made by `python -m train.data pack`)")
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name).numpy().tobytes()
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a pack of photographs ({error})") from None


def write_pack(root: str | Path, out: str | Path, max_side: int = 0) -> tuple[int, dict[str, str]]:
    """Put a folder's photographs into one safetensors file, as the bytes of their files; those with a side beyond `max_side` are
    reduced and stored as WebP of quality 95. Returns the number packed and what could not be read."""
    from safetensors.torch import save_file

    packed: dict[str, Tensor] = {}
    unreadable: dict[str, str] = {}
    for item in find(root, "photos").sequences:
        path = item.sharp.paths[0]
        try:
            data = path.read_bytes()
            image = Image.fromarray(read_picture(io.BytesIO(data), name=str(path)).permute(1, 2, 0).numpy())
            if max_side and max(image.size) > max_side:
                scale = max_side / max(image.size)
                small = image.resize([round(n * scale) for n in image.size], Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                small.save(buffer, "WEBP", quality=95, method=4)
                data = buffer.getvalue()
        except (OSError, DataError) as error:
            unreadable[item.name] = str(error)
            continue
        packed[item.name] = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    if not packed:
        raise DataError(f"{root}: not one photograph could be read")
    out = Path(out)
    aside = out.with_name(out.name + ".part")
    save_file(packed, aside, metadata={"vdd.pack": "1"})
    aside.replace(out)
    return len(packed), unreadable
