"""What a codec cannot store is refused before any work, what it has no use for is named, and nothing half written has the final name."""
import dataclasses
import functools

import av
import pytest
from media_tools import deblur, patterns, save_clip

from vdd_model.media.clip import MediaError
from vdd_model.media.encoding import choose_encoding
from vdd_model.media.files import write_whole, written_aside
from vdd_model.media.video import OutputOptions, probe, write_video


def test_what_prores_and_ffv1_cannot_store_is_refused(tmp_path):
    clip = probe(save_clip(tmp_path / "in.mp4", 2))
    encode = functools.partial(choose_encoding, clip, tmp_path / "o.mov")
    assert encode(OutputOptions(codec="prores", chroma=444)).pix_fmt == "yuv444p10le"
    assert encode(OutputOptions(codec="prores")).pix_fmt == encode(OutputOptions(codec="prores", chroma=422)).pix_fmt == "yuv422p10le"
    for options in ({"chroma": 420}, {"chroma": 444, "quality": 2}, {"chroma": 422, "quality": 4}, {"bit_depth": 8}):
        pytest.raises(MediaError, encode, OutputOptions(codec="prores", **options)).match("ProRes .* stores 4:.* with 10 bits")
    for suffix, options, text in ((".mov", {"quality": 9}, "not a ProRes profile"), (".avi", {}, "files ending in .avi cannot be written"),
                                  (".mov", {"quality": 2}, "standard has no transparency")):
        with pytest.raises(MediaError, match=text):
            choose_encoding(dataclasses.replace(clip, has_alpha=True), tmp_path / f"o{suffix}", OutputOptions(codec="prores", **options))
    odd = dataclasses.replace(clip, width=67)
    with pytest.raises(MediaError, match="odd side .* 4:2:0 in ffv1"):
        choose_encoding(odd, tmp_path / "o.mkv", OutputOptions(codec="ffv1", chroma=420))


def test_prores_has_the_profile_that_is_asked_for(tmp_path):
    for quality, tag in enumerate(("apco", "apcs", "apcn", "apch", "ap4h", "ap4x")):
        path = write_video(tmp_path / "o.mov", patterns(1), options=OutputOptions(codec="prores", quality=quality))
        with av.open(str(path)) as file:
            assert file.streams.video[0].codec_context.codec_tag == tag


def test_the_encoder_holds_few_large_frames(tmp_path):
    """x264 looks ahead at as many frames as fit into the bound, never fewer than 8, and at no more than its preset would."""
    clip = probe(save_clip(tmp_path / "in.mp4", 2))
    for size, preset, ahead in (((64, 48), "medium", None), ((1280, 720), "medium", 24), ((1280, 720), "veryfast", None),
                                ((3840, 2160), "fast", 8)):
        sized = dataclasses.replace(clip, width=size[0], height=size[1])
        params = dict(choose_encoding(sized, tmp_path / "o.mp4", OutputOptions(preset=preset)).options).get("x264-params", "").split(":")
        assert [p for p in params if p.startswith("rc-lookahead")] == ([f"rc-lookahead={ahead}"] if ahead else []), (size, preset)


def test_options_without_effect_are_named(tmp_path):
    source = save_clip(tmp_path / "in.mp4", 2)
    for options, target, named in (({"quality": 7, "preset": "slow"}, "o.mkv", ["--quality", "--preset"]),
                                   ({"preset": "slow"}, "o.mov", ["--preset"]),
                                   ({"quality": 7, "chroma": 444, "bit_depth": 10}, "out", ["--quality", "--chroma", "16 are written"])):
        codec = {"o.mkv": "ffv1", "o.mov": "prores", "out": "png"}[target]
        notes = deblur(source, tmp_path / target, output=OutputOptions(codec=codec, **options)).notes
        assert len(notes) == len(named) and all(word in note for word, note in zip(named, notes)), notes


@pytest.mark.parametrize("frames", [1, 2, 3, 65])
def test_decoding_times_are_our_own(tmp_path, frames):
    """x265's mean nothing where a run is shorter than its reordering is deep, and the last segment may be."""
    out = write_video(tmp_path / "o.mp4", patterns(frames, 16, 64), options=OutputOptions(codec="hevc", preset="ultrafast"))
    with av.open(str(out)) as file:
        ticks = round(1 / (file.streams.video[0].average_rate * file.streams.video[0].time_base))
        times = [(p.pts, p.dts) for p in file.demux(video=0) if p.size]
    assert sorted(pts for pts, _ in times) == [i * ticks for i in range(frames)]
    assert [b - a for (_, a), (_, b) in zip(times, times[1:])] == [ticks] * (frames - 1)
    assert all(pts - 8 * ticks <= dts <= pts for pts, dts in times)


@pytest.mark.parametrize("size", [(18, 34), (48, 48), (62, 63), (15, 640), (640, 14), (640, 63)])
def test_hevc_refuses_what_its_encoder_cannot_take(tmp_path, size):
    frames = patterns(3, *size)
    pytest.raises(MediaError, write_video, tmp_path / "o.mp4", frames, options=OutputOptions(codec="hevc")).match("too small for hevc")
    clip = probe(write_video(tmp_path / "o.mp4", frames, options=OutputOptions(bit_depth=10)))
    assert (clip.codec, clip.bit_depth) == ("h264", 10)
    assert any("too small for hevc" in note for note in choose_encoding(clip, tmp_path / "o.mp4", OutputOptions()).notes)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_there_whole_or_as_it_was(tmp_path, durable):
    path = tmp_path / "a.txt"
    with written_aside(path, durable=durable) as aside:
        aside.write_text("new")
        assert not path.exists() and aside.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), written_aside(path, ending=".txt") as aside:
        aside.write_text("half")
        assert aside.suffix == ".txt"
        raise KeyboardInterrupt
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    write_whole(path, "third", durable=durable)
    assert path.read_text() == "third" and list(tmp_path.iterdir()) == [path]
