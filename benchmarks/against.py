"""This build beside another one, file to file: their processes run in turn, so that a slow minute of the machine hits both.

    python -m benchmarks.pipeline --against CHECKOUT [--sizes 256 720p 1080p] [--frames 8] [--dtypes float32 bfloat16] [--repeats 3]

CHECKOUT: a folder with another state of this repository, or a commit or tag of this one (checked out aside for the while). Each process
is `vdd deblur` in one step without a prior, as its users run it; its peak resident set is the system's figure. Seconds, and those of
processors, which are what can be compared on a busy machine, are those beyond what a clip of one tiny frame takes. "agree dB" is the PSNR
of one build's frames against the other's, where both compute with the weights that the other one ships. A frame's seconds of processors
are also given as copies of its float32 values in memory, and its arithmetic as a share of what the best convolution does in them.
"""
from __future__ import annotations

import contextlib
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.memory import run as run_process
from vdd_model.checkpoint.store import BUILT_IN

HERE = Path(__file__).resolve().parents[1]
FIRST_VERSION = "429a5ce"      # with which README's figures of speed and memory compare
SIZES = {"256": (256, 256), "480p": (854, 480), "720p": (1280, 720), "1080p": (1920, 1080), "4k": (3840, 2160)}


@contextlib.contextmanager
def checkout(place: str) -> Iterator[Path]:
    """The folder of another build: `place` itself, or a temporary checkout of the revision that it names. Raises SystemExit."""
    if (Path(place) / "vdd_model").is_dir():
        yield Path(place).resolve()
        return
    git = ["git", "-C", str(HERE), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "build"
        if subprocess.run([*git, "add", "--quiet", "--detach", str(path), place]).returncode:
            sys.exit(f"{place} is neither a folder with this project nor a revision of it")
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


def last_tag() -> str | None:
    """The newest tag behind this state of the repository, else the first version where its history is there, else None."""
    for what in (["describe", "--tags", "--abbrev=0"], ["rev-parse", "--verify", "--quiet", f"{FIRST_VERSION}^{{commit}}"]):
        done = subprocess.run(["git", "-C", str(HERE), *what], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if done.stdout.strip():
            return done.stdout.strip()
    return None


def deblur(build: Path, clip: Path, target: Path, dtype: str, checkpoint: str) -> tuple[float, float, float]:
    """Seconds that a build's process takes for a clip, its peak resident set in MB, and its seconds of processors."""
    command = (f'cd "{build}" && exec "{sys.executable}" -m vdd_model deblur "{clip}" -o "{target}" --checkpoint "{checkpoint}" --force '
               f'--quiet --device cpu --dtype {dtype} --codec ffv1 >/dev/null')
    used = run_process(["/bin/sh", "-c", command])
    return used.seconds, used.peak_mb, used.cpu_seconds


def in_process(clip: Path, frames: int, width: int, height: int) -> None:
    """`benchmarks.memory.make_clip` in a process of its own: a child starts with its parent's peak, so this one has to stay small."""
    subprocess.run([sys.executable, "-c", "import sys; from pathlib import Path; from benchmarks.memory import make_clip; "
                    "make_clip(Path(sys.argv[1]), *map(int, sys.argv[2:]))", str(clip), *map(str, (frames, width, height))],
                   check=True, cwd=HERE)


def psnr(a: Path, b: Path) -> float:
    """PSNR in dB of one file's frames against the other's, both read a frame at a time."""
    from vdd_model.media.video import probe, read
    errors = [float((x.rgb - y.rgb).double().square().mean()) for x, y in zip(read(probe(a)), read(probe(b)), strict=True)]
    return common.decibel(sum(errors) / len(errors))


@functools.cache
def flops_per_pixel(checkpoint: str) -> float:
    """FLOPs of the picture path, by pixel: encoder 2, decoder and fidelity branch."""
    from vdd_model.inference.pipeline import Deblurrer
    frames = torch.rand(4, 128, 128, 3)
    model = Deblurrer(checkpoint, device="cpu", dtype=torch.float32).model      # as a model, nothing of it is fused: all is counted
    return common.count_flops(lambda: Deblurrer(model, device="cpu").deblur(frames)) / frames[..., 0].numel()


def taken(starts: list, runs: list, build: int) -> tuple[float, float, float]:
    """Of a build, medians: seconds beyond those of its start, peak in MB, seconds of processors beyond its start's."""
    (start, _, cpu_start), (seconds, peak, cpu) = ([statistics.median(run[build][k] for run in each) for k in range(3)]
                                                   for each in (starts, runs))
    return max(seconds - start, 0.01), peak, max(cpu - cpu_start, 0.01)


def rows(build: Path, sizes: Sequence[str], frames: int, dtypes: Sequence[str], repeats: int, checkpoint: str) -> list[dict]:
    """One row for each size and type: medians of both builds, ratios of today's to the other's."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder, builds = Path(name), (build, HERE)
        targets, nothing = (folder / "other.mkv", folder / "today.mkv"), folder / "nothing.mp4"
        theirs = build / BUILT_IN[checkpoint].relative_to(HERE) if checkpoint in BUILT_IN else None
        in_process(nothing, 4, 64, 64)                         # more than a picture or two, which the prior would be called for
        for size in sizes:
            width, height = SIZES[size]
            clip = folder / f"{size}.mp4"
            in_process(clip, frames, width, height)
            for dtype in dtypes:
                starts, runs = ([[deblur(place, what, target, dtype, checkpoint) for place, target in zip(builds, targets)]
                                 for _ in range(repeats)] for what in (nothing, clip))
                (was, peak_was, cpu_was), (now, peak, cpu) = (taken(starts, runs, i) for i in (0, 1))
                if theirs and theirs.exists():                                   # today's frames by other weights say nothing
                    deblur(HERE, clip, targets[1], dtype, str(theirs))
                ceilings, pixels = common.ceilings("cpu", time.process_time), width * height
                found.append({
                    "clip": f"{frames} x {width} x {height}", "type": dtype, "runs": repeats, "other s": was, "today s": now,
                    "time": now / was, "other cpu s": cpu_was, "today cpu s": cpu, "cpu time": cpu / cpu_was,
                    "other MB": peak_was, "today MB": peak, "memory": peak / peak_was,
                    "agree dB": psnr(*targets), "cpu s per frame": cpu / frames,
                    "copies of a frame": cpu / frames / (2 * pixels * 12 / ceilings["copy"] / 1e9),
                    "of conv ceiling": f"{flops_per_pixel(checkpoint) * pixels * frames / cpu / ceilings[f'conv {dtype}'] / 1e7:.0f} %"})
                print(" ".join(f"{key} {common.cell(value)}" for key, value in found[-1].items()), file=sys.stderr, flush=True)
    return found


def main(arguments) -> None:
    """`benchmarks.pipeline --against`."""
    with checkout(arguments.against) as build, tempfile.TemporaryDirectory() as folder:
        checkpoint, what = common.checkpoint_file(folder, arguments.checkpoint)
        found = rows(build, arguments.sizes, arguments.frames, arguments.dtypes or common.computed_types(), arguments.repeats, checkpoint)
        head = subprocess.run(["git", "-C", str(build), "describe", "--always", "--tags"], stdout=subprocess.PIPE, text=True).stdout.strip()
        common.write("against", found, {"checkpoint": what, "the other build": head or os.path.basename(build)}, folder=arguments.out)
