"""One deblurring job: a clip in, a clip out; nothing under the final name before it is whole, and able to go on after any kill."""
from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch

from ..cpu.frames import compact
from ..errors import UserError
from ..inference.pipeline import DeblurOptions
from ..inference.scenes import Moment
from ..inference.windows import first_input_frame
from ..measure.progress import FrameBar
from ..media.clip import Frame, MediaError, VideoClip
from ..media.encoding import Encoding, OutputOptions, choose_encoding, no_room, without_effect
from ..media.files import in_bytes, sync, write_whole
from ..media.images import gaps
from ..media.joining import check_sound
from ..media.sinks import NUMBERED_PICTURE, SEGMENT, ImageSink, VideoSink
from ..media.video import part_folder, probe, read
from .preview import preview_paths, write_preview
from .shares import Share, Team, attempt, divide, held, is_free, shares

READ_AHEAD_BYTES, LARGE_FRAME_BYTES = 16 * 2**20, 4 * 2**20          # as frames are kept
PROCESSING = 6                # raised when the same frames, weights and settings give other pictures: old results and new ones do not mix
# bytes per pixel that a finished frame takes at least; used only to refuse what cannot end well
_BYTES_PER_PIXEL = {"h264": 0.01, "hevc": 0.01, "prores": 0.2, "ffv1": 0.4, "png": 0.5}


@dataclass(frozen=True)
class Job:
    """What to read and where to write. `source`: a video file, or the pictures of a sequence."""

    source: Path | tuple[Path, ...]
    target: Path
    as_images: bool = False
    name: str = ""
    rate: Fraction = Fraction(24)           # of a sequence of pictures

    @property
    def files(self) -> tuple[Path, ...]:
        """What it reads."""
        return self.source if isinstance(self.source, tuple) else (self.source,)

    @property
    def label(self) -> str:
        """The input as the user knows it."""
        return self.name or str(self.files[0])

    @property
    def picture_names(self) -> list[str]:
        """Names of the pictures that it writes, those of its input; none where they are numbered."""
        names = [file.stem + ".png" for file in self.source] if isinstance(self.source, tuple) else []
        return names if len(set(names)) == len(names) else []

    def pictures(self) -> list[Path]:
        """Those of its pictures that are in the folder `target`, in order. Other files there are none of its business."""
        if not self.target.is_dir():
            return []
        found = {path.name for path in self.target.iterdir()}
        numbered = sorted(filter(NUMBERED_PICTURE.fullmatch, found), key=lambda name: (len(name), name))
        return [self.target / name for name in self.picture_names or numbered if name in found]


@dataclass
class Outcome:
    """What came of a job: `frames` in all, `made` of them in `seconds` by this run. `lost` frames of the input could not be read; `notes`
    are sentences for the user."""

    target: Path
    frames: int
    made: int
    seconds: float
    lost: int = 0
    notes: list[str] = field(default_factory=list)


def check_target(job: Job, *, force: bool, resume: bool, preview: bool = False) -> None:
    """Refuse an output or a preview that exists, or unfinished work that would be lost. Raises MediaError."""
    target, folder = job.target, part_folder(job.target)
    if target.exists() and any(target.resolve() == source.resolve() for source in job.files):
        raise MediaError(f"{target} is the input itself; choose another output")
    if isinstance(job.source, tuple) and target.is_dir() and any(target.resolve() == p.resolve().parent for p in job.source):
        raise MediaError(f"{target} is the folder of the input pictures; choose another output")
    if not force and not (resume and (folder / "moving").exists()):
        old = job.pictures() if job.as_images and target.is_dir() else [target] if target.exists() else []
        if old:
            raise MediaError(f"{old[0]} exists already; use --force to replace it, or another output")
    for path in preview_paths(target) if preview else ():
        if path.exists() and not (force or resume):
            raise MediaError(f"{path} exists already; use --force to replace it, or leave --preview away")
    if target.is_dir() and not job.as_images:
        raise MediaError(f"{target} is a folder; give the name of a file")
    if folder.exists() and not (resume or force):
        raise MediaError(f"{folder} holds an unfinished run; use --resume to go on with it, or --force to start again")


