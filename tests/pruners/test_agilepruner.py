"""AgilePruner against its formula, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.families import Grid
from foveate.pruners.agilepruner import effective_rank
from tests.models.build import build, generate, inputs
from tests.pruners.encoder_tokens import best, encoder_tokens, kept


def rank_of(rows) -> float:
    values = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    share = values / values.sum()
    return float(np.exp(-sum(one * np.log(one) for one in share if one > 0)))


@pytest.mark.parametrize(
    "options", [{}, {"average": 3.0}, {"average": 20.0, "limit": 1.5}, {"step": 0.3, "limit": 1.2}]
)
@pytest.mark.parametrize("keep", [2, 9, 20])
def test_it_keeps_attended_tokens_apart(keep, options):
    tokens = encoder_tokens([[Grid(6, 8)], [Grid(4, 6)]])
    method = foveate.AgilePruner(keep=keep, **{"step": 0.1, **options})
    found = method.select(tokens)
    for sample, number in enumerate((48, 24)):
        rows, attention = tokens.vision[0][sample, :number].double(), tokens.class_received[0][sample]
        ratio = rank_of(rows) / method.average if method.average else 1.0
        active, chosen = {*range(number)}, []
        while active and len(chosen) < keep:
            chosen.append(best(attention, 1, active)[0])
            limit = min(method.limit, len(chosen) * ratio * method.step)
            near = {one for one in active if 1 - torch.cosine_similarity(rows[one], rows[chosen[-1]], dim=0) < limit}
            active -= near | {chosen[-1]}
        chosen += best(attention, keep - len(chosen), [one for one in range(number) if one not in chosen])
        assert kept(found, sample) == sorted(chosen)


def test_a_complex_image_is_covered_more_evenly():
    tokens = encoder_tokens([[Grid(6, 8)], [Grid(6, 8)]])
    simple = torch.randn(48, 1) * torch.randn(6) + 0.01 * torch.randn(48, 6)
    tokens.vision[0][0] = simple
    found = effective_rank(tokens.vision[0], tokens.valid)
    assert found[0] < 1.5 < 3 < found[1]
    assert found.tolist() == pytest.approx([rank_of(rows) for rows in tokens.vision[0]], rel=1e-4)
    assert effective_rank(torch.zeros(1, 4, 3), torch.zeros(1, 4, dtype=torch.bool)).isfinite().all()
    padded = torch.cat([tokens.vision[0], torch.full((2, 5, 6), 9.0)], 1)
    valid = torch.arange(53).expand(2, -1) < 48
    torch.testing.assert_close(effective_rank(padded, valid), found)


def test_the_report_says_that_no_average_was_given():
    model = build("llava")
    with foveate.AgilePruner(keep=0.3)(model) as pruned:
        generate(model, inputs("llava", "one image"), 1)
    assert "no average rank" in str(pruned.report)
    with foveate.AgilePruner(keep=0.3, average=30.0)(model) as pruned:
        generate(model, inputs("llava", "one image"), 1)
    assert "no average rank" not in str(pruned.report)


@pytest.mark.parametrize("options", [{"average": 0.0}, {"limit": 3.0}, {"step": -0.1}])
def test_options_that_make_no_sense(options):
    with pytest.raises(BudgetError, match=next(iter(options))):
        foveate.AgilePruner(**options)
