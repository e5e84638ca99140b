"""Frames that are cut into tiles: kept as 16-bit numbers, never copied whole; each picture encoded once."""
import dataclasses

import pytest
import torch

from vdd_model.cpu import frames
from vdd_model.inference import codes, pipeline, tiles, window
from vdd_model.inference.ensemble import ORIENTATIONS
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.inference.scenes import Moment, pictures
from vdd_model.inference.tiles import Tiling, blend

OPTIONS = DeblurOptions(window=4, overlap=2)


def noise(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(0))


def test_large_frames_of_their_own_are_kept_small(monkeypatch):
    monkeypatch.setattr(frames, "KEPT_WHOLE_PIXELS", 100)
    clip = noise(2, 11, 13)
    kept = frames.compact(clip[0].clone())
    assert kept.dtype == torch.uint16 and (frames.to_float(kept, clip) - clip[0]).abs().max() < 1e-5
    assert frames.compact(clip[0]).dtype == torch.float32     # a part of a larger tensor: no room is won
    assert frames.compact(clip[0, :5, :5].clone()).dtype == torch.float32
    assert torch.equal(frames.to_float(frames.compact(torch.ones(11, 13, 3)), clip), torch.ones(11, 13, 3))


def test_tiles_of_small_numbers_equal_tiles_of_whole_frames(tiny_model, monkeypatch):
    """An odd size, so that tiles at the border are padded; blurred frames as a reader gives them and as one tensor."""
    deblurrer, clip = Deblurrer(tiny_model, device="cpu"), noise(7, 50, 70)
    tiled = DeblurOptions(window=4, overlap=2, tile=32, tile_overlap=16)
    plain = deblurrer.deblur(clip, tiled)
    monkeypatch.setattr(frames, "KEPT_WHOLE_PIXELS", 100)
    found, later = (torch.cat([*deblurrer.stream((frame.clone() for frame in clip), tiled, first_frame=i, total=7)]) for i in (0, 5))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)
    assert torch.equal(later, found[5:])


@pytest.mark.parametrize("tiled", [{}, {"tile": 32, "tile_overlap": 16}, {"tile": 32, "tile_overlap": 16, "ensemble": 2}], ids=str)
@pytest.mark.parametrize("room", [True, False])
def test_a_picture_is_encoded_when_it_is_decoded(tiny_model, monkeypatch, room, tiled):
    """Once where a picture's code has room until it is its turn, in one step; else as a neighbour too."""
    options = dataclasses.replace(OPTIONS, scenes="off", **tiled)
    deblurrer, clip = Deblurrer(tiny_model, device="cpu"), noise(9, 32, 48)
    kept = deblurrer.deblur(clip, options)
    one = codes.feature_bytes(tiny_model.config, 32, 48)
    monkeypatch.setattr(codes, "CPU_FEATURE_BYTES", 2 * one * (options.ensemble or 1) if room else 0)
    monkeypatch.setattr(tiles, "CHUNK_PIXELS", 1)
    encoded, encode = [], tiny_model.encode_each
    monkeypatch.setattr(tiny_model, "encode_each", lambda pixels, *more: encoded.append(pixels[..., 0, 0].numel()) or encode(pixels, *more))
    again = deblurrer.deblur(clip, options)
    torch.testing.assert_close(again, kept, rtol=0, atol=1e-5)
    pieces = (2 if tiled else 1) * (options.ensemble or 1)
    assert len(encoded) == pieces * (9 if room else 9 + 8)
    later = torch.cat(list(deblurrer.stream(clip, options, first_frame=5, total=9)))
    assert torch.equal(later, again[5:])


