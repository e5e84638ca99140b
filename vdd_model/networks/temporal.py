"""What joins a deblurred frame with its neighbours: where one was sharper, or errs otherwise, a mean shows less of every error."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import FusionConfig
from .fusion import DenseUNet
from .layers import zero_init

PATCH_SIZE = 2
SHARE = 0.5                              # of a neighbour at most
TIMID = -2.0                             # logit of that share to begin with


class TemporalFusion(DenseUNet):
    """The frame + for each neighbour, moved along the optical flow, w (neighbour - frame), w in (0, 1/2) for every pixel, + a residual that
    gives back the sharpness which a mean loses.

    What a neighbour shows elsewhere, hidden parts or another scene, gets no weight; where there is none, the frame itself stands in.
    """

    def __init__(self, config: FusionConfig, ops):
        super().__init__(18 * PATCH_SIZE**2, config, ops)
        self.head = zero_init(ops.Conv2d(config.channels[0], 2 * PATCH_SIZE**2, 3, padding=1))
        nn.init.constant_(self.head.bias, TIMID)
        self.residual = zero_init(ops.Conv2d(config.channels[0], 3 * PATCH_SIZE**2, 3, padding=1)) if config.residual else None

    def forward(self, pictures: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Each (N, 6, H, W), float32: a deblurred and the blurred frame behind one another, in [0, 1], H and W multiples of 4; the
        neighbours' are moved to where `pictures` shows the same. -> the deblurred frame (N, 3, H, W)."""
        frame, blurred = pictures.split(3, dim=1)
        changes = [4 * (each - pictures) for each in (before, after)]
        given = torch.cat([2 * frame - 1, 4 * (blurred - frame), *(c[:, :3] for c in changes), *(c[:, 3:] for c in changes)], dim=1)
        x = self.features(F.pixel_unshuffle(given, PATCH_SIZE).to(self.conv_in.weight.dtype))
        weights = SHARE * torch.sigmoid(F.pixel_shuffle(self.head(x).float(), PATCH_SIZE))
        for weight, other in zip(weights.split(1, dim=1), (before, after)):
            frame = frame + weight * (other[:, :3] - pictures[:, :3])
        return frame if self.residual is None else frame + F.pixel_shuffle(self.residual(x).float(), PATCH_SIZE)
