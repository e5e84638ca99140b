"""What a clip brings along goes into the output: tags of one's own, the track's name, the place of chroma, every kind of sound."""
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from media_tools import OLD, deblur, heard, lpcm, packets, pattern, save_clip, save_sounds
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vdd_model.media.encoding import OutputOptions
from vdd_model.media.pixel_formats import ColorTags
from vdd_model.media.video import probe, read, read_clip, write_video

SUFFIXES = [".mp4", ".mov", ".mkv"]


def tagged(path: Path, metadata: dict, track: dict | None = None, **options) -> Path:
    return save_clip(path, [pattern(i) for i in range(3)], metadata=metadata, track=track, container_options=options)


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("source", [".mp4", ".mkv"])
def test_tags_of_ones_own_are_kept(tmp_path, source, target):
    """ComfyUI keeps the graph that made a clip there, in small letters; Matroska puts all into capitals."""
    tags = {"workflow": '{"nodes": [1]}', "prompt": '{"3": {}}', "com.android.version": "14", "title": "mine", "comment": "a = b\nc",
            "Camera": "A"}
    given = tagged(tmp_path / f"in{source}", tags, {}, **({"movflags": "use_metadata_tags"} if source == ".mp4" else {}))
    out = write_video(tmp_path / f"o{target}", read_clip(given), like=probe(given))
    expected = {key.lower() if ".mkv" in (source, target) else key: value for key, value in tags.items()}
    assert expected.items() <= dict(probe(out).metadata).items()


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_plain_tags_stay_where_every_program_looks(tmp_path, suffix):
    given = tagged(tmp_path / f"in{suffix}", {"title": "mine", "artist": "me"}, {})
    data = write_video(tmp_path / f"o{suffix}", read_clip(given), like=probe(given)).read_bytes()
    assert b"\xa9nam" in data and b"mdta" not in data


