"""Time one call of somebody else's 3D-UNet of the same widths; `benchmarks.unet` runs this file in another environment and reads its JSON.

    python benchmarks/unet_reference.py diffusers '{"frames": 16, "height": 32, "width": 32, "dtype": "float32", ...}'
    python benchmarks/unet_reference.py official  '{..., "vgen": "/path/to/VGen"}'

official: VGen's own module from a checkout, with stand-ins for packages that it imports and does not need here; its attention, xformers',
is torch's. With "keep_memory" the C library keeps freed memory as it does for this project's command line.
"""
from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def diffusers_unet(case: dict) -> nn.Module:
    """diffusers' UNet3DConditionModel (the ModelScope text-to-video layout) with 12 input channels."""
    from diffusers import UNet3DConditionModel

    dim, mult = case["dim"], case["dim_mult"]
    attention = [0.5**level in case["attn_scales"] for level in range(len(mult))]
    return UNet3DConditionModel(
        in_channels=12, out_channels=4, block_out_channels=tuple(dim * m for m in mult), layers_per_block=case["blocks_per_level"],
        down_block_types=tuple("CrossAttnDownBlock3D" if a else "DownBlock3D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock3D" if a else "UpBlock3D" for a in reversed(attention)),
        cross_attention_dim=case["context_dim"], attention_head_dim=case["head_dim"], norm_num_groups=32)


def official_unet(case: dict) -> nn.Module:
    """VGen's UNetSD_TFT2V from the checkout at case["vgen"]."""
    def module(name: str, **members) -> types.ModuleType:
        made = types.ModuleType(name)
        vars(made).update(members)
        sys.modules[name] = made
        return made

    def attention(q, k, v, attn_bias=None, op=None):
        return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]      # 4-D: torch's fused kernel

    class Registry:
        def register_class(self, *_, **__):
            return lambda cls: cls

    ops = module("xformers.ops", memory_efficient_attention=attention)
    module("xformers", ops=ops)
    for name in ("fairscale", "fairscale.nn", "open_clip"):
        module(name)
    module("fairscale.nn.checkpoint", checkpoint_wrapper=lambda layer: layer)
    module("rotary_embedding_torch", RotaryEmbedding=nn.Identity)
    registry = Registry()
    for name in ("utils", "tools", "tools.modules", "tools.modules.unet"):       # the packages' own __init__ import the whole project
        module(name, __path__=[f"{case['vgen']}/{name.replace('.', '/')}"])
    module("utils.registry_class", MODEL=registry)
    from tools.modules.unet.unet_tf2tv import UNetSD_TFT2V

    config = types.SimpleNamespace(video_compositions=["text", "image"], resolution=[256, 256])
    return UNetSD_TFT2V(
        config=config, in_dim=4, dim=case["dim"], y_dim=case["context_dim"], context_dim=case["context_dim"], out_dim=4,
        dim_mult=list(case["dim_mult"]), num_heads=case["num_heads"], head_dim=case["head_dim"], num_res_blocks=case["blocks_per_level"],
        attn_scales=list(case["attn_scales"]), dropout=0.1, use_checkpoint=False, training=False)


@torch.no_grad()
def main() -> None:
    """Print {"parameters", "flops"} of the case given as JSON, then, for every line read, the seconds of one call."""
    name, case = sys.argv[1], json.loads(sys.argv[2])
    device, dtype = torch.device(case["device"]), getattr(torch, case["dtype"])
    if case.get("threads"):
        torch.set_num_threads(case["threads"])
    if case.get("keep_memory"):
        sys.path.append(str(Path(__file__).resolve().parents[1]))
        from vdd_model.cpu.allocator import keep_freed_memory
        keep_freed_memory()
    clock = time.process_time if case.get("processor_time") else time.perf_counter
    make = {"diffusers": diffusers_unet, "official": official_unet}[name]
    with torch.device("meta"):
        model = make(case).eval().requires_grad_(False)

    model = model.to(dtype).to_empty(device=device)
    for p in model.parameters():
        p.uniform_(-0.02, 0.02)
    if name == "official" and dtype != torch.float32:                            # its time embedding is float32: cast where it enters
        model.time_embed.register_forward_pre_hook(lambda _, args: (args[0].to(dtype),))

    def call() -> torch.Tensor:
        channels = 12 if name == "diffusers" else 4
        x = torch.randn(1, channels, case["frames"], case["height"], case["width"], device=device, dtype=dtype)
        context = torch.randn(1, case["tokens"], case["context_dim"], device=device, dtype=dtype)
        t = torch.full((1,), 500, device=device)
        return model(x, t, context).sample if name == "diffusers" else model(x, t, y=context)

    with FlopCounterMode(display=False) as counter:                              # the warm-up call
        call()
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "flops": counter.get_total_flops()}), flush=True)
    for _ in sys.stdin:
        start = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(clock() - start, flush=True)


if __name__ == "__main__":
    main()
