"""A deblurring job: nothing half done under the final name, the same frames after any interruption, previews that replace nothing."""
import dataclasses
import errno
import functools
import itertools
import os
import signal
import threading
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import av
import numpy as np
import pytest
import torch
from media_tools import OPTIONS, IdentityDeblurrer, deblur, packets, pattern, patterns, pictures, refused, save_clip, stopped, vdd

from vdd_model.app import jobs
from vdd_model.app.jobs import Job
from vdd_model.inference.pipeline import Deblurrer
from vdd_model.media import joining, sinks
from vdd_model.media.reader import VideoReader
from vdd_model.media.video import OutputOptions, part_folder, probe, read_clip, read_image, write_image

NEVER = IdentityDeblurrer(stop_after=0, error=AssertionError("it was called"))
AS_OPTIONS = ("--window", "6", "--overlap", "2", "--preset", "veryfast")


def decoded(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [b"".join(bytes(p) for p in frame.planes) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def clip_150(tmp_path_factory) -> Path:
    """150 frames: three segments."""
    return save_clip(tmp_path_factory.mktemp("clip") / "in.mp4", 150, audio=True)


@pytest.mark.parametrize("suffix, codec", [(".mp4", "h264"), (".mp4", "hevc"), (".mov", "prores"), (".mkv", "ffv1")])
def test_all_frames_arrive_also_after_interruptions(tmp_path, clip_150, suffix, codec):
    """Of several, at the start, within a segment, at its border: bit for bit the frames of one long run."""
    output, target, whole = OutputOptions(codec=codec), tmp_path / f"o{suffix}", tmp_path / f"whole{suffix}"
    outcome = deblur(clip_150, whole, output=output)
    assert outcome.frames == 150 and outcome.lost == 0 and outcome.notes == []
    before, after = probe(clip_150), probe(whole)
    assert after.num_frames == 150 and after.rate == before.rate and after.sound == ("aac",)
    difference = read_clip(after, 70) - read_clip(before, 70)
    assert difference.square().mean(dim=(1, 2, 3)).max() < 1e-4           # every frame in its place
    assert [p.name for p in tmp_path.iterdir()] == [whole.name]
    times = [t for t, _ in packets(whole, "video")]
    assert np.allclose(np.array(sorted(times)) - min(times), np.arange(150) / 25, atol=1.1e-3)
    for stop in (1, 40, 65, 130):
        stopped(clip_150, target, stop, output=output, resume=True)
        assert not target.exists() and part_folder(target).is_dir() == (stop > 1)      # nothing is left of a run without a frame
    refused("--resume", clip_150, target, output=output)
    told = []
    outcome = deblur(clip_150, target, output=output, resume=True, say=told.append)
    assert outcome.frames == 150 and "128 finished frames" in told[0]
    assert decoded(target) == decoded(whole) and [t for t, _ in packets(target, "video")] == times
    assert not part_folder(target).exists()


def test_resume_with_the_model_gives_the_same_frames(tmp_path, tiny_model):
    source = save_clip(tmp_path / "in.mp4", 31)
    model, output = Deblurrer(tiny_model, device="cpu"), OutputOptions(codec="ffv1")
    deblur(source, tmp_path / "whole.mkv", stand_in=model, output=output)

    def interrupted(*args, **keys):
        yield from itertools.islice(model.stream(*args, **keys), 3)
        raise KeyboardInterrupt
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            deblur(source, tmp_path / "o.mkv", stand_in=SimpleNamespace(stream=interrupted), output=output, resume=True)
    deblur(source, tmp_path / "o.mkv", stand_in=model, output=output, resume=True)
    assert decoded(tmp_path / "o.mkv") == decoded(tmp_path / "whole.mkv")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to tell which files are open")
def test_the_folder_goes_where_no_open_file_can_be_deleted(tmp_path, monkeypatch):
    """As on Windows."""
    real = os.unlink

    def unlink(path, **keywords):
        if Path(os.fsdecode(path)).name == "lock" and any(os.path.realpath(f).endswith("/lock") for f in Path("/proc/self/fd").iterdir()):
            raise PermissionError(13, "it is used by another process")
        real(path, **keywords)
    monkeypatch.setattr(os, "unlink", unlink)
    deblur(save_clip(tmp_path / "in.mp4", 7), tmp_path / "o.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "o.mp4"]


def test_a_folder_without_work_beside_the_output_is_cleared_away(tmp_path, capfd):
    source, target, folder = save_clip(tmp_path / "in.mp4", 7), tmp_path / "o.mp4", part_folder(tmp_path / "o.mp4")
    deblur(source, target)
    folder.mkdir()
    (folder / "lock").touch()
    vdd(capfd, source, "-o", target, "--resume")
    assert not folder.exists()
    folder.mkdir()
    (folder / "packets.bin").write_bytes(b"work")
    assert not jobs.is_finished(Job(source, target)) and (folder / "packets.bin").exists()
    (folder / "packets.bin").unlink()
    with jobs._locked(folder):
        assert not jobs.is_finished(Job(source, target)) and (folder / "lock").exists()
    out = tmp_path / "pictures"                                  # other files in a folder do not make it finished
    out.mkdir()
    (out / "keep.txt").touch()
    part_folder(out).mkdir()
    (part_folder(out) / "job.json").write_text("{}")
    assert not jobs.is_finished(Job((source,), out, as_images=True))


def test_resume_refuses_other_settings(tmp_path, clip_150, monkeypatch):
    target = tmp_path / "o.mp4"
    stopped(clip_150, target, 20)
    for words, change in (("steps was 1, is 4", {"options": dataclasses.replace(OPTIONS, steps=4)}), ("weights", {"identity": "others"}),
                          ("precision was", {"precision": "float32 on cpu"})):
        refused(words, clip_150, target, resume=True, **change)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "PROCESSING", 1000)
        refused("version of the processing was", clip_150, target, resume=True)
    assert deblur(clip_150, target, force=True).frames == 150
    files = pictures(tmp_path / "in", *range(20))
    stopped(files, tmp_path / "p.mp4", 8, rate=Fraction(24))
    refused("fps was 24, is 30", files, tmp_path / "p.mp4", rate=Fraction(30), resume=True)


def test_a_torn_tail_is_dropped(tmp_path, clip_150):
    """What a kill leaves half written, in the spool or in the packet file, is done again."""
    deblur(clip_150, tmp_path / "whole.mp4")
    target, folder = tmp_path / "o.mp4", part_folder(tmp_path / "o.mp4")
    stopped(clip_150, target, 100)
    spool = next(folder.glob("spool-*.raw"))
    spool.write_bytes(spool.read_bytes()[:-1000])
    with (folder / "packets.bin").open("ab") as file:
        file.write(b"VDDS" + bytes(100))
    assert deblur(clip_150, target, resume=True).frames == 150
    assert decoded(target) == decoded(tmp_path / "whole.mp4")


@pytest.mark.parametrize("behind", [False, True])
def test_a_kill_around_the_last_rename_loses_nothing(tmp_path, monkeypatch, capfd, behind):
    def killed(*_):
        raise SystemExit

    source, target, replace = save_clip(tmp_path / "in.mp4", 7), tmp_path / "o.mp4", os.replace
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_discard", killed)
        if not behind:
            patch.setattr(os, "replace", lambda a, b: killed() if Path(b) == target else replace(a, b))
        pytest.raises(SystemExit, deblur, source, target, identity="given")
    assert target.exists() == behind and (part_folder(target) / "packets.bin").exists()
    before = target.stat().st_ino if behind else None
    vdd(capfd, source, "-o", target, *AS_OPTIONS, "--resume")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "o.mp4"] and len(decoded(target)) == 7
    assert before in (None, target.stat().st_ino)                   # what was whole is left alone


@pytest.fixture
def interruptible():
    """Python's own answer to Ctrl-C, also where a shell started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_leave_nothing_under_the_name(tmp_path, clip_150, how, code, capfd, interruptible):
    def signalled(number, _):
        if number == 4:
            os.kill(os.getpid(), how)
            time.sleep(5)

    target = tmp_path / "o.mp4"
    command = [clip_150, "-o", target, *AS_OPTIONS]
    assert "--resume" in vdd(capfd, *command, model=IdentityDeblurrer(each=signalled), code=code) and not target.exists()
    assert "goes on after 16 finished frames" in vdd(capfd, *command, "--resume")
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"]


def test_mixed_pictures_come_out_whole(tmp_path):
    given = patterns(3) * torch.tensor([0, 1, 1])[:, None, None, None]
    for i, alpha in enumerate([None, None, torch.full((48, 64), 0.25)]):
        write_image(tmp_path / f"{i}.png", given[i], alpha, gray=i == 0)
    deblur(sorted(tmp_path.iterdir()), tmp_path / "out")
    for i, mean in enumerate((1, 1, 0.25)):
        rgb, opacity = read_image(tmp_path / "out" / f"{i}.png")
        assert (rgb - given[i]).abs().max() < 0.01 and abs(float(opacity.mean()) - mean) < 0.01


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError()])
def test_a_run_without_a_frame_leaves_nothing(tmp_path, clip_150, error):
    for target in (tmp_path / "o.mp4", tmp_path / "out"):
        stopped(clip_150, target, 0, error)
    assert list(tmp_path.iterdir()) == []


def test_pictures_become_a_video_and_lose_its_times_but_not_in_silence(tmp_path):
    deblur(pictures(tmp_path / "in", *range(9)), tmp_path / "o.mp4", output=OutputOptions(quality=4))
    clip = probe(tmp_path / "o.mp4")
    assert clip.num_frames == 9 and clip.color.matrix == clip.color.primaries == clip.color.transfer == 1
    assert deblur(tmp_path / "o.mp4", tmp_path / "frames").notes == []
    assert len(list((tmp_path / "frames").glob("frame_*.png"))) == 9
    source = save_clip(tmp_path / "in.mp4", 5, times=[0, 40, 95, 120, 181], time_base=Fraction(1, 1000))
    assert any("varying times" in note for note in deblur(source, tmp_path / "a").notes)


def test_what_an_encoder_or_a_small_disk_refuses_costs_no_work_and_leaves_nothing(tmp_path, clip_150, monkeypatch):
    write_image(tmp_path / "in.png", torch.zeros(16, 17000, 3))
    refused("h264 cannot store frames of 17000x16", [tmp_path / "in.png"], tmp_path / "o.mp4", stand_in=NEVER)
    monkeypatch.setattr(jobs.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    refused("of room while it is written", clip_150, tmp_path / "o.mp4", stand_in=NEVER)
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


@pytest.mark.parametrize("place, number, said", [("segment", 28, "no room left.* --resume"), ("segment", 27, "too large.* for --resume"),
                                                 ("join", 28, "no room left.* --resume")])
def test_a_full_disk_loses_nothing(tmp_path, clip_150, monkeypatch, place, number, said):
    target, end, told = tmp_path / "o.mp4", sinks.VideoSink._end_segment, []

    def full(*args, **keys):
        raise OSError(number, os.strerror(number))             # 27: also a file system whose files end at 4 GB

    with monkeypatch.context() as patch:
        if place == "segment":
            patch.setattr(sinks.VideoSink, "_end_segment", lambda self: full() if self.segment == 1 else end(self))
        else:
            patch.setattr(sinks, "join", full)
        refused(said, clip_150, target)
    assert not target.exists()
    assert deblur(clip_150, target, resume=True, say=told.append).frames == 150 and told
    deblur(clip_150, tmp_path / "whole.mp4")
    assert decoded(target) == decoded(tmp_path / "whole.mp4")


def test_sound_that_cannot_be_joined_may_be_left_away(tmp_path, clip_150, monkeypatch):
    """The pictures, which took hours, are not lost with it."""
    target, real, told = tmp_path / "o.mp4", joining.copied, []
    monkeypatch.setattr(joining, "copied", lambda *args: iter(list(real(*args))[::-1]))
    refused("--resume --no-audio", clip_150, target)
    assert deblur(clip_150, target, resume=True, output=OutputOptions(preset="veryfast", audio=False), say=told.append).frames == 150
    assert "150 finished frames" in told[0] and probe(target).sound == ()


def test_two_runs_do_not_mix(tmp_path, clip_150):
    target = tmp_path / "o.mp4"
    second = IdentityDeblurrer(each=lambda number, _: None if number else refused("another run", clip_150, target, resume=True))
    assert deblur(clip_150, target, stand_in=second).frames == 150


@pytest.mark.parametrize("call, number, refusal", [
    ("fcntl.flock", errno.ENOLCK, ""), ("fcntl.flock", errno.EOPNOTSUPP, ""), ("fcntl.flock", errno.EAGAIN, "another run"),
    ("os.fsync", errno.EINVAL, ""), ("os.fsync", errno.EIO, "cannot be written")])
def test_network_folders_that_lock_or_sync_nothing(tmp_path, monkeypatch, call, number, refusal):
    pytest.importorskip(call.partition(".")[0])
    source = save_clip(tmp_path / "in.mp4", 3)
    monkeypatch.setattr(call, Mock(side_effect=OSError(number, os.strerror(number))))
    attempt = functools.partial(refused, refusal) if refusal else deblur
    attempt(source, tmp_path / "o.mp4")
    assert (tmp_path / "o.mp4").exists() == (not refusal)


def test_reading_computing_and_writing_overlap(tmp_path, clip_150, monkeypatch):
    """While the model holds a chunk, the frames behind it are read and the chunk before it is written; then all threads end."""
    read, written, taken, before = [], [], [], set(threading.enumerate())
    iterate, write = VideoReader.__iter__, sinks.VideoSink.write
    monkeypatch.setattr(VideoReader, "__iter__", lambda self: (read.append(f.index) or f for f in iterate(self)))
    monkeypatch.setattr(sinks.VideoSink, "write", lambda self, rgb, *rest: (write(self, rgb, *rest), written.extend(rgb))[0])

    def wait(number, chunk):
        taken.extend(chunk)
        end = time.monotonic() + 30
        while number < 4 and (len(read) <= len(taken) or len(written) < number * OPTIONS.stride):
            assert time.monotonic() < end, f"chunk {number}: {len(read)} read, {len(taken)} taken, {len(written)} written"
            time.sleep(0.001)

    deblur(clip_150, tmp_path / "o.mp4", stand_in=IdentityDeblurrer(each=wait))
    assert len(written) == 150 and set(threading.enumerate()) <= before


def test_preview(tmp_path):
    brighter, source = IdentityDeblurrer(each=lambda _, chunk: (chunk + 0.2).clamp(0, 1)), save_clip(tmp_path / "in.mp4", 150)
    outcome = deblur(source, tmp_path / "o.mp4", stand_in=brighter, preview=True)
    picture = read_clip(tmp_path / "o.mp4.preview.png")[0]
    assert "preview" in outcome.notes[-1] and picture.shape == (48, 2 * 64 + 4, 3)
    assert 0.15 < (picture[:, 68:] - picture[:, :64]).mean() < 0.25
    video = probe(tmp_path / "o.mp4.preview.mp4")
    assert (video.num_frames, video.rate, video.width) == (150, 25, 64)
    after = ((read_clip(video) - read_clip(source)).mean(dim=(1, 3)) > 0.1).float().mean(dim=1)           # its part of each frame's width
    assert after.min() < 0.1 and after.max() > 0.9


def test_a_preview_that_fails_is_only_a_note(tmp_path):
    write_image(tmp_path / "in.png", torch.zeros(16, 17000, 3))          # wider than H.264 can be
    outcome = deblur([tmp_path / "in.png"], tmp_path / "o.png", preview=True)
    assert outcome.frames == 1 and (tmp_path / "o.png").exists()
    assert any("preview could not be written (h264 cannot store frames of 17000x16" in note for note in outcome.notes)


def test_a_preview_replaces_nothing(tmp_path, capsys):
    """Not the input, no file that was there, nor the preview of another output."""
    source = save_clip(tmp_path / "k.mp4.preview.mp4", 3)
    before = source.read_bytes()
    command = [source, "-o", tmp_path / "k.mp4", "--preview"]
    assert "would replace an input" in vdd(capsys, *command, "--force", code=1) and not (tmp_path / "k.mp4").exists()
    vdd(capsys, *command[:-1])
    vdd(capsys, *command, "--resume", code=1)
    assert source.read_bytes() == before
    other = save_clip(tmp_path / "k.mp4", 2)
    assert "would replace an output" in vdd(capsys, source, other, "-o", tmp_path / "both", "--preview", code=1)
    assert not (tmp_path / "both").exists()
    several = [*(save_clip(tmp_path / f"d{suffix}", 2) for suffix in (".mp4", ".mov")), "-o", tmp_path / "out", "--preview"]
    vdd(capsys, *several)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.preview.mp4")) == ["d.mov.preview.mp4", "d.mp4.preview.mp4"]
    for target in ("d.mp4", "d.mov"):
        (tmp_path / "out" / target).unlink()
    assert "exists already" in vdd(capsys, *several, code=1)
    vdd(capsys, *several, "--force")


def test_resume_adds_a_preview_that_is_missing(tmp_path, capsys):
    source = save_clip(tmp_path / "in.mp4", 3)
    command = [source, "-o", tmp_path / "o.mp4"]
    vdd(capsys, *command)
    written = (tmp_path / "o.mp4").stat().st_mtime_ns
    vdd(capsys, *command, "--resume", "--preview")
    assert probe(tmp_path / "o.mp4.preview.mp4").num_frames == 3 and (tmp_path / "o.mp4").stat().st_mtime_ns == written
    (tmp_path / "o.mp4.preview.mp4").unlink()
    save_clip(tmp_path / "o.mp4", [np.tile(pattern(0), (2, 2, 1))] * 3)              # an upscaled one
    vdd(capsys, *command, "--resume", "--preview")
    assert not (tmp_path / "o.mp4.preview.mp4").exists()
