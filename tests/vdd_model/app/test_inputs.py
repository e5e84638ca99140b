"""From the command line's inputs to jobs: which clips there are, where results go, which process does which."""
from pathlib import Path

import pytest
import torch
from media_tools import deblur, pictures

from vdd_model.app.inputs import plan, share
from vdd_model.media.clip import MediaError
from vdd_model.media.images import gaps
from vdd_model.media.video import OutputOptions, write_image


def test_plan_and_share(tmp_path):
    for name, length in (("a.mp4", 500), ("b.mp4", 300), ("c.mov", 200), ("d.mkv", 50), ("e.avi", 10)):
        (tmp_path / name).write_bytes(bytes(length))
    work = plan([str(tmp_path)], str(tmp_path / "out"), OutputOptions())
    assert [j.target.name for j in work] == ["a.mp4", "b.mp4", "c.mov", "d.mkv", "e.mkv"]
    shares = [share(work, rank, 3) for rank in range(3)]
    assert sorted(j.target.name for part in shares for j in part) == sorted(j.target.name for j in work)
    assert [[j.target.name for j in part] for part in shares] == [["a.mp4"], ["b.mp4"], ["c.mov", "d.mkv", "e.mkv"]]
    with pytest.raises(MediaError, match="cannot go into the one file"):
        plan([str(tmp_path)], str(tmp_path / "out.mp4"), OutputOptions())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.mp4").write_bytes(b"x")
    with pytest.raises(MediaError, match="would both be written"):
        plan([str(tmp_path / "a.mp4"), str(tmp_path / "sub" / "a.mp4")], str(tmp_path / "out"), OutputOptions())


def test_odd_names_around_the_clips(tmp_path):
    folder = tmp_path / "b [1]"
    folder.mkdir()
    for name in ("c.mp4", "._c.mp4", "d.y4m"):
        (folder / name).write_bytes(b"x")
    write_image(tmp_path / "b [1]" / "e.png", torch.zeros(8, 8, 3))
    assert [job.source.name for job in plan([str(folder / "*.mp4")], str(tmp_path / "out"), OutputOptions())] == ["c.mp4"]
    assert plan([str(folder / "*.png")], str(tmp_path / "out"), OutputOptions())[0].source == (folder / "e.png",)
    for name in ("v10.mp4", "v2.mp4"):
        (tmp_path / name).write_bytes(b"x")
    assert [job.source.name for job in plan([str(tmp_path / "v%d.mp4")], str(tmp_path / "out"), OutputOptions())] == ["v2.mp4", "v10.mp4"]
    (folder / "e.png").unlink()
    assert [job.source.name for job in plan([str(folder)], str(tmp_path / "out"), OutputOptions())] == ["c.mp4", "d.y4m"]


def test_pictures_named_one_by_one_are_one_sequence(tmp_path):
    pictures(tmp_path, 0, 1, 2, name="{}.png")
    for inputs in ([str(tmp_path / f"{i}.png") for i in range(3)], [str(tmp_path)], [str(tmp_path / "*.png")], [str(tmp_path / "%d.png")]):
        (job,) = plan(inputs, str(tmp_path / "out"), OutputOptions())
        assert len(job.source) == 3 and job.as_images and job.target == tmp_path / "out"
    (job,) = plan([str(tmp_path / "1.png")], str(tmp_path / "sharp.png"), OutputOptions())
    assert len(job.source) == 1 and job.as_images
    (tmp_path / "10.png").write_bytes((tmp_path / "2.png").read_bytes())
    (job,) = plan([str(tmp_path / f"{i}.png") for i in (0, 1, 10, 2)], str(tmp_path / "out"), OutputOptions())     # as a shell sorts them
    assert [p.stem for p in job.source] == ["0", "1", "2", "10"]
    (job,) = plan([str(tmp_path / "1.png")], str(tmp_path / "sharp.png"), OutputOptions())
    assert deblur(job.source, job.target).frames == 1 and job.target.is_file()


def test_gaps_in_the_numbering_are_said(tmp_path):
    assert deblur(pictures(tmp_path / "in", 1, 2, 3), tmp_path / "a").notes == []
    notes = deblur(pictures(tmp_path / "in", 1, 2, 3, 4, 8, 9), tmp_path / "b").notes
    assert len(notes) == 1 and "1 gap, the first behind" in notes[0] and "4" in notes[0]
    assert gaps([Path(f"{n}.png") for n in (10, 20, 30)]) == gaps([Path(f"{n}.png") for n in (3, 11, 70, 72)]) == ""
