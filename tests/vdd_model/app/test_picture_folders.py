"""Jobs that end in a folder of pictures: names, what else is in the folder, interruptions, other disks."""
import errno
import os
from pathlib import Path

import pytest
import torch
from media_tools import deblur, pictures, save_clip, stopped, vdd

from vdd_model.media import sinks
from vdd_model.media.video import part_folder, read_clip, read_image, write_image


def test_pictures_keep_names_depth_and_alpha(tmp_path):
    out = tmp_path / "out"
    for i in range(20):
        files = pictures(tmp_path / "in", i + 7, name="shot_{:03d}.png", alpha=torch.full((48, 64), i / 20), bit_depth=16)
    stopped(files, out, 9)
    assert not out.exists()
    assert deblur(files, out, resume=True).frames == 20 and not part_folder(out).exists()
    assert [(p.name, p.read_bytes()) for p in sorted(out.iterdir())] == [(p.name, p.read_bytes()) for p in files]


def test_a_longer_run_before_leaves_no_pictures(tmp_path):
    """--force replaces the pictures of that naming, and touches nothing else."""
    out = tmp_path / "out"
    deblur(pictures(tmp_path / "long", *range(7, 27)), out)
    others = ["frame_000001.png", "keep.txt", "shot1_0020.jpg", "shot1_002x.png", "shot2_0020.png", "shot1_0020.png.bak"]
    for name in others:
        (out / name).write_bytes(b"mine")
    deblur(pictures(tmp_path / "short", *range(7, 12)), out, force=True)
    assert sorted(p.name for p in out.iterdir()) == sorted([*others, *(f"shot1_{i:04d}.png" for i in range(7, 12))])
    for count in (40, 3, 1):
        deblur(save_clip(tmp_path / "in.mp4", count), tmp_path / "video", force=True)
        assert sorted(p.name for p in (tmp_path / "video").iterdir()) == [f"frame_{i:06d}.png" for i in range(count)]


@pytest.mark.parametrize("place", ["removing", "moving"])
def test_old_pictures_go_also_after_an_interruption(tmp_path, monkeypatch, place):
    """A kill while the old ones are removed, or the new ones moved in: --resume needs no --force and counts no old picture as its own."""
    out, real = tmp_path / "out", os.replace
    deblur(save_clip(tmp_path / "long.mp4", 12), out)
    short = save_clip(tmp_path / "short.mp4", 5)

    def killed(*names, **keys):
        if place == "removing" or str(names[1]).endswith("frame_000002.png") and out in Path(names[1]).parents:
            raise KeyboardInterrupt
        return real(*names)

    with monkeypatch.context() as patch:
        patch.setattr(*(Path, "unlink") if place == "removing" else (os, "replace"), killed)
        pytest.raises(KeyboardInterrupt, deblur, short, out, force=True)
    assert len(list(out.iterdir())) == (12 if place == "removing" else 5)
    assert deblur(short, out, resume=True).frames == 5
    assert sorted(p.name for p in out.iterdir()) == [f"frame_{i:06d}.png" for i in range(5)]
    assert not part_folder(out).exists()


def test_pictures_of_the_same_kind():
    for names, other, alike in (("a1_08.png a1_09.png", "a1_10.png", True), ("a1_08.png a1_09.png", "a2_08.png", False),
                                ("a1_08.png", "a1_09.png", False),             # one name alone does not tell which number counts
                                ("a.png b.png", "c.png", False), ("a1.png a2.png b.png", "a30.png", True)):
        assert bool(sinks.naming(names.split()).fullmatch(other)) == alike


def test_pictures_of_an_unknown_run_are_not_resumed(tmp_path):
    source = save_clip(tmp_path / "in.mp4", 20)
    folder = part_folder(tmp_path / "out") / "pictures"
    folder.mkdir(parents=True)
    for i in range(3):
        write_image(folder / f"frame_{i:06d}.png", torch.zeros(48, 64, 3))
    (folder.parent / "job.json").touch()
    assert deblur(source, tmp_path / "out", resume=True).frames == 20
    assert read_image(tmp_path / "out" / "frame_000000.png")[0].mean() > 0.1


def test_pictures_go_to_another_disk(tmp_path, monkeypatch):
    """The output folder may be a link to one there."""
    real = os.replace

    def replace(source, target):
        if Path(source).parent.name == "pictures" and Path(target).parent.name == "out":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(sinks.os, "replace", replace)
    deblur(pictures(tmp_path / "in", 0, 1, 2), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [p.stem + ".png" for p in sorted((tmp_path / "in").iterdir())]
    assert read_clip(tmp_path / "out").equal(read_clip(tmp_path / "in")) and not part_folder(tmp_path / "out").exists()


def test_a_folder_may_hold_other_files(tmp_path, capsys):
    """What is not the job's own neither finishes it nor is replaced, refused or shown."""
    taken, out = tmp_path / "taken", tmp_path / "out"
    pictures(taken, 0, 1, 2, name="{}.png")
    out.mkdir()
    write_image(out / "0_cover.png", torch.ones(48, 64, 3))
    cover = (out / "0_cover.png").read_bytes()
    vdd(capsys, taken, "-o", out, "--resume", "--preview")
    assert [p.name for p in sorted(out.iterdir())] == ["0.png", "0_cover.png", "1.png", "2.png"]
    assert (out / "0_cover.png").read_bytes() == cover
    still = read_clip(tmp_path / "out.preview.png")[0]
    assert torch.equal(still[:, :64], still[:, 68:])
    assert "was left as it is" in vdd(capsys, taken, "-o", out, "--resume")
    assert f"{out / '0.png'} exists already" in vdd(capsys, taken, "-o", out, code=1)
    (out / "2.png").unlink()
    frames = [save_clip(tmp_path / "a.mp4", 5), "-o", out, "--codec", "png"]
    for command, made in (((taken / "2.png", "-o", out), "2.png"), (frames, "frame_000004.png")):
        vdd(capsys, *command)
        assert (out / made).exists()
    assert "frame_000000.png exists already" in vdd(capsys, *frames, code=1)
