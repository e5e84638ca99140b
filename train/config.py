"""A training run's configuration: typed, strict YAML; a stage is one entry of a list."""
from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from vdd_model.config import ConfigError, ModelConfig, from_dict, preset

from . import at_least
from .synthesis.config import BlurConfig

MOST_THREADS = 1024
AT_LEAST_1 = ("keep", "save_every", "log_every", "batch", "accumulation", "frames", "crop")       # other numbers are 0 or more

# What each kind of stage trains when `trainable` is left empty: prefixes of the model's parameter names.
TRAINABLE: dict[str, tuple[str, ...]] = {
    "autoencoder": ("vae.encoder.", "vae.decoder.", "vae.quant_conv.", "vae.post_quant_conv."),
    "denoiser": ("unet.", "encoder1.semantic", "null_text"),
    "stage1": ("encoder2.", "adapter."),
    "stage2": ("unet.", "encoder1.semantic", "null_text", "encoder2.", "adapter."),
    "stage3": ("vae.fidelity.", "vae.detail.", "vae.informed.", "vae.fusion."),
}


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses; a stage uses the ones of its kind (`train.losses`)."""

    coherence: float = 0.1        # paper eq. 4, added to eq. 3 (denoiser, stages 1 and 2)
    estimate: float = 1.0         # log likelihood of the sharp latents under the adapter's estimate (stages 1 and 2, with unet.estimate)
    latent: float = 0.0           # encoder 2's latents against the sharp latents (stages 1, 2 and 3)
    kl: float = 1e-6              # autoencoder
    gradient: float = 0.0         # L1 of spatial differences (autoencoder, stage 3)
    lpips: float = 0.0            # perceptual distance, needs the lpips package and its weights (autoencoder, stage 3)
    psnr: float = 0.0             # mean log MSE of frames, what PSNR tables average (stage 3)
    fft: float = 0.0              # L1 of the spectra (stage 3)
    texture: float = 0.0          # local strength of detail, as far as the latents know of the sharp picture: times alpha_bar_t (stage 3)
    frame_difference: float = 0.0  # L1 of differences of neighbouring frames (stage 3)


@dataclass(frozen=True)
class StageConfig:
    """One stage: what it trains, on what, for how long. Give `steps` or `minutes`, not both."""

    kind: str
    steps: int | None = None
    minutes: float | None = None          # of wall time, without validation and compiling; scaled by `--total-minutes`
    batch: int = 8                        # clips an optimiser step, over all processes and accumulation
    accumulation: int = 1
    crop: int = 256
    frames: int = 16
    lr: float = 5e-5
    min_lr: float = 0.0                   # where the cosine ends, as a fraction of lr
    warmup: int = 100                     # steps
    optimizer: str = "adamw"              # or muon: matrices take orthogonalised steps (train.muon); not with fsdp
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0                     # gradient norm; 0 = off
    trainable: tuple[str, ...] = ()       # prefixes of parameter names; empty = the kind's own
    loss: LossConfig = field(default_factory=LossConfig)
    last_timestep: float = 0.0            # probability of t = T - 1 exactly (one-step use: stage 3 then trains the fidelity branch,
                                          # else the detail branch where there is one); other timesteps are equally likely
    image_dropout: float = 0.1            # of the semantic tokens, never of the spatial condition
    detach_latents: bool = True           # stage 3: no gradient through the decoder's features into the UNet and encoder 2's latents
    prior_dropout: float = 0.0            # stage 3: share of batches that do not see their prior frames (train.data.pool)
    prior_success: float = 0.0            # stage 3: share of samples whose prior is moved towards the truth, 0.3 to 0.85 of the way: what
                                          # it does on the footage it was trained on is better than what it does on synthesised blur
    compile: bool = True                  # false: eager in a run that compiles, for a stage too short to win back what compiling takes
    denoise: bool = True                  # stage 3: latents from the UNet; false: without it, at last_timestep 1 encoder 2's own (cheap)
    rescale: bool = False                 # before it, scale the latents to what encoder 2's estimate leaves open (stages.rescale_latents)
    blur: dict[str, object] = field(default_factory=dict)   # keys of BlurConfig (train.synthesis.config) that differ in this stage

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Of the names of the parameters that it trains."""
        return self.trainable or TRAINABLE[self.kind]


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from. Folders are relative to the run's `root`."""

    folder: str = "train_photos"
    layout: str = "photos"                # photos, or one of train.data's layouts of blur/sharp pairs and videos
    split: str = "train"
    blur_folder: str = "blur"             # GoPro's layout: blur (the plain average, as in papers) or blur_gamma
    samples: int = 0                      # 0: a fresh sample every time; n: n fixed samples, repeated
    workers: int = 0                      # batches prepared ahead, in threads
    blur: dict[str, object] = field(default_factory=dict)   # BlurConfig (train.synthesis.config)


