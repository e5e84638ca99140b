"""A tiny run for the training's tests: data made on the spot, the smallest model, seconds instead of hours."""
import dataclasses
import json
from pathlib import Path

import numpy as np
from conftest import tiny_config
from PIL import Image

STAGES = [
    {"kind": "autoencoder", "steps": 2, "batch": 4, "frames": 1, "crop": 32, "lr": 1e-3},
    {"kind": "denoiser", "steps": 2, "batch": 4, "frames": 2, "crop": 32, "lr": 1e-3},
    {"kind": "stage1", "steps": 2, "batch": 4, "frames": 2, "crop": 32, "lr": 1e-3, "last_timestep": 0.5, "loss": {"latent": 1.0}},
    {"kind": "stage2", "steps": 2, "batch": 4, "frames": 2, "crop": 32, "lr": 1e-3},
    {"kind": "stage3", "steps": 2, "batch": 4, "frames": 2, "crop": 32, "lr": 1e-3, "last_timestep": 0.5,
     "loss": {"gradient": 0.1, "fft": 0.1, "frame_difference": 0.1}},
]
NO_VALIDATION = {"every": 0, "pairs": "", "photos": ""}
BLUR = {"extent": [1.0, 4.0], "max_subsamples": 5}


def make_data(root: Path) -> Path:
    """Two photographs to train on, one and a GoPro sequence to validate on."""
    rng = np.random.default_rng(0)
    photos = {"train_photos/a.png": 96, "train_photos/b.png": 80, "val_photos/c.png": 96}
    frames = {f"gopro_layout/test/SEQ/{part}/{i:06d}.png": 32 for part in ("blur", "sharp") for i in range(3)}
    for name, size in (photos | frames).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.BICUBIC).save(path)
    return root


def write_config(folder: Path, stages: list[dict] | None = None, **changes) -> Path:
    """A YAML file (JSON is YAML) of a run over tiny data in `folder`."""
    if not (folder / "data").exists():
        make_data(folder / "data")
    config = {"model": dataclasses.asdict(tiny_config()), "root": str(folder / "data"), "out": str(folder / "run"), "threads": 1,
              "log_every": 1000, "save_every": 2, "ema": 0.9, "data": {"blur": BLUR},
              "validation": {"every": 0, "clips": 1, "frames": 2, "crop": 32}, "stages": stages or STAGES} | changes
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def losses(run: Path) -> list[tuple]:
    """(stage, step, loss) of every logged step, in order."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(r["stage"], r["step"], r["loss"], r["norm"]) for r in records if r["type"] == "step"]
