"""Which tokens are real, where the question ends, and how many rows are asked for: on tensors, without a model."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig

from foveate.engine.prompt import _answer_rows, _is_answer, last_prompt_token, real_tokens

LEFT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])


def held(number: int) -> DynamicCache:
    """A cache that has seen some tokens."""
    cache = DynamicCache(config=LlamaConfig(num_hidden_layers=1))
    if number:
        cache.update(torch.zeros(2, 1, number, 4), torch.zeros(2, 1, number, 4), 0)
    return cache


def causal(padding: torch.Tensor, past: int, columns: int) -> torch.Tensor:
    """(B, 1, L, K) bool for the last L = `columns` - past tokens, as `generate()` makes it for a static cache."""
    length = padding.shape[1] - past
    rows, keys = torch.arange(past, padding.shape[1])[:, None], torch.arange(columns)
    real = torch.nn.functional.pad(padding.bool(), (0, columns - padding.shape[1]))
    return ((keys <= rows) & real[:, None]).view(len(padding), 1, length, columns)


def test_a_padding_mask_tells_of_the_last_tokens():
    assert torch.equal(real_tokens(LEFT, 4, None), LEFT.bool())
    assert torch.equal(real_tokens(LEFT, 3, held(1)), LEFT[:, 1:].bool())


@pytest.mark.parametrize("columns", [4, 7])
@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_of_rows_and_columns_tells_by_its_diagonal(columns, additive):
    mask = causal(LEFT, 0, columns)
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert torch.equal(real_tokens(mask, 4, held(0)), LEFT.bool())
    assert torch.equal(real_tokens({"sliding": None, "full": mask}, 4, None), LEFT.bool())


def test_behind_a_cache_the_diagonal_begins_behind_its_columns():
    padding = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 0, 1]])
    mask = causal(padding, 2, 5)
    assert torch.equal(real_tokens(mask, 3, held(2)), padding[:, 2:].bool())


@pytest.mark.parametrize("window", [3, 4])
def test_the_columns_of_a_window_begin_later(window):
    """A window of 3 or 4 over 5 tokens, 2 of which are held: its mask has the last columns alone."""
    padding = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 0, 1]])
    mask = causal(padding, 2, 5)[..., 5 - window :]
    assert torch.equal(real_tokens(mask, 3, held(2)), padding[:, 2:].bool())


@pytest.mark.parametrize("mask", [None, torch.ones(4), torch.ones(1, 4, 4), "flash", {"full": None}, {}])
def test_what_else_a_mask_may_be_tells_nothing(mask):
    assert real_tokens(mask, 4, None) is None


LABELS = [
    ([-100, -100, 5, 6], 1),
    ([-100, 5, 5, 5], 0),
    ([-100] * 4, 3),
    ([7, -100, 5, -100], 1),  # the first has no token before it
    ([7, -100, -100, -100], 3),
    ([-100, -100, -100, 5], 2),
]


@pytest.mark.parametrize(("labels", "last"), LABELS)
def test_with_labels_the_question_ends_before_the_first(labels, last):
    tokens = torch.zeros(2, 4, dtype=torch.long)
    given = torch.tensor([labels, [-100] * 4])
    assert last_prompt_token(4, None, given, tokens).tolist() == [last, 3]
    assert given[0].tolist() == labels


def test_without_labels_it_ends_at_the_last_real_token():
    tokens = torch.zeros(2, 4, dtype=torch.long)
    assert last_prompt_token(4, None, None, tokens).tolist() == [3, 3]
    assert last_prompt_token(4, LEFT.bool(), None, tokens).tolist() == [3, 3]
    assert last_prompt_token(4, LEFT.flip(1).bool(), None, tokens).tolist() == [1, 3]
    assert last_prompt_token(4, None, torch.zeros(2, 3), tokens).tolist() == [3, 3], "labels of another shape"


@pytest.mark.parametrize(
    ("scored", "rows"),
    [(0, 1), (1, 1), (2, 2), (8, 8), (9, 1), (12, 1), (None, 1), (True, 1), (torch.tensor([7, 8]), 2),
     (torch.tensor([5, 8]), 4), (torch.tensor([8]), 1), (torch.tensor(3), 1), (torch.tensor([]), 1),
     (torch.arange(9), 1)],
)  # fmt: skip
def test_rows_asked_for(scored, rows):
    assert _answer_rows(scored, 9) == rows


def test_several_tokens_behind_a_cache_are_an_answer_unless_an_image_comes_with_them():
    ids, image = torch.zeros(2, 3, dtype=torch.long), torch.zeros(1, 3, 4, 4)
    assert _is_answer({"input_ids": ids, "past_key_values": held(2), "attention_mask": torch.ones(2, 5)})
    assert _is_answer({"input_ids": ids, "past_key_values": held(2), "image_sizes": torch.zeros(1, 2).long()})
    assert not _is_answer({"input_ids": ids, "past_key_values": held(0)})
    assert not _is_answer({"input_ids": ids})
    assert not _is_answer({"past_key_values": held(2), "inputs_embeds": torch.zeros(2, 3, 4)})
    for pixels in (image, [image], (torch.zeros(1).long(), image)):
        assert not _is_answer({"input_ids": ids, "past_key_values": held(2), "pixel_values": pixels})
    assert not _is_answer({"input_ids": ids, "past_key_values": held(2), "mm_encoder_outputs": [object()]})
