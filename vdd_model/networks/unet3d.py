"""UNet3D: the TF-T2V denoiser (VGen `UNetSD_TFT2V`), key for key. It predicts v from noisy latents, a time, context tokens and the
8 concat channels through which every spatial condition arrives."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import DiffusionConfig, UNetConfig
from ..diffusion.schedule import make_schedule, precondition
from .layers import Downsample, ResBlock, SpatialTransformer, TemporalTransformer, Upsample, frames_as_images, images_as_frames, silu

# name: (pixel channels, official name of the convolutions, official name of the transformer)
SPATIAL_CONDITIONS: dict[str, tuple[int, str, str]] = {
    "depthmap": (1, "depth_embedding", "depth_embedding_after"),
    "motion": (2, "motion_embedding", "motion_embedding_after"),
    "mask": (4, "masked_embedding", "mask_embedding_after"),
    "sketch": (1, "sketch_embedding", "sketch_embedding_after"),
    "single_sketch": (1, "single_sketch_embedding", "single_sketch_embedding_after"),
    "local_image": (3, "local_image_embedding", "local_image_embedding_after"),
}


class ContextCache(dict):
    """Keys and values (B, L, C) of the context tokens, by the spatial transformer that asks them; constant over frames and steps."""


def condition_encoder(channels: int, out_channels: int, *, operations=nn, **kw) -> nn.Sequential:
    """Three convolutions; the gap in the indices is a pooling (`UNet3D.spatial_condition`)."""
    inner, conv = 4 * out_channels, operations.Conv2d
    return nn.Sequential(conv(channels, inner, 3, padding=1, **kw), nn.SiLU(), nn.Identity(),
                         conv(inner, inner, 3, stride=2, padding=1, **kw), nn.SiLU(),
                         conv(inner, out_channels, 3, stride=2, padding=1, **kw))


class ConditionTransformer(nn.Module):
    """One pre-norm transformer layer over the frames of each position, two heads as wide as the input; its feed-forward has no norm.
    x: (N, F, C)."""

    def __init__(self, dim: int, *, operations=nn, **kw):
        super().__init__()
        linear = operations.Linear
        attention = nn.ModuleDict({"to_qkv": linear(dim, 6 * dim, bias=False, **kw), "to_out": nn.Sequential(linear(2 * dim, dim, **kw))})
        net = nn.Sequential(nn.Sequential(linear(dim, 4 * dim, **kw), nn.GELU()), nn.Identity(), linear(4 * dim, dim, **kw))
        self.layers = nn.ModuleList([nn.ModuleList([nn.ModuleDict({"norm": operations.LayerNorm(dim, **kw), "fn": attention}),
                                                    nn.ModuleDict({"net": net})])])

    def forward(self, x: Tensor) -> Tensor:
        attention, feed_forward = self.layers[0]
        q, k, v = rearrange(attention["fn"]["to_qkv"](attention["norm"](x)), "n f (qkv h d) -> qkv n h f d", qkv=3, h=2)
        x = x + attention["fn"]["to_out"](rearrange(F.scaled_dot_product_attention(q, k, v), "n h f d -> n f (h d)"))
        return x + feed_forward["net"](x)


def sinusoidal_embedding(t: Tensor, dim: int) -> Tensor:
    """(B,) times -> (B, dim): cosines, then sines, of t at dim/2 frequencies from 1 down to 1/10000 (excluded), in float32."""
    half = dim // 2
    frequencies = torch.pow(10000, -torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, dim % 2))


class UNet3D(nn.Module):
    """The 3D-UNet of TF-T2V.

    config: widths and levels; the default is the official full-size model.
    diffusion: the noise schedule, which a network with `config.estimate` has to know (default: the official one).
    operations: namespace with Linear, Conv1d, Conv2d, Conv3d, GroupNorm and LayerNorm (default `torch.nn`).
    gradient_checkpointing: set it to True to recompute each block in the backward pass and save memory.
    tick: a function to call before each block, to report progress or, by raising, to cancel; None for none.
    """

    def __init__(self, config: UNetConfig, *, diffusion: DiffusionConfig | None = None, operations=nn,
                 dtype: torch.dtype | None = None, device=None):
        super().__init__()
        kw = {"operations": operations, "dtype": dtype, "device": device}
        leaf = {"dtype": dtype, "device": device}
        self.config = config
        self.gradient_checkpointing, self.tick = False, None
        self.schedule = make_schedule(diffusion or DiffusionConfig())          # no buffer: see there
        dim, groups, embed_dim = config.dim, config.norm_groups, 4 * config.dim

        self.time_embed = nn.Sequential(operations.Linear(dim, embed_dim, **leaf), nn.SiLU(),
                                        operations.Linear(embed_dim, embed_dim, **leaf))
        self.pre_image_condition = nn.Sequential(operations.Linear(config.image_dim, config.context_dim, **leaf), nn.SiLU(),
                                                 operations.Linear(config.context_dim, config.context_dim * config.num_tokens, **leaf))
        for name in config.spatial_conditions:
            channels, encoder, transformer = SPATIAL_CONDITIONS[name]
            self.add_module(encoder, condition_encoder(channels, config.concat_channels, **kw))
            self.add_module(transformer, ConditionTransformer(config.concat_channels, **kw))

        def block(width: int, out_width: int, attends: bool) -> nn.ModuleList:
            """A residual block, at the configured scales with a spatial and a temporal transformer behind it."""
            layers = [SpatialTransformer(out_width, config.head_dim, groups, context_dim=config.context_dim, **kw),
                      TemporalTransformer(out_width, config.head_dim, groups, **kw)] if attends else []
            return nn.ModuleList([ResBlock(width, out_width, embed_dim, groups, **kw), *layers])

        widths = [dim * m for m in config.dim_mult]
        self.input_blocks = nn.ModuleList([nn.ModuleList([
            operations.Conv2d(config.in_channels, dim, 3, padding=1, **leaf),
            TemporalTransformer(dim, config.head_dim, groups, inner=config.num_heads * config.head_dim, **kw)])])
        width, skips = dim, [dim]
        for level, out_width in enumerate(widths):
            for _ in range(config.blocks_per_level):
                self.input_blocks.append(block(width, out_width, 0.5**level in config.attn_scales))
                width = out_width
                skips.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(Downsample(width, **kw))
                skips.append(width)

        self.middle_block = block(width, width, True).append(ResBlock(width, width, embed_dim, groups, **kw))

        self.output_blocks = nn.ModuleList()
        for level, out_width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks_per_level + 1):
                self.output_blocks.append(block(width + skips.pop(), out_width, 0.5**level in config.attn_scales))
                width = out_width
            if level > 0:
                self.output_blocks[-1].append(Upsample(width, **kw))

        self.out = nn.Sequential(operations.GroupNorm(groups, width, **leaf), nn.SiLU(),
                                 operations.Conv2d(width, config.latent_channels, 3, padding=1, **leaf))
        nn.init.zeros_(self.out[-1].weight)

    def _apply(self, fn, recurse: bool = True) -> UNet3D:
        """Where the weights go, the schedule goes, or every call would wait for a GPU."""
        super()._apply(fn, recurse)
        if (device := self.out[-1].weight.device).type != "meta":
            self.schedule = self.schedule.to(device)
        return self

    def tokens(self, text: Tensor, image: Tensor) -> Tensor:
        """Context tokens (B, L + num_tokens, C): text (B, L, C), the tokens of an image's semantic vector (B, image_dim) appended."""
        tokens = rearrange(self.pre_image_condition(image), "b (l c) -> b l c", c=self.config.context_dim)
        return torch.cat([text.to(tokens.dtype), tokens], 1)

    def cache_context(self, tokens: Tensor) -> ContextCache:
        """What every cross-attention needs of the tokens (B, L, C): compute it once per clip and give it to each call."""
        attending = [layer for layer in self.modules() if isinstance(layer, SpatialTransformer)]
        return ContextCache((layer, layer.transformer_blocks[0].attn2.keys_values(tokens)) for layer in attending)

    def spatial_condition(self, name: str, pixels: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Concat channels (B, 8, F, h, w) of one of `config.spatial_conditions`; the sum over several is their combination.

        pixels: (B, C, F, H, W), C as in SPATIAL_CONDITIONS. size: (h, w) of the latents, default H/8, W/8.
        """
        encoder, transformer = map(self.get_submodule, SPATIAL_CONDITIONS[name][1:])
        height, width = size or (pixels.shape[-2] // 8, pixels.shape[-1] // 8)
        x = encoder[:2](rearrange(pixels, "b c f h w -> (b f) c h w"))
        x = encoder[3:](F.adaptive_avg_pool2d(x, (4 * height, 4 * width)))
        x = transformer(rearrange(x, "(b f) c h w -> (b h w) f c", b=len(pixels)))
        return rearrange(x, "(b h w) f c -> b c f h w", b=len(pixels), h=height)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | ContextCache, concat: Tensor | None = None) -> Tensor:
        """Predict v.

        x: noisy latents (B, 4, F, h, w), h and w multiples of `config.divisor`, any F. t: (B,) times 0..999, integer or float.
        context: tokens (B, L, C) as `tokens` gives them, or their `cache_context`. concat: (B, 8, F, h, w), None for zeros; with
        `config.estimate` it begins with mean and log std of x0, and the layers see and predict the standardised rest (`precondition`).
        Returns (B, 4, F, h, w). Raises ValueError when h or w does not fit.
        """
        batch, _, frames, height, width = x.shape
        if height % self.config.divisor or width % self.config.divisor:
            raise ValueError(f"latents of {height} x {width}: height and width must be multiples of {self.config.divisor}")
        dtype, v_mean = x.dtype, None
        if self.config.estimate and concat is not None:
            mean, log_std = concat[:, :2 * self.config.latent_channels].chunk(2, dim=1)
            r_t, v_mean, v_scale = precondition(self.schedule, x, t, mean, log_std)
            x = r_t.to(dtype)
        if concat is None:
            concat = x.new_zeros(batch, self.config.concat_channels, frames, height, width)
        if not isinstance(context, ContextCache):
            context = self.cache_context(context)
        embedding = self.time_embed(sinusoidal_embedding(t, self.config.dim).to(x.dtype))

        h = rearrange(torch.cat([x, concat], 1), "b c f h w -> b f h w c").contiguous()
        skips = []
        for block in self.input_blocks:
            h = self._run(block, h, embedding, context)
            skips.append(h)
        h = self._run(self.middle_block, h, embedding, context)
        for block in self.output_blocks:
            h = self._run(block, h, embedding, context, skips.pop())
        h = self.out[2](silu(self.out[0](frames_as_images(h))))
        v = rearrange(h, "(b f) c h w -> b c f h w", b=batch)
        return v.contiguous() if v_mean is None else (v_mean + v_scale * v).to(dtype)

    @property
    def num_blocks(self) -> int:
        """How often `tick` is called for one call of the network."""
        return len(self.input_blocks) + 1 + len(self.output_blocks)

    def _run(self, block: nn.Module, x: Tensor, embedding: Tensor, context: ContextCache, skip: Tensor | None = None) -> Tensor:
        if not torch.compiler.is_compiling() and self.tick is not None:           # in this order a compiled graph knows nothing of it
            self.tick()
        x = x if skip is None else torch.cat([x, skip], -1)
        for layer in block if isinstance(block, nn.ModuleList) else (block,):
            arguments = (embedding,) if isinstance(layer, ResBlock) else (context[layer],) if isinstance(layer, SpatialTransformer) else ()
            if isinstance(layer, nn.Conv2d):
                x = images_as_frames(layer(frames_as_images(x)), x.shape[0])
            elif self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, *arguments, use_reentrant=False)
            else:
                x = layer(x, *arguments)
        return x
