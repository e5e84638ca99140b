"""Blurred and sharp clips made from still photographs: an exposure is the average of many sharp sub-samples, mostly in linear light; its
truth is the centre sub-sample, never degraded. What a sample shows is drawn by train/synthesis/scene.py.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from kornia.color import linear_rgb_to_rgb, rgb_to_linear_rgb
from torch import Tensor

from . import camera
from .motion import apply
from .scene import DEEPEST, BlurConfig, Plan, Texture, plan, shots

SAME = torch.nn.Identity()     # the light of clips that are averaged in sRGB
CHUNK_PIXELS = 1 << 17         # of sub-samples averaged at a time on a CPU: they stay in its cache


def _mirror(start: int, stop: int, length: int) -> Tensor | None:
    """Indices of start..stop in an axis mirrored at its ends; None when the range lies inside."""
    if start >= 0 and stop <= length:
        return None
    i = torch.arange(start, stop) % (2 * length)
    return torch.where(i < length, i, 2 * length - 1 - i)


def _pixels(texture: Texture, photo: Tensor) -> Tensor:
    """The texture's piece of the photograph, uint8 (3, h, w)."""
    x0, y0, x1, y1 = texture.region
    rows, columns = _mirror(y0, y1, photo.shape[-2]), _mirror(x0, x1, photo.shape[-1])
    piece = photo[:, y0:y1] if rows is None else photo.index_select(1, rows.to(photo.device, non_blocking=True))
    piece = piece[:, :, x0:x1] if columns is None else piece.index_select(2, columns.to(photo.device, non_blocking=True))
    if piece.shape[-2:] == texture.shape:
        return piece
    if piece.is_cuda:                                    # no uint8 resize there
        return F.interpolate(piece[None].float(), texture.shape, mode="bilinear", antialias=True)[0].round_().to(torch.uint8)
    return F.interpolate(piece[None], texture.shape, mode="bilinear", antialias=True)[0]


def _mask(texture: Texture, device) -> Tensor:
    """Soft random blob (h, w) in [0, 1], zero at the border."""
    h, w = texture.shape
    field = sum(F.interpolate(f.to(device, non_blocking=True), (h, w), mode="bicubic", align_corners=False)[0, 0] for f in texture.alpha)
    y, x = (torch.linspace(-1, 1, n, device=device).abs() for n in (h, w))
    radius = (y[:, None] ** texture.power + x ** texture.power) ** (2 / texture.power)
    field = field + 1.5 - 3.5 * radius + texture.threshold
    slope = math.hypot(h, w) / 12 / texture.softness     # an edge of one to a few pixels
    border = torch.minimum((1 - y)[:, None], 1 - x) * (min(h, w) / 6)
    return torch.sigmoid(field * slope) * border.clamp(0, 1) * texture.opacity


def _warp(canvas: Tensor, matrices: np.ndarray, box: tuple[int, int, int, int], mode: str, padding: str,
          relief: tuple[Tensor, np.ndarray] | None = None) -> Tensor:
    """A texture (1, C, ...) seen through homographies (K, 3, 3) at the pixels of a box -> (K, C, h, w). `relief`: depths (K or 1, h, w) and
    what a unit of them moves, (K, 2)."""
    def there(values: np.ndarray) -> Tensor:
        """As float32 on the canvas' device."""
        return torch.from_numpy(values.astype(np.float32)).to(canvas.device, non_blocking=True)

    xs, ys = (torch.arange(*ends, device=canvas.device, dtype=torch.float32) + 0.5 for ends in (box[::2], box[1::2]))
    m = there(matrices)
    p = (m[:, :, 0, None] * xs + m[:, :, 2, None])[:, :, None, :] + (m[:, :, 1, None] * ys)[:, :, :, None]
    # a layer that swings towards the camera reaches behind it: what lies there is far outside, not infinitely far (0 * inf is no color)
    p = (p[:, :2] / p[:, 2:].clamp_min(1e-4)).clamp_(-1e3, 1e3)             # coordinate planes apart in memory
    if relief:
        p.addcmul_(there(relief[1])[:, :, None, None], relief[0][:, None])
    return F.grid_sample(canvas.expand(len(p), -1, -1, -1), p.permute(0, 2, 3, 1), mode=mode, padding_mode=padding, align_corners=False)


