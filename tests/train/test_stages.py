"""Which parameters each stage moves, and what its random draws depend on."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import make_tiny_model, tiny_config
from training_tools import STAGES, write_config

from train import config as configs
from train.loop import run
from train.stages import StageLoss, set_trainable, start_encoders, start_from_prior, trainable_names
from vdd_model.checkpoint import load
from vdd_model.config import ConfigError
from vdd_model.model import DeblurModel

MOVES = {
    "autoencoder": ("vae.encoder.", "vae.decoder.", "vae.quant_conv.", "vae.post_quant_conv."),
    "denoiser": ("unet.", "encoder1.semantic_head.", "null_text"),
    "stage1": ("encoder2.", "adapter."),
    "stage2": ("unet.", "encoder1.semantic_head.", "null_text", "encoder2.", "adapter."),
    "stage3": ("vae.fidelity.",),
}


def stage(kind: str, **changes) -> configs.StageConfig:
    settings = next(s for s in STAGES if s["kind"] == kind) | changes
    return configs.StageConfig(**(settings | {"loss": configs.LossConfig(**settings.get("loss", {}))}))


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
    by_stage, scales = [], []

    def say(text: str) -> None:
        if "(after stage" in text:
            model = load(exported)
            by_stage.append({name: value.clone() for name, value in model.state_dict().items()})
            scales.append(model.config.vae.latent_scale)

    assert run(configs.load(write_config(tmp_path, export_dtype="float32")), say=say) == exported
    assert len(by_stage) == 5
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


@pytest.mark.parametrize("detach", [True, False])
def test_without_a_denoiser_the_decoder_passes_gradients_on_only_when_asked(detach):
    model, seen = make_tiny_model(), []
    what = stage("stage3", denoise=False, detach_latents=detach, trainable=("vae.fidelity.", "encoder2."))
    set_trainable(model, what)
    model.vae.decoder.mid.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    StageLoss(model, what)(*clips(), range(4))["loss"].backward()
    assert seen == [not detach]


def test_no_gradient_is_kept_for_frozen_parts_of_stage_3():
    model = make_tiny_model()
    set_trainable(model, stage("stage3"))
    seen = []
    model.unet.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    StageLoss(model, stage("stage3"))(*clips(), range(4))["loss"].backward()
    assert seen == [False]
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("vae.fidelity."))


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


def test_timestep_power_draws_little_noise_more_often():
    """P(t < T / 8) = (1 / 8)^(1 / 3) = 1 / 2 at power 3; every timestep stays possible."""
    t = StageLoss(make_tiny_model(), stage("stage2", last_timestep=0.0, timestep_power=3.0), seed=0).timesteps(range(4000))
    assert 0.47 < (t < 125).float().mean() < 0.53
    assert t.min() == 0 and t.max() > 985


def test_cached_outputs_of_the_frozen_encoders_give_the_same_loss():
    model = make_tiny_model()
    for kind in ("denoiser", "stage1", "stage2"):
        set_trainable(model, stage(kind))
        module = StageLoss(model, stage(kind))
        cached = module.frozen(*clips())
        assert ("image" in cached) == (kind == "stage1")
        assert torch.equal(module(*clips(), range(4))["loss"], module(*clips(), range(4), cached)["loss"])


def test_unknown_prefix_is_refused():
    with pytest.raises(ConfigError, match="unett"):
        trainable_names(make_tiny_model(), stage("stage2", trainable=("unett.",)))


def test_start_encoders_copies_the_autoencoder():
    model = make_tiny_model()
    start_encoders(model)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    mean, _ = model.vae.encode(images)
    for encoder in (model.encoder1, model.encoder2):
        assert torch.equal(encoder.spatial(images)[0], mean * model.config.vae.latent_scale)


def test_start_from_prior_makes_one_step_return_the_adapters_estimate():
    config = tiny_config()
    model = DeblurModel(dataclasses.replace(config, unet=dataclasses.replace(config.unet, prior_std=0.3)))
    torch.nn.init.normal_(model.unet.out[-1].weight)
    start_from_prior(model)
    latents = torch.randn(1, 4, 2, 8, 8)
    with torch.no_grad():
        condition = model.condition(latents, torch.zeros(1, 3, 16, 16))
        v = model.predict_v(torch.randn_like(latents), torch.tensor([999]), condition)
    torch.testing.assert_close(-v, latents)                       # the adapter starts as the identity on its first channels
