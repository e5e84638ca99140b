"""A small dense optical flow, pyramidal Lucas-Kanade: for the fusion over time, the measures, and training frames between those of sharp
videos."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the windows of least squares, of the flow's own, and how often, on each level. A flow that is finer moves a sharp picture nearer to the
# other one, and what is joined along it is worse: it follows errors of both too.
RADIUS, SMOOTHING, ITERATIONS = 3, 3, 4
FREE = 2                 # of these, at first, count all pixels alike: all is far off
DAMPING = 1e-4           # where the picture is flat
FINEST = 800             # pixels of the longer side, as fine as motion between frames asks for
OUTLIER = 0.05           # a difference of brightness from which on a pixel counts less for the flow around it: hidden parts, other light


def warp(x: Tensor, flow: Tensor, top: int = 0, left: int = 0) -> Tensor:
    """Sample x (N, C, H, W) at p + flow(p); flow (N, 2, h, w) in pixels, (x, y), of the part of x whose first row is `top` and first column
    `left`. Beyond the border the edge repeats."""
    height, width = x.shape[-2:]
    rows = torch.arange(top, top + flow.shape[-2], device=x.device, dtype=x.dtype).view(1, -1, 1) + flow[:, 1]
    columns = torch.arange(left, left + flow.shape[-1], device=x.device, dtype=x.dtype).view(1, 1, -1) + flow[:, 0]
    grid = torch.stack([2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _window(x: Tensor, radius: int) -> Tensor:
    """Mean over a square window, twice: nearly a Gaussian."""
    side = 2 * radius + 1
    for _ in range(2):
        x = F.pad(x, (radius,) * 4, mode="replicate")
        for axis in (2, 3):                              # by sums of shifted pictures: on a CPU avg_pool2d takes several times as long
            parts = [x.narrow(axis, i, x.shape[axis] - side + 1) for i in range(side)]
            x = parts[0] + parts[1]
            for part in parts[2:]:
                x += part
    return x / side**4


def _half(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """A flow field (N, 2, h, w) on a larger grid (H, W), in that grid's pixels."""
    if flow.shape[-2:] == size:
        return flow
    scale = round(size[1] / flow.shape[-1])
    return scale * F.interpolate(flow, size=size, mode="bilinear", align_corners=False)


def follow(flow: Tensor, onward: Tensor) -> Tensor:
    """The flow to a third picture, from that to a second one and that from the second to the third, all (N, 2, H, W) in pixels."""
    return flow + warp(onward, flow)


def dense_flow(first: Tensor, second: Tensor, *, finest: int = FINEST) -> Tensor:
    """Flow (N, 2, H, W) in pixels with second(p + flow(p)) = first(p), from pictures (N, C, H, W) in [0, 1], luma or color.

    Callers weigh by how well the warped picture fits: what is hidden is not looked for.
    """
    return resize_flow(coarse_flow(first, second, finest=finest), first.shape[-2:])


@torch.no_grad()
def coarse_flow(first: Tensor, second: Tensor, *, finest: int = FINEST) -> Tensor:
    """`dense_flow` in the pixels of the finest pyramid level that is looked at, which `resize_flow` enlarges.

    Lucas and Kanade's least squares in a window, outliers counting less, from a coarse to a fine pyramid level, several times on each
    (Bouguet 2000). Levels with a side beyond `finest` are left out.
    """
    pyramid = [(first.float(), second.float())]
    while max(pyramid[-1][0].shape[-2:]) > finest:
        pyramid = [tuple(map(_half, pyramid[-1]))]
    while len(pyramid) < 6 and min(pyramid[-1][0].shape[-2:]) >= 32:
        pyramid.append(tuple(map(_half, pyramid[-1])))
    flow = first.new_zeros(len(first), 2, *pyramid[-1][0].shape[-2:], dtype=torch.float32)
    for level, (a, b) in reversed([*enumerate(pyramid)]):
        # the finest level is most of the work, and has little left to find
        iterations, free = (n if level else n // 2 for n in (ITERATIONS, FREE))
        flow = resize_flow(flow, a.shape[-2:])
        padded = F.pad(a, (1, 1, 1, 1), mode="replicate")
        gx, gy = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        for i in range(iterations):
            rest = a - warp(b, flow)
            weight = 1 if i < free else OUTLIER / (_mean(rest, rest) + OUTLIER**2).sqrt()
            sums = torch.cat([_mean(*pair) for pair in ((gx, gx), (gx, gy), (gy, gy), (gx, rest), (gy, rest))], dim=1)
            xx, xy, yy, ex, ey = _window(weight * sums, RADIUS).split(1, dim=1)
            xx, yy = xx + DAMPING, yy + DAMPING
            step = torch.cat([yy * ex - xy * ey, xx * ey - xy * ex], dim=1) / (xx * yy - xy * xy)
            flow = _window(flow + step.clamp(-1, 1), SMOOTHING)
    return flow


def _mean(a: Tensor, b: Tensor) -> Tensor:
    """Of a product, over the channels."""
    return (a * b).mean(dim=1, keepdim=True)
