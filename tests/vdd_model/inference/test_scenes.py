"""Scenes and repeated frames: what is found in a stream, and that each scene and each picture comes out as if it were alone."""
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from media_tools import save_clip

from train.data.photos import read_photos
from train.synthesis.blur import synthesize
from train.synthesis.scene import BlurConfig
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.inference.scenes import DOUBTFUL, LONGEST, pictures
from vdd_model.inference.windows import first_input_frame
from vdd_model.media.video import read_clip

SMALL = {"window": 6, "overlap": 2}


def wall(seed, height=72, width=320):
    """A picture (3, H, W) with details of 6 pixels, wide enough to pan over."""
    x = torch.rand(1, 3, height // 6, width // 6 + 1, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(x, scale_factor=6, mode="bilinear")[0, :, :, :width]


def scene(seed, frames, speed=2, width=96, blur=1, height=72):
    x = wall(seed, height)
    views = [torch.stack([x[:, :, speed * i + k:speed * i + k + width] for k in range(blur)]).mean(0) for i in range(frames)]
    return torch.stack(views).movedim(1, -1).contiguous()


def cuts(frames, **options):
    return [picture.index for picture in pictures(iter(frames), **options) if picture.index and not picture.number]


def times(frames, **options):
    return [picture.times for picture in list(pictures(iter(frames), **options))]


def test_hard_cuts_are_found_in_moving_scenes():
    for first in range(8):
        a, b, c = scene(first, 5), scene(first + 20, 1), scene(first + 40, 6)
        assert cuts(torch.cat([a, b, c])) == [5, 6]
    assert cuts(torch.cat([a, c]), scenes=False) == []
    assert cuts(torch.cat([a, c]), limits=DOUBTFUL) == [5] and cuts(a, limits=DOUBTFUL) == []


def test_a_cut_to_a_plain_picture_and_back_is_one_and_a_fast_pan_is_none():
    for value in (0.0, 0.5, 1.0):
        assert cuts(torch.cat([scene(1, 6), torch.full((6, 72, 96, 3), value), scene(1, 6)])) == [6, 12], value
    for speed in (6, 20, 40):
        assert all(cuts(scene(seed, 5, speed, blur=speed // 2)) == [] for seed in range(4)), speed


@pytest.mark.parametrize("length", [4, 12])
def test_fades_are_no_cuts(length):
    a, b = scene(2, length), scene(3, length)
    down = torch.linspace(1, 0, length).view(-1, 1, 1, 1)
    for fade in (a * down, a * down.flip(0), 1 - (1 - a) * down, torch.cat([a * down, b * down.flip(0)]), a * down + b * (1 - down)):
        assert cuts(fade) == []


@pytest.mark.parametrize("at", [[4], [4, 5], [1], [10]])
@pytest.mark.parametrize("light", [lambda x: (3 * x).clamp(max=1), torch.ones_like, torch.zeros_like])
def test_flashes_are_no_cuts(at, light):
    x = scene(4, 12)
    x[at] = light(x[at])
    assert cuts(x) == []


def test_photographs_behind_each_other_are_cuts_and_walking_footage_has_none(shared):
    photos = [photo[:, 100:260, 100:260].movedim(0, -1).float() / 255 for photo in read_photos(shared / "data" / "val_photos")]
    joined = [torch.stack([a, a, b, b]) for a, b in zip(photos, photos[1:])]
    assert all(cuts(clip, limits=DOUBTFUL) == [2] for clip in joined)                   # where there is doubt
    assert sum(cuts(clip) == [2] for clip in joined) >= 0.9 * len(joined)
    clip = read_clip(shared / "data" / "gopro_layout" / "test" / "GOPRO7_WALK" / "blur", 12)
    assert cuts(clip) == [] and set(times(clip)) == {1}
    for name in ("GOPRO7_WALK", "GOPROMAX_WALK"):
        frames = read_clip(shared / "data" / "gopro_layout" / "test" / name / "sharp", 24)
        for top, left in ((0, 0), (40, 80), (100, 200)):
            crop = frames[:, top:top + 160, left:left + 160].clone()
            crop[3] = (2 * crop[3]).clamp(max=1)                                         # a flash
            assert cuts(crop, limits=DOUBTFUL) == []


def test_long_blur_is_no_cut():
    """Frames of a camera that travels a seventh of the picture in each exposure look little alike."""
    g = torch.Generator().manual_seed(3)
    layers = [torch.nn.functional.interpolate(torch.rand(1, 3, n, n, generator=g), (640, 640), mode="bicubic") for n in (4, 9, 20, 45)]
    photo = sum(layer[0] / 2**i for i, layer in enumerate(layers))
    photo = ((photo - photo.min()) / (photo.max() - photo.min()) * 255).to(torch.uint8)
    config = BlurConfig(extent=(16.0, 20.0), near_sharp=0.0, scale=(0.4, 0.5), layers=0.0, max_step=20.0, noise=0.0, codec=0.0)
    clips = [synthesize([photo], seed, [0], num_frames=6, size=128, config=config)[0][0].permute(1, 2, 3, 0) for seed in range(6)]
    doubtful = sum(len(cuts(clip, limits=DOUBTFUL)) for clip in clips)
    assert [cuts(clip) for clip in clips] == [[]] * 6 and doubtful > 0, doubtful


@pytest.mark.parametrize("count", [2, 3, 5])
def test_repeated_frames_are_one_picture_but_flat_ones_and_those_of_a_long_freeze(count):
    found = list(pictures(iter(scene(1, 5).repeat_interleave(count, 0)), 10))
    assert [(picture.index, picture.number, picture.times) for picture in found] == [(10 + count * i, i, count) for i in range(5)]
    assert times(scene(1, 3).repeat_interleave(count, 0), repeats=False) == [1] * 3 * count
    assert times(scene(1, 1).expand(2 * LONGEST + 3, -1, -1, -1)) == [LONGEST, LONGEST, 3]
    assert times(torch.full((5, 72, 96, 3), 0.3)) == [1] * 5


@pytest.mark.parametrize("options", [{"crf": "18"}, {"crf": "23"}])
def test_repeats_are_known_behind_a_lossy_codec(tmp_path, options):
    shown = scene(1, 8, 8).repeat_interleave(3, 0).numpy()
    found = times(read_clip(save_clip(tmp_path / "a.mkv", shown, rate=Fraction(60), options=options)))
    assert sum(found) == 24 and found[-7:] == [3] * 7           # of the first picture it is not known how things move


@pytest.mark.parametrize("noise", [0, 2])
@pytest.mark.parametrize("speed", [0.05, 0.3])
def test_slow_things_before_a_still_camera_are_never_frozen(speed, noise):
    behind, generator = wall(5)[:, :, :96], torch.Generator().manual_seed(0)
    frames = []
    for i in range(20):
        thing, x = wall(6)[:, :24, :24], 20 + speed * i
        layer = torch.zeros(4, 72, 96)
        for place, weight in ((int(x), 1 - x % 1), (int(x) + 1, x % 1)):
            layer[:, 20:44, place:place + 24] += weight * torch.cat([thing, torch.ones(1, 24, 24)])
        frame = behind * (1 - layer[3]) + layer[:3] + noise / 255 * torch.randn(72, 96, generator=generator)
        frames.append((frame.clamp(0, 1) * 255).round().movedim(0, -1) / 255)
    assert times(frames) == [1] * 20
    assert times([frame * (1 - 0.004 * i) for i, frame in enumerate([frames[0]] * 20)]) == [1] * 20      # a slow fade


@pytest.mark.parametrize("options", [{}, {"steps": 2, "eta": 0.5}, {"window": 4, "overlap": 0}, {"ensemble": 2}])
def test_each_scene_comes_out_as_if_it_were_alone(tiny_model, options):
    scenes = [scene(1, 8, width=48, height=32), scene(21, 1, width=48, height=32), scene(41, 5, width=48, height=32)]
    deblurrer, options = Deblurrer(tiny_model, device="cpu"), SMALL | options
    alone = torch.cat([deblurrer.deblur(x, **options) for x in scenes])
    assert torch.equal(deblurrer.deblur(torch.cat(scenes), **options), alone)
    assert not torch.equal(deblurrer.deblur(torch.cat(scenes), scenes="off", **options), alone)


@pytest.mark.parametrize("options", [{}, {"steps": 2, "eta": 0.5}, {"ensemble": 2}])
def test_a_picture_that_is_shown_several_times_comes_out_as_if_once(tiny_model, options):
    x, deblurrer, options = scene(1, 9, width=48, height=32), Deblurrer(tiny_model, device="cpu"), SMALL | options
    counts = torch.tensor([1, 3, 2, 2, 5, 1, 1, 3, 2])
    out = deblurrer.deblur(x.repeat_interleave(counts, 0), **options)
    assert torch.equal(out, deblurrer.deblur(x, **options).repeat_interleave(counts, 0))


@pytest.mark.parametrize("options", [{}, {"window": 1, "overlap": 0}])
def test_a_restart_among_scenes_and_repeats_gives_the_same_bits(tiny_model, options):
    """From the clip's start on, or with the moments of the interrupted run from where they say, also where their last ones are lost."""
    a, b = scene(1, 4, width=48, height=32), scene(21, 12, width=48, height=32)
    x = torch.cat([a.repeat_interleave(2, 0), b[:3], b[3:].repeat_interleave(3, 0)])
    deblurrer, options, moments = Deblurrer(tiny_model, device="cpu"), DeblurOptions(**SMALL | options), []
    whole = torch.cat(list(deblurrer.stream(iter(x), options, moments=moments)))
    assert len(whole) == len(x) and moments == sorted(set(moments))
    for first in (1, 8, 9, 20, 30, len(x) - 1):
        for known in (moments, []):
            start = first_input_frame(first, options, known)
            assert start <= first and (known or start == 0)
            again = list(moments) if known else []
            out = torch.cat(list(deblurrer.stream(iter(x[start:]), options, first_frame=first, input_start=start, moments=again)))
            assert torch.equal(out, whole[first:]) and set(again) <= set(moments)
    assert first_input_frame(len(x) - 1, options, moments) >= 7


def test_progress_moves_within_a_window(tiny_model):
    seen = []
    Deblurrer(tiny_model, device="cpu").deblur(scene(1, 9, width=48, height=32), steps=4, progress=seen.append, **SMALL)
    positions = [state.position for state in seen]
    assert positions == sorted(positions) and positions[0] == 0 and positions[-1] < 9
    assert max(b - a for a, b in zip(positions, positions[1:])) < 1.2
    assert all(0 <= state.fraction < 1 for state in seen) and {state.stage for state in seen} == {"encode", "denoise", "decode"}
    assert sum(state.stage == "denoise" for state in seen) > 2 * 4 * tiny_model.unet.num_blocks          # within each call of the UNet too
    previews = [state.latents for state in seen if state.latents is not None]
    assert len(previews) == 2 * 4 and previews[0].shape[:3] == (1, 4, 6)
