"""GlimpsePrune's prefill, decode, KV cache and peak memory beside dense, on a random-weight LLaVA.

As in prefill_decode.py the images are encoded before, so that time, FLOPs and memory are those of the language model;
the predictor has the published size and is given random vision features. Peak memory is that of a process of its own
for each arm, less what the process held before its prefill.

    python benchmarks/glimpse_cost.py --out benchmarks/results/glimpse_cost.json
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from prefill_decode import Arm, build, clock_for, entry, prompt, run
from torch import Tensor
from transformers import DynamicCache

import foveate
from foveate.learn.plus_costs import Meter
from foveate.measure import environment
from foveate.pruners import VisualTokens
from foveate.pruners.glimpse_modules import GlimpseConfig, GlimpseModules, default_layer

VISION = 1280  # width of Qwen2.5-VL's vision encoder


@dataclass(frozen=True, kw_only=True)
class Fed(foveate.GlimpsePrune):
    """GlimpsePrune whose vision features are random numbers, as no vision encoder runs here."""

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return ()

    def logits(self, tokens: VisualTokens) -> Tensor:
        return super().logits(dataclasses.replace(tokens, vision=features(tokens.valid.shape, tokens.valid.device)))


@functools.cache
def features(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
    """Made once: what the encoder would have made anyway is no part of choosing."""
    return tuple(torch.randn(*shape, VISION, device=device) for _ in range(4))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--visual", type=int, default=2000)
    parser.add_argument("--text", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 64, the width of a head")
    parser.add_argument("--keep", type=float, nargs="*", default=[0.222, 0.111, 0.074])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def arms_for(args: argparse.Namespace) -> list[Arm]:
    torch.manual_seed(args.seed)
    config = GlimpseConfig(
        depth=args.layers,
        hidden_size=args.hidden,
        heads=args.hidden // 64,
        layer=default_layer(args.layers),
        vision_layers=(3, 2, 1, 0),
        vision_size=VISION,
    )
    weights = GlimpseModules(config).to(args.device).eval()
    arms = [Arm("dense", None)]
    for keep in args.keep:
        pruner = Fed(weights=weights, keep=keep, layer=config.layer)
        arms.append(Arm(f"glimpseprune keep {keep:g} before layer {config.layer}", pruner))
    return arms


def memory(args: argparse.Namespace, name: str) -> dict[str, int]:
    """Peak bytes of one arm above what was held before, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--decode", "2"]
    for key in ("device", "dtype", "attention", "threads", "layers", "visual", "text", "batch", "hidden", "seed"):
        command += [f"--{key}", str(getattr(args, key))]
    done = subprocess.run([*command, "--keep", *map(str, args.keep)], check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@torch.inference_mode()
def measure_memory(args: argparse.Namespace) -> None:
    model = build(args)
    inputs = prompt(args, model)
    arm = next(arm for arm in arms_for(args) if arm.name == args.memory_of)
    model(input_ids=inputs["input_ids"][:, :4])  # what any first forward pass takes once
    meter = Meter(model.device)
    meter.start()
    before = meter.stop()["peak_bytes"]
    meter.start()
    run(model, inputs, arm, args.decode, clock_for(model.device))
    print(json.dumps({"peak_above_weights": int(meter.stop()["peak_bytes"] - before)}))


@torch.inference_mode()
def kv(model: Any, inputs: dict[str, Any], arm: Arm) -> dict[str, Any]:
    """Length of each layer's KV cache behind the prefill, and its bytes."""
    with arm.pruner(model) if arm.pruner else contextlib.nullcontext():
        cache = DynamicCache(config=model.config.get_text_config())
        model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    held = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
    return {"kv_lengths": [layer.keys.shape[2] for layer in cache.layers], "kv_bytes": sum(held)}


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        measure_memory(args)
        return
    model = build(args)
    inputs, clock = prompt(args, model), clock_for(model.device)
    arms = arms_for(args)
    for arm in arms:
        run(model, inputs, Arm(arm.name, arm.pruner), 2, clock)
    for number in range(args.rounds):
        for place in range(len(arms)):
            run(model, inputs, arms[(place + number) % len(arms)], args.decode, clock)
        print(f"round {number + 1}/{args.rounds}", flush=True)
    found = []
    for arm in arms:
        found.append(entry(arm, arms[0]) | memory(args, arm.name) | kv(model, inputs, arm))
        print(arm.name, found[-1]["peak_above_weights"], flush=True)
    result = {
        "what": "GlimpsePrune beside dense: the language model of a random-weight LLaVA",
        "command": environment.command(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": {name: value for name, value in vars(args).items() if name not in ("out", "memory_of")},
        "machine": environment.machine(model.device),
        "versions": environment.versions(),
        "arms": found,
    }
    text = json.dumps(result, indent=1) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
        args.out.with_suffix(".md").write_text(table(result))
    else:
        print(text)


def table(result: dict[str, Any]) -> str:
    settings, dense, machine = result["settings"], result["arms"][0], result["machine"]
    sizes = ", ".join(f"{name} {settings[name]}" for name in ("layers", "hidden", "visual", "text", "batch", "dtype"))
    lines = [
        "# GlimpsePrune beside dense",
        "",
        "Made by `glimpse_cost.py`; do not edit. The language model of a random-weight LLaVA, images encoded",
        f"before; the predictor has its published size. {sizes}; {machine};",
        f"{result['versions']}; {result['created']}.",
        "",
        "Times are dense / pruned by CPU time, medians of rounds in turn. Memory is the peak above the weights.",
        "",
        "| arm | prefill faster | FLOPs imply | choosing | decode faster | KV length, layers | KV bytes | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in result["arms"]:
        lengths = " to ".join(map(str, sorted(set(arm["kv_lengths"]))))
        ratios = [arm[name] / dense[name] for name in ("kv_bytes", "peak_above_weights")]
        chosen = arm["choosing_ms"]["median"] / 1e3 / arm["prefill"]["wall_s"]["median"] if "choosing_ms" in arm else 0
        lines.append(
            f"| {arm['name']} | {arm['prefill']['faster_cpu']['median']:.2f} | {arm.get('implied', 1):.2f} "
            f"| {chosen:.1%} | {arm['decode']['faster_cpu']['median']:.2f} | {lengths} "
            f"| {ratios[0]:.1%} of dense | {ratios[1]:.0%} of dense |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
