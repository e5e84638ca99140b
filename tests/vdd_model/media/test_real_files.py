"""What files of cameras, capture programs and cutters really do, and one would not guess: every frame, its time, its colors."""
import itertools
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import media_tools
import numpy as np
import pytest
from media_tools import OLD, add_video, chart, eight_bits, encode, moved, needs_codec, pattern, remuxed, save_clip, seen

from vdd_model.errors import UserError
from vdd_model.media.clip import MediaError
from vdd_model.media.container import printed
from vdd_model.media.pixel_formats import ColorTags, from_rgb, layout, plain, to_rgb
from vdd_model.media.reader import Decoder
from vdd_model.media.video import probe, read, read_clip


def test_the_clip_is_the_default_track_and_no_still_in_front_of_it(tmp_path):
    with av.open(str(tmp_path / "in.mkv"), "w") as out:
        still, moving = add_video(out, "mjpeg", "yuvj420p", disposition=0), add_video(out, disposition=0)
        encode(out, still, [pattern(0)])
        encode(out, moving, [pattern(i) for i in range(12)])
    clip = probe(tmp_path / "in.mkv")
    assert (clip.codec, seen(clip)[0], clip.extras) == ("h264", 12, ("further video streams",))
    with av.open(str(tmp_path / "in.mkv"), "w") as out:
        for stream in [add_video(out, size=(48, 64 + 32 * i), disposition=i) for i in range(2)]:
            encode(out, stream, [pattern(0, 48, stream.width)] * 4)
    assert probe(tmp_path / "in.mkv").width == 96


def add_clean_aperture(source: Path) -> None:
    """52 x 36 pixels, 2 right of the centre and 4 above it, into an mp4."""
    data, start, path = bytearray(source.read_bytes()), 0, []

    def size(at: int) -> int:
        return struct.unpack_from(">I", data, at)[0]
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        while data[start + 4: start + 8] != name:
            start += size(start)
        path.append(start)
        start += 8 + 8 * (name == b"stsd")
    end = path[-1] + size(path[-1])
    for at in path:
        struct.pack_into(">I", data, at, size(at) + 40)
    data[end:end] = struct.pack(">I4s8i", 40, b"clap", 52, 1, 36, 1, 2, 1, -4, 1)
    source.write_bytes(data)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_containers_crop_is_taken(tmp_path, suffix):
    source = save_clip(tmp_path / "in.mp4", 3)
    whole = read_clip(source).numpy()
    add_clean_aperture(source)                                 # the copy in Matroska: PixelCrop
    if suffix == ".mkv":
        source = remuxed(source, tmp_path / "in.mkv")
    with av.open(str(source)) as file:
        if "ropping" not in printed(file, file.streams.video[0]):
            pytest.skip("this FFmpeg does not read it")
    clip = probe(source)
    assert (clip.width, clip.height, clip.coded_size, clip.crop) == (52, 36, (64, 48), (2, 10, 8, 4))
    assert np.array_equal(read_clip(clip).numpy(), whole[:, 2:38, 8:60])


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_a_crop_at_the_left_of_the_stream_is_taken(tmp_path, codec):
    plain = save_clip(tmp_path / "whole.mp4", 3, size=(96, 128), codec="libx26" + codec[-1].replace("c", "5"))
    source = remuxed(plain, tmp_path / "in.mp4", bitstream=f"{codec}_metadata=crop_left=8")
    clip = probe(source)
    assert (clip.width, clip.height) == (120, 96)
    assert np.array_equal(read_clip(clip)[:, :, 16:].numpy(), read_clip(plain)[:, :, 24:].numpy())


@pytest.mark.parametrize("codec, pix_fmt, suffix", [text.split() for text in (
    "libx265 yuv420p10le .mp4", "libx265 yuv420p10le .mkv", "prores_ks yuv422p10le .mov", "prores_ks yuv422p10le .mkv",
    "libvpx-vp9 yuv420p .webm", "libvpx-vp9 yuv420p .mp4", "libx264 yuv420p .mp4", "ffv1 yuv420p10le .mkv", "libsvtav1 yuv420p10le .mp4",
    "dnxhd yuv422p10le .mov", "mpeg4 yuv420p .mov", "mjpeg yuvj420p .mov")])