def check_previews(jobs: Sequence[Job]) -> None:
    """Refuse previews that would replace an input or an output of any of these jobs. Raises MediaError."""
    taken = {path.resolve(): "an output" for path in (job.target for job in jobs)}
    taken |= {path.resolve(): "an input" for job in jobs for path in job.files}
    for path in (path for job in jobs for path in preview_paths(job.target)):
        if path.resolve() in taken:
            raise MediaError(f"the preview {path} would replace {taken[path.resolve()]}; choose another output, or leave --preview away")


def is_finished(job: Job) -> bool:
    """Whether the output is there and no unfinished work beside it. What a kill behind the end left is deleted."""
    target, folder = job.target, part_folder(job.target)
    there = target.is_file() or job.as_images and bool(job.pictures())
    if there and folder.exists():
        with contextlib.suppress(MediaError), _locked(folder):
            moving = (folder / "moving").exists()
            begun = (folder / "job.json").exists() and not moving
            moved = moving and target.is_file() and not (folder / f"whole{target.suffix}").exists()
            if moved or not _holds_work(folder) and not (begun and target.is_dir()):        # what is in a folder may be something else
                _discard(folder)
    return there and not folder.exists()


def run(job: Job, make_deblurrer: Callable, options: DeblurOptions, output: OutputOptions, *, identity: str = "", precision: str = "",
        resume: bool = False, force: bool = False, preview: bool = False, quiet: bool = False, team: Team | None = None,
        say: Callable[[str], None] = print, tick: Callable[[], None] = lambda: None) -> Outcome:
    """Deblur one clip. `make_deblurrer()` is called when everything else is in order.

    `identity` names the weights and `precision` the dtype and the kind of device: a job is resumed only with the same ones. `tick` is
    called for every frame that a resumed run passes over; what it raises ends the run. The processes of a `team` all call this for the
    same job: they share it out, and the first one's Outcome is that of the whole.
    Raises UserError; on any exception the work done so far stays beside the output for `resume`.
    """
    started = time.monotonic()
    first, agree = not team or team.number == 0, team.agree if team else lambda what, decide: decide()
    clip = probe(job.source, rate=job.rate)
    encoding = None if job.as_images else choose_encoding(clip, job.target, output)
    folder = part_folder(job.target)
    with contextlib.ExitStack() as stack:
        def enter() -> None:
            """Refuse what cannot be done, then keep other runs from working on the same output."""
            check_target(job, force=force, resume=resume, preview=preview)
            if encoding:
                check_sound(clip, job.label, job.target, output)
            try:
                job.target.parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise MediaError(f"{folder} cannot be made ({error.strerror})") from None
            stack.enter_context(_locked(folder))

        def begin() -> list[int]:
            """Where the shares start."""
            if not resume:
                if any(not is_free(lock) for lock in folder.glob("from-*.lock")):
                    raise MediaError(f"{folder} is being worked on by another run")
                _empty(folder)
            _check_journal(folder, job, clip, options, output, identity, precision)
            begun = 0
            if team:
                with contextlib.closing(_make_sink(job, clip, encoding, folder, output, force)) as sink:
                    begun = sink.done
            return divide(folder, clip.num_frames, team.size if team else 1, begun)

        def work(share: Share) -> int:
            """Finish one share. Returns the number of frames made now."""
            place = share.folder if encoding else folder
            with contextlib.closing(_make_sink(job, clip, encoding, place, output, force, share.start)) as sink:
                begun = sink.done
                check_room(job, clip, encoding, folder, begun, share.stop)
                if begun > share.start:
                    say(f"{job.label}: goes on after {begun - share.start} finished frames")
                moments = _Moments(folder / f"moments-{share.start}")
                result = _work(job, clip, sink, share.stop, moments, make_deblurrer, options, quiet or not first, say, tick)
                sink.end()
                share.finish({"frames": sink.done - share.start, **result})
            return sink.done - begun

        agree(f"enter {job.target}", enter)
        try:
            parts = shares(folder, agree(f"begin {job.target}", begin))
            own, made = team.number % len(parts) if team else 0, 0
            for share in parts[own:] + parts[:own]:            # one's own first, then those that nobody works on
                made += attempt(share, work)
            if not first:
                return Outcome(job.target, made, made, time.monotonic() - started)
            while any(share.result is None for share in parts):
                tick()
                time.sleep(0.2)
                made += sum(attempt(share, work) for share in parts)
            whole = len(list(takewhile(lambda share: share.result["frames"] == (share.stop or 0) - share.start, parts[:-1])))
            parts = parts[:whole + 1]                          # behind a share that ended early the clip ends
            results = [share.result for share in parts]
            if not made and resume:
                say(f"{job.label}: goes on after {sum(result['frames'] for result in results)} finished frames, which is all of them")
            with contextlib.closing(_make_sink(job, clip, encoding, folder, output, force)) as sink:
                notes = _notes(job, clip, encoding, output, results)
                notes += sink.finish(job.target, audio=output.audio, others=[share.folder for share in parts[1:]])
            _discard(folder)
        except BaseException as error:
            if not first and not folder.exists():              # the others had finished it before this process came
                return Outcome(job.target, 0, 0, time.monotonic() - started)
            if isinstance(error, (OSError, UserError)) and no_room(error):
                raise MediaError(f"no room left on the disk for {job.target}; what is finished is kept in {folder}: "
                                 "free some space and run again with --resume") from error
            kept = f"; what is finished is kept in {folder} for --resume" if _holds_work(folder) else ""
            if first and not kept:
                _discard(folder)
            if not isinstance(error, OSError):
                raise
            raise MediaError(f"{job.target} cannot be written ({error.strerror or error}){kept}") from error
    if preview:
        notes += add_preview(job, quiet=quiet)
    lost = max(results[-1]["lost"], sum(len(result["bad"]) for result in results))      # the last reader has come to the clip's end
    return Outcome(job.target, sum(result["frames"] for result in results), made, time.monotonic() - started, lost, notes)


