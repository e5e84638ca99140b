"""Where clips lie on a disk: published folder layouts, pictures, videos, packs of photographs. Nothing here is random."""
from __future__ import annotations

import atexit
import contextlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vdd_model.errors import UserError
from vdd_model.media import images
from vdd_model.media.encoding import VIDEO_SUFFIXES

from .sequences import in_sequences, is_film, natural

if TYPE_CHECKING:
    from vdd_model.media.reader import VideoReader

PICTURES = images.IMAGE_SUFFIXES
VIDEOS = VIDEO_SUFFIXES - PICTURES - {".gif", ".apng", ".lrv", ".mod"}       # those lie beside photographs, or are small copies
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val", "valid": "val", "validation": "val"}
# The ten clips that papers test on (DVD comes without a split on disk).
DVD_TEST = ("720p_240fps_2", "IMG_0003", "IMG_0021", "IMG_0030", "IMG_0031", "IMG_0032", "IMG_0033", "IMG_0037", "IMG_0039", "IMG_0049")
PAIR_NAMES = tuple((b, s) for b in ("blur", "blurred", "blurry", "real_blur", "input", "lq")
                   for s in ("sharp", "gt", "target", "hq"))
# What RealBlur and RSBlur put before a picture's number: `blur/blur_1.png` and `gt/gt_1.png`, `blur/real_blur.png` and `gt/gt_sharp.png`
SIDE = re.compile(rf"^({'|'.join(dict.fromkeys(word for pair in PAIR_NAMES for word in pair))})(?=[-_ .]|$)[-_ .]*", re.IGNORECASE)
SEEK_BACK = (0, 10)                      # seconds before the first frame that is wanted: some containers land behind where they were sent
LAYOUTS = ("gopro", "reds", "bsd", "dvd", "pairs", "videos", "frames", "photos")
NO_DATA = ("__MACOSX", "@eaDir")         # what file systems and archivers put beside people's files, as do all names that begin with a dot
RATES = ((re.compile(r"(\d+) ?fps", re.IGNORECASE), None), (re.compile("gopro_large_all", re.IGNORECASE), 240.0))


class DataError(UserError):
    """Data that cannot be used; one sentence that names the folder or the file."""


CropBox = tuple[int, int, int, int]          # x0, y0, x1, y1


class Frames(Protocol):
    """Frames of one clip, read at random places."""

    name: str

    def __len__(self) -> int: ...
    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""
    def read(self, numbers: range, box: CropBox | None = None) -> Tensor:
        """Frames (len(numbers), 3, h, w) uint8 RGB. Raises DataError naming the file."""


def read_picture(file: Path | io.BytesIO, box: CropBox | None = None, name: str = "", size: tuple[int, int] | None = None) -> Tensor:
    """(3, H, W) uint8 RGB, upright; `box` cuts. Raises DataError naming the file, also when the whole picture is not of `size` (w, h)."""
    picture = _looked_at(images.read_picture, file, name).permute(2, 0, 1)
    height, width = picture.shape[1:]
    if size and (width, height) != size:
        raise DataError("{}: {} x {} pixels, the clip's first frame has {} x {}".format(name or file, width, height, *size))
    x0, y0, x1, y1 = box or (0, 0, width, height)
    return picture[:, y0:y1, x0:x1].contiguous()


def picture_size(file: Path | io.BytesIO, name: str = "") -> tuple[int, int]:
    """(width, height) in pixels, upright, mostly from the picture's header. Raises DataError naming the file."""
    return _looked_at(images.picture_size, file, name)


def _looked_at(look: Callable, file: Path | io.BytesIO, name: str):
    try:
        return look(file.getvalue() if isinstance(file, io.BytesIO) else file, name)
    except UserError as error:
        label = name or str(file)
        raise DataError(f"{label}: cannot be read as a picture ({str(error).removeprefix(label).strip()})") from None


