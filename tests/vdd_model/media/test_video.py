"""Clips in and out: exact color, times, rotation, alpha, sound."""
import struct
from fractions import Fraction

import av
import media_tools
import numpy as np
import pytest
import torch
from media_tools import (
    OLD,
    add_video,
    chart,
    deblur,
    encode,
    moved,
    packets,
    pattern,
    patterns,
    pictures,
    remuxed,
    save_clip,
    seen,
    written_again,
)
from PIL import Image

from vdd_model.media import images
from vdd_model.media.clip import MediaError
from vdd_model.media.images import find_images, natural_order
from vdd_model.media.pixel_formats import ColorTags, _downsample, _upsample, complete_tags, from_rgb, layout, read_as, to_rgb
from vdd_model.media.video import OutputOptions, probe, read, read_clip, write_image, write_video

FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuv420p10le", "yuv422p10le", "yuv444p12le", "yuva444p10le", "yuv411p",
           "gbrp", "gbrap", "gbrp16le", "rgb24", "rgba", "rgb48be", "rgba64be"]


def centres(rgb: np.ndarray, patch: int = 16) -> np.ndarray:
    return rgb[patch // 2::patch, patch // 2::patch]


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_planes_keep_a_chart(pix_fmt):
    """Every format holds the chart to half a code value, and what was read is written again unchanged."""
    picture, opacity = chart(), np.linspace(0, 1, 64 * 96, dtype=np.float32).reshape(64, 96)
    kind = layout(pix_fmt)
    tags = complete_tags(ColorTags(full_range="j" in pix_fmt), kind.kind, 64, 96)
    frame = from_rgb(picture, opacity, pix_fmt, tags)
    rgb, alpha = to_rgb(frame, tags)
    step = 1 / (2 ** kind.depth - 1) * (1 if kind.kind == "gbr" else 256 / 219)
    assert np.abs(centres(rgb) - centres(picture)).max() <= 1.6 * step      # half a step of Y' and of both color differences
    assert (alpha is not None) == kind.alpha
    if kind.alpha:
        assert np.abs(alpha - opacity).max() <= 0.51 / (2 ** kind.depth - 1)
    again = to_rgb(from_rgb(rgb, alpha, pix_fmt, tags), tags)[0]
    assert np.abs(centres(again) - centres(rgb)).max() < 1e-6


def is_written(name: str) -> bool:
    """Whether libswscale makes such pixels and reads them again; asked directly, PyAV up to 16 ends the process where not."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=16, height=16, format="rgb24", time_base=Fraction(1, 25))
    try:
        graph.link_nodes(source, graph.add("format", name), graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    except (av.FFmpegError, ValueError):
        return False
    return name != "pal8"                                      # to which PyAV does not convert


@pytest.mark.parametrize("name", [*filter(is_written, sorted(av.video.format.names))])
def test_every_format_is_read(name):
    """The picture comes back with its colors in their places, white is white; libswscale has packed it."""
    whole, kind = av.VideoFrame.from_ndarray(np.rint(chart() * 255).astype(np.uint8), "rgb24"), layout(name).kind
    full = kind != "yuv" or name.startswith("yuvj")
    frame = whole.reformat(format=name, dst_colorspace=5, dst_color_range=1 + full)
    rgb, alpha = to_rgb(frame, complete_tags(ColorTags(5, 1, 1, full), kind, 64, 96))
    expected, bits = centres(chart()), np.array([part.bits for part in frame.format.components if not part.is_alpha])
    assert alpha is None or (alpha == 1).all()
    if kind == "gray":
        expected = np.repeat(expected @ np.float32([0.299, 0.587, 0.114])[..., None], 3, 2)
    if name.startswith(("xyz", "mono", "bayer", "grayf")):     # of another white, of two colors, of one at each place, of limited range
        return
    limit = 1.6 / (2 ** bits - 1) if bits.min() < 8 else 0.015
    assert (np.abs(centres(rgb) - expected) <= limit).all()


PACKED = [name for name in filter(is_written, sorted(av.video.format.names)) if read_as(name) != name and layout(name).kind == "yuv"]


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("tags", [ColorTags(5, 5, 6, False), ColorTags(9, 9, 14, True)])
def test_a_packed_format_is_what_its_planar_one_is(packed, tags):
    kind, picture = layout(packed), chart()
    frame = from_rgb(picture, None, f"yuv444p{'' if kind.depth == 8 else f'{kind.depth}le'}", tags).reformat(format=packed)
    assert layout(frame.format.name).kind == "yuv" and complete_tags(tags, layout(frame.format.name).kind, 64, 96) == tags
    assert np.abs(centres(to_rgb(frame, tags)[0]) - centres(picture)).max() < 0.012


def test_palettes_are_read_and_transparent_ones_behind_the_first_picture_are_seen(tmp_path):
    palette = Image.fromarray((chart() * 255).astype(np.uint8)).quantize(64)
    for i in range(3):
        palette.save(tmp_path / f"{i}.png")
    clip = probe(tmp_path)
    assert clip.pix_fmt == "pal8" and not clip.has_alpha
    assert np.abs(read_clip(clip)[0].numpy() * 255 - np.asarray(palette.convert("RGB"))).max() < 0.01
    palette.save(tmp_path / "2.png", transparency=palette.getpixel((5, 5)))
    assert probe(tmp_path).has_alpha
    data = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[:data.index(b"IDAT") + 20])
    assert probe(tmp_path).num_frames == 3                     # the reader will find it damaged


@pytest.mark.skipif(OLD, reason="this PyAV does not pass every matrix on to libswscale")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 7, 9])
def test_matrices_agree_with_libswscale(matrix, full):
    tags = ColorTags(matrix, 1, 1, full)
    frame = from_rgb(chart(), None, "yuv444p10le", tags)
    ours = to_rgb(frame, tags)[0]
    theirs = frame.reformat(format="gbrp16le", src_colorspace=matrix, src_color_range=1 + full, dst_color_range=2)
    assert np.abs(ours - to_rgb(theirs, ColorTags(0, 1, 1, True))[0]).max() < 1.5 / 255


@pytest.mark.parametrize("size", [2, 7, 16, 33])
@pytest.mark.parametrize("centred", [False, True])
def test_chroma_low_pass_inverts_interpolation(size, centred):
    c = np.random.default_rng(0).random(((size + 1) // 2, 3), dtype=np.float32)
    up = _upsample(c, 2, 2 * len(c), centred, 0)
    assert np.abs(_downsample(up, 2, centred, 0) - c).max() < 1e-6


def test_sizes_guess_the_matrix_as_players_do():
    found = [complete_tags(tags, "yuv", *size).matrix for tags, size in
             ((ColorTags(), (480, 640)), (ColorTags(), (720, 1280)), (ColorTags(9), (480, 640)))]
    assert found == [6, 1, 9]


@pytest.mark.parametrize("tags, codec, pix_fmt", [
    (ColorTags(1, 1, 1, False), "libx264", "yuv420p"), (ColorTags(6, 6, 6, False), "libx264", "yuv420p"),
    (ColorTags(1, 1, 13, True), "libx264", "yuv420p"), (ColorTags(9, 9, 16, False), "libx265", "yuv420p10le")])
def test_color_chart_through_a_file_does_not_shift(tmp_path, tags, codec, pix_fmt):
    """Read with the file's tags, written with them: another reader of the new file sees the same colors and tags."""
    clip = probe(save_clip(tmp_path / "in.mp4", [chart()] * 3, codec=codec, pix_fmt=pix_fmt, tags=tags))
    frames = read_clip(clip)
    assert np.abs(centres(frames[0].numpy()) - centres(chart())).max() < 3 / 255
    after = written_again(clip, tmp_path / "out.mp4", quality=4)
    assert after.color == tags and after.bit_depth == clip.bit_depth
    difference = read_clip(after) - frames
    assert difference.mean(dim=(0, 1, 2)).abs().max() < 0.4 / 255
    assert np.abs(centres(difference[1].numpy())).max() < 2.5 / 255
    with av.open(after.path) as container:                     # the tags are where any player looks
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (tags.matrix, tags.primaries, tags.transfer)
        assert context.color_range == (2 if tags.full_range else 1)


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(120)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".m4v"])
def test_frame_rate_stays_an_exact_fraction(tmp_path, rate, suffix):
    clip = probe(save_clip(tmp_path / f"in{suffix.replace('m4v', 'mp4')}", 9, rate=rate))
    after = written_again(clip, tmp_path / f"out{suffix}")
    assert [(each.rate, each.constant_rate, each.num_frames) for each in (clip, after)] == [(rate, True, 9)] * 2
    with av.open(after.path) as container:                     # Matroska rounds times to milliseconds
        assert suffix == ".mkv" or container.streams.video[0].average_rate == rate


