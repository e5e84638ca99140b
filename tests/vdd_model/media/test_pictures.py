"""Picture files as people have them: every format whole or named, nothing black, nothing transparent that is not, one reader for all."""
import io
import struct
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from media_tools import AVIF, OLD, deblur, eight_bits, encoded, pattern, seen, vdd
from PIL import Image, ImageCms, ImageOps

from train.data.readers import read_picture as read_for_training
from vdd_model.media.clip import MediaError
from vdd_model.media.images import picture_size, read_image, read_picture
from vdd_model.media.video import probe, read, write_image

PICTURE = eight_bits(0, 96, 128)
OTHERS = "qoi", "pcx", "sgi", "pam"
GRAIN = np.clip(PICTURE + np.random.default_rng(0).normal(0, 9, PICTURE.shape), 0, 255).astype(np.uint8)


def stored(path, mode="RGB", values=GRAIN, **keys):
    Image.fromarray(values).convert(mode).save(path, **keys)
    return path


def tiff_file(values, *, pages=1, order="<", compress=False, **keys):
    """An uncompressed or deflated TIFF file: Pillow writes neither tiles nor half floats."""
    tifffile, data = pytest.importorskip("tifffile"), io.BytesIO()
    gray = values.ndim < 3 or values.shape[2] == 1
    with tifffile.TiffWriter(data, byteorder=order) as file:
        for _ in range(pages):
            file.write(values.reshape(values.shape[:2]) if gray else values, metadata=None, compression="zlib" if compress else None,
                       **{"photometric": "minisblack" if gray else "rgb", **keys})
    return data.getvalue()


@pytest.mark.parametrize("name, keys", [
    *((f"a.{suffix}", {}) for suffix in ("jpg", "png", "webp", "bmp", "tif", "jp2", "tga", "ppm")), ("b.jpg", {"progressive": True}),
    ("c.jpg", {"mode": "CMYK"}), ("a.exr", "gbrpf32le"), ("a.dpx", "gbrp10le"), ("b.tga", {"compression": "tga_rle"}),
    *((f"a.{codec}", "rgb24") for codec in OTHERS), *((f"{kind}.tif", {"compression": kind}) for kind in ("tiff_lzw", "jpeg"))])
