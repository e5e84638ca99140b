"""Blurred and sharp clips made from still photographs: moving camera, moving objects, exposure, sensor and codec.

The recipe follows RSBlur (Rim et al. 2022) and GoPro (Nah et al. 2017): an exposure is the average of many sharp sub-samples, mostly in
linear light; its truth is the centre sub-sample, never degraded. A sample depends on the photographs, the seed and its index alone.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdd_model.config import ConfigError

from . import camera
from .motion import Motion, Parallax, apply, exposure_times, grid_points, random_lens

CHUNK_PIXELS = 1 << 17         # of sub-samples averaged at a time on a CPU: they stay in its cache

DEEPEST = 2.5                  # bounds a relief's depth, of about unit variance

LOGARITHMIC = ("extent", "duty", "scale", "exposure", "layer_size", "relief_size", "relief_motion")


@dataclass(frozen=True)
class BlurConfig:
    """The distribution of synthesised clips. Ranges are (low, high); lengths in output pixels."""

    extent: tuple[float, ...] = (1.0, 40.0)              # mean blur of a clip, log-uniform
    near_sharp: float = 0.15                             # share of clips below one pixel
    duty: tuple[float, ...] = (0.25, 1.0)                # exposure / frame interval
    kinks: float = 0.4                                   # share of motions that turn in the middle of an exposure; others are smooth
    relief: float = 0.75                                 # probability that the background is no plane: nearer parts move more
    relief_size: tuple[float, ...] = (14.0, 48.0)        # of its bumps
    relief_motion: tuple[float, ...] = (0.08, 0.8)       # their motion (root mean square) / mean blur
    max_step: float = 56.0                               # travel per frame interval; longer blurs take a longer shutter
    sub_step: float = 1.0                                # pixels between sub-samples
    max_subsamples: int = 121
    scale: tuple[float, ...] = (0.25, 0.7)               # output pixels per photograph pixel, log-uniform
    candidates: int = 3                                  # up to so many places are drawn, the most detailed is taken
    linear: float = 0.7                                  # share of clips averaged in linear light; the others in sRGB
    exposure: tuple[float, ...] = (0.7, 1.3)             # brightness of the scene, linear light
    saturation: float = 0.5                              # probability that clipped highlights hide more light (linear clips)
    highlight: tuple[float, ...] = (0.25, 1.75)          # how much more
    layers: float = 0.6                                  # probability of moving layers
    layer_counts: tuple[float, ...] = (0.5, 0.25, 0.15, 0.1)   # of 1, 2, 3, 4 layers
    layer_size: tuple[float, ...] = (0.25, 1.1)          # of the crop
    noise: float = 0.8                                   # probability
    shot: float = 8.9e-5                                 # variance per unit of light
    read: float = 2.9e-5                                 # standard deviation
    noise_gain: tuple[float, ...] = (0.5, 1.5)
    codec: float = 0.5                                   # probability
    quality: tuple[float, ...] = (60.0, 95.0)            # JPEG
    h264: float = 0.0                                    # share of coded clips that pass through a real encoder (slow, needs PyAV)
    crf: tuple[float, ...] = (18.0, 32.0)
    cut: int = 1                                         # scenes of cut x cut the area are cut into samples: fewer kernel launches

    def __post_init__(self) -> None:
        for name in ("extent", "duty", "scale", "exposure", "highlight", "layer_size", "noise_gain", "quality", "crf", "relief_size",
                     "relief_motion"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] or name in LOGARITHMIC and bounds[0] == 0:
                raise ConfigError(f"blur.{name}: two numbers (low, high) above 0 are needed, found {list(bounds)}")
        for name in ("near_sharp", "kinks", "relief", "linear", "saturation", "layers", "noise", "codec", "h264"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"blur.{name}: a probability in [0, 1] is needed, found {getattr(self, name)}")
        positive = (self.sub_step, self.max_subsamples, self.max_step, self.candidates, sum(self.layer_counts))
        if min(positive) <= 0:
            raise ConfigError("blur: sub_step, max_subsamples, max_step, candidates and layer_counts must be positive")


@dataclass
class _Relief:
    """Depth of a texture, and how far a pixel of unit depth is moved by it, beyond the plane's own motion."""

    depth: Tensor                                        # (1, 1, h, w) over the texture's [-1, 1] coordinates, about unit variance
    truth: np.ndarray                                    # (F, 2) in texture coordinates, at the middles of the exposures
    frames: list[np.ndarray]                             # per frame (N, 2)


