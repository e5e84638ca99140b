"""`make score`: what the shipped model does, on real walking footage and on photographs seen by a moving camera.

    python -m benchmarks.score [CHECKPOINT] [--data FOLDER] [--out FOLDER]

Two sets, full frames, 8-bit RGB: the clips of `gopro_layout/test` (blur not made by our own synthesis) and one clip of synthesised motion
from every photograph of `val_photos` (fixed seed, so the same clips every time; blur of 3 to 30 pixels: the near-sharp end of the training
distribution is left out, a sharp clip being scored on its own). Prints one table a set, what is asked of the model and whether it is met;
writes score.md, score.json, the distortion-over-steps figure and panels of the worst, a middling and the best clip.
"""
from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import common
from train import exit_code
from train.data.photos import read_photos
from train.data.readers import find
from train.evaluate import Pair, Scored, fingerprint_of, pairs_of, run, settings_of, steps_curve, steps_name
from train.synthesis.blur import synthesize
from train.synthesis.scene import BlurConfig
from vdd_model.errors import UserError
from vdd_model.inference.codes import Codes
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.inference.window import decode_frames, to_frames, to_pixels
from vdd_model.measure import perceptual, report
from vdd_model.media.images import read_image

STEPS = (1, 2, 4, 10, 50)
ENSEMBLES = (2, 4)
SEED = 4_040_404                        # of the synthesised motion; training never draws from this stream
SHARP = "sharp in, sharp out"
LATENTS = "with the sharp latents"
VARIANTS = {"1 step, UNet called": {"denoise_at_one_step": True}, "1 step, color as the model gives it": {"color": "none"},
            "1 step, joined over time": {"temporal_fusion": "on"},
            "1 step, joined over time, mean of 4 orientations": {"temporal_fusion": "on", "ensemble": 4}}
ALONE, REPEATED = "1 step, each frame alone", "1 step, each frame shown three times"
PRIOR, WITH_PRIOR, ALONE_WITH_PRIOR = "the prior alone", "1 step, with the prior", "1 step, with the prior, each frame alone"
ALL_WITH_PRIOR = "1 step, with the prior, mean of 8 orientations"
CHUNK = 4                               # frames decoded at a time
BLUR = BlurConfig(near_sharp=0.0, extent=(3.0, 30.0), kinks=0.0, relief=0.0)      # smooth paths before planes, as in every published table
COLUMNS = ("psnr", "ssim_gaussian", "ssim_matlab", "lpips", "flip", "jod", "vmaf", "temporal_error", "warp_error", "sharpness",
           "color_shift")


def photo_pairs(folder: Path, frames: int, size: int, limit: int = 0) -> list[Pair]:
    """One synthesised clip from every photograph: frames of size x size pixels, made as in training, from `BLUR`."""
    photos = read_photos(folder)
    if photos.unreadable:
        raise UserError(f"{folder}: {next(iter(photos.unreadable.values()))}")
    count = min(len(photos), limit or len(photos))

    @functools.lru_cache(maxsize=2)
    def clip(index: int) -> tuple[Tensor, Tensor]:
        made = synthesize([photos[index]], SEED, [index], num_frames=frames, size=size, config=BLUR)
        return tuple(x[0].permute(1, 2, 3, 0) for x in made)

    return [Pair(Path(photos.names[i]).stem, frames, lambda i=i: iter(clip(i)[0]), lambda i=i: iter(clip(i)[1])) for i in range(count)]


def stream(deblurrer: Deblurrer, options: DeblurOptions, source: Callable[[Pair], Iterable[Tensor]] = lambda pair: pair.blurred()):
    """A setting: what comes of the frames that `source` gives of a pair, by default the blurred ones."""
    return lambda pair: itertools.chain.from_iterable(deblurrer.stream(source(pair), options))


def thrice(pair: Pair) -> Iterator[Tensor]:
    """Its blurred frames, each shown three times, as a converter to a higher rate shows them."""
    return (shown for frame in pair.blurred() for shown in (frame, frame.clone(), frame.clone()))


