"""AnchorPrune against its rule, token by token."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners import anchorprune
from tests.models.build import build, generate, inputs
from tests.pruners.encoder_tokens import encoder_tokens, kept

TEXT = (5, 2)


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("keep", [2, 7, 14, 20])
@pytest.mark.parametrize("novelty", [0.05, 0.5, 0.9, 2.0])
def test_it_keeps_anchor_and_expansion(keep, novelty, lazily, monkeypatch):
    monkeypatch.setattr(anchorprune, "WORTH", 0 if lazily else 10**9)
    tokens = encoder_tokens([[Grid(6, 8)], [Grid(4, 5)]])
    there = torch.arange(5) < torch.tensor(TEXT)[:, None]
    tokens = dataclasses.replace(tokens, text=torch.randn(2, 5, 8).masked_fill(~there[..., None], 0))
    found = foveate.AnchorPrune(keep=keep, novelty=novelty).select(tokens)
    for sample, number in enumerate((48, 20)):
        rows, text = tokens.features[sample].double(), tokens.text[sample, : TEXT[sample]].double()

        def cosine(one, other):
            return float(torch.cosine_similarity(one, other, dim=0))

        relevance = [max(cosine(rows[one], word) for word in text) for one in range(number)]
        order = sorted(range(number), key=lambda one: -relevance[one])
        first = order[: max(1, keep * 5 // 32)]
        chosen, novel = list(first), 0
        for one in order[len(first) : keep // 2]:
            if novel == 3:
                break
            chosen.append(one)
            novel += min(1 - cosine(rows[one], rows[other]) for other in first) > novelty
        while len(chosen) < keep:
            importance = tokens.class_received[0][sample].double()
            rest = [one for one in range(number) if one not in chosen]
            worth = {
                one: float(importance[one]) * min([1.0] + [1 - cosine(rows[one], rows[other]) for other in chosen])
                for one in rest
            }
            chosen.append(max(rest, key=worth.get))
        assert kept(found, sample) == sorted(chosen)


def test_the_report_says_what_stands_in_for_clip():
    model = build("llava")
    with foveate.AnchorPrune(keep=0.3)(model) as pruned:
        generate(model, inputs("llava", "one image"), 1)
    assert "no CLIP text tower" in str(pruned.report)


@pytest.mark.parametrize("novelty", [-0.1, float("nan"), True, "0.2"])
def test_novelty_that_makes_no_sense(novelty):
    with pytest.raises(BudgetError, match="novelty"):
        foveate.AnchorPrune(novelty=novelty)
