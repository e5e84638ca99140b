"""What is settled before the first step."""
import shutil
import sys

import pytest
import torch
from conftest import make_tiny_model, tiny_config
from torch.nn.modules.module import register_module_forward_hook
from training_tools import BLUR, NO_VALIDATION, STAGES, write_config

from train import config as configs
from train import start
from train.loop import run
from vdd_model.checkpoint.store import load, read_training, save
from vdd_model.errors import UserError
from vdd_model.inference.pipeline import Deblurrer


def test_a_processor_without_bfloat16_trains_in_float32_and_says_so(tmp_path, monkeypatch):
    said, types = [], set()
    monkeypatch.setattr(start, "_on_cpu", lambda: True)
    path = write_config(tmp_path, [STAGES[0]], precision="bfloat16", validation=NO_VALIDATION)
    monkeypatch.setattr(start, "cpu_has_bfloat16", lambda: True)
    assert start.computable(configs.load(path)).precision == "bfloat16"
    monkeypatch.setattr(start, "cpu_has_bfloat16", lambda: False)
    with register_module_forward_hook(lambda module, _, output: types.add(output.dtype) if isinstance(module, torch.nn.Conv2d) else None):
        run(configs.load(path), say=said.append)
    assert any("only emulates bfloat16" in text and "training in float32" in text for text in said)
    assert types == {torch.float32}


def test_validation_is_looked_at_before_the_first_step(tmp_path):
    """What is wrong with it costs no step, and what it shares with training is said."""
    path = write_config(tmp_path, [STAGES[0]])
    for change, words in (({"pairs": "train_photos"}, "holds no pairs"), ({"split": "val"}, "of the split 'val'"),
                          ({"crop": 0}, "validation.crop: at least 1")):
        with pytest.raises(UserError, match=words):
            run(configs.load(path, [f"validation.{key}={value}" for key, value in change.items()]), say=lambda text: None)
        assert not (tmp_path / "run" / "log.jsonl").exists()
    for blurred in (tmp_path / "data/gopro_layout/test/SEQ/blur").iterdir():
        shutil.copy(tmp_path / "data/val_photos/c.png", blurred)
    with pytest.raises(UserError, match=r"SEQ: its blurred and sharp frames differ in size \(96 x 96 and 32 x 32 pixels\)"):
        run(configs.load(path), say=lambda text: None)
    said = []
    run(configs.load(path, ["validation.photos=train_photos", 'validation.pairs=""', "stages.0.steps=1"]), say=said.append)
    assert any("validation sees what training sees (2 clips, the first is a.png)" in text for text in said)


def test_options_that_the_clips_do_not_look_at_are_named(tmp_path):
    said = []
    write_config(tmp_path)
    config = write_config(tmp_path, [{**STAGES[2], "steps": 1, "crop": 16, "frames": 1, "blur": {"kinks": 0.5}}], validation=NO_VALIDATION,
                          data={"folder": "gopro_layout", "layout": "gopro", "split": "test", "blur": BLUR})
    run(configs.load(config), say=said.append)
    assert "these clips do not look at blur.extent, blur.kinks, blur.max_subsamples" in said


def test_a_model_without_stage_3_is_its_decoder_and_not_the_blurred_frame(tmp_path):
    """The branch that no stage has trained is left out, in validation too; where the weights came from stays known."""
    said, told = [], []
    first = run(configs.load(write_config(tmp_path, STAGES[:1], validation=NO_VALIDATION)), say=lambda text: None)
    save(load(first), tmp_path / "init.safetensors",
         {"sources": [{"file": "tft2v.pth", "kind": "unet", "bytes": 7}], "untrained": ["adapter", "vae.detail", "vae.fidelity"]})
    path = run(configs.load(write_config(tmp_path, STAGES[2:4], init=str(tmp_path / "init.safetensors"), out=str(tmp_path / "two"))),
               say=said.append)
    frames = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    for steps in (1, 2):
        sharp = Deblurrer(path, device="cpu").deblur(frames, steps=steps, color="none", notice=told.append)
        assert (sharp - frames).abs().max() > 0.01
    assert len(told) == 2 and "is not trained" in told[0]
    row = next(text for text in said if "output" in text).splitlines()[1].split()
    assert row[3] == row[4] != row[1]                                      # plain and output, not blurred
    training = read_training(path)
    assert training["sources"][0]["file"] == "tft2v.pth" and training["untrained"] == ["vae.detail", "vae.fidelity"]


@pytest.mark.parametrize("installed", [True, False])
def test_a_model_with_openclips_tower_trains_openclips_own(tmp_path, monkeypatch, installed):
    """Its export loads as before, and says of a picture what the one with ours says."""
    monkeypatch.setattr(start, "OPEN_CLIP", tiny_config().tower)
    if not installed:
        monkeypatch.setitem(sys.modules, "open_clip.transformer", None)
    config = configs.load(write_config(tmp_path, gradient_checkpointing=True))
    ours = start.make_model(config, None)
    images, names = torch.rand(2, 3, 40, 48) * 2 - 1, [name for name, _ in ours.named_parameters()]
    expected, weights = ours.encoder1.semantic(images).detach(), {name: value.clone() for name, value in ours.state_dict().items()}
    theirs = start.prepare_model(ours, config, torch.device("cpu"))
    assert type(theirs.encoder1.semantic_head).__module__.startswith("open_clip" if installed else "vdd_model")
    assert sorted(name for name, _ in theirs.named_parameters()) == sorted(names)
    assert all(torch.equal(value, weights[name]) for name, value in theirs.state_dict().items())
    vectors = theirs.encoder1.semantic(images)
    torch.testing.assert_close(vectors.detach(), expected, rtol=1e-5, atol=1e-5)
    vectors.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in theirs.encoder1.semantic_head.parameters())


def test_norms_learn_in_bfloat16_what_they_learn_in_float32(tmp_path):
    """On a CPU layer_norm counts up to 256 rows of bfloat16."""
    model = start.prepare_model(make_tiny_model().requires_grad_(True), configs.load(write_config(tmp_path)), torch.device("cpu"))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert norms
    for norm in norms:
        x = torch.randn(64, 64, *norm.normalized_shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        gradients = []
        for dtype in (torch.bfloat16, torch.float32):
            with torch.autocast("cpu", torch.bfloat16):
                out = norm(x.to(dtype))
            (out.float() * (0.5 + x.roll(1, 1).float())).sum().backward()
            gradients.append([p.grad.clone() for p in norm.parameters()])
            norm.zero_grad()
        for found, expected in zip(*gradients):
            assert (found - expected).norm() < 0.02 * expected.norm()
