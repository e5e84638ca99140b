"""Deblurrer on a stand-in whose answer is known, and on a tiny real model: windows, tiles, restarts, bad input, lack of memory."""
import contextlib
import dataclasses
import types
import warnings
from collections import Counter
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from conftest import clip

from vdd_model.config import AutoencoderConfig, ModelConfig, UNetConfig
from vdd_model.diffusion.schedule import make_schedule
from vdd_model.errors import UserError
from vdd_model.inference import tiles
from vdd_model.inference import window as inference
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer, default_dtype
from vdd_model.inference.windows import first_input_frame
from vdd_model.networks.fidelity import BlurGuide
from vdd_model.networks.model import BlurCode

CONFIG = ModelConfig(name="stub", null_tokens=1, unet=UNetConfig(dim_mult=(1, 2, 4)),
                     vae=AutoencoderConfig(patch_size=1, channel_mult=(1,), latent_scale=1.0, channels=4, fidelity=None))


class Stub:
    """Has DeblurModel's methods; its latents are the pixels and its answer is the input, plus `off(calls of the network)`."""

    def __init__(self, fidelity=False, off=lambda calls: 0.0):
        self.config = CONFIG
        self.null_text = torch.zeros(1, 1, 4)
        self.vae = types.SimpleNamespace(fidelity=object() if fidelity else None)
        self.encoder1 = types.SimpleNamespace(semantic=self._semantic)
        self.unet = types.SimpleNamespace(cache_context=lambda tokens: tokens, num_blocks=1)
        self.schedule = make_schedule(CONFIG.diffusion)
        self.calls, self.seen, self.off, self.to = Counter(), [], off, lambda *_: self

    def _semantic(self, images):
        self.calls["semantic"] += 1
        return images.mean(dim=(2, 3))

    def encode_each(self, pixels, prior=None):
        self.calls["encode"] += pixels.shape[2]
        return BlurCode(F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, 1)), [pixels])

    def adapter(self, latents):
        self.calls["adapter"] += 1
        return torch.cat([latents, torch.zeros_like(latents)], dim=1)

    def context(self, image, drop=False):
        return image[:, None] * (0.0 if drop is True else 1.0)

    def predict_v(self, x, t, condition, context=None):
        self.calls["predict"] += 1
        self.calls["unconditional"] += bool(not context.any())
        self.seen.append((int(t[0]), condition.concat, x.clone()))
        a, s = self.schedule.at(t, x)
        return (a * x - condition.concat[:, :4] - self.off(self.calls["predict"])) / s

    def decode(self, z, guide=None):
        self.calls["decode"] += z.shape[2]
        if guide is None:
            return z[:, :3]
        features = guide.features[0]
        return torch.lerp(z[:, :3], 0.5 * (features[:, :3] + features[:, 6:]), guide.strength)   # of the neighbours


def run(model, frames, **options):
    first, start = options.pop("first_frame", 0), options.pop("input_start", 0)
    return torch.cat(list(Deblurrer(model, device="cpu").stream(iter(frames[start:]), DeblurOptions(**options),
                                                                 first_frame=first, input_start=start)))


@pytest.mark.parametrize("frames, height, width", [(1, 24, 32), (2, 24, 32), (16, 24, 32), (17, 24, 32), (29, 12, 12), (3, 1, 1),
                                                   (5, 37, 23), (2, 3, 90), (40, 8, 6)])
@pytest.mark.parametrize("options", [{}, {"tile": 16, "tile_overlap": 8}, {"window": 5, "overlap": 2}, {"window": 1},
                                     {"steps": 3, "eta": 0.5}, {"color": "none"}, {"spacing": "vgen", "steps": 30}])
def test_a_model_that_returns_its_input_gives_the_input(frames, height, width, options):
    x = clip(frames, height, width)
    y = Deblurrer(Stub(), device="cpu").deblur(x, **options)
    assert y.shape == x.shape and y.dtype == torch.float32
    tolerance = 0.2 if options.get("spacing") == "vgen" else 1 / 255        # the official spacing leaves a little noise
    assert (y - x).abs().max() < tolerance


def test_large_frames_go_through_tiles(monkeypatch):
    assert str(tiles.make_tiling(None, None, 2160, 3840, 16)) == "tiles of 768 x 768 pixels"
    assert tiles.make_tiling(None, None, 720, 1280, 16) == tiles.Tiling(divisor=16)
    monkeypatch.setattr(tiles, "WHOLE_FRAME_PIXELS", 320 * 192)          # 4K at a quarter of its size
    monkeypatch.setattr(tiles, "DEFAULT_TILE", 192)
    stub, x = Stub(), clip(2, 540, 960)
    y = run(stub, x, color="none")
    assert stub.calls["predict"] == 4 * 7 and (y - x).abs().max() < 1 / 255


