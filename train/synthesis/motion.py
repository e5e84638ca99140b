"""Camera and object motion over a clip: paths of six pose parameters, smooth or kinked, and the homographies they cause."""
from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

# Largest rotation about the optical axis and zoom per frame: beyond these a hand-held or walking camera is not credible.
MAX_ROLL_RATE = 0.1
MAX_ZOOM_RATE = 0.1
MIN_DEPTH = 0.4           # of the plane seen, against the reference instant: nearer to its horizon a crop would span it all
MAX_ZOOM_TRAVEL = 0.6     # whole clip, natural logarithm of the scale: more would show the photograph's missing detail


def random_path(rng: np.random.Generator, order: int, frames: int, times: np.ndarray, parameters: int) -> np.ndarray:
    """Random curves that move about one unit per frame. Returns (len(times), parameters); `times` are in frames, 0..frames.

    Order 1 is one straight line; higher orders are C1: Bezier segments of 1.5 to 5 frames, each of which starts in the direction and at
    the speed in which the one before ended. Order 0 is straight from the middle of one exposure to the next and turns there, as
    jolts do, and the motion between interpolated frames.
    """
    if order == 0:
        memory = rng.uniform(0.2, 0.95)
        step, steps = rng.normal(size=parameters), []
        for _ in range(frames + 1):
            steps.append(step)
            step = memory * step + math.sqrt(1 - memory * memory) * rng.normal(size=parameters)
        corners = np.concatenate([np.zeros((1, parameters)), np.cumsum(steps, axis=0)])       # at -0.5, 0.5, ... frames + 0.5
        position = times + 0.5
        which = np.clip(position.astype(int), 0, frames)
        return corners[which] + (position - which)[:, None] * np.asarray(steps)[which]
    if order == 1:
        velocity = rng.normal(size=parameters)
        return times[:, None] * velocity
    length = rng.uniform(1.5, 5.0)
    segments = int(math.ceil(frames / length)) + 1
    drift = rng.normal(size=parameters) * 0.7
    step = drift + rng.normal(size=parameters)
    points = np.zeros((segments, order + 1, parameters))
    end = np.zeros(parameters)
    for s in range(segments):
        points[s, 0] = end
        points[s, 1] = end + step                       # C1: the last step of the segment before
        for k in range(2, order + 1):
            step = drift + rng.normal(size=parameters)
            points[s, k] = points[s, k - 1] + step
        end = points[s, order]
    position = times / length
    which = np.minimum(position.astype(int), segments - 1)
    u = (position - which)[:, None]
    curve = 0.0
    for k in range(order + 1):
        curve = curve + math.comb(order, k) * u**k * (1 - u) ** (order - k) * points[which, k]
    return curve * (length / order)                     # unit steps between control points -> about unit speed per frame


@dataclass(frozen=True)
class Lens:
    """The virtual frame that the crop is cut from: focal length and principal point in crop pixels, plane seen (n . X = 1)."""

    focal: float
    centre: tuple[float, float]
    radius: float                                       # typical distance of the crop's pixels from the principal point
    normal: tuple[float, float]


def random_lens(rng: np.random.Generator, size: int, travel: float) -> Lens:
    """A frame 1 to 3.5 times as wide as the crop, the crop anywhere in it. `travel` (pixels) bounds the angles from below."""
    width = size * rng.uniform(1.0, 3.5)
    offset = rng.uniform(-0.5, 0.5, 2) * (width - size) * np.array([1.0, 0.6])
    normal = rng.normal(size=2) * 0.6
    normal /= max(1.0, float(np.hypot(*normal)))
    radius = max(float(np.hypot(*offset)), size / 3)
    return Lens(max(width * rng.uniform(0.6, 1.2), 1.2 * travel), (size / 2 + offset[0], size / 2 + offset[1]), radius,
                (float(normal[0]), float(normal[1])))


