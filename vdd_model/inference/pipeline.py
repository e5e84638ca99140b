"""Deblurrer: blurred frames in, sharp frames out, for clips of any length in memory that does not grow with it."""
from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from dataclasses import replace
from itertools import groupby, islice, product
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..checkpoint.store import BUILT_IN, load
from ..cpu import accelerate, cpu_has_bfloat16
from ..cpu.allocator import give_back_memory
from ..cpu.frames import compact
from ..errors import UserError
from ..networks.layers import channels_last
from ..networks.model import DeblurModel, drop_untrained_branch
from ..networks.temporal import REACH
from ..networks.unet3d import UNet3D
from ..options import DeblurOptions
from .codes import Codes, drop
from .ensemble import ORIENTATIONS, Orientation
from .prior import Prior, PriorFile, find_prior
from .progress import CALL, DECODE, ENCODE, PICTURE, Meter, Progress
from .scenes import Moment, Picture, pictures
from .temporal import chosen, joined_over_time
from .tiles import WHOLE, Box, Tiling, make_tiling, until_it_fits
from .window import decode_frames, encode_frames, encode_pictures, need_numbers, reads_pictures, sample_window, to_frames, to_pixels
from .windows import WINDOWS_BACK, Step, fade_in, first_input_frame, seek, window_steps, windows_from

T = TypeVar("T")
# Parts that one step without a prior does not call
SELDOM = ("unet", "adapter", "encoder1", "vae.detail", "vae.informed", "vae.fusion", "vae.temporal")
BESIDE_PRIOR = 4                         # orientations in one step: +0.07 to 0.1 dB
GIVE_BACK_PIXELS = 2**24                 # given, on a CPU, between two returns of freed memory: what lies between would grow with the clip
ALONE = 3                                # pictures of a window without the UNet, of which small ones are decoded together


class Deblurrer:
    """A loaded model and what is needed to run it on clips.

    checkpoint: "small" (built in), a path, or a DeblurModel (which is moved, not copied, and not even that without `move`: then
    somebody else keeps its weights on `device`). device: None takes CUDA or Apple's GPU where there is one. dtype: None takes
    default_dtype(device) for a file; a DeblurModel keeps its own. prior: the pretrained prior's file; None looks for it beside the
    checkpoint and in the package.
    """

    def __init__(self, checkpoint: str | os.PathLike | DeblurModel = "small", *, device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None, prior: str | os.PathLike | None = None, move: bool = True):
        self.device = torch.device(device) if device is not None else default_device()
        named = isinstance(checkpoint, (str, os.PathLike))
        beside = [Path(checkpoint).parent] if named and checkpoint not in BUILT_IN else []
        self.prior = PriorFile(find_prior(beside, prior), lambda path: Prior.load(path, self.device, self.model.null_text.dtype))
        if not named:
            self.model = checkpoint.to(self.device, dtype) if move else checkpoint
        else:
            self.model = load(checkpoint, self.device, dtype or default_dtype(self.device), SELDOM, self._make_faster)
            drop_untrained_branch(self.model)

    def _make_faster(self, part: nn.Module) -> None:
        if self.device.type == "cpu":
            accelerate(part)
        elif self.device.type == "cuda" and isinstance(part, UNet3D):
            channels_last(part)

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
               moments: MutableSequence[Moment] | None = None, total: int | None = None,
               progress: Callable[[Progress], None] | None = None, notice: Callable[[str], None] = warnings.warn) -> Iterator[Tensor]:
        """Deblur frames one window after another; yields chunks (n, H, W, 3), float32 on the CPU, in order and without gaps.

        frames: (H, W, 3), float, RGB in [0, 1], all of one size (or as `compact` keeps them); read only as far ahead as one window needs.
        first_frame: absolute index of the first frame to give. The result equals that of an uninterrupted run bit for bit.
        input_start: absolute index of the first item of `frames`, at most first_input_frame(first_frame, options, moments).
        moments: where windows begin is appended, before their frames are given; those of the interrupted run, given again, save reading
        the clip from its start.
        progress is called between pieces of work and may raise to cancel; notice(text) tells of smaller tiles after a lack of memory.
        Each scene is deblurred as if it were alone, and a frame that is shown several times in a row as if once (`scenes`): the noise of
        a picture is that of (seed, its number in its scene, position).
        Raises UserError for frames that cannot be used (NaN, another size), naming the frame.
        """
        options, moments, back = options or DeblurOptions(), [] if moments is None else moments, WINDOWS_BACK
        if not unet_calls(self.model, options):          # no window has a part in a picture: only its neighbours are looked at, and theirs
            options = replace(options, window=ALONE if options.window >= ALONE else 1, overlap=0)
            back = math.ceil((REACH + 1) / options.window)
        if input_start > (needed := first_input_frame(first_frame, options, moments, back)):
            raise ValueError(f"to start at frame {first_frame}, frames are needed from {needed} on")
        starts = windows_from(first_frame, options, moments, back)
        found = pictures(checked(islice(frames, needed - input_start, None), needed), needed, scenes=options.scenes == "auto",
                         repeats=options.repeats == "auto", moment=starts[0] if starts else None, uncut=starts[-1].index if starts else 0)
        if first_frame and not starts:
            starts, found = seek(found, first_frame, options.stride)
        return _Pass(self, options, first_frame, moments, total, progress, notice).stream(found, starts or [Moment(0, 0)])


