"""Everything before the first step: checks, the model at the place where the run stands, accelerate."""
from __future__ import annotations

import dataclasses
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor

from vdd_model.checkpoint import store as checkpoint
from vdd_model.config import ConfigError, ModelConfig, TowerConfig
from vdd_model.cpu import cpu_has_bfloat16
from vdd_model.errors import UserError
from vdd_model.networks.layers import channels_last
from vdd_model.networks.model import DeblurModel

from . import state as states
from . import validate as checks
from .config import TrainConfig, blur_config, differences, model_config
from .log import Journal
from .stages import trainable_names

LATER_PARTS = ("detail", "informed", "fusion", "temporal")       # of an autoencoder, which a checkpoint of an earlier version may lack
OPEN_CLIP = TowerConfig()        # the tower of official files: ViT-H/14
FREE_TO_CHANGE = ("root", "out", "init", "threads", "log_every", "keep", "save_every", "save_minutes", "validation", "trackers")


@dataclass
class Run:
    """What a run has from its first step to its last."""

    config: TrainConfig
    accelerator: object                       # accelerate's: processes, precision, trackers
    device: torch.device
    say: Callable[[str], None]                # silent on all processes but the main one
    model: DeblurModel
    position: states.Position
    restored: states.State | None             # until its stage has begun
    clips: list[checks.ValidationClip]                  # of the validation
    journal: Journal
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.config.out)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.accelerator.is_main_process

    def mean(self, value: float) -> float:
        """Over the processes, the same in all of them."""
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=self.device), "mean").item()

    def anywhere(self, yes: bool) -> bool:
        """Whether it is so in any process."""
        return self.mean(float(yes)) > 0