def test_colors_that_stand_in_the_container_only(tmp_path, codec, pix_fmt, suffix):
    """Most decoders overwrite them, with what they do not know, when they start."""
    needs_codec(codec)
    options = {"libx265": {"x265-params": "log-level=none:colorprim=unknown:transfer=unknown:colormatrix=unknown:bframes=0"},
               "dnxhd": {"b": "90M"}}.get(codec, {})
    size, full = (720, 1280) if codec == "dnxhd" else (96, 128), "j" in pix_fmt
    with av.open(str(tmp_path / f"in{suffix}"), "w") as out:
        stream = add_video(out, codec, pix_fmt, size, options=options, color_primaries=9, color_trc=16, colorspace=9, color_range=1 + full)
        encode(out, stream, [from_rgb(pattern(i, *size), None, pix_fmt, ColorTags(2, 2, 2, full)) for i in range(2)])
    with av.open(str(tmp_path / f"in{suffix}")) as file:
        context = file.streams.video[0].codec_context
        said = (context.colorspace, context.color_primaries, context.color_trc)
    if OLD and said != (9, 9, 16):
        pytest.skip("this FFmpeg forgets the container's colors")
    assert said == (9, 9, 16) and probe(tmp_path / f"in{suffix}").color == ColorTags(9, 9, 16, full)


@pytest.mark.parametrize("suffix", [".h264", ".ts", ".mp4", ".mkv"])
@pytest.mark.parametrize("ranges", [(1, 2), (2, 0), (0, 2)])
def test_the_range_of_one_recording_does_not_reach_into_the_next(tmp_path, ranges, suffix):
    """FFmpeg keeps what the first has said where the second says nothing, and gives frames that it still holds what the second says."""
    bare = suffix if suffix == ".h264" else ".ts"
    for value in ranges:
        with av.open(str(tmp_path / f"{value}{bare}"), "w") as out:
            stream = add_video(out, options={"crf": "4", "x264-params": "bframes=2:b-adapt=0:scenecut=0"}, color_range=value)
            encode(out, stream, [from_rgb(np.full((48, 64, 3), 0.7843), None, "yuv420p", ColorTags(6, 6, 6, value == 2))] * 9)
    (tmp_path / f"in{bare}").write_bytes(b"".join((tmp_path / f"{value}{bare}").read_bytes() for value in ranges))
    if suffix != bare:
        remuxed(tmp_path / "in.ts", tmp_path / f"in{suffix}", lambda packet, number: moved(packet, Fraction(9 * (number > 8), 25)))
    reader = read(probe(tmp_path / f"in{suffix}"))
    frames = [frame.rgb.numpy() for frame in reader]
    assert len(frames) == 18 and np.abs(np.array(frames) * 255 - 200).max() < 2 and (reader.lost, reader.notes) == (0, [])


