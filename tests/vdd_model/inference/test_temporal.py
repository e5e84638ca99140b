"""Deblurred frames joined with their neighbours: along the motion, within a scene, whatever the tiles and wherever a run goes on."""
import math
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from conftest import tiny_config, without_zeros

from vdd_model.checkpoint.store import load
from vdd_model.config import FusionConfig
from vdd_model.inference import temporal as module
from vdd_model.inference.pipeline import Deblurrer
from vdd_model.inference.prior import PriorFile
from vdd_model.inference.temporal import NOT_TRAINED, Link, chosen, joined_over_time, paths
from vdd_model.inference.tiles import Tiling
from vdd_model.networks.model import DeblurModel
from vdd_model.networks.temporal import TemporalFusion
from vdd_model.options import DeblurOptions

CPU, CONFIG = torch.device("cpu"), FusionConfig((8, 12), (1, 1))


def moving(count: int, height: int, width: int) -> torch.Tensor:
    """A texture that moves by (3, 2) pixels a frame, (count, height, width, 3)."""
    coarse = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    big = torch.nn.functional.interpolate(coarse, scale_factor=7, mode="bicubic")[0].movedim(0, 2).clamp(0, 1)
    return torch.stack([big[2 * t:2 * t + height, 3 * t:3 * t + width] for t in range(count)])


@torch.no_grad()
def network(bias: float | None = None) -> TemporalFusion:
    """One of random weights; with a bias every neighbour's share is the same everywhere."""
    torch.manual_seed(1)
    made = TemporalFusion(CONFIG, torch.nn).eval().requires_grad_(False)
    for parameter in made.parameters() if bias is None else ():
        parameter.normal_(std=0.1)
    if bias is not None:
        made.head.bias.fill_(bias)
    return made


def joined(frames: torch.Tensor, blurred: torch.Tensor, using: TemporalFusion) -> torch.Tensor:
    found = list(joined_over_time(((i, *pair) for i, pair in enumerate(zip(frames, blurred))), using, CPU))
    assert [i for i, _ in found] == list(range(len(frames)))
    return torch.stack([frame for _, frame in found])