@dataclass
class PictureFrames:
    """A clip stored as one picture file per frame."""

    name: str
    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the first frame. Raises DataError."""
        return picture_size(self.paths[0])

    @property
    def rate(self) -> float:
        """Frames per second, as far as the path says: `..._240fps/...`, GOPRO_Large_all; else 30."""
        for pattern, rate in RATES:
            if found := pattern.search(str(self.paths[0].parent)):
                return rate or float(found[1])
        return 30.0

    def read(self, numbers: range, box: CropBox | None = None) -> Tensor:
        """The frames `numbers`, or their `box`: uint8 (F, 3, H, W), RGB. Raises DataError naming the file."""
        paths = [self.paths[i] for i in numbers]
        size = self.size if box else None               # a box that a frame does not fill would come out with a black border

        def read(path: Path) -> Tensor:
            """One of them, (3, H, W) uint8."""
            return read_picture(path, box, size=size)

        frames = list(pool().map(read, paths)) if len(paths) > 1 else [read(paths[0])]
        for path, frame in zip(paths, frames):
            if frame.shape != frames[0].shape:
                sizes = [f"{f.shape[2]} x {f.shape[1]}" for f in (frame, frames[0])]
                raise DataError(f"{path}: {sizes[0]} pixels, the clip's first frame has {sizes[1]}")
        return torch.stack(frames)


@dataclass
class VideoFrames:
    """A clip stored as a video file; needs PyAV. Its frames are those that `VideoReader` gives."""

    name: str
    path: Path

    def __len__(self) -> int:
        return self._index.number

    @cached_property
    def _clip(self):
        from vdd_model.media.probe import probe_video

        return probe_video(self.path)

    @cached_property
    def _index(self) -> Index:
        import av

        from vdd_model.media.container import open_container, video_stream

        clip, packets, number = self._clip, [], 0
        with open_container(self.path) as container, contextlib.suppress(av.FFmpegError):     # as far as the file goes
            for packet in container.demux(video_stream(container, self.path)):
                if packet.size and not packet.is_discard:
                    packets.append((packet.pts, packet.is_keyframe))
        times = sorted({pts for pts, _ in packets if pts is not None})
        if packets and len(times) == len(packets) and packets[0][1] and not clip.untimed and not clip.joins:
            return Index(len(times), times, {pts for pts, key in packets if key})
        with open_container(self.path) as container, contextlib.suppress(av.FFmpegError):     # packets do not tell how many can be decoded
            stream = video_stream(container, self.path)
            stream.thread_type = "SLICE"                       # as `VideoReader` does
            for _ in container.decode(stream):
                number += 1
        return Index(number, [], set())

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self._clip.width, self._clip.height

    @property
    def rate(self) -> float:
        """Frames per second."""
        return float(self._clip.rate)

    def read(self, numbers: range, box: CropBox | None = None) -> Tensor:
        """The frames `numbers`, or their `box`: uint8 (F, 3, H, W), RGB. Raises DataError naming the file."""
        import av

        x0, y0, x1, y1 = box or (0, 0, *self.size)

        def picture(rgb: np.ndarray) -> Tensor:
            """A frame (H, W, 3) as it is given out."""
            return torch.from_numpy(np.rint(rgb[y0:y1, x0:x1].clip(0, 1) * 255).astype(np.uint8)).permute(2, 0, 1)

        try:
            frames = self._sought(numbers, picture)
            if frames is None:
                frames = self._walked(numbers, picture)
        except (av.FFmpegError, UserError) as error:
            raise DataError(f"{self.path}: cannot be decoded ({error})") from None
        if len(frames) < len(numbers):
            raise DataError(f"{self.path}: frames {numbers.start} to {numbers.stop - 1} cannot be decoded")
        return torch.stack(frames)

    def _sought(self, numbers: range, picture: Callable[[np.ndarray], Tensor]) -> list[Tensor] | None:
        """The frames that can be decoded from the key frame before them; None where no seek leads there, as in some transport streams."""
        from vdd_model.media.container import open_container, video_stream
        from vdd_model.media.reader import upright_rgb

        _, times, keys = self._index
        wanted = {times[i] for i in numbers} if times else set()
        for back in SEEK_BACK if times else ():
            found: dict[int, Tensor] = {}
            with open_container(self.path) as container:
                stream = video_stream(container, self.path)
                container.seek(max(times[0], min(wanted) - round(back / stream.time_base)), stream=stream)
                key = None
                for frame in container.decode(stream):
                    if key is None and frame.key_frame:
                        key = frame.pts
                        if key not in keys or key > min(wanted):       # a time that is not its own, or behind them
                            break
                    if key is None or frame.pts is None:               # what comes before a key frame lacks its references
                        continue
                    if frame.pts in wanted:
                        found[frame.pts] = picture(upright_rgb(frame, self._clip)[0])
                    if len(found) == len(wanted) or frame.pts > max(wanted):
                        break
            if key in keys and key <= min(wanted):
                return [found[time] for time in sorted(found)]
        return None

    def _walked(self, numbers: range, picture: Callable[[np.ndarray], Tensor]) -> list[Tensor]:
        """The frames, decoded from the file's first on, or from where this thread stopped: as many as there are before any damage, behind
        which numbers no longer hold.
        """
        from vdd_model.media.reader import VideoReader

        walk = getattr(_thread, "walk", None)
        if walk is None or walk.clip is not self or walk.following > numbers.start:
            reader = VideoReader(self._clip)
            walk = Walk(self, reader, iter(reader))
        _thread.walk, walk.reader.start, frames = None, numbers.start, []
        for frame in walk.frames:
            if walk.reader.notes:
                return frames
            frames.append(picture(frame.rgb.numpy()))
            if frame.index == numbers.stop - 1:
                _thread.walk, walk.following = walk, numbers.stop
                break
        return frames


class Index(NamedTuple):
    """How many frames a video has, their times in ticks, and the key frames' among them; no times where they do not lead to a frame."""

    number: int
    times: list[int]
    keys: set[int]


