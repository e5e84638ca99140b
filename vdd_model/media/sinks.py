"""Where finished frames go while a job runs: a folder beside the output from which an interrupted job can go on.

A video is kept as a file of packets in whole segments plus, for codecs with motion prediction, a spool of the raw pictures of the
segment that is being encoded. Segments begin at fixed frame numbers, so a job that was interrupted encodes exactly what it would
have encoded anyway. At the end the packets are joined with the sound; nothing is encoded twice into the result.
"""
from __future__ import annotations

import errno
import os
import re
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np

from .clip import VideoClip
from .encoding import Encoding, Packet, finished_segments, open_encoder, picture_bytes, picture_from_bytes, segment_bytes
from .files import sync, write_whole, written_aside
from .joining import join
from .pixel_formats import from_rgb
from .png import encode_png, png_chunks, texts_of

SEGMENT = 64                                                   # frames of a segment: one key frame at least every 64 frames
NUMBERED_PICTURE = re.compile(r"frame_\d{6,}\.png")            # names of a video's pictures
_TIMES = struct.Struct("<qq")


class VideoSink:
    """Frames -> packets of one video stream, kept in `folder`: those from index `first` on, a multiple of SEGMENT. Frames up to index
    `done` are safe on disk after each `write`, whatever kill comes.

    Raises MediaError for what the encoder refuses.
    """

    def __init__(self, folder: Path, encoding: Encoding, first: int = 0):
        self.folder, self.encoding = folder, encoding
        self.packet_file = folder / "packets.bin"
        self.packet_file.touch()
        segment, frames, size = finished_segments(self.packet_file)
        os.truncate(self.packet_file, size)
        self._begin(segment)                                   # what the encoder refuses is refused before the work
        self.done = first + frames
        self._spool = None
        if not encoding.intra:
            self._replay()

    def _begin(self, segment: int) -> None:
        self.segment, self.encoder = segment, open_encoder(self.encoding)
        self.packets: list[Packet] = []                        # in decoding order
        self.durations: dict[int, int] = {}                    # of the pictures so far, by their times

    def _spool_path(self) -> Path:
        return self.folder / f"spool-{self.segment:06d}.raw"

    def _replay(self) -> None:
        """Encode the spooled pictures of the unfinished segment again."""
        for old in self.folder.glob("spool-*.raw"):
            if old != self._spool_path():
                old.unlink()
        if not self._spool_path().exists():
            return
        size = _TIMES.size + len(picture_bytes(av.VideoFrame(self.encoding.clip.width, self.encoding.clip.height, self.encoding.pix_fmt)))
        whole = self._spool_path().stat().st_size // size
        with self._spool_path().open("r+b") as file:
            file.truncate(whole * size)
            for _ in range(whole):
                pts, duration = _TIMES.unpack(file.read(_TIMES.size))
                self._encode(picture_from_bytes(file.read(size - _TIMES.size), self.encoding), pts, duration)
        self.done += whole
        if len(self.durations) == SEGMENT:                     # it was killed between the last picture and the packets
            self._end_segment()

    def _encode(self, picture: av.VideoFrame, pts: int, duration: int) -> None:
        picture.pts, picture.time_base = pts, self.encoding.clip.time_base
        for name, value in (("color_primaries", self.encoding.color.primaries), ("color_trc", self.encoding.color.transfer)):
            if hasattr(picture, name):                         # some encoders look at the pictures' tags, not at the stream's
                setattr(picture, name, value)
        self.durations[pts] = duration
        self._keep(self.encoder.encode(picture))

    def _keep(self, packets: Iterable[av.Packet]) -> None:
        self.packets += (Packet(p.pts, self.durations.get(p.pts, 1), p.is_keyframe, bytes(p)) for p in packets)

    def write(self, rgb: np.ndarray, alphas: Sequence[np.ndarray | None], times: Sequence[tuple[int, int]]) -> None:
        """Take the next frames: rgb (n,H,W,3) float32 in [0,1], each with alpha (H,W) or None and (pts, duration)."""
        made = self.encoding
        for picture, alpha, (pts, duration) in zip(rgb, alphas, times):
            frame = from_rgb(picture, alpha if made.alpha else None, made.pix_fmt, made.color, gray=made.clip.gray, chroma=made.chroma)
            if not self.encoding.intra:
                if self._spool is None:
                    self._spool = self._spool_path().open("ab")
                self._spool.write(_TIMES.pack(pts, duration) + picture_bytes(frame))
            self._encode(frame, pts, duration)
            self.done += 1
            if not self.encoding.intra and len(self.durations) == SEGMENT:
                self._end_segment()
        if self.encoding.intra:
            self.end()
        elif self._spool is not None:
            sync(self._spool)

    def _end_segment(self) -> None:
        self._keep(self.encoder.encode(None))
        with self.packet_file.open("ab") as file:
            file.write(segment_bytes(self.segment, len(self.durations), self.packets))
            sync(file)
        self.close()
        self._spool_path().unlink(missing_ok=True)
        self._begin(self.segment + 1)

    def close(self) -> None:
        """Stop without finishing; what was written stays."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def end(self) -> None:
        """No further frame comes."""
        if self.durations:
            self._end_segment()

    def finish(self, target: Path, *, audio: bool, others: Sequence[Path] = ()) -> list[str]:
        """Join everything, what sinks in the folders `others` have kept of the frames behind too, into `target`, which appears whole or
        not at all. Returns notes."""
        self.end()
        whole = self.folder / f"whole{target.suffix}"
        packet_files = [self.packet_file, *(folder / self.packet_file.name for folder in others)]
        notes = join(packet_files, self.encoding, whole, audio=audio)
        with whole.open("r+b") as file:
            sync(file)
        (self.folder / "moving").touch()                       # from here on, no `whole` means that `target` is it
        os.replace(whole, target)
        return notes


class ImageSink:
    """Frames of `clip` -> PNG files called `names`, kept in `folder` until all are there. With `replace` pictures that are already in the
    folder `target` under names of the same kind, from a longer run, give way. The texts of the clip's own PNG files, and ComfyUI's graph in
    others, go over.
    """

    def __init__(self, folder: Path, clip: VideoClip, target: Path, names: Sequence[str], bit_depth: int, replace: bool, first: int):
        self.folder, self.clip, self.target, self.names = folder / "pictures", clip, target, names
        self.bit_depth, self.replace, self.chunks = bit_depth, replace, png_chunks(clip)
        self.folder.mkdir(exist_ok=True)
        # there once pictures have begun to move to their final place; names the old ones there that are in the way
        self.moving = folder / "moving"
        self._remove_old()
        self.done = first
        places = [self.folder] + [target] * self.moving.exists()
        while any((place / self.name(self.done)).exists() for place in places):
            self.done += 1

    def _remove_old(self) -> None:
        for name in filter(None, self.moving.read_bytes().split(b"\n") if self.moving.exists() else ()):
            (self.target / os.fsdecode(name)).unlink(missing_ok=True)

    def name(self, index: int) -> str:
        """File name of frame `index`."""
        return self.names[index] if index < len(self.names) else f"frame_{index:06d}.png"

    def write(self, rgb: np.ndarray, alphas: Sequence[np.ndarray | None], times: Sequence[tuple[int, int]]) -> None:
        """Take the next frames: rgb (n,H,W,3) float32 in [0,1], alpha (H,W) or None each."""
        for picture, alpha in zip(rgb, alphas):
            texts = texts_of(self.clip.files[self.done]) if self.done < len(self.clip.files) else b""
            data = encode_png(picture, alpha if self.clip.has_alpha else None, bit_depth=self.bit_depth, gray=self.clip.gray,
                              chunks=self.chunks + texts)
            write_whole(self.folder / self.name(self.done), data, durable=True)
            self.done += 1

    def close(self) -> None:
        """Stop without finishing; the pictures written stay."""

    def end(self) -> None:
        """No further frame comes."""

    def finish(self, target: Path, *, audio: bool, others: Sequence[Path] = ()) -> list[str]:
        """Move the pictures into the folder `target`, or the only one to the file `target`. Returns notes."""
        if target.suffix.lower() == ".png":
            os.replace(self.folder / self.name(0), target)
            return []
        target.mkdir(parents=True, exist_ok=True)
        if not self.moving.exists():
            mine = {self.name(index) for index in range(self.done)}
            kind = naming(mine) if self.names else NUMBERED_PICTURE
            old = [p.name for p in target.iterdir() if self.replace and p.name not in mine and p.is_file() and kind.fullmatch(p.name)]
            write_whole(self.moving, b"\n".join(map(os.fsencode, old)))
        self._remove_old()
        for index in range(self.done):
            if (self.folder / self.name(index)).exists():
                _move(self.folder / self.name(index), target / self.name(index))
        clip = self.clip
        tags = [f"tags ({', '.join(key for key, _ in clip.metadata[:5])})"] * bool(clip.metadata) + ["chapters"] * bool(clip.chapters)
        lost = ", ".join([*clip.telemetry, *clip.extras, *tags] if not clip.files else [])
        return ["pictures hold no sound, so it was left out"] * bool(clip.sound and audio) + [f"not carried over: {lost}"] * bool(lost)


def _move(source: Path, target: Path) -> None:
    """`os.replace`, also where `target` is a link to a folder on another disk."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with written_aside(target) as aside:
            shutil.copyfile(source, aside)
        source.unlink()


def naming(names: Iterable[str]) -> re.Pattern:
    """What names of the same kind look like: numbers that differ between `names` may be any, all else is as it is there."""
    kinds: dict[tuple[str, ...], list[list[str]]] = {}
    for name in names:
        parts = re.split(r"(\d+)", name)
        kinds.setdefault(tuple(parts[::2]), []).append(parts[1::2])
    patterns = []
    for texts, numbers in kinds.items():
        places = [next(iter(seen)) if len(seen) == 1 else r"\d+" for seen in map(set, zip(*numbers))]
        patterns.append("".join(re.escape(text) + place for text, place in zip(texts, [*places, ""])))
    return re.compile("|".join(patterns))
