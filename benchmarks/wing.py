"""What each part of vdd_model/cpu buys: the whole wing beside the wing without that part, and beside the plain network.

    python -m benchmarks.wing [--dtypes float32 bfloat16] [--parts strips ...] [--size 256 256] [--decoded 640 384] [--threads 1]

Calls of the UNet: one as wide as tft2v's (its first two levels, one block each: the same layers in the same proportions, a tenth of the
memory), random weights. Kept memory and decoding: the shipped model with its fidelity branch. Variants take turns;
seconds are the processor's, so that what else runs does not count. "x all": how much longer it takes without the part.
"""
from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from benchmarks import common
from vdd_model.config import UNetConfig
from vdd_model.cpu import accelerate, blocks, onednn
from vdd_model.networks import layers
from vdd_model.networks.unet3d import UNet3D

ATTENTION, PACKED, MEMORY, STRIPS = "attention in plain steps", "packed weights", "kept memory", "strips"        # the first: of bfloat16
PARTS = {
    "Winograd's filtering": lambda: [mock.patch.object(onednn, "_can_filter", lambda layer: False)],
    "feed-forward by rows": lambda: [mock.patch.object(blocks, "FEED_FORWARD_ROWS", 1 << 40)],
    ATTENTION: lambda: [mock.patch.object(kind, "attend", staticmethod(layers.attention))
                                         for kind in (blocks.Attention, blocks.AdapterTransformer)],
}


@contextlib.contextmanager
def without(part: str) -> Iterator[None]:
    """Inside, `accelerate` and what it has accelerated do without this part of the wing."""
    with contextlib.ExitStack() as stack:
        for patch in PARTS[part]() if part else ():
            stack.enter_context(patch)
        yield


def unet(dim: int, dtype: torch.dtype) -> UNet3D:
    """The first two levels of tft2v's UNet, random weights."""
    config = UNetConfig(dim=dim, dim_mult=(1, 2), blocks_per_level=1, attn_scales=(1.0, 0.5))
    model = UNet3D(config, device="meta", dtype=dtype).to_empty(device="cpu").eval().requires_grad_(False)
    for p in model.parameters():
        p.uniform_(-0.02, 0.02)
    return model


def call(model: UNet3D, frames: int, width: int, height: int) -> Callable[[], torch.Tensor]:
    """One call at a factor of 8, the context's keys and values made before."""
    generator, dtype = torch.Generator().manual_seed(0), model.out[-1].weight.dtype
    x = torch.randn(1, 4, frames, height // 8, width // 8, generator=generator).to(dtype)
    context = model.cache_context(torch.randn(1, 81, model.config.context_dim, generator=generator).to(dtype))
    return lambda: model(x, torch.tensor([500]), context)


def rows(variants: dict[str, Callable[[], object]], repeats: int, **columns: str) -> list[dict]:
    """The fastest processor time of each, taking turns after a call to warm up; the ratios are to the one called "all"."""
    found = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, run in variants.items():
            started = time.process_time()
            run()
            found[name] += [time.process_time() - started] if turn else []
    return [{**columns, "variant": name, "processor s": min(s), "x all": min(s) / min(found["all"])} for name, s in found.items()]


def unet_rows(name: str, parts: list[str], dim: int, size: tuple[int, int], frames: int, repeats: int) -> list[dict]:
    """Plain, fused but not packed, all, and all but each part."""
    plain = unet(dim, common.DTYPES[name])
    variants = {"plain": call(plain, frames, *size)} if PACKED in parts else {}

    def add(title: str, part: str = "", packed: bool = True) -> None:
        """A copy, accelerated and run without `part`."""
        with without(part):
            run = call(accelerate(copy.deepcopy(plain), packed), frames, *size)

        def patched() -> torch.Tensor:
            """`run` as it was accelerated."""
            with without(part):
                return run()
        variants[title] = patched

    add("all")
    for part in parts:
        if part == PACKED or part in PARTS and (name == "bfloat16" or part != ATTENTION):
            add(f"without {part}", part if part in PARTS else "", part != PACKED)
    return rows(variants, repeats, type=name)


def decoding_rows(name: str, size: tuple[int, int], frames: int, repeats: int) -> list[dict]:
    """The shipped model's decoder with its fidelity branch, accelerated and not: strips are all that the wing does there."""
    from vdd_model.checkpoint.store import load
    from vdd_model.networks.fidelity import BlurGuide
    width, height = size
    model = load("small", "cpu", common.DTYPES[name])
    fast = accelerate(copy.deepcopy(model))
    pixels = torch.rand(1, 3, frames, height, width).mul_(2).sub_(1)
    code = model.encode_blurred(pixels)
    guide = BlurGuide(pixels, code.features)
    return rows({"all": lambda: fast.decode(code.latents, guide), "without strips": lambda: model.decode(code.latents, guide)}, repeats,
                type=name)


RUN = """import json, sys, time, torch
from benchmarks import common
from vdd_model import Deblurrer
kept, dtype, frames, size, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
if kept:
    common.as_command_line()
deblurrer, clip = Deblurrer("small", device="cpu", dtype=common.DTYPES[dtype]), torch.rand(frames, size[1], size[0], 3)
deblurrer.deblur(clip[:4], prior="none", scenes="off", repeats="off")
started = time.process_time()
deblurrer.deblur(clip, prior="none", scenes="off", repeats="off")
print(time.process_time() - started)
"""


def memory_rows(name: str, size: tuple[int, int], frames: int) -> list[dict]:
    """A clip by the shipped model, one step, freed memory kept or given back: in four processes, the better of two each."""
    times: dict[bool, float] = {}
    for kept in (True, False, False, True):
        given = json.dumps([kept, name, frames, size, torch.get_num_threads()])
        done = subprocess.run([sys.executable, "-c", RUN, given], check=True, capture_output=True, text=True)
        times[kept] = min(times.get(kept, float("inf")), float(done.stdout))
    return [{"type": name, "variant": title, "processor s": times[kept], "x all": times[kept] / times[True]}
            for title, kept in (("all", True), ("without kept memory", False))]


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = common.parser(__doc__)
    parser.set_defaults(repeats=2)
    parser.add_argument("--dtypes", nargs="+", default=list(common.computed_types()), choices=["float32", "bfloat16"])
    every = [*PARTS, PACKED, MEMORY, STRIPS]
    parser.add_argument("--parts", nargs="+", default=every, choices=every)
    parser.add_argument("--decoded", type=int, nargs=2, default=(640, 384), metavar=("WIDTH", "HEIGHT"), help="frames that are decoded")
    parser.add_argument("--dim", type=int, default=320)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args(argv)
    torch.set_num_threads(a.threads)
    size, tables = tuple(a.size), {"a call of the UNet": [], "kept memory": [], "decoding": []}
    for name in a.dtypes:
        if STRIPS in a.parts:
            tables["decoding"] += decoding_rows(name, tuple(a.decoded), 1, a.repeats)
        if {PACKED, *PARTS} & {*a.parts}:
            tables["a call of the UNet"] += unet_rows(name, a.parts, a.dim, size, a.frames, a.repeats)
        if MEMORY in a.parts:
            tables["kept memory"] += memory_rows(name, size, a.frames)
    tables = {title: found for title, found in tables.items() if found}
    common.write("wing", tables, {"call": f"{a.frames} x {size[0]} x {size[1]}", "decoded": "1 x {} x {}".format(*a.decoded)}, folder=a.out)


if __name__ == "__main__":
    main()