def test_variable_frame_times_are_kept(tmp_path):
    times = [0, 40, 80, 95, 200, 217, 300, 301, 420]
    source = save_clip(tmp_path / "in.mkv", 9, times=times, time_base=Fraction(1, 1000))
    clip = probe(source)
    assert not clip.constant_rate
    for suffix in (".mp4", ".mkv"):
        deblur(source, tmp_path / f"out{suffix}")
        for each in (clip, probe(tmp_path / f"out{suffix}")):
            assert [round(frame.pts * each.time_base * 1000) for frame in read(each)] == times


@pytest.mark.parametrize("suffix, ticks", [(".mp4", 90000), (".mov", 600), (".ts", 90000)])
def test_times_off_every_rate_are_variable(tmp_path, suffix, ticks):
    """A screen recording: its times lie on the time base's own grid, as all times do, and that is no frame rate."""
    steps = np.random.default_rng(0).integers(1, 12, 30) * ticks // 60 + np.arange(30) % 7
    times = [int(t) for t in np.concatenate([[0], np.cumsum(steps)])]
    clip = probe(save_clip(tmp_path / f"in{suffix}", 31, times=times, time_base=Fraction(1, ticks)))
    assert not clip.constant_rate and abs(float(clip.rate) * times[-1] / ticks - 30) < 0.3
    seen = [float(frame.pts * clip.time_base) for frame in read(clip)]
    assert np.abs(np.diff(seen) - np.diff(times) / ticks).max() < 1e-4
    assert abs(float(written_again(clip, tmp_path / "out.mkv").rate / clip.rate) - 1) < 1e-3       # as many frames at the mean rate


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_longer_second_video_is_no_damage(tmp_path, suffix):
    with av.open(str(tmp_path / f"two{suffix}"), "w") as out:
        for stream, length in [(add_video(out), length) for length in (50, 125)]:
            encode(out, stream, [np.full((48, 64, 3), i / 255, np.float32) for i in range(length)])
    assert seen(tmp_path / f"two{suffix}") == (50, 0, [])


