"""What is done with one window of frames: encode, denoise, decode, each as a plain function that can work in tiles and chunks.

Pixels here are (1, 3, F, H, W) in [-1, 1], H and W multiples of the model's divisor; latents (1, 4, F, h, w).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..cpu.frames import to_float
from ..diffusion.sampler import VModel, ddim, guided, timesteps
from ..diffusion.schedule import make_schedule
from ..errors import UserError
from ..networks.model import Condition, DeblurModel, fold_time, unfold_time
from ..options import DeblurOptions
from .codes import Source
from .color import levels_for, wavelet_color_transfer_
from .tiles import WHOLE, Box, Tiling, blend
from .windows import frame_noise

Tick = Callable[..., None]


def no_tick(*_) -> None:
    """Called between pieces of work; a caller's own may report progress, or raise to cancel."""


def to_pixels(frames: Sequence[Tensor], divisor: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Frames (H, W, 3) in [0, 1] -> (1, 3, F, H', W') in [-1, 1], padded at the bottom and right to multiples of `divisor`.

    Pixels stay float32 beside a network of half precision: what the fidelity branch adds its residual to is not rounded.
    """
    x = rearrange([to_float(frame, device) for frame in frames], "f h w c -> f c h w")
    return rearrange(pad_to_multiple(x.mul_(2).sub_(1), divisor), "f c h w -> 1 c f h w").to(dtype)


def pad_to_multiple(x: Tensor, divisor: int) -> Tensor:
    """Mirror (N, C, H, W) at the bottom and right until H and W are multiples of `divisor`; the edge is repeated where x is too small."""
    height, width = x.shape[-2:]
    pad = (0, -width % divisor, 0, -height % divisor)
    if not any(pad):
        return x
    return F.pad(x, pad, mode="reflect" if pad[1] < width and pad[3] < height else "replicate")


@torch.no_grad()
def encode_frames(model: DeblurModel, encode: Callable[[Box], Tensor], size: tuple[int, int, int], tiling: Tiling = WHOLE,
                  tick: Tick = no_tick) -> Tensor:
    """Latents (1, 4, F, h, w) of frames of this size (pixels); encode(tile) gives those of a tile."""
    tiles = {tile.shrunk(model.config.vae.factor): tile for tile in tiling.boxes(size)}

    def latents(place: Box) -> Tensor:
        """Those of one tile."""
        tick()
        return encode(tiles[place])

    return blend([*tiles], latents)


def encode_pictures(model: DeblurModel, source: Source, size: tuple[int, int, int], tiling: Tiling = WHOLE,
                    tick: Tick = no_tick) -> Tensor:
    """What one step shows of frames, as the autoencoder's latents (1, 4, F, h, w): a second estimate of x0, which behind encoder 2's makes
    (1, 8, F, h, w) of both for the adapter. The picture path and the prior have their part in it, so that several steps start nearer to
    the truth. source: as `decode_frames` takes it, of encoder 2's latents and strength 1."""
    pixels = decode_frames(model, source, size, tiling, tick).clamp_(-1, 1).to(model.null_text.dtype)

    def encode(tile: Box) -> Tensor:
        """Scaled latents of one tile."""
        return unfold_time(model.vae.encode(fold_time(tile.of(pixels)))[0] * model.config.vae.latent_scale, 1)

    return encode_frames(model, encode, size, tiling, tick)


def reads_pictures(model: DeblurModel, fidelity: float) -> bool:
    """Whether `encode_pictures` comes before the UNet: where a trained picture path is looked at, and the adapter gives an estimate."""
    return bool(fidelity) and model.vae.fidelity is not None and model.config.gives_estimate


@torch.no_grad()
def sample_window(model: DeblurModel, latents: Tensor, image: Tensor, frames: Sequence[int], options: DeblurOptions,
                  tiling: Tiling = WHOLE, tick: Tick = no_tick) -> Tensor:
    """Clean latents x0 (1, 4, F, h, w), float32, of one window; `frames`: their numbers, by which noise is keyed.

    latents: encoder 2's, of the window's blurred frames, those of `encode_pictures` behind them or not; image (1, E): the semantic vector
    of its centre frame. tick() comes between pieces of work, tick(x0) behind each step.
    All that stays the same from step to step (the adapter's output, keys and values of the context) is computed once. With several
    tiles v is blended between them at every step, and therefore so is x0.
    """
    config, latents = model.config, latents.to(model.null_text.dtype)
    (height, width), factor = latents.shape[-2:], config.vae.factor
    pieces = [box.shrunk(factor) for box in tiling.boxes((len(frames), height * factor, width * factor), time=True)]
    conditions = {}
    for box in pieces:
        tick()
        conditions[box] = Condition(model.adapter(box.of(latents)), image)

    def branch(drop: bool) -> VModel:
        """The conditional model of v, or with `drop` the unconditional one."""
        context = model.unet.cache_context(model.context(image, drop=drop))
        return lambda x, t: blend(pieces, lambda box: model.predict_v(box.of(x).to(latents), t, conditions[box], context).float())

    def noise(step: int) -> Tensor:
        """The noise of one step."""
        return frame_noise(options.seed, frames, config.vae.latent_channels, height, width, step).to(latents.device)

    v_model, schedule = branch(False), make_schedule(config.diffusion)
    if options.guidance != 1:
        v_model = guided(v_model, branch(True), options.guidance, options.guidance_rescale, options.guidance_interval,
                         schedule.num_timesteps)
    model.unet.tick = tick
    try:
        # "vgen", as the official sampler does, leaves a little noise
        return ddim(v_model, noise(0), schedule, timesteps(options.steps, schedule.num_timesteps, options.spacing), eta=options.eta,
                    step_noise=lambda i: noise(i + 1), final_x0=options.spacing == "trailing", callback=lambda i, t, x, x0: tick(x0))
    finally:
        model.unet.tick = None


@torch.no_grad()
def decode_frames(model: DeblurModel, source: Source, size: tuple[int, int, int], tiling: Tiling = WHOLE,
                  tick: Tick = no_tick) -> Tensor:
    """Pixels (1, 3, F, H, W), float32, not clamped, of frames of this size. source(tile) gives a tile's latents (1, 4, F, h, w) and what
    guides them, or None; its pixels then need not exist all at once (`Codes.source`)."""
    def decode(tile: Box) -> Tensor:
        """Pixels of one tile."""
        tick()
        latents, guide = source(tile)
        return model.decode(latents.to(model.null_text.dtype), guide).float()

    return blend(tiling.boxes(size), decode, as_frames=True)


def to_frames(pixels: Tensor, blurred: Sequence[Tensor], color: str = "wavelet", tile: int = 0) -> Tensor:
    """Pixels (1, 3, F, H', W') in [-1, 1] -> frames (F, H, W, 3), float32, in [0, 1], on the CPU, of the size of the `blurred` ones.

    color: "wavelet" gives them the low frequencies of the blurred frames (H, W, 3), "none" leaves them. tile: side of the tiles that
    they were computed in, 0 for whole frames. Pixels that lie in memory as frames do (`blend`) are used up: they become the result.
    """
    height, width = blurred[0].shape[:2]
    out = rearrange(pixels[..., :height, :width], "1 c f h w -> f h w c").float().contiguous()
    for i, frame in enumerate(out.mul_(0.5).add_(0.5)):      # all of it in its place: large frames have no room for copies
        if color == "wavelet":
            x, reference = (rearrange(each, "h w c -> 1 c h w") for each in (frame, blurred[i]))
            wavelet_color_transfer_(x, reference, levels_for(tile))
    return out.clamp_(0, 1).cpu()


def need_numbers(pixels: Tensor, first: int, dtype: torch.dtype) -> None:
    """Raise UserError where decoded `pixels` of the frames from index `first` on, by a model of `dtype`, hold NaN or infinite values."""
    if not torch.isfinite(pixels).all():
        advice = "" if dtype == torch.float32 else "; compute in float32 (--dtype float32, in ComfyUI --fp32-vae)"
        raise UserError(f"the model's answer from frame {first} on is not a number{advice}")
