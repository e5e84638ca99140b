"""Clips in and out: `probe` what a path holds, `read` its frames, `write_video` a new file. The parts live in probe.py,
reader.py, encoding.py, images.py (picture sequences) and pixel_formats.py (exact color).
"""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import torch

from .clip import Frame, MediaError, VideoClip
from .encoding import Encoding, OutputOptions, choose_encoding
from .images import ImageReader, find_images, is_picture, probe_images, read_image
from .png import write_image
from .probe import probe_video
from .reader import VideoReader
from .sinks import VideoSink

__all__ = ["VideoClip", "Encoding", "Frame", "MediaError", "OutputOptions", "probe", "read", "read_clip", "read_image", "write_image",
           "write_video"]


def probe(source: str | Path | Sequence[Path], *, rate: Fraction | int = 24) -> VideoClip:
    """What a video file, a folder or pattern of pictures, or a list of pictures holds. `rate` is for pictures. Raises MediaError."""
    if not isinstance(source, (str, Path)):
        return probe_images(list(source), Fraction(rate))
    path = Path(source)
    if path.is_file():
        return probe_images([path], Fraction(rate)) if is_picture(path) else probe_video(path)
    if path.is_dir() or set(path.name) & set("*?%["):
        return probe_images(find_images(path), Fraction(rate), path)
    return probe_video(path)


def read(clip: VideoClip, start: int = 0, passing: Callable[[], None] = lambda: None) -> VideoReader | ImageReader:
    """An iterable of the clip's `Frame`s from index `start` on; afterwards its `lost` and `notes` say what could not be read.

    `passing` is called for every frame of a video before `start`, which has to be decoded; what it raises ends the reading.
    """
    return ImageReader(clip, start) if clip.files else VideoReader(clip, start, passing)


def read_clip(source: str | Path | VideoClip, limit: int | None = None) -> torch.Tensor:
    """All frames (or the first `limit`) as one float32 tensor (F,H,W,3) in [0,1]: for short clips."""
    clip = source if isinstance(source, VideoClip) else probe(source)
    return torch.stack([frame.rgb for frame in islice(read(clip), limit or None)])


def write_video(path: str | Path, frames: Iterable[torch.Tensor], rate: Fraction | int | float = 24, *,
                options: OutputOptions | None = None, like: VideoClip | None = None) -> Path:
    """Write frames ((H,W,3) float32 in [0,1]) to `path` (.mp4, .mov, .mkv) at `rate` frames per second; BT.709, limited range.

    With `like` the rate, color tags, bit depth, sound and metadata of that clip are kept. Written aside and renamed. An int,
    Fraction or float rate is taken as the nearest fraction with a denominator of at most 1001. Raises MediaError.
    """
    path, iterator, options = Path(path), iter(frames), options or OutputOptions()
    first = next(iterator, None)
    if first is None:
        raise MediaError(f"there is no frame to write to {path}")
    clip = like
    if clip is None:
        exact = Fraction(rate).limit_denominator(1001)
        clip = VideoClip(path=path, width=first.shape[1], height=first.shape[0], num_frames=0, rate=exact, time_base=1 / exact,
                         files=(path,))
    encoding = choose_encoding(clip, path, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=path.name + ".", suffix=".part", dir=path.parent) as folder:
        sink = VideoSink(Path(folder), encoding)
        try:
            for index, frame in enumerate(chain([first], iterator)):
                start, end = (round(i / (clip.rate * clip.time_base)) for i in (index, index + 1))
                sink.write(frame.detach().float().clamp(0, 1).cpu().numpy()[None], [None], [(start, max(1, end - start))])
            sink.finish(path, audio=options.audio and like is not None)
        finally:
            sink.close()
    return path


def part_folder(target: Path) -> Path:
    """The folder beside `target` that holds an unfinished job's work. Raises MediaError for the root of a file system."""
    target = target.resolve() if target.name in ("", "..") else target
    if not target.name:
        raise MediaError(f"{target} has no folder around it for unfinished work; choose a folder inside it as the output")
    return target.with_name(target.name + ".part")


def describe(source: str | Path) -> str:
    """What a clip is, in lines for people. Raises MediaError."""
    clip = probe(source)
    lines = [f"{clip.path}", f"  frames   {clip.num_frames}, {clip.width} x {clip.height}, {float(clip.num_frames / clip.rate):.2f} s",
             f"  rate     {clip.rate} frames per second" + ("" if clip.constant_rate else " on average, variable"),
             f"  picture  {clip.codec} {clip.pix_fmt}, {clip.bit_depth} bit{', transparency' if clip.has_alpha else ''}"
             f"{', grey' if clip.gray else ''}",
             f"  color    matrix {clip.color.matrix}, primaries {clip.color.primaries}, transfer {clip.color.transfer}, "
             f"{'full' if clip.color.full_range else 'limited'} range (H.273 numbers, 2: not said)"]
    more = {"rotated": f"{90 * clip.quarter_turns} degrees" if clip.quarter_turns else "",
            "mirrored": "left and right" if clip.mirrored else "",
            "HDR10": clip.light, "timecode": clip.timecode, "chapters": str(len(clip.chapters) or ""), "sound": ", ".join(clip.sound),
            "data": ", ".join(clip.telemetry),
            "holds": f"{', '.join(clip.extras)}, which no output takes over" if clip.extras else "", "damaged": clip.breaks_off}
    lines += [f"  {name:<8} {text}" for name, text in more.items() if text]
    return "\n".join(lines)
