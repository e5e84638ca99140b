"""Score a model on a test set: `python -m train.evaluate CHECKPOINT ROOT --out FOLDER`.

Protocol. Full frames unless `--crop` is given. Frames are 8-bit RGB: outputs are clamped and rounded before PSNR and SSIM. A number is the
mean over all frames of the set (for GoPro's test set: 11 sequences, 1111 frames, the folder `blur`), so a long sequence counts more;
measures between frames are means over the pairs inside sequences. A sequence is one clip from its first frame to its last.
Crop tables (`--crop N`): both pictures are cut to the centred N x N part first, so the model sees nothing outside; they are another
table, under another name, and never beside full-frame numbers.
The same tables hold the blurred input and the autoencoder's round trip of the truth (encoder and plain decoder, no fidelity branch),
and the truth itself, whose sharpness and flow-warped error are not zero.
"""
from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import chain, islice, zip_longest
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import vdd_model
from vdd_model.checkpoint.store import resolve
from vdd_model.errors import UserError
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.inference.window import to_frames, to_pixels
from vdd_model.measure import metrics, report
from vdd_model.media.images import read_image
from vdd_model.options import add_flags, from_flags

from . import at_least, command
from .data.readers import Found, Frames, find

WHOLE = {"gopro": 1111, "dvd": 1000}     # frames of the published test sets
STEPS = (1, 4, 10, 50)
OPTIONS = ("guidance", "fidelity", "seed", "window", "overlap", "tile", "prior")        # of DeblurOptions, that are flags here
CHUNK = 8                                # frames read or encoded together
# PSNR in dB on full frames, RGB; "-" where a paper gives no number. GoPro: 1111 full frames, `blur`; its SSIM column mixes both families,
# as the papers do. DVD: 10 test clips, 1000 frames.
PUBLISHED = (
    ("published", "GoPro PSNR dB", "GoPro SSIM", "GoPro LPIPS", "DVD PSNR dB", "parameters, M"),
    ("blurred input", "25.63", "0.858", "-", "-", "-"),
    ("Nah 2017 (video table)", "29.97", "-", "-", "-", "-"),
    ("SRN", "30.29", "0.901", "-", "29.98", "6.8"),
    ("ESTRNN", "31.07", "0.902", "-", "32.01", "2.2"),
    ("CDVD-TSP", "31.67", "0.928", "-", "32.13", "16.2"),
    ("NAFNet w32", "32.87", "-", "-", "-", "17.1"),
    ("NAFNet w64", "33.71", "-", "0.0781", "-", "67.9"),
    ("DSTNet+", "34.42", "0.969", "-", "33.93", "3.9"),
    ("BSSTNet", "35.98", "0.979", "-", "34.95", "-"),
    ("DiffBIR, 50 steps", "26.15", "-", "0.2366", "-", "-"),
    ("FideDiff (SD 2.1), 1 step", "28.79", "-", "0.0831", "-", "-"),
)


@dataclass(frozen=True)
class Pair:
    """One clip to be scored: functions that start reading its frames (H, W, 3) in [0, 1] anew."""

    name: str
    num_frames: int
    blurred: Callable[[], Iterable[Tensor]]
    sharp: Callable[[], Iterable[Tensor]]


@dataclass
class Scored:
    """Everything measured: means by sequence and setting, and the middle frames of the sequence that is drawn."""

    rows: dict[str, dict[str, dict]] = field(default_factory=dict)          # setting -> sequence -> {"frames", "seconds", columns...}
    pictures: dict[str, Tensor] = field(default_factory=dict)               # setting -> frame (H, W, 3)

    def totals(self) -> dict[str, dict[str, float | None]]:
        """Means over all frames by setting."""
        return {name: metrics.pool([(r["frames"], r) for r in found.values()]) for name, found in self.rows.items()}


def read_frames(frames: Frames, numbers: range, crop: int = 0) -> Iterator[Tensor]:
    """(H, W, 3) in [0, 1], read a few at a time; `crop` cuts the centred square."""
    width, height = frames.size
    box = None
    if crop:
        if min(width, height) < crop:
            raise UserError(f"{frames.name}: frames of {width} x {height} pixels are smaller than the crop of {crop}")
        x, y = (width - crop) // 2, (height - crop) // 2
        box = (x, y, x + crop, y + crop)
    for start in range(0, len(numbers), CHUNK):
        for frame in frames.read(numbers[start:start + CHUNK], box):
            yield frame.movedim(0, -1).float() / 255


