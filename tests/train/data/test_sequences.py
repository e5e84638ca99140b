"""Data sets as people download them: many clips in one folder, folders of sharp frames, what archives add; memory that stays bounded."""
import shutil

import numpy as np
import pytest
import torch
from media_tools import pattern, save_clip
from PIL import Image

from train import readers
from train.data import PairClips, PhotoClips, VideoClips, open_clips
from train.data.__main__ import main
from train.data.photos import Photos, read_photos
from train.data.sequences import in_sequences


@pytest.mark.parametrize("names, expected", [
    (["a-000009", "a-000010", "b-4001", "b-4002"], {"a": 2, "b": 2}),
    (["0001_left", "0001_right", "0002_left", "0002_right"], {"left": 2, "right": 2}),
    (["1", "2", "5", "6", "7"], {"#0": 2, "#1": 3}),
    (["x_010", "x_020", "x_030", "x_050", "y_1", "y_2"], {"x#0": 3, "x#1": 1, "y": 2}),
    (["a", "a1", "a2"], {"a#0": 1, "a#1": 2}), (["a-1", "a-2", "a_1", "a_2", "a_3"], {"a#0": 2, "a#1": 3}),
    (["0.033", "0.067", "0.099", "0.134"], {"": 4}),                              # times
    (["frame9", "frame10", "frame11"], {"": 3}), (["paris 1", "rome 2"], {"": 2}), ([], {})])
def test_names_tell_which_pictures_follow_one_another(names, expected):
    found = in_sequences(reversed(names))
    assert {label: len(run) for label, run in found} == expected
    assert sorted(name for _, run in found for name in run) == sorted(names)
    assert all(run == [name for name in names if name in run] for _, run in found)


def film(folder, count, seed=0, name="{:06d}.png", first=1, size=(64, 48), step=2):
    """Frames of a camera that pans over noise."""
    folder.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 40, 3), dtype=np.uint8)
    scene = Image.fromarray(coarse).resize((size[0] + step * count, size[1]), Image.Resampling.BICUBIC)
    for i in range(count):
        scene.crop((step * i, 0, step * i + size[0], size[1])).save(folder / name.format(first + i))


def test_gopro_flat_in_input_and_target_is_several_clips(tmp_path):
    for seed, (clip, first) in enumerate((("GOPR0384_11_00", 1), ("GOPR0384_11_05", 4001), ("GOPR0385_11_01", 3011))):
        for side in ("input", "target"):
            film(tmp_path / "train" / side, 6, seed, clip + "-{:06d}.png", first)
    (tmp_path / "train/input/GOPR0384_11_05-004003.png").unlink()
    found = readers.find(tmp_path, "auto", "train")
    assert found.layout == "pairs" and [(s.name, len(s)) for s in found.sequences] == [
        ("train/GOPR0384_11_00", 6), ("train/GOPR0384_11_05#0", 2), ("train/GOPR0384_11_05#1", 3), ("train/GOPR0385_11_01", 6)]
    assert all(a.name == b.name for s in found.sequences for a, b in zip(s.sharp.paths, s.blurred.paths))
    for index in range(20):
        name = PairClips(found).batch(0, [index], num_frames=3, size=32, device="cpu").names[0]
        assert int(name.split("frames ")[1].split("..")[1]) < 6


def test_folders_of_sharp_frames_are_clips_and_blurred_as_their_rate_says(tmp_path):
    """240 frames a second are averaged over several; of 30 no two lie in one exposure's middle."""
    for name in ("GOPR0001", "GOPR0002"):
        film(tmp_path / "GOPRO_Large_all/train" / name, 40, step=1)
        film(tmp_path / "plain/train" / name, 40, step=1)
    film(tmp_path / "GOPRO_Large_all/test/GOPR0003", 12)
    found = readers.find(tmp_path / "GOPRO_Large_all", "auto", "train")
    assert found.layout == "frames" and [(s.name, len(s)) for s in found.sequences] == [("train/GOPR0001", 40), ("train/GOPR0002", 40)]
    error = {}
    for root in ("GOPRO_Large_all", "plain"):
        clips = open_clips(tmp_path / root, split="train")
        assert isinstance(clips, VideoClips)
        made = clips.batch(0, range(8), num_frames=2, size=32, device="cpu")
        spans = [np.ptp(list(map(int, name.split("frames ")[1].split("..")))) for name in made.names]
        error[root] = np.mean(spans)
    assert clips.sequences[0].sharp.rate == 30 and error["GOPRO_Large_all"] > 2 * error["plain"]
    assert main(["check", str(tmp_path / "GOPRO_Large_all"), "--split", "test"]) == 0
    film(tmp_path / "60fps", 9)
    assert readers.find(tmp_path / "60fps", "frames").sequences[0].sharp.rate == 60


