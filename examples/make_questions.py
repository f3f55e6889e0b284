"""Fifty questions as a file of one's own, for the example in docs/data.md: a JSONL with images beside it.

python examples/make_questions.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from foveate import tiny


def main(folder: Path, number: int = 50) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for at, (scene, question) in enumerate(tiny.held_out(number, seed=5)):  # scenes that the embedded model never saw
        scene.pil().save(folder / f"{at}.png")
        row = {"image": f"{at}.png", "question": question.text, "answer": question.answer, "task": question.task}
        lines.append(json.dumps(row))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} questions in {folder / 'questions.jsonl'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
