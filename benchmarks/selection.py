"""Time and memory of choosing: `foveate.select` beside a plain incremental loop and the form that reads k² rows.

On a CPU: process time on one thread; with `--device cuda` times of CUDA events, and first a look whether the fused
kernels choose what the plain forms choose. The arms of a case run in turns, forwards and backwards, and a ratio is the
median over the rounds of times of one round. An arm whose call would take more than `--limit` seconds by a rough
estimate is left out, and the result says so; nothing is extrapolated. With the defaults it takes about 8 minutes on
one thread. Peak memory is what torch's allocator held above what was there before, over the features' bytes.

`--device cuda` has not been run yet: no GPU was at hand.

    python benchmarks/selection.py --out benchmarks/results/selection.json
    python benchmarks/selection_table.py benchmarks/results/selection.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from selection_arms import OURS, arms_of, clustered, plain_forms, relevant, saliency, uniform
from torch import Tensor

from foveate.measure import environment
from foveate.measure.bench.counters import ON_CPU, ON_CUDA, peak_bytes

KEEPS = (0.11, 0.22, 0.5)
SIZES = (576, 2880, 8192, 16384)
GROWTH = (256, 512, 1024, 2048, 4096, 8192, 16384)
GROWTH_KEEP = 0.22
KINDS = {"clustered": clustered, "uniform": uniform}
CPU_BYTES, CPU_FLOPS = 15e9, 80e9  # a second, for the estimate of what to leave out
GPU_BYTES, GPU_FLOPS, LAUNCH = 2e12, 30e12, 5e-6


@dataclass(frozen=True)
class Case:
    method: str
    kind: str
    batch: int
    visual: int
    keep: float
    rounds: int
    part: str  # "table" or "growth"

    @property
    def k(self) -> int:
        return max(round(self.keep * self.visual), 1)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--methods", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--visual", nargs="+", type=int, default=list(SIZES), help="other sizes: no growth either")
    parser.add_argument("--limit", type=float, default=30, help="seconds that a call may take by the estimate")
    parser.add_argument("--rounds", type=int, help="for every case; else 7 to 1, by the size")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def cases(args: argparse.Namespace) -> Iterator[Case]:
    on_gpu = args.device.startswith("cuda")
    shrink = 32 if args.smoke else 1
    rounds = dict.fromkeys(SIZES + GROWTH, 7) if on_gpu else {2880: 3, 2048: 3, 4096: 1, 8192: 1, 16384: 1}

    def case(method: str, kind: str, batch: int, visual: int, keep: float, part: str = "table") -> Case:
        many = args.rounds or (
            1 if args.smoke else 2 if batch > 1 or (kind, visual) == ("uniform", 2880) else rounds.get(visual, 7)
        )
        return Case(method, kind, batch, visual // shrink, keep, many, part)

    for method in args.methods:
        for visual in args.visual:
            for keep in KEEPS:
                yield case(method, "clustered", 1, visual, keep)
        for visual in args.visual if on_gpu else args.visual[:2]:
            yield case(method, "uniform", 1, visual, GROWTH_KEEP)
        for visual in args.visual if on_gpu else args.visual[:1]:
            yield case(method, "clustered", 8, visual, GROWTH_KEEP)
    if args.visual != list(SIZES):
        return
    if not on_gpu:
        yield case(args.methods[0], "clustered", 8, 2880, 0.11)
    for visual in (n for n in GROWTH if n not in SIZES):
        yield case(args.methods[0], "clustered", 1, visual, GROWTH_KEEP, "growth")


def grows(entry: dict[str, Any]) -> bool:
    """The entry is a point of the growth plot; sizes of the table are measured once."""
    alike = {"method": next(iter(OURS)), "features": "clustered", "batch": 1, "keep": GROWTH_KEEP}
    return alike.items() <= entry.items()


def estimate(name: str, case: Case, args: argparse.Namespace) -> float:
    """Seconds that a call takes, roughly."""
    on_gpu, (n, k, width) = args.device.startswith("cuda"), (case.visual, case.k, args.width)
    if name == "ours" and (on_gpu or k < 2000 or case.method != "low-rank DPP"):
        return 0.0  # under 15 s in all cases; DPP with more picks can take as long as the loop
    if name == "k² rows":
        # max-min and suppression copy the rows that they read, which takes several times as long as reading
        flops, read = 2 * n * n * width, 2 * n * k * k * (1 if case.method == "low-rank DPP" else 8)
    else:
        flops, read = 0, 4 * n * k * width + (2 * n * k * k if case.method == "low-rank DPP" else 0)
    if on_gpu:
        return case.batch * (flops / GPU_FLOPS + read / GPU_BYTES + 8 * LAUNCH * k)
    return case.batch * (flops / CPU_FLOPS + read / CPU_BYTES)


def timer(device: torch.device, threads: int) -> Callable[[Callable[[], Tensor]], tuple[float, Tensor]]:
    def on_gpu(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        result = work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, result

    def on_cpu(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
        clock = time.process_time if threads == 1 else time.perf_counter
        start = clock()
        result = work()
        return clock() - start, result

    return on_gpu if device.type == "cuda" else on_cpu


def spread_of(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def inputs(case: Case, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    features = KINDS[case.kind](case.batch, case.visual, args.width)
    scores = saliency(case.batch, case.visual)
    if case.method == "low-rank DPP":
        features = relevant(features, scores)
    return features.to(args.device, getattr(torch, args.dtype)), scores.to(args.device)


@torch.inference_mode()
def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    watch, (features, scores) = timer(device, args.threads), inputs(case, args)
    arms = arms_of(case.method, device.type == "cuda")
    costs = {name: estimate(name, case, args) for name in arms}
    left_out = {name: f"about {cost:.0f} s a call" for name, cost in costs.items() if cost > args.limit}
    arms = {} if "ours" in left_out else {name: arm for name, arm in arms.items() if name not in left_out}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    kept: dict[str, Tensor] = {}
    for turn in range(case.rounds + 1):
        for name in list(arms)[:: -1 if turn % 2 else 1]:
            if turn == 0 and costs[name] > 1:
                continue  # the first turn warms up
            taken, kept[name] = watch(lambda arm=arms[name]: arm(features, scores, case.k))
            if turn:
                seconds[name].append(taken)
    bytes_of = features.numel() * features.element_size()
    memory = {}
    for name, arm in arms.items():
        if costs[name] < 2 and case.batch == 1 and case.keep == GROWTH_KEEP and case.kind == "clustered":
            peak = peak_bytes(device, lambda arm=arm: arm(features, scores, case.k))[1]
            memory[name] = None if peak is None else peak / bytes_of
    return {
        "part": case.part,
        "method": case.method,
        "features": case.kind,
        "batch": case.batch,
        "visual": case.visual,
        "keep": case.keep,
        "k": case.k,
        "rounds": case.rounds,
        "seconds": {name: spread_of(values) for name, values in seconds.items()},
        "to_ours": {
            name: spread_of([a / b for a, b in zip(values, seconds["ours"], strict=True)])
            for name, values in seconds.items()
            if name != "ours"
        },
        "chosen_alike": {
            name: float((keep & kept["ours"]).sum() / kept["ours"].sum())
            for name, keep in kept.items()
            if name != "ours"
        },
        "left_out": left_out,
        "memory": memory,
    }


@torch.inference_mode()
def agreement(args: argparse.Namespace) -> list[dict[str, Any]]:
    """On a GPU, before anything is timed: the share of the kernels' picks that the plain forms make too."""
    found = []
    for method in args.methods:
        for kind in KINDS:
            for visual in (100, 576, 2880):
                case = Case(method, kind, 2, visual, GROWTH_KEEP, 1, "table")
                features, scores = inputs(case, args)
                fused = OURS[method](features, scores, case.k)
                with plain_forms():
                    plain = OURS[method](features, scores, case.k)
                found.append({"method": method, "features": kind, "visual": visual})
                found[-1] |= {"same": torch.equal(fused, plain), "alike": float((fused & plain).sum() / plain.sum())}
                print(found[-1], flush=True)
    return found


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    if args.smoke:
        args.width = 64
    device = torch.device(args.device)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    begun = time.perf_counter()
    agreed = agreement(args) if device.type == "cuda" else []
    found = []
    for case in cases(args):
        entry = measure(case, args)
        found.append(entry)
        times = {name: f"{1e3 * one['median']:.1f} ms" for name, one in entry["seconds"].items()}
        place = f"{case.method}, {case.kind}, {case.batch} x {case.visual}, k {case.k}"
        print(f"[{time.perf_counter() - begun:.0f} s] {place}: {times}", flush=True)
    slope = None
    growth = sorted((one["visual"], one["seconds"]["ours"]["median"]) for one in found if grows(one))
    if len(growth) > 1:
        slope = math.log(growth[-1][1] / growth[0][1]) / math.log(growth[-1][0] / growth[0][0])
    result = {
        "what": "choosing by foveate.select beside a plain incremental loop and the form that reads k² rows",
        "command": environment.command(),
        "started": started,
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
        "machine": environment.machine(device),
        "versions": environment.versions(),
        "code": environment.code_fingerprint(),
        "memory": ON_CUDA if device.type == "cuda" else ON_CPU,
        "agreement": agreed,
        "growth_exponent": slope,
        "cases": found,
    }
    text = json.dumps(result, indent=1) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
