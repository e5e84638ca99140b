"""Deblur Video and Deblur Frames: the one-node way, window by window, in memory that does not grow with the clip."""
from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import comfy.model_management as mm
import folder_paths
import torch
from comfy_api.latest import InputImpl, Types, io

from ..vdd_model.app import jobs
from ..vdd_model.errors import UserError
from ..vdd_model.media.clip import VideoClip
from ..vdd_model.media.files import written_aside
from ..vdd_model.media.joining import unsupported_sound
from ..vdd_model.media.video import OutputOptions, part_folder, probe
from ..vdd_model.options import DeblurOptions
from . import folders, native, results
from .frames import rgb_of, with_alpha
from .notices import Notices, prompt_id, without_flags
from .schema import advanced, option_input, options_from, schema, seed_input

ALIASES = ["deblur", "unblur", "sharpen", "camera shake", "去模糊"]
CUT_CRF = 4                   # of the file that the host writes of a trimmed video: hardly a difference to see, or for the model


def option_inputs(*own: io.Input) -> list[io.Input]:
    """The widgets that both nodes share, and a node's own, in the order of saved graphs, which know them by place: new ones come last."""
    return [folders.checkpoint_input(), *map(option_input, ("steps", "guidance", "fidelity", "color")), seed_input(),
            *map(option_input, ("window", "overlap", "tile")), *own,
            option_input("ensemble"), option_input("prior", True),
            *map(option_input, ("scenes", "repeats", "denoise_at_one_step", "temporal_fusion"))]


@dataclass
class HandedOn:
    """A result that another node may still point to: the widgets that made it, whether it was there when last looked at, how often not."""

    widgets: dict
    prompt: str | None = None         # the run of the graph in which it was handed on last
    there: bool = True
    times_gone: int = 0


_handed_on: dict[str, HandedOn] = {}      # by path, since the host started


def times_gone(widgets: dict) -> int:
    """How often results of these widgets were found deleted. A widget that a link sets is None here and fits any value."""
    total = 0
    for path, result in _handed_on.items():
        if all(value is None or result.widgets.get(name, value) == value for name, value in widgets.items()):
            if result.there and not os.path.exists(path):
                result.there, result.times_gone = False, result.times_gone + 1
            total += result.times_gone
    return total


class DeblurVideo(io.ComfyNode):
    """VIDEO -> VIDEO, through files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDDeblurVideo", display_name="Deblur Video",
            description="Deblurs a video file of any length, a window of frames at a time. Sound, frame rate, rotation and color tags are "
                        f"kept. The result is written to output/{results.FOLDER}; after Cancel or a crash the next run goes on.",
            search_aliases=["vdd", "video deblurring", "motion blur removal", "restore video", *ALIASES],
            inputs=[
                io.Video.Input("video", tooltip="The blurred video, e.g. from Load Video."),
                *option_inputs(advanced(io.Int.Input, "quality", default=16, min=0, max=51, tooltip="CRF of the written file: smaller is "
                                        "better and larger. Not used for a clip with transparency.")),
            ],
            hidden=[io.Hidden.dynprompt],
            outputs=[io.Video.Output(display_name="video", tooltip="The sharp video. Save Video copies it without encoding again; with "
                                     f"transparency or unusual sound, take the file in output/{results.FOLDER}.")])

    @classmethod
    def fingerprint_inputs(cls, checkpoint, video=None, **widgets):
        return folders.mark_of(checkpoint), folders.mark_of_prior(), times_gone({"checkpoint": checkpoint, **widgets})

    @classmethod
    def execute(cls, video, checkpoint, quality=16, **widgets) -> io.NodeOutput:
        notices, options, weights = Notices(), options_from(**widgets), folders.path_of(checkpoint)
        load = functools.partial(native.HostDeblurrer, weights, folders.find_prior(), cls.hidden)
        if isinstance(video, InputImpl.VideoFromComponents):         # its frames are in memory already: no file, no loss
            return io.NodeOutput(_in_memory(video, load(), options, notices))
        source = _source_of(video)
        suffix = _suffix(source.clip)
        output = OutputOptions(quality=None if suffix == ".mov" else quality)          # .mov: ProRes, which has no CRF
        marks = folders.mark_of(checkpoint) + (() if options.prior == "none" else folders.mark_of_prior())
        identity, device = " ".join(map(str, marks)), mm.get_torch_device()
        precision = jobs.precision_of(native.autoencoder_dtype(device), device)
        target = results.target_of(source.name, source.key, f"{jobs.PROCESSING} {identity} {precision} {options} {output.quality}", suffix)
        part = part_folder(target)
        if target.exists():          # it appears under its name whole or not at all, made with exactly these settings
            shutil.rmtree(part, ignore_errors=True)
        else:
            for text in results.clear_unfinished(target):
                notices(f"{text} ({source.name})", logging.INFO)
            try:
                path = source.clip.path if source.clip else _cut(video, part)
                job = jobs.Job(path, target, name=source.name)
                outcome = jobs.run(job, load, options, output, identity=identity,
                                   precision=precision, resume=True, quiet=True, say=lambda text: notices(text, logging.INFO),
                                   tick=mm.throw_exception_if_processing_interrupted)
            except BaseException as error:
                if part.exists():
                    notices("unfinished work is kept: Run with the same settings goes on with it; other settings, or after a day other "
                            f"clips, delete it ({results.size_of(part)} in output/{results.FOLDER}, {source.name})", logging.INFO)
                if isinstance(error, UserError):
                    raise type(error)(without_flags(str(error))) from error
                raise
            for note in outcome.notes:
                notices(f"{without_flags(note)} ({source.name})")
            results.clear_results(target, {path for path, made in _handed_on.items() if made.prompt == prompt_id()})
        made = _handed_on.setdefault(str(target), HandedOn({}))
        made.there, made.prompt, made.widgets = True, prompt_id(), {"checkpoint": checkpoint, "quality": quality, **widgets}
        return io.NodeOutput(InputImpl.VideoFromFile(str(target)))


def _in_memory(video, deblurrer: native.HostDeblurrer, options: DeblurOptions, notices: Notices):
    """A video whose frames are in memory, deblurred, with all that this host's class keeps beside them."""
    parts = video.get_components()
    fields = {name: value for name in ("audio", "frame_rate", "metadata", "alpha") if (value := getattr(parts, name, None)) is not None}
    images = with_alpha(deblurrer.deblur(rgb_of(parts.images), options, notice=notices), parts.images)
    known, kept = inspect.signature(InputImpl.VideoFromComponents).parameters, {}
    if "bit_depth" in known:
        kept["bit_depth"] = video.get_bit_depth()
    if "color_space" in known:
        kept["color_space"] = None if (space := video.get_color_space()) == "auto" else space         # auto: none is forced
    return InputImpl.VideoFromComponents(Types.VideoComponents(**{"audio": None, **fields, "images": images}), **kept)


