"""Clips for training from any kind of footage.

A sample is a pure function of (seed, index): neither a restart nor the number of processes changes which samples are seen. Every source of
clips has `batch`, which makes samples `indices` of stream `seed`, `unreadable`, the files that were left out so far with the reason, and
`blur_keys`, the keys of BlurConfig that it looks at.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import einops
import numpy as np
import torch
from kornia.color import rgb_to_linear_rgb
from torch import Tensor

from vdd_model.inference.scenes import DOUBTFUL, pictures
from vdd_model.measure.flow import dense_flow, warp

from ..synthesis import camera
from ..synthesis.blur import synthesize
from ..synthesis.scene import BlurConfig, like_gopro, shots
from . import readers
from .photos import read_photos
from .readers import CropBox, DataError, Found

T = TypeVar("T")
ATTEMPTS = 20                            # draws for one sample before its folder is given up as unreadable
MAX_BETWEEN = 33                         # frames interpolated between two of a sharp video
SHOT_KEYS = frozenset({"single", "repeats", "repeat_lengths", "hard_cuts"})      # of BlurConfig: they say what frames show, not how
MAX_INTERVAL = 12                        # frames of a sharp video from one exposure to the next
MARGIN = 16                              # pixels read around a crop of a sharp video, for flow that points outside


class Clips(NamedTuple):
    """A batch. Frames (B, 3, F, size, size) in [0, 1] on the asked device; names say which files each sample came from. `prior`: what a
    pretrained prior made of the blurred frames, where the data hold it (train/data/pool.py)."""

    blurred: Tensor
    sharp: Tensor
    names: list[str]
    prior: Tensor | None = None


class PhotoClips:
    """Photographs, decoded (uint8) where training happens, seen by a moving camera."""

    blur_keys = frozenset(field.name for field in fields(BlurConfig))

    def __init__(self, source: str | Path, blur: BlurConfig | None = None, split: str = "") -> None:
        self.source, self.blur = source, blur or BlurConfig()
        self.originals = _photos(Path(source), split)
        self.names, self.unreadable = self.originals.names, self.originals.unreadable
        self.photos, self.device = self.originals, torch.device("cpu")         # where the last batch was asked for

    def batch(self, seed: int, indices: Sequence[int], *, num_frames: int, size: int, device: torch.device | str) -> Clips:
        """Clips of synthesised blur (`train.synthesis.blur.synthesize`), each as it is or turned by a multiple of 90 degrees:
        photographs hold more level and upright edges than sloping ones, and more of one kind than of the other."""
        if self.device != torch.device(device):
            self.device = torch.device(device)
            self.photos = self.originals.on(self.device)
        cut = self.blur.cut                                    # sample i is part i % cut^2 of scene i // cut^2
        scenes = list(dict.fromkeys(int(index) // cut**2 for index in indices))
        made = synthesize(self.photos, seed, scenes, num_frames=num_frames, size=size * cut, config=self.blur, device=device,
                          originals=self.originals)
        rows = torch.tensor([scenes.index(int(index) // cut**2) * cut**2 + int(index) % cut**2 for index in indices])
        rows = rows.to(device, non_blocking=True)
        blurred, sharp = (einops.rearrange(x, "b c f (i h) (j w) -> (b i j) c f h w", i=cut, j=cut).index_select(0, rows) for x in made)
        turns = np.stack([np.random.default_rng([seed, int(index), 1]).random(2) for index in indices]) < 0.5     # left and right is drawn
        swap, flip = torch.tensor(turns).T[:, :, None, None, None, None].to(device, non_blocking=True)
        blurred, sharp = (torch.where(swap, x.mT, x) for x in (blurred, sharp))
        blurred, sharp = (torch.where(flip, x.flip(-2), x) for x in (blurred, sharp))
        return Clips(blurred, sharp, [f"{self.source} sample {index}" for index in indices])


_photos = lru_cache(maxsize=2)(read_photos)              # read once, shared by the stages of a run


class RecordedClips:
    """Base of the clips that are read from recorded frames: draws a clip, a crop and flips, `_read` the start; skips what cannot be read.

    `unreadable` names all that is left out, with the reason. A sample that meets such a file is drawn anew from the same stream of
    random numbers, so it still depends on the files, the seed and the index alone.
    """

    blur_keys: frozenset[str] = SHOT_KEYS
    more = 0                                             # frames that a sample needs beyond those that it shows

    def __init__(self, found: Found, blur: BlurConfig | None = None) -> None:
        self.sequences, self.blur = found.sequences, blur or BlurConfig()
        self.unreadable: dict[str, str] = {problem: problem for problem in found.problems}
        self._fitting: dict[tuple[int, int], list] = {}

    def batch(self, seed: int, indices: Sequence[int], *, num_frames: int, size: int, device: torch.device | str) -> Clips:
        """Random crops of `size` pixels with random flips (left-right) and time reversal."""
        made: list[list[tuple[Tensor, Tensor, str]]] = []
        for index in indices:
            parts = [(shot, self._sample(shot.key, shot.num_frames, size)) for shot in shots(seed, int(index), num_frames, self.blur)]
            made.append([(blurred[:, shot.shown], sharp[:, shot.shown], name) for shot, (blurred, sharp, name) in parts])
        blurred, sharp = (torch.stack([torch.cat([part[k] for part in parts], dim=1) for parts in made]).to(device) for k in (0, 1))
        return Clips(blurred, sharp, [", ".join(part[2] for part in parts) for parts in made])

    def _candidates(self, needed: int, size: int) -> list:
        """Sequences that are long and large enough."""
        if (needed, size) not in self._fitting:
            fitting, unusable, small, total = [], {}, [], len(self.sequences)
            for sequence in self.sequences:
                try:
                    sequence.check_sizes()
                    (fitting if len(sequence) >= needed and min(sequence.sharp.size) >= size else small).append(sequence)
                except DataError as error:
                    unusable[sequence.name] = str(error)
            self.unreadable |= unusable
            if len(unusable) == total:
                raise DataError(f"none of the {total} clips can be used; the first: {next(iter(unusable.values()))}")
            if not fitting:
                raise DataError(f"none of the {total} clips has {needed} frames of at least {size} x {size} pixels; ask for fewer frames "
                                f"or a smaller crop (the first is {small[0].name})")
            if small:
                self.unreadable[f"below {needed} x {size}"] = (f"{len(small)} of {total} clips have fewer than {needed} frames or a side "
                                                               f"below {size} pixels (the first is {small[0].name})")
            self._fitting[needed, size] = fitting
        return self._fitting[needed, size]

    def _sample(self, key: tuple[int, ...], num_frames: int, size: int) -> tuple[Tensor, Tensor, str]:
        """Blurred and sharp frames (3, num_frames, size, size) of one shot, and where they are from."""
        rng = np.random.default_rng(key)
        needed = num_frames + self.more
        candidates, gopro = self._candidates(needed, size), like_gopro(key, self.blur)
        lengths = np.array([len(s) - needed + 1 for s in candidates], float)

        def draw() -> tuple[Tensor, Tensor, str]:
            """A crop of some clip: blurred, sharp, and its name."""
            sequence = candidates[int(rng.choice(len(candidates), p=lengths / lengths.sum()))]
            width, height = sequence.sharp.size
            left, top = (int(rng.integers(0, n - size + 1)) for n in (width, height))
            mirror, reverse = rng.random(2) < 0.5
            blurred, sharp, name = self._read(rng, sequence, num_frames, (left, top, left + size, top + size), gopro)
            flips = [d for d, on in ((3, mirror), (1, reverse)) if on]
            return blurred.flip(flips), sharp.flip(flips), name

        return until_read(draw, self.unreadable)


class SceneCut(Exception):
    """Two neighbouring frames of a video are of different scenes; the text says where."""


def until_read(draw: Callable[[], T], unreadable: dict[str, str]) -> T:
    """The first draw that can be read and meets no cut; files that cannot be are named in `unreadable`. Raises DataError after ATTEMPTS."""
    for _ in range(ATTEMPTS):
        try:
            return draw()
        except SceneCut as cut:
            why = f"met a cut between scenes, the last {cut}; ask for fewer frames, or split the videos where scenes change"
        except DataError as error:
            unreadable[str(error).partition(": ")[0]] = str(error)
            why = f"met unreadable files; the last: {error}"
    raise DataError(f"{ATTEMPTS} draws in a row {why}")


class PairClips(RecordedClips):
    """Blurred and sharp frames recorded side by side."""

    def _read(self, rng: np.random.Generator, sequence, num_frames: int, box: CropBox, gopro: bool) -> tuple[Tensor, Tensor, str]:
        start = int(rng.integers(0, len(sequence) - num_frames + 1))
        numbers = range(start, start + num_frames)
        blurred, sharp = (frames.read(numbers, box).transpose(0, 1).float() / 255 for frames in (sequence.blurred, sequence.sharp))
        return blurred, sharp, f"{sequence.name} frames {start}..{start + num_frames - 1}"


class VideoClips(RecordedClips):
    """Sharp videos: an exposure is the average of neighbouring frames, with frames interpolated between them when things move more
    than about a pixel from one to the next. The truth is always a frame of the video, the exposure's centre. No clip holds a cut between
    scenes: an exposure would mix them."""

    blur_keys = SHOT_KEYS | {"duty", "linear", "noise", "shot", "read", "noise_gain", "codec", "quality", "h264", "crf", "max_subsamples",
                             "gopro"}
    more = 2                                             # an interval of one frame, and a neighbour on either side

    def _read(self, rng: np.random.Generator, sequence, num_frames: int, box: CropBox, gopro: bool) -> tuple[Tensor, Tensor, str]:
        config, video = self.blur, sequence.sharp
        duty = 1.0 if gopro else float(rng.uniform(*config.duty))
        longest = min(MAX_INTERVAL, (len(video) - 3) // max(num_frames - 1, 1))
        interval = int(np.clip(round(video.rate / rng.uniform(12, 40)), 1, max(longest, 1)))
        reach = math.ceil(interval * duty / 2)
        span = (num_frames - 1) * interval + 2 * reach + 1
        if span > len(video):
            interval = reach = 1
            span = num_frames + 2
        start = int(rng.integers(0, len(video) - span + 1))
        width, height = video.size
        outer = (max(box[0] - MARGIN, 0), max(box[1] - MARGIN, 0), min(box[2] + MARGIN, width), min(box[3] + MARGIN, height))
        frames = video.read(range(start, start + span), outer).float() / 255
        if cut := scene_cut(frames):
            raise SceneCut(f"in {sequence.name} before frame {start + cut}")
        linear = rng.random() < config.linear and not gopro
        light = rgb_to_linear_rgb(frames) if linear else frames
        centres = [reach + j * interval for j in range(num_frames)]
        flows: dict[int, Tensor] = {}
        sharp = frames[centres]
        if config.max_subsamples > 1:
            blurred = torch.stack([expose(frames, light, centre, interval * duty / 2, flows, min(MAX_BETWEEN, config.max_subsamples))
                                   for centre in centres])
        else:                                            # nobody looks at the blurred frames
            blurred = light[centres]
        top, left, size = box[1] - outer[1], box[0] - outer[0], box[2] - box[0]
        blurred, sharp = (x[:, :, top:top + size, left:left + size] for x in (blurred, sharp))
        blurred = camera.degrade(blurred, linear, **(camera.CLEAN if gopro else camera.draw(rng, config, num_frames)))
        return blurred.transpose(0, 1), sharp.transpose(0, 1), f"{sequence.name} frames {start}..{start + span - 1}"


def scene_cut(frames: Tensor) -> int:
    """Number of the first of frames (N, 3, H, W) in [0, 1] that shows another scene than the one before, 0 for none."""
    found = pictures(einops.rearrange(frames, "n c h w -> n h w c"), repeats=False, limits=DOUBTFUL)
    return next((picture.index for picture in found if picture.index and picture.number == 0), 0)


def expose(frames: Tensor, light: Tensor, centre: int, half: float, flows: dict[int, Tensor], max_subsamples: int = MAX_BETWEEN) -> Tensor:
    """Average of `light` (N, 3, H, W) over centre - half .. centre + half, in units of frames; (3, H, W).

    Between two frames that differ by more than a pixel's motion (95th percentile), frames are interpolated along the optical flow of
    the sRGB `frames`, one per pixel of motion. `flows` keeps the flows that neighbouring exposures share.
    """
    total, weight = torch.zeros_like(light[0]), 0.0
    for first in range(math.floor(centre - half), math.ceil(centre + half)):
        low, high = max(centre - half, first) - first, min(centre + half, first + 1) - first
        if high - low < 1e-6:
            continue
        if first not in flows:                           # [0]: first -> second, [1]: back; the finest level adds little to a blur
            luma = frames[first:first + 2].mean(1, keepdim=True)
            flows[first] = dense_flow(luma, luma.flip(0), finest=max(96, max(luma.shape[-2:]) // 2))
        moved = float(torch.quantile(flows[first][0].norm(dim=0)[::4, ::4], 0.95)) * (high - low)
        count = min(max(1, math.ceil(moved)), max_subsamples)
        for k in range(count):
            total += between(light[first:first + 2], flows[first], low + (k + 0.5) / count * (high - low)) * ((high - low) / count)
        weight += high - low
    return total / weight if weight else light[centre]


def between(pair: Tensor, flow: Tensor, a: float) -> Tensor:
    """The frame at time a in [0, 1] between two, (2, 3, H, W) and their flows (2, 2, H, W), -> (3, H, W): both are warped along straight
    lines (Jiang et al. 2018, Super SloMo, eq. 4) and mixed."""
    to_first = a * a * flow[1] - a * (1 - a) * flow[0]
    to_second = (1 - a) ** 2 * flow[0] - a * (1 - a) * flow[1]
    first, second = warp(pair, torch.stack([to_first, to_second]))
    return (1 - a) * first + a * second


def open_clips(folder: str | Path, layout: str = "auto", split: str = "", *, blur_folder: str = "blur", blur: BlurConfig | None = None):
    """The clips of a folder for training, in any of `train.data.readers.LAYOUTS`. Raises DataError."""
    found = readers.find(folder, layout, split, blur_folder)
    if found.layout == "photos":
        return PhotoClips(folder, blur, split)
    return VideoClips(found, blur) if found.layout in ("videos", "frames") else PairClips(found, blur)
