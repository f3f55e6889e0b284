"""SCOPE against its rule, with every gain worked out at every pick."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners import scope
from foveate.select import cover
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


@pytest.mark.parametrize("add", [False, True])
def test_a_batch_in_blocks_gives_what_its_samples_give(add, monkeypatch):
    """As on a GPU, where a batch is chosen from together; with ties, of which the first token is taken."""
    torch.manual_seed(0)
    features, saliency, k = torch.randn(2, 90, 8), torch.rand(2, 90), torch.tensor([40, 9])
    features[:, 50:60] = features[:, 40:50]
    saliency[:, 50:60] = saliency[:, 40:50]
    valid = torch.arange(90) < torch.tensor([90, 70])[:, None]
    monkeypatch.setattr(cover, "CROWD", 90)
    alone = [
        scope.covering(*(one[row : row + 1, :number] for one in (features, saliency)), k[row : row + 1], there, add)
        for row, (number, there) in enumerate((n, torch.ones(1, n, dtype=torch.bool)) for n in (90, 70))
    ]
    for name, small in {"CROWD": 4, "PICKS": 2, "ROWS": 16}.items():
        monkeypatch.setattr(cover, name, small)
    together = scope.covering(features, saliency, k, valid, add)
    assert together.sum(-1).tolist() == k.tolist()
    for row, one in enumerate(alone):
        assert torch.equal(together[row, valid[row]], one[0])


@pytest.mark.parametrize("options", [{"alpha": -1}, {"alpha": True}, {"alpha": float("nan")}, {"combine": "max"}])
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        foveate.SCOPE(**options)


def test_a_sample_without_tokens():
    nothing = torch.zeros(1, 0)
    keep = scope.covering(torch.zeros(1, 0, 4), nothing, torch.tensor([0]), nothing.bool(), add=False)
    assert keep.shape == (1, 0)
