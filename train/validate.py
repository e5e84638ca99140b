"""Validation during training: a few fixed clips, a table of PSNR and a PNG panel."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor, nn

from vdd_model.config import ConfigError
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.measure import metrics, report

from .config import TrainConfig, blur_config
from .data import readers
from .data.pool import is_pool
from .evaluate import read_frames, round_trip, save_figure
from .synthesis.blur import synthesize

PANEL_HEIGHT = 256         # of its pictures, pixels
SEED = 20_250_101          # of the validation's blur and noise: never a training seed


class ValidationClip(NamedTuple):
    """One pair: frames (F, H, W, 3) in [0, 1]."""

    group: str
    name: str
    blurred: Tensor
    sharp: Tensor


def load_clips(config: TrainConfig) -> list[ValidationClip]:
    """The validation clips of a run, on the CPU. Raises UserError."""
    validation, (pairs, photos) = config.validation, _sets(config)
    clips = [_pair_clip(sequence, validation.frames, validation.pairs_crop) for sequence in _spread(pairs, validation.clips)]
    for number, photo in enumerate(_spread(photos, validation.clips)):     # one at a time: whatever is drawn, it shows this one
        blurred, sharp = synthesize([photo.sharp.read(range(1))[0]], SEED, [number], num_frames=validation.frames, size=validation.crop,
                                    config=blur_config(config), device="cpu")
        clips.append(ValidationClip("photos", photo.name, *(x[0].permute(1, 2, 3, 0) for x in (blurred, sharp))))
    return clips


def _sets(config: TrainConfig) -> tuple[list[readers.Sequence], list[readers.Sequence]]:
    """All pairs and all photographs that a run may validate on; an empty list for a set that is left out. Raises UserError."""
    validation, root, pairs, photos = config.validation, Path(config.root), [], []
    if validation.pairs:
        found = readers.find(root / validation.pairs, "auto", validation.split, config.data.blur_folder).sequences
        pairs = [sequence for sequence in found if sequence.blurred is not None]
        if not pairs:
            raise ConfigError(f"validation.pairs: the folder {root / validation.pairs} holds no pairs of blurred and sharp frames")
    if validation.photos:
        photos = readers.find(root / validation.photos, "photos").sequences
    return pairs, photos


def seen_in_training(config: TrainConfig) -> list[str]:
    """Names of validation clips whose sharp frames the run trains on. Raises UserError."""
    data, folder = config.data, Path(config.root) / config.data.folder
    if is_pool(folder):                                        # its photographs have no files any more
        return []
    trained = set().union(*map(_files, readers.find(folder, data.layout, data.split, data.blur_folder).sequences))
    return [sequence.name for sequences in _sets(config) for sequence in sequences if _files(sequence) & trained]


def _files(sequence: readers.Sequence) -> set[Path]:
    """The files of its sharp frames."""
    sharp = sequence.sharp
    return {path.resolve() for path in (sharp.paths if isinstance(sharp, readers.PictureFrames) else [sharp.path])}


def _spread(items: list, count: int) -> list:
    """At most `count` of them, evenly spread."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _pair_clip(sequence: readers.Sequence, frames: int, crop: int) -> ValidationClip:
    """The middle frames of a sequence, whole or the middle square of `crop` pixels."""
    sequence.check_sizes()
    start = max(0, len(sequence) - frames) // 2
    numbers, crop = range(len(sequence))[start:start + frames], min(crop, *sequence.sharp.size)
    return ValidationClip("pairs", sequence.name, *(torch.stack([*read_frames(part, numbers, crop)])
                                                    for part in (sequence.blurred, sequence.sharp)))