def unet_calls(model: DeblurModel, options: DeblurOptions) -> int:
    """How often the UNet is called for one window."""
    if options.steps == 1 and options.guidance == 1 and not options.denoise_at_one_step and model.config.gives_estimate:
        return 0
    return options.steps * (1 if options.guidance == 1 else 2)


def checked(frames: Iterable[Tensor], start: int = 0) -> Iterator[Tensor]:
    """The frames, from index `start` on. Raises UserError, naming it, for one that cannot be used."""
    size = None
    for index, frame in enumerate(frames, start):
        numbers = frame.is_floating_point() or frame.dtype == torch.uint16
        if frame.ndim != 3 or frame.shape[2] != 3 or not numbers or not frame.numel():
            raise UserError(f"frame {index} has shape {tuple(frame.shape)} and type {str(frame.dtype).removeprefix('torch.')}; "
                            "frames must be (height, width, 3), floating point, in [0, 1]")
        size = size or frame.shape[:2]
        if frame.shape[:2] != size:
            raise UserError(f"frame {index} is {frame.shape[1]} x {frame.shape[0]} pixels, but those before it are {size[1]} x {size[0]}; "
                            "all frames of a clip must have one size")
        if frame.is_floating_point() and not torch.isfinite(frame).all():
            raise UserError(f"frame {index} holds NaN or infinite values; replace it or cut it out before deblurring")
        yield compact(frame.detach())


