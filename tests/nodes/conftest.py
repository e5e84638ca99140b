"""A stand-in for the host: just enough of its modules to import the pack and run its thin nodes without ComfyUI."""
import asyncio
import importlib.util
import shutil
import sys
import types
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch

from vdd_model.media.video import read_clip, write_video

ROOT = Path(__file__).resolve().parents[2]
PACK = "pack_under_test"
TINY = "vdd-tiny.safetensors"


class Cancelled(Exception):
    """What the host raises when the user presses Cancel."""


class Value:
    """An input or output of a schema: its type, id and keywords."""

    def __init__(self, io_type: str, *arguments, **keywords):
        if keywords.pop("advanced", None) is not None and io_type == "BOOLEAN":
            raise TypeError("advanced")
        self.io_type, self.id, self.keywords = io_type, arguments[0] if arguments else None, keywords


def kind(io_type: str) -> SimpleNamespace:
    """io.Image, io.Int, ...: makes inputs and outputs of one type."""
    return SimpleNamespace(Input=partial(Value, io_type), Output=partial(Value, io_type))


@dataclass
class Schema:
    """An old host's schema: it knows no search_aliases."""

    node_id: str
    display_name: str = ""
    category: str = ""
    description: str = ""
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    is_output_node: bool = False


class Node:
    hidden = SimpleNamespace(prompt=None, dynprompt=None)

    @classmethod
    def GET_SCHEMA(cls):                                     # noqa: N802
        return cls.define_schema()


class NodeOutput:
    def __init__(self, *result, ui=None):
        self.result, self.ui = result, ui


class Module(types.ModuleType):
    """A module that has every name: an empty class."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {})
        setattr(self, name, value)
        return value


class ModelPatcher:
    def __init__(self, model, load_device=None, offload_device=None):
        self.model, self.load_device = model, load_device


class VAE:
    def __init__(self, sd=None, config=None, dtype=None):
        self.device, self.vae_dtype = torch.device("cpu"), dtype


class ProgressBar:
    reported: list = []

    def __init__(self, total):
        self.total = total

    def update_absolute(self, value, total=None, preview=None):
        self.reported.append((value, total or self.total, preview))


def optimized_attention(q, k, v, heads, transformer_options=None):
    """(N, S, heads * D) each; entries of q that were cut to pieces find those of k and v in pieces too."""
    q, k, v = (x.reshape(len(q), -1, heads, q.shape[-1] // heads).transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def reshape_mask(mask, shape):
    """The host's for video: any mask stretched to (F, h, w), the same for every channel."""
    mask = mask if mask.ndim == 5 else mask.reshape(1, 1, -1, *mask.shape[-2:])
    return torch.nn.functional.interpolate(mask, size=tuple(shape[2:]), mode="trilinear").expand(shape)


class VideoFromFile:
    def __init__(self, file, start_time=0.0, crop=None):
        self.file, self.start_time, self.__crop = file, start_time, crop

    def get_stream_source(self):
        return self.file

    def get_active_trim_window(self):
        return self.start_time, 0.0

    def get_dimensions(self):
        with av.open(self.file) as container:
            stream = container.streams.video[0]
            return self.__crop[2:] if self.__crop else (stream.width, stream.height)

    def has_pending_frame_edits(self):
        return bool(self.__crop)

    def save_to(self, path):
        if not self.__crop:
            shutil.copy(self.file, path)
            return
        x, y, width, height = self.__crop
        write_video(path, read_clip(self.file)[:, y:y + height, x:x + width], 24)


class VideoFromComponents:
    def __init__(self, components):
        self.components = components

    def get_components(self):
        return self.components


