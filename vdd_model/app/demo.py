"""`make demo`: a blurred clip made from a photograph, deblurred by the `vdd deblur` command, scored against the truth."""
from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

from ..errors import UserError


def bundled_photo() -> Path:
    """A photograph that an installed package ships (scikit-image's astronaut, NASA, public domain). Raises UserError."""
    found = importlib.util.find_spec("skimage")
    for folder in found.submodule_search_locations if found else ():
        path = Path(folder) / "data" / "astronaut.png"
        if path.exists():
            return path
    raise UserError("no photograph to start from: install scikit-image, or give one with --photo")


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vdd_model.app.demo", description=__doc__)
    parser.add_argument("--out", default="outputs", help="folder for the results (default: %(default)s)")
    parser.add_argument("--photo", help="a photograph of your own")
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=384, help="side of the square clip in pixels (default: %(default)s)")
    parser.add_argument("--extent", type=float, default=8.0, help="mean length of the blur in pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace) -> int:
    """Make, deblur, score. Raises UserError."""
    from ..measure import report
    from ..measure.motion import camera_shake
    from ..media.video import OutputOptions, read_image, write_video
    from . import cli
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    photo = Path(arguments.photo) if arguments.photo else bundled_photo()
    print(f"1. filming {photo.name} with a shaking camera: {arguments.frames} frames of {arguments.size} x {arguments.size}, "
          f"blur of {arguments.extent:g} pixels on average", flush=True)
    picture, _ = read_image(photo)
    started = time.monotonic()
    blurred, sharp = camera_shake(picture, arguments.frames, arguments.extent, arguments.seed, size=(arguments.size, arguments.size))
    # blurred: as a camera would store it; truth: nearly lossless
    source = write_video(out / "blurred.mp4", blurred, 24, options=OutputOptions(quality=14))
    truth = write_video(out / "truth.mp4", sharp, 24, options=OutputOptions(quality=4))
    print(f"   {source} ({time.monotonic() - started:.1f} s)", flush=True)

    target = out / "deblurred.mp4"
    command = ["deblur", str(source), "-o", str(target), "--checkpoint", arguments.checkpoint, "--steps", str(arguments.steps), "--force",
               "--preview"]
    print(f"2. vdd {' '.join(command)}", flush=True)
    code = cli.main(command)
    if code:
        return code

    print("3. against the truth", flush=True)
    result = report.compare(target, truth, out, blurred=source)
    after, before = (scores["psnr"] for scores in result["scores"].values())
    print(f"   deblurring changes PSNR by {after - before:+.2f} dB")
    print("results: " + ", ".join(str(p) for p in [target, *result["files"]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
