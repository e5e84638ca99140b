"""Small clips for tests, and a stand-in for the model that gives every frame back. Run as a script it is `vdd` with the stand-in."""
import itertools
import os
import struct
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from PIL import features

from vdd_model.app.cli import main
from vdd_model.app.jobs import Job, run
from vdd_model.cpu.frames import to_float
from vdd_model.inference.pipeline import DeblurOptions
from vdd_model.media.clip import MediaError
from vdd_model.media.pixel_formats import ColorTags, from_rgb
from vdd_model.media.png import write_image
from vdd_model.media.video import OutputOptions, VideoClip, probe, read, read_clip, write_video

AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
OLD = int(av.__version__.partition(".")[0]) < 17               # PyAV with FFmpeg up to 8.0


def needs_codec(name: str, tells: bool = True) -> None:
    """Skips where this PyAV has none, or none that tells what the test asks for."""
    if name not in av.codecs_available or not tells:
        pytest.skip(f"this PyAV has no {name} that tells")


class IdentityDeblurrer:
    """Gives the frames back unchanged, in chunks of one stride, keeping the interface of pipeline.Deblurrer.

    `each(number, chunk)` is called with every chunk before it goes out, and may raise; what it returns goes out in its place.
    """

    def __init__(self, delay: float = 0.0, stop_after: int | None = None, error: BaseException | None = None, each=lambda *_: None):
        self.delay, self.stop_after, self.error, self.each = delay, stop_after, error or KeyboardInterrupt(), each

    def stream(self, frames, options, *, first_frame=0, input_start=0, **_):
        wanted = (to_float(frame) for index, frame in enumerate(frames, input_start) if index >= first_frame)
        done, number = first_frame, 0
        while held := [*itertools.islice(wanted, options.stride - done % options.stride)]:
            done, number, chunk = done + len(held), number + 1, torch.stack(held)
            if self.stop_after is not None and done > self.stop_after:
                raise self.error
            time.sleep(self.delay)
            changed = self.each(number - 1, chunk)
            yield chunk if changed is None else changed


def pattern(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(H,W,3) float32: smooth colors with a moving grey bar (no chroma edges, which 4:2:0 blurs), different in every frame."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    rgb = 0.15 + 0.6 * np.stack([x / width, y / height, 0.5 + 0.4 * np.sin((x + y) / 30 + index / 5)], axis=2).astype(np.float32)
    position = (3 * index) % width
    rgb[:, position: position + 6] += 0.2
    return rgb.astype(np.float32)


def patterns(count: int, *size: int) -> torch.Tensor:
    """`pattern` 0 to `count` - 1 as a clip (F,H,W,3)."""
    return torch.from_numpy(np.stack([pattern(i, *size) for i in range(count)]))


def eight_bits(index: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """`pattern` as uint8."""
    return np.rint(pattern(index, height, width).clip(0, 1) * 255).astype(np.uint8)


def noisy(count: int, height: int, width: int, amount: float = 0.03) -> list[np.ndarray]:
    """`pattern` with noise, which takes an encoder many bytes."""
    rng = np.random.default_rng(0)
    return [(pattern(i, height, width) + rng.normal(0, amount, (height, width, 3))).astype(np.float32).clip(0, 1) for i in range(count)]


def chart(height: int = 64, width: int = 96, patch: int = 16, seed: int = 3) -> np.ndarray:
    """(H,W,3) float32 color chart: primaries, greys, skin and random colors in flat patches."""
    rng = np.random.default_rng(seed)
    colors = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1), (0, 0, 0), (0.5, 0.5, 0.5), (0.02, 0.02, 0.02),
              (0.85, 0.65, 0.53), (0.35, 0.45, 0.25)]
    rows, columns = height // patch, width // patch
    colors += [tuple(c) for c in rng.random((max(0, rows * columns - len(colors)), 3))]
    grid = np.array(colors[: rows * columns], np.float32).reshape(rows, columns, 3)
    return grid.repeat(patch, 0).repeat(patch, 1)