@pytest.mark.parametrize("guidance, unconditional", [(2.0, 7), (1.0, 0)])
def test_constant_work_is_not_repeated_over_steps(guidance, unconditional):
    stub = Stub()
    run(stub, clip(16), steps=7, guidance=guidance)
    assert stub.calls["adapter"] == stub.calls["semantic"] == 1
    assert stub.calls["predict"] == 7 + unconditional and stub.calls["unconditional"] == unconditional


def test_the_centre_frame_is_len_half():
    stub = Stub()
    stub.encoder1.semantic = Mock(wraps=stub.encoder1.semantic)
    run(stub, (torch.arange(16.0) / 16)[:, None, None, None].expand(-1, 8, 8, 3), scenes="off")
    assert stub.encoder1.semantic.call_args.args[0].allclose(torch.tensor(2 * 8 / 16 - 1))


@pytest.mark.parametrize("kept", [True, False])
def test_features_of_neighbours_cross_every_cut(monkeypatch, kept):
    """The stand-in's fidelity answer is the mean of the two neighbouring frames: windows, chunks and tiles must not show in it."""
    if not kept:
        monkeypatch.setattr("vdd_model.inference.codes.CPU_FEATURE_BYTES", 0)
    monkeypatch.setattr(tiles, "CHUNK_PIXELS", 24 * 32 * 3)
    x = clip(61)
    expected = 0.5 * (torch.cat([x[:1], x[:-1]]) + torch.cat([x[1:], x[-1:]]))
    for options in ({}, {"window": 4, "overlap": 0}, {"window": 6, "overlap": 3}, {"tile": 16, "tile_overlap": 8}):
        y = run(Stub(fidelity=True), x, color="none", **options)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window, overlap", [(16, 4), (4, 0), (1, 0)])
def test_kept_features_are_made_once(monkeypatch, window, overlap):
    stub, brought, to_pixels = Stub(fidelity=True), [], inference.to_pixels
    monkeypatch.setattr("vdd_model.inference.pipeline.to_pixels",
                        lambda frames, *more: brought.append(len(frames)) or to_pixels(frames, *more))
    run(stub, clip(50), window=window, overlap=overlap)
    assert stub.calls["encode"] == stub.calls["decode"] == 50
    assert sum(brought) == 50 + 50 + stub.calls["semantic"]         # to be encoded, to be decoded, and each window's centre


def test_constant_answer_has_no_seams_and_windows_are_blended_over_time():
    """Each window and tile errs by another constant, as group statistics make them: no step between pixels or frames above 1/255."""
    def off(calls):
        return 0.12 * torch.rand((), generator=torch.Generator().manual_seed(calls))

    x = torch.full((18, 160, 240, 3), 0.4)
    y = run(Stub(off=off), x, tile=128, color="none")
    assert (y - x).abs().max() > 3 / 255                       # they do disagree
    assert y.diff(dim=1).abs().max() < 1 / 255 and y.diff(dim=2).abs().max() < 1 / 255
    y = run(Stub(off=off), x, tile=128)                        # and the color transfer takes out what is left
    assert (y - x).abs().max() < 2 / 255
    y = run(Stub(off=lambda calls: 0.2 * (calls % 2)), torch.full((64, 8, 8, 3), 0.5), color="none", overlap=8)
    steps = y.diff(dim=0).abs().amax(dim=(1, 2, 3))
    assert y.max() - y.min() > 0.09 and steps.max() < 0.03


def noise_by_frame(**options):
    """Noise at the start of sampling that each (frame, row, column) got: the clip's colors are its own places."""
    stub, whole = Stub(), torch.full((30, 4, 16, 48), float("nan"))
    run(stub, torch.stack(torch.meshgrid(*(torch.arange(n) / 1000 for n in (30, 16, 48)), indexing="ij"), dim=3), **options)
    for _, concat, x in (seen for seen in stub.seen if seen[0] == 999):
        for i in range(x.shape[2]):
            index, row, column = ((concat[0, :3, i, 0, 0] + 1) / 2 * 1000).round().int().tolist()
            target, plane = whole[index, :, row:row + x.shape[3], column:column + x.shape[4]], x[0, :, i]
            assert torch.equal(target[~target.isnan()], plane[~target.isnan()])        # pieces agree where they meet
            target.copy_(plane)
    assert not whole.isnan().any()
    return whole


