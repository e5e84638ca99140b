"""Which parameters each stage moves, and what its random draws depend on."""
import dataclasses

import pytest
import torch
from conftest import make_tiny_model, tiny_config
from safetensors.torch import load_file
from training_tools import STAGES, write_config

from train import config as configs
from train.loop import run
from train.losses import gaussian_nll
from train.stages import (
    StageLoss,
    estimate_errors,
    joined_clips,
    offset_noise,
    rescale_latents,
    set_trainable,
    start_followers,
    start_from_estimate,
)
from vdd_model.checkpoint.store import load
from vdd_model.config import DiffusionConfig, FusionConfig
from vdd_model.diffusion.schedule import make_schedule, q_sample
from vdd_model.inference.temporal import joined_over_time
from vdd_model.networks.fidelity import BlurGuide
from vdd_model.networks.model import DeblurModel
from vdd_model.networks.temporal import TemporalFusion

MOVES = {
    "autoencoder": ("vae.encoder.", "vae.decoder.", "vae.quant_conv.", "vae.post_quant_conv."),
    "denoiser": ("unet.", "encoder1.semantic_head.", "null_text"),
    "stage1": ("encoder2.", "adapter."),
    "stage2": ("unet.", "encoder1.semantic_head.", "null_text", "encoder2.", "adapter."),
    "stage3": ("vae.fidelity.", "vae.detail."),
}


def stage(kind: str, **changes) -> configs.StageConfig:
    settings = next(s for s in STAGES if s["kind"] == kind) | changes
    return configs.StageConfig(**(settings | {"loss": configs.LossConfig(**settings.get("loss", {}))}))


def test_offset_noise_draws_as_the_official_code(shared):
    traces = load_file(shared / "golden/diffusion_traces.safetensors")
    base = traces["offset_seed77_base"]
    noise, plain = (offset_noise(base.shape, strength, torch.Generator().manual_seed(77)) for strength in (0.1, 0.0))
    x_t = q_sample(make_schedule(DiffusionConfig()), traces["q_x0"], traces["q_t"], noise)
    for ours, theirs in ((noise, "noise"), (plain, "base"), (x_t, "q_sample")):
        assert (ours - traces[f"offset_seed77_{theirs}"]).abs().max() < 1e-6


