"""Validation during training: a few fixed clips, a table of PSNR and a PNG panel."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from vdd_model.config import ConfigError
from vdd_model.diffusion import schedule as diffusion
from vdd_model.measure import metrics, report
from vdd_model.media.files import written_aside
from vdd_model.networks.fidelity import BlurGuide
from vdd_model.networks.model import fold_time, unfold_time

from .config import TrainConfig, blur_config
from .data import readers
from .data.pool import is_pool
from .stages import centre, generator
from .synthesis.blur import synthesize

PANEL_HEIGHT = 256         # of its pictures, pixels
SEED = 20_250_101          # of the validation's blur and noise: never a training seed


class ValidationClip(NamedTuple):
    """One pair: frames (3, F, H, W) in [0, 1]."""

    group: str
    name: str
    blurred: Tensor
    sharp: Tensor


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over frames of the PSNR (8-bit RGB) of clips (3, F, H, W) in [0, 1], dB; 100 for equal frames."""
    return metrics.psnr(a.movedim(0, -1), b.movedim(0, -1)).clamp(max=100).mean().item()


def load_clips(config: TrainConfig, divisor: int) -> list[ValidationClip]:
    """The validation clips of a run, on the CPU; frames cut to multiples of `divisor`. Raises ConfigError for a missing folder."""
    validation, (pairs, photos) = config.validation, _sets(config)
    clips = [_pair_clip(sequence, validation.frames, validation.pairs_crop, divisor) for sequence in _spread(pairs, validation.clips)]
    for number, photo in enumerate(_spread(photos, validation.clips)):     # one at a time: whatever is drawn, it shows this one
        blurred, sharp = synthesize([photo.sharp.read(range(1))[0]], SEED, [number], num_frames=validation.frames, size=validation.crop,
                                    config=blur_config(config), device="cpu")
        clips.append(ValidationClip("photos", photo.name, blurred[0], sharp[0]))
    return clips


def _sets(config: TrainConfig) -> tuple[list[readers.Sequence], list[readers.Sequence]]:
    """All pairs and all photographs that a run may validate on; an empty list for a set that is left out. Raises ConfigError, DataError."""
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
    """Names of validation clips whose sharp frames the run trains on. Raises ConfigError, DataError."""
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


def _pair_clip(sequence: readers.Sequence, frames: int, crop: int, divisor: int) -> ValidationClip:
    """The middle frames of a sequence, whole or the middle square of `crop` pixels, cut to multiples of `divisor`."""
    frames = min(frames, len(sequence))
    start = (len(sequence) - frames) // 2
    width, height = sequence.sharp.size
    wide, high = ((min(crop, n) if crop else n) // divisor * divisor for n in (width, height))
    left, top = (width - wide) // 2, (height - high) // 2
    blurred, sharp = (part.read(range(start, start + frames), (left, top, left + wide, top + high)).transpose(0, 1).float() / 255
                      for part in (sequence.blurred, sequence.sharp))
    return ValidationClip("pairs", sequence.name, blurred, sharp)


@torch.no_grad()
def restore(model: nn.Module, blurred: Tensor, *, fidelity: float = 1.0, seed: int = SEED) -> Tensor:
    """One step, the posterior mean: (B, 3, F, H, W) in [0, 1] -> the same, not clamped."""
    x = blurred * 2 - 1
    code = model.encode_blurred(x)
    condition = model.condition(code.latents, centre(x))
    noise = torch.randn(code.latents.shape, generator=generator(x.device, seed, "validation"), device=x.device)
    schedule = model.unet.schedule
    t = torch.full((len(x),), schedule.num_timesteps - 1, device=x.device)
    z0 = diffusion.x0_from_v(schedule, noise, t, model.predict_v(noise, t, condition).float())
    return model.decode(z0, BlurGuide(x, code.features, fidelity)).float() * 0.5 + 0.5


@torch.no_grad()
def round_trip(model: nn.Module, sharp: Tensor) -> Tensor:
    """Autoencoder's encoder and plain decoder: (B, 3, F, H, W) in [0, 1] -> the same."""
    mean, _ = model.vae.encode(fold_time(sharp * 2 - 1))
    return unfold_time(model.vae.decode(mean), len(sharp)).float() * 0.5 + 0.5


def validate(model: nn.Module, clips: list[ValidationClip], kind: str, device, panel: Path | None = None) -> dict[str, dict[str, float]]:
    """PSNR in dB per group ("pairs", "photos"): blurred, autoencoder, and from stage 1 on plain (fidelity 0) and output (fidelity 1).

    Writes a panel of the centre frames (blurred, output, truth) to `panel`.
    """
    rows: dict[str, list[dict[str, float]]] = {}
    pictures = []
    for clip in clips:
        blurred, sharp = (x[None].to(device) for x in (clip.blurred, clip.sharp))
        decoded = round_trip(model, sharp)
        row = {"blurred": psnr(clip.blurred, clip.sharp), "autoencoder": psnr(decoded[0].cpu(), clip.sharp)}
        shown = decoded
        if kind.startswith("stage"):
            plain = restore(model, blurred, fidelity=0.0)
            branch = model.vae.fidelity                        # before stage 3 it would show the blurred frame itself
            shown = restore(model, blurred) if branch is not None and branch.head.weight.any() else plain
            row |= {"plain": psnr(plain[0].cpu(), clip.sharp), "output": psnr(shown[0].cpu(), clip.sharp)}
            if kind != "stage3":
                shown = plain
            row["gain"] = row["output"] - row["blurred"]
        rows.setdefault(clip.group, []).append(row)
        pictures.append([centre(x)[0].cpu() for x in (blurred, shown, sharp)])
    if panel is not None and pictures:
        images = [[report.to_image(rearrange(p, "c h w -> h w c")) for p in row] for row in pictures]
        sized = [[i.resize((round(i.width * PANEL_HEIGHT / i.height), PANEL_HEIGHT), Image.LANCZOS) for i in row] for row in images]
        report.save_image(report.grid(sized), panel)
    return {group: {key: sum(r[key] for r in found) / len(found) for key in found[0]} for group, found in rows.items()}


def table(scores: dict[str, dict[str, float]]) -> str:
    """The scores as text, dB."""
    columns = list(next(iter(scores.values()), {}))
    lines = [f"  {'PSNR, dB':<10}" + "".join(f"{column:>13}" for column in columns)]
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
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=100, bbox_inches="tight")
