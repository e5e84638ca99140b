"""Frames that are cut into tiles: kept as 16-bit numbers, never copied whole; features that are not kept are made once."""
from __future__ import annotations

import torch

from vdd_model.inference import pipeline, window
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer

OPTIONS = DeblurOptions(window=4, overlap=2)


def noise(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(0))


def test_large_frames_of_their_own_are_kept_small(monkeypatch):
    monkeypatch.setattr(window, "WHOLE_FRAME_PIXELS", 100)
    clip = noise(2, 11, 13)
    kept = window.compact(clip[0].clone())
    assert kept.dtype == torch.uint16 and (window.to_float(kept, clip) - clip[0]).abs().max() < 1e-5
    assert window.compact(clip[0]).dtype == torch.float32     # a part of a larger tensor: no room is won
    assert window.compact(clip[0, :5, :5].clone()).dtype == torch.float32
    assert torch.equal(window.to_float(window.compact(torch.ones(11, 13, 3)), clip), torch.ones(11, 13, 3))


def test_tiles_of_small_numbers_equal_tiles_of_whole_frames(tiny_model, monkeypatch):
    """An odd size, so that tiles at the border are padded; blurred frames as a reader gives them and as one tensor."""
    deblurrer, clip = Deblurrer(tiny_model, device="cpu"), noise(7, 50, 70)
    tiled = DeblurOptions(window=4, overlap=2, tile=32, tile_overlap=16)
    plain = deblurrer.deblur(clip, tiled)
    monkeypatch.setattr(window, "WHOLE_FRAME_PIXELS", 100)
    found = torch.cat(list(deblurrer.stream((frame.clone() for frame in clip), tiled, total=7)))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)
    later = torch.cat(list(deblurrer.stream((frame.clone() for frame in clip), tiled, first_frame=5, total=7)))
    assert torch.equal(later, found[5:])


def test_features_that_are_not_kept_are_made_once(tiny_model, monkeypatch):
    deblurrer, clip = Deblurrer(tiny_model, device="cpu"), noise(9, 32, 48)
    kept = deblurrer.deblur(clip, OPTIONS)
    monkeypatch.setattr(pipeline, "CPU_FEATURE_BYTES", 0)
    encoded, encode = [], tiny_model.encode_each
    monkeypatch.setattr(tiny_model, "encode_each", lambda pixels, *more: encoded.append(pixels.shape[2]) or encode(pixels, *more))
    again = deblurrer.deblur(clip, OPTIONS)
    torch.testing.assert_close(again, kept, rtol=0, atol=1e-5)
    assert sum(encoded) == 2 * len(clip)                       # once for the latents, once for decoding
    later = torch.cat(list(deblurrer.stream(clip, OPTIONS, first_frame=5, total=9)))
    assert torch.equal(later, again[5:])
