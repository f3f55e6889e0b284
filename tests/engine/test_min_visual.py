"""`min_visual`: prompts with few visual tokens run dense and say so."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import foveate
from foveate.errors import BudgetError
from foveate.pruners import METHODS as METHOD_NAMES
from tests.laws.methods import METHODS
from tests.models.build import build, generate, inputs

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("method", ["greedyprune", "btp", "glimpseprune"])
def test_a_short_prompt_runs_dense_and_says_so(method):
    model, batch = build("llava"), inputs("llava", "one image")
    dense = generate(model, batch, 3)
    with foveate.make(method)(model) as pruned:
        generate(model, batch, 3)
    visual = pruned.report.stages[0].dense[0]
    with foveate.make(method, min_visual=visual)(model) as same:
        generate(model, batch, 3)
    assert not same.report.skipped
    with foveate.make(method, min_visual=visual + 1)(model) as skipped:
        out = generate(model, batch, 3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(out.logits, dense.logits, strict=True))
    assert skipped.report.skipped == f"{visual} visual tokens are fewer than min_visual={visual + 1}: so few run dense"
    assert skipped.report.kv_share == 1.0
    assert not skipped.report.stages


@pytest.mark.parametrize("method", ["greedyprune", "btp", "glimpseprune", "ladder from 0 compacted"])
def test_in_a_batch_each_sample_is_taken_by_itself(method):
    model, batch = build("llava"), inputs("llava", "ragged")
    with METHODS[method](model) as pruned:
        generate(model, batch, 2)
    few, many = sorted(pruned.report.stages[0].dense)[:: len(batch["input_ids"]) - 1]
    assert few < many
    with dataclasses.replace(METHODS[method], min_visual=many)(model) as mixed:
        generate(model, batch, 2)
    for before, after in zip(pruned.report.stages, mixed.report.stages, strict=True):
        for dense, was, now in zip(before.dense, before.kept, after.kept, strict=True):
            assert len(now) == dense if dense < many else torch.equal(was, now)


@pytest.mark.parametrize("wrong", [-1, 2.5, True, "8"])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_counts_only(method, wrong):
    with pytest.raises(BudgetError, match="min_visual"):
        foveate.make(method, min_visual=wrong)
