"""Layers of the 3D-UNet.

Activations are rows of channels: (B, F, H, W, C), contiguous. A convolution sees them as a channels-last image and a transformer
as a sequence, both without a copy. Parameter names are those of the official TF-T2V code (its spelling included).
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

_CUDA_GRID = 65535              # the longest batch that CUDA's attention takes


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nothing else needs: in place unless a gradient is wanted."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The parts one after the other along `dim`; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def frames_as_images(x: Tensor, rows: str = "(b f) h w c") -> Tensor:
    """(B, F, H, W, C) -> (N, C, H, W), a channels-last view; rows: einops' pattern of (N, H, W, C). One step to (N, C, H, W) would leave a
    stride behind by which torch does not know a single image as channels-last: it would be turned there and back."""
    return rearrange(x, f"b f h w c -> {rows}").permute(0, 3, 1, 2)


def images_as_frames(x: Tensor, batch: int) -> Tensor:
    """Inverse of `frames_as_images`; a view when x is channels-last."""
    return rearrange(x, "(b f) c h w -> b f h w c", b=batch).contiguous()


def channels_last(model: nn.Module) -> nn.Module:
    """Put the convolutions' weights into the layout that their inputs have (what a GPU otherwise does in every call); values, shapes and
    keys stay as they are. Returns the model."""
    model = nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)
    return nn.utils.convert_conv3d_weight_memory_format(model, torch.channels_last_3d)


def zero_init(module: nn.Module) -> nn.Module:
    """Zero all parameters, so that a residual branch starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def over_frames(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of three frames, of (B, C, F, H*W) channels-last: as a 2-D one, which every backend has a fast kernel for."""
    return F.conv2d(x, weight, bias, padding=(1, 0))


@functools.cache
def conv_as(function: Callable[[Tensor, Tensor, Tensor | None], Tensor], conv: type[nn.Module]) -> type[nn.Module]:
    """The namespace's convolution as a layer that is `function` of x, of the weight without its last axis (of length 1) and of the bias."""
    class Conv(conv):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, *_, **__) -> Tensor:
            return function(input, weight[..., 0], bias)
    return Conv


def attention(q: Tensor, k: Tensor, v: Tensor, limit: int | None = None) -> Tensor:
    """softmax(q k' / sqrt(D)) v for q (N, H, S, D) and k, v (N, H, L, D), at most `limit` of the batch at a time (what the device takes):
    over time it has an entry for every latent position of a frame, 115200 for two branches of 720 x 1280 pixels at factor 4."""
    limit = limit or (_CUDA_GRID if q.device.type == "cuda" else len(q))
    parts = math.ceil(len(q) / limit)                          # of about one size: 65536 entries are no 65535 and a single one
    return joined([F.scaled_dot_product_attention(*part) for part in zip(*(x.chunk(parts) for x in (q, k, v)))])


