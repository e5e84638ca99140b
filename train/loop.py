"""The training loop: stages in order, on one process or many, with states, log, validation and a clean end at any time.

`run` is the whole of it; `train_stage` is the loop over steps. Around them: train.start (checks, model), train.stages (what a stage trains,
its loss), train.data (batches), train.log, train.state, train.export, train.validate.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vdd_model.networks.model import DeblurModel

from . import export, start
from . import state as states
from . import validate as checks
from .backend.cache import FrozenCache, cache_key
from .backend.muon import Muon
from .backend.shard import shard
from .backend.signals import StopSignal
from .config import StageConfig, TrainConfig
from .data.clips import Clips
from .data.source import Ahead, open_source
from .log import NotFinite
from .stages import (
    StageLoss,
    estimate_errors,
    generator,
    latent_std,
    rescale_latents,
    set_latent_scale,
    set_trainable,
    start_encoders,
    start_followers,
    start_from_estimate,
)
from .start import Run

__all__ = ["NotFinite", "run"]

SCALE_CLIPS = 64          # clips that the latents' scale is measured on


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


def run(config: TrainConfig, *, resume: bool = False, minutes: float | None = None, say: Callable[[str], None] = print) -> Path | None:
    """Train. Returns the inference checkpoint's path, or None when `minutes` (of wall time, this call) ended the run before its end.

    Raises UserError or ConfigError with one sentence; all that can be checked is checked before any work.
    """
    end = time.monotonic() + 60 * minutes if minutes is not None else math.inf
    this = start.prepare(config, resume, _print if say is print else say)
    config, position = this.config, this.position
    with StopSignal(this.say) as stop, _trackers(this):
        export.catch_up(this)
        while position.stage < len(config.stages):
            work = begin_stage(this, config.stages[position.stage])
            if not train_stage(this, work, lambda: bool(stop) or time.monotonic() > end):
                save(this, work)
                this.say(f"stopping at step {position.step} of stage {work.number}; go on with --resume")
                export.export(this, work, "stopped before the end")
                return None
            finish_stage(this, work)
        return export.export(this, None, "finished")


def begin_stage(this: Run, stage: StageConfig) -> Work:
    """Module, optimiser, averages and data of a stage; where the restored state belongs to it, as they were."""
    config, model, number, fresh = this.config, this.model, this.position.stage, not this.position.step

    # ---- data
    clips = open_source(config, stage)
    if ignored := sorted({*config.data.blur, *stage.blur} - clips.blur_keys):
        this.say(f"these clips do not look at blur.{', blur.'.join(ignored)}")
    source = Ahead(clips, config.data.workers)

    # ---- weights that other ones are set from before the first step
    if stage.rescale and fresh:
        with _stance(config, False):
            errors = estimate_errors(model, [clips[:2] for clips in _scale_clips(this, source, stage)])
        rescale_latents(model, errors)
        this.say(f"encoder 2's estimate misses the latents by {' '.join(f'{e:.4f}' for e in errors.tolist())} (root mean square); "
                 f"they are scaled to 1, latent_scale {model.config.vae.latent_scale:.4f}")
    names = set_trainable(model, stage)
    if stage.kind == "stage3" and fresh and (new := start_followers(model, detail=stage.last_timestep < 1)):
        this.say(f"{' and '.join(new)} start as the fidelity branch")

    # ---- the loss, spread over the processes
    module = StageLoss(model, stage, seed=config.seed, number=number).to(this.device)
    if config.fsdp:
        shard(module, this.device)
    else:
        module = this.accelerator.prepare(module)

    # ---- optimiser and averages
    by_name = dict(model.named_parameters())
    parameters = [by_name[name] for name in names]
    make = functools.partial(Muon, dtype=getattr(torch, config.precision)) if stage.optimizer == "muon" else torch.optim.AdamW
    optimizer = make(parameters, lr=stage.lr, betas=tuple(stage.betas), eps=stage.eps, weight_decay=stage.weight_decay,
                     fused=not config.fsdp)
    average = states.Average(parameters, config.ema)

    # ---- what the frozen encoders say of fixed samples
    seed, cache = _seed(config.seed, 0 if config.data.samples else number), None
    if config.data.samples and stage.kind in ("denoiser", "stage1", "stage2") and not config.fsdp:
        cache = FrozenCache(this.folder / "cache", cache_key(config, stage, seed, model))

    work = Work(stage, number, module, names, parameters, optimizer, average, source, seed, cache)
    if this.restored is not None:
        states.restore(this.restored, model, work)
        this.restored = None
    this.say(f"stage {number} ({stage.kind}): {sum(p.numel() for p in parameters) / 1e6:.2f} M parameters of "
             f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M, batch {stage.batch} x {stage.frames} x {stage.crop} x "
             f"{stage.crop}, " + (f"{stage.steps} steps" if stage.steps else f"{stage.minutes:.1f} minutes"))
    return work


def train_stage(this: Run, work: Work, ending: Callable[[], bool]) -> bool:
    """Train a stage from where it stands. False when the call has to end, as `ending` says in any process, before the stage does."""
    config, stage, position, journal, accelerator = this.config, work.stage, this.position, this.journal, this.accelerator
    before, clock, first = position.seconds, time.monotonic(), position.step
    bar = tqdm(desc=f"stage {work.number}", total=stage.steps, initial=first, unit="step", leave=False, disable=None if this.main else True)
    while True:
        # ---- where the stage stands, the same in every process
        position.seconds = before + time.monotonic() - clock
        done, stopped = _share_done(this, stage), this.anywhere(ending())
        if done >= 1 or stopped:
            break

        # ---- gradients: this process's share of the batch, in `accumulation` parts
        rows, files = [], []
        with _stance(config, stage.compile):
            for part in range(stage.accumulation):
                positions = _positions(this, stage, position.step * stage.accumulation + part)
                indices, following = _indices(config, positions), _following(this, stage, part)
                clips = work.source.batch(work.seed, indices, following, num_frames=stage.frames, size=stage.crop, device=this.device)
                with _sharing(this, work, part == stage.accumulation - 1), accelerator.autocast():
                    terms = work.module(clips.blurred, clips.sharp, positions, _frozen(this, work, indices, clips), clips.prior)
                    (terms["loss"] / stage.accumulation).backward()
                rows.append(torch.stack([value.detach().float() for value in terms.values()]))
                files += clips.names
            norm = torch.nn.utils.clip_grad_norm_(work.parameters, stage.clip or math.inf)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm

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
        norm = norm.detach().float().reshape(())
        values = dict(zip(terms, torch.stack(rows).mean(0))) | {"norm": norm, "lr": torch.full_like(norm, rate)}
        journal.add(_where(this, work), values, files)
        if len(journal.pending) >= journal.every or position.step % config.log_every == 0:
            journal.flush(this.last_state)
        if position.step % config.log_every == 0:
            journal.left_out(work.source.source.unreadable)
            seconds = (time.monotonic() - clock) / (position.step - first)
            journal.line(stage.steps, seconds, _left(this, stage, seconds))

        # ---- validate, save
        if config.validation.every and position.step % config.validation.every == 0:
            validate(this, work)
        position.seconds = before + time.monotonic() - clock
        if position.step % config.save_every == 0 or this.anywhere(time.monotonic() - this.saved_at > 60 * config.save_minutes):
            save(this, work)
    bar.close()
    journal.flush(this.last_state)
    journal.left_out(work.source.source.unreadable)
    work.source.close()
    return done >= 1


def finish_stage(this: Run, work: Work) -> None:
    """The end of a stage: its averaged weights become the model's; what the kind needs; a state; the checkpoint so far."""
    config, position = this.config, this.position
    validate(this, work)
    work.average.swap()
    if config.fsdp:                                      # whole again: the next stage shards anew
        whole, model = states.whole_state(this.model), DeblurModel(this.model.config)
        start.fill(model, whole)
        this.model = start.prepare_model(model, config, this.device)
    if work.stage.kind == "autoencoder":
        with _stance(config, False):                     # eight calls of a shape of their own
            std = latent_std(this.model, [clips.sharp for clips in _scale_clips(this, work.source, work.stage)])
        set_latent_scale(this.model, 1 / std)
        start_encoders(this.model)
        this.say(f"latents: standard deviation {std:.4f}, latent_scale {1 / std:.4f}; "
                 "both image encoders start as the autoencoder's encoder")
    if work.stage.kind == "denoiser" and this.model.config.unet.estimate:
        start_from_estimate(this.model)
    this.accelerator.free_memory()
    position.stage, position.step, position.averaged = work.number + 1, 0, 0
    position.total_seconds, position.seconds = position.total_seconds + position.seconds, 0.0
    save(this, None)
    export.export_stage(this, work.number)


