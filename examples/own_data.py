"""Accuracy of a method on questions of your own, beside the dense model.

python examples/own_data.py FOLDER    # with questions.jsonl: {"image": "a.png", "question": "…", "answer": "…"} a line
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

import foveate
from foveate.measure.eval.answers import run_batch
from foveate.measure.eval.suites import is_correct
from foveate.measure.loading import load_model


def main(folder: Path, model: str = "tiny") -> None:
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    images = [[Image.open(folder / row["image"]).convert("RGB")] for row in rows]
    loaded = load_model(model, "auto", "auto")  # a Hub id, a folder, or `tiny`
    for pruner in (None, foveate.FastV(keep=0.5), foveate.FastV(keep=0.11), foveate.Random(keep=0.11, layer=2)):
        right = 0
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            batch = run_batch(loaded, [row["question"] for row in part], images[start : start + 16], pruner)
            right += sum(is_correct(text, row["answer"]) for text, row in zip(batch.texts, part, strict=True))
        name = "dense" if pruner is None else f"{pruner.name} keep={pruner.keep}"
        print(f"{name:18} {right} of {len(rows)} right")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
