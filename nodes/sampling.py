"""Deblur Sampler (DDIM) and Deblur Sigmas."""
from __future__ import annotations

import torch
from comfy_api.latest import io

from ..vdd_model.inference.windows import fade_in, frame_noise, window_steps
from . import hostsampler, latents
from .schema import advanced, option_input, schema, seed_input


class DeblurSampler(io.ComfyNode):
    """The paper's sampler, window by window."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDSampler", display_name="Deblur Sampler (DDIM)",
            description="Samples sharp latents, window by window, with noise that belongs to each frame of the clip.",
            search_aliases=["vdd sampler", "ddim video deblur"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Deblur Checkpoint."),
                io.Conditioning.Input("positive", tooltip="From Encode Blurred Clip."),
                io.Conditioning.Input("negative", tooltip="From Encode Blurred Clip; used when guidance is not 1."),
                io.Latent.Input("latent", tooltip="From Encode Blurred Clip. A noise mask on it is honoured."),
                seed_input(),
                *map(option_input, ("steps", "guidance", "eta", "spacing")),
                option_input("window", False, min=0, max=10000,
                             tooltip="Frames that are sampled together; 16 is the paper's window. 0: the whole clip at once."),
                option_input("overlap", False, max=5000),
                option_input("guidance_rescale"),
                advanced(io.Float.Input, "guidance_from", default=0.0, min=0.0, max=1.0, step=0.01,
                         tooltip="Guide only above this noise level (0 is clean, 1 is noise)."),
                advanced(io.Float.Input, "guidance_to", default=1.0, min=0.0, max=1.0, step=0.01,
                         tooltip="Guide only up to this noise level."),
                option_input("denoise_at_one_step"),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Sharp latents.")])

    @classmethod
    def execute(cls, model, positive, negative, latent, seed, steps, guidance, eta, spacing="trailing", window=16, overlap=4,
                guidance_rescale=0.0, guidance_from=0.0, guidance_to=1.0, denoise_at_one_step=False) -> io.NodeOutput:
        hostsampler.need_deblur_model(model)
        samples = latent["samples"]
        layout = model.get_model_object("latent_format")
        latents.need_video_latent(samples, layout.latent_channels)
        masked = latents.with_mask_per_frame(latent, layout.spacial_downscale_ratio)
        frames, (height, width) = samples.shape[2], samples.shape[-2:]
        window = window if 0 < window < frames else frames
        scenes = [(scene, list(window_steps(lambda count, scene=scene: min(count, len(scene)), window, min(overlap, window // 2))))
                  for scene in latents.scenes_of(latent)]
        total = sum(len(found) for _, found in scenes)
        if (steps == 1 and guidance == 1 and spacing == "trailing" and not denoise_at_one_step and latent.get("noise_mask") is None
                and hostsampler.gives_estimate(model, positive) and positive[0][1][latents.BLUR].shape[2:] == samples.shape[2:]):
            result = hostsampler.estimate(model, positive).to(samples)        # as in the one-node way: the UNet moves it by hardly anything
            return io.NodeOutput({**latent, "samples": result, latents.ONE_STEP: result, latents.ESTIMATE: result})
        positive, negative = ([[text, latents.with_pictures(extra)] for text, extra in each] for each in (positive, negative))
        run = hostsampler.WindowSampler(model, guidance, guidance_rescale, sorted((guidance_from, guidance_to)), eta, steps, spacing,
                                        seed, total)
        parts = []
        for scene, found in scenes:                 # each as if it were alone, its noise too
            part, before = None, range(0)
            for step in found:
                first, start, stop = step.window.start, scene.start + step.window.start, scene.start + step.window.stop
                told = latents.cut(positive, start, stop, frames)
                new = run.window(told, latents.cut(negative, start, stop, frames), latents.cut_latent(masked, start, stop),
                                 lambda i, window=step.window: frame_noise(seed, window, samples.shape[1], height, width, i))
                part, before = fade_in(new, step, part, before), step.window
                parts.append(part[:, :, step.ready.start - first:step.ready.stop - first])
        result = torch.cat(parts, dim=2)
        return io.NodeOutput({**latent, "samples": result, latents.ONE_STEP: result if steps == 1 else None})


class DeblurSigmas(io.ComfyNode):
    """The noise levels of Deblur Sampler, for SamplerCustom."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDSigmas", display_name="Deblur Sigmas",
            description="The exact noise levels of the Deblur Sampler, for the core's custom samplers.",
            search_aliases=["vdd sigmas", "deblur scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Deblur Checkpoint."),
                io.Int.Input("steps", default=10, min=1, max=1000, tooltip="Number of steps."),
                option_input("spacing"),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="For SamplerCustom or SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls, model, steps, spacing="trailing") -> io.NodeOutput:
        hostsampler.need_deblur_model(model)
        return io.NodeOutput(hostsampler.sigmas_of(model.get_model_object("model_sampling"), spacing, steps))
