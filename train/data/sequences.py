"""Which pictures of a folder follow one another in time: by their names, and by whether neighbours look alike."""
from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

NUMBER = re.compile(r"(.*\D|)(\d+)(\D*)", re.DOTALL)     # the last number of a name, what stands before it and behind it
SHORTEST = 8                             # pictures of a film; fewer prove nothing
ALIKE = 0.8                              # correlation of neighbours: above 0.92 in walking footage, below 0.75 of unrelated photographs
PROBES = 3                               # places at which a film is looked at
RELATED, PLACES = 0.4, 7                 # mean correlation at so many places: below 0.39 for 99 of 100 draws of unrelated photographs
ALONE = re.compile(r"\d+from", re.IGNORECASE)            # HIDE: `118fromGOPR1096`, the 118th of the photographs out of that recording


def natural(name: str) -> list:
    """Sorts frame 10 after frame 9."""
    return [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", name)]


def in_sequences(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Split names of pictures into sequences, each with a label: names that are equal but for their last number, as far as it runs on.

    Several clips may lie in one folder (GoPro as image deblurring has it: `GOPR0384_11_00-000001`, `GOPR0384_11_05-004001`). Where no two
    names are alike but for a number, all are one sequence; so are numbers that mostly jump, such as times. HIDE's photographs
    stand alone.
    """
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    names = sorted(names, key=natural)
    if names and all(map(ALONE.match, names)):
        return [(name, [name]) for name in names]
    for name in names:
        found = NUMBER.fullmatch(name)
        groups[found.group(1, 3) if found else (name,)].append(name)        # `a` is no neighbour of `a2`
    if len(groups) == len(names):
        return [("", names)] if names else []
    labelled = defaultdict(list)
    for key, members in groups.items():
        labelled["".join(key).strip("-_. ") if len(groups) > 1 else ""] += _runs(members)
    return [(f"{label}#{i}" if len(runs) > 1 else label, run) for label, runs in labelled.items() for i, run in enumerate(runs)]


def _runs(names: list[str]) -> list[list[str]]:
    """Sorted names of one kind, split where their number leaves out some of its usual steps."""
    steps = [int(NUMBER.fullmatch(b)[2]) - int(NUMBER.fullmatch(a)[2]) for a, b in pairwise(names)]
    usual, count = Counter(steps).most_common(1)[0] if steps else (0, 0)
    cuts = [i + 1 for i, step in enumerate(steps) if step > usual] if 2 * count > len(steps) else []
    return [names[a:b] for a, b in pairwise([0, *cuts, len(names)])]


def probed(runs: list[list], places: int) -> list:
    """Of runs of pictures the neighbours at so many places, one behind the other."""
    neighbours = [pair for run in runs for pair in pairwise(run)]
    return [picture for i in range(places) for picture in neighbours[(len(neighbours) - 1) * i // (places - 1)]] if neighbours else []


def alike(a: Tensor, b: Tensor) -> float:
    """Correlation of two pictures (3, H, W) at 24 x 24 pixels: 0 where their sizes differ, 1 where neither shows anything."""
    if a.shape != b.shape:
        return 0.0
    small = F.adaptive_avg_pool2d(torch.stack([a, b]).float().mean(1, keepdim=True), 24).flatten(1)
    small = small - small.mean(1, keepdim=True)
    return float(F.cosine_similarity(*small, dim=0)) if small.any() else 1.0
