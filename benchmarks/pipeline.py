"""The whole way, file to file: seconds and peak memory of `small` by stage, and how both grow with steps, pixels and frames.

    python -m benchmarks.pipeline [--full] [--device cpu] [--checkpoint small]
    python -m benchmarks.pipeline --against CHECKOUT        # beside another build: see benchmarks/against.py

Each case runs in a process of its own, as `vdd deblur` would, after a warm-up run (none for 1080p, and without --full for 480p and
720p). Reading and writing happen in threads beside the model: their seconds are those they were busy, and overlap with the others'.
Memory is the process's resident set while a stage ran (on a GPU: what PyTorch had allocated there); kept buffers count, so it rarely
falls. --full measures 256 x 256, 480p and 720p at every number of steps five times, 1080p and 2,000 frames once: hours on a laptop's CPU.
"""
from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import against, common
from benchmarks.against import SIZES

STAGES = ("read", "encode", "denoise", "decode", "color", "write")
BESIDE = ("read", "write")                # in threads of their own


@dataclass(frozen=True)
class Case:
    """One clip deblurred in one way, `runs` times."""

    frames: int
    width: int
    height: int
    steps: int = 1
    dtype: str = "float32"
    runs: int = common.REPEATS
    warmup: int = 1


def resident_mb() -> float:
    """Resident set size of this process, 0 where the system does not say."""
    try:
        import resource
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except (OSError, ImportError):
        return 0.0


class Meter:
    """Seconds and peak memory by stage. `around(stage, function)` is the function, metered."""

    def __init__(self, device: str = "cpu"):
        self.cuda = device.startswith("cuda")
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.memory = dict.fromkeys(STAGES, 0.0)
        self.running: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._note(tuple(self.running))

    def _note(self, stages: Sequence[str]) -> None:
        if self.cuda:
            import torch
            mb = torch.cuda.max_memory_allocated() / 2**20
        else:
            mb = resident_mb()
        for stage in stages:
            self.memory[stage] = max(self.memory[stage], mb)

    def around(self, stage: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def metered(*arguments, **keywords):
            if self.cuda and stage not in BESIDE:
                import torch
                torch.cuda.reset_peak_memory_stats()
            self.running.add(stage)
            started = time.perf_counter()
            try:
                result = function(*arguments, **keywords)
                if self.cuda and stage not in BESIDE:
                    common.synchronize("cuda")
                return result
            finally:
                self.seconds[stage] += time.perf_counter() - started
                self._note((stage,))
                self.running.discard(stage)
        return metered

    def each(self, stage: str, function: Callable) -> Callable:
        """A generator function, metered while it makes an item."""
        def metered(*arguments, **keywords):
            iterator = function(*arguments, **keywords)
            following = self.around(stage, lambda: next(iterator, None))
            while (item := following()) is not None:
                yield item
        return metered

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def run_once(clip: Path, target: Path, deblurrer, options, device: str) -> tuple[float, Meter]:
    """Deblur one file into another; seconds in all, and by stage."""
    from vdd_model.app import jobs
    from vdd_model.inference import pipeline
    from vdd_model.inference import window as inference
    from vdd_model.media.encoding import OutputOptions
    from vdd_model.media.reader import VideoReader
    from vdd_model.media.sinks import VideoSink
    meter = Meter(device)
    run = pipeline._Pass
    places = [(run, "_encode", "encode"), (run, "_denoise", "denoise"), (run, "_decode_chunk", "decode"), (VideoSink, "write", "write"),
              (VideoSink, "finish", "write"), *((module, "to_frames", "color") for module in (pipeline, inference))]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places] + [(VideoReader, "__iter__", VideoReader.__iter__)]
    for owner, name, stage in places:
        setattr(owner, name, meter.around(stage, getattr(owner, name)))
    VideoReader.__iter__ = meter.each("read", VideoReader.__iter__)
    try:
        started = time.perf_counter()
        jobs.run(jobs.Job(clip, target), lambda: deblurrer, options, OutputOptions(), force=True, quiet=True, say=lambda text: None)
        seconds = time.perf_counter() - started
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)
        meter.close()
    return seconds, meter


def run_case(case: Case, clip: Path, folder: Path, checkpoint: str, device: str) -> dict:
    """What one process measures: medians over the runs, in all and by stage."""
    common.as_command_line()
    from vdd_model.inference.pipeline import DeblurOptions, Deblurrer
    deblurrer = Deblurrer(checkpoint, device=device, dtype=common.DTYPES[case.dtype])
    options, target = DeblurOptions(steps=case.steps), folder / "out.mp4"
    for _ in range(case.warmup):
        run_once(clip, target, deblurrer, dataclasses.replace(options, steps=min(case.steps, 2)), device)
    results = [run_once(clip, target, deblurrer, options, device) for _ in range(case.runs)]
    timing = common.Timing(tuple(seconds for seconds, _ in results))
    middle = {stage: common.Timing(tuple(max(meter.seconds[stage], 1e-9) for _, meter in results)).median for stage in STAGES}
    return {"seconds": timing.seconds, "stages": middle, "memory": {s: max(m.memory[s] for _, m in results) for s in STAGES},
            "tiling": deblurrer_tiling(case, deblurrer)}


def deblurrer_tiling(case: Case, deblurrer) -> str:
    """How the frames were cut."""
    from vdd_model.inference.tiles import make_tiling
    return str(make_tiling(None, None, case.height, case.width, deblurrer.model.config.divisor))


