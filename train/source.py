"""What the training loop asks of its data: batches of clips that are a pure function of (seed, index)."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vdd_model.config import ConfigError

from .config import StageConfig, TrainConfig, blur_config


class Clips(NamedTuple):
    """A batch. Frames (B, 3, F, size, size) in [0, 1] on the asked device; names say which files each sample came from."""

    blurred: Tensor
    sharp: Tensor
    names: list[str]


class ClipSource(Protocol):
    """Sample `index` is the same on every machine, in every process and after every restart."""

    def batch(self, seed: int, indices: Sequence[int], *, num_frames: int, size: int, device: torch.device | str) -> Clips: ...


def photo_paths(folder: Path) -> list[Path]:
    """Picture files of a folder, sorted. Raises ConfigError when there are none."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".webp", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))
    if not paths:
        raise ConfigError(f"the folder {folder} holds no photographs")
    return paths


def read_photo(path: Path) -> Tensor:
    """(3, H, W) uint8 RGB."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def open_source(config: TrainConfig, stage: StageConfig) -> ClipSource:
    """The run's data for one stage. Raises DataError."""
    from .data import open_clips

    data, blur = config.data, blur_config(config, stage)
    if stage.kind in ("autoencoder", "denoiser"):                  # they never look at the blurred frames
        blur = dataclasses.replace(blur, max_subsamples=1, noise=0.0, codec=0.0)
    return open_clips(Path(config.root) / data.folder, data.layout, data.split, blur_folder=data.blur_folder, blur=blur)