def _notes(job: Job, clip: VideoClip, encoding: Encoding | None, output: OutputOptions, results: Sequence[dict]) -> list[str]:
    """What the user should know of the clip and of what came of its shares."""
    notes = list(encoding.notes) if encoding else without_effect(output, "png")
    notes += clip.remarks
    if clip.interlaced:
        notes.append("it is interlaced; deinterlace it first for a better result")
    if job.as_images and clip.pixel_aspect != 1 and b"pHYs" not in clip.png_chunks:
        shape = f"{clip.pixel_aspect.numerator}:{clip.pixel_aspect.denominator}"
        notes.append(f"its pixels are not square ({shape}), which the PNG files do not say")
    if job.as_images and not clip.constant_rate:
        notes.append("its frames follow each other at varying times, which the PNG files do not say")
    if clip.codec == "exr":
        notes.append("convert it beforehand: EXR holds linear light, which is taken and written as if it were what a display shows")
    if gap := gaps(clip.files):
        notes.append(gap)
    apart = "; --each deblurs every picture on its own" if clip.files else ""
    notes += [note + apart if note.startswith("the frame size changes") else note for note in results[-1]["notes"]]
    for kind, what in (("bad", "held pixels that are not numbers; they were set to black"),
                       ("beyond", "held values below 0 or above 1, which were cut off")):
        if frames := [index for result in results for index in result[kind]]:
            notes.append(f"{len(frames)} frame{'s' if len(frames) > 1 else ''} (the first is {frames[0]}) {what}")
    return notes


def add_preview(job: Job, *, quiet: bool = False) -> list[str]:
    """Write the preview of a finished job. Returns notes, also when it cannot be written: the result itself is there."""
    try:
        check_previews([job])
        return write_preview(probe(job.source, rate=job.rate), job.target, job.pictures(), quiet=quiet)
    except (UserError, OSError) as error:
        return [f"the preview could not be written ({error})"]


def _empty(folder: Path) -> None:
    """Delete what an earlier run left, except the lock that this run holds."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink()


def _discard(folder: Path) -> None:
    """`_empty` for work that is no longer needed: what cannot be deleted does no harm."""
    with contextlib.suppress(OSError):
        _empty(folder)


def discard(folder: Path) -> bool:
    """Delete an unfinished job's folder, unless a run is at work there. Whether it is gone."""
    with contextlib.suppress(MediaError, OSError), _locked(folder):
        _discard(folder)
    return not folder.exists()


def _holds_work(folder: Path) -> bool:
    """Whether any frame has been finished there."""
    return any(p.is_dir() and any(p.iterdir()) or p.suffix in (".raw", ".bin") and p.stat().st_size for p in folder.iterdir())


