"""A layer's arguments for the tokens that are left, and the state of a forward pass; on tensors, without a model."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from foveate.engine.arguments import cache_of, refuse_unknown_cache
from foveate.engine.forward_pass import ForwardPass, PrefillRecord
from foveate.engine.layer_inputs import (
    _inside,
    _pick_mask,
    _pick_tokens,
    check_even,
    check_state_masks,
    check_tokens,
    refuse_unknown,
    row_scale,
)
from foveate.engine.layout import Layout
from foveate.engine.prompt import Prompt
from foveate.errors import UnsupportedCacheError, UnsupportedModelError
from foveate.pruners import FastV, Random

KEPT = torch.tensor([[1, 2, 5], [0, 3, 5]])
PADDED = torch.tensor([[False, True, True], [True, True, True]])


def prompt(real=None, query=(5, 4), text=(1, 2), visual=(5, 4), counts=None):
    grid = torch.zeros(2, 6, dtype=torch.bool)
    layout = Layout(torch.full((4, 2, 6), -1), ((), ()), True)
    record = PrefillRecord(list(text), list(visual), None)
    return Prompt(grid, layout, real, torch.tensor(query), list(counts or visual), record, grid, None, False)


@pytest.mark.parametrize(("length", "found"), [(6, [0, 2, 5]), (8, [2, 4, 7]), (5, [0, 1, 4]), (4, [0, 0, 3])])
def test_where_dense_positions_are_in_what_a_layer_is_handed(length, found):
    """Of 6 tokens, those at 0, 2 and 5; of other lengths the last entries are meant."""
    assert _inside(length, ForwardPass(6), torch.tensor([[0, 2, 5]])).tolist() == [found]


def test_the_methods_own_tokens_come_before_those_of_the_prompt_where_tables_are_longer():
    assert _inside(8, ForwardPass(6, extra=2), torch.tensor([[0, 5, 6, 7]])).tolist() == [[2, 7, 0, 1]]


def test_other_arguments_with_an_entry_a_token():
    forward = ForwardPass(6, kept=KEPT)
    value = torch.arange(12.0).view(2, 6)
    assert _pick_tokens("one", value, 1, forward, KEPT).tolist() == [[1, 2, 5], [6, 9, 11]]
    assert _pick_tokens("one", value.T[:, :, None], 0, forward, KEPT[:1]).shape == (3, 2, 1)
    added = torch.cat([KEPT, torch.tensor([[6, 7]] * 2)], 1)
    found = _pick_tokens("one", value + 1, 1, ForwardPass(6, kept=added, extra=2), added)
    assert found.tolist() == [[2, 3, 6, 0, 0], [7, 10, 12, 0, 0]]
    with pytest.raises(UnsupportedModelError, match="'one' must have one entry a token .* has 6 for 4 tokens"):
        _pick_tokens("one", value, 1, ForwardPass(6, newest=4), KEPT)
    assert _pick_tokens("one", value[:, 2:], 1, ForwardPass(6, newest=4), KEPT + 0).tolist()[0][2] == 5.0


def test_an_argument_of_another_length_is_refused():
    check_tokens("one", torch.zeros(2, 5, 3), 1, 5)
    for axis, length in ((0, 5), (1, 4), (2, 5)):
        with pytest.raises(UnsupportedModelError, match=f"for {length} tokens"):
            check_tokens("one", torch.zeros(2, 5, 3), axis, length)


UNKNOWN = [  # name, value, whether it is refused among 5 tokens
    ("mine", torch.zeros(2, 5), True),
    ("mine", torch.zeros(5), True),
    ("mine", torch.zeros(2, 4), False),
    ("mine", [0] * 5, False),
    ("known", torch.zeros(2, 5), False),
    ("labels", torch.zeros(2, 5), False),
    ("attention_mask", torch.zeros(2, 5), False),
    ("cu_seq_lens_q", torch.zeros(2), True),
    ("cu_seq_lens_q", None, False),
]


@pytest.mark.parametrize(("name", "value", "refused"), UNKNOWN)
def test_an_unknown_argument_with_an_entry_a_token_is_refused(name, value, refused):
    if refused:
        with pytest.raises(UnsupportedModelError, match=r"packed sequences|one entry a token"):
            refuse_unknown({name: value}, 5, {"known": 1})
    else:
        refuse_unknown({name: value}, 5, {"known": 1})


def test_rows_are_scaled_by_where_they_stood():
    """By the number of a row among those left, the layer would scale; the ratio puts that right."""

    def scale(position):
        return 1 + position.float() // 4

    assert row_scale(ForwardPass(6), scale, 0) is None
    assert row_scale(ForwardPass(3, kept=torch.tensor([[0, 2]])), scale, 0) is None
    assert row_scale(ForwardPass(4, kept=torch.tensor([[0, 2]])), scale, 0) is not None
    found = row_scale(ForwardPass(6, kept=torch.tensor([[1, 4, 5]])), scale, 3)
    assert found.tolist() == [[2 / 1, 2 / 2, 3 / 2]]


def test_a_mask_of_a_layer_with_a_state():
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]])
    hidden = torch.zeros(2, 3, 4)
    assert _pick_mask(mask, ForwardPass(6, kept=KEPT), hidden).tolist() == [[0, 1, 1], [1, 4, 6]]
    assert _pick_mask(mask, ForwardPass(6, kept=KEPT, valid=PADDED), hidden).tolist() == [[0, 1, 1], [1, 4, 6]]
    assert _pick_mask(1 + 0 * mask, ForwardPass(6, kept=KEPT, valid=PADDED), hidden).tolist() == [[0, 1, 1], [1, 1, 1]]
    longer = torch.cat([torch.zeros(2, 2).long(), mask], 1)  # of a conversation: the newest entries
    assert _pick_mask(longer, ForwardPass(6, kept=KEPT), hidden).tolist() == [[0, 1, 1], [1, 4, 6]]
    added = torch.tensor([[2, 5, 6], [0, 6, 7]])
    assert _pick_mask(mask, ForwardPass(6, kept=added, extra=2), hidden).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert _pick_mask(None, ForwardPass(6, kept=KEPT, valid=PADDED), hidden) is PADDED
    with pytest.raises(UnsupportedModelError, match="linear attention take a mask"):
        _pick_mask(mask[:, None, None], ForwardPass(6, kept=KEPT), hidden)


def test_masks_by_kind_of_layer():
    check_state_masks({"linear": None, "full": torch.zeros(1, 1, 2, 2)}, ["linear"])
    check_state_masks(torch.zeros(1, 1, 2, 2), ["linear"])
    check_state_masks({"linear": torch.zeros(1, 2)}, ["linear", "other"])
    for wrong in (torch.zeros(2), torch.zeros(1, 1, 2, 2), "no"):
        with pytest.raises(UnsupportedModelError, match="one entry a token"):
            check_state_masks({"linear": wrong}, ["linear"])


EVEN = [  # text, visual, those present, keep, whether each sample has as many tokens after the cut
    ((2, 2), (6, 6), (6, 6), 3, True),
    ((2, 3), (6, 6), (6, 6), 3, False),
    ((3, 2), (5, 6), (5, 6), 2, False),
    ((2, 2), (5, 6), (5, 6), 2, True),
    ((2, 2), (5, 6), (5, 6), 0.5, False),
    ((2, 3), (6, 6), (0, 0), 3, True),
]


@pytest.mark.parametrize(("text", "visual", "present", "keep", "even"), EVEN)
def test_samples_with_a_state_keep_as_many_tokens(text, visual, present, keep, even):
    given = prompt(text=text, visual=visual, counts=present)
    if even:
        check_even(given, Random(keep=keep, layer=1), [1], always=False)
        return
    with pytest.raises(UnsupportedCacheError, match="different numbers of visual tokens"):
        check_even(given, Random(keep=keep, layer=1), [1], always=False)


def test_where_all_stay_padding_matters_only_if_it_is_taken_out():
    given = prompt(text=(2, 3), visual=(6, 6))
    everything = Random(keep=1.0, layer=1)
    check_even(given, everything, [1], always=False)
    with pytest.raises(UnsupportedCacheError):
        check_even(given, everything, [1], always=True)
    short = Random(keep=2, layer=1, min_visual=7)
    check_even(given, short, [1], always=False)
    with pytest.raises(UnsupportedCacheError):
        check_even(given, Random(keep=2, layer=1, min_visual=6), [1], always=False)
    one = Prompt(**{**vars(given), "counts": [6], "record": PrefillRecord([2], [6], None)})
    check_even(one, FastV(keep=2), [2], always=True)


class TestForwardPass:
    def test_positions_of_rows(self):
        device = torch.device("cpu")
        assert ForwardPass(3).dense_positions(2, device).tolist() == [[0, 1, 2]] * 2
        forward = ForwardPass(6, kept=KEPT, valid=PADDED)
        assert forward.dense_positions(2, device) is KEPT
        assert forward.in_conversation(KEPT, 10).tolist() == [[-1, 12, 15], [10, 13, 15]]
        assert ForwardPass(6).in_conversation(KEPT, 10).tolist() == [[11, 12, 15], [10, 13, 15]]

    def test_what_was_picked_is_made_once_until_rows_leave(self):
        forward, source, made = ForwardPass(6), object(), []
        for _ in range(2):
            assert forward.once("a", source, lambda: made.append(1) or len(made)) == 1
        assert forward.once("b", source, lambda: made.append(1) or len(made)) == 2
        assert forward.once("a", object(), lambda: made.append(1) or len(made)) == 3
        forward.shorten(KEPT, None)
        assert forward.once("a", source, lambda: made.append(1) or len(made)) == 4

    @pytest.mark.parametrize("real", [None, torch.ones(2, 6, dtype=torch.bool)])
    def test_a_decoder_that_goes_on_with_the_last_rows(self, real):
        forward = ForwardPass(6, prompt=prompt(real), kept=KEPT)
        forward.keep_last(2, 2, torch.device("cpu"))
        assert forward.newest == 2
        assert forward.kept.tolist() == [[4, 5], [4, 5]]  # 2 and 3 reach further back: padding
        assert forward.valid.tolist() == [[False, True], [False, True]]

    def test_of_a_prompt_without_padding_the_last_token_needs_no_question(self):
        forward = ForwardPass(6, prompt=prompt(), kept=KEPT)
        forward.keep_last(1, 2, torch.device("cpu"))
        assert (forward.kept.tolist(), forward.valid) == ([[5], [5]], None)
        forward = ForwardPass(6, prompt=prompt(torch.ones(2, 6)), kept=torch.tensor([[1, 4], [2, 5]]))
        forward.keep_last(1, 2, torch.device("cpu"))
        assert forward.valid.tolist() == [[False], [True]]
        forward = ForwardPass(6, kept=KEPT, valid=PADDED.flip(1))
        forward.keep_last(3, 2, torch.device("cpu"))
        assert forward.valid.tolist() == [[False, False, False], [False, True, True]]
        assert forward.kept.tolist() == [[3, 3, 5], [3, 3, 5]]

    def test_position_ids_go_on_behind_the_question(self):
        ids = torch.tensor([[3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 9, 9]])
        forward = ForwardPass(6, prompt=prompt(query=(5, 3)), extra=2)
        assert forward.continued(ids).tolist() == [[3, 4, 5, 6, 7, 8, 9, 10], [0, 1, 2, 3, 9, 9, 4, 5]]
        assert forward.continued(ids[:1]).tolist()[1] == [3, 4, 5, 6, 7, 8, 7, 8]
        assert ForwardPass(6, prompt=prompt()).continued(ids) is ids
        assert ForwardPass(6, extra=2).continued(ids) is ids

    def test_it_is_over_once_and_undoes_all(self):
        forward, undone = ForwardPass(6), []
        forward.tap.callback(undone.append, "tap")
        forward.whole.callback(undone.append, "whole")
        forward.close()
        forward.close()
        assert forward.over
        assert undone == ["tap", "whole"]


def test_the_cache_among_arguments():
    cache = DynamicCache()
    assert cache_of({"past_key_values": cache, "cache": None}) is cache
    assert cache_of({"cache": cache}) is cache
    assert cache_of({"past_key_values": None}) is None
    assert cache_of([cache]) is None
    refuse_unknown_cache({"past_key_values": cache, "cache": [cache], "mine": [1, torch.zeros(1)]})
    for value in (cache, [1, cache], (cache,)):
        with pytest.raises(UnsupportedModelError, match="a KV cache as 'mine'"):
            refuse_unknown_cache({"mine": value})
