"""What the training loop asks of its data: batches of clips that are a pure function of (seed, index)."""
from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from ..config import StageConfig, TrainConfig, blur_config
from .clips import Clips, open_clips
from .pool import PoolClips, is_pool


class ClipSource(Protocol):
    """Sample `index` is the same on every machine, in every process and after every restart."""

    unreadable: dict[str, str]           # files that were left out so far, with the reason
    blur_keys: frozenset[str]            # keys of BlurConfig that these clips look at

    def batch(self, seed: int, indices: Sequence[int], *, num_frames: int, size: int, device: torch.device | str) -> Clips:
        """Samples `indices` of stream `seed`, each of `num_frames` frames of `size` x `size` pixels. Raises DataError."""


def open_source(config: TrainConfig, stage: StageConfig) -> ClipSource:
    """The run's data for one stage. Raises DataError."""
    data, blur = config.data, blur_config(config, stage)
    if stage.kind in ("autoencoder", "denoiser"):                  # they never look at the blurred frames
        blur = dataclasses.replace(blur, max_subsamples=1, noise=0.0, codec=0.0)
    folder = Path(config.root) / data.folder
    if is_pool(folder):
        return PoolClips(folder)
    return open_clips(folder, data.layout, data.split, blur_folder=data.blur_folder, blur=blur)


class Ahead:
    """Prepares the next batches in threads while one trains; which samples they hold does not depend on it."""

    def __init__(self, source: ClipSource, workers: int):
        self.source, self.workers = source, workers
        self.pool = ThreadPoolExecutor(max_workers=workers) if workers else None
        self.waiting: dict[tuple[int, ...], Future] = {}
        self.lock, self.stream = threading.Lock(), None

    def batch(self, seed: int, indices: Sequence[int], following: Sequence[Sequence[int]] = (), **shape) -> Clips:
        """The batch `indices`; `following` lists the indices of the batches that will be asked for next."""
        if self.pool is None:
            return self.source.batch(seed, indices, **shape)
        ready = self.waiting.pop(tuple(indices), None) or self.pool.submit(self._prepare, seed, indices, shape)
        for later in following:
            if tuple(later) not in self.waiting:
                self.waiting[tuple(later)] = self.pool.submit(self._prepare, seed, later, shape)
        clips, done = ready.result()
        if done is not None:
            current = torch.cuda.current_stream(clips.blurred.device)
            current.wait_event(done)
            for tensor in filter(torch.is_tensor, clips):
                tensor.record_stream(current)            # its memory is not used anew before this stream is through with it
        return clips

    def _prepare(self, seed: int, indices: Sequence[int], shape: dict) -> tuple[Clips, torch.cuda.Event | None]:
        """The batch, and on CUDA what to wait for: there it is made on a stream of its own, else it would wait for the training's."""
        device = torch.device(shape["device"])
        if device.type != "cuda":
            return self.source.batch(seed, indices, **shape), None
        with self.lock:
            if self.stream is None:
                self.stream = torch.cuda.Stream(device, priority=-1)     # its small kernels would wait behind the training's large ones
        with torch.cuda.stream(self.stream):
            clips = self.source.batch(seed, indices, **shape)
            return clips, self.stream.record_event()

    def close(self) -> None:
        """Drop what nobody will ask for."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.waiting.clear()
