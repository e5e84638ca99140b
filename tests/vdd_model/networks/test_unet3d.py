"""UNet3D against the official TF-T2V code: keys, outputs, sub-block traces; and what it must do beside that."""
import json
import types
from dataclasses import replace

import pytest
import rounding
import torch
import torch.nn.functional as F
from conftest import golden_weights, official_shapes, without_zeros
from safetensors.torch import load_file
from torch import nn

from vdd_model.config import DiffusionConfig, UNetConfig, preset
from vdd_model.cpu import accelerate, onednn
from vdd_model.diffusion.sampler import ddim, guided
from vdd_model.diffusion.sampler import timesteps as spaced
from vdd_model.diffusion.schedule import make_schedule
from vdd_model.networks import adapter, layers
from vdd_model.networks.layers import Attention, SpatialTransformer, channels_last
from vdd_model.networks.model import DeblurModel
from vdd_model.networks.unet3d import SPATIAL_CONDITIONS, UNet3D

TINY = UNetConfig(dim=16, dim_mult=(1, 2), blocks_per_level=1, num_heads=2, head_dim=8, attn_scales=(0.5,),
                  context_dim=16, image_dim=16, norm_groups=8)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


class Golden:
    """One reference case: its inputs and outputs, and our network with the same weights."""

    def __init__(self, folder, name: str, spatial_conditions: tuple[str, ...] = ()):
        self.meta = json.loads((folder / "meta.json").read_text())[name]
        self.tensors = load_file(folder / f"{name}.io.safetensors")
        args = self.meta["args"]
        self.config = UNetConfig(
            dim=args["dim"], dim_mult=tuple(args["dim_mult"]), blocks_per_level=args["num_res_blocks"], num_heads=args["num_heads"],
            head_dim=args["head_dim"], attn_scales=tuple(args["attn_scales"]), context_dim=args["context_dim"],
            image_dim=args["y_dim"], num_tokens=args["num_tokens"], spatial_conditions=spatial_conditions)
        self.weights = golden_weights(UNet3D(self.config, device="meta"), self.meta["weight_seed"])

    def model(self, dtype: torch.dtype) -> UNet3D:
        model = UNet3D(self.config)
        model.load_state_dict(self.weights)
        return model.to(dtype).eval().requires_grad_(False)

    def input(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self.tensors[f"in.{name}"].to(dtype)

    def error(self, name: str, got: torch.Tensor, calls: int = 1) -> float:
        """In units of what is allowed. float64: 1e-8 relative; float32: what the operations of `calls` calls may cost (rounding.py)."""
        reference = self.tensors[f"out.{name}_f64"]
        if got.dtype == torch.float32:
            return rounding.error(got, reference, calls * rounding.operations(UNet3D(self.config, device="meta")))
        return ((got - reference).abs().max() / (1e-8 * reference.abs().max())).item()


@pytest.fixture(scope="module")
def golden(shared):
    return Golden(shared / "golden", "unet_t2v_small")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return without_zeros(UNet3D(TINY), 0.1)


def inputs(batch=1, frames=3, height=4, width=6, dtype=torch.float32, seed=0):
    """x, t, tokens, concat for TINY."""
    g = torch.Generator().manual_seed(seed)
    x, concat = (torch.randn(batch, c, frames, height, width, generator=g).to(dtype) for c in (4, 8))
    tokens = torch.randn(batch, 5, TINY.context_dim, generator=g).to(dtype)
    return x, torch.arange(batch) * 300 + 99, tokens, concat


@pytest.mark.parametrize("name, conditions, parameters", [("t2v", (), 1_416_504_900),
                                                          ("vcomposer", tuple(SPATIAL_CONDITIONS), 1_416_584_436)])
def test_full_size_keys_shapes_and_parameters(shared, name, conditions, parameters):
    model = UNet3D(UNetConfig(spatial_conditions=conditions), device="meta")
    assert {k: v.shape for k, v in model.state_dict().items()} == official_shapes(shared / "golden" / f"keys_tft2v_{name}.txt")
    assert sum(p.numel() for p in model.parameters()) == parameters


@DTYPES
def test_golden_outputs(golden, dtype):
    model = golden.model(dtype)
    x, t, y = golden.input("x", dtype), golden.input("t", torch.long), golden.input("y", dtype)
    image, zero = model.tokens(y, golden.input("image", dtype).squeeze(1)), golden.input("zero_y", dtype).expand(len(x), -1, -1)
    for name, given in (("y", (x, t, y)), ("y_image", (x, t, image)), ("y_swapped_t", (x, t.flip(0), y)),
                        ("single_frame", (x[:, :, :1], t, y)), ("noy_zero_y", (x, t, zero))):
        assert golden.error(f"out_{name}", model(*given)) <= 1, name


@DTYPES
def test_golden_guided_ddim(golden, dtype):
    model = golden.model(dtype)
    conditional, unconditional = (model.cache_context(golden.input(name, dtype)[:1]) for name in ("y", "y_neg"))
    v_model = guided(lambda x, t: model(x, t, conditional), lambda x, t: model(x, t, unconditional), 9.0)
    x = ddim(v_model, golden.input("x", dtype)[:1], make_schedule(DiffusionConfig()), spaced(10, spacing="vgen"), final_x0=False)
    assert golden.error("ddim10_cfg9", x, calls=20) <= 1


def test_golden_traces_of_every_block(golden):
    """float64 outputs of each sub-block; the references are stored in float32."""
    model, seen = golden.model(torch.float64), {}
    names = [key.removeprefix("out.trace.") for key in golden.tensors if key.startswith("out.trace.")]
    for name in names:                                                                # in-place layers may reuse the memory
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: seen.update({name: output.clone()}))
    tokens = model.tokens(golden.input("y", torch.float64)[:1], golden.input("image", torch.float64)[:1, 0])
    out = model(golden.input("x_trace", torch.float64), golden.input("t_trace", torch.long), tokens)
    assert len(names) > 30
    for name in names:
        reference = golden.tensors[f"out.trace.{name}"]
        rows = seen[name]                                                             # (B, F, H, W, C)
        got = rows.flatten(0, 1).permute(0, 3, 1, 2) if reference.ndim == 4 else rows.permute(0, 4, 1, 2, 3)
        assert (got - reference).abs().max() <= 2e-6 * reference.abs().max(), name
    assert (out - golden.tensors["out.trace_out"]).abs().max() < 1e-5


