"""How much GlimpsePrune keeps against how much a question needs, on held-out scenes of the embedded model.

python benchmarks/glimpse_adaptive.py --out benchmarks/results/glimpse_adaptive
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import foveate
from foveate.measure import environment
from foveate.measure.eval.answers import answer_batch
from foveate.measure.eval.suites import is_correct, load_suite, suite_fingerprint
from foveate.measure.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pruner", default="glimpseprune-tiny")
    parser.add_argument("--questions", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded, pruner = load_model("tiny", device="cpu"), foveate.load(args.pruner)
    examples = load_suite("scenes", args.questions, args.seed)
    rows: list[dict[str, Any]] = []
    for at in range(0, len(examples), args.batch_size):
        batch = examples[at : at + args.batch_size]
        for example, answer in zip(batch, answer_batch(loaded, batch, pruner), strict=True):
            needed = 0 if example.evidence is None else len(example.evidence)
            right = is_correct(answer.text, example.answer)
            rows.append({"task": example.task, "evidence": needed, "kept": answer.kept, "right": right})
    visual = answer.visual
    by_task = {
        task: {
            "questions": len(own),
            "evidence": sum(row["evidence"] for row in own) / len(own),
            "kept": sum(row["kept"] for row in own) / len(own),
            "right": sum(row["right"] for row in own) / len(own),
        }
        for task, own in grouped(rows, "task").items()
    }
    result = {
        "what": "tokens kept against tokens of evidence, no cap",
        "command": environment.command(),
        "pruner": args.pruner,
        "questions": suite_fingerprint(examples),
        "machine": environment.machine(loaded.model.device),
        "versions": environment.versions(),
        "visual": visual,
        "kept": sum(row["kept"] for row in rows) / len(rows) / visual,
        "correlation": correlation(rows),
        "by_evidence": {
            str(needed): {"questions": len(own), "kept": sum(row["kept"] for row in own) / len(own)}
            for needed, own in sorted(grouped(rows, "evidence").items())
        },
        "by_task": by_task,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(rows, result, args.out / "kept.png")


def correlation(rows: list[dict[str, Any]]) -> float:
    both = torch.tensor([[row["evidence"], row["kept"]] for row in rows]).T.float()
    return float(torch.corrcoef(both)[0, 1])


def grouped(rows: list[dict[str, Any]], name: str) -> dict[Any, list[dict[str, Any]]]:
    found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row[name]].append(row)
    return found


def draw(rows: list[dict[str, Any]], result: dict[str, Any], picture: Path) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    spread = torch.rand(len(rows), generator=torch.Generator().manual_seed(0)) - 0.5
    axes.scatter(
        [row["evidence"] + 0.7 * float(off) for row, off in zip(rows, spread, strict=True)],
        [row["kept"] for row in rows],
        s=6,
        alpha=0.35,
        label="a question",
    )
    means = [(int(needed), own["kept"]) for needed, own in result["by_evidence"].items() if own["questions"] >= 5]
    axes.plot(*zip(*means, strict=True), color="tab:red", label="mean, where 5 or more questions are")
    most = max(row["evidence"] for row in rows)
    axes.plot([0, most], [0, most], "k:", lw=1, label="as many as needed")
    axes.set(
        xlabel=f"visual tokens under the answer, of {result['visual']}",
        ylabel="visual tokens kept",
        title=f"embedded model, {len(rows)} held-out questions, no cap: {result['kept']:.1%} kept",
    )
    axes.legend()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
