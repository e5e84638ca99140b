"""A running server: what it lists, every shipped workflow, previews, Cancel, resume, errors, unloading."""
from __future__ import annotations

import json
import shutil
import time
import urllib.parse
from pathlib import Path

import pytest
from host.client import error_of
from host.convert import to_prompt

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
TINY = "vdd-tiny.safetensors"
BUILT_IN = "vdd-small (built in)"


def graph(frames: int = 5, sampler: dict | None = None, checkpoint: str = TINY, size: int = 48) -> dict:
    """Load Image, repeated -> encode -> sampler -> decode -> preview. The checkpoint is node 4, the sampler node 6."""
    sampler = sampler or {"class_type": "VDDSampler", "inputs": {
        "model": ["4", 0], "positive": ["5", 0], "negative": ["5", 1], "latent": ["5", 2], "seed": 1, "steps": 2, "guidance": 1.0,
        "eta": 0.0, "window": 16, "overlap": 4}}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "upscale_method": "area", "width": size, "height": size,
                                                     "crop": "center"}},
        "3": {"class_type": "VDDSynthesizeBlur", "inputs": {"image": ["2", 0], "frames": frames, "strength": 4.0, "seed": 0}},
        "4": {"class_type": "VDDLoadCheckpoint", "inputs": {"checkpoint": checkpoint, "dtype": "auto"}},
        "5": {"class_type": "VDDEncodeClip", "inputs": {"frames": ["3", 0], "encoders": ["4", 2], "vae": ["4", 1]}},
        "6": sampler,
        "7": {"class_type": "VDDDecode", "inputs": {"latent": ["6", 0], "vae": ["4", 1], "blurred": ["3", 0], "fidelity": 1.0,
                                                    "color": "wavelet", "tile": -1}},
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
    }


def ksampler(model: list, steps: int = 2) -> dict:
    return {"class_type": "KSampler", "inputs": {
        "model": model, "positive": ["5", 0], "negative": ["5", 1], "latent_image": ["5", 2], "seed": 1, "steps": steps, "cfg": 1.0,
        "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}}


def pixels(host, image: dict):
    """A picture that a node showed, as an array."""
    import io

    import numpy as np
    from PIL import Image
    data = host.raw("/view?" + urllib.parse.urlencode(image))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64)


@pytest.fixture(scope="module")
def object_info(host) -> dict:
    return host.get("/object_info")


def test_nodes_are_listed_with_tooltips(object_info):
    ours = {k: v for k, v in object_info.items() if k.startswith("VDD")}
    assert len(ours) == 10
    for node in ours.values():
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert all(spec[1].get("tooltip", "").endswith(".") for spec in inputs.values()), node["name"]
        assert node["category"] == "video/deblur" and node["description"]


def test_help_translations_and_templates_are_served(host, object_info):
    served = [n for n in object_info["VDDSampler"]["python_module"].split(".")[1:] if n]
    folder = urllib.parse.quote(".".join(served))
    for name in (k for k in object_info if k.startswith("VDD")):
        text = host.raw(f"/extensions/{folder}/docs/{name}.md").decode()
        assert text.startswith("# "), name
    words = host.get("/i18n")
    assert words["zh"]["nodeDefs"]["VDDDeblurVideo"]["display_name"] == "视频去模糊"
    templates = host.get("/workflow_templates")
    assert any(set(names) >= {w.stem for w in WORKFLOWS} for names in templates.values())
    for pack in templates:
        for workflow in WORKFLOWS:
            host.raw(f"/api/workflow_templates/{urllib.parse.quote(pack)}/{workflow.name}")
            assert host.raw(f"/api/workflow_templates/{urllib.parse.quote(pack)}/{workflow.stem}.jpg")[:2] == b"\xff\xd8"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow_runs(host, object_info, path):
    workflow = json.loads(path.read_text())
    lacking = {n["type"] for n in workflow["nodes"]} - set(object_info) - {"Note", "MarkdownNote"}
    if lacking:
        pytest.skip(f"ComfyUI {'.'.join(map(str, host.version))} has no {', '.join(sorted(lacking))}")
    prompt = to_prompt(workflow, object_info)
    for node in prompt.values():
        if node["inputs"].get("checkpoint") == BUILT_IN and not (ROOT / "vdd_model/weights/vdd-small.safetensors").exists():
            node["inputs"]["checkpoint"] = TINY
        if node["class_type"] == "VDDSampler":
            node["inputs"]["steps"] = min(node["inputs"]["steps"], 4)        # the shipped 50 only cost time here
    outputs = host.run(prompt, timeout=900)                                  # a photograph with the prior, beside other work
    shown = [item for out in outputs.values() for item in out.get("images", [])]
    assert shown
    for item in shown:
        assert len(host.raw("/view?" + urllib.parse.urlencode(item))) > 500


def test_previews_and_progress_while_sampling(host):
    since = time.monotonic()
    prompt = graph()
    prompt["6"]["inputs"]["steps"] = 4
    outputs = host.run(prompt)
    assert len(outputs["8"]["images"]) == 5
    assert host.count("preview", since) >= 3
    assert host.count("progress", since) >= 4


def test_the_bar_moves_within_a_window(host):
    """One window of 12 frames in 12 steps: with each step, and a picture of the latents; the figures are printed."""
    prompt = {key: node for key, node in graph(frames=12, size=96).items() if key in "123"}
    prompt["4"] = {"class_type": "VDDDeblurFrames", "inputs": {"frames": ["3", 0], "checkpoint": TINY, "steps": 12, "guidance": 1.0,
                                                               "fidelity": 1.0, "color": "wavelet", "seed": 0}}
    prompt["5"] = {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}}
    since = time.monotonic()
    host.run(prompt)
    moves = [(at, data["value"] / data["max"]) for at, kind, data in list(host.events)
             if kind == "progress" and at >= since and data.get("node") == "4"]
    within, seconds = {part for _, part in moves if 0 < part < 1}, moves[-1][0] - moves[0][0]
    kinds = {kind: host.count(kind, since) for kind in ("progress", "progress_state", "executing", "preview", "text")}
    print(f"{len(moves)} moves of the bar in {seconds:.1f} s, {len(within)} places between start and end; events of all kinds: {kinds}, "
          f"{sum(kinds.values()) / seconds:.1f} a second")
    assert len(within) >= 4 and host.count("preview", since) >= 2          # the host passes on some of a second's ticks, not all


