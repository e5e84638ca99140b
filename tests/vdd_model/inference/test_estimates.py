"""What several steps start from: the adapter's estimate of the sharp latents, and the one that the picture of one step adds."""
import torch

from vdd_model.inference.codes import Codes
from vdd_model.inference.pipeline import Deblurrer
from vdd_model.inference.window import encode_pictures, to_pixels


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
    import vdd_model.inference.pipeline as pipeline
    looked, look = [], pipeline.encode_pictures
    monkeypatch.setattr(pipeline, "encode_pictures", lambda *arguments: looked.append(1) or look(*arguments))
    deblurrer = Deblurrer("small", device="cpu", dtype=torch.float32)
    clip = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    for options, expected in (({"steps": 1}, 0), ({"steps": 1, "denoise_at_one_step": True}, 1), ({"steps": 2, "fidelity": 0.0}, 0),
                              ({"steps": 2}, 1)):
        looked.clear()
        deblurrer.deblur(clip, scenes="off", **options)
        assert len(looked) == expected, options
