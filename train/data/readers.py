"""Where clips lie on a disk: published folder layouts, folders of pictures, videos, photographs. Nothing here is random."""
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from vdd_model.errors import UserError
from vdd_model.media.encoding import VIDEO_SUFFIXES
from vdd_model.media.images import IMAGE_SUFFIXES

from .frames import CropBox, DataError, Frames, PictureFrames, VideoFrames, picture_size, pool, read_picture
from .sequences import ALIKE, PLACES, PROBES, RELATED, SHORTEST, alike, in_sequences, natural, probed

__all__ = ["LAYOUTS", "CropBox", "DataError", "Found", "Frames", "PictureFrames", "Sequence", "VideoFrames", "find", "picture_size", "pool",
           "read_picture"]
PICTURES = IMAGE_SUFFIXES
VIDEOS = VIDEO_SUFFIXES - PICTURES - {".gif", ".apng", ".lrv", ".mod"}       # those lie beside photographs, or are small copies
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val", "valid": "val", "validation": "val"}
# The ten clips of DVD that papers test on.
DVD_TEST = ("720p_240fps_2", "IMG_0003", "IMG_0021", "IMG_0030", "IMG_0031", "IMG_0032", "IMG_0033", "IMG_0037", "IMG_0039", "IMG_0049")
PAIR_NAMES = tuple((b, s) for b in ("blur", "blurred", "blurry", "real_blur", "input", "lq")
                   for s in ("sharp", "gt", "target", "hq"))
# What RealBlur and RSBlur put before a picture's number: `blur/blur_1.png` and `gt/gt_1.png`, `blur/real_blur.png` and `gt/gt_sharp.png`
SIDE = re.compile(rf"^({'|'.join(dict.fromkeys(word for pair in PAIR_NAMES for word in pair))})(?=[-_ .]|$)[-_ .]*", re.IGNORECASE)
LAYOUTS = ("gopro", "reds", "bsd", "dvd", "hide", "pairs", "videos", "frames", "photos")
CROPS = ("", "_crops", "_crop", "_patches")             # what image deblurring calls its folders once it has cut the pictures up
BLURRED = re.compile(r"(?<!de)(?<!de[-_ ])blur", re.IGNORECASE)              # names of folders of which no picture is a truth
NO_DATA = ("__MACOSX", "@eaDir")         # what file systems and archivers put beside people's files, as do all names that begin with a dot


@dataclass(frozen=True)
class Sequence:
    """One clip: blurred and sharp frames side by side, or sharp frames alone."""

    name: str
    sharp: Frames
    blurred: Frames | None = None

    def __len__(self) -> int:
        return len(self.sharp)

    def check_sizes(self) -> None:
        """A crop of one size from two frames that differ in size shows two places, or a border that no camera saw: DataError."""
        if self.blurred is not None and self.blurred.size != self.sharp.size:
            sizes = " and ".join("{} x {}".format(*frames.size) for frames in (self.blurred, self.sharp))
            raise DataError(f"{self.name}: its blurred and sharp frames differ in size ({sizes} pixels); a pair needs one size")


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
    if split and split.lower() not in SPLITS:
        raise DataError(f"no split is called {split!r}; there are: train, val, test, and none ('') for all that is there")
    split = SPLITS.get(split.lower(), "")
    problems: list[str] = []
    for name in LAYOUTS[:-1] if layout == "auto" else (layout,):
        if name in ("videos", "frames") and (problems or _side_by_side(root, split, blur) or layout == "auto" and _blurred(root, split)):
            break                                              # blurred frames are no sharp video
        if name == "photos":
            break
        finder = {"gopro": partial(_named, "", "sharp"), "reds": _reds, "bsd": partial(_named, "Blur/RGB", "Sharp/RGB"),
                  "dvd": partial(_named, "input", "GT"), "hide": _hide, "pairs": _pairs, "videos": _videos,
                  "frames": _frames if layout == "frames" else _films}[name]
        sequences = [s for s in finder(root, split, blur, problems) if len(s) > 0]
        if sequences:
            return Found(name, sorted(sequences, key=lambda s: s.name), problems)
    if problems:
        what = "no pair of blurred and sharp frames" if _side_by_side(root, split, blur) or layout == "pairs" else "nothing"
        raise DataError(f"{what} below {root} can be used; the first: {problems[0]}")
    if layout in ("auto", "videos", "frames", "photos") and (folder := _side_by_side(root, split, blur)):
        raise DataError(f"{folder} holds blurred and sharp frames side by side, which cannot be used as "
                        f"{'clips' if layout == 'auto' else layout}: ask for the layout 'pairs', or for the folder of the sharp ones alone")
    if layout == "auto" and (folder := _blurred(root, split)):
        raise DataError(f"{folder} holds blurred pictures, as its name says, and no sharp ones of the same names are found; ask for the "
                        "folder of the sharp ones alone, or for a layout, such as 'photos', if they are sharp")
    if layout in ("auto", "photos"):
        paths = [p for p in _walk_files(root) if p.suffix.lower() in PICTURES and _in_split(root, p.parent, split)]
        if paths:
            return Found("photos", [Sequence(str(p.relative_to(root)), PictureFrames(str(p), [p])) for p in paths], [])
    kind = "clips or photographs" if layout == "auto" else f"clips in the layout {layout!r}"
    more = f" of the split {split!r}" * bool(split) + "; the layout 'auto' looks for all kinds" * (layout != "auto")
    raise DataError(f"the folder {root} holds no {kind}{more}")


