"""Photographs: a folder of them, or all in one file (`python -m train.data pack`)."""
from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vdd_model.media.files import written_aside

from .frames import DataError, picture_size, pool, read_picture
from .readers import find

HELD = 1 << 30                           # bytes of decoded photographs that are kept at a time


class Photos(Sequence[Tensor]):
    """Photographs, uint8 (3, H, W): sizes are known from the start, pixels are decoded when they are asked for.

    The last ones stay decoded, up to `held` bytes, so that memory does not grow with the set. One that turns out to be unreadable is named
    in `unreadable`, and the next one stands in for it: what is drawn depends on the files alone, not on what was drawn before.
    """

    def __init__(self, names: list[str], sizes: list[tuple[int, int]], decode: Callable[[int], Tensor], unreadable: dict[str, str],
                 held: int = HELD) -> None:
        self.names, self.sizes, self.decode, self.unreadable, self.held = names, sizes, decode, unreadable, held
        self.sides = np.array([min(size) for size in sizes])
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        if index >= len(self):
            raise IndexError(index)
        for number in (*range(index, len(self)), *range(index)):
            with self._lock:
                if number in self._kept:
                    self._kept.move_to_end(number)
                    return self._kept[number]
            try:
                photo = self.decode(number)
            except DataError as error:
                self.unreadable[self.names[number]] = str(error)
                continue
            with self._lock:
                self._kept[number] = photo
                while len(self._kept) > 1 and sum(x.nbytes for x in self._kept.values()) > self.held:
                    self._kept.popitem(last=False)
            return photo
        raise DataError(f"not one photograph could be read; the first: {next(iter(self.unreadable.values()))}")

    def on(self, device: torch.device) -> Photos:
        """The same, decoded into the memory of a device."""
        if device.type == "cpu":
            return self
        return Photos(self.names, self.sizes, lambda index: self[index].to(device), self.unreadable, self.held)

    def check(self) -> None:
        """Decode every photograph once, keeping none, so that `unreadable` names all that cannot be."""
        def look(index: int) -> None:
            """One of them."""
            try:
                self.decode(index)
            except DataError as error:
                self.unreadable[self.names[index]] = str(error)

        list(pool().map(look, range(len(self))))


def read_photos(source: str | Path, split: str = "") -> tuple[list[str], Photos, dict[str, str]]:
    """Photographs of a folder (of one split), or of a pack made by `write_pack`: names, pictures, what could not be read.

    Raises DataError when there is none.
    """
    source = Path(source)
    if source.is_file():
        pack = _pack(source)
        names = sorted(pack.keys())
    else:
        pack, paths = None, {s.name: s.sharp.paths[0] for s in find(source, "photos", split).sequences}
        names = list(paths)

    def opened(name: str) -> Path | io.BytesIO:
        """What a photograph is read from."""
        return paths[name] if pack is None else io.BytesIO(pack.get_tensor(name).numpy().tobytes())

    def size(name: str) -> tuple[int, int] | str:
        """(width, height), or the reason why it cannot be read."""
        try:
            return picture_size(opened(name), str(source / name))
        except DataError as error:
            return str(error)

    found = dict(zip(names, pool().map(size, names)))
    unreadable = {name: text for name, text in found.items() if isinstance(text, str)}
    names = [name for name in names if name not in unreadable]
    if not names:
        raise DataError(f"{source}: not one photograph could be read; the first: {next(iter(unreadable.values()))}")
    photos = Photos(names, [found[name] for name in names],
                    lambda index: read_picture(opened(names[index]), name=str(source / names[index])), unreadable)
    return names, photos, unreadable


def _pack(path: Path):
    """A pack, opened. Raises DataError."""
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "pt")
        if (file.metadata() or {}).get("vdd.pack") != "1":
            raise DataError(f"{path}: not a pack of photographs (made by `python -m train.data pack`)")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a pack of photographs ({error})") from None
    return file


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
    with written_aside(out) as aside:
        save_file(packed, aside, metadata={"vdd.pack": "1"})
    return len(packed), unreadable
