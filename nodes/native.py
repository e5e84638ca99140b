"""The one file that knows the host's model classes: the UNet as a MODEL, the autoencoder as a video VAE, the encoders as patchers.

Weights belong to the host's memory manager (ModelPatcher); sampling, guidance, previews, masks, LoRA and context windows are the
host's. Times, v and noise are handed to the functions of `vdd_model`.
"""
from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import comfy.conds
import comfy.latent_formats
import comfy.ldm.models.autoencoder
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.cli_args import args
from einops import rearrange
from torch import Tensor

from ..vdd_model.checkpoint import store as checkpoint
from ..vdd_model.config import ModelConfig
from ..vdd_model.cpu import accelerate
from ..vdd_model.errors import UserError
from ..vdd_model.inference.codes import Codes
from ..vdd_model.inference.ensemble import ORIENTATIONS, Orientation
from ..vdd_model.inference.pipeline import Deblurrer, default_dtype
from ..vdd_model.inference.prior import Prior
from ..vdd_model.inference.tiles import Box, Tiling
from ..vdd_model.inference.window import to_pixels
from ..vdd_model.networks.adapter import Adapter
from ..vdd_model.networks.model import DeblurModel, drop_untrained_branch
from ..vdd_model.networks.unet3d import UNet3D
from .frames import rgb_of
from .latents import BLUR, IMAGE, PICTURES, with_pictures
from .patches import Patched
from .progress import Bar

T = TypeVar("T")
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
          "fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}

# Values that are alive at once where most are: those of a run on torch's meta device (tests/nodes/test_memory.py) and about a third more,
# for copies and work space of a device's own kernels. The host makes room for them.
UNET_VALUES = 21              # per latent position and channel of the widest layer at full resolution, the first transformer's feed-forward
ENCODER_VALUES, DECODER_VALUES = 6, 8            # per pixel of a chunk and channel of the autoencoder at full resolution
FIDELITY_VALUES = 5, 12       # per pixel of a chunk and half a neighbour, and channel: the autoencoder's and the fidelity branch's
WORKING_MEMORY = 2 * 2**30    # what the one-node way asks the host to keep free beside the weights; it cuts smaller pieces when short
PRIOR_VALUES = 600            # per pixel of a tile: what the prior's network holds at once
DENOISER = ("unet.", "adapter.")                 # what of a checkpoint the MODEL holds
FRAMES_PER_CHUNK = 4          # frames that pass an encoder or the decoder together; Cancel is looked at between chunks


class VideoLatent(comfy.latent_formats.LatentFormat):
    """(B, 4, F, h, w). Scale, factor and preview colors are set per checkpoint."""

    latent_channels = 4
    latent_dimensions = 3
    temporal_downscale_ratio = 1
    taesd_decoder_name = None         # the host's TAESD previewer is 2-D


def memory_usage_factor(config: ModelConfig) -> float:
    """What sampling needs, in the host's unit: a hundredth of a MiB per latent position and byte of the type."""
    width = max(config.unet.dim, config.unet.num_heads * config.unet.head_dim)
    return UNET_VALUES * width / (0.01 * 2**20)


class HostConfig(comfy.supported_models_base.BASE):
    """The host's description of the model: v-prediction with zero terminal SNR."""

    unet_extra_config = {}
    latent_format = VideoLatent
    supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]

    def __init__(self, config: ModelConfig):
        super().__init__({"config": config})
        diffusion = config.diffusion
        self.sampling_settings = {"beta_schedule": "linear", "linear_start": diffusion.beta_start, "linear_end": diffusion.beta_end,
                                  "timesteps": diffusion.num_timesteps, "zsnr": diffusion.zero_terminal_snr}
        self.memory_usage_factor = memory_usage_factor(config)
        self.latent_format.scale_factor = config.vae.latent_scale
        self.latent_format.spacial_downscale_ratio = config.vae.factor


