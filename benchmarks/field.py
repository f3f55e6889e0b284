"""All methods beside each other on the embedded model, at five budgets: at the same cut, and at the same mean share.

    python benchmarks/field.py --seed 23 --out benchmarks/results/tiny_field
    python benchmarks/field_table.py benchmarks/results/tiny_field

answers every question with every method twice: with `keep` of the tokens behind one cut (before layer 2 for what looks
into the language model, before layer 0 for what does not), and, where a cut in another place or several cost
otherwise, with `keep` as the mean share over the layers. It is two runs of `foveate eval`; a stopped one continues.
`--part` does one of them (two processes side by side), `--minutes` stops after so many and gives the result of the
questions that every method has answered. Several processes share the batches, as those of `foveate eval` do:
`python -m torch.distributed.run --nproc_per_node 2 benchmarks/field.py …`.

It writes what `foveate eval` writes, to OUT and OUT_mean.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from foveate.measure.eval.evaluate import RESULT, TABLES, EvalSettings, evaluate
from foveate.measure.eval.tables import markdown
from foveate.measure.loading import load_model
from foveate.measure.processes import current
from foveate.pruners.spec import parse_methods

KEEPS = (0.5, 0.33, 0.22, 0.11, 0.05)
INSIDE = (
    "greedyprune",
    "greedyprune:objective=threshold",
    "greedyprune:objective=threshold,saliency=attention,query=mean_text,threshold=1.0",  # saliency alone: plain top-k
    "greedyprune:floor=1000.0",  # diversity alone: no saliency counts beside it
    "divprune",
    "fastv",
    "dart",
    "vlmpruner",
    "ivcprune",
    "evidence",
)
BEFORE = (
    "agilepruner",
    "anchorprune",
    "apet",
    "cdpruner",
    "divprune",
    "fastervlm",
    "greedyprune",
    "hiprune",
    "holov",
    "mmtok",
    "pool",
    "prunesid",
    "scope",
    "tome",
    "uniform",
    "visionzip",
    "vispruner",
)
STAGED = ("benchmarks/results/btp_calibration_64", "btp", "pyramiddrop", "sparsevlm", "v2drop")
STAGED += tuple(f"vtw:keep={keep:g}" for keep in KEEPS[:-1])  # a mean that is its own budget; one layer is 8 %
LAYER = 2


def placed(method: str, layer: int) -> str:
    """The method, cut before this layer."""
    return f"{method}{',' if ':' in method else ':'}layer={layer}"


def methods_of(part: str) -> str:
    """The methods of the table at the same cut, or of that at the same mean, as `foveate eval` is given them."""
    inside = [placed(one, LAYER) for one in INSIDE]
    if part == "cut":
        return ",".join([*inside, *(placed(one, 0) for one in BEFORE)])
    # methods before the language model have the same mean as at the same cut: they are not answered twice
    return ",".join([*STAGED, *inside, "glimpseprune-tiny"])


def settings_of(part: str, args: argparse.Namespace) -> EvalSettings:
    return EvalSettings(
        methods=tuple(parse_methods(methods_of(part))),
        keeps=KEEPS,
        samples=args.samples,
        seed=args.seed,
        budget="after" if part == "cut" else "mean",
        batch_size=args.batch_size,
    )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1088)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=34)
    parser.add_argument("--part", choices=("cut", "mean"), help="this alone; by default both")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of each run, after which it stops")
    return parser.parse_args()


def run(part: str, args: argparse.Namespace, folder: Path) -> None:
    """Answer, and write the result."""
    begun = time.monotonic()

    def told(what: str, done: int, total: int) -> None:
        print(f"[{time.monotonic() - begun:.0f} s, CPU {time.process_time():.0f} s] {done}/{total} {what}", flush=True)

    def enough() -> bool:
        return time.monotonic() - begun > 60 * args.minutes

    loaded, processes = load_model("tiny", "cpu", "float32"), current()
    result = evaluate(loaded, settings_of(part, args), folder, progress=told, processes=processes, enough=enough)
    if not processes.main:
        return
    (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / TABLES).write_text(markdown(result), encoding="utf-8")


def main() -> None:
    args = options()
    torch.set_num_threads(1)
    folders = {"cut": args.out, "mean": args.out.with_name(f"{args.out.name}_mean")}
    for part, folder in folders.items():
        if args.part in (None, part):
            run(part, args, folder)


if __name__ == "__main__":
    main()
