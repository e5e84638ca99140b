"""Quality measures for frames (F, H, W, 3) RGB in [0, 1]. Every function returns one float64 value per frame (or pair of frames).

PSNR and SSIM compare 8-bit pictures, as papers do: frames are clamped and rounded to 255 levels first. They are kornia's, which is imported
when the first one is asked for.
"""
from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from .flow import dense_flow, warp
from .perceptual import RATE, Spool, flip

MAX_PSNR = 100.0          # what an identical frame counts in a mean; two 8-bit frames that differ at all are below it in practice
LUMA = (0.299, 0.587, 0.114)
LPIPS_BACKBONE = "alexnet-owt-*.pth"

# Columns of every table: key -> (title, digits, whether more is better; None = neither).
COLUMNS = {
    "psnr": ("PSNR dB", 2, True),
    "ssim_gaussian": ("SSIM (Gaussian, per channel)", 4, True),
    "ssim_matlab": ("SSIM (MATLAB, 3-D)", 4, True),
    "lpips": ("LPIPS (alex)", 4, False),
    "flip": ("FLIP", 4, False),
    "jod": ("ColorVideoVDP JOD", 2, True),
    "vmaf": ("VMAF", 1, True),
    "temporal_error": ("temporal error /255", 3, False),
    "warp_error": ("flow-warped error /255", 3, False),
    "sharpness": ("sharpness (variance of the Laplacian)", 1, None),
    "color_shift": ("color shift /255", 3, False),
}


def to_levels(frames: Tensor) -> Tensor:
    """Frames in [0, 1] -> 8-bit levels 0..255 as float64."""
    return frames.double().clamp(0, 1).mul(255).round()


def _framewise(measure: Callable[[Tensor, Tensor], Tensor], output: Tensor, truth: Tensor) -> Tensor:
    """`measure` of levels (1, 3, H, W), frame by frame: the maps of one frame are all that is in memory."""
    if output.shape != truth.shape or output.dim() != 4 or output.shape[-1] != 3:
        raise ValueError(f"two clips (F, H, W, 3) of one size were expected, found {tuple(output.shape)} and {tuple(truth.shape)}")
    return torch.stack([measure(*(rearrange(to_levels(x), "h w c -> 1 c h w") for x in pair)) for pair in zip(output, truth)])


def psnr(output: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per frame (F,), over the three channels of 8-bit RGB; infinite for equal frames."""
    from kornia.metrics import psnr

    return _framewise(lambda a, b: psnr(a, b, 255.0), output, truth)


def ssim_gaussian(output: Tensor, truth: Tensor) -> Tensor:
    """SSIM of the Gaussian family, per frame (F,): window 11 x 11, sigma 1.5, every channel alone, mean over channels and whole windows.

    kornia's `ssim(window_size=11, padding="valid")`, which equals scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1)`. Frames need 11 pixels a side.
    """
    from kornia.metrics import ssim

    def mean(a: Tensor, b: Tensor) -> Tensor:
        """Part by part, which stay in the processor's cache: torch unfolds what it filters in float64. Float32 is off by 5e-5 in whites."""
        corners = [(i, j) for i in range(0, a.shape[2] - 10, 118) for j in range(0, a.shape[3] - 10, 118)]
        parts = ([x[..., i:i + 128, j:j + 128].contiguous() for x in (a, b)] for i, j in corners)
        return torch.cat([ssim(*pair, 11, max_val=255.0, padding="valid").flatten() for pair in parts]).mean()

    if min(output.shape[1:3]) < 11:
        return torch.full((len(output),), math.nan, dtype=torch.float64)
    return _framewise(mean, output, truth)


def ssim_matlab(output: Tensor, truth: Tensor) -> Tensor:
    """SSIM of the MATLAB family, per frame (F,): the RGB frame is one H x W x 3 volume, window 11 x 11 x 11, sigma 1.5, edges repeated.

    Equals MATLAB's `ssim(A, ref)` on uint8 RGB arrays, which most deblurring tables since MPRNet report; its values are higher than the
    Gaussian family's, so the two must not be mixed. kornia's `ssim3d` reflects its borders, so it takes no volume of three slices.
    """
    from scipy.ndimage import gaussian_filter

    def ssim(a: Tensor, b: Tensor) -> Tensor:
        """With K = (0.01, 0.03) and biased covariances (Wang et al. 2004, eq. 13)."""
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        a, b = a[0].cpu().numpy(), b[0].cpu().numpy()
        mu_a, mu_b, aa, bb, ab = (gaussian_filter(x, 1.5, mode="nearest", truncate=3.5) for x in (a, b, a * a, b * b, a * b))
        var_a, var_b, cov = aa - mu_a**2, bb - mu_b**2, ab - mu_a * mu_b
        return torch.tensor(((2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))).mean())

    return _framewise(ssim, output, truth)