@dataclass
class _Texture:
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
    relief: _Relief | None = None


@dataclass
class Plan:
    """Everything random about one sample, drawn on the CPU."""

    extent: float
    duty: float
    linear: bool
    counts: list[int]                                    # sub-samples per frame
    background: _Texture
    layers: list[_Texture]
    exposure: float
    highlight: float
    camera: dict                                         # what `camera.degrade` does


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
    smallest = [1.25 * size / min(photo.shape[-2:]) for photo in photos]       # scale at which a photograph fills the crop, with room
    large = [i for i, scale in enumerate(smallest) if scale <= config.scale[1]] or range(len(photos))
    for _ in range(count):
        index = large[int(rng.integers(len(large)))]     # enlarged beyond what is asked for, a photograph is no sharp truth
        scale = max(_log_uniform(rng, config.scale), smallest[index])
        found = _region(rng, low, high, photos[index], scale, zoom, rng.random() < 0.5)
        detail = _detail(photos[index], found[0], scale) if count > 1 else 0
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


def plan(photos: Sequence[Tensor], seed: int, index: int, num_frames: int, size: int, config: BlurConfig) -> Plan:
    """Draw sample `index` of stream `seed`."""
    rng = np.random.default_rng([seed, index])
    sharp = rng.random() < config.near_sharp
    extent = float(rng.uniform(0, 1)) if sharp else _log_uniform(rng, config.extent)
    duty = float(np.clip(max(rng.uniform(*config.duty), extent / config.max_step), 0.05, 1.0))
    lens = random_lens(rng, size, extent / duty * num_frames)
    reference = rng.uniform(0, num_frames)
    motion = Motion(rng, extent, duty, num_frames, size, lens, _order(rng, config), reference)
    layers = []
    if rng.random() < config.layers:
        shares = np.asarray(config.layer_counts) / sum(config.layer_counts)
        for _ in range(int(rng.choice(len(shares), p=shares)) + 1):
            layers.append(_layer(rng, photos, extent, duty, num_frames, size, config, motion))
    relief_rng, parallax = np.random.default_rng([seed, index, 2]), None     # numbers of its own: the rest of a sample keeps its
    if relief_rng.random() < config.relief:
        cell, share = _log_uniform(relief_rng, config.relief_size), _log_uniform(relief_rng, config.relief_motion)
        parallax = Parallax(relief_rng, share * extent, duty, num_frames, _order(relief_rng, config), cell)
    lengths = np.max([motion.lengths + (parallax.lengths if parallax else 0)] + [m.lengths * gain for _, m, gain, _ in layers], axis=0)
    counts = [min(int(math.ceil(x / config.sub_step / 2)) * 2 + 1, config.max_subsamples // 2 * 2 + 1) for x in lengths]
    middle = exposure_times(num_frames, duty, 1).ravel()
    times = [exposure_times(num_frames, duty, n)[j] for j, n in enumerate(counts)]

    ends = np.concatenate([middle - duty / 2, middle, middle + duty / 2])
    corners = apply(motion.matrices(ends), grid_points(size, size, 3)).reshape(-1, 2)
    margin = 3 + (DEEPEST * parallax.reach if parallax else 0)
    low, high = corners.min(0) - margin, corners.max(0) + margin
    photo_index, (region, shape, place) = _place(rng, photos, low, high, size, config, motion.zoom)

    def by_frame(place: np.ndarray, path: Motion, gain: float = 1.0) -> list[np.ndarray]:
        """Maps at the instants of every frame: one evaluation of the path for all of them."""
        return np.split(place @ path.matrices(np.concatenate(times), gain), np.cumsum(counts)[:-1])

    background = _Texture(photo_index, region, shape, place @ motion.matrices(middle), by_frame(place, motion))
    if parallax:
        background.relief = _relief(relief_rng, parallax, times, background, high - low, size)
    textures = []
    for texture, layer_motion, gain, shift in layers:
        matrix = texture.truth @ shift
        texture.truth = matrix @ layer_motion.matrices(middle, gain)
        texture.frames = by_frame(matrix, layer_motion, gain)
        textures.append(texture)

    linear = rng.random() < config.linear
    highlight = float(rng.uniform(*config.highlight)) if linear and rng.random() < config.saturation else 0.0
    exposure = _log_uniform(rng, config.exposure)
    return Plan(extent, duty, linear, counts, background, textures, exposure, highlight,
                camera.draw(rng, config, num_frames))


def _relief(rng: np.random.Generator, parallax: Parallax, times: list[np.ndarray], texture: _Texture, extent: np.ndarray,
            size: int) -> _Relief:
    """Depth for a texture of `extent` output pixels, and its motion in the texture's coordinates."""
    columns, rows = np.maximum(np.round(extent / parallax.cell).astype(int) + 1, 2)
    depth = torch.from_numpy(rng.normal(size=(1, 1, rows, columns)).astype(np.float32) * 1.4)       # interpolation lowers it to about 1
    step = size / 2 + np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    def local(matrices: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """A shift of output pixels at the crop's middle, in texture coordinates."""
        at = apply(matrices, step)
        return shift[:, :1] * (at[:, 1] - at[:, 0]) + shift[:, 1:] * (at[:, 2] - at[:, 0])

    shifts = [parallax.shifts(frame, instants) for frame, instants in enumerate(times)]
    return _Relief(depth, local(texture.truth, parallax.truth), [local(m, shift) for m, shift in zip(texture.frames, shifts)])


def _layer(rng, photos, extent, duty, num_frames, size, config, camera_motion):
    """One moving layer: texture (its map in `truth`), motion, gain over the camera's motion, shift of its centre."""
    index = int(rng.integers(len(photos)))
    wide, high = (max(8, round(size * _log_uniform(rng, config.layer_size))) for _ in range(2))
    centre = rng.uniform(0, size, 2)
    gain, motion = 1.0, camera_motion
    if rng.random() < 0.5:                               # a thing nearer to the same camera
        gain = float(rng.uniform(1.1, 2.5))
    else:                                                # a thing that moves by itself
        own = min(_log_uniform(rng, (0.2, 4.0)) * max(extent, 0.3), config.extent[1])
        lens = random_lens(rng, size, own / duty * num_frames)
        motion = Motion(rng, own, min(1.0, max(duty, own / config.max_step)), num_frames, size, lens,
                        _order(rng, config), num_frames / 2)
    scale = max(_log_uniform(rng, config.scale), max(wide / photos[index].shape[-1], high / photos[index].shape[-2]))
    region, shape, place = _region(rng, np.zeros(2), np.array([wide, high], float), photos[index], scale, 1.0, rng.random() < 0.5)
    shift = np.eye(3)
    shift[:2, 2] = [wide / 2 - centre[0], high / 2 - centre[1]]
    coarse = int(rng.integers(3, 7))
    fields = [torch.from_numpy(rng.normal(size=(1, 1, n, n)).astype(np.float32) * w)
              for n, w in ((coarse, 1.0), (coarse * 4, rng.uniform(0, 0.8)))]
    texture = _Texture(index, region, shape, place, [], fields, float(rng.uniform(-0.6, 0.2)), float(rng.uniform(0.5, 2.0)),
                       float(rng.uniform(2, 8)), 1.0 if rng.random() < 0.85 else float(rng.uniform(0.4, 0.95)))
    return texture, motion, gain, shift


def _mirror(start: int, stop: int, length: int) -> Tensor | None:
    """Indices of start..stop in an axis mirrored at its ends; None when the range lies inside."""
    if start >= 0 and stop <= length:
        return None
    i = torch.arange(start, stop) % (2 * length)
    return torch.where(i < length, i, 2 * length - 1 - i)


def _pixels(texture: _Texture, photo: Tensor) -> Tensor:
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


def _mask(texture: _Texture, device) -> Tensor:
    """Soft random blob (h, w) in [0, 1], zero at the border."""
    h, w = texture.shape
    field = sum(F.interpolate(f.to(device, non_blocking=True), (h, w), mode="bicubic", align_corners=False)[0, 0] for f in texture.alpha)
    y, x = (torch.linspace(-1, 1, n, device=device).abs() for n in (h, w))
    radius = (y[:, None] ** texture.power + x ** texture.power) ** (2 / texture.power)
    field = field + 1.5 - 3.5 * radius + texture.threshold
    slope = math.hypot(h, w) / 12 / texture.softness     # an edge of one to a few pixels
    border = torch.minimum((1 - y)[:, None], 1 - x) * (min(h, w) / 6)
    return torch.sigmoid(field * slope) * border.clamp(0, 1) * texture.opacity


def _grid(matrices: np.ndarray, xs: Tensor, ys: Tensor, relief: tuple[Tensor, np.ndarray] | None = None) -> Tensor:
    """Homographies (K, 3, 3) at the pixels xs x ys -> sampling grid (K, h, w, 2), coordinate planes apart in memory. `relief`: depths
    (K or 1, h, w) and what a unit of them moves, (K, 2)."""
    m = torch.from_numpy(matrices.astype(np.float32)).to(xs.device, non_blocking=True)
    p = (m[:, :, 0, None] * xs + m[:, :, 2, None])[:, :, None, :] + (m[:, :, 1, None] * ys)[:, :, :, None]
    # a layer that swings towards the camera reaches behind it: what lies there is far outside, not infinitely far (0 * inf is no colour)
    p = (p[:, :2] / p[:, 2:].clamp_min(1e-4)).clamp_(-1e3, 1e3)
    if relief:
        depth, shift = relief
        p.addcmul_(torch.from_numpy(shift.astype(np.float32)).to(xs.device, non_blocking=True)[:, :, None, None], depth[:, None])
    return p.permute(0, 2, 3, 1)


def _depths(texture: _Texture, size: int, device) -> Tensor | None:
    """Depth of what every pixel shows in the middle of every exposure, (F, size, size); None for a plane."""
    if texture.relief is None:
        return None
    at = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    depth = texture.relief.depth.to(device, non_blocking=True).expand(len(texture.truth), -1, -1, -1)
    found = F.grid_sample(depth, _grid(texture.truth, at, at), mode="bicubic", padding_mode="border", align_corners=False)
    return found[:, 0].clamp_(-DEEPEST, DEEPEST)


def _warp(canvas: Tensor, matrices: np.ndarray, box: tuple[int, int, int, int], mode: str, padding: str,
          relief: tuple[Tensor, np.ndarray] | None = None) -> Tensor:
    x0, y0, x1, y1 = box
    xs = torch.arange(x0, x1, device=canvas.device, dtype=torch.float32) + 0.5
    ys = torch.arange(y0, y1, device=canvas.device, dtype=torch.float32) + 0.5
    grid = _grid(matrices, xs, ys, relief)
    return F.grid_sample(canvas.expand(len(grid), -1, -1, -1), grid, mode=mode, padding_mode=padding, align_corners=False)


def _footprint(matrices: np.ndarray, size: int) -> tuple[int, int, int, int] | None:
    """The part of the crop that a texture covers at any of the instants, or None."""
    corners = apply(np.linalg.inv(matrices), np.array([[-1.0, -1], [1, -1], [-1, 1], [1, 1]])).reshape(-1, 2)
    x0, y0 = np.floor(np.clip(corners.min(0), 0, size)).astype(int).tolist()
    x1, y1 = np.ceil(np.clip(corners.max(0), 0, size)).astype(int).tolist()
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _compose(textures: Sequence[Tensor], matrices: Sequence[np.ndarray], size: int,
             relief: tuple[Tensor, np.ndarray] | None = None) -> Tensor:
    """Background (1, 3, ...) and premultiplied layers (1, 4, ...) at K instants -> (K, 3, size, size), bilinear."""
    image = _warp(textures[0], matrices[0], (0, 0, size, size), "bilinear", "border", relief)
    for layer, m in zip(textures[1:], matrices[1:]):
        box = _footprint(m, size)
        if box is not None:
            over = _warp(layer, m, box, "bilinear", "zeros")
            image[:, :, box[1]:box[3], box[0]:box[2]].mul_(1 - over[:, 3:]).add_(over[:, :3])
    return image


def _compose_sharp(textures: Sequence[Tensor], matrices: Sequence[np.ndarray], size: int, linear: bool,
                   relief: tuple[Tensor, np.ndarray] | None = None) -> Tensor:
    """The same from sRGB textures (layers not premultiplied), bicubic. Interpolating in sRGB avoids rings about highlights; the
    layers are still laid over each other in the clip's own light, as in its blurred frames."""
    def colour(x: Tensor) -> Tensor:
        """sRGB values -> the light that the clip is averaged in."""
        return camera.srgb_to_linear(x.clamp_(0, 1)) if linear else x.clamp_(0, 1)

    image = colour(_warp(textures[0], matrices[0], (0, 0, size, size), "bicubic", "border", relief))
    for layer, m in zip(textures[1:], matrices[1:]):
        box = _footprint(m, size)
        if box is not None:
            over = _warp(layer, m, box, "bicubic", "zeros")
            view = image[:, :, box[1]:box[3], box[0]:box[2]]
            view.add_(over[:, 3:].clamp(0, 1) * (colour(over[:, :3]) - view))
    return image


def render(sample: Plan, photos: Sequence[Tensor], size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(blurred, sharp) of one sample, both (3, F, size, size) float32 in [0, 1]; blurred is rounded to 8 bits."""
    textures = [sample.background, *sample.layers]
    codes = torch.arange(256) / 255
    light = camera.srgb_to_linear(codes) * sample.exposure
    light = light + sample.highlight * ((codes - 0.94) / 0.06).clamp(0, 1)     # light that the photograph clipped
    table = camera.linear_to_srgb(light.clamp(0, 1)).to(device, non_blocking=True)     # a plain copy waits for all that is queued there
    table_light = light.to(device, non_blocking=True) if sample.linear else table

    sharp_textures, light_textures = [], []
    for texture in textures:
        pixels = _pixels(texture, photos[texture.photo]).to(device).int()
        mask = _mask(texture, device)[None] if texture.alpha else None
        colour, energy = table[pixels], table_light[pixels]
        sharp_textures.append((colour if mask is None else torch.cat([colour, mask]))[None])
        light_textures.append((energy if mask is None else torch.cat([energy * mask, mask]))[None])

    layered = sample.linear and bool(sample.layers)      # without layers the truth need not leave sRGB
    depths, relief = _depths(sample.background, size, device), sample.background.relief
    sharp = _compose_sharp(sharp_textures, [t.truth for t in textures], size, layered, relief and (depths, relief.truth))
    blurred = torch.empty_like(sharp)
    chunk = max(1, CHUNK_PIXELS // size**2) if sharp.device.type == "cpu" else max(sample.counts)
    for j, count in enumerate(sample.counts):
        matrices = [t.frames[j] for t in textures]
        bumps = relief and (depths[j:j + 1], relief.frames[j])
        if count <= 3:                                   # few sub-samples: bilinear interpolation's own blur would show
            blurred[j] = _compose_sharp(sharp_textures, matrices, size, sample.linear, bumps).mean(0)
        else:
            parts = (slice(a, a + chunk) for a in range(0, count, chunk))
            total = sum(_compose(light_textures, [m[part] for m in matrices], size, bumps and (bumps[0], bumps[1][part])).sum(0)
                        for part in parts)
            torch.div(total, count, out=blurred[j])
    if layered:
        sharp = camera.linear_to_srgb(sharp)
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
        blurred[b], sharp[b] = render(plan(originals or photos, seed, int(index), num_frames, size, config), photos, size, device)
    return blurred, sharp