def in_process(case: Case, folder: Path, checkpoint: str, device: str) -> dict:
    """`run_case` in a fresh process; the clip is made by another one."""
    clip = folder / f"{case.frames}-{case.width}x{case.height}.mp4"
    if not clip.exists():
        subprocess.run([sys.executable, "-c", "import sys; from pathlib import Path; from benchmarks.memory import make_clip; "
                        "make_clip(Path(sys.argv[1]), *map(int, sys.argv[2:]))", str(clip),
                        *map(str, (case.frames, case.width, case.height))], check=True)
    request = json.dumps({"case": dataclasses.asdict(case), "clip": str(clip), "folder": str(folder), "checkpoint": checkpoint,
                          "device": device})
    done = subprocess.run([sys.executable, "-m", "benchmarks.pipeline", "--child", request], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(case: Case, result: dict) -> dict:
    """A table row: seconds in all and by stage (share in percent), peak memory by stage."""
    timing = common.Timing(tuple(result["seconds"]))
    found = {"clip": f"{case.frames} x {case.width} x {case.height}", "steps": case.steps, "type": case.dtype, "s": timing.median,
             "+-": f"{100 * timing.spread:.0f} %" if len(timing.seconds) > 1 else "", "runs": len(timing.seconds),
             "frames/s": case.frames / timing.median}
    for stage in STAGES:
        seconds = result["stages"][stage]
        found[f"{stage} s"] = seconds if stage in BESIDE else f"{seconds:.3g} ({100 * seconds / timing.median:.0f} %)"
    found["rest s"] = timing.median - sum(s for stage, s in result["stages"].items() if stage not in BESIDE)
    found["peak MB"] = max(result["memory"].values())
    return found


def memory_row(case: Case, result: dict) -> dict:
    """A table row: memory by stage."""
    return {"clip": f"{case.frames} x {case.width} x {case.height}", "steps": case.steps, "type": case.dtype, "cut into": result["tiling"],
            **{f"{stage} MB": result["memory"][stage] for stage in STAGES}}


def growth_row(case: Case, result: dict) -> dict:
    """A table row: what a frame or a megapixel costs."""
    seconds = common.Timing(tuple(result["seconds"])).median
    return {"frames": case.frames, "size": f"{case.width} x {case.height}", "s": seconds, "runs": len(result["seconds"]),
            "ms per frame": 1000 * seconds / case.frames, "s per megapixel": seconds / (case.frames * case.width * case.height / 1e6),
            "peak MB": max(result["memory"].values())}


def plan(full: bool, device: str) -> dict[str, list[Case]]:
    """The cases by table, in the device's fastest type. Without --full the expensive ones are measured once, and say so."""
    cuda = device.startswith("cuda")
    every = full or cuda
    *slower, fast = common.computed_types(device)
    case = functools.partial(Case, dtype=fast)
    small = [case(16, 256, 256), *(Case(16, 256, 256, dtype=dtype) for dtype in slower if not cuda), case(16, 256, 256, 4)]
    small += [case(16, 256, 256, steps, runs=common.REPEATS if every else 1) for steps in (10, 50)]
    large = [case(16, *SIZES[name], steps, runs=common.REPEATS if every else 1, warmup=1 if every else 0)
             for name in ("480p", "720p") for steps in ((1, 4, 10, 50) if every else (1,))]
    lengths = [case(n, 96, 64, runs=1) for n in (16, 64, 256, *((2000,) if every else ()))]
    pixels = [case(16, *SIZES["1080p"], runs=1, warmup=0)] if every else []
    return {"stages": small + large, "frames": lengths, "pixels": pixels}


def tables(cases: dict[str, list[Case]], folder: Path, checkpoint: str, device: str) -> dict[str, list[dict]]:
    """Run all cases; the tables of the report. A case that fails is named in its row."""
    found: dict[str, list[dict]] = {"seconds by stage": [], "memory by stage": [], "growth with frames": [], "growth with pixels": []}
    for kind, items in cases.items():
        for case in items:
            try:
                result = in_process(case, folder, checkpoint, device)
            except subprocess.CalledProcessError as error:
                found["seconds by stage"].append({"clip": f"{case.frames} x {case.width} x {case.height}", "steps": case.steps,
                                                  "type": case.dtype, "s": f"failed ({error.returncode})"})
                continue
            print(case, f"{common.Timing(tuple(result['seconds'])).median:.2f} s", file=sys.stderr, flush=True)
            if kind == "stages":
                found["seconds by stage"].append(row(case, result))
                found["memory by stage"].append(memory_row(case, result))
            if kind == "frames":
                found["growth with frames"].append(growth_row(case, result))
            elif case.steps == 1 and case.dtype == common.computed_types(device)[-1]:
                found["growth with pixels"].append(growth_row(case, result))
    return {title: rows for title, rows in found.items() if rows}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    parser.add_argument("--against", metavar="CHECKOUT", help="a folder with another build, or a revision of this repository")
    parser.add_argument("--sizes", nargs="+", default=["720p", "1080p"], choices=list(SIZES))
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        request = json.loads(arguments.child)
        print(json.dumps(run_case(Case(**request["case"]), Path(request["clip"]), Path(request["folder"]), request["checkpoint"],
                                  request["device"])))
        return
    if arguments.against:
        return against.main(arguments)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, what = common.checkpoint_file(folder, arguments.checkpoint)
        found = tables(plan(arguments.full, arguments.device), Path(folder), checkpoint, arguments.device)
    common.write("pipeline", found, {"checkpoint": what}, device=arguments.device, folder=arguments.out,
                 notes=["Read and write run beside the model and are busy for the seconds given; the other stages add up to the total."])


if __name__ == "__main__":
    main()
