"""Build a checkpoint from official files: TF-T2V or ModelScopeT2V, Stable Diffusion's autoencoder, OpenCLIP ViT-H/14."""
from __future__ import annotations

import dataclasses
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ModelConfig, preset
from ..networks.model import DeblurModel
from ..networks.unet3d import SPATIAL_CONDITIONS
from .store import misfits, save_state
from .tensorfile import CheckpointError, read_file

# Names of the files by what they hold: the first key that is there tells.
KINDS = {
    "input_blocks.0.0.weight": "denoiser",
    "visual.conv1.weight": "OpenCLIP",
    "first_stage_model.encoder.conv_in.weight": "autoencoder",
    "encoder.conv_in.weight": "autoencoder",
    "down_blocks.0.resnets.0.conv1.weight": "diffusers",
    "encoder.down_blocks.0.resnets.0.conv1.weight": "diffusers",
}
WANTED = {"denoiser": "TF-T2V or ModelScopeT2V .pth", "autoencoder": "Stable Diffusion 2.1 .ckpt or VAE .safetensors",
          "OpenCLIP": "OpenCLIP ViT-H/14 .bin"}
# Parts that no official file holds; the last one is in TF-T2V's, not in ModelScopeT2V's.
OURS = ("adapter", "vae.fidelity", "vae.detail", "vae.informed", "vae.fusion", "unet.pre_image_condition")
TEXT_PREFIXES = ("", "cond_stage_model.model.")          # OpenCLIP's own file, Stable Diffusion 2.x
START, END = 49406, 49407                                # OpenCLIP's tokens: "" is START END, padded with 0


class ModelCheckpoint:
    """Stands for the class that Lightning's .ckpt files have as a dictionary key; it can do nothing."""
    __module__ = "pytorch_lightning.callbacks.model_checkpoint"


def convert(files: Iterable[str | os.PathLike], out: str | os.PathLike, *, config: ModelConfig | None = None,
            dtype: torch.dtype | None = torch.float16, seed: int = 0) -> None:
    """Write the checkpoint `out` from official files, in any order, told apart by what they hold.

    Needed: a denoiser (TF-T2V t2v or vcomposer .pth; ModelScopeT2V's .pth, whose 4 input channels are padded with zeros), an
    autoencoder (SD 2.1 .ckpt or a VAE .safetensors), and OpenCLIP's ViT-H/14 (.bin or .safetensors), which also gives the stored
    embedding of "". Both spatial heads start as copies of the autoencoder's encoder; adapter and fidelity branch, which no official
    file holds, get their initial values from `seed` and are listed as untrained. `config` defaults to the preset `tft2v` with the
    adapters that the file has. Files are mapped, never unpickled with code. Raises CheckpointError.
    """
    found: dict[str, Mapping[str, Tensor]] = {}
    sources: list[dict] = []
    for file in map(Path, files):
        state = read_official(file)
        kind = _kind(file, state)
        if kind in found:
            raise CheckpointError(f"{file} is a second {kind} file; give one of each")
        found[kind] = state
        sources.append({"file": file.name, "kind": kind, "bytes": file.stat().st_size})
    if missing := [f"{kind} ({what})" for kind, what in WANTED.items() if kind not in found]:
        raise CheckpointError(f"to build a checkpoint these files are missing: {', '.join(missing)}")

    unet, clip, training = dict(found["denoiser"]), found["OpenCLIP"], {"sources": sources}
    if config is None:
        config = preset("tft2v")
        config = dataclasses.replace(config, unet=dataclasses.replace(config.unet, spatial_conditions=spatial_conditions_of(unet)))
    first, wanted = unet["input_blocks.0.0.weight"], config.unet.in_channels
    if config.unet.latent_channels == first.shape[1] < wanted:         # without concat channels: zeros, so that it computes what it did
        unet["input_blocks.0.0.weight"] = F.pad(first, (0, 0, 0, 0, 0, wanted - first.shape[1]))
        training["note"] = f"input convolution padded with zeros from {first.shape[1]} to {wanted} channels"
    autoencoder = {k.removeprefix("first_stage_model."): t for k, t in found["autoencoder"].items()}
    semantic = {k.removeprefix("visual."): t for k, t in clip.items() if k.startswith("visual.")}
    parts = {"unet.": unet, "vae.": autoencoder, "encoder1.spatial_head.": autoencoder, "encoder2.spatial_head.": autoencoder,
             "encoder1.semantic_head.": semantic}
    state = {prefix + key: t for prefix, part in parts.items() for key, t in part.items()}      # `_complete` drops what is too much
    state["null_text"] = null_text({**found["autoencoder"], **clip}, config.null_tokens)
    training["untrained"] = _complete(state, config, seed)
    save_state(state, config, out, training, dtype)


