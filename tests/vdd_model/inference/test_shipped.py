"""The model that ships, through the whole pipeline."""
from unittest.mock import Mock

import pytest
import torch

from vdd_model.checkpoint.store import BUILT_IN
from vdd_model.inference import pipeline
from vdd_model.inference.codes import Codes
from vdd_model.inference.pipeline import Deblurrer
from vdd_model.inference.window import decode_frames, encode_pictures, to_frames, to_pixels
from vdd_model.measure import metrics

pytestmark = pytest.mark.skipif(not BUILT_IN["small"].exists(), reason="the built-in weights are not here")


@pytest.mark.parametrize("value", [0.1, 0.6])
def test_a_constant_clip_has_no_step_at_the_seams_of_the_shipped_model(value):
    """Tiles and windows meet every 32 pixels and 4 frames here; neighbouring pixels and frames differ by at most 1/255 all the same."""
    x = torch.full((5, 96, 96, 3), value)
    y = Deblurrer("small", device="cpu").deblur(x, window=4, overlap=2, tile=64, tile_overlap=32, color="none")
    inside = y[:, 16:-16, 16:-16]                        # the picture's own border is not a seam
    assert max(inside.diff(dim=axis).abs().max() for axis in range(3)) < 1 / 255
    assert (y - x).abs().mean() < 1 / 255


def test_the_shipped_model_follows_its_latents_and_more_steps_move_it(shaken):
    """One step is the most faithful; more are sharper at some cost in PSNR. With the true latents the branch shows what one step misses."""
    (blurred, sharp), deblurrer = shaken, Deblurrer("small", device="cpu", dtype=torch.float32)
    one, many = (deblurrer.deblur(blurred, steps=steps) for steps in (1, 20))
    with torch.no_grad():
        pixels, target = (to_pixels(list(frames), deblurrer.model.config.divisor, torch.device("cpu")) for frames in (blurred, sharp))
        codes = Codes(deblurrer.model, lambda numbers, tile: pixels[:, :, numbers.start:numbers.stop], None, (160, 160))
        source = codes.source(deblurrer.model.encode_target(target), range(6), range(6), detail=True)
        true = decode_frames(deblurrer.model, source, (6, 160, 160))
    psnr = [metrics.psnr(frames, sharp).mean().item() for frames in (blurred, many, one, to_frames(true, list(blurred)))]
    assert psnr[2] > psnr[0] + 1 and psnr[3] > psnr[2] + 1, psnr
    assert psnr[2] - 3.5 < psnr[1] < psnr[2], psnr
    assert metrics.sharpness(many).mean() > metrics.sharpness(one).mean() > metrics.sharpness(blurred).mean()


def test_one_step_leaves_on_the_disk_what_it_does_not_call():
    deblurrer = Deblurrer("small", device="cpu")

    def held() -> set[str]:
        return {".".join(name.split(".")[:2 if name.startswith("vae.") else 1]) for name, _ in deblurrer.model.named_parameters()}
    deblurrer.deblur(torch.rand(3, 64, 64, 3), steps=1, prior="none")
    assert held() == {"null_text", "encoder2", *(f"vae.{part}" for part in ("encoder", "quant_conv", "decoder", "post_quant_conv",
                                                                             "fidelity"))}
    deblurrer.deblur(torch.rand(3, 64, 64, 3), steps=2, prior="none")
    assert held() >= {"unet", "adapter", "encoder1", "vae.detail"} and "vae.fusion" not in held()


def test_the_picture_of_one_step_brings_several_steps_nearer_to_the_truth(shaken):
    blurred, truth = (frames[:3] for frames in shaken)
    model = Deblurrer("small", device="cpu", dtype=torch.float32).model
    pixels, sharp = (to_pixels(list(frames), model.config.divisor, torch.device("cpu")) for frames in (blurred, truth))
    with torch.no_grad():
        latents, target = model.encode_blurred(pixels).latents, model.encode_target(sharp)
        alone, (_, log_std) = model.adapter(latents)[:, :4], model.adapter(latents)[:, :8].chunk(2, dim=1)
        errors = {}
        for name, prior in (("picture", None), ("a prior that knows", sharp)):
            clips = [x if x is None else lambda numbers, tile, x=x: x[:, :, numbers.start:numbers.stop] for x in (pixels, prior)]
            source = Codes(model, *clips, (160, 160)).source(latents, range(3), range(3))
            both = model.adapter(torch.cat([latents, encode_pictures(model, source, (3, 160, 160))], dim=1))
            errors[name] = (both[:, :4] - target).square().mean() / (alone - target).square().mean()
            assert (both[:, 4:8] < log_std).all() and torch.equal(both[:, 8:], model.adapter(latents)[:, 8:])
    assert errors["a prior that knows"] < errors["picture"] < 0.9, errors


def test_the_picture_is_looked_at_first_where_the_unet_is_called(monkeypatch):
    monkeypatch.setattr(pipeline, "encode_pictures", looked := Mock(wraps=encode_pictures))
    deblurrer = Deblurrer("small", device="cpu", dtype=torch.float32)
    clip = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    for options, expected in (({"steps": 1}, 0), ({"steps": 1, "denoise_at_one_step": True}, 1), ({"steps": 2, "fidelity": 0.0}, 0),
                              ({"steps": 2}, 1)):
        looked.reset_mock()
        deblurrer.deblur(clip, scenes="off", **options)
        assert looked.call_count == expected, options
