"""A deblurring job: nothing half done under the final name, and the same frames after any interruption."""
import contextlib
import dataclasses
import errno
import os
import signal
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_tools import OPTIONS, IdentityDeblurrer, deblur, packets, pattern, pictures, save_clip

from vdd_model.app import jobs
from vdd_model.app.cli import main
from vdd_model.app.jobs import Job
from vdd_model.inference.pipeline import Deblurrer
from vdd_model.media import joining, sinks
from vdd_model.media.clip import MediaError
from vdd_model.media.reader import VideoReader
from vdd_model.media.video import OutputOptions, part_folder, probe, read_clip, read_image, write_image


def decoded(path: Path) -> list[bytes]:
    """The planes of every frame."""
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
        with pytest.raises(KeyboardInterrupt):
            deblur(clip_150, target, output=output, stand_in=IdentityDeblurrer(stop_after=stop), resume=True)
        assert not target.exists() and part_folder(target).is_dir() == (stop > 1)      # nothing is left of a run without a frame
    with pytest.raises(MediaError, match="--resume"):
        deblur(clip_150, target, output=output)
    told = []
    outcome = deblur(clip_150, target, output=output, resume=True, say=told.append)
    assert outcome.frames == 150 and "128 finished frames" in told[0]
    assert decoded(target) == decoded(whole) and [t for t, _ in packets(target, "video")] == times
    assert not part_folder(target).exists()


def test_resume_with_the_model_gives_the_same_frames(tmp_path, tiny_model):
    """The whole chain, with windows that blend into each other."""
    source = save_clip(tmp_path / "in.mp4", 31)
    model = Deblurrer(tiny_model, device="cpu")
    output = OutputOptions(codec="ffv1")
    deblur(source, tmp_path / "whole.mkv", stand_in=model, output=output)

    class Interrupted:
        def stream(self, *args, **keys):
            for count, chunk in enumerate(model.stream(*args, **keys)):
                if count == 3:
                    raise KeyboardInterrupt
                yield chunk

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            deblur(source, tmp_path / "o.mkv", stand_in=Interrupted(), output=output, resume=True)
    deblur(source, tmp_path / "o.mkv", stand_in=model, output=output, resume=True)
    assert decoded(tmp_path / "o.mkv") == decoded(tmp_path / "whole.mkv")


def test_the_folder_goes_where_no_open_file_can_be_deleted(tmp_path, monkeypatch):
    """As on Windows."""
    source = save_clip(tmp_path / "in.mp4", 7)
    real, target = os.unlink, tmp_path / "o.mp4"

    def unlink(path, **keywords):
        if Path(os.fsdecode(path)).name == "lock" and any(os.path.realpath(f).endswith("/lock") for f in Path("/proc/self/fd").iterdir()):
            raise PermissionError(13, "it is used by another process")
        real(path, **keywords)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell which files are open")
    monkeypatch.setattr(os, "unlink", unlink)
    deblur(source, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "o.mp4"]


def test_a_folder_without_work_beside_the_output_is_cleared_away(tmp_path):
    source, target = save_clip(tmp_path / "in.mp4", 7), tmp_path / "o.mp4"
    deblur(source, target)
    folder = part_folder(target)
    folder.mkdir()
    (folder / "lock").touch()
    assert main(["deblur", str(source), "-o", str(target), "--resume"], IdentityDeblurrer()) == 0 and not folder.exists()
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
    with pytest.raises(KeyboardInterrupt):
        deblur(clip_150, target, stand_in=IdentityDeblurrer(stop_after=20))
    with pytest.raises(MediaError, match="steps was 1, is 4"):
        deblur(clip_150, target, resume=True, options=dataclasses.replace(OPTIONS, steps=4))
    with monkeypatch.context() as patch, pytest.raises(MediaError, match="version of the processing was"):
        patch.setattr(jobs, "PROCESSING", 1000)
        deblur(clip_150, target, resume=True)
    with pytest.raises(MediaError, match="weights"):
        deblur(clip_150, target, resume=True, identity="others")
    with pytest.raises(MediaError, match="precision was"):
        deblur(clip_150, target, resume=True, precision="float32 on cpu")
    assert deblur(clip_150, target, force=True).frames == 150
    files = pictures(tmp_path / "in", *range(20))
    with pytest.raises(KeyboardInterrupt):
        deblur(files, tmp_path / "p.mp4", rate=Fraction(24), stand_in=IdentityDeblurrer(stop_after=8))
    with pytest.raises(MediaError, match="fps was 24, is 30"):
        deblur(files, tmp_path / "p.mp4", rate=Fraction(30), resume=True)


