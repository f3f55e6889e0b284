"""Attention of the text behind the image: the right rows, of each sample, up to the question's end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from foveate.engine import attach
from foveate.pruners import Pruner
from tests.models.build import ATTENTIVE, IMAGE, build, inputs


@dataclass(frozen=True, kw_only=True)
class Listener(Pruner):
    """Asks for the attention of every text row at two stages; keeps everything."""

    name: ClassVar[str] = "listener"
    paper: ClassVar[str] = "test"
    summary: ClassVar[str] = "test"
    seen: list = field(default_factory=list)

    def layers(self, depth):
        return (1, 3)

    def attention_rows(self, layer, rows):
        return rows.text

    def select(self, tokens):
        self.seen.append(tokens)
        return tokens.valid

    def notes(self, depth):
        return (f"a note about {depth} layers",)


@pytest.mark.parametrize("family", ATTENTIVE)
@pytest.mark.parametrize("layout", ["one image", "two images", "ragged"])
@pytest.mark.parametrize("answer", [0, 2])
def test_sum_over_text_rows(family, layout, answer):
    batch = inputs(family, layout)
    length = batch["input_ids"].shape[1]
    options = {}
    if answer:  # scored with labels: the answer's rows do not count
        options["labels"] = batch["input_ids"].clone()
        options["labels"][:, : length - answer] = -100
    listener = Listener()
    with torch.no_grad():
        whole = build(family, "eager")(**batch, output_attentions=True).attentions
        with attach(build(family), listener, _always_gather=True) as pruned:
            pruned.model(**batch, **options)
    assert pruned.report.notes == ["a note about 6 layers"]
    visual = batch["input_ids"] == IMAGE
    behind = (visual.cumsum(-1) > 0) & ~visual & batch["attention_mask"].bool()
    behind[:, length - answer :] = False
    for tokens, layer in zip(listener.seen, (0, 2), strict=True):
        for row in range(len(visual)):
            expected = whole[layer][row][:, behind[row]][..., visual[row]].sum(1)
            ours = tokens.attention[row].sum(1)[:, : int(visual[row].sum())]
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