def test_a_list_loads_its_model_once(host):
    prompt = {key: node for key, node in graph(frames=3).items() if key in "123"}
    prompt["4"] = {"class_type": "RebatchImages", "inputs": {"images": ["3", 0], "batch_size": 1}}
    prompt["5"] = {"class_type": "VDDDeblurFrames", "inputs": {"frames": ["4", 0], "checkpoint": TINY, "steps": 1, "guidance": 1.0,
                                                               "fidelity": 1.0, "color": "wavelet", "seed": 0, "prior": "none"}}
    prompt["6"] = {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}}
    before = host.log.read_text().count("Requested to load DeblurModel")
    assert len(host.run(prompt)["6"]["images"]) == 3
    assert host.log.read_text().count("Requested to load DeblurModel") == before + 1


def test_context_windows_equal_one_long_window(host, object_info):
    one = pixels(host, host.run(graph(sampler=ksampler(["4", 0])))["8"]["images"][2])
    windowed = graph(sampler=ksampler(["9", 0]))
    windowed["9"] = {"class_type": "ContextWindowsManual", "inputs": {
        "model": ["4", 0], "context_length": 16, "context_overlap": 4, "context_schedule": "standard_static", "context_stride": 1,
        "closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": False, "cond_retain_index_list": "",
        "split_conds_to_windows": False, "latent_retain_index_list": "", "causal_window_fix": False}}
    known = {name for group in object_info["ContextWindowsManual"]["input"].values() for name in group}
    windowed["9"]["inputs"] = {k: v for k, v in windowed["9"]["inputs"].items() if k in known}
    same = pixels(host, host.run(windowed)["8"]["images"][2])
    assert abs(one - same).max() <= 1
    windowed["9"]["inputs"].update(context_length=4, context_overlap=2)
    cut = pixels(host, host.run(windowed)["8"]["images"][2])
    assert abs(one - cut).mean() < 24                              # another window sees other neighbours: close, not equal


def deblur_video(name: str, **inputs) -> dict:
    return {"1": {"class_type": "LoadVideo", "inputs": {"file": name}},
            "2": {"class_type": "VDDDeblurVideo", "inputs": {
                "video": ["1", 0], "checkpoint": TINY, "steps": 1, "guidance": 1.0, "fidelity": 1.0, "color": "wavelet", "seed": 0,
                **inputs}},
            "3": {"class_type": "SaveVideo", "inputs": {"video": ["2", 0], "filename_prefix": "video/x", "format": "auto",
                                                        "format.codec": "auto", "codec": "auto"}}}