def homographies(pose: np.ndarray, lens: Lens) -> np.ndarray:
    """Poses (T, 6) = yaw, pitch, roll (radians), x, y (depths), log zoom -> (T, 3, 3): crop pixel -> still photograph's pixel.

    H = K (R + t n^T) K^-1: a camera that turns and moves before a slanted plane. Pose zero is the identity.
    """
    (cy, cp, cr), (sy, sp, sr) = np.cos(pose[:, :3]).T, np.sin(pose[:, :3]).T
    m = np.empty((len(pose), 3, 3))
    m[:, 0, 0], m[:, 0, 1], m[:, 0, 2] = cy * cr + sy * sp * sr, sy * sp * cr - cy * sr, sy * cp      # R = R_yaw R_pitch R_roll
    m[:, 1, 0], m[:, 1, 1], m[:, 1, 2] = cp * sr, cp * cr, -sp
    m[:, 2, 0], m[:, 2, 1], m[:, 2, 2] = cy * sp * sr - sy * cr, sy * sr + cy * sp * cr, cy * cp
    translation = np.stack([pose[:, 3], pose[:, 4], np.expm1(pose[:, 5])], 1)
    m += translation[:, :, None] * np.array([lens.normal[0], lens.normal[1], 1.0])
    k = np.array([[lens.focal, 0, lens.centre[0]], [0, lens.focal, lens.centre[1]], [0, 0, 1.0]])
    back = np.array([[1, 0, -lens.centre[0]], [0, 1, -lens.centre[1]], [0, 0, lens.focal]]) / lens.focal
    return k @ m @ back