def test_a_seed_gives_each_pixel_the_same_noise_whatever_the_cuts():
    reference = noise_by_frame(seed=7)
    for options in ({"window": 5, "overlap": 1}, {"overlap": 0}, {"tile": 16, "tile_overlap": 4}, {"steps": 4, "eta": 1.0}):
        assert torch.equal(reference, noise_by_frame(seed=7, **options))
    assert not torch.equal(reference, noise_by_frame(seed=8))


@pytest.mark.parametrize("options, called", [({}, False), ({"denoise_at_one_step": True}, True), ({"steps": 2}, True),
                                             ({"guidance": 2.0}, True)])
def test_one_step_needs_no_unet(tiny_model, monkeypatch, options, called):
    monkeypatch.setattr(tiny_model, "predict_v", Mock(wraps=tiny_model.predict_v))
    run(tiny_model, clip(5), **options)
    assert tiny_model.predict_v.called is called


def test_without_the_unet_one_step_is_what_encoder_2_says(tiny_model):
    """Decoded; so that no window has a part in it."""
    x = clip(5, 48, 64)
    pixels = x.movedim(3, 0)[None] * 2 - 1
    latents, features = tiny_model.encode_blurred(pixels)
    expected = (tiny_model.decode(latents, BlurGuide(pixels, features))[0].movedim(0, 3) / 2 + 0.5).clamp(0, 1)
    for window in (5, 2):
        torch.testing.assert_close(run(tiny_model, x, color="none", window=window, overlap=1), expected, rtol=0, atol=1e-5)
    assert (run(tiny_model, x, color="none", denoise_at_one_step=True) - expected).abs().max() > 1e-3


def test_several_steps_are_decoded_as_a_sample(tiny_model, monkeypatch):
    asked, decode = [], tiny_model.decode
    monkeypatch.setattr(tiny_model, "decode", lambda z, guide: asked.append(guide.detail) or decode(z, guide))
    for steps in (1, 2):
        asked.clear()
        Deblurrer(tiny_model, device="cpu").deblur(clip(3), steps=steps)
        assert asked[-1] == (steps > 1) and set(asked) == {False, steps > 1}      # several steps begin with one step's picture


def test_bfloat16_stays_close(tiny_model):
    x, several = clip(5), ({}, {"steps": 2, "guidance": 2.0}, {"tile": 16, "tile_overlap": 8}, {"fidelity": 0.0})
    references = [run(tiny_model, x, **options) for options in several]
    deblurrer = Deblurrer(tiny_model, device="cpu", dtype=torch.bfloat16)
    for reference, options in zip(references, several):
        y = deblurrer.deblur(x, **options)
        assert y.dtype == torch.float32 and (y - reference).abs().mean() < 0.02


ONE_STEP = {"steps": 1, "eta": 0.0}                             # cuts a clip into windows of its own


@pytest.mark.parametrize("frames, window, overlap, more", [
    (23, 8, 3, {}), (23, 6, 3, {}), (20, 8, 0, {}), (5, 1, 0, {}), (19, 6, 2, ONE_STEP | {"ensemble": 3}),
    *((13, window, 1, ONE_STEP | {"scenes": "off", "repeats": "off"}) for window in (2, 3))])
