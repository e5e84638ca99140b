"""Deblurrer: blurred frames in, sharp frames out, for clips of any length in memory that does not grow with it."""
from __future__ import annotations

import functools
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..checkpoint.store import BUILT_IN
from ..cpu.onednn import channels_last, pack
from ..cpu.strips import in_strips
from ..diffusion.schedule import make_schedule
from ..errors import UserError
from ..networks.fidelity import BlurGuide, with_neighbours
from ..networks.model import DeblurModel, drop_untrained_branch
from ..options import DeblurOptions
from .ensemble import ORIENTATIONS, Orientation, hand_out, mean
from .prior import HOW_TO_GET, NO_FUSION, Prior, find_prior, need_prior, prior_is_wanted
from .window import (
    FEATURE_BYTES,
    Tiling,
    decode_frames,
    encode_frames,
    estimate_window,
    feature_bytes,
    free_memory,
    gives_estimate,
    is_out_of_memory,
    make_tiling,
    need_numbers,
    sample_window,
    to_frames,
    to_pixels,
    window_v_model,
)
from .windows import crossfade

T = TypeVar("T")
PACKED_FROM_DIM = 256                    # a UNet this wide is packed for a CPU: a smaller one gains next to nothing


@dataclass(frozen=True)
class Progress:
    """Where a run stands; given to the `progress` callback between chunks of work."""

    stage: str                           # "encode", "denoise" or "decode"
    frames_done: int                     # absolute: frames that are finished, those before `first_frame` included
    total: int | None                    # frames of the clip, where known


def first_input_frame(first_frame: int, options: DeblurOptions) -> int:
    """The first frame that `stream` looks at in order to give frames from `first_frame` on exactly as an uninterrupted run does.

    A frame is blended from the window that holds it and the one before. That one's frames were encoded together with those
    before it, and the clip's last window can reach back by nearly one stride.
    """
    return _first_window(first_frame, options) * options.stride