@pytest.mark.parametrize("suffix, codec", [(".mov", "prores"), (".mkv", "ffv1")])
def test_alpha_is_kept(tmp_path, suffix, codec):
    opacity = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (48, 1))
    source = save_clip(tmp_path / "in.mov", 3, codec="prores_ks", pix_fmt="yuva444p10le", alpha=opacity, options={"profile": "4"})
    clip = probe(source)
    assert clip.has_alpha and clip.bit_depth >= 10
    assert any("transparency" in note for note in deblur(source, tmp_path / "o.mp4").notes)
    assert deblur(source, tmp_path / f"out{suffix}").notes == []
    made = probe(tmp_path / f"out{suffix}")
    assert made.codec == codec and made.has_alpha
    for before, after in zip(read(clip), read(made), strict=True):
        assert np.abs(before.alpha.numpy() - opacity).max() < 2 / 1023
        assert (before.alpha - after.alpha).abs().max() < 2 / 1023
        assert (before.rgb - after.rgb).abs().mean() < 1 / 255


def test_pixel_shape_is_kept(tmp_path):
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as out:
        encode(out, add_video(out, sample_aspect_ratio=Fraction(4, 3)), [pattern(i) for i in range(3)])
    assert probe(source).pixel_aspect == written_again(source, tmp_path / "out.mp4").pixel_aspect == Fraction(4, 3)