@DTYPES
def test_golden_spatial_conditions(shared, dtype):
    case = Golden(shared / "golden", "unet_vcomposer_small", tuple(SPATIAL_CONDITIONS))
    model = case.model(dtype)
    x, t, y = case.input("x", dtype), case.input("t", torch.long), case.input("y", dtype)
    pixels = {name: case.input(name, dtype) for name in ("depth", "motion", "masked", "sketch", "local_image_frame")}
    pixels["local_image"], pixels["single_sketch"] = pixels.pop("local_image_frame"), pixels["sketch"][:, :, :1]
    keys = {"depth": "depthmap", "masked": "mask"}
    concat = {name: model.spatial_condition(keys.get(name, name), p.expand(-1, -1, x.shape[2], -1, -1), x.shape[-2:])
              for name, p in pixels.items()}
    image_tokens = model.tokens(y, case.input("image", dtype).squeeze(1))
    outputs = {"y": (y,), **{f"y_{name}": (y, channels) for name, channels in concat.items()},
               "y_image_local_image": (image_tokens, concat["local_image"]), "all": (image_tokens, sum(concat.values()))}
    for name, given in outputs.items():
        assert case.error(f"out_{name}", model(x, t, *given)) <= 1, name
    reference = case.tensors["out.local_image_embedding_after"]                     # in float32
    layers = model.get_submodule("local_image_embedding"), model.get_submodule("local_image_embedding_after")
    assert rounding.error(concat["local_image"], reference, 4 * sum(map(rounding.operations, layers)), torch.float32) <= 1


def test_inference_and_training_paths_agree_with_autocast_too(tiny):
    """In-place layers and feed-forward in chunks, used without gradients only, change nothing; inputs stay as they were."""
    arguments = inputs(batch=2, frames=5, height=8, width=8)
    copies, trained = [a.clone() for a in arguments], tiny(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        half = tiny(*arguments)
        with torch.no_grad():
            inference = tiny(*arguments)
    half.float().square().mean().backward()
    tiny.zero_grad()
    assert max((got - trained).norm() / trained.norm() for got in (half, inference)) < 0.04
    with torch.no_grad():
        assert torch.allclose(tiny(*arguments), trained, rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, arguments, copies))


def test_size_that_does_not_fit_is_refused(tiny):
    pytest.raises(ValueError, tiny, *inputs(height=5)[:3]).match("multiples of 2")


