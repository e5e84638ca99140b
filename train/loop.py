"""The training loop: stages in order, on one process or many, with states, log, validation and a clean end at any time."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vdd_model import checkpoint
from vdd_model.errors import UserError
from vdd_model.networks.model import DeblurModel

from . import start
from . import state as states
from . import validate as checks
from .backend import shard as sharding
from .backend.cache import FrozenCache, cache_key
from .backend.muon import Muon
from .config import StageConfig, TrainConfig
from .data.source import Ahead, Clips, open_source
from .stages import (
    StageLoss,
    estimate_errors,
    generator,
    latent_std,
    rescale_latents,
    set_latent_scale,
    set_trainable,
    start_detail,
    start_encoders,
    start_from_estimate,
    with_detail,
)

SCALE_CLIPS = 64          # clips that the latents' scale is measured on


class NotFinite(UserError):
    """A loss became NaN or infinite."""


def run(config: TrainConfig, *, resume: bool = False, minutes: float | None = None, say=print) -> Path | None:
    """Train. Returns the inference checkpoint's path, or None when `minutes` (of wall time, this call) ended the run before its end.

    Raises UserError or ConfigError with one sentence; all that can be checked is checked before any work.
    """
    return Run(config, resume=resume, minutes=minutes, say=say).go()


@dataclass
class Work:
    """A stage while it trains."""

    stage: StageConfig
    number: int
    module: nn.Module              # StageLoss, wrapped by accelerate or sharded
    names: list[str]               # of the parameters that train
    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer
    average: states.Average
    source: Ahead
    seed: int                      # of the stage's samples
    cache: FrozenCache | None


class Run:
    """One call of the training program."""

    def __init__(self, config: TrainConfig, *, resume: bool, minutes: float | None, say):
        self.started = time.monotonic()
        asked, config = config, start.computable(config)
        self.config, self.limit = config, minutes
        self.folder = Path(config.out)
        self.states = self.folder / "states"
        if config.threads:
            torch.set_num_threads(config.threads)
        start.check_data(config)
        self.accelerator = start.make_accelerator(config)
        main = self.accelerator.is_main_process
        self.say = (lambda text: say(text, flush=True)) if main and say is print else (say if main else lambda text: None)
        if config.precision != asked.precision:
            self.say(f"this processor only emulates {asked.precision}, a hundred times slower: training in {config.precision}")
        self.device = start.exact_device(self.accelerator.device)
        start.check_split(config, self.accelerator.num_processes)
        if main and (shared := checks.seen_in_training(config)):
            self.say(f"validation sees what training sees ({len(shared)} clips, the first is {shared[0]}): its scores will flatter")
        self.restored = start.find_state(config, self.states, resume, self.say)
        model = start.make_model(config, self.restored, self.say)
        size = sum(p.numel() for p in model.parameters())
        if main:
            exports = len(config.stages) * getattr(torch, config.export_dtype).itemsize
            states.check_room(self.states, size * (4 * 4 * (config.keep + 1) + exports))
        self.model = start.prepare_model(model, config, self.device)
        self.progress = dataclasses.replace(self.restored.progress) if self.restored else states.Progress()
        self.last_state = self.restored.path if self.restored else None
        self.accelerator.wait_for_everyone()             # nobody writes before everybody has looked
        self.log = states.Log(self.folder / "log.jsonl", self.progress.total) if main else None
        self.clips: list[checks.Clip] = []               # read before the first step: what is wrong with them should not cost one
        if main or config.fsdp:
            self.clips = checks.load_clips(config, self.model.config.divisor)
        self.pending: list[tuple[int, Tensor, list[str]]] = []
        self.saved_at = time.monotonic()
        self.work: Work | None = None
        self.stop_signal = 0
        self.scores: dict = next((r["scores"] for r in reversed(self.log.read()) if r["type"] == "validation"), {}) if main else {}
        self.unreadable: set[str] = set()

    # ---- the run

    def go(self) -> Path | None:
        """All stages that are left."""
        with self._signals(), self._trackers():
            self._catch_up()
            while self.progress.stage < len(self.config.stages):
                if not self._stage(self.config.stages[self.progress.stage]):
                    self._export("stopped before the end")
                    return None
            return self._export("finished")

    def _catch_up(self) -> None:
        """The checkpoint of the stage behind which the run goes on, where a kill has kept it from being written."""
        number = self.progress.stage - 1
        lacking = self.accelerator.is_main_process and not self._stage_file(number).exists()
        if number >= 0 and not self.progress.step and self._any(lacking):
            self._export_stage(number)

    def _stage(self, stage: StageConfig) -> bool:
        """Train one stage from where it stands. False when the call has to end before the stage does."""
        config, progress = self.config, self.progress
        work = self.work = self._begin(stage)
        self.say(f"stage {work.number} ({stage.kind}): {sum(p.numel() for p in work.parameters) / 1e6:.2f} M parameters of "
                 f"{sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M, batch {stage.batch} x {stage.frames} x {stage.crop} x "
                 f"{stage.crop}, " + (f"{stage.steps} steps" if stage.steps else f"{stage.minutes:.1f} minutes"))
        before, clock, first = progress.seconds, time.monotonic(), progress.step
        while True:
            progress.seconds = before + time.monotonic() - clock
            done, ending = self._agree(stage)
            if done >= 1 or ending:
                break
            with self._stance(stage.compile):
                self._step(work, stage.lr * learning_rate(stage, progress.step, done))
            if config.compile and stage.compile and progress.step == first + 1:
                clock = time.monotonic()                 # compiling is not training: a stage of one minute would be over before it began
            if len(self.pending) >= (1 if self.device.type == "cpu" else config.log_every):
                self._flush()
            if progress.step % config.log_every == 0:
                self._flush()
                self._left_out(work)
                self._line(work, (time.monotonic() - clock) / (progress.step - first))
            if config.validation.every and progress.step % config.validation.every == 0:
                self._validate()
            progress.seconds = before + time.monotonic() - clock
            if progress.step % config.save_every == 0 or self._any(time.monotonic() - self.saved_at > 60 * config.save_minutes):
                self._save()
        self._flush()
        self._left_out(work)
        work.source.close()
        if done < 1:
            self._save()
            self.say(f"stopping at step {progress.step} of stage {work.number}; go on with --resume")
            return False
        self._finish()
        return True

    def _begin(self, stage: StageConfig) -> Work:
        """Module, optimiser, averages and data of a stage; where the restored state belongs to it, as they were."""
        config, number, accelerator = self.config, self.progress.stage, self.accelerator
        clips = open_source(config, stage)
        if ignored := sorted({*config.data.blur, *stage.blur} - clips.blur_keys):
            self.say(f"these clips do not look at blur.{', blur.'.join(ignored)}")
        source = Ahead(clips, config.data.workers)
        if stage.rescale and not self.progress.step:
            self._rescale(source, stage)
        names = set_trainable(self.model, stage)
        if stage.kind == "stage3" and stage.last_timestep < 1 and not self.progress.step and start_detail(self.model):
            self.say("the detail branch starts as the fidelity branch")
        module = StageLoss(self.model, stage, seed=config.seed, number=number).to(self.device)
        if config.fsdp:
            sharding.shard(module, self.device)
        else:
            module = accelerator.prepare(module)
        by_name = dict(self.model.named_parameters())
        parameters = [by_name[name] for name in names]
        make = functools.partial(Muon, dtype=getattr(torch, config.precision)) if stage.optimizer == "muon" else torch.optim.AdamW
        optimizer = make(parameters, lr=stage.lr, betas=tuple(stage.betas), eps=stage.eps, weight_decay=stage.weight_decay,
                         fused=not config.fsdp)
        seed = _seed(config.seed, 0 if config.data.samples else number)
        cache = None
        if config.data.samples and stage.kind in ("denoiser", "stage1", "stage2") and not config.fsdp:
            cache = FrozenCache(self.folder / "cache", cache_key(config, stage, seed, self.model))
        work = Work(stage, number, module, names, parameters, optimizer, states.Average(parameters, config.ema), source, seed, cache)
        if self.restored is not None:
            states.restore(self.restored, work, self.progress)
            self.restored = None
        return work

    def _step(self, work: Work, rate: float) -> None:
        """One optimiser step: this process's share of the batch, in `accumulation` parts."""
        stage, accelerator, progress = work.stage, self.accelerator, self.progress
        for group in work.optimizer.param_groups:
            group["lr"] = rate
        rows, files = [], []
        for part in range(stage.accumulation):
            positions = self._positions(stage, progress.step, part)
            indices = self._indices(positions)
            clips = work.source.batch(work.seed, indices, self._following(stage, part), num_frames=stage.frames, size=stage.crop,
                                      device=self.device)
            with self._sharing(work, part == stage.accumulation - 1), accelerator.autocast():
                cached = None
                if work.cache is not None:
                    loss = accelerator.unwrap_model(work.module)
                    cached = work.cache.outputs(indices, lambda c=clips, m=loss: m.frozen(c.blurred, c.sharp))
                    cached = {name: value.to(self.device) for name, value in cached.items()}
                terms = work.module(clips.blurred, clips.sharp, positions, cached, clips.prior)
                (terms["loss"] / stage.accumulation).backward()
            rows.append(torch.stack([value.detach().float() for value in terms.values()]))
            files += clips.names
        norm = torch.nn.utils.clip_grad_norm_(work.parameters, stage.clip or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        work.optimizer.step()
        work.optimizer.zero_grad(set_to_none=True)
        work.average.update()
        progress.step, progress.total, progress.averaged = progress.step + 1, progress.total + 1, work.average.updates
        self.keys = [*terms, "norm", "lr"]
        norm = norm.detach().float().reshape(1)
        self.pending.append((progress.step, torch.cat([torch.stack(rows).mean(0), norm, torch.full_like(norm, rate)]), files))

    def _positions(self, stage: StageConfig, step: int, part: int) -> list[int]:
        """Which samples of the stage's endless row this process takes: independent of restarts; together all take the whole batch."""
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        share = stage.batch // (stage.accumulation * processes)
        first = step * stage.batch + (part * processes + process) * share
        return list(range(first, first + share))

    def _indices(self, positions: list[int]) -> list[int]:
        samples = self.config.data.samples
        return [p % samples for p in positions] if samples else positions

    def _following(self, stage: StageConfig, part: int) -> list[list[int]]:
        numbers = (self.progress.step * stage.accumulation + part + 1 + k for k in range(self.config.data.workers))
        return [self._indices(self._positions(stage, *divmod(n, stage.accumulation))) for n in numbers]

    def _sharing(self, work: Work, last: bool):
        """Gradients travel between processes with the batch's last part only."""
        if self.config.fsdp:
            work.module.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last else self.accelerator.no_sync(work.module)

    def _stance(self, compiled: bool):
        """Whether what is compiled in this run also runs compiled."""
        return contextlib.nullcontext() if compiled or not self.config.compile else torch.compiler.set_stance("force_eager")

    def _agree(self, stage: StageConfig) -> tuple[float, bool]:
        """(share of the stage that is done, whether this call must end), the same in every process."""
        ending = self._any(bool(self.stop_signal) or (self.limit is not None and time.monotonic() - self.started > 60 * self.limit))
        if stage.steps:
            return self.progress.step / stage.steps, ending
        seconds = self.progress.seconds
        if self.accelerator.num_processes > 1:
            seconds = self.accelerator.reduce(torch.tensor(seconds, dtype=torch.float64, device=self.device), "mean").item()
        return seconds / (60 * stage.minutes), ending

    def _any(self, yes: bool) -> bool:
        """Whether it is so in any process."""
        if self.accelerator.num_processes == 1:
            return yes
        return self.accelerator.reduce(torch.tensor(float(yes), device=self.device), "sum").item() > 0

    def _finish(self) -> None:
        """The end of a stage: its averaged weights become the model's; what the kind needs; a state; the checkpoint so far."""
        work, progress = self.work, self.progress
        self._validate()
        work.average.swap()
        if self.config.fsdp:                              # whole again: the next stage shards anew
            whole, config = sharding.whole_state(self.model), self.model.config
            model = DeblurModel(config)
            start.fill(model, whole)
            self.model = start.prepare_model(model, self.config, self.device)
        if work.stage.kind == "autoencoder":
            with self._stance(False):                     # eight calls of a shape of their own
                std = latent_std(self.model, [clips.sharp for clips in self._scale_clips(work.source, work.stage)])
            set_latent_scale(self.model, 1 / std)
            start_encoders(self.model)
            self.say(f"latents: standard deviation {std:.4f}, latent_scale {1 / std:.4f}; "
                     "both image encoders start as the autoencoder's encoder")
        if work.stage.kind == "denoiser" and self.model.config.unet.estimate:
            start_from_estimate(self.model)
        self.work = None
        self.accelerator.free_memory()
        progress.stage, progress.step, progress.averaged = work.number + 1, 0, 0
        progress.total_seconds, progress.seconds = progress.total_seconds + progress.seconds, 0.0
        self._save()
        self._export_stage(work.number)

    def _stage_file(self, number: int) -> Path:
        """The checkpoint of the weights behind a stage: a later one can be worse."""
        return self.folder / f"vdd-stage{number}.safetensors"

    def _export_stage(self, number: int) -> None:
        path = self._export(f"after stage {number} ({self.config.stages[number].kind})")
        if self.accelerator.is_main_process:
            states.keep_copy(path, self._stage_file(number))

    def _rescale(self, source: Ahead, stage: StageConfig) -> None:
        """Latents of unit error: see `rescale_latents`."""
        with self._stance(False):
            errors = estimate_errors(self.model, [clips[:2] for clips in self._scale_clips(source, stage)])
        rescale_latents(self.model, errors)
        self.say(f"encoder 2's estimate misses the latents by {' '.join(f'{e:.4f}' for e in errors.tolist())} (root mean square); "
                 f"they are scaled to 1, latent_scale {self.model.config.vae.latent_scale:.4f}")

    def _scale_clips(self, source: Ahead, stage: StageConfig) -> list[Clips]:
        """Training clips of one frame, keyed apart from the steps'; the same in every process."""
        seed = _seed(self.config.seed, self.progress.stage, "scale")
        return [source.source.batch(seed, range(first, first + 8), num_frames=1, size=stage.crop, device=self.device)
                for first in range(0, SCALE_CLIPS, 8)]

    # ---- what is written

    def _flush(self) -> None:
        """Bring the pending losses to the CPU, the same in every process; log them; stop on the first that is not finite."""
        if not self.pending:
            return
        work = self.work
        values = self.accelerator.reduce(torch.stack([v for _, v, _ in self.pending]), "mean").cpu()
        records = [{"type": "step", "stage": work.number, "kind": work.stage.kind, "step": step,
                    "total": self.progress.total - self.progress.step + step, **dict(zip(self.keys, row.tolist()))}
                   for (step, _, _), row in zip(self.pending, values)]
        for record, (_, _, files) in zip(records, self.pending):
            if not (math.isfinite(record["loss"]) and math.isfinite(record["norm"])):
                self._not_finite(record, files)
        self.pending.clear()
        self.latest = records[-1]
        if self.log:
            self.log.write(records)
        if self.config.trackers:
            for record in records:
                self.accelerator.log({f"{work.stage.kind}/{k}": v for k, v in record.items() if isinstance(v, float)}, step=record["total"])

    def _not_finite(self, record: dict, files: list[str]) -> None:
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            files = gather_object(files)
        raise NotFinite(f"the loss is {record['loss']} (gradient norm {record['norm']}) at step {record['step']} of stage "
                        f"{record['stage']} ({record['kind']}); its batch: {', '.join(files)}; "
                        f"last good state: {self.last_state or 'none was written yet'}")

    def _line(self, work: Work, seconds: float) -> None:
        progress, stage, record = self.progress, work.stage, self.latest
        left = (stage.steps - progress.step) * seconds if stage.steps else 60 * stage.minutes - progress.seconds
        later = self.config.stages[work.number + 1:]
        if all(s.minutes for s in later):
            left += sum(60 * s.minutes for s in later)
        terms = " ".join(f"{key} {record[key]:.4g}" for key in self.keys[:-1])
        self.say(f"stage {work.number} {stage.kind} step {progress.step}{f'/{stage.steps}' if stage.steps else ''}  {terms}  "
                 f"lr {record['lr']:.2g}  {1 / max(seconds, 1e-9):.2f} steps/s  {_clock(left)} left")

    def _left_out(self, work: Work) -> None:
        """Say once of every file that could not be read that the run goes on without it."""
        for name, reason in list(work.source.source.unreadable.items()):       # threads add to it
            if name not in self.unreadable:
                self.unreadable.add(name)
                self.say(f"left out: {reason}")

    def _validate(self) -> None:
        """Table and panel with the averaged weights; the curve so far. On the main process, unless every one holds only a part."""
        self._flush()
        work, main = self.work, self.accelerator.is_main_process
        if not (main or self.config.fsdp):
            return
        panel = self.folder / "panels" / f"{work.number:02d}-{work.stage.kind}-{self.progress.step:07d}.png"
        work.average.swap()
        self.model.eval()
        try:
            if self.config.fsdp:
                work.module.unshard()
            with self._stance(False), self.accelerator.autocast():
                self.scores = checks.validate(self.model, self.clips, work.stage.kind, self.device, panel if main else None)
            if self.config.fsdp:
                work.module.reshard()
        finally:
            self.model.train()
            work.average.swap()
        if not main or not self.scores:
            return
        self.say(checks.table(self.scores))
        self.log.write([{"type": "validation", "stage": work.number, "kind": work.stage.kind, "step": self.progress.step,
                         "total": self.progress.total, "hours": self._hours(), "scores": self.scores}])
        if self.config.validation.curve:
            checks.save_curve(self.log.read(), self.folder / "curve.png")
        if self.config.trackers:
            self.accelerator.log({f"psnr/{g}/{k}": v for g, row in self.scores.items() for k, v in row.items()}, step=self.progress.total)

    def _hours(self) -> float:
        return round((self.progress.total_seconds + self.progress.seconds) / 3600, 4)

    def _save(self) -> None:
        """A state from which a restart continues bit for bit. Pending losses are looked at first, so that no state is saved with NaNs."""
        self._flush()
        tensors = states.collect(self.model, self.work)
        if self.accelerator.is_main_process:
            record = {"config": dataclasses.asdict(self.config), "model": self.model.config.to_json()}
            self.last_state = states.save(self.states, self.progress, record, tensors, self.config.keep)
        self.saved_at = time.monotonic()

    def _export(self, note: str) -> Path:
        """The inference checkpoint with averaged weights, vdd.safetensors in the run's folder."""
        path = self.folder / "vdd.safetensors"
        if self.work is not None:
            self.work.average.swap()
        state = with_detail(sharding.whole_state(self.model))
        if self.accelerator.is_main_process:
            # where files lay on the machine that trained is nobody else's business
            config = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in ("root", "out", "init")}
            training = {**start.origin(self.config, self.progress.stage),
                        "run": note, "steps": self.progress.total, "hours": self._hours(), "stage": self.progress.stage,
                        "scores": self.scores, "config": config}
            checkpoint.save_state(state, self.model.config, path, training, getattr(torch, self.config.export_dtype))
            self.say(f"wrote {path} ({note})")
        if self.work is not None:
            self.work.average.swap()
        self.accelerator.wait_for_everyone()
        return path

    # ---- around it

    @contextlib.contextmanager
    def _trackers(self):
        if self.config.trackers:
            self.accelerator.init_trackers("train")
        yield
        if self.config.trackers:
            self.accelerator.end_training()

    @contextlib.contextmanager
    def _signals(self):
        """SIGTERM and SIGINT end the run cleanly after the step; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _on_signal(self, number, frame) -> None:
        if self.stop_signal:
            raise KeyboardInterrupt
        self.stop_signal = number
        self.say("stopping after this step; once more to stop at once")


# ---- plain functions

def learning_rate(stage: StageConfig, step: int, done: float) -> float:
    """Factor on lr: linear warm-up over steps, then a cosine over the stage's share `done` (of steps or minutes) to min_lr."""
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    return warm * (stage.min_lr + (1 - stage.min_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _seed(seed: int, number: int, what: str = "clips") -> int:
    return generator("cpu", seed, number, what).initial_seed() % 2**31


def _clock(seconds: float) -> str:
    seconds = max(0, round(seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