def test_what_is_cut_off_is_named(tmp_path, name, keys):
    path = tmp_path / name
    data = (stored(path, **keys) if isinstance(keys, dict) else encoded(path, name[2:], keys, GRAIN)).read_bytes()
    whole = read_image(path)[0]
    assert (whole - torch.from_numpy(GRAIN) / 255).abs().mean() < 0.06
    few = (4, 20, 64) if name in ("a.jpg", "a.pcx", "a.sgi") else ()
    for left in (0.3 * len(data), 0.5 * len(data), 0.9 * len(data), *(len(data) - missing for missing in few)):
        path.write_bytes(data[:int(left)])
        pytest.raises(MediaError, read_image, path).match(name)
    pytest.raises(MediaError, read_picture, data[:len(data) // 2], name).match(name)


@pytest.mark.parametrize("name, keys", [("a.png", {}), ("a.tif", {"compression": "tiff_adobe_deflate"})])
def test_a_wrong_byte_is_named_where_the_file_keeps_sums(tmp_path, name, keys):
    data = bytearray(stored(tmp_path / name, **keys).read_bytes())
    data[len(data) // 2] ^= 0x55
    (tmp_path / name).write_bytes(data)
    pytest.raises(MediaError, read_image, tmp_path / name).match(name)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("keys", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}, {"quality": 2}])
def test_odd_but_good_jpegs_are_read(tmp_path, mode, keys):
    data = stored(tmp_path / "a.jpg", mode, **keys).read_bytes()
    whole, scan = read_picture(data), data.index(b"\xff\xda")
    odd = {"no end marker": data[:-2], "zeros behind it": data + bytes(999), "another behind it": data + data,
           "filled up": data[:2] + b"\xff\xff" + data[2:], "a late comment": data[:scan] + b"\xff\xfe\0\4hm" + data[scan:],
           "broken EXIF": data[:2] + b"\xff\xe1\0\x10Exif\0\0MM\0*\xff\xff" + b"z" * 2 + data[2:],
           "broken profile": data[:2] + b"\xff\xe2\0\x10ICC_PROFILE\0\x09\x02" + data[2:]}
    if OLD and mode == "CMYK" and "progressive" in keys:
        del odd["no end marker"]                               # this FFmpeg decodes it anew where bytes stand behind it
    for what, changed in odd.items():
        assert torch.equal(read_picture(changed, what), whole), what


def test_other_colors_than_rgb_are_read(tmp_path):
    """Lab as Photoshop saves it, which FFmpeg does not know; CMYK with fewer samples."""
    lab = ImageCms.profileToProfile(Image.fromarray(PICTURE), *map(ImageCms.createProfile, ("sRGB", "LAB")), outputMode="LAB")
    lab.save(tmp_path / "a.tif")
    stored(tmp_path / "a.jpg", "CMYK", subsampling=1, quality=95)
    for name, limit in (("a.tif", 2), ("a.jpg", 14)):
        assert (read_picture(tmp_path / name).float() - torch.from_numpy(PICTURE).float()).abs().mean() < limit


def test_what_a_sensor_saw_is_no_picture(tmp_path, capfd):
    """FFmpeg takes a mosaic of red, green and blue for a picture, and the preview in a camera's file for the whole."""
    for name in ("a.tif", "a.NEF"):
        Image.fromarray(PICTURE[..., 0]).save(tmp_path / name, "TIFF", tiffinfo={262: 32803, 33421: (2, 2), 33422: bytes((0, 1, 1, 2))})
        assert "is a camera's raw picture; develop it first" in vdd(capfd, tmp_path / name, "-o", tmp_path / "o.png", code=1)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f2", "f4"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("order, compress", [("<", False), ("<", True), (">", True)])
def test_tiff_is_never_black(tmp_path, dtype, channels, tile, order, compress):
    scale = np.iinfo(dtype).max if dtype[0] == "u" else 1
    values = ((pattern(0)[..., :channels] * 3 - 1 if dtype == "f4" else pattern(0)[..., :channels]) * scale).astype(dtype)
    (tmp_path / "a.tif").write_bytes(tiff_file(values, tile=tile, order=order, compress=compress))
    rgb, alpha = read_image(tmp_path / "a.tif")
    assert alpha is None and np.abs(rgb.numpy() - values.astype(np.float64) / scale).max() < (0.002 if dtype in ("u1", "f2") else 1e-4)
    clip = probe(tmp_path / "a.tif")
    assert (clip.gray, clip.bit_depth) == (channels == 1, 8 if dtype == "u1" else 16)


def test_tiff_of_other_kinds(tmp_path, monkeypatch):
    values, path = (pattern(0)[..., 0] * 65535).astype("u2"), tmp_path / "a.tif"
    path.write_bytes(tiff_file(~values, photometric="miniswhite", tile=(16, 16)))
    assert np.abs(read_image(path)[0].numpy()[..., 0] * 65535 - values).max() < 1
    path.write_bytes(tiff_file(np.dstack([values, ~values]), photometric="minisblack", extrasamples=["unassalpha"], tile=(16, 16)))
    assert all(np.abs(found.numpy() * 65535 - x).max() < 1 for found, x in zip(read_image(path), (values[..., None], ~values)))
    cut = bytearray(tiff_file(values, tile=(16, 16), compress=True).replace(b"\x78\x9c", b"\x78\x9d"))
    for data in (tiff_file(values.astype("i2")), cut, b"II*\0\x08\0\0\0" + b"\xff" * 99):
        path.write_bytes(data)
        pytest.raises(MediaError, read_image, path).match("a.tif")
    path.write_bytes(tiff_file(pattern(0).astype("f2")))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    pytest.raises(MediaError, read_image, path).match("package tifffile")


def test_pages_of_a_tiff_are_said(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff_file(PICTURE, pages=6))
    frames, _, notes = seen(tmp_path / "a.tif")
    assert frames == 1 and "6 pictures" in notes[0]
    thumbnail = Image.fromarray(PICTURE[::4, ::4])
    Image.fromarray(PICTURE).save(tmp_path / "b.tif", save_all=True, append_images=[thumbnail])
    assert seen(tmp_path / "b.tif") == (1, 0, [])


def jpeg_of_two(path, xmp=b"", kind=0):
    """A JPEG file with a second picture behind the first (CIPA's Multi-Picture Format), which calls itself `kind`; "": without the index
    of them, "lost": without the second too."""
    first, second = (Image.fromarray(GRAIN[::step, ::step]) for step in (1, 2))
    first.save(path, format="MPO", save_all=True, append_images=[second])
    data = bytearray(path.read_bytes())
    if isinstance(kind, str):
        data = data[:data.rindex(b"\xff\xd8") if kind else None].replace(b"MPF\0", b"none")
    elif kind:
        at = data.index(b"MPF\0") + 4 + 8 + 2 + 3 * 12 + 4 + 16                          # the second entry's attribute
        assert data[at:at + 4] == bytes(4)
        data[at:at + 4] = struct.pack("<I", kind)
    path.write_bytes(data[:2] + (b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp) * bool(xmp) + data[2:])
    return path


@pytest.mark.parametrize("xmp, kind, said", [
    (b"", 0, "holds 2 pictures"), (b"", 0x020002, "holds 2 pictures"), (b"", 0x010001, ""),         # a stereo pair; a preview
    (b'http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version="1.0"/>', 0, "holds the gain map that makes it HDR too"),
    (b'http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version="1.0"/>', "", "holds the gain map that makes it HDR too"),
    (b'http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version="1.0"/>', "lost", ""), (b"", "", ""),
    (b'http://ns.adobe.com/xap/1.0/\0<x GCamera:MotionPhoto="1"/>', 0x010001, "holds a short video too")])
def test_further_pictures_of_a_jpeg_are_said(tmp_path, xmp, kind, said):
    reader = read(probe(jpeg_of_two(tmp_path / "a.jpg", xmp, kind)))
    frame, = list(reader)
    assert frame.rgb.shape == (96, 128, 3) and reader.lost == 0
    assert len(reader.notes) == bool(said) and all(said in note for note in reader.notes)


def test_four_channels_are_not_always_transparent(tmp_path):
    first = stored(tmp_path / "first.png")
    opaque = [stored(tmp_path / "cmyk.jpg", "CMYK"), stored(tmp_path / "lossless.webp", "RGBA", lossless=True), tmp_path / "x.tif"]
    opaque[2].write_bytes(tiff_file(np.dstack([PICTURE, PICTURE[..., :1]]), extrasamples=["unspecified"]))
    for path in opaque:
        assert read_image(path)[1] is None and not probe(path).has_alpha and not probe([first, path]).has_alpha
    for name, keys in (("a.webp", {"lossless": True, "exact": True}), ("b.webp", {}), ("c.tif", {}), ("d.tga", {}), ("e.jp2", {})):
        path = stored(tmp_path / name, "RGBA", np.dstack([PICTURE, PICTURE[..., 1]]), **keys)
        assert probe(path).has_alpha and probe([first, path]).has_alpha
        assert np.abs(read_image(path)[1].numpy() - PICTURE[..., 1] / 255).max() < 0.01


@pytest.mark.parametrize("suffix, bits", [(".tga", 0), (".tga", 8), (".bmp", 0)])
def test_an_empty_fourth_byte_is_no_transparency(tmp_path, suffix, bits):
    """Programs that know only 32 bits write 0 there; nothing would be seen. A targa file may say that it means nothing."""
    height, width = GRAIN.shape[:2]
    fourth = np.full((height, width), 255 * (suffix == ".tga" and not bits) // 2, np.uint8)
    rows = np.dstack([GRAIN[::-1, :, ::-1], fourth]).tobytes()
    head = bytes([0, 0, 2]) + bytes(9) + struct.pack("<HHBB", width, height, 32, bits) if suffix == ".tga" else (
        struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54 + len(rows), 0, 54, 40, width, height, 1, 32, 0, len(rows), 2835, 2835, 0, 0))
    (tmp_path / f"a{suffix}").write_bytes(head + rows)
    rgb, alpha = read_image(tmp_path / f"a{suffix}")
    assert alpha is None and np.array_equal(np.rint(rgb.numpy() * 255), GRAIN)
    gray = read_image(stored(tmp_path / "gray.tga", "LA"))[0].numpy()[..., 0]
    assert np.array_equal(np.rint(gray * 255), np.asarray(Image.fromarray(GRAIN).convert("L")))


@pytest.mark.parametrize("codec, suffix, pix_fmt", [("dpx", "dpx", "gbrp10le"), ("exr", "exr", "gbrpf32le"), ("png", "png", "rgb24"),
                                                    ("mjpeg", "jpg", "yuvj444p"), ("tiff", "tif", "rgb24")])
def test_the_shape_of_pixels_is_kept(tmp_path, capfd, codec, suffix, pix_fmt):
    (tmp_path / "in").mkdir()
    for i in range(2):
        encoded(tmp_path / "in" / f"{i}.{suffix}", codec, pix_fmt, GRAIN, aspect=Fraction(2))
    assert probe(tmp_path / "in").pixel_aspect == 2
    if codec == "dpx":
        vdd(capfd, tmp_path / "in", "-o", tmp_path / "o.mp4")
        assert probe(tmp_path / "o.mp4").pixel_aspect == 2
        assert "not square (2:1)" in vdd(capfd, tmp_path / "in", "-o", tmp_path / "o")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_pixels_per_inch_are_the_other_way_round(tmp_path, name):
    stored(tmp_path / name, dpi=(300, 150))
    assert abs(probe(tmp_path / name).pixel_aspect - Fraction(1, 2)) < 0.001
    assert not any("not square" in note for note in deblur((tmp_path / name,), tmp_path / "o.png").notes)        # this one says so
    stored(tmp_path / name, dpi=(300, 300))
    assert probe(tmp_path / name).pixel_aspect == 1
    stored(tmp_path / name)
    deblur((tmp_path / name,), tmp_path / "o.png", force=True)
    with Image.open(tmp_path / "o.png") as made:
        assert "dpi" not in made.info                          # nor 1, which Pillow makes of a TIFF file


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name, keys", [("a.jpg", {}), ("a.png", {}), ("a.webp", {}), ("a.tif", {"compression": "tiff_lzw"}),
                                        ("b.tif", {"compression": "zstd"})])