@dataclass
class Walk:
    """A video that is read from its start on: the next frame that its reader gives is `following`."""

    clip: VideoFrames
    reader: VideoReader
    frames: Iterator
    following: int = 0


_thread = threading.local()              # the last `walk` of each thread, so that reading on is not starting anew
atexit.register(lambda: setattr(_thread, "walk", None))        # while PyAV is still there to close the file


@dataclass(frozen=True)
class Sequence:
    """One clip: blurred and sharp frames side by side, or sharp frames alone."""

    name: str
    sharp: Frames
    blurred: Frames | None = None

    def __len__(self) -> int:
        return len(self.sharp)


@dataclass
class Found:
    """What a folder holds."""

    layout: str
    sequences: list[Sequence]
    problems: list[str]                       # one sentence each: what is missing or does not match


def find(root: str | Path, layout: str = "auto", split: str = "", blur: str = "blur") -> Found:
    """Look for clips below `root`.

    layout: one of LAYOUTS, or "auto" (the first that finds something). split: "train", "val", "test" or "" (all). blur: the
    folder of GoPro's blurred frames, "blur" (plain average, papers) or "blur_gamma". Raises DataError when nothing is found.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    if layout not in (*LAYOUTS, "auto"):
        raise DataError(f"no layout is called {layout!r}; there are: auto, {', '.join(LAYOUTS)}")
    problems: list[str] = []
    for name in LAYOUTS[:-1] if layout == "auto" else (layout,):
        if name in ("videos", "frames") and (problems or _side_by_side(root, split, blur)):       # blurred frames are no sharp video
            break
        if name == "photos":
            break
        finder = {"gopro": _gopro, "reds": _reds, "bsd": _bsd, "dvd": _dvd, "pairs": _pairs, "videos": _videos,
                  "frames": _frames if layout == "frames" else _films}[name]
        sequences = [s for s in finder(root, SPLITS.get(split, split), blur, problems) if len(s) > 0]
        if sequences:
            return Found(name, sorted(sequences, key=lambda s: s.name), problems)
    if problems:
        what = "no pair of blurred and sharp frames" if _side_by_side(root, split, blur) or layout == "pairs" else "nothing"
        raise DataError(f"{what} below {root} can be used; the first: {problems[0]}")
    if layout in ("auto", "videos", "frames", "photos") and (folder := _side_by_side(root, split, blur)):
        raise DataError(f"{folder} holds blurred and sharp frames side by side, which cannot be used as "
                        f"{'clips' if layout == 'auto' else layout}: ask for the layout 'pairs', or for the folder of the sharp ones alone")
    if layout in ("auto", "photos"):
        paths = [p for p in _walk_files(root) if p.suffix.lower() in PICTURES and _in_split(root, p.parent, split)]
        if paths:
            return Found("photos", [Sequence(str(p.relative_to(root)), PictureFrames(str(p), [p])) for p in paths], [])
    kind = "clips or photographs" if layout == "auto" else f"clips in the layout {layout!r}"
    raise DataError(f"the folder {root} holds no {kind}" + (f" of the split {split!r}" if split else ""))


def _side_by_side(root: Path, split: str, blur: str) -> Path | None:
    """The first folder of a split below root that holds one of blurred and one of sharp frames, by their names."""
    for folder in _folders(root):
        if not _in_split(root, folder, split):
            continue
        inner = {p.name.lower() for p in folder.iterdir() if p.is_dir()}
        if any(b in inner and s in inner for b, s in ((blur, "sharp"), *PAIR_NAMES)):
            return folder
    return None


def _folders(root: Path) -> Iterator[Path]:
    for folder, inner, _ in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if _counts(name))
        yield Path(folder)


def _counts(name: str) -> bool:
    """Whether a file or folder of this name is somebody's: `._a.png` is none, it holds what macOS knows of a.png."""
    return not name.startswith(".") and name not in NO_DATA


