"""README's table of what goes in and what comes out: every row is made, run through a job and looked at. The model is left out: each
frame comes back as it went in.

    python -m benchmarks.formats [--readme README.md]

With --readme it replaces the table there. A cell says what was found in the result, not what was asked for.
"""
from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vdd_model.app.jobs import Job, run
from vdd_model.errors import UserError
from vdd_model.media.encoding import CODECS, OutputOptions, choose_encoding
from vdd_model.media.images import find_images
from vdd_model.media.pixel_formats import ColorTags, from_rgb, layout
from vdd_model.media.video import probe, read
from vdd_model.options import DeblurOptions

SIZE, FRAMES = (128, 256), 5
OPTIONS = DeblurOptions(window=4, overlap=1)
NAMES = {"libx264": "H.264", "libx265": "HEVC", "prores_ks": "ProRes", "ffv1": "FFV1", "mjpeg": "Motion JPEG", "libvpx-vp9": "VP9",
         "libvpx": "VP8", "libsvtav1": "AV1", "mpeg2video": "MPEG-2", "mpeg4": "MPEG-4", "rawvideo": "uncompressed", "png": "PNG",
         "qtrle": "QuickTime Animation", "dnxhd": "DNxHR", "huffyuv": "HuffYUV", "utvideo": "Ut Video", "v210": "v210", "cfhd": "CineForm",
         "dvvideo": "DV", "wmv2": "WMV", "gif": "GIF", "apng": "APNG", "h264": "H.264", "hevc": "HEVC", "prores": "ProRes",
         "flv": "Sorenson Spark", "wrapped_avframe": "uncompressed", "libwebp_anim": "WebP, animated"}
# what is read: file, encoder, its pixel format
INPUTS = [
    (".mp4", "libx264", "yuv420p"), (".mp4", "libx264", "yuv420p10le"), (".mp4", "libx265", "yuv420p10le"),
    (".mp4", "libsvtav1", "yuv420p10le"),
    (".mov", "prores_ks", "yuv422p10le"), (".mov", "prores_ks", "yuva444p10le"), (".mov", "qtrle", "argb"),
    (".mov", "dnxhd", "yuv422p10le"),
    (".mov", "v210", "yuv422p10le"), (".mov", "png", "rgba"), (".mkv", "ffv1", "yuv444p16le"), (".mkv", "ffv1", "gray"),
    (".webm", "libvpx", "yuva420p"), (".webm", "libvpx-vp9", "yuva420p"), (".ts", "libx264", "yuv420p"), (".ts", "libx265", "yuv420p"),
    (".mpg", "mpeg2video", "yuv420p"), (".avi", "mjpeg", "yuvj420p"), (".avi", "rawvideo", "bgr24"), (".avi", "huffyuv", "yuv422p"),
    (".avi", "utvideo", "yuv422p"), (".avi", "cfhd", "yuv422p10le"), (".wmv", "wmv2", "yuv420p"), (".h264", "libx264", "yuv420p"),
    (".hevc", "libx265", "yuv420p"), (".vob", "mpeg2video", "yuv420p"), (".mxf", "mpeg2video", "yuv420p"), (".flv", "flv", "yuv420p"),
    (".3gp", "mpeg4", "yuv420p"), (".y4m", "wrapped_avframe", "yuv420p"), (".gif", "gif", "rgb8"), (".apng", "apng", "rgba"),
    (".webp", "libwebp_anim", "bgra"),
]
# pictures, a folder of which is a clip: file, Pillow's mode
PICTURES = [(".png", "RGB"), (".png", "RGBA"), (".png", "I;16"), (".jpg", "RGB"), (".tif", "RGBA"), (".webp", "RGBA"), (".bmp", "RGB"),
            (".tga", "RGBA"), (".jp2", "RGB"), (".avif", "RGBA"), (".qoi", "RGBA"), (".pcx", "RGB"), (".sgi", "RGBA")]
# what is written: file, --codec
OUTPUTS = [(suffix, name) for name, codec in CODECS.items() for suffix in codec.containers if suffix != ".m4v"] + [("a folder", "png")]
# mean error of 255 that the codec itself makes
LIMITS = {"gif": 25, "mpeg2video": 5, "wmv2": 8, "flv": 8, "mpeg4": 8, "mjpeg": 5, "libsvtav1": 5}
SETTINGS = {"libx264": {"crf": "4"}, "libx265": {"x265-params": "log-level=none", "crf": "4"}, "dnxhd": {"profile": "dnxhr_hqx"},
            "libsvtav1": {"crf": "10"}, "libvpx": {"auto-alt-ref": "0"}, "libvpx-vp9": {"auto-alt-ref": "0"},
            "libwebp_anim": {"lossless": "1"}, "mpeg2video": {"qmin": "1", "qmax": "2"}}
TAGS = {"title": "t", "workflow": "{}"}


class PassThrough:
    """Stands in the model's place: every frame comes back."""

    def stream(self, frames, options, *, first_frame=0, input_start=0, **_) -> Iterator[torch.Tensor]:
        """The frames from `first_frame` on."""
        for index, frame in enumerate(frames, input_start):
            if index >= first_frame:
                yield frame[None]