def test_several_steps_encode_for_the_latents_and_once_more_for_each_tile(tiny_model, monkeypatch):
    """Whatever is kept in between."""
    clip, encoded, encode = noise(9, 32, 48), [], tiny_model.encode_each
    deblurrer, options = Deblurrer(tiny_model, device="cpu"), {"steps": 2, "scenes": "off", "tile": 32, "tile_overlap": 16}
    monkeypatch.setattr(pipeline, "reads_pictures", lambda *_: False)
    monkeypatch.setattr(tiny_model, "encode_each", lambda pixels, *more: encoded.append(pixels.shape[2]) or encode(pixels, *more))
    found = deblurrer.deblur(clip, OPTIONS, **options)
    assert sum(encoded) == 2 * 2 * 9
    monkeypatch.setattr(codes, "CPU_FEATURE_BYTES", 0)
    monkeypatch.setattr(tiles, "CHUNK_PIXELS", 1)
    torch.testing.assert_close(deblurrer.deblur(clip, OPTIONS, **options), found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_tile_of_a_turned_picture_comes_from_its_source(orientation):
    picture = torch.arange(48.0 * 32).view(48, 32)
    turned = orientation.turn(picture)
    assert turned.shape == orientation.size(48, 32)
    for tile in Tiling(24, 8, divisor=8).boxes((1, *turned.shape)):
        rows, columns = orientation.source(tile, tuple(turned.shape))
        assert torch.equal(orientation.turn(picture[rows, columns]), tile.of(turned[None])[0])


def test_frames_may_come_as_they_are_kept(tiny_model, monkeypatch):
    """From a reader that keeps them small itself: the same result, cuts and repeats included."""
    monkeypatch.setattr(frames, "KEPT_WHOLE_PIXELS", 100)
    deblurrer, clip = Deblurrer(tiny_model, device="cpu"), noise(6, 32, 48)
    clip[3] = clip[2]
    clip[4:] = 1 - clip[4:] / 4                                # another scene
    once = [frame.clone() for frame in clip]
    found, again = (list(deblurrer.stream(given, OPTIONS)) for given in (once, [frames.compact(frame) for frame in once]))
    assert sum(map(len, found)) == 6 and all(map(torch.equal, found, again)) and len(found) == len(again)
    assert all(frames.compact(frame).dtype == torch.uint16 for frame in once)


def test_a_pass_in_tiles_keeps_no_picture_that_it_has_given(tiny_model, monkeypatch):
    """Without the denoiser nothing looks back: while a window is decoded, its first pictures are gone."""
    monkeypatch.setattr(tiles, "CHUNK_PIXELS", 1)
    tiled = DeblurOptions(window=8, overlap=2, tile=32, tile_overlap=16, scenes="off", repeats="off")
    run = pipeline._Pass(Deblurrer(tiny_model, device="cpu"), tiled, 0, [], None, None, print)
    held = [min(run.pictures) for _ in run.stream(pictures(noise(8, 48, 64), scenes=False, repeats=False), [Moment(0, 0)])]
    assert len(held) == 8 and held[-1] > 1 and held == sorted(held)


@pytest.mark.parametrize("tile, times", [(0, 2), (32, 9)])
def test_freed_memory_goes_back_once_in_so_many_pixels_or_behind_each_tiled_frame(tiny_model, monkeypatch, tile, times):
    """What is free but was touched would else grow with the clip."""
    given = []
    monkeypatch.setattr(pipeline, "GIVE_BACK_PIXELS", 4 * 32 * 48)
    monkeypatch.setattr(pipeline, "give_back_memory", lambda: given.append(1))
    monkeypatch.setattr(tiles, "CHUNK_PIXELS", 1)
    Deblurrer(tiny_model, device="cpu").deblur(noise(9, 32, 48), dataclasses.replace(OPTIONS, tile=tile, tile_overlap=16))
    assert len(given) == times


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stays_is_kept_apart(dtype, monkeypatch):
    """With its values and its place for every axis, also of one picture of several."""
    monkeypatch.setattr(frames, "APART_BYTES", 100)
    x = torch.randn(3, 8, 5, 7).to(dtype, memory_format=torch.channels_last)
    for part in (x, x[1:2], x[None].transpose(1, 2)[:, :, 1:2]):
        kept = frames.apart(part)
        assert torch.equal(kept, part) and kept.data_ptr() != part.data_ptr() and kept.stride()[-3:] == part.stride()[-3:]
    small = x[0, 0, 0]
    assert frames.apart(small) is small


def test_pixels_that_lie_as_frames_do_become_the_frames():
    """Blended tiles lie so; the result is that of any other layout, without a copy."""
    pieces = Tiling(32, 16, divisor=8).boxes((2, 40, 48))
    whole, blurred = torch.randn(1, 3, 2, 40, 48), list(noise(2, 37, 48))
    pixels = blend(pieces, lambda box: box.of(whole), as_frames=True)
    torch.testing.assert_close(pixels, whole, rtol=0, atol=1e-5)
    plain = window.to_frames(pixels.clone(memory_format=torch.contiguous_format), blurred, tile=32)
    found = torch.cat([window.to_frames(pixels[:, :, i:i + 1], blurred[i:i + 1], tile=32) for i in range(2)])
    assert torch.equal(found, plain)
    assert window.to_frames(pixels[:, :, :1], blurred, "none").data_ptr() == pixels.data_ptr()
