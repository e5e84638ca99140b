"""Deblur Video and Deblur Frames: the one-node way, window by window, in memory that does not grow with the clip."""
from __future__ import annotations

import hashlib
import io as streams
import logging
import os
from pathlib import Path

import comfy.model_management as mm
import folder_paths
import torch
from comfy_api.latest import InputImpl, Types, io

from ..vdd_model import jobs
from ..vdd_model.pipeline import COLORS, DeblurOptions
from ..vdd_model.video import OutputOptions, probe
from ..vdd_model.video_out import unsupported_sound
from . import folders, native
from .frames import rgb_of, with_alpha
from .schema import advanced, schema, seed_input

FOLDER = "deblurred"          # below the host's output folder: finished files, and the unfinished ones that a later run goes on with


def option_inputs() -> list[io.Input]:
    """The widgets that both nodes share, in the order of `options_from`."""
    return [
        io.Combo.Input("checkpoint", options=folders.names(),
                       tooltip="A .safetensors file in models/vdd, or the model that comes with the pack."),
        io.Int.Input("steps", default=1, min=1, max=1000,
                     tooltip="1: the posterior mean, most faithful and fastest. 20 to 50: one sharp sample, as in the paper."),
        io.Float.Input("guidance", default=1.0, min=0.0, max=20.0, step=0.1,
                       tooltip="Classifier-free guidance. 1: none, and half the work."),
        io.Float.Input("fidelity", default=1.0, min=0.0, max=1.0, step=0.05,
                       tooltip="0: the latents alone. 1: edges and details from the blurred frames where they have them."),
        io.Combo.Input("color", options=list(COLORS), default="wavelet",
                       tooltip="wavelet: brightness and colour of areas larger than about 30 pixels follow the input."),
        seed_input(),
        advanced(io.Int.Input, "window", default=16, min=1, max=1000, tooltip="Frames deblurred together; the model was trained on 16."),
        advanced(io.Int.Input, "overlap", default=4, min=0, max=500, tooltip="Frames that neighbouring windows share and blend over."),
        advanced(io.Int.Input, "tile", default=-1, min=-1, max=8192, step=1,
                 tooltip="Edge of a tile in pixels. -1: chosen by the frame size; 0: whole frames."),
    ]


def options_from(steps, guidance, fidelity, color, seed, window=16, overlap=4, tile=-1) -> DeblurOptions:
    return DeblurOptions(steps=steps, guidance=guidance, fidelity=fidelity, color=color, seed=seed, window=window, overlap=overlap,
                         tile=None if tile < 0 else tile)


class DeblurVideo(io.ComfyNode):
    """VIDEO -> VIDEO, through files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDDeblurVideo", display_name="Deblur Video",
            description="Deblurs a video file of any length, a window of frames at a time. Sound, frame rate, rotation and colour tags are "
                        f"kept. The result is written to output/{FOLDER}; after Cancel or a crash the next run goes on where it stopped.",
            search_aliases=["vdd", "video deblurring", "motion blur removal", "sharpen video", "restore video"],
            inputs=[
                io.Video.Input("video", tooltip="The blurred video, e.g. from Load Video."),
                *option_inputs(),
                advanced(io.Int.Input, "quality", default=16, min=0, max=51,
                         tooltip="CRF of the written file: smaller is better and larger."),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The sharp video; Save Video copies it without encoding again.")])

    @classmethod
    def execute(cls, video, checkpoint, quality=16, **widgets) -> io.NodeOutput:
        options, weights = options_from(**widgets), folders.path_of(checkpoint)
        if isinstance(video, InputImpl.VideoFromComponents):         # its frames are in memory already: no file, no loss
            parts = video.get_components()
            sharp = native.HostDeblurrer(weights).deblur(rgb_of(parts.images), options)
            alpha = getattr(parts, "alpha", None)
            fields = {"images": sharp, "audio": parts.audio, "frame_rate": parts.frame_rate, **({} if alpha is None else {"alpha": alpha})}
            return io.NodeOutput(InputImpl.VideoFromComponents(Types.VideoComponents(**fields)))
        source, lasting = _source_file(video)
        identity = f"{weights} {os.path.getmtime(weights)}"
        target = _target(source, f"{identity} {options} {quality}")
        stamp = target.with_suffix(target.suffix + ".part")
        if target.exists() and lasting and not stamp.exists():       # made by an earlier run with exactly these settings
            return io.NodeOutput(InputImpl.VideoFromFile(str(target)))
        job = jobs.Job(source, target, name=source.name)
        outcome = jobs.run(job, lambda: native.HostDeblurrer(weights), options, OutputOptions(quality=quality), identity=identity,
                           resume=lasting, force=not lasting, quiet=True, say=logging.info)
        for note in outcome.notes:
            logging.warning("Deblur Video: %s: %s", source.name, note)
        return io.NodeOutput(InputImpl.VideoFromFile(str(outcome.target)))


def _source_file(video) -> tuple[Path, bool]:
    """The file that holds a VIDEO, and whether it is still there after a restart. A trimmed one is cut by the host first."""
    source = video.get_stream_source()
    trim = getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()
    if isinstance(source, (str, os.PathLike)) and not any(trim):
        return Path(source), True
    if isinstance(source, streams.BytesIO) and not any(trim):
        data = source.getvalue()
        path = _temporary(hashlib.sha256(data).hexdigest(), ".mkv")
        path.write_bytes(data)
    else:
        path = _temporary(f"{source} {trim}", ".mp4")
        video.save_to(str(path))
    return path, False


def _temporary(key: str, suffix: str) -> Path:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"vdd-{hashlib.sha256(key.encode()).hexdigest()[:16]}{suffix}"


def _target(source: Path, settings: str) -> Path:
    """The output file of this source with these settings: always the same name, so that a run can be gone on with."""
    clip = probe(source)
    suffix = ".mov" if clip.has_alpha else ".mp4"
    if unsupported_sound(clip, Path("x" + suffix)):
        suffix = ".mkv"
    facts = os.stat(source)
    key = hashlib.sha256(f"{source.resolve()} {facts.st_size} {facts.st_mtime_ns} {settings}".encode()).hexdigest()[:8]
    return Path(folder_paths.get_output_directory()) / FOLDER / f"{source.stem}-{key}{suffix}"


class DeblurFrames(io.ComfyNode):
    """IMAGE -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDDeblurFrames", display_name="Deblur Frames",
            description="Deblurs a batch of frames in one node, a window of frames at a time. As many frames of the same size come back; "
                        "alpha passes through.",
            search_aliases=["vdd images", "deblur image batch", "motion blur removal"],
            inputs=[io.Image.Input("frames", tooltip="Blurred frames in order."), *option_inputs()],
            outputs=[io.Image.Output(display_name="frames", tooltip="Sharp frames.")])

    @classmethod
    def execute(cls, frames: torch.Tensor, checkpoint, **widgets) -> io.NodeOutput:
        deblurrer = native.HostDeblurrer(folders.path_of(checkpoint))
        sharp = deblurrer.deblur(rgb_of(frames), options_from(**widgets), notice=logging.warning)
        return io.NodeOutput(with_alpha(sharp.to(mm.intermediate_device()), frames))
