"""From the command line's inputs to jobs: which clips there are, where each result goes, and which process does which."""
from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from ..media.clip import MediaError
from ..media.container import RAW, raw_picture
from ..media.encoding import CONTAINERS, VIDEO_SUFFIXES, OutputOptions
from ..media.images import IMAGE_SUFFIXES, find_images, is_picture, listed, natural_order, picture_size
from .jobs import Job
from .shares import Team, gather

_WRITABLE = {s for group in CONTAINERS.values() for s in group}


def find_clips(inputs: Sequence[str]) -> list[tuple[str, Path | tuple[Path, ...]]]:
    """(name, video file or pictures) of every clip that the inputs mean.

    A folder is the sequence of its pictures, or all its videos; a pattern (`*`, `?`, `%06d`) likewise. Pictures of one folder that
    are named one by one, as the shell does with `*.png`, are one sequence, in the order of their numbers. Raises MediaError.
    """
    clips: list[tuple[str, Path | Sequence[Path]]] = []
    loose: dict[Path, list[Path]] = {}                         # pictures named one by one, by their folders
    for text in inputs:
        path = _named(text)
        is_folder, is_pattern = path.is_dir(), set(path.name) & set("*?%[") or "*" in text
        if is_folder or is_pattern and not path.exists():
            images = find_images(text)
            moving = {p for p in listed(text) if p.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES}
            videos = natural_order(moving - set(images))       # animations may have a picture's name
            if is_folder and images and videos:
                raise MediaError(f"{path} holds both pictures and videos; name a pattern, such as {path / ('*' + videos[0].suffix)}")
            if not images and not videos:
                raise MediaError(f"{path} holds no video and no pictures" if is_folder else f"nothing fits the pattern {text}")
            clips += [(str(path) if is_folder else text, tuple(images))] if images else [(str(v), v) for v in videos]
        elif not path.exists():
            raise MediaError(f"{path} does not exist")
        elif is_picture(path):
            if path.parent not in loose:
                clips.append((str(path.parent), loose.setdefault(path.parent, [])))
            loose[path.parent].append(path)
        elif path.suffix.lower() in RAW:
            raise raw_picture(path)
        else:
            clips.append((text, path))
    for number, (name, clip) in enumerate(clips):
        if isinstance(clip, list):                             # a shell puts 10 before 2
            pictures = tuple(natural_order(dict.fromkeys(clip)))
            clips[number] = str(pictures[0]) if len(pictures) == 1 else name, pictures
    return clips


def _named(text: str) -> Path:
    """The path of an input or output; neither a variable that a shell has found empty nor a pipe. Raises MediaError."""
    if text in ("", "-"):
        raise MediaError("an input or the output has an empty name" if not text else
                         "- is no file: clips are read more than once and written in parts, so name a file in the place of a pipe")
    return Path(text)


def unrelated(files: Sequence[Path]) -> bool:
    """Whether pictures are photographs rather than a clip: of several sizes, and their names no numbers that run on."""
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", file.stem) for file in files]
    if all(parts) and len({(p[1], p[3]) for p in parts}) == 1 and all(int(b[2]) - int(a[2]) == 1 for a, b in zip(parts, parts[1:])):
        return False
    sizes = set()
    for file in files:
        with contextlib.suppress(MediaError):                  # the reader will say so when it gets there
            sizes.add(picture_size(file))
        if len(sizes) > 1:
            return True
    return False


def plan(inputs: Sequence[str], out: str, output: OutputOptions, rate: Fraction = Fraction(24), each: bool = False) -> list[Job]:
    """The jobs for `inputs` with `-o out`: a file for a single clip, else a folder with one result for each. Raises MediaError.

    `each`: every picture is a clip of its own, as are `unrelated` ones in any case.
    """
    clips = find_clips(inputs)
    target = _named(out)
    if target.name in ("", ".."):                              # . and the like: the folder's own name is needed
        target = target.resolve()
    suffix = target.suffix.lower()
    is_file = suffix and not out.endswith(("/", "\\")) and not target.is_dir()
    if is_file:
        if suffix not in _WRITABLE and suffix != ".png":
            raise MediaError(f"{out}: files ending in {suffix} cannot be written; use .mp4, .mov, .mkv or .png; "
                             f"for a folder of that name, write {out}/")
        if len(clips) > 1:
            raise MediaError(f"{len(clips)} clips cannot go into the one file {out}; give a folder")
        name, source = clips[0]
        if each and isinstance(source, tuple) and len(source) > 1:
            raise MediaError(f"--each makes a picture of each of {len(source)}, which cannot go into the one file {out}; give a folder")
        if suffix == ".png" and not (isinstance(source, tuple) and len(source) == 1):
            raise MediaError(f"{out} holds one picture, but {name} is a clip; give a folder, or a name ending in .mp4, .mov or .mkv")
        if output.codec == "png" and suffix != ".png":
            raise MediaError(f"--codec png writes a folder of pictures, not {out}")
        return [Job(source, target, suffix == ".png", name, rate)]
    jobs = []
    for name, source in clips:
        pictures = isinstance(source, tuple)
        as_images = output.codec == "png" or pictures and output.codec == "auto"
        if as_images and pictures and len(source) > 1 and (each or unrelated(source)):
            if target.resolve() in {file.resolve().parent for file in source}:
                raise MediaError(f"{target} is the folder of the input pictures; choose another output")
            stems = Counter(file.stem for file in source)
            folder = target if len(clips) == 1 else target / source[0].resolve().parent.name
            jobs += [Job((file,), folder / f"{file.stem if stems[file.stem] == 1 else file.name}.png", True, str(file), rate)
                     for file in source]
            continue
        stem = source.stem if not pictures else source[0].stem if len(source) == 1 else source[0].parent.resolve().name
        where = target / (stem + _suffix(source, output)) if not as_images else target if len(clips) == 1 else target / stem
        jobs.append(Job(source, where, as_images, name, rate))
    seen: dict[Path, str] = {}
    for job in jobs:
        if job.target in seen:
            raise MediaError(f"{seen[job.target]} and {job.label} would both be written to {job.target}; do them one after the other")
        seen[job.target] = job.label
    return jobs


def _suffix(source: Path | tuple[Path, ...], output: OutputOptions) -> str:
    own = source.suffix.lower() if isinstance(source, Path) else ".mp4"
    usual = {"prores": ".mov", "ffv1": ".mkv"}.get(output.codec, ".mkv" if own in (".webm", ".avi", ".nut", ".ts") else ".mp4")
    return own if own in CONTAINERS.get(output.codec, _WRITABLE) else usual


def share_out(jobs: list[Job]) -> tuple[list[Job], Team | None]:
    """This process's jobs, and the team that does each of them together: where there are fewer of them than processes, which see each
    other's files and locks. Raises UserError."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    team = gather(rank, size) if 0 < len(jobs) < size else None
    if team and team.sees(jobs[0].target.parent):
        return jobs, team
    return share(jobs, rank, size), None


def share(jobs: Sequence[Job], rank: int, world_size: int) -> list[Job]:
    """The jobs of process `rank` of `world_size`: the largest inputs first, each to the process with the least so far.

    Every process computes the same division, so each job is done exactly once without a word between them.
    """
    sizes = [sum(path.stat().st_size for path in job.files) for job in jobs]
    load, mine = [0] * world_size, []
    for i in sorted(range(len(jobs)), key=lambda i: -sizes[i]):
        process = load.index(min(load))
        load[process] += sizes[i] + 1
        if process == rank:
            mine.append(i)
    return [jobs[i] for i in sorted(mine)]