def _first_window(first_frame: int, options: DeblurOptions) -> int:
    return max(0, first_frame // options.stride - 3)


class Deblurrer:
    """A loaded model and what is needed to run it on clips.

    checkpoint: "small" (built in), a path, or a DeblurModel (which is moved, not copied). device: None takes CUDA or Apple's GPU
    where there is one. dtype: None takes default_dtype(device) for a file; a DeblurModel keeps its own. prior: the pretrained prior's
    file; None looks for it beside the checkpoint and in the package.
    """

    prior_file: Path | None = None
    _prior: Prior | None = None
    told = False                                         # how to get the prior

    def __init__(self, checkpoint: str | os.PathLike | DeblurModel = "small", *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None, prior: str | os.PathLike | None = None):
        beside = [Path(checkpoint).parent] if isinstance(checkpoint, (str, os.PathLike)) and checkpoint not in BUILT_IN else []
        self.prior_file = find_prior(beside, prior)
        self.device = torch.device(device) if device is not None else default_device()
        if isinstance(checkpoint, (str, os.PathLike)):
            from ..checkpoint.store import load
            self.model = load(checkpoint, self.device, dtype or default_dtype(self.device))
            drop_untrained_branch(self.model)
            if self.device.type == "cuda":
                channels_last(self.model.unet)
            elif self.device.type == "cpu":
                in_strips(self.model)
                if self.model.config.unet.dim >= PACKED_FROM_DIM:
                    pack(self.model.unet)
        else:
            self.model = checkpoint.to(self.device) if dtype is None else checkpoint.to(self.device, dtype)
        if self.device.type == "cuda":
            self.model.unet.schedule = self.model.unet.schedule.to(self.device)      # or every call would wait for the GPU
        self.schedule = make_schedule(self.model.config.diffusion)

    def load_prior(self) -> Prior:
        """The prior in `prior_file`, on the model's device and in its type."""
        return Prior.load(self.prior_file, self.device, self.model.null_text.dtype)

    def prior_for(self, options: DeblurOptions, total: int | None, notice: Callable[[str], None]) -> Prior | None:
        """What `options` ask for of the prior, for a clip of `total` frames. Raises UserError where "maxim" is not there."""
        if not prior_is_wanted(options.prior, self.device, total) or self.model.vae.fidelity is None or not options.fidelity:
            return None
        if self.model.vae.fusion is None:
            if options.prior == "maxim":
                notice(NO_FUSION)
            return None
        if self.prior_file is None and options.prior == "auto":
            if not self.told:
                notice(f"without the pretrained prior, which is not there: {HOW_TO_GET}")
            self.told = True
            return None
        if self._prior is None:
            need_prior(self.prior_file)
            self._prior = self.load_prior()
        return self._prior

    def deblur(self, frames: Tensor, options: DeblurOptions | None = None, *, progress: Callable[[Progress], None] | None = None,
               notice: Callable[[str], None] = warnings.warn, **overrides) -> Tensor:
        """Frames (F, H, W, 3), float, RGB in [0, 1] -> deblurred frames of the same shape, float32 on the CPU.

        `overrides` are fields of DeblurOptions. Raises UserError for frames that cannot be used.
        """
        options = replace(options or DeblurOptions(), **overrides)
        if frames.ndim != 4 or not len(frames):
            raise UserError(f"expected frames (F, H, W, 3), at least one, found a tensor of shape {tuple(frames.shape)}")
        out, done = torch.empty(frames.shape, dtype=torch.float32), 0
        for chunk in self.stream(frames, options, total=len(frames), progress=progress, notice=notice):
            out[done:done + len(chunk)] = chunk
            done += len(chunk)
        return out

    def stream(self, frames: Iterable[Tensor], options: DeblurOptions | None = None, *, first_frame: int = 0, input_start: int = 0,
               total: int | None = None, progress: Callable[[Progress], None] | None = None,
               notice: Callable[[str], None] = warnings.warn) -> Iterator[Tensor]:
        """Deblur frames one window after another; yields chunks (n, H, W, 3), float32 on the CPU, in order and without gaps.

        frames: (H, W, 3), float, RGB in [0, 1], all of one size; read only as far ahead as one window needs.
        first_frame: absolute index of the first frame to give. The result equals that of an uninterrupted run bit for bit.
        input_start: absolute index of the first item of `frames`, not behind first_input_frame(first_frame, options).
        progress is called between chunks of work and may raise to cancel; notice(text) tells of smaller tiles after a lack of memory.
        Raises UserError for frames that cannot be used (NaN, another size), naming the frame.
        """
        options = options or DeblurOptions()
        if input_start > first_input_frame(first_frame, options):
            raise ValueError(f"to start at frame {first_frame}, frames are needed from {first_input_frame(first_frame, options)} on")
        if options.ensemble == 1:
            return _Run(self, options, first_frame, total, progress, notice).stream(frames, input_start)

        def slowest(state: Progress) -> None:
            """Report what all runs have finished."""
            progress(replace(state, frames_done=min(run.done for run in runs)))
        told, once = slowest if progress is not None else None, functools.cache(notice)      # each run finds the same lack of memory
        runs = [_Run(self, options, first_frame, total, told, once, orientation) for orientation in ORIENTATIONS[:options.ensemble]]
        return mean([run.stream(copy, input_start) for run, copy in zip(runs, hand_out(frames, len(runs)))])


class _Run:
    """One pass over a clip. Holds the frames of about one window; everything is keyed by the frame's absolute index."""

    def __init__(self, deblurrer: Deblurrer, options: DeblurOptions, first_frame: int, total: int | None,
                 progress: Callable[[Progress], None] | None, notice: Callable[[str], None], orientation: Orientation = ORIENTATIONS[0]):
        self.model, self.schedule, self.device = deblurrer.model, deblurrer.schedule, deblurrer.device
        self.dtype = self.model.null_text.dtype
        self.options, self.first_frame, self.total = options, first_frame, total
        self.fidelity = options.fidelity if self.model.vae.fidelity is not None else 0.0
        if options.fidelity and not self.fidelity and self.model.config.vae.fidelity is not None:
            notice("the fidelity branch of this checkpoint is not trained: edges and details are the latents' alone")
        self.estimated = options.steps == 1 and options.guidance == 1 and not options.denoise_at_one_step and gives_estimate(self.model)
        self.progress, self.notice = progress, notice
        self.prior = deblurrer.prior_for(options, total, notice)
        self.orientation = orientation                   # of what the model sees; all that is kept of the clip itself is not turned
        self.done = first_frame
        self.frames: dict[int, Tensor] = {}              # blurred, as they came
        self.latents: dict[int, Tensor] = {}             # (1, 4, 1, h, w) of encoder 2
        self.features: dict[int, list[Tensor]] = {}      # of encoder 2, each frame's own, where a window's fit in FEATURE_BYTES
        self.size = (0, 0)
        self.tiling: Tiling | None = None

    def stream(self, frames: Iterable[Tensor], input_start: int) -> Iterator[Tensor]:
        """Blurred frames (H, W, 3) in [0, 1], the first with index `input_start` in the clip -> deblurred chunks (n, H, W, 3)."""
        options = self.options
        window, stride, shared = options.window, options.stride, options.shared
        further = 0 if shared else 1                     # a window's last frame needs its neighbour's features to be decoded
        target = self.first_frame // stride              # the window whose frames are the first to be given
        k = _first_window(self.first_frame, options)
        self._skip = first_input_frame(self.first_frame, options)
        source = enumerate(frames, input_start)
        encoded = k * stride + (shared + further if k else 0)      # encoded up to here, in the same pieces as in an uninterrupted run
        x0, x0_start = None, 0
        while True:
            stop = k * stride + window
            ended = self._read(source, stop + 1)         # one frame further: is this the last window, and a neighbour for decoding
            end = max(self.frames, default=-1) + 1
            last = ended and end <= stop
            if not self.frames or last and end <= self.first_frame:
                return
            stop = min(stop, end)
            start = max(0, stop - window) if last else k * stride
            ahead = min(stop + further, end)
            if ahead > encoded:
                self._attempt(self._encode, encoded, ahead)
            encoded = ahead
            if k >= target - 1:
                new = self._attempt(self._denoise, start, stop)
                if x0 is not None:                       # the frames shared by two windows in their regular places
                    a, b = k * stride, k * stride + shared
                    new[:, :, a - start:b - start] = crossfade(x0[:, :, a - x0_start:b - x0_start], new[:, :, a - start:b - start])
                x0, x0_start = new, start
                finished = stop if last else (k + 1) * stride
                if finished > self.first_frame:
                    yield from self._decode(x0, x0_start, k * stride, finished)
            if last:
                return
            self._forget((k + 1) * stride, start)
            k += 1

    def _read(self, source: Iterator[tuple[int, Tensor]], stop: int) -> bool:
        """Take frames up to index `stop`; True when the source has ended."""
        while max(self.frames, default=-1) + 1 < stop:
            index, frame = next(source, (None, None))
            if index is None:
                return True
            if index >= self._skip:
                self._check(index, frame)
                self.frames[index] = frame
        return False

    def _check(self, index: int, frame: Tensor) -> None:
        if frame.ndim != 3 or frame.shape[2] != 3 or not frame.is_floating_point() or not frame.numel():
            raise UserError(f"frame {index} has shape {tuple(frame.shape)} and type {str(frame.dtype).removeprefix('torch.')}; "
                            "frames must be (height, width, 3), floating point, in [0, 1]")
        if self.tiling is None:
            self.size = frame.shape[:2]
            options, (height, width) = self.options, self.size
            self.tiling = make_tiling(options.tile, options.tile_overlap, height, width, self.model.config.divisor)
        if frame.shape[:2] != self.size:
            raise UserError(f"frame {index} is {frame.shape[1]} x {frame.shape[0]} pixels, but those before it are "
                            f"{self.size[1]} x {self.size[0]}; all frames of a clip must have one size")
        if not torch.isfinite(frame).all():
            raise UserError(f"frame {index} holds NaN or infinite values; replace it or cut it out before deblurring")

    def _tick(self, stage: str) -> Callable[[], None]:
        def tick() -> None:
            """Report the progress of `stage`."""
            if self.progress is not None:
                self.progress(Progress(stage, self.done, self.total))
        return tick

    def _attempt(self, work: Callable[..., T], *arguments) -> T:
        """work(*arguments, tiling), again with smaller tilings for as long as memory runs out; what works is kept from then on."""
        while True:
            try:
                return work(*arguments, self.tiling)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.features.clear()
            free_memory()
            height, width = self.size
            smaller = self.tiling.smaller(self.options.window, height, width, self.model.config.divisor)
            if smaller is None:
                raise UserError(f"not enough memory to deblur frames of {width} x {height} pixels on {self.device}, even in {self.tiling}; "
                                "close other programs, or use smaller frames or a smaller model")
            self.notice(f"not enough memory for {self.tiling}; going on with {smaller}")
            self.tiling = smaller

    def _pixels(self, start: int, stop: int, of: Callable[[Tensor], Tensor] = lambda frame: frame) -> Tensor:
        """The frames [start, stop), or what `of` makes of each, as the model takes them."""
        pixels = to_pixels([of(self.frames[i]) for i in range(start, stop)], self.model.config.divisor, self.device)
        return self.orientation.turn(pixels)

    def _encode(self, start: int, stop: int, tiling: Tiling) -> None:
        held = self._feature_bytes() * (self.options.window + 2) * self.options.ensemble
        keep = tiling == Tiling() and self.fidelity and held <= FEATURE_BYTES
        count, tick = tiling.chunk(*self.size), self._tick("encode")
        for first in range(start, stop, count):          # a few frames at a time: a window of large ones takes gigabytes
            numbers = range(first, min(first + count, stop))
            pixels = self._pixels(first, numbers.stop)
            if keep:
                tick()
                with torch.no_grad():
                    latents, features = self.model.encode_each(pixels)
                self.features |= {i: [level[:, :, i - first:i - first + 1] for level in features] for i in numbers}
            else:
                latents = encode_frames(self.model, pixels, tiling, tick)
            self.latents |= {i: latents[:, :, i - first:i - first + 1] for i in numbers}

    def _feature_bytes(self) -> int:
        return feature_bytes(self.model.config, *self.size, torch.finfo(self.dtype).bits // 8)

    def _denoise(self, start: int, stop: int, tiling: Tiling) -> Tensor:
        options, tick = self.options, self._tick("denoise")
        tick()
        latents = torch.cat([self.latents[i] for i in range(start, stop)], dim=2)
        if self.estimated:
            return estimate_window(self.model, latents, tiling, tick)
        centre = start + (stop - start) // 2
        with torch.no_grad():
            image = self.model.encoder1.semantic(self._pixels(centre, centre + 1)[:, :, 0])
        v_model = window_v_model(self.model, latents, image, guidance=options.guidance, guidance_rescale=options.guidance_rescale,
                                 guidance_interval=options.guidance_interval, tiling=tiling, tick=tick)
        return sample_window(v_model, self.schedule, latents.shape, range(start, stop), steps=options.steps, eta=options.eta,
                             spacing=options.spacing, seed=options.seed, device=self.device)

    def _decode(self, x0: Tensor, x0_start: int, start: int, stop: int) -> Iterator[Tensor]:
        """Frames [start, stop), each decoded once, a chunk at a time."""
        while start < stop:
            pixels = self._attempt(self._decode_chunk, x0[:, :, start - x0_start:stop - x0_start], start)
            need_numbers(pixels, start, self.dtype)
            end = start + pixels.shape[2]
            if end > self.first_frame:
                pixels, blurred = self.orientation.turn_back(pixels), [self.frames[i] for i in range(start, end)]
                frames = to_frames(pixels, blurred, self.options.color, self.tiling.tile)
                self.done = end
                yield frames[max(0, self.first_frame - start):]
            start = end

    def _decode_chunk(self, x0: Tensor, start: int, tiling: Tiling) -> Tensor:
        """As many of the frames x0, from absolute index `start` on, as one chunk takes."""
        count = tiling.chunk(*self.size)
        if not self.fidelity:
            return decode_frames(self.model, x0[:, :, :count], tiling=tiling, tick=self._tick("decode"))
        if start not in self.features and not tiling.frames:
            count = max(2, count)                        # making a chunk's features takes one more frame on each side
        x0 = x0[:, :, :count]
        stop = start + x0.shape[2]
        low, high = max(start - 1, min(self.frames)), min(stop + 1, max(self.frames) + 1)
        features = self._kept(start, stop, low, high)
        if features is not None:
            low, high = start, stop                      # they know the neighbours: whose pixels need not be brought to the device
        tick = self._tick("decode")
        known = None if self.prior is None else self._pixels(low, high, lambda frame: self.prior.of(frame, tick))
        guide = BlurGuide(self._pixels(low, high), features, self.fidelity, detail=self.options.steps > 1, prior=known)
        return decode_frames(self.model, x0, guide, start - low, tiling=tiling, tick=tick)

    def _kept(self, start: int, stop: int, low: int, high: int) -> list[Tensor] | None:
        """The features of frames [start, stop), joined with their neighbours in [low, high), where all were kept."""
        if not all(i in self.features for i in range(low, high)):
            return None
        fine = zip(*(self.features[i][:-1] for i in range(start, stop)))
        coarsest = with_neighbours(torch.cat([self.features[i][-1] for i in range(low, high)], dim=2))
        return [*(torch.cat(level, dim=2) for level in fine), coarsest[:, :, start - low:stop - low]]

    def _forget(self, finished: int, start: int) -> None:
        """Drop what no later window needs: frames before `finished` are given; the last window may begin right behind `start`."""
        needed = min(finished - 1, start + self.options.window // 2)
        for kept, first in ((self.frames, needed), (self.features, finished - 1), (self.latents, start)):
            for i in [i for i in kept if i < first]:
                del kept[i]


def default_device() -> torch.device:
    """CUDA (or ROCm) where there is one, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device | str) -> torch.dtype:
    """The fastest type that is safe on a device: bfloat16 where the processor computes in it, on a CPU otherwise float32.

    With the shipped model bfloat16 changes PSNR by less than 0.01 dB and halves the time (benchmarks/quality.py measures both).
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):                  # the question is about the current device
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself. (Where it does not, PyTorch still can, but many times slower.)"""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)       # on ARM it asks the processor
    return torch.backends.mkldnn.is_available() and bool(supported())