@functools.lru_cache(maxsize=2)
def lpips_model(download: bool = False) -> tuple[torch.nn.Module | None, str]:
    """(the LPIPS network with the alex backbone, "") or (None, why it is not there). Downloads only when `download` says so."""
    if importlib.util.find_spec("lpips") is None:
        return None, "the package lpips is not installed"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not download and not any(folder.glob(LPIPS_BACKBONE)):
        return None, f"the AlexNet weights are not on this machine ({LPIPS_BACKBONE} in {folder})"
    try:
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                  # it still asks torchvision in a way that is deprecated there
            return lpips.LPIPS(net="alex", verbose=False).eval().requires_grad_(False), ""
    except Exception as error:  # noqa: BLE001 - the library's many ways of failing all mean the same here: no column
        return None, f"its weights cannot be read ({error})"


def lpips_alex(output: Tensor, truth: Tensor) -> Tensor | None:
    """LPIPS 0.1 with the alex backbone per frame (F,), or None where its weights are not at hand (see `lpips_model`).

    Frames below 32 pixels a side, which the network cannot take, are NaN.
    """
    model, _ = lpips_model()
    if model is None:
        return None
    if min(output.shape[1:3]) < 32:
        return torch.full((len(output),), math.nan, dtype=torch.float64)
    model.to(output.device)
    a, b = (x.float().clamp(0, 1).movedim(-1, 1) * 2 - 1 for x in (output, truth))
    with torch.no_grad():
        return torch.cat([model(x[None], y[None]).flatten().double() for x, y in zip(a, b)])


def temporal_error(output: Tensor, truth: Tensor) -> Tensor:
    """Mean |(o[t+1] - o[t]) - (g[t+1] - g[t])| per pair of frames (F - 1,), in 1/255: how far changes over time are from the truth's."""
    error = output.double().clamp(0, 1) - truth.double().clamp(0, 1)
    return error.diff(dim=0).abs().mean(dim=(1, 2, 3)) * 255


def warp_error(output: Tensor, guide: Tensor) -> Tensor:
    """Mean |o[t] - warp(o[t+1])| per pair of frames (F - 1,), in 1/255: flicker along the motion of `guide` (the truth).

    The flow is `dense_flow` between the guide's frames. A pixel counts as far as the guide itself follows it, w = exp(-50 |g[t] -
    warp(g[t+1])|^2) (after Lai et al., Learning Blind Video Temporal Consistency), so occlusions do not count.
    """
    luma = to_luma(guide)
    values = []
    for t in range(len(output) - 1):
        flow = dense_flow(luma[t:t + 1, None], luma[t + 1:t + 2, None])
        now, later = (torch.cat([x[i:i + 1].float().clamp(0, 1).movedim(-1, 1) for x in (output, guide)], dim=1) for i in (t, t + 1))
        difference = now - warp(later, flow)
        weight = torch.exp(-50 * difference[:, 3:].square().sum(dim=1))
        values.append((weight * difference[:, :3].abs().mean(dim=1)).sum() / weight.sum().clamp_min(1e-6) * 255)
    return torch.stack(values).double() if values else output.new_zeros(0, dtype=torch.float64)


