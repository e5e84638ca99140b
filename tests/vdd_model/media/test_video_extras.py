"""What stands in a video file beside its pictures and its sound: HDR metadata, chapters, timecode, languages, mirrors, attachments."""
import dataclasses
import os
from fractions import Fraction
from pathlib import Path

import av
import media_tools
import numpy as np
import pytest
from media_tools import AVIF, HDR, add_video, eight_bits, encode, encode_sound, packets, pattern, save_clip, turned, vdd, written_again
from PIL import Image, ImageCms

from vdd_model.media.clip import MediaError
from vdd_model.media.encoding import choose_encoding
from vdd_model.media.probe import _frame_rate
from vdd_model.media.video import OutputOptions, describe, probe, read, read_clip, read_image

LIGHT = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"
CHAPTERS = pytest.mark.skipif(not hasattr(av.container.OutputContainer, "set_chapters"), reason="this PyAV knows no chapters")


def rich(path: Path, *, timecode: str = "", chapters=(), attached: bool = False, metadata: dict | None = None, **options) -> Path:
    """One second at 30000/1001 with two sound tracks in German and Japanese."""
    with av.open(str(path), "w", options=options) as out:
        video = add_video(out, rate=Fraction(30000, 1001), options={"preset": "ultrafast"})
        if timecode:
            video.metadata["timecode"] = timecode
        sounds = [out.add_stream("aac", rate=44100, layout=name) for name in ("stereo", "5.1")]
        sounds[0].metadata["language"], sounds[1].metadata["language"] = "deu", "jpn"
        sounds[1].metadata["title"], sounds[1].disposition = "comments", 8
        out.metadata.update(metadata or {})
        if chapters:
            out.set_chapters([{"id": i, "start": start, "end": end, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
                              for i, (start, end, title) in enumerate(chapters)])
        if attached:
            out.add_attachment("f.ttf", "application/x-truetype-font", b"letters")
        encode(out, video, [pattern(i) for i in range(30)])
        for sound, channels in zip(sounds, (2, 6)):
            encode_sound(out, sound, np.zeros((channels, 40 * 1024), np.float32), "fltp")
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_hdr10_metadata_are_kept(tmp_path, capfd, suffix):
    source = save_clip(tmp_path / "in.mp4", 3, size=(48, 96), **HDR, options={"preset": "ultrafast", "x265-params": "log-level=0:" + LIGHT})
    assert probe(source).light == LIGHT and LIGHT in describe(source)
    assert "carried over" not in vdd(capfd, source, "-o", tmp_path / f"o{suffix}")
    after = probe(tmp_path / f"o{suffix}")
    assert after.light == LIGHT and after.color == HDR["tags"]
    assert any("not carried over: HDR10" in note for note in choose_encoding(after, Path("o.mkv"), OutputOptions(codec="ffv1")).notes)


@pytest.mark.parametrize("matrix, expected", [
    ((-1, 0, 0, 1), lambda x: x[:, ::-1]), ((1, 0, 0, -1), lambda x: x[::-1]), ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
    ((0, -1, -1, 0), lambda x: x[::-1, ::-1].transpose(1, 0, 2)), ((0, 1, -1, 0), lambda x: np.rot90(x, 3)),
    ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)), ((0, -1, 1, 0), np.rot90)])
def test_turned_and_mirrored_pictures_are_put_right(tmp_path, matrix, expected):
    source = save_clip(tmp_path / "in.mp4", 2)
    plain = read_clip(source)[0].numpy()
    clip = probe(turned(source, matrix))
    assert np.array_equal(read_clip(clip)[0].numpy(), expected(plain)) and (clip.height, clip.width) == expected(plain).shape[:2]
    after = written_again(clip, tmp_path / "out.mp4")
    assert (after.quarter_turns, after.mirrored, after.width, after.height) == (0, False, clip.width, clip.height)
    assert not clip.extras


@pytest.mark.parametrize("degrees, done", [(45, 0), (60, 90), (0.5, None)])
def test_a_turn_that_is_no_quarter_is_said(tmp_path, degrees, done):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    clip = probe(turned(save_clip(tmp_path / "in.mp4", 2), (cos, -sin, sin, cos)))
    said = f"its turn by {degrees} degrees ({done} are applied)"
    assert clip.extras == (() if done is None else (said,)) and clip.quarter_turns == (done or 0) // 90


