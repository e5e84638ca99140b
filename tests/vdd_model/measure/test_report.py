"""Panels, error maps, tables and the comparison of two clips."""
import json

import numpy as np
import pytest
import torch
from media_tools import save_clip
from PIL import Image

from vdd_model.errors import UserError
from vdd_model.measure import report
from vdd_model.measure.metrics import Scorer, psnr


def picture(seed=0, height=48, width=64):
    small = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")[0].movedim(0, -1)


def write_folder(folder, frames, names=None):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        report.to_image(frame).save(folder / f"{names[i] if names else f'{i:06d}'}.png")
    return folder


def test_the_box_is_where_pictures_of_any_kind_differ():
    x, y = picture(), picture()
    assert report.to_image(x).size == (64, 48)
    assert report.to_image(x.numpy()).tobytes() == report.to_image(report.to_image(x)).tobytes() == report.to_image(x).tobytes()
    assert report.to_image(x[..., 0]).mode == "RGB"
    y[28:36, 40:48] += 0.4
    box = report.interesting_box([x, y])
    assert box.x <= 40 and box.x + box.width >= 48 and box.y <= 28 and box.y + box.height >= 36
    border = x * 0
    border[:3] = border[:, :4] = 1                              # left out
    assert report.interesting_box([x * 0, border]) == report.ZoomBox(4, 3, 16, 12)
    assert report.interesting_box([x]).width == 16 and report.interesting_box([x[:6, :6]]) == report.ZoomBox(0, 0, 6, 6)


def test_error_map_is_black_without_error_and_bright_where_it_is():
    x = picture()
    y = x.clone()
    y[10:20, 30:40] = 1 - y[10:20, 30:40].round()
    none, some = (np.array(report.error_map(a, x).convert("L")) for a in (x, y))
    assert none[:48].max() <= 4 and len(none) > 48              # a strip below names the colors
    assert some[12:18, 32:38].mean() > 100 and some[30:48].max() < 10
    assert report.error_map(y[:, :4], x[:, :4]).width == 4
    pytest.raises(UserError, report.error_map, x, x[:, :60]).match("64 x 48 and 60 x 48")
    luma = report.color_map(torch.linspace(0, 1, 64)[None])[0] @ torch.tensor([0.299, 0.587, 0.114])
    assert (luma.diff() > 0).all() and luma[0] < 0.02 and luma[-1] > 0.9


def test_panel_shows_every_picture_and_its_enlarged_part():
    x = picture()
    labels = ["black", "a label that is much longer than its column is wide", "white"]
    sheet = report.panel([x * 0, x, x * 0 + 1], labels, (8, 8, 16, 12), width=160)
    assert sheet.width == 3 * 164 - 4 and sheet.height > 120 + 120
    assert sheet.getpixel((80, sheet.height - 60)) == (0, 0, 0) and sheet.getpixel((2 * 164 + 80, sheet.height - 60)) == (255, 255, 255)
    assert sheet.getpixel((0, sheet.height - 1)) == report.BOX_COLOR
    for pictures, labels, words in (([x, x[:40]], ["a", "b"], "one size and a label for each"), ([x, x], ["a"], "1 labels")):
        pytest.raises(UserError, report.panel, pictures, labels).match(words)
    for width, height, box in ((1920, 1080, (100, 100, 3, 3)), (4000, 4, None), (2600, 1, None)):            # extreme shapes
        assert report.panel([torch.zeros(height, width, 3), torch.ones(height, width, 3)], ["a", "b"], box).width == 2 * 480 + 4


def test_markdown_table():
    text = report.markdown_table({"blurred": {"psnr": 25.634, "lpips": None}, "steps 1": {"psnr": 28.0, "lpips": None}}, "GoPro")
    lines = text.splitlines()
    assert lines[0].startswith("| GoPro") and "PSNR dB" in lines[0] and "LPIPS" in lines[0] and "SSIM" not in lines[0]
    assert "25.63" in lines[2] and lines[2].rstrip().endswith("- |") and len({len(line) for line in lines}) == 1