def to_luma(frames: Tensor) -> Tensor:
    """(F, H, W, 3) -> (F, H, W) float32 luma (BT.601 weights)."""
    return (frames.float().clamp(0, 1) * torch.tensor(LUMA, device=frames.device)).sum(dim=-1)


def sharpness(frames: Tensor) -> Tensor:
    """No-reference sharpness per frame (F,): the variance of the Laplacian of the luma in 8-bit levels (Pech-Pacheco et al. 2000).

    It grows with detail and with noise alike: read it beside the truth's own value.
    """
    y = to_luma(frames).double() * 255
    laplacian = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * y[:, 1:-1, 1:-1]
    return (laplacian - laplacian.mean(dim=(1, 2), keepdim=True)).square().mean(dim=(1, 2))              # var() warns of smaller frames


def color_shift(output: Tensor, reference: Tensor) -> Tensor:
    """How far a frame's mean color is from the reference's (the input's), per frame (F,): the largest channel, in 1/255."""
    means = output.double().clamp(0, 1).mean(dim=(1, 2)) - reference.double().clamp(0, 1).mean(dim=(1, 2))
    return means.abs().amax(dim=1) * 255


def mean(values: list[float]) -> float | None:
    """Mean of a column; None for an empty one. Infinite PSNR (equal frames) counts as MAX_PSNR."""
    known = [min(v, MAX_PSNR) if math.isinf(v) else v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else None


class Scorer:
    """Collects every measure over a clip that arrives in pieces; memory does not grow with the clip but for the numbers.

    `warp` and `lpips` switch the two slow ones off, `perceptual` those of `perceptual` on, as far as they are installed; `rate` is the
    clip's. `values` holds the values per frame; `result` gives their means.
    """

    def __init__(self, *, lpips: bool = True, warp: bool = True, perceptual: bool = False, rate: float = RATE):
        self.lpips, self.warp, self.perceptual, self.rate = lpips, warp, perceptual, rate
        self._spool = Spool() if perceptual and Spool.needed() else None
        self.values: dict[str, list[float]] = {key: [] for key in COLUMNS}
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def add(self, output: Tensor, truth: Tensor, reference: Tensor | None = None,
            tick: Callable[[float], object] = lambda part: None) -> None:
        """Score the next frames: output, truth and, for the color shift, the input they were made from; each (n, H, W, 3). `tick` is told
        before each of the slow measures which part of this is done."""
        found = {"sharpness": sharpness(output)}
        for i, measure in enumerate((psnr, ssim_gaussian, ssim_matlab)):
            tick(i / 4)
            found[measure.__name__] = measure(output, truth)
        tick(3 / 4)
        if self.lpips:
            found["lpips"] = lpips_alex(output, truth)
        if self.perceptual:
            found["flip"] = flip(output, truth)
        if self._spool:
            self._spool.add(output, truth)
        if reference is not None:
            found["color_shift"] = color_shift(output, reference)
        joined = (output, truth) if self._last is None else tuple(torch.cat([last, x]) for last, x in zip(self._last, (output, truth)))
        found["temporal_error"] = temporal_error(*joined)
        if self.warp:
            found["warp_error"] = warp_error(*joined)
        self._last = (output[-1:].clone(), truth[-1:].clone())
        for key, values in found.items():
            if values is not None:
                self.values[key] += values.tolist()

    def result(self) -> dict[str, float | None]:
        """Means over the frames by column; None where a measure was not taken. What looks at the whole clip is measured now."""
        if self._spool:
            self.values |= self._spool.measure(self.rate)
            self._spool = None
        return {key: mean(values) for key, values in self.values.items()}


def pool(results: list[tuple[int, dict[str, float | None]]]) -> dict[str, float | None]:
    """Means over clips, weighted by their numbers of frames: the mean over all frames, as the 1111-image protocol has it."""
    total: dict[str, float | None] = {}
    for key in COLUMNS:
        known = [(n, r[key]) for n, r in results if r.get(key) is not None]
        total[key] = sum(n * v for n, v in known) / sum(n for n, _ in known) if known else None
    return total
