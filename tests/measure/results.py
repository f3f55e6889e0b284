"""A result of `foveate eval` with known answers, made without a model."""

import json
import random
from pathlib import Path
from typing import Any

from foveate.measure.eval.arms import EvalArm
from foveate.measure.eval.evaluate import JOURNAL, RESULT
from foveate.measure.eval.gallery import ENTRIES, GALLERY
from foveate.measure.eval.summary import summarise
from foveate.pruners.spec import MethodSpec
from tests.measure.folders import picture

TASKS = ("colour", "count & more", "<read>")
NASTY = "</script><img src=x onerror=alert(1)>"


def write_result(folder: Path, better: float = 0.0, questions: int = 30, timed: bool = True) -> Path:
    """Write result, answers and gallery; `better` is added to the chance that a pruned answer is right."""
    draw = random.Random(0)
    random_tokens, fastv = MethodSpec("random"), MethodSpec("fastv")
    arms = [EvalArm("dense"), EvalArm("downsample", 0.5)]
    arms += [EvalArm(str(spec), keep, spec) for spec in (random_tokens, fastv) for keep in (0.5, 0.25)]
    answered = []
    for arm in arms:
        keep = 1.0 if arm.method == "downsample" else arm.keep
        lost = 0.0 if arm.method == "dense" else 0.6 * (1 - arm.keep) - better
        answered.append((arm, [_row(arm.label, at, draw.random() > 0.1 + lost, keep) for at in range(questions)]))
    configuration = {"model": "some/model", "suite": "words", "samples": questions, "seed": 0, "budget": "after"}
    configuration |= {"questions": "abc", "weights": "def", "dtype": "float32", "versions": {"foveate": "0"}}
    result = {
        "format": "foveate-eval-1",
        "created": "2026-01-01T00:00:00+00:00",
        "command": "foveate eval --suite words",
        "configuration": configuration,
        "machine": {"device": "cpu", "cpu": "a CPU"},
        "out_of_reach": [],
        **summarise(answered, 0),
    }
    if timed:
        result["time"] = {"rounds": 3, "batch_size": 2, "new_tokens": 8, "clock": "wall"}
        for arm, entry in zip(arms, result["arms"], strict=True):
            faster = {"median": 1 / arm.keep, "q25": 0.9 / arm.keep, "q75": 1.1 / arm.keep}
            entry["time"] = {"prefill_ms": 10.0, "total_ms": 20.0, "prefill_faster": faster, "total_faster": faster}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(result))
    lines = [{"configuration": configuration}, *(row for _, rows in answered for row in rows)]
    (folder / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    _write_gallery(folder / GALLERY, [(arm.label, rows) for arm, rows in answered])
    return folder


def _row(arm: str, index: int, right: bool, keep: float) -> dict[str, Any]:
    shares = dict.fromkeys(("mean_tokens_per_layer", "kv_share", "flops_share"), keep)
    answer = f"word{index % 3}" if right else "nothing"
    kept = round(16 * keep)
    return {
        "arm": arm,
        "index": index,
        "task": TASKS[index % 3],
        "truth": f"word{index % 3}",
        "correct": right,
        "answer": answer,
        "kept": kept,
        "visual": 16,
        **shares,
        "skipped": None,
    }


def _write_gallery(folder: Path, answered: list[tuple[str, list[dict[str, Any]]]]) -> None:
    folder.mkdir()
    entries = []
    for at in range(9):
        picture(at).save(folder / f"{at}.jpg")
        answers = {
            label: {
                **{key: rows[at][key] for key in ("answer", "correct", "kept")},
                "cells": "f0a5" if label.startswith(("random", "fastv")) else None,
            }
            for label, rows in answered
        }
        first = answered[0][1][at]
        question = f"what is it, {at}? {NASTY if at == 0 else ''}"
        entry = {"index": at, "task": first["task"], "question": question, "truth": first["truth"]}
        entries.append(
            entry
            | {
                "image": f"{at}.jpg",
                "grid": [4, 4],
                "evidence": [5, 6],
                "boxes": [[0.1, 0.1, 0.5, 0.4]] if at == 1 else [],
                "answers": answers,
            }
        )
    (folder / ENTRIES).write_text(json.dumps(entries))
