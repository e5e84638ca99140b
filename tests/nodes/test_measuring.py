"""Compare Deblurring and Synthesize Motion Blur in the stand-in host."""
import pytest
import torch

from tests.nodes.conftest import Cancelled


def test_compare_and_synthesize(pack):
    photo = torch.rand(1, 32, 40, 3, generator=torch.Generator().manual_seed(1))
    blurred, sharp = pack.nodes["VDDSynthesizeBlur"].execute(photo, 3, 4.0, 5).result
    assert blurred.shape == sharp.shape == (3, 32, 40, 3)
    out = pack.nodes["VDDCompare"].execute(sharp, sharp, blurred)
    table, panel, errors, score = out.result
    assert "PSNR" in table and panel.ndim == errors.ndim == 4 and score > 60 and len(out.ui["images"]) == 2
    # small frames can be read: wide enough for labels and the error map's scale, and the table is in columns also as plain text
    assert panel.shape[2] >= 3 * 240 and errors.shape[2] >= 240 and len({len(line) for line in table.splitlines()}) == 1
    assert errors[0, errors.shape[1] - 8].std() > 0.1                        # the strip of colors below the map
    assert table.splitlines()[1].startswith("| ---") and table.splitlines()[1].endswith("-: |")
    with pytest.raises(RuntimeError, match="same number and size"):
        pack.nodes["VDDCompare"].execute(sharp, sharp[:2])


def test_comparing_moves_within_a_frame_and_keeps_a_strip_small(pack):
    """The measures of one large frame take seconds; a strip as wide as others are would be tens of thousands of pixels high."""
    strip, bar = torch.rand(1, 200, 3, 3), pack.host["comfy.utils"].ProgressBar
    bar.reported.clear()
    out = pack.nodes["VDDCompare"].execute(strip, strip, strip).result
    assert [report[0] for report in bar.reported] == [0, 12, 25, 38, 50, 62, 75, 88, 100]
    assert max(out[1].shape[1:3]) < 6000 and max(out[2].shape[1:3]) < 2300


def test_synthesizing_can_be_cancelled_and_shows_progress(pack, monkeypatch):
    photo, node = torch.rand(1, 24, 32, 3), pack.nodes["VDDSynthesizeBlur"]
    bar = pack.host["comfy.utils"].ProgressBar
    bar.reported.clear()
    node.execute(photo, 3, 4.0, 2**64 - 1)                                    # the largest seed of the widget
    assert [report[:2] for report in bar.reported] == [(100, 300), (200, 300), (300, 300)]

    def cancel():
        raise Cancelled

    monkeypatch.setattr(pack.host["comfy.model_management"], "throw_exception_if_processing_interrupted", cancel)
    with pytest.raises(Cancelled):
        node.execute(photo, 10000, 4.0, 5)


def test_pictures_are_where_the_host_keeps_them(pack, monkeypatch):
    """With --gpu-only that is the GPU: a node that joins our pictures with others takes no two devices."""
    monkeypatch.setattr(pack.host["comfy.model_management"], "intermediate_device", lambda: torch.device("meta"))
    clip = torch.rand(2, 24, 32, 3)
    made = pack.nodes["VDDSynthesizeBlur"].execute(clip, 2, 4.0, 5).result + pack.nodes["VDDCompare"].execute(clip, clip).result[1:3]
    assert [image.device.type for image in made] == ["meta"] * 4
