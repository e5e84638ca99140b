"""What a camera does to the light it averaged: transfer curves, sensor noise through the Bayer mosaic, and lossy coding."""
from __future__ import annotations

import functools
import io

import av
import numpy as np
import torch
import torch.nn.functional as F
from kornia.color import CFA, linear_rgb_to_rgb, raw_to_rgb, rgb_to_linear_rgb, rgb_to_raw
from PIL import Image
from torch import Tensor

from .config import BlurConfig

CLEAN: dict = {"noise": None, "quality": None, "crf": None}      # arguments of `degrade`: neither noise nor a codec
CFAS = {(0, 0): CFA.BG, (0, 1): CFA.GB, (1, 0): CFA.GR, (1, 1): CFA.RG}      # kornia's mosaics by the row and column of their first red
NOISE_BANK = 1 << 22      # normals drawn once; every frame reads a stretch of them from a random place


@functools.lru_cache(maxsize=4)
def noise_bank(device: torch.device | str) -> Tensor:
    """Standard normals, the same on every machine: drawn on the CPU from a fixed seed, then kept on `device`."""
    return torch.randn(NOISE_BANK, generator=torch.Generator().manual_seed(20240229)).to(device)


def bayer_noise(linear: Tensor, shot: float, read: float, red: float, blue: float, phase: tuple[int, int],
                starts: list[int]) -> Tensor:
    """Linear light (F, 3, H, W) + Poisson-Gaussian sensor noise, as it looks after white balance and a bilinear demosaic.

    The noise lives on a Bayer mosaic of the light before white balance (red / `red`, blue / `blue`), variance = shot * light + read^2
    (`read` is a standard deviation, as in RSBlur). A bilinear demosaic is linear, so the noise alone goes through it and the image keeps
    its detail.
    `phase` shifts the mosaic; `starts` holds one place in the noise bank per frame.
    """
    frames, _, height, width = linear.shape
    bank, count = noise_bank(linear.device), height * width
    if count > NOISE_BANK // 2:
        bank = bank.repeat(2 + 2 * count // NOISE_BANK)
    normal = torch.stack([bank[s:s + count] for s in starts]).view(frames, 1, height, width)
    # kornia's mosaics have even sides; a mirrored column is of the same color
    light, normal = (F.pad(x, (0, width % 2, 0, height % 2), mode="reflect") for x in (linear, normal))
    gains, cfa = light.new_ones(light[:1].shape), CFAS[phase]
    gains[:, 0], gains[:, 2] = red, blue
    seen, gain = rgb_to_raw(light / gains, cfa), rgb_to_raw(gains, cfa)
    noise = (seen * shot + read * read).clamp_min(0).sqrt_() * normal * gain
    return linear + raw_to_rgb(noise, cfa)[..., :height, :width]


def jpeg(x: Tensor, quality: float) -> Tensor:
    """Frames (F, 3, H, W) in [0, 1] after libjpeg at `quality`, 4:2:0, 8 bits."""
    decoded = []
    for picture in _pictures(x):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=round(quality), subsampling="4:2:0")
        decoded.append(np.asarray(Image.open(buffer)))
    return _frames(decoded, x)


def _pictures(x: Tensor) -> np.ndarray:
    """Frames (F, 3, H, W) in [0, 1] in 8 bits, (F, H, W, 3)."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _frames(pictures: list[np.ndarray], like: Tensor) -> Tensor:
    """The way back, on the device and in the type of `like`."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(like.device, like.dtype) / 255


def h264(x: Tensor, crf: float) -> Tensor:
    """What is left of frames (F, 3, H, W) in [0, 1] after libx264 at `crf`, 4:2:0, 8 bits, at 30 frames per second."""
    frames, _, height, width = x.shape
    padded = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": f"{crf:.2f}", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = padded.shape[-1], padded.shape[-2], "yuv420p"
        for picture in _pictures(padded):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return _frames(decoded[:frames], x)[..., :height, :width]


def draw(rng: np.random.Generator, config: BlurConfig, frames: int) -> dict:
    """Random arguments of `degrade` for one clip."""
    chosen = dict(CLEAN)
    if rng.random() < config.noise:
        shot, read = (v * rng.uniform(*config.noise_gain) for v in (config.shot, config.read))
        chosen["noise"] = dict(shot=shot, read=read, red=rng.uniform(1.9, 2.4), blue=rng.uniform(1.5, 1.9),
                               phase=tuple(rng.integers(0, 2, 2).tolist()), starts=rng.integers(0, NOISE_BANK // 2, frames).tolist())
    if rng.random() < config.codec:
        if rng.random() < config.h264:
            chosen["crf"] = float(rng.uniform(*config.crf))
        else:
            chosen["quality"] = float(rng.uniform(*config.quality))
    return chosen


def degrade(light: Tensor, linear: bool, *, noise: dict | None, quality: float | None, crf: float | None) -> Tensor:
    """From averaged light to a file's frames: sensor noise, sRGB, codec, 8 bits. (F, 3, H, W), linear light or sRGB -> sRGB."""
    light = light.clamp(0, 1)
    if noise is not None:
        light = bayer_noise(light if linear else rgb_to_linear_rgb(light), **noise).clamp_(0, 1)
    srgb = linear_rgb_to_rgb(light) if linear or noise is not None else light
    if crf is not None:
        srgb = h264(srgb, crf)
    elif quality is not None:
        srgb = jpeg(srgb, quality)
    return srgb.mul_(255).round_().div_(255)
