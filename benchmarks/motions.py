"""What kinds of motion a checkpoint takes back: PSNR gained by the length of the blur and by the shape of its path.

    python -m benchmarks.motions [--checkpoint small] [--data FOLDER] [--clips 8] [--size 160] [--steps 1]

Test photographs and the sharp frames of the test footage are blurred by train/synthesis/blur.py with one kind of motion at a time: smooth
paths before a plane, paths that turn in the middle of the exposure, smooth paths before a relief. Full shutter, no noise, no moving
things, no codec: only the motion differs. The middle frame of three is scored. The real blurred footage stands in `make score`.
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import common
from train import exit_code
from train.data.photos import read_photos
from train.data.readers import find
from train.evaluate import pairs_of
from train.synthesis.blur import synthesize
from train.synthesis.scene import BlurConfig
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.measure.metrics import psnr

LENGTHS = ((2.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 24.0))         # mean blur of a clip, pixels
KINDS = {"smooth": {"kinks": 0.0, "relief": 0.0}, "turns in the exposure": {"kinks": 1.0, "relief": 0.0},
         "before a relief": {"kinks": 0.0, "relief": 1.0}}
SEED = 11


def pictures(data: Path) -> dict[str, tuple[Sequence[Tensor], tuple[float, float]]]:
    """Name of a set -> its pictures (3, H, W) uint8, and the scale at which they are used."""
    frames = [x.movedim(-1, 0).mul(255).round().byte().contiguous() for pair in pairs_of(find(data / "gopro_layout", "gopro", "test"))
              for x in islice(pair.sharp(), 0, None, 3)]
    photos = read_photos(data / "val_photos")
    return {"footage's sharp frames": (frames, (0.99, 1.0)), "photographs": (photos, (0.5, 0.51))}


def gains(deblurrer: Deblurrer, photos: Sequence[Tensor], config: BlurConfig, clips: int, size: int, steps: int) -> tuple[float, float]:
    """PSNR of the blurred middle frames and what deblurring adds, means over the clips."""
    before, after = [], []
    for index in range(clips):
        blurred, sharp = (x[0].permute(1, 2, 3, 0) for x in synthesize(photos, SEED, [index], num_frames=3, size=size, config=config))
        output = deblurrer.deblur(blurred, DeblurOptions(steps=steps))
        before.append(psnr(blurred[1:2], sharp[1:2]))
        after.append(psnr(output[1:2], sharp[1:2]))
    blurred_psnr = torch.cat(before).mean().item()
    return blurred_psnr, torch.cat(after).mean().item() - blurred_psnr


def rows(checkpoint: str, data: Path, clips: int, size: int, steps: int) -> list[dict]:
    """One row for every set, kind of motion and length."""
    deblurrer, table = Deblurrer(checkpoint, device="cpu"), []
    for name, (photos, scale) in pictures(data).items():
        for kind, motion in KINDS.items():
            for length in LENGTHS:
                config = BlurConfig(extent=length, near_sharp=0.0, duty=(1.0, 1.0), max_step=1e3, scale=scale, layers=0.0, noise=0.0,
                                    codec=0.0, saturation=0.0, exposure=(1.0, 1.0), **motion)
                blurred, gain = gains(deblurrer, photos, config, clips, size, steps)
                table.append({"set": name, "motion": kind, "blur, px": f"{length[0]:g} to {length[1]:g}", "blurred, dB": round(blurred, 2),
                              "gain, dB": round(gain, 2)})
                print("  ".join(str(value) for value in table[-1].values()), flush=True)
    return table


def main(argv: list[str] | None = None) -> int:
    parser = common.data_parser(__doc__)
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--clips", type=int, default=8, help="clips a row (%(default)s)")
    parser.add_argument("--size", type=int, default=160, help="side of the clips in pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=1)
    a = parser.parse_args(argv)
    return exit_code(lambda: common.write("motions", rows(a.checkpoint, a.data, a.clips, a.size, a.steps),
                                          {"clips": a.clips, "size": a.size, "steps": a.steps}, folder=a.out))


if __name__ == "__main__":
    raise SystemExit(main())
