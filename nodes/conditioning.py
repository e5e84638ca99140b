"""Load Deblur Checkpoint and Encode Blurred Clip."""
from __future__ import annotations

import functools
from itertools import islice

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from einops import rearrange

from ..vdd_model.errors import UserError
from ..vdd_model.inference.pipeline import checked
from ..vdd_model.inference.scenes import pictures
from ..vdd_model.inference.tiles import make_tiling
from ..vdd_model.inference.window import encode_frames, encode_pictures, reads_pictures, to_pixels
from . import folders, latents, native
from .frames import need_prior_of, rgb_of
from .progress import Bar
from .schema import Encoders, option_input, schema


class LoadDeblurCheckpoint(io.ComfyNode):
    """A checkpoint file -> MODEL, VAE, encoders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDLoadCheckpoint", display_name="Load Deblur Checkpoint",
            description="Loads a video deblurring model: the denoiser, the video autoencoder and both image encoders, from one file.",
            search_aliases=["vdd loader", "motion deblur model", "video deblurring checkpoint"],
            inputs=[
                folders.checkpoint_input(),
                io.Combo.Input("dtype", options=list(native.DTYPES), default="auto",
                               tooltip="Number format of the denoiser's weights. auto: what suits this device. fp8 halves the memory of "
                                       "16-bit weights and costs some precision."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The denoiser, for KSampler or Deblur Sampler."),
                io.Vae.Output(display_name="vae", tooltip="The video autoencoder."),
                Encoders.Output(display_name="encoders", tooltip="Both image encoders, for Encode Blurred Clip."),
            ])

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None, dtype: str | None):
        return folders.mark_of(checkpoint), dtype

    @classmethod
    def execute(cls, checkpoint: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(*native.load(folders.path_of(checkpoint), dtype))


class EncodeBlurredClip(io.ComfyNode):
    """Blurred frames -> what the sampler is told of them, and the latent that it starts from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDEncodeClip", display_name="Encode Blurred Clip",
            description="Encodes a blurred clip with both image encoders: what the sampler is told, and where it starts.",
            search_aliases=["vdd encode", "blur conditioning"],
            inputs=[
                io.Image.Input("frames", tooltip="The blurred frames in order; any number and any size. Alpha is not looked at."),
                Encoders.Input("encoders", tooltip="From Load Deblur Checkpoint."),
                io.Vae.Input("vae", tooltip="From Load Deblur Checkpoint: its latents are what the sampler works on."),
                io.Image.Input("prior", optional=True, tooltip="The same frames from Deblur Prior: several steps start nearer to the "
                               "truth, and the latent takes them to the decoder."),
                option_input("scenes"), option_input("repeats"),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The blurred clip."),
                io.Conditioning.Output(display_name="negative", tooltip="The clip without its semantic part, for guidance above 1."),
                io.Latent.Output(display_name="latent", tooltip="The blurred clip as latents: what KSampler with denoise below 1 starts "
                                 "from, and what stays where a noise mask forbids changes."),
            ])

    @classmethod
    def execute(cls, frames: torch.Tensor, encoders: native.Encoders, vae, prior: torch.Tensor | None = None,
                scenes: str = "auto", repeats: str = "auto") -> io.NodeOutput:
        config = encoders.config
        decoder = native.need_deblur_vae(vae)
        if decoder.encoders.config.vae != config.vae:
            raise UserError("encoders and VAE are of different checkpoints: connect both from the same 'Load Deblur Checkpoint'")
        need_prior_of(frames, prior, "frames")
        height, width = frames.shape[1:3]
        tiling = make_tiling(None, None, height, width, config.divisor)
        native.use([encoders.semantic, encoders.spatial], native.encode_memory(config, tiling, height, width, encoders.dtype))
        padded = [n + -n % config.divisor for n in (height, width)]
        bar, tiles = Bar(len(frames)), len(tiling.boxes((1, *padded)))
        spatial, found, blur, image = encoders.spatial.model, [], [], []
        ahead = pictures(checked(rgb_of(frames)), scenes=scenes == "auto", repeats=repeats == "auto")
        with bar.watch(spatial):
            while part := list(islice(ahead, native.chunk_of(tiling, *padded))):
                pixels = to_pixels([picture.rgb for picture in part], config.divisor, encoders.device)
                bar.begin(part[-1].index + 1 - bar.done, tiles + 1)
                blur.append(encode_frames(spatial, lambda tile, pixels=pixels: spatial.encode_each(tile.of(pixels)).latents,
                                          pixels.shape[2:], tiling, bar.tick).float())
                bar.tick()
                image.append(encoders.semantic.model.encoder1.semantic(rearrange(pixels, "1 c f h w -> f c h w")).float())
                bar.end()
                found += part
        bar.move(len(frames))
        first, known = [picture.index for picture in found], prior
        if len(found) < (total := len(frames)):
            frames, known = frames[first], None if prior is None else prior[first]
        home = mm.intermediate_device()
        blur, image = torch.cat(blur, dim=2).to(home), torch.cat(image)[None, None].to(home)
        latent = {"samples": blur / config.vae.latent_scale, latents.SIZE: (height, width),
                  latents.SCENES: (*(i for i, picture in enumerate(found) if picture.number == 0), len(found))}
        if len(found) < total:
            latent[latents.SHOWN] = (*first, total)
        told = {latents.BLUR: blur}
        if reads_pictures(decoder.model, 1.0):
            known = known if decoder.model.vae.fusion is not None else None
            told[latents.PICTURES] = functools.cache(lambda: cls._pictures(vae, frames, known, blur, latents.scenes_of(latent), tiling))
        positive = [[encoders.null_text, {**told, latents.IMAGE: image}]]
        negative = [[encoders.null_text, {**told, latents.IMAGE: torch.zeros_like(image)}]]
        return io.NodeOutput(positive, negative, latent if prior is None else {**latent, latents.PRIOR: prior})

    @staticmethod
    def _pictures(vae, frames: torch.Tensor, prior: torch.Tensor | None, blur: torch.Tensor, scenes: list[range], tiling) -> torch.Tensor:
        """What one step shows of the frames, as latents beside those of `blur` (`window.encode_pictures`)."""
        encoders, model = vae.vdd_decoder
        config, read, bar = encoders.config, [], Bar(len(frames))
        padded = [n * config.vae.factor for n in blur.shape[-2:]]
        tiles = len(tiling.boxes((1, *padded)))
        count = min(native.chunk_of(tiling, *padded), len(frames))
        native.use([vae.patcher, encoders.spatial],
                   native.decode_memory(config, count, *(min(n, tiling.tile or n) for n in padded), encoders.dtype, True))
        codes = native.codes_of(encoders, model, frames, prior, padded)
        with bar.watch(model):
            for these, near in latents.chunks_of(scenes, count):
                bar.begin(len(these), 2 * tiles)
                source = codes.source(blur[:, :, these.start:these.stop].to(encoders.device), these, near)
                read.append(encode_pictures(model, source, (len(these), *padded), tiling, bar.tick).to(blur))
                codes.forget(these.stop - 1)
                bar.end()
        return torch.cat(read, dim=2)
