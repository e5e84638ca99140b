"""One clip shared out over processes, on one machine or several: those that `accelerate launch` or torchrun start as one run.

A share is a run of frames, from the start of one encoded segment to that of another, and holds its own unfinished work. Whoever is free
takes one that nobody works on (a lock tells), so a process that dies costs no more than its place; what it has finished goes on from there.
"""
from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from ..errors import UserError
from ..media.files import write_whole
from ..media.sinks import SEGMENT

T = TypeVar("T")
GATHERING = 600                          # seconds that the processes of a run have to find each other


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool | None]:
    """Whether the lock `path` is this process's while the block runs; None where the system or a network folder has no locks.

    A lock goes away with its process, however that ends. Raises OSError where the file is not there.
    """
    with path.open("r+") as file:
        try:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine: bool | None = True
        except ImportError:
            mine = None
        except OSError as error:
            mine = False if error.errno in (errno.EAGAIN, errno.EACCES) else None
        yield mine


def is_free(lock: Path) -> bool:
    """Whether no process holds it."""
    with held(lock) as mine:
        return mine is not False


@dataclass(frozen=True)
class Share:
    """The frames [start, stop) of a clip, to its end where `stop` is None. Its unfinished work lies in `folder`."""

    start: int
    stop: int | None
    job_folder: Path

    def path(self, ending: str = "") -> Path:
        """`.lock` is held by the process that works on it, `.json` holds what came of it."""
        return self.job_folder / f"from-{self.start:09d}{ending}"

    @property
    def folder(self) -> Path:
        """The job's own for the first share, a folder inside of it for another."""
        return self.path() if self.start else self.job_folder

    @property
    def result(self) -> dict | None:
        """What came of it, None as long as it is not finished."""
        return json.loads(self.path(".json").read_text()) if self.path(".json").exists() else None

    def finish(self, result: dict) -> None:
        """Keep what came of it: from now on it is finished."""
        write_whole(self.path(".json"), json.dumps(result), durable=True)


def divide(folder: Path, num_frames: int, count: int, begun: int = 0) -> list[int]:
    """Where the shares of a job start: as the run that began it has kept in `folder`, else at most `count` of about one length, all but
    the first behind the `begun` frames that one process has finished."""
    kept = folder / "shares.json"
    starts = json.loads(kept.read_text()) if kept.exists() else [0]
    if len(starts) == 1 and count > 1:
        first = begun // SEGMENT + 1 if begun else 0
        segments = max(1, -(-num_frames // SEGMENT) - first)
        count = min(count, segments)
        starts = sorted({0, *(SEGMENT * (first + i * segments // count) for i in range(count))})
        write_whole(kept, json.dumps(starts), durable=True)
    for share in shares(folder, starts):
        share.folder.mkdir(exist_ok=True)
        share.path(".lock").touch()
    return starts


def shares(folder: Path, starts: Sequence[int]) -> list[Share]:
    """The shares that start there."""
    return [Share(start, stop, folder) for start, stop in zip(starts, [*starts[1:], None])]


def attempt(share: Share, work: Callable[[Share], int]) -> int:
    """What `work` gives for a share that is neither finished nor worked on by another process, else 0."""
    with held(share.path(".lock")) as mine:
        return work(share) if mine is not False and share.result is None else 0


class Team:
    """The processes of one run. `number` is this one's; process 0 decides, and joins what all have made."""

    def __init__(self, store, number: int, size: int):
        self.store, self.number, self.size, self._told = store, number, size, ""

    def agree(self, what: str, decide: Callable[[], T]) -> T:
        """What `decide()` gives in process 0, as JSON, in all of them; `what` names the question. Where it raises there, the others raise
        UserError."""
        if self.number:
            answer = self._ask(what)
            self.store.add(f"{what} read", 1)
            if not answer:
                raise UserError("stopped, because the first process did; it says why")
            return json.loads(answer)
        self._told = what
        try:
            decided = decide()
        except BaseException:
            self.store.set(what, "")
            raise
        self.store.set(what, json.dumps(decided))
        return decided

    def need_equal(self, what: str, value: str) -> None:
        """Raise UserError where this process's `value` is not that of process 0."""
        if (theirs := self.agree(what, lambda: value)) != value:
            raise UserError(f"the processes of a run must compute alike: {what} {value} here, {theirs} in the first")

    def _ask(self, key: str, seconds: float = float("inf")) -> str:
        """The value of `key`, waited for in a way that a signal can end."""
        until = time.monotonic() + seconds
        try:
            while not self.store.check([key]):
                if time.monotonic() > until:
                    raise UserError(f"the processes of this run did not find each other in {seconds:.0f} s")
                time.sleep(0.05)
            return self.store.get(key).decode()
        except RuntimeError:                                   # process 0 may be the one that holds it
            raise UserError("stopped, because the first process of this run has gone") from None

    def leave(self) -> None:
        """Process 0 may hold what all ask: it goes when all have read the last answer, or seem to have died."""
        until = time.monotonic() + 10
        while self.number == 0 and self._told and time.monotonic() < until:
            if self.store.add(f"{self._told} read", 0) >= self.size - 1:
                return
            time.sleep(0.05)

    def sees(self, folder: Path) -> bool:
        """Whether all processes see the files in `folder` of process 0, and its locks."""
        if self.number:
            path = Path(self.agree("locked", str))
            with held(path) if path.exists() else contextlib.nullcontext(True) as mine:
                self.store.set(f"sees {self.number}", "yes" if mine is False else "no")
            return self.agree("seen", bool)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.resolve() / f".vdd-{os.getpid()}.lock"
        path.touch()
        with held(path) as mine:
            self.agree("locked", lambda: str(path))                      # it is held now
            answers = [self._ask(f"sees {i}", GATHERING) for i in range(1, self.size)]
        path.unlink(missing_ok=True)
        return self.agree("seen", lambda: mine is True and "no" not in answers)


def gather(rank: int, size: int) -> Team | None:
    """The team of `size` processes that this one, number `rank`, belongs to; None where it is alone, or nothing says where to meet the
    others. Raises UserError."""
    from torch import distributed
    if size == 1 or not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ) or not distributed.is_available():
        return None
    from torch.distributed.rendezvous import rendezvous
    try:
        store, rank, size = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=GATHERING)))
    except (RuntimeError, OSError) as error:
        raise UserError(f"the processes of this run did not find each other ({error})") from None
    return Team(distributed.PrefixStore("vdd deblur", store), rank, size)