def test_numbered_photographs_are_no_clip(tmp_path):
    """Twelve pictures of one size, numbered as frames are: only their pixels tell. One burst among them changes nothing."""
    for i in range(12):
        film(tmp_path, 1, seed=i, first=i + 1)
    film(tmp_path / "burst", 9, seed=50)
    assert readers.find(tmp_path).layout == "photos" and len(readers.find(tmp_path).sequences) == 21
    assert readers.find(tmp_path, "frames").layout == "frames"                     # who asks for it knows better


@pytest.mark.parametrize("layout", ["pairs", "photos", "frames", "videos"])
def test_what_archives_and_file_systems_add_is_no_data(tmp_path, layout):
    root = tmp_path / "set"
    if layout == "pairs":
        for side in ("blur", "sharp"):
            film(root / side, 4)
    elif layout == "videos":
        root.mkdir()
        save_clip(root / "a.mp4", [pattern(i) for i in range(9)])
    else:
        film(root / "frames", 10)
    before = [(s.name, len(s)) for s in readers.find(root, layout).sequences]
    for folder in [root, *(p for p in root.iterdir() if p.is_dir())]:
        for path in [p for p in folder.iterdir() if p.is_file()]:
            (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7 what macOS knows of a file")
    for name in ("__MACOSX", ".thumbnails", "@eaDir"):
        shutil.copytree(root, tmp_path / name)
        shutil.move(tmp_path / name, root / name)
    (root / "again").symlink_to(tmp_path)                                          # a link that leads back is no data either
    found = readers.find(root, layout)
    assert [(s.name, len(s)) for s in found.sequences] == before and not found.problems


@pytest.mark.parametrize("blurred, sharp, count", [("blur/blur_{}.png", "gt/gt_{}.png", 4), ("blur/real_blur.png", "gt/gt_sharp.png", 1),
                                                   ("real_blur/{}.png", "gt/{}.png", 4), ("input/{}_in.png", "target/{}_in.png", 4)])
def test_pairs_that_are_named_after_their_side(tmp_path, blurred, sharp, count):
    """RealBlur and RSBlur: no blurred picture becomes the truth."""
    for scene in ("scene001", "scene002"):
        for number in range(count):
            for name, value in ((blurred, 50), (sharp, 200)):
                path = tmp_path / scene / name.format(number + 1)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((16, 16, 3), value + number, np.uint8)).save(path)
    found = readers.find(tmp_path)
    assert [(s.name, len(s)) for s in found.sequences] == [("scene001", count), ("scene002", count)] and not found.problems
    for sequence in found.sequences:
        for frames, value in ((sequence.blurred, 50), (sequence.sharp, 200)):
            assert frames.read(range(count)).float().mean((1, 2, 3)).tolist() == [value + number for number in range(count)]


