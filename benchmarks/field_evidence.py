"""Why a method wins or loses in the tables of field.py: how much of what the answer is read from it keeps.

    python benchmarks/field_evidence.py --seed 23 --out benchmarks/results/tiny_field

The share of the visual tokens under the evidence that are left behind the cut, mean over the questions, by kind of
answer, of every method of the table at the same cut; random tokens keep as much as the budget. `evidence.md` has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from field import settings_of
from field_table import AT, GROUPS, name_of, share, table

from foveate.measure import environment
from foveate.measure.eval.answers import token_list
from foveate.measure.eval.arms import evidence_masks, plan_arms
from foveate.measure.eval.batch import Batch, Way
from foveate.measure.eval.evaluate import SEEDS_APART, needs_evidence
from foveate.measure.eval.suites import Example, load_suite
from foveate.measure.loading import load_model

TOKENS = 256  # visual tokens of the embedded model
AGAIN = 0.11  # the second budget


def kept_evidence(example: Example, bits: str) -> float | None:
    """The share of a question's evidence among the tokens that are left; None without evidence."""
    if example.evidence is None or not example.evidence.numel():
        return None
    there = torch.tensor(token_list(bits, TOKENS))
    return float(there[example.evidence].double().mean())


def means(examples: Sequence[Example], shares: Sequence[float | None]) -> list[str]:
    """By group of tasks."""
    cells = []
    for tasks in GROUPS.values():
        own = [one for example, one in zip(examples, shares, strict=True) if one is not None and example.task in tasks]
        cells.append(share(sum(own) / len(own)))
    return cells


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=340)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=34)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded, examples = load_model("tiny", "cpu", "float32"), load_suite("scenes", args.samples, args.seed)
    arms = [
        arm
        for arm in plan_arms(settings_of("cut", args).methods, (AT, AGAIN), None, False)
        if arm.spec is not None and not needs_evidence(arm)
    ]
    shares: dict[str, list[float | None]] = {arm.label: [] for arm in arms}
    for number, at in enumerate(range(0, len(examples), args.batch_size)):
        own = examples[at : at + args.batch_size]
        batch = Batch(loaded, own, Way(max_new_tokens=1, which=True))
        for arm in arms:
            answers = batch.answer(arm.pruner(args.seed * SEEDS_APART + number, evidence_masks(own, TOKENS)))
            shares[arm.label] += [
                kept_evidence(*pair) for pair in zip(own, (one.kept_tokens for one in answers), strict=True)
            ]
        print(f"{at + len(own)}/{len(examples)}", flush=True)
    rows = {}
    for arm in arms:
        rows.setdefault(arm.method, [name_of(arm.method)]).extend(means(examples, shares[arm.label]))
    lines = [
        "# Evidence that is left",
        "",
        f"Made by `{environment.command()}`. The share of the visual tokens under the evidence that are left behind "
        f"the cut, %, mean over {args.samples} questions of 'scenes', seed {args.seed}.",
        "",
        *table(
            ["method", *(f"{group}, keep {keep:g}" for keep in (AT, AGAIN) for group in GROUPS)],
            sorted(rows.values(), key=lambda row: -float(row[1])),
        ),
    ]
    (args.out / "evidence.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