@torch.no_grad()
def validate(model: nn.Module, clips: list[ValidationClip], kind: str, device, panel: Path | None = None) -> dict[str, dict[str, float]]:
    """Means over frames and clips per group ("pairs", "photos"): PSNR in dB of blurred, autoencoder, and from stage 1 on of plain (one step
    of the UNet, no fidelity branch) and output (one step as `Deblurrer` takes it, but for its color transfer); the temporal error of what
    the stage shows.

    Writes a panel of the centre frames (blurred, output, truth) to `panel`.
    """
    deblurrer, rows, pictures = Deblurrer(model, device=device, move=False), {}, []
    options = DeblurOptions(color="none", prior="none", scenes="off", repeats="off")
    for clip in clips:
        shown = torch.stack([*round_trip(deblurrer, clip.sharp)])
        row = {"blurred": _psnr(clip.blurred, clip.sharp), "autoencoder": _psnr(shown, clip.sharp)}
        if kind.startswith("stage"):
            branch = model.vae.fidelity                        # before stage 3 it would show the blurred frame itself
            trained = branch is not None and bool(branch.head.weight.any())
            plain = output = deblurrer.deblur(clip.blurred, options, fidelity=0.0, denoise_at_one_step=True)
            if trained:
                output = deblurrer.deblur(clip.blurred, options)
            row |= {"plain": _psnr(plain, clip.sharp), "output": _psnr(output, clip.sharp)}
            row["gain"] = row["output"] - row["blurred"]
            shown = output if kind == "stage3" else plain
        row["temporal"] = metrics.temporal_error(shown, clip.sharp).mean().nan_to_num().item()         # of one frame there is none
        rows.setdefault(clip.group, []).append(row)
        pictures.append([report.to_image(x[len(x) // 2]) for x in (clip.blurred, shown, clip.sharp)])
    if panel is not None and pictures:
        sized = [[ImageOps.contain(i, (2**16, PANEL_HEIGHT), Image.LANCZOS) for i in row] for row in pictures]
        report.save_image(report.grid(sized), panel)
    return {group: {key: metrics.mean([row[key] for row in found]) for key in found[0]} for group, found in rows.items()}


def _psnr(frames: Tensor, truth: Tensor) -> float:
    """Mean over the frames, dB."""
    return metrics.mean(metrics.psnr(frames, truth).tolist())


def table(scores: dict[str, dict[str, float]]) -> str:
    """The scores as text, dB, the temporal error in 1/255."""
    columns = list(next(iter(scores.values()), {}))
    lines = [f"  {'PSNR, dB':<10}" + "".join(f"{column.replace('temporal', 'temporal/255'):>13}" for column in columns)]
    return "\n".join(lines + [f"  {group:<10}" + "".join(f"{row[column]:>13.2f}" for column in columns) for group, row in scores.items()])


def save_curve(records: list[dict], path: Path) -> None:
    """Loss over steps (smoothed, log scale) and validation PSNR as one PNG from the log's records."""
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    steps = [r for r in records if r["type"] == "step"]
    colors: dict[str, str] = {}                                # one for each kind of stage
    for stage, kind in dict.fromkeys((r["stage"], r["kind"]) for r in steps):
        chosen = [r for r in steps if (r["stage"], r["kind"]) == (stage, kind)]
        size = max(1, len(chosen) // 200)
        parts = [chosen[i:i + size] for i in range(0, len(chosen), size)]
        label = "" if kind in colors else kind
        left.plot([p[-1]["total"] for p in parts], [sum(r["loss"] for r in p) / len(p) for p in parts],
                  color=colors.setdefault(kind, f"C{len(colors)}"), label=label)
    left.set(xlabel="step", ylabel="loss", yscale="log" if all(r["loss"] > 0 for r in steps) else "linear")
    checks = [r for r in records if r["type"] == "validation"]
    for group in ("pairs", "photos"):
        for column, style in (("blurred", ":"), ("autoencoder", "--"), ("plain", "-."), ("output", "-")):
            points = [(r["total"], r["scores"][group][column]) for r in checks if column in r["scores"].get(group, {})]
            if points:
                right.plot(*zip(*points), style, label=f"{group}: {column}")
    right.set(xlabel="step", ylabel="PSNR, dB")
    for axis in (left, right):
        if axis.lines:
            axis.legend(fontsize=7, ncol=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    save_figure(figure, path)