def test_cancel_stops_within_a_chunk_and_the_next_run_goes_on(host):
    """Interrupted in the middle of a long clip; queued again, it ends with every frame."""
    from vdd_model.media.video import probe
    prompt = deblur_video("long.mp4", steps=4, window=8, overlap=2)
    since = time.monotonic()
    running = host.post(prompt)
    part = host.base / "output" / "deblurred"
    end = time.monotonic() + 300
    while not any(p.stat().st_size for p in part.glob("*.part/*.raw")) and time.monotonic() < end:
        time.sleep(0.1)
    asked = time.monotonic()
    host.raw("/interrupt", {})
    entry = host.wait(running)
    latency = time.monotonic() - asked
    kinds = [kind for kind, _ in entry["status"]["messages"]]
    assert "execution_interrupted" in kinds
    assert latency < 10
    assert list(part.glob("*.part")) and not list(part.glob("long-*.mp4"))
    print(f"cancel latency {latency:.2f} s, started {asked - since:.1f} s before")
    assert host.texts("2", since)[-1].startswith("unfinished work is kept")
    host.run(prompt)
    assert "goes on after" in host.texts("2", since)[-1]
    assert "goes on after" in host.log.read_text()
    (done,) = part.glob("long-*.mp4")
    clip = probe(done)
    assert clip.num_frames == 120 and str(clip.rate) == "24000/1001"
    assert not list(part.glob("*.part"))


def test_a_changed_run_leaves_one_result(host):
    """What Cancel left goes when the clip is run with other settings; figures of what lies on the disk are printed."""
    folder, prompt = host.base / "output" / "deblurred", deblur_video("long.mp4", steps=4, window=8, overlap=2, seed=5)
    before = set(folder.glob("*"))

    def left() -> dict[str, int]:
        return {path.name: sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")))
                for path in set(folder.glob("*")) - before}

    running, end = host.post(prompt), time.monotonic() + 300
    while not any(path.is_dir() and any(f.stat().st_size for f in path.glob("*.raw")) for path in folder.glob("*.part")):
        assert time.monotonic() < end
        time.sleep(0.1)
    host.raw("/interrupt", {})
    host.wait(running)
    cancelled = left()
    since = time.monotonic()
    host.run(deblur_video("long.mp4", steps=1, window=8, overlap=2, seed=6))
    changed = left()
    print(f"after Cancel: {cancelled}; after a changed run: {changed}")
    assert len(cancelled) == 1 and next(iter(cancelled)).endswith(".part")
    assert len(changed) == 1 and next(iter(changed)).endswith(".mp4")
    assert "a cancelled run of this clip with other settings had left" in host.texts("2", since)[-1]


def test_a_clip_with_a_long_name(host):
    name = "\u6e05" * 78 + ".mp4"                                          # 238 bytes
    shutil.copy(host.base / "input" / "blurred.mp4", host.base / "input" / name)
    host.run(ours_alone(name))
    assert len(list((host.base / "output" / "deblurred").glob("\u6e05*.mp4"))) == 1


def ours_alone(name: str, **inputs) -> dict:
    """Load -> Deblur Video -> a picture of its first frame."""
    prompt = deblur_video(name, **inputs)
    prompt["3"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["2", 0]}}
    prompt["4"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["3", 0], "batch_index": 0, "length": 1}}
    prompt["5"] = {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}}
    return prompt


def test_a_clip_with_transparency(host):
    import numpy as np
    from media_tools import pattern, save_clip

    from vdd_model.media.video import probe
    save_clip(host.base / "input" / "clear.mov", [pattern(i) for i in range(5)], codec="prores_ks", pix_fmt="yuva444p10le",
              alpha=np.full((48, 64), 0.5, np.float32), options={"profile": "4"})
    host.run(ours_alone("clear.mov"))
    (found,) = (host.base / "output" / "deblurred").glob("clear-*")
    clip = probe(found)
    assert found.suffix == ".mov" and clip.has_alpha and clip.num_frames == 5
    assert "prores" in host.fail(deblur_video("clear.mov"))           # as the help page says: Save Video's .mp4 cannot take it


def test_a_deleted_result_is_made_again(host):
    """Only what comes after the node is changed, so the host would take the node's output from its memory."""
    prompt = ours_alone("blurred.mp4", seed=11)
    folder = host.base / "output" / "deblurred"
    others = set(folder.glob("*"))
    host.run(prompt)
    (found,) = set(folder.glob("*")) - others
    before = found.stat().st_mtime_ns
    prompt["4"]["inputs"]["batch_index"] = 1
    host.run(prompt)
    assert found.stat().st_mtime_ns == before
    found.unlink()
    prompt["4"]["inputs"]["batch_index"] = 2
    host.run(prompt)
    assert found.exists()


