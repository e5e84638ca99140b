"""What a run says while it trains: log.jsonl and trackers, lines for people, losses in batches."""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor

from vdd_model.errors import UserError
from vdd_model.measure.report import write_file

from .config import TrainConfig
from .state import Position


class Journal:
    """A run's losses on their way to the log, to trackers and to people. Every process calls `add` and `flush`; the main one writes.

    log.jsonl holds one JSON object a line, a "step" or a "validation" record. Lines of steps that a resumed run repeats are cut off.
    """

    def __init__(self, config: TrainConfig, accelerator, say: Callable[[str], None], position: Position, last_state: Path | None):
        self.config, self.accelerator, self.say, self.last_state = config, accelerator, say, last_state
        self.path = Path(config.out) / "log.jsonl"
        self.every = 1 if accelerator.device.type == "cpu" else config.log_every      # a GPU is not waited for at every step
        self.pending: list[tuple[dict, dict[str, Tensor], list[str]]] = []
        self.latest: dict = {}
        self.named: set[str] = set()                   # files that were said to be left out
        self.scores: dict = {}                         # of the last validation
        if accelerator.is_main_process and self.path.exists():
            kept = [line for line in self.path.read_text(errors="replace").splitlines() if _total(line) <= position.total]
            write_file(self.path, "".join(line + "\n" for line in kept))
            self.scores = next((record["scores"] for record in reversed(self.records()) if record["type"] == "validation"), {})

    def records(self) -> list[dict]:
        """All that was written so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def _write(self, kind: str, record: dict) -> None:
        """Append. Raises UserError when the disk is full."""
        if self.accelerator.is_main_process:
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps({"type": kind, **record}) + "\n")
            except OSError as error:
                raise UserError(f"{self.path} cannot be written: {error.strerror}") from None

    def _where(self, position: Position) -> dict:
        kind = self.config.stages[position.stage].kind
        return {"stage": position.stage, "kind": kind, "step": position.step, "total": position.total}

    def add(self, position: Position, values: dict[str, Tensor], files: list[str]) -> None:
        """The float32 scalars of a step (means over this process's part of the batch), and the files of its samples."""
        self.pending.append((self._where(position), values, files))
        if len(self.pending) >= self.every or position.step % self.config.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Bring the pending losses to the CPU, the same in every process, and write them; UserError on the first that is not finite."""
        if not self.pending:
            return
        table = torch.stack([torch.stack(list(values.values())) for _, values, _ in self.pending])
        for (where, values, files), row in zip(self.pending, self.accelerator.reduce(table, "mean").cpu().tolist()):
            self.latest = where | dict(zip(values, row))
            if not (math.isfinite(self.latest["loss"]) and math.isfinite(self.latest["norm"])):
                raise self._not_finite(files)
            self._write("step", self.latest)
            shown = {f"{where['kind']}/{key}": value for key, value in self.latest.items() if isinstance(value, float)}
            self.accelerator.log(shown, step=where["total"])
        self.pending.clear()

    def _not_finite(self, files: list[str]) -> UserError:
        from accelerate.utils import gather_object

        files, record = gather_object(files), self.latest
        return UserError(f"the loss is {record['loss']} (gradient norm {record['norm']}) at step {record['step']} of stage "
                         f"{record['stage']} ({record['kind']}); its batch: {', '.join(files)}; "
                         f"last good state: {self.last_state or 'none was written yet'}")

    def line(self, position: Position, seconds: float) -> None:
        """The latest step as a line; a step takes `seconds`. Left is the time until the end of the stage, and of the later ones where they
        are given in minutes."""
        record, stage, later = self.latest, self.config.stages[position.stage], self.config.stages[position.stage + 1:]
        terms = " ".join(f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float) and key != "lr")
        left = (stage.steps - position.step) * seconds if stage.steps else 60 * stage.minutes - position.seconds
        left += sum(60 * s.minutes for s in later) if all(s.minutes for s in later) else 0
        self.say(f"stage {record['stage']} {record['kind']} step {record['step']}{f'/{stage.steps}' if stage.steps else ''}  {terms}  "
                 f"lr {record['lr']:.2g}  {1 / max(seconds, 1e-9):.2f} steps/s  {timedelta(seconds=max(0, round(left)))} left")

    def left_out(self, unreadable: dict[str, str]) -> None:
        """Say once of every file that could not be read that the run goes on without it."""
        for name, reason in list(unreadable.items()):  # threads add to it
            if name not in self.named:
                self.named.add(name)
                self.say(f"left out: {reason}")

    def validation(self, position: Position, scores: dict, table: str) -> None:
        """Scores of the averaged weights."""
        self.scores = scores
        self.say(table)
        self._write("validation", {**self._where(position), "hours": position.hours, "scores": scores})
        self.accelerator.log({f"validation/{g}/{k}": v for g, row in scores.items() for k, v in row.items()}, step=position.total)


def _total(line: str) -> float:
    try:
        return json.loads(line)["total"]
    except (ValueError, KeyError, TypeError):          # the half line of a killed process
        return math.inf
