"""What people see of a difference, by measures of others: FLIP, ColorVideoVDP and VMAF, each where it is at hand (the extra `measure`; for
VMAF an FFmpeg with libvmaf, on the PATH or from imageio-ffmpeg). None needs a download.
"""
from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

RATE = 30.0                              # frames per second where a clip does not say it


@functools.lru_cache(maxsize=1)
def ffmpeg() -> str:
    """A program FFmpeg that has libvmaf, or ""."""
    found = [shutil.which("ffmpeg")]
    with contextlib.suppress(ImportError, RuntimeError):       # the second: a package without its program
        import imageio_ffmpeg
        found.append(imageio_ffmpeg.get_ffmpeg_exe())
    for program in filter(None, found):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if " libvmaf " in subprocess.run([program, "-hide_banner", "-filters"], capture_output=True, text=True, timeout=60).stdout:
                return program
    return ""


def present() -> list[str]:
    """Columns of the measures that are at hand."""
    found = {"flip": importlib.util.find_spec("flip_evaluator"), "jod": importlib.util.find_spec("pycvvdp"), "vmaf": ffmpeg()}
    return [name for name, there in found.items() if there]


def flip(output: Tensor, truth: Tensor) -> Tensor | None:
    """FLIP per frame (F,), 0 to 1, less is better (Andersson et al. 2020, at 67 pixels per degree); None where its package is missing."""
    if "flip" not in present():
        return None
    import flip_evaluator
    pairs = zip(*(x.detach().float().clamp(0, 1).cpu().numpy() for x in (truth, output)))
    return torch.tensor([flip_evaluator.evaluate(a, b, "LDR", applyMagma=False)[1] for a, b in pairs], dtype=torch.float64)


class Spool:
    """Two clips in 8 bits on the disk, for the measures that look at a whole clip; memory does not grow with its length."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="vdd-measure-")
        self.files = [Path(self._folder.name, name) for name in ("output", "truth")]
        self.shape = (0, 0, 0, 3)

    @staticmethod
    def needed() -> bool:
        """Whether there is any such measure."""
        return bool({"jod", "vmaf"} & set(present()))

    def add(self, output: Tensor, truth: Tensor) -> None:
        """Take the next frames (F, H, W, 3) in [0, 1]."""
        for path, frames in zip(self.files, (output, truth)):
            with path.open("ab") as file:
                file.write(frames.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy().tobytes())
        self.shape = (self.shape[0] + len(output), *output.shape[1:])

    def measure(self, rate: float) -> dict[str, list[float]]:
        """What the measures give, nothing where one is not at hand. The files are deleted."""
        with self._folder:
            return {"jod": self.jod(rate), "vmaf": self.vmaf(rate)}

    def jod(self, rate: float) -> list[float]:
        """Quality by ColorVideoVDP (Mantiuk et al. 2024) in just-objectionable differences, 10 is none, on its `standard_4k` display."""
        if not self.shape[0] or min(self.shape[1:3]) < 8 or "jod" not in present():
            return []
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)         # says at import that there is no CUDA
        import pycvvdp
        size = self.shape[0] * self.shape[1] * self.shape[2] * 3
        clips = [torch.from_file(str(path), size=size, dtype=torch.uint8).view(self.shape) for path in self.files]
        metric = pycvvdp.cvvdp(display_name="standard_4k", quiet=True, device=torch.device("cpu"))
        with torch.no_grad():
            return [float(metric.predict(*clips, dim_order="FHWC", frames_per_second=rate if self.shape[0] > 1 else 0)[0])]

    def vmaf(self, rate: float) -> list[float]:
        """VMAF 0.6.1 of every frame, 0 to 100."""
        if not self.shape[0] or not ffmpeg():
            return []
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{self.shape[2]}x{self.shape[1]}", "-framerate", f"{rate:.6f}"]
        luma = "scale=out_color_matrix=bt709,format=yuv420p"
        graph = f"[0:v]{luma}[a];[1:v]{luma}[b];[a][b]libvmaf=log_fmt=json:log_path=vmaf.json:n_threads={os.cpu_count() or 1}"
        inputs = [word for path in self.files for word in (*raw, "-i", path.name)]
        done = subprocess.run([ffmpeg(), "-v", "error", "-nostdin", *inputs, "-lavfi", graph, "-f", "null", "-"], cwd=self._folder.name,
                              capture_output=True)
        if done.returncode:
            return []
        frames = json.loads(Path(self._folder.name, "vmaf.json").read_text())["frames"]
        return [frame["metrics"]["vmaf"] for frame in frames]