def prepare(config: TrainConfig, resume: bool, say: Callable[[str], None]) -> Run:
    """A run at the place where it stands, after all that can be checked. Raises UserError with one sentence."""
    # ---- processes and data
    asked, config = config, computable(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    check_data(config)
    accelerator = make_accelerator(config)
    main = accelerator.is_main_process
    device = torch.empty(0, device=accelerator.device).device          # as tensors name it: what is there already would be copied
    say = say if main else lambda text: None
    if config.precision != asked.precision:
        say(f"this processor only emulates {asked.precision}, a hundred times slower: training in {config.precision}")
    check_split(config, accelerator.num_processes)
    if main and (shared := checks.seen_in_training(config)):
        say(f"validation sees what training sees ({len(shared)} clips, the first is {shared[0]}): its scores will flatter")

    # ---- the model where the run stands, and room for its states
    folder = Path(config.out)
    restored = find_state(config, folder / "states", resume, say)
    model = make_model(config, restored, say)
    if main:
        size, exports = sum(p.numel() for p in model.parameters()), len(config.stages) * getattr(torch, config.export_dtype).itemsize
        states.check_room(folder / "states", size * (4 * 4 * (config.keep + 1) + exports))
    model = prepare_model(model, config, device)
    position = dataclasses.replace(restored.position) if restored else states.Position()
    accelerator.wait_for_everyone()             # nobody writes before everybody has looked

    # ---- log and validation: what is wrong with their files should not cost a step
    journal = Journal(config, accelerator, say, position, restored.path if restored else None)
    clips = checks.load_clips(config) if main else []
    return Run(config, accelerator, device, say, model, position, restored, clips, journal)


def check_data(config: TrainConfig) -> None:
    """Refuse missing folders, before any work. Raises ConfigError."""
    validation = config.validation
    folders = {"data.folder": config.data.folder, "validation.pairs": validation.pairs, "validation.photos": validation.photos}
    for key, name in folders.items():
        if name and not (Path(config.root) / name).exists():
            raise ConfigError(f"{key}: there is no folder {Path(config.root) / name}; give the place of the data's folders with --root, "
                              f"another name with --set {key}=NAME" + f", or go without it: --set {key}=" * (key != "data.folder"))


def check_split(config: TrainConfig, processes: int) -> None:
    """Refuse batches that the processes and parts cannot share equally, or only by rendering scenes of which parts are dropped.

    Raises ConfigError.
    """
    for number, stage in enumerate(config.stages):
        shares, scene = stage.accumulation * processes, blur_config(config, stage).cut ** 2 if config.data.layout == "photos" else 1
        if stage.batch % (shares * scene):
            whole = f", each of whole scenes of {scene} clips (blur.cut)" if scene > 1 else ""
            raise ConfigError(f"stages[{number}].batch: {stage.batch} cannot be shared by {processes} processes x {stage.accumulation} "
                              f"parts{whole}")


def find_state(config: TrainConfig, folder: Path, resume: bool, say) -> states.State | None:
    """The state to go on from, checked against `config`; other changes than of the model and the seed are named and allowed.

    Raises UserError for a folder that holds a run although `resume` is off, and for a state of another model, seed or order of stages.
    """
    if not resume:
        if states.files(folder):
            raise UserError(f"{folder.parent} already holds a run: continue it with --resume, or choose another folder with --out")
        return None
    found = states.newest(folder, say)
    if found is None:
        return None
    model = ModelConfig.from_json(found.record["model"])
    if different := model_differences(model, as_far_as(model, model_config(config))):
        raise UserError(f"{found.path} is a state of another model: {different} (state against this run)")
    old, new = found.record["config"], json.loads(json.dumps(dataclasses.asdict(config)))
    if old["seed"] != config.seed:
        raise UserError(f"{found.path} belongs to a run with seed {old['seed']}, not {config.seed}")
    where = found.position.stage
    kinds = [s["kind"] for s in old["stages"]][:where + bool(found.position.step)]
    if kinds != [s.kind for s in config.stages][:len(kinds)]:
        raise UserError(f"{found.path} has done the stages {', '.join(kinds)}, which this configuration does not begin with; "
                        "start a new run with `init` instead")
    if changed := [key for key in differences(old, new) if not key.startswith(FREE_TO_CHANGE)]:
        say(f"the configuration has changed since that state: {', '.join(changed)}")
    return found


def make_model(config: TrainConfig, restored: states.State | None, say=print) -> DeblurModel:
    """The model of a state, of the checkpoint `init`, or with seeded random weights. On the CPU. Raises UserError."""
    wanted, values, new, said = model_config(config), {}, {}, ""
    torch.manual_seed(config.seed)
    if restored is not None:
        wanted, values = ModelConfig.from_json(restored.record["model"]), restored.part("model")
        said = f"resuming {restored.path.name}: stage {restored.position.stage}, step {restored.position.step}"
    elif config.init:
        found, values = checkpoint.read_state(config.init)
        if different := model_differences(found, as_far_as(found, wanted)):
            raise UserError(f"{config.init} is a checkpoint of another model: {different} (checkpoint against this run)")
        new = {name: getattr(wanted.vae, name) for name in LATER_PARTS if not getattr(found.vae, name)}
        wanted, said = dataclasses.replace(found, vae=dataclasses.replace(found.vae, **new)), f"starting from {config.init}"
    try:
        model = DeblurModel(wanted)
    except Exception as error:                               # whatever stops a layer from being made
        raise ConfigError(f"model: no model can be built of it ({type(error).__name__}: {error})") from None
    if restored or config.init:
        prefixes = tuple(f"vae.{name}." for name in new)                     # what the checkpoint has not starts untrained
        values = {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)} | values
        if misfit := checkpoint.misfits(values, model):
            raise UserError(f"{restored.path if restored else config.init} does not fit this version's model: tensors {misfit}")
        model.load_state_dict(values)
        say(said)
    for number, stage in enumerate(config.stages):
        try:
            trainable_names(model, stage)
        except ConfigError as error:
            raise ConfigError(f"stages[{number}].{error}") from None
    return model