def _side_by_side(root: Path, split: str, blur: str) -> Path | None:
    """The first folder of a split below root that holds one of blurred and one of sharp frames, by their names."""
    return next((folder for folder in _folders(root) if _in_split(root, folder, split) and _sides(folder, blur)), None)


def _sides(folder: Path, blur: str) -> tuple[Path, Path] | None:
    """The folders of blurred and of sharp frames inside this one, by their names."""
    inner = {p.name.lower(): p for p in folder.iterdir() if p.is_dir()}
    names = ((b + crops, s + crops) for crops in CROPS for b, s in ((blur, "sharp"), *PAIR_NAMES))
    return next(((inner[b], inner[s]) for b, s in names if b in inner and s in inner), None)


def _blurred(root: Path, split: str) -> Path | None:
    """The first folder of a split below root that is named after its blurred pictures, beside one that is not."""
    for folder in _folders(root):
        holding = [p for p in sorted(folder.iterdir()) if p.is_dir() and _counts(p.name) and _in_split(root, p, split) and _pictures(p)]
        named = [p for p in holding if BLURRED.search(p.name)]
        if len(holding) > len(named) > 0:
            return named[0]
    return None


def _folders(root: Path) -> Iterator[Path]:
    for name, inner, _ in os.walk(root, followlinks=True):
        folder, here = Path(name), Path(name).resolve()        # a link to what it lies in would be followed forty times
        inner[:] = sorted(each for each in inner if _counts(each) and not here.is_relative_to((folder / each).resolve()))
        yield folder


def _counts(name: str) -> bool:
    """Whether a file or folder of this name is somebody's: `._a.png` is none, it holds what macOS knows of a.png."""
    return not name.startswith(".") and name not in NO_DATA


def _walk_files(root: Path) -> list[Path]:
    """Links that lead nowhere too: they are named when they are read."""
    return sorted(path for folder in _folders(root) for path in folder.iterdir()
                  if _counts(path.name) and (path.is_file() or not path.exists()))


def _in_split(root: Path, folder: Path, split: str) -> bool:
    """Whether a folder below root belongs to the split; a path that names none belongs to all."""
    named = _splits(root, folder)
    return not split or not named or named[-1] == split


def _splits(root: Path, folder: Path) -> list[str]:
    """The splits that the parts of a folder's path name."""
    return [SPLITS[part.lower()] for part in (root.name, *folder.relative_to(root).parts) if part.lower() in SPLITS]


def _pictures(folder: Path) -> dict[str, Path]:
    """Frames of a folder by their stem, in the order of their numbers."""
    paths = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and _counts(p.name)] if folder.is_dir() else []
    return {p.stem: p for p in sorted(paths, key=lambda p: natural(p.stem))}


def _match(root: Path, name: str, blurred: Path, sharp: Path, problems: list[str], flat: bool = False) -> list[Sequence]:
    """Pair the pictures of two folders by name. A frame without a partner ends a run: neighbours in a run are neighbours in time.

    `flat`: nobody said that they are a clip's; photographs (HIDE), and parts cut out of pictures, then stand alone.
    """
    a, b = _pictures(blurred), _pictures(sharp)
    if not a.keys() & b.keys():                      # named after their side
        a, b = ({SIDE.sub("", stem): path for stem, path in side.items()} for side in (a, b))
        if len(a) == len(b) == 1:                    # a folder for each pair
            a, b = ({"": path} for side in (a, b) for path in side.values())
    for one, other, where in ((a, b, sharp), (b, a, blurred)):
        _say_missing([one[k].name for k in one if k not in other], where, problems)
    runs: list[tuple[str, list[str]]] = []
    for label, keys in in_sequences({**a, **b}):
        parts = [list(run) for both, run in groupby(keys, lambda key: key in a and key in b) if both]
        runs += [(_joined(name, label) + (f"#{i}" if len(parts) > 1 else ""), run) for i, run in enumerate(parts)]
    if flat and not _follow([[b[key] for key in run] for _, run in runs]):
        runs = [(_joined(name, key), [key]) for _, run in runs for key in run]
    return [Sequence(full, PictureFrames(str(sharp), [b[k] for k in run]), PictureFrames(str(blurred), [a[k] for k in run]))
            for full, run in runs]