def _walk_files(root: Path) -> list[Path]:
    return sorted(path for folder in _folders(root) for path in folder.iterdir() if _counts(path.name) and path.is_file())


def _in_split(root: Path, folder: Path, split: str) -> bool:
    """Whether a folder below root belongs to the split; a path that names none belongs to all."""
    named = [SPLITS[part.lower()] for part in (root.name, *folder.relative_to(root).parts) if part.lower() in SPLITS]
    return not split or not named or named[-1] == SPLITS.get(split, split)


def _pictures(folder: Path) -> dict[str, Path]:
    """Frames of a folder by their stem, in the order of their numbers."""
    paths = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and _counts(p.name)] if folder.is_dir() else []
    return {p.stem: p for p in sorted(paths, key=lambda p: natural(p.stem))}


def _match(root: Path, name: str, blurred: Path, sharp: Path, problems: list[str]) -> list[Sequence]:
    """Pair the pictures of two folders by name. A frame without a partner ends a run: neighbours in a run are neighbours in time."""
    a, b = _pictures(blurred), _pictures(sharp)
    if not a.keys() & b.keys():                      # named after their side
        a, b = ({SIDE.sub("", stem): path for stem, path in side.items()} for side in (a, b))
        if len(a) == len(b) == 1:                    # a folder for each pair
            a, b = ({"": path} for side in (a, b) for path in side.values())
    for one, other, where in ((a, b, sharp), (b, a, blurred)):
        missing = [one[k].name for k in one if k not in other]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            problems.append(f"{where}: no partner of {', '.join(missing[:3])}{more}")
    found = []
    for label, keys in in_sequences({**a, **b}):
        runs = [list(run) for both, run in groupby(keys, lambda key: key in a and key in b) if both]
        for i, run in enumerate(runs):
            full = _joined(name, label) + (f"#{i}" if len(runs) > 1 else "")
            found.append(Sequence(full, PictureFrames(str(sharp), [b[k] for k in run]), PictureFrames(str(blurred), [a[k] for k in run])))
    return found


def _joined(name: str, label: str) -> str:
    return name + ("/" if label and not label.startswith("#") else "") + label


