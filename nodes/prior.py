"""Deblur Prior."""
from __future__ import annotations

import comfy.model_management as mm
import torch
from comfy_api.latest import io

from ..vdd_model.inference.pipeline import checked
from ..vdd_model.inference.prior import need_prior
from ..vdd_model.inference.scenes import pictures
from . import folders, native
from .frames import rgb_of, with_alpha
from .progress import Bar
from .schema import schema


class DeblurPrior(io.ComfyNode):
    """IMAGE -> IMAGE by the pretrained prior alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDPrior", display_name="Deblur Prior",
            description="What a pretrained network for photographs (MAXIM) makes of each frame alone. Connect it to Decode Deblurred "
                        "Frames, which joins it with what the neighbouring frames tell.",
            search_aliases=["vdd maxim", "photo deblurring", "single image deblur"],
            inputs=[io.Image.Input("frames", tooltip="The blurred frames; any number and any size. Alpha passes through.")],
            outputs=[io.Image.Output(display_name="frames", tooltip="As many frames of the same size.")])

    @classmethod
    def fingerprint_inputs(cls, **_):
        return folders.mark_of_prior()

    @classmethod
    def execute(cls, frames: torch.Tensor) -> io.NodeOutput:
        prior = native.load_prior(need_prior(folders.find_prior()))
        native.use([prior.patcher], native.prior_memory(prior, *frames.shape[1:3]))
        bar, out = Bar(len(frames)), torch.empty(*frames.shape[:3], 3, device=mm.intermediate_device())
        shown = []
        for picture in pictures(checked(rgb_of(frames)), scenes=False):               # a frame that is shown again is not computed again
            shown.append(picture)
            bar.begin(picture.index + 1 - bar.done, prior.ticks(*frames.shape[1:3]))
            out[picture.index] = prior(picture.rgb[None], bar.tick)[0]
            bar.end(out[picture.index])
        for picture in shown:
            out[picture.index + 1:picture.index + picture.times] = out[picture.index]
        bar.move(len(frames))
        return io.NodeOutput(with_alpha(out, frames))
