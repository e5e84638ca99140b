"""The real host: these tests run when COMFYUI_PATH names a ComfyUI folder (COMFYUI_PYTHON: its interpreter) and are skipped otherwise."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FRAMES, HEIGHT, WIDTH = 7, 48, 64


def comfyui() -> tuple[Path, str]:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("needs a real ComfyUI: set COMFYUI_PATH to its folder and COMFYUI_PYTHON to its interpreter")
    return Path(path), os.environ.get("COMFYUI_PYTHON", sys.executable)


def inside(*arguments: str) -> str:
    """Output of inside.py, run by the host's interpreter in the host's folder."""
    path, python = comfyui()
    done = subprocess.run([python, str(HERE / "inside.py"), *arguments], cwd=path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def checked(tiny_checkpoint) -> dict:
    """Results of the checks that need no server."""
    return json.loads(inside("checks", str(ROOT), str(tiny_checkpoint)).splitlines()[-1])


def put_prior(folder: Path) -> None:
    """The pretrained prior that VDD_PRIOR names, else a narrow random one: only that frames pass is tested."""
    import torch

    from vdd_model.checkpoint.maxim import FILE_NAME
    from vdd_model.checkpoint.tensorfile import write_tensors
    from vdd_model.networks.maxim import Maxim
    if given := os.environ.get("VDD_PRIOR"):
        (folder / FILE_NAME).symlink_to(given)
        return
    torch.manual_seed(0)
    state = {name: torch.randn_like(tensor) * 0.1 for name, tensor in Maxim((4, 4, 4)).state_dict().items()}
    write_tensors(folder / FILE_NAME, state, {"vdd.prior": "maxim"})


@pytest.fixture(scope="session")
def host(tiny_checkpoint, tmp_path_factory):
    """A running server whose folders hold the pack twice (under two other names), a small clip and stand-ins for the core's models."""
    import torch
    from host.client import Host

    from vdd_model.measure.motion import camera_shake
    from vdd_model.media.video import write_video

    path, python = comfyui()
    base = tmp_path_factory.mktemp("host")
    for folder in ("custom_nodes", "models/vdd", "input"):
        (base / folder).mkdir(parents=True)
    for name in ("renamed-pack", "second-copy"):
        (base / "custom_nodes" / name).symlink_to(ROOT, target_is_directory=True)
    shutil.copy(tiny_checkpoint, base / "models" / "vdd" / "vdd-tiny.safetensors")
    put_prior(base / "models" / "vdd")
    (base / "models" / "vdd" / "broken.safetensors").write_bytes(b"PK\x03\x04 a pickle")
    shutil.copy(path / "input" / "example.png", base / "input" / "example.png")
    photo = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    blurred, _ = camera_shake(photo, FRAMES, 4.0)
    write_video(base / "input" / "blurred.mp4", list(blurred), Fraction(24))
    long = blurred[torch.arange(120) % FRAMES]
    write_video(base / "input" / "long.mp4", list(long), Fraction(24000, 1001))
    inside("models", str(base / "models"))
    server = Host(path, python, base)
    server.start()
    yield server
    server.stop()
