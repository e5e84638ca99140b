"""Decoded pictures <-> float RGB with the exact matrix and range, for any subsampling and bit depth.

Y'CbCr <-> R'G'B' as in ITU-R BT.601/709/2020 and H.273; the transfer curve is never touched, only carried as a tag.
Formats that are packed are first rearranged by libswscale into the planar format of the same depth, which is lossless.
"""
from __future__ import annotations

import re
from dataclasses import dataclass

import av
import numpy as np

UNSPECIFIED = 2                                                # in H.273: matrix, primaries and transfer alike
PQ, HLG, P3 = 16, 18, (11, 12)                                 # transfers; primaries
RGB, BT709, BT470BG, SMPTE170M, BT2020 = 0, 1, 5, 6, 9         # matrix coefficients by their H.273 numbers
# matrix number -> (K_R, K_B); every other number is read and written with BT.709's, so an unchanged pixel stays what it was
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
        9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}

# packed formats: which channels follow each other (y: grey, 0: nothing) and the type of one value
PACKED = {name + suffix: (name, dtype) for names, suffix, dtype in (
    (("rgb", "bgr"), "24", "u1"), (("rgba", "bgra", "argb", "abgr", "rgb0", "bgr0", "0rgb", "0bgr"), "", "u1"),
    (("rgb", "bgr"), "48le", "<u2"), (("rgb", "bgr"), "48be", ">u2"), (("rgba", "bgra"), "64le", "<u2"), (("rgba", "bgra"), "64be", ">u2"),
) for name in names}
PACKED |= {"ya8": ("ya", "u1"), "ya16le": ("ya", "<u2"), "ya16be": ("ya", ">u2")}
# other formats -> one of the same depth that is read here; libswscale only rearranges the values
SAME_DEPTH = {
    "pal8": "rgba", "gray16be": "gray16le", "nv12": "yuv420p", "nv21": "yuv420p", "nv16": "yuv422p", "nv24": "yuv444p",
    "yuyv422": "yuv422p", "uyvy422": "yuv422p", "p010le": "yuv420p10le", "p016le": "yuv420p16le", "p210le": "yuv422p10le",
    "y210le": "yuv422p10le", "monob": "gray", "monow": "gray", "yvyu422": "yuv422p", "uyva": "yuva444p", "vuya": "yuva444p",
    "ayuv": "yuva444p", "vuyx": "yuv444p", "vyu444": "yuv444p", "xv30le": "yuv444p10le", "v30xle": "yuv444p10le",
    "p012le": "yuv420p12le", "p212le": "yuv422p12le", "p216le": "yuv422p16le", "p410le": "yuv444p10le", "p412le": "yuv444p12le",
    "p416le": "yuv444p16le", "y212le": "yuv422p12le", "y216le": "yuv422p16le", "xv36le": "yuv444p12le", "xv48le": "yuv444p16le",
    "ayuv64le": "yuva444p16le",
}
_FORMAT = re.compile(r"^(?P<kind>yuvj|yuva|yuv|gbra|gbr|gray)(?P<sub>4\d\d)?p?(?P<depth>f32|f16|\d+)?(?P<endian>le|be)?$")


@dataclass(frozen=True)
class ColorTags:
    """What a stream says about its colour: H.273 numbers and whether code values span the full range."""

    matrix: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    full_range: bool = False


@dataclass(frozen=True)
class Layout:
    """The meaning of a planar pixel format's name."""

    kind: str              # "yuv", "gbr" or "gray"
    alpha: bool
    depth: int             # bits, 16 or 32 for floats
    floating: bool
    step: tuple[int, int]  # luma samples per chroma sample, (down, across)


def layout(pix_fmt: str) -> Layout:
    """What `pix_fmt` means. Raises ValueError for a format that is not known."""
    name = SAME_DEPTH.get(pix_fmt, pix_fmt)
    if name in PACKED:
        channels, dtype = PACKED[name]
        return Layout("gray" if "y" in channels else "gbr", "a" in channels, 8 * np.dtype(dtype).itemsize, False, (1, 1))
    match = _FORMAT.match(name)
    if not match:
        raise ValueError(f"pixel format {pix_fmt} is not known")
    depth = match["depth"] or "8"
    steps = {"420": (2, 2), "422": (1, 2), "444": (1, 1), "440": (2, 1), "411": (1, 4), "410": (4, 4), None: (1, 1)}
    kind = match["kind"] if match["kind"] == "gray" else match["kind"][:3]
    return Layout(kind, match["kind"] in ("yuva", "gbra"), int(depth.lstrip("f")), depth.startswith("f"), steps[match["sub"]])


