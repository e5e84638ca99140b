"""Deblurred frames joined with their neighbours (`networks.temporal`), one behind the other as they come."""
from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..cpu.frames import to_float
from ..measure.flow import dense_flow, warp
from ..networks.temporal import NEIGHBOURS, REACH, TemporalFusion, in_pairs
from .tiles import Box, Tiling, blend
from .window import Tick, no_tick, pad_to_multiple

DIVISOR, TILING = 4, Tiling(384, 96, divisor=4)          # no weight sees further than 42 pixels
T = TypeVar("T")


class Shown(NamedTuple):
    """A deblurred and a blurred frame, (H, W, 3) in [0, 1], the latter `compact` or not."""

    frame: Tensor
    blurred: Tensor

    def part(self, rows: slice, columns: slice, device: torch.device) -> Tensor:
        """A part of both, as `TemporalFusion` takes them."""
        return torch.cat([to_float(each[rows, columns], device) for each in self], dim=2).movedim(2, 0)[None]


def trained(network: TemporalFusion | None) -> TemporalFusion | None:
    """The network, None where it has not trained: it would be a plain mean."""
    return network if network is not None and network.head.weight.any() else None


def joined_over_time(scene: Iterable[tuple[T, Tensor, Tensor]], network: TemporalFusion, device: torch.device,
                     tick: Tick = no_tick) -> Iterator[tuple[T, Tensor]]:
    """The pictures of one scene in order, each something to know it by, the deblurred and the blurred frame, -> the same and the frame
    (H, W, 3), float32, on the CPU, joined with the two before and the two behind it, which have to be there first. A scene of one
    picture stays as it is. tick is called between pieces of work, and may raise to cancel."""
    keys: deque[T] = deque()                             # of pictures from the one that is next on
    shown: deque[Shown | None] = deque([None] * (2 * REACH + 1), 2 * REACH + 1)          # around it, None where there is none
    for coming in chain(scene, [None] * REACH):
        shown.append(coming and Shown(*coming[1:]))
        if coming:
            keys.append(coming[0])
            del coming
        if (now := shown[REACH]) is not None:
            others = in_pairs(now, [shown[REACH + k] for k in NEIGHBOURS])
            yield keys.popleft(), now.frame if all(each is now for each in others) else _joined(now, others, network, device, tick)


@torch.no_grad()
def _joined(now: Shown, others: list[Shown], network: TemporalFusion, device: torch.device, tick: Tick) -> Tensor:
    height, width, _ = now.frame.shape
    whole, flows = [each.frame.to(device).movedim(2, 0)[None] for each in (now, *others)], []
    for other, frame in zip(others, whole[1:]):
        tick()
        flows.append(None if other is now else dense_flow(whole[0], frame))

    def moved(other: Shown, flow: Tensor, top: int, left: int) -> Tensor:
        """A neighbour's pictures where a tile shows the same: the part of them that its flow reaches is read."""
        spans = []
        for start, count, size, shift in ((top, flow.shape[2], height, flow[:, 1]), (left, flow.shape[3], width, flow[:, 0])):
            low = min(max(start + math.floor(float(shift.min())), 0), size - 1)
            spans.append(slice(low, min(max(start + count + math.ceil(float(shift.max())), low + 1), size)))
        return warp(other.part(*spans, device), flow, top - spans[0].start, left - spans[1].start)

    def compute(box: Box) -> Tensor:
        """One tile."""
        tick()
        rows, columns = slice(box.rows.start, min(box.rows.stop, height)), slice(box.columns.start, min(box.columns.stop, width))
        pictures = now.part(rows, columns, device)
        both = [pictures if flow is None else moved(other, flow[..., rows, columns], rows.start, columns.start)
                for other, flow in zip(others, flows)]
        return network(*(pad_to_multiple(each, DIVISOR) for each in (pictures, *both)))[:, :, None]

    padded = [n + -n % DIVISOR for n in (height, width)]
    out = blend(TILING.boxes((1, *padded)), compute, as_frames=True)
    return out[0, :, 0, :height, :width].movedim(0, 2).clamp(0, 1).contiguous().cpu()
