"""How fast blur is synthesised: samples and frames per second, on the CPU or a GPU.

    python -m benchmarks.synthesis [--photos FOLDER] [--device cuda] [--threads 1]

On the CPU every sample is made alone, several times; the table shows the mean over samples of the best time of each, which other work on
the machine disturbs least. With one thread it is the processor time. On a GPU all samples are queued and timed together.
"""
from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from train.synthesis.blur import synthesize
from train.synthesis.scene import BlurConfig, plan

CASES = (("short", 5, 128, (1.0, 6.0)), ("default", 5, 128, (1.0, 40.0)), ("long", 5, 128, (20.0, 40.0)), ("paper", 16, 256, (1.0, 40.0)))


def texture(count: int = 6) -> list[torch.Tensor]:
    """Stand-ins for photographs, 1920 x 1280: noise of several octaves."""
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for _ in range(count):
        x = sum(F.interpolate(torch.rand(1, 3, 1280 // s, 1920 // s, generator=generator), (1280, 1920), mode="bilinear") * w
                for s, w in ((1, 0.2), (8, 0.3), (40, 0.5)))
        pictures.append((x[0] * 255).byte())
    return pictures


def main() -> None:
    """Print one row per case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, help="folder of photographs; noise pictures when left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.photos:
        from train.data.photos import read_photos

        photos = read_photos(args.photos)
    else:
        photos = texture()
    on_device = [p.to(args.device) for p in photos]
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {args.threads} thread(s)"
    print(f"blur synthesis on {where}, torch {torch.__version__}, {args.samples} samples per case\n")
    print("| case | frames | size | blur, px | sub-samples | plan, ms | sample, ms | samples/s | frames/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, frames, size, extent in CASES:
        config = BlurConfig(extent=extent)
        start = time.process_time()
        counts = [n for i in range(args.samples) for n in plan(photos, 0, i, frames, size, config).counts]
        planned = (time.process_time() - start) / args.samples
        seconds = measure(on_device, frames, size, config, args)
        print(f"| {name} | {frames} | {size} | {extent[0]:g}-{extent[1]:g} | {statistics.mean(counts):.1f} | {planned * 1e3:.1f} | "
              f"{seconds * 1e3:.1f} | {1 / seconds:.1f} | {frames / seconds:.0f} |", flush=True)


def measure(photos: list[torch.Tensor], frames: int, size: int, config: BlurConfig, args: argparse.Namespace) -> float:
    """Seconds per sample."""
    clock = time.process_time if args.device == "cpu" and args.threads == 1 else time.perf_counter

    def run(indices) -> float:
        start = clock()
        synthesize(photos, 0, indices, num_frames=frames, size=size, config=config, device=args.device)
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        return clock() - start

    run(range(2))
    if args.device.startswith("cuda"):
        return min(run(range(args.samples)) for _ in range(args.repeats)) / args.samples
    return statistics.mean(min(run([i]) for _ in range(args.repeats)) for i in range(args.samples))


if __name__ == "__main__":
    main()