@CHAPTERS
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_chapters_timecode_and_languages_are_kept(tmp_path, capfd, suffix):
    source = rich(tmp_path / f"in{suffix}", timecode="01:02:03;04", chapters=[(0, 500, "one"), (500, 1000, "two")],
                  metadata={"title": "T", "creation_time": "2024-05-06T07:08:09.000000Z"})
    target = tmp_path / f"o{suffix}"
    assert vdd(capfd, source, "-o", target) == ""
    clip = probe(target)
    assert clip.timecode == "01:02:03;04" and clip.chapters == ((0, Fraction(1, 2), "one"), (Fraction(1, 2), 1, "two"))
    assert dict(clip.metadata)["title"] == "T" and dict(clip.metadata)["creation_time"] == "2024-05-06T07:08:09.000000Z"
    with av.open(str(source)) as before, av.open(str(target)) as after:
        tracks = [[(s.metadata.get("language"), s.metadata.get("title"), s.disposition, s.codec_context.layout.name)
                   for s in file.streams.audio] for file in (before, after)]
        assert tracks[0] == tracks[1]


def test_the_place_of_a_phone_is_kept(tmp_path, capfd):
    place = "+48.1000+011.5000/"
    source = rich(tmp_path / "in.mov", metadata={"com.apple.quicktime.location.ISO6709": place}, movflags="use_metadata_tags")
    for suffix in (".mov", ".mp4", ".mkv"):
        vdd(capfd, source, "-o", tmp_path / f"o{suffix}")
        found = {k.lower(): v for k, v in probe(tmp_path / f"o{suffix}").metadata}
        assert found["location"] == found["com.apple.quicktime.location.iso6709"] == place


@pytest.mark.skipif(not hasattr(av.container.OutputContainer, "add_attachment"), reason="this PyAV writes no attachments")
def test_attached_files(tmp_path, capfd):
    source = rich(tmp_path / "in.mkv", attached=True)
    assert vdd(capfd, source, "-o", tmp_path / "o.mkv") == ""
    with av.open(str(tmp_path / "o.mkv")) as after:
        kept = [s for s in after.streams if s.type == "attachment"]
        assert [(s.metadata["filename"], s.data) for s in kept] == [("f.ttf", b"letters")]
    assert "not carried over: attached files" in vdd(capfd, source, "-o", tmp_path / "o.mp4")


@pytest.mark.parametrize("target, kept", [("o.mov", ["aac"]), ("o.mp4", ["aac", "opus"]), ("o.mkv", ["aac", "opus"])])
def test_sound_that_a_container_refuses_late_is_known_early(tmp_path, capfd, target, kept):
    """FFmpeg lists Opus among what .mov takes, and refuses it when the header is written."""
    told = vdd(capfd, media_tools.save_sounds(tmp_path / "in.mkv", "aac", "libopus"), "-o", tmp_path / target)
    assert list(probe(tmp_path / target).sound) == kept
    assert told.count("left out") == 2 - len(kept)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_recordings_joined_by_copying_go_on(tmp_path, capfd, suffix):
    """Three of 2, 1 and 2 seconds whose times begin anew, as `cat a.mts b.mts a.mts` makes them."""
    target, parts = tmp_path / f"o{suffix}", [save_clip(tmp_path / f"{n}.ts", n, audio=True).read_bytes() for n in (50, 25)]
    (tmp_path / "joined.ts").write_bytes(parts[0] + parts[1] + parts[0])
    vdd(capfd, tmp_path / "joined.ts", "-o", target)
    clip = probe(target)
    times = [float(frame.pts * clip.time_base) for frame in read(clip)]
    assert len(times) == 125 and np.allclose(np.diff(times), 0.04, atol=0.002)
    sound = [t for t, _ in packets(target, "audio")]
    assert np.diff(sound).min() > 0 and abs(sound[-1] - times[-1]) < 0.15
    ones = [t for t in sound if t < 3.5]                       # picture and sound of the second part begin together, as they did
    assert abs(min(t for t in ones if t > 1.97) - 2) < 0.08
    first = probe(tmp_path / "50.ts")
    assert abs(float(clip.origin) - (first.origin - first.shift)) < 0.002


def test_twelve_bits_and_full_color(tmp_path):
    clip = probe(save_clip(tmp_path / "in.mov", 2, codec="prores_ks", pix_fmt="yuv444p10le", options={"profile": "4"}))
    chosen = [choose_encoding(clip, Path(name), OutputOptions(**options)).pix_fmt
              for name, options in (("o.mkv", {"codec": "ffv1"}), ("o.mov", {}), ("o.mov", {"quality": 3}))]
    assert [clip.pix_fmt, *chosen] == ["yuv444p12le", "yuv444p12le", "yuv444p10le", "yuv422p10le"]
    large = dataclasses.replace(clip, width=128)
    assert any("12 bits are stored as 10" in note for note in choose_encoding(large, Path("o.mp4"), OutputOptions()).notes)
    clip = probe(save_clip(tmp_path / "in.mp4", 2, pix_fmt="yuv422p"))
    assert any("4:2:2" in n and "--chroma 422" in n for n in choose_encoding(clip, Path("o.mp4"), OutputOptions()).notes)
    assert choose_encoding(clip, Path("o.mp4"), OutputOptions(chroma=422)).notes == ()


