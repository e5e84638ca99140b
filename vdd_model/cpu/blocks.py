"""The 3D-UNet's blocks with their sums inside of the products (onednn.py), for inference on a CPU.

Each class is the one of networks/ with another forward: nothing of the parameters, keys or results changes but the rounding. Where somebody
listens to a module by a forward hook, it is called as it is.
"""
from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..networks import adapter, layers
from ..networks.layers import frames_as_images, images_as_frames, silu
from .attention import plain_steps
from .onednn import conv, conv_enlarged, geglu, hooked, linear

BAND = 1 << 17                  # positions that the adapter handles at a time: those of a whole window of large frames take gigabytes
FEED_FORWARD_ROWS = 4096        # rows a feed-forward handles at a time: its wide inner layer then stays in the cache


def added(branch: nn.Module, add: Tensor, *arguments) -> Tensor:
    """add + branch(*arguments)"""
    return add + branch(*arguments) if hooked(branch) else branch.plus(add, *arguments)


class Attention(layers.Attention):
    attend = staticmethod(plain_steps)

    def plus(self, add: Tensor, x: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """add + attention of x, the sum taken in the last product; both of one shape."""
        return linear(self.to_out[0], self.attended(x, context), add)


class AdapterTransformer(adapter.TemporalTransformer):
    attend = staticmethod(plain_steps)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        forward = super().forward                        # positions do not see each other
        return torch.cat([forward(part) for part in x.split(max(1, FEED_FORWARD_ROWS // x.shape[1]))])


class Adapter(adapter.Adapter):
    def forward(self, latents: Tensor) -> Tensor:
        frames, height, width = latents.shape[2:]
        rows, halo = max(8, BAND // (len(latents) * frames * width)), 3           # its three convolutions look so far
        if rows >= height or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(latents)
        bands = []
        for start in range(0, height, rows):
            low = max(0, start - halo)
            band = super().forward(latents[..., low:start + rows + halo, :])
            bands.append(band[..., start - low:start - low + rows, :])
        return torch.cat(bands, dim=3)


class GEGLU(layers.GEGLU):
    def forward(self, x: Tensor) -> Tensor:
        return geglu(self.proj, x)


class FeedForward(layers.FeedForward):
    def plus(self, add: Tensor, x: Tensor) -> Tensor:
        """add + feed-forward of x, both of one shape."""
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
            return linear(self.net[2], self.net[0](x), add)
        parts = zip(x.flatten(0, -2).split(FEED_FORWARD_ROWS), add.flatten(0, -2).split(FEED_FORWARD_ROWS))
        return torch.cat([linear(self.net[2], self.net[0](part), rest) for part, rest in parts]).view(x.shape)


class TransformerBlock(layers.TransformerBlock):
    def forward(self, x: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = added(self.attn1, x, self.norm1(x))
        x = added(self.attn2, x, self.norm2(x), context)
        return added(self.ff, x, self.norm3(x))


class SpatialTransformer(layers.SpatialTransformer):
    def added(self, h: Tensor, x: Tensor) -> Tensor:
        """x + proj_out(h), rows (..., C), the sum taken in the product."""
        return linear(self.proj_out, h, x)


class TemporalTransformer(layers.TemporalTransformer):
    added = SpatialTransformer.added


class TemporalConv(layers.TemporalConv):
    def forward(self, x: Tensor) -> Tensor:
        start = h = frames_as_images(x, "b f (h w) c")
        for norm, *_, layer in (self.conv1, self.conv2, self.conv3):
            h = layer(silu(norm(h)))
        h = conv(self.conv4[-1], silu(self.conv4[0](h)), start)
        return rearrange(h, "b c f (h w) -> b f h w c", h=x.shape[2]).contiguous()


class ResBlock(layers.ResBlock):
    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        x = frames_as_images(x)
        h = self.in_layers[2](silu(self.in_layers[0](x)))
        e = repeat(self.emb_layers(embedding).to(h.dtype), "b c -> (b f) c 1 1", f=frames)
        h = h + e if torch.is_grad_enabled() else h.add_(e)
        h = conv(self.out_layers[3], silu(self.out_layers[0](h)), self.skip_connection(x))
        return self.temopral_conv(images_as_frames(h, batch))


class Upsample(layers.Upsample):
    def forward(self, x: Tensor) -> Tensor:
        return images_as_frames(conv_enlarged(self.conv, frames_as_images(x)), x.shape[0])


BLOCKS = {fast.__base__: fast for fast in (Attention, Adapter, AdapterTransformer, GEGLU, FeedForward, TransformerBlock, SpatialTransformer,
                                           TemporalTransformer, TemporalConv, ResBlock, Upsample)}
