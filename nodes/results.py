"""output/deblurred: the names of results, and what earlier runs of a clip leave there.

A result is called `clip-ccccssssssss.mp4`: four digits for the clip, eight for the clip with its settings. Unfinished work is in the
folder of the same name with `.part` behind it. Other files in the folder are not looked at.
"""
from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import time
from pathlib import Path

import folder_paths

from ..vdd_model.app import jobs
from ..vdd_model.media.files import in_bytes
from ..vdd_model.media.video import part_folder

FOLDER = "deblurred"          # below the host's output folder
KEPT_RESULTS = 3              # results of one clip, the newest ones
KEPT_PARTS = 3                # unfinished jobs of other clips, the newest ones
KEPT_SECONDS = 24 * 3600      # that these are kept for
LONGEST_NAME, LONGEST_PATH = 255, 259          # bytes, on all systems; characters, on Windows
BELOW = len("/spool-000000.raw")               # what is added to the folder `.part`
_NAME = re.compile(r"(?P<clip>.*-[0-9a-f]{4})([0-9a-f]{4}){1,2}\.(mp4|mov|mkv)(\.part)?", re.DOTALL)      # earlier versions had four fewer


def target_of(name: str, clip: str, settings: str, suffix: str) -> Path:
    """The output file of a clip called `name` with these settings: always the same, so that a run can be gone on with."""
    folder = Path(folder_paths.get_output_directory()) / FOLDER
    digits = hashlib.sha256(clip.encode()).hexdigest()[:4] + hashlib.sha256(f"{clip} {settings}".encode()).hexdigest()[:8]
    rest = f"-{digits}{suffix}"
    room = LONGEST_NAME - len(rest + ".part")
    stem = Path(name).stem.encode()[:room].decode(errors="ignore")
    if os.name == "nt":
        stem = stem[:max(8, LONGEST_PATH - len(f"{folder}/{rest}.part") - BELOW)]
    return folder / (stem + rest)


def clear_unfinished(target: Path) -> list[str]:
    """Delete what earlier jobs left: those of this clip with other settings, and of other clips the old and the many. Sentences."""
    clip, others, notes = _NAME.fullmatch(target.name)["clip"], [], []
    for path in target.parent.glob("*.part") if target.parent.is_dir() else ():
        found = _NAME.fullmatch(path.name)
        if not found or path == part_folder(target):
            continue
        if found["clip"] == clip:
            size = size_of(path)
            if jobs.discard(path):
                notes.append(f"deleted {size} that a cancelled run of this clip with other settings had left")
        else:
            others.append((_last_change(path), path))
    for age, (changed, path) in enumerate(sorted(others, reverse=True)):
        if age >= KEPT_PARTS or time.time() - changed > KEPT_SECONDS:
            jobs.discard(path)
    return notes


def clear_results(target: Path, in_use: set[str]) -> None:
    """Delete all but the newest results of the clip of `target`, itself one of them. What Save Video cannot copy, and what this
    prompt has handed on, stays."""
    clip = _NAME.fullmatch(target.name)["clip"]
    found = [(path.stat().st_mtime_ns, path) for path in target.parent.glob(f"{glob.escape(clip)}????????.mp4") if path != target]
    for _, path in sorted(found, reverse=True)[KEPT_RESULTS - 1:]:
        if str(path) not in in_use:
            with contextlib.suppress(OSError):
                path.unlink()


def size_of(folder: Path) -> str:
    """What the files in a folder take, in words."""
    return in_bytes(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def _last_change(folder: Path) -> float:
    """When a file in it was written to, 0 where one is being deleted at this moment."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        return 0.0