def use_open_clip(model: DeblurModel, gradient_checkpointing: bool) -> None:
    """open_clip's own visual tower in the place of ours, which computes the same: key for key, it takes over the weights, and can recompute
    its layers in the backward pass. Where open_clip is not installed ours stays."""
    try:
        from open_clip.transformer import VisionTransformer
    except ImportError:
        return
    config, weights = model.config.tower, model.encoder1.semantic_head.state_dict(keep_vars=True)
    with torch.device("meta"):
        tower = VisionTransformer(config.image_size, config.patch_size, config.width, config.layers, config.width // config.head_width,
                                  config.mlp_ratio, output_dim=config.embed_dim)
    tower.load_state_dict(weights, assign=True)
    tower.set_grad_checkpointing(gradient_checkpointing)
    model.encoder1.semantic_head = tower


def prepare_model(model: DeblurModel, config: TrainConfig, device: torch.device) -> DeblurModel:
    """On the device, in train mode, with the run's memory format, checkpointing and compilation."""
    if model.config.tower == OPEN_CLIP:
        use_open_clip(model, config.gradient_checkpointing)
    if config.channels_last:
        channels_last(model)
    if device.type == "cuda":                                # its bfloat16 backward is reported to give NaNs in large batches
        torch.backends.cuda.enable_cudnn_sdp(False)
    model.unet.gradient_checkpointing = config.gradient_checkpointing
    model = model.to(device).train()
    for module in model.modules() if device.type == "cpu" else ():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_pre_hook(in_float32)
    if config.compile:                                   # in place: parameter names stay; a stage's shapes stay too, so none is dynamic
        vae = model.vae
        for module in (model.unet, model.encoder1.spatial_head.encoder, model.encoder2.spatial_head.encoder, vae.encoder, vae.fidelity,
                       vae.detail, vae.informed):
            if module is not None:
                module.compile(dynamic=False)
        vae.decoder.features = torch.compile(vae.decoder.features, dynamic=False)
    return model


def in_float32(_: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook. On a CPU layer_norm sums the gradients of its weights in its input's type, and of bfloat16 no more than 256 rows
    count (findings/layer-norm-stops-counting-rows-at-256.sh)."""
    return tuple(x.float() for x in given)


def as_far_as(found: ModelConfig, wanted: ModelConfig) -> ModelConfig:
    """`wanted` without the parts that `found` has not: it may be of before they were."""
    return dataclasses.replace(wanted, vae=dataclasses.replace(
        wanted.vae, **{name: getattr(found.vae, name) for name in LATER_PARTS if not getattr(found.vae, name)}))


def model_differences(found: ModelConfig, wanted: ModelConfig) -> str:
    """Differences of two model configurations that matter to the weights, as text; name and measured latent_scale do not."""
    changed = differences(*(json.loads(c.to_json()) for c in (found, wanted)))
    texts = [f"{key} is {a} against {b}" for key, (a, b) in changed.items() if key not in ("name", "vae.latent_scale")]
    return ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")


def computable(config: TrainConfig) -> TrainConfig:
    """`config`, in float32 where the run is on a CPU that only emulates bfloat16."""
    return dataclasses.replace(config, precision="float32") if _on_cpu() and not cpu_has_bfloat16() else config


def _on_cpu() -> bool:
    return not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def make_accelerator(config: TrainConfig):
    """accelerate for this process: precision, trackers, gradients shared by DDP (`fsdp` is ours, see `train.shard`)."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)          # its later name is unknown to accelerate
    shared = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=2))         # the others wait while one writes a state or validates
    try:
        accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bfloat16" else "no",
                                  log_with=list(config.trackers) or None, project_dir=config.out if config.trackers else None,
                                  kwargs_handlers=[shared, patient], cpu=_on_cpu())
    except ValueError as error:                                          # an unknown tracker, or what the environment says
        raise ConfigError(f"{'trackers: ' if config.trackers else ''}{error}") from None
    if config.fsdp and not torch.distributed.is_initialized():
        raise ConfigError("fsdp: start the processes with torchrun or `accelerate launch`; a single one has nothing to share out")
    return accelerator
