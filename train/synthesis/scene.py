"""What a synthesised clip shows, drawn at random: photographs, the camera's and things' motion, light, sensor and codec.

The recipe follows RSBlur (Rim et al. 2022) and GoPro (Nah et al. 2017). Everything random about a sample comes from the photographs, the
seed and its index alone, on the CPU; train/synthesis/blur.py renders it.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import camera
from .config import BlurConfig
from .motion import Motion, Parallax, apply, exposure_times, grid_points, random_lens

DEEPEST = 2.5                  # bounds a relief's depth, of about unit variance


@dataclass
class Relief:
    """Depth of the background, and how far a pixel of unit depth is moved by it, beyond the plane's own motion."""

    depth: Tensor                                        # (1, 1, h, w) over the texture's [-1, 1] coordinates, about unit variance
    truth: np.ndarray                                    # (F, 2) in texture coordinates, at the middles of the exposures
    frames: list[np.ndarray]                             # per frame (N, 2)


@dataclass
class Texture:
    """A piece of a photograph that is sampled by homographies (maps output pixels to its [-1, 1] coordinates)."""

    photo: int
    region: tuple[int, int, int, int]                    # x0, y0, x1, y1 in the photograph; outside it is mirrored
    shape: tuple[int, int]                               # height, width it is reduced to
    truth: np.ndarray                                    # (F, 3, 3)
    frames: list[np.ndarray]                             # per frame (N, 3, 3)
    alpha: list[Tensor] = field(default_factory=list)    # coarse random fields of the mask; empty for the background
    threshold: float = 0.0
    softness: float = 1.0
    power: float = 2.0                                   # outline: 2 ellipse, more: towards a rectangle
    opacity: float = 1.0


@dataclass
class Plan:
    """Everything random about one sample, drawn on the CPU."""

    duty: float
    linear: bool
    counts: list[int]                                    # sub-samples per frame
    background: Texture
    relief: Relief | None                                # None: the background is a plane
    layers: list[Texture]
    exposure: float
    highlight: float
    camera: dict                                         # what `camera.degrade` does


class Shot(NamedTuple):
    """A part of a sample between two hard cuts."""

    key: tuple[int, ...]                                 # of its random numbers
    num_frames: int                                      # exposures it holds
    shown: list[int]                                     # which of them each frame shows


def shots(seed: int, index: int, num_frames: int, config: BlurConfig) -> list[Shot]:
    """What a sample's `num_frames` frames show, drawn with numbers of its own: one exposure each, unless the configuration has single
    exposures, repeated ones or hard cuts."""
    rng = np.random.default_rng([seed, index, 3])
    kind, cut, start = rng.random(3)
    if kind < config.single:
        return [Shot((seed, index), 1, [0] * num_frames)]
    length = 1
    if kind < config.single + config.repeats:
        length = config.repeat_lengths[int(rng.integers(len(config.repeat_lengths)))]
    found, phase = [], int(start * length)               # a sample begins anywhere in a run
    at = int(rng.integers(1, num_frames)) if num_frames > 1 and cut < config.hard_cuts else num_frames
    for part, count in enumerate((at, num_frames - at)):
        if count:
            shown = [(phase + frame) // length for frame in range(count)]
            found.append(Shot((seed, index, 4) if part else (seed, index), shown[-1] + 1, shown))
        phase = 0                                        # while the scene behind a cut begins with a run
    return found


def like_gopro(key: Sequence[int], config: BlurConfig) -> bool:
    """Whether the scene of this key is blurred as GoPro's pairs are."""
    return bool(np.random.default_rng([*key, 6]).random() < config.gopro)


def _log_uniform(rng: np.random.Generator, bounds: Sequence[float]) -> float:
    return float(math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1]))))


def _order(rng: np.random.Generator, config: BlurConfig) -> int:
    """Kind of a motion's path, as `motion.random_path` counts them."""
    return 0 if config.kinks and rng.random() < config.kinks else int(rng.integers(1, 5))


def _region(rng: np.random.Generator, low: np.ndarray, high: np.ndarray, photo: Tensor, scale: float, zoom: float, flip: bool):
    """Place the rectangle low..high (output pixels) in the photograph; returns region, reduced shape and the map output -> [-1, 1]."""
    height, width = photo.shape[-2:]
    extent = np.array([width, height]) * scale           # of the photograph, in output pixels
    room = extent - (high - low)
    origin = np.where(room > 0, rng.uniform(size=2) * room, room / 2) - low
    start = np.floor((low + origin) / scale).astype(int)
    stop = np.maximum(np.ceil((high + origin) / scale).astype(int), start + 2)
    reduce = min(1.0, scale * zoom)
    shape = np.maximum(np.round((stop - start) * reduce).astype(int), 2)
    gain = 2 / (scale * (stop - start))
    matrix = np.diag([gain[0], gain[1], 1.0])
    matrix[:2, 2] = 2 * (origin / scale - start) / (stop - start) - 1
    if flip:
        matrix[0] *= -1
    return (int(start[0]), int(start[1]), int(stop[0]), int(stop[1])), (int(shape[1]), int(shape[0])), matrix


