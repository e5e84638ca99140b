"""Where checkpoints are: models/vdd, what extra_model_paths.yaml adds to it, and the model that ships with the pack."""
from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..vdd_model.checkpoint import store as checkpoint
from ..vdd_model.checkpoint.maxim import FILE_NAME
from ..vdd_model.errors import UserError
from ..vdd_model.inference import prior

KEY = "vdd"
BUILT_IN = "vdd-small (built in)"
EXTENSIONS = {".safetensors"}


def register() -> None:
    """Make models/vdd known to the host. Folders that the user's extra_model_paths.yaml gave stay; calling it twice is harmless."""
    folder_paths.add_model_folder_path(KEY, os.path.join(folder_paths.models_dir, KEY))
    paths, extensions = folder_paths.folder_names_and_paths[KEY]
    folder_paths.folder_names_and_paths[KEY] = (paths, extensions | EXTENSIONS if extensions else set(EXTENSIONS))


def names() -> list[str]:
    """The choices of the loader: the built-in model first."""
    return [BUILT_IN, *(name for name in folder_paths.get_filename_list(KEY) if os.path.basename(name) != FILE_NAME)]


def checkpoint_input() -> io.Input:
    """The widget that chooses one."""
    return io.Combo.Input("checkpoint", options=names(),
                          tooltip="A .safetensors file in models/vdd, or the model that comes with the pack.")


def path_of(name: str) -> str:
    """The file of a choice. Raises UserError that says where to put which file."""
    if name == BUILT_IN:
        return str(checkpoint.resolve("small"))
    path = folder_paths.get_full_path(KEY, name)
    if path is None:
        folder = folder_paths.get_folder_paths(KEY)[0]
        raise UserError(f"there is no checkpoint {name!r}: put the file (one .safetensors, as `vdd convert` or training writes it) "
                        f"into {folder}, or choose {BUILT_IN!r}")
    return path


def find_prior() -> Path | None:
    """The pretrained prior's file, in models/vdd or beside the model that comes with the pack; None where there is none."""
    return prior.find_prior(folder_paths.get_folder_paths(KEY))


def mark_of_prior() -> tuple:
    """(path, mtime) of the prior, () where there is none."""
    path = find_prior()
    return (str(path), os.path.getmtime(path)) if path else ()


def mark_of(name: str | None) -> tuple:
    """(path, mtime) of a choice: another file under the same name is another model. None, a choice that a link will make: of all."""
    if name is None:
        return tuple(mark_of(each) for each in names())
    path = path_of(name)
    return path, os.path.getmtime(path)