def layout_of(picture: av.VideoFrame | av.VideoCodecContext) -> Layout:
    """What the picture's pixel format means; of one that is not known, what `to_rgb` has it converted to."""
    try:
        return layout(picture.format.name)
    except ValueError:
        return layout(_sixteen_bits(picture.format))


def _sixteen_bits(format: av.VideoFormat) -> str:
    """The format of 16 bits, RGB or Y'CbCr like `format`, that takes the place of a rare one."""
    alpha = any(component.is_alpha for component in format.components)
    if format.is_rgb or format.is_bayer or format.name.startswith("xyz"):
        return "rgba64le" if alpha else "rgb48le"
    return "yuva444p16le" if alpha else "yuv444p16le"


def complete_tags(tags: ColorTags, kind: str, height: int, width: int) -> ColorTags:
    """Fill in an unspecified matrix the way players do: RGB formats are RGB, HD is BT.709, smaller is BT.601."""
    if kind == "gbr":
        return ColorTags(RGB, tags.primaries, tags.transfer, True)
    if tags.matrix not in (UNSPECIFIED, RGB):
        return tags
    matrix = BT709 if width >= 1280 or height > 576 else SMPTE170M
    return ColorTags(matrix, tags.primaries, tags.transfer, tags.full_range)


def is_wide(tags: ColorTags) -> bool:
    """Whether the colours are other ones than every program assumes where nothing is said: HDR, BT.2020 or P3."""
    return tags.transfer in (PQ, HLG) or tags.primaries in (BT2020, *P3)


def _scales(depth: int, full_range: bool) -> tuple[float, float, float, float]:
    """(luma offset, luma span, chroma offset, chroma span) in code values of `depth` bits."""
    if full_range:
        top = float(2 ** depth - 1)
        return 0.0, top, float(2 ** (depth - 1)), top
    unit = 2.0 ** (depth - 8)
    return 16 * unit, 219 * unit, 128 * unit, 224 * unit


def _plane(frame: av.VideoFrame, index: int, dtype: np.dtype) -> np.ndarray:
    plane = frame.planes[index]
    rows = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size].reshape(plane.height, plane.line_size)
    return rows[:, : plane.width * dtype.itemsize].view(dtype)


def _part(c: np.ndarray, axis: int, start: int | None, stop: int | None, step: int | None = None) -> np.ndarray:
    """c[start:stop:step] along `axis` of a plane, a view."""
    return c[start:stop:step] if axis == 0 else c[:, start:stop:step]


def _upsample(c: np.ndarray, step: int, size: int, centred: bool, axis: int) -> np.ndarray:
    """Linear interpolation of a plane along `axis` by 2 (repetition for other steps), cut to `size` samples."""
    if step == 1:
        return c
    if step != 2:
        return _part(np.repeat(c, step, axis), axis, 0, size)
    shape = list(c.shape)
    shape[axis] *= 2
    out = np.empty(shape, c.dtype)
    even, odd = _part(out, axis, 0, None, 2), _part(out, axis, 1, None, 2)
    first, last = _part(c, axis, 0, 1), _part(c, axis, -1, None)
    if centred:                                                # samples lie between two luma samples
        near, far = c * np.float32(0.75), c * np.float32(0.25)
        np.add(_part(near, axis, 1, None), _part(far, axis, 0, -1), out=_part(even, axis, 1, None))
        np.add(_part(near, axis, 0, -1), _part(far, axis, 1, None), out=_part(odd, axis, 0, -1))
        _part(even, axis, 0, 1)[...] = first
    else:                                                      # samples lie on every second luma sample
        even[...] = c
        half = c * np.float32(0.5)
        np.add(_part(half, axis, 0, -1), _part(half, axis, 1, None), out=_part(odd, axis, 0, -1))
    _part(odd, axis, -1, None)[...] = last
    return _part(out, axis, 0, size)


