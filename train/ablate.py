"""What each part of the recipe is worth, at equal budget: `python -m train.ablate CONFIG --root DATA --out FOLDER`.

CONFIG's autoencoder and denoiser stages run once (or `--init` gives a checkpoint); from there every variant runs on its own with the
same batches, crops and number of optimiser steps (or minutes) as CONFIG's stage 1 + stage 2, then CONFIG's stage 3 where it has one:

    two stages            CONFIG as it is: encoder 2 and the adapter first, then everything
    one stage             everything at once, for the sum of both budgets
    without encoder 2     the blurred frames are encoded by encoder 1's copy, which never trains
    without coherence     without the paper's eq. 4

Writes ablation.md, ablation.csv and ablation.json. Called again with --resume it goes on where it was.
"""
from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

from vdd_model.config import ConfigError
from vdd_model.errors import UserError
from vdd_model.measure.report import align, save_text

from . import command
from .config import StageConfig, TrainConfig, add_run_flags, from_run_flags, scale_minutes

STOPPED = "stopped before the end; go on with --resume"
COLUMNS = {"v": "v loss"} | {f"{group}_{key}": f"{group}, {title}" for group in ("pairs", "photos") for key, title in (
    ("plain", "plain decoder (dB)"), ("output", "output (dB)"), ("gain", "gain (dB)"), ("temporal", "temporal error /255"))}


def variants(config: TrainConfig) -> dict[str, tuple[StageConfig, ...]]:
    """The stages of every variant. Raises ConfigError when CONFIG has no stage 1 followed by a stage 2."""
    kinds = [stage.kind for stage in config.stages]
    if kinds.count("stage1") != 1 or kinds.count("stage2") != 1:
        raise ConfigError("an ablation needs a configuration with one stage1 and one stage2")
    first, second = (config.stages[kinds.index(kind)] for kind in ("stage1", "stage2"))
    if (first.steps is None) != (second.steps is None):
        raise ConfigError("an ablation needs stage1 and stage2 both in steps or both in minutes")
    after = tuple(stage for stage in config.stages if stage.kind == "stage3")
    budget = {"steps": first.steps + second.steps} if first.steps else {"minutes": first.minutes + second.minutes}
    alone = replace(second, **budget, rescale=first.rescale or second.rescale,
                    loss=replace(second.loss, latent=second.loss.latent or first.loss.latent))

    def without(stage: StageConfig, prefix: str) -> StageConfig:
        """The stage with these parameters frozen, and no loss on encoder 2's latents."""
        kept = tuple(p for p in stage.prefixes if not p.startswith(prefix))
        return replace(stage, trainable=kept if kept != stage.prefixes else stage.trainable, loss=replace(stage.loss, latent=0.0))

    def incoherent(stage: StageConfig) -> StageConfig:
        """The stage without eq. 4."""
        return replace(stage, loss=replace(stage.loss, coherence=0.0))

    return {
        "two stages": (first, second, *after),
        "one stage": (alone, *after),
        "without encoder 2": (without(first, "encoder2"), without(second, "encoder2"), *(without(s, "encoder2") for s in after)),
        "without coherence": (incoherent(first), incoherent(second), *after),
    }


def ablate(config: TrainConfig, out: Path, resume: bool = False) -> list[dict]:
    """Train and score every variant; one row each, in the order of `variants`. Raises UserError."""
    from .loop import run

    chosen, init, rows = variants(config), config.init, []
    base = tuple(stage for stage in config.stages if stage.kind in ("autoencoder", "denoiser"))
    config = replace(config, export_dtype="float32")
    if base and not init:
        if run(replace(config, stages=base, out=str(out / "base")), resume=resume) is None:
            raise UserError(STOPPED)
        init = str(out / "base" / "vdd.safetensors")
    for name, stages in chosen.items():
        print(f"--- {name}")
        folder = out / name.replace(" ", "-")
        variant = replace(config, stages=stages, init=init, out=str(folder))
        if run(variant, resume=resume) is None:
            raise UserError(STOPPED)
        records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        rows.append({"variant": name, "steps": max(record["total"] for record in records)} | _row(stages, records))
        write(rows, out)
    return rows


def _row(stages: tuple[StageConfig, ...], records: list[dict]) -> dict[str, float]:
    """The last validation's scores, and the mean v loss of the last tenth of the steps that have one."""
    scores = [r["scores"] for r in records if r["type"] == "validation"][-1:]
    branch = any(stage.kind == "stage3" for stage in stages)
    shown = ("plain", "output", "gain", "temporal") if branch else ("plain", "temporal")       # an untrained branch says nothing
    row = {f"{group}_{key}": found[key] for last in scores for group, found in last.items() for key in shown}
    losses = [r["v"] for r in records if r["type"] == "step" and "v" in r]
    last = losses[-max(1, len(losses) // 10):]
    return row | {"v": sum(last) / len(last)}


def table(rows: list[dict]) -> str:
    """Markdown."""
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    cells = [[row["variant"], str(row["steps"]), *(f"{row[key]:.{4 if key == 'v' else 2}f}" for key in keys)] for row in rows]
    return align([["variant", "steps", *(COLUMNS[key] for key in keys)], *cells]) + "\n"


def write(rows: list[dict], out: Path) -> None:
    """ablation.md, .csv and .json in `out`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    for name, content in (("md", table(rows)), ("csv", text.getvalue()), ("json", json.dumps(rows, indent=1))):
        save_text(content, out / f"ablation.{name}")


@command(2, "go on with --resume")
def main(arguments: list[str] | None = None) -> None:
    """`python -m train.ablate`. Raises UserError."""
    parser = argparse.ArgumentParser(prog="python -m train.ablate", description=__doc__.splitlines()[0])
    add_run_flags(parser, out="runs/ablation")
    options = parser.parse_args(arguments)
    config = from_run_flags(options)
    if options.total_minutes is not None:
        one = sum(stage.minutes or 0 for stage in variants(config)["two stages"])
        config = scale_minutes(config, options.total_minutes * sum(stage.minutes or 0 for stage in config.stages) / (one or 1))
    print("\n" + table(ablate(config, Path(options.out), resume=options.resume)))


if __name__ == "__main__":
    sys.exit(main())
