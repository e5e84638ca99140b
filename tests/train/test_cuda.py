"""The training and inference code on a GPU that is not there: fake tensors carry a device and a type but no values, so a tensor left on
the wrong device, or a copy that the GPU would be waited for, is found on any machine."""
import dataclasses
import types

import pytest
import torch
from conftest import tiny_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from train import stages, start
from train.config import LossConfig, StageConfig, TrainConfig
from train.synthesis import blur, camera
from vdd_model.diffusion.schedule import make_schedule
from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
from vdd_model.networks.layers import channels_last
from vdd_model.networks.model import DeblurModel

CUDA = torch.device("cuda:0")


class BlockingCopies(TorchDispatchMode):
    """Counts the copies between devices that wait for the GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device != out.device and not (kwargs or {}).get("non_blocking"):
            self.count += 1
        return out


@pytest.fixture()
def gpu(monkeypatch):
    """A context in which CUDA tensors can be made; what would need their values or a driver is replaced."""
    real = stages.generator
    monkeypatch.setattr(stages, "generator", lambda device, *key: None if torch.device(device).type == "cuda" else real(device, *key))
    monkeypatch.setattr(stages.StageLoss, "timesteps", lambda self, positions: torch.tensor([5] * len(positions)))
    monkeypatch.setattr(stages.StageLoss, "dropped", lambda self, positions: torch.tensor([False] * len(positions)))
    monkeypatch.setattr(stages, "bool", lambda value: False, raising=False)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **kwargs: self)       # fake parameters cannot be moved
    make_schedule(tiny_config().diffusion)                                               # made once, while tensors have values
    return lambda: FakeTensorMode(allow_non_fake_inputs=True)


def model_on_gpu() -> DeblurModel:
    config = tiny_config()
    with CUDA:
        model = DeblurModel(dataclasses.replace(config, vae=dataclasses.replace(config.vae, thumbnail=True)))
    model.unet.schedule = model.unet.schedule.to(CUDA)                 # as `to` does
    return model


def test_every_kind_of_loss_stays_on_the_gpu_and_never_waits_for_it(gpu, monkeypatch):
    every, cudnn = LossConfig(latent=1.0, gradient=0.1, psnr=0.1, fft=0.1, frame_difference=0.1), []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", cudnn.append)
    with gpu():
        model = start.prepare_model(model_on_gpu(), TrainConfig(stages=(), precision="bfloat16", channels_last=True), CUDA)
        assert cudnn == [False]
        clips = torch.rand(2, 2, 3, 2, 32, 32, device=CUDA)
        for kind, denoise in (("autoencoder", True), ("denoiser", True), ("stage2", True), ("stage3", True), ("stage3", False)):
            stage = StageConfig(kind=kind, steps=1, denoise=denoise, loss=every)
            stages.set_trainable(model, stage)
            loss = stages.StageLoss(model, stage)
            with BlockingCopies() as copies, torch.autocast("cuda", torch.bfloat16):
                terms = loss(*clips, [0, 1])
            assert {term.device for term in terms.values()} == {CUDA} and terms["loss"].dtype == torch.float32
            assert copies.count == 0, kind


@pytest.mark.parametrize("options", [{"guidance": 2.0}, {"fidelity": 0.5, "tile": 32, "tile_overlap": 16}], ids=("whole", "tiles"))
def test_a_clip_is_deblurred_on_the_gpu(gpu, monkeypatch, options):
    monkeypatch.setattr(torch, "isfinite", lambda frame: types.SimpleNamespace(all=lambda: True))
    deblurrer = Deblurrer(DeblurModel(tiny_config()), device="cpu")
    with gpu(), torch.no_grad():
        deblurrer.model, deblurrer.device = channels_last(model_on_gpu()).eval(), CUDA
        for parameter in deblurrer.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        options = DeblurOptions(window=2, overlap=1, scenes="off", repeats="off", **options)      # which look at values, on the CPU
        out = torch.cat(list(deblurrer.stream(torch.rand(3, 40, 48, 3), options, total=3)))
        assert out.shape == (3, 40, 48, 3) and out.dtype == torch.float32 and out.device.type == "cpu"


def test_blur_is_synthesised_on_the_gpu_without_waiting_for_it(gpu, monkeypatch):
    config = blur.BlurConfig(extent=(4.0, 12.0), layers=1.0, noise=1.0, codec=1.0, linear=1.0)
    plan = blur.plan([torch.zeros(3, 60, 70, dtype=torch.uint8)], 0, 0, 2, 32, config)
    with gpu():
        photos = [torch.empty(3, 60, 70, dtype=torch.uint8, device=CUDA)]
        bank = torch.empty(camera.NOISE_BANK, device=CUDA)
        monkeypatch.setattr(camera, "noise_bank", lambda device: bank)           # made once, so it may wait
        with BlockingCopies() as copies:
            assert {x.device for x in blur.render(plan, photos, 32, CUDA)} == {CUDA}
        assert copies.count == 0


def test_a_sample_is_drawn_without_looking_at_the_gpu(monkeypatch):
    monkeypatch.setattr(blur, "render", lambda plan, photos, size, device: (torch.zeros(3, 1, 32, 32),) * 2)
    photos = [torch.zeros(3, 60, 70, dtype=torch.uint8)]
    elsewhere = [photo.to("meta") for photo in photos]                        # reading a value from there fails
    made = blur.synthesize(elsewhere, 0, range(4), num_frames=1, size=32, originals=photos)
    assert [x.shape for x in made] == [(4, 3, 1, 32, 32)] * 2
    with pytest.raises((RuntimeError, NotImplementedError)):
        blur.synthesize(elsewhere, 0, range(4), num_frames=1, size=32)
