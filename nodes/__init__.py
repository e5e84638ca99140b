"""The ComfyUI layer: a list of nodes. Each node is a schema and a short `execute`; `native.py` knows the host's model classes."""
from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import folders
from .conditioning import EncodeBlurredClip, LoadDeblurCheckpoint
from .decoding import DeblurPrior, DecodeDeblurredFrames
from .measuring import CompareDeblurring, SynthesizeMotionBlur
from .notices import name_errors_plainly
from .sampling import DeblurSampler, DeblurSigmas
from .streaming import DeblurFrames, DeblurVideo

NODES: list[type[io.ComfyNode]] = [
    LoadDeblurCheckpoint, EncodeBlurredClip, DeblurSampler, DeblurSigmas, DecodeDeblurredFrames,
    DeblurVideo, DeblurFrames, CompareDeblurring, SynthesizeMotionBlur, DeblurPrior,
]


class DeblurExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()                # here and not in on_load, which older hosts never call
        name_errors_plainly()
        return NODES