def test_a_video_of_an_unknown_codec_is_one_sentence(tmp_path, capsys):
    path = save_clip(tmp_path / "a.mp4", [pattern(i) for i in range(9)])
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1").replace(b"avcC", b"zzzC"))
    assert main(["check", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a.mp4" in error and "FFmpeg does not know (zzz1)" in error and "pair" not in error
    save_clip(tmp_path / "b.mp4", [pattern(i) for i in range(9)])
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "1 clips, 9 frames" in out and "FFmpeg does not know" in out


def test_photographs_are_kept_decoded_up_to_a_bound_and_stay_the_same(tmp_path):
    film(tmp_path, 12, step=5, size=(96, 80))
    photos = read_photos(tmp_path)
    small = Photos(photos.names, photos.sizes, photos.decode, {}, held=3 * 96 * 80 * 3 + 5)
    assert all(torch.equal(a, b) for a, b in zip(photos, small))
    assert small.decode.cache_info().currsize == 3 and photos.decode.cache_info().currsize == 12 and photos[2] is photos[2]
    clips, bounded = PhotoClips(tmp_path), PhotoClips(tmp_path)
    bounded.photos = bounded.originals = small
    shape = dict(num_frames=2, size=32, device="cpu")
    assert torch.equal(clips.batch(0, range(6), **shape).blurred, bounded.batch(0, range(6), **shape).blurred)


@pytest.mark.parametrize("vanishes", [False, True])
def test_a_photograph_that_breaks_off_or_vanishes_is_named_and_the_next_stands_in(tmp_path, vanishes):
    film(tmp_path, 3, step=30, size=(200, 200))
    broken = tmp_path / "000002.png"
    broken.write_bytes(broken.read_bytes()[:900])                                 # its header is whole
    photos = read_photos(tmp_path)
    unreadable = photos.unreadable
    assert len(photos) == 3 and not unreadable
    if vanishes:
        broken.unlink()
    assert torch.equal(photos[1], photos[2]) and list(unreadable) == ["000002.png"] and "000002.png" in unreadable["000002.png"]
    assert not torch.equal(photos[0], photos[1])
    assert main(["check", str(tmp_path)]) == 1 - vanishes


def photographs(folder, names, first_seed=0, size=(64, 48)):
    """One picture of another scene for each name."""
    for i, name in enumerate(names):
        film(folder, 1, first_seed + i, name.replace("{", "{{"), size=size)


HIDE = [f"{number}fromGOPR{recording}.png" for recording in (1096, 1097) for number in range(1, 6)]


@pytest.mark.parametrize("flat", [False, True])
def test_hides_photographs_stand_alone(tmp_path, flat):
    """As published, all sharp ones in `GT`, and as image deblurring has it. Ten photographs out of two recordings are no clip."""
    root = tmp_path / "HIDE"
    parts = ["test"] if flat else ["train", "test/test-close-ups", "test/test-long-shot"]
    for i, part in enumerate(parts):
        names = [f"{i}{name}" for name in HIDE]
        photographs(root / part / "input" if flat else root / part, names, 50)
        photographs(root / part / "target" if flat else root / "GT", names, 10 * i)
    found = readers.find(root)
    assert found.layout == ("pairs" if flat else "hide") and not found.problems
    assert {len(s) for s in found.sequences} == {1} and len(found.sequences) == 10 * len(parts)
    assert all(s.sharp.paths[0].name == s.blurred.paths[0].name and s.sharp.paths != s.blurred.paths for s in found.sequences)
    assert len(readers.find(root, split="test").sequences) == (10 if flat else 20)
    (root / ("test/target" if flat else "GT") / f"0{HIDE[0]}").unlink()
    assert "no partner of 01fromGOPR1096.png" in readers.find(root).problems[0]


@pytest.mark.parametrize("name", ["{:04d}.png", "GOPR0372_07_00-000047_s{:03d}.png"])
def test_pairs_that_do_not_look_like_neighbours_stand_alone(tmp_path, name):
    """Numbered photographs, and parts cut out of one frame: a clip of them would be none."""
    for side, seed in (("blur_crops", 50), ("sharp_crops", 0)):
        photographs(tmp_path / "train" / side, [name.format(i) for i in range(12)], seed)
    found = readers.find(tmp_path)
    assert found.layout == "pairs" and len(found.sequences) == 12 and {len(s) for s in found.sequences} == {1}
    clips = PairClips(found).batch(0, range(3), num_frames=1, size=32, device="cpu")
    assert clips.sharp.shape == (3, 3, 1, 32, 32) and not torch.equal(clips.sharp, clips.blurred)


def test_what_is_named_blurred_is_no_truth(tmp_path):
    """Sharp and blurred photographs whose names differ cannot be paired, and blurred ones are no photographs to synthesise blur from."""
    photographs(tmp_path / "sharp", [f"{i}_PHONE_S.png" for i in range(4)])
    photographs(tmp_path / "motion_blurred", [f"{i}_PHONE_M.png" for i in range(4)], 9)
    with pytest.raises(readers.DataError, match="motion_blurred holds blurred pictures, as its name says"):
        readers.find(tmp_path)
    assert len(readers.find(tmp_path, "photos").sequences) == 8 and len(readers.find(tmp_path / "sharp").sequences) == 4
    (tmp_path / "motion_blurred").rename(tmp_path / "deblurred")
    assert readers.find(tmp_path).layout == "photos"