def test_gray_stays_gray(tmp_path):
    gray = torch.from_numpy(pattern(0)).mean(2, keepdim=True).expand(-1, -1, 3)
    write_image(tmp_path / "g.png", gray, gray=True)
    clip = probe(tmp_path / "g.png")
    assert clip.gray and clip.pix_fmt == "gray"
    frame = read_clip(written_again(clip, tmp_path / "g.mp4"))[0]
    assert (frame - frame.mean(2, keepdim=True)).abs().max() < 1e-5
    assert (frame - gray).abs().max() < 4 / 255


def test_sound_is_copied_and_stays_in_time(tmp_path):
    clip = probe(save_clip(tmp_path / "in.mp4", 30, audio=True))
    for suffix in (".mp4", ".mov", ".mkv"):
        files = clip.path, written_again(clip, tmp_path / f"out{suffix}").path
        before, after = (packets(file, "audio") for file in files)
        assert [data for _, data in before] == [data for _, data in after]
        lags = [packets(file, "video")[0][0] - sound[0][0] for file, sound in zip(files, (before, after))]
        assert abs(lags[0] - lags[1]) < 0.002
    assert clip.sound == ("aac",) and written_again(clip, tmp_path / "silent.mp4", audio=False).sound == ()


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (47, 64), (2, 2), (1, 1), (33, 17), (17, 65)])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_odd_sizes_keep_their_size(tmp_path, size, codec):
    if codec == "hevc" and max(size) < 64:
        pytest.skip("smaller than x265 takes")
    frames = patterns(3, *size)
    again = read_clip(write_video(tmp_path / "o.mp4", frames, 24, options=OutputOptions(codec=codec)))
    assert again.shape == frames.shape and (min(size) <= 2 or (again - frames).abs().mean() < 2 / 255)


@pytest.mark.parametrize("suffix, options, codec, depth", [
    (".mp4", OutputOptions(), "h264", 8), (".mp4", OutputOptions(codec="hevc"), "hevc", 8),
    (".mp4", OutputOptions(bit_depth=10), "hevc", 10), (".mov", OutputOptions(codec="prores"), "prores", 10),
    (".mov", OutputOptions(codec="prores", quality=5), "prores", 12), (".mkv", OutputOptions(codec="ffv1"), "ffv1", 8),
    (".mkv", OutputOptions(codec="h264", chroma=444, bit_depth=10), "h264", 10)])
def test_codecs_and_depths(tmp_path, suffix, options, codec, depth):
    frames = patterns(5)
    clip = probe(write_video(tmp_path / f"o{suffix}", frames, 24, options=options))
    assert clip.codec == codec and clip.num_frames == 5 and clip.bit_depth in (depth, 12 if codec == "prores" else depth)
    assert (read_clip(clip) - frames).square().mean().log10() * -10 > 38


def test_ten_bits_are_ten_bits(tmp_path):
    ramp = np.tile(np.linspace(0.2, 0.3, 256, dtype=np.float32)[None, :, None], (32, 1, 3))
    out = write_video(tmp_path / "o.mov", [torch.from_numpy(ramp)], 24, options=OutputOptions(codec="prores", quality=4))
    assert np.abs(read_clip(out)[0].numpy() - ramp).max() < 1.5 / 1023
    clip = probe(save_clip(tmp_path / "i.mp4", [ramp] * 2, codec="libx265", pix_fmt="yuv420p10le"))
    deep = written_again(clip, tmp_path / "d.mp4", quality=2)
    assert clip.bit_depth == deep.bit_depth == 10 and deep.codec == "hevc"
    assert (read_clip(deep) - read_clip(clip)).abs().max() < 3 / 1023


