"""What users really give: broken, empty, changing, full. One sentence each, no traceback, nothing lost."""
import wave

import av
import numpy as np
import pytest
import torch
from media_tools import OLD, IdentityDeblurrer, add_video, encoded, pattern, pictures, save_clip, save_sounds, vdd

from vdd_model.inference.pipeline import Deblurrer
from vdd_model.media.video import part_folder, probe, read, read_clip, write_image


@pytest.fixture()
def whole(tmp_path):
    """A clip of 60 frames whose index is at its start, so that it can be read when it is cut off."""
    return save_clip(tmp_path / "whole.mp4", 60, container_options={"movflags": "faststart"})


def test_what_is_no_clip(tmp_path, capfd):
    """Exit code 1, one sentence, and nothing left behind."""
    films = [b"\x00" * 5000, b"just some text\n" * 100, b"%PDF-1.4 " + bytes(range(256)) * 20, b"\x89PNG\r\n\x1a\n" + b"x" * 99,
             b"1\n00:00:00,100 --> 00:00:00,500\nhello\n\n"]
    data = save_clip(tmp_path / "a.mp4", 30).read_bytes()                                             # its index is at the end
    files = {f"film{i}.mp4": film for i, film in enumerate(films)} | {"cut.mp4": data[: len(data) // 2], "empty.mkv": b""}
    for name, content in {**files, "both/a.png": b"any", "both/b.mp4": b"any", "folder/._a.mp4": b""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 4000, "NONE", ""))
        file.writeframes(bytes(8000))
    with av.open(str(tmp_path / "none.mkv"), "w") as out:
        add_video(out)
        out.start_encoding()
    before = set(tmp_path.iterdir())
    for name, words in {**{name: name for name in files}, "cut.mp4": "header is missing", "empty.mkv": "is empty (0 bytes)",
                        "nothing.mp4": "does not exist", "*.avi": "nothing fits the pattern", "folder": "holds no video and no pictures",
                        "both": "holds both pictures and videos; name a pattern", "sound.wav": "no video in it, only sound",
                        "none.mkv": "not one frame"}.items():
        error = vdd(capfd, tmp_path / name, "-o", tmp_path / "out.mp4", code=1)
        assert words in error and "\n" not in error and set(tmp_path.iterdir()) == before, error


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_clip_that_breaks_off(tmp_path, capfd, whole, suffix):
    source = whole if suffix == ".mp4" else save_clip(tmp_path / f"whole{suffix}", 60)
    data = source.read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(data[: int(len(data) * 0.6)])
    error = vdd(capfd, tmp_path / f"cut{suffix}", "-o", tmp_path / "out.mp4", code=3)
    out = probe(tmp_path / "out.mp4")
    lost = 60 - out.num_frames + ("1 frame is damaged" in error)
    if suffix != ".mkv":                                   # its header tells how many there were
        assert "are missing" in error and f"{lost} frames lost" in error or OLD and "it breaks off" in error
    else:
        assert "breaks off" in error and "lost" in error
    assert 20 < out.num_frames < 50 and (read_clip(out) - read_clip(source)[: out.num_frames]).square().mean() < 1e-3


def test_damage_in_the_middle(tmp_path, capfd, whole):
    data = bytearray(whole.read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 700):
        data[i] = (i * 77) % 256
    (tmp_path / "bad.mp4").write_bytes(data)
    error, clip = vdd(capfd, tmp_path / "bad.mp4", "-o", tmp_path / "out.mp4", code=3), probe(tmp_path / "out.mp4")
    out = list(read(clip))
    assert ("could not be decoded" in error or "damaged" in error) and 40 <= len(out) <= 60
    assert clip.rate == 25 and abs(float(out[-1].pts * clip.time_base) - 59 / 25) < 0.3       # the rest stays in its place in time


def test_frame_size_changes(tmp_path, capfd):
    """H.264 may change its size in the middle of a stream."""
    parts = [save_clip(tmp_path / f"{i}.h264", 12, size=size) for i, size in enumerate([(48, 64), (64, 96)])]
    (tmp_path / "both.h264").write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    error = vdd(capfd, tmp_path / "both.h264", "-o", tmp_path / "out.mp4", code=3)
    assert "the frame size changes from 64x48 to 96x64 at frame 12" in error and "12 frames lost" in error
    assert probe(tmp_path / "out.mp4").num_frames == 12


def test_pictures_of_different_sizes_and_a_broken_one(tmp_path, capfd):
    folder = pictures(tmp_path / "in", *range(4), name="{}.png")[0].parent
    for i in (4, 5):
        write_image(folder / f"{i}.png", torch.zeros(32, 32, 3))
    error = vdd(capfd, folder, "-o", tmp_path / "out", code=3)
    assert "from 64x48 to 32x32" in error and "2 frames lost" in error
    assert len(list((tmp_path / "out").iterdir())) == 4
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    assert "2.png is not a picture that can be read" in vdd(capfd, folder, "-o", tmp_path / "out2", code=3)
    assert len(list((tmp_path / "out2").iterdir())) == 2
    (folder / "0.png").write_bytes(b"")
    assert "0.png is empty" in vdd(capfd, folder, "-o", tmp_path / "out3", code=1) and not (tmp_path / "out3").exists()


def test_nan_frames_and_values_beyond_white(tmp_path, capfd):
    """Pixels that are not numbers are set to black, what lies beyond white is cut off; both are counted and said."""
    folder = tmp_path / "in"
    folder.mkdir()
    rgb = [pattern(i) * (3 if i == 3 else 1) for i in range(4)]
    rgb[2][10:20, 10:20] = np.nan
    for i in range(4):
        encoded(folder / f"{i}.exr", "exr", "gbrpf32le", rgb[i])
    error = vdd(capfd, folder, "-o", tmp_path / "out", code=3)
    assert "1 frame (the first is 2) held pixels that are not numbers" in error
    assert "1 frame (the first is 3) held values below 0 or above 1, which were cut off" in error and "EXR holds linear light" in error
    frames = read_clip(tmp_path / "out")
    assert torch.isfinite(frames).all() and frames[2, 15, 15].max() == 0
    assert np.abs(frames[1].numpy() - pattern(1)).max() < 1e-3


def test_a_model_that_answers_nan(tmp_path, capfd, tiny_model):
    tiny_model.vae.fidelity.head.bias[0] = float("nan")
    source = save_clip(tmp_path / "in.mp4", 3)
    for dtype, advice in ((torch.bfloat16, True), (torch.float32, False)):
        model = Deblurrer(tiny_model, device="cpu", dtype=dtype)
        error = vdd(capfd, source, "-o", tmp_path / "out.mp4", "--force", model=model, code=1)
        assert "not a number" in error and ("--dtype float32" in error) == advice and not (tmp_path / "out.mp4").exists()


def test_out_of_memory_is_said(tmp_path, capfd, whole):
    for problem in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")):
        error = vdd(capfd, whole, "-o", tmp_path / "out.mp4", "--force", model=IdentityDeblurrer(stop_after=0, error=problem), code=1)
        assert "not enough memory" in error and "--tile" in error


def test_existing_output_is_not_touched(tmp_path, capfd, whole):
    target = tmp_path / "out.mp4"
    target.write_bytes(b"precious")
    assert "exists already; use --force" in vdd(capfd, whole, "-o", target, code=1) and target.read_bytes() == b"precious"
    error = vdd(capfd, whole, "-o", target, "--force", model=IdentityDeblurrer(stop_after=20, error=ValueError("broken")), code=1)
    assert "broken" in error and target.read_bytes() == b"precious"     # replaced only by a whole one
    vdd(capfd, whole, "-o", target, "--force")
    assert probe(target).num_frames == 60 and not part_folder(target).exists()


def test_input_is_not_overwritten(tmp_path, capfd, whole):
    data = whole.read_bytes()
    assert "is the input itself" in vdd(capfd, whole, "-o", whole, "--force", code=1) and whole.read_bytes() == data
    picture, = pictures(tmp_path / "in", 0)
    assert "folder of the input pictures" in vdd(capfd, picture.parent, "-o", picture.parent, "--force", code=1)
    data = picture.read_bytes()
    for more in ((), ("--force",)):
        assert "is the input itself" in vdd(capfd, picture, "-o", picture, *more, code=1) and picture.read_bytes() == data


def test_outputs_that_cannot_be(tmp_path, capfd, whole, monkeypatch):
    """Among them what a shell hands over instead of a name: an empty variable would stand for the folder one is in, and `-` for a pipe."""
    (tmp_path / "out" / "whole.mp4").mkdir(parents=True)
    for name, text, *more in (("out.xyz", "cannot be written"), ("out.png", "holds one picture"), ("whole.mp4/x.mp4", "cannot be made"),
                              ("o.mp4", "writes a folder", "--codec", "png"), ("out", "is a folder; give the name of a file", "--force")):
        assert text in vdd(capfd, whole, "-o", tmp_path / name, *more, code=1)
    monkeypatch.chdir(whole.parent)
    before = sorted(whole.parent.iterdir())
    for paths in (("", "-o", tmp_path / "o.mp4"), ("-", "-o", tmp_path / "o.mp4"), (whole, "-o", ""), (whole, "-o", "-")):
        assert ("empty name" if "" in paths else "in the place of a pipe") in vdd(capfd, *paths, code=1)
    assert sorted(whole.parent.iterdir()) == before


def test_sound_that_does_not_fit(tmp_path, capfd):
    source = save_sounds(tmp_path / "in.mkv", "wavpack")
    error = vdd(capfd, source, "-o", tmp_path / "out.mp4", code=1)              # what is advised is tried before
    assert "(wavpack) cannot be stored in .mp4; choose an output ending in .mkv, or --no-audio" in error
    assert not part_folder(tmp_path / "out.mp4").exists()
    vdd(capfd, source, "-o", tmp_path / "out.mp4", "--no-audio")
    vdd(capfd, source, "-o", tmp_path / "out.mkv")