def test_compare_folders(tmp_path):
    truth = torch.stack([picture(i) for i in range(6)])
    blurred = (truth * 0.8 + 0.1).clamp(0, 1)
    output = (truth * 0.95 + 0.02).clamp(0, 1)
    a, b, c = (write_folder(tmp_path / n, x) for n, x in (("out", output[:5]), ("sharp", truth), ("blur", blurred)))
    said = []
    result = report.compare(a, b, tmp_path / "report", blurred=c, say=said.append)
    assert result["frames"] == 5 and "only the first 5 frames" in result["notes"][0]
    eight = (output * 255).round() / 255
    assert result["scores"]["out"]["psnr"] == pytest.approx(float(psnr(eight[:5], truth[:5]).mean()), abs=0.05)
    assert result["scores"]["blurred input"]["psnr"] < result["scores"]["out"]["psnr"]
    assert "PSNR" in said[0] and "blurred input" in said[0]
    for name in ("panel.png", "error_map.png"):
        Image.open(tmp_path / "report" / name).verify()
    assert json.loads((tmp_path / "report" / "scores.json").read_text())["frames"] == 5
    rows = (tmp_path / "report" / "scores.csv").read_text().splitlines()
    assert rows[0].startswith("frame,psnr") and len(rows) == 6
    assert not list((tmp_path / "report").glob("*.part"))


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (0, 0, 5, -1), (-1, 0, 4, 4), (60, 0, 5, 5), (0, 0, 65, 5), (0, 44, 4, 5)])
def test_a_box_that_cannot_be_enlarged_is_refused_beforehand(tmp_path, monkeypatch, box):
    for name in ("a", "b"):
        report.save_image(Image.new("RGB", (64, 48)), tmp_path / name / "0.png")
    monkeypatch.setattr(report, "compare_frames", None)
    with pytest.raises(UserError, match="does not lie within the frame's 64 x 48"):
        report.compare(tmp_path / "a", tmp_path / "b", tmp_path / "out", zoom_box=box)
    pytest.raises(UserError, report.panel, [torch.zeros(48, 64, 3)], ["a"], box).match("does not lie within")
    assert not (tmp_path / "out").exists()


def test_what_a_reader_says_comes_through():
    def broken():
        yield torch.zeros(16, 16, 3)
        raise UserError("b.mp4 could not be read any further")

    with pytest.raises(UserError, match="^b.mp4 could not be read any further$"):
        report.compare_frames([Scorer()], zip([torch.zeros(16, 16, 3)] * 9, broken()))
    with pytest.raises(UserError, match="different sizes after frame 0: 16 x 16, 12 x 16"):
        report.compare_frames([Scorer()], [(torch.zeros(16, 16, 3), torch.zeros(16, 12, 3))])


def test_compare_refuses_what_does_not_fit(tmp_path, monkeypatch):
    a = write_folder(tmp_path / "a", [picture()])
    b = write_folder(tmp_path / "b", [picture(height=40)])
    for other, words in ((b, "different sizes: .*64 x 48.*64 x 40"), (tmp_path / "none", "does not exist")):
        pytest.raises(UserError, report.compare, a, other, tmp_path / "report", say=None).match(words)
    with pytest.raises(UserError, match="frame 1 holds NaN"):
        report.compare_frames([Scorer()], [(picture(), picture()), (picture(), picture() * float("nan"))])
    (tmp_path / "file").write_text("x")
    pytest.raises(UserError, report.save_text, "x", tmp_path / "file" / "x.md").match("cannot be written|not be")
    monkeypatch.setattr(report, "compare_frames", lambda *_, **__: pytest.fail("it was compared"))
    with pytest.raises(UserError, match="cannot be made a folder"):                                # beforehand
        report.compare(a, a, tmp_path / "file")


def compared(a, b) -> dict:
    """What the comparison of the two says, without the measure that takes time."""
    return report.compare(a, b, a.parent / "report", say=None, warp=False)


def numbered(folder, name, numbers):
    return write_folder(folder, [picture(i) for i in numbers], [name.format(i) for i in numbers])


def test_pictures_of_one_name_are_compared(tmp_path):
    result = compared(numbered(tmp_path / "a", "frame_{}", (0, 1, 3, 4)), numbered(tmp_path / "b", "frame_{}", range(5)))
    assert result["frames"] == 4 and result["scores"]["a"]["psnr"] == 100
    assert any("frame_2.png has no picture of that name" in note and str(tmp_path / "b") in note for note in result["notes"])


@pytest.mark.parametrize("names", [("blur_{}", "gt_{:04d}"), ("{}", "{:03d}"), ("f{}", "photo {} of mine")])
def test_pictures_of_one_number_are_compared_where_names_differ(tmp_path, names):
    """Told apart by side or by zeros; where the numbers do not agree either, their order is taken, and that is said."""
    four, five = numbered(tmp_path / "4", names[0], (1, 2, 4, 5)), numbered(tmp_path / "5", names[1], range(1, 6))
    result = compared(four, five)
    assert result["frames"] == 4 and result["scores"]["4"]["psnr"] == 100
    assert any(names[1].format(3) in note for note in result["notes"])
    (four / f"{names[0].format(1)}.png").rename(four / f"{names[0].format(9)}.png")
    assert any("no names in common and are compared in their order" in note for note in compared(four, five)["notes"])


def test_frames_of_one_time_are_compared(tmp_path):
    for name, times in (("a.mkv", (0, 1, 2, 4, 5, 6)), ("b.mkv", range(8))):
        save_clip(tmp_path / name, [picture(i).numpy() for i in times], codec="ffv1", pix_fmt="gbrp16le", times=times)
    for a, b in (("a.mkv", "b.mkv"), ("b.mkv", "a.mkv")):
        result = compared(tmp_path / a, tmp_path / b)
        assert result["frames"] == 6 and result["scores"][a]["psnr"] == 100 and result["lost"] == 0
        assert any("b.mkv: 1 frame without" in note for note in result["notes"])
        assert any("only the first 6 frames" in note for note in result["notes"])
