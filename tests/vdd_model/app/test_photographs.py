"""Photographs through the command line: alone, several that are no clip, and what they say of themselves."""
import numpy as np
import pytest
import torch
from media_tools import pattern, vdd
from PIL import Image

from vdd_model.app.inputs import plan
from vdd_model.media.clip import MediaError
from vdd_model.media.video import OutputOptions, read_image, write_image


def photographs(folder, *names, sizes=((48, 64), (64, 48), (40, 40))):
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray((pattern(i, *sizes[i % len(sizes)]) * 255).astype(np.uint8)).save(folder / name, quality=95)
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
    options = OutputOptions()
    assert [job.target.name for job in plan([str(folder)], str(tmp_path / "o"), options, each=True)] == ["1.jpg.png", "1.png.png", "2.png"]
    assert len(plan([str(folder)], str(tmp_path / "o"), options)) == 1                     # of one size they are a clip
    with pytest.raises(MediaError, match="give a folder"):
        plan([str(folder)], str(tmp_path / "o.mp4"), options, each=True)
    for name in ("3.png", "4.png", "5.png"):
        write_image(folder / name, torch.from_numpy(pattern(0, 32, 32)))
    (folder / "1.png").unlink()
    assert "--each deblurs every picture on its own" in vdd(capfd, folder, "-o", tmp_path / "clip", code=3)
    vdd(capfd, folder, "-o", tmp_path / "each", "--each")
    assert len(list((tmp_path / "each").iterdir())) == 5