class Source(NamedTuple):
    """The clip in a VIDEO: its name, what tells it from any other clip, and its file; no clip where the host has to cut one first."""

    name: str
    key: str
    clip: VideoClip | None


def _source_of(video) -> Source:
    given = video.get_stream_source()
    trim = _trim(video)
    if isinstance(given, (str, os.PathLike)):
        path, clip = Path(given), probe(given)
        facts = os.stat(path)
        name, key = path.name, f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    else:
        data = given.getvalue()
        name, key = "video", hashlib.sha256(data).hexdigest()
        clip = None if any(trim) else probe(_stored(data, key))
    edits = _edits(video, clip)
    return Source(name, f"{key} {trim}{edits}", None) if any(trim) or edits else Source(name, key, clip)


def _trim(video) -> tuple[float, float]:
    """Start and duration in seconds that Trim Video has left; (0, 0) for all of it. Hosts before 0.23 keep them in fields only."""
    if hasattr(video, "get_active_trim_window"):
        return video.get_active_trim_window()
    fields = {name.rpartition("__")[2]: value for name, value in vars(video).items()}
    return fields.get("start_time") or 0.0, fields.get("duration") or 0.0


def _edits(video, clip: VideoClip | None) -> str:
    """What the host will do to the frames of `clip`, "" for nothing: newer ones crop and resize without a new file.

    They tell that there is something and the size that comes of it; the rest is in the object's state.
    """
    pending = getattr(video, "has_pending_frame_edits", lambda: False)()
    if not pending and (clip is None or sorted(video.get_dimensions()) == sorted(clip.coded_size)):
        return ""
    return f" {sorted((name, repr(value)) for name, value in vars(video).items() if not hasattr(value, 'read'))}"


def _stored(data: bytes, key: str) -> Path:
    """A video that is in memory as a file. The host empties its folder at every start; the fixed time makes it the same file again."""
    path = Path(folder_paths.get_temp_directory()) / f"vdd-{key[:16]}.mkv"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            aside.write_bytes(data)
            os.utime(aside, (10**9, 10**9))
    return path


def _cut(video, folder: Path) -> Path:
    """What is left of a trimmed or cropped video, as a file that the host writes once: it stays with the job's work, for a later run."""
    path = folder / "cut.mp4"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            known = inspect.signature(video.save_to).parameters            # hosts before July 2026 encode at x264's default, 23
            with written_aside(path, ending=".mp4") as aside:
                video.save_to(str(aside), **({"crf": CUT_CRF} if "crf" in known else {}))
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, ValueError):
                raise UserError(f"ComfyUI cannot write what is left of this video ({error}): "
                                "choose another part, or cut it with another program") from error
            raise
    return path


def _suffix(clip: VideoClip | None) -> str:
    """The kind of file that holds the result. What the host has cut is H.264 and AAC, without transparency."""
    if clip is None:
        return ".mp4"
    suffix = ".mov" if clip.has_alpha else ".mp4"
    return ".mkv" if unsupported_sound(clip, Path("x" + suffix)) else suffix


class DeblurFrames(io.ComfyNode):
    """IMAGE -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDDeblurFrames", display_name="Deblur Frames",
            description="Deblurs a batch of frames in one node, a window of frames at a time. As many frames of the same size come back; "
                        "alpha passes through.",
            search_aliases=["vdd images", "deblur image batch", "motion blur removal", "photo", *ALIASES],
            inputs=[io.Image.Input("frames", tooltip="Blurred frames in order."), *option_inputs()],
            hidden=[io.Hidden.dynprompt],
            outputs=[io.Image.Output(display_name="frames", tooltip="Sharp frames.")])

    @classmethod
    def fingerprint_inputs(cls, checkpoint, **_):
        return folders.mark_of(checkpoint), folders.mark_of_prior()

    @classmethod
    def execute(cls, frames: torch.Tensor, checkpoint, **widgets) -> io.NodeOutput:
        notices = Notices()
        deblurrer = native.HostDeblurrer(folders.path_of(checkpoint), folders.find_prior(), cls.hidden)
        sharp = deblurrer.deblur(rgb_of(frames), options_from(**widgets), notice=notices)
        return io.NodeOutput(with_alpha(sharp.to(mm.intermediate_device()), frames))