@dataclass(frozen=True)
class ValidationConfig:
    """Few frames, fixed: the same on every run. An empty folder name leaves the set out."""

    every: int = 500                      # steps; 0 = only at a stage's end
    pairs: str = "gopro_layout"           # pairs in any layout that train.data.readers knows
    split: str = "test"
    pairs_crop: int = 0                   # of the pairs: their middle square; 0 = whole frames
    photos: str = "val_photos"            # photographs, blurred with a fixed seed
    clips: int = 4
    frames: int = 5
    crop: int = 256                       # of the photographs


@dataclass(frozen=True)
class TrainConfig:
    """A whole run."""

    stages: tuple[StageConfig, ...]
    preset: str = "small"
    model: dict[str, object] = field(default_factory=dict)  # keys of ModelConfig that differ from the preset
    init: str = ""                        # checkpoint to start from; empty = random weights
    root: str = "data"
    out: str = "runs/small"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    ema: float = 0.999                    # 0 = off
    precision: str = "float32"            # or bfloat16 (autocast)
    threads: int = 0                      # CPU threads; 0 = torch's own choice
    channels_last: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False                    # spreads the weights over the processes (train.shard)
    log_every: int = 20
    save_every: int = 500                 # steps
    save_minutes: float = 10.0            # and at least this often
    keep: int = 2                         # last states kept
    trackers: tuple[str, ...] = ()        # accelerate's names: tensorboard, ...
    export_dtype: str = "float16"


def model_config(config: TrainConfig) -> ModelConfig:
    """The preset with the run's changes. Raises ConfigError."""
    return from_dict(ModelConfig, _merge(dataclasses.asdict(preset(config.preset)), config.model), "model.")


