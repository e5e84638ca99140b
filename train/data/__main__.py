"""`python -m train.data`: check a folder, look at samples, pack photographs, make a pool with a prior's frames."""
from __future__ import annotations

import argparse
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import einops
import yaml
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vdd_model.config import from_dict
from vdd_model.errors import UserError
from vdd_model.inference.pipeline import default_device, default_dtype
from vdd_model.inference.prior import Prior, find_prior, need_prior
from vdd_model.measure import metrics, report

from .. import exit_code
from ..synthesis.scene import BlurConfig
from . import readers
from .clips import PhotoClips, open_clips
from .photos import Photos, read_photos, write_pack
from .pool import write_pool


def check(root: Path, layout: str, split: str, blur_folder: str, every: int) -> int:
    """Read everything (or every n-th frame), print what was found; returns 1 when something is missing or unreadable."""
    found = None if root.is_file() else readers.find(root, layout, split, blur_folder)
    if found is None or found.layout == "photos":
        return _report_photos(root, read_photos(root, split)[1])
    problems = list(found.problems)
    frames = sum(len(s) for s in found.sequences)
    print(f"{root}: layout {found.layout}, {len(found.sequences)} clips, {frames} frames")
    values, rows = [], []
    with tqdm(total=sum(math.ceil(len(s) / every) for s in found.sequences), unit="frame", disable=not sys.stderr.isatty()) as bar, \
            ThreadPoolExecutor(max_workers=2) as pool:
        for sequence in found.sequences:
            scores, bad = [], 0
            for number in range(0, len(sequence), every):
                sides = [frames for frames in (sequence.sharp, sequence.blurred) if frames is not None]
                try:
                    pictures = list(pool.map(lambda frames, at=range(number, number + 1): frames.read(at).movedim(1, -1) / 255, sides))
                    if len({picture.shape for picture in pictures}) > 1:
                        raise readers.DataError(f"{sequence.name}: frame {number}: blurred and sharp frame differ in size")
                    if len(pictures) == 2:
                        scores.append(metrics.psnr(*pictures).clamp(max=100).item())         # of equal ones, too
                except readers.DataError as error:
                    bad += 1
                    problems.append(str(error))
                bar.update()
            values += scores
            rows.append((sequence.name, len(sequence), _size(sequence), bad, sum(scores) / len(scores) if scores else None))
    width = max(len(row[0]) for row in rows)
    for name, count, size, bad, score in rows:
        print(f"  {name:{width}}  {count:6} frames  {size:>10}  " + (f"{score:6.2f} dB" if score is not None else "   -")
              + (f"  {bad} unreadable" if bad else ""))
    if values:
        print(f"blurred input: {sum(values) / len(values):.2f} dB PSNR, mean of {len(values)} frames"
              + (f" (every {every}th)" if every > 1 else ""))
    return _problems(problems)


def _size(sequence) -> str:
    try:
        return "{} x {}".format(*sequence.sharp.size)
    except UserError:
        return "?"


def _report_photos(root: Path, photos: Photos) -> int:
    photos.check()
    sides = photos.sides[[name not in photos.unreadable for name in photos.names]]
    if not len(sides):
        raise readers.DataError(f"{root}: not one photograph could be read; the first: {next(iter(photos.unreadable.values()))}")
    pixels = sum(width * height for name, (width, height) in zip(photos.names, photos.sizes) if name not in photos.unreadable) / 1e6
    print(f"{root}: {len(sides)} photographs, {pixels:.0f} megapixels, shorter side {sides.min()} to {sides.max()}; blur is synthesised")
    return _problems(list(photos.unreadable.values()))


def _problems(problems: list[str]) -> int:
    if not problems:
        print("nothing is missing or unreadable")
        return 0
    print(f"{len(problems)} problems:")
    for text in problems[:50]:
        print(f"  {text}")
    if len(problems) > 50:
        print(f"  and {len(problems) - 50} more")
    return 1


def sheet(blurred: Tensor, sharp: Tensor, zoom: int = 2) -> Image.Image:
    """Contact sheet: for each sample (B, 3, F, S, S) a row of blurred frames over a row of sharp ones."""
    image = report.to_image(einops.rearrange([blurred, sharp], "side b c f h w -> (b side h) (f w) c"))
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.data", description="Check, look at and pack training data.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("root", type=Path, help="folder of clips or photographs, or a pack of photographs")
    common.add_argument("--layout", default="auto", help=f"auto, {', '.join(readers.LAYOUTS)}")
    common.add_argument("--split", default="", help="train, val or test; all when left out")
    common.add_argument("--blur-folder", default="blur", help="GoPro: blur (plain average, as in papers) or blur_gamma")
    command = commands.add_parser("check", parents=[common], help="what is there, what is missing, PSNR of the blurred frames")
    command.add_argument("--every", type=int, default=1, metavar="N", help="read every N-th frame only")
    made = argparse.ArgumentParser(add_help=False)
    made.add_argument("-o", "--output", type=Path, required=True)
    contact = commands.add_parser("contact", parents=[common, made], help="samples as a picture, blurred over sharp")
    contact.add_argument("--zoom", type=int, default=2)
    command = commands.add_parser("pack", parents=[made], help="put photographs into one file")
    command.add_argument("root", type=Path)
    command.add_argument("--max-side", type=int, default=0, metavar="N", help="reduce larger photographs; 0 keeps every file's bytes")
    pool = commands.add_parser("pool", parents=[made],
                               help="samples of synthesised blur with a pretrained prior's frames, for stage 3 of the fusion")
    pool.add_argument("root", type=Path)
    pool.add_argument("--prior", type=Path, help="the prior's file; else the one in the model folder")
    for command, *defaults in ((contact, 6, 5, 128, 0), (pool, 600, 4, 256, 0)):
        for name, default in zip(("count", "frames", "size", "seed"), defaults):
            command.add_argument(f"--{name}", type=int, default=default)
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the blur's configuration")
    args = parser.parse_args(argv)

    def work() -> int:
        """Do what the command says; returns the exit code. Raises UserError, ConfigError."""
        if args.command == "check":
            return check(args.root, args.layout, args.split, args.blur_folder, max(1, args.every))
        if args.command == "pack":
            count, unreadable = write_pack(args.root, args.output, args.max_side)
            print(f"{args.output}: {count} photographs")
            return _problems(list(unreadable.values()))
        pairs = [text.partition("=") for text in args.set]
        blur = from_dict(BlurConfig, {key: yaml.safe_load(value) for key, _, value in pairs}, "--set ")
        if args.command == "pool":
            device = default_device()
            prior = Prior.load(need_prior(find_prior(path=args.prior)), device, default_dtype(device))
            write_pool(PhotoClips(args.root, blur), args.output, prior, count=args.count, seed=args.seed, num_frames=args.frames,
                       size=args.size)
            return 0
        source = open_clips(args.root, args.layout, args.split, blur_folder=args.blur_folder, blur=blur)
        clips = source.batch(args.seed, range(args.count), num_frames=args.frames, size=args.size, device="cpu")
        sheet(clips.blurred, clips.sharp, args.zoom).save(args.output)
        error = (clips.blurred - clips.sharp).square().mean(dim=(1, 2, 3, 4)).clamp_min(1e-10)
        print(f"{args.output}: {args.count} samples, blurred {(-10 * error.log10()).mean():.2f} dB on average")
        return _problems(list(source.unreadable.values())) if source.unreadable else 0

    return exit_code(work, failed=2)


if __name__ == "__main__":
    sys.exit(main())