def test_a_torn_tail_is_dropped(tmp_path, clip_150):
    """What a kill leaves half written, in the spool or in the packet file, is done again."""
    deblur(clip_150, tmp_path / "whole.mp4")
    target = tmp_path / "o.mp4"
    with pytest.raises(KeyboardInterrupt):
        deblur(clip_150, target, stand_in=IdentityDeblurrer(stop_after=100))
    folder = part_folder(target)
    spool = next(folder.glob("spool-*.raw"))
    spool.write_bytes(spool.read_bytes()[:-1000])
    with (folder / "packets.bin").open("ab") as file:
        file.write(b"VDDS" + bytes(100))
    assert deblur(clip_150, target, resume=True).frames == 150
    assert decoded(target) == decoded(tmp_path / "whole.mp4")


@pytest.mark.parametrize("behind", [False, True])
def test_a_kill_around_the_last_rename_loses_nothing(tmp_path, monkeypatch, behind):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    source, target = save_clip(tmp_path / "in.mp4", 7), tmp_path / "o.mp4"
    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_discard", killed)
        if not behind:
            patch.setattr(os, "replace", lambda a, b: killed() if Path(b) == target else replace(a, b))
        with pytest.raises(Killed):
            deblur(source, target, identity="given")
    assert target.exists() == behind and (part_folder(target) / "packets.bin").exists()
    before = target.stat().st_ino if behind else None
    command = ["deblur", str(source), "-o", str(target), "--window", "6", "--overlap", "2", "--preset", "veryfast", "--resume"]
    assert main(command, IdentityDeblurrer()) == 0
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
    class Signalled(IdentityDeblurrer):
        def stream(self, *args, **keys):
            for count, chunk in enumerate(super().stream(*args, **keys)):
                if count == 4:
                    os.kill(os.getpid(), how)
                    time.sleep(5)
                yield chunk

    target = tmp_path / "o.mp4"
    command = ["deblur", str(clip_150), "-o", str(target), "--window", "6", "--overlap", "2", "--preset", "veryfast"]
    assert main(command, Signalled()) == code
    error = capfd.readouterr().err
    assert "--resume" in error and "Traceback" not in error and not target.exists()
    assert main([*command, "--resume"], IdentityDeblurrer()) == 0
    assert "goes on after 16 finished frames" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"]


def test_mixed_pictures_come_out_whole(tmp_path):
    """A black lead-in that is stored in grey, then colors, then transparency: every picture keeps its own."""
    folder = tmp_path / "in"
    folder.mkdir()
    alphas = [None, None, torch.full((48, 64), 0.25)]
    for i, alpha in enumerate(alphas):
        write_image(folder / f"{i}.png", torch.from_numpy(pattern(i)) * (i > 0), alpha, gray=i == 0)
    deblur(sorted(folder.iterdir()), tmp_path / "out")
    for i, alpha in enumerate(alphas):
        rgb, opacity = read_image(tmp_path / "out" / f"{i}.png")
        assert (rgb - torch.from_numpy(pattern(i)) * (i > 0)).abs().max() < 0.01
        assert abs(float(opacity.mean()) - (1 if alpha is None else 0.25)) < 0.01


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError()])
def test_a_run_without_a_frame_leaves_nothing(tmp_path, clip_150, error):
    """So that the corrected command is not held up."""
    for target in (tmp_path / "o.mp4", tmp_path / "out"):
        with pytest.raises(type(error)):
            deblur(clip_150, target, stand_in=IdentityDeblurrer(stop_after=0, error=error))
    assert list(tmp_path.iterdir()) == []


def test_pictures_to_video_and_back(tmp_path):
    deblur(pictures(tmp_path / "in", *range(9)), tmp_path / "o.mp4", output=OutputOptions(quality=4))
    clip = probe(tmp_path / "o.mp4")
    assert clip.num_frames == 9 and clip.color.matrix == clip.color.primaries == clip.color.transfer == 1
    deblur(tmp_path / "o.mp4", tmp_path / "frames")
    assert len(list((tmp_path / "frames").glob("frame_*.png"))) == 9


def test_pictures_lose_times_but_not_in_silence(tmp_path):
    source = save_clip(tmp_path / "in.mp4", 5, times=[0, 40, 95, 120, 181], time_base=Fraction(1, 1000))
    assert any("varying times" in note for note in deblur(source, tmp_path / "a").notes)
    assert deblur(save_clip(tmp_path / "plain.mp4", 2), tmp_path / "c").notes == []


