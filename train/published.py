"""Published results on GoPro and DVD, to stand beside a table of one's own."""
from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One line of the literature; None where a paper gives no number. PSNR in dB on full frames, RGB."""

    method: str
    gopro_psnr: float | None = None
    gopro_ssim: float | None = None
    gopro_lpips: float | None = None
    dvd_psnr: float | None = None
    parameters: float | None = None       # millions


# GoPro: 1111 full frames, `blur`; its SSIM column mixes both families, as the papers do. DVD: 10 test clips, 1000 frames.
PUBLISHED = (
    Published("blurred input", 25.63, 0.858),
    Published("Nah 2017 (video table)", 29.97),
    Published("SRN", 30.29, 0.901, None, 29.98, 6.8),
    Published("ESTRNN", 31.07, 0.902, None, 32.01, 2.2),
    Published("CDVD-TSP", 31.67, 0.928, None, 32.13, 16.2),
    Published("NAFNet w32", 32.87, None, None, None, 17.1),
    Published("NAFNet w64", 33.71, None, 0.0781, None, 67.9),
    Published("DSTNet+", 34.42, 0.969, None, 33.93, 3.9),
    Published("BSSTNet", 35.98, 0.979, None, 34.95),
    Published("DiffBIR, 50 steps", 26.15, None, 0.2366),
    Published("FideDiff (SD 2.1), 1 step", 28.79, None, 0.0831),
)


def published_cells() -> list[list[str]]:
    """The literature as the cells of a table."""
    columns = {"gopro_psnr": ("GoPro PSNR dB", 2), "gopro_ssim": ("GoPro SSIM", 3), "gopro_lpips": ("GoPro LPIPS", 4),
               "dvd_psnr": ("DVD PSNR dB", 2), "parameters": ("parameters, M", 1)}
    rows = [["published", *(title for title, _ in columns.values())]]
    for p in PUBLISHED:
        values = [(getattr(p, column), digits) for column, (_, digits) in columns.items()]
        rows.append([p.method, *("-" if value is None else f"{value:.{digits}f}" for value, digits in values)])
    return rows
