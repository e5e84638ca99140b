"""Files that are there whole or not at all."""
from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_aside(path: str | os.PathLike, *, durable: bool = False, ending: str = ".part") -> Iterator[Path]:
    """A place beside `path` to write to, which takes its name when the block ends well and is deleted when it does not.

    `durable`: it is on the disk before it has the name, and then the name is. `ending`: for writers that go by it.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}{ending}")
    try:
        yield aside
        if durable:
            with aside.open("r+b") as file:
                sync(file)
        os.replace(aside, path)
        if durable and os.name == "posix":                     # the new name as well; Windows opens no folder
            with contextlib.suppress(OSError):                 # some network folders refuse; the file itself is on the disk
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def in_bytes(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def sync(file) -> None:
    """Bring an open file to the disk, as far as the file system can: some network folders cannot."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise


def write_whole(path: str | os.PathLike, data: bytes | str, *, durable: bool = False) -> None:
    """Write a file by `written_aside`."""
    with written_aside(path, durable=durable) as aside:
        aside.write_bytes(data if isinstance(data, bytes) else data.encode())