def apply(matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Homographies (T, 3, 3) on points (P, 2) -> (T, P, 2)."""
    mapped = np.concatenate([points, np.ones((len(points), 1))], 1) @ matrices.transpose(0, 2, 1)
    return mapped[..., :2] / mapped[..., 2:]


@functools.lru_cache(maxsize=64)
def grid_points(size: float) -> np.ndarray:
    """3 x 3 points over a square whose corner is the origin: (9, 2)."""
    x, y = np.meshgrid(*[np.linspace(0, size, 3)] * 2)
    points = np.stack([x.ravel(), y.ravel()], 1)
    points.flags.writeable = False                      # every caller gets the same
    return points


def exposure_times(frames: int, duty: float, samples: int) -> np.ndarray:
    """(frames, samples) instants, in frames: the middles of equal parts of each exposure. An odd count includes its centre."""
    offsets = duty * ((np.arange(samples) + 0.5) / samples - 0.5)
    return np.arange(frames)[:, None] + 0.5 + offsets


class Motion:
    """Random motion whose mean blur over the crop's points and the clip's frames is `extent` pixels.

    `rng` gives everything; `matrices(times)` then evaluates the same path at any instants, so that few or many sub-samples show the
    same motion.
    """

    def __init__(self, rng: np.random.Generator, extent: float, duty: float, frames: int, size: int, lens: Lens, order: int,
                 reference: float) -> None:
        self.frames, self.lens, self.order, self.reference = frames, lens, order, reference
        self.seed = int(rng.integers(2**62))
        speed = max(extent, 1e-3) / duty
        weights = np.exp(rng.normal(size=6) * 1.2)
        weights[5] *= 2                                 # walking and driving: towards the vanishing point
        weights /= np.linalg.norm(weights)
        zoom_rate = min(MAX_ZOOM_RATE, MAX_ZOOM_TRAVEL / frames)
        weights[2] = min(weights[2], MAX_ROLL_RATE * lens.radius / speed)
        weights[5] = min(weights[5], zoom_rate * lens.radius / speed)
        self.units = weights / np.array([lens.focal, lens.focal, lens.radius, lens.focal, lens.focal, lens.radius])
        self.amplitude = 1.0 if extent > 0 else 0.0
        self.points = grid_points(size)
        times = exposure_times(frames, duty, 7)
        times = times + (times - times.mean(1, keepdims=True)) / 6       # spread to the exposure's ends
        curve = self._curve(times.ravel())

        def travelled() -> np.ndarray:
            """Pixels from each of an exposure's instants to the next, (frames, 6, points)."""
            positions = apply(homographies(curve * self.amplitude, lens), self.points)
            return np.linalg.norm(np.diff(positions.reshape(frames, 7, -1, 2), axis=1), axis=-1)

        if extent > 0:
            self.amplitude = speed
            for _ in range(3):                          # the homography is nearly linear in the amplitude
                self.amplitude *= float(np.clip(extent / max(travelled().sum(1).mean(), 1e-6), 0.2, 3.0))
            swing = np.ptp(curve[:, 5]) * self.amplitude
            if swing > MAX_ZOOM_TRAVEL:
                self.units[5] *= MAX_ZOOM_TRAVEL / swing
                curve = self._curve(times.ravel())
            while self._least_depth(curve) < MIN_DEPTH:        # as many pixels of blur are not to be had before this plane
                self.amplitude *= 0.8
        # (frames,) the longest blur of each frame in pixels; where the speed varies, nearly what its peak would make of it, so that as
        # many sub-samples are nowhere much farther than a pixel apart
        steps = travelled()
        magnification = np.exp(curve[:, 5].reshape(frames, 7).max(1) * self.amplitude)
        self.lengths = np.maximum(steps.sum(1).max(1), 0.8 * 6 * steps.max((1, 2))) * magnification
        self.zoom = float(magnification.max())

    def _least_depth(self, curve: np.ndarray) -> float:
        """Depth of the plane, the least at the crop's points; at pose zero it is 1, below 0 it lies behind the camera."""
        depth = homographies(curve * self.amplitude, self.lens)[:, 2]
        return float((depth[:, :2] @ self.points.T + depth[:, 2:]).min())

    def _curve(self, times: np.ndarray) -> np.ndarray:
        all_times = np.append(times, self.reference)
        curve = random_path(np.random.default_rng(self.seed), self.order, self.frames, all_times, 6)
        return (curve[:-1] - curve[-1]) * self.units

    def matrices(self, times: np.ndarray, gain: float = 1.0) -> np.ndarray:
        """Homographies at `times` (T,), crop pixels -> photograph's pixels at the reference instant; (T, 3, 3).

        `gain` > 1 is the same camera before a nearer plane.
        """
        return homographies(self._curve(times) * (self.amplitude * gain), self.lens)


class Parallax:
    """What a relief's depth adds to a plane's motion: the random shift, in output pixels, of a pixel of unit depth.

    Its mean over the exposures is `extent` pixels. Within an exposure it is the path itself, before bumps (`cell`) at least three times as
    large; from one exposure to the next it stays below a twelfth of a bump. More would fold bumps over their neighbours: a bent truth.
    """

    def __init__(self, rng: np.random.Generator, extent: float, duty: float, frames: int, order: int, cell: float) -> None:
        self.frames, self.order, self.cell = frames, order, max(cell, 3 * extent)
        self.seed, self.gain = int(rng.integers(2**62)), 1.0
        start, self.middle, stop = (self._walk(exposure_times(frames, duty, 1).ravel() + duty * half) for half in (-0.5, 0.0, 0.5))
        lengths = np.linalg.norm(stop - self.middle, axis=1) + np.linalg.norm(self.middle - start, axis=1)
        self.gain = extent / max(float(lengths.mean()), 1e-3)
        self.middle = self.middle * self.gain
        self.lengths = lengths * self.gain                  # (frames,) pixels
        self.truth = np.clip(self.middle - self.middle[frames // 2], -self.cell / 12, self.cell / 12)        # (frames, 2)
        self.reach = float(np.abs(self.truth).max() + self.lengths.max())

    def _walk(self, times: np.ndarray) -> np.ndarray:
        return random_path(np.random.default_rng(self.seed), self.order, self.frames, times, 2) * self.gain

    def shifts(self, frame: int, times: np.ndarray) -> np.ndarray:
        """Shifts (T, 2) in pixels at instants `times` (T,) of one frame's exposure."""
        return self.truth[frame] + self._walk(times) - self.middle[frame]
