"""What joins a deblurred frame with its neighbours: where one was sharper, or errs otherwise, a mean shows less of every error."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import FusionConfig
from .fusion import DenseUNet
from .layers import zero_init

T = TypeVar("T")
PATCH_SIZE = 2
SHARE = 0.5                              # of a neighbour at most
SHARES = (0.7, 0.3)                      # of what the pair of neighbours next to a frame says, and the pair behind those
REACH = len(SHARES)
NEIGHBOURS = tuple(sign * distance for distance in range(1, REACH + 1) for sign in (-1, 1))          # frames from the one that is joined
TIMID = -2.0                             # logit of that share to begin with


class TemporalFusion(DenseUNet):
    """The frame + for each neighbour, moved along the optical flow, w (neighbour - frame), w in (0, 1/2) for every pixel, + a residual that
    gives back the sharpness which a mean loses. The two frames before it and the two behind it are its neighbours, in pairs: the network
    sees a pair at a time, and `SHARES` says how much of what it makes of each counts.

    What a neighbour shows elsewhere, hidden parts or another scene, gets no weight; where there is none, the frame itself stands in.
    """

    def __init__(self, config: FusionConfig, ops):
        super().__init__(18 * PATCH_SIZE**2, config, ops)
        self.head = zero_init(ops.Conv2d(config.channels[0], 2 * PATCH_SIZE**2, 3, padding=1))
        nn.init.constant_(self.head.bias, TIMID)
        self.residual = zero_init(ops.Conv2d(config.channels[0], 3 * PATCH_SIZE**2, 3, padding=1)) if config.residual else None

    def forward(self, pictures: Tensor, *neighbours: Tensor) -> Tensor:
        """Each (N, 6, H, W), float32: a deblurred and the blurred frame behind one another, in [0, 1], H and W multiples of 4; the
        neighbours, in the order of `NEIGHBOURS`, all of them or the first two, are moved to where `pictures` shows the same. -> the
        deblurred frame (N, 3, H, W)."""
        shares = SHARES[:len(neighbours) // 2]
        changes = (self._change(pictures, *pair) * (share / sum(shares))
                   for share, pair in zip(shares, zip(neighbours[::2], neighbours[1::2])))
        return sum(changes, pictures[:, :3])

    def _change(self, pictures: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """What a pair of neighbours makes of the frame, less the frame."""
        frame, blurred = pictures.split(3, dim=1)
        changes = [4 * (each - pictures) for each in (before, after)]
        given = torch.cat([2 * frame - 1, 4 * (blurred - frame), *(c[:, :3] for c in changes), *(c[:, 3:] for c in changes)], dim=1)
        # what pixel_unshuffle does, which on a CPU takes several times as long
        patches = rearrange(given.to(self.conv_in.weight.dtype), "n c (h p) (w q) -> n (c p q) h w", p=PATCH_SIZE, q=PATCH_SIZE)
        x = self.features(patches)
        weights = SHARE * torch.sigmoid(F.pixel_shuffle(self.head(x).float(), PATCH_SIZE))
        change = sum(weight * (other[:, :3] - frame) for weight, other in zip(weights.split(1, dim=1), (before, after)))
        return change if self.residual is None else change + F.pixel_shuffle(self.residual(x).float(), PATCH_SIZE)


def in_pairs(now: T, around: Sequence[T | None]) -> list[T]:
    """A frame's neighbours in the order of `NEIGHBOURS`, None where there is none -> what `TemporalFusion` takes: `now` stands in, and a
    second pair of which neither is there is left out."""
    found = [now if each is None else each for each in around]
    return found if any(each is not None for each in around[2:]) else found[:2]
