"""Deblur Video, and what its widgets share with Deblur Frames: files written, found again, gone on with. A tiny random model."""
import io
import os
import shutil
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from media_tools import heard, lpcm, pattern, save_clip

from tests.nodes.conftest import TINY, Cancelled
from vdd_model.media.video import probe, read_clip, write_video

WIDGETS = {"checkpoint": TINY, "steps": 1, "guidance": 1.0, "fidelity": 1.0, "color": "wavelet", "seed": 0, "window": 4, "overlap": 1}


def write_clip(folder, frames: int = 3, width: int = 48, rate=24):
    """A clip of noise."""
    return write_video(folder / "clip.mp4", list(torch.rand(frames, 32, width, 3, generator=torch.Generator().manual_seed(0))), rate)


@pytest.fixture()
def video(pack):
    """The host's class of videos in files."""
    return pack.host["comfy_api.latest"].InputImpl.VideoFromFile


@pytest.fixture()
def deblur(pack):
    """Deblur Video: the file that it hands on."""
    return lambda video, **changes: pack.nodes["VDDDeblurVideo"].execute(video, **{**WIDGETS, **changes}).result[0].file


def test_deblur_video_writes_once_and_finds_it_again(pack, video, deblur, tmp_path, monkeypatch):
    source = video(str(write_clip(tmp_path, 5, rate=Fraction(30000, 1001))))
    found = deblur(source)
    clip = probe(found)
    assert (clip.num_frames, clip.width, clip.height, clip.rate) == (5, 48, 32, Fraction(30000, 1001))
    assert str(pack.models / "output" / "deblurred") in found

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(pack.module("nodes.native"), "HostDeblurrer", never)
    assert deblur(source) == found
    for changes in ({"seed": 1}, {"ensemble": 2}):
        with pytest.raises(AssertionError, match="again"):
            deblur(source, **changes)
    for module, name, value in (("vdd_model.app.jobs", "PROCESSING", 1000),
                                ("nodes.native", "autoencoder_dtype", lambda device: torch.float16)):      # the host's precision is another
        with monkeypatch.context() as patch, pytest.raises(AssertionError, match="again"):
            patch.setattr(pack.module(module), name, value)
            deblur(source)


@pytest.fixture()
def deblurred(pack):
    """The folder of results, empty."""
    folder = pack.models / "output" / "deblurred"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def cancel_after(pack, monkeypatch, chunks: int) -> None:
    """Have the model stop as Cancel does, once so many chunks of frames are out."""
    native = pack.module("nodes.native")

    class Cancels(native.HostDeblurrer):
        def stream(self, *arguments, **keywords):
            for count, chunk in enumerate(super().stream(*arguments, **keywords)):
                if count == chunks:
                    raise Cancelled
                yield chunk

    monkeypatch.setattr(native, "HostDeblurrer", Cancels)


@pytest.mark.parametrize("kind", ["trim", "buffer", "trimmed buffer"])
def test_a_trimmed_video_and_a_buffer_go_on_and_are_found_again(pack, video, deblur, deblurred, tmp_path, monkeypatch, kind, caplog):
    """Cancelled twice they leave one folder; the third run goes on, the fourth finds the result, also after the host emptied its temp."""
    source, cuts = write_clip(tmp_path, 9), []

    class Video(video):
        def save_to(self, path, crf=23):
            assert crf <= 4                                                    # what the model sees should be what was filmed
            cuts.append(path)
            with open(path, "wb") as file:
                file.write(source.read_bytes())

    def given():
        return Video(str(source) if kind == "trim" else io.BytesIO(source.read_bytes()), start_time=0.0 if kind == "buffer" else 0.01)

    caplog.set_level("INFO")
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(Cancelled):
            cancel_after(pack, patch, 1)
            deblur(given())
        (part,) = deblurred.iterdir()
        assert part.name.startswith("clip-" if kind == "trim" else "video-") and part.suffix == ".part"
        assert caplog.messages[-1].startswith("unfinished work is kept: Run with the same settings goes on")          # what a host shows
        shutil.rmtree(pack.models / "temp", ignore_errors=True)
    found = deblur(given())
    assert "goes on after" in caplog.text
    assert probe(found).num_frames == 9 and [str(p) for p in deblurred.iterdir()] == [found]
    assert len(cuts) == (0 if kind == "buffer" else 1)
    cancel_after(pack, monkeypatch, 0)
    assert deblur(given()) == found
    if kind != "buffer":
        with pytest.raises(Cancelled):
            deblur(Video(given().file, start_time=0.02))