def _downsample(c: np.ndarray, step: int, centred: bool, axis: int) -> np.ndarray:
    """The inverse of `_upsample`: low-passes that give back exactly the samples that were interpolated, so that a picture that is
    not changed keeps its chroma: (-1 3 3 -1)/4 for samples in between, (-1 2 6 2 -1)/8 for samples on luma positions.
    """
    if step == 1:
        return c
    if c.shape[axis] % step:
        c = np.concatenate([c] + [_part(c, axis, -1, None)] * (step - c.shape[axis] % step), axis)
    if step != 2:
        return sum(_part(c, axis, i, None, step) for i in range(step)) * np.float32(1 / step)
    even, odd = (np.ascontiguousarray(_part(c, axis, i, None, 2)) for i in (0, 1))
    if centred:
        out = (even + odd) * np.float32(0.75)
        even *= np.float32(0.25)
        odd *= np.float32(0.25)
        _subtract_neighbours(out, odd, even, axis, even, odd)
    else:
        out = even * np.float32(0.75)
        even *= np.float32(0.125)
        odd *= np.float32(-0.25)
        out -= odd
        _subtract_neighbours(out, odd, None, axis, odd, None)
        mirrored = _part(even, axis, 1, 2) if even.shape[axis] > 1 else even
        _subtract_neighbours(out, even, even, axis, mirrored, even)
    return out


def _subtract_neighbours(out: np.ndarray, before: np.ndarray, after: np.ndarray | None, axis: int, first: np.ndarray,
                         last: np.ndarray | None) -> None:
    """out[i] -= before[i-1] + after[i+1] along `axis`; beyond the ends stand the first sample of `first` and the last of `last`."""
    _part(out, axis, 1, None)[...] -= _part(before, axis, 0, -1)
    _part(out, axis, 0, 1)[...] -= _part(first, axis, 0, 1)
    if after is not None:
        _part(out, axis, 0, -1)[...] -= _part(after, axis, 1, None)
        _part(out, axis, -1, None)[...] -= _part(last, axis, -1, None)


def to_rgb(frame: av.VideoFrame, tags: ColorTags, *, centred_chroma: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """A decoded frame -> (rgb (H,W,3), alpha (H,W) or None), float32 in [0,1] (float formats are passed on as they are).

    `tags` must be complete (see `complete_tags`). `centred_chroma`: 4:2:0 as in JPEG instead of MPEG.
    """
    if frame.format.name in SAME_DEPTH:
        frame = frame.reformat(format=SAME_DEPTH[frame.format.name])
    try:
        kind = layout(frame.format.name)
    except ValueError:                                         # rare: libswscale widens it, matrix and range stay what they are
        frame = frame.reformat(format=_sixteen_bits(frame.format))
        kind = layout(frame.format.name)
    if frame.format.name in PACKED:
        return _unpack(frame)
    height, width = frame.height, frame.width
    big = frame.format.name.endswith("be")
    dtype = np.dtype(f"{'>' if big else '<'}{'f' if kind.floating else 'u'}{1 if kind.depth <= 8 else 2 if kind.depth <= 16 else 4}")
    top = 1.0 if kind.floating else float(2 ** kind.depth - 1)
    out = np.empty((height, width, 3), np.float32)
    alpha = None
    if kind.alpha:
        alpha = _plane(frame, 3, dtype).astype(np.float32) / np.float32(top)
    if kind.kind == "gbr":
        for channel, index in enumerate((2, 0, 1)):            # stored as G, B, R
            np.multiply(_plane(frame, index, dtype), np.float32(1 / top), out=out[..., channel], casting="unsafe")
        return out, alpha
    y0, y_span, c0, c_span = (0.0, 1.0, 0.0, 1.0) if kind.floating else _scales(kind.depth, tags.full_range)
    luma = (_plane(frame, 0, dtype).astype(np.float32) - np.float32(y0)) * np.float32(1 / y_span)
    if kind.kind == "gray":
        out[...] = luma[..., None]
    else:
        cb, cr = ((_plane(frame, i, dtype).astype(np.float32) - np.float32(c0)) * np.float32(1 / c_span) for i in (1, 2))
        down, across = kind.step
        cb, cr = (_upsample(_upsample(c, down, height, True, 0), across, width, centred_chroma, 1) for c in (cb, cr))
        kr, kb = LUMA.get(tags.matrix, LUMA[BT709])
        kg = 1 - kr - kb
        np.add(luma, np.float32(2 * (1 - kr)) * cr, out=out[..., 0])
        np.add(luma, np.float32(2 * (1 - kb)) * cb, out=out[..., 2])
        np.add(luma, np.float32(-2 * (1 - kb) * kb / kg) * cb + np.float32(-2 * (1 - kr) * kr / kg) * cr, out=out[..., 1])
    if not kind.floating:
        np.clip(out, 0, 1, out=out)
    return out, alpha


def _unpack(frame: av.VideoFrame) -> tuple[np.ndarray, np.ndarray | None]:
    """A packed picture -> (rgb, alpha or None)."""
    channels, name = PACKED[frame.format.name]
    dtype, plane = np.dtype(name), frame.planes[0]
    rows = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size].reshape(plane.height, plane.line_size)
    values = rows[:, : frame.width * len(channels) * dtype.itemsize].view(dtype).reshape(frame.height, frame.width, len(channels))
    scale = np.float32(1 / np.iinfo(dtype).max)
    rgb = np.empty((frame.height, frame.width, 3), np.float32)
    for i, channel in enumerate("rgb"):
        np.multiply(values[..., channels.index("y" if "y" in channels else channel)], scale, out=rgb[..., i], casting="unsafe")
    alpha = values[..., channels.index("a")].astype(np.float32) * scale if "a" in channels else None
    return rgb, alpha


