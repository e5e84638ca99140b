"""The package as it is installed: a wheel, far from the repository."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from media_tools import save_clip

from vdd_model.checkpoint.store import BUILT_IN
from vdd_model.media.video import probe

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not BUILT_IN["small"].exists(), reason="the built-in weights are not here")
def test_an_installed_wheel_deblurs_a_clip(tmp_path):
    """No sub-package and no weights are left behind; the wheel holds nothing but the two packages."""
    pytest.importorskip("setuptools", minversion="68")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("vdd_model", "train"):                         # a copy: building leaves folders behind
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True, capture_output=True)
    wheel, = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", tmp_path / "there", wheel], check=True, capture_output=True)
    assert {p.name for p in (tmp_path / "there").iterdir() if not p.name.endswith(".dist-info")} <= {"vdd_model", "train", "bin"}
    clip = save_clip(tmp_path / "in.mp4", 3)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "there")}
    code = "import sys, vdd_model; from vdd_model.app.cli import main; print(vdd_model.__file__); sys.exit(main(sys.argv[1:]))"
    result = subprocess.run([sys.executable, "-c", code, "deblur", clip, "-o", tmp_path / "out.mp4", "--device", "cpu"],
                            cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and str(tmp_path / "there") in result.stdout, result.stdout + result.stderr
    assert probe(tmp_path / "out.mp4").num_frames == 3
    for module in ("train", "train.evaluate", "train.data", "vdd_model"):
        assert subprocess.run([sys.executable, "-m", module, "--help"], cwd=tmp_path, env=environment, capture_output=True).returncode == 0
