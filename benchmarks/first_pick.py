"""Time of DivPrune's published first pick, the token whose nearest neighbour is farthest, beside the outlier's.

On a CPU, process time on one thread. *Outlier*, *published*: what `select.max_min_diversity` takes in all with the one
and the other first pick; *all pairs*: the published first pick alone with one matrix of N x N cosines. Kinds of
features: around N / 8 centres (clustered), directions that have nothing to do with each other (uniform, the worst
case: hardly a token can be left out early), and a smooth field on a grid with noise, as neighbours in an image are
alike (smooth). The arms run in turns; medians over the rounds. Takes about 2 minutes.

    python benchmarks/first_pick.py --out benchmarks/results/first_pick.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from selection_arms import clustered, uniform
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from foveate import select
from foveate.measure import environment
from foveate.select.cosine import UnitRows
from foveate.select.isolated import most_isolated_of_one

KEEP = 0.22
PREFILL_7B = 2 * 6.5e9  # FLOPs a token of a dense 7B prefill, attention left out


def smooth(batch: int, number: int, width: int) -> Tensor:
    """(B, N, D) that vary slowly over a grid and have one component in common, with noise."""
    side = int(number**0.5) + 1
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, width, side // 4, side // 4, generator=generator)
    field = interpolate(coarse, (side, side), mode="bicubic").flatten(2).mT[:, :number]
    noise = torch.randn(batch, number, width, generator=generator)
    return (field + 0.5 * noise + torch.randn(batch, 1, width, generator=generator)).contiguous()


KINDS: dict[str, Callable[[int, int, int], Tensor]] = {"smooth": smooth, "clustered": clustered, "uniform": uniform}


def all_pairs(features: Tensor) -> int:
    """The published pick, plainly."""
    unit = normalize(features, dim=-1)
    return int((unit @ unit.T).fill_diagonal_(-torch.inf).amax(1).argmin())


def ours(features: Tensor) -> int:
    """The same pick by bounds."""
    everyone = torch.ones(len(features), dtype=torch.bool)
    return most_isolated_of_one(UnitRows(features), everyone, everyone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visual", nargs="+", type=int, default=[576, 2880])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for number in args.visual:
        for kind, make in KINDS.items():
            features = make(1, number, args.width)
            k = round(KEEP * number)
            arms: dict[str, Callable[[], object]] = {
                "outlier": lambda f=features, k=k: select.max_min_diversity(f, k, first="outlier"),
                "published": lambda f=features, k=k: select.max_min_diversity(f, k),
                "published pick alone": lambda f=features: ours(f[0]),
                "all pairs": lambda f=features: all_pairs(f[0]),
            }
            if ours(features[0]) != all_pairs(features[0]):
                raise AssertionError(f"{kind}, {number}: two first picks")
            seconds: dict[str, list[float]] = {name: [] for name in arms}
            for turn in range(args.rounds + 1):
                for name in list(arms)[:: -1 if turn % 2 else 1]:
                    start = time.process_time()
                    arms[name]()
                    if turn:
                        seconds[name].append(time.process_time() - start)
            entry = {"features": kind, "visual": number, "k": k}
            entry["seconds"] = {name: statistics.median(times) for name, times in seconds.items()}
            entry["flops_of_all_pairs_to_prefill_7b"] = 2 * number**2 * args.width / (PREFILL_7B * number)
            found.append(entry)
            print(entry, flush=True)
    result = {
        "what": "the first pick of max-min diversity: published beside the outlier",
        "command": environment.command(),
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
        "machine": environment.machine(torch.device("cpu")),
        "versions": environment.versions(),
        "code": environment.code_fingerprint(),
        "cases": found,
    }
    text = json.dumps(result, indent=1) + "\n"
    if args.out:
        args.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
