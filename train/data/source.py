"""What the training loop asks of its data: batches of clips that are a pure function of (seed, step)."""
from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from ..config import StageConfig, TrainConfig, blur_config
from .clips import Clips, PhotoClips, RecordedClips, open_clips
from .pool import PoolClips, is_pool

ClipSource = PhotoClips | RecordedClips | PoolClips
SCALE_CLIPS = 64          # clips that the latents' scale is measured on


def open_source(config: TrainConfig, stage: StageConfig) -> ClipSource:
    """The run's data for one stage. Raises DataError."""
    data, blur = config.data, blur_config(config, stage)
    if stage.kind in ("autoencoder", "denoiser"):                  # they never look at the blurred frames
        blur = dataclasses.replace(blur, max_subsamples=1, noise=0.0, codec=0.0)
    folder = Path(config.root) / data.folder
    if is_pool(folder):
        return PoolClips(folder)
    return open_clips(folder, data.layout, data.split, blur_folder=data.blur_folder, blur=blur)


class Batches:
    """A stage's endless row of samples, of which every process takes its share of every batch, in `accumulation` parts. Parts are counted
    over all steps; what they hold depends neither on restarts nor on the number of processes. The next ones are made in threads.

    samples: 0, or how many different ones there are. process, processes: whose share it is, of how many.
    """

    def __init__(self, source: ClipSource, stage: StageConfig, seed: int, device: torch.device, *, samples: int = 0, workers: int = 0,
                 process: int = 0, processes: int = 1):
        self.source, self.stage, self.seed, self.device, self.samples, self.workers = source, stage, seed, device, samples, workers
        self.process, self.processes = process, processes
        self.threads = ThreadPoolExecutor(max_workers=workers) if workers else None
        self.waiting: dict[int, Future] = {}
        # parts are made on a stream of their own: they would wait for the training's, and their small kernels behind its large ones
        self.stream = torch.cuda.Stream(device, priority=-1) if workers and device.type == "cuda" else None

    def positions(self, part: int) -> list[int]:
        """Places in the row that this process takes for a part; all processes together take the whole batch."""
        share = self.stage.batch // (self.stage.accumulation * self.processes)
        first = (part * self.processes + self.process) * share
        return list(range(first, first + share))

    def indices(self, part: int) -> list[int]:
        """Which samples stand there."""
        return [p % self.samples if self.samples else p for p in self.positions(part)]

    def take(self, part: int) -> Clips:
        """The clips of a part. Raises DataError."""
        if self.threads is None:
            return self._make(part)[0]
        for later in range(part, part + self.workers + 1):
            if later not in self.waiting:
                self.waiting[later] = self.threads.submit(self._make, later)
        clips, done = self.waiting.pop(part).result()
        if done is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(done)
            for tensor in filter(torch.is_tensor, clips):
                tensor.record_stream(current)            # its memory is not used anew before this stream is through with it
        return clips

    def _make(self, part: int) -> tuple[Clips, torch.cuda.Event | None]:
        """A part, and where it is made on a stream of its own what to wait for."""
        with torch.cuda.stream(self.stream):             # of None: as if it were not there
            clips = self.source.batch(self.seed, self.indices(part), num_frames=self.stage.frames, size=self.stage.crop, device=self.device)
            return clips, self.stream and self.stream.record_event()

    def stills(self, seed: int) -> list[Clips]:
        """Clips of one frame of another stream, for what is measured once; the same in every process."""
        return [self.source.batch(seed, range(first, first + 8), num_frames=1, size=self.stage.crop, device=self.device)
                for first in range(0, SCALE_CLIPS, 8)]

    def close(self) -> None:
        """Drop what nobody will ask for."""
        if self.threads is not None:
            self.threads.shutdown(wait=True, cancel_futures=True)
            self.waiting.clear()
