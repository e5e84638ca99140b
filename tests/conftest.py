"""Fixtures shared by all tests."""
import dataclasses
import os
import re
import zlib
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:              # as many processes as cores: a second thread of each would be in the way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The optional folder of reference values and clips beside the repository (or $VDD_SHARED)."""
    path = Path(os.environ.get("VDD_SHARED", ROOT.parent / "shared"))
    if not (path / "golden").is_dir():
        pytest.skip(f"needs the reference folder {path} (golden/, data/), which is not here")
    return path


def official_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors that a list of the references names."""
    return {line.split()[0]: tuple(map(int, re.findall(r"\d+", line.split(" ", 1)[1]))) for line in path.read_text().splitlines()}


def golden_weights(module, seed: int, scale: float = 1.0) -> dict:
    """The references' random weights: they follow from the names (golden/README.md)."""
    import numpy as np
    import torch
    weights = {}
    for key, value in module.state_dict().items():
        n = np.random.RandomState(zlib.crc32(key.encode()) ^ seed).standard_normal(value.numel()).reshape(value.shape)
        if n.ndim == 1:
            n = 1 + 0.2 * n if key.endswith("weight") else 0.1 * n
        else:
            n = n * scale / np.sqrt(n[0].size)
        weights[key] = torch.from_numpy(n.astype(np.float16)).float()
    return weights


def tiny_config():
    """The smallest configuration that has every part of the model."""
    from vdd_model.config import AdapterConfig, AutoencoderConfig, FidelityConfig, ModelConfig, TowerConfig, UNetConfig
    return ModelConfig(
        name="tiny", null_tokens=2, num_frames=8,
        unet=UNetConfig(dim=16, dim_mult=(1, 2), blocks_per_level=1, num_heads=2, head_dim=8, attn_scales=(0.5,),
                        context_dim=16, image_dim=16, norm_groups=8, estimate=True),
        vae=AutoencoderConfig(channels=8, channel_mult=(1, 2), blocks_per_level=1, patch_size=2, mid_attention=False,
                              norm_groups=4, latent_scale=1.0, fidelity=FidelityConfig(channels=(16, 8), blocks=(1, 1)),
                              detail=True),
        tower=TowerConfig(image_size=32, patch_size=16, width=16, layers=1, head_width=8, embed_dim=16),
        adapter=AdapterConfig(channels=16, heads=2),
    )


def without_zeros(module, std: float = 0.02):
    """The module, with random numbers where training starts at zero, so that every path matters; in eval mode."""
    import torch
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                p.normal_(std=std)
    return module.eval()


def make_tiny_model(seed: int = 0, **vae):
    """A tiny model with random weights everywhere; `vae`: what differs in the configuration of its autoencoder."""
    import torch

    from vdd_model.networks.model import DeblurModel
    torch.manual_seed(seed)
    config = tiny_config()
    return without_zeros(DeblurModel(dataclasses.replace(config, vae=dataclasses.replace(config.vae, **vae)))).requires_grad_(False)


@pytest.fixture(scope="session")
def shaken():
    """The bundled photograph as a shaking camera films it: 6 blurred frames (160, 160), and the sharp ones."""
    from vdd_model.app.demo import bundled_photo
    from vdd_model.measure.motion import camera_shake
    from vdd_model.media.video import read_image
    return camera_shake(read_image(bundled_photo())[0], 6, 8.0, 7, size=(160, 160))


def clip(frames: int, height: int = 24, width: int = 32, seed: int = 0):
    """Smooth moving colors, float32 (F, H, W, 3)."""
    import torch
    x = torch.rand(1, 3, max(2, frames // 4), 4, 4, generator=torch.Generator().manual_seed(seed))
    x = torch.nn.functional.interpolate(x, size=(frames, height, width), mode="trilinear", align_corners=True)
    return x[0].permute(1, 2, 3, 0)


@pytest.fixture()
def tiny_model():
    return make_tiny_model()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    from vdd_model.checkpoint.store import save
    path = tmp_path_factory.mktemp("checkpoint") / "vdd-tiny.safetensors"
    save(make_tiny_model(), path)
    return path