def validate(this: Run, work: Work) -> None:
    """Table and panel with the averaged weights; the curve so far. On the main process, unless every one holds only a part."""
    this.journal.flush(this.last_state)
    if not (this.main or this.config.fsdp):
        return
    panel = this.folder / "panels" / f"{work.number:02d}-{work.stage.kind}-{this.position.step:07d}.png"
    work.average.swap()
    this.model.eval()
    try:
        if this.config.fsdp:
            work.module.unshard()
        with _stance(this.config, False), this.accelerator.autocast():
            scores = checks.validate(this.model, this.clips, work.stage.kind, this.device, panel if this.main else None)
        if this.config.fsdp:
            work.module.reshard()
    finally:
        this.model.train()
        work.average.swap()
    if this.main and scores:
        this.journal.validation(_where(this, work), scores, checks.table(scores), this.position.hours)
        if this.config.validation.curve:
            checks.save_curve(this.journal.log.read(), this.folder / "curve.png")


def save(this: Run, work: Work | None) -> None:
    """A state from which a restart continues bit for bit. Pending losses are looked at first, so that no state is saved with NaNs."""
    this.journal.flush(this.last_state)
    tensors = states.collect(this.model, work)
    if this.main:
        record = {"config": dataclasses.asdict(this.config), "model": this.model.config.to_json()}
        this.last_state = states.save(this.folder / "states", this.position, record, tensors, this.config.keep)
    this.saved_at = time.monotonic()


