"""Questions whose answers changed, with small images and the tokens that each arm kept: what a report shows."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foveate.measure.eval.answers import token_bits, token_list
from foveate.measure.eval.suites import Example
from foveate.measure.loading import LoadedModel
from foveate.measure.overlay import NoGridError, image_grids, seen_image, visual_positions
from foveate.measure.resume import write_whole

GALLERY, ENTRIES = "gallery", "gallery.json"
LONGEST = 320  # pixels of a small image's longer side
QUALITY = 82  # of its JPEG

Rows = list[dict[str, Any]]


def write_gallery(
    folder: Path, loaded: LoadedModel, examples: Sequence[Example], answered: Sequence[tuple[str, Rows]], number: int
) -> None:
    """Write `number` questions to `folder/gallery`: `gallery.json` and a JPEG each.

    Parameters
    ----------
    folder
        Of the evaluation.
    loaded
        The model, which is not run: its processor says where the visual tokens lie.
    examples
        All questions.
    answered
        Each arm's label and rows, dense first, rows in the order of the examples.
    number
        How many questions are wanted: those whose answer an arm changed, of each task in turn.
    """
    place = folder / GALLERY
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    entries = []
    for at in changed(answered, number):
        entry, image = _entry(loaded, examples[at], [(label, rows[at]) for label, rows in answered])
        image.save(place / entry["image"], quality=QUALITY)
        entries.append(entry)
    write_whole(place / ENTRIES, entries)


def changed(answered: Sequence[tuple[str, Rows]], number: int) -> list[int]:
    """Return the places of the questions to show: those that an arm answers differently, of each task in turn."""
    dense = answered[0][1]
    by_task: dict[str, list[int]] = {}
    for at, row in enumerate(dense):
        if any(rows[at]["answer"] != row["answer"] for _, rows in answered[1:]):
            by_task.setdefault(row["task"], []).append(at)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_task.values()))
    return [at for at in in_turn if at is not None][:number]


def _entry(
    loaded: LoadedModel, example: Example, rows: list[tuple[str, dict[str, Any]]]
) -> tuple[dict[str, Any], Any]:
    """One question as plain data, and its small image."""
    inputs = loaded.process([example.question], [[example.image]])
    visual = visual_positions(loaded.model.config, inputs["input_ids"][0])
    cells, grid = None, None
    alone = len(example.images) == 1 and not example.videos
    try:
        (found,) = image_grids(loaded.model.config, inputs)
        if alone:  # of several, the tokens of one are not those that it has alone
            grid, cells = [found.height, found.width], torch.searchsorted(visual, found.positions.cpu())
    except (NoGridError, ValueError):  # no image, several, or no one grid: the answers are shown without the tokens
        pass
    image = seen_image(loaded.processor, inputs, 0, example.image).convert("RGB")
    image.thumbnail((LONGEST, LONGEST))
    evidence: list[int] = []
    if cells is not None and example.evidence is not None and example.evidence.numel():
        evidence = [int(token) for token in example.evidence if int(token) < len(cells)]
    return {
        "index": example.index,
        "task": rows[0][1]["task"],
        "question": example.question,
        "truth": example.answer,
        "image": f"{example.index}.jpg",
        "grid": grid,
        "evidence": evidence,
        "boxes": [list(box) for box in getattr(example, "boxes", ())],
        "answers": {
            label: {
                "answer": row["answer"],
                "correct": row["correct"],
                "kept": row["kept"],
                "cells": _on_grid(row.get("kept_tokens"), cells, visual.numel()),
            }
            for label, row in rows
        },
    }, image


def _on_grid(kept: str | None, cells: torch.Tensor | None, number: int) -> str | None:
    """The kept tokens row by row of the image's grid, as `token_bits` writes them."""
    if kept is None or cells is None or 4 * len(kept) < number:
        return None
    return token_bits(torch.tensor(token_list(kept, number))[cells])
