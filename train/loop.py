"""The training loop: stages in order, on one process or many, with states, log, validation and a clean end at any time."""
from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from vdd_model import checkpoint
from vdd_model.config import ConfigError, from_dict, ModelConfig
from vdd_model.errors import UserError
from vdd_model.model import DeblurModel, fold_time

from . import state as states
from . import validate as checks
from .config import StageConfig, TrainConfig, differences, model_config
from .source import ClipSource, Clips, open_source
from .stages import StageLoss, generator, latent_std, set_latent_scale, set_trainable, start_encoders

SCALE_CLIPS = 64          # sharp clips that the latents' standard deviation is measured on


class NotFinite(UserError):
    """A loss became NaN or infinite."""


def run(config: TrainConfig, *, resume: bool = False, minutes: float | None = None, say=print) -> Path | None:
    """Train. Returns the inference checkpoint's path, or None when `minutes` (of wall time, this call) ended the run before its end.

    Raises UserError or ConfigError with one sentence; all that can be checked is checked before any work.
    """
    return Run(config, resume=resume, minutes=minutes, say=say).go()


class Run:
    """One call of the training program."""

    def __init__(self, config: TrainConfig, *, resume: bool, minutes: float | None, say):
        self.started = time.monotonic()
        self.config, self.limit = config, minutes
        self.folder = Path(config.out)
        self.states = self.folder / "states"
        if config.threads:
            torch.set_num_threads(config.threads)
        self.accelerator = _accelerator(config)
        main = self.accelerator.is_main_process
        self.say = (lambda text: say(text, flush=True)) if main and say is print else (say if main else lambda text: None)
        self.device = self.accelerator.device
        check_data(config)
        self.progress = states.Progress()
        self.restored: states.State | None = None
        self.model = self._model(resume)
        for number, stage in enumerate(config.stages):
            _check_split(stage, number, self.accelerator.num_processes)
            set_trainable(self.model, stage)
        size = sum(p.numel() * 4 for p in self.model.parameters())
        if main:
            states.check_room(self.states, 4 * size * (config.keep + 1))
        self.accelerator.wait_for_everyone()
        self.log = states.Log(self.folder / "log.jsonl", self.progress.total) if main else None
        self.clips: list[checks.Clip] | None = None
        self.pending: list[tuple[int, Tensor, list[str]]] = []
        self.saved_at = time.monotonic()
        self.last_state: Path | None = self.restored.path if self.restored else None
        self.stop_signal = 0
        self.scores: dict = {}

    # ---- beginnings

    def _model(self, resume: bool) -> DeblurModel:
        """The model at the place where the run stands: from a state, from `init`, or with seeded random weights."""
        wanted = model_config(self.config)
        if states.exists(self.states) and not resume:
            raise UserError(f"{self.folder} already holds a run: continue it with --resume, or choose another folder with --out")
        self.restored = states.newest(self.states, self.say) if resume else None
        torch.manual_seed(self.config.seed)
        if self.restored is not None:
            wanted = self._check_record(wanted)
        elif self.config.init:
            found = checkpoint.read_config(self.config.init)
            if different := _model_differences(found, wanted):
                raise UserError(f"{self.config.init} is a checkpoint of another model: {different} (checkpoint against this run)")
            wanted = found
        model = DeblurModel(wanted)
        if self.restored is not None:
            self.progress = dataclasses.replace(self.restored.progress)
            _fill(dict(model.state_dict()), self.restored.part("model"))
            set_latent_scale(model, wanted.vae.latent_scale)
            self.say(f"resuming {self.restored.path.name}: stage {self.progress.stage}, step {self.progress.step}")
        elif self.config.init:
            loaded = checkpoint.load(self.config.init, dtype=torch.float32)
            model.load_state_dict(loaded.state_dict())
            self.say(f"starting from {self.config.init}")
        if self.config.channels_last:
            for parameter in model.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        model.unet.gradient_checkpointing = self.config.gradient_checkpointing
        model = model.to(self.device).train()
        if self.config.compile:
            _compile(model)
        return model

    def _check_record(self, wanted: ModelConfig) -> ModelConfig:
        """The state's model configuration, or an error; other changes of the configuration are named and allowed."""
        record = self.restored.record
        found = ModelConfig.from_json(record["model"])
        if different := _model_differences(found, wanted):
            raise UserError(f"{self.restored.path} is a state of another model: {different} (state against this run)")
        changed = [key for key in differences(record["config"], json.loads(json.dumps(dataclasses.asdict(self.config))))
                   if not key.startswith(("root", "out", "init", "threads"))]
        if any(key == "seed" for key in changed):
            raise UserError(f"{self.restored.path} belongs to a run with seed {record['config']['seed']}, not {self.config.seed}")
        if changed:
            self.say(f"the configuration has changed since that state: {', '.join(changed)}")
        return found

    # ---- the run

    def go(self) -> Path | None:
        config = self.config
        trackers = self._trackers()
        old = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while self.progress.stage < len(config.stages):
                if not self._stage(self.progress.stage, config.stages[self.progress.stage]):
                    self._export("stopped before the end")
                    return None
            return self._export("finished")
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            if trackers:
                self.accelerator.end_training()

    def _stage(self, number: int, stage: StageConfig) -> bool:
        """Train one stage from where it stands. False when the call has to end before the stage does."""
        progress = self.progress
        names = set_trainable(self.model, stage)
        by_name = dict(self.model.named_parameters())
        parameters = [by_name[name] for name in names]
        module = StageLoss(self.model, stage, seed=self.config.seed, number=number).to(self.device)
        optimizer = torch.optim.AdamW(parameters, lr=stage.lr, betas=tuple(stage.betas), eps=stage.eps, weight_decay=stage.weight_decay,
                                      fused=True)
        module, optimizer = self.accelerator.prepare(module, optimizer)
        self.average = states.Average(parameters, self.config.ema)
        self.names, self.parameters, self.optimizer = names, parameters, optimizer
        if self.restored is not None:
            self._restore_optimizer()
        source = open_source(self.config, stage)
        count = sum(p.numel() for p in parameters)
        self.say(f"stage {number} ({stage.kind}): {count / 1e6:.2f} M parameters of {sum(p.numel() for p in by_name.values()) / 1e6:.2f} M, "
                 f"batch {stage.batch} x {stage.frames} x {stage.crop} x {stage.crop}, "
                 + (f"{stage.steps} steps" if stage.steps else f"{stage.minutes:.1f} minutes"))
        before, clock, first = progress.seconds, time.monotonic(), progress.step
        while True:
            progress.seconds = before + time.monotonic() - clock
            done, ending = self._agree(stage)
            if done >= 1 or ending:
                break
            rate = stage.lr * learning_rate(stage, progress.step, done)
            for group in optimizer.param_groups:
                group["lr"] = rate
            self._step(module, stage, number, source, rate)
            progress.seconds = before + time.monotonic() - clock
            every = self.config.validation.every
            if len(self.pending) >= (1 if self.device.type == "cpu" else self.config.log_every):
                self._flush(stage, number)
            if progress.step % self.config.log_every == 0:
                self._line(stage, number, (time.monotonic() - clock) / max(1, progress.step - first))
            if every and progress.step % every == 0:
                self._validate(stage, number)
            if progress.step % self.config.save_every == 0 or time.monotonic() - self.saved_at > 60 * self.config.save_minutes:
                self._save(stage, number)
        self._flush(stage, number)
        if done < 1:
            self._save(stage, number)
            self.say(f"stopping at step {progress.step} of stage {number}; go on with --resume")
            return False
        self._finish(stage, number, source)
        return True

    def _step(self, module: nn.Module, stage: StageConfig, number: int, source: ClipSource, rate: float) -> None:
        """One optimiser step: this process's share of the batch, in `accumulation` parts."""
        accelerator, progress = self.accelerator, self.progress
        share = stage.batch // (stage.accumulation * accelerator.num_processes)
        collected: list[Tensor] = []
        files: list[str] = []
        keys: list[str] = []
        for part in range(stage.accumulation):
            first = progress.step * stage.batch + (part * accelerator.num_processes + accelerator.process_index) * share
            positions = list(range(first, first + share))
            clips = self._clips(source, stage, number, positions)
            last = part == stage.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(module):
                terms = module(clips.blurred, clips.sharp, positions)
                accelerator.backward(terms["loss"] / stage.accumulation)
            keys = list(terms)
            collected.append(torch.stack([terms[key].detach().float() for key in keys]))
            files += clips.names
        norm = accelerator.clip_grad_norm_(self.parameters, stage.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        progress.step, progress.total, progress.averaged = progress.step + 1, progress.total + 1, self.average.updates
        self.keys = keys
        self.pending.append((progress.step, torch.cat([torch.stack(collected).mean(0), norm.detach().float().reshape(1),
                                                       torch.tensor([rate], device=self.device)]), files))

    def _clips(self, source: ClipSource, stage: StageConfig, number: int, positions: list[int]) -> Clips:
        samples = self.config.data.samples
        indices = [p % samples for p in positions] if samples else positions
        return source.batch(_seed(self.config.seed, number), indices, num_frames=stage.frames, size=stage.crop, device=self.device)

    def _agree(self, stage: StageConfig) -> tuple[float, bool]:
        """(share of the stage that is done, whether this call must end), the same in every process."""
        done = self.progress.step / stage.steps if stage.steps else self.progress.seconds / (60 * stage.minutes)
        ending = bool(self.stop_signal) or (self.limit is not None and time.monotonic() - self.started > 60 * self.limit)
        if self.accelerator.num_processes > 1:
            mine = torch.tensor([done if stage.minutes else 0.0, float(ending)], dtype=torch.float64, device=self.device)
            together = self.accelerator.reduce(mine, "sum")
            done = together[0].item() / self.accelerator.num_processes if stage.minutes else done
            ending = together[1].item() > 0
        return done, ending

    # ---- what is written

    def _flush(self, stage: StageConfig, number: int) -> None:
        """Bring the pending losses to the CPU, the same in every process; log them; stop on the first that is not finite."""
        if not self.pending:
            return
        values = self.accelerator.reduce(torch.stack([v for _, v, _ in self.pending]), "mean").cpu()
        keys = [*self.keys, "norm", "lr"]
        records = [{"type": "step", "stage": number, "kind": stage.kind, "step": step, "total": self.progress.total - self.progress.step + step,
                    **dict(zip(keys, row.tolist()))} for (step, _, _), row in zip(self.pending, values)]
        for record, (_, _, files) in zip(records, self.pending):
            if not (math.isfinite(record["loss"]) and math.isfinite(record["norm"])):
                self._not_finite(stage, number, record, files)
        self.pending.clear()
        self.latest = records[-1]
        if self.log:
            self.log.write(records)
            if self.config.trackers:
                for record in records:
                    scalars = {f"{stage.kind}/{k}": v for k, v in record.items() if isinstance(v, float)}
                    self.accelerator.log(scalars, step=record["total"])

    def _not_finite(self, stage: StageConfig, number: int, record: dict, files: list[str]) -> None:
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            files = gather_object(files)
        good = self.last_state or "none was written yet"
        raise NotFinite(f"the loss is {record['loss']} (gradient norm {record['norm']}) at step {record['step']} of stage {number} ({stage.kind}); "
                        f"its batch: {', '.join(files)}; last good state: {good}")

    def _line(self, stage: StageConfig, number: int, seconds: float) -> None:
        progress, record = self.progress, self.latest
        left = (stage.steps - progress.step) * seconds if stage.steps else 60 * stage.minutes - progress.seconds
        later = self.config.stages[number + 1:]
        if all(s.minutes for s in later):
            left += sum(60 * s.minutes for s in later)
        terms = " ".join(f"{key} {value:.4g}" for key, value in record.items()
                         if isinstance(value, float) and key not in ("lr",))
        self.say(f"stage {number} {stage.kind} step {progress.step}{f'/{stage.steps}' if stage.steps else ''}  {terms}  lr {record['lr']:.2g}  "
                 f"{1 / max(seconds, 1e-9):.2f} steps/s  {_clock(left)} left")

    def _validate(self, stage: StageConfig, number: int) -> None:
        """Table and panel with the averaged weights; the curve so far. On the main process alone."""
        if not self.accelerator.is_main_process:
            return
        self._flush_guard()
        if self.clips is None:
            self.clips = checks.load_clips(self.config, self.model.config.divisor)
        panel = self.folder / "panels" / f"{number:02d}-{stage.kind}-{self.progress.step:07d}.png"
        self.average.swap()
        self.model.eval()
        eager = torch.compiler.set_stance("force_eager") if self.config.compile else contextlib.nullcontext()
        try:
            with eager, self.accelerator.autocast():
                self.scores = checks.validate(self.model, self.clips, stage.kind, self.device, panel)
        finally:
            self.model.train()
            self.average.swap()
        self.say(checks.table(self.scores))
        self.log.write([{"type": "validation", "stage": number, "kind": stage.kind, "step": self.progress.step, "total": self.progress.total,
                         "hours": self._hours(), "scores": self.scores}])
        checks.save_curve(self.log.read(), self.folder / "curve.png")
        if self.config.trackers:
            self.accelerator.log({f"psnr/{g}/{k}": v for g, row in self.scores.items() for k, v in row.items()}, step=self.progress.total)

    def _flush_guard(self) -> None:
        if self.pending and self.accelerator.num_processes == 1:
            self._flush(self.config.stages[self.progress.stage], self.progress.stage)

    def _hours(self) -> float:
        return round((self.progress.total_seconds + self.progress.seconds) / 3600, 4)

    def _save(self, stage: StageConfig | None, number: int) -> None:
        """A state from which a restart continues bit for bit. Pending losses are looked at first, so that no state is saved with NaNs."""
        if stage is not None:
            self._flush(stage, number)
        if self.accelerator.is_main_process:
            tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
            if stage is not None:
                tensors |= {f"ema/{name}": value for name, value in zip(self.names, self.average.values)}
                for name, parameter in zip(self.names, self.parameters):
                    for key in ("exp_avg", "exp_avg_sq"):
                        if key in self.optimizer.state.get(parameter, {}):
                            tensors[f"{key}/{name}"] = self.optimizer.state[parameter][key]
            record = {"config": dataclasses.asdict(self.config), "model": self.model.config.to_json()}
            self.last_state = states.save(self.states, self.progress, record, tensors, self.config.keep)
        self.saved_at = time.monotonic()

    @torch.no_grad()
    def _restore_optimizer(self) -> None:
        """Averages and moments of the stage that the restored state belongs to."""
        state, self.restored = self.restored, None
        first, second, average = state.part("exp_avg"), state.part("exp_avg_sq"), state.part("ema")
        if not first:
            return                                          # saved between two stages
        if set(first) != set(self.names):
            raise UserError(f"{state.path}: its stage trains other parameters than this configuration's stage {self.progress.stage}; "
                            "start a new run with `init` instead")
        for name, parameter in zip(self.names, self.parameters):
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.progress.step), device=self.device),
                "exp_avg": torch.empty_like(parameter).copy_(first[name]), "exp_avg_sq": torch.empty_like(parameter).copy_(second[name])}
        for name, value in zip(self.names, self.average.values):
            value.copy_(average[name])
        self.average.updates = self.progress.averaged

    def _finish(self, stage: StageConfig, number: int, source: ClipSource) -> None:
        """The end of a stage: its averaged weights become the model's; what the kind needs; a state; the checkpoint so far."""
        self._validate(stage, number)
        self.average.swap()
        self.average.values = []
        if stage.kind == "autoencoder":
            std = self._latent_std(stage, number, source)
            set_latent_scale(self.model, 1 / std)
            start_encoders(self.model)
            self.say(f"latents: standard deviation {std:.4f}, latent_scale {1 / std:.4f}; both image encoders start as the autoencoder's encoder")
        progress = self.progress
        progress.stage, progress.step, progress.averaged = number + 1, 0, 0
        progress.total_seconds, progress.seconds = progress.total_seconds + progress.seconds, 0.0
        self.accelerator.free_memory()
        self.optimizer, self.parameters, self.names = None, [], []
        self._save(None, number + 1)
        self._export(f"after stage {number} ({stage.kind})")

    def _latent_std(self, stage: StageConfig, number: int, source: ClipSource) -> float:
        """Measured on sharp training clips that are keyed apart from the steps'; every process computes the same."""
        clips = []
        for first in range(0, SCALE_CLIPS, 8):
            batch = source.batch(_seed(self.config.seed, number, "scale"), range(first, first + 8), num_frames=1, size=stage.crop,
                                 device=self.device)
            clips.append(batch.sharp)
        return latent_std(self.model, clips)

    def _export(self, note: str) -> Path:
        """The inference checkpoint with averaged weights, vdd.safetensors in the run's folder."""
        path = self.folder / "vdd.safetensors"
        if self.accelerator.is_main_process:
            average = getattr(self, "average", None)
            swap = average is not None and bool(average.values)
            if swap:
                average.swap()
            try:
                training = {"run": note, "steps": self.progress.total, "hours": self._hours(), "stage": self.progress.stage,
                            "scores": self.scores, "config": dataclasses.asdict(self.config)}
                checkpoint.save(self.model, path, training=training, dtype=getattr(torch, self.config.export_dtype))
            finally:
                if swap:
                    average.swap()
            self.say(f"wrote {path} ({note})")
        self.accelerator.wait_for_everyone()
        return path

    def _trackers(self) -> bool:
        if self.config.trackers:
            self.accelerator.init_trackers("train", init_kwargs={})
        return bool(self.config.trackers)

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


