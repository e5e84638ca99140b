"""The training loop: stages in order, on one process or many, with states, log, validation and a clean end at any time.

`run` is the whole of it; `train_stage` is the loop over steps. Around them: train.start (checks, model), train.stages (what a stage trains,
its loss), train.data (batches), train.log, train.state, train.export, train.validate.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vdd_model.errors import UserError
from vdd_model.inference.tiles import lacks_memory

from . import export, start
from . import state as states
from . import validate as checks
from .config import ConfigError, StageConfig, TrainConfig
from .data.readers import DataError
from .data.source import Batches, open_source
from .muon import Muon
from .shard import shard, whole
from .stages import StageLoss, generator, prepare_weights, set_trainable, settle_weights
from .start import Run


@dataclass
class Work:
    """A stage while it trains."""

    stage: StageConfig
    number: int
    module: nn.Module              # StageLoss, wrapped by accelerate or sharded
    parameters: dict[str, Tensor]  # those that train, by name
    optimizer: torch.optim.Optimizer
    average: states.Average
    batches: Batches


def run(config: TrainConfig, *, resume: bool = False, minutes: float | None = None, say: Callable[[str], None] = print) -> Path | None:
    """Train. Returns the inference checkpoint's path, or None when `minutes` (of wall time, this call) ended the run before its end.

    Raises UserError with one sentence; all that can be checked is checked before any work.
    """
    end = time.monotonic() + 60 * minutes if minutes is not None else math.inf
    this = start.prepare(config, resume, _print if say is print else say)
    config, position = this.config, this.position
    with _signals(this.say) as asked, _trackers(this), _stance(config.compile, "force_eager"):       # only steps run compiled
        export.catch_up(this)
        while position.stage < len(config.stages):
            work = begin_stage(this, config.stages[position.stage])
            try:
                finished = train_stage(this, work, lambda: bool(asked) or time.monotonic() > end)
            except DataError:                            # the data have gone, what was trained need not: alone, this process may save
                if this.accelerator.num_processes == 1:
                    save(this, work)
                raise
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
                raise UserError(f"there is not enough memory for step {position.step + 1} of stage {work.number}: lower its batch, crop or "
                                "frames, raise its accumulation or set gradient_checkpointing, and go on with --resume") from None
            if not finished:
                save(this, work)
                this.say(f"stopping at step {position.step} of stage {work.number}; go on with --resume")
                export.export(this, work, "stopped before the end")
                return None
            finish_stage(this, work)
        return export.export(this, None, "finished")


def begin_stage(this: Run, stage: StageConfig) -> Work:
    """Module, optimiser, averages and data of a stage; where the restored state belongs to it, as they were."""
    config, model, number, accelerator = this.config, this.model, this.position.stage, this.accelerator

    # ---- data
    clips, seed = open_source(config, stage), _seed(config.seed, 0 if config.data.samples else number)
    if ignored := sorted({*config.data.blur, *stage.blur} - clips.blur_keys):
        this.say(f"these clips do not look at blur.{', blur.'.join(ignored)}")
    batches = Batches(clips, stage, seed, this.device, samples=config.data.samples, workers=config.data.workers,
                      process=accelerator.process_index, processes=accelerator.num_processes)

    # ---- weights, and the loss that is spread over the processes
    names = set_trainable(model, stage)
    if not this.position.step:
        for text in prepare_weights(model, stage, lambda: _stills(this, batches)):
            this.say(text)
    module = StageLoss(model, stage, seed=config.seed, number=number).to(this.device)
    if config.fsdp:
        shard(module, this.device)
    else:
        module = accelerator.prepare(module)

    # ---- optimiser and averages
    parameters = {name: model.get_parameter(name) for name in names}             # sharing them out has made new ones
    make = functools.partial(Muon, dtype=getattr(torch, config.precision)) if stage.optimizer == "muon" else torch.optim.AdamW
    optimizer = make(list(parameters.values()), lr=stage.lr, betas=tuple(stage.betas), eps=stage.eps, weight_decay=stage.weight_decay,
                     fused=not config.fsdp)
    work = Work(stage, number, module, parameters, optimizer, states.Average(parameters.values(), config.ema), batches)
    if this.restored is not None:
        states.restore(this.restored, work)
        this.restored = None
    this.say(f"stage {number} ({stage.kind}): {sum(p.numel() for p in parameters.values()) / 1e6:.2f} M parameters of "
             f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M, batch {stage.batch} x {stage.frames} x {stage.crop} x "
             f"{stage.crop}, " + (f"{stage.steps} steps" if stage.steps else f"{stage.minutes:.1f} minutes"))
    return work


def train_stage(this: Run, work: Work, ending: Callable[[], bool]) -> bool:
    """Train a stage from where it stands. False when the call has to end, as `ending` says in any process, before the stage does."""
    config, stage, position, journal = this.config, work.stage, this.position, this.journal
    before, clock, first = position.seconds, time.monotonic(), position.step
    bar = tqdm(desc=f"stage {work.number}", total=stage.steps, initial=first, unit="step", leave=False, disable=None if this.main else True)
    while True:
        # ---- where the stage stands, the same in every process
        position.seconds = before + time.monotonic() - clock
        done = position.step / stage.steps if stage.steps else this.mean(position.seconds) / (60 * stage.minutes)
        stopped = this.anywhere(ending())
        if done >= 1 or stopped:
            break

        # ---- gradients: this process's share of the batch, in `accumulation` parts
        rows, files = [], []
        with _stance(config.compile and stage.compile, "default"):
            for k in range(stage.accumulation):
                part = position.step * stage.accumulation + k
                clips, positions = work.batches.take(part), work.batches.positions(part)
                with _sharing(this, work, k == stage.accumulation - 1), this.accelerator.autocast():
                    terms = work.module(clips.blurred, clips.sharp, positions, clips.prior)
                    if not terms["loss"].requires_grad:
                        raise ConfigError(f"stages[{work.number}]: nothing that it trains takes part in the batch of step "
                                          f"{position.step + 1}; see trainable, last_timestep, prior_dropout, and whether the data hold a "
                                          "prior's frames")
                    (terms["loss"] / stage.accumulation).backward()
                rows.append(torch.stack([value.detach().float() for value in terms.values()]))
                files += clips.names
            norm = whole(torch.nn.utils.clip_grad_norm_(work.parameters.values(), stage.clip or math.inf))

            # ---- one step of the optimiser and of the averages
            rate = stage.lr * learning_rate(stage, position.step, done)
            for group in work.optimizer.param_groups:
                group["lr"] = rate
            work.optimizer.step()
            work.optimizer.zero_grad(set_to_none=True)
            work.average.update()
        position.step, position.total, position.averaged = position.step + 1, position.total + 1, work.average.updates
        if config.compile and stage.compile and position.step == first + 1:
            clock = time.monotonic()                     # compiling is not training: a stage of one minute would be over before it began
        bar.update()

        # ---- log
        journal.add(position, dict(zip(terms, torch.stack(rows).mean(0))) | {"norm": norm, "lr": torch.full_like(norm, rate)}, files)
        if position.step % config.log_every == 0:
            journal.left_out(work.batches.source.unreadable)
            journal.line(position, seconds=(time.monotonic() - clock) / (position.step - first))

        # ---- validate, save
        if config.validation.every and position.step % config.validation.every == 0:
            began = time.monotonic()
            validate(this, work)
            this.accelerator.wait_for_everyone()         # only one process validates
            clock += time.monotonic() - began            # no training either
        position.seconds = before + time.monotonic() - clock
        if position.step % config.save_every == 0 or this.anywhere(time.monotonic() - this.saved_at > 60 * config.save_minutes):
            save(this, work)
    bar.close()
    journal.flush()
    journal.left_out(work.batches.source.unreadable)
    if position.step > first and position.step % config.log_every:       # a short stage says of its losses at least the last ones
        journal.line(position, seconds=(time.monotonic() - clock) / (position.step - first))
    work.batches.close()
    return done >= 1


def finish_stage(this: Run, work: Work) -> None:
    """The end of a stage: its averaged weights become the model's; what the kind needs; a state; the checkpoint so far."""
    position = this.position
    validate(this, work)
    work.average.swap()
    if this.config.fsdp:                                 # whole again: the next stage shards anew
        this.model = start.prepare_model(states.whole_model(this.model), this.config, this.device)
    for text in settle_weights(this.model, work.stage, lambda: _stills(this, work.batches)):
        this.say(text)
    this.accelerator.free_memory()
    position.stage, position.step, position.averaged = work.number + 1, 0, 0
    position.total_seconds, position.seconds = position.total_seconds + position.seconds, 0.0
    save(this, None)
    export.export_stage(this, work.number)