def test_a_recording_that_goes_on_as_another_stream_is_said(tmp_path):
    """PyAV shows no stream that begins behind what FFmpeg looks at first, and ends in an IndexError."""
    for count in (9, 25):
        parts = [save_clip(tmp_path / f"{codec}.ts", count, codec=codec, audio=True, container_options=options)
                 for codec, options in (("libx264", {}), ("libx265", {"mpegts_start_pid": "512", "mpegts_pmt_start_pid": "4352"}))]
        (tmp_path / "in.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
        frames, lost, notes = seen(tmp_path / "in.ts")
        assert frames == count and lost and notes[0].startswith(f"what stands behind its first {count} frames is not read")
    assert probe(tmp_path / "in.ts").extras == ("the video that begins later (hevc)", "the audio that begins later (aac)")


def test_what_is_encrypted_is_called_so(tmp_path):
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00112233445566778899aabbccddeeff", "encryption_kid": "00" * 16}
    for flags in ({}, {"movflags": "+frag_keyframe+empty_moov"}):
        source = save_clip(tmp_path / "in.mp4", 3, container_options={**keys, **flags})
        pytest.raises(MediaError, probe, source).match("is encrypted")
    # Matroska: encodings in the place of the track's name; a transport stream: two bits of each packet, whose content is noise
    key = bytes.fromhex("6240a6 50318100 50328101 50338101 503597 47e18105 47e290") + bytes(16)
    data = save_clip(tmp_path / "in.mkv", 3, track={"title": 41 * "x"}).read_bytes()
    (tmp_path / "in.mkv").write_bytes(data.replace(b"\x53\x6e\xa9" + 41 * b"x", b"\x6d\x80\xa9" + key))
    parts, rng = bytearray(save_clip(tmp_path / "in.ts", 3).read_bytes()), np.random.default_rng(0)
    for place in range(0, len(parts), 188):
        if parts[place + 1] & 31 == 1 and parts[place + 2] == 0:
            parts[place + 3:place + 188] = bytes([parts[place + 3] & 15 | 144]) + rng.bytes(184)
    (tmp_path / "in.ts").write_bytes(parts)
    for suffix in (".mkv", ".ts"):
        pytest.raises(MediaError, probe, tmp_path / f"in{suffix}").match("is encrypted")


def test_ycgco_is_read_and_written():
    for full, pix_fmt in itertools.product((False, True), ("yuv444p", "yuv420p", "yuv444p10le")):
        tags = ColorTags(8, 1, 1, full)
        rgb = to_rgb(from_rgb(chart(), None, pix_fmt, tags), tags)[0]
        assert np.abs(rgb[8::16, 8::16] - chart()[8::16, 8::16]).max() < 3 / 255, (full, pix_fmt)
    green = from_rgb(np.tile(np.float32([0, 1, 0]), (16, 16, 1)), None, "yuv444p", ColorTags(8, 1, 1, True))
    assert [round(np.frombuffer(p, np.uint8)[0] / 255, 2) for p in green.planes] == [0.5, 1.0, 0.5]      # H.273: Y, Cg, Co
    blue = from_rgb(np.tile(np.float32([0, 0, 1]), (16, 16, 1)), None, "yuv444p16le", ColorTags(8, 1, 1, False))
    values = [np.frombuffer(p, np.uint16)[0] / 256 for p in blue.planes]
    assert np.allclose(values, [70.75, 73.25, 18.5], atol=0.01)             # of R, G, B = 16, 16, 235


def test_a_matrix_that_is_not_computed_is_said(tmp_path):
    for matrix, words in ((10, "BT.2020's with non-constant luminance"), (14, "BT.709's"), (9, None)):
        clip = probe(save_clip(tmp_path / f"{matrix}.mp4", 2, tags=ColorTags(matrix, 9, 1, False)))
        assert clip.remarks == ((f"its colors are stored with matrix {matrix} of H.273, which is taken for {words}",) if words else ())


def test_pixels_that_ffmpeg_converts_into_nothing_are_named():
    pytest.raises(UserError, plain, av.VideoFrame(16, 16, "rgb4")).match("pixels stored as rgb4 cannot be read")


@pytest.mark.parametrize("kind", ["yaf16le", "yaf32be"])
def test_grey_floats_with_opacity_are_read_value_by_value(kind):
    """As in OpenEXR of Y and A: libswscale ends the process over 32 bits, and cuts off what is above 1 in 16."""
    if kind not in av.video.format.names:
        pytest.skip("this FFmpeg has no such pixels")
    frame = av.VideoFrame(5, 3, kind)
    values = np.linspace(0, 4, 30).astype(np.float16).reshape(3, 5, 2)
    rows = np.zeros((3, frame.planes[0].line_size), np.uint8)
    stored = values.astype(f"{'>' if 'be' in kind else '<'}f{int(kind[3:5]) // 8}").reshape(3, -1)
    rows[:, :stored.nbytes // 3] = stored.view(np.uint8)
    frame.planes[0].update(rows)
    rgb, alpha = to_rgb(frame, ColorTags(0, 1, 1, True))
    assert layout(kind).kind == "gray" and (rgb == values[..., :1]).all() and (alpha == values[..., 1]).all()


PLACES = ["left", "center", "topleft", "top"]


@pytest.mark.parametrize("chroma", PLACES)
def test_chroma_lies_where_the_stream_says(chroma):
    """A slope down and to the right of one color stays a slope: wrong places would move it by half a pixel."""
    y, x = np.mgrid[0:32, 0:32].astype(np.float32) / 32
    slope = np.stack([0.5 + (2 * x + y - 1) / 8, np.full_like(x, 0.5), 0.5 - (2 * x + y - 1) / 8], 2)
    tags = ColorTags(1, 1, 1, True)
    frame = from_rgb(slope, None, "yuv420p16le", tags, chroma=chroma)
    errors = {place: np.abs(to_rgb(frame, tags, chroma=place)[0] - slope)[4:-4, 4:-4].max() for place in PLACES}
    assert errors.pop(chroma) < 2e-4 and min(errors.values()) > 1e-3


def test_the_place_of_chroma_is_found(tmp_path):
    assert probe(save_clip(tmp_path / "b.mp4", 2)).chroma == "left"
    assert probe(save_clip(tmp_path / "c.avi", 2, codec="mjpeg", pix_fmt="yuvj420p")).chroma == "center"


@pytest.mark.parametrize("pix_fmt", ["bgr24", "bgra", "rgb555le", "gray"])
def test_rows_from_the_bottom(tmp_path, pix_fmt):
    """BI_RGB as Windows writes it: the frames have a negative line size."""
    source = tmp_path / "in.avi"
    with av.open(str(source), "w") as out:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(eight_bits()[::-1]), "rgb24").reformat(format=pix_fmt)
        encode(out, add_video(out, "rawvideo", pix_fmt), [frame] * 3)
    data = bytearray(source.read_bytes())
    at = data.index(b"strf") + 16
    data[at: at + 4] = struct.pack("<i", 48)                   # biHeight: positive is from the bottom
    source.write_bytes(data)
    with av.open(str(source)) as file:
        seen = next(file.decode(video=0))
        if seen.format.name != pix_fmt or seen.planes[0].line_size > 0:
            pytest.skip(f"FFmpeg reads this one as {seen.format.name}, from the top")
        expected = seen.reformat(format="rgb24").to_ndarray()
    limit = 9 if pix_fmt == "rgb555le" else 1                  # libswscale's white of 5 bits is 248
    assert np.abs(read_clip(source)[0].numpy() * 255 - expected).max() < limit


@pytest.mark.parametrize("codec, values", [("rawvideo", (0, 0)), ("rawvideo", (0, 127)), ("huffyuv", (0, 0)), ("huffyuv", (128, 128))])
def test_the_fourth_byte_of_an_avi(tmp_path, codec, values):
    """It means nothing where it is 0 throughout; where any is not, a program has put alpha there (packed: the first picture tells)."""
    pictures = [np.dstack([eight_bits()[..., ::-1], np.full((48, 64), value, np.uint8)]) for value in values]
    with av.open(str(tmp_path / "in.avi"), "w") as out:
        encode(out, add_video(out, codec, "bgra"), [av.VideoFrame.from_ndarray(picture, format="bgra") for picture in pictures])
    clip, used = probe(tmp_path / "in.avi"), any(values)
    frames = list(read(clip))
    assert clip.has_alpha == used and [frame.alpha is not None for frame in frames] == [used] * 2
    assert np.array_equal(np.rint(frames[0].rgb.numpy() * 255), eight_bits())


def test_an_empty_packet_repeats_a_frame(tmp_path):
    """Ogg Theora does so. Given to the decoder it would be the end of all."""
    with av.open(str(save_clip(tmp_path / "in.mp4", 6))) as file:
        stream, empty = file.streams.video[0], av.Packet()
        packets = list(file.demux(stream))
        empty.dts = empty.pts = packets[1].dts + 1
        container = SimpleNamespace(demux=lambda _: iter([*packets[:2], empty, *packets[2:]]), format=file.format)
        assert [type(item) for item in Decoder(container, stream)] == [av.VideoFrame] * 6


@pytest.mark.parametrize("codec, reordered", [("mjpeg", 0), ("mpeg4", 0), ("mpeg4", 2), ("libx264", 0), ("libx264", 2)])
def test_frames_dropped_while_an_avi_was_captured_are_no_damage(tmp_path, codec, reordered):
    """It tells when a frame is decoded: where some are reordered, the gap stands later by as much as they are."""
    times, pix_fmt = [0, 1, 2, 3, 6, 7, 8, 9], "yuvj420p" if codec == "mjpeg" else "yuv420p"
    behind = 4 + (0 if not reordered else 2 if codec == "libx264" else 1)
    source = save_clip(tmp_path / "in.avi", 8, codec=codec, pix_fmt=pix_fmt, times=times, options={"bf": str(reordered)})
    clip = probe(source)
    reader = read(clip)
    found = [frame.pts * clip.time_base * 25 for frame in reader]
    assert found == [*range(behind), *times[behind:]] and (reader.lost, reader.notes, clip.breaks_off) == (0, [], "")
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * 0.6)])
    assert codec != "mjpeg" or "frames are missing" in probe(source).breaks_off
    copied = probe(remuxed(save_clip(tmp_path / "in.mkv", 8, codec="mpeg4"), tmp_path / "in.avi"))          # out of .mkv: 40 slots a frame
    assert (copied.num_frames, copied.rate, copied.breaks_off, seen(copied)) == (8, 25, "", (8, 0, []))


