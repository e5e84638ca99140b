"""Deblurred frames joined with their neighbours (`networks.temporal`), one behind the other as they come."""
from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, takewhile
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..cpu.frames import to_float
from ..measure.flow import coarse_flow, follow, resize_flow, warp
from ..networks.autoencoder import AutoencoderKL
from ..networks.temporal import NEIGHBOURS, REACH, TemporalFusion, in_pairs
from .tiles import Box, Tiling, blend
from .window import Tick, no_tick, pad_to_multiple

DIVISOR, TILING = 4, Tiling(768, 96, divisor=4)          # no weight sees further than 42 pixels
NOT_TRAINED = "the fusion over time of this checkpoint is not trained: no frame is joined with its neighbours"
T = TypeVar("T")


class Shown(NamedTuple):
    """A deblurred and a blurred frame, (H, W, 3) in [0, 1], the latter `compact` or not."""

    frame: Tensor
    blurred: Tensor

    def whole(self, device: torch.device) -> Tensor:
        """The deblurred frame (1, 3, H, W)."""
        return self.frame.to(device).movedim(2, 0)[None]

    def part(self, rows: slice, columns: slice, device: torch.device) -> Tensor:
        """A part of both, as `TemporalFusion` takes them."""
        return torch.cat([to_float(each[rows, columns], device) for each in self], dim=2).movedim(2, 0)[None]


class Link(NamedTuple):
    """Coarse optical flow from a picture to the one behind it, and back, (N, 2, h, w)."""

    onward: Tensor
    back: Tensor

    @classmethod
    def between(cls, first: Tensor, second: Tensor) -> Link:
        """Of pictures (N, 3, H, W) in [0, 1]."""
        return cls(*coarse_flow(torch.cat([first, second]), torch.cat([second, first])).chunk(2))


def paths(links: Sequence[Link | None]) -> list[Tensor | None]:
    """The coarse flow to each of `NEIGHBOURS`, None where there is none, by way of the pictures between: half of the work of looking for
    each, and no worse. links: as many before the picture as behind it, in order."""
    middle, found = len(links) // 2, {}
    before, behind = [link and link.back for link in reversed(links[:middle])], [link and link.onward for link in links[middle:]]
    for sign, steps in ((-1, before), (1, behind)):
        flow = None
        for distance, step in enumerate(takewhile(lambda step: step is not None, steps), 1):
            flow = step if flow is None else follow(flow, step)
            found[sign * distance] = flow
    return [found.get(k) for k in NEIGHBOURS]


def chosen(vae: AutoencoderKL, setting: str, notice: Callable[[str], None], *, one_step: bool, fidelity: float,
           beside_prior: bool) -> TemporalFusion | None:
    """Its network where `DeblurOptions.temporal_fusion` asks for it; none where it has not trained: it would be a plain mean.

    one_step: without the UNet. What several steps draw has a detail of its own in every frame, which a mean over time would lose.
    """
    if not one_step or setting == "off" or setting == "auto" and (fidelity != 1 or not beside_prior):
        return None
    network = vae.temporal                               # only now: it may still be on the disk
    if network is None or not network.head.weight.any():
        if setting == "on":
            notice(NOT_TRAINED)
        return None
    return network


def joined_over_time(scene: Iterable[tuple[T, Tensor, Tensor]], network: TemporalFusion, device: torch.device,
                     tick: Tick = no_tick) -> Iterator[tuple[T, Tensor]]:
    """The pictures of one scene in order, each something to know it by, the deblurred and the blurred frame, -> the same and the frame
    (H, W, 3), float32, on the CPU, joined with the two before and the two behind it, which have to be there first. A scene of one
    picture stays as it is. tick is called between pieces of work, and may raise to cancel."""
    keys: deque[T] = deque()                             # of pictures from the one that is next on
    shown: deque[Shown | None] = deque([None] * (2 * REACH + 1), 2 * REACH + 1)          # around it, None where there is none
    links: deque[Link | None] = deque([None] * (2 * REACH), 2 * REACH)                   # between them
    for coming in chain(scene, [None] * REACH):
        shown.append(coming and Shown(*coming[1:]))
        tick()
        links.append(Link.between(*(each.whole(device) for each in (shown[-2], shown[-1]))) if coming and shown[-2] else None)
        if coming:
            keys.append(coming[0])
            del coming
        if (now := shown[REACH]) is not None:
            others = in_pairs(now, [shown[REACH + k] for k in NEIGHBOURS])
            alone = all(each is now for each in others)
            yield keys.popleft(), now.frame if alone else _joined(now, others, paths(list(links)), network, device, tick)


@torch.no_grad()
def _joined(now: Shown, others: list[Shown], coarse: list[Tensor | None], network: TemporalFusion, device: torch.device,
            tick: Tick) -> Tensor:
    height, width, _ = now.frame.shape
    flows = [flow if flow is None else resize_flow(flow, (height, width)) for flow in coarse]

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
