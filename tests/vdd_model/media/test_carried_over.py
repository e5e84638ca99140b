"""What a clip brings along goes into the output: tags of one's own, the track's name, the place of chroma, every kind of sound."""
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from media_tools import AVIF, HDR, OLD, deblur, eight_bits, heard, lpcm, packets, save_clip, save_sounds, written_again
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vdd_model.media.video import probe, read, read_clip

SUFFIXES = [".mp4", ".mov", ".mkv"]


def tagged(path: Path, metadata: dict, track: dict | None = None, **options) -> Path:
    return save_clip(path, 3, metadata=metadata, track=track, container_options=options)


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("source", [".mp4", ".mkv"])
def test_tags_of_ones_own_are_kept(tmp_path, source, target):
    """ComfyUI keeps the graph that made a clip there, in small letters; Matroska puts all into capitals."""
    tags = {"workflow": '{"nodes": [1]}', "prompt": '{"3": {}}', "com.android.version": "14", "title": "mine", "comment": "a = b\nc",
            "Camera": "A"}
    given = tagged(tmp_path / f"in{source}", tags, **({"movflags": "use_metadata_tags"} if source == ".mp4" else {}))
    expected = {key.lower() if ".mkv" in (source, target) else key: value for key, value in tags.items()}
    assert expected.items() <= dict(written_again(given, tmp_path / f"o{target}").metadata).items()


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_plain_tags_stay_where_every_program_looks(tmp_path, suffix):
    given = tagged(tmp_path / f"in{suffix}", {"title": "mine", "artist": "me"})
    data = written_again(given, tmp_path / f"o{suffix}").path.read_bytes()
    assert b"\xa9nam" in data and b"mdta" not in data