def check_data(config: TrainConfig) -> None:
    """Refuse missing folders, before any work. Raises ConfigError."""
    folders = {"data.folder": config.data.folder, "validation.pairs": config.validation.pairs, "validation.photos": config.validation.photos}
    for key, name in folders.items():
        if name and not (Path(config.root) / name).exists():
            raise ConfigError(f"{key}: there is no folder {Path(config.root) / name}; give the data's place with --root")


def _check_split(stage: StageConfig, number: int, processes: int) -> None:
    if stage.batch % (stage.accumulation * processes):
        raise ConfigError(f"stages[{number}].batch: {stage.batch} cannot be shared by {processes} processes x {stage.accumulation} parts")


def _model_differences(found: ModelConfig, wanted: ModelConfig) -> str:
    """Differences of two model configurations that matter to the weights, as text; the measured latent_scale does not."""
    a, b = dataclasses.asdict(found), dataclasses.asdict(wanted)
    a["vae"]["latent_scale"] = b["vae"]["latent_scale"] = 1.0
    a["name"] = b["name"] = ""
    keys = differences(json.loads(json.dumps(a)), json.loads(json.dumps(b)))

    def value(data, key):
        for part in key.replace("[", ".").replace("]", "").split("."):
            data = data[int(part)] if isinstance(data, (list, tuple)) else (data or {}).get(part)
        return data
    return ", ".join(f"{key} is {value(a, key)} against {value(b, key)}" for key in keys[:3])


