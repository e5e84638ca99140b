"""How far plain deconvolution could go on the two test sets, if an oracle told it the blur of every place.

    python -m benchmarks.headroom [--data FOLDER] [--window 17]

One frame of every clip of `make score` is restored by Wiener filters against straight motion blur of many lengths and directions; the
oracle sees the truth and takes for every pixel the filter whose error is the smallest in the window about it. What it gains is about
what a method can hope for that estimates a straight blur and undoes it, and a yardstick for the model's own gain.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import common
from benchmarks.score import clips_of
from train import exit_code
from vdd_model.measure.metrics import psnr

LENGTHS = (2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 13.0, 17.0, 22.0, 28.0)    # pixels
ANGLES = 12
NSR = (0.01, 0.04)          # noise to signal at 0.1 cycles per pixel; rises with the square of the frequency
MARGIN = 48                 # pixels mirrored around the picture


def restorations(blurred: Tensor) -> Iterator[Tensor]:
    """The blurred picture (3, H, W) in [0, 1] itself, then restored by every filter."""
    yield blurred
    padded = F.pad(blurred[None], (MARGIN,) * 4, mode="reflect")[0]
    height, width = padded.shape[-2:]
    fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    spectrum, noise = torch.fft.rfft2(padded), (fx.square() + fy.square()) / 0.1**2
    for length in LENGTHS:
        for angle in (i * math.pi / ANGLES for i in range(ANGLES)):
            otf = torch.sinc(length * (fx * math.cos(angle) + fy * math.sin(angle)))
            for nsr in NSR:
                restored = torch.fft.irfft2(spectrum * otf / (otf.square() + nsr * noise), s=(height, width))
                yield restored[:, MARGIN:-MARGIN, MARGIN:-MARGIN].clamp(0, 1)


def oracle(blurred: Tensor, sharp: Tensor, window: int) -> Tensor:
    """For every pixel the restoration whose squared error, averaged over window x window pixels, is the smallest; all (3, H, W)."""
    best = least = None
    for candidate in restorations(blurred):
        error = (candidate - sharp).square().mean(dim=0, keepdim=True)[None]
        error = F.avg_pool2d(F.pad(error, (window // 2,) * 4, mode="reflect"), window, stride=1)[0]
        better = None if least is None else error < least
        best = candidate if better is None else torch.where(better, candidate, best)
        least = error if better is None else torch.minimum(error, least)
    return best


def rows(data: Path, window: int) -> list[dict]:
    """One row a clip, then the means of the sets."""
    sets = clips_of(data)
    found = []
    for name, pairs in sets.items():
        for pair in pairs:
            middle = pair.num_frames // 2
            blurred, sharp = (next(islice(f(), middle, None)).movedim(-1, 0) for f in (pair.blurred, pair.sharp))
            before, after = (psnr(x.movedim(0, -1)[None], sharp.movedim(0, -1)[None]).item() for x in
                             (blurred, oracle(blurred, sharp, window)))
            found.append({"set": name, "clip": pair.name, "blurred, dB": before, "oracle gains, dB": after - before})
            print(f"{pair.name}: {after - before:+.2f} dB", flush=True)
    for name in sets:
        gains = [row["oracle gains, dB"] for row in found if row["set"] == name]
        found.append({"set": name, "clip": "mean", "oracle gains, dB": sum(gains) / len(gains)})
    return found


def main(argv: list[str] | None = None) -> int:
    parser = common.data_parser(__doc__)
    parser.add_argument("--window", type=int, default=17, help="side of the window in pixels, odd (%(default)s)")
    a = parser.parse_args(argv)
    return exit_code(lambda: common.write("headroom", rows(a.data, a.window), {"window": a.window}, folder=a.out))


if __name__ == "__main__":
    raise SystemExit(main())
