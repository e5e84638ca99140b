"""Decoded pictures <-> float RGB with the exact matrix and range, for any subsampling and bit depth.

Y'CbCr <-> R'G'B' as in ITU-R BT.601/709/2020 and H.273; the transfer curve is never touched, only carried as a tag.
Formats that are packed are first rearranged by libswscale into the planar format of the same depth, which is lossless.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import av.filter
import av.video.format
import numpy as np

from ..errors import UserError

STRIP_ROWS = 64
_MAJOR = int(av.__version__.partition(".")[0])                 # FFmpeg 7 up to PyAV 15, 8.0 in 16
UNSPECIFIED = 2                                                # in H.273: matrix, primaries and transfer alike
PQ, HLG, P3 = 16, 18, (11, 12)                                 # transfers; primaries
RGB, BT709, BT470BG, SMPTE170M, BT2020 = 0, 1, 5, 6, 9         # matrix coefficients by their H.273 numbers
YCGCO = 8
# matrix number -> (K_R, K_B); every other number is read and written with BT.709's, so an unchanged pixel stays what it was
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087),
        9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
CONSTANT_LUMINANCE = 10                                         # of BT.2020, taken for its usual matrix
KNOWN_MATRICES = {RGB, UNSPECIFIED, YCGCO, *LUMA} - {CONSTANT_LUMINANCE}

_PLANAR = re.compile(r"(yuvj|yuva|yuv|gbra|gbr|gray)(4\d\d)?p?(f32|f16|\d+)?(le|be)?")
_PACKED_FLOATS = re.compile(r"(ya|rgba?)f(16|32)(le|be)")


@dataclass(frozen=True)
class ColorTags:
    """What a stream says about its color: H.273 numbers and whether code values span the full range."""

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


@functools.cache
def read_as(pix_fmt: str) -> str:
    """The format that is read in the place of `pix_fmt`: itself, or one of the same kind and depth, for which libswscale only rearranges
    the values; rare RGB is widened to 8 or 16 bits, grey with opacity to RGB. Raises ValueError for a format that is not known.
    """
    if _PLANAR.fullmatch(pix_fmt):
        return pix_fmt
    if pix_fmt in ("pal8", "monob", "monow"):
        return "gbrap" if pix_fmt == "pal8" else "gray"
    format = av.VideoFormat(pix_fmt, 16, 16)
    alpha, size = any(part.is_alpha for part in format.components), (format.chroma_width(), format.chroma_height())
    depth = max((part.bits for part in format.components), default=16)
    if _PACKED_FLOATS.fullmatch(pix_fmt):
        return f"gbr{'ap' if alpha else 'p'}f32le"
    if format.is_rgb or format.is_bayer or pix_fmt.startswith(("xyz", "ya")):
        bits = "10le" if pix_fmt.startswith("x2") else "16le" * (depth > 8 or format.is_bayer)
        return ("gbrap" if alpha else "gbrp") + bits
    steps = {(8, 8): "420", (8, 16): "422", (4, 16): "411"}.get(size, "444")
    planar = f"yuv{'a' if alpha else ''}{steps}p" + (f"{depth}le" if depth > 8 else "")
    return planar if planar in av.video.format.names else "yuva444p16le" if alpha else "yuv444p16le"


@functools.cache
def layout(pix_fmt: str) -> Layout:
    """What `pix_fmt`, or what is read in its place, means. Raises ValueError for a format that is not known."""
    name = read_as(pix_fmt)
    format = av.VideoFormat(name, 16, 16)
    alpha = any(part.is_alpha for part in format.components)
    kind = "gray" if len(format.components) - alpha == 1 or pix_fmt.startswith("ya") else "gbr" if format.is_rgb else "yuv"
    depth = max(8, *(part.bits for part in format.components))
    return Layout(kind, alpha, depth, bool(re.search("f(16|32)", name)), (16 // format.chroma_height(), 16 // format.chroma_width()))


def complete_tags(tags: ColorTags, kind: str, height: int, width: int) -> ColorTags:
    """Fill in an unspecified matrix the way players do: RGB formats are RGB, HD is BT.709, smaller is BT.601."""
    if kind == "gbr":
        return replace(tags, matrix=RGB, full_range=True)
    if tags.matrix not in (UNSPECIFIED, RGB):
        return tags
    return replace(tags, matrix=BT709 if width >= 1280 or height > 576 else SMPTE170M)


def is_wide(tags: ColorTags) -> bool:
    """Whether the colors are other ones than every program assumes where nothing is said: HDR, BT.2020 or P3."""
    return tags.transfer in (PQ, HLG) or tags.primaries in (BT2020, *P3)


def _scales(depth: int, tags: ColorTags) -> tuple[float, float, float, float]:
    """(luma offset, luma span, chroma offset, chroma span) in code values of `depth` bits."""
    if tags.full_range:
        top = float(2 ** depth - 1)
        return 0.0, top, float(2 ** (depth - 1)), top
    unit = 2.0 ** (depth - 8)
    return 16 * unit, 219 * unit, 128 * unit, (219 if tags.matrix == YCGCO else 224) * unit        # H.273 limits the range of R, G, B there


def _plane(frame: av.VideoFrame, index: int, dtype: np.dtype) -> np.ndarray:
    """A plane's values (height, width), a view."""
    plane = frame.planes[index]
    rows = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size].reshape(plane.height, plane.line_size)
    return rows[:, : plane.width * dtype.itemsize].view(dtype)