def add_video(out, codec: str = "libx264", pix_fmt: str = "yuv420p", size: tuple[int, int] = (48, 64), rate=25, **settings):
    """A stream for pictures of `size`, (height, width)."""
    stream = out.add_stream(codec, rate=rate)
    stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
    for name, value in settings.items():
        setattr(stream, name, value)
    return stream


def encode(out, stream, frames, tags: ColorTags | None = None, times: Sequence[int] | None = None, alpha=None) -> None:
    """Frames of PyAV, or RGB (H, W, 3), into a stream, to its end. `times` in its time base."""
    for index, frame in enumerate(frames):
        if isinstance(frame, np.ndarray):
            frame = from_rgb(frame, alpha, stream.pix_fmt, tags or ColorTags(1, 1, 1, "yuvj" in stream.pix_fmt))
        frame.pts = times[index] if times else index
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def encode_sound(out, stream, values: np.ndarray, kind: str) -> None:
    """Samples of a packed format (1, n x channels), or of a planar one (channels, n), into a stream, to its end."""
    piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), kind, stream.layout.name)
    piece.sample_rate, piece.pts, piece.time_base = stream.rate, 0, Fraction(1, stream.rate)
    for part in av.AudioResampler(stream.codec_context.format.name, stream.layout.name, stream.rate, 960).resample(piece):
        out.mux(stream.encode(part))
    out.mux(stream.encode(None))


def save_sounds(path: Path, *codecs: str, frames: int = 10, video: str = "libx264", values=None, kind: str = "fltp",
                layout: str = "stereo") -> Path:
    """A clip with a stream of 48 kHz in each codec: silence in stereo, or these values."""
    with av.open(str(path), "w") as out:
        stream, *sounds = add_video(out, video), *(out.add_stream(name, rate=48000, layout=layout, bit_rate=128000) for name in codecs)
        encode(out, stream, [pattern(i) for i in range(frames)])
        for sound in sounds:
            encode_sound(out, sound, np.zeros((2, 14400), np.float32) if values is None else values, kind)
    return path


HDR = {"codec": "libx265", "pix_fmt": "yuv420p10le", "tags": ColorTags(9, 9, 16, False)}


def save_clip(path: Path, frames: int | Sequence[np.ndarray], *, size: tuple[int, int] = (48, 64), codec: str = "libx264",
              pix_fmt: str = "yuv420p", rate=Fraction(25), times: Sequence[int] | None = None, time_base: Fraction | None = None,
              tags: ColorTags | None = None, alpha=None, audio: bool = False, options: dict | None = None,
              container_options: dict | None = None, metadata: dict | None = None, track: dict | None = None) -> Path:
    """Write frames, or so many of `pattern`, straight with PyAV, independently of vdd_model.media.encoding."""
    frames = [pattern(i, *size) for i in range(frames)] if isinstance(frames, int) else frames
    tags = tags or (ColorTags(5, 1, 1, True) if "yuvj" in pix_fmt else ColorTags(1, 1, 1, False))
    with av.open(str(path), "w", options=container_options or {}) as out:
        stream = add_video(out, codec, pix_fmt, frames[0].shape[:2], rate)
        out.metadata.update(metadata or {})
        stream.metadata.update(track or {})
        context = stream.codec_context
        context.time_base = stream.time_base = time_base or 1 / rate
        context.options = options if options is not None else {"crf": "4", "preset": "veryfast"} if "264" in codec else {}
        if "265" in codec:
            # frames fewer than its reordering is deep get decoding times that mean nothing
            context.options = {"crf": "4", "x265-params": "log-level=none" + ":bframes=0" * (len(frames) < 3), **(options or {})}
        context.color_range = 2 if tags.full_range else 1
        context.colorspace, context.color_primaries, context.color_trc = tags.matrix, tags.primaries, tags.transfer
        sound = out.add_stream("aac", rate=44100, layout="mono") if audio else None
        encode(out, stream, frames, tags, times, alpha)
        if sound:
            encode_sound(out, sound, 0.2 * np.sin(np.arange(int(44100 * len(frames) / rate)) * 0.05).astype(np.float32)[None], "fltp")
    return path