def test_a_trimmed_video_is_found_again(host, object_info):
    from vdd_model.media.video import probe
    if "Video Slice" not in object_info:
        pytest.skip("this ComfyUI does not trim videos")
    prompt = ours_alone("long.mp4", seed=12)
    prompt["6"] = {"class_type": "Video Slice", "inputs": {"video": ["1", 0], "start_time": 1.0, "duration": 0.5, "strict_duration": False}}
    prompt["2"]["inputs"]["video"] = ["6", 0]
    folder = host.base / "output" / "deblurred"
    before = set(folder.glob("*"))
    host.run(prompt)
    (found,) = set(folder.glob("*")) - before
    written = found.stat().st_mtime_ns
    assert found.name.startswith("long-") and probe(found).num_frames == 12
    host.raw("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)
    host.run(prompt)
    assert set(folder.glob("*")) - before == {found} and found.stat().st_mtime_ns == written


def test_memory_does_not_grow_with_the_clip(host):
    """Peak of the server for 60 and for 600 frames through the one-node way; kept in memory, the longer clip would take 187 MB more."""
    import torch

    from vdd_model.media.video import write_video
    clip = torch.rand(8, 120, 160, 3, generator=torch.Generator().manual_seed(0)).clamp(0.3, 0.7)
    peaks = {}
    for count in (60, 600):
        write_video(host.base / "input" / f"clip{count}.mp4", (clip[i % 8] for i in range(count)), 24)
        running, peak = host.post(deblur_video(f"clip{count}.mp4")), 0
        while running not in host.get(f"/history/{running}"):
            peak = max(peak, host.memory())
            time.sleep(0.05)
        assert not error_of(host.wait(running))
        peaks[count] = peak
    print(f"peak memory: 60 frames {peaks[60] / 2**20:.0f} MiB, 600 frames {peaks[600] / 2**20:.0f} MiB")
    assert peaks[600] - peaks[60] < 80 * 2**20


def test_a_broken_and_a_missing_checkpoint_are_explained(host):
    assert "PyTorch pickle" in host.fail(graph(checkpoint="broken.safetensors"))


def test_errors_are_titled_by_their_own_name(host):
    """And not by the path of the installation."""
    assert host.fail(graph(checkpoint="broken.safetensors")).startswith("CheckpointError: ")
    (host.base / "input" / "broken.mp4").write_bytes(b"no video" * 100)
    assert host.fail(ours_alone("broken.mp4")).startswith("MediaError: ")
    assert host.fail(ours_alone("blurred.mp4", steps=2, ensemble=4)).startswith("ConfigError: ensemble must be 1 with more than one step")


PATCHES = {
    "FreeU": {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}, "PerturbedAttentionGuidance": {"scale": 50.0},
    "HyperTile": {"tile_size": 256, "swap_size": 2, "max_depth": 0, "scale_depth": False}, "TomePatchModel": {"ratio": 0.3},
    "SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0}, "NAGuidance": {"nag_scale": 50.0, "nag_alpha": 1.0, "nag_tau": 10.0},
    "SkipLayerGuidanceDiT": {"double_layers": "7", "single_layers": "7", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0,
                             "rescaling_scale": 0.0},
    "PatchModelAddDownscale": {"block_number": 1, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0,
                               "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"},
}


REFUSED = {"SelfAttentionGuidance": "(Self-Attention Guidance) works on single pictures only",
           "SkipLayerGuidanceDiT": "changes layers (dit)"}
WITHOUT_EFFECT = {"HyperTile", "TomePatchModel"}


@pytest.mark.parametrize("node", PATCHES)
def test_what_changes_layers_has_an_effect_or_is_refused(host, object_info, node):
    """Refused in one sentence. HyperTile and ToMe look for attention at full resolution, which this network has not: they run through."""
    if node not in object_info:
        pytest.skip(f"this ComfyUI has no {node}")

    def prompt(model: list) -> dict:
        return graph(sampler={**ksampler(model), "inputs": {**ksampler(model)["inputs"], "cfg": 2.0}})

    patched = {**prompt(["9", 0]), "9": {"class_type": node, "inputs": {"model": ["4", 0], **PATCHES[node]}}}
    if node in REFUSED:
        assert host.fail(patched).startswith(f"UserError: a node before the sampler {REFUSED[node]}")
        return
    plain, changed = (pixels(host, host.run(each)["8"]["images"][2]) for each in (prompt(["4", 0]), patched))
    assert (abs(plain - changed).max() > 1) == (node not in WITHOUT_EFFECT)              # 1 is rounding


def test_unloading_and_running_again(host):
    first = pixels(host, host.run(graph())["8"]["images"][0])
    host.raw("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)
    again = pixels(host, host.run(graph())["8"]["images"][0])
    assert abs(first - again).max() <= 1


def test_the_log_is_clean(host):
    log = host.log.read_text()
    assert "IMPORT FAILED" not in log
    assert "unet missing" not in log and "unet unexpected" not in log