def planes_of(frame: av.VideoFrame) -> list[np.ndarray]:
    """Every plane's values (height, width) in the format that is read."""
    frame = plain(frame)
    dtype = _type_of(frame, layout(frame.format.name))
    return [_plane(frame, i, dtype) for i in range(len(frame.planes))]


def differ(one: av.VideoFrame, other: av.VideoFrame) -> bool:
    """Whether two pictures of one format are not the same in every value."""
    return any(not np.array_equal(a, b) for a, b in zip(planes_of(one), planes_of(other), strict=True))


def plain(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame in a format that is read here, its rows from the top: Windows keeps RGB from the bottom (a negative line size). Raises
    UserError."""
    if any(plane.line_size < 0 for plane in frame.planes):
        graph = _graph(frame.format.name, frame.width, frame.height, ("hflip",), ("hflip",))           # there and back: a copy
        graph.push(frame)
        frame = graph.pull()
    given = frame.format.name
    if (name := read_as(given)) == given:
        return frame
    try:
        if given == "pal8" and _MAJOR < 16:
            frame, given = frame.reformat(format="rgba"), "rgba"
        floats = _PACKED_FLOATS.fullmatch(given)
        if floats or given in _ORDER and _MAJOR < 16:
            return _unpacked(frame, name, _ORDER[floats[1] if floats else given])
        if _MAJOR < 17:                                        # it ends the process where libswscale cannot, which a graph says
            _graph(given, 16, 16, ("format", name))
        return frame.reformat(format=name)                     # matrix and range stay what they are
    except (av.FFmpegError, ValueError):
        raise UserError(f"pixels stored as {given} cannot be read: FFmpeg converts them into nothing else; "
                        "convert the clip first") from None


def _graph(pix_fmt: str, width: int, height: int, *filters: tuple[str, ...]) -> av.filter.Graph:
    """Filters (name, arguments) behind one another, for frames of this kind."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=pix_fmt, time_base=Fraction(1, 25))
    graph.link_nodes(source, *(graph.add(*each) for each in filters), graph.add("buffersink")).configure()
    return graph


# where green, blue, red and opacity stand. libswscale ends the process over yaf32, cuts off other floats, and up to FFmpeg 7 rounds rgba
_ORDER = {"ya": (0, 0, 0, 1), "rgb": (1, 2, 0), "rgba": (1, 2, 0, 3), "bgra": (1, 0, 2, 3), "argb": (2, 3, 1, 0), "abgr": (2, 1, 3, 0)}


def _unpacked(frame: av.VideoFrame, name: str, order: tuple[int, ...]) -> av.VideoFrame:
    """The values that stand side by side as the planes of `name`, green, blue, red and opacity."""
    planar, dtype, count = av.VideoFrame(frame.width, frame.height, name), _type_of(frame, layout(frame.format.name)), 1 + max(order)
    values = _plane(frame, 0, np.dtype(("V", dtype.itemsize * count))).view(dtype).reshape(frame.height, frame.width, count)
    for index, place in enumerate(order):
        rows = _empty_plane(planar, index, _type_of(planar, layout(name)))
        rows[:, :frame.width] = values[..., place]
        planar.planes[index].update(rows)
    return planar


def beyond_limits(frame: av.VideoFrame, tags: ColorTags) -> bool:
    """Whether half a percent of the picture is clearly brighter than limited range's white or darker than its black (235 and 16 of 255)."""
    frame = plain(frame)
    kind = layout(frame.format.name)
    if kind.kind == "gbr" or kind.floating or tags.full_range:
        return False
    luma, unit = _plane(frame, 0, _type_of(frame, kind)), 2 ** (kind.depth - 8)
    return int(np.count_nonzero((luma > 239 * unit) | (luma < 12 * unit))) > luma.size / 200


def _type_of(frame: av.VideoFrame, kind: Layout) -> np.dtype:
    """The type of a planar format's values."""
    end, depth = ">" if frame.format.name.endswith("be") else "<", max(part.bits for part in frame.format.components)
    return np.dtype(f"{end}{'f' if kind.floating else 'u'}{1 if depth <= 8 else 2 if depth <= 16 else 4}")


def _upsample(c: np.ndarray, step: int, size: int, centred: bool, axis: int) -> np.ndarray:
    """Linear interpolation of a plane along `axis` by 2 (repetition for other steps), cut to `size` samples. `centred`: the samples lie
    between two luma samples, not on every second one.
    """
    if step == 1:
        return c
    c = c.swapaxes(0, axis)
    if step != 2:
        return np.repeat(c, step, 0)[:size].swapaxes(0, axis)
    before, after = np.concatenate([c[:1], c[:-1]]), np.concatenate([c[1:], c[-1:]])
    near, far = (np.float32(0.75), np.float32(0.25)) if centred else (np.float32(0.5), np.float32(0.5))
    even, odd = c * near + before * far if centred else c, c * near + after * far
    return np.stack([even, odd], 1).reshape(-1, c.shape[1])[:size].swapaxes(0, axis)


# low-passes that give back exactly the samples that `_upsample` has interpolated: a picture that is not changed keeps its chroma
_TAPS = {(2, True): (-0.25, 0.75, 0.75, -0.25), (2, False): (-0.125, 0.25, 0.75, 0.25, -0.125)}


def _downsample(c: np.ndarray, step: int, centred: bool, axis: int) -> np.ndarray:
    """The inverse of `_upsample`; the mean of each `step` samples for other steps than 2."""
    if step == 1:
        return c
    c, taps = c.swapaxes(0, axis), np.float32(_TAPS.get((step, centred), [1 / step] * step))
    c = np.pad(c, ((0, -len(c) % step), (0, 0)), "edge")
    length, reach = len(c), (len(taps) - step + 1) // 2
    c = np.pad(c, ((reach, reach), (0, 0)), "symmetric" if centred else "reflect")
    parts, middle = [c[i:i + length:step] for i in range(len(taps))], len(taps) // 2
    out = parts[middle] * taps[middle] if len(taps) % 2 else np.float32(0)
    for i in reversed(range(middle)):                          # both halves are alike
        out = out + (parts[i] + parts[-1 - i]) * taps[i]
    return out.swapaxes(0, axis)


# where 4:2:0's chroma lies -> whether halfway between two luma samples, (down, across); JPEG, MPEG-1: center, BT.2020: topleft
CHROMA = {"left": (True, False), "center": (True, True), "topleft": (False, False), "top": (False, True)}


def to_rgb(frame: av.VideoFrame, tags: ColorTags, *, chroma: str = "left") -> tuple[np.ndarray, np.ndarray | None]:
    """A decoded frame -> (rgb (H,W,3), alpha (H,W) or None), float32 in [0,1] (float formats are passed on as they are).

    `tags` must be complete (see `complete_tags`). `chroma`: where 4:2:0's samples lie, a key of `CHROMA`.
    """
    bits, frame = [part.bits for part in frame.format.components], plain(frame)
    kind, height, width = layout(frame.format.name), frame.height, frame.width
    dtype = _type_of(frame, kind)
    top = 1.0 if kind.floating else float(2 ** kind.depth - 1)
    out = np.empty((height, width, 3), np.float32)
    alpha = None
    if kind.alpha:
        alpha = _plane(frame, 3, dtype).astype(np.float32) / np.float32(top)
    if kind.kind == "gbr":
        for channel, index in enumerate((2, 0, 1)):            # stored as G, B, R
            values, most = _plane(frame, index, dtype), top
            if len(bits) > 2 and bits[channel] < 8:            # libswscale widens these by shifting: white is 248
                values, most = values >> 8 - bits[channel], 2 ** bits[channel] - 1
            np.multiply(values, np.float32(1 / most), out=out[..., channel], casting="unsafe")
        return out, alpha
    y0, y_span, c0, c_span = (0.0, 1.0, 0.0, 1.0) if kind.floating else _scales(kind.depth, tags)
    luma, chromas = _plane(frame, 0, dtype), []
    if kind.kind == "yuv":
        (down, across), (between_rows, between_columns) = kind.step, CHROMA.get(chroma, CHROMA["left"])
        chromas = [_upsample(_scaled(_plane(frame, i, dtype), c0, c_span), down, height, between_rows, 0) for i in (1, 2)]
    for rows in _strips(height):
        part, y = out[rows], _scaled(luma[rows], y0, y_span)
        if chromas:
            _join(y, *(_upsample(c[rows], across, width, between_columns, 1) for c in chromas), tags.matrix, part)
        else:
            part[...] = y[..., None]
        if not kind.floating:
            np.clip(part, 0, 1, out=part)
    return out, alpha


def _strips(height: int) -> Iterator[slice]:
    """Rows that are worked on together: what lies between a large picture's planes and its RGB then stays in the cache."""
    return (slice(start, min(start + STRIP_ROWS, height)) for start in range(0, height, STRIP_ROWS))


def _scaled(values: np.ndarray, offset: float, span: float) -> np.ndarray:
    """A plane's code values as float32, 0 at `offset`, 1 a `span` higher."""
    return (values.astype(np.float32) - np.float32(offset)) * np.float32(1 / span)


def _join(luma: np.ndarray, cb: np.ndarray, cr: np.ndarray, matrix: int, out: np.ndarray) -> None:
    """Y'CbCr -> R'G'B', into `out`."""
    if matrix == YCGCO:                                        # H.273's equations: Cb is Cg, Cr is Co
        np.add(luma, cr - cb, out=out[..., 0])
        np.add(luma, cb, out=out[..., 1])
        np.subtract(luma, cr + cb, out=out[..., 2])
        return
    kr, kb = LUMA.get(matrix, LUMA[BT709])
    kg = 1 - kr - kb
    np.add(luma, np.float32(2 * (1 - kr)) * cr, out=out[..., 0])
    np.add(luma, np.float32(2 * (1 - kb)) * cb, out=out[..., 2])
    np.add(luma, np.float32(-2 * (1 - kb) * kb / kg) * cb + np.float32(-2 * (1 - kr) * kr / kg) * cr, out=out[..., 1])


def luma_of(rgb: np.ndarray, matrix: int = BT709) -> np.ndarray:
    """(..., 3) RGB -> (...) luma with the matrix's weights."""
    kr, kb = (0.25, 0.25) if matrix == YCGCO else LUMA.get(matrix, LUMA[BT709])
    return rgb @ np.array([kr, 1 - kr - kb, kb], np.float32)


def from_rgb(rgb: np.ndarray, alpha: np.ndarray | None, pix_fmt: str, tags: ColorTags, *, gray: bool = False,
             chroma: str = "left") -> av.VideoFrame:
    """(H,W,3) float32 RGB in [0,1] and optional alpha (H,W) -> a frame in the planar or PNG format `pix_fmt`, tagged with `tags`.

    Values are rounded to nearest. `gray` writes neutral chroma. A missing alpha plane is written as opaque.
    """
    height, width = rgb.shape[:2]
    if pix_fmt in OF_PNG:
        return _packed(rgb, alpha, pix_fmt, gray)
    kind = layout(pix_fmt)
    frame = av.VideoFrame(width, height, pix_fmt)
    dtype, top = np.dtype("u1" if kind.depth <= 8 else "<u2"), float(2 ** kind.depth - 1)
    planes = [_empty_plane(frame, i, dtype) for i in range(len(frame.planes))]
    if kind.kind == "gbr":
        for plane, channel in zip(planes, (1, 2, 0)):
            for rows in _strips(height):
                _fill(plane[rows], rgb[rows, :, channel] * np.float32(top), top)
    else:
        y0, y_span, c0, c_span = _scales(kind.depth, tags)
        (down, across), (between_rows, between_columns) = kind.step, CHROMA[chroma]
        narrow = [[], []]                                      # chroma, across done, a strip after the other
        for rows in _strips(height):
            luma = luma_of(rgb[rows], tags.matrix)
            _fill(planes[0][rows], luma * np.float32(y_span) + np.float32(y0), top)
            if kind.kind == "yuv":
                for strips, (c, scale) in zip(narrow, _differences(rgb[rows], luma, tags.matrix)):
                    strips.append(_downsample(c * np.float32(0 if gray else c_span * scale), across, between_columns, 1))
        if kind.kind == "yuv":
            for plane, strips in zip(planes[1:], narrow):
                _fill(plane, _downsample(np.concatenate(strips), down, between_rows, 0) + np.float32(c0), top)
                strips.clear()
    if kind.alpha:
        _fill(planes[3], np.full((height, width), top, np.float32) if alpha is None else alpha * np.float32(top), top)
    for plane, values in zip(frame.planes, planes):
        plane.update(values)
    frame.colorspace, frame.color_range = tags.matrix, 2 if tags.full_range else 1
    return frame


def _differences(rgb: np.ndarray, luma: np.ndarray, matrix: int) -> Iterator[tuple[np.ndarray, float]]:
    """Of RGB (H,W,3): what Cb and Cr are multiples of, and by how much they are within -0.5 to 0.5."""
    if matrix == YCGCO:
        yield rgb[..., 1] - luma, 1
        yield rgb[..., 0] - rgb[..., 2], 0.5
        return
    kr, kb = LUMA.get(matrix, LUMA[BT709])
    for channel, k in ((2, kb), (0, kr)):
        yield rgb[..., channel] - luma, 0.5 / (1 - k)


# packed formats of the PNG encoder: (channels, bits)
OF_PNG = {"rgb24": (3, 8), "rgba": (4, 8), "rgb48be": (3, 16), "rgba64be": (4, 16), "gray": (1, 8), "gray16be": (1, 16),
           "ya8": (2, 8), "ya16be": (2, 16)}


def _packed(rgb: np.ndarray, alpha: np.ndarray | None, pix_fmt: str, gray: bool) -> av.VideoFrame:
    channels, bits = OF_PNG[pix_fmt]
    height, width = rgb.shape[:2]
    parts = [luma_of(rgb)[..., None]] if channels <= 2 else [luma_of(rgb)[..., None].repeat(3, 2) if gray else rgb]
    if channels % 2 == 0:
        parts.append(np.ones((height, width, 1), np.float32) if alpha is None else alpha[..., None])
    values = np.concatenate(parts, axis=2).reshape(height, width * channels)
    frame = av.VideoFrame(width, height, pix_fmt)
    plane, top = _empty_plane(frame, 0, np.dtype("u1" if bits == 8 else ">u2")), float(2 ** bits - 1)
    _fill(plane, values * np.float32(top), top)
    frame.planes[0].update(plane)
    return frame


def _empty_plane(frame: av.VideoFrame, index: int, dtype: np.dtype) -> np.ndarray:
    """What a plane is made in: its rows, as long as the frame's own, all zero."""
    plane = frame.planes[index]
    return np.zeros((plane.height, plane.line_size // dtype.itemsize), dtype)


def _fill(rows: np.ndarray, values: np.ndarray, top: float) -> None:
    """Round values into the beginning of rows."""
    rounded = values + np.float32(0.5)
    rows[:, : values.shape[1]] = np.clip(rounded, 0, top, out=rounded)         # the conversion to integers cuts the fraction off