def test_a_restart_gives_the_same_bits(tiny_model, frames, window, overlap, more):
    x, options = clip(frames, 21, 16), {"window": window, "overlap": overlap, "steps": 2, "eta": 0.5, "seed": 3} | more      # padded
    whole = run(tiny_model, x, **options)
    for first in (1, frames // 2, frames - 2):
        for start in (0, first_input_frame(first, DeblurOptions(**options))):
            assert torch.equal(run(tiny_model, x, first_frame=first, input_start=start, **options), whole[first:])
    assert list(Deblurrer(tiny_model, device="cpu").stream(iter(x), DeblurOptions(**options), first_frame=frames)) == []


def test_input_behind_the_restart_point_is_refused(tiny_model):
    alone = DeblurOptions(scenes="off", repeats="off")
    for options, needed in ((alone, 12), (DeblurOptions(), 0)):
        given = {"first_frame": 50, "input_start": needed + 1}
        with pytest.raises(ValueError, match=f"needed from {needed} on"):
            Deblurrer(tiny_model, device="cpu").stream(iter(clip(4)), dataclasses.replace(options, steps=2), **given)
        assert first_input_frame(50, options) == needed


@pytest.mark.parametrize("frames, words", [
    ([*clip(21), clip(1)[0].where(torch.arange(32)[:, None] != 4, float("nan"))], "frame 21 holds NaN"),
    ([*clip(5), *clip(1, 16, 16)], "frame 5 is 16 x 16 pixels, but those before it are 32 x 24"),
    *(([frame], "frame 0 has shape") for frame in (torch.zeros(8, 8), torch.zeros(8, 8, 4), torch.zeros(8, 8, 3, dtype=torch.uint8),
                                                   torch.zeros(0, 8, 3)))])
def test_what_are_no_frames_of_one_clip_is_refused_by_number(frames, words):
    with pytest.raises(UserError, match=words):
        list(Deblurrer(Stub(), device="cpu").stream(iter(frames)))


def test_frames_that_gradients_are_asked_of_are_frames_and_none_are_nothing():
    with pytest.raises(UserError, match="expected frames"):
        Deblurrer(Stub(), device="cpu").deblur(torch.zeros(0, 8, 8, 3))
    assert list(Deblurrer(Stub(), device="cpu").stream(iter([]))) == []
    x = clip(3)
    assert torch.equal(run(Stub(), x.clone().requires_grad_()), run(Stub(), x))


@pytest.mark.parametrize("device, dtype", [("cuda:0", torch.float16), ("cuda:1", torch.bfloat16), ("cuda", torch.float16)])
def test_each_gpu_is_asked_for_its_own_dtype(monkeypatch, device, dtype):
    """An old GPU 0, which is the current one, and a new GPU 1."""
    current = [0]

    @contextlib.contextmanager
    def chosen(device):
        index = torch.device(device).index
        current.append(current[-1] if index is None else index)
        yield
        current.pop()
    monkeypatch.setattr(torch.cuda, "device", chosen)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == 1)
    assert default_dtype(device) is dtype and default_dtype(torch.device(device)) is dtype
    assert current == [0]


@pytest.mark.parametrize("ensemble", [1, 4])
def test_progress_and_cancelling(ensemble):
    deblurrer, given, seen = Deblurrer(Stub(), device="cpu"), 0, []

    def progress(p):
        seen.append(p)
        if p.frames_done >= 12:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        for chunk in deblurrer.stream(iter(clip(60)), DeblurOptions(ensemble=ensemble), total=60, progress=progress):
            given += len(chunk)
    assert given == 12 and {p.stage for p in seen} == {"encode", "denoise", "decode"} and seen[0].total == 60
    assert [p.position for p in seen] == sorted(p.position for p in seen) and seen[0].frames_done == 0
    assert len(torch.cat(list(deblurrer.stream(iter(clip(20)))))) == 20            # and it can be used again


NO_MEMORY = [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory"),
             RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]


@pytest.mark.parametrize("stage, fidelity, error", [("encode_each", True, NO_MEMORY[0]), ("predict_v", False, NO_MEMORY[1]),
                                                    ("decode", True, NO_MEMORY[2]), ("decode", False, NO_MEMORY[0])])
def test_lack_of_memory_leads_to_smaller_pieces_and_a_complete_result(monkeypatch, stage, fidelity, error):
    stub, x, said = Stub(fidelity), clip(20, 90, 150), []
    real = getattr(stub, stage)

    def small(tensor, *more):
        """Fails for more than 4 frames of 64 x 64, and of the encoder, which takes one at a time, for a larger one."""
        if tensor.shape[2:].numel() > (1 if stage == "encode_each" else 4) * 64 * 64:
            raise error
        return real(tensor, *more)
    setattr(stub, stage, small)
    monkeypatch.setattr(tiles, "CHUNK_PIXELS", 20 * 90 * 150)
    monkeypatch.setattr(tiles, "SMALLEST_TILE", 64)
    y = Deblurrer(stub, device="cpu").deblur(x, tile_overlap=16, color="none", notice=said.append)
    expected = 0.5 * (torch.cat([x[:1], x[:-1]]) + torch.cat([x[1:], x[-1:]])) if fidelity else x
    assert (y - expected).abs().max() < 2 / 255
    assert said[0] == "not enough memory for whole frames; going on with tiles of 76 x 76 pixels"
    assert f"{'' if stage == 'encode_each' else 'frames at a time; '}going on with tiles of 64 x 64 pixels" in said[-1]


@pytest.mark.parametrize("error, raised, words", [(MemoryError(), UserError, "not enough memory to deblur frames of 300 x 200 pixels"),
                                                  (RuntimeError("shapes do not fit"), RuntimeError, "shapes do not fit")])
def test_hopeless_lack_of_memory_is_one_sentence_and_other_errors_pass_through(error, raised, words):
    stub = Stub()
    stub.predict_v = Mock(side_effect=error)
    with warnings.catch_warnings(record=True):
        pytest.raises(raised, run, stub, clip(3, 200, 300), window=2).match(words)
