"""What the host is asked to keep free, against what is alive at the peak of a run on torch's meta device (attention without its scores)."""
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vdd_model.config import PRESETS

HEIGHT, WIDTH = 384, 640
HALF = torch.float16


class Peak(TorchDispatchMode):
    """Bytes that are alive at most, those of the `known` tensors not counted."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return out


def meta(*shape: int, dtype=HALF) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@pytest.fixture()
def peak(pack, monkeypatch):
    """peak(function, module, *inputs) -> bytes."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, **_: torch.empty_like(q))
    monkeypatch.setattr(pack.module("vdd_model.diffusion.schedule").Schedule, "at",               # its tables have values
                        lambda self, t, like: 2 * [like.new_empty(len(t), *[1] * (like.ndim - 1))])

    def measure(function, module, *inputs) -> int:
        with torch.no_grad(), Peak([*module.parameters(), *inputs]) as mode:
            function(*inputs)
        return mode.bytes

    return measure


@pytest.fixture(params=list(PRESETS))
def config(pack, request):
    return pack.module("vdd_model.config").preset(request.param)


@pytest.fixture()
def vae(pack, config):
    """The host's VAE object around a model on the meta device."""
    native = pack.module("nodes.native")
    with torch.device("meta"):
        model = pack.module("vdd_model.networks.model").DeblurModel(config)
    model.unet = None
    model.half()
    return native._video_vae(model, native.Decoder(SimpleNamespace(config=config, dtype=HALF), model))


def test_sampling(pack, config, peak):
    native, factor = pack.module("nodes.native"), config.vae.factor
    with torch.device("meta"):
        unet = native.HostUNet(config).half()
    shape = (1, 4, 4, HEIGHT // factor, WIDTH // factor)
    inputs = [meta(*shape), meta(1, dtype=torch.float32), meta(1, config.null_tokens, config.unet.context_dim),
              meta(*shape), meta(1, 1, 4, config.unet.image_dim)]
    found = peak(lambda x, t, text, blur, image: unet(x, t, text, vdd_blur=blur, vdd_image=image), unet, *inputs)
    positions = shape[2] * shape[3] * shape[4]
    host = positions * HALF.itemsize * 0.01 * native.memory_usage_factor(config) * 2**20       # comfy.model_base.memory_required
    assert 1.1 < host / found < 2


@pytest.mark.parametrize("frames", [1, 9])
def test_encoding_and_decoding(config, vae, peak, frames):
    factor, model = config.vae.factor, vae.first_stage_model
    for function, estimate, shape in (
            (model.encode, vae.memory_used_encode, (1, 3, frames, HEIGHT, WIDTH)),
            (model.decode, vae.memory_used_decode, (1, config.vae.latent_channels, frames, HEIGHT // factor, WIDTH // factor))):
        given = meta(*shape)
        found = peak(function, model, given) + (given.nbytes if shape[1] == 3 else 0)
        assert 1.1 < estimate(shape, HALF) / found < 2


@pytest.mark.parametrize(("height", "width"), [(256, 256), (HEIGHT - 1, WIDTH), (2159, 3840)])
def test_encoding_a_clip(pack, config, peak, height, width):
    """Encoder 2 on one chunk of frames, as Encode Blurred Clip runs it, from the frames on."""
    native, inference = pack.module("nodes.native"), pack.module("vdd_model.inference.window")
    with torch.device("meta"):
        model = pack.module("vdd_model.networks.model").DeblurModel(config).half()
    tiling = pack.module("vdd_model.inference.tiles").make_tiling(None, None, height, width, config.divisor)
    frames = [meta(height, width, 3, dtype=torch.float32) for _ in range(native.chunk_of(tiling, height, width))]

    def encode(*frames):
        pixels = inference.to_pixels(frames, config.divisor, torch.device("meta"))
        return inference.encode_frames(model, lambda tile: model.encode_each(tile.of(pixels)).latents, pixels.shape[2:], tiling)

    assert 1.05 < native.encode_memory(config, tiling, height, width, HALF) / peak(encode, model, *frames) < 2


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("fidelity", [0.0, 1.0])
def test_decoding_with_the_blurred_frames(pack, config, vae, peak, frames, fidelity):
    decode, factor, model = pack.module("vdd_model.inference.window").decode_frames, config.vae.factor, vae.vdd_decoder.model
    pixels = meta(1, 3, frames + 2, HEIGHT, WIDTH, dtype=torch.float32)                  # both neighbours of the chunk
    latents = meta(1, 4, frames, HEIGHT // factor, WIDTH // factor)

    def decoded(z, x):
        codes = pack.module("vdd_model.inference.codes").Codes(
            model, lambda numbers, tile: x[:, :, numbers.start:numbers.stop], None, (HEIGHT, WIDTH))
        return decode(model, codes.source(z, range(1, frames + 1), range(frames + 2), fidelity), (frames, HEIGHT, WIDTH))

    found = peak(decoded, model, latents, pixels)
    assert 1.1 < pack.module("nodes.native").decode_memory(config, frames, HEIGHT, WIDTH, HALF, fidelity > 0) / found < 2


def test_decoded_frames_are_held_once(pack, peak):
    """Frames of the result cost what they are, not a list of chunks and their concatenation."""
    native = pack.module("nodes.native")

    def decode(frames: int) -> int:
        return peak(lambda z: native._by_frames(lambda part: part.repeat(1, 1, 8, 8), z), torch.nn.Identity(), meta(1, 3, frames, 16, 16))

    frame = 3 * 128 * 128 * HALF.itemsize
    assert decode(64) == (64 + native.FRAMES_PER_CHUNK) * frame


def test_the_decoding_node_holds_its_result_once(pack, vae_and_encoders):
    vae, _ = vae_and_encoders
    latent = {"samples": torch.zeros(1, 4, 512, 4, 4)}
    with Peak([*vae.vdd_decoder.model.parameters(), latent["samples"]]) as mode:
        found = pack.nodes["VDDDecode"].execute(latent, vae).result[0]
    assert found.shape == (512, 16, 16, 3) and mode.bytes < 1.6 * found.nbytes