def _relative(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix() if folder != root else root.name


def _gopro(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    for folder in _folders(root):
        if (folder / blur).is_dir() and (folder / "sharp").is_dir() and _in_split(root, folder, split):
            yield from _match(root, _relative(root, folder), folder / blur, folder / "sharp", problems)


def _dvd(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    for folder in _folders(root):
        if not ((folder / "input").is_dir() and (folder / "GT").is_dir()):
            continue
        named = any(part.lower() in SPLITS for part in (root.name, *folder.relative_to(root).parts))
        published = "test" if folder.name in DVD_TEST else "train"           # it has no validation part
        wanted = _in_split(root, folder, split) if named or not split else split == published
        if wanted:
            yield from _match(root, _relative(root, folder), folder / "input", folder / "GT", problems)


def _bsd(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    for folder in _folders(root):
        if (folder / "Blur" / "RGB").is_dir() and _in_split(root, folder, split):
            yield from _match(root, _relative(root, folder), folder / "Blur" / "RGB", folder / "Sharp" / "RGB", problems)


def _reds(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    for folder in _folders(root):
        found = re.fullmatch(r"(train|val|test)_blur(_comp)?", folder.name)
        if not found or split and found[1] != split:
            continue
        sharp = Path(*(part.replace(folder.name, f"{found[1]}_sharp") for part in folder.relative_to(root).parts))
        for inner in sorted(p for p in folder.iterdir() if p.is_dir()):
            if _pictures(inner):
                yield from _match(root, _relative(root, inner), inner, root / sharp / inner.name, problems)


def _pairs(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    for folder in _folders(root):
        if not _in_split(root, folder, split):
            continue
        inner = {p.name.lower(): p for p in folder.iterdir() if p.is_dir()}
        for b, s in ((blur, "sharp"), *PAIR_NAMES):
            if b in inner and s in inner:
                yield from _pair_folders(root, _relative(root, folder), inner[b], inner[s], problems)
                break


def _pair_folders(root: Path, name: str, blurred: Path, sharp: Path, problems: list[str]) -> Iterator[Sequence]:
    yield from _match(root, name, blurred, sharp, problems)
    inner, sharp_inner = ({p.stem: p for p in sorted(folder.iterdir()) if _counts(p.name) and (p.is_dir() or p.suffix.lower() in VIDEOS)}
                          for folder in (blurred, sharp))
    for path in inner.values():
        other = sharp_inner.get(path.stem)
        if other is None:
            problems.append(f"{path}: no partner in {sharp}")
        elif path.is_dir():
            yield from _match(root, f"{name}/{path.name}", path, other, problems)
        else:
            a, b = VideoFrames(str(path), path), VideoFrames(str(other), other)
            try:
                if len(a) != len(b) or a.size != b.size:
                    problems.append(f"{path}: {len(a)} frames of {a.size}, its partner {other} has {len(b)} of {b.size}")
                else:
                    yield Sequence(f"{name}/{path.stem}", b, a)
            except (UserError, ImportError) as error:
                problems.append(str(error))


def _videos(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    for path in _walk_files(root):
        if path.suffix.lower() in VIDEOS and _in_split(root, path.parent, split):
            frames = VideoFrames(str(path), path)
            try:
                len(frames), frames.size
                yield Sequence(path.relative_to(root).as_posix(), frames)
            except (UserError, ImportError) as error:
                problems.append(f"{path}: {error}" if str(path) not in str(error) else str(error))


def _frames(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    """Folders of sharp frames, as GOPRO_Large_all holds them."""
    for folder in _folders(root):
        if _in_split(root, folder, split):
            pictures = _pictures(folder)
            for label, keys in in_sequences(pictures):
                name = _joined(_relative(root, folder), label)
                yield Sequence(name, PictureFrames(name, [pictures[key] for key in keys]))


def _films(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    """The same where nobody said that they are frames: nothing, unless most pictures lie in sequences whose neighbours look alike."""
    films, others = [], []
    for sequence in _frames(root, split, blur, problems):
        paths = sequence.sharp.paths
        try:
            (films if is_film(lambda i, paths=paths: read_picture(paths[i]), len(paths)) else others).append(sequence)
        except DataError:
            others.append(sequence)
    left_out = sum(map(len, others))
    if left_out > sum(map(len, films)):
        return
    if left_out:
        problems.append(f"{left_out} pictures are no frames of a clip and left out; the first is {others[0].sharp.paths[0]}")
    yield from films


_threads: ThreadPoolExecutor | None = None


def pool() -> ThreadPoolExecutor:
    """The threads in which pictures are decoded."""
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(max_workers=max(1, min(16, os.cpu_count() or 1)))
    return _threads
