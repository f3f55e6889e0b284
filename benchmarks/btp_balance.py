"""Local and global error of one cut, by its layer: attention alone, diversity alone, half of each, random tokens.

The claim of the BTP paper is that attention is best for the layer behind a cut (local), that diversity is best for
what comes later (global) where the cut lies early, and that a balance serves both. Errors are those of
`foveate.measure.stage_errors`, on the embedded model; the picture shows those of the last prompt token.

    python benchmarks/btp_balance.py --out benchmarks/results/btp_balance.json

writes the JSON, a table (.md) and a picture (.png) beside it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from foveate import BTP, Random
from foveate.measure import environment
from foveate.measure.eval.suites import load_suite
from foveate.measure.loading import load_model
from foveate.measure.stage_errors import stage_errors
from foveate.pruners import Pruner

BATCH = 10
TOKENS = ("last", "text")
KINDS = ("attention only", "half of each", "diversity only", "random")


def pruner(kind: str, layer: int, keep: float) -> Pruner:
    if kind == "random":
        return Random(keep=keep, layer=layer)
    share = {"attention only": 1.0, "half of each": 0.5, "diversity only": 0.0}[kind]
    return BTP(stages=((layer, keep, share),))


def measure(samples: int, seed: int, keep: float) -> dict[str, Any]:
    loaded = load_model("tiny", device="cpu")
    examples = load_suite("scenes", samples, seed)
    depth = loaded.model.config.get_text_config().num_hidden_layers
    names = [f"{name}, {tokens}" for tokens in TOKENS for name in ("local", "global")]
    found: dict[str, dict[str, list[dict[str, float]]]] = {kind: {name: [] for name in names} for kind in KINDS}
    for layer in range(1, depth):
        errors: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        for first in range(0, samples, BATCH):
            part = examples[first : first + BATCH]
            batch = loaded.inputs([one.question for one in part], [[one.image] for one in part])
            for kind in KINDS:
                method = pruner(kind, layer, keep)
                both = [stage_errors(loaded.model, method, batch, tokens)[0] for tokens in TOKENS]
                errors[kind].append([value for error in both for value in (error.local, error.global_)])
        for kind in KINDS:
            for name, values in zip(names, zip(*errors[kind], strict=True), strict=True):
                spread = statistics.stdev(values) / len(values) ** 0.5
                found[kind][name].append({"mean": statistics.fmean(values), "error": spread})
        print(f"layer {layer} of {depth - 1}", flush=True)
    return {
        "format": "foveate-balance-1",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": environment.command(),
        "model": "tiny",
        "weights": environment.model_fingerprint(loaded.model),
        "samples": samples,
        "seed": seed,
        "keep": keep,
        "batch": BATCH,
        "machine": environment.machine(loaded.model.device),
        "versions": environment.versions(),
        "layers": list(range(1, depth)),
        "errors": found,
    }


def draw(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"local, last": "local: output of the layer behind the cut", "global, last": "global: of the last layer"}
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for kind, line in zip(KINDS, ("-o", "-s", "-^", ":"), strict=True):
            rows = result["errors"][kind][name]
            means, errors = ([row[key] for row in rows] for key in ("mean", "error"))
            panel.errorbar(result["layers"], means, errors, fmt=line, markersize=4, linewidth=1, label=kind)
        panel.set(
            title=title, xlabel="cut before decoder layer", ylabel="relative error, last prompt token", ylim=(0, None)
        )
    panels[0].legend(fontsize=8)
    kept = f"{result['keep']:.0%} of the visual tokens kept, {result['samples']} questions, embedded model"
    figure.suptitle(kept, fontsize=10)
    figure.savefig(path, dpi=110)


def table(result: dict[str, Any]) -> str:
    where = f"{result['keep']:.0%} of the visual tokens kept by one cut, {result['samples']} questions, embedded model"
    machine, versions = result["machine"], result["versions"]
    lines = ["# Balance: errors of one cut, by its layer", "", "Made by `btp_balance.py`; do not edit.", ""]
    lines += [f"`{result['command']}`", "", f"{where}; relative error of hidden states, ± standard error."]
    lines += [f"{machine['cpu']}; torch {versions['torch']}, transformers {versions['transformers']}.", ""]
    heads = {"last": "of the last prompt token", "text": "of all text from the first visual token on"}
    for name in result["errors"][KINDS[0]]:
        kind, _, tokens = name.partition(", ")
        lines += [f"## {kind.capitalize()} error, {heads[tokens]}", "", f"| cut before layer | {' | '.join(KINDS)} |"]
        lines += ["|---:|" + "---:|" * len(KINDS)]
        for at, layer in enumerate(result["layers"]):
            cells = [result["errors"][arm][name][at] for arm in KINDS]
            least = min(cell["mean"] for cell in cells)
            shown = [f"{cell['mean']:.3f} ± {cell['error']:.3f}" for cell in cells]
            bold = [f"**{text}**" if cell["mean"] == least else text for text, cell in zip(shown, cells, strict=True)]
            lines.append(f"| {layer} | {' | '.join(bold)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=float, default=0.22)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result = measure(args.samples, args.seed, args.keep)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    args.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    draw(result, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
