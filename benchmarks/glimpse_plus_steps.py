"""Time and peak memory of a GlimpsePrune+ step, pruned beside dense, in turns; the embedded model.

python benchmarks/glimpse_plus_steps.py --out benchmarks/results/glimpse_plus_steps.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from foveate.measure import environment

CONFIG = """model: {model}
suite: scenes-hard
samples: 64
held_out: 1
prompts: {prompts}
micro_batch: {micro_batch}
max_steps: {steps}
max_completion: 12
layer: 10
lr: 1.0e-3
glimpse: null
pruned: {pruned}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="the first of each run is left out")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"pruned": [], "dense": []}
    memory = ""
    for turn in range(args.turns):
        for kind in ("pruned", "dense") if turn % 2 else ("dense", "pruned"):
            told = one_run(args, kind == "pruned")
            memory = told["memory"]
            rows = told["steps"][1:]
            found[kind].append(
                {name: statistics.median(row[name] for row in rows) for name in ("seconds", "peak_bytes")}
            )
            print(turn, kind, found[kind][-1], flush=True)
    ratios = {
        name: [a[name] / b[name] for a, b in zip(found["pruned"], found["dense"], strict=True)]
        for name in ("seconds", "peak_bytes")
    }
    result = {
        "what": "one step of GRPO (sampling, scoring, update) on pruned context, as a share of the dense step",
        "command": environment.command(),
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "machine": environment.machine(torch.device(args.device)),
        "versions": environment.versions(),
        "memory": memory,
        "pruned_over_dense": {name: statistics.median(values) for name, values in ratios.items()},
        "turns": found,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def one_run(args: argparse.Namespace, pruned: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "plus.yaml"
        sizes = {name: getattr(args, name) for name in ("model", "prompts", "micro_batch", "steps")}
        config.write_text(CONFIG.format(**sizes, pruned=str(pruned).lower()))
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "foveate", "train", "glimpse-plus", str(config), "--out", str(out)]
        subprocess.run([*command, "--device", args.device], check=True, capture_output=True)
        found: dict[str, Any] = json.loads((out / "adapter" / "steps.json").read_text())
        return found


if __name__ == "__main__":
    main()