def host_modules(models: Path) -> dict[str, types.ModuleType]:
    names = ("comfy comfy.cli_args comfy.conds comfy.latent_formats comfy.ldm comfy.ldm.models comfy.ldm.models.autoencoder "
             "comfy.ldm.modules comfy.ldm.modules.attention comfy.model_base comfy.model_management comfy.model_patcher comfy.ops "
             "comfy.patcher_extension comfy.sd comfy.supported_models_base comfy.utils comfy.sample comfy.samplers latent_preview "
             "folder_paths comfy_api comfy_api.latest").split()
    modules = {name: Module(name) for name in names}
    for name, module in modules.items():
        module.__path__ = []
        if "." in name:
            setattr(modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    cpu = torch.device("cpu")
    management = modules["comfy.model_management"]
    for name in ("vae_device", "vae_offload_device", "get_torch_device", "unet_offload_device", "intermediate_device"):
        setattr(management, name, lambda: cpu)
    management.throw_exception_if_processing_interrupted = lambda: None
    management.load_models_gpu = lambda models, memory_required=0: None
    management.vae_dtype = lambda device, allowed: torch.float32
    modules["comfy.cli_args"].args = SimpleNamespace(fp32_vae=True, force_fp32=False)       # results are compared in float32
    management.dtype_size = lambda dtype: dtype.itemsize
    modules["comfy.ops"].disable_weight_init = torch.nn
    modules["comfy.model_patcher"].ModelPatcher = ModelPatcher
    modules["comfy.sd"].VAE = VAE
    modules["comfy.ldm.models.autoencoder"].AutoencoderKL = lambda **_: torch.nn.Identity()
    modules["comfy.utils"].ProgressBar, modules["comfy.utils"].reshape_mask = ProgressBar, reshape_mask
    modules["comfy.ldm.modules.attention"].optimized_attention = optimized_attention
    extension = modules["comfy.patcher_extension"]
    extension.WrappersMP = SimpleNamespace(DIFFUSION_MODEL=0, PREPARE_SAMPLING=1)
    extension.WrapperExecutor = SimpleNamespace(new_class_executor=lambda function, *_: SimpleNamespace(execute=function))
    extension.get_all_wrappers = lambda kind, options: []
    paths = modules["folder_paths"]
    paths.models_dir, paths.folder_names_and_paths = str(models), {}
    paths.get_output_directory = lambda: str(models / "output")
    paths.get_temp_directory = lambda: str(models / "temp")

    def add(key, folder):
        found, extensions = paths.folder_names_and_paths.setdefault(key, ([], set()))
        if folder not in found:
            found.append(folder)

    def full_path(key, name):
        return next((str(Path(f) / name) for f in paths.folder_names_and_paths[key][0] if (Path(f) / name).is_file()), None)

    paths.add_model_folder_path, paths.get_full_path = add, full_path
    paths.get_folder_paths = lambda key: paths.folder_names_and_paths[key][0]
    paths.get_filename_list = lambda key: sorted(p.name for f in paths.folder_names_and_paths[key][0] if Path(f).is_dir()
                                                 for p in Path(f).iterdir() if p.suffix in paths.folder_names_and_paths[key][1])
    latest = modules["comfy_api.latest"]
    kinds = {name: kind(name.upper()) for name in ("Image", "Model", "Vae", "Latent", "Conditioning", "Sigmas", "Video", "Int", "Float",
                                                   "String", "Combo", "Boolean")}
    latest.io = SimpleNamespace(Schema=Schema, ComfyNode=Node, NodeOutput=NodeOutput, Custom=kind, Input=Value,
                                Hidden=SimpleNamespace(prompt="PROMPT", dynprompt="DYNPROMPT"), **kinds)
    latest.InputImpl = SimpleNamespace(VideoFromFile=VideoFromFile, VideoFromComponents=VideoFromComponents)
    latest.Types = SimpleNamespace(VideoComponents=SimpleNamespace)
    latest.ui = SimpleNamespace(PreviewImage=lambda image, cls: SimpleNamespace(as_dict=lambda: {"images": [{"filename": "x.png"}]}))
    latest.ComfyExtension = type("ComfyExtension", (), {})
    return modules


def import_pack():
    """The repository's folder as a package of another name, entered by the host's door."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


def forget_pack() -> None:
    for name in [n for n in sys.modules if n == PACK or n.startswith(PACK + ".")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def pack(tmp_path_factory, tiny_checkpoint):
    """The pack inside the stand-in host: `.nodes` by id, `.module(name)`, `.models` (the host's models folder)."""
    models = tmp_path_factory.mktemp("models")
    (models / "vdd").mkdir()
    (models / "vdd" / TINY).write_bytes(tiny_checkpoint.read_bytes())
    (models / "vdd" / "notes.txt").write_text("not a checkpoint")
    stand_ins = host_modules(models)
    saved = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        door = import_pack()
        nodes = asyncio.run(asyncio.run(door.comfy_entrypoint()).get_node_list())
        yield SimpleNamespace(nodes={n.GET_SCHEMA().node_id: n for n in nodes}, models=models, door=door,
                              module=lambda name: sys.modules[f"{PACK}.{name}"], host=stand_ins)
    finally:
        forget_pack()
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@pytest.fixture()
def frames():
    return torch.rand(5, 37, 45, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def vae_and_encoders(pack):
    """The loader without its first output, which needs the host's model classes."""
    native, checkpoint = pack.module("nodes.native"), pack.module("vdd_model.checkpoint.store")
    kept, native.load_denoiser = native.load_denoiser, lambda *_: None
    try:
        return native.load(str(checkpoint.resolve(pack.models / "vdd" / TINY)))[1:]
    finally:
        native.load_denoiser = kept