def test_one_reader_for_deblurring_and_training(tmp_path, name, keys, orientation):
    exif, plain = Image.Exif(), Image.fromarray(GRAIN)
    exif[0x0112] = plain.getexif()[0x0112] = orientation
    try:
        stored(tmp_path / name, exif=exif, **keys)
    except OSError:
        pytest.skip("this Pillow does not write it")
    upright, turned = read_image(tmp_path / name)[0], np.asarray(ImageOps.exif_transpose(plain))
    assert upright.shape == turned.shape and (upright - torch.from_numpy(turned / 255.0)).abs().mean() < 0.06
    found = read_for_training(tmp_path / name)
    assert torch.equal(found, (upright * 255).round().byte().permute(2, 0, 1))
    assert torch.equal(read_picture(tmp_path / name), found.permute(1, 2, 0))
    assert torch.equal(read_for_training(tmp_path / name, (3, 5, 40, 50)), found[:, 5:50, 3:40])
    assert picture_size(tmp_path / name) == picture_size((tmp_path / name).read_bytes()) == turned.shape[1::-1]


def test_deep_grey_and_transparent_pictures_in_eight_bits(tmp_path):
    for name, kind in (("a.png", "u2"), ("a.tif", "u2"), ("a.tif", "f4")):
        values = np.linspace(0, 65535 if kind == "u2" else 1, 256).astype(kind)
        Image.fromarray(values[None].repeat(32, 0)).save(tmp_path / name)
        assert np.abs(read_for_training(tmp_path / name)[0, 0].numpy().astype(int) - np.arange(256)).max() <= 1
    for keys in ({"gray": True}, {"alpha": torch.full((48, 64), 0.5)}, {"bit_depth": 16}):
        write_image(tmp_path / "a.png", torch.from_numpy(pattern(0)), **keys)
        assert torch.equal(read_picture(tmp_path / "a.png"), (read_image(tmp_path / "a.png")[0] * 255).round().byte())
    buffer = io.BytesIO()
    Image.fromarray(GRAIN).save(buffer, "BMP")
    assert np.array_equal(read_picture(buffer.getvalue()).numpy(), GRAIN)