def _footprint(matrices: np.ndarray, size: int) -> tuple[int, int, int, int] | None:
    """The part of the crop that a texture covers at any of the instants, or None."""
    corners = apply(np.linalg.inv(matrices), np.array([[-1.0, -1], [1, -1], [-1, 1], [1, 1]])).reshape(-1, 2)
    x0, y0 = np.floor(np.clip(corners.min(0), 0, size)).astype(int).tolist()
    x1, y1 = np.ceil(np.clip(corners.max(0), 0, size)).astype(int).tolist()
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _compose(textures: Sequence[Tensor], matrices: Sequence[np.ndarray], size: int, relief: tuple[Tensor, np.ndarray] | None,
             color: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Background (1, 3, ...) and premultiplied layers (1, 4, ...) at K instants -> (K, 3, size, size), bilinear.

    With `color`, sRGB values in [0, 1] -> the light that the clip is averaged in, from sRGB textures (layers not premultiplied), bicubic.
    Interpolating in sRGB avoids rings about highlights; the layers are still laid over each other in the clip's own light.
    """
    mode = "bicubic" if color else "bilinear"
    image = _warp(textures[0], matrices[0], (0, 0, size, size), mode, "border", relief)
    image = color(image.clamp_(0, 1)) if color else image
    for layer, m in zip(textures[1:], matrices[1:]):
        box = _footprint(m, size)
        if box is None:
            continue
        over, view = _warp(layer, m, box, mode, "zeros"), image[:, :, box[1]:box[3], box[0]:box[2]]
        if color:
            view.add_(over[:, 3:].clamp(0, 1) * (color(over[:, :3].clamp_(0, 1)) - view))
        else:
            view.mul_(1 - over[:, 3:]).add_(over[:, :3])
    return image


def render(sample: Plan, photos: Sequence[Tensor], size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(blurred, sharp) of one sample, both (3, F, size, size) float32 in [0, 1]; blurred is rounded to 8 bits."""
    textures = [sample.background, *sample.layers]
    codes = (torch.arange(256) / 255).expand(3, 1, -1)
    light = rgb_to_linear_rgb(codes) * sample.exposure
    light = light + sample.highlight * ((codes - 0.94) / 0.06).clamp(0, 1)     # light that the photograph clipped
    table, light = linear_rgb_to_rgb(light.clamp(0, 1))[0, 0], light[0, 0]
    table = table.to(device, non_blocking=True)          # a plain copy waits for all that is queued there
    table_light = light.to(device, non_blocking=True) if sample.linear else table

    sharp_textures, light_textures = [], []
    for texture in textures:
        pixels = _pixels(texture, photos[texture.photo]).to(device).int()
        mask = _mask(texture, device)[None] if texture.alpha else None
        color, energy = table[pixels], table_light[pixels]
        sharp_textures.append((color if mask is None else torch.cat([color, mask]))[None])
        light_textures.append((energy if mask is None else torch.cat([energy * mask, mask]))[None])

    layered = sample.linear and bool(sample.layers)      # without layers the truth need not leave sRGB
    relief, depths = sample.relief, None
    if relief:                                           # of what every pixel shows in the middle of every exposure, (F, size, size)
        depths = _warp(relief.depth.to(device, non_blocking=True), sample.background.truth, (0, 0, size, size), "bicubic", "border")[:, 0]
        depths.clamp_(-DEEPEST, DEEPEST)
    sharp = _compose(sharp_textures, [t.truth for t in textures], size, relief and (depths, relief.truth),
                     rgb_to_linear_rgb if layered else SAME)
    blurred = torch.empty_like(sharp)
    chunk = max(1, CHUNK_PIXELS // size**2) if sharp.device.type == "cpu" else max(sample.counts)
    for j, count in enumerate(sample.counts):
        matrices = [t.frames[j] for t in textures]
        bumps = relief and (depths[j:j + 1], relief.frames[j])
        if count <= 3:                                   # few sub-samples: bilinear interpolation's own blur would show
            blurred[j] = _compose(sharp_textures, matrices, size, bumps, rgb_to_linear_rgb if sample.linear else SAME).mean(0)
        else:
            parts = (slice(a, a + chunk) for a in range(0, count, chunk))
            total = sum(_compose(light_textures, [m[part] for m in matrices], size, bumps and (bumps[0], bumps[1][part])).sum(0)
                        for part in parts)
            torch.div(total, count, out=blurred[j])
    if layered:
        sharp = linear_rgb_to_rgb(sharp)
    blurred = camera.degrade(blurred, sample.linear, **sample.camera)
    return blurred.transpose(0, 1), sharp.transpose(0, 1)


@torch.no_grad()
def synthesize(photos: Sequence[Tensor], seed: int, indices: Sequence[int], *, num_frames: int, size: int, config: BlurConfig | None = None,
               device: torch.device | str = "cpu", originals: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Samples `indices` of stream `seed`: (blurred, sharp), both (B, 3, num_frames, size, size) float32 in [0, 1] on `device`.

    photos: uint8 (3, H, W) tensors, best already on `device`; originals: the same on the CPU, where drawing looks at them without
    waiting for a GPU. Every random number comes from (seed, index) through the CPU, so a sample is the same in every process and on
    every machine, up to float rounding.
    """
    config = config or BlurConfig()
    blurred = torch.empty(len(indices), 3, num_frames, size, size, device=device)
    sharp = torch.empty_like(blurred)
    for b, index in enumerate(indices):
        first = 0
        for shot in shots(seed, int(index), num_frames, config):
            drawn = plan(originals or photos, *shot.key[:2], shot.num_frames, size, config, *shot.key[2:])
            part, shown = slice(first, first := first + len(shot.shown)), torch.tensor(shot.shown).to(device, non_blocking=True)
            blurred[b, :, part], sharp[b, :, part] = (x.index_select(1, shown) for x in render(drawn, photos, size, device))
    return blurred, sharp
