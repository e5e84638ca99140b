"""Official files to one checkpoint, on small random files of the same layout."""
import dataclasses
import pickle
import sys
import types

import pytest
import torch
from conftest import make_tiny_model, official_shapes, tiny_config
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file

from vdd_model.app.description import info
from vdd_model.checkpoint.convert import convert, null_text, read_official, spatial_conditions_of
from vdd_model.checkpoint.store import CheckpointError, load, read_training
from vdd_model.config import PRESETS, ModelConfig
from vdd_model.networks.model import DeblurModel


def tiny_text_tower():
    """OpenCLIP's text tower, small; eager modules of the library itself."""
    torch.manual_seed(3)
    tower = TextTransformer(context_length=6, vocab_size=49408, width=16, heads=2, layers=3, output_dim=16).eval()
    with torch.no_grad():
        for p in tower.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return tower


def parts(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    state = make_tiny_model(5).state_dict()
    unet, vae = parts(state, "unet."), {k: v for k, v in parts(state, "vae.").items() if not k.startswith(("fidelity.", "detail."))}
    text = tiny_text_tower()
    clip = {"visual." + k: v for k, v in parts(state, "encoder1.semantic_head.").items()} | text.state_dict()
    clip["logit_scale"] = torch.tensor(4.6)
    torch.save({"state_dict": {"module." + k: v for k, v in unet.items()}, "step": 3}, folder / "tft2v.pth")
    narrow = {k: v for k, v in unet.items() if not k.startswith("pre_image_condition.")}
    narrow["input_blocks.0.0.weight"] = narrow["input_blocks.0.0.weight"][:, :4].clone()
    torch.save(narrow, folder / "modelscope.pth")
    torch.save({"state_dict": {"first_stage_model." + k: v for k, v in vae.items()} | {"model.diffusion_model.out.2.bias": torch.ones(4)}},
               folder / "sd.ckpt")
    save_file(vae, folder / "vae.safetensors")
    torch.save(clip, folder / "clip.bin")
    return folder, unet, vae, clip, text


def expected_null_text(text):
    """open_clip's own modules: all layers but the last, then ln_final."""
    tokens = torch.tensor([[49406, 49407, 0, 0, 0, 0]])
    with torch.no_grad():
        x = text.token_embedding(tokens) + text.positional_embedding
        for block in text.transformer.resblocks[:-1]:
            x = block(x, attn_mask=text.attn_mask)
        return text.ln_final(x)


def test_null_text_is_open_clips(official):
    *_, clip, text = official
    expected = expected_null_text(text)
    assert (null_text(clip, 6, head_width=8) - expected).abs().max() < 1e-5
    # The causal mask makes a shorter stored context a prefix of the full one; SD 2.x stores the same tower under another prefix.
    inside = {"cond_stage_model.model." + k: v for k, v in clip.items()}
    assert (null_text(inside, 2, head_width=8) - expected[:, :2]).abs().max() < 1e-5
    pytest.raises(CheckpointError, null_text, clip, 7).match("6 positions")


@pytest.mark.parametrize("vae_file", ["sd.ckpt", "vae.safetensors"])
def test_tft2v(official, tmp_path, vae_file):
    folder, unet, vae, clip, _ = official
    out = tmp_path / "out.safetensors"
    convert([folder / vae_file, folder / "clip.bin", folder / "tft2v.pth"], out, config=tiny_config(), dtype=None)
    state = load(out).state_dict()
    for prefix, expected in (("unet.", unet), ("vae.", vae)):
        assert all(torch.equal(state[prefix + k], v) for k, v in expected.items())
    spatial = {k: v for k, v in vae.items() if k.startswith(("encoder.", "quant_conv."))}
    for encoder in ("encoder1", "encoder2"):
        assert all(torch.equal(state[f"{encoder}.spatial_head.{k}"], v) for k, v in spatial.items())
    assert all(torch.equal(state["encoder1.semantic_head." + k], v) for k, v in parts(clip, "visual.").items())
    assert state["null_text"].shape == (1, 2, 16) and state["null_text"].any()
    assert not state["vae.fidelity.head.weight"].any() and not state["vae.detail.head.weight"].any() and state["adapter.conv1.weight"].any()
    training = read_training(out)
    assert training["untrained"] == ["adapter", "vae.detail", "vae.fidelity"]
    assert {s["file"] for s in training["sources"]} == {vae_file, "clip.bin", "tft2v.pth"}
    assert "lacks trained weights for: adapter, vae.detail, vae.fidelity" in info(out)


def test_the_seed_decides_the_initial_values(official, tmp_path):
    folder = official[0]
    files = [folder / "vae.safetensors", folder / "clip.bin", folder / "tft2v.pth"]
    outs = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for out, seed in zip(outs, (1, 1, 2)):
        convert(files, out, config=tiny_config(), seed=seed)
    assert outs[0].read_bytes() == outs[1].read_bytes() != outs[2].read_bytes()
    assert {p.dtype for p in load(outs[0]).parameters()} == {torch.float16}


def test_modelscope_is_padded_and_computes_the_same(official, tmp_path):
    folder, unet, *_ = official
    out = tmp_path / "out.safetensors"
    convert([folder / "modelscope.pth", folder / "sd.ckpt", folder / "clip.bin"], out, config=tiny_config(), dtype=None)
    weight = load(out).unet.state_dict()["input_blocks.0.0.weight"]
    assert torch.equal(weight[:, :4], unet["input_blocks.0.0.weight"][:, :4]) and weight.shape[1] == 12 and not weight[:, 4:].any()
    assert read_training(out)["untrained"] == ["adapter", "unet.pre_image_condition", "vae.detail", "vae.fidelity"]
    assert "padded with zeros from 4 to 12 channels" in info(out)


def test_vcomposer_adapters_become_part_of_the_configuration(official, tmp_path, monkeypatch):
    folder = official[0]
    wide = dataclasses.replace(tiny_config(), unet=dataclasses.replace(tiny_config().unet, spatial_conditions=("depthmap", "local_image")))
    torch.manual_seed(0)
    unet = parts(DeblurModel(wide).state_dict(), "unet.")
    assert "depth_embedding.0.weight" in unet
    torch.save(unet, tmp_path / "vcomposer.pth")
    monkeypatch.setitem(PRESETS, "tft2v", tiny_config())
    out = tmp_path / "out.safetensors"
    convert([tmp_path / "vcomposer.pth", folder / "sd.ckpt", folder / "clip.bin"], out, dtype=None)
    model = load(out)
    assert isinstance(model.config, ModelConfig) and model.config.unet.spatial_conditions == ("depthmap", "local_image")
    assert all(torch.equal(model.unet.state_dict()[k], v) for k, v in unet.items())


def test_the_official_key_lists_name_their_adapters(shared):
    found = [spatial_conditions_of(official_shapes(shared / "golden" / f"keys_tft2v_{name}.txt")) for name in ("t2v", "vcomposer")]
    assert found == [(), ("depthmap", "motion", "mask", "sketch", "single_sketch", "local_image")]


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_pickles_with_code_are_refused(official, tmp_path):
    torch.save({"input_blocks.0.0.weight": torch.ones(1), "x": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"x": Evil()}))
    for name in ("evil.pth", "plain.pth"):
        pytest.raises(CheckpointError, read_official, tmp_path / name).match("holds code, not only weights|damaged or is not")
    with pytest.raises(CheckpointError, match=r"evil\.pth holds code, not only weights, and was not opened .*exec"):
        convert([tmp_path / "evil.pth", official[0] / "sd.ckpt"], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_named_lightning_class_is_inert(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    fake = types.ModuleType(name)
    fake.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    for package in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setitem(sys.modules, name, fake)
    state = {"first_stage_model.encoder.conv_in.weight": torch.ones(2)}
    torch.save({"state_dict": state, "callbacks": {fake.ModelCheckpoint: {"n": 1}}}, tmp_path / "sd.ckpt")
    monkeypatch.undo()
    assert read_official(tmp_path / "sd.ckpt")["first_stage_model.encoder.conv_in.weight"].sum() == 2


def test_wrong_files(official, tmp_path):
    folder = official[0]
    out = tmp_path / "out.safetensors"
    for name, data in (("cut.pth", (folder / "tft2v.pth").read_bytes()[:3000]), ("empty.pth", b""), ("text.pth", b"not a model")):
        (tmp_path / name).write_bytes(data)
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    save_file({"lora": torch.ones(1)}, tmp_path / "lora.safetensors")
    wider = dataclasses.replace(tiny_config(), vae=dataclasses.replace(tiny_config().vae, channels=16))
    for files, config, words in (
            *(((tmp_path / name,), None, f"{name} is damaged or is not a PyTorch file") for name in ("cut.pth", "empty.pth", "text.pth")),
            ((tmp_path / "gone.pth",), None, "there is no file"), ((tmp_path / "tensor.pth",), None, "holds a Tensor"),
            ((tmp_path / "lora.safetensors",), None, "neither a TF-T2V denoiser .*lora"),
            (("tft2v.pth", "sd.ckpt"), None, "files are missing: .*OpenCLIP ViT-H/14"),
            (("sd.ckpt", "vae.safetensors"), None, "second autoencoder"),
            (("tft2v.pth", "sd.ckpt", "clip.bin"), None, "text tower has 6 positions"),                 # the full-size preset
            (("tft2v.pth", "sd.ckpt", "clip.bin"), wider, "do not fit the model: .* is .*, expected")):
        pytest.raises(CheckpointError, convert, [folder / file for file in files], out, config=config).match(words)
    assert not out.exists()