def moved(packet: av.Packet, seconds: Fraction) -> av.Packet:
    ticks = round(seconds / packet.time_base)
    packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
    return packet


def with_data(packet: av.Packet, data: bytes) -> av.Packet:
    """A packet of the same times."""
    new = av.Packet(data)
    for name in ("pts", "dts", "duration", "time_base", "is_keyframe"):
        setattr(new, name, getattr(packet, name))
    return new


def remuxed(source: Path, target: Path, change=lambda packet, number: packet, bitstream: str = "", **options) -> Path:
    """The packets of `source` in another file, the video's through a bitstream filter, as `change` gives them back; None is left out."""
    with av.open(str(source)) as before, av.open(str(target), "w", options=options) as out:
        copies = {s.index: out.add_stream_from_template(s, opaque=True) for s in before.streams}
        video, number = before.streams.video[0], 0
        through = BitStreamFilterContext(bitstream, video, copies[video.index]) if bitstream else None
        for packet in before.demux():
            copy = copies[packet.stream_index]
            for each in through.filter(packet if packet.dts is not None else None) if through and packet.stream == video else [packet]:
                if each.dts is not None and (new := change(each, number)) is not None:
                    new.stream = copy
                    out.mux(new)
                number += each.dts is not None
    return target


def shifted(source: Path, target: Path, start: int, back: int) -> Path:
    """A clip of 25 frames per second from key frame `start` on, `back` frames earlier: what falls before 0 is hidden by an edit list."""
    return remuxed(source, target, lambda p, _: moved(p, Fraction(-back, 25)) if p.pts * p.time_base * 25 >= start else None)


def turned(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """The mp4, whose track is shown through this matrix."""
    data, (a, b, c, d) = bytearray(path.read_bytes()), (round(n * 65536) for n in matrix)
    struct.pack_into(">9i", data, data.find(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def lpcm(path: Path, codec: str, bits: int, channels: int = 2) -> np.ndarray:
    """A clip of 8 frames with 0.32 s of noise in `codec`; returns its samples (n, channels)."""
    samples = np.random.default_rng(0).integers(-2**(bits - 1), 2**(bits - 1), (12 * 1280, channels)).astype(np.int32)
    kind, stored = ("s16", samples.astype(np.int16)) if bits == 16 else ("s32", samples << 8)
    disk = path.suffix == ".vob"
    muxer, options = ("vob", {}) if disk else ("mpegts", {"mpegts_m2ts_mode": "1"})
    with av.open(str(path), "w", format=muxer, options=options) as out:
        stream = add_video(out, "mpeg2video" if disk else "libx264")
        sound = out.add_stream(codec, rate=48000, layout={1: "mono", 2: "stereo", 6: "5.1(side)"}[channels])
        sound.codec_context.format = kind
        encode(out, stream, [pattern(i) for i in range(8)])
        encode_sound(out, sound, stored.reshape(1, -1), kind)
    return samples


def heard(path: Path, bits: int) -> tuple[str, float, np.ndarray]:
    """(codec, time of the first sample, samples (n, channels))."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        frames = list(file.decode(stream))
        parts = [f.to_ndarray() for f in frames]
        parts = [p.T if f.format.is_planar else p.reshape(-1, f.layout.nb_channels) for p, f in zip(parts, frames)]
        return stream.codec_context.name, float(frames[0].pts * frames[0].time_base), np.concatenate(parts) >> (0 if bits == 16 else 8)


def encoded(path: Path, codec: str, pix_fmt: str, values: np.ndarray, aspect: Fraction = Fraction(1)) -> Path:
    """A picture as FFmpeg writes it, of uint8 RGB, or of float32 that are not clipped where `pix_fmt` holds floats."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = values.shape[:2]
    context.pix_fmt, context.time_base, context.sample_aspect_ratio = pix_fmt, Fraction(1, 25), aspect
    floating = values.dtype.kind == "f"
    frame = av.VideoFrame.from_ndarray(values, pix_fmt if floating else "rgb24")
    frame = frame if floating else frame.reformat(format=pix_fmt)
    path.write_bytes(b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)]))
    return path