def test_what_an_mxf_says_of_itself_stays_there(tmp_path):
    with av.open(str(save_clip(tmp_path / "in.mxf", [pattern(i) for i in range(3)], codec="mpeg2video"))) as file:
        assert {"uid", "operational_pattern_ul", "product_version"} <= set(file.metadata)
    assert not any(word in key for key, _ in probe(tmp_path / "in.mxf").metadata for word in ("uid", "umid", "_ul", "version", "platform"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_tracks_title_and_language_are_kept(tmp_path, suffix):
    given = tagged(tmp_path / "in.mp4", {}, {"title": "Camera B", "language": "deu"})
    if OLD and "title" not in dict(probe(given).track):
        pytest.skip("this FFmpeg reads no track's title of an .mp4")
    clip = probe(write_video(tmp_path / f"o{suffix}", read_clip(given), like=probe(given)))
    track = dict(clip.track)
    assert track["title"] == "Camera B" and track["language"] in ("deu", "ger")            # .mov keeps a number, of an older list


@pytest.mark.parametrize("given, kept", [("fra", "fra"), ("fre", "fra"), ("ces", "ces"), ("cze", "ces"), ("swe", "swe"), ("hrv", "hrv"),
                                         ("deu", "ger"), ("ger", "ger"), ("jpn", "jpn")])
def test_languages_that_mov_knows_by_other_names(tmp_path, given, kept):
    source = tagged(tmp_path / "in.mkv", {}, {"language": given})
    clip = probe(write_video(tmp_path / "o.mov", read_clip(source), like=probe(source)))
    assert dict(clip.track)["language"] == kept
    assert dict(probe(write_video(tmp_path / "o.mp4", read_clip(clip), like=clip)).track)["language"] == kept


def test_texts_of_png_files_are_kept(tmp_path):
    """ComfyUI's SaveImage writes `prompt` and `workflow` into each."""
    for i in range(3):
        texts = PngInfo()
        texts.add_text("workflow", f'{{"nodes": [{i}]}}')
        texts.add_itxt("prompt", '{"3": "ü"}', zip=True)
        texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
        Image.fromarray((pattern(i) * 255).clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png", pnginfo=texts, dpi=(300, 300))
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for outcome in (deblur(files, tmp_path / "o"), deblur(files[1], tmp_path / "o" / "one.png")):
        assert not any("not carried" in note for note in outcome.notes)
    for name, number in (("0.png", 0), ("2.png", 2), ("one.png", 1)):
        data, info = (tmp_path / "o" / name).read_bytes(), Image.open(tmp_path / "o" / name).info
        assert (info["workflow"], info["prompt"]) == (f'{{"nodes": [{number}]}}', '{"3": "ü"}') and b"Orientation" not in data
        assert data.count(b"pHYs") == (name == "one.png")
    deblur(files, tmp_path / "o.mp4")
    assert dict(probe(tmp_path / "o.mp4").metadata)["workflow"] == '{"nodes": [0]}'


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_a_photographs_own_words_are_kept(tmp_path, name):
    """EXIF, pixels per inch, XMP: title, keywords, rights. Not how it was to be turned: it is turned."""
    xmp, exif = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" dc:title="mine"/></x:xmpmeta>', Image.Exif()
    exif[0x0112], exif[0x0110], exif[0x0132] = 6, "Some camera", "2026:05:01 12:00:00"
    keys = {"a.tif": {"tiffinfo": {700: xmp, **exif}, "dpi": (300, 300)}, "a.webp": {"exif": exif, "xmp": xmp},
            "a.jpg": {"exif": exif, "xmp": xmp, "dpi": (300, 300)}, "a.png": {"exif": exif, "dpi": (300, 300)}}[name]
    Image.fromarray((pattern(0) * 255).clip(0, 255).astype(np.uint8)).save(tmp_path / name, **keys)
    deblur((tmp_path / name,), tmp_path / "o.png")
    with Image.open(tmp_path / "o.png") as made:
        assert made.size == (48, 64) and dict(made.getexif()) == {k: exif[k] for k in (0x0110, 0x0132)}
        assert "dpi" not in keys or round(made.info["dpi"][0]) == 300
        assert name == "a.png" or b'dc:title="mine"' in made.info["xmp"] and b"Orientation" not in made.info["xmp"]
        made.load()
    assert probe(tmp_path / "o.png").height == 64


def test_tags_of_a_video_that_pictures_do_not_take_are_said(tmp_path):
    source = tagged(tmp_path / "in.mp4", {"workflow": "{}", "title": "mine"}, {}, movflags="use_metadata_tags")
    assert "not carried over: tags (workflow, title)" in deblur(source, tmp_path / "o").notes


@pytest.mark.parametrize("codec, suffix", [("hevc", ".mp4"), ("hevc", ".mkv"), ("h264", ".mov"), ("ffv1", ".mkv")])
def test_the_place_of_chroma_is_kept(tmp_path, codec, suffix):
    given = save_clip(tmp_path / "in.mp4", [pattern(i, 48, 96) for i in range(3)], codec="libx265", pix_fmt="yuv420p10le",
                      tags=ColorTags(9, 9, 16, False), options={"x265-params": "log-level=none:chromaloc=2"})
    clip = probe(given)
    out = probe(write_video(tmp_path / f"o{suffix}", read_clip(clip), like=clip,
                            options=OutputOptions(codec=codec, chroma=420, quality=None if codec == "ffv1" else 2)))
    assert clip.chroma == out.chroma == "topleft"
    assert (read_clip(out) - read_clip(clip)).abs().mean() < 2e-3


# sound

@pytest.mark.parametrize("suffix, stored", [(".mp4", "flac"), (".mov", "pcm"), (".mkv", "flac")])
@pytest.mark.parametrize("source, video, codec", [(".avi", "mpeg4", "adpcm_ima_wav"), (".wmv", "wmv2", "wmav2")])
def test_sound_that_no_output_takes_is_stored_as_it_is_decoded(tmp_path, source, video, codec, suffix, stored):
    """FFmpeg's list for Matroska has none of them."""
    wave = (8000 * np.sin(np.arange(15360) * 0.05)).astype(np.int16).repeat(2)[None]
    given = save_sounds(tmp_path / f"in{source}", codec, video=video, frames=8, values=wave, kind="s16")

    def samples(path):
        with av.open(str(path)) as file:
            parts = [part for frame in file.decode(audio=0) for part in av.AudioResampler("s32", "stereo", 48000).resample(frame)]
            return parts[0].pts * parts[0].time_base, np.concatenate([part.to_ndarray()[0] for part in parts]) / 2**31
    outcome = deblur(given, tmp_path / f"o{suffix}")
    assert any(f"its sound ({codec}) is stored as {stored}" in note for note in outcome.notes)
    (start, before), (begin, after) = samples(given), samples(tmp_path / f"o{suffix}")
    clip = probe(given)
    assert abs(begin - (start - clip.shift)) < 0.001 and abs(len(before) - len(after)) <= 4096
    count = min(len(before), len(after))
    assert count > 24000 and np.abs(before[:count] - after[:count]).max() < 1e-6


@pytest.mark.parametrize("suffix, stored", [(".mp4", "flac"), (".mov", "pcm"), (".mkv", "pcm")])
@pytest.mark.parametrize("codec, bits, channels", [("pcm_bluray", 16, 2), ("pcm_bluray", 24, 2), ("pcm_bluray", 16, 6)])
def test_sound_of_camcorders_is_converted_without_loss(tmp_path, codec, bits, channels, suffix, stored):
    samples = lpcm(tmp_path / "in.mts", codec, bits, channels)
    outcome = deblur(tmp_path / "in.mts", tmp_path / f"o{suffix}")
    found, start, after = heard(tmp_path / f"o{suffix}", bits)
    assert found == {"flac": "flac", "pcm": f"pcm_s{bits}le"}[stored] and np.array_equal(after[:len(samples)], samples)
    assert any(f"its sound ({codec}) is stored as {found}, which loses nothing" in note for note in outcome.notes)
    with av.open(str(tmp_path / "in.mts")) as file:            # picture and sound keep their distance
        first = {kind: min(p.pts * p.time_base for p in file.demux(**{kind: 0}) if p.size) for kind in ("video", "audio")
                 if file.seek(0) is None}
    lag = float(first["audio"] - first["video"])
    picture = min(t for t, _ in packets(tmp_path / f"o{suffix}", "video"))
    assert abs(start - picture - lag) < 0.003


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_uncompressed_sound_goes_into_every_container(tmp_path, suffix):
    for number, codec in enumerate(["pcm_s16be", "pcm_alaw", "pcm_f32be", "pcm_u8", "pcm_s24be"]):
        noise = np.random.default_rng(1).integers(-9000, 9000, (1, 9600)).astype(np.int16)
        source = save_sounds(tmp_path / f"{number}.nut", codec, frames=3, values=noise, kind="s16")
        deblur(source, tmp_path / f"{number}{suffix}")
        sounds = []
        for path in (source, tmp_path / f"{number}{suffix}"):
            with av.open(str(path)) as file:
                to_doubles = av.AudioResampler("dbl", "stereo", 48000)
                sounds.append(np.concatenate([p.to_ndarray() for f in file.decode(audio=0) for p in to_doubles.resample(f)], 1))
        assert np.array_equal(*sounds), codec


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_sound_that_a_cut_hides_stays_hidden(tmp_path, suffix):
    """A lossless cutter leaves all in the file and lets an edit list begin a second later."""
    source = save_clip(tmp_path / "in.mp4", [pattern(i) for i in range(50)], options={"bf": "0", "g": "10"}, audio=True)
    data, position = bytearray(source.read_bytes()), 0
    with av.open(str(source)) as file:
        scales = [1 / s.time_base for s in (file.streams.video[0], file.streams.audio[0])]
    for scale in scales:
        position = data.index(b"elst", position) + 4
        count, = struct.unpack(">I", data[position + 4: position + 8])
        entry = position + 8 + 12 * (count - 1)
        length, media = struct.unpack(">Ii", data[entry: entry + 8])
        data[entry: entry + 8] = struct.pack(">Ii", length - 1000, media + int(scale))
    source.write_bytes(data)
    assert len(list(read(probe(source)))) == 25
    deblur(source, tmp_path / f"o{suffix}")
    picture, sound = packets(tmp_path / f"o{suffix}", "video"), packets(tmp_path / f"o{suffix}", "audio")
    assert 0 <= min(t for t, _ in picture) < 0.1 and -0.05 < sound[0][0] and 0.9 < sound[-1][0] < 1.1
