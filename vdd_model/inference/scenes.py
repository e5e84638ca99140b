"""What of a clip belongs together, found while frames stream by: frames that show one picture several times, scenes between hard cuts."""
from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu.frames import to_float

CELLS = 32                     # of an outline along the shorter side of a frame
# Mean difference of the outlines across a cut, at least, and the correlation of their shifted details, at most. Deblurring has to be SURE:
# a cut that is none takes its neighbours from a frame. Frames of long blur differ much (of 168 pairs of such clips 25 are DOUBTFUL, 2 are
# cuts for sure), unrelated photographs more (552 and 548 of 552). Training draws another clip where it doubts.
DOUBTFUL, SURE_CUT = (0.04, 0.5), (0.08, 0.4)
SURE = 4.0                     # standard deviations of correlations by chance
SAME_LIGHT = 0.85              # correlation of brightness that no two unrelated photographs reach
FLAT = 0.004                   # RMS of details below which there is nothing to compare
FADING = 0.75                  # of its contrast is at most left of a picture that fades, before the last of it
OVERLAP = 0.4                  # of two frames, shifted against each other
FLASH = 2                      # pictures that a flash may last
LONGEST = 8                    # frames that are taken for one picture at most: what is known of a clip stays bounded
BLOCK, CODING = 8, 6 / 255     # a codec's noise: mean difference in a block of so many pixels


class Moment(NamedTuple):
    """A frame from which a run can go on: the first one, index in the clip, of the picture with this number in its scene."""

    index: int
    number: int


@dataclass
class Picture:
    """What one or several successive frames show."""

    rgb: Tensor                # (H, W, 3) of the first of them
    index: int                 # of the first of them in the clip
    number: int = 0            # in its scene, counting pictures; 0 begins a scene
    scene: int = 0             # counted from where a run began
    times: int = 1             # how many frames show it; final once the next picture is there

    @functools.cached_property
    def outline(self) -> Outline:
        """It at a glance."""
        return Outline.of(self.rgb)