def of_type(dtype: torch.dtype, network: UNet3D, arguments: tuple) -> tuple[UNet3D, list]:
    """The network's copy in another type, and arguments for it."""
    made = UNet3D(network.config, dtype=dtype)
    made.load_state_dict(network.state_dict())
    return made, [a.to(dtype) if a.is_floating_point() else a for a in arguments]


@pytest.mark.parametrize("batch", [1, 2])
def test_images_stay_channels_last_behind_norms(tiny, batch):
    """Of one clip, too: torch takes an axis of length 1 for a plain layout by its stride, and every layer would turn the images twice."""
    x, t, tokens, _ = inputs(batch)
    behind = []
    handles = [m.register_forward_hook(lambda m, given, made: behind.append(made)) for m in tiny.modules() if isinstance(m, nn.GroupNorm)]
    with torch.no_grad():
        tiny(x, t, tokens)
    for handle in handles:
        handle.remove()
    assert len(behind) > 20 and all(h.permute(0, 2, 3, 1).is_contiguous() for h in behind)


def test_float16_and_weights_with_channels_last(tiny):
    (half, given), (last, arguments) = (of_type(dtype, tiny, inputs(frames=4)) for dtype in (torch.float16, torch.float32))
    with torch.no_grad():
        reference, out = tiny(*arguments), half(*given)
        assert torch.allclose(channels_last(last)(*arguments), reference, atol=1e-5)
    assert out.dtype == torch.float16 and (out - reference).norm() < 0.005 * reference.norm()
    assert all(torch.equal(value, tiny.state_dict()[key]) for key, value in last.state_dict().items())


def test_gradient_checkpointing_gives_the_same_gradients(tiny):
    gradients = []
    for tiny.gradient_checkpointing in (True, False):
        tiny(*inputs(batch=2)).square().mean().backward()
        gradients.append({name: p.grad for name, p in tiny.named_parameters() if p.grad is not None})
        tiny.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(g, gradients[1][name], rtol=1e-4, atol=1e-7) for name, g in gradients[0].items())


def test_starts_as_zero():
    torch.manual_seed(0)
    model = UNet3D(TINY)
    out = model(*inputs())
    assert torch.equal(out, model.out[2].bias.view(1, -1, 1, 1, 1).expand_as(out))
    for name, layer in model.named_modules():
        if name.endswith(("proj_out", "conv4.3", "out_layers.3")):
            assert not any(p.any() for p in layer.parameters()), name


def test_host_operations_are_used():
    """Every layer with parameters comes from the host's namespace, and the host's forward is what runs."""
    calls = []

    def host(cls):
        return type("Host", (cls,), {"forward": lambda self, *args, **keys: calls.append(self) or cls.forward(self, *args, **keys)})
    names = ("Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm")
    operations = types.SimpleNamespace(**{name: host(getattr(nn, name)) for name in names})
    config = UNetConfig(**{**vars(TINY), "spatial_conditions": ("local_image",)})
    model = UNet3D(config, operations=operations)
    x, t, tokens, _ = inputs(frames=2, height=8, width=8)
    with torch.no_grad():
        concat = model.spatial_condition("local_image", torch.rand(1, 3, 2, 64, 64))
        model(x, t, model.tokens(tokens, torch.rand(1, 16)), concat)
    leaves = {m for m in model.modules() if next(m.parameters(recurse=False), None) is not None}
    assert all(isinstance(m, tuple(vars(operations).values())) for m in leaves)
    assert leaves == set(calls)


def test_packed_golden(golden, monkeypatch):
    monkeypatch.setattr(onednn, "_WORTH_PACKING", 0)
    monkeypatch.setattr(onednn, "_WORTH_FILTERING", 0)
    model = accelerate(golden.model(torch.float32), packed=True)
    packed = [m for m in model.modules() if getattr(m, "packed", ())]
    if not packed:
        pytest.skip("oneDNN does not run on this processor")
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    assert len(packed) == len(layers)
    x, t, y = golden.input("x"), golden.input("t", torch.long), golden.input("y")
    with torch.no_grad():
        assert golden.error("out_y_image", model(x, t, model.tokens(y, golden.input("image").squeeze(1)))) <= 1
        assert golden.error("out_single_frame", model(x[:, :, :1], t, y)) <= 1
    pytest.raises(RuntimeError, model, x, t, y).match("packed for inference")


