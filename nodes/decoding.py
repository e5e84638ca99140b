"""Deblur Prior and Decode Deblurred Frames."""
from __future__ import annotations

import functools
from collections.abc import Iterator

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor

from ..vdd_model.errors import UserError
from ..vdd_model.inference.ensemble import ORIENTATIONS
from ..vdd_model.inference.pipeline import BESIDE_PRIOR, checked
from ..vdd_model.inference.prior import NO_FUSION, need_prior
from ..vdd_model.inference.scenes import pictures
from ..vdd_model.inference.temporal import chosen, joined_over_time
from ..vdd_model.inference.tiles import make_tiling
from ..vdd_model.inference.window import decode_frames, need_numbers, to_frames
from . import folders, latents, native
from .frames import need_prior_of, rgb_of, with_alpha
from .notices import Notices, sampled_by
from .progress import Bar
from .schema import advanced, option_input, schema


class DeblurPrior(io.ComfyNode):
    """IMAGE -> IMAGE by the pretrained prior alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDPrior", display_name="Deblur Prior",
            description="What a pretrained network for photographs (MAXIM) makes of each frame alone. Connect it to Decode Deblurred "
                        "Frames, which joins it with what the neighbouring frames tell.",
            search_aliases=["vdd maxim", "photo deblurring", "single image deblur"],
            inputs=[io.Image.Input("frames", tooltip="The blurred frames; any number and any size. Alpha passes through.")],
            hidden=[io.Hidden.dynprompt],
            outputs=[io.Image.Output(display_name="frames", tooltip="As many frames of the same size.")])

    @classmethod
    def fingerprint_inputs(cls, **_):
        return folders.mark_of_prior()

    @classmethod
    def execute(cls, frames: torch.Tensor) -> io.NodeOutput:
        prior = native.kept(cls.hidden, native.load_prior, need_prior(folders.find_prior()))
        native.use([prior.patcher], native.prior_memory(prior, *frames.shape[1:3]))
        bar, out = Bar(len(frames)), torch.empty(*frames.shape[:3], 3, device=mm.intermediate_device())
        shown = []
        for picture in pictures(checked(rgb_of(frames)), scenes=False):               # a frame that is shown again is not computed again
            shown.append(picture)
            bar.begin(picture.index + 1 - bar.done, prior.ticks(*frames.shape[1:3]))
            out[picture.index] = prior(picture.rgb[None], bar.tick)[0]
            bar.end(out[picture.index])
        for picture in shown:
            out[picture.index + 1:picture.index + picture.times] = out[picture.index]
        bar.move(len(frames))
        return io.NodeOutput(with_alpha(out, frames))


class DecodeDeblurredFrames(io.ComfyNode):
    """Sharp latents -> frames, with the fidelity branch and color of the blurred ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VDDDecode", display_name="Decode Deblurred Frames",
            description="Decodes sharp latents. With the blurred frames connected, edges are put where they were filmed and colors follow "
                        "the input.",
            search_aliases=["vdd decode", "video vae decode", "fidelity decoder"],
            inputs=[
                io.Latent.Input("latent", tooltip="From Deblur Sampler or KSampler."),
                io.Vae.Input("vae", tooltip="From Load Deblur Checkpoint. An image VAE is refused."),
                io.Image.Input("blurred", optional=True,
                               tooltip="The frames that were encoded: for fidelity, color and alpha."),
                *map(option_input, ("fidelity", "color")), option_input("tile", False), option_input("tile_overlap"),
                advanced(io.Combo.Input, "detail", options=["auto", "faithful", "sampled"], default="auto",
                         tooltip="Whose detail is shown. faithful: what one step knows. sampled: what several steps drew. auto: faithful "
                                 "behind one step of Deblur Sampler, else sampled."),
                io.Image.Input("prior", optional=True,
                               tooltip="The same frames from Deblur Prior: photographs and long blur become sharper."),
                option_input("ensemble"), option_input("temporal_fusion"),
            ],
            hidden=[io.Hidden.prompt],
            outputs=[io.Image.Output(display_name="frames", tooltip="As many frames, of the same size, as were encoded.")])

    @classmethod
    def execute(cls, latent, vae, blurred=None, fidelity=1.0, color="wavelet", tile=-1, tile_overlap=-1, detail="auto",
                prior=None, ensemble=-1, temporal_fusion="auto") -> io.NodeOutput:
        encoders, model = native.need_deblur_vae(vae)
        config, z = encoders.config, latent["samples"]
        latents.need_video_latent(z, config.vae.latent_channels)
        shown = latents.shown_of(latent)
        first = [at.start for at in shown]
        if not torch.isfinite(z).all():
            broken = first[int((~torch.isfinite(z)).any(dim=1).flatten(2).any(dim=2).long().argmax())]
            made = sampled_by(cls.hidden.prompt, "latent")
            raise UserError(f"the latent holds values that are not numbers, from frame {broken} on: they came out of the sampling"
                            f"{f' with {made}' if made else ''}; use sampler 'euler' and scheduler 'simple', or Deblur Sampler")
        factor, frames = config.vae.factor, shown[-1].stop
        padded = tuple(n * factor for n in z.shape[-2:])

        def fits(size) -> bool:
            return tuple(n + -n % config.divisor for n in size) == padded

        stored = latent.get(latents.SIZE, padded)           # a node that resizes a latent passes it on as it was
        height, width = (stored if fits(stored) else padded) if blurred is None else blurred.shape[1:3]
        if blurred is not None and (len(blurred) != frames or not fits((height, width))):
            raise UserError(f"blurred has {len(blurred)} frames of {width} x {height} pixels, the latent {frames} of {padded[1]} x "
                            f"{padded[0]}: connect the frames that were encoded, or none where the latent was resized or cut")
        prior = latent.get(latents.PRIOR) if prior is None else prior
        if blurred is not None:
            need_prior_of(blurred, prior, "blurred")
        if prior is not None and model.vae.fusion is None:
            Notices()(NO_FUSION)
            prior = None
        if blurred is None:
            fidelity, color = 0.0, "none"
        if model.vae.fidelity is None:                     # this checkpoint has no such branch, or has not trained it
            fidelity = 0.0
        sampled = latent.get(latents.ONE_STEP) is not z if detail == "auto" else detail == "sampled"
        estimate = blurred is not None and latent.get(latents.ESTIMATE) is z
        if ensemble > 1 and not estimate:
            raise UserError("ensemble must be 1 here: only one step of Deblur Sampler, decoded beside the blurred frames, can be turned")
        if temporal_fusion == "on" and not estimate:
            raise UserError("temporal_fusion must be auto or off here: only one step of Deblur Sampler, decoded beside blurred frames, can "
                            "be joined over time")
        turns = ORIENTATIONS[:ensemble if ensemble > 0 else BESIDE_PRIOR if estimate and prior is not None else 1]
        tiling = make_tiling(None if tile < 0 else tile, None if tile_overlap < 0 else tile_overlap, height, width, config.divisor)
        side, count = [min(n, tiling.tile or n) for n in padded], min(native.chunk_of(tiling, *padded), frames)
        native.use([vae.patcher, *([encoders.spatial] if fidelity or len(turns) > 1 else [])],
                   native.decode_memory(config, count, *side, encoders.dtype, fidelity > 0))
        seen, known = (x if x is None or len(shown) == frames else x[first] for x in (blurred, prior))    # of repeats the first
        bar, pieces = Bar(len(shown)), len(tiling.boxes((1, *padded))) * len(turns)
        alpha = blurred is not None and blurred.shape[-1] == 4
        out = torch.empty(frames, height, width, 3 + alpha, device=mm.intermediate_device())        # once: chunks to join would be it twice
        codes = {turn: native.codes_of(encoders, model, seen, known, padded, turn, len(turns)) for turn in turns}

        def decoded(turn, these: range, near: range) -> Tensor:
            """Those frames in one orientation, turned back; of several each begins at encoder 2's estimate of its own."""
            part = None if len(turns) > 1 else z[:, :, these.start:these.stop].to(encoders.device) * config.vae.latent_scale
            source = codes[turn].source(part, these, near, fidelity, sampled)
            pixels = decode_frames(model, source, (len(these), *codes[turn].size), tiling, bar.tick)
            codes[turn].forget(these.stop - 1)
            need_numbers(pixels, first[these.start], encoders.dtype)
            like = list(rgb_of(seen[these.start:these.stop])) if blurred is not None else [pixels.new_empty(height, width, 3)]
            return to_frames(turn.turn_back(pixels), like, color, tiling.tile)

        def pictures_of(scene: range) -> Iterator[tuple[range, Tensor, Tensor]]:
            """Where the frames of a scene are shown, what they became, what they were."""
            for these, near in latents.chunks_of([scene], count):
                bar.begin(len(these), pieces)
                mean = functools.reduce(Tensor.add_, (decoded(turn, these, near) for turn in turns)).div_(len(turns))
                yield from zip(shown[these.start:these.stop], mean, mean if seen is None else rgb_of(seen[these.start:these.stop]))
                bar.end(mean[-1])

        temporal = chosen(model.vae, temporal_fusion, Notices(), one_step=estimate, fidelity=fidelity,
                          beside_prior=prior is not None)
        with bar.watch(model):
            for scene in latents.scenes_of(latent):
                made = pictures_of(scene)
                made = joined_over_time(made, temporal, encoders.device, bar.tick) if temporal is not None else made
                for place, frame, *_ in made:
                    out[place.start:place.stop, ..., :3] = frame
        if alpha:
            out[..., 3:] = blurred[..., 3:]
        return io.NodeOutput(out)
