"""Previews: what they show, and that they replace nothing."""
import numpy as np
import torch
from media_tools import IdentityDeblurrer, deblur, pattern, save_clip, vdd

from vdd_model.media.video import probe, read_clip, write_image


def test_preview(tmp_path):
    brighter = IdentityDeblurrer(each=lambda _, chunk: (chunk + 0.2).clamp(0, 1))
    outcome = deblur(save_clip(tmp_path / "in.mp4", 150), tmp_path / "o.mp4", stand_in=brighter, preview=True)
    picture = read_clip(tmp_path / "o.mp4.preview.png")[0]
    assert "preview" in outcome.notes[-1] and picture.shape == (48, 2 * 64 + 4, 3)
    assert 0.15 < (picture[:, 68:] - picture[:, :64]).mean() < 0.25
    video = probe(tmp_path / "o.mp4.preview.mp4")
    assert (video.num_frames, video.rate, video.width) == (150, 25, 64)


def test_a_preview_that_fails_is_only_a_note(tmp_path):
    write_image(tmp_path / "in.png", torch.zeros(16, 17000, 3))          # wider than H.264 can be
    outcome = deblur([tmp_path / "in.png"], tmp_path / "o.png", preview=True)
    assert outcome.frames == 1 and (tmp_path / "o.png").exists()
    assert any("preview could not be written (h264 cannot store frames of 17000x16" in note for note in outcome.notes)


def test_a_preview_replaces_nothing(tmp_path, capsys):
    """Not the input, no file that was there, nor the preview of another output."""
    source = save_clip(tmp_path / "k.mp4.preview.mp4", 3)
    before = source.read_bytes()
    command = [source, "-o", tmp_path / "k.mp4", "--preview"]
    assert "would replace an input" in vdd(capsys, *command, "--force", code=1) and not (tmp_path / "k.mp4").exists()
    vdd(capsys, *command[:-1])
    vdd(capsys, *command, "--resume", code=1)
    assert source.read_bytes() == before
    other = save_clip(tmp_path / "k.mp4", 2)
    assert "would replace an output" in vdd(capsys, source, other, "-o", tmp_path / "both", "--preview", code=1)
    assert not (tmp_path / "both").exists()
    several = [*(save_clip(tmp_path / f"d{suffix}", 2) for suffix in (".mp4", ".mov")), "-o", tmp_path / "out", "--preview"]
    vdd(capsys, *several)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.preview.mp4")) == ["d.mov.preview.mp4", "d.mp4.preview.mp4"]
    for target in ("d.mp4", "d.mov"):
        (tmp_path / "out" / target).unlink()
    assert "exists already" in vdd(capsys, *several, code=1)
    vdd(capsys, *several, "--force")


def test_resume_adds_a_preview_that_is_missing(tmp_path, capsys):
    source = save_clip(tmp_path / "in.mp4", 3)
    command = [source, "-o", tmp_path / "o.mp4"]
    vdd(capsys, *command)
    written = (tmp_path / "o.mp4").stat().st_mtime_ns
    vdd(capsys, *command, "--resume", "--preview")
    assert probe(tmp_path / "o.mp4.preview.mp4").num_frames == 3 and (tmp_path / "o.mp4").stat().st_mtime_ns == written
    (tmp_path / "o.mp4.preview.mp4").unlink()
    save_clip(tmp_path / "o.mp4", [np.tile(pattern(0), (2, 2, 1))] * 3)              # an upscaled one
    vdd(capsys, *command, "--resume", "--preview")
    assert not (tmp_path / "o.mp4.preview.mp4").exists()
