"""From the command line's inputs to jobs: which clips there are, where results go, which process does which."""
from pathlib import Path

import pytest
import torch
from media_tools import deblur, eight_bits, pattern, pictures, vdd
from PIL import Image

from vdd_model.app.inputs import plan, share
from vdd_model.media.clip import MediaError
from vdd_model.media.images import gaps
from vdd_model.media.video import OutputOptions, read_image, write_image


def planned(*inputs: Path, out: Path, **more) -> list:
    return plan([*map(str, inputs)], str(out), OutputOptions(), **more)


def test_plan_and_share(tmp_path):
    for name, length in (("a.mp4", 500), ("b.mp4", 300), ("c.mov", 200), ("d.mkv", 50), ("e.avi", 10)):
        (tmp_path / name).write_bytes(bytes(length))
    work = planned(tmp_path, out=tmp_path / "out")
    assert [j.target.name for j in work] == ["a.mp4", "b.mp4", "c.mov", "d.mkv", "e.mkv"]
    assert [[j.target.name for j in share(work, rank, 3)] for rank in range(3)] == [["a.mp4"], ["b.mp4"], ["c.mov", "d.mkv", "e.mkv"]]
    pytest.raises(MediaError, planned, tmp_path, out=tmp_path / "out.mp4").match("cannot go into the one file")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.mp4").write_bytes(b"x")
    pytest.raises(MediaError, planned, tmp_path / "a.mp4", tmp_path / "sub" / "a.mp4", out=tmp_path / "out").match("would both be written")


def test_odd_names_around_the_clips(tmp_path):
    folder, out = tmp_path / "b [1]", tmp_path / "out"
    folder.mkdir()
    for name in ("b [1]/c.mp4", "b [1]/._c.mp4", "b [1]/d.y4m", "v10.mp4", "v2.mp4"):
        (tmp_path / name).write_bytes(b"x")
    write_image(folder / "e.png", torch.zeros(8, 8, 3))
    assert planned(folder / "*.png", out=out)[0].source == (folder / "e.png",)
    (folder / "e.png").unlink()
    for given, names in ((folder / "*.mp4", ["c.mp4"]), (tmp_path / "v%d.mp4", ["v2.mp4", "v10.mp4"]), (folder, ["c.mp4", "d.y4m"])):
        assert [job.source.name for job in planned(given, out=out)] == names


def test_pictures_named_one_by_one_are_one_sequence(tmp_path):
    files, out = pictures(tmp_path, 0, 1, 2, name="{}.png"), tmp_path / "out"
    for inputs in (files, [tmp_path], [tmp_path / "*.png"], [tmp_path / "%d.png"]):
        (job,) = planned(*inputs, out=out)
        assert len(job.source) == 3 and job.as_images and job.target == out
    (tmp_path / "10.png").write_bytes(files[2].read_bytes())
    (job,) = planned(*(tmp_path / f"{i}.png" for i in (0, 1, 10, 2)), out=out)                           # as a shell sorts them
    assert [p.stem for p in job.source] == ["0", "1", "2", "10"]
    (job,) = planned(files[1], out=tmp_path / "sharp.png")
    assert len(job.source) == 1 and job.as_images and deblur(job.source, job.target).frames == 1 and job.target.is_file()


def test_gaps_in_the_numbering_are_said(tmp_path):
    assert deblur(pictures(tmp_path / "in", 1, 2, 3), tmp_path / "a").notes == []
    notes = deblur(pictures(tmp_path / "in", 1, 2, 3, 4, 8, 9), tmp_path / "b").notes
    assert len(notes) == 1 and "1 gap, the first behind" in notes[0] and "4" in notes[0]
    for numbers, said in (((1, 2, 5), True), ((1, 4, 5), True), ((10, 20, 30), False), ((3, 11, 70, 72), False), ((12, 15, 32), False)):
        assert bool(gaps([Path(f"{n}.png") for n in numbers])) == said


def photographs(folder, *names, sizes=((48, 64), (64, 48), (40, 40))):
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(eight_bits(i, *sizes[i % len(sizes)])).save(folder / name, quality=95)
    return folder


def test_photographs_of_several_sizes_are_no_clip(tmp_path, capfd):
    folder = photographs(tmp_path / "in", "beach.jpg", "cat.png", "IMG_2041.jpg", "IMG_2044.webp")
    (folder / "._cat.png").write_bytes(b"what macOS leaves")
    vdd(capfd, folder, "-o", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["IMG_2041.png", "IMG_2044.png", "beach.png", "cat.png"]
    for path in folder.glob("[!.]*"):
        assert torch.allclose(read_image(tmp_path / "out" / (path.stem + ".png"))[0], read_image(path)[0], atol=0.003)
    assert "exists already" in vdd(capfd, folder, "-o", tmp_path / "out", code=1)
    (folder / "beach.jpg").write_bytes((folder / "beach.jpg").read_bytes()[:500])          # a broken one takes no other with it
    assert "beach.jpg is not a picture that can be read" in vdd(capfd, folder, "-o", tmp_path / "rest", code=1)
    assert len(list((tmp_path / "rest").iterdir())) == 3
    assert "folder of the input pictures" in vdd(capfd, folder, "-o", folder, code=1)
    vdd(capfd, *folder.glob("IMG*"), "-o", tmp_path / "loose")
    assert len(list((tmp_path / "loose").iterdir())) == 2


def test_each_takes_every_picture_alone(tmp_path, capfd):
    folder = photographs(tmp_path / "in", "1.jpg", "1.png", "2.jpg", sizes=[(48, 64)])
    assert [job.target.name for job in planned(folder, out=tmp_path / "o", each=True)] == ["1.jpg.png", "1.png.png", "2.png"]
    assert len(planned(folder, out=tmp_path / "o")) == 1                                   # of one size they are a clip
    pytest.raises(MediaError, planned, folder, out=tmp_path / "o.mp4", each=True).match("give a folder")
    for name in ("3.png", "4.png", "5.png"):
        write_image(folder / name, torch.from_numpy(pattern(0, 32, 32)))
    (folder / "1.png").unlink()
    assert "--each deblurs every picture on its own" in vdd(capfd, folder, "-o", tmp_path / "clip", code=3)
    vdd(capfd, folder, "-o", tmp_path / "each", "--each")
    assert len(list((tmp_path / "each").iterdir())) == 5