def test_quality_matters(tmp_path):
    frames = torch.from_numpy(np.stack(media_tools.noisy(8, 48, 64)))
    sizes = [write_video(tmp_path / f"{q}.mp4", frames, options=OutputOptions(quality=q)).stat().st_size for q in (10, 30)]
    assert sizes[0] > 2 * sizes[1]
    for bad in ({"quality": 60}, {"codec": "prores"}, {"codec": "h264", "bit_depth": 16}):
        pytest.raises(MediaError, write_video, tmp_path / "bad.mp4", frames, options=OutputOptions(**bad))
    pytest.raises(MediaError, write_video, tmp_path / "bad.mp4", []).match("no frame to write")
    assert not (tmp_path / "bad.mp4").exists()


def test_picture_sequences(tmp_path):
    folder = tmp_path / "100% done"
    pictures(folder, 0, 1, 2, 10, name="f_{}.png", bit_depth=16, alpha=torch.full((48, 64), 0.25))
    (folder / "notes.txt").write_text("not a picture")
    clip = probe(folder, rate=Fraction(30000, 1001))
    named = [f"f_{i}.png" for i in (0, 1, 2, 10)]
    assert [f.name for f in clip.files] == [f.name for f in find_images(folder / "f_%d.png")] == named
    assert clip.bit_depth == 16 and clip.has_alpha and clip.rate == Fraction(30000, 1001)
    frames = list(read(clip))
    assert np.abs(frames[3].rgb.numpy() - pattern(10)).max() < 1e-4 and abs(frames[0].alpha.mean() - 0.25) < 1e-4
    assert [f.name for f in find_images(folder / "f_?.png")] == named[:3]
    in_order = [folder / name for name in ("a٣.png", "a10.png", "²0.png", "²1.png")]
    assert natural_order(reversed(in_order)) == in_order
    assert [f.index for f in read(clip, 2)] == [2, 3]
    pytest.raises(MediaError, probe, folder / "g_%d.png").match("holds no pictures that can be read")


def test_a_sequence_is_what_all_its_pictures_are(tmp_path, monkeypatch):
    """A grey or opaque lead-in, or one of 8 bits, takes nothing from the pictures behind it; only the first is decoded to know."""
    half = torch.full((48, 64), 0.5)
    for i, keys in enumerate(({"gray": True}, {}, {"alpha": half, "bit_depth": 16}, {"gray": True})):
        pictures(tmp_path / "mixed", i, name="{}.png", **keys)
    (tmp_path / "mixed" / "4.png").write_bytes(b"no picture")
    for i in range(2):
        pictures(tmp_path / "gray", i, name="{}.png", gray=True, bit_depth=8 + 8 * i)
    decoded, real = [], images._decode_image
    monkeypatch.setattr(images, "_decode_image", lambda path: decoded.append(path.name) or real(path))
    clip = probe(tmp_path / "mixed")
    assert (clip.gray, clip.has_alpha, clip.bit_depth, clip.num_frames) == (False, True, 16, 5) and decoded == ["0.png"]
    gray = probe(tmp_path / "gray")
    assert (gray.gray, gray.has_alpha, gray.bit_depth) == (True, False, 16)
    alphas = [frame.alpha for frame in read(clip)]
    assert [float(a.mean()) for a in alphas] == pytest.approx([1, 1, 0.5, 1], abs=1e-4)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_pictures_behind_the_first_are_known_by_their_headers(tmp_path, suffix):
    write_image(tmp_path / "first.png", torch.from_numpy(pattern(0)), gray=True)
    for mode in ("L", "RGB"):
        Image.fromarray(media_tools.eight_bits()).convert(mode).save(tmp_path / f"a{suffix}")
        assert probe([tmp_path / "first.png", tmp_path / f"a{suffix}"]).gray == (mode == "L" and suffix not in (".bmp", ".webp"))


