"""Geometric self-ensemble (EDSR, arXiv 1707.02921): the mean of what a network makes of a clip and of its mirrored and
turned copies. What it gets wrong in one orientation only is averaged away."""
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .tiles import Box


class Orientation(NamedTuple):
    """One of the eight ways to lay a picture down: height and width exchanged or not, then columns, then rows mirrored or not."""

    transpose: bool = False
    mirror_columns: bool = False
    mirror_rows: bool = False

    def turn(self, x: Tensor) -> Tensor:
        """x (..., H, W) in this orientation; x itself where nothing changes."""
        return self._mirror(x.transpose(-1, -2) if self.transpose else x)

    def turn_back(self, x: Tensor) -> Tensor:
        """Inverse of `turn`."""
        x = self._mirror(x)
        return x.transpose(-1, -2) if self.transpose else x

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, turned."""
        return (width, height) if self.transpose else (height, width)

    def source(self, tile: Box, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns that turn into a tile of a picture that has this size once it is turned."""
        spans, mirrored = (tile.rows, tile.columns), (self.mirror_rows, self.mirror_columns)
        rows, columns = (slice(n - span.stop, n - span.start) if mirror else span.slice for span, n, mirror in zip(spans, size, mirrored))
        return (columns, rows) if self.transpose else (rows, columns)

    def _mirror(self, x: Tensor) -> Tensor:
        axes = [axis for axis, mirrored in ((-1, self.mirror_columns), (-2, self.mirror_rows)) if mirrored]
        return x.flip(axes) if axes else x


# Ordered so that already the first two, then the first four gain most of it: with the shipped model, more than mirrored ones do
ORIENTATIONS = tuple(Orientation(*map(bool, o)) for o in ((0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1),
                                                          (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1)))