def with_prior(deblurrer: Deblurrer, options: DeblurOptions) -> dict[str, Callable]:
    """The settings that take the pretrained prior; none where its file is not there or the model has no use for it. Each frame passes
    its network once as it is, and once turned for all orientations."""
    if deblurrer.prior.path is None or deblurrer.model.vae.fusion is None:
        return {}
    prior, known = deblurrer.prior.load(deblurrer.prior.path), {}
    network, options = prior.turned, replace(options, prior="maxim")

    def turned(frame: Tensor) -> Tensor:
        """What the prior makes of a frame (H, W, 3) as it lies, kept in half precision: rounded by less than 0.07/255."""
        key = frame.shape, hashlib.blake2b(frame.contiguous().numpy().tobytes()).digest()
        if key not in known:
            known[key] = network(frame).half()
        return known[key].float()

    def alone(pair: Pair) -> Iterator[Tensor]:
        """The prior's own frames."""
        prior.configure(options)
        return map(prior.of, pair.blurred())

    prior.turned, deblurrer.prior.load = turned, lambda path: prior
    return {PRIOR: alone, WITH_PRIOR: stream(deblurrer, options),
            ALONE_WITH_PRIOR: lambda pair: (deblurrer.deblur(frame[None], options)[0] for frame in pair.blurred()),
            ALL_WITH_PRIOR: stream(deblurrer, replace(options, ensemble=8))}


def photograph(folder: Path) -> list[Pair]:
    """A recorded pair of pictures, blur.png and sharp.png, as a clip of one frame; nothing where there is none."""
    def frames(name: str) -> Callable:
        """A pair's side."""
        return lambda: iter([read_image(folder / name)[0]])
    return [Pair(folder.name, 1, frames("blur.png"), frames("sharp.png"))] if (folder / "blur.png").is_file() else []


def sharp_latents(deblurrer: Deblurrer, options: DeblurOptions):
    """A setting whose latents are the sharp frames' own: what the decoder would show behind a perfect denoiser."""
    model = deblurrer.model

    def pixels(frames: list[Tensor]) -> Tensor:
        """As the model takes them."""
        return to_pixels(frames, model.config.divisor, deblurrer.device)

    def frames(pair: Pair) -> Iterator[Tensor]:
        blurred, sharp = list(pair.blurred()), list(pair.sharp())
        codes = Codes(model, lambda numbers, _: pixels(blurred[numbers.start:numbers.stop]), None, blurred[0].shape[:2])
        for start in range(0, len(blurred), CHUNK):
            these = range(start, min(start + CHUNK, len(blurred)))
            near, target = range(max(0, start - 1), min(these.stop + 1, len(blurred))), pixels(sharp[start:these.stop])
            source = codes.source(model.encode_target(target), these, near, options.fidelity, detail=True)
            yield from to_frames(decode_frames(model, source, target.shape[2:]), blurred[start:these.stop], options.color)
    return frames


def asked(totals: dict[str, dict]) -> list[tuple[str, str, bool]]:
    """What is asked of the model on one set: (what, measured, whether it is met)."""
    blurred, one = totals["blurred input"], totals[steps_name(1)]
    steps = [totals[name] for name in totals if name.endswith(("step", "steps"))]
    gain, fall = one["psnr"] - blurred["psnr"], steps[0]["psnr"] - min(s["psnr"] for s in steps)
    sharpness = [s["sharpness"] for s in steps]
    ssim = one["ssim_gaussian"] - blurred["ssim_gaussian"]
    return [
        ("PSNR above the blurred input, 1 step: at least 2.0 dB", f"{gain:+.2f} dB", gain >= 2.0),
        ("SSIM (Gaussian) above the blurred input, 1 step", f"{ssim:+.4f}", ssim > 0),
        ("temporal error below the blurred input's, 1 step", f"{one['temporal_error']:.3f} against {blurred['temporal_error']:.3f}",
         one["temporal_error"] < blurred["temporal_error"]),
        ("sharpness rises with the steps", " ".join(f"{s:.0f}" for s in sharpness), all(a <= b for a, b in zip(sharpness, sharpness[1:]))),
        ("PSNR falls by at most 3.5 dB over the steps", f"{fall:.2f} dB", fall <= 3.5),
        ("a sharp clip stays itself: at least 34 dB", f"{totals[SHARP]['psnr']:.2f} dB", totals[SHARP]["psnr"] >= 34),
    ] + [
        ("frames shown three times keep 0.9 of the gain, 1 step", f"{(totals[name]['psnr'] - blurred['psnr']) / gain:.2f}",
         totals[name]["psnr"] - blurred["psnr"] >= 0.9 * gain) for name in [REPEATED] if name in totals
    ]