def luma_of(rgb: np.ndarray, matrix: int = BT709) -> np.ndarray:
    """(..., 3) RGB -> (...) luma with the matrix's weights."""
    kr, kb = LUMA.get(matrix, LUMA[BT709])
    return rgb @ np.array([kr, 1 - kr - kb, kb], np.float32)


def from_rgb(rgb: np.ndarray, alpha: np.ndarray | None, pix_fmt: str, tags: ColorTags, *, gray: bool = False) -> av.VideoFrame:
    """(H,W,3) float32 RGB in [0,1] and optional alpha (H,W) -> a frame in the planar or PNG format `pix_fmt`, tagged with `tags`.

    Values are rounded to nearest. `gray` writes neutral chroma. A missing alpha plane is written as opaque.
    """
    height, width = rgb.shape[:2]
    if pix_fmt in _PNG:
        return _packed(rgb, alpha, pix_fmt, gray)
    kind = layout(pix_fmt)
    frame = av.VideoFrame(width, height, pix_fmt)
    dtype = np.dtype("u1" if kind.depth <= 8 else "<u2")
    top = float(2 ** kind.depth - 1)
    planes: list[np.ndarray] = []
    if kind.kind == "gbr":
        planes = [rgb[..., i] * np.float32(top) for i in (1, 2, 0)]
    else:
        y0, y_span, c0, c_span = _scales(kind.depth, tags.full_range)
        kr, kb = LUMA.get(tags.matrix, LUMA[BT709])
        luma = luma_of(rgb, tags.matrix)
        planes = [luma * np.float32(y_span) + np.float32(y0)]
        if kind.kind == "yuv":
            down, across = kind.step
            for channel, k in ((2, kb), (0, kr)):
                c = (rgb[..., channel] - luma) * np.float32(0.0 if gray else c_span / (2 * (1 - k)))
                planes.append(_downsample(_downsample(c, across, False, 1), down, True, 0) + np.float32(c0))
    if kind.alpha:
        planes.append(np.full((height, width), top, np.float32) if alpha is None else alpha * np.float32(top))
    for index, values in enumerate(planes):
        _fill(frame, index, values, top, dtype)
    frame.colorspace, frame.color_range = tags.matrix, 2 if tags.full_range else 1
    return frame


# packed formats of the PNG encoder: (channels, bits)
_PNG = {"rgb24": (3, 8), "rgba": (4, 8), "rgb48be": (3, 16), "rgba64be": (4, 16), "gray": (1, 8), "gray16be": (1, 16),
           "ya8": (2, 8), "ya16be": (2, 16)}


def _packed(rgb: np.ndarray, alpha: np.ndarray | None, pix_fmt: str, gray: bool) -> av.VideoFrame:
    channels, bits = _PNG[pix_fmt]
    height, width = rgb.shape[:2]
    parts = [luma_of(rgb)[..., None]] if channels <= 2 else [luma_of(rgb)[..., None].repeat(3, 2) if gray else rgb]
    if channels % 2 == 0:
        parts.append(np.ones((height, width, 1), np.float32) if alpha is None else alpha[..., None])
    values = np.concatenate(parts, axis=2).reshape(height, width * channels)
    frame = av.VideoFrame(width, height, pix_fmt)
    _fill(frame, 0, values * np.float32(2 ** bits - 1), float(2 ** bits - 1), np.dtype("u1" if bits == 8 else ">u2"))
    return frame


def _fill(frame: av.VideoFrame, index: int, values: np.ndarray, top: float, dtype: np.dtype) -> None:
    plane = frame.planes[index]
    rows = np.zeros((plane.height, plane.line_size // dtype.itemsize), dtype)
    rounded = values + np.float32(0.5)
    rows[:, : values.shape[1]] = np.clip(rounded, 0, top, out=rounded)         # the conversion to integers cuts the fraction off
    plane.update(rows)
