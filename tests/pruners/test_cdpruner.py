"""CDPruner against its objective: the determinant of the kernel's selected part, tried token by token."""

from __future__ import annotations

import math

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from tests.models.build import build, generate, inputs
from tests.pruners.visual_tokens import visual_tokens


def slow(features, text, k: int, theta: float | None) -> list[int]:
    features, text = features.double(), text.double()
    cosines = [float(row @ text / (row.norm() * text.norm())) for row in features]
    relevance = [(one - min(cosines)) / (max(cosines) - min(cosines)) + 1e-6 for one in cosines]
    if theta is not None:
        relevance = [math.exp(theta / (2 * (1 - theta)) * one) for one in relevance]
    unit = features / features.norm(dim=1, keepdim=True)
    r = torch.tensor(relevance, dtype=torch.float64)
    kernel = r[:, None] * (unit @ unit.T) * r
    chosen: list[int] = []
    while len(chosen) < k:
        rest = [one for one in range(len(features)) if one not in chosen]
        chosen.append(max(rest, key=lambda one: float(kernel[[*chosen, one]][:, [*chosen, one]].det())))
    return sorted(chosen)


@pytest.mark.parametrize("theta", [None, 0.8])
def test_it_keeps_what_the_determinant_says(theta):
    tokens = visual_tokens([[Grid(4, 5)], [Grid(3, 3)]])
    keep = foveate.CDPruner(keep=5, theta=theta).select(tokens)
    for sample, number in enumerate((20, 9)):
        wanted = slow(tokens.features[sample, :number], tokens.mean_text[sample], 5, theta)
        assert keep[sample].nonzero()[:, 0].tolist() == wanted


@pytest.mark.parametrize("theta", [0, 1, float("nan"), True, "0.5"])
def test_theta_that_makes_no_sense(theta):
    with pytest.raises(BudgetError, match="theta"):
        foveate.CDPruner(theta=theta)


def test_the_report_says_what_stands_in_for_clip():
    model = build("llava")
    with foveate.CDPruner(keep=0.3)(model) as pruned:
        generate(model, inputs("llava", "one image"), 1)
    assert "no CLIP text tower" in str(pruned.report)