def validate(this: Run, work: Work) -> None:
    """Table and panel with the averaged weights; the curve so far. On the main process. What fails here does not end the run."""
    this.journal.flush()
    panel = this.folder / "panels" / f"{work.number:02d}-{work.stage.kind}-{this.position.step:07d}.png"
    with work.average.shown():
        model = states.whole_model(this.model) if this.config.fsdp else this.model
        if not this.main:
            return
        model.eval()
        try:
            with this.accelerator.autocast():
                scores = checks.validate(model, this.clips, work.stage.kind, this.device, panel)
            if scores:
                this.journal.validation(this.position, scores, checks.table(scores))
                checks.save_curve(this.journal.records(), this.folder / "curve.png")
        except UserError as error:
            this.say(f"validation: {error}")
        model.train()


def save(this: Run, work: Work | None) -> None:
    """A state from which a restart continues bit for bit. Pending losses are looked at first, so that no state is saved with NaNs."""
    this.journal.flush()
    tensors = states.collect(this.model, work)
    if this.main:
        record = {"config": dataclasses.asdict(this.config), "model": this.model.config.to_json()}
        this.journal.last_state = states.save(this.folder / "states", this.position, record, tensors, this.config.keep)
    this.saved_at = time.monotonic()


def learning_rate(stage: StageConfig, step: int, done: float) -> float:
    """Factor on lr: linear warm-up over steps, then a cosine over the stage's share `done` (of steps or minutes) to min_lr."""
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    return warm * (stage.min_lr + (1 - stage.min_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _seed(seed: int, number: int, what: str = "clips") -> int:
    return generator("cpu", seed, number, what).initial_seed() % 2**31


def _stills(this: Run, batches: Batches) -> list:
    """Clips of one frame that no step sees."""
    return batches.stills(_seed(this.config.seed, this.position.stage, "scale"))


def _sharing(this: Run, work: Work, last: bool):
    """Gradients travel between processes with the batch's last part only."""
    if this.config.fsdp:
        work.module.set_requires_gradient_sync(last)
        return contextlib.nullcontext()
    return contextlib.nullcontext() if last else this.accelerator.no_sync(work.module)


def _stance(wanted: bool, stance: str):
    """How what is compiled runs, where that is `wanted`."""
    return torch.compiler.set_stance(stance) if wanted else contextlib.nullcontext()


@contextlib.contextmanager
def _signals(say: Callable[[str], None]) -> Iterator[list]:
    """While entered, the SIGTERM and SIGINT that came; a second one raises KeyboardInterrupt at once."""
    asked: list[int] = []

    def receive(number: int, _) -> None:
        """A handler for `signal.signal`."""
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say("stopping after this step; once more to stop at once")

    main = threading.current_thread() is threading.main_thread()             # others may not set handlers
    handlers = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT) if main}
    try:
        yield asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _trackers(this: Run):
    this.accelerator.init_trackers("train")
    yield
    for tracker in this.accelerator.trackers:               # not `end_training`, which ends the group of processes too
        tracker.finish()


def _print(text: str) -> None:
    """A line above the bar of progress, at once in a file too."""
    tqdm.write(text)
    sys.stdout.flush()