def _make_sink(job: Job, clip: VideoClip, encoding: Encoding | None, folder: Path, output: OutputOptions, force: bool,
               first: int = 0) -> VideoSink | ImageSink:
    if encoding:
        return VideoSink(folder, encoding, first)
    depth = output.bit_depth or (16 if clip.bit_depth > 8 else 8)
    return ImageSink(folder, clip, job.target, job.picture_names, 8 if depth == 8 else 16, force, first)


class _Moments(list):
    """Where the windows of a run begin (`Moment`s), a line each in a file: on the disk before the frames that follow from it."""

    def __init__(self, path: Path):
        text = path.read_text() if path.exists() else ""
        text = text[:text.rfind("\n") + 1]                     # without a torn tail
        super().__init__(Moment(*map(int, line.split())) for line in text.splitlines())
        path.write_text(text)
        self._path = path

    def append(self, moment: Moment) -> None:
        """Add one, and wait until it is on the disk. Raises OSError where it cannot be written."""
        super().append(moment)
        with self._path.open("a") as file:
            file.write(f"{moment.index} {moment.number}\n")
            sync(file)


def read_ahead(items: Iterable, depth: int) -> Iterator:
    """The same items, made by another thread at most `depth` ahead. An exception is raised where the item would have come.

    Closing the iterator stops the thread and waits for it.
    """
    iterator, end = iter(items), object()
    pool = ThreadPoolExecutor(1, "reader")
    try:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(max(1, depth)))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        if hasattr(iterator, "close"):
            iterator.close()