class _Pass:
    """One pass over a clip. Holds the pictures of about one window; everything is keyed by their numbers in their scene."""

    def __init__(self, deblurrer: Deblurrer, options: DeblurOptions, first_frame: int, moments: MutableSequence[Moment], total: int | None,
                 progress: Callable[[Progress], None] | None, notice: Callable[[str], None]):
        self.model, self.device, self.dtype = deblurrer.model, deblurrer.device, deblurrer.model.null_text.dtype
        self.options, self.first_frame, self.moments = options, first_frame, moments
        self.fidelity = options.fidelity if self.model.vae.fidelity is not None else 0.0
        if options.fidelity and not self.fidelity and self.model.config.vae.fidelity is not None:
            notice("the fidelity branch of this checkpoint is not trained: edges and details are the latents' alone")
        self.calls = unet_calls(self.model, options)     # a window
        self.reads = bool(self.calls) and reads_pictures(self.model, self.fidelity)
        self.meter, self.notice = Meter(progress, first_frame, total), notice
        self.prior = deblurrer.prior.for_clip(options, total, deblurrer.model.vae, self.device, notice)
        self.orientations = ORIENTATIONS[:options.ensemble or (BESIDE_PRIOR if self.prior is not None and not self.calls else 1)]
        self.temporal = chosen(self.model.vae, options.temporal_fusion, notice, one_step=not self.calls, fidelity=self.fidelity,
                               beside_prior=self.prior is not None)
        self.tiling: Tiling | None = None
        self.pixels = 0                                  # given since freed memory went back to the system

    def stream(self, found: Iterator[Picture], starts: list[Moment]) -> Iterator[Tensor]:
        """A clip's pictures -> deblurred chunks (n, H, W, 3). `starts`: of the windows that the run begins with."""
        first, target = starts[0].number, starts[-1].number
        for _, scene in groupby(found, key=attrgetter("scene")):
            decoded = self._scene(scene, first, target)
            if self.temporal is not None:
                decoded = joined_over_time(((shown, frames[0], shown[0].rgb) for shown, frames in decoded), self.temporal, self.device,
                                           functools.partial(self.meter.tick, counted=False))
                decoded = ((shown, frame[None]) for shown, frame in decoded)
            for shown, frames in decoded:
                skip = max(0, self.first_frame - shown[0].index)
                yield from [frames[skip:]] * (skip < len(shown)) if len(shown) > 1 else [frames] * (shown[0].times - skip)
                del frames                               # before the next are made
            first = target = 0

    def _scene(self, found: Iterator[Picture], first: int, target: int) -> Iterator[tuple[list[Picture], Tensor]]:
        """One scene, from picture `first` on: some pictures and their frames, each once; the first that is given is in the window that
        begins with picture `target`, or in a last one before it, whose window was moved back."""
        options, end = self.options, first + 1
        self.pictures = {first: next(found)}             # blurred, as they came
        self.size = self.pictures[first].rgb.shape[:2]
        self.tiling = self.tiling or make_tiling(options.tile, options.tile_overlap, *self.size, self.model.config.divisor)
        self.codes = [self._codes(orientation) for orientation in self.orientations]

        def reach(count: int) -> int:
            """Take pictures until there are so many."""
            nonlocal end
            while end < count and (picture := next(found, None)) is not None:
                self.pictures[end], end = picture, end + 1
            return end

        x0, before = [None] * len(self.orientations), range(0)
        for step in window_steps(reach, options.window, options.shared, first // options.stride):
            if step.last and self._shown_until(end) <= self.first_frame:
                return
            self._begin(step)
            if step.read and self.calls:                 # else latents are made with what is decoded: nothing between needs them
                self._attempt(self._encode, step.read)
                if self.reads:
                    self._attempt(self._encode_pictures, step.read)
            if step.ready.start >= target - max(options.stride, REACH):
                if self.calls:
                    x0 = [fade_in(new, step, old, before) for new, old in zip(self._attempt(self._denoise, step.window), x0)]
                    before = step.window
                if self.temporal is not None or self._shown_until(step.ready.stop) > self.first_frame:
                    yield from self._decode(x0, step)
            self._forget(step)

    def _shown_until(self, number: int) -> int:
        """Index behind the last frame of the picture before this one."""
        return self.pictures[number - 1].index + self.pictures[number - 1].times

    def _begin(self, step: Step) -> None:
        """Note where a window begins, and how much work it will be."""
        begin = self.pictures[step.ready.start].index
        if not self.moments or self.moments[-1].index < begin:
            self.moments.append(Moment(begin, step.ready.start))
        self.meter.window(max(0, self._shown_until(step.ready.stop) - self.meter.done),
                          (ENCODE + PICTURE * self.reads) * bool(self.calls) * len(step.read) + CALL * self.calls * len(step.window)
                          + DECODE * len(step.ready))

    def _attempt(self, work: Callable[..., T], *arguments) -> T:
        """work(*arguments), again with smaller tilings for as long as memory runs out; what works is kept from then on."""
        result = until_it_fits(functools.partial(work, *arguments), self._shrink)
        self.meter.end()
        return result

    def _shrink(self) -> None:
        """Go on with smaller pieces. Raises UserError where there are none."""
        for codes in self.codes:
            codes.kept.clear()
        height, width = self.size
        smaller = self.tiling.smaller(self.options.window, height, width)
        if smaller is None:
            raise UserError(f"not enough memory to deblur frames of {width} x {height} pixels on {self.device}, even in {self.tiling}; "
                            "close other programs, or use smaller frames or a smaller model")
        self.notice(f"not enough memory for {self.tiling}; going on with {smaller}")
        self.tiling = smaller

    def _codes(self, orientation: Orientation) -> Codes:
        """The scene's pictures in this orientation, as the model sees them. The prior's pieces are not counted."""
        size = orientation.size(*(n + -n % self.model.config.divisor for n in self.size))

        def pixels(numbers: range, tile: Box, of: Callable[[Tensor], Tensor] = lambda frame: frame) -> Tensor:
            """A tile of pictures, or of what `of` makes of each, as the model takes them."""
            rows, columns = orientation.source(tile, size)
            frames = [of(self.pictures[i].rgb)[rows, columns] for i in numbers]
            return orientation.turn(to_pixels(frames, self.model.config.divisor, self.device))

        within = functools.partial(self.meter.tick, counted=False)
        known = self.prior and functools.partial(pixels, of=lambda frame: self.prior.of(frame, within))
        return Codes(self.model, pixels, known, size, len(self.orientations))

    def _pieces(self, frames: int = 1, *, time: bool = False) -> int:
        """How many boxes so many frames are cut into, in all orientations."""
        return len(self.tiling.boxes((frames, *self.codes[0].size), time=time)) * len(self.codes)

    @torch.no_grad()
    def _encode(self, numbers: range) -> None:
        """Encoder 2's latents of new pictures; where a window's features have room they stay until these pictures are decoded."""
        self.meter.stage("encode", len(numbers) * self._pieces(), ENCODE * len(numbers))
        for codes, i in product(self.codes, numbers):    # one at a time: a window of large ones takes gigabytes
            wanted = bool(self.fidelity) and (self.reads or self.prior is None)         # else whether with the prior's is not known
            keep = wanted and not self.tiling.tile and codes.room_for(self.options.window + 2)
            codes.latents[i] = encode_frames(self.model, functools.partial(codes.encoded, i, keep=keep), (1, *codes.size), self.tiling,
                                             self.meter.tick)

    def _encode_pictures(self, numbers: range) -> None:
        """Behind the latents of encoder 2 those of what one step shows."""
        count = self.tiling.chunk(*self.size)
        self.meter.stage("encode", math.ceil(len(numbers) / count) * 2 * self._pieces(), PICTURE * len(numbers))
        for codes, at in product(self.codes, range(0, len(numbers), count)):
            chunk = numbers[at:at + count]
            latents = torch.cat([codes.latents[i][:, :self.model.config.vae.latent_channels] for i in chunk], dim=2)
            read = encode_pictures(self.model, codes.source(latents, chunk, self._near(chunk)), (len(chunk), *codes.size), self.tiling,
                                   self.meter.tick)
            codes.latents.update(zip(chunk, torch.cat([latents, read], dim=1).split(1, dim=2)))

    def _near(self, numbers: range) -> range:
        """These pictures and the neighbours that there are."""
        return range(max(numbers.start - 1, min(self.pictures)), min(numbers.stop, max(self.pictures)) + 1)

    @torch.no_grad()
    def _denoise(self, window: range) -> list[Tensor]:
        """x0 of a window in each orientation."""
        pieces = len(self.codes) + self._pieces(len(window), time=True) * (1 + self.calls * self.model.unet.num_blocks)
        self.meter.stage("denoise", pieces, CALL * self.calls * len(window))
        x0, centre = [], window[len(window) // 2]
        for codes in self.codes:
            self.meter.tick()
            latents = torch.cat([codes.latents[i] for i in window], dim=2)
            whole, = WHOLE.boxes((1, *codes.size))
            image = self.model.encoder1.semantic(codes.pixels(range(centre, centre + 1), whole)[:, :, 0])
            x0.append(sample_window(self.model, latents, image, window, self.options, self.tiling, self.meter.tick))
        return x0

    def _decode(self, x0: list[Tensor | None], step: Step) -> Iterator[tuple[list[Picture], Tensor]]:
        """The pictures step.ready, a chunk at a time; the mean over all orientations. x0: of step.window."""
        start = step.ready.start
        while start < step.ready.stop:
            pixels = self._attempt(self._decode_chunk, x0, start, step)
            shown = [self.pictures[i] for i in range(start, start + pixels[0].shape[2])]
            start += len(shown)
            self.meter.done = max(self.meter.done, self._shown_until(start))
            alone = self.tiling.tile or self.temporal is not None or any(picture.times > 1 for picture in shown)
            together = 1 if alone else len(shown)        # large frames one by one
            for i in range(0, len(shown), together):
                yield shown[i:i + together], self._mean([each[:, :, i:i + together] for each in pixels], shown[i:i + together])
            del pixels, shown
            if not self.calls:
                drop(self.pictures, start - 1)

    def _mean(self, pixels: list[Tensor], shown: list[Picture]) -> Tensor:
        """Frames (n, H, W, 3) of some pictures, from their pixels in each orientation."""
        blurred = [picture.rgb for picture in shown]
        frames = functools.reduce(Tensor.add_, (to_frames(each, blurred, self.options.color, self.tiling.tile) for each in pixels))
        self.pixels += math.prod(frames.shape[:3])
        if self.device.type == "cpu" and (self.tiling.tile or self.pixels >= GIVE_BACK_PIXELS):
            give_back_memory()                           # an encoder takes as much again for a large frame
            self.pixels = 0
        return frames.div_(len(pixels))

    def _decode_chunk(self, x0: list[Tensor | None], start: int, step: Step) -> list[Tensor]:
        """As many of the pictures step.ready, from number `start` on, as one chunk takes, in each orientation, turned back."""
        numbers = range(start, min(start + self.tiling.chunk(*self.size), step.ready.stop))
        self.meter.stage("decode", self._pieces(), DECODE * len(numbers))
        decoded = []
        for orientation, codes, x in zip(self.orientations, self.codes, x0):
            x = x if x is None else x[:, :, numbers.start - step.window.start:numbers.stop - step.window.start]
            source = codes.source(x, numbers, self._near(numbers), self.fidelity, self.options.steps > 1)
            pixels = decode_frames(self.model, source, (len(numbers), *codes.size), self.tiling, self.meter.tick)
            need_numbers(pixels, self.pictures[start].index, self.dtype)
            decoded.append(orientation.turn_back(pixels))
            codes.forget(numbers.stop - 1)
        return decoded

    def _forget(self, step: Step) -> None:
        """Drop what no later window needs: pictures before it are given; the last window may begin right behind the start of this one."""
        drop(self.pictures, min(step.ready.stop - 1, step.window.start + self.options.window // 2))
        for codes in self.codes:
            codes.forget(step.ready.stop - 1)
            drop(codes.latents, step.window.start)


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
