"""An entry of the report from what a prefill recorded, number by number; without a model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foveate.engine.flops import prefill_flops
from foveate.engine.forward_pass import PrefillRecord, StageRecord
from foveate.engine.report import Report, _equal, summarise
from foveate.pruners.base import Selection

CONFIG = SimpleNamespace(hidden_size=8, intermediate_size=20, num_attention_heads=4)
DEPTH = 4


def stage(layer, keep, into=None, weight=None, how="average"):
    """A cut of two samples of 6 and 4 visual tokens at dense positions 1 to 6 and 3 to 6, of one image and of two."""
    keep = torch.tensor(keep).bool()
    position = torch.tensor([[1, 2, 3, 4, 5, 6], [3, 4, 5, 6, -1, -1]])
    image = torch.tensor([[0] * 6, [0, 0, 1, 1, -1, -1]])
    selection = Selection(keep, into, weight, how)
    times = {"elapsed": lambda: 2.0, "passed": lambda: 5.0}
    return StageRecord(layer, position, image, keep, keep.sum(-1).tolist(), selection=selection, **times)


KEEP = [[1, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]
THEN = [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]


def record(*stages, **more):
    image = torch.full((2, 8), -1)
    image[0, 1:7], image[1, 3:5], image[1, 5:7] = 0, 0, 1
    return PrefillRecord([2, 3], [6, 4], image, list(stages), **more)


def test_counts_and_shares():
    found = summarise(record(stage(1, KEEP), stage(3, THEN)), CONFIG, DEPTH)
    assert found.tokens_per_layer == [5, 2, 2, 1]
    assert found.mean_tokens_per_layer == pytest.approx((10 + 4 + 4 + 2) / 40)
    assert found.kv_share == pytest.approx((10 + 4 + 4 + 2) / 40)
    assert found.last_layer_tokens == pytest.approx(2 / 10)
    assert (found.selection_ms, found.compaction_ms) == (4.0, 6.0)
    assert [[one.tolist() for one in cut.kept] for cut in found.stages] == [[[1, 3, 5], [4]], [[1], [4]]]
    assert found.stages[0].per_image == [[(3, 6)], [(1, 2), (0, 2)]]
    assert found.stages[0].dense == [6, 4]
    assert found.stages[0].merged == ()
    assert found.notes == []
    each = [[6, 3, 3, 1], [4, 1, 1, 1]]
    flops = [prefill_flops(CONFIG, [n + text for n in row]) for row, text in zip(each, (2, 3), strict=True)]
    assert found.flops_pruned == pytest.approx(sum(flops) / 2)
    assert found.flops_dense == pytest.approx((prefill_flops(CONFIG, [8] * 4) + prefill_flops(CONFIG, [7] * 4)) / 2)


def test_a_compacted_cache_holds_in_its_first_layers_what_was_left_last():
    found = summarise(record(stage(1, KEEP), stage(3, THEN), compacted=3), CONFIG, DEPTH)
    assert found.kv_share == pytest.approx(4 * 2 / 40)
    assert found.mean_tokens_per_layer == pytest.approx(20 / 40)
    found = summarise(record(stage(1, KEEP), stage(3, THEN), compacted=1), CONFIG, DEPTH)
    assert found.kv_share == pytest.approx((4 + 4 + 4 + 2) / 40)


def test_layers_without_a_cache_do_not_count_for_it():
    found = summarise(record(stage(1, KEEP), stage(3, THEN)), CONFIG, DEPTH, [False, True, True, True])
    assert found.kv_share == pytest.approx((4 + 4 + 2) / 30)


def test_a_prefill_that_was_not_pruned():
    found = summarise(record(skipped="paused"), CONFIG, DEPTH)
    assert found.tokens_per_layer == [5] * 4
    assert (found.mean_tokens_per_layer, found.kv_share, found.last_layer_tokens) == (1.0, 1.0, 1.0)
    assert found.skipped == "paused"
    none = summarise(PrefillRecord([2], [0], None), CONFIG, DEPTH)
    assert (none.mean_tokens_per_layer, none.kv_share, none.last_layer_tokens) == (1.0, 1.0, 1.0)
    assert none.flops_pruned == none.flops_dense == prefill_flops(CONFIG, [2] * 4)
    assert summarise(record(), SimpleNamespace(), DEPTH).flops_dense is None


def test_a_time_of_choosing_longer_than_the_whole_is_no_negative_time():
    one = stage(1, KEEP)
    one.passed = lambda: 1.5
    assert summarise(record(one), CONFIG, DEPTH).compaction_ms == 0.0
    one.passed = None
    assert summarise(record(one), CONFIG, DEPTH).compaction_ms == 0.0


def test_what_was_merged():
    into = torch.tensor([[0, 0, 2, 2, 4, -1], [1, 1, 1, 3, -1, -1]])  # the last but one points to what is dropped
    weight = torch.tensor([[0.0, 2.0, 0.0, 0.5, 0.0, 0.0], [1.0, 0.0, 3.0, 1.0, 0.0, 0.0]])
    found = summarise(record(stage(1, KEEP, into, weight, "add")), CONFIG, DEPTH)
    first, second = found.stages[0].merged
    assert (first.positions.tolist(), first.into.tolist(), first.weights.tolist()) == ([2, 4], [1, 3], [2.0, 0.5])
    assert (second.positions.tolist(), second.into.tolist()) == ([3, 5], [4, 4])
    assert first.how == "add"
    assert len(found.notes) == 1
    assert found.notes[0].endswith("; it was dropped")
    assert found.to_dict()["stages"][0]["merged"] == [2, 2]


EQUAL = [
    ([1, 2], [1, 2], True),
    ([1, 2], [1, 3], False),
    ([1, 2], [1], False),
    ([1], (1,), False),
    ([torch.tensor([1])], [torch.tensor([1])], True),
    ([torch.tensor([1])], [torch.tensor([2])], False),
    (torch.tensor([1]), [1], False),
    ([1], torch.tensor([1]), False),
    ({"a": [torch.tensor(1)]}, {"a": [torch.tensor(1)]}, True),
    ({"a": 1}, {"a": 2}, False),
    ({"a": 1}, {"b": 1}, False),
    ({"a": 1}, [1], False),
]


@pytest.mark.parametrize(("one", "other", "same"), EQUAL)
def test_equal_by_what_is_held(one, other, same):
    assert _equal(one, other) is same


def test_a_report_counts_its_prefills_unless_told():
    one = summarise(record(), CONFIG, DEPTH)
    assert Report((one, one)).seen == 2
    assert Report((one,), 0).seen == 0
    assert Report((one,), 7, {"paused": 3}).to_dict()["skips"] == {"paused": 3}
    assert Report((one,)) != Report((one,), 2)
    with pytest.raises(AttributeError, match="no kv_share yet"):
        Report(()).kv_share  # noqa: B018
    with pytest.raises(AttributeError, match="'nothing'"):
        Report((one,)).nothing  # noqa: B018