class Attention(nn.Module):
    """Multi-head attention over x (B, F, S, C): F frames of S positions.

    `over="space"`: the positions of each frame attend to each other; `over="time"`: the frames of each position do.
    With `context` given to forward, all positions attend to the same keys and values (B, L, C), shared by the frames.
    """

    attend = staticmethod(attention)

    def __init__(self, dim: int, head_dim: int, context_dim: int | None = None, *, over: str = "space", operations=nn, **kw):
        super().__init__()
        self.head_dim = head_dim
        self.sequences = {"space": "(b f) h s d", "time": "(b s) h f d"}[over]
        self.to_q = operations.Linear(dim, dim, bias=False, **kw)
        self.to_k, self.to_v = (operations.Linear(context_dim or dim, dim, bias=False, **kw) for _ in range(2))
        self.to_out = nn.Sequential(operations.Linear(dim, dim, **kw))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (..., L, C) of the context (..., L, context_dim)."""
        return self.to_k(context), self.to_v(context)

    def attended(self, x: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The heads' values (B, F, S, C), before the output layer."""
        b, f, s, _ = x.shape
        sequences = "b h (f s) d" if context else self.sequences
        own, given = f"b f s (h d) -> {sequences}", "b l (h d) -> b h l d"
        k, v = (rearrange(y, given if context else own, d=self.head_dim) for y in context or self.keys_values(x))
        out = self.attend(rearrange(self.to_q(x), own, d=self.head_dim), k, v)
        return rearrange(out, f"{sequences} -> b f s (h d)", b=b, f=f, s=s)

    def forward(self, x: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return self.to_out(self.attended(x, context))


class GEGLU(nn.Module):
    """Linear layer to twice the width; one half gates the other through a GELU."""

    def __init__(self, dim: int, inner: int, *, operations=nn, **kw):
        super().__init__()
        self.proj = operations.Linear(dim, 2 * inner, **kw)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gate = F.gelu(gate)
        return gate * value if torch.is_grad_enabled() else gate.mul_(value)      # in place: nothing else is as wide


class FeedForward(nn.Module):
    """Gated feed-forward with inner width 4 * dim, on rows (..., C)."""

    def __init__(self, dim: int, *, operations=nn, **kw):
        super().__init__()
        # The middle element keeps the official index of the last layer (it was a dropout).
        self.net = nn.Sequential(GEGLU(dim, 4 * dim, operations=operations, **kw), nn.Identity(), operations.Linear(4 * dim, dim, **kw))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, then attention to the context (to itself again when there is none), then the feed-forward; all pre-norm."""

    def __init__(self, dim: int, head_dim: int, context_dim: int | None, *, over: str, operations=nn, **kw):
        super().__init__()
        self.attn1 = Attention(dim, head_dim, over=over, operations=operations, **kw)
        self.ff = FeedForward(dim, operations=operations, **kw)
        self.attn2 = Attention(dim, head_dim, context_dim, over=over, operations=operations, **kw)
        self.norm1, self.norm2, self.norm3 = (operations.LayerNorm(dim, **kw) for _ in range(3))

    def forward(self, x: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Group norm, projection, `TransformerBlock` and a projection that starts at zero, around a shortcut. x: (B, F, H, W, C)."""

    over: str              # what attends
    images: str            # that the norm's statistics are taken over, (N, H, W, C)

    def __init__(self, dim: int, head_dim: int, groups: int, *, inner: int | None = None, context_dim: int | None = None,
                 operations=nn, **kw):
        super().__init__()
        pointwise = functools.partial(conv_as(F.linear, operations.Conv1d), kernel_size=1)
        linear, inner = operations.Linear if self.over == "space" else pointwise, inner or dim
        self.norm = operations.GroupNorm(groups, dim, eps=1e-6, **kw)
        self.proj_in = linear(dim, inner, **kw)
        block = TransformerBlock(inner, head_dim, context_dim, over=self.over, operations=operations, **kw)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = zero_init(linear(inner, dim, **kw))

    def forward(self, x: Tensor, *context: tuple[Tensor, Tensor]) -> Tensor:
        sizes = dict(zip("bfh", x.shape))
        h = self.norm(frames_as_images(x, self.images)).permute(0, 2, 3, 1)
        h = self.proj_in(rearrange(h, f"{self.images} -> b f (h w) c", **sizes).contiguous())
        return self.added(rearrange(self.transformer_blocks[0](h, *context), "b f (h w) c -> b f h w c", h=sizes["h"]), x)

    def added(self, h: Tensor, x: Tensor) -> Tensor:
        """The projection of h and the shortcut."""
        return x + self.proj_out(h)


class SpatialTransformer(Transformer):
    """Over the positions of each frame, with cross-attention to the context, whose keys and values (B, L, C) are given to forward."""

    over, images = "space", "(b f) h w c"


class TemporalTransformer(Transformer):
    """Over the frames of each position, self-attention only, no positional encoding; the norm's image is the whole clip."""

    over, images = "time", "b (f h) w c"


class TemporalConv(nn.Module):
    """Four times norm, SiLU, convolution over three frames; a residual branch that starts at zero. x: (B, F, H, W, C)."""

    def __init__(self, dim: int, groups: int, *, operations=nn, **kw):
        super().__init__()
        make_conv = conv_as(over_frames, operations.Conv3d)

        def layer(*middle: nn.Module) -> nn.Sequential:
            """Norm, SiLU, `middle`, convolution."""
            return nn.Sequential(operations.GroupNorm(groups, dim, **kw), nn.SiLU(), *middle,
                                 make_conv(dim, dim, (3, 1, 1), padding=(1, 0, 0), **kw))
        self.conv1 = layer()
        self.conv2, self.conv3, self.conv4 = (layer(nn.Identity()) for _ in range(3))    # official indices (a dropout was there)
        zero_init(self.conv4[-1])

    def forward(self, x: Tensor) -> Tensor:
        h = frames_as_images(x, "b f (h w) c")
        for norm, *_, conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = conv(silu(norm(h)))
        return x + rearrange(h, "b c f (h w) -> b f h w c", h=x.shape[2])


class ResBlock(nn.Module):
    """Residual block with the time embedding added between its two convolutions, then a `TemporalConv`. x: (B, F, H, W, C)."""

    def __init__(self, dim: int, out_dim: int, embed_dim: int, groups: int, *, operations=nn, **kw):
        super().__init__()
        make_conv = operations.Conv2d
        self.in_layers = nn.Sequential(operations.GroupNorm(groups, dim, **kw), nn.SiLU(), make_conv(dim, out_dim, 3, padding=1, **kw))
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(embed_dim, out_dim, **kw))
        self.out_layers = nn.Sequential(operations.GroupNorm(groups, out_dim, **kw), nn.SiLU(), nn.Identity(),
                                        zero_init(make_conv(out_dim, out_dim, 3, padding=1, **kw)))
        self.skip_connection = nn.Identity() if dim == out_dim else make_conv(dim, out_dim, 1, **kw)
        self.temopral_conv = TemporalConv(out_dim, groups, operations=operations, **kw)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        x = frames_as_images(x)
        h = self.in_layers[2](silu(self.in_layers[0](x)))
        h = h + repeat(self.emb_layers(embedding).to(h.dtype), "b c -> (b f) c 1 1", f=frames)
        h = self.skip_connection(x) + self.out_layers[3](silu(self.out_layers[0](h)))
        return self.temopral_conv(images_as_frames(h, batch))


