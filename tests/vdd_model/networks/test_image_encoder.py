"""The two heads, open_clip's weights and open_clip's preprocessing."""
import subprocess
import sys

import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from torchvision.transforms import Compose

from vdd_model.config import TowerConfig, preset
from vdd_model.networks.autoencoder import AutoencoderKL
from vdd_model.networks.image_encoder import MEAN, STD, ImageEncoder, VisionTransformer, preprocess


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (64, 64), (45, 33)])
def test_preprocessing_equals_open_clips(shape):
    images = torch.rand(2, 3, *shape)
    official = image_transform(48, is_train=False, mean=MEAN, std=STD)
    tensor_steps = [t for t in official.transforms if type(t).__name__ in ("Resize", "CenterCrop", "Normalize")]
    assert len(tensor_steps) == 3
    torch.testing.assert_close(preprocess(images * 2 - 1, 48), Compose(tensor_steps)(images), rtol=0, atol=1e-5)


def test_full_size_tower_is_vit_h_14():
    with torch.device("meta"):
        official = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14")).visual.state_dict()
        tower = VisionTransformer(TowerConfig()).state_dict()
    assert {k: v.shape for k, v in tower.items()} == {k: v.shape for k, v in official.items()}


def test_semantic_head_equals_open_clips_encode_image():
    torch.manual_seed(0)
    config = preset("small").tower
    clip = open_clip.CLIP(embed_dim=config.embed_dim, vision_cfg=dict(image_size=config.image_size, patch_size=config.patch_size,
                          width=config.width, layers=config.layers, head_width=config.head_width),
                          text_cfg=dict(context_length=8, vocab_size=10, width=16, heads=2, layers=1)).eval()
    encoder = ImageEncoder(config, preset("small").vae, heads=("semantic",)).eval()
    encoder.semantic_head.load_state_dict(clip.visual.state_dict())
    images = torch.rand(2, 3, 150, 200) * 2 - 1
    with torch.no_grad():
        expected = clip.encode_image(preprocess(images, config.image_size))
        torch.testing.assert_close(encoder.semantic(images), expected, rtol=1e-5, atol=1e-5)


def test_spatial_head_is_the_autoencoders_encoder():
    torch.manual_seed(0)
    config = preset("small")
    vae = AutoencoderKL(config.vae).eval()
    encoder = ImageEncoder(config.tower, config.vae, heads=("spatial",)).eval()
    encoder.spatial_head.load_state_dict({k: v for k, v in vae.state_dict().items() if k.startswith(("encoder.", "quant_conv."))})
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        latents, features = encoder.spatial(images)
        torch.testing.assert_close(latents, vae.encode(images)[0])
    assert [tuple(f.shape) for f in features] == [(2, 32, 16, 24), (2, 64, 8, 12)]


def test_loading_a_model_imports_no_more_than_it_needs():
    code = ("import sys; from vdd_model.inference.pipeline import Deblurrer; Deblurrer('small'); "
            "print({'open_clip', 'torchvision', 'timm', 'kornia', 'sympy', 'torch._dynamo'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
