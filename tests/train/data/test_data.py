"""Readers and sources: published layouts, pairs, videos, photographs; broken files; purity of samples; the command line."""
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from media_tools import pattern, save_clip, shifted, turned
from PIL import Image

from train.data import __main__ as contact
from train.data import clips as data
from train.data import readers
from train.data.clips import PairClips, PhotoClips, VideoClips, expose, open_clips
from train.data.readers import DataError
from train.synthesis.blur import synthesize
from train.synthesis.scene import BlurConfig
from vdd_model.media.video import probe, read_clip


def picture(seed: int, width: int = 48, height: int = 40, shift: int = 0) -> Image.Image:
    """Smooth random texture, moved right by `shift`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (10, 24, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((width * 2, height), Image.Resampling.BICUBIC)
    return large.crop((shift, 0, shift + width, height))


def write(folder: Path, count: int, first: int = 0, suffix: str = ".png", digits: int = 6, seed: int = 0, size=(48, 40)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        picture(seed, *size, shift=2 * (i - first)).save(folder / f"{i:0{digits}d}{suffix}", quality=95)


def write_video(path: Path, frames: int, seed: int = 0, rate: int = 30, speed: int = 2, size=(64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_clip(path, scene(frames, seed, speed, size), rate=Fraction(rate), options={"crf": "4", "g": "5"})


def scene(frames: int, seed: int = 0, speed: int = 2, size=(64, 48)) -> list[np.ndarray]:
    """Frames of a camera that pans, (H, W, 3) in [0, 1]."""
    return [np.asarray(picture(seed, *size, shift=speed * i), np.float32) / 255 for i in range(frames)]


def gopro(root: Path) -> Path:
    for split, name in (("train", "GOPR0001"), ("train", "GOPR0002"), ("test", "GOPR0003")):
        for kind, seed in (("blur", 1), ("blur_gamma", 2), ("sharp", 3)):
            write(root / split / name / kind, 6, first=1, seed=seed)
    return root


def test_gopro(tmp_path):
    root = gopro(tmp_path)
    assert [s.name for s in readers.find(root, split="train").sequences] == ["train/GOPR0001", "train/GOPR0002"]
    found = readers.find(root, split="test")
    assert found.layout == "gopro" and [len(s) for s in found.sequences] == [6] and not found.problems
    assert len(readers.find(root).sequences) == 3
    assert len(readers.find(root / "train", split="train").sequences) == 2
    gamma = readers.find(root, "gopro", "test", "blur_gamma").sequences[0]
    assert gamma.blurred.paths[0].parent.name == "blur_gamma"


DVD = [f"quantitative_datasets/{name}/{side}" for name in ("IMG_0003", "IMG_0001") for side in ("input", "GT")]        # without splits
REDS = [f"{split}/{split}_{side}/{name}" for split in ("train", "val") for side in ("blur", "sharp") for name in ("000", "001")]
BSD = [f"BSD_2ms16ms/{split}/071/{side}/RGB" for split in ("train", "valid", "test") for side in ("Blur", "Sharp")]
PAIRS = [folder.format(side) for side in ("blurry", "gt") for folder in ("flat/{}", "frames/{}/a")]


@pytest.mark.parametrize("layout, folders, split, names, sharp", [
    ("dvd", DVD, "test", ["quantitative_datasets/IMG_0003"], "quantitative_datasets/IMG_0003/GT"),
    ("dvd", DVD, "train", ["quantitative_datasets/IMG_0001"], "quantitative_datasets/IMG_0001/GT"),
    ("reds", REDS, "val", ["val/val_blur/000", "val/val_blur/001"], "val/val_sharp/000"),
    ("bsd", BSD, "val", ["BSD_2ms16ms/valid/071"], "BSD_2ms16ms/valid/071/Sharp/RGB"),
    ("pairs", PAIRS, "", ["flat", "frames/a"], "flat/gt")])
def test_published_layouts_and_folders_of_pairs(tmp_path, layout, folders, split, names, sharp):
    for folder in folders:
        write(tmp_path / folder, 3)
    found = readers.find(tmp_path, split=split)
    assert found.layout == layout and [s.name for s in found.sequences] == names and not found.problems
    assert found.sequences[0].sharp.paths[0].parent == tmp_path / sharp


def test_pairs_of_videos(tmp_path):
    write_video(tmp_path / "blur" / "a.mp4", 12, seed=1)
    write_video(tmp_path / "sharp" / "a.mp4", 12, seed=2)
    write_video(tmp_path / "blur" / "b.mp4", 5)
    found = readers.find(tmp_path)
    assert found.layout == "pairs" and [(s.name, len(s)) for s in found.sequences] == [(f"{tmp_path.name}/a", 12)]
    assert "b.mp4: no partner" in found.problems[0]
    clips = PairClips(found).batch(0, [0, 1], num_frames=4, size=32, device="cpu")
    assert clips.blurred.shape == (2, 3, 4, 32, 32)


@pytest.mark.parametrize("suffix, codec, options", [
    (".mp4", "libx264", {"g": "5"}),
    (".ts", "libx264", {"bf": "3", "g": "12"}), (".mpg", "mpeg2video", {"bf": "2", "g": "12", "threads": "1"}),
    (".avi", "libx264", {"bf": "3", "g": "12"}), (".avi", "mpeg4", {"bf": "2"}),
    (".mkv", "libx264", {"bf": "3", "g": "12", "x264-params": "open-gop=1"}), ("cut.mp4", "libx264", {"bf": "0", "g": "15"})])
def test_frames_of_any_container_are_those_of_the_reader(tmp_path, suffix, codec, options):
    """Some containers seek to places behind the one asked for, some do not tell when a frame is shown, some hide frames by an edit list."""
    path = save_clip(tmp_path / f"a{suffix}", [pattern(i) for i in range(75 if "cut" in suffix else 60)], codec=codec, options=options)
    if "cut" in suffix:
        path = shifted(path, tmp_path / "cut.mp4", 15, 22)
    whole = read_clip(path)
    frames = readers.VideoFrames("a", path)
    assert len(frames) == len(whole) >= 53 and frames.size == (64, 48) and frames.rate == 25
    for start in (0, 1, 11, 13, 30, 35, 47, len(whole) - 6, 20):
        numbers = range(start, start + 5)
        found = frames.read(numbers).movedim(1, -1).float() / 255
        assert (found - whole[start:start + 5]).abs().max() < 0.51 / 255
    assert torch.equal(frames.read(range(5, 6), (8, 4, 40, 36))[0], frames.read(range(5, 6))[0, :, 4:36, 8:40])


def test_a_recording_that_begins_between_key_frames_has_the_frames_that_can_be_decoded(tmp_path):
    data = save_clip(tmp_path / "a.ts", [pattern(i) for i in range(60)], options={"bf": "0", "g": "20", "sc_threshold": "0"}).read_bytes()
    packets = [data[i:i + 188] for i in range(0, len(data), 188)]
    tables = [p for p in packets if (p[1] & 0x1F) << 8 | p[2] in (0, 0x1000, 0x11)]           # what the stream is
    (tmp_path / "cut.ts").write_bytes(b"".join(tables[:3] + packets[len(packets) // 6:]))
    whole, frames = read_clip(tmp_path / "cut.ts"), readers.VideoFrames("a", tmp_path / "cut.ts")
    assert 30 < len(frames) == len(whole) < probe(tmp_path / "cut.ts").num_frames
    for start in (0, 7, len(whole) - 4):
        assert (frames.read(range(start, start + 4)).movedim(1, -1) / 255 - whole[start:start + 4]).abs().max() < 0.51 / 255


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_damaged_videos_give_the_right_frames_or_none(tmp_path, suffix):
    front = {"movflags": "faststart"} if suffix == ".mp4" else None
    path = save_clip(tmp_path / f"a{suffix}", [pattern(i) for i in range(60)], options={"bf": "2", "g": "12"}, container_options=front)
    whole, data = read_clip(path), bytearray(path.read_bytes())
    start = len(data) * 6 // 10
    data[start:start + 300] = bytes(i * 77 % 256 for i in range(300))
    path.write_bytes(data)
    frames, right = readers.VideoFrames("a", path), 0
    for i in range(len(frames)):
        try:
            found = frames.read(range(i, i + 1))[0].movedim(0, -1) / 255
        except DataError:
            continue
        near = (whole - found).abs().mean((1, 2, 3))
        assert near[i] < 0.01 or near.min() > 0.01              # itself, damaged, but no other
        right += bool(near[i] < 0.01)
    assert 5 < right < 60


def test_a_gap_in_both_folders_ends_a_run(tmp_path):
    """A frame of which either side is missing lies between its neighbours, whichever folder is looked at first."""
    for kind, numbers in (("blur", (1, 2, 4, 5, 6, 9, 10)), ("sharp", (1, 2, 3, 4, 5, 9, 10))):
        for number in numbers:
            write(tmp_path / "SEQ" / kind, 1, first=number, digits=1)
    found = readers.find(tmp_path)
    assert [[p.stem for p in s.sharp.paths] for s in found.sequences] == [["1", "2"], ["4", "5"], ["9", "10"]]
    assert [[p.stem for p in s.blurred.paths] for s in found.sequences] == [["1", "2"], ["4", "5"], ["9", "10"]]
    assert [s.name for s in found.sequences] == ["SEQ#0#0", "SEQ#0#1", "SEQ#1"]      # a part of a run, another run
    assert "no partner of 6.png" in found.problems[0] and "no partner of 3.png" in found.problems[1]


def test_nothing_found_is_one_clear_sentence(tmp_path):
    for folder, layout, words in (("", "auto", "holds no clips or photographs"), ("nowhere", "auto", "there is no folder"),
                                  ("", "gopr", "no layout is called 'gopr'")):
        with pytest.raises(DataError, match=words):
            readers.find(tmp_path / folder, layout)


def test_blurred_frames_never_become_the_truth(tmp_path):
    """A pair that cannot be used is refused with its reason, and not read as two sharp videos or as photographs."""
    write_video(tmp_path / "v" / "blurred" / "x.mp4", 6)
    write_video(tmp_path / "v" / "sharp" / "x.mp4", 5)
    for layout in ("auto", "pairs"):
        with pytest.raises(readers.DataError, match="no pair .* can be used; the first: .*x.mp4: 6 frames"):
            readers.find(tmp_path / "v", layout)
    write(tmp_path / "p" / "blur", 3)
    write(tmp_path / "p" / "sharp", 3)
    for folder, layout in (("p", "photos"), ("v", "videos")):
        with pytest.raises(readers.DataError, match="side by side"):
            readers.find(tmp_path / folder, layout)
    assert len(readers.find(tmp_path / "p" / "sharp", "photos").sequences) == 3


def test_photographs_of_another_split_are_not_trained_on(tmp_path):
    for split, seed in (("train", 1), ("val", 2)):
        write(tmp_path / split, 2, seed=seed, digits=3 + seed)
    for layout in ("photos", "auto"):
        assert open_clips(tmp_path, layout, "train").names == ["train/0000.png", "train/0001.png"]


def test_what_is_left_out_of_training_is_named(tmp_path):
    for name, count in (("a", 6), ("b", 3), ("c", 3)):
        for kind in ("blur", "sharp"):
            write(tmp_path / name / kind, count)
    (tmp_path / "a" / "sharp" / "000005.png").unlink()
    clips = open_clips(tmp_path, "gopro")
    clips.batch(0, [0], num_frames=4, size=32, device="cpu")
    told = " ".join(clips.unreadable.values())
    assert "no partner of 000005.png" in told and "2 of 3 clips have fewer than 4 frames" in told


def test_no_clip_holds_a_cut_between_scenes(tmp_path):
    save_clip(tmp_path / "a.mp4", scene(12, 0) + scene(12, 1))
    clips, starts = open_clips(tmp_path, "videos"), set()
    for index in range(12):
        name = clips.batch(0, [index], num_frames=4, size=32, device="cpu").names[0]
        first, last = map(int, name.rpartition(" ")[2].split(".."))
        assert last < 12 or first >= 12
        starts.add(first >= 12)
    assert starts == {False, True} and not clips.unreadable
    (tmp_path / "a.mp4").unlink()
    save_clip(tmp_path / "b.mp4", [frame for seed in range(6) for frame in scene(2, seed)])
    with pytest.raises(readers.DataError, match="met a cut between scenes"):
        open_clips(tmp_path, "videos").batch(0, [0], num_frames=4, size=32, device="cpu")


def test_blur_that_nobody_looks_at_is_not_computed(tmp_path, monkeypatch):
    """The autoencoder and the denoiser learn from sharp frames alone."""
    write_video(tmp_path / "a.mp4", 24, speed=4)
    monkeypatch.setattr(data, "expose", None)
    clips = open_clips(tmp_path, "videos", blur=BlurConfig(max_subsamples=1, noise=0, codec=0))
    batch = clips.batch(0, [0], num_frames=3, size=32, device="cpu")
    assert (batch.blurred - batch.sharp).abs().max() < 3 / 255


def test_samples_are_pure_and_pairs_stay_aligned(tmp_path):
    root = gopro(tmp_path)
    for path in root.rglob("blur/*.png"):                        # blurred = sharp: any difference in crop or flip would show
        path.write_bytes((path.parents[1] / "sharp" / path.name).read_bytes())
    source = open_clips(root, "auto", "train")
    clips = source.batch(3, [10, 11, 12, 13], num_frames=3, size=24, device="cpu")
    assert torch.equal(clips.blurred, clips.sharp)
    again = open_clips(root, "auto", "train")
    assert torch.equal(again.batch(3, [12], num_frames=3, size=24, device="cpu").sharp[0], clips.sharp[2])
    assert clips.names[0].startswith("train/GOPR")
    many = source.batch(3, range(40), num_frames=3, size=24, device="cpu")
    assert len(set(many.names)) > 5
    starts = {name.split()[-1] for name in many.names}
    assert {"0..2", "3..5"} <= starts


def test_flips_and_time_reversal_happen(tmp_path):
    root = gopro(tmp_path)
    source = open_clips(root, "auto", "test")
    original = source.sequences[0].sharp.read(range(6)).transpose(0, 1).float() / 255
    seen = set()
    for index in range(24):
        sample = source.batch(0, [index], num_frames=6, size=40, device="cpu").sharp[0]
        for mirror in (False, True):
            for reverse in (False, True):
                flipped = original.flip([d for d, on in ((3, mirror), (1, reverse)) if on])
                if any(torch.equal(sample, flipped[..., x:x + 40]) for x in range(9)):
                    seen.add((mirror, reverse))
    assert len(seen) == 4


def test_unreadable_files_are_skipped_counted_and_named(tmp_path):
    root = gopro(tmp_path)
    broken = root / "train/GOPR0001/blur/000004.png"
    broken.write_bytes(broken.read_bytes()[:200])
    source = open_clips(root, "auto", "train")
    clips = source.batch(0, range(30), num_frames=3, size=24, device="cpu")
    assert len(clips.sharp) == 30
    assert list(source.unreadable) == [str(broken)]
    again = open_clips(root, "auto", "train").batch(0, [17], num_frames=3, size=24, device="cpu")
    assert torch.equal(again.sharp[0], clips.sharp[17])


def test_frames_that_differ_in_size_are_left_out_and_named(tmp_path):
    """A whole clip of smaller blurred frames, and one frame inside another clip: no crop ever gets a black border."""
    root = gopro(tmp_path)
    for path in root.rglob("*.png"):
        Image.new("L", (48, 40), 200).save(path)
    for path in (root / "train/GOPR0001/blur").iterdir():
        Image.new("L", (36, 30), 200).save(path)
    odd = root / "train/GOPR0002/sharp/000005.png"
    Image.new("L", (48, 30), 200).save(odd)
    source = open_clips(root, "auto", "train")
    clips = source.batch(0, range(30), num_frames=3, size=24, device="cpu")
    assert clips.blurred.min() == clips.sharp.min() == 200 / 255
    assert list(source.unreadable) == ["train/GOPR0001", str(odd)]
    assert "differ in size (36 x 30 and 48 x 40 pixels)" in source.unreadable["train/GOPR0001"]
    assert "48 x 30 pixels, the clip's first frame has 48 x 40" in source.unreadable[str(odd)]
    for path in (root / "train/GOPR0002/blur").iterdir():
        Image.new("L", (50, 40), 200).save(path)
    with pytest.raises(DataError, match="none of the 2 clips can be used; the first: train/GOPR0001: its blurred and sharp"):
        open_clips(root, "auto", "train").batch(0, [0], num_frames=3, size=24, device="cpu")


def test_too_short_and_too_small_clips_are_refused(tmp_path):
    source = open_clips(gopro(tmp_path), "auto", "train")
    for frames, size in ((16, 24), (3, 256)):
        with pytest.raises(DataError, match=f"none of the 2 clips has {frames} frames of at least {size} x {size}"):
            source.batch(0, [0], num_frames=frames, size=size, device="cpu")


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (0, 1, 1, 0), (0, 1, -1, 0)])
def test_videos_are_shown_as_players_show_them(tmp_path, matrix):
    """Mirrored, mirrored and turned, turned: training sees the pictures that deblurring sees."""
    path = turned(save_clip(tmp_path / "a.mp4", [pattern(i) for i in range(3)]), matrix)
    seen = readers.VideoFrames("a", path).read(range(3))
    assert torch.equal(seen, (read_clip(path) * 255).round().to(torch.uint8).permute(0, 3, 1, 2))


def test_sharp_videos(tmp_path):
    write_video(tmp_path / "a.mp4", 24, speed=4)
    write_video(tmp_path / "fast.mp4", 40, rate=240, speed=1)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "lost.mp4").symlink_to(tmp_path / "no drive")
    found = readers.find(tmp_path)
    assert found.layout == "videos" and len(found.sequences) == 2
    assert len(found.problems) == 2 and "broken.mp4" in found.problems[0] and "lost.mp4" in found.problems[1]
    source = VideoClips(found, BlurConfig(noise=0.0, codec=0.0))
    clips = source.batch(0, range(3), num_frames=3, size=32, device="cpu")
    assert clips.blurred.shape == clips.sharp.shape == (3, 3, 3, 32, 32)
    assert 1e-6 < (clips.blurred - clips.sharp).square().mean() < 0.01
    again = VideoClips(found, BlurConfig(noise=0.0, codec=0.0)).batch(0, [2], num_frames=3, size=32, device="cpu")
    assert torch.equal(again.sharp[0], clips.sharp[2])


def test_interpolated_exposure_equals_the_average_of_real_frames():
    """Frames 4 pixels apart, interpolated, against the true average of frames a quarter pixel apart; plain blending is far off."""
    wide = np.asarray(picture(5, 400, 40)).astype(np.float32) / 255
    texture = torch.from_numpy(wide).permute(2, 0, 1)

    def at(position: float) -> torch.Tensor:
        low = int(np.floor(position))
        return (1 - position + low) * texture[:, :, low:low + 120] + (position - low) * texture[:, :, low + 1:low + 121]

    frames = torch.stack([at(40 + 4 * i) for i in range(3)])
    truth = torch.stack([at(44 + 0.25 * k) for k in range(-15, 16)]).mean(0)
    ours = expose(frames, frames, 1, 0.96, {})
    inside = (slice(None), slice(4, -4), slice(10, -10))
    error = (ours - truth)[inside].square().mean()
    blend = (frames.mean(0) - truth)[inside].square().mean()
    assert error < 0.1 * blend


def test_check_prints_what_is_there(tmp_path, capsys):
    root = gopro(tmp_path)
    assert contact.main(["check", str(root), "--split", "train"]) == 0
    out = capsys.readouterr().out
    assert "layout gopro, 2 clips, 12 frames" in out and "dB PSNR, mean of 12 frames" in out and "nothing is missing" in out
    (root / "train/GOPR0001/sharp/000002.png").write_bytes(b"broken")
    (root / "train/GOPR0002/sharp/000005.png").unlink()
    assert contact.main(["check", str(root), "--split", "train"]) == 1
    out = capsys.readouterr().out
    assert "1 unreadable" in out and "000002.png: cannot be read" in out and "no partner of 000005.png" in out
    assert contact.main(["check", str(tmp_path / "nowhere")]) == 2


def test_contact_sheet(tmp_path, capsys):
    root = gopro(tmp_path / "clips")
    sheet = tmp_path / "sheet.png"
    assert contact.main(["contact", str(root), "-o", str(sheet), "--count", "2", "--frames", "3", "--size", "16", "--zoom", "2"]) == 0
    assert Image.open(sheet).size == (3 * 16 * 2, 2 * 2 * 16 * 2)
    for text, words in (("extnt=3", "did you mean 'extent'"), ("extent=[1", "not YAML"), ("extent", "expected KEY=VALUE")):
        assert contact.main(["contact", str(root), "-o", str(sheet), "--set", text]) == 2
        assert words in capsys.readouterr().err
    assert contact.main(["contact", str(root), "-o", str(tmp_path / "new" / "sheet"), "--frames", "3", "--size", "16"]) == 0
    assert Image.open(tmp_path / "new" / "sheet").format == "PNG"
    assert contact.main(["contact", str(root), "-o", str(sheet / "sheet.png"), "--frames", "3", "--size", "16"]) == 2
    assert f"{sheet / 'sheet.png'} cannot be written: " in (error := capsys.readouterr().err) and error.count("\n") == 1
    for name in ("count", "frames", "size"):
        with pytest.raises(SystemExit):
            contact.main(["contact", str(root), "-o", str(sheet), f"--{name}", "0"])
        assert f"--{name}: 0 is below 1" in capsys.readouterr().err


def test_scenes_are_cut_into_samples_that_depend_on_their_index_alone(tmp_path):
    for i in range(2):
        picture(i, 300, 240).save(tmp_path / f"{i}.png")
    source = PhotoClips(tmp_path, BlurConfig(cut=2, extent=(1.0, 3.0)))
    shape = {"num_frames": 2, "size": 32, "device": "cpu"}
    together = source.batch(5, [3, 4, 7], **shape)
    for row, index in enumerate((3, 4, 7)):
        alone = source.batch(5, [index], **shape)
        assert torch.equal(together.blurred[row], alone.blurred[0]) and torch.equal(together.sharp[row], alone.sharp[0])
    scene = synthesize(source.photos, 5, [1], num_frames=2, size=64, config=BlurConfig(extent=(1.0, 3.0)))[1][0]
    for sample, part in ((together.sharp[1], scene[:, :, :32, :32]), (together.sharp[2], scene[:, :, 32:, 32:])):   # samples 4 and 7
        assert any(torch.allclose(sample, turned) for turned in turns(part))


def turns(x):
    """Upright, rows and columns swapped, on its head, both."""
    return x, x.mT, x.flip(-2), x.mT.flip(-2)


def test_photographs_come_in_every_orientation_and_both_sides_of_a_pair_in_the_same(tmp_path):
    picture(0, 200, 160).save(tmp_path / "0.png")
    config = BlurConfig(extent=(2.0, 4.0))
    source = PhotoClips(tmp_path, config)
    clips = source.batch(7, range(24), num_frames=2, size=24, device="cpu")
    seen = set()
    for i in range(24):
        blurred, sharp = synthesize(source.photos, 7, [i], num_frames=2, size=24, config=config)
        same = [k for k, pair in enumerate(zip(turns(blurred[0]), turns(sharp[0])))
                if torch.equal(pair[0], clips.blurred[i]) and torch.equal(pair[1], clips.sharp[i])]
        assert len(same) == 1
        seen |= set(same)
    assert seen == {0, 1, 2, 3}