def _work(job: Job, clip: VideoClip, sink, stop: int | None, moments: list[Moment], make_deblurrer: Callable, options: DeblurOptions,
          quiet: bool, say: Callable[[str], None], tick: Callable[[], None]) -> dict:
    """Read, deblur and write, all three at once, up to the frame `stop`. Returns what to tell of it: frames of the input that were lost,
    notes, indices of frames with bad values."""
    deblurrer = make_deblurrer()
    start = first_input_frame(sink.done, options, moments)
    ended = threading.Event()

    def passing() -> None:
        """The reader goes on passing over frames only as long as somebody waits for those behind them."""
        tick()
        if ended.is_set():
            raise InterruptedError
    reader = read(clip, start, passing)
    waiting: deque = deque()                                   # alpha and times of the frames inside the model
    bad, beyond = [], []                                      # indices of frames
    done = first = sink.done
    floating = "f32" in clip.pix_fmt or "f16" in clip.pix_fmt

    def given(frame: Frame) -> bool:
        """Whether a frame is written, and not only looked at for the sake of others."""
        return first <= frame.index and (stop is None or frame.index < stop)

    def taken() -> Iterator[Frame]:
        """The clip's frames as the model takes them, made beside it."""
        for frame in reader:
            rgb = frame.rgb
            if floating:
                if not torch.isfinite(rgb).all():
                    bad.extend([frame.index] * given(frame))
                    rgb = torch.nan_to_num(rgb, 0.0, 1.0, 0.0)
                if given(frame) and (rgb.max() > 1 or rgb.min() < 0):
                    beyond.append(frame.index)
                rgb = rgb.clamp(0, 1)
            frame.rgb = compact(rgb)
            del rgb                                            # before it waits here, with a frame of floats
            yield frame
            del frame

    frame_bytes = clip.width * clip.height * 6
    ahead = read_ahead(taken(), min(16, max(1, READ_AHEAD_BYTES // frame_bytes)))

    def feed() -> Iterator[torch.Tensor]:
        """Frames (H, W, 3) for the model; what goes past it is put aside in `waiting`."""
        for frame in ahead:
            if given(frame):
                alpha = None if frame.alpha is None else frame.alpha.numpy()
                if alpha is not None and waiting and np.array_equal(alpha, waiting[-1][0]):
                    alpha = waiting[-1][0]                     # of a frame that is shown again: many may wait
                waiting.append((alpha, (frame.pts, frame.duration)))
            yield frame.rgb

    bar = FrameBar(Path(job.label).name, stop or clip.num_frames, sink.done, quiet=quiet)
    with contextlib.closing(bar), ThreadPoolExecutor(1, "writer") as writer:
        written = writer.submit(int)                           # the chunk before; what is under way is written also where this ends early
        try:
            with contextlib.closing(feed()) as frames:
                for chunk in deblurrer.stream(frames, options, first_frame=first, input_start=start, moments=moments,
                                              total=clip.num_frames, progress=lambda state: bar.to(state.position), notice=say):
                    chunk = chunk[:None if stop is None else stop - done]
                    sides = [waiting.popleft() for _ in range(len(chunk))]
                    written.result()
                    written = writer.submit(sink.write, chunk.float().clamp_(0, 1).cpu().numpy(), *zip(*sides))
                    if frame_bytes >= LARGE_FRAME_BYTES:
                        written.result()
                    done += len(chunk)
                    del chunk                                  # before the next is made
                    bar.to(done)
                    if done == stop:
                        break
            written.result()
        finally:
            ended.set()
            ahead.close()
    if waiting:
        raise UserError(f"{job.label}: {len(waiting)} frames did not come back from the model")
    return {"lost": reader.lost, "notes": reader.notes, "bad": bad, "beyond": beyond}


def check_room(job: Job, clip: VideoClip, encoding: Encoding | None, folder: Path, done: int, stop: int | None = None) -> None:
    """Refuse a job, or what is left of it up to the frame `stop`, that the disk surely cannot hold. Raises MediaError."""
    pixels, left = clip.width * clip.height, max(0, (stop or clip.num_frames) - done)
    codec = encoding.codec if encoding else "png"
    need = left * pixels * _BYTES_PER_PIXEL[codec] * (1 if codec == "png" else 2)      # packets, then the joined file
    if encoding and not encoding.intra:
        need += min(SEGMENT, left) * pixels * (1.5 if "420" in encoding.pix_fmt else 3) * (2 if "10" in encoding.pix_fmt else 1)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise MediaError(f"{job.target} needs at least {in_bytes(need)} of room while it is written, and {in_bytes(free)} are free")


def precision_of(dtype: torch.dtype, device: torch.device) -> str:
    """What `run` takes as `precision`."""
    return f"{str(dtype).removeprefix('torch.')} on {device.type}"


def _check_journal(folder: Path, job: Job, clip: VideoClip, options: DeblurOptions, output: OutputOptions, identity: str,
                   precision: str) -> None:
    """Remember what the job is; when it is there already, refuse to mix two different ones. Raises MediaError."""
    files = clip.files or (clip.path,)
    journal = {"input": [str(files[0].resolve()), clip.size_bytes, len(files), max(f.stat().st_mtime_ns for f in files)],
               **({"fps": str(job.rate)} if clip.files else {}),
               "version of the processing": PROCESSING,
               "weights": identity, "precision": precision, **dataclasses.asdict(options),
               # the sound is only added at the end, and left away where that fails
               **{f"output {k}": v for k, v in dataclasses.asdict(output).items() if k != "audio"}}
    path = folder / "job.json"
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        for old in [*folder.glob("*.bin"), *folder.glob("*.raw"), *folder.glob("moments-*")]:
            old.unlink()                                       # no journal: whose frames these are is not known
        shutil.rmtree(folder / "pictures", ignore_errors=True)
        write_whole(path, json.dumps(journal, indent=1), durable=True)         # it must not be lost where the frames are not
        return
    changed = [k for k in journal if before.get(k) != json.loads(json.dumps(journal[k]))]
    if changed:
        what = ", ".join(k if k in ("input", "weights") else f"{k} was {before.get(k)}, is {journal[k]}" for k in changed)
        raise MediaError(f"{folder} holds a run that was begun with something else ({what}); "
                         "use the same settings, or --force without --resume to start again")


@contextlib.contextmanager
def _locked(folder: Path):
    """Keep two runs from working on the same output. A folder that is empty but for the lock goes too, once the lock is closed: Windows
    deletes no open file."""
    (folder / "lock").touch()
    with contextlib.ExitStack() as behind, held(folder / "lock") as mine:
        if mine is False:
            raise MediaError(f"{folder} is being worked on by another run")
        behind.callback(_remove_empty, folder)
        yield


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if os.listdir(folder) == ["lock"]:
            (folder / "lock").unlink()
            folder.rmdir()                                     # unlike rmtree harmless when another run has just come in