def pairs_of(found: Found, limit: int = 0, crop: int = 0, chosen: Iterable[str] = ()) -> list[Pair]:
    """The clips of a folder that have both sides. `limit`: only the first frames of each; `chosen`: only these names. Raises UserError."""
    names = set(chosen)
    clips = [s for s in found.sequences if s.blurred is not None and (not names or names & {s.name, Path(s.name).name})]
    if not clips:
        there, which = ", ".join(s.name for s in found.sequences[:5]), " of these names" if names else ""
        raise UserError(f"nothing to score: no sequence with blurred and sharp frames{which} (there are: {there})")
    pairs = []
    for clip in clips:
        clip.check_sizes()
        count = min(len(clip), limit or len(clip))
        pairs.append(Pair(clip.name, count, *(partial(read_frames, frames, range(count), crop) for frames in (clip.blurred, clip.sharp))))
    return pairs


@torch.no_grad()
def round_trip(deblurrer: Deblurrer, frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """The autoencoder alone: encoder, posterior mean, plain decoder; frames (H, W, 3) in and out."""
    model = deblurrer.model
    parameter = next(model.vae.parameters())
    frames = iter(frames)
    while chunk := list(islice(frames, CHUNK)):
        pixels = to_pixels(chunk, model.config.divisor, parameter.device, parameter.dtype)
        decoded = [model.vae.decode(model.vae.encode(frame[None])[0])[0] for frame in pixels[0].movedim(1, 0)]
        yield from to_frames(torch.stack(decoded, dim=1)[None], chunk, color="none")


def score(output: Iterable[Tensor], pair: Pair, *, reference: bool, shown: int, **measures: bool) -> tuple[dict, Tensor]:
    """Score a clip's frames against its truth: {"frames", "seconds", columns...} and the frame of index `shown`. `measures` are those of a
    `Scorer`. The seconds are those that making the frames took, without measuring them.
    """
    clock, scorer = [0.0], metrics.Scorer(**measures)
    clips = [_timed(output, clock), pair.sharp(), *([pair.blurred()] if reference else [])]
    with tqdm(total=pair.num_frames, desc=pair.name, unit="frame", leave=False, disable=None) as bar:
        kept, count, _ = report.compare_frames([scorer], zip_longest(*clips), shown=shown,
                                               progress=lambda count: bar.update(int(count) - bar.n))
    if count != pair.num_frames:
        raise UserError(f"{pair.name}: {count} of {pair.num_frames} frames came out")
    return {"frames": count, "seconds": round(clock[0], 3), **scorer.result()}, kept[0]


def _timed(items: Iterable, clock: list[float]) -> Iterator:
    """The items; the seconds that getting them took are added to clock[0]."""
    iterator = iter(items)
    while True:
        start = time.perf_counter()
        item = next(iterator, None)
        clock[0] += time.perf_counter() - start
        if item is None:
            return
        yield item


def settings_of(deblurrer: Deblurrer, steps: Iterable[int], options: DeblurOptions, ensembles: Iterable[int] = ()) -> dict[str, Callable]:
    """What is scored, in the order of the table: name -> function (pair) -> frames. `ensembles`: one step in so many orientations."""
    table: dict[str, Callable] = {"blurred input": lambda pair: pair.blurred(),
                                  "autoencoder's round trip": lambda pair: round_trip(deblurrer, pair.sharp())}
    chosen = {steps_name(count): replace(options, steps=count) for count in steps}
    chosen |= {f"1 step, mean of {count} orientations": replace(options, steps=1, ensemble=count) for count in ensembles}
    for name, each in chosen.items():
        table[name] = lambda pair, each=each: chain.from_iterable(deblurrer.stream(pair.blurred(), each, total=pair.num_frames,
                                                                                     notice=tqdm.write))
    return table | {"truth": lambda pair: pair.sharp()}


def steps_name(count: int) -> str:
    """The row of a number of steps."""
    return f"{count} step{'' if count == 1 else 's'}"


def run(pairs: list[Pair], settings: dict[str, Callable], *, parts: Path, fingerprint: str, **measures: bool) -> Scored:
    """Score every setting on every clip, by the `measures` of `score`. Finished ones are kept in `parts` as JSON, for a later run of the
    same `fingerprint`. The middle frame of the first clip is kept of every setting."""
    scored = Scored()
    for name, make in settings.items():
        for number, pair in enumerate(pairs):
            part = parts / re.sub(r"[^\w.-]", "_", f"{pair.name}--{name}.json")
            row, picture = _known(part, fingerprint, need_picture=number == 0)
            if row is None:
                row, picture = score(make(pair), pair, reference=name != "truth", shown=pair.num_frames // 2, **measures)
                if number == 0:
                    report.save_image(report.to_image(picture), part.with_suffix(".png"))
                report.save_text(json.dumps({"fingerprint": fingerprint, "row": row}), part)
                print(f"{name:<34}{pair.name:<40}{row['psnr']:7.2f} dB {row['frames'] / max(row['seconds'], 1e-9):7.2f} frames/s")
            scored.rows.setdefault(name, {})[pair.name] = row
            if number == 0:
                scored.pictures[name] = picture
    return scored


def _known(part: Path, fingerprint: str, need_picture: bool) -> tuple[dict | None, Tensor | None]:
    """A finished part of an earlier run, if it is of the same fingerprint (`fingerprint_of`)."""
    try:
        data = json.loads(part.read_text())
        if data["fingerprint"] != fingerprint:
            return None, None
        return data["row"], read_image(part.with_suffix(".png"))[0] if need_picture else None
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return None, None


def write_figures(scored: Scored, folder: Path) -> list[Path]:
    """Panel (Fig. 3), error maps (Fig. 4) and the distortion-over-steps curve."""
    pictures = scored.pictures
    steps = [name for name in pictures if name.endswith(("step", "steps"))]            # a mean of orientations is no number of steps
    shown = ["blurred input", *steps[:1], *steps[-1:]] if len(steps) > 1 else ["blurred input", *steps]
    box = report.interesting_box([pictures["blurred input"], pictures["truth"]])
    files = [report.save_image(report.panel([pictures[n] for n in (*shown, "truth")], [*shown, "truth"], box), folder / "panel.png")]
    maps = [report.error_map(pictures[n], pictures["truth"]) for n in shown]
    files.append(report.save_image(report.grid([maps], shown), folder / "error_map.png"))
    curve = steps_curve({"": scored.totals()}, folder / "steps.png")
    return files + ([curve] if curve else [])


def steps_curve(sets: dict[str, dict[str, dict]], path: Path, columns: tuple[str, ...] = ("psnr", "sharpness", "lpips")) -> Path | None:
    """Draw measures over the number of steps, a line for each set of totals, with the blurred input and the truth as level lines.

    None when there are no steps.
    """
    points = {name: [(int(setting.split()[0]), row) for setting, row in totals.items() if setting.endswith(("step", "steps"))]
              for name, totals in sets.items()}
    columns = tuple(c for c in columns if any(row.get(c) is not None for found in points.values() for _, row in found))
    if not columns:
        return None
    figure = Figure(figsize=(5 * len(columns), 3.6), layout="tight")
    for axis, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns):
        for number, (name, found) in enumerate(points.items()):
            known = [(s, row[column]) for s, row in found if row.get(column) is not None]
            axis.plot(*zip(*known), marker="o", color=f"C{number}", label=name or "model")
            for other, style in (("blurred input", ":"), ("truth", "--")):
                level = sets[name].get(other, {}).get(column)
                if level is not None and not (column == "psnr" and other == "truth"):
                    axis.axhline(level, linestyle=style, color=f"C{number}", linewidth=1, label=f"{name} {other}".strip())
        ticks = sorted({s for found in points.values() for s, _ in found})
        axis.set(xscale="log", xlabel="steps", title=metrics.COLUMNS[column][0])
        axis.set_xticks(ticks, [str(s) for s in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> Path:
    """As a PNG. Raises UserError."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, bbox_inches="tight")
    return report.write_file(path, data.getvalue())


def write_tables(scored: Scored, folder: Path, head: dict, notes: list[str]) -> list[Path]:
    """results.md, results.csv and results.json."""
    totals = scored.totals()
    lines = [f"# {head['title']}", "", *(f"- {key}: {value}" for key, value in head.items() if key != "title"), "", "## All frames", "",
             report.markdown_table(totals, "mean over all frames"), ""]
    lines += [*(f"{note}\n" for note in notes), "## Published", "", report.align(PUBLISHED), "",
              "Full frames, RGB. The papers' SSIM is of one family or the other; compare with both columns above.", ""]
    for name in next(iter(scored.rows.values())):
        lines += [f"## {name}", "", report.markdown_table({setting: rows[name] for setting, rows in scored.rows.items()}, "mean"), ""]
    lines += ["## Protocol", "", (__doc__ or "").split("Protocol. ")[1].strip(), ""]
    rows = [(name, setting, row) for setting, found in scored.rows.items() for name, row in found.items()]
    for setting, row in totals.items():
        frames, seconds = (sum(r[key] for r in scored.rows[setting].values()) for key in ("frames", "seconds"))
        rows.append(("all", setting, {"frames": frames, "seconds": round(seconds, 2), **row}))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sequence", "setting", "frames", "seconds", *metrics.COLUMNS])
    for name, setting, row in rows:
        numbers = ("" if row.get(c) is None else f"{row[c]:.6f}" for c in metrics.COLUMNS)
        writer.writerow([name, setting, row["frames"], row["seconds"], *numbers])
    data = {**head, "totals": totals, "sequences": scored.rows, "notes": notes}
    return [report.save_text("\n".join(lines), folder / "results.md"), report.save_text(text.getvalue(), folder / "results.csv"),
            report.save_text(json.dumps(data, indent=1), folder / "results.json")]


def evaluate(a: argparse.Namespace) -> None:
    """Score a.checkpoint (a name or a path) on the clips below a.root, as the flags of `main` say, and write tables and figures into a.out.

    A run that was interrupted goes on where it stopped. Raises UserError.
    """
    if a.download_lpips:
        metrics.lpips_model(download=True)
    options = from_flags(argparse.Namespace(**{name: getattr(a, name) for name in (*OPTIONS, "color")}))
    found = find(a.root, a.layout, a.split, a.blur)
    pairs = pairs_of(found, a.frames, a.crop, a.sequences)
    deblurrer = Deblurrer(a.checkpoint, device=a.device, dtype=getattr(torch, a.dtype) if a.dtype else None,
                          prior=None if a.prior == options.prior else a.prior)
    total = sum(p.num_frames for p in pairs)
    frames = f"centred {a.crop} x {a.crop} crops (not comparable with full-frame tables)" if a.crop else "full frames"
    head = {"title": f"Evaluation of {deblurrer.model.config.name}", "model": a.checkpoint,
            "data": f"{a.root} ({found.layout}, {len(pairs)} sequences, {total} frames, input folder {a.blur!r})", "frames": frames,
            "options": json.dumps(asdict(options))}
    notes = ["LPIPS was switched off." if a.no_lpips else report.lpips_note()]
    if (whole := WHOLE.get(found.layout, total)) != total:
        notes.append(f"These are {total} frames; the published {found.layout} numbers are over {whole}: "
                     "they stand beside, not against each other.")
    notes = [note for note in (*notes, *(f"{p}." for p in found.problems)) if note]
    measures = {"lpips": not a.no_lpips, "warp": not a.no_warp}
    more = (found.layout, a.crop, a.frames, a.blur, a.no_warp)
    fingerprint = fingerprint_of(a.checkpoint, deblurrer, options, a.root, not a.no_lpips, *more)
    scored = run(pairs, settings_of(deblurrer, a.steps, options, a.ensemble), parts=a.out / "parts", fingerprint=fingerprint, **measures)
    files = write_tables(scored, a.out, head, notes) + write_figures(scored, a.out)
    print("\n" + report.measures_table(scored.totals(), f"{total} frames, {frames}"), *notes,
          "wrote " + ", ".join(str(f) for f in files), sep="\n")


def fingerprint_of(checkpoint: str | Path, deblurrer: Deblurrer, options: DeblurOptions, root: Path, lpips: bool, *more) -> str:
    """All that the numbers of one clip depend on, as text: two runs of one fingerprint may share finished parts. `more` is JSON-able."""
    dtype, files = next(deblurrer.model.vae.parameters()).dtype, [resolve(checkpoint).stat()]        # a later file may have the same name
    if deblurrer.prior.path and options.prior != "none":
        files.append(deblurrer.prior.path.stat())
    stamps = [(file.st_size, file.st_mtime_ns) for file in files]
    return json.dumps([str(checkpoint), stamps, str(deblurrer.device), str(dtype), asdict(options),
                       str(root.resolve()), lpips and not report.lpips_note(), code_version(), *more])


@cache
def code_version() -> str:
    """A digest of the sources of the model and of the training: numbers of other code are other numbers."""
    digest = hashlib.blake2b(digest_size=8)
    for package in (Path(vdd_model.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(package.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@command(1)
def main(arguments: list[str] | None = None) -> None:
    """`python -m train.evaluate`. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a checkpoint file, or a built-in name (small)")
    parser.add_argument("root", type=Path, help="folder of the test set")
    parser.add_argument("--out", type=Path, default="outputs/evaluation", help="folder for tables and figures (%(default)s)")
    parser.add_argument("--layout", default="auto", help="gopro, dvd, reds, bsd, pairs, or auto")
    parser.add_argument("--split", default="test", help="train, val or test, where the folders name one; '' for all that is there")
    parser.add_argument("--blur", default="blur", help="GoPro's input folder: blur (as papers do) or blur_gamma")
    parser.add_argument("--steps", type=at_least(1), nargs="+", default=list(STEPS))
    parser.add_argument("--ensemble", type=at_least(1), nargs="*", default=[], help="also one step in so many orientations, e.g. 2 8")
    add_flags(parser, *OPTIONS)
    parser.add_argument("--color", default="wavelet", help="wavelet or none")
    parser.add_argument("--crop", type=at_least(0), default=0, help="score centred crops of this side instead of full frames")
    parser.add_argument("--frames", type=at_least(0), default=0, help="only the first frames of every sequence")
    parser.add_argument("--sequences", nargs="*", default=[], help="only these")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--no-lpips", action="store_true")
    parser.add_argument("--no-warp", action="store_true", help="leave the flow-warped error out (the slowest measure)")
    parser.add_argument("--download-lpips", action="store_true", help="allow the AlexNet weights of LPIPS to be fetched once")
    evaluate(parser.parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
