"""Compare Deblurring and Synthesize Motion Blur."""
from __future__ import annotations

import comfy.model_management as mm
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..vdd_model.errors import UserError
from ..vdd_model.measure import metrics, report
from .frames import rgb_of
from .progress import Bar
from .schema import schema, seed_input

SMALLEST_COLUMN = 240         # pixels: narrower pictures are enlarged, or their labels would be cut off
LARGEST_HEIGHT = 2048         # pixels, of what is enlarged


def _as_image(picture) -> torch.Tensor:
    """A Pillow picture as IMAGE (1, H, W, 3)."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None].to(mm.intermediate_device())


class CompareDeblurring(io.ComfyNode):
    """Scores, error map and side-by-side picture of a result against the truth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDCompare", display_name="Compare Deblurring",
            description="Scores frames against the truth (PSNR, both SSIM families, temporal error, LPIPS where it is at hand) and "
                        "draws a side-by-side picture and an error map of one frame.",
            search_aliases=["vdd psnr ssim", "error map", "before after", "quality metrics"],
            inputs=[
                io.Image.Input("deblurred", tooltip="The frames to judge."),
                io.Image.Input("truth", tooltip="The sharp frames they should equal."),
                io.Image.Input("blurred", optional=True, tooltip="What the frames were made from, for the comparison."),
                io.Int.Input("frame", default=-1, min=-1, max=1000000, tooltip="The frame to draw; -1: the middle one."),
            ],
            outputs=[
                io.String.Output(display_name="scores", tooltip="A table with the means over all frames."),
                io.Image.Output(display_name="side_by_side", tooltip="The frame and an enlarged part of it, next to each other."),
                io.Image.Output(display_name="error_map", tooltip="Mean absolute error of the frame."),
                io.Float.Output(display_name="psnr", tooltip="Mean PSNR in dB."),
            ],
            is_output_node=True)

    @classmethod
    def execute(cls, deblurred, truth, blurred=None, frame=-1) -> io.NodeOutput:
        clips = [rgb_of(c).cpu() for c in (deblurred, truth, blurred) if c is not None]
        if len({c.shape for c in clips}) != 1:
            raise UserError("deblurred, truth and blurred must have the same number and size of frames, found " +
                            ", ".join(f"{len(c)} of {c.shape[2]} x {c.shape[1]}" for c in clips))
        count = len(clips[0])
        shown = count // 2 if frame < 0 else min(frame, count - 1)
        scorers = [metrics.Scorer() for _ in clips[1:]]
        pictures, _, _ = report.compare_frames(scorers, zip(*clips), shown=shown, progress=Bar(count).move)
        rows = {name: scorer.result() for name, scorer in zip(("deblurred", "blurred"), scorers)}
        labels = [f"{name}  {report.format_value('psnr', row['psnr'])} dB" for name, row in reversed(rows.items())]
        pictures = pictures[2:] + pictures[:2]
        height, width = clips[0].shape[1:3]
        times = min(-(-SMALLEST_COLUMN // width), max(1, LARGEST_HEIGHT // height))      # the map's scale needs room
        column = min(480, max(width, min(SMALLEST_COLUMN, width * times)))
        panel = _as_image(report.panel(pictures, [*labels, "truth"], width=column))
        errors = _as_image(report.error_map(*(x.repeat_interleave(times, 0).repeat_interleave(times, 1) for x in pictures[-2:])))
        table = report.measures_table(rows, f"{count} frames", always=())
        shown_ui = [ui.PreviewImage(image, cls=cls).as_dict()["images"] for image in (panel, errors)]
        return io.NodeOutput(table, panel, errors, float(rows["deblurred"]["psnr"]),
                             ui={"images": [i for images in shown_ui for i in images], "text": [table]})


class SynthesizeMotionBlur(io.ComfyNode):
    """A still picture -> a blurred clip and its sharp truth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDSynthesizeBlur", display_name="Synthesize Motion Blur",
            description="Films a still picture with a shaking camera: gives the blurred clip and the sharp one, for trying things out.",
            search_aliases=["vdd motion blur", "camera shake", "blur generator"],
            inputs=[
                io.Image.Input("image", tooltip="A sharp picture; the first one of a batch is used."),
                io.Int.Input("frames", default=16, min=1, max=10000, tooltip="Length of the clip."),
                io.Float.Input("strength", default=12.0, min=0.0, max=100.0, step=0.5, tooltip="Mean length of the blur in pixels."),
                seed_input("The path of the shaking camera. The same seed gives the same clip."),
            ],
            outputs=[
                io.Image.Output(display_name="blurred", tooltip="The blurred clip."),
                io.Image.Output(display_name="sharp", tooltip="The same clip with an infinitely short exposure: the truth."),
            ])

    @classmethod
    def execute(cls, image, frames, strength, seed) -> io.NodeOutput:
        from ..vdd_model.measure.motion import camera_shake
        blurred, sharp = camera_shake(rgb_of(image[:1])[0].cpu(), frames, strength, seed, progress=Bar(frames).move)
        return io.NodeOutput(*(clip.to(mm.intermediate_device()) for clip in (blurred, sharp)))
