"""GreedyPrune's objectives beside the two halves of each: saliency alone and diversity alone, on the same questions.

The promise of its abstract is a joint choice that is better than either half at every budget. Every arm is one of
`foveate eval`, and cuts before the same layer: volume, the reviewed rule, the smallest threshold that leaves enough
by either saliency, attention of the text and of the last token alone, log-det and max-min diversity alone, random
tokens, and a smaller image.

    python benchmarks/greedy_objective.py --seed 11 --floors 0.01,0.1,0.3 --out objective_11

writes what `foveate eval` writes, and `objective.md`: accuracy kept, and each volume arm minus its halves. To settle
a default, take seeds that no published figure is of; a stopped run continues.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foveate.measure.eval.evaluate import JOURNAL, RESULT, TABLES, EvalSettings, Journal, evaluate
from foveate.measure.eval.summary import accuracy_gap
from foveate.measure.eval.tables import markdown
from foveate.measure.loading import load_model
from foveate.pruners.spec import parse_methods

OBJECTIVE = "objective.md"
ATTENTION = "objective=threshold,saliency=attention,query={},threshold=1.0"  # plain top-k
ALONE = {
    "saliency alone, text": f"greedyprune:{ATTENTION.format('mean_text')}",
    "saliency alone, last": f"greedyprune:{ATTENTION.format('last')}",
    "diversity alone, log-det": "greedyprune:floor=1000.0",  # next to which no saliency counts
    "diversity alone, max-min": "divprune",
}
THRESHOLD = {
    "the reviewed rule": "greedyprune:objective=threshold",
    "auto, cosine": "greedyprune:threshold=auto",
    "auto, attention": "greedyprune:threshold=auto,saliency=attention,query=mean_text",
}
QUERIES = {"mean_text": "text", "last": "last"}


def arms(floors: Sequence[str], powers: Sequence[str], queries: Sequence[str], layer: int) -> dict[str, str]:
    """What each arm is called, and how it is written for `foveate eval`."""
    volume = {}
    for query, floor, power in itertools.product(queries, floors, powers):
        name = f"volume, {QUERIES[query]}, floor {floor}, power {power}"
        volume[name] = f"greedyprune:query={query},floor={floor},power={power}"
    named = volume | ALONE | THRESHOLD
    return {name: f"{spec}{',' if ':' in spec else ':'}layer={layer}" for name, spec in named.items()}


def halves(name: str) -> list[str]:
    """The arms that a volume arm is compared with."""
    saliency = f"saliency alone, {name.split(', ')[1]}"
    return [saliency, *(one for one in ALONE if one.startswith("diversity")), "random"]


def percent(figure: dict[str, float | None], form: str = ".1f") -> str:
    value, low, high = (100 * (figure[key] or 0.0) for key in ("value", "low", "high"))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def tables(result: dict[str, Any], named: dict[str, str], folder: Path, layer: int) -> str:
    """Accuracy kept of every arm, and what volume gains over each half, with paired intervals."""
    keeps, shared = result["settings"]["keeps"], result["configuration"]
    written = {name: str(parse_methods(spec)[0]) for name, spec in named.items()}
    random = [arm["method"] for arm in result["arms"] if arm["arm"].startswith("random") and arm["layer"] == layer]
    written |= {"random": random[0], "downsampled image": "downsample"}
    found = {(arm["method"], arm["keep"]): arm for arm in result["arms"]}
    journal = Journal(folder / JOURNAL, shared, shared["samples"])
    indices = range(shared["samples"])

    def right(name: str, keep: float) -> list[bool]:
        return [row["correct"] for row in journal.arm(found[written[name], keep]["arm"], indices)]

    head = f"| {{}} | {' | '.join(f'keep {keep:g}' for keep in keeps)} |\n|:---|{'---:|' * len(keeps)}"
    lines = [
        "# GreedyPrune's objectives",
        "",
        "Made by `greedy_objective.py`; do not edit.",
        "",
        f"`{result['command']}`",
        "",
        f"{shared['model']}, {shared['samples']} questions of '{shared['suite']}', seed {shared['seed']}, before "
        f"layer {layer}. Accuracy kept, % of the dense model's ({100 * result['arms'][0]['accuracy']:.1f} % right), "
        "with 95 % intervals of a paired bootstrap over the questions.",
        "",
        head.format("rule"),
    ]
    for name, method in written.items():
        cells = [percent(found[method, keep]["accuracy_kept"]) for keep in keeps]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Accuracy of volume minus that of another arm, points of all questions.", "", head.format("minus")]
    for name in named:
        for other in halves(name) if name.startswith("volume") else []:
            gaps = [
                accuracy_gap(right(name, keep), right(other, keep), seed=shared["seed"]).to_dict() for keep in keeps
            ]
            lines.append(f"| {name}: {other} | {' | '.join(percent(gap, '+.1f') for gap in gaps)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny", help="`tiny`, a Hub id or a folder")
    parser.add_argument("--suite", default="scenes")
    parser.add_argument("--samples", type=int, default=540)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--keep", default="0.5,0.33,0.22,0.11,0.05")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--floors", default="0.1")
    parser.add_argument("--powers", default="1.0")
    parser.add_argument("--queries", default="mean_text,last")
    parser.add_argument("--batch-size", type=int, default=30)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    named = arms(args.floors.split(","), args.powers.split(","), args.queries.split(","), args.layer)
    settings = EvalSettings(
        methods=tuple(parse_methods(",".join(named.values()))),
        keeps=tuple(float(keep) for keep in args.keep.split(",")),
        suites=(args.suite,),
        samples=args.samples,
        seed=args.seed,
        layer=args.layer,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
    )
    loaded = load_model(args.model, args.device, args.dtype)

    def told(what: str, done: int, total: int) -> None:
        print(f"\r{done}/{total} {what:<90.90}", end="", flush=True)

    result = evaluate(loaded, settings, args.out, progress=told)
    print()
    (args.out / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (args.out / TABLES).write_text(markdown(result), encoding="utf-8")
    found = tables(result, named, args.out, args.layer)
    (args.out / OBJECTIVE).write_text(found, encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