def test_fused_and_packed_in_bfloat16(tiny):
    """As near to float32 as weights and results of every layer in bfloat16 can be, plain, fused and packed."""
    half, given = of_type(torch.bfloat16, tiny, inputs(batch=2, frames=4))
    count = 2 * len(rounding.layers(half))
    with torch.no_grad():
        reference = tiny(*(a.float() if a.is_floating_point() else a for a in given))
        half.requires_grad_(False)
        with torch.enable_grad():
            assert rounding.error(half(*given), reference, count) <= 1
        for model in (half, accelerate(half, packed=False), accelerate(half, packed=True)):
            assert rounding.error(model(*given), reference, count) <= 1


def test_filtered_convolutions_in_bfloat16():
    """In layers wide enough for Winograd's filtering the whole network stays as near to float32 as the results of every layer in bfloat16
    can be, and its sums in between."""
    config = UNetConfig(**{**vars(TINY), "dim": 192, "norm_groups": 32, "dim_mult": (1,), "attn_scales": (1.0,)})
    exact = UNet3D(config)
    exact.load_state_dict({name: w.bfloat16().float() for name, w in golden_weights(exact, seed=5).items()})
    half, given = of_type(torch.bfloat16, exact, inputs(frames=6, height=16, width=16))
    with torch.no_grad():
        reference = exact(*(a.float() if a.is_floating_point() else a for a in given))
        count = 2 * len(rounding.layers(half))
        packed = accelerate(half, packed=True)
        if not any(len(getattr(m, "packed", ())) == 16 for m in packed.modules()):
            pytest.skip("oneDNN has no bfloat16 on this processor")
        assert rounding.error(packed(*given), reference, count) <= 1


@pytest.mark.parametrize("diffusion", [DiffusionConfig(num_timesteps=1200), DiffusionConfig(zero_terminal_snr=False)])
def test_an_estimate_is_standardised_by_the_models_own_schedule(diffusion):
    """A silent network's answer is the posterior mean of that schedule; it is another one of the official schedule."""
    with torch.device("meta"):
        whole = DeblurModel(replace(preset("small"), diffusion=diffusion))
    schedule = make_schedule(diffusion)
    assert torch.equal(whole.unet.schedule.alpha_bar, schedule.alpha_bar)
    model = UNet3D(replace(TINY, estimate=True), diffusion=diffusion)
    x, _, tokens, concat = inputs()
    concat = concat * 0.3
    with torch.no_grad():
        for p in model.out[-1].parameters():
            p.zero_()
        v = model(x, torch.tensor([diffusion.num_timesteps - 1]), tokens, concat)
    mean, variance = concat[:, :4], (2 * concat[:, 4:]).exp()
    a, s = schedule.at(torch.tensor([-1]), mean)
    x0 = mean + a * variance / (a**2 * variance + s**2) * (x - a * mean)
    assert torch.allclose(a * x - s * v, x0, atol=1e-4)


def test_keys_and_values_only_once_per_clip(tiny, monkeypatch):
    calls, original = [], Attention.keys_values
    monkeypatch.setattr(Attention, "keys_values", lambda self, c: calls.append(self) or original(self, c))
    x, t, tokens, concat = inputs()
    with torch.no_grad():
        cache = tiny.cache_context(tokens)
        for step in (999, 500):
            tiny(x, torch.tensor([step]), cache, concat)
    crossing = [layer.transformer_blocks[0].attn2 for layer in tiny.modules() if isinstance(layer, SpatialTransformer)]
    assert len(cache) == len(crossing) and all(calls.count(layer) == 1 for layer in crossing)


@pytest.mark.parametrize(("limit", "calls"), [(1, 7), (3, 3), (7, 1), (None, 1)])
def test_a_long_batch_is_cut(limit, calls, monkeypatch):
    """CUDA's kernels take a limited batch; the pieces are bit for bit the whole."""
    q, k, v = (torch.randn(7, 2, 5, 8) for _ in range(3))
    whole, seen = F.scaled_dot_product_attention(q, k, v), []
    torchs = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *part: seen.append(len(part[0])) or torchs(*part))
    assert torch.equal(layers.attention(q, k, v, limit), whole)
    assert Attention.attend is adapter.TemporalTransformer.attend is layers.attention       # which knows the device's limit
    assert len(seen) == calls and max(seen) <= (limit or 7) and sum(seen) == 7
