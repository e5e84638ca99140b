"""Photographs of a folder."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
        self.names, self.sizes, self.unreadable, self.held = names, sizes, unreadable, held
        self.sides = np.array([min(size) for size in sizes])
        largest_first = np.sort([3 * width * height for width, height in sizes])[::-1]
        self.decode = lru_cache(max(1, int((largest_first.cumsum() <= held).sum())))(decode)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        if index >= len(self):
            raise IndexError(index)
        for number in (*range(index, len(self)), *range(index)):
            try:
                return self.decode(number)
            except DataError as error:
                self.unreadable[self.names[number]] = str(error)
        raise DataError(f"not one photograph could be read; the first: {next(iter(self.unreadable.values()))}")

    def on(self, device: torch.device) -> Photos:
        """The same, decoded into the memory of a device."""
        if device.type == "cpu":
            return self
        return Photos(self.names, self.sizes, lambda index: self[index].to(device), self.unreadable, self.held)


def read_photos(source: str | Path, split: str = "") -> Photos:
    """Photographs of a folder (of one split). Raises DataError when there is none."""
    def size(path: Path) -> tuple[int, int] | str:
        """(width, height), or the reason why it cannot be read."""
        try:
            return picture_size(path)
        except DataError as error:
            return str(error)

    paths = {s.name: s.sharp.paths[0] for s in find(source, "photos", split).sequences}
    found = dict(zip(paths, pool().map(size, paths.values())))
    unreadable = {name: text for name, text in found.items() if isinstance(text, str)}
    names = [name for name in paths if name not in unreadable]
    if not names:
        raise DataError(f"{source}: not one photograph could be read; the first: {next(iter(unreadable.values()))}")
    return Photos(names, [found[name] for name in names], lambda index: read_picture(paths[names[index]]), unreadable)
