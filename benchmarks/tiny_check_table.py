"""Turn a result of `python -m foveate.tiny.check` into a Markdown page beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def page(result: dict[str, Any], source: str) -> str:
    made, figures = result["made"], result["figures"]
    tasks = [name for name in figures["dense"] if name not in ("all", "of_dense")]
    lines = [
        "# The embedded model, checked",
        "",
        f"Made by `tiny_check_table.py` from `{source}`; do not edit. `{made['command']}`: {made['questions']} "
        f"held-out questions, the nine tasks equally often, seed {made['seed']}; torch {made['torch']}, transformers "
        f"{made['transformers']}, {made['machine']}.",
        "",
        "| what | wanted | measured, % | |",
        "|---|---|---|---|",
        *(
            f"| {row['what']} | {row['wanted']} | {row['figure']:.1f} | {'' if row['met'] else '**missed**'} |"
            for row in result["wanted"]
        ),
        "",
        f"All figures, in per cent of the questions; selections keep {made['keep']:.0%} of the visual tokens.",
        "",
        f"| tokens shown | all | of dense | {' | '.join(tasks)} |",
        "|---" * (len(tasks) + 3) + "|",
        *(
            f"| {name} | {row['all']:.1f} | {row['of_dense']:.1f} | "
            + " | ".join(f"{row[t]:.0f}" for t in tasks)
            + " |"
            for name, row in figures.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: tiny_check_table.py RESULT.json")
    source = Path(sys.argv[1])
    target = source.with_suffix(".md")
    target.write_text(page(json.loads(source.read_text()), source.name))
    print(target)


if __name__ == "__main__":
    main()