def test_what_an_encoder_refuses_costs_no_work_and_leaves_nothing(tmp_path):
    write_image(tmp_path / "in.png", torch.zeros(16, 17000, 3))
    with pytest.raises(MediaError, match="h264 cannot store frames of 17000x16"):
        deblur([tmp_path / "in.png"], tmp_path / "o.mp4", stand_in=IdentityDeblurrer(stop_after=0, error=AssertionError()))
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


def test_room_is_checked_beforehand(tmp_path, clip_150, monkeypatch):
    monkeypatch.setattr(jobs.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(MediaError, match="of room while it is written"):
        deblur(clip_150, tmp_path / "o.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["segment", "join"])
def test_a_full_disk_loses_nothing(tmp_path, clip_150, monkeypatch, place):
    """The disk runs full while segments are written, or while they are joined; --resume goes on once there is room."""
    target, real_end, real_join = tmp_path / "o.mp4", sinks.VideoSink._end_segment, sinks.join

    def full(*args, **keys):
        raise OSError(28, "No space left on device")

    if place == "segment":
        monkeypatch.setattr(sinks.VideoSink, "_end_segment", lambda self: full() if self.segment == 1 else real_end(self))
    else:
        monkeypatch.setattr(sinks, "join", full)
    with pytest.raises(MediaError, match="no room left"):
        deblur(clip_150, target)
    assert not target.exists()
    monkeypatch.setattr(sinks.VideoSink, "_end_segment", real_end)
    monkeypatch.setattr(sinks, "join", real_join)
    told = []
    assert deblur(clip_150, target, resume=True, say=told.append).frames == 150
    assert told
    deblur(clip_150, tmp_path / "whole.mp4")
    assert decoded(target) == decoded(tmp_path / "whole.mp4")


def test_sound_that_cannot_be_joined_may_be_left_away(tmp_path, clip_150, monkeypatch):
    """The pictures, which took hours, are not lost with it."""
    target, real = tmp_path / "o.mp4", joining.copied
    monkeypatch.setattr(joining, "copied", lambda *args: iter(list(real(*args))[::-1]))
    with pytest.raises(MediaError, match="--resume --no-audio"):
        deblur(clip_150, target)
    told = []
    assert deblur(clip_150, target, resume=True, output=OutputOptions(preset="veryfast", audio=False), say=told.append).frames == 150
    assert "150 finished frames" in told[0] and probe(target).sound == ()


def test_two_runs_do_not_mix(tmp_path, clip_150):
    target = tmp_path / "o.mp4"

    class Second(IdentityDeblurrer):
        def stream(self, *args, **keys):
            with pytest.raises(MediaError, match="another run"):
                deblur(clip_150, target, resume=True)
            yield from super().stream(*args, **keys)

    assert deblur(clip_150, target, stand_in=Second()).frames == 150


@pytest.mark.parametrize("call, number, refusal", [
    ("fcntl.flock", errno.ENOLCK, ""), ("fcntl.flock", errno.EOPNOTSUPP, ""), ("fcntl.flock", errno.EAGAIN, "another run"),
    ("os.fsync", errno.EINVAL, ""), ("os.fsync", errno.EIO, "cannot be written")])
def test_network_folders_that_lock_or_sync_nothing(tmp_path, monkeypatch, call, number, refusal):
    pytest.importorskip(call.partition(".")[0])
    source = save_clip(tmp_path / "in.mp4", 3)

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, refuse)
    with pytest.raises(MediaError, match=refusal) if refusal else contextlib.nullcontext():
        assert deblur(source, tmp_path / "o.mp4").frames == 3


def test_reading_computing_and_writing_overlap(tmp_path, clip_150, monkeypatch):
    """While the model holds a chunk, the frames behind it are read and the chunk before it is written; then all threads end."""
    read, written, taken, before = [], [], [], set(threading.enumerate())
    iterate, write = VideoReader.__iter__, sinks.VideoSink.write
    monkeypatch.setattr(VideoReader, "__iter__", lambda self: (read.append(f.index) or f for f in iterate(self)))
    monkeypatch.setattr(sinks.VideoSink, "write", lambda self, rgb, *rest: (write(self, rgb, *rest), written.extend(rgb))[0])

    class Watcher(IdentityDeblurrer):
        def stream(self, frames, options, **keys):
            for number, chunk in enumerate(super().stream((taken.append(f) or f for f in frames), options, **keys)):
                end = time.monotonic() + 30
                while number < 4 and (len(read) <= len(taken) or len(written) < number * options.stride):
                    assert time.monotonic() < end, f"chunk {number}: {len(read)} read, {len(taken)} taken, {len(written)} written"
                    time.sleep(0.001)
                yield chunk

    deblur(clip_150, tmp_path / "o.mp4", stand_in=Watcher())
    assert len(written) == 150 and set(threading.enumerate()) <= before
