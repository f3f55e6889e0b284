"""Tokens that leave may go into survivors: what they become, and what cannot be said."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from foveate.engine import attach
from foveate.engine.cut import merge
from foveate.families import Grid
from foveate.pruners import Selection, SingleStagePruner
from foveate.testing import dense_run
from tests.fake_devices import FakeDevices
from tests.laws.methods import Ladder, Merging
from tests.models.build import build, inputs
from tests.pruners.visual_tokens import visual_tokens


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "qwen3_5"])
@pytest.mark.parametrize("how", ["average", "add"])
def test_weights_of_zero_are_plain_pruning_to_the_bit(family, how):
    model, batch, found = build(family), inputs(family, "ragged"), []
    for method in (Ladder(), Merging(how=how, factor=0.0), Merging(how=how)):
        with attach(model, method) as handle:
            found.append(torch.stack(dense_run(model, batch, 3).logits))
        assert [len(kept) for kept in handle.report.stages[-1].kept]
    plain, none, merged = found
    assert torch.equal(plain, none)
    assert not torch.equal(plain, merged)


@pytest.mark.parametrize("how", ["average", "add"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_survivor_becomes_what_is_promised(how, dtype):
    hidden = torch.randn(1, 6, 4, dtype=torch.float64).to(dtype)
    columns = torch.tensor([[1, 2, 4, 5]])
    keep = torch.tensor([[True, False, False, True]])
    into, weight = torch.tensor([[3, 0, 0, -1]]), torch.tensor([[9.0, 0.5, 2.0, 9.0]])
    merged = merge(hidden, columns, keep, torch.ones_like(keep), Selection(keep, into, weight, how))
    total = hidden[0, 1].double() + 0.5 * hidden[0, 2].double() + 2 * hidden[0, 4].double()
    expected = hidden.clone()
    expected[0, 1] = (total / 3.5 if how == "average" else total).to(dtype)
    torch.testing.assert_close(merged, expected, atol=1e-12 if dtype == torch.float64 else 1e-2, rtol=0)
    assert torch.equal(merged[0, [0, 2, 3, 4, 5]], hidden[0, [0, 2, 3, 4, 5]])


@dataclass(frozen=True, kw_only=True)
class Halves(SingleStagePruner):
    """Keeps the first k tokens of each row that it is shown; the others go into the first, the i-th by 1 + i."""

    name: ClassVar[str] = "halves"
    paper: ClassVar[str] = "test"
    summary: ClassVar[str] = "test"
    weighted: bool = True

    def choose(self, tokens, k):
        rank = (tokens.valid.cumsum(-1) - 1).masked_fill(~tokens.valid, 99)
        keep = rank < k[:, None]
        first = tokens.valid.to(torch.uint8).argmax(-1, keepdim=True).expand_as(rank)
        return Selection(keep, torch.where(keep, -1, first), 1.0 + rank if self.weighted else None, "add")


@pytest.mark.parametrize("weighted", [True, False])
def test_with_a_budget_for_each_image_tokens_merge_inside_it(weighted):
    tokens = visual_tokens([[Grid(2, 2), Grid(1, 3)], [Grid(1, 2)]])
    found = Halves(keep=0.5, per="image", weighted=weighted).select(tokens)
    assert (found.keep & tokens.valid).nonzero().tolist() == [[0, 0], [0, 1], [0, 4], [0, 5], [1, 0]]
    assert found.into[0].tolist() == [-1, -1, 0, 0, -1, -1, 4]
    assert found.into[1, :2].tolist() == [-1, 0]
    assert found.how == "add"
    if weighted:
        assert found.weight[0, [2, 3, 6]].tolist() == [3, 4, 3]
        assert found.weight[1, 1] == 2
    else:
        assert found.weight is None


def test_what_is_dropped_may_hold_anything():
    hidden = torch.randn(1, 3, 4)
    hidden[0, 1] = torch.nan
    keep = torch.tensor([[True, False, False]])
    selection = Selection(keep, torch.tensor([[-1, 0, 0]]), torch.tensor([[1.0, 0.0, 1.0]]))
    merged = merge(hidden, torch.arange(3)[None], keep, torch.ones_like(keep), selection)
    torch.testing.assert_close(merged[0, 0], (hidden[0, 0] + hidden[0, 2]) / 2)


def test_the_report_says_what_went_where():
    model, batch = build("llava"), inputs("llava", "ragged")
    with attach(model, Merging(cuts=(2,))) as handle:
        dense_run(model, batch, 1)
    (stage,) = handle.report.stages
    assert stage.merged
    for merged, kept in zip(stage.merged, stage.kept, strict=True):
        assert len(merged.positions)
        assert torch.isin(merged.into, kept).all()
        assert not torch.isin(merged.positions, kept).any()
    assert handle.report.to_dict()["prefills"][0]["stages"][0]["merged"] == [len(m.positions) for m in stage.merged]


@dataclass(frozen=True, kw_only=True)
class Wrong(Merging):
    change: str = ""

    def select(self, tokens):
        found = super().select(tokens)
        if self.change == "to one that leaves":
            return dataclasses.replace(found, into=torch.full_like(found.into, int((~found.keep[0]).nonzero()[0])))
        if self.change == "to one beyond the last":
            return dataclasses.replace(found, into=torch.full_like(found.into, found.into.shape[1]))
        wrong = {
            "shape": {"into": found.into[:, :-1]},
            "type": {"into": found.into.float()},
            "weight": {"weight": found.weight.long()},
            "negative": {"weight": -found.weight},
            "no number": {"weight": found.weight * torch.nan},
            "alone": {"into": None},
            "how": {"how": "mean"},
        }
        return dataclasses.replace(found, **wrong[self.change])


@pytest.mark.parametrize(
    "change",
    [
        "to one that leaves",
        "to one beyond the last",
        "shape",
        "type",
        "weight",
        "negative",
        "no number",
        "alone",
        "how",
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(change):
    model = build("llava")
    with pytest.raises((TypeError, ValueError), match="into|weight|how"), attach(model, Wrong(change=change)):
        dense_run(model, inputs("llava", "one image"), 1)


@pytest.mark.parametrize("change", ["to one that leaves", "to one beyond the last", "negative", "no number"])
def test_on_a_device_that_nobody_waits_for_it_is_dropped_and_said(change):
    model, batch, found = build("llava"), inputs("llava", "one image"), []
    for method in (Ladder(cuts=(2,)), Wrong(change=change, cuts=(2,))):
        with FakeDevices(), attach(model, method) as handle:
            found.append(torch.stack(dense_run(model, batch, 2).logits))
    (said,) = [note for note in handle.report.notes if "was dropped" in note]
    assert ("weight" if change in ("negative", "no number") else "`into` names survivors") in said
    assert not len(handle.report.stages[0].merged[0].positions)
    assert torch.equal(*found)


def test_the_gradient_goes_through_both():
    hidden = torch.randn(1, 2, 3, requires_grad=True)
    keep = torch.tensor([[True, False]])
    selection = Selection(keep, torch.tensor([[-1, 0]]))
    merge(hidden, torch.arange(2)[None], keep, torch.ones_like(keep), selection)[0, 0].sum().backward()
    assert torch.equal(hidden.grad, torch.full_like(hidden, 0.5))