def clips_of(data: Path, clip_frames: int = 0, frames: int = 8, size: int = 256, photos: int = 0) -> dict[str, list[Pair]]:
    """The clips of both sets; the numbers as the command line takes them."""
    return {"real footage": pairs_of(find(data / "gopro_layout", "gopro", "test"), clip_frames),
            "synthesised motion": photo_pairs(data / "val_photos", frames, size, photos)}


def scored_with_prior(scored: Scored, pair: Pair) -> float | None:
    """What one step with the prior gains on a clip, where it was scored."""
    if WITH_PRIOR not in scored.rows:
        return None
    return scored.rows[WITH_PRIOR][pair.name]["psnr"] - scored.rows["blurred input"][pair.name]["psnr"]


def panels(sets: dict[str, tuple[list[Pair], Scored]], deblurrer: Deblurrer, options: DeblurOptions,
           folder: Path) -> tuple[list[str], list[Path]]:
    """Panels of the worst, the median and the best clip of all, by what one step gains on the blurred input: sentences and files."""
    gains, said = [], []
    for name, (pairs, scored) in sets.items():
        for pair in pairs:
            rows = [scored.rows[n][pair.name]["psnr"] for n in (steps_name(1), "blurred input")]
            gains.append((rows[0] - rows[1], name, pair))
    gains.sort(key=lambda g: g[0])
    files = []
    for title, (gain, name, pair) in zip(("worst", "median", "best"), (gains[0], gains[len(gains) // 2], gains[-1])):
        middle = pair.num_frames // 2
        blurred, sharp = (list(f())[middle] for f in (pair.blurred, pair.sharp))
        clip = torch.stack(list(pair.blurred()))
        output = deblurrer.deblur(clip, options)[middle]
        said.append(f"- {title} clip, panel_{title}.png: {pair.name} ({name}), {gain:+.2f} dB over its {pair.num_frames} frames")
        shown = {"blurred": blurred, f"1 step ({gain:+.2f} dB)": output}
        if (with_prior := scored_with_prior(sets[name][1], pair)) is not None:
            shown[f"1 step, with the prior ({with_prior:+.2f} dB)"] = deblurrer.deblur(clip, options, prior="maxim")[middle]
        labels = [*shown, "truth"]
        box = report.interesting_box([blurred, sharp])
        files.append(report.save_image(report.panel([*shown.values(), sharp], labels, box, width=360), folder / f"panel_{title}.png"))
        maps = [report.error_map(x, sharp) for x in (blurred, output)]
        files.append(report.save_image(report.grid([maps], labels[:2]), folder / f"error_{title}.png"))
    return said, files


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 also when something asked is not met, it is said."""
    parser = common.data_parser((__doc__ or "").splitlines()[0], Path("outputs/score"))
    parser.add_argument("checkpoint", nargs="?", default="small")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--ensemble", type=int, nargs="*", default=list(ENSEMBLES), help="also one step in so many orientations")
    parser.add_argument("--photos", type=int, default=0, help="only so many photographs")
    parser.add_argument("--frames", type=int, default=8, help="frames of a synthesised clip (%(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side of a synthesised clip in pixels (%(default)s)")
    parser.add_argument("--clip-frames", type=int, default=0, help="only the first frames of the recorded clips")
    parser.add_argument("--prior", type=Path, help="the pretrained prior's file (else the one of `make prior`); its rows need it")
    parser.add_argument("--plain", action="store_true", help="without FLIP, ColorVideoVDP and VMAF, which take most of the time")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16", "float16"])
    a = parser.parse_args(arguments)

    def work() -> None:
        """All that can fail with a sentence."""
        deblurrer = Deblurrer(a.checkpoint, device=a.device, dtype=getattr(torch, a.dtype) if a.dtype else None, prior=a.prior)
        if not a.data.is_dir():
            raise UserError(f"the test clips are not here: there is no folder {a.data} (give it with --data)")
        sets = clips_of(a.data, a.clip_frames, a.frames, a.size, a.photos)
        if photo := photograph(a.data / "gopro_pair"):
            sets["one recorded photograph"] = photo
        measure(a, deblurrer, sets)

    return exit_code(work)


def measure(a: argparse.Namespace, deblurrer: Deblurrer, sets: dict[str, list[Pair]]) -> None:
    """Score, print and write."""
    from vdd_model.checkpoint.store import read_state, resolve

    options = DeblurOptions(prior="none")
    settings = settings_of(deblurrer, a.steps, options, a.ensemble)
    truth = settings.pop("truth")
    settings |= {name: stream(deblurrer, replace(options, **changed)) for name, changed in VARIANTS.items()}
    settings |= {ALONE: lambda pair: (deblurrer.deblur(frame[None], options)[0] for frame in pair.blurred()),
                 REPEATED: lambda pair: itertools.islice(stream(deblurrer, options, thrice)(pair), 1, None, 3)}
    settings |= with_prior(deblurrer, options)
    settings |= {LATENTS: sharp_latents(deblurrer, options), SHARP: stream(deblurrer, options, lambda pair: pair.sharp()), "truth": truth}
    status = resolve(a.checkpoint).stat()
    size = sum(tensor.numel() for tensor in read_state(a.checkpoint)[1].values())
    lines = [f"# Score of {a.checkpoint}", "", f"- parameters: {size:,}; file: {status.st_size / 1e6:.1f} MB", ""]
    results, totals = {}, {}
    for name, pairs in sets.items():
        fingerprint = fingerprint_of(a.checkpoint, deblurrer, options, a.data, True, SEED, asdict(BLUR), a.frames, a.size, a.clip_frames,
                                   PRIOR in settings, *(() if a.plain else perceptual.present()))
        scored = run(pairs, settings, parts=a.out / "parts" / name.replace(" ", "_"), fingerprint=fingerprint, perceptual=not a.plain)
        results[name], totals[name] = (pairs, scored), scored.totals()
        frames = sum(p.num_frames for p in pairs)
        seconds = statistics.mean(r["seconds"] / r["frames"] for r in scored.rows[steps_name(a.steps[0])].values())
        rows = {setting: {key: row.get(key) for key in COLUMNS} for setting, row in totals[name].items()}
        table = report.markdown_table(rows, f"{name}, {frames} frames", always=())
        speed = f"{steps_name(a.steps[0])}: {seconds:.2f} s a frame on this machine."
        lines += [f"## {name}: {len(pairs)} clips", "", table, "", speed, ""]
        if 1 in a.steps and frames > 1:
            lines += [f"- {'met' if ok else 'NOT met'}: {what}: {value}" for what, value, ok in asked(totals[name])] + [""]
    data = {"totals": totals, "clips": {name: scored.rows for name, (_, scored) in results.items()}}
    files = [report.save_text(json.dumps(data, indent=1), a.out / "score.json"),
             steps_curve(totals, a.out / "score.png", ("psnr", "sharpness"))]
    if 1 in a.steps:
        said, drawn = panels(results, deblurrer, options, a.out)
        lines, files = [*lines, *said, ""], files + drawn
    lines.append(report.lpips_note())
    files.append(report.save_text("\n".join(lines), a.out / "score.md"))
    print("\n" + "\n".join(lines))
    print("wrote " + ", ".join(str(f) for f in files if f))


if __name__ == "__main__":
    raise SystemExit(main())
