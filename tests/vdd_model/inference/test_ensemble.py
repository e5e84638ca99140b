"""The mean over orientations: what it is, and that it is nearer to the truth."""
import weakref

import pytest
import torch
from conftest import clip

from vdd_model.inference.ensemble import ORIENTATIONS
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.measure import metrics


def test_eight_orientations_that_turn_back():
    x = torch.arange(6.0).view(2, 3)
    seen = {(tuple(o.turn(x).shape), tuple(o.turn(x).flatten().tolist())) for o in ORIENTATIONS}
    assert len(seen) == 8 and ORIENTATIONS[0].turn(x) is x
    assert all(torch.equal(o.turn_back(o.turn(x)), x) for o in ORIENTATIONS)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_it_is_the_mean_of_turned_clips(tiny_model, count):
    """Sides that need no padding: else the padding would be turned along."""
    x, deblurrer = clip(9, 32, 64), Deblurrer(tiny_model, device="cpu")
    options = DeblurOptions(window=6, overlap=2, tile=48, tile_overlap=16)
    by_hand = torch.zeros(9, 3, 32, 64)
    for o in ORIENTATIONS[:count]:
        by_hand += o.turn_back(deblurrer.deblur(o.turn(x.movedim(-1, 1)).movedim(1, -1), options).movedim(-1, 1)) / count
    found = deblurrer.deblur(x, options, ensemble=count)
    torch.testing.assert_close(found, by_hand.movedim(1, -1), rtol=0, atol=1e-6)
    assert (found - deblurrer.deblur(x, options)).abs().max() > 1 / 255      # or the mean would be one of equals


@pytest.mark.parametrize("ensemble", [1, 4])
def test_memory_does_not_grow_with_the_clip(tiny_model, ensemble):
    """The runs read the clip together: about one window of frames is alive, however many orientations there are."""
    alive, most = weakref.WeakSet(), 0

    def source():
        for i in range(60):
            frame = torch.full((8, 8, 3), i / 60)
            alive.add(frame)
            yield frame

    for _ in Deblurrer(tiny_model, device="cpu").stream(source(), DeblurOptions(window=6, overlap=2, ensemble=ensemble)):
        most = max(most, len(alive))
    assert most <= 2 * 6 + 1


def test_a_lack_of_memory_is_told_once(tiny_model, monkeypatch):
    whole = type(tiny_model).encode_each

    def too_large(self, pixels, prior=None):
        if pixels.shape[-1] > 128:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, pixels)
    monkeypatch.setattr(type(tiny_model), "encode_each", too_large)
    said = []
    out = Deblurrer(tiny_model, device="cpu").deblur(clip(2, 192, 192), ensemble=3, notice=said.append)
    assert out.isfinite().all() and len(said) == 1 and "going on with" in said[0]


def test_the_built_in_model_gains_by_it(shaken):
    blurred, truth = (frames[:3] for frames in shaken)
    deblurrer = Deblurrer("small", device="cpu")
    one, two, eight = (metrics.psnr(deblurrer.deblur(blurred, ensemble=n), truth).mean() for n in (1, 2, 8))
    assert one < two < eight and eight - one > 0.05
