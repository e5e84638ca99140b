"""Safetensors files: mapped reading that says what is wrong, and writing with flat memory."""
from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..media.files import in_bytes, written_aside

_NAMES = {getattr(torch, name): theirs for name, theirs in (
    ("float64", "F64"), ("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16"), ("float8_e4m3fn", "F8_E4M3"),
    ("float8_e5m2", "F8_E5M2"), ("int64", "I64"), ("int32", "I32"), ("int16", "I16"), ("int8", "I8"), ("uint8", "U8"),
    ("bool", "BOOL")) if hasattr(torch, name)}


class CheckpointError(UserError):
    """A model file that cannot be used; the message is one sentence: which file, what was expected, what was found."""


class TensorFile(NamedTuple):
    """A safetensors file: its tensors, mapped (memory is used on first touch only, writing into one never changes the file), and its
    text metadata."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_file(path: str | os.PathLike, prefix: str = "") -> TensorFile:
    """Open a safetensors file; of its tensors those whose names begin with `prefix`. Raises CheckpointError when it is missing, empty,
    truncated, damaged, or another kind of file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, a safetensors file was expected")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return TensorFile(path, {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}, file.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, TypeError, AttributeError) as error:            # the latter: types that this torch does not have
        raise CheckpointError(f"{path} {_what_is_wrong(path, error)}") from None


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Of a file that safetensors refuses: how it was cut off, or by its first bytes what it is instead, with what to do about it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    needed = 8 + int.from_bytes(head[:8], "little")
    if size < 8:
        return f"is {'empty' if size == 0 else 'truncated'} ({size} bytes), a safetensors file was expected"
    if head[8:9] == b"{":
        if needed > size:
            return f"is truncated: its header alone needs {needed} bytes, the file has {size}"
        try:
            with path.open("rb") as file:
                table = json.loads(file.read(needed)[8:])
            needed += max(entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            needed = 0
        return f"is truncated: its tensors need {needed} bytes, the file has {size}" if needed > size else f"has a damaged header ({error})"
    if head.startswith(b"PK\x03\x04") or head[:1] == b"\x80":
        what = "it is a PyTorch pickle; `vdd convert` builds a checkpoint from official files"
    elif head.startswith(b"version https://git-lfs"):
        what = "it is a Git LFS pointer, the weights themselves were not fetched (`git lfs pull`)"
    else:
        what = "it is a web page, the download went wrong" if head.lstrip()[:1] == b"<" else "it does not begin with a safetensors header"
    return f"is not a safetensors file: {what}"


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
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            needed = in_bytes(len(text) + offset)
            raise CheckpointError(f"no room on the disk for {path}: it needs {needed}, {in_bytes(free)} are free") from None
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