def picture(index: int) -> np.ndarray:
    """(H, W, 3) float32: a smooth picture with a bar that moves."""
    y, x = np.mgrid[0:SIZE[0], 0:SIZE[1]].astype(np.float32)
    rgb = 0.15 + 0.6 * np.stack([x / SIZE[1], y / SIZE[0], 0.5 + 0.4 * np.sin((x + y) / 30 + index / 5)], 2).astype(np.float32)
    rgb[:, 3 * index: 3 * index + 8] += 0.2
    return rgb


def make(path: Path, codec: str, pix_fmt: str, sound: str = "") -> Path:
    """A clip with a square that is half transparent where the format can be, with tags, chapter, timecode, language and `sound`."""
    kind = layout(pix_fmt)
    alpha = np.ones(SIZE, np.float32)
    alpha[20:40, 20:40] = 0.5
    full = "j" in pix_fmt or kind.kind == "gbr"
    # where it is not, players take a small clip for BT.601
    said = path.suffix not in (".avi", ".wmv", ".mpg", ".flv", ".vob", ".y4m", ".3gp")
    tags = ColorTags(0 if kind.kind == "gbr" else 1 if said else 6, 1, 1, full)
    special = {".mts": {"mpegts_m2ts_mode": "1"}, ".mov": {"movflags": "use_metadata_tags"}, ".mp4": {"movflags": "use_metadata_tags"}}
    with av.open(str(path), "w", format="mpegts" if path.suffix == ".mts" else None, options=special.get(path.suffix, {})) as out:
        stream = out.add_stream(codec, rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = *SIZE, pix_fmt
        stream.options = SETTINGS.get(codec, {})
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = tags.matrix, 1, 1, 2 if full else 1
        if codec == "prores_ks" and kind.alpha:
            stream.options = {"profile": "4"}
        heard = out.add_stream(sound, rate=48000, layout="stereo") if sound else None
        if sound:
            heard.bit_rate = 128_000
            out.metadata.update(TAGS)
            stream.metadata["language"] = "jpn"
            out.set_chapters([{"id": 0, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}])
        for index in range(FRAMES):
            if kind.kind == "gbr" and pix_fmt not in ("rgb24", "rgba"):
                bytes_ = np.rint(np.dstack([picture(index), alpha]) * 255).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(bytes_, "rgba").reformat(format=pix_fmt)
            else:
                frame = from_rgb(picture(index), alpha if kind.alpha else None, pix_fmt, tags, gray=kind.kind == "gray")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if heard:
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 9600), np.int16), "s16", "stereo")
            piece.sample_rate, piece.pts, piece.time_base = 48000, 0, Fraction(1, 48000)
            for part in [*av.AudioResampler(heard.codec_context.format.name, "stereo", 48000, 1024).resample(piece)]:
                out.mux(heard.encode(part))
            out.mux(heard.encode(None))
    return path


def through(source, target: Path, **options) -> list[str]:
    """Run the job. Returns its notes."""
    job = Job(source, target, as_images=not target.suffix)
    output = OutputOptions(**{"preset": "ultrafast" if options.get("codec") in ("auto", "h264", "hevc", None) else "medium", **options})
    return run(job, PassThrough, OPTIONS, output, quiet=True, say=lambda text: None).notes


def error(clip) -> float:
    """Mean difference of a clip's frames from what was drawn, of 255."""
    return float(np.mean([np.abs(frame.rgb.numpy() - picture(frame.index)).mean() for frame in read(clip)])) * 255


def input_row(folder: Path, suffix: str, codec: str, pix_fmt: str) -> str:
    """What comes of one kind of input as PNG files."""
    source = make(folder / f"{codec}-{pix_fmt}{suffix}", codec, pix_fmt)
    clip = probe(source)
    target = folder / f"out-{source.name.replace('.', '-')}"
    through(source, target, codec="png")
    result = probe(target)
    alpha = "kept" if result.has_alpha else "lost" if layout(pix_fmt).alpha else "-"
    right = result.num_frames == FRAMES and (clip.gray or error(result) < LIMITS.get(codec, 3))
    same = "yes" if right else f"{result.num_frames} frames, off by {error(result):.1f}"
    return f"| {suffix} | {NAMES.get(codec, codec)} | {clip.pix_fmt} | {clip.bit_depth} | {alpha} | {same} |"


def picture_row(folder: Path, suffix: str, mode: str) -> str:
    """The same of pictures."""
    source = folder / f"pictures-{suffix[1:]}-{mode.replace(';', '')}"
    source.mkdir()
    for index in range(FRAMES):
        rgb = np.rint(picture(index) * 255).astype(np.uint8)
        if mode == "I;16":
            image = Image.fromarray(np.rint(picture(index)[..., 1] * 65535).astype(np.uint16))
        else:
            image = Image.fromarray(np.dstack([rgb, np.full(SIZE, 128, np.uint8)]) if mode == "RGBA" else rgb)
        image.save(source / f"{index}{suffix}", **({"quality": 95} if suffix in (".jpg", ".webp") else {}))
    clip, target = probe(source), folder / f"out-{source.name}"
    through(tuple(find_images(source)), target)
    result = probe(target)
    alpha = "kept" if result.has_alpha else "lost" if mode == "RGBA" else "-"
    right = result.num_frames == FRAMES and (mode == "I;16" or error(result) < 3)
    same = "yes" if right else f"{result.num_frames} frames, off by {error(result):.1f}"
    return f"| {suffix}, a folder of them | {clip.codec} | {clip.pix_fmt} | {clip.bit_depth} | {alpha} | {same} |"


