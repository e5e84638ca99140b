"""`python -m train.data`: check a folder, look at samples, make a pool with a prior's frames."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import einops
from PIL import Image, ImageOps
from tqdm import tqdm

from vdd_model.config import from_dict
from vdd_model.errors import UserError
from vdd_model.inference.pipeline import default_device, default_dtype
from vdd_model.inference.prior import Prior, find_prior, need_prior
from vdd_model.measure import metrics, report

from .. import at_least, command
from ..config import override
from ..synthesis.scene import BlurConfig
from . import readers
from .clips import open_clips
from .photos import Photos, read_photos
from .pool import write_pool


def check(root: Path, layout: str, split: str, blur_folder: str, every: int) -> int:
    """Read everything (or every n-th frame), print what was found; returns 1 when something is missing or unreadable."""
    found = readers.find(root, layout, split, blur_folder)
    if found.layout == "photos":
        return _report_photos(root, read_photos(root, split))
    problems, values, rows = list(found.problems), [], []
    print(f"{root}: layout {found.layout}, {len(found.sequences)} clips, {sum(map(len, found.sequences))} frames")
    for sequence in found.sequences:
        scores, bad, sides = [], 0, [side for side in (sequence.sharp, sequence.blurred) if side is not None]
        for number in tqdm(range(0, len(sequence), every), desc=sequence.name, unit="frame", leave=False, disable=None):
            try:
                pictures = [side.read(range(number, number + 1)).movedim(1, -1) / 255 for side in sides]
                if len({picture.shape for picture in pictures}) > 1:
                    raise readers.DataError(f"{sequence.name}: frame {number}: blurred and sharp frame differ in size")
                if len(pictures) == 2:
                    scores.append(metrics.psnr(*pictures).item())
            except readers.DataError as error:
                bad += 1
                problems.append(str(error))
        values += scores
        try:
            size = "{} x {}".format(*sequence.sharp.size)
        except UserError:
            size = "?"
        score = f"{metrics.mean(scores):.2f} dB" if scores else "-"
        rows.append((sequence.name, f"{len(sequence)} frames", size, score, f"{bad} unreadable" if bad else ""))
    print(report.align([("clip", "length", "size", "blurred", ""), *rows]))
    if values:
        which = f" (every {every}th)" if every > 1 else ""
        print(f"blurred input: {metrics.mean(values):.2f} dB PSNR, mean of {len(values)} frames{which}")
    return _problems(problems)


def _report_photos(root: Path, photos: Photos) -> int:
    for _ in readers.pool().map(photos.__getitem__, range(len(photos))):               # those that cannot be read are named by it
        pass
    sizes = [size for name, size in zip(photos.names, photos.sizes) if name not in photos.unreadable]
    sides, pixels = [min(size) for size in sizes], sum(width * height for width, height in sizes) / 1e6
    print(f"{root}: {len(sizes)} photographs, {pixels:.0f} megapixels, shorter side {min(sides)} to {max(sides)}; blur is synthesised")
    return _problems(list(photos.unreadable.values()))


def _problems(problems: list[str]) -> int:
    """Name them, the first fifty; returns 1 where there are any."""
    print(f"{len(problems)} problems:" if problems else "nothing is missing or unreadable")
    for text in [*problems[:50], *([f"and {len(problems) - 50} more"] if len(problems) > 50 else [])]:
        print(f"  {text}")
    return int(bool(problems))


@command(2)
def main(argv: list[str] | None = None) -> int:
    """`python -m train.data`: 1 where data has problems, else 0. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m train.data", description="Check and look at training data; make a pool of samples.")
    commands = parser.add_subparsers(dest="command", required=True)

    # ---- flags
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("root", type=Path, help="folder of clips or photographs")
    common.add_argument("--layout", help=f"auto, {', '.join(readers.LAYOUTS)}; when left out, auto, for a pool photos")
    common.add_argument("--split", default="", help="train, val or test; all when left out")
    common.add_argument("--blur-folder", default="blur", help="GoPro: blur (plain average, as in papers) or blur_gamma")
    each = commands.add_parser("check", parents=[common], help="what is there, what is missing, PSNR of the blurred frames")
    each.add_argument("--every", type=at_least(1), default=1, metavar="N", help="read every N-th frame only")
    made = argparse.ArgumentParser(add_help=False)
    made.add_argument("-o", "--output", type=Path, required=True)
    contact = commands.add_parser("contact", parents=[common, made], help="samples as a picture, blurred over sharp")
    contact.add_argument("--zoom", type=at_least(1), default=2)
    pool = commands.add_parser("pool", parents=[common, made], help="samples with a pretrained prior's frames, for stage 3 of the fusion")
    pool.add_argument("--prior", type=Path, help="the prior's file; else the one in the model folder")
    for each, *defaults in ((contact, 6, 5, 128, 0), (pool, 600, 4, 256, 0)):
        for name, least, default in zip(("count", "frames", "size", "seed"), (1, 1, 1, 0), defaults):
            each.add_argument(f"--{name}", type=at_least(least), default=default)
        each.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the blur's configuration")
    args = parser.parse_args(argv)

    # ---- check; a pool of samples; a sheet of them
    layout = args.layout or ("photos" if args.command == "pool" else "auto")
    if args.command == "check":
        return check(args.root, layout, args.split, args.blur_folder, args.every)
    values: dict = {}
    for text in args.set:
        override(values, text)
    blur = from_dict(BlurConfig, values, "--set ")
    source = open_clips(args.root, layout, args.split, blur_folder=args.blur_folder, blur=blur)
    if args.command == "pool":
        device = default_device()
        prior = Prior.load(need_prior(find_prior(path=args.prior)), device, default_dtype(device))
        write_pool(source, args.output, prior, count=args.count, seed=args.seed, num_frames=args.frames, size=args.size)
        return _problems(list(source.unreadable.values())) if source.unreadable else 0
    clips = source.batch(args.seed, range(args.count), num_frames=args.frames, size=args.size, device="cpu")
    sheet = report.to_image(einops.rearrange([clips.blurred, clips.sharp], "side b c f h w -> (b side h) (f w) c"))
    report.save_image(ImageOps.scale(sheet, args.zoom, Image.Resampling.NEAREST), args.output)
    error = (clips.blurred - clips.sharp).square().mean(dim=(1, 2, 3, 4)).clamp_min(1e-10)
    print(f"{args.output}: {args.count} samples, blurred {(-10 * error.log10()).mean():.2f} dB on average")
    return _problems(list(source.unreadable.values())) if source.unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