def test_a_losslessly_cut_clip_is_whole(tmp_path):
    """Its edit list may hide frames, or whole groups of pictures, which are not even in the index of the demuxer."""
    source = save_clip(tmp_path / "in.mp4", 60, options={"crf": "4", "g": "15", "bf": "0"})
    for suffix in (".mp4", ".mov"):
        clip = probe(media_tools.shifted(source, tmp_path / f"cut{suffix}", 15, 22))
        reader = read(clip)
        frames = [frame.rgb for frame in reader]
        assert len(frames) == clip.num_frames == 38 and clip.breaks_off == "" and (clip.missing, reader.lost, reader.notes) == (0, 0, [])
        assert (frames[0] - torch.from_numpy(pattern(22))).abs().mean() < 0.01
    data = bytearray(source.read_bytes())
    place = data.find(b"elst") + 12
    length, start, rate = struct.unpack_from(">Iii", data, place)
    with av.open(str(source)) as container:
        start += round(40 / 25 / container.streams.video[0].time_base)
    struct.pack_into(">Iii", data, place, length * 20 // 60, start, rate)
    source.write_bytes(data)
    clip = probe(source)
    assert len(list(read(clip))) == clip.num_frames == 20 and not clip.breaks_off


def test_frames_before_time_0_stay_in_time_with_the_sound(tmp_path):
    """Matroska tells no times of these."""
    source, target = save_clip(tmp_path / "a.mp4", 20, audio=True), tmp_path / "out.mp4"
    remuxed(source, tmp_path / "in.mkv", lambda packet, _: moved(packet, Fraction(-8, 25)), avoid_negative_ts="disabled")
    assert not deblur(tmp_path / "in.mkv", target).notes
    later = [packets(path, "video")[0][0] - packets(path, "audio")[0][0] for path in (source, target)]
    assert abs(later[1] - later[0]) < 0.001 and len(packets(target, "video")) == 20


def test_subtitles_may_outlast_the_picture(tmp_path):
    (tmp_path / "s.srt").write_text("1\n00:00:00,100 --> 00:00:00,500\nhello\n\n2\n00:00:07,000 --> 00:00:12,000\nthe end\n")
    save_clip(tmp_path / "in.mp4", 50)
    with av.open(str(tmp_path / "in.mp4")) as film, av.open(str(tmp_path / "s.srt")) as text, av.open(str(tmp_path / "in.mkv"), "w") as out:
        copies = {i: out.add_stream_from_template(i.streams[0], opaque=True) for i in (film, text)}
        for packet in (p for i in copies for p in i.demux(i.streams[0])):
            if packet.dts is not None:
                packet.stream = copies[packet.stream.container]
                out.mux(packet)
    clip = probe(tmp_path / "in.mkv")
    assert clip.sound in (("srt",), ("subrip",)) and clip.num_frames == 50 and clip.breaks_off == ""
    data = (tmp_path / "in.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[:len(data) // 2])
    assert "breaks off" in probe(tmp_path / "cut.mkv").breaks_off


def test_the_last_frame_is_held_as_long_as_before(tmp_path):
    """On a constant grid with gaps; elsewhere the next frame tells how long one is shown."""
    source = save_clip(tmp_path / "in.mp4", 4, times=[0, 1, 5, 6], options={"bf": "0"})

    def held(packet: av.Packet, number: int) -> av.Packet:
        packet.duration *= 6 if number == 3 else 1
        return packet

    clip = probe(remuxed(source, tmp_path / "held.mp4", held))
    assert clip.constant_rate and clip.rate == 25
    for first, shown in ((0, [1, 1, 1, 6]), (3, [6])):
        assert [frame.duration * clip.time_base * 25 for frame in read(clip, first)] == shown
