"""What a run says while it trains: log.jsonl and trackers, lines for people, losses in batches."""
from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from vdd_model.errors import UserError
from vdd_model.media.files import written_aside

from .config import TrainConfig


class NotFinite(UserError):
    """A loss became NaN or infinite."""


class Log:
    """log.jsonl: one JSON object a line, a "step" or a "validation" record. Lines of steps that a resumed run repeats are cut off."""

    def __init__(self, path: Path, total: int):
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _total(line) <= total]
            with written_aside(path) as aside:
                aside.write_text("".join(line + "\n" for line in kept))

    def write(self, records: list[dict]) -> None:
        """Append. Raises UserError when the disk is full."""
        try:
            with self.path.open("a") as file:
                file.write("".join(json.dumps(record) + "\n" for record in records))
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from None

    def read(self) -> list[dict]:
        """All records so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def _total(line: str) -> float:
    try:
        return json.loads(line)["total"]
    except (ValueError, KeyError, TypeError):          # the half line of a killed process
        return float("inf")


class Journal:
    """A run's losses on their way to the log, to trackers and to people. Every process calls `add` and `flush`; the main one writes."""

    def __init__(self, config: TrainConfig, accelerator, log: Log | None, say):
        self.config, self.accelerator, self.log, self.say = config, accelerator, log, say
        self.every = 1 if accelerator.device.type == "cpu" else config.log_every      # a GPU is not waited for at every step
        self.pending: list[tuple[dict, dict[str, Tensor], list[str]]] = []
        self.latest: dict = {}
        self.named: set[str] = set()                   # files that were said to be left out
        validations = [record["scores"] for record in log.read() if record["type"] == "validation"] if log else []
        self.scores: dict = validations[-1] if validations else {}

    def add(self, where: dict, values: dict[str, Tensor], files: list[str]) -> None:
        """The float32 scalars of a step (means over this process's part of the batch), and the files of its samples."""
        self.pending.append((where, values, files))

    def flush(self, last_state: Path | None) -> None:
        """Bring the pending losses to the CPU, the same in every process, and write them; NotFinite on the first that is not finite."""
        if not self.pending:
            return
        table = torch.stack([torch.stack(list(values.values())) for _, values, _ in self.pending])
        for (where, values, files), row in zip(self.pending, self.accelerator.reduce(table, "mean").cpu().tolist()):
            self.latest = {"type": "step", **where, **dict(zip(values, row))}
            if not (math.isfinite(self.latest["loss"]) and math.isfinite(self.latest["norm"])):
                raise self._not_finite(files, last_state)
            if self.log:
                self.log.write([self.latest])
            if self.config.trackers:
                shown = {f"{where['kind']}/{key}": value for key, value in self.latest.items() if isinstance(value, float)}
                self.accelerator.log(shown, step=where["total"])
        self.pending.clear()

    def _not_finite(self, files: list[str], last_state: Path | None) -> NotFinite:
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            files = gather_object(files)
        record = self.latest
        return NotFinite(f"the loss is {record['loss']} (gradient norm {record['norm']}) at step {record['step']} of stage "
                         f"{record['stage']} ({record['kind']}); its batch: {', '.join(files)}; "
                         f"last good state: {last_state or 'none was written yet'}")

    def line(self, steps: int | None, seconds: float, left: float) -> None:
        """The latest step as a line. steps: of the whole stage; seconds: a step takes; left: until the run's end."""
        record = self.latest
        terms = " ".join(f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float) and key != "lr")
        self.say(f"stage {record['stage']} {record['kind']} step {record['step']}{f'/{steps}' if steps else ''}  {terms}  "
                 f"lr {record['lr']:.2g}  {1 / max(seconds, 1e-9):.2f} steps/s  {_clock(left)} left")

    def left_out(self, unreadable: dict[str, str]) -> None:
        """Say once of every file that could not be read that the run goes on without it."""
        for name, reason in list(unreadable.items()):  # threads add to it
            if name not in self.named:
                self.named.add(name)
                self.say(f"left out: {reason}")

    def validation(self, where: dict, scores: dict, table: str, hours: float) -> None:
        """Scores of the averaged weights."""
        self.scores = scores
        self.say(table)
        self.log.write([{"type": "validation", **where, "hours": hours, "scores": scores}])
        if self.config.trackers:
            self.accelerator.log({f"psnr/{g}/{k}": v for g, row in scores.items() for k, v in row.items()}, step=where["total"])


def _clock(seconds: float) -> str:
    seconds = max(0, round(seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