def _seed(seed: int, number: int, what: str = "clips") -> int:
    return generator("cpu", seed, number, what).initial_seed() % 2**31


@torch.no_grad()
def _fill(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy values into existing tensors, all of them."""
    if set(targets) != set(values):
        raise UserError(f"the state lacks or adds tensors: {sorted(set(targets) ^ set(values))[:3]}")
    for name, target in targets.items():
        target.copy_(values[name])


def _compile(model: DeblurModel) -> None:
    """torch.compile in place: parameter names stay."""
    model.unet.compile()
    model.encoder2.spatial_head.encoder.compile()
    model.encoder1.spatial_head.encoder.compile()
    model.vae.encoder.compile()
    model.vae.decoder.features = torch.compile(model.vae.decoder.features)
    if model.vae.fidelity is not None:
        model.vae.fidelity.compile()


def _accelerator(config: TrainConfig):
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    plugins = {}
    if config.fsdp:
        from accelerate import FullyShardedDataParallelPlugin

        plugins["fsdp_plugin"] = FullyShardedDataParallelPlugin(use_orig_params=True, state_dict_type="full_state_dict")
    return Accelerator(mixed_precision="bf16" if config.precision == "bfloat16" else "no", log_with=list(config.trackers) or None,
                       project_dir=config.out if config.trackers else None, cpu=not torch.cuda.is_available() or bool(os.environ.get("VDD_CPU")),
                       kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)], **plugins)


def _clock(seconds: float) -> str:
    seconds = max(0, round(seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