def test_a_clock_that_runs_over(tmp_path):
    """A transport stream's times have 33 bits; FFmpeg counts from below zero where they end within the first minute."""
    plain = save_clip(tmp_path / "plain.ts", 50, audio=True)
    source = remuxed(plain, tmp_path / "in.ts", lambda packet, _: moved(packet, Fraction(2**33, 90000) - 2))
    clip, before = probe(source), probe(plain)
    frames = list(read(clip))
    assert len(frames) == 50 and frames[0].pts >= 0 and abs((clip.origin - clip.shift) - (before.origin - before.shift)) < 0.01
    assert {round((b.pts - a.pts) * clip.time_base * 25, 3) for a, b in zip(frames, frames[1:])} == {1}


def test_what_stands_before_the_first_key_frame_is_said(tmp_path):
    plain = save_clip(tmp_path / "plain.ts", 50, options={"g": "20", "bf": "0", "crf": "10", "sc_threshold": "0"})
    data = plain.read_bytes()
    with av.open(str(plain)) as file:
        ninth = [p.pos for p in file.demux(video=0) if p.size][8]
    (tmp_path / "in.ts").write_bytes(data[:3 * 188] + data[ninth:])      # the tables, then from the ninth frame on
    frames, lost, notes = seen(tmp_path / "in.ts")
    assert (frames, lost) == (30, 12) and any("its first 12 frames stand before any key frame" in note for note in notes)


