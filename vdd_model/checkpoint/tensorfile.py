"""Safetensors files: mapped reading that says what is wrong, and writing with flat memory."""
from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..media.files import in_bytes, written_aside

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
         torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
         torch.bool: "BOOL"}
PICKLE = "it is a PyTorch pickle; `vdd convert` builds a checkpoint from official files"
INSTEAD = {b"PK\x03\x04": PICKLE, b"\x80": PICKLE, b"<": "it is a web page, the download went wrong",
           b"version https://git-lfs": "it is a Git LFS pointer, the weights themselves were not fetched (`git lfs pull`)"}


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
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, a safetensors file was expected")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return TensorFile(path, {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}, file.metadata() or {})
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, TypeError, AttributeError) as error:            # the latter: types that this torch does not have
        raise CheckpointError(f"{path} {_what_is_wrong(path, error)}") from None


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Of a file that safetensors refuses: by its first bytes what it is instead, with what to do about it, or how it is damaged."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "is empty, a safetensors file was expected"
    if len(head) > 8 and head[8:9] != b"{":
        what = (what for first, what in INSTEAD.items() if head.lstrip().startswith(first))
        return f"is not a safetensors file: {next(what, 'it does not begin with a safetensors header')}"
    return f"is truncated or damaged ({path.stat().st_size} bytes; {str(error).removeprefix('Error while deserializing header: ')})"


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
                  dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file one tensor at a time: aside, flushed to the disk, then renamed, so no half file ever has the final name.

    `dtype` converts floating tensors on the way; at most one converted tensor is in memory. (The library's own writer takes all at once,
    gives files that only their owner can read, and the same metadata in another order each time.) Raises CheckpointError when the disk is
    full or the folder cannot be written; an older file under the same name is then untouched.
    """
    path = Path(path)
    types = {name: dtype if dtype is not None and t.is_floating_point() else t.dtype for name, t in tensors.items()}
    order = sorted(types, key=lambda name: (-types[name].itemsize, name))        # each aligned to its own size, as mapped reading needs
    ends = [*itertools.accumulate((tensors[name].numel() * types[name].itemsize for name in order), initial=0)]
    if unknown := next((name for name in order if types[name] not in NAMES), None):
        raise CheckpointError(f"{path}: tensor {unknown!r} has the type {types[unknown]}, which safetensors cannot hold")
    table = {name: {"dtype": NAMES[types[name]], "shape": list(tensors[name].shape), "data_offsets": place}
             for name, *place in zip(order, ends, ends[1:])}
    text = json.dumps({"__metadata__": dict(metadata), **table}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path, durable=True) as aside, aside.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                flat = tensors[name].detach().to("cpu", types[name]).contiguous().reshape(-1)
                if flat.numel():
                    file.write(memoryview(flat.view(torch.uint8).numpy()))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed, free = in_bytes(len(text) + ends[-1]), in_bytes(shutil.disk_usage(path.parent).free)
            raise CheckpointError(f"no room on the disk for {path}: it needs {needed}, {free} are free") from None
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