def test_rates_fit_into_ffmpegs_fractions():
    times = np.arange(0, 20) * 71_234_567
    times[-1] += 301
    rate, constant = _frame_rate(times, Fraction(1, 10**9), [])
    assert constant and rate.numerator < 2**31 and abs(rate * 71_234_567 / 10**9 - 1) < 1e-6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_names_with_a_colon_are_files_and_pipes_are_named(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    save_clip(tmp_path / "12:30.mp4", 3)
    vdd(capfd, "12:30.mp4", "-o", "5:6.mp4")
    assert probe("5:6.mp4").num_frames == 3
    os.mkfifo(tmp_path / "in.mp4")
    pytest.raises(MediaError, probe, tmp_path / "in.mp4").match("pipe or a device")


def with_telemetry(path: Path, tag: bytes) -> Path:
    """A clip with a stream of data, as action cameras write them: the track of a time code under another name."""
    rich(path, timecode="10:00:00:00")
    path.write_bytes(path.read_bytes().replace(b"tmcd", tag).replace(b"TimeCodeHandler", b"GoPro MET      "))
    return path


LEFT = "not carried over: the data stream GoPro MET"


def test_no_place_in_the_output_is_no_secret(tmp_path, capfd):
    clip = probe(with_telemetry(tmp_path / "in.mp4", b"mebx"))
    assert clip.extras == ("the data stream GoPro MET",) and LEFT in choose_encoding(clip, Path("o.mp4"), OutputOptions()).notes
    assert LEFT in vdd(capfd, tmp_path / "in.mp4", "-o", tmp_path / "pictures")


@pytest.mark.skipif(int(av.__version__[:2]) < 16, reason="this PyAV copies no data")
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_gopros_telemetry_is_kept_where_it_can_be(tmp_path, capfd, suffix):
    source, target = with_telemetry(tmp_path / "in.mp4", b"gpmd"), tmp_path / f"out{suffix}"

    def packets(path: Path) -> list[tuple]:
        with av.open(str(path)) as container:
            streams = [s for s in container.streams if s.type == "data"]
            return [(p.pts * p.time_base, bytes(p)) for p in container.demux(streams) if p.size] if streams else []

    said = LEFT in vdd(capfd, source, "-o", target)
    assert probe(source).extras == () and packets(source)
    assert (packets(target), said) == (([], True) if suffix == ".mkv" else (packets(source), False))
    assert LEFT in vdd(capfd, source, "-o", tmp_path / "silent.mp4", "--no-audio")


def test_wide_colors_of_pictures(tmp_path, capfd):
    source = save_clip(tmp_path / "in.mp4", 2, size=(48, 96), **HDR, options={"preset": "ultrafast"})
    vdd(capfd, source, "-o", tmp_path / "p", "--codec", "png")
    clip = probe(tmp_path / "p")
    assert b"cICP\x09\x10\x00\x01" in (tmp_path / "p/frame_000000.png").read_bytes()
    assert (clip.color.primaries, clip.color.transfer) == (9, 16)
    assert choose_encoding(clip, Path("o.mp4"), OutputOptions()).color == HDR["tags"]
    vdd(capfd, tmp_path / "p", "-o", tmp_path / "o.mp4")
    assert (read_clip(tmp_path / "o.mp4") - read_clip(source)).abs().mean() < 0.01


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", pytest.param("a.avif", marks=AVIF)])
def test_color_profiles_of_pictures_are_kept(tmp_path, capfd, name):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    profile = profile[:16] + b"RGB " + profile[20:]            # an RGB profile that is not sRGB's
    Image.fromarray(eight_bits()).save(tmp_path / name, icc_profile=profile)
    vdd(capfd, tmp_path, "-o", tmp_path / "out")
    with Image.open(tmp_path / "out/a.png") as after:
        assert after.info["icc_profile"] == profile and after.size == (64, 48)
        after.load()
    assert any("color profile" in n for n in choose_encoding(probe(tmp_path / name), Path("o.mp4"), OutputOptions()).notes)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_animations_are_clips(tmp_path, capfd, name, alpha):
    """FFmpeg reads PNG's, Pillow WebP's; a folder of them is one of videos."""
    frames = [Image.fromarray(eight_bits(i)) for i in range(4)]
    for frame in frames if alpha else ():
        frame.putalpha(128)
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=[40, 80, 40, 200], lossless=True)
    pytest.raises(MediaError, read_image, tmp_path / name).match("is an animation")
    clip = probe(tmp_path / name)
    found = list(read(clip))
    assert [frame.pts for frame in found] == [0, 1, 3, 4] and found[-1].duration == 5 and clip.rate == 25 and clip.has_alpha == alpha
    assert all(np.array_equal(np.rint(frame.rgb.numpy() * 255), eight_bits(i)) for i, frame in enumerate(found))
    assert (vdd(capfd, tmp_path, "-o", tmp_path / "out") == "") != alpha and probe(tmp_path / "out/a.mp4").num_frames == 4
