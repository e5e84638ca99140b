"""What other nodes hang into a model's layers (`transformer_options`), called as the host's own image UNets call it.

Every frame is then an image of the batch, so what works on pictures works on each frame. Temporal layers have no counterpart there and
are left alone; what has no place here is refused in a sentence.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from einops import rearrange
from torch import Tensor, nn

from ..vdd_model.errors import UserError
from ..vdd_model.networks.layers import SpatialTransformer, frames_as_images, images_as_frames
from ..vdd_model.networks.unet3d import ContextCache

PATCHES = {"attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch", "middle_patch",
           "input_block_patch", "input_block_patch_after_skip", "output_block_patch"}
REPLACED = {"attn1", "attn2"}
PICTURES_ONLY = ("nodes_sag",)         # modules of nodes whose patches fit, but whose guidance then takes latents for those of one picture


class Patched(ContextCache):
    """The context of one call of the UNet, and what other nodes have hung into its layers. Raises UserError for what has no place."""

    def __init__(self, unet, tokens: Tensor, options: dict, shape: torch.Size):
        super().__init__()
        batch, channels, frames, height, width = shape
        self.tokens = tokens.repeat_interleave(frames, 0)
        blocks = {**{("input", i): block for i, block in enumerate(unet.input_blocks)}, ("middle", 0): unet.middle_block,
                  **{("output", i): block for i, block in enumerate(unet.output_blocks)}}
        self.places = iter(blocks)
        self.patches = {kind: each for kind, each in options.get("patches", {}).items() if each}
        self.replace = {kind: each for kind, each in options.get("patches_replace", {}).items() if each}
        unknown = sorted({*self.patches} - PATCHES | {*self.replace} - REPLACED)
        if unknown:
            raise UserError(f"a node before the sampler changes layers ({', '.join(unknown)}) in a way that this 3D-UNet does not have: "
                            "take out what is made for other kinds of models")
        attending = {place for place, block in blocks.items() if any(isinstance(layer, SpatialTransformer) for layer in block.children())}
        for place, patch in ((place, patch) for each in self.replace.values() for place, patch in each.items()):
            if place[:2] not in attending:
                raise UserError(f"a node before the sampler changes the attention of {place[0]} block {place[1]}, where this 3D-UNet has "
                                f"none: it has in {', '.join(f'{name} {number}' for name, number in sorted(attending))}")
            if getattr(patch, "__module__", "").endswith(PICTURES_ONLY):
                raise UserError("a node before the sampler (Self-Attention Guidance) works on single pictures only: take it out")
        self.options = {**options, "original_shape": [batch * frames, channels, height, width], "transformer_index": 0}

    def run(self, run, block: nn.Module, x: Tensor, embedding: Tensor, skip: Tensor | None) -> Tensor:
        """UNet3D's `run` of one block, x (B, F, H, W, C); blocks come in their order."""
        if self.options.get("block", ("",))[0] == "input":           # behind its skip connection is before the next block
            x = self._images("input_block_patch_after_skip", x)
        self.options["block"] = place = next(self.places)
        if skip is not None:
            batch, h, skip = len(x), *(frames_as_images(y).contiguous() for y in (x, skip))
            for patch in self.patches.get("output_block_patch", ()):
                h, skip = patch(h, skip, self.options)
            if h.shape[-2:] != skip.shape[-2:]:                        # halved and doubled again, an odd size is another
                h = F.interpolate(h, skip.shape[-2:])
            x = images_as_frames(torch.cat([h, skip], 1), batch)
        for layer in block if isinstance(block, nn.ModuleList) else (block,):
            x = self._transform(layer, x, place) if isinstance(layer, SpatialTransformer) else run(layer, x, embedding, self)
        return self._images("input_block_patch", x) if place[0] == "input" else x

    def _images(self, kind: str, x: Tensor) -> Tensor:
        """x behind the patches of this kind, to which its frames are images."""
        if kind not in self.patches:
            return x
        h = frames_as_images(x).contiguous()
        for patch in self.patches[kind]:
            h = patch(h, self.options)
        return images_as_frames(h, len(x))

    def _transform(self, layer: SpatialTransformer, x: Tensor, place: tuple[str, int]) -> Tensor:
        """`layer` of x, its attention changed."""
        extra = {key: value for key, value in self.options.items() if key not in ("patches", "patches_replace")}
        block, height = layer.transformer_blocks[0], x.shape[2]
        h = layer.proj_in(rearrange(layer.norm(frames_as_images(x)), "n c h w -> n (h w) c"))
        h = h + self._attend("attn1", block.attn1, block.norm1(h), None, place, extra)
        for patch in self.patches.get("middle_patch", ()):
            h = patch(h, extra)
        h = h + self._attend("attn2", block.attn2, block.norm2(h), self.tokens, place, extra)
        h = h + block.ff(block.norm3(h))
        self.options["transformer_index"] += 1
        return x + layer.proj_out(rearrange(h, "(b f) (h w) c -> b f h w c", b=len(x), h=height))

    def _attend(self, kind: str, layer, n: Tensor, context: Tensor | None, place: tuple[str, int], extra: dict) -> Tensor:
        """Attention of n (N, S, C) to context (N, L, C), to itself without one."""
        heads = n.shape[-1] // layer.head_dim
        extra = {**extra, "n_heads": heads, "dim_head": layer.head_dim, "attn_precision": None}
        context = value = n if context is None else context
        for patch in self.patches.get(f"{kind}_patch", ()):
            n, context, value = patch(n, context, value, extra)
        q, k, v = layer.to_q(n), layer.to_k(context), layer.to_v(value)
        replace = self.replace.get(kind, {})
        replace = replace.get((*place, 0)) or replace.get(place)
        n = replace(q, k, v, extra) if replace else optimized_attention(q, k, v, heads, transformer_options=self.options)
        n = layer.to_out(n)
        for patch in self.patches.get(f"{kind}_output_patch", ()):
            n = patch(n, extra)
        return n