def load(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file; `overrides` are "a.b=value" with a YAML value, list items by number ("stages.0.lr=1e-3").

    Raises ConfigError with one sentence that names the file and the key.
    """
    try:
        data = parse(Path(path).read_text())
        for text in overrides or []:
            override(data, text)
        return check(from_dict(TrainConfig, data))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {getattr(error, 'strerror', None) or error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except TypeError as error:                     # a required key is missing
        raise ConfigError(f"{path}: {str(error).partition(') ')[2] or error}") from None


def add_run_flags(parser: argparse.ArgumentParser, out: str | None = None) -> None:
    """What the command lines of runs share: the configuration, and what of it they change. `out`: the default of --out."""
    parser.add_argument("config", help="a YAML file, such as configs/small.yaml")
    parser.add_argument("--root", help="folder of the data; the configuration's folders are relative to it")
    parser.add_argument("--out", default=out, help="folder of what is made: states, log, panels, checkpoints, tables")
    parser.add_argument("--init", help="checkpoint to start from")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out (begin it when there is none)")
    parser.add_argument("--total-minutes", type=at_least(0, float), metavar="MINUTES",
                        help="scale the minutes of the stages (of one variant's) so that they sum to this; validation comes on top")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key, e.g. stages.0.lr=1e-4")


def from_run_flags(options: argparse.Namespace) -> TrainConfig:
    """The configuration as these flags change it, but for --total-minutes. Raises ConfigError."""
    changes = {key: getattr(options, key) for key in ("root", "out", "init") if getattr(options, key)}
    return dataclasses.replace(load(options.config, options.set), **changes)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 5e-5 is one, with or without a point."""


_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse(text: str):
    """YAML text as plain Python values. Raises ConfigError."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from None


def override(data: dict, text: str) -> None:
    """Set what "a.b=value" says, list items by number. Raises ConfigError."""
    key, separator, value = text.partition("=")
    _require(bool(separator), f"--set {text}: expected KEY=VALUE")
    node, names = data, key.split(".")
    for place, name in enumerate(names):
        _require(isinstance(node, (dict, list)), f"--set {text}: {'.'.join(names[:place])} has no keys")
        if isinstance(node, list):
            _require(name.isdecimal() and int(name) < len(node), f"--set {text}: {name!r} is no item of a list of {len(node)}")
            name = int(name)
        elif place < len(names) - 1:
            node.setdefault(name, {})
        if place == len(names) - 1:
            node[name] = parse(value) if value else ""
        node = node[name]


def check(config: TrainConfig) -> TrainConfig:
    """Refuse what cannot work, with the key's name. Returns `config`."""
    # ---- the run
    _require(len(config.stages) > 0, "stages: at least one stage is needed")
    _require(config.precision in ("float32", "bfloat16"), f"precision: float32 or bfloat16, found {config.precision!r}")
    _require(config.export_dtype in ("float32", "float16", "bfloat16"), f"export_dtype: unknown dtype {config.export_dtype!r}")
    _require(0 <= config.ema < 1, f"ema: a decay in [0, 1), found {config.ema}")
    for key, number in _numbers(dataclasses.asdict(config)):
        whole, model = isinstance(number, int), key.startswith("model.")
        _require(not math.isnan(number) and (not whole or -2**63 <= number < 2**63), f"{key}: {number} cannot be used")
        least = int(whole and model or key.rpartition(".")[2] in AT_LEAST_1)
        _require(number >= least or key == "seed" or model and not whole, f"{key}: at least {least}, found {number}")
    for key, number in (("threads", config.threads), ("data.workers", config.data.workers)):
        _require(number <= MOST_THREADS, f"{key}: at most {MOST_THREADS}, found {number}")
    _require(not (config.fsdp and config.channels_last), "channels_last: not with fsdp, which shares out contiguous weights only")

    # ---- its stages
    divisor = model_config(config).divisor
    for number, stage in enumerate(config.stages):
        at = f"stages[{number}]"
        _require(stage.kind in TRAINABLE, f"{at}.kind: one of {', '.join(TRAINABLE)}, found {stage.kind!r}")
        _require((stage.steps is None) != (stage.minutes is None), f"{at}: give steps or minutes, one of them (null takes one away)")
        _require((stage.minutes if stage.steps is None else stage.steps) > 0, f"{at}: steps and minutes must be positive")
        _require(stage.batch % stage.accumulation == 0, f"{at}: batch {stage.batch} is no multiple of accumulation {stage.accumulation}")
        _require(not stage.rescale or stage.kind.startswith("stage"), f"{at}.rescale: encoder 2 has no estimate before stage 1")
        _require(stage.crop % divisor == 0, f"{at}.crop: {stage.crop} is no multiple of {divisor}, the model's divisor")
        _require(stage.optimizer in ("adamw", "muon"), f"{at}.optimizer: adamw or muon, found {stage.optimizer!r}")
        _require(stage.optimizer == "adamw" or not config.fsdp, f"{at}.optimizer: muon needs whole matrices; use adamw with fsdp")
        _require(len(stage.betas) == 2 and 0 <= min(stage.betas) <= max(stage.betas) < 1,
                 f"{at}.betas: two numbers in [0, 1), found {list(stage.betas)}")
        for key in ("last_timestep", "image_dropout", "prior_dropout", "prior_success"):
            _require(0 <= getattr(stage, key) <= 1, f"{at}.{key}: a probability in [0, 1], found {getattr(stage, key)}")
        blur_config(config, stage)
    return config


def blur_config(config: TrainConfig, stage: StageConfig | None = None) -> BlurConfig:
    """BlurConfig of the run, with the stage's changes. Raises ConfigError."""
    return from_dict(BlurConfig, {**config.data.blur, **(stage.blur if stage else {})}, "blur.")


def scale_minutes(config: TrainConfig, total: float) -> TrainConfig:
    """Scale every stage's minutes so that they sum to `total`. Raises ConfigError when a stage counts steps."""
    _require(total > 0, f"--total-minutes: more than 0, found {total:g}")
    _require(all(s.minutes for s in config.stages), "--total-minutes needs stages that are given in minutes, not steps")
    factor = total / sum(s.minutes for s in config.stages)
    return dataclasses.replace(config, stages=tuple(dataclasses.replace(s, minutes=s.minutes * factor) for s in config.stages))


def differences(old, new, path: str = "") -> dict[str, tuple]:
    """Full names of the keys whose values differ between two nested dicts or lists, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner = [(f"{path}.{k}" if path else str(k), old.get(k), new.get(k)) for k in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        inner = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new))]
    else:
        return {} if old == new else {path: (old, new)}
    return {key: values for name, a, b in inner for key, values in differences(a, b, name).items()}


def _merge(base: dict, changes: dict) -> dict:
    merged = dict(base)
    for key, value in changes.items():
        inside = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if inside else value
    return merged


def _numbers(value: object, path: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers in nested dicts and lists, with their keys' full names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{path}[{i}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