def save_packets(path: Path, frames: Sequence[np.ndarray], codec: str, pix_fmt: str, options: dict, cut: int | None = None) -> Path:
    """A clip of which packet `cut` ends in its middle."""
    with av.open(str(path), "w") as out:
        stream = add_video(out, codec, pix_fmt, frames[0].shape[:2], options=options)
        encoded = []
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.rint(rgb * 255).astype(np.uint8), "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            encoded += stream.encode(frame)
        for index, packet in enumerate([*encoded, *stream.encode(None)]):
            if index == cut:
                packet = with_data(packet, bytes(packet)[: packet.size // 2])
                packet.stream = stream
            out.mux(packet)
    return path


def packets(path: Path, kind: str) -> list[tuple[float, bytes]]:
    """(time in seconds, data) of every packet of the first stream of `kind`."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.size]


def written_again(source, target: Path, **options) -> VideoClip:
    """The clip of a file, or an open one, in another file, encoded like it unless OutputOptions say more."""
    clip = source if isinstance(source, VideoClip) else probe(source)
    return probe(write_video(target, read_clip(clip), like=clip, options=OutputOptions(**options)))


def seen(source) -> tuple[int, int, list[str]]:
    """(frames that can be read of a clip, frames lost, notes)."""
    reader = read(source if isinstance(source, VideoClip) else probe(source))
    return len(list(reader)), reader.lost, reader.notes


def vdd(capfd, *command, code: int = 0, model=None) -> str:
    """What `vdd deblur` says on stderr beside its progress; it has to end with this exit code."""
    capfd.readouterr()
    found = main(["deblur", *map(str, command), "--quiet"], model or IdentityDeblurrer())
    error = capfd.readouterr().err
    assert found == code and "Traceback" not in error, error
    return "\n".join(line for line in error.splitlines() if line.startswith("vdd:"))


OPTIONS = DeblurOptions(window=6, overlap=2)


def deblur(source, target: Path, *, stand_in=None, options=OPTIONS, output=None, rate=Job.rate, **more):
    """`run` with the stand-in for the model, quiet."""
    source = tuple(source) if isinstance(source, (list, tuple)) else source
    job = Job(source, target, as_images=not target.suffix or target.suffix == ".png", rate=rate)
    output = output or OutputOptions(preset="veryfast" if target.suffix == ".mp4" else "medium")
    return run(job, lambda: stand_in or IdentityDeblurrer(), options, output, quiet=True, **{"say": lambda text: None, **more})


def stopped(source, target: Path, after: int, error: BaseException | None = None, **more) -> None:
    """`deblur`, ended by Ctrl-C (or this error) in the place of what comes behind so many frames."""
    with pytest.raises(type(error or KeyboardInterrupt())):
        deblur(source, target, stand_in=IdentityDeblurrer(stop_after=after, error=error), **more)


def refused(words: str, source, target: Path, **more) -> None:
    """`deblur`, which has to refuse with a sentence of these words."""
    pytest.raises(MediaError, deblur, source, target, **more).match(words)


def pictures(folder: Path, *numbers: int, name: str = "shot1_{:04d}.png", **keys) -> list[Path]:
    """Picture files shot1_0007.png and so on."""
    folder.mkdir(exist_ok=True)
    for i in numbers:
        write_image(folder / name.format(i), torch.from_numpy(pattern(i)), **keys)
    return sorted(folder.iterdir())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], IdentityDeblurrer(float(os.environ.get("STAND_IN_DELAY", "0")))))
