"""The stages: which parameters each one trains, and its loss for one batch. Nothing here knows of steps, files or processes.

All random numbers are keyed by (seed, stage, position of the sample in the stage's endless row of samples), so they depend neither on
how many processes share a batch nor on a restart.
"""
from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vdd_model.diffusion import schedule as diffusion
from vdd_model.inference.temporal import Link, paths
from vdd_model.measure import metrics
from vdd_model.measure.flow import resize_flow, warp
from vdd_model.networks.fidelity import BlurGuide
from vdd_model.networks.model import BlurCode, fold_time
from vdd_model.networks.temporal import NEIGHBOURS, REACH, TemporalFusion, in_pairs

from . import losses
from .config import ConfigError, StageConfig

# Terms of stage 3 that compare output and truth as they are, by the name of their weight.
PICTURE_LOSSES = {"psnr": losses.psnr_loss, "gradient": losses.gradient_loss, "fft": losses.fft_loss,
                  "frame_difference": losses.frame_difference_loss}


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator whose stream is a function of `key` alone (and of the kind of device)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def offset_noise(shape: Sequence[int], strength: float, generator: torch.Generator | None = None,
                 device: torch.device | str = "cpu") -> Tensor:
    """Noise (B, C, F, H, W) ~ N(0, 1), float32, plus `strength` times one more normal per (B, C, F), drawn after it, which teaches the
    network to move a frame's mean (VGen `noise_strength`); the generator is of the same device."""
    noise, means = (torch.randn(size, generator=generator, device=device) for size in (shape, (*shape[:3], 1, 1)))
    return noise + strength * means


def trainable_names(model: nn.Module, stage: StageConfig) -> list[str]:
    """Names of the parameters that `stage` trains, in the model's order. Raises ConfigError for a prefix that matches none."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in stage.trainable:
        if not any(name.startswith(prefix) for name in names):
            raise ConfigError(f"trainable: no parameter's name starts with {prefix!r}")
    if not (found := [name for name in names if name.startswith(stage.prefixes)]):
        raise ConfigError(f"kind: this model has nothing that a stage of kind {stage.kind!r} could train")
    return found


def centre(clips: Tensor) -> Tensor:
    """The middle frame (B, C, H, W) of (B, C, F, H, W)."""
    return clips[:, :, clips.shape[2] // 2]


def set_trainable(model: nn.Module, stage: StageConfig) -> list[str]:
    """Switch gradients on for the stage's parameters and off for all others; returns their names."""
    names = trainable_names(model, stage)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        parameter.grad = None
    return names


