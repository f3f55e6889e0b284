"""SCOPE against its rule, with every gain worked out at every pick."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from tests.pruners.encoder_tokens import encoder_tokens, kept

HOW = ("multiply", "add")
# with coverage alone, two tokens that cover each other add the same: later picks hang on rounding
CASES = [(4, 0.0, "multiply"), *((keep, alpha, how) for keep in (4, 25) for alpha in (1.0, 2.0) for how in HOW)]


@pytest.mark.parametrize(("keep", "alpha", "combine"), CASES)
def test_it_keeps_what_adds_most(keep, alpha, combine):
    tokens = encoder_tokens([[Grid(8, 10)], [Grid(5, 6)]])
    tokens = dataclasses.replace(tokens, class_received=(tokens.class_received[0] * 20,))
    found = foveate.SCOPE(keep=keep, alpha=alpha, combine=combine).select(tokens)
    for sample, number in enumerate((80, 30)):
        rows = tokens.vision[0][sample, :number].double()
        rows = rows / rows.norm(dim=1, keepdim=True)
        saliency = tokens.class_received[0][sample, :number].double() ** alpha
        chosen: list[int] = []
        while len(chosen) < keep:
            worth = {}
            for one in range(number):
                covered = torch.stack([torch.zeros(number).double(), *(rows @ rows[to] for to in chosen)]).amax(0)
                added = float((rows @ rows[one] - covered).clamp(min=0).sum())
                worth[one] = added + float(saliency[one]) if combine == "add" else added * float(saliency[one])
            chosen.append(max((one for one in range(number) if one not in chosen), key=worth.get))
        assert kept(found, sample) == sorted(chosen)


@pytest.mark.parametrize("options", [{"alpha": -1}, {"alpha": True}, {"alpha": float("nan")}, {"combine": "max"}])
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        foveate.SCOPE(**options)