def output_row(folder: Path, suffix: str, codec: str) -> str:
    """What one kind of output holds of a clip that has everything."""
    options = {"codec": codec}
    target = folder / (f"all-{codec}{suffix}" if suffix.startswith(".") else f"all-{codec}")
    depths = []
    for depth in (8, 10, 12, 16):
        pix_fmt = {8: "yuv444p", 10: "yuv444p10le", 12: "yuv444p12le", 16: "yuv444p16le"}[depth]
        source = folder / f"deep-{depth}.mkv"
        source = source if source.exists() else make(source, "ffv1", pix_fmt)
        run_again(source, target, options)
        # FFmpeg decodes ProRes 4444 to 12 bits, of which 10 were written
        written = layout(choose_encoding(probe(source), target, OutputOptions(**options)).pix_fmt).depth if target.suffix else depth
        if depth == written and (probe(target).bit_depth == depth or codec == "prores"):
            depths.append(str(depth))
    source = folder / "alpha.mov"
    source = source if source.exists() else make(source, "prores_ks", "yuva444p10le")
    notes = run_again(source, target, options)
    alpha = "kept" if probe(target).has_alpha else "said" if any("transparency" in note for note in notes) else "lost"
    sounds, tags = {"copied": [], "converted": [], "refused": []}, "-"
    for sound in ("aac", "libopus", "flac", "pcm_s24le", "pcm_bluray", "wmav2"):
        source = folder / f"sound-{sound}{ {'pcm_bluray': '.mts', 'wmav2': '.wmv'}.get(sound, '.mkv')}"
        source = source if source.exists() else make(source, "wmv2" if sound == "wmav2" else "libx264", "yuv420p", sound)
        name = probe(source).sound[0]
        if not target.suffix:                                  # pictures
            notes = run_again(source, target, options)
            heard = "none (said)" if any("hold no sound" in note for note in notes) else "none"
            tags = "pictures' texts; a video's: said" if kept_texts(folder) and any("tags (" in note for note in notes) else "none"
            return f"| {suffix} | {codec} | {', '.join(depths)} | {alpha} | {heard} | {tags} |"
        try:
            run_again(source, target, options)
        except UserError:
            sounds["refused"].append(name)
            continue
        after = probe(target)
        same = after.sound == (name,)
        sounds["copied" if same else "converted"].append(name if same else f"{name} to {after.sound[0]}")
        if sound == "aac":
            metadata = {key.lower(): value for key, value in after.metadata}
            kept = {"own tags": metadata.get("workflow") == "{}", "title": metadata.get("title") == "t",
                    "chapters": len(after.chapters) == 1, "language": dict(after.track).get("language") == "jpn"}
            tags = ", ".join(name for name, there in kept.items() if there) or "none"
    heard = "; ".join(f"{how}: {', '.join(names)}" for how, names in sounds.items() if names)
    return f"| {suffix} | {codec} | {', '.join(depths)} | {alpha} | {heard} | {tags} |"


def kept_texts(folder: Path) -> bool:
    """Whether the texts of a PNG file are in the one that is made of it."""
    source, texts = folder / "texts.png", PngInfo()
    texts.add_text("workflow", "{}")
    Image.new("RGB", (64, 64)).save(source, pnginfo=texts)
    run_again((source,), folder / "texts-out", {})
    return Image.open(folder / "texts-out" / "texts.png").info.get("workflow") == "{}"


def run_again(source: Path, target: Path, options: dict) -> list[str]:
    """The job, in place of what is there. Returns its notes."""
    if target.is_dir():
        for old in find_images(target):
            old.unlink()
    elif target.exists():
        target.unlink()
    return through(source, target, **options)


def tables(folder: Path) -> list[str]:
    """Both tables, line by line."""
    lines = ["| read | codec | pixel format | bits | transparency | every frame, same colors |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [input_row(folder, *row) for row in INPUTS if row[1] in av.codecs_available]
    lines += [picture_row(folder, *row) for row in PICTURES]
    lines += ["", "| written | `--codec` | bits | transparency | sound | tags |", "| --- | --- | --- | --- | --- | --- |"]
    return lines + [output_row(folder, *row) for row in OUTPUTS]


def main() -> int:
    """Print the tables, or put them into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(tables(Path(folder)))
    print(text)
    if args.readme:
        before = args.readme.read_text()
        marks = "<!-- formats -->\n", "\n<!-- /formats -->"
        args.readme.write_text(re.sub(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), lambda _: marks[0] + text + marks[1], before,
                                      flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