class HostUNet(UNet3D):
    """UNet3D behind the host's calling convention; keys stay the UNet's own, so that LoRA files map. The adapter is its child: it
    looks across the frames of a window, so it must see the window that is being sampled."""

    def __init__(self, config: ModelConfig, dtype=None, device=None, operations=torch.nn):
        super().__init__(config.unet, diffusion=config.diffusion, operations=operations, dtype=dtype, device=device)
        self.adapter = Adapter(config.adapter, config.unet.latent_channels, config.unet.concat_channels, operations=operations)
        self.adapter.to(device=device, dtype=dtype)
        self.dtype, self.tick = dtype, mm.throw_exception_if_processing_interrupted

    def forward(self, x, timesteps, context, control=None, transformer_options=None, **conditions):
        """x (B, 4, F, h, w), timesteps (B,), context (B, L, C), vdd_blur (B, 4 or 8, F, h, w), vdd_image (B, 1, F, image_dim) -> v.

        Other nodes may have put themselves around the call (EasyCache, for one).
        """
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, control, options, **conditions)

    def _forward(self, x, timesteps, context, control, transformer_options, vdd_blur=None, vdd_image=None, **_):
        if control is not None:
            raise UserError("a ControlNet is connected, for which this 3D-UNet has no place: take it out")
        if vdd_blur is None or vdd_image is None:
            raise UserError("this model deblurs: connect the positive and negative outputs of 'Encode Blurred Clip' to the sampler")
        frames = x.shape[2]
        if vdd_blur.shape[2] != frames:          # hosts before 0.4.0 cut the latents for a context window, not the conditioning
            window = getattr(transformer_options.get("context_window"), "index_list", None)
            if window is None or len(window) != frames:
                raise UserError(f"the latent has {frames} frames, the encoded clip {vdd_blur.shape[2]}: both must come from the same "
                                "'Encode Blurred Clip'; for context windows set dim to 2 (ComfyUI 0.4.0 or newer is recommended)")
            vdd_blur, vdd_image = vdd_blur[:, :, window], vdd_image[:, :, window]
        if vdd_blur.shape[-2:] != x.shape[-2:]:
            raise UserError(f"the latent is {x.shape[-2]} x {x.shape[-1]}, the encoded clip {vdd_blur.shape[-2]} x {vdd_blur.shape[-1]}: "
                            "both must come from the same 'Encode Blurred Clip'")
        tokens = self.tokens(context, vdd_image[:, 0, frames // 2])
        if any(transformer_options.get(group) for group in ("patches", "patches_replace")):
            tokens = Patched(self, tokens, transformer_options, x.shape)
        return super().forward(x, timesteps, tokens, self.adapter(vdd_blur))

    def _run(self, block, x, embedding, context, skip=None):
        run = super()._run
        return context.run(run, block, x, embedding, skip) if isinstance(context, Patched) else run(block, x, embedding, context, skip)


class TextTokens(comfy.conds.CONDCrossAttn):
    """Text (B, L, C) that a context window leaves alone: hosts cut whatever has as many entries on axis 2 as the clip has frames."""

    def _copy_with(self, cond):
        return super()._copy_with(cond) if cond.shape[2] == self.cond.shape[2] else self


class HostModel(comfy.model_base.BaseModel):
    """The denoiser as the host's samplers see it."""

    def __init__(self, model_config: HostConfig, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.V_PREDICTION, device=device, unet_model=HostUNet)
        model_config.unet_config["model_channels"] = self.diffusion_model.config.dim           # other nodes ask for it

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        if kwargs.get("cross_attn") is not None:
            out["c_crossattn"] = TextTokens(kwargs["cross_attn"])
        if kwargs.get(BLUR) is not None:
            out[BLUR] = comfy.conds.CONDNoiseShape(kwargs[BLUR].to(kwargs["device"]))
            out[IMAGE] = comfy.conds.CONDRegular(kwargs[IMAGE].to(kwargs["device"]))
        return out

    def state_dict_for_saving(self, unet_state_dict=None, *_, **__):
        """What Save Model writes: the whole checkpoint and its configuration, its denoiser with these weights (of a LoRA, a merge)."""
        config, state = checkpoint.read_state(self.checkpoint)
        own = self.diffusion_model.state_dict()
        if not own.keys() <= (unet_state_dict or {}).keys():      # an older host has put its patches into the weights and names others here
            unet_state_dict = own
        denoiser = {name if name.startswith("adapter.") else f"unet.{name}": t for name, t in unet_state_dict.items()}
        return {**state, **denoiser, checkpoint.CONFIG: torch.frombuffer(bytearray(config.to_json().encode()), dtype=torch.uint8)}

    def extra_conds_shapes(self, **kwargs):
        return {key: list(kwargs[key].shape) for key in (BLUR, IMAGE) if kwargs.get(key) is not None}


class VideoAutoencoder(torch.nn.Module):
    """The autoencoder as the host's VAE calls it: (B, C, F, H, W) or (N, C, H, W), unscaled latents, a few frames at a time."""

    def __init__(self, model: DeblurModel):
        super().__init__()
        self.model = model

    def encode(self, x: Tensor, **_) -> Tensor:
        return _by_frames(lambda part: self.model.vae.encode(part)[0], x)

    def decode(self, z: Tensor, **_) -> Tensor:
        return _by_frames(self.model.vae.decode, z)


def _by_frames(function, x: Tensor) -> Tensor:
    """`function` of (N, C, H, W) on (B, C, F, H, W), FRAMES_PER_CHUNK frames at a time; stops between chunks when the user cancels."""
    frames = x if x.ndim == 4 else rearrange(x, "b c f h w -> (b f) c h w")
    out = None
    for start in range(0, len(frames), FRAMES_PER_CHUNK):
        mm.throw_exception_if_processing_interrupted()
        part = function(frames[start:start + FRAMES_PER_CHUNK])
        if out is None:
            out = part.new_empty(len(frames), *part.shape[1:])
        out[start:start + len(part)] = part
        del part                             # or it would live on beside the next one
    return out if x.ndim == 4 else rearrange(out, "(b f) c h w -> b c f h w", b=len(x))


@dataclass
class Encoders:
    """VDD_ENCODERS: both image encoders, each with the host's memory manager, and the stored embedding of ""."""

    config: ModelConfig
    semantic: comfy.model_patcher.ModelPatcher      # a DeblurModel that holds encoder1 only
    spatial: comfy.model_patcher.ModelPatcher       # a DeblurModel that holds encoder2 only
    null_text: Tensor                               # (1, L, C)
    dtype: torch.dtype
    device: torch.device


class Decoder(NamedTuple):
    """What decoding needs: the patchers to load and one DeblurModel that shares the autoencoder and encoder 2 with them."""

    encoders: Encoders
    model: DeblurModel


def load(path: str, dtype: str = "auto") -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.VAE, Encoders]:
    """A checkpoint file -> MODEL, VAE, VDD_ENCODERS. `dtype` is the UNet's; the host chooses that of the autoencoder and encoders.

    Raises UserError (CheckpointError) when the file cannot be used.
    """
    state, side = checkpoint.fitting(path, comfy.ops.disable_weight_init)
    rest, config = {k: v for k, v in state.items() if not k.startswith(DENOISER)}, side.config
    device = mm.vae_device()
    _assign(side, rest, autoencoder_dtype(device))
    side.encoder1.spatial_head = None                # used in training only
    encoders = Encoders(config, _patcher(_part(side, "encoder1"), device), _patcher(_part(side, "encoder2"), device),
                        rest["null_text"].float().clone(), side.null_text.dtype, device)
    vae = _video_vae(_part(side, "vae"), Decoder(encoders, side))
    return load_denoiser(path, dtype, latent_rgb(side)), vae, encoders


def load_denoiser(path: str, dtype: str, rgb, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The MODEL alone; `rgb` are its preview colors. The host calls it again for a copy with weights of its own: on another GPU, or
    outside of its dynamic VRAM (`disable_dynamic`), which knows no hooks."""
    config, state = checkpoint.read_state(path)
    state = {k.removeprefix("unet."): v for k, v in state.items() if k.startswith(DENOISER)}
    host, device = HostConfig(config), mm.get_torch_device()
    kind = DTYPES[dtype] or mm.unet_dtype(model_params=sum(t.numel() for t in state.values()),
                                          supported_dtypes=host.supported_inference_dtypes)
    host.set_inference_dtype(kind, mm.unet_manual_cast(kind, device, host.supported_inference_dtypes))
    host.latent_format.latent_rgb_factors, host.latent_format.latent_rgb_factors_bias = rgb
    model, plain = HostModel(host), comfy.model_patcher.ModelPatcher
    make = plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)      # 0.12.0
    patcher = make(model, load_device=device, offload_device=mm.unet_offload_device())
    dynamic = getattr(patcher, "is_dynamic", lambda: False)()
    if disable_dynamic:      # a host with dynamic VRAM otherwise: its linear layers take over the type of what they are given
        state = {name: t.to(kind) for name, t in state.items()}
    model.load_model_weights(state, "", **({"assign": True} if dynamic else {}))
    if device.type == "cpu":
        accelerate(model.diffusion_model, packed=False)
    patcher.cached_patcher_init = (load_denoiser, (path, dtype, rgb))
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, PICTURES, _with_pictures)
    model.checkpoint = path
    return patcher


@torch.no_grad()
def latent_rgb(model: DeblurModel) -> tuple[list[list[float]], list[float]]:
    """Colors for the host's latent previews: the linear map from latents to RGB that fits the autoencoder best.

    Least squares over a few smooth colored pictures: (factors (channels, 3), bias (3,)) from scaled latents to RGB in [-1, 1].
    """
    generator = torch.Generator().manual_seed(0)
    weight = model.vae.post_quant_conv.weight
    factor = model.config.vae.factor
    coarse = torch.rand(8, 3, 5, 5, generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic", align_corners=True).clamp(-1, 1)
    latents = model.vae.encode(images.to(weight))[0].float() * model.config.vae.latent_scale
    target, rows = (rearrange(x, "n c h w -> (n h w) c") for x in (torch.nn.functional.avg_pool2d(images, factor), latents.cpu()))
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    solution = torch.linalg.lstsq(rows, target).solution
    return solution[:-1].tolist(), solution[-1].tolist()


def _with_pictures(execute, model, noise_shape, conds: dict, *arguments, **keywords):
    """Around the host's loading of what a sampler needs: the autoencoder has to be there before the denoiser."""
    conds = {name: [with_pictures(extra) for extra in each] for name, each in conds.items()}
    return execute(model, noise_shape, conds, *arguments, **keywords)


def autoencoder_dtype(device: torch.device) -> torch.dtype:
    """The type of the autoencoder and the encoders: the host's choice. On a CPU, where it always says float32, the pack's own
    (bfloat16 where the processor computes in it: twice as fast), unless the user asked the host for float32."""
    chosen = mm.vae_dtype(device, [torch.bfloat16, torch.float32])
    return chosen if device.type != "cpu" or args.fp32_vae or args.force_fp32 else default_dtype(device)


def use(patchers: list, memory_required: int = 0) -> None:
    """Have the host bring these models to their device, parts of them if it is short of memory.

    What hosts leave behind in that case are parameters that belong to a module with children (the tower's embeddings, the stored
    text): they are small and follow here.
    """
    mm.load_models_gpu(patchers, memory_required=memory_required)
    for patcher in patchers:
        for module in patcher.model.modules():
            for parameter in module._parameters.values():
                if parameter is not None and parameter.device != patcher.load_device and not hasattr(module, "comfy_cast_weights"):
                    parameter.data = parameter.data.to(patcher.load_device)


_kept: WeakKeyDictionary[object, dict] = WeakKeyDictionary()      # run of a graph -> what each loader gave last


def kept(hidden, load: Callable[[str | os.PathLike], T], path: str | os.PathLike) -> T:
    """`load(path)`, which stays for what follows in this run of the graph, that of a node's `hidden`: the elements of a list come one by
    one. The host lets go of a run at the next one and at "Free memory"."""
    run = getattr(hidden, "dynprompt", None)
    held = {} if run is None else _kept.setdefault(run, {})
    if held.get(load, (None,))[0] != path:
        held.pop(load, None)                                       # before another takes its room
        held[load] = path, load(path)
    return held[load][1]


def load_whole(path: str | os.PathLike) -> comfy.model_patcher.ModelPatcher:
    """A checkpoint's DeblurModel in one piece, still to be brought to its device (`use`)."""
    state, model = checkpoint.fitting(path, comfy.ops.disable_weight_init)
    device = mm.get_torch_device()
    _assign(model, state, autoencoder_dtype(device))
    if device.type == "cpu":
        accelerate(model.unet, packed=False)
    return _patcher(model, device)


class HostDeblurrer:
    """A Deblurrer whose weights the host's memory manager holds, with the host's progress bar, preview and Cancel: jobs take its frames
    from `stream`."""

    def __init__(self, path: str, prior: str | os.PathLike | None = None, hidden=None):
        self.hidden, self.patcher = hidden, kept(hidden, load_whole, path)              # of which the host keeps only a weak reference
        use([self.patcher], WORKING_MEMORY)
        self.deblurrer = Deblurrer(self.patcher.model, device=self.patcher.load_device, prior=prior, move=False)
        self.deblurrer.prior.load = self._load_prior

    def _load_prior(self, path: str | os.PathLike) -> Prior:
        prior = kept(self.hidden, load_prior, path)
        use([self.patcher, prior.patcher], WORKING_MEMORY)
        return prior

    deblur = Deblurrer.deblur                                      # the same, of this stream

    def stream(self, frames, options=None, *, total=None, progress=None, **keywords):
        bar = Bar(total or 1)

        @functools.cache
        def colors():
            return [torch.tensor(part) for part in latent_rgb(self.deblurrer.model)]

        def tick(state):
            picture = None
            if state.latents is not None and bar.wants_picture():                # the middle frame of what is being sampled
                factors, bias = colors()
                middle = rearrange(state.latents[0, :, state.latents.shape[2] // 2].float().cpu(), "c h w -> h w c")
                picture = (middle @ factors + bias) * 0.5 + 0.5
            bar.move(state.position, picture, total)

        done = keywords.get("first_frame", 0)
        for chunk in self.deblurrer.stream(frames, options, total=total, progress=tick, **keywords):
            done += len(chunk)
            bar.move(done, chunk[-1], total)
            yield chunk


def load_prior(path: str | os.PathLike) -> Prior:
    """The pretrained prior for the host's device; `prior.patcher` is still to be brought there (`use`)."""
    device = mm.get_torch_device()
    prior = Prior.load(path, "cpu", autoencoder_dtype(device))
    prior.device, prior.patcher = device, _patcher(prior.network, device)
    return prior


def prior_memory(prior: Prior, height: int, width: int) -> float:
    """Bytes that the prior needs beside its weights for a frame of this size (pixels)."""
    return PRIOR_VALUES * prior.pixels_at_once(height, width) * mm.dtype_size(prior.network.dtype)


def _assign(model: DeblurModel, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Put the tensors in `state` into a model on the meta device, and leave out the parts that have none there (some hosts would fill
    their linear layers with zeros)."""
    held = {name.partition(".")[0] for name in state}
    for part in [name for name, _ in model.named_children() if name not in held]:
        setattr(model, part, None)
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    model.load_state_dict(state, strict=False, assign=True)
    drop_untrained_branch(model)
    model.eval().requires_grad_(False)


def _part(model: DeblurModel, name: str) -> DeblurModel:
    """A DeblurModel that shares the child `name` and has no other part: what of it the host loads and unloads together."""
    part = copy.copy(model)
    part._modules, part._parameters = {name: getattr(model, name)}, {}
    return part


def _patcher(model: torch.nn.Module, device: torch.device) -> comfy.model_patcher.ModelPatcher:
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=mm.vae_offload_device())


def _video_vae(model: DeblurModel, decoder: Decoder) -> comfy.sd.VAE:
    """A host VAE object around our autoencoder. It is built from a minimal image autoencoder first, so that every attribute that this
    version of the host expects is there, whichever they are."""
    layout = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1],
              "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    settings = {"ddconfig": layout, "embed_dim": 4}
    minimal = comfy.ldm.models.autoencoder.AutoencoderKL(**copy.deepcopy(settings)).state_dict()
    vae = comfy.sd.VAE(sd=minimal, config={"params": settings}, dtype=decoder.encoders.dtype)
    config = decoder.encoders.config
    factor = config.vae.factor
    vae.first_stage_model = VideoAutoencoder(model)
    vae.patcher = _patcher(vae.first_stage_model, vae.device)
    vae.size = None
    vae.latent_dim, vae.not_video, vae.latent_channels = 3, False, config.vae.latent_channels
    vae.upscale_ratio = vae.downscale_ratio = (lambda n: n, factor, factor)
    vae.upscale_index_formula = vae.downscale_index_formula = (1, factor, factor)

    def memory(shape, dtype, values, scale):
        frames = shape[2] if len(shape) == 5 else shape[0]
        alive = min(FRAMES_PER_CHUNK, frames) * values * config.vae.channels / config.vae.patch_size**2
        return (alive + 3 * frames) * shape[-2] * shape[-1] * scale**2 * mm.dtype_size(dtype)         # 3: all frames are there as pixels

    vae.memory_used_encode = lambda shape, dtype: memory(shape, dtype, ENCODER_VALUES, 1)
    vae.memory_used_decode = lambda shape, dtype: memory(shape, dtype, DECODER_VALUES, factor)
    vae.vdd_decoder = decoder
    return vae


def chunk_of(tiling: Tiling, height: int, width: int) -> int:
    """How many frames of this size (pixels) pass an encoder or the decoder together."""
    return min(FRAMES_PER_CHUNK, tiling.chunk(height, width))


def encode_memory(config: ModelConfig, tiling: Tiling, height: int, width: int, dtype: torch.dtype) -> float:
    """Bytes that encoding a chunk of frames of this size (pixels) needs beside the weights."""
    side, frames = [min(n, tiling.tile or n) for n in (height, width)], chunk_of(tiling, height, width)
    values = frames * side[0] * side[1] * ENCODER_VALUES * config.vae.channels / config.vae.patch_size**2
    return values * mm.dtype_size(dtype) + 2 * frames * 3 * height * width * 4                  # float32 pixels and their padded copy


def decode_memory(config: ModelConfig, frames: int, height: int, width: int, dtype: torch.dtype, fidelity: bool) -> float:
    """Bytes that decoding a chunk of frames of this size (pixels) needs beside the weights, with or without the fidelity branch."""
    values = frames * DECODER_VALUES * config.vae.channels
    if fidelity:
        of_vae, of_branch = FIDELITY_VALUES
        branch = config.vae.fidelity.channels[-1] if config.vae.fidelity else 0
        values = max(values, (frames + 0.5) * (of_vae * config.vae.channels + of_branch * branch))
    return values / config.vae.patch_size**2 * height * width * mm.dtype_size(dtype)


def codes_of(encoders: Encoders, model: DeblurModel, blurred: Tensor, prior: Tensor | None, size: tuple[int, int],
             turn: Orientation = ORIENTATIONS[0], copies: int = 1) -> Codes:
    """What guides the decoding of blurred frames, and of the prior's (IMAGE each), in this orientation, one of so many; `size` is theirs,
    padded."""
    size = turn.size(*size)

    def pixels(frames: Tensor, numbers: range, tile: Box) -> Tensor:
        """A tile of these frames, as the model takes them."""
        rows, columns = turn.source(tile, size)
        part = frames[numbers.start:numbers.stop, rows, columns]
        return turn.turn(to_pixels(list(rgb_of(part)), encoders.config.divisor, encoders.device))

    return Codes(model, functools.partial(pixels, blurred), None if prior is None else functools.partial(pixels, prior), size, copies)


def need_deblur_vae(vae) -> Decoder:
    """What decoding with a VAE of this pack needs. Raises UserError for any other VAE."""
    decoder = getattr(vae, "vdd_decoder", None)
    if decoder is None:
        kind = "an image VAE, which would decode the first frame only" if getattr(vae, "latent_dim", 2) == 2 else "another model's VAE"
        raise UserError(f"this is {kind}: connect the VAE output of 'Load Deblur Checkpoint'")
    return decoder
