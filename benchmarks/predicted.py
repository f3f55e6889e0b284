"""Predicted against measured speed-up of the prefill, and whether the break-even length is where it is said.

The rates of this machine are measured first; then each setting is predicted, and only then run: a few published shapes
made small, with random weights, images encoded before, the dense and the pruned run in turn (CPU time where torch has
one thread). Below half the predicted break-even length pruning should not be faster than dense, above twice it should.

    python benchmarks/predicted.py

About five minutes on one thread; writes benchmarks/results/predicted.json and predicted.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate.measure import environment
from foveate.measure.bench.prompts import encode, make_prompt
from foveate.measure.bench.run import random_model
from foveate.measure.bench.timing import CPU, WALL, Times, timed_run
from foveate.measure.predict.measure_rates import measure_rates
from foveate.measure.predict.predict import MARGIN, break_even, predict
from foveate.measure.predict.rates import Rates
from foveate.measure.predict.selection import measure_choosing
from foveate.pruners import Pruner
from foveate.pruners.spec import brief

# shape, decoder layers, width, numbers of visual tokens
MODELS = (("qwen2.5-vl-7b", 6, 512, (256, 1024, 2048)), ("llava-1.5-7b", 6, 640, (576, 1152)))
SMALL = ("qwen2.5-vl-7b", 4, 256)  # for the break-even length
LIMIT = 2048


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="the shapes as published, for a GPU")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/predicted.json"))
    return parser.parse_args()


def pruners(keep: float) -> list[Pruner]:
    return [
        foveate.Random(keep=keep),
        foveate.DivPrune(keep=keep),
        foveate.GreedyPrune(keep=keep),
        foveate.FastV(keep=keep),
        foveate.PyramidDrop(keep=keep),
        foveate.BTP(keep=max(keep, 0.3)),
        foveate.GlimpsePrune(keep=keep),
    ]


def inputs_of(loaded: Any, visual: int, text: int) -> tuple[dict[str, Any], int, int]:
    prompt = make_prompt(loaded, visual, text, 1)
    with torch.inference_mode():
        return encode(loaded.model, prompt.inputs), prompt.visual, prompt.text


def measured(model: Any, inputs: dict[str, Any], arms: list[Pruner], rounds: int) -> list[dict[str, Any]]:
    """Ratios to dense of the same round, medians; the first round warms up."""
    times = [Times() for _ in range(len(arms) + 1)]
    kind = CPU if model.device.type == "cpu" and torch.get_num_threads() == 1 else WALL
    for number in range(-1, rounds):
        order = range(len(times)) if number % 2 else reversed(range(len(times)))
        for place in order:
            timed_run(model, inputs, arms[place - 1] if place else None, 0, times[place] if number >= 0 else Times())
    found = []
    for own in times[1:]:
        dense, pruned = times[0].prefill[kind], own.prefill[kind]
        ratios = [before / after for before, after in zip(dense, pruned, strict=True)]
        found.append(
            {
                "prefill": statistics.median(ratios),
                "prefill_lowest": min(ratios),
                "prefill_highest": max(ratios),
                "dense_s": statistics.median(dense),
            }
        )
    return found


def compare(args: argparse.Namespace, shape: str, layers: int, width: int, visuals: Iterable[int]) -> dict[str, Any]:
    """One model's settings, predicted and then measured."""
    sizes = (None, None) if args.full else (layers, width)
    loaded = random_model(shape, args.device, args.dtype, "sdpa", *sizes)
    config = loaded.model.config.get_text_config()
    rates = measure_rates(args.device, loaded.model.dtype, config)
    entries = []
    for visual in visuals:
        inputs, number, text = inputs_of(loaded, visual, 48)
        arms = [one for keep in (0.5, 0.22) for one in pruners(keep)]
        predictions = [predict(config, one, number, timed(rates, one, config, number), text=text) for one in arms]
        for one, guess, real in zip(arms, predictions, measured(loaded.model, inputs, arms, args.rounds), strict=True):
            entries.append(
                {
                    "method": one.name,
                    "pruner": brief(one),
                    "visual": number,
                    "predicted": guess.to_dict(),
                    "measured": real,
                    "error": guess.speedup / real["prefill"] - 1,
                    "dense_error": guess.dense.total / real["dense_s"] - 1,
                }
            )
        print(f"{shape}, {number} visual tokens: {summary(entries)}", flush=True)
    about = {"shape": shape, "layers": config.num_hidden_layers, "width": config.hidden_size}
    return {**about, "rates": rates.to_dict(), "entries": entries}


