"""Outputs of the frozen encoders for a fixed set of samples (`data.samples`), computed once and kept on disk."""
from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vdd_model.checkpoint.tensorfile import CheckpointError, read_file, write_tensors

from ..config import StageConfig, TrainConfig


class FrozenCache:
    """One small file a sample, in a folder named by everything that the outputs depend on: any change starts an empty one."""

    def __init__(self, folder: Path, key: str):
        self.folder = folder / key
        self.computed = 0

    def get(self, index: int) -> dict[str, Tensor] | None:
        """The outputs for a sample, without a batch axis; None when they are not there or not readable."""
        path = self.folder / f"{index}.safetensors"
        if not path.exists():
            return None
        try:
            return read_file(path).tensors
        except CheckpointError:
            return None

    def outputs(self, indices: Sequence[int], compute) -> dict[str, Tensor]:
        """Stacked outputs of the samples; `compute()` gives the whole batch's when one of them is missing. Tensors on the CPU."""
        found = [self.get(index) for index in indices]
        if any(item is None for item in found):
            self.computed += len(indices)
            batch = {name: value.float().cpu() for name, value in compute().items()}
            found = [{name: value[i] for name, value in batch.items()} for i in range(len(indices))]
            for index, item in zip(indices, found):
                write_tensors(self.folder / f"{index}.safetensors", item, {})
        return {name: torch.stack([item[name] for item in found]) for name in found[0]}


def cache_key(config: TrainConfig, stage: StageConfig, seed: int, model: nn.Module) -> str:
    """A name for what the frozen encoders say of the samples of this data, crop, seed and these weights.

    A stage that trains encoder 1's tower keeps no semantic vectors: those of a stage that does not would stand in for the tower.
    """
    parts = {"data": dataclasses.asdict(config.data), "blur": stage.blur, "crop": stage.crop, "frames": stage.frames, "seed": seed,
             "root": str(Path(config.root).resolve()), "kind": "sharp" if stage.kind == "denoiser" else "blurred",
             "precision": config.precision, "model": model.config.to_json(),
             "tower": any(p.requires_grad for p in model.encoder1.semantic_head.parameters())}
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8)
    for value in model.encoder1.state_dict().values():
        digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
