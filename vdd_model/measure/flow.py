"""A small dense optical flow, pyramidal Lucas-Kanade: for the measures, and for training frames between those of sharp videos."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Sample x (N, C, H, W) at p + flow(p); flow (N, 2, H, W) in pixels, (x, y). Beyond the border the edge repeats."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype).view(1, -1, 1) + flow[:, 1]
    columns = torch.arange(width, device=x.device, dtype=x.dtype).view(1, 1, -1) + flow[:, 0]
    grid = torch.stack([2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _window(x: Tensor, radius: int) -> Tensor:
    """Mean over a square window, twice: nearly a Gaussian."""
    for _ in range(2):
        x = F.avg_pool2d(F.pad(x, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)
    return x


def _half(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def _resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """A flow field on a larger grid, in that grid's pixels."""
    if flow.shape[-2:] == size:
        return flow
    scale = round(size[1] / flow.shape[-1])
    return scale * F.interpolate(flow, size=size, mode="bilinear", align_corners=False)


def dense_flow(first: Tensor, second: Tensor, *, finest: int = 400) -> Tensor:
    """Flow (N, 2, H, W) in pixels with second(p + flow(p)) = first(p), from luma pictures (N, 1, H, W) in [0, 1].

    Lucas and Kanade's least squares in a window, from a coarse to a fine pyramid level, a few times on each (Bouguet 2000), damped where
    the picture is flat. Levels with a side beyond `finest` are left out: the flow is enlarged from the next one. No occlusion handling:
    callers weigh by how well the warped picture fits.
    """
    from kornia.filters import spatial_gradient

    size = first.shape[-2:]
    pyramid = [(first.float(), second.float())]
    while max(pyramid[-1][0].shape[-2:]) > finest:
        pyramid = [tuple(map(_half, pyramid[-1]))]
    while len(pyramid) < 6 and min(pyramid[-1][0].shape[-2:]) >= 32:
        pyramid.append(tuple(map(_half, pyramid[-1])))
    flow = first.new_zeros(len(first), 2, *pyramid[-1][0].shape[-2:], dtype=torch.float32)
    for a, b in reversed(pyramid):
        flow = _resize_flow(flow, a.shape[-2:])
        gx, gy = spatial_gradient(a, "diff").unbind(2)
        xx, xy, yy = _window(torch.cat([gx * gx, gx * gy, gy * gy], dim=1), 3).split(1, dim=1)
        damping = 1e-4
        determinant = (xx + damping) * (yy + damping) - xy * xy
        for _ in range(4):
            rest = a - warp(b, flow)
            ex, ey = _window(torch.cat([gx * rest, gy * rest], dim=1), 3).split(1, dim=1)
            step = torch.cat([(yy + damping) * ex - xy * ey, (xx + damping) * ey - xy * ex], dim=1) / determinant
            flow = _window(flow + step.clamp(-1, 1), 1)
    return _resize_flow(flow, size)
