"""What a camera does to the light it averaged: transfer curves, sensor noise through the Bayer mosaic, and lossy coding."""
from __future__ import annotations

import functools
import io
import math

import av
import numpy as np
import torch
import torch.nn.functional as F
from kornia.color import linear_rgb_to_rgb, rgb_to_linear_rgb
from torch import Tensor

from .config import BlurConfig

CLEAN: dict = {"noise": None, "quality": None, "crf": None}      # arguments of `degrade`: neither noise nor a codec
ROUNDED = 0x4 | 0x2000 | 0x40000      # SWS_BICUBIC, FULL_CHR_H_INT, ACCURATE_RND: without them libswscale darkens 4:2:0 by 1 of 255
NOISE_BANK = 1 << 22      # normals drawn once; every frame reads a stretch of them from a random place


def _like(values, like: Tensor) -> Tensor:
    """Numbers in the type and on the device of `like`, which is not waited for."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


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
    gains = _like([red, 1.0, blue], linear).view(3, 1, 1)
    bank, count = noise_bank(linear.device), height * width
    if count > NOISE_BANK // 2:
        bank = bank.repeat(2 + 2 * count // NOISE_BANK)
    normal = torch.stack([bank[s:s + count] for s in starts]).view(frames, 1, height, width)
    mosaic = linear.new_zeros(2, 2, 3)
    for y, x, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        mosaic[(y + phase[0]) % 2, (x + phase[1]) % 2, channel] = 1.0
    mosaic = mosaic.permute(2, 0, 1).repeat(1, height // 2 + 1, width // 2 + 1)[:, :height, :width]
    noise = (linear / gains * shot + read * read).clamp_min(0).sqrt_() * normal * (mosaic * gains)
    padded = F.pad(noise, (1, 1, 1, 1), mode="reflect")
    demosaiced = 4 * F.avg_pool2d(F.avg_pool2d(padded, 2, 1), 2, 1)        # red and blue: [1 2 1] x [1 2 1] / 4
    green = padded[:, 1]
    demosaiced[:, 1] = noise[:, 1] + (green[:, :-2, 1:-1] + green[:, 2:, 1:-1] + green[:, 1:-1, :-2] + green[:, 1:-1, 2:]) / 4
    return demosaiced.add_(linear)


# Annex K of ISO/IEC 10918-1.
_LUMA = ((16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
         (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
         (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99))
_CHROMA = ((17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
           (47, 66, 99, 99, 99, 99, 99, 99), (99,) * 8, (99,) * 8, (99,) * 8, (99,) * 8)
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def _quantise(plane: Tensor, table: Tensor, dct: Tensor) -> Tensor:
    """8 x 8 DCT, rounding to multiples of `table`, inverse DCT. plane (N, H, W), H and W multiples of 8."""
    n, h, w = plane.shape
    blocks = plane.view(n, h // 8, 8, w // 8, 8).transpose(2, 3)
    coefficients = dct @ blocks @ dct.T
    restored = dct.T @ ((coefficients / table).round_() * table) @ dct
    return restored.transpose(2, 3).reshape(n, h, w)


def jpeg(x: Tensor, quality: float) -> Tensor:
    """Baseline JPEG's loss, 4:2:0, on (N, 3, H, W) in [0, 1]: what libjpeg's encoder and decoder do, without the entropy coding."""
    height, width = x.shape[-2:]
    bottom, right = -height % 16, -width % 16
    padded = F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    luma, chroma = (((_like(t, x) * scale + 50) / 100).floor_().clamp_(1, 255) for t in (_LUMA, _CHROMA))
    k = torch.arange(8, dtype=torch.float64)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    dct = dct.to(x, non_blocking=True)
    ycc = torch.einsum("ck,nkhw->cnhw", _like(_TO_YCC, x), padded * 255)
    y = _quantise(ycc[0] - 128, luma, dct) + 128
    small = F.avg_pool2d(ycc[1:], 2)
    small = _quantise(small.flatten(0, 1), chroma, dct).view_as(small)
    cbcr = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = torch.einsum("ck,knhw->nchw", _like(_TO_RGB, x), torch.cat([y[None], cbcr]))
    return (rgb[:, :, :height, :width] / 255).clamp_(0, 1)


def h264(x: Tensor, crf: float) -> Tensor:
    """What is left of frames (F, 3, H, W) in [0, 1] after libx264 at `crf`, 4:2:0, 8 bits, at 30 frames per second."""
    frames, _, height, width = x.shape
    padded = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
    pictures = (padded.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": f"{crf:.2f}", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = padded.shape[-1], padded.shape[-2], "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", interpolation=ROUNDED)))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24", interpolation=ROUNDED) for frame in container.decode(video=0)])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2)[:frames, :, :height, :width].to(x.device, x.dtype) / 255


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
