"""A shaking camera: one photograph filmed with a hand-held camera, blurred by its exposure, and the sharp truth.

Compact and for demonstrations; the training data's synthesis, with moving objects and sensor noise of many kinds, is in train/synthesis.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from kornia.color import linear_rgb_to_rgb, rgb_to_linear_rgb
from torch import Tensor

from ..errors import UserError

DUTY = 0.8                                # exposure as a part of the frame time


def shaking(extent: float, seed: int, focal: float, height: int, width: int) -> Callable[[Tensor], Tensor]:
    """A smooth random camera path: yaw, pitch and roll, each a sum of sinusoids of 0.03 to 0.3 cycles per frame, as hand tremor is.

    Scaled so that within an exposure a pixel travels `extent` pixels on average. Returns a function: times in frames (T,) -> (T,3,3), which
    take a centred pixel of the view to one of the photograph, H = K R K^-1 of a rotating camera.
    """
    generator, shape = torch.Generator().manual_seed(seed), (3, 4)             # four waves each
    frequency = 0.03 * 10 ** torch.rand(shape, generator=generator, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64) / frequency.sqrt()

    def angles(times: Tensor) -> Tensor:
        """Yaw, pitch, roll (3,T) times the focal length, before they are scaled; roll is held to a third."""
        waves = weight[..., None] * torch.sin(2 * math.pi * frequency[..., None] * times + phase[..., None])
        return waves.sum(1) * torch.tensor([[1.0], [1.0], [0.33]])

    # speed over a long while: angle times focal length for yaw and pitch, times the mean radius for roll
    radius = math.hypot(height, width) / 4
    travel = (angles(torch.linspace(0, 60, 1201, dtype=torch.float64)) / focal).diff(dim=1) * torch.tensor([[focal], [focal], [radius]])
    scale = extent / DUTY / max(float(travel.norm(dim=0).sum() / 60), 1e-12)
    axes = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)          # of yaw, pitch and roll
    crosses = torch.stack([torch.linalg.cross(torch.eye(3).double(), axis.expand(3, 3)) for axis in axes])
    k = torch.diag(torch.tensor([focal, focal, 1.0], dtype=torch.float64))

    def homographies(times: Tensor) -> Tensor:
        """The path at these times."""
        yaw, pitch, roll = torch.linalg.matrix_exp((angles(times) * scale / focal)[..., None, None] * crosses[:, None])
        return k @ yaw @ pitch @ roll @ k.inverse()
    return homographies


def camera_shake(photo: Tensor, num_frames: int, extent: float = 12.0, seed: int = 0, *, size: tuple[int, int] | None = None,
                 noise: float = 1.0, progress: Callable[[int], None] | None = None) -> tuple[Tensor, Tensor]:
    """Film a photograph with a shaking camera.

    photo: (H,W,3) float in [0,1], sRGB. extent: mean length of the blur in pixels of the result. size: (height, width) of the result,
    the photograph's own by default. noise: standard deviation of the sensor noise in 1/255.
    seed: 0 to 2**64 - 1. progress(frames_done) is called after every frame; what it raises passes through.
    Returns (blurred, sharp), each (num_frames,h,w,3) float32 in [0,1]: light is averaged over the exposure in linear light, and the
    truth is what was seen at the middle of the exposure. Raises UserError for a photograph of another shape.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or min(photo.shape[:2]) < 2:
        raise UserError(f"a photograph (height, width, 3) of 2 pixels a side at least was expected, found {tuple(photo.shape)}")
    height, width = size or photo.shape[:2]
    homographies = shaking(extent, seed, 1.2 * max(height, width), height, width)
    samples = max(3, math.ceil(1.5 * extent)) | 1              # odd: the middle one is the truth; at most about a pixel apart
    offsets = DUTY * ((torch.arange(samples, dtype=torch.float64) + 0.5) / samples - 0.5)
    times = torch.arange(num_frames, dtype=torch.float64)[:, None] + 0.5 + offsets
    matrices = homographies(times.reshape(-1)).reshape(num_frames, samples, 3, 3)
    # pixels that the view wanders off its middle
    corners = torch.tensor([[x * width / 2, y * height / 2, 1.0] for x in (-1, 1) for y in (-1, 1)], dtype=torch.float64)
    seen = matrices.reshape(-1, 3, 3) @ corners.T
    reach = (seen[:, :2] / seen[:, 2:]).abs().amax(dim=(0, 2))
    # the photograph is scaled so that all of it that is ever seen is there; what lies beyond is mirrored only if it is much too small
    scale = min(2.0, max(2 * float(reach[0]) / photo.shape[1], 2 * float(reach[1]) / photo.shape[0]) * 1.01)
    source = photo.float().permute(2, 0, 1)[None]
    if abs(scale - 1) > 0.02:
        shape = [max(2, round(n * scale)) for n in photo.shape[:2]]
        source = F.interpolate(source, shape, mode="bicubic", antialias=scale < 1, align_corners=False).clamp(0, 1)
    linear = rgb_to_linear_rgb(source)
    x = torch.arange(width)[None, :] - (width - 1) / 2
    y = torch.arange(height)[:, None] - (height - 1) / 2
    half = torch.tensor([source.shape[3] / 2, source.shape[2] / 2])[:, None, None]
    generator = torch.Generator().manual_seed(0 if seed == 2**64 - 1 else seed + 1)           # not the path's; torch knows no larger one
    blurred, sharp = torch.empty(num_frames, height, width, 3), torch.empty(num_frames, height, width, 3)

    def views(several: Tensor, mode: str) -> Tensor:
        """(n,3,3) -> what is seen through each, (n,3,h,w)."""
        m = several.float()[..., None, None]
        mapped = m[:, :, 0] * x + m[:, :, 1] * y + m[:, :, 2]
        grid = (mapped[:, :2] / mapped[:, 2:] / half).movedim(1, -1)
        return F.grid_sample(linear.expand(len(several), -1, -1, -1), grid, mode=mode, padding_mode="reflection", align_corners=False)

    at_once = max(1, 2**21 // (height * width))
    for i in range(num_frames):
        total = sum(views(some, "bilinear").sum(0) for some in matrices[i].split(at_once)) / samples
        noisy = linear_rgb_to_rgb(total.clamp(0, 1)).permute(1, 2, 0)
        blurred[i] = (noisy + torch.randn(height, width, 3, generator=generator) * (noise / 255)).clamp(0, 1)
        sharp[i] = linear_rgb_to_rgb(views(matrices[i, samples // 2][None], "bicubic")[0].clamp(0, 1)).permute(1, 2, 0)
        if progress is not None:
            progress(i + 1)
    return blurred, sharp
