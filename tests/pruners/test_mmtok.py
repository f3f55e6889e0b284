"""MMTok against its rule, coverage by coverage."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners import mmtok
from foveate.select import cover
from tests.models.build import build, generate, inputs
from tests.pruners.encoder_tokens import encoder_tokens, kept

TEXT = (5, 0)


def softmax(row: list[float]) -> list[float]:
    whole = sum(math.exp(one) for one in row)
    return [math.exp(one) / whole for one in row]


@pytest.mark.parametrize("options", [{}, {"alpha": 0.0}, {"alpha": 3.0, "text_temperature": 0.5}])
@pytest.mark.parametrize(("keep", "crowd"), [(2, 64), (9, 5), (20, 64), (20, 1)])
def test_it_keeps_what_covers_most(keep, crowd, options, monkeypatch):
    monkeypatch.setattr(cover, "CROWD", crowd)
    for module in (cover, mmtok):
        monkeypatch.setattr(module, "ROWS", 7)
    tokens = encoder_tokens([[Grid(6, 8)], [Grid(4, 6)]])
    there = torch.arange(5) < torch.tensor(TEXT)[:, None]
    tokens = dataclasses.replace(tokens, text=torch.randn(2, 5, 8).masked_fill(~there[..., None], 0))
    method = foveate.MMTok(keep=keep, **options)
    found = method.select(tokens)
    for sample, number in enumerate((48, 24)):
        seen, outputs = tokens.features[sample, :number].double(), tokens.vision[0][sample, :number].double()

        def cosines(one, others):
            return [float(torch.cosine_similarity(one, other, dim=0)) for other in others]

        words = tokens.text[sample, : TEXT[sample]].double()
        rows = [
            [share / len(words) for share in softmax([one / method.text_temperature for one in cosines(word, seen)])]
            for word in words
        ]
        rows += [
            [method.alpha * share / number for share in softmax([one / 0.2 for one in cosines(output, outputs)])]
            for output in outputs
        ]
        if sum(map(sum, rows)) == 0:
            assert int(found[sample].sum()) == keep
            continue
        chosen: list[int] = []
        covered = [0.0] * len(rows)
        while len(chosen) < keep:
            gain = {
                one: sum(max(0.0, row[one] - so_far) for row, so_far in zip(rows, covered, strict=True))
                for one in range(number)
                if one not in chosen
            }
            chosen.append(max(gain, key=gain.get))
            covered = [max(so_far, row[chosen[-1]]) for row, so_far in zip(rows, covered, strict=True)]
        assert kept(found, sample) == sorted(chosen)


def test_the_report_says_which_text_it_is():
    model = build("llava")
    with foveate.MMTok(keep=0.3)(model) as pruned:
        generate(model, inputs("llava", "one image"), 1)
    assert "stop words" in str(pruned.report)


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"text_temperature": 0.0}, {"image_temperature": float("nan")}])
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        foveate.MMTok(**options)
