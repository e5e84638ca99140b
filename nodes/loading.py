"""Load Deblur Checkpoint."""
from __future__ import annotations

from comfy_api.latest import io

from . import folders, native
from .schema import Encoders, schema


class LoadDeblurCheckpoint(io.ComfyNode):
    """A checkpoint file -> MODEL, VAE, encoders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDLoadCheckpoint", display_name="Load Deblur Checkpoint",
            description="Loads a video deblurring model: the denoiser, the video autoencoder and both image encoders, from one file.",
            search_aliases=["vdd loader", "motion deblur model", "video deblurring checkpoint"],
            inputs=[
                io.Combo.Input("checkpoint", options=folders.names(),
                               tooltip="A .safetensors file in models/vdd, or the small model that comes with the pack."),
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