def timed(rates: Rates, pruner: Pruner, config: Any, visual: int) -> Rates:
    return measure_choosing(rates, pruner, config, sizes=[visual])


def edges(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Break-even lengths of a small model, and what is measured well below and well above them."""
    loaded = random_model(SMALL[0], args.device, args.dtype, "sdpa", *SMALL[1:])
    config = loaded.model.config.get_text_config()
    rates, found = measure_rates(args.device, loaded.model.dtype, config), []
    for pruner in pruners(0.22):
        length = break_even(config, pruner, rates, text=16, limit=LIMIT)
        entry: dict[str, Any] = {"pruner": brief(pruner), "break_even": length, "measured": {}}
        for side, visual in (("below", (length or LIMIT) // 2), ("above", 2 * length if length else 0)):
            if visual < 4:
                continue
            inputs, number, _ = inputs_of(loaded, visual, 16)
            (real,) = measured(loaded.model, inputs, [pruner], 10 * args.rounds)
            right = real["prefill"] <= 1 + MARGIN if side == "below" else real["prefill"] > 1
            entry["measured"][side] = {"visual": number, "right": right, **real}
        found.append(entry)
        print(f"break-even of {entry['pruner']}: {length}", flush=True)
    return found


def summary(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Errors of the predicted ratios, without their signs."""
    errors = [abs(entry["error"]) for entry in entries]
    return {"median_error": round(statistics.median(errors), 4), "worst_error": round(max(errors), 4)}


def table(result: dict[str, Any]) -> str:
    machine = result["machine"]
    what = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} thread(s)"
    lines = [
        "# Predicted against measured",
        "",
        "Made by `predicted.py`; do not edit.",
        "",
        f"{what}, {result['dtype']}; torch {result['versions']['torch']}, transformers "
        f"{result['versions']['transformers']}; {result['started']}. Random weights, images encoded before, 48 words, "
        f"batch 1. × faster is dense time / pruned time; measured is the median of {result['rounds']} rounds.",
        "",
        "**Error of the predicted speed-up of the prefill: median {median_error:.1%}, worst {worst_error:.1%}.** "
        "GlimpsePrune is its stand-in without weights.".format(**result["summary"]),
    ]
    for model in result["models"]:
        lines += [
            "",
            f"## {model['shape']}, {model['layers']} layers of {model['width']}",
            "",
            "| visual | pruner | prefill, predicted | measured | error | FLOPs imply |",
            "|---:|:---|---:|---:|---:|---:|",
        ]
        for entry in model["entries"]:
            guess, real = entry["predicted"], entry["measured"]
            prefill = f"{guess['speedup']:.2f} | {real['prefill']:.2f} | {entry['error']:+.1%}"
            lines.append(f"| {entry['visual']} | {entry['pruner']} | {prefill} | {guess['implied']:.2f} |")
    lines += [
        "",
        f"## Break-even length ({SMALL[0]}, {SMALL[1]} layers of {SMALL[2]}, 16 words, margin {MARGIN:.0%})",
        "",
        f"Below, at half the length (of {LIMIT} where there is none), measured should be at most {1 + MARGIN:.2f}; "
        "above, at twice the length, over 1.",
        "",
        "| pruner | break-even, visual tokens | below | × faster | | above | × faster | |",
        "|:---|---:|---:|---:|:---|---:|---:|:---|",
    ]
    for entry in result["edges"]:
        cells = []
        for side in ("below", "above"):
            real = entry["measured"].get(side)
            cells += (
                [str(real["visual"]), f"{real['prefill']:.2f}", "✓" if real["right"] else "✗"] if real else ["–"] * 3
            )
        lines.append(f"| {entry['pruner']} | {entry['break_even'] or 'none'} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "```", result["command"], "```", ""])


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    models = [compare(args, *model) for model in MODELS]
    result = {
        "what": "predicted against measured speed-up, dense beside pruned",
        "command": environment.command(),
        "started": started,
        "rounds": args.rounds,
        "dtype": args.dtype,
        "machine": environment.machine(torch.device(args.device)),
        "versions": environment.versions(),
        "margin": MARGIN,
        "summary": summary([entry for model in models for entry in model["entries"]]),
        "models": models,
        "edges": edges(args),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    args.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(result["summary"])


if __name__ == "__main__":
    main()
