"""`vdd_model.diffusion.sampler` inside the host's sampling: its guider loads the model, its callback shows previews, its Cancel works."""
from __future__ import annotations

from collections.abc import Callable

import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ..vdd_model.diffusion import sampler as samplers
from ..vdd_model.diffusion.schedule import Schedule
from ..vdd_model.errors import UserError
from . import latents
from .progress import Bar


def schedule_of(model_sampling) -> Schedule:
    """The schedule that the host's model has (its last alpha_bar is 5e-8 instead of 0)."""
    sigmas = model_sampling.sigmas.detach().cpu().double()      # in this order: not every device has float64
    return Schedule(1 / (sigmas**2 + 1))


def sigmas_of(model_sampling, spacing: str, steps: int) -> Tensor:
    """Noise levels (steps + 1,), float32, ending on 0."""
    sigmas = model_sampling.sigmas.detach().float().cpu()
    return torch.cat([sigmas[samplers.timesteps(steps, len(sigmas), spacing)], sigmas.new_zeros(1)])


def gives_estimate(model, positive: list) -> bool:
    """Whether one step may be encoder 2's estimate (`ModelConfig.gives_estimate`): not where other nodes have changed the model, or say
    more of the clip than Encode Blurred Clip does."""
    network = model.model
    wrapped = (each for kind in model.wrappers.values() for key, each in kind.items() if key != latents.PICTURES)
    changed = (model.patches, model.object_patches, *wrapped,
               *(value for key, value in model.model_options.items() if key != "transformer_options"),
               *model.model_options["transformer_options"].values())
    return (network.diffusion_model.config.estimate and network.model_config.sampling_settings["zsnr"] and not any(changed)
            and len(positive) == 1 and {*positive[0][1]} - {latents.PICTURES} == {latents.BLUR, latents.IMAGE})


def estimate(model, positive: list) -> Tensor:
    """Encoder 2's estimate of the clean latents (1, 4, F, h, w), unscaled: what one step shows."""
    network = model.model
    return network.process_latent_out(positive[0][1][latents.BLUR][:, :network.latent_format.latent_channels])


def need_deblur_model(model) -> None:
    """Raise UserError unless `model` is the denoiser of this pack (or a copy of it with patches)."""
    if not hasattr(model.model, "diffusion_model") or not hasattr(model.model.diffusion_model, "adapter"):
        raise UserError("this model does not deblur: connect the MODEL output of 'Load Deblur Checkpoint'")


def _scaled(sigma: Tensor) -> tuple[float, float]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) of a noise level. The host's x is ours / sqrt(alpha_bar)."""
    a = (float(sigma.flatten()[0]) ** 2 + 1) ** -0.5
    return a, (1 - a * a) ** 0.5


# What other nodes (RescaleCFG, perturbed attention, ...) hang into a model's options to change how it is guided
GUIDANCE_PATCHES = ("sampler_calc_cond_batch_function", "sampler_pre_cfg_function", "sampler_cfg_function", "sampler_post_cfg_function")


