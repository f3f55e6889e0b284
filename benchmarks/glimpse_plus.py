"""GlimpsePrune+ on the embedded model's harder split: what RL gives, and what pruning gives.

Takes two folders of `foveate train glimpse-plus`, one trained on pruned context and one with `pruned: false`, and
answers the same held-out questions with the base model and both, dense and pruned.

    foveate train glimpse-plus benchmarks/configs/glimpse_plus.yaml --out plus
    foveate train glimpse-plus benchmarks/configs/glimpse_plus_dense.yaml --out plus-dense
    python benchmarks/glimpse_plus.py --plus plus --dense plus-dense --out benchmarks/results/glimpse_plus
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate.measure import environment
from foveate.measure.eval.answers import Answer, answer_batch
from foveate.measure.eval.suites import Example, is_correct, load_suite, suite_fingerprint
from foveate.measure.eval.summary import accuracy_kept
from foveate.measure.loading import LoadedModel, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plus", type=Path, required=True)
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=1400)
    parser.add_argument("--plain", type=int, default=450, help="questions of the suite that the model was trained for")
    parser.add_argument("--random", type=float, default=0.06, help="budget of the baselines")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    base, plus = load_model("tiny", device="cpu"), load_model(str(args.plus / "model"), device="cpu")
    dense = load_model(str(args.dense / "model"), device="cpu")
    shipped, own = foveate.load("glimpseprune-tiny"), foveate.load(args.plus / "predictor")
    capped = dataclasses.replace(own, max_keep=0.111)
    random = foveate.Random(keep=args.random, layer=own.weights.config.layer, compact_cache=True)
    arms: dict[str, tuple[LoadedModel, Any]] = {
        "base, dense": (base, None),
        "base, GlimpsePrune (trained on plain scenes)": (base, shipped),
        f"base, Random, {args.random:.0%}": (base, random),
        f"GlimpsePrune+'s model, Random, {args.random:.0%}": (plus, random),
        "RL without pruning, dense": (dense, None),
        "GlimpsePrune+ (RL on pruned context, own predictor)": (plus, own),
        "GlimpsePrune+, at most 11.1 %": (plus, capped),
        "RL on pruned context, dense": (plus, None),
        "RL without pruning, with GlimpsePrune+'s predictor": (dense, own),
    }
    found: dict[str, Any] = {}
    for suite, number in (("scenes-hard", args.questions), ("scenes", args.plain)):
        examples = load_suite(suite, number, args.seed)
        answers = {name: ask(loaded, examples, pruner, args.batch_size) for name, (loaded, pruner) in arms.items()}
        for name, loaded in (("base", base), ("GlimpsePrune+'s model", plus)):
            smaller = ask(loaded, examples, None, args.batch_size, args.random)
            answers[f"{name}, image downsampled to {args.random:.0%} (no token saved)"] = smaller
        reference = right(answers["base, dense"], examples)
        found[suite] = {
            "questions": suite_fingerprint(examples),
            "arms": {name: summary(own_answers, examples, reference) for name, own_answers in answers.items()},
        }
        print(suite, {name: arm["accuracy"] for name, arm in found[suite]["arms"].items()}, flush=True)
    result = {
        "what": "GlimpsePrune+ on the embedded model: accuracy against the dense base model",
        "command": environment.command(),
        "machine": environment.machine(base.model.device),
        "versions": environment.versions(),
        "seed": args.seed,
        "suites": found,
        "training": {name: training(folder) for name, folder in (("pruned", args.plus), ("dense", args.dense))},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "result.md").write_text(table(result))


def ask(loaded: LoadedModel, examples: list[Example], pruner: Any, batch: int, shrink: float = 1.0) -> list[Answer]:
    return [
        answer
        for at in range(0, len(examples), batch)
        for answer in answer_batch(loaded, examples[at : at + batch], pruner, shrink=shrink)
    ]


def right(answers: list[Answer], examples: list[Example]) -> list[bool]:
    return [is_correct(answer.text, example.answer) for answer, example in zip(answers, examples, strict=True)]


def summary(answers: list[Answer], examples: list[Example], reference: list[bool]) -> dict[str, Any]:
    own = right(answers, examples)
    tasks = sorted({example.task for example in examples})
    return {
        "accuracy": sum(own) / len(own),
        "of_dense_base": accuracy_kept(own, reference, seed=0).to_dict(),
        "kept": sum(answer.kept for answer in answers) / sum(answer.visual for answer in answers),
        "tasks": {
            task: statistics.mean(
                float(correct) for correct, example in zip(own, examples, strict=True) if example.task == task
            )
            for task in tasks
        },
    }


def training(folder: Path) -> dict[str, Any]:
    """Settings, time and memory a step, of a folder of `foveate train glimpse-plus`."""
    steps = json.loads((folder / "adapter" / "steps.json").read_text())
    return {"plus": json.loads((folder / "plus.json").read_text()), "steps": steps}


def table(result: dict[str, Any]) -> str:
    lines = [
        "# GlimpsePrune+ on the embedded model",
        "",
        "Made by `glimpse_plus.py`; do not edit. Share of the dense base model's accuracy, with 95 % intervals.",
        f"{result['machine']}, {result['versions']}.",
        "",
    ]
    for suite, found in result["suites"].items():
        head = "| | right, % | of the dense base, % | visual tokens kept, % |"
        lines += [f"## {suite}", "", head, "|---|---|---|---|"]
        for name, arm in found["arms"].items():
            share = [f"{100 * arm['of_dense_base'][key]:.1f}" for key in ("value", "low", "high")]
            figures = f"{100 * arm['accuracy']:.1f} | {share[0]} [{share[1]}, {share[2]}] | {100 * arm['kept']:.1f}"
            lines.append(f"| {name} | {figures} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
