"""Checkpoints: what is written comes back, and every damaged file is one clear sentence."""
import errno
import json
import os
import struct
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from vdd_model.app.description import info
from vdd_model.checkpoint import store as checkpoint
from vdd_model.checkpoint.store import CheckpointError, load, read_state, read_training, save
from vdd_model.checkpoint.tensorfile import read_file, write_tensors


def rewrite(source, target, change):
    tensors, metadata = load_file(source), dict(read_file(source).metadata)
    change(tensors, metadata)
    save_file(tensors, target, metadata=metadata)
    return target


def test_round_trip_is_exact_in_the_stored_and_the_asked_type(tiny_model, tmp_path):
    path, expected = tmp_path / "model.safetensors", tiny_model.state_dict()
    save(tiny_model, path, training={"stages": ["stage 1"], "steps": 7})
    model, before = load(path), path.read_bytes()
    assert list(expected) == list(model.state_dict()) and os.listdir(tmp_path) == ["model.safetensors"]
    assert all(torch.equal(expected[k], v) and torch.equal(load_file(path)[k], v) for k, v in model.state_dict().items())
    assert model.config == tiny_model.config == read_state(path)[0]
    assert not model.training and read_training(path) == {"stages": ["stage 1"], "steps": 7}
    with torch.no_grad():                                      # loaded tensors never write to the file
        for p in model.parameters():
            p.add_(1.0)
    assert path.read_bytes() == before
    save(tiny_model, path, dtype=torch.float16)
    assert {p.dtype for p in load(path).parameters()} == {torch.float16}
    asked = load(path, device="cpu", dtype=torch.float32).state_dict()
    assert all(torch.equal(asked[k], v.half().float()) for k, v in tiny_model.state_dict().items())


def test_parts_that_are_not_asked_for_stay_on_the_disk(tiny_checkpoint, tmp_path):
    path, made = tmp_path / "model.safetensors", []
    path.write_bytes(tiny_checkpoint.read_bytes())
    whole, lazy = load(path), load(path, dtype=torch.bfloat16, later=("unet", "vae.detail", "vae.none"), ready=made.append)
    assert made == [lazy] and not any(name.startswith(("unet.", "vae.detail.")) for name, _ in lazy.named_parameters())
    detail = lazy.vae.detail
    assert made == [lazy, detail] and lazy.vae.detail is detail and not detail.training
    assert all(torch.equal(detail.state_dict()[k], v.bfloat16()) for k, v in whole.vae.detail.state_dict().items())
    for data, words in ((b"something else", "another file|truncated|not a safetensors"), (tiny_checkpoint.read_bytes(), "another file")):
        path.write_bytes(data)
        pytest.raises(CheckpointError, getattr, lazy, "unet").match(f"model.safetensors .*({words})")
    lazy, moved = (load(tiny_checkpoint, later=("unet", "vae.detail")) for _ in range(2))                # it moves and is saved whole
    save(lazy, tmp_path / "saved.safetensors")
    saved = read_file(tmp_path / "saved.safetensors").tensors
    assert all(torch.equal(saved.pop(k), v) for k, v in whole.state_dict().items()) and not saved
    assert {p.dtype for p in moved.double().parameters()} == {torch.float64}
    assert {name for name, _ in moved.named_parameters()} == {name for name, _ in whole.named_parameters()}


def test_mixed_types_stay_aligned_and_empty_tensors_survive(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.arange(5.0), "c": torch.tensor(2.5, dtype=torch.float64),
               "d": torch.empty(0, 4), "e": torch.ones(3, 2, dtype=torch.bfloat16).T}
    write_tensors(tmp_path / "x.safetensors", tensors, {})
    back = read_file(tmp_path / "x.safetensors").tensors
    assert all(torch.equal(back[k], t) and back[k].dtype == t.dtype for k, t in tensors.items())
    data = (tmp_path / "x.safetensors").read_bytes()
    table = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    assert all(table[k]["data_offsets"][0] % t.itemsize == 0 for k, t in tensors.items())
    write_tensors(tmp_path / "x.safetensors", dict(reversed(tensors.items())), {})
    assert (tmp_path / "x.safetensors").read_bytes() == data


def test_what_cannot_be_written_is_one_sentence_and_leaves_the_older_file(tiny_model, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"older")
    with pytest.raises(CheckpointError, match="tensor 'x' has the type torch.complex64"):               # before anything is written
        write_tensors(path, {"x": torch.zeros(2, dtype=torch.complex64)}, {})
    pytest.raises(CheckpointError, save, tiny_model, path / "model.safetensors").match("cannot be written")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    pytest.raises(CheckpointError, save, tiny_model, path).match("no room on the disk .* are free")
    assert path.read_bytes() == b"older" and os.listdir(tmp_path) == ["model.safetensors"]


