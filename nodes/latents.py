"""What this pack puts into a LATENT and a CONDITIONING, and how both are cut to some of a clip's frames."""
from __future__ import annotations

from itertools import pairwise, starmap

import comfy.utils
import torch
from torch import Tensor

from ..vdd_model.errors import UserError

# Keys of a CONDITIONING's dict. Time is on axis 2 of both, so that context windows cut them like the latents.
BLUR = "vdd_blur"             # (1, 4, F, h, w): encoder 2's latents; 8 channels with those of PICTURES
PICTURES = "vdd_pictures"     # a function that gives the latents of what one step shows, of BLUR's shape: only several steps ask for them
IMAGE = "vdd_image"           # (1, 1, F, image_dim): semantic vectors of all frames; zeros in the unconditional branch
SIZE = "vdd_size"             # key of a LATENT's dict: (height, width) of the frames before padding
PRIOR = "vdd_prior"           # key of a LATENT's dict: the frames of Deblur Prior, as IMAGE
SCENES = "vdd_scenes"         # key of a LATENT's dict: where scenes begin, and the number of latents
SHOWN = "vdd_shown"           # key of a LATENT's dict: the frame that each latent is of, and the number of frames, where some are repeats
ONE_STEP = "vdd_one_step"     # key of a LATENT's dict: its samples when they came in one step; another node's samples are others
ESTIMATE = "vdd_estimate"     # key of a LATENT's dict: the same of samples that are encoder 2's estimate alone, which can be had turned too


def need_video_latent(samples: Tensor, channels: int) -> None:
    """Raise UserError unless latents are those of one clip, (1, channels, F, h, w)."""
    if samples.ndim != 5 or samples.shape[:2] != (1, channels):
        several = samples.ndim == 5 and len(samples) > 1
        raise UserError(f"this latent holds {len(samples)} clips: take one of them, with Latent From Batch" if several else
                        f"this latent has the shape {tuple(samples.shape)}: connect the latent of 'Encode Blurred Clip'")


def scenes_of(latent: dict) -> list[range]:
    """The scenes of a LATENT; one where nobody looked for them, or another node has changed the number of frames."""
    frames = latent["samples"].shape[2]
    bounds = latent.get(SCENES, (0, frames))
    return [*starmap(range, pairwise(bounds if bounds[-1] == frames else (0, frames)))]


def shown_of(latent: dict) -> list[range]:
    """The frames that show what each latent of a clip is of: one each, where none is a repeat or another node has changed their number."""
    count = latent["samples"].shape[2]
    bounds = latent.get(SHOWN, ())
    return [*starmap(range, pairwise(bounds if len(bounds) == count + 1 else range(count + 1)))]


def chunks_of(scenes: list[range], count: int) -> list[tuple[range, range]]:
    """Scenes cut into `count` frames at a time: those frames, and the same with their neighbours, at which the fidelity branch looks."""
    chunks = ((scene, scene[at:at + count]) for scene in scenes for at in range(0, len(scene), count))
    return [(these, range(max(scene.start, these.start - 1), min(these.stop + 1, scene.stop))) for scene, these in chunks]


def with_pictures(extra: dict) -> dict:
    """What a CONDITIONING says, PICTURES computed and joined to BLUR."""
    if PICTURES not in extra:
        return extra
    rest = {key: value for key, value in extra.items() if key != PICTURES}
    return {**rest, BLUR: torch.cat([extra[BLUR], extra[PICTURES]()], dim=1)}


def cut(conditioning: list, start: int, stop: int, frames: int) -> list:
    """The frames [start, stop) of a conditioning over `frames` frames, and of its mask where that has one entry per frame."""
    def part(key: str, value):
        """The entry of `key` for these frames."""
        if key in (BLUR, IMAGE) and value.shape[2] == frames:
            return value[:, :, start:stop]
        return value[start:stop] if key == "mask" and value.ndim == 3 and len(value) == frames else value

    return [[text, {key: part(key, value) for key, value in extra.items()}] for text, extra in conditioning]


def with_mask_per_frame(latent: dict, factor: int) -> dict:
    """A LATENT with its noise mask, where it has one, as the host's samplers make it: of the latents' shape, stretched over all of them.

    A mask of pixels is padded at first, as the frames were to multiples of `factor` pixels: else it would lie beside what it masks.
    """
    mask, shape, size = latent.get("noise_mask"), latent["samples"].shape, latent.get(SIZE)
    if mask is None:
        return latent
    if len(mask) == (shown := shown_of(latent))[-1].stop:
        mask = mask[[frames.start for frames in shown]]
    if size and mask.ndim <= 4 and mask.shape[-2:] != shape[-2:]:
        below, right = (n * factor - pixels for n, pixels in zip(shape[-2:], size))
        if 0 <= min(below, right) and max(below, right) < 16 * factor:          # else another node has resized the latent
            mask = torch.nn.functional.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]).float(), size, mode="bilinear")
            mask = torch.nn.functional.pad(mask, (0, right, 0, below), mode="replicate")
    return {**latent, "noise_mask": comfy.utils.reshape_mask(mask, shape)}


def cut_latent(latent: dict, start: int, stop: int) -> dict:
    """The frames [start, stop) of a LATENT and of its noise mask, as `with_mask_per_frame` gives them."""
    return {**latent, **{key: latent[key][:, :, start:stop] for key in ("samples", "noise_mask") if latent.get(key) is not None}}