class Outline(NamedTuple):
    """A frame at a glance, (h, w) each, the shorter side CELLS: brightness, and its details (less the mean around)."""

    luma: Tensor
    details: Tensor

    @classmethod
    def of(cls, rgb: Tensor) -> Outline:
        """Of a frame (H, W, 3) in [0, 1], or as it is kept."""
        step = max(1, min(rgb.shape[:2]) // (8 * CELLS))
        luma = to_float(rgb[::step, ::step]).mean(dim=2)[None, None]
        luma = F.avg_pool2d(luma, max(1, min(luma.shape[-2:]) // CELLS), ceil_mode=True, count_include_pad=False)
        around = F.avg_pool2d(F.pad(luma, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        return cls(luma[0, 0], (luma - around)[0, 0])

    @property
    def flat(self) -> bool:
        """Whether it holds nothing that could be found again."""
        return self.contrast < FLAT

    @property
    def contrast(self) -> float:
        """RMS of its details."""
        return float(self.details.square().mean().sqrt())

    def change(self, other: Outline) -> float:
        """Mean difference of brightness."""
        return float((self.luma - other.luma).abs().mean())

    def alike(self, other: Outline, limit: float) -> bool:
        """Whether both show one scene: bright and dark places agree, as under a flash, or the details do once one is shifted, by a
        correlation above `limit`."""
        a, b = (x.luma - x.luma.mean() for x in (self, other))
        return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-6)) > SAME_LIGHT or best_shift(self.details, other.details) > limit


def best_shift(a: Tensor, b: Tensor) -> float:
    """The highest correlation of a and b (h, w), one shifted against the other, over their common part, at least OVERLAP of them; of those
    that are more than chance: SURE times the spread that unrelated maps with these autocorrelations have (Bartlett's formula)."""
    size = [2 * n for n in a.shape]
    maps = {"a": a, "aa": a * a, "b": b, "bb": b * b, "1": torch.ones_like(a)}
    spectra = {name: torch.fft.rfft2(x, s=size) for name, x in maps.items()}

    def sums(x: str, y: str) -> Tensor:
        """Of x times the shifted y, over all shifts."""
        return torch.fft.irfft2(spectra[x].conj() * spectra[y], s=size)
    correlation = sums("a", "b") / (sums("aa", "1") * sums("1", "bb")).clamp(min=0).sqrt().clamp(min=1e-6)
    common = sums("1", "1")
    chance = (sums("a", "a") * sums("b", "b")).sum() / (maps["aa"].sum() * maps["bb"].sum()).clamp(min=1e-12)
    sure = (common > OVERLAP * a.numel()) & (correlation > SURE * (chance.clamp(min=1) / common.clamp(min=1)).sqrt())
    return float(correlation[sure].max()) if sure.any() else 0.0


def pictures(frames: Iterable[Tensor], start: int = 0, *, scenes: bool = True, repeats: bool = True, moment: Moment | None = None,
             uncut: int = 0, limits: tuple[float, float] = SURE_CUT) -> Iterator[Picture]:
    """The pictures that frames (H, W, 3) in [0, 1] show, in order, each as soon as its first frame is there.

    start: index of the first frame. scenes: number pictures anew behind each hard cut. repeats: take frames that show the picture before
    again, up to LONGEST in all, for that picture, unless it is flat.
    moment: where a run goes on: pictures before it are not given, and up to the index `uncut` there is no cut. Everything is then as it
    is in a run from the first frame on, given one frame more before the moment. limits: SURE_CUT, or DOUBTFUL as in training.
    """
    found = _distinct(frames, start, repeats, moment.index if moment else 0)
    number, scene = moment.number if moment else 0, 0
    past: deque[Outline] = deque(maxlen=FLASH + 1)             # of this scene
    ahead: deque[Picture] = deque()                            # looked at already
    while (picture := ahead.popleft() if ahead else next(found, None)) is not None:
        if scenes:
            change = past[-1].change(picture.outline) if past else 0.0
            if change > limits[0] and picture.index > uncut and not past[-1].alike(picture.outline, limits[1]):
                while len(ahead) < FLASH and (further := next(found, None)) is not None:
                    ahead.append(further)
                if _is_cut(list(past), [picture.outline, *(p.outline for p in ahead)], limits[1]):
                    number, scene = 0, scene + 1
                    past.clear()
            past.append(picture.outline)
        picture.number, picture.scene = number, scene
        number += 1
        yield picture


def _is_cut(past: Sequence[Outline], following: Sequence[Outline], limit: float) -> bool:
    """Whether nothing of a scene is seen again behind a change: else it was a flash. A picture that fades into a plain one or out of it
    loses much of its contrast from one frame to the next."""
    near, far = (past[-1], past[-2:-1]) if following[0].flat else (following[0], following[1:2]) if past[-1].flat else (None, ())
    if near and far and near.contrast < FADING * far[0].contrast:
        return False
    return not any(a.alike(b, limit) for a in past for b in following)


def _distinct(frames: Iterable[Tensor], start: int, repeats: bool, first: int) -> Iterator[Picture]:
    """Pictures as yet without a number, those from index `first` on; `first` is where one begins."""
    picture = before = last = None                             # `before`: the frame before the picture, `last`: the one before this
    for index, frame in enumerate(frames, start):
        if index >= first:
            if repeats and picture and picture.times < LONGEST and _shows_again(frame, picture, before) and not picture.outline.flat:
                picture.times += 1
            else:
                picture, before = Picture(frame, index), last
                yield picture
        last = frame


def _shows_again(frame: Tensor, picture: Picture, before: Tensor | None) -> bool:
    """Whether a frame shows the picture again: bit for bit, or as a lossy codec does.

    A codec leaves a little noise, while the picture came with a change from the frame `before` it that surely was motion. So in every block
    the difference from the picture has to be below CODING or a quarter of the change there, and below a sixth of it in the mean of all.
    What moves slowly, fades, or stands still under noise changes as much from frame to frame, and is never a repeat. A change to another
    scene tells nothing of how this one moves.
    """
    def differ(x: Tensor, every: int) -> Tensor:
        """The mean difference of blocks of x from the picture's, `every` so many rows of it; not of the whole at once."""
        parts = zip(x[::every].split(32 * BLOCK), picture.rgb[::every].split(32 * BLOCK))
        return torch.cat([F.avg_pool2d((to_float(a) - to_float(b)).abs().mean(dim=2)[None], BLOCK, ceil_mode=True, count_include_pad=False)
                          for a, b in parts], dim=1)
    again = differ(frame, 16).mean()
    if not again and torch.equal(frame, picture.rgb):
        return True
    if before is None or again > differ(before, 16).mean() / 3:
        return False
    again, change = differ(frame, 1), differ(before, 1)
    if change.max() < 4 * CODING or (again > (change / 4).clamp(min=CODING)).any() or again.mean() > change.mean() / 6:
        return False
    a, b = Outline.of(before), picture.outline
    return a.change(b) <= DOUBTFUL[0] or a.alike(b, DOUBTFUL[1])
