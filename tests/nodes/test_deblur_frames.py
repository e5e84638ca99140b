"""Deblur Frames with a tiny random model in the stand-in host."""
from __future__ import annotations

import pytest
import torch

from tests.nodes.conftest import TINY, Cancelled


def test_the_ensemble_is_the_mean_over_orientations(pack, frames):
    def run(x, **more):
        return pack.nodes["VDDDeblurFrames"].execute(x, TINY, steps=1, guidance=1.0, fidelity=1.0, color="none", seed=0, **more).result[0]

    x = frames[:, :32, :32, :3]
    by_hand = (run(x) + run(x.transpose(1, 2)).transpose(1, 2)) / 2
    torch.testing.assert_close(run(x, ensemble=2), by_hand, rtol=0, atol=1e-5)
    assert (by_hand - run(x)).abs().max() > 1e-3


def test_cancel_comes_through(pack, frames, monkeypatch):
    def cancel():
        raise Cancelled

    monkeypatch.setattr(pack.host["comfy.model_management"], "throw_exception_if_processing_interrupted", cancel)
    with pytest.raises(Cancelled):
        pack.nodes["VDDDeblurFrames"].execute(frames, TINY, steps=1, guidance=1.0, fidelity=1.0, color="wavelet", seed=0)


def test_checkpoint_folder(pack):
    folders, paths = pack.module("nodes.folders"), pack.host["folder_paths"]
    paths.add_model_folder_path("vdd", "/extra/place")
    folders.register()
    folders.register()
    assert paths.get_folder_paths("vdd") == [str(pack.models / "vdd"), "/extra/place"]
    assert folders.names() == [folders.BUILT_IN, TINY]
    with pytest.raises(RuntimeError, match="put the file .* into .*vdd"):
        folders.path_of("nothing.safetensors")