def clips(batch: int = 4, frames: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    sharp = torch.rand((batch, 3, frames, 32, 32), generator=g)
    return (sharp + 0.1 * torch.rand(sharp.shape, generator=g)).clamp(0, 1), sharp


@pytest.mark.parametrize("kind", MOVES)
def test_a_stage_moves_its_parameters_and_no_others_bit_for_bit(kind):
    model = make_tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = set_trainable(model, stage(kind))
    module = StageLoss(model, stage(kind), seed=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for step in range(3):
        module(*clips(), range(4 * step, 4 * step + 4))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(MOVES[kind])} == set(names)


def test_a_whole_run_moves_what_its_stages_say(tmp_path):
    """Through the loop: optimiser, EMA and decay touch nothing else; encoder 1's target branch never moves after stage 0a."""
    exported = tmp_path / "run" / "vdd.safetensors"
    by_stage, scales, said = [], [], []

    def say(text: str) -> None:
        said.append(text)
        if "(after stage" in text:
            model = load(exported)
            by_stage.append({name: value.clone() for name, value in model.state_dict().items()})
            scales.append(model.config.vae.latent_scale)

    assert run(configs.load(write_config(tmp_path, export_dtype="float32")), say=say) == exported
    assert len(by_stage) == 5 and any(text.startswith("stage 4 stage3 step 2/2  loss ") for text in said)       # log_every is 1000
    for number, state in enumerate(by_stage):             # a later stage can be worse: every stage's weights stay
        kept = load(tmp_path / "run" / f"vdd-stage{number}.safetensors").state_dict()
        assert all(torch.equal(kept[name], value) for name, value in state.items())
    for kind, before, after in zip(list(MOVES)[1:], by_stage, by_stage[1:]):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved and all(name.startswith(MOVES[kind]) for name in moved), kind
    first = by_stage[0]
    assert scales[0] != tiny_config().vae.latent_scale and len(set(scales)) == 1
    for name in (n for n in first if n.startswith("vae.encoder.")):
        for encoder in ("encoder1", "encoder2"):
            assert torch.equal(first[name], first[name.replace("vae.", f"{encoder}.spatial_head.")])


@pytest.mark.parametrize("part, changes, kept", [
    ("unet", {}, False),                                     # frozen: nothing is kept for it
    *(("vae.decoder.mid", {"denoise": False, "detach_latents": detach, "trainable": ("vae.fidelity.", "encoder2.")}, not detach)
      for detach in (True, False))])
def test_stage_3_keeps_gradients_only_where_they_are_asked_for(part, changes, kept):
    model, seen, what = make_tiny_model(), [], stage("stage3", **changes)
    names = set_trainable(model, what)
    model.get_submodule(part).register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    StageLoss(model, what)(*clips(), range(4))["loss"].backward()
    assert seen == [kept] and all(p.grad is None for name, p in model.named_parameters() if name not in names)


def test_stage_3_sees_the_one_step_output_at_the_last_timestep():
    """x0 = -v at t = T - 1 whatever the sharp frames are: their latents must not leak in."""
    model = make_tiny_model()
    only_last = stage("stage3", last_timestep=1.0)
    module = StageLoss(model, only_last, seed=3)
    seen = []
    model.vae.decoder.conv_in.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    blurred, sharp = clips()
    with torch.no_grad():
        module(blurred, sharp, range(4))
        module(blurred, 1 - sharp, range(4))
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("trainable, last_timestep, learns", [
    ((), 1.0, "vae.fidelity."), ((), 0.0, "vae.detail."), (("vae.fidelity.",), 0.0, "vae.fidelity.")])
def test_a_branch_learns_from_the_latents_that_it_is_for(trainable, last_timestep, learns):
    """The last timestep is the fidelity branch's, all others the detail branch's, unless that does not train."""
    model = make_tiny_model()
    asked = stage("stage3", trainable=trainable, last_timestep=last_timestep)
    set_trainable(model, asked)
    StageLoss(model, asked)(*clips(), range(4))["loss"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved and all(name.startswith(learns) for name in moved)


def test_a_fusion_over_time_learns_alone_to_join_what_shows_the_same():
    """A still scene with other noise in every frame: the mean of neighbours is nearer to the truth."""
    config = tiny_config()
    torch.manual_seed(0)
    model = DeblurModel(dataclasses.replace(config, vae=dataclasses.replace(config.vae, temporal=FusionConfig((8, 8), (1, 1)))))
    asked = stage("stage3", trainable=("vae.temporal.",), last_timestep=1.0, denoise=False)
    names, module, losses = set_trainable(model, asked), StageLoss(model, asked), []
    sharp = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8), size=32).unsqueeze(2).expand(-1, -1, 3, -1, -1)
    blurred = (sharp + 0.1 * torch.randn(sharp.shape)).clamp(0, 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for _ in range(12):
        losses.append(module(blurred, sharp, range(4))["loss"])
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert names and all(name.startswith("vae.temporal.") for name in names)
    assert losses[-1] < 0.9 * losses[0]
    assert torch.isfinite(module(blurred[:, :, :1], sharp[:, :, :1], range(4))["loss"])              # a photograph has no neighbours


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_training_joins_a_clip_over_time_as_inference_does(count):
    torch.manual_seed(0)
    network = TemporalFusion(FusionConfig((8, 8), (1, 1), residual=True), torch.nn).requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_(std=0.1)
    frames, blurred = torch.rand(2, 2, 3, count, 32, 48)
    found = joined_clips(network, frames * 2 - 1, blurred * 2 - 1)
    for clip, expected in zip(found if count > 1 else [], zip(frames, blurred)):                 # alone a frame learns its residual
        scene = ((i, *pair) for i, pair in enumerate(zip(*(each.movedim(0, 3) for each in expected))))
        shown = torch.stack([frame for _, frame in joined_over_time(scene, network, torch.device("cpu"))])
        assert (((clip + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0) - shown).abs().max() < 1e-4
    assert found.shape == frames.shape


def test_in_stage_3_a_batch_is_at_the_last_timestep_as_a_whole_however_it_is_shared():
    module = StageLoss(make_tiny_model(), stage("stage3", last_timestep=0.3, batch=4), seed=0)
    batches = [module.timesteps(range(4 * step, 4 * step + 4)) for step in range(1000)]
    last = torch.stack([(t == 999) for t in batches])
    assert torch.equal(last.any(1), last.all(1)) and 0.26 < last.float().mean() < 0.34
    for step, whole in enumerate(batches[:20]):
        assert whole.tolist() == [t for k in (0, 2) for t in module.timesteps((4 * step + k, 4 * step + k + 1)).tolist()]


def test_a_detail_branch_starts_as_the_fidelity_branch_when_it_first_trains():
    model = make_tiny_model()
    torch.nn.init.zeros_(model.vae.detail.head.weight)
    set_trainable(model, stage("stage3", trainable=("vae.fidelity.",)))
    assert not start_followers(model) and not model.vae.detail.head.weight.any()
    set_trainable(model, stage("stage3"))
    assert not start_followers(model, detail=False) and start_followers(model) == ["vae.detail"]
    assert all(torch.equal(a, b) for a, b in zip(model.vae.fidelity.parameters(), model.vae.detail.parameters()))
    torch.nn.init.ones_(model.vae.fidelity.head.bias)
    assert not start_followers(model) and not torch.equal(model.vae.fidelity.head.bias, model.vae.detail.head.bias)


@pytest.mark.parametrize("last_timestep, same", [(1.0, True), (0.5, False)])
def test_what_is_exported_deblurs_in_several_steps_too(tmp_path, last_timestep, same):
    """A run that never trained the detail branch gives it the fidelity branch's weights: untrained it would show the blurred frame."""
    path = run(configs.load(write_config(tmp_path, [{**STAGES[4], "steps": 8, "last_timestep": last_timestep}])), say=lambda text: None)
    vae = load(path).vae
    assert vae.detail.head.weight.any()
    assert all(torch.equal(a, b) for a, b in zip(vae.fidelity.parameters(), vae.detail.parameters())) == same


def test_draws_do_not_depend_on_how_a_batch_is_shared():
    module = StageLoss(make_tiny_model(), stage("stage2"), seed=5, number=2)
    whole = module.noise(range(4), torch.Size((4, 4, 2, 8, 8)), "cpu")
    halves = [module.noise(p, torch.Size((2, 4, 2, 8, 8)), "cpu") for p in ((0, 1), (2, 3))]
    assert torch.equal(whole, torch.cat(halves))
    assert module.timesteps(range(4)).tolist() == module.timesteps((0, 1)).tolist() + module.timesteps((2, 3)).tolist()
    other = StageLoss(make_tiny_model(), stage("stage2"), seed=5, number=3)
    assert not torch.equal(whole, other.noise(range(4), torch.Size((4, 4, 2, 8, 8)), "cpu"))


def test_timesteps_and_dropout_have_the_configured_shares():
    module = StageLoss(make_tiny_model(), stage("stage2", last_timestep=0.3, image_dropout=0.2), seed=0)
    t = module.timesteps(range(4000))
    assert 0.27 < (t == 999).float().mean() < 0.33
    rest = t[t < 999].float()
    assert rest.min() < 10 and rest.max() > 985 and 480 < rest.mean() < 520
    assert 0.17 < module.dropped(range(4000)).float().mean() < 0.23


def test_start_from_estimate_makes_one_step_return_the_adapters_estimate():
    model = make_tiny_model(thumbnail=True)
    start_from_estimate(model)
    latents = torch.randn(1, 4, 2, 8, 8)
    with torch.no_grad():
        condition = model.condition(latents, torch.zeros(1, 3, 16, 16))
        v = model.predict_v(torch.randn_like(latents), torch.tensor([999]), condition)
    torch.testing.assert_close(-v, condition.concat[:, :4])


@torch.no_grad()
def test_rescaled_latents_miss_by_one_and_change_neither_pictures_nor_conditions():
    """Encoders, decoder and adapter are the same functions in new units; only what the UNet is to predict has changed."""
    model, (blurred, sharp) = make_tiny_model(thumbnail=True), clips()
    x = blurred * 2 - 1

    def seen() -> list[torch.Tensor]:
        """Plain decoding, decoding with the branch, the autoencoder's round trip, and the UNet's first layer's view of the estimate."""
        code = model.encode_blurred(x)
        mean, logvar = model.vae.encode(x[:, :, 0])
        concat = model.adapter(code.latents)
        first = model.unet.input_blocks[0][0].weight[:, 4:8]
        view = torch.nn.functional.conv2d(concat[:, :4].transpose(1, 2).flatten(0, 1), first, padding=1)
        return [model.decode(code.latents), model.decode(code.latents, BlurGuide(x, code.features)), model.vae.decode(mean), view,
                model.vae.decode(mean + torch.exp(0.5 * logvar))]

    def likelihood() -> float:
        concat, z0 = model.adapter(model.encode_blurred(x).latents), model.encode_target(sharp * 2 - 1)
        return gaussian_nll(concat[:, :4], concat[:, 4:8], z0).item()

    before, errors, likely = seen(), estimate_errors(model, [(blurred, sharp)]), likelihood()
    assert errors.shape == (4,) and errors.max() > 1.5 * errors.min()
    rescale_latents(model, errors)
    for old, new in zip(before, seen()):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)
    assert likelihood() == pytest.approx(likely - errors[:3].square().mean().log().item() * 3 / 8 - errors[3].log().item() / 4, abs=1e-3)
    again = estimate_errors(model, [(blurred, sharp)])
    torch.testing.assert_close(again[:3].square().mean(), torch.tensor(1.0))          # a thumbnail's channels share one scale
    torch.testing.assert_close(again[3], torch.tensor(1.0))


def test_stage_3_without_a_denoiser_learns_from_latents_between_the_estimate_and_the_truth(monkeypatch):
    """At t = T - 1 it sees the estimate, at little noise the sharp latents."""
    model, seen = make_tiny_model(thumbnail=True), []
    model.vae.decoder.conv_in.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    blurred, sharp = clips()
    with torch.no_grad():
        latents, z0 = model.encode_blurred(blurred * 2 - 1).latents, model.encode_target(sharp * 2 - 1)
        for t, wanted, allowed in ((999, model.adapter(latents)[:, :4], 1e-6), (0, z0, 0.3 * (z0 - latents).abs().max())):
            module = StageLoss(model, stage("stage3", denoise=False))
            monkeypatch.setattr(module, "timesteps", lambda positions, t=t: torch.full((4,), t))
            module(blurred, sharp, range(4))
            model.decode(wanted)
            assert (seen[-2] - seen[-1]).abs().max() < allowed, t


def test_texture_counts_as_far_as_the_latents_know_of_the_sharp_picture(monkeypatch):
    """Not at all in the one-step output, which is to be faithful; in full where hardly any noise is left."""
    model, (blurred, sharp) = make_tiny_model(thumbnail=True), clips()
    found = {}
    for t in (999, 0):
        module = StageLoss(model, stage("stage3", loss={"texture": 1.0}))
        monkeypatch.setattr(module, "timesteps", lambda positions, t=t: torch.full((4,), t))
        with torch.no_grad():
            found[t] = module(blurred, sharp, range(4))
    assert found[999]["texture"] == 0 and found[0]["texture"] > 1e-3
    assert torch.isclose(found[0]["loss"], found[0]["pixel"] + found[0]["texture"])