class Guider(comfy.samplers.CFGGuider):
    """Guidance by `vdd_model.diffusion.sampler.guided`: in v, with rescale and an interval."""

    def set_guidance(self, scale: float, rescale: float, interval: tuple[float, float]) -> None:
        self.cfg, self.rescale, self.interval = scale, rescale, interval

    def predict_noise(self, x, timestep, model_options={}, seed=None):        # noqa: B006  the host's signature
        if self.cfg == 1.0:
            return super().predict_noise(x, timestep, model_options, seed)
        layers = model_options.get("transformer_options", {})
        if any(model_options.get(patch) for patch in GUIDANCE_PATCHES) or layers.get("patches") or layers.get("patches_replace"):
            # Then the host's way, both branches in one call, our formula first behind its own
            ours = [] if "sampler_cfg_function" in model_options else [self._instead]
            options = {**model_options, "sampler_post_cfg_function": ours + model_options.get("sampler_post_cfg_function", [])}
            return super().predict_noise(x, timestep, options, seed)

        def x0_of(conds):
            """The model's x0 under one branch's conditioning."""
            return comfy.samplers.calc_cond_batch(self.inner_model, [conds], x, timestep, model_options)[0]

        return self._guided(x, timestep, lambda: x0_of(self.conds["positive"]), lambda: x0_of(self.conds["negative"]))

    def _guided(self, x, timestep, positive: Callable[[], Tensor], negative: Callable[[], Tensor]) -> Tensor:
        """The guided x0 of x (in the host's scale); positive() and negative() give the branches' x0."""
        a, s = _scaled(timestep)
        model_sampling = self.inner_model.model_sampling

        def v_model(x0):
            """v from a function that gives x0."""
            return lambda x_vp, _: (a * x_vp - x0()) / s

        guided = samplers.guided(v_model(positive), v_model(negative), self.cfg, self.rescale, self.interval, len(model_sampling.sigmas))
        return a * a * x - s * guided(a * x, model_sampling.timestep(timestep))

    def _instead(self, args: dict) -> Tensor:
        """Our guided x0 from the host's two. As its `sampler_cfg_function` it would lose its last digits beside a noise of 4519."""
        return self._guided(args["input"], args["sigma"], lambda: args["cond_denoised"], lambda: args["uncond_denoised"])


class WindowSampler:
    """One node execution: the settings, and the progress bar over all steps of all windows."""

    def __init__(self, model, guidance: float, rescale: float, interval: tuple[float, float], eta: float, steps: int, spacing: str,
                 seed: int, total: int):
        self.model, self.guidance, self.eta, self.seed = model, (guidance, rescale, interval), eta, seed
        model_sampling = model.get_model_object("model_sampling")
        self.schedule = schedule_of(model_sampling)
        self.timesteps = samplers.timesteps(steps, self.schedule.num_timesteps, spacing)
        self.sigmas = sigmas_of(model_sampling, spacing, steps)
        self.bar = Bar(total * len(self.timesteps))
        self.preview = latent_preview.prepare_callback(model, self.bar.total)

    def window(self, positive, negative, latent: dict, noise: Callable[[int], Tensor]) -> Tensor:
        """Sample one window's latents; noise(0) starts it, noise(i + 1) is added by step i when eta > 0."""
        samples = latent["samples"] if latent.get("noise_mask") is not None else torch.zeros_like(latent["samples"])
        guider = Guider(self.model)
        guider.set_conds(positive, negative)
        guider.set_guidance(*self.guidance)
        network = self.model.get_model_object("diffusion_model")
        pieces = network.num_blocks * (1 if self.guidance[0] == 1 else 2)

        def callback(step, x0, x, _):
            self.preview(self.bar.done, x0, x, self.bar.total)
            self.bar.end()
            self.bar.begin(1, pieces)

        self.bar.begin(1, pieces)
        before, network.tick = network.tick, self.bar.tick               # one step of large frames takes minutes on a CPU
        try:
            out = guider.sample(noise(0), samples, comfy.samplers.KSAMPLER(self._ddim, {"noise": noise}), self.sigmas,
                                denoise_mask=latent.get("noise_mask"), callback=callback, disable_pbar=True, seed=self.seed)
        finally:
            network.tick = before
        return out.to(latent["samples"])

    def _ddim(self, model, x, sigmas, extra_args=None, callback=None, disable=None, noise=None):
        """The host's sampler function: x at sigmas[0] in the host's scale -> clean latents."""
        sigma_at = dict(zip(self.timesteps, sigmas))

        def v_model(x_vp, t):
            sigma = sigma_at[int(t[0])]
            a, s = _scaled(sigma)
            x0 = model(x_vp / a, sigma.expand(len(x_vp)), **extra_args)
            return (a * x_vp - x0) / s

        def report(i, t, x_vp, x0):
            callback({"i": i, "denoised": x0, "x": x_vp, "sigma": sigma_at[t], "sigma_hat": sigma_at[t]})

        return samplers.ddim(v_model, x * _scaled(sigmas[0])[0], self.schedule, self.timesteps, eta=self.eta,
                             step_noise=lambda i: noise(i + 1).to(x), callback=report)