def conv_stride_2(conv: nn.Module, x: Tensor) -> Tensor:
    """A 3 x 3 convolution of stride 2. Of a narrow x two columns are made and one is kept: the bfloat16 kernel of torch 2.14 is wrong
    on processors with AMX, now and then, where its output is one column wide."""
    return conv(x) if x.shape[-1] + 2 * conv.padding[1] > 4 else conv(F.pad(x, (0, 2)))[..., :1]


class Downsample(nn.Module):
    """Convolution of stride 2 in height and width. (B, F, H, W, C) -> (B, F, H/2, W/2, C)."""

    def __init__(self, dim: int, *, operations=nn, **kw):
        super().__init__()
        self.op = operations.Conv2d(dim, dim, 3, stride=2, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return images_as_frames(conv_stride_2(self.op, frames_as_images(x)), x.shape[0])


class Upsample(nn.Module):
    """Nearest neighbour x 2 in height and width, then a convolution. (B, F, H, W, C) -> (B, F, 2H, 2W, C)."""

    def __init__(self, dim: int, *, operations=nn, **kw):
        super().__init__()
        self.conv = operations.Conv2d(dim, dim, 3, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return images_as_frames(self.conv(F.interpolate(frames_as_images(x), scale_factor=2.0, mode="nearest")), x.shape[0])