def _place(rng: np.random.Generator, photos: Sequence[Tensor], low: np.ndarray, high: np.ndarray, size: int, config: BlurConfig,
           zoom: float):
    """Draw a photograph and a place in it, a few times; keep the most detailed. Blank sky teaches nothing, yet some of it remains,
    for the number of draws is random too. Returns the photograph's index and `_region`'s result."""
    best = None
    count = int(rng.integers(1, config.candidates + 1))
    sides = photos.sides if hasattr(photos, "sides") else np.array([min(photo.shape[-2:]) for photo in photos])
    smallest = 1.25 * size / sides                       # scale at which a photograph fills the crop, with room
    large = np.flatnonzero(smallest <= config.scale[1])
    for _ in range(count):                               # enlarged beyond what is asked for, a photograph is no sharp truth
        index = int(large[rng.integers(len(large))] if len(large) else rng.integers(len(photos)))
        photo, scale = photos[index], max(_log_uniform(rng, config.scale), smallest[index])
        found = _region(rng, low, high, photo, scale, zoom, rng.random() < 0.5)
        detail = _detail(photo, found[0], scale) if count > 1 else 0
        if best is None or detail > best[0]:
            best = detail, index, found
    return best[1:]


def _detail(photo: Tensor, region: tuple[int, int, int, int], scale: float) -> int:
    """Sum of differences between neighbours, one output pixel apart, at about 48 x 48 places of the region's inside; whole numbers,
    so that every machine makes the same choice."""
    height, width = photo.shape[-2:]
    x0, y0, x1, y1 = max(region[0], 0), max(region[1], 0), min(region[2], width), min(region[3], height)
    apart = max(1, round(1 / scale))
    rows, columns = max(1, (y1 - y0) // 48), max(1, (x1 - x0) // 48)
    a, b = (photo[1, y0 + d:y1 - apart + d:rows, x0 + d:x1 - apart + d:columns].short() for d in (0, apart))
    return int((a - b).abs().sum(dtype=torch.int64)) * rows * columns // max(1, (y1 - y0) * (x1 - x0) // 1000)


def plan(photos: Sequence[Tensor], seed: int, index: int, num_frames: int, size: int, config: BlurConfig, *more: int) -> Plan:
    """Draw sample `index` of stream `seed`; `more` are further numbers of a shot's key."""
    key = (seed, index, *more)
    rng = np.random.default_rng(key)
    still, gopro = bool(np.random.default_rng([*key, 5]).random() < config.still), like_gopro(key, config)

    # ---- the camera, before a plane
    sharp = rng.random() < config.near_sharp
    extent = float(rng.uniform(0, 1)) if sharp else _log_uniform(rng, config.extent)
    duty = float(np.clip(max(rng.uniform(*config.duty), extent / config.max_step), 0.05, 1.0))
    duty = 1.0 if gopro else duty
    lens = random_lens(rng, size, extent / duty * num_frames)
    reference = rng.uniform(0, num_frames)
    motion = Motion(rng, 0.0 if still else extent, duty, num_frames, size, lens, _order(rng, config), reference)

    # ---- things that move, and a relief behind them
    layers = []
    if rng.random() < config.layers or still:
        shares = np.asarray(config.layer_counts) / sum(config.layer_counts)
        for _ in range(int(rng.choice(len(shares), p=shares)) + 1):
            layers.append(_layer(rng, photos, extent, duty, num_frames, size, config, None if still else motion))
    relief_rng, parallax = np.random.default_rng([*key, 2]), None            # numbers of its own: everything else is drawn as without
    if relief_rng.random() < config.relief and not still:                    # only motion shows a relief
        cell, share = _log_uniform(relief_rng, config.relief_size), _log_uniform(relief_rng, config.relief_motion)
        parallax = Parallax(relief_rng, share * extent, duty, num_frames, _order(relief_rng, config), cell)

    # ---- sub-samples of every exposure
    # a relief's usual depth counts: its few deepest places may be sampled more coarsely than `sub_step`
    lengths = np.max([motion.lengths + (parallax.lengths if parallax else 0)] + [m.lengths * gain for _, m, gain, _ in layers], axis=0)
    counts = [min(int(math.ceil(x / config.sub_step / 2)) * 2 + 1, config.max_subsamples // 2 * 2 + 1) for x in lengths]
    middle = exposure_times(num_frames, duty, 1).ravel()
    times = [exposure_times(num_frames, duty, n)[j] for j, n in enumerate(counts)]

    # ---- a photograph's part that is large enough for all of it
    ends = np.concatenate([middle - duty / 2, middle, middle + duty / 2])
    corners = apply(motion.matrices(ends), grid_points(size)).reshape(-1, 2)
    margin = 3 + (DEEPEST * parallax.reach if parallax else 0)
    low, high = corners.min(0) - margin, corners.max(0) + margin
    photo_index, (region, shape, place) = _place(rng, photos, low, high, size, config, motion.zoom)

    def by_frame(place: np.ndarray, path: Motion, gain: float = 1.0) -> list[np.ndarray]:
        """Maps at the instants of every frame: one evaluation of the path for all of them."""
        return np.split(place @ path.matrices(np.concatenate(times), gain), np.cumsum(counts)[:-1])

    background = Texture(photo_index, region, shape, place @ motion.matrices(middle), by_frame(place, motion))
    relief = _relief(relief_rng, parallax, times, background, high - low, size) if parallax else None
    textures = []
    for texture, layer_motion, gain, shift in layers:
        matrix = texture.truth @ shift
        texture.truth = matrix @ layer_motion.matrices(middle, gain)
        texture.frames = by_frame(matrix, layer_motion, gain)
        textures.append(texture)

    # ---- light, sensor and codec
    linear = rng.random() < config.linear
    highlight = float(rng.uniform(*config.highlight)) if linear and rng.random() < config.saturation else 0.0
    exposure = _log_uniform(rng, config.exposure)
    degradation = camera.draw(rng, config, num_frames)
    if gopro:
        linear, highlight, degradation = False, 0.0, camera.CLEAN
    return Plan(duty, linear, counts, background, relief, textures, exposure, highlight, degradation)


def _relief(rng: np.random.Generator, parallax: Parallax, times: list[np.ndarray], texture: Texture, extent: np.ndarray,
            size: int) -> Relief:
    """Depth for a texture of `extent` output pixels, and its motion in the texture's coordinates."""
    columns, rows = np.maximum(np.round(extent / parallax.cell).astype(int) + 1, 2)
    depth = torch.from_numpy(rng.normal(size=(1, 1, rows, columns)).astype(np.float32) * 1.4)       # interpolation lowers it to about 1
    step = size / 2 + np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    def local(matrices: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """A shift of output pixels at the crop's middle, in texture coordinates."""
        at = apply(matrices, step)
        return shift[:, :1] * (at[:, 1] - at[:, 0]) + shift[:, 1:] * (at[:, 2] - at[:, 0])

    shifts = [parallax.shifts(frame, instants) for frame, instants in enumerate(times)]
    return Relief(depth, local(texture.truth, parallax.truth), [local(m, shift) for m, shift in zip(texture.frames, shifts)])


def _layer(rng, photos, extent, duty, num_frames, size, config, camera_motion):
    """One moving layer: texture (its map in `truth`), motion, gain over the camera's (None: it stands still), shift of its centre."""
    index = int(rng.integers(len(photos)))
    photo = photos[index]
    wide, high = (max(8, round(size * _log_uniform(rng, config.layer_size))) for _ in range(2))
    centre = rng.uniform(0, size, 2)
    gain, motion = 1.0, camera_motion
    if rng.random() < 0.5 and camera_motion:             # a thing nearer to the same camera
        gain = float(rng.uniform(1.1, 2.5))
    else:                                                # a thing that moves by itself
        own = min(_log_uniform(rng, (0.2, 4.0)) * max(extent, 0.3), config.extent[1])
        lens = random_lens(rng, size, own / duty * num_frames)
        motion = Motion(rng, own, min(1.0, max(duty, own / config.max_step)), num_frames, size, lens,
                        _order(rng, config), num_frames / 2)
    scale = max(_log_uniform(rng, config.scale), max(wide / photo.shape[-1], high / photo.shape[-2]))
    region, shape, place = _region(rng, np.zeros(2), np.array([wide, high], float), photo, scale, 1.0, rng.random() < 0.5)
    shift = np.eye(3)
    shift[:2, 2] = [wide / 2 - centre[0], high / 2 - centre[1]]
    coarse = int(rng.integers(3, 7))
    fields = [torch.from_numpy(rng.normal(size=(1, 1, n, n)).astype(np.float32) * w)
              for n, w in ((coarse, 1.0), (coarse * 4, rng.uniform(0, 0.8)))]
    texture = Texture(index, region, shape, place, [], fields, float(rng.uniform(-0.6, 0.2)), float(rng.uniform(0.5, 2.0)),
                       float(rng.uniform(2, 8)), 1.0 if rng.random() < 0.85 else float(rng.uniform(0.4, 0.95)))
    return texture, motion, gain, shift