DAMAGED = [b"{nonsense", b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b'{"__metadata__": {"vdd.config": {}}}',
           b'{"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}', b'{"a": 3}', b'{"__metadata__": "x"}',
           b'{"__metadata__": {"vdd.format": 1}}']


@pytest.mark.parametrize("content, words", [
    (b"PK\x03\x04" + b"\0" * 100, "PyTorch pickle"), (b"\x80\x02" + b"}" * 100, "PyTorch pickle"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"), (b"<!DOCTYPE html><html>404", "web page"),
    (b"RIFF" + b"\xff" * 100, "does not begin with"), (0, "is empty"), (5, "truncated or damaged .5"), (100, "is truncated"),
    (-10, "is truncated"),
    *((struct.pack("<Q", len(header)) + header + b"\0" * 8, "is truncated or damaged .* bytes; ") for header in DAMAGED)])
def test_other_files_cut_ones_and_damaged_headers(tiny_checkpoint, tmp_path, content, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content if isinstance(content, bytes) else tiny_checkpoint.read_bytes()[:content])
    pytest.raises(CheckpointError, load, path).match(words)


def test_what_is_no_checkpoint_of_ours_is_named(tiny_checkpoint, tmp_path, monkeypatch):
    save_file({"lora.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    rewrite(tiny_checkpoint, tmp_path / "new.safetensors", lambda _, m: m.update({"vdd.format": "2"}))
    monkeypatch.setitem(checkpoint.BUILT_IN, "small", tmp_path / "gone.safetensors")
    for given, words in ((tmp_path / "no.safetensors", "there is no checkpoint .*built-in ones are: small"), (tmp_path, "is a folder"),
                         ("small", "not part of this installation"), (tmp_path / "other.safetensors", "of another model: .*lora.weight"),
                         (tmp_path / "new.safetensors", "has format 2, this version reads up to 1: update the package")):
        pytest.raises(CheckpointError, load, given).match(words)


def test_wrong_shapes_missing_and_unknown_tensors(tiny_checkpoint, tmp_path):
    def change(tensors, _):
        tensors["vae.decoder.conv_in.weight"] = torch.ones(3, 2)
        del tensors["null_text"]
        tensors["extra"] = torch.ones(1)
        tensors["vae.decoder.conv_in.bias"] = tensors["vae.decoder.conv_in.bias"].to(torch.int8)

    path = rewrite(tiny_checkpoint, tmp_path / "wrong.safetensors", change)
    with pytest.raises(CheckpointError) as error:
        load(path)
    for words in ("vae.decoder.conv_in.weight is (3, 2), expected (16, 4, 3, 3)", "1 missing (null_text)", "1 unknown (extra)", str(path),
                  "1 not of floating point (vae.decoder.conv_in.bias)"):
        assert words in str(error.value)
    assert "cannot be loaded" in info(path)


NO_MODEL = "odd.safetensors has a configuration of which no model can be built"


@pytest.mark.parametrize("part, key, value, words", [("unet", "dimm", 3, "does not know .*dimm.*did you mean 'dim'"),
    ("vae", "norm_groups", 7, NO_MODEL), ("tower", "head_width", 0, NO_MODEL), ("vae", "channel_mult", [1], NO_MODEL)])
def test_a_configuration_without_a_model(tiny_checkpoint, tmp_path, part, key, value, words):
    def change(_, metadata):
        config = json.loads(metadata["vdd.config"])
        config[part][key] = value
        metadata["vdd.config"] = json.dumps(config)

    path = rewrite(tiny_checkpoint, tmp_path / "odd.safetensors", change)
    for read in (load, checkpoint.read_state):
        pytest.raises(CheckpointError, read, path).match(words)
    assert words != NO_MODEL or "cannot be loaded" in info(path)


def test_info(tiny_model, tmp_path):
    path = tmp_path / "model.safetensors"
    save(tiny_model, path, training={"sources": [{"file": "a.pth", "kind": "denoiser", "bytes": 1_500_000}], "untrained": ["adapter"],
                                     "steps": 12})
    text = info(path)
    count = f"{sum(p.numel() for p in tiny_model.parameters()):,}"
    for part in (count, "complete:", "steps: 12", "source: a.pth (denoiser, 1.5 MB)", "unet",
                 "lacks trained weights for: adapter", "encoder1.semantic_head", "encoder2.spatial_head", "vae.fidelity", "null_text"):
        assert part in text
    save(tiny_model, path, training={"sources": [3, {"file": "a.pth", "bytes": "12"}], "untrained": "adapter"})        # odd records
    text = info(path)
    assert "source: 3" in text and "a.pth" in text and "lacks trained weights for: adapter" in text
