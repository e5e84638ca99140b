"""Safetensors files: header checks that say what is wrong, mapped reading, and writing with flat memory."""
from __future__ import annotations

import errno
import json
import math
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..media.files import written_aside

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
_DTYPES |= {name: getattr(torch, attr) for name, attr in (("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")) if hasattr(torch, attr)}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000


class CheckpointError(UserError):
    """A model file that cannot be used; the message is one sentence: which file, what was expected, what was found."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type, shape and byte range after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file declares: its tensors and its text metadata."""

    path: Path
    size: int
    entries: dict[str, Entry]
    metadata: dict[str, str]


def _what_is_it(path: Path, head: bytes) -> str:
    """Name a file that is not safetensors by its first bytes, with what to do about it."""
    if head.startswith(b"PK\x03\x04") or head[:1] == b"\x80":
        return "it is a PyTorch pickle; `vdd convert` builds a checkpoint from official files"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, the weights themselves were not fetched (`git lfs pull`)"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, the download went wrong"
    return "it does not begin with a safetensors header"


def read_header(path: str | os.PathLike) -> Header:
    """Read and check the header of a safetensors file; no tensor data is touched.

    Raises CheckpointError when the file is missing, empty, truncated, or not a safetensors file.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, a safetensors file was expected")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
            if size < 8:
                raise CheckpointError(f"{path} is {'empty' if size == 0 else 'truncated'} ({size} bytes), a safetensors file was expected")
            length = struct.unpack("<Q", head[:8])[0]
            if length > _MAX_HEADER or head[8:9] != b"{":
                raise CheckpointError(f"{path} is not a safetensors file: {_what_is_it(path, head)}")
            if 8 + length > size:
                raise CheckpointError(f"{path} is truncated: its header alone needs {8 + length} bytes, the file has {size}")
            file.seek(8)
            text = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    try:
        table = json.loads(text)
        metadata = table.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not texts under names")
        entries = {name: _entry(value) for name, value in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error})") from None
    room = size - 8 - length
    end = max((e.end for e in entries.values()), default=0)
    if end > room:
        raise CheckpointError(f"{path} is truncated: its tensors need {8 + length + end} bytes, the file has {size}")
    return Header(path, size, entries, metadata)


def _entry(value: dict) -> Entry:
    if value["dtype"] not in _DTYPES:
        raise ValueError(f"unknown tensor type {value['dtype']!r}")
    start, end = value["data_offsets"]
    entry = Entry(_DTYPES[value["dtype"]], tuple(int(n) for n in value["shape"]), int(start), int(end))
    if start < 0 or end - start != entry.numel * entry.dtype.itemsize:
        raise ValueError("a tensor's byte range does not fit its shape")
    return entry


def read_tensors(path: str | os.PathLike, prefix: str = "") -> dict[str, Tensor]:
    """All tensors whose name starts with `prefix` (which is cut off), mapped from the file: memory is used on first touch only.

    The mapping is private: writing into a tensor never changes the file. Raises CheckpointError as `read_header` does.
    """
    from safetensors import SafetensorError, safe_open

    header = read_header(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name[len(prefix):]: file.get_tensor(name) for name in header.entries if name.startswith(prefix)}
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from None


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
                  dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file one tensor at a time: aside, flushed to the disk, then renamed, so no half file ever has the final name.

    `dtype` converts floating tensors on the way; at most one converted tensor is in memory. Raises CheckpointError when the disk is
    full or the folder cannot be written; an older file under the same name is then untouched.
    """
    path = Path(path)
    kept = {name: (dtype if dtype is not None and t.is_floating_point() else t.dtype) for name, t in tensors.items()}
    # Wide types first keeps every tensor aligned to its own size, which mapped reading needs.
    order = sorted(tensors, key=lambda name: (-kept[name].itemsize, name))
    table: dict[str, object] = {"__metadata__": {str(k): str(v) for k, v in metadata.items()}}
    offset = 0
    for name in order:
        if kept[name] not in _NAMES:
            raise CheckpointError(f"{path}: tensor {name!r} has the type {kept[name]}, which safetensors cannot hold")
        end = offset + tensors[name].numel() * kept[name].itemsize
        table[name] = {"dtype": _NAMES[kept[name]], "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path, durable=True) as aside, aside.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                flat = tensors[name].detach().to("cpu", kept[name]).contiguous().reshape(-1)
                if flat.numel():
                    file.write(memoryview(flat.view(torch.uint8).numpy()))
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            needed = megabytes(len(text) + offset)
            raise CheckpointError(f"no room on the disk for {path}: it needs {needed}, {megabytes(free)} are free") from None
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable where the system allows it (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError:
            pass                          # some network folders refuse; the file itself is already on the disk
        finally:
            os.close(handle)


def megabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