@pytest.mark.parametrize("codec", OTHERS)
def test_pictures_of_few_programs_are_pictures(tmp_path, capfd, codec):
    opaque = encoded(tmp_path / f"0.{codec}", codec, "rgb24", GRAIN)
    vdd(capfd, opaque, "-o", tmp_path / "o.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "o.png")), GRAIN) and picture_size(opaque) == (128, 96)
    for mode in ("1", "P") if codec == "pcx" else ():           # the colors stand in front of the picture, or behind it
        path = stored(tmp_path / "a.pcx", mode)
        assert np.array_equal(read_picture(path).numpy(), Image.open(path).convert("RGB"))
    if codec != "pcx":
        encoded(tmp_path / f"1.{codec}", codec, "rgba", GRAIN)
        assert probe(tmp_path / f"*.{codec}").num_frames == 2 and probe(tmp_path / f"*.{codec}").has_alpha


@AVIF
def test_still_avif_is_a_picture_and_a_moving_one_a_clip(tmp_path, capfd):
    stored(tmp_path / "a.avif", values=PICTURE, quality=95)
    rgb, alpha = read_image(tmp_path / "a.avif")
    assert alpha is None and (rgb - torch.from_numpy(PICTURE) / 255).abs().mean() < 0.02
    vdd(capfd, tmp_path, "-o", tmp_path / "o")                 # the folder of it
    clear, exif = np.dstack([PICTURE, PICTURE[..., 1]]), Image.Exif()
    for exif[0x0112], turned in ((1, clear), (6, np.rot90(clear, 3))):
        Image.fromarray(clear).save(tmp_path / "b.avif", quality=95, exif=exif)
        found = np.dstack([x.numpy() for x in read_image(tmp_path / "b.avif")])
        assert found.shape == turned.shape and np.abs(found - turned / 255).mean() < 0.02 and probe(tmp_path / "b.avif").has_alpha
    for mode, lost in (("RGB", ()), ("RGBA", ("the transparency (a stream of its own)",))):           # what is lost is said
        frames = [Image.new(mode, (64, 48), (40 * i,) * 3 + (99,) * (mode == "RGBA")) for i in range(5)]
        frames[0].save(tmp_path / "c.avif", save_all=True, append_images=frames[1:], duration=40)
        clip = probe(tmp_path / "c.avif")
        assert clip.num_frames == len(list(read(clip))) == 5 and clip.extras == lost
    data = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.avif").write_bytes(data[:len(data) // 2])
    pytest.raises(MediaError, read_image, tmp_path / "a.avif").match("a.avif")
    both = probe([stored(tmp_path / name, values=PICTURE) for name in ("0.png", "1.avif")])
    assert both.num_frames == 2 and not both.has_alpha


@AVIF
def test_pictures_in_tiles_that_nobody_here_reads_are_one_sentence(tmp_path, monkeypatch):
    """FFmpeg would give one tile of such a file for the whole."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = stored(tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.heic").write_bytes(data[:8] + b"heic" + data[12:].replace(b"av01", b"grid", 1))
    pytest.raises(MediaError, read_image, tmp_path / "a.heic").match("pillow-heif")


def test_five_bits_a_color_reach_white(tmp_path):
    head = b"BM" + struct.pack("<IHHI", 86, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 0, 32, 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(head + struct.pack("<16H", *[0x7FFF] * 16))
    assert read_image(tmp_path / "a.bmp")[0].min() == 1 and read_picture(tmp_path / "a.bmp").min() == 255


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.tga", pytest.param("a.avif", marks=AVIF)])
def test_large_pictures_are_no_bombs(tmp_path, name, monkeypatch):
    """Pillow refuses those beyond 179 million pixels, which photographs of telephones have."""
    exif = Image.Exif()
    exif[0x0112] = 6
    keys = {"a.tga": {"compression": "tga_rle"}, "a.tif": {}, "a.avif": {"mode": "RGBA", "values": np.dstack([GRAIN, GRAIN[..., 1]])}}
    stored(tmp_path / name, **keys.get(name, {"exif": exif}))
    if name == "a.tif":
        (tmp_path / name).write_bytes(tiff_file(PICTURE, tile=(16, 16)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_picture(tmp_path / name).shape[1] == probe(tmp_path / name).width == picture_size(tmp_path / name)[0]
