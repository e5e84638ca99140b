"""A look at a result: a before/after picture of one frame and an A/B video with a border that wanders over the frame."""
from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..measure.progress import FrameBar
from ..media.clip import MediaError, VideoClip
from ..media.encoding import OutputOptions
from ..media.video import probe, read, write_image, write_video

LINE = 2                                                       # pixels of the border between before and after


def preview_paths(target: Path) -> tuple[Path, Path]:
    """(picture, video) of the preview that belongs to an output: named after all of its name, so that no two outputs share one."""
    return target.with_name(target.name + ".preview.png"), target.with_name(target.name + ".preview.mp4")


def write_preview(before: VideoClip, target: Path, pictures: Sequence[Path] = (), *, quiet: bool = False) -> list[str]:
    """Compare `before` with the finished `target`, both read again from their files. Returns notes naming what was written.

    pictures: those in the folder `target` that belong to it. Shows its progress unless `quiet`. Raises MediaError.
    """
    picture, video = preview_paths(target)
    after = probe(list(pictures) or target, rate=before.rate)
    if (after.width, after.height) != (before.width, before.height):
        raise MediaError(f"{target} has frames of {after.width}x{after.height} pixels, its input of {before.width}x{before.height}")
    middle = after.num_frames // 2
    second = before.num_frames / float(before.rate)
    period = max(1.0, min(4.0, second)) * float(before.rate)   # frames for the border to wander there and back

    bar = FrameBar(picture.name.removesuffix(".png"), after.num_frames, quiet=quiet)

    def frames() -> Iterator[torch.Tensor]:
        """Pictures (H, W, 3) of the A/B clip; one of them is also written as the still."""
        for a, b in zip(read(before), read(after)):
            if a.index == middle:
                gap = torch.ones(a.rgb.shape[0], 2 * LINE, 3)
                write_image(picture, torch.cat([a.rgb, gap, b.rgb], dim=1).clamp(0, 1))
            bar.to(a.index)
            yield wipe(a.rgb, b.rgb, 0.5 - 0.5 * math.cos(2 * math.pi * a.index / period + math.pi / 2))

    plain = dataclasses.replace(before, has_alpha=False, gray=False, bit_depth=8, sound=(), metadata=(), timecode="", chapters=(),
                                light="", extras=(), telemetry=())
    with contextlib.closing(bar):
        write_video(video, frames(), like=plain, options=OutputOptions(codec="h264", quality=18, audio=False))
    return [f"preview: {picture} and {video} (left of the border: before)"]


def wipe(before: torch.Tensor, after: torch.Tensor, where: float) -> torch.Tensor:
    """(H,W,3) twice -> `before` left of the border at `where` (0..1 of the width) and `after` right of it."""
    width = before.shape[1]
    border = min(width - LINE, max(0, round(where * width)))
    out = after.clone()
    out[:, :border] = before[:, :border]
    out[:, border: border + LINE] = 1.0
    return out