@pytest.mark.parametrize("suffix, codec, rates", [
    (".flv", "flv", ("24000/1001", "30000/1001", 25)), (".mkv", "libx264", ("24000/1001", "60000/1001")),       # a duration in nanoseconds
    *((suffix, "mpeg2video", ("24000/1001", "60000/1001")) for suffix in (".vob", ".mpg")),          # times of some pictures only
    (".h264", "libx264", (50,)), (".hevc", "libx265", (50,)), (".m2v", "mpeg2video", (50,)), (".m4v", "mpeg4", (50,)),       # no container
    (".266", "libvvenc", (50,))])
def test_rounded_and_missing_times_of_a_short_clip_are_a_cameras_rate(tmp_path, suffix, codec, rates):
    needs_codec(codec)
    for rate in map(Fraction, rates):
        clip = probe(save_clip(tmp_path / f"in{suffix}", 9, size=(96, 128), rate=rate, codec=codec))
        assert (clip.rate, clip.constant_rate, len(list(read(clip)))) == (rate, True, 9)


def test_values_outside_limited_range_and_interlacing_that_begins_later_are_said(tmp_path):
    bright = from_rgb(pattern(0), None, "yuv420p", ColorTags(1))
    rows = np.frombuffer(bright.planes[0], np.uint8).reshape(48, -1).copy()
    rows[:24] = 250
    bright.planes[0].update(rows)
    with av.open(str(tmp_path / "in.mp4"), "w") as out:
        encode(out, add_video(out, options={"crf": "1"}), [pattern(0), bright, bright, pattern(3)])
    _, lost, (note,) = seen(tmp_path / "in.mp4")
    assert lost == 0 and "2 frames (the first is 1) held values outside limited range" in note
    parts = [save_clip(tmp_path / "part.h264", 6, options={"x264-params": f"crf=10:interlaced={i}"}).read_bytes() for i in range(2)]
    (tmp_path / "in.h264").write_bytes(b"".join(parts))
    frames, _, notes = seen(tmp_path / "in.h264")
    assert not probe(tmp_path / "in.h264").interlaced and frames == 12 and any("6 of its frames are interlaced" in note for note in notes)


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_a_second_layer_of_hevc_is_said(tmp_path, suffix):
    """As in Apple's video with transparency: to every picture belongs a part of layer 1, which FFmpeg passes over."""
    plain = save_clip(tmp_path / f"plain{suffix}", 3, size=(96, 128), codec="libx265")
    assert probe(plain).remarks == ()
    part = b"\x02\x09" + bytes(range(1, 41))                   # its header: a slice, layer 1
    part = (len(part).to_bytes(4, "big") if suffix == ".mp4" else b"\0\0\0\1") + part
    clip = probe(remuxed(plain, tmp_path / f"in{suffix}", lambda packet, _: media_tools.with_data(packet, bytes(packet) + part)))
    assert len(list(read(clip))) == 3 and "its second layer of HEVC" in clip.remarks[0]