def read_official(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .ckpt or .bin file, mapped; a `state_dict` inside is unwrapped, `module.` cut off.

    Pickles are opened with weights only. Raises CheckpointError: missing, damaged, or holding code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return read_file(path).tensors
    try:
        torch.serialization.add_safe_globals([ModelCheckpoint])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                    # of torch's own storages
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        code = next((line for line in lines if "Unsupported global" in line or "unrecognized function" in line), None)
        if code is not None and isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(f"{path} holds code, not only weights, and was not opened ({code.strip()[:160]})") from None
        raise CheckpointError(f"{path} is damaged or is not a PyTorch file ({lines[0][:160]})") from None
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        data = data["state_dict"]
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, a dictionary of tensors was expected")
    return {str(k).removeprefix("module."): t for k, t in data.items() if isinstance(t, Tensor)}


def _kind(path: Path, state: Mapping[str, Tensor]) -> str:
    kind, some = next((kind for key, kind in KINDS.items() if key in state), None), ", ".join(list(state)[:2]) or "no tensors"
    if kind not in WANTED:
        raise CheckpointError(f"{path} is in the diffusers layout; the original layout was expected" if kind else
                              f"{path} is neither a TF-T2V denoiser nor an autoencoder nor OpenCLIP (it holds {some}, ...)")
    return kind


def spatial_conditions_of(unet: Mapping[str, object]) -> tuple[str, ...]:
    """UNetConfig.spatial_conditions of a denoiser's state dict: the adapters that it holds."""
    return tuple(name for name, (_, module, _) in SPATIAL_CONDITIONS.items() if f"{module}.0.weight" in unet)


@torch.no_grad()
def null_text(state: Mapping[str, Tensor], length: int = 77, head_width: int = 64) -> Tensor:
    """The embedding of "" (1, length, C) by OpenCLIP's text tower: its last but one layer, then the final norm.

    As Stable Diffusion 2.x and VGen's FrozenOpenCLIPEmbedder (layer "penultimate") compute it. `state` holds OpenCLIP's keys, bare or
    under `cond_stage_model.model.`; ViT-H/14 has heads of 64 channels. Raises CheckpointError for no tower, or one of another length.
    """
    from open_clip.transformer import TextTransformer

    prefix = next((prefix for prefix in TEXT_PREFIXES if prefix + "token_embedding.weight" in state), None)
    if prefix is None:
        raise CheckpointError("no file holds OpenCLIP's text tower, which the stored embedding of \"\" comes from")
    weights = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    try:
        (positions, width), words = weights["positional_embedding"].shape, len(weights["token_embedding.weight"])
        if length > positions or words <= END:
            raise CheckpointError(f"OpenCLIP's text tower has {positions} positions and {words} words; "
                                  f"{length} positions and at least {END + 1} words were expected")
        layers = len({key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")})
        with torch.device("meta"):
            tower = TextTransformer(positions, words, width, max(1, width // head_width), layers - 1, output_tokens=True)
        tower.attn_mask, tower.text_projection = tower.build_causal_mask(), None
        tower.load_state_dict({key: weights[key].float() for key in tower.state_dict()}, assign=True)
        return tower.eval()(torch.tensor([[START, END] + [0] * (positions - 2)]))[1][:, :length]
    except KeyError as error:
        raise CheckpointError(f"OpenCLIP's text tower lacks the tensor {prefix + error.args[0]!r}") from None


def _complete(state: dict[str, Tensor], config: ModelConfig, seed: int) -> list[str]:
    """Fill what no file holds with initial values, in place, and drop what the model does not have; returns the filled parts.

    The values come from a model whose denoiser and towers are shrunk: what is missing does not depend on their width, so nothing of
    the full size is ever built. Raises CheckpointError when something is missing that official files do hold, or has another shape.
    """
    with torch.device("meta"):
        model = DeblurModel(config)
    expected = model.state_dict()
    missing = {key: part for key in expected for part in OURS if key not in state and key.startswith(part + ".")}
    for key in state.keys() - expected.keys():
        del state[key]
    if missing:
        small = dataclasses.replace(config.unet, dim=config.unet.norm_groups, dim_mult=(1,), blocks_per_level=1, attn_scales=(),
                                    num_heads=1, spatial_conditions=())
        tower = dataclasses.replace(config.tower, layers=1, width=config.tower.head_width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            donor = DeblurModel(dataclasses.replace(config, unet=small, tower=tower)).state_dict()
        state.update({key: donor[key].clone() for key in missing})
    if misfit := misfits(state, model):
        raise CheckpointError(f"the official files do not fit the model: tensors {misfit}")
    return sorted({*missing.values()})