def test_neighbours_are_moved_to_where_the_frame_shows_the_same():
    truth = moving(4, 90, 122)
    noisy = truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    half_of_each = joined(noisy, noisy, network(bias=30.0))
    inside, before = (slice(1, -1), slice(16, -16), slice(16, -16)), (noisy - truth).std()
    assert (half_of_each - truth)[inside].std() < 0.8 * before                         # (2 of them) ** -0.5 and what is interpolated
    first = (half_of_each[0] - (noisy[0] + half_of_each[0]) / 2)[16:-16, 16:-16]       # half of itself, half of the one behind it
    assert (half_of_each[0] - truth[0])[16:-16, 16:-16].std() < 0.85 * before and first.std() < 0.6 * before
    five = moving(5, 90, 122)
    noisy = five + 0.05 * torch.randn(five.shape, generator=torch.Generator().manual_seed(2))
    middle, third = (slice(24, -24), slice(24, -24)), network(bias=math.log(2))          # of both nearer ones alone, or of all four
    nearer, all_four = ((joined(part, part, third)[len(part) // 2] - five[2])[middle].std() for part in (noisy[1:4], noisy))
    assert all_four < 0.9 * nearer < 0.7 * before
    nothing = joined(noisy, noisy, network(bias=-30.0))
    assert (nothing - noisy.clamp(0, 1)).abs().max() < 1e-6


def test_a_scene_of_one_picture_stays_as_it_is():
    frame = moving(1, 24, 30)
    assert torch.equal(joined(frame, frame, network()), frame)


def test_tiles_agree_with_the_whole(monkeypatch):
    frames = moving(3, 150, 203)
    blurred = frames.roll(1, dims=2)
    whole = joined(frames, blurred, network())
    assert not torch.allclose(whole, frames, atol=1e-3)
    monkeypatch.setattr(module, "TILING", Tiling(120, 96, divisor=4))
    assert (joined(frames, blurred, network()) - whole).abs().max() < 1e-3


def test_the_shipped_one_takes_from_neighbours_what_helps_and_leaves_what_is_another_scene():
    shipped = load("small", "cpu", torch.float32).vae.temporal
    truth = moving(4, 96, 128)
    noise = 0.03 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    cut = (truth + noise).clone()
    cut[2] = torch.rand(96, 128, 3, generator=torch.Generator().manual_seed(3))

    def error(frames: torch.Tensor) -> torch.Tensor:
        return (frames - truth)[1, 16:-16, 16:-16].std()

    with torch.no_grad():
        assert error(joined(truth + noise, truth + noise, shipped)) < 0.9 * error(truth + noise)
        assert error(joined(cut, cut, shipped)) < error(cut)


@pytest.mark.parametrize("setting, changes, taken", [
    ("auto", {}, False), ("auto", {"beside_prior": True}, True), ("on", {}, True),
    ("auto", {"beside_prior": True, "fidelity": 0.5}, False), ("on", {"fidelity": 0.5}, True), ("on", {"one_step": False}, False),
    ("off", {"beside_prior": True}, False)], ids=str)
def test_where_it_is_taken(setting, changes, taken):
    where, said = {"one_step": True, "fidelity": 1.0, "beside_prior": False} | changes, []
    made = network()
    assert chosen(Mock(temporal=made), setting, said.append, **where) is (made if taken else None) and not said
    for untrained in (network(bias=1.0), None):          # a plain mean, which nobody asked for
        said.clear()
        assert chosen(Mock(temporal=untrained), setting, said.append, **where) is None
        assert said == [NOT_TRAINED] * (setting == "on" and taken)


def test_the_flow_to_a_further_frame_goes_by_way_of_those_between():
    frames = moving(5, 90, 122).movedim(3, 1)
    links = [Link.between(first[None], second[None]) for first, second in zip(frames, frames[1:])]
    for flow, distance in zip(paths(links), (-1, 1, -2, 2)):
        there = flow[0, :, 24:-24, 24:-24].mean(dim=(1, 2))
        assert torch.allclose(there, torch.tensor([-3.0, -2.0]) * distance, atol=0.1)
    assert [flow is None for flow in paths([None, *links[:3]])] == [False, False, True, False]
    assert [flow is None for flow in paths([links[0], None, None, links[3]])] == [True] * 4


@pytest.fixture
def deblurrer():
    """A tiny model with random weights, beside a prior that gives back what it gets."""
    config = tiny_config()
    torch.manual_seed(0)
    model = DeblurModel(replace(config, vae=replace(config.vae, fusion=CONFIG, temporal=CONFIG))).eval().requires_grad_(False)
    without_zeros(model.vae.fidelity)
    model.vae.temporal = network()
    made = Deblurrer(model, device="cpu")
    same = Mock(of=lambda frame, tick: frame)
    made.prior = PriorFile(module.__file__, lambda path: same)
    return made


CLIP = moving(11, 32, 48)
OPTIONS = DeblurOptions(prior="maxim", ensemble=1)


@pytest.mark.parametrize("change, part", [({}, True), ({"prior": "none"}, False), ({"steps": 2, "ensemble": None}, False),
                                          ({"fidelity": 0.5}, False), ({"temporal_fusion": "off"}, False),
                                          ({"prior": "none", "temporal_fusion": "on"}, True)], ids=str)
def test_it_has_its_part_in_one_step_beside_the_prior_or_where_it_is_asked_for(deblurrer, change, part):
    found = deblurrer.deblur(CLIP[:4], OPTIONS, **change)
    deblurrer.model.vae.temporal = None
    assert torch.equal(found, deblurrer.deblur(CLIP[:4], OPTIONS, **change)) is not part


def test_no_frame_is_joined_across_a_cut_and_a_repeat_is_no_neighbour(deblurrer):
    other = torch.rand(4, 32, 48, 3, generator=torch.Generator().manual_seed(5)).round()
    clip = torch.cat([CLIP[:4], CLIP[3:4], CLIP[4:5], other])
    found = deblurrer.deblur(clip, OPTIONS)
    assert torch.equal(found, torch.cat([deblurrer.deblur(part, OPTIONS)[:, :] for part in (clip[:6], other)]))
    alone = deblurrer.deblur(CLIP[:5], OPTIONS)
    assert torch.equal(found[:6], alone[[0, 1, 2, 3, 3, 4]])


@pytest.mark.parametrize("window", [1, 2, 3, 16])
@pytest.mark.parametrize("change", [{}, {"scenes": "off", "repeats": "off"}, {"prior": "none", "temporal_fusion": "on"}], ids=str)
def test_a_run_that_goes_on_gives_the_same(deblurrer, window, change):
    options, moments = replace(OPTIONS, window=window, **change), []
    whole = torch.cat(list(deblurrer.stream(CLIP, options, total=len(CLIP), moments=moments)))
    assert len(whole) == len(CLIP) and torch.allclose(whole, deblurrer.deblur(CLIP, OPTIONS, **change), atol=1e-5)
    for first in (1, 3, 5, 7, 10):
        for known in ([], list(moments)):
            rest = torch.cat(list(deblurrer.stream(CLIP, options, first_frame=first, total=len(CLIP), moments=known)))
            assert torch.equal(rest, whole[first:]), (first, len(known))