def _follow(runs: list[list[Path]]) -> bool:
    """Whether pictures that follow by their names look as if they did, at most of a few places; few pictures prove nothing."""
    try:
        found = _likeness(runs, PLACES) if sum(map(len, runs)) >= SHORTEST else []
    except DataError:                                # it is named when it is read
        return True
    return sum(found) >= RELATED * len(found)


def _likeness(runs: list[list[Path]], places: int) -> list[float]:
    """How alike neighbours in runs of pictures are, at so many places."""
    pictures = list(pool().map(read_picture, probed(runs, places)))
    return list(map(alike, pictures[::2], pictures[1::2]))


def _say_missing(names: list[str], where: Path, problems: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        problems.append(f"{where}: no partner of {', '.join(names[:3])}{more}")


def _joined(name: str, label: str) -> str:
    return name + ("/" if label and not label.startswith("#") else "") + label


def _relative(root: Path, folder: Path) -> str:
    return folder.relative_to(root).as_posix() if folder != root else root.name


def _named(blurred: str, sharp: str, root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    """Clips whose two folders have these names in every one of their folders (GoPro, BSD, DVD)."""
    for folder in _folders(root):
        a, b = folder / (blurred or blur), folder / sharp
        if a.is_dir() and b.is_dir():
            wanted = _in_split(root, folder, split)
            if sharp == "GT" and split and not _splits(root, folder):        # DVD comes without a split on disk, and has no validation part
                wanted = split == ("test" if folder.name in DVD_TEST else "train")
            if wanted:
                yield from _match(root, _relative(root, folder), a, b, problems)


def _reds(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    for folder in _folders(root):
        found = re.fullmatch(r"(train|val|test)_blur(_comp)?", folder.name)
        if not found or split and found[1] != split:
            continue
        sharp = Path(*(part.replace(folder.name, f"{found[1]}_sharp") for part in folder.relative_to(root).parts))
        for inner in sorted(p for p in folder.iterdir() if p.is_dir()):
            if _pictures(inner):
                yield from _match(root, _relative(root, inner), inner, root / sharp / inner.name, problems)


def _hide(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    """HIDE (Shen et al. 2019): photographs, blurred in `train`, `test/test-close-ups` and `test/test-long-shot`, all sharp ones in `GT`."""
    for folder in _folders(root):
        sharp = _pictures(folder / "GT")
        for part in sorted(p for name in ("train", "test") for p in (folder / name, *(folder / name).glob("test-*")) if sharp):
            blurred = _pictures(part) if _in_split(root, part, split) else {}
            _say_missing([path.name for key, path in blurred.items() if key not in sharp], folder / "GT", problems)
            for key in blurred.keys() & sharp.keys():
                yield Sequence(f"{_relative(root, part)}/{key}", *(PictureFrames(str(p.parent), [p]) for p in (sharp[key], blurred[key])))


def _pairs(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    for folder in _folders(root):
        if _in_split(root, folder, split) and (sides := _sides(folder, blur)):
            yield from _pair_folders(root, _relative(root, folder), *sides, problems)


def _pair_folders(root: Path, name: str, blurred: Path, sharp: Path, problems: list[str]) -> Iterator[Sequence]:
    yield from _match(root, name, blurred, sharp, problems, flat=True)
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
            except UserError as error:
                problems.append(str(error))


def _videos(root: Path, split: str, blur: str, problems: list[str]) -> Iterator[Sequence]:
    for path in _walk_files(root):
        if path.suffix.lower() in VIDEOS and _in_split(root, path.parent, split):
            frames = VideoFrames(str(path), path)
            try:
                len(frames), frames.size
                yield Sequence(path.relative_to(root).as_posix(), frames)
            except UserError as error:
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
            film = len(paths) >= SHORTEST and min(_likeness([paths], PROBES)) > ALIKE
        except DataError:
            film = False
        (films if film else others).append(sequence)
    left_out = sum(map(len, others))
    if left_out > sum(map(len, films)):
        return
    if left_out:
        problems.append(f"{left_out} pictures are no frames of a clip and left out; the first is {others[0].sharp.paths[0]}")
    yield from films
