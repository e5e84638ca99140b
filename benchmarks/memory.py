"""Peak memory of `vdd deblur` for a short and a long clip: it must not grow with the length.

    python -m benchmarks.memory [--frames 64 2000] [--size 192 128] [--checkpoint small] [--networks-seldom]

Each clip is deblurred by a fresh process, whose peak resident set size the system reports when it ends. --networks-seldom has the networks
compute in one of 50 calls only: what takes room is there as in any run, and a long or large clip shows it in a short time.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


def make_clip(path: Path, frames: int, width: int, height: int) -> None:
    """A moving pattern as H.264."""
    import av
    import numpy as np
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        y, x = np.mgrid[:height, :width]
        for i in range(frames):
            rgb = np.stack([np.sin((x + 2 * i) / 9), np.sin((y + i) / 7), np.sin((x + y - 3 * i) / 11)], axis=-1)
            frame = av.VideoFrame.from_ndarray((rgb * 120 + 128).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


SELDOM = 50


class Used(NamedTuple):
    """What a process took: peak resident set size in MB, seconds on the clock, and seconds of processors, whoever else used them."""

    peak_mb: float
    seconds: float
    cpu_seconds: float


def run(command: list[str]) -> Used:
    """What a process takes. Exits when it fails."""
    started = time.monotonic()
    pid = os.spawnv(os.P_NOWAIT, command[0], command)
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Used(usage.ru_maxrss / unit, time.monotonic() - started, usage.ru_utime + usage.ru_stime)


def networks_seldom(arguments: list[str]) -> int:
    """`vdd` with encoder 2 and the decoder at work in one of SELDOM calls; in the others they give zeros and the frames' own pixels."""
    import itertools

    import torch

    from vdd_model.app import cli
    from vdd_model.networks.model import BlurCode, DeblurModel

    def blank(self, blurred: torch.Tensor, prior: torch.Tensor | None = None) -> BlurCode:
        """What `encode_each` would give, as zeros."""
        vae, (batch, _, frames, height, width) = self.config.vae, blurred.shape
        steps = [vae.patch_size * 2**level for level in range(len(vae.channel_mult))]
        features = [torch.zeros(batch, vae.channels * mult, frames, height // step, width // step, dtype=self.null_text.dtype)
                    for mult, step in zip(vae.channel_mult, steps)]
        latents = torch.zeros(batch, vae.latent_channels, frames, height // vae.factor, width // vae.factor, dtype=self.null_text.dtype)
        return BlurCode(latents, features)

    def seldom(real, other):
        """`real`, in one of SELDOM calls."""
        calls = itertools.count()
        return lambda *given: (other if next(calls) % SELDOM else real)(*given)
    DeblurModel.encode_each = seldom(DeblurModel.encode_each, blank)
    DeblurModel.decode = seldom(DeblurModel.decode, lambda self, z, guide=None: guide.pixels.clone())
    sys.argv[1:] = arguments
    return cli.main()                                    # as a process of its own, which keeps the memory that it frees


def measure(frames: list[int], width: int, height: int, checkpoint: str, extra: list[str], seldom: bool = False) -> list[dict]:
    """One row per clip length: frames, peak memory, frames per second."""
    vdd = ["benchmarks.memory", "--networks-seldom"] if seldom else ["vdd_model"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in frames:
            clip, out = Path(folder) / f"{count}.mp4", Path(folder) / f"{count}.out.mp4"
            # in a process of its own: a child starts with its parent's peak, so this one has to stay small
            run([sys.executable, "-c", "import sys; from pathlib import Path; from benchmarks.memory import make_clip; "
                 "make_clip(Path(sys.argv[1]), *map(int, sys.argv[2:]))", str(clip), str(count), str(width), str(height)])
            used = run([sys.executable, "-m", *vdd, "deblur", str(clip), "-o", str(out),
                        "--checkpoint", checkpoint, *extra])
            rows.append({"frames": count, "peak_rss_mb": round(used.peak_mb, 1), "frames_per_second": round(count / used.seconds, 2),
                         "cpu_seconds_per_frame": round(used.cpu_seconds / count, 3)})
            print(f"{count:6d} frames of {width} x {height}: peak {used.peak_mb:8.1f} MB, {used.seconds:7.1f} s, "
                  f"{used.cpu_seconds:.1f} s of processors", flush=True)
    return rows


def main() -> None:
    if sys.argv[1:3] == ["--networks-seldom", "deblur"]:
        sys.exit(networks_seldom(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks-seldom", action="store_true")
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 2000])
    parser.add_argument("--size", type=int, nargs=2, default=[192, 128], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments, extra = parser.parse_known_args()
    rows = measure(arguments.frames, *arguments.size, arguments.checkpoint, extra, arguments.networks_seldom)
    if len(rows) > 1:
        ratio = rows[-1]["peak_rss_mb"] / rows[0]["peak_rss_mb"]
        print(f"{rows[-1]['frames']} against {rows[0]['frames']} frames: x {ratio:.3f} (bound 1.05)")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
