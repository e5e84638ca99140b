"""A pool of synthesised samples with a pretrained prior's frames, which are far too slow to be made at every step.

    python -m train.data pool ROOT -o POOL --count N     one file a sample, `--count` of them, what is there stays; ROOT: photographs,
                                                         with `--layout auto` videos or recorded pairs too

A sample is made once and read many times, each time with another crop, turned, mirrored and reversed.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vdd_model.checkpoint.tensorfile import write_tensors

from ..synthesis.scene import shots
from .clips import Clips, PhotoClips, RecordedClips, until_read
from .frames import DataError

PARTS = ("blurred", "sharp", "prior")
FORMAT = {"vdd.pool": "1"}


def is_pool(folder: str | Path) -> bool:
    """Whether a folder holds samples of `write_pool`, some of which may be broken."""
    def is_sample(path: Path) -> bool:
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).items() >= FORMAT.items()
        except (OSError, SafetensorError):
            return False

    return any(map(is_sample, Path(folder).glob("*.safetensors")))


def write_pool(source: PhotoClips | RecordedClips, out: Path, prior: Callable[[Tensor], Tensor], *, count: int, seed: int, num_frames: int,
               size: int, say: Callable[[str], None] = print) -> None:
    """Samples 0 ... count - 1 of stream `seed`, each (num_frames, 3, size, size) in 8 bits; one whose frames all show one exposure keeps
    one frame. prior: frames (F, H, W, 3) in [0, 1] -> the same, deblurred."""
    for index in range(count):
        path = out / f"{index:06d}.safetensors"
        if path.exists():
            continue
        single = sum(shot.num_frames for shot in shots(seed, index, num_frames, source.blur)) == 1
        clips = source.batch(seed, [index], num_frames=1 if single else num_frames, size=size, device="cpu")
        blurred, sharp = (x[0].transpose(0, 1) for x in (clips.blurred, clips.sharp))
        frames = {"blurred": blurred, "sharp": sharp, "prior": prior(blurred.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}
        write_tensors(path, {name: (x * 255).round().to(torch.uint8) for name, x in frames.items()}, FORMAT)
        say(f"{path}: {len(blurred)} frames")


class PoolClips:
    """Samples of `write_pool`. A batch holds clips, or single frames, as its first sample's draw has it: they differ in length. A file that
    cannot be read is named in `unreadable`, and another one is drawn."""

    blur_keys: frozenset[str] = frozenset()

    def __init__(self, folder: str | Path) -> None:
        self.unreadable: dict[str, str] = {}
        self.clips: list[Path] = []
        self.singles: list[Path] = []
        for path in sorted(Path(folder).glob("*.safetensors")):
            try:
                with _opened(path) as parts:
                    (self.clips if parts["blurred"].get_shape()[0] > 1 else self.singles).append(path)
            except DataError as error:
                self.unreadable[str(path)] = str(error)
        if not self.clips and not self.singles:
            raise DataError(f"{folder}: no sample of this pool can be read; make it anew with `python -m train.data pool`")

    def batch(self, seed: int, indices: Sequence[int], *, num_frames: int, size: int, device: torch.device | str) -> Clips:
        """Crops of `size` pixels of up to `num_frames` frames, turned and mirrored by chance, clips reversed by chance."""
        first = np.random.default_rng([seed, int(indices[0]), 8]).random()
        paths = self.singles if first < len(self.singles) / (len(self.singles) + len(self.clips)) else self.clips
        drawn = [self._sample(seed, int(index), paths, num_frames, size) for index in indices]
        count = min(len(sample["blurred"]) for sample in drawn)
        blurred, sharp, prior = (torch.stack([sample[part][:count].transpose(0, 1) for sample in drawn]).to(device) for part in PARTS)
        return Clips(blurred, sharp, [str(sample["path"]) for sample in drawn], prior)

    def _sample(self, seed: int, index: int, paths: list[Path], num_frames: int, size: int) -> dict:
        """One sample's parts (F, 3, size, size) in [0, 1], and its file."""
        rng = np.random.default_rng([seed, index, 9])

        def draw() -> dict:
            path = paths[int(rng.integers(len(paths)))]
            start = rng.random(3)
            swap, *flips = rng.random(4) < 0.5
            axes = [axis for axis, on in zip((0, 2, 3), flips) if on]
            with _opened(path) as parts:
                frames, _, height, width = parts["blurred"].get_shape()
                if min(height, width) < size:
                    raise DataError(f"{path}: its frames of {width} x {height} pixels are too small for crops of {size}")
                room = (max(0, frames - num_frames), height - size, width - size)
                f, y, x = (int(at * (left_over + 1)) for at, left_over in zip(start, room))
                read = {part: value[f:f + num_frames, :, y:y + size, x:x + size].float() / 255 for part, value in parts.items()}
            return {"path": path} | {part: (value.mT if swap else value).flip(axes) for part, value in read.items()}

        return until_read(draw, self.unreadable)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[dict]:
    """The parts of a sample, not read yet. Raises DataError naming the file."""
    try:
        with safe_open(path, "pt") as file:
            parts = {part: file.get_slice(part) for part in PARTS}
            shape, *others = (part.get_shape() for part in parts.values())
            if len(shape) != 4 or shape[1] != 3 or any(other != shape for other in others):
                raise SafetensorError(f"its parts are of the shapes {[shape, *others]}")
            yield parts
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a sample of a pool ({error})") from None
