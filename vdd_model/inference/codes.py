"""What encoder 2 says of a scene's pictures, tile by tile, and what guides their decoding."""
from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ..config import ModelConfig
from ..cpu.frames import apart
from ..networks.fidelity import BlurGuide
from ..networks.layers import joined
from ..networks.model import DeblurModel
from .tiles import Box, Span

FEATURE_BYTES = 2**30                # encoder features are kept from encoding to decoding while a window's fit in this
CPU_FEATURE_BYTES = 2**28            # on a CPU, which would rather compute those of large frames twice
T = TypeVar("T")
Source = Callable[[Box], tuple[Tensor, BlurGuide | None]]
Pixels = Callable[[range, Box], Tensor]


def feature_bytes(config: ModelConfig, height: int, width: int, itemsize: int = 4) -> int:
    """Bytes of encoder 2's features of one frame (DeblurModel.encode_each)."""
    vae = config.vae
    values = sum(vae.channels * mult / (vae.patch_size * 2**level) ** 2 for level, mult in enumerate(vae.channel_mult))
    return int(values * height * width) * itemsize


class Codes:
    """Latents and features of a scene's pictures, made where they are asked for and kept until nothing looks at them any more.

    pixels(numbers, tile): these blurred pictures (1, 3, n, H, W) in [-1, 1], `tile` of them; prior: the same of a pretrained prior's, None
    without one. size: height and width of the pictures, padded; `copies` of the clip are worked on at a time, which share the room.
    """

    def __init__(self, model: DeblurModel, pixels: Pixels, prior: Pixels | None, size: tuple[int, int], copies: int = 1):
        self.model, self.pixels, self.prior, self.size = model, pixels, prior, size
        self.bytes = feature_bytes(model.config, *size, model.null_text.dtype.itemsize) * copies
        # of pictures, of tiles, with the prior's or without: latents, features fine to coarse
        self.kept: dict[int, dict[tuple[Span, Span, bool], list[Tensor]]] = {}
        self.latents: dict[int, Tensor] = {}             # of whole pictures (1, 4, 1, h, w); 8 channels with those of `encode_pictures`

    def room_for(self, pictures: int) -> bool:
        """Whether the codes of so many can be kept."""
        return self.bytes * pictures <= (CPU_FEATURE_BYTES if self.model.null_text.device.type == "cpu" else FEATURE_BYTES)

    def of(self, number: int, tile: Box, least: int = 2, detail: bool = False) -> list[Tensor]:
        """A picture's own latents and features in a tile, with those of the prior's but for the `detail` branch, which reads none of them;
        made where not `least` of them are kept."""
        prior = None if detail and self.model.vae.detail is not None else self.prior
        place, known, one = (tile.rows, tile.columns, prior is None), self.kept.setdefault(number, {}), range(number, number + 1)
        if len(known.get(place, ())) < least:
            latents, features = self.model.encode_each(self.pixels(one, tile), prior and prior(one, tile))
            known[place] = [apart(each) for each in (latents, *features)]
        return known[place]

    def encoded(self, number: int, tile: Box, keep: bool) -> Tensor:
        """A picture's own latents in a tile; with `keep` they and the features stay until it is decoded."""
        return self.of(number, tile)[0] if keep else self.model.encode_each(self.pixels(range(number, number + 1), tile)).latents

    def source(self, latents: Tensor | None, numbers: range, near: range, strength: float = 1.0, detail: bool = False) -> Source:
        """What `decode_frames` takes for the pictures `numbers`, whose latents (1, 4, F, h, w) are given, None: are encoder 2's. `near` are
        they and the neighbours that there are."""
        def source(tile: Box) -> tuple[Tensor, BlurGuide | None]:
            """Latents of a tile and their guide."""
            place = tile.shrunk(self.model.config.vae.factor)
            z = joined([self.of(i, tile)[0] for i in numbers], dim=2) if latents is None else place.of(latents)
            if not strength:
                return z, None
            features, prior = self._features(numbers, near, tile, detail), self.prior and self.prior(numbers, tile)
            return z, BlurGuide(self.pixels(numbers, tile), features, strength, detail, prior)
        return source

    def _features(self, numbers: range, near: range, tile: Box, detail: bool) -> list[Tensor]:
        """Of the pictures `numbers`, the coarsest joined with their neighbours'. What the next pictures need stays, where there is room."""
        codes = {i: self.of(i, tile, 2 if i in numbers else 1, detail) for i in near}
        coarsest = [torch.cat([codes[min(max(i + k, near[0]), near[-1])][-1] for k in (-1, 0, 1)], dim=1) for i in numbers]
        features = [joined(level, dim=2) for level in (*zip(*(codes[i][1:-1] for i in numbers)), coarsest)]
        for i in near:
            if i < numbers.stop - 1:
                codes[i].clear()
            elif i < numbers.stop or not self.room_for(2):
                del codes[i][:-1]
        return features

    def forget(self, first: int) -> None:
        """Drop what is kept of pictures before number `first`."""
        drop(self.kept, first)


def drop(kept: dict[int, T], first: int) -> None:
    """Keep what is of numbers from `first` on."""
    for i in [i for i in kept if i < first]:
        del kept[i]