class StageLoss(nn.Module):
    """The model with one stage's loss: what accelerate wraps, so that gradients are shared by any strategy."""

    def __init__(self, model: nn.Module, stage: StageConfig, *, seed: int = 0, number: int = 0):
        super().__init__()
        self.model, self.stage, self.seed, self.number = model, stage, seed, number
        self.schedule = model.unet.schedule
        self.perceptual, why = metrics.lpips_model(download=True) if stage.loss.lpips else (None, "")
        if why:
            raise ConfigError(f"loss.lpips: {why}; set it to 0")

    def forward(self, blurred: Tensor, sharp: Tensor, positions: Sequence[int], prior: Tensor | None = None) -> dict[str, Tensor]:
        """Means over the batch, float32 scalars: "loss" is the total.

        blurred, sharp: (B, 3, F, H, W) in [0, 1]; positions: B numbers that key the random draws;
        prior: a pretrained prior's frames of the blurred ones, which stage 3 looks at.
        """
        blurred, sharp = blurred * 2 - 1, sharp * 2 - 1
        if self.stage.kind == "autoencoder":
            terms = self._autoencoder(sharp, positions)
        elif self.stage.kind == "stage3":
            terms = self._fidelity(blurred, sharp, positions, prior if prior is None else self._prior(prior * 2 - 1, sharp, positions))
        else:
            terms = self._denoiser(blurred, sharp, positions)
        return {"loss": sum(getattr(self.stage.loss, name, 1.0) * value for name, value in terms.items()),         # 1: v and pixel
                **{name: value.detach() for name, value in terms.items()}}

    def _generator(self, device, what: str, position: int) -> torch.Generator:
        return generator(device, self.seed, self.number, what, int(position))

    def noise(self, positions: Sequence[int], shape: torch.Size, device) -> Tensor:
        """Offset noise (B, C, F, h, w), one keyed stream a sample."""
        strength = self.model.config.diffusion.offset_noise
        return torch.cat([offset_noise((1, *shape[1:]), strength, self._generator(device, "noise", p), device) for p in positions])

    def timesteps(self, positions: Sequence[int]) -> Tensor:
        """(B,) integers on the CPU: T - 1 with probability `last_timestep`, else uniform in 0 ... T - 1.

        In stage 3 a whole batch is at T - 1 or none of it: it goes through one branch, and shapes stay.
        """
        total, share = self.schedule.num_timesteps, self.stage.last_timestep
        draws = [torch.rand(2, generator=self._generator("cpu", "timestep", p)).tolist() for p in positions]
        if self.stage.kind == "stage3":
            which = torch.rand(1, generator=self._generator("cpu", "branch", int(positions[0]) // self.stage.batch)).item()
            return torch.tensor([total - 1 if which < share else int((total - 1) * where) for _, where in draws])
        return torch.tensor([total - 1 if which < share else int(total * where) for which, where in draws])

    def dropped(self, positions: Sequence[int]) -> Tensor:
        """(B,) booleans: whose semantic tokens are dropped (guidance's unconditional branch)."""
        return torch.tensor([torch.rand(1, generator=self._generator("cpu", "dropout", p)).item() < self.stage.image_dropout
                             for p in positions])

    def _autoencoder(self, sharp: Tensor, positions) -> dict[str, Tensor]:
        vae, images = self.model.vae, fold_time(sharp)
        mean, logvar = vae.encode(images)
        frames = sharp.shape[2]
        device = mean.device
        noise = torch.cat([torch.randn((frames, *mean.shape[1:]), generator=self._generator(device, "posterior", p), device=device)
                           for p in positions])
        decoded = vae.decode(mean + torch.exp(0.5 * logvar) * noise)
        terms = {"pixel": (decoded.float() - images).abs().mean(), "kl": losses.kl_loss(mean, logvar)}
        if self.stage.loss.gradient:
            terms["gradient"] = losses.gradient_loss(decoded, images)
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(decoded.float(), images).mean()
        return terms

    def _denoiser(self, blurred: Tensor, sharp: Tensor, positions) -> dict[str, Tensor]:
        """Stage 0b on sharp clips alone (concat = 0); stages 1 and 2 with the blurred clip as condition. Paper eq. 3 + eq. 4."""
        model, z0 = self.model, self.model.encode_target(sharp)
        terms: dict[str, Tensor] = {}
        if self.stage.kind == "denoiser":
            condition, image = None, model.encoder1.semantic(centre(sharp))
        else:
            latents = model.encode_blurred(blurred).latents
            condition = model.condition(latents, centre(blurred))
            image = condition.image
            if model.config.unet.estimate:
                terms["estimate"] = losses.gaussian_nll(*self._estimate(condition.concat), z0)
            if self.stage.loss.latent:
                terms["latent"] = torch.nn.functional.mse_loss(latents.float(), z0.float())
        t = self.timesteps(positions).to(z0.device, non_blocking=True)
        noise = self.noise(positions, z0.shape, z0.device)
        x_t, v = diffusion.q_sample(self.schedule, z0, t, noise), diffusion.v_target(self.schedule, z0, t, noise)
        context = model.context(image, drop=self.dropped(positions).to(z0.device, non_blocking=True))
        v_hat = model.unet(x_t, t, context) if condition is None else model.predict_v(x_t, t, condition, context)
        return {"v": losses.v_loss(v_hat, v), "coherence": losses.coherence_loss(v_hat, v), **terms}

    def _estimate(self, concat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log std of x0 among the concat channels, each (B, 4, F, h, w)."""
        return concat[:, :2 * self.model.config.unet.latent_channels].chunk(2, dim=1)

    def _denoised(self, code: BlurCode, blurred: Tensor, sharp: Tensor, t: Tensor, positions) -> Tensor:
        """x0 (B, 4, F, h, w) as the UNet sees it from its noisy state at t; at t = T - 1 that state is noise alone: the one-step output.

        Without the UNet (`denoise: false`) it is what the state and the Gaussian estimate say, at t = T - 1 the estimate itself.
        """
        model, schedule = self.model, self.schedule
        noise = self.noise(positions, code.latents.shape, blurred.device)
        noise_alone = bool((t == schedule.num_timesteps - 1).all())
        t = t.to(noise.device, non_blocking=True)
        # contiguous either way: a compiled UNet is made anew for every layout
        x_t = noise if noise_alone else diffusion.q_sample(schedule, model.encode_target(sharp), t, noise).contiguous()
        if not self.stage.denoise:
            estimate = self._estimate(model.adapter(code.latents)) if model.config.unet.estimate else (code.latents, 0 * code.latents)
            return diffusion.x0_from_v(schedule, x_t, t, diffusion.precondition(schedule, x_t, t, *estimate)[1])
        condition = model.condition(code.latents, centre(blurred))
        context = model.context(condition.image, drop=self.dropped(positions).to(noise.device, non_blocking=True))
        return diffusion.x0_from_v(schedule, x_t, t, model.predict_v(x_t, t, condition, context).float())

    def _prior(self, prior: Tensor, sharp: Tensor, positions: Sequence[int]) -> Tensor | None:
        """The prior's frames as this batch sees them: none of them, or some moved towards the truth."""
        dropped, chosen, way = torch.stack([torch.rand(3, generator=self._generator("cpu", "prior", p)) for p in positions], dim=1)
        if dropped[0] < self.stage.prior_dropout:
            return None
        way = torch.where(chosen < self.stage.prior_success, 0.3 + 0.55 * way, 0.0)
        return torch.lerp(prior, sharp, way.to(prior).view(-1, 1, 1, 1, 1))

    def _fidelity(self, blurred: Tensor, sharp: Tensor, positions, prior: Tensor | None) -> dict[str, Tensor]:
        """Pixel losses on the model's own outputs. What does not train carries no gradient, so nothing is kept for it.

        The detail branch learns from all but the last timestep, at which a sample holds nothing that a mean does not; where it does not
        train, the fidelity branch learns from all.
        """
        model = self.model
        code = model.encode_blurred(blurred, prior)
        t = self.timesteps(positions)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stage.detach_latents):
            z0_hat = self._denoised(code, blurred, sharp, t, positions)
        detail = model.vae.detail is not None and any(p.requires_grad for p in model.vae.detail.parameters())
        sampled = detail and bool((t < self.schedule.num_timesteps - 1).any())
        output = model.decode(z0_hat, BlurGuide(blurred, code.features, 1.0, sampled, prior))
        if model.vae.temporal is not None and any(p.requires_grad for p in model.vae.temporal.parameters()):
            output = joined_clips(model.vae.temporal, output.float(), blurred)
        weights = self.stage.loss
        terms = {"pixel": losses.charbonnier(output, sharp)}
        if weights.latent:                     # encoder 2 trains here too: keep its latents an estimate of the sharp ones
            terms["latent"] = torch.nn.functional.mse_loss(code.latents.float(), model.encode_target(sharp).float())
        terms |= {name: loss(output, sharp) for name, loss in PICTURE_LOSSES.items() if getattr(weights, name)}
        if weights.texture:
            known = self.schedule.alpha_bar[t.to(self.schedule.alpha_bar.device)].to(output.device, torch.float32)
            terms["texture"] = (known * losses.texture_loss(output, sharp)).mean()
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(fold_time(output).float(), fold_time(sharp)).mean()
        return terms


def joined_clips(network: TemporalFusion, frames: Tensor, blurred: Tensor) -> Tensor:
    """Deblurred frames (B, 3, F, H, W) in [-1, 1], each joined with its neighbours in the clip, as `inference.temporal` does."""
    pictures = ((torch.cat([frames.clamp(-1, 1), blurred], dim=1) + 1) / 2).unbind(2)
    links = [None] * REACH + [Link.between(*(each[:, :3] for each in pair)) for pair in pairwise(pictures)] + [None] * REACH
    made = []
    for number, now in enumerate(pictures):
        flows = paths(links[number:number + 2 * REACH])
        around = [None if flow is None else warp(pictures[number + k], resize_flow(flow, now.shape[-2:]))
                  for k, flow in zip(NEIGHBOURS, flows)]
        made.append(network(now, *in_pairs(now, around)))
    return torch.stack(made, dim=2) * 2 - 1


def prepare_weights(model: nn.Module, stage: StageConfig, clips: Callable[[], Sequence]) -> list[str]:
    """Weights that are set from other ones before a stage's first step, its parameters being chosen. Returns what to say of it.

    clips: gives some of the stage's clips (`train.data.clips.Clips`), for what is measured.
    """
    said = []
    if stage.rescale:
        errors = estimate_errors(model, [pair[:2] for pair in clips()])
        rescale_latents(model, errors)
        said.append(f"encoder 2's estimate misses the latents by {' '.join(f'{e:.4f}' for e in errors.tolist())} (root mean square); "
                    f"they are scaled to 1, latent_scale {model.config.vae.latent_scale:.4f}")
    if stage.kind == "stage3" and (new := start_followers(model, detail=stage.last_timestep < 1)):
        said.append(f"{' and '.join(new)} start as the fidelity branch")
    return said


def settle_weights(model: nn.Module, stage: StageConfig, clips: Callable[[], Sequence]) -> list[str]:
    """The same behind a stage's last step."""
    if stage.kind == "denoiser" and model.config.unet.estimate:
        start_from_estimate(model)
    if stage.kind != "autoencoder":
        return []
    std = latent_std(model, [pair.sharp for pair in clips()])
    set_latent_scale(model, 1 / std)
    start_encoders(model)
    return [f"latents: standard deviation {std:.4f}, latent_scale {1 / std:.4f}; both image encoders start as the autoencoder's encoder"]


@torch.no_grad()
def latent_std(model: nn.Module, clips: Sequence[Tensor]) -> float:
    """Standard deviation of the unscaled latents of sharp clips (B, 3, F, H, W) in [0, 1]: 1 / this is config.vae.latent_scale."""
    means = [model.vae.encode(fold_time(clip * 2 - 1))[0].double().flatten() for clip in clips]
    return torch.cat(means).std().item()


@torch.no_grad()
def start_from_estimate(model: nn.Module) -> None:
    """Silence the UNet's last convolution, so that a denoiser trained on sharp clips alone starts stage 1 as encoder 2's estimate itself.

    What it learned without a condition is a whole v, not that of the residual which a condition leaves; its features stay.
    """
    last = model.unet.out[-1]
    last.weight.zero_()
    last.bias.zero_()


@torch.no_grad()
def estimate_errors(model: nn.Module, clips: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Root mean square (C,) by which encoder 2's latents of blurred clips miss those of the sharp ones; both (B, 3, F, H, W) in [0, 1]."""
    errors = [fold_time(model.encode_blurred(blurred * 2 - 1).latents.float() - model.encode_target(sharp * 2 - 1).float())
              for blurred, sharp in clips]
    return torch.cat(errors).square().mean(dim=(0, 2, 3)).sqrt()


@torch.no_grad()
def rescale_latents(model: nn.Module, errors: Tensor) -> None:
    """Scale the latents so that encoder 2's `errors` (C,) become 1 in every channel; only the UNet has to learn again.

    Noise then hides, over the timesteps, what the estimate leaves open, as it hides whole pictures of unit variance without one. The
    channels share config.vae.latent_scale; what is a channel's own goes into the weights that make and read it. A thumbnail's three
    channels have no such weights and only share.
    """
    vae, count = model.config.vae, model.config.vae.latent_channels
    shared = slice(0, 3 if vae.thumbnail else count)
    common = 1 / errors[shared].square().mean().sqrt()
    own = 1 / (errors * common)
    if vae.thumbnail:
        own[shared] = 1
    for part in (model.vae, model.encoder1.spatial_head, model.encoder2.spatial_head):
        part.quant_conv.weight[:count] *= own.view(-1, 1, 1, 1)
        part.quant_conv.bias[:count] *= own
        part.quant_conv.bias[count:] += 2 * own.log()
    model.vae.post_quant_conv.weight /= own.view(-1, 1, 1)
    set_latent_scale(model, vae.latent_scale * common.item())
    scale = common * own
    adapter, first = model.adapter, model.unet.input_blocks[0][0]
    adapter.conv1.weight /= scale.view(-1, 1, 1)
    adapter.conv_out.weight[:count] *= scale.view(-1, 1, 1, 1)
    adapter.conv_out.bias[:count] *= scale
    if model.config.unet.estimate:
        adapter.conv_out.bias[count:2 * count] += scale.log()
    first.weight[:, count:2 * count] /= scale.view(-1, 1, 1)


FOLLOWERS = ("vae.detail.", "vae.informed.")     # branches that start as the fidelity branch


@torch.no_grad()
def start_followers(model: nn.Module, detail: bool = True) -> list[str]:
    """A branch that is about to train for the first time starts as the fidelity branch; the detail branch trains where `detail` says so.
    Their names."""
    new = []
    for prefix in FOLLOWERS if detail else FOLLOWERS[1:]:
        branch = getattr(model.vae, prefix.split(".")[1])
        if branch is not None and branch.head.weight.requires_grad and not branch.head.weight.any():
            branch.load_state_dict(model.vae.fidelity.state_dict(), strict=False)   # what joins a prior's features is its own
            new.append(prefix[:-1])
    return new


def with_followers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors by name, the fidelity branch's in place of a branch beside it that has not trained: it would show the blurred
    frame itself."""
    own = "vae.fidelity."
    for prefix in FOLLOWERS:
        if f"{prefix}head.weight" in state and not state[f"{prefix}head.weight"].any():
            state = state | {name.replace(own, prefix): value.clone() for name, value in state.items() if name.startswith(own)}
    return state


@torch.no_grad()
def start_encoders(model: nn.Module) -> None:
    """Both image encoders' spatial heads start as the autoencoder's encoder (paper 4.1: the same start)."""
    source = {name: value for name, value in model.vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}
    for encoder in (model.encoder1, model.encoder2):
        encoder.spatial_head.load_state_dict(source)


def set_latent_scale(model: nn.Module, scale: float) -> None:
    """Change config.vae.latent_scale, which the model alone reads: its parts work on unscaled latents."""
    model.config = dataclasses.replace(model.config, vae=dataclasses.replace(model.config.vae, latent_scale=scale))