def test_a_full_disk_is_told_without_the_flags_of_the_command_line(pack, video, deblur, deblurred, tmp_path, monkeypatch):
    source = video(str(write_clip(tmp_path, 9)))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pack.module("vdd_model.media.sinks"), "sync", full)
        with pytest.raises(pack.module("vdd_model.errors").UserError, match="no room left .* free some space and run again$"):
            deblur(source)
    assert probe(deblur(source)).num_frames == 9


def test_a_trim_is_seen_on_hosts_that_only_keep_it(video, deblur, deblurred, tmp_path):
    """ComfyUI 0.14 to 0.22 have Trim Video and nothing that tells of it."""
    source = write_clip(tmp_path, 6)

    class Older(video):
        get_active_trim_window = property()                                    # an AttributeError, as if it were not there

        def __init__(self, file, start_time=0, duration=0):
            super().__init__(file)
            self.__start_time, self.__duration = start_time, duration

        def save_to(self, path):
            write_video(path, read_clip(self.file)[round(24 * self.__start_time):][:round(24 * self.__duration)], 24)

    counts = [probe(deblur(Older(str(source), *trim))).num_frames for trim in ((), (1 / 24, 4 / 24), (0, 3 / 24))]
    assert counts == [6, 4, 3]


def test_cancel_is_looked_at_while_a_resumed_run_passes_over_frames(pack, video, deblur, deblurred, tmp_path, monkeypatch):
    source = video(str(write_clip(tmp_path, 40)))
    with monkeypatch.context() as patch, pytest.raises(Cancelled):
        cancel_after(pack, patch, 9)
        deblur(source)
    passed, reader = [], pack.module("vdd_model.media.reader")
    convert = reader.upright_rgb

    def interrupt():
        raise Cancelled
    monkeypatch.setattr(reader, "upright_rgb", lambda *given: passed.append(given) or convert(*given))
    monkeypatch.setattr(pack.host["comfy.model_management"], "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(Cancelled):
        deblur(source)
    assert not passed and list(deblurred.glob("*.part/*"))                     # the first frame that it had to look at was not reached


def test_a_cropped_video_is_deblurred_cropped(video, deblur, deblurred, tmp_path):
    """Newer hosts crop without a new file; two parts of one size are two videos."""
    source = write_clip(tmp_path, width=64)
    found = [deblur(video(str(source), crop=(x, 0, 32, 32))) for x in (0, 32)]
    assert len(set(found)) == 2
    for path, x in zip(found, (0, 32)):
        clip = probe(path)
        assert (clip.width, clip.height, clip.num_frames) == (32, 32, 3)
        errors = [(read_clip(path) - read_clip(source)[:, :, at:at + 32]).abs().mean() for at in (x, 32 - x)]
        assert errors[0] < errors[1]


def test_a_cut_that_fails_leaves_nothing(video, deblur, deblurred, tmp_path):
    class Fails(video):
        def save_to(self, path):
            open(path, "wb").close()
            raise ValueError("no frames")

    with pytest.raises(RuntimeError, match="no frames"):
        deblur(Fails(str(write_clip(tmp_path)), start_time=9.0))
    assert list(deblurred.iterdir()) == []


@pytest.mark.parametrize("codec, bits, suffix", [("pcm_bluray", 16, ".mts"), ("pcm_bluray", 24, ".m2ts"), ("pcm_dvd", 16, ".vob")])
def test_uncompressed_sound_of_camcorders_and_disks_goes_along(video, deblur, deblurred, tmp_path, codec, bits, suffix, caplog):
    samples = lpcm(tmp_path / f"in{suffix}", codec, bits)
    found = deblur(video(str(tmp_path / f"in{suffix}")))
    stored, _, after = heard(found, bits)
    assert found.endswith(".mp4") and stored == "flac" and np.array_equal(after[:len(samples)], samples)
    assert f"its sound ({codec}) is stored as flac, which loses nothing" in caplog.text


def test_a_flag_that_no_node_has_is_the_command_lines(video, deblur, deblurred, tmp_path, caplog):
    deblur(video(str(save_clip(tmp_path / "a.mp4", [pattern(0, 32, 48)] * 2, pix_fmt="yuv444p"))))
    assert "4:2:0, which every player shows; --chroma 444 keeps its 4:4:4 (with `vdd deblur` on a command line)" in caplog.messages[-1]
    assert caplog.messages[-1].endswith(" (a.mp4)")


def test_what_a_kill_at_the_end_left_does_not_lock_the_node_out(pack, video, deblur, deblurred, tmp_path, monkeypatch):
    source = video(str(write_clip(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(pack.module("vdd_model.app.jobs"), "_discard", lambda folder: None)
        found = deblur(source)
    assert len(list(deblurred.iterdir())) == 2
    cancel_after(pack, monkeypatch, 0)
    assert deblur(source) == found
    assert [str(p) for p in deblurred.iterdir()] == [found]


@pytest.mark.parametrize("checkpoint", [TINY, None], ids=["widget", "link"])
@pytest.mark.parametrize("node_id", ["VDDDeblurVideo", "VDDDeblurFrames", "VDDLoadCheckpoint"])
def test_another_checkpoint_under_the_same_name_is_noticed(pack, node_id, checkpoint):
    node = pack.nodes[node_id]
    linked = {"video" if node_id == "VDDDeblurVideo" else "frames": None, **WIDGETS}       # the host gives None for what is linked
    linked = {"dtype": "auto", "checkpoint": checkpoint} if node_id == "VDDLoadCheckpoint" else {**linked, "checkpoint": checkpoint}
    before = node.fingerprint_inputs(**linked)
    assert node.fingerprint_inputs(**linked) == before
    path = pack.models / "vdd" / TINY
    facts = os.stat(path)
    os.utime(path, (facts.st_atime, facts.st_mtime + 10))
    try:
        assert node.fingerprint_inputs(**linked) != before
    finally:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_deleted_result_is_noticed_once(pack, video, deblur, deblurred, tmp_path, monkeypatch):
    """The host keeps a node's output while its fingerprint stays: it changes when a result is gone, and then stays again."""
    monkeypatch.setattr(pack.module("nodes.streaming"), "_handed_on", {})
    source = video(str(write_clip(tmp_path)))

    def mark(**changed):
        return pack.nodes["VDDDeblurVideo"].fingerprint_inputs(video=None, **{**WIDGETS, "seed": 77, **changed})

    seen = [mark()]
    for _ in range(2):
        found = deblur(source, seed=77)
        assert mark() == mark(seed=None) == seen[-1]
        os.remove(found)
        other = mark(seed=78)
        seen.append(mark())
        assert mark() == mark(seed=None) == seen[-1] and mark(seed=78) == other
    assert len(set(seen)) == 3


def test_a_new_seed_stays_fixed(pack, monkeypatch):
    schema = pack.module("nodes.schema")
    assert schema.seed_input().keywords["control_after_generate"] is True                     # hosts that know no more
    monkeypatch.setattr(schema.io, "ControlAfterGenerate", SimpleNamespace(fixed="fixed"), raising=False)
    assert schema.seed_input().keywords["control_after_generate"] == "fixed"


@pytest.mark.parametrize("space", ["HDR", "auto", None])
def test_a_video_in_memory_stays_there_and_keeps_what_the_hosts_class_takes(pack, monkeypatch, space):
    """Bit depth since 0.22, color space since 0.34; components had no metadata and no alpha at first."""
    latest = pack.host["comfy_api.latest"]

    class Newest(latest.InputImpl.VideoFromComponents):
        def __init__(self, components, bit_depth=8, color_space="sRGB"):
            super().__init__(components)
            self.get_bit_depth, self.get_color_space = lambda: bit_depth, lambda: color_space or "auto"

    class Older(latest.InputImpl.VideoFromComponents):
        def __init__(self, components, bit_depth=8):
            super().__init__(components)
            self.get_bit_depth = lambda: bit_depth

    extra = {"metadata": {"camera": "x"}, "alpha": torch.rand(3, 32, 48)} if space else {}
    video, given = (Newest, {"color_space": None if space == "auto" else space}) if space else (Older, {})
    monkeypatch.setattr(latest.InputImpl, "VideoFromComponents", video)
    parts = latest.Types.VideoComponents(images=torch.rand(3, 32, 48, 4), audio={"a": 1}, frame_rate=25, **extra)
    out = pack.nodes["VDDDeblurVideo"].execute(video(parts, bit_depth=10, **given), **WIDGETS).result[0]
    assert out.get_bit_depth() == 10 and (not space or out.get_color_space() == space)
    assert out.components.images.shape == (3, 32, 48, 4) and torch.equal(out.components.images[..., 3], parts.images[..., 3])
    assert {k: v for k, v in vars(out.components).items() if k != "images"} == {"audio": {"a": 1}, "frame_rate": 25, **extra}


def test_of_other_clips_the_new_unfinished_jobs_stay(pack, deblurred, monkeypatch):
    results, now = pack.module("nodes.results"), 2_000_000_000.0
    monkeypatch.setattr(results.time, "time", lambda: now)

    def unfinished(name: str, hours: float):
        folder = deblurred / f"{name}.part"
        folder.mkdir(parents=True)
        for path in (folder / "packets.bin", folder):
            path.touch()
            os.utime(path, (now - hours * 3600,) * 2)
        return folder

    new = [unfinished(f"clip{i}-000000000000.mp4", i) for i in range(5)]
    old, older_version = unfinished("old-000000000000.mp4", 25), unfinished("old-00000000.mp4", 25)
    others = [unfinished("holiday.mp4", 99), unfinished("x-00000000.gif", 99)]
    busy = unfinished("busy-000000000000.mp4", 30)
    with pack.module("vdd_model.app.jobs")._locked(busy):
        os.utime(busy / "lock", (now - 30 * 3600,) * 2)
        assert results.clear_unfinished(results.target_of("clip.mp4", "key", "settings", ".mp4")) == []
    assert {p for p in (*new, old, older_version, *others, busy) if p.exists()} == {*new[:3], *others, busy}


def test_of_a_clips_results_the_newest_stay(pack, video, deblur, deblurred, tmp_path, monkeypatch):
    """Those that this run of the graph hands on too, however many."""
    streaming, prompts, source = pack.module("nodes.streaming"), iter("aaabbbbbc"), video(str(write_clip(tmp_path)))
    monkeypatch.setattr(streaming, "_handed_on", {})
    (deblurred / "clip-0123abcd.mp4").parent.mkdir(parents=True)
    for other in ("clip-0123abcd.mp4", "clip.mp4", "clip-of-mine.mp4"):
        (deblurred / other).touch()
    made, counts = [], []
    for seed, prompt in enumerate(prompts):
        monkeypatch.setattr(streaming, "prompt_id", lambda now=prompt: now)
        made.append(deblur(source, seed=seed))
        os.utime(made[-1], (seed, seed))
        counts.append(len(list(deblurred.iterdir())) - 3)
    assert counts == [1, 2, 3, 3, 3, 3, 4, 5, 3]
    assert [os.path.exists(path) for path in made] == [False] * 6 + [True] * 3


def test_a_path_on_windows_is_shortened(pack, monkeypatch):
    results = pack.module("nodes.results")
    monkeypatch.setattr(results, "os", SimpleNamespace(name="nt"))
    monkeypatch.setattr(results.folder_paths, "get_output_directory", lambda: "C:/" + "x" * 150)
    target = results.target_of("y" * 200 + ".mp4", "key", "settings", ".mp4")
    assert len(f"{target}.part/spool-000000.raw") == 259


def test_checkpoint_folder(pack):
    folders, paths = pack.module("nodes.folders"), pack.host["folder_paths"]
    paths.add_model_folder_path("vdd", "/extra/place")
    folders.register()
    folders.register()
    assert paths.get_folder_paths("vdd") == [str(pack.models / "vdd"), "/extra/place"]
    assert folders.names() == [folders.BUILT_IN, TINY]
    with pytest.raises(RuntimeError, match="put the file .* into .*vdd"):
        folders.path_of("nothing.safetensors")