def test_what_an_mxf_says_of_itself_stays_there(tmp_path):
    with av.open(str(save_clip(tmp_path / "in.mxf", 3, codec="mpeg2video"))) as file:
        assert {"uid", "operational_pattern_ul", "product_version"} <= set(file.metadata)
    assert not any(word in key for key, _ in probe(tmp_path / "in.mxf").metadata for word in ("uid", "umid", "_ul", "version", "platform"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_tracks_title_and_language_are_kept(tmp_path, suffix):
    given = tagged(tmp_path / "in.mp4", {}, {"title": "Camera B", "language": "deu"})
    if OLD and "title" not in dict(probe(given).track):
        pytest.skip("this FFmpeg reads no track's title of an .mp4")
    track = dict(written_again(given, tmp_path / f"o{suffix}").track)
    assert track["title"] == "Camera B" and track["language"] in ("deu", "ger")            # .mov keeps a number, of an older list


@pytest.mark.parametrize("given, kept", [pair.split() for pair in ("fra fra", "fre fra", "ces ces", "cze ces", "swe swe", "hrv hrv",
                                                                   "deu ger", "ger ger", "jpn jpn")])
def test_languages_that_mov_knows_by_other_names(tmp_path, given, kept):
    mov = written_again(tagged(tmp_path / "in.mkv", {}, {"language": given}), tmp_path / "o.mov")
    assert dict(mov.track)["language"] == dict(written_again(mov, tmp_path / "o.mp4").track)["language"] == kept


def test_texts_of_png_files_are_kept(tmp_path):
    """ComfyUI's SaveImage writes `prompt` and `workflow` into each."""
    for i in range(3):
        texts = PngInfo()
        texts.add_text("workflow", f'{{"nodes": [{i}]}}')
        texts.add_itxt("prompt", '{"3": "ü"}', zip=True)
        texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
        Image.fromarray(eight_bits(i)).save(tmp_path / f"{i}.png", pnginfo=texts, dpi=(300, 300))
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for outcome in (deblur(files, tmp_path / "o"), deblur(files[1], tmp_path / "o" / "one.png")):
        assert not any("not carried" in note for note in outcome.notes)
    for name, number in (("0.png", 0), ("2.png", 2), ("one.png", 1)):
        data, info = (tmp_path / "o" / name).read_bytes(), Image.open(tmp_path / "o" / name).info
        assert (info["workflow"], info["prompt"]) == (f'{{"nodes": [{number}]}}', '{"3": "ü"}') and b"Orientation" not in data
        assert data.count(b"pHYs") == (name == "one.png")
    deblur(files, tmp_path / "o.mp4")
    assert dict(probe(tmp_path / "o.mp4").metadata)["workflow"] == '{"nodes": [0]}'


@pytest.mark.parametrize("suffix", [".webp", ".jpg", ".tif", pytest.param(".avif", marks=AVIF)])
def test_comfyuis_graph_in_exif_is_kept(tmp_path, suffix):
    """Where its nodes for WebP write it; in PNG the page looks for texts."""
    files = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for i, file in enumerate(files):
        exif = Image.Exif()
        exif[0x0110], exif[0x010F] = "prompt:{}", f'workflow:{{"nodes": [{i}]}}'
        Image.fromarray(eight_bits(i)).save(file, exif=exif)
    deblur(files, tmp_path / "o")
    deblur(files[1:], tmp_path / "o" / "one.png")
    for name, number in (("0.png", 0), ("1.png", 1), ("one.png", 1)):
        info = Image.open(tmp_path / "o" / name).info
        assert (info["workflow"], info["prompt"]) == (f'{{"nodes": [{number}]}}', "{}")
        assert ("exif" in info) == (name == "one.png")
    deblur(files, tmp_path / "o.mp4")
    assert dict(probe(tmp_path / "o.mp4").metadata)["workflow"] == '{"nodes": [0]}'


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_comfyuis_graph_in_an_animation_is_kept(tmp_path, suffix):
    exif, info, source = Image.Exif(), PngInfo(), tmp_path / f"in{suffix}"
    exif[0x010F] = 'workflow:{"nodes": [1]}'
    info.add(b"comf", b'workflow\0{"nodes": [1]}', after_idat=True)
    frames = [Image.fromarray(eight_bits(i)) for i in range(3)]
    keys = {"exif": exif} if suffix == ".webp" else {"pnginfo": info}
    frames[0].save(source, save_all=True, append_images=frames[1:], duration=40, **keys)
    deblur(source, tmp_path / "o.mp4")
    assert dict(probe(tmp_path / "o.mp4").metadata)["workflow"] == '{"nodes": [1]}'


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", pytest.param("a.avif", marks=AVIF)])
def test_a_photographs_own_words_are_kept(tmp_path, name):
    """EXIF, pixels per inch, XMP: title, keywords, rights. Not how it was to be turned: it is turned."""
    xmp, exif = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" dc:title="mine"/></x:xmpmeta>', Image.Exif()
    exif[0x0112], exif[0x0110], exif[0x0132] = 6, "Some camera", "2026:05:01 12:00:00"
    keys = {"a.tif": {"tiffinfo": {700: xmp, **exif}, "dpi": (300, 300)}, "a.webp": {"exif": exif, "xmp": xmp},
            "a.avif": {"exif": exif, "xmp": xmp}, "a.jpg": {"exif": exif, "xmp": xmp, "dpi": (300, 300)},
            "a.png": {"exif": exif, "dpi": (300, 300)}}[name]
    Image.fromarray(eight_bits()).save(tmp_path / name, **keys)
    deblur((tmp_path / name,), tmp_path / "o.png")
    with Image.open(tmp_path / "o.png") as made:
        assert made.size == (48, 64) and dict(made.getexif()) == {k: exif[k] for k in (0x0110, 0x0132)}
        assert "dpi" not in keys or round(made.info["dpi"][0]) == 300
        assert name == "a.png" or b'dc:title="mine"' in made.info["xmp"] and b"Orientation" not in made.info["xmp"]
        made.load()
    assert probe(tmp_path / "o.png").height == 64


def test_tags_of_a_video_that_pictures_do_not_take_are_said(tmp_path):
    source = tagged(tmp_path / "in.mp4", {"workflow": "{}", "title": "mine"}, movflags="use_metadata_tags")
    assert "not carried over: tags (workflow, title)" in deblur(source, tmp_path / "o").notes


@pytest.mark.parametrize("codec, suffix", [("hevc", ".mp4"), ("hevc", ".mkv"), ("h264", ".mov"), ("ffv1", ".mkv")])
def test_the_place_of_chroma_is_kept(tmp_path, codec, suffix):
    clip = probe(save_clip(tmp_path / "in.mp4", 3, size=(48, 96), **HDR, options={"x265-params": "log-level=none:chromaloc=2"}))
    out = written_again(clip, tmp_path / f"o{suffix}", codec=codec, chroma=420, quality=None if codec == "ffv1" else 2)
    assert clip.chroma == out.chroma == "topleft"
    assert (read_clip(out) - read_clip(clip)).abs().mean() < 2e-3


def sound(path: Path, kind: str) -> tuple[float, np.ndarray]:
    """(time of the first sample, stereo samples (n,) of that format) of a file, as FFmpeg decodes them."""
    with av.open(str(path)) as file:
        resampler = av.AudioResampler(kind, "stereo", 48000)
        parts = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
        return float(parts[0].pts * parts[0].time_base), np.concatenate([part.to_ndarray()[0] for part in parts])


@pytest.mark.parametrize("suffix, stored", [(".mp4", "flac"), (".mov", "pcm"), (".mkv", "flac")])
@pytest.mark.parametrize("source, video, codec", [(".avi", "mpeg4", "adpcm_ima_wav"), (".wmv", "wmv2", "wmav2")])
def test_sound_that_no_output_takes_is_stored_as_it_is_decoded(tmp_path, source, video, codec, suffix, stored):
    """FFmpeg's list for Matroska has none of them."""
    wave = (8000 * np.sin(np.arange(15360) * 0.05)).astype(np.int16).repeat(2)[None]
    given = save_sounds(tmp_path / f"in{source}", codec, video=video, frames=8, values=wave, kind="s16")
    outcome = deblur(given, tmp_path / f"o{suffix}")
    assert any(f"its sound ({codec}) is stored as {stored}" in note for note in outcome.notes)
    (start, before), (begin, after) = (sound(path, "s32") for path in (given, tmp_path / f"o{suffix}"))
    assert abs(begin - (start - probe(given).shift)) < 0.001 and abs(len(before) - len(after)) <= 4096
    count = min(len(before), len(after))
    assert count > 24000 and np.abs(before[:count] / 2**31 - after[:count] / 2**31).max() < 1e-6


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
    picture = min(t for t, _ in packets(tmp_path / f"o{suffix}", "video"))
    assert abs(start - picture - float(first["audio"] - first["video"])) < 0.003


@pytest.mark.parametrize("layout", ["mono", "stereo"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_uncompressed_sound_goes_into_every_container(tmp_path, suffix, layout):
    """As FLAC into .mp4, which would take some of it as it is."""
    noise = np.random.default_rng(1).integers(-9000, 9000, (1, 9600)).astype(np.int16)
    for codec in ("pcm_s16be", "pcm_alaw", "pcm_f32be", "pcm_u8", "pcm_s24be"):
        source = save_sounds(tmp_path / f"{codec}.nut", codec, frames=3, values=noise, kind="s16", layout=layout)
        deblur(source, tmp_path / f"{codec}{suffix}")
        if suffix == ".mp4":
            with av.open(str(tmp_path / f"{codec}{suffix}")) as file:
                assert (file.streams.audio[0].codec_context.name == "flac") is (codec != "pcm_f32be")
        assert np.array_equal(*(sound(path, "dbl")[1] for path in (source, tmp_path / f"{codec}{suffix}"))), codec


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_sound_that_a_cut_hides_stays_hidden(tmp_path, suffix):
    """A lossless cutter leaves all in the file and lets an edit list begin a second later."""
    source = save_clip(tmp_path / "in.mp4", 50, options={"bf": "0", "g": "10"}, audio=True)
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