# ---- which samples, how far

def learning_rate(stage: StageConfig, step: int, done: float) -> float:
    """Factor on lr: linear warm-up over steps, then a cosine over the stage's share `done` (of steps or minutes) to min_lr."""
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    return warm * (stage.min_lr + (1 - stage.min_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _positions(this: Run, stage: StageConfig, part: int) -> list[int]:
    """Which samples of the stage's endless row this process takes for a part (counted over all steps): independent of restarts; together
    all processes take the whole batch."""
    processes, process = this.accelerator.num_processes, this.accelerator.process_index
    share = stage.batch // (stage.accumulation * processes)
    first = (part * processes + process) * share
    return list(range(first, first + share))


def _indices(config: TrainConfig, positions: list[int]) -> list[int]:
    samples = config.data.samples
    return [p % samples for p in positions] if samples else positions


def _following(this: Run, stage: StageConfig, part: int) -> list[list[int]]:
    """Indices of the batches behind a part of the present step, to be made ahead."""
    now = this.position.step * stage.accumulation + part
    return [_indices(this.config, _positions(this, stage, now + 1 + k)) for k in range(this.config.data.workers)]


def _frozen(this: Run, work: Work, indices: list[int], clips: Clips) -> dict[str, Tensor] | None:
    """What the cache knows of these samples."""
    if work.cache is None:
        return None
    loss = this.accelerator.unwrap_model(work.module)
    cached = work.cache.outputs(indices, lambda: loss.frozen(clips.blurred, clips.sharp))
    return {name: value.to(this.device) for name, value in cached.items()}


def _scale_clips(this: Run, source: Ahead, stage: StageConfig) -> list[Clips]:
    """Training clips of one frame, keyed apart from the steps'; the same in every process."""
    seed = _seed(this.config.seed, this.position.stage, "scale")
    return [source.source.batch(seed, range(first, first + 8), num_frames=1, size=stage.crop, device=this.device)
            for first in range(0, SCALE_CLIPS, 8)]


def _share_done(this: Run, stage: StageConfig) -> float:
    """The share of the stage that is done, the same in every process."""
    if stage.steps:
        return this.position.step / stage.steps
    seconds = this.position.seconds
    if this.accelerator.num_processes > 1:
        seconds = this.accelerator.reduce(torch.tensor(seconds, dtype=torch.float64, device=this.device), "mean").item()
    return seconds / (60 * stage.minutes)


def _left(this: Run, stage: StageConfig, seconds: float) -> float:
    """Seconds until the end of the stage, and of the later ones where they are given in minutes; a step takes `seconds`."""
    left = (stage.steps - this.position.step) * seconds if stage.steps else 60 * stage.minutes - this.position.seconds
    later = this.config.stages[this.position.stage + 1:]
    return left + sum(60 * s.minutes for s in later) if all(s.minutes for s in later) else left


def _where(this: Run, work: Work) -> dict:
    return {"stage": work.number, "kind": work.stage.kind, "step": this.position.step, "total": this.position.total}


def _seed(seed: int, number: int, what: str = "clips") -> int:
    return generator("cpu", seed, number, what).initial_seed() % 2**31


# ---- around the steps

def _sharing(this: Run, work: Work, last: bool):
    """Gradients travel between processes with the batch's last part only."""
    if this.config.fsdp:
        work.module.set_requires_gradient_sync(last)
        return contextlib.nullcontext()
    return contextlib.nullcontext() if last else this.accelerator.no_sync(work.module)


def _stance(config: TrainConfig, compiled: bool):
    """Whether what is compiled in this run also runs compiled."""
    return contextlib.nullcontext() if compiled or not config.compile else torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def _trackers(this: Run):
    if this.config.trackers:
        this.accelerator.init_trackers("train")
    yield
    if this.config.trackers:
        this.accelerator.end_training()


def _print(text: str) -> None:
    """A line above the bar of progress, at once in a file too."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(text, flush=True)
