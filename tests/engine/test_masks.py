"""The mask of the rows and keys that are left, against the dense mask read entry by entry; without a model."""

from __future__ import annotations

import pytest
import torch

from foveate.engine.masks import pick_mask

LENGTH = 9
# dense positions of the keys that are held and of the rows that come, the last of the keys; -1 for padding
SLOTS = torch.tensor([[-1, 0, 2, 3, 5, 7, 8], [0, 1, 2, 4, 5, 6, 8]])
ROWS = torch.tensor([[-1, 5, 7, 8], [4, 5, 6, 8]])
FIRST_ROWS = torch.tensor([[-1, 0, 2, 5], [0, 1, 3, 8]])  # of a prefill: rows and keys are the same
SHOWN = torch.rand(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.6


def slow(shown, rows, slots, first=0, last=None, column=None):
    """(B, 1, n, m) bool, an entry at a time; `shown(b, row, key)` is the dense mask's."""
    column = slots.shape[1] - rows.shape[1] if column is None else column
    out = torch.zeros(len(rows), 1, rows.shape[1], slots.shape[1], dtype=torch.bool)
    for b, row in enumerate(rows.tolist()):
        for r, place in enumerate(row):
            for s, key in enumerate(slots[b].tolist()):
                if place < 0:
                    out[b, 0, r, s] = s == r + column  # padding sees itself
                    # and what the dense mask's first row shows, which nobody reads
                    continue
                if key >= LENGTH:
                    out[b, 0, r, s] = key <= place
                elif key >= first:
                    out[b, 0, r, s] = shown(b, last[b] if place >= LENGTH else place, key)
    return out


def alive(rows):
    """Rows that somebody reads."""
    return (rows >= 0)[:, None, :, None]


def additive(mask):
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("rows", [ROWS, FIRST_ROWS], ids=["behind a cache", "a prefill"])
@pytest.mark.parametrize("form", ["bool", "additive"])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("first", [0, 3])
def test_a_mask_of_rows_and_columns(rows, form, samples, first):
    slots = SLOTS if rows is ROWS else rows
    dense = SHOWN[:samples]
    found = pick_mask(dense if form == "bool" else additive(dense), rows, slots, LENGTH, None, True, False, first)
    expected = slow(lambda b, r, k: bool(dense[b % samples, 0, r, k]), rows, slots, first)
    assert found.dtype == (torch.bool if form == "bool" else torch.float32)
    seen = found if form == "bool" else found == 0
    assert torch.equal(seen & alive(rows), expected & alive(rows))
    own = torch.eye(rows.shape[1], dtype=torch.bool)
    corner = seen[..., slots.shape[1] - rows.shape[1] :]
    assert bool(corner[(own & (rows < 0)[:, :, None])[:, None]].all()), "padding sees itself"


def test_a_mask_with_the_newest_rows_and_columns_alone():
    """A window's mask: rows and columns of the last 5 and 6 positions."""
    dense = SHOWN[:, :, -5:, -6:]
    found = pick_mask(dense, ROWS, SLOTS, LENGTH, None, True, False)
    expected = slow(lambda b, r, k: k >= 3 and bool(SHOWN[b, 0, r, k]), ROWS, SLOTS)
    assert torch.equal(found & alive(ROWS), expected & alive(ROWS))


@pytest.mark.parametrize("form", ["bool", "additive"])
def test_tokens_that_the_method_adds_see_what_the_last_prompt_token_sees(form):
    rows = torch.tensor([[5, 7, 9, 10], [4, 6, 9, 10]])
    slots = torch.tensor([[0, 2, 5, 7, 9, 10], [-1, 1, 4, 6, 9, 10]])
    last = torch.tensor([8, 7])
    found = pick_mask(SHOWN if form == "bool" else additive(SHOWN), rows, slots, LENGTH, last, True, False)
    seen = found if form == "bool" else found == 0
    assert torch.equal(seen, slow(lambda b, r, k: bool(SHOWN[b, 0, r, k]), rows, slots, last=last.tolist()))


@pytest.mark.parametrize("first", [0, 3])
def test_without_a_mask_it_is_causal(first):
    found = pick_mask(None, ROWS, SLOTS, LENGTH, None, True, False, first)
    expected = slow(lambda b, r, k: k <= r, ROWS, SLOTS, first)
    assert torch.equal(found & alive(ROWS), expected & alive(ROWS))
    assert found.dtype == torch.bool


def test_without_a_mask_free_slots_behind_the_rows_are_not_seen():
    slots = torch.cat([SLOTS, torch.full((2, 2), -1)], 1)
    found = pick_mask(None, ROWS, slots, LENGTH, None, True, False, column=3)
    expected = slow(lambda b, r, k: k <= r, ROWS, slots, column=3)
    assert torch.equal(found & alive(ROWS), expected & alive(ROWS))
    assert bool(found[0, 0, 0, 3])
    assert not found[0, 0, 0, 4:].any()


ALONE = [  # rows, slots, padded, flat, first, column, whether no mask is needed
    ([[0, 2, 5]], [[0, 2, 5]], False, False, 0, None, True),
    ([[0, 2, 5]], [[0, 2, 5]], False, True, 0, None, True),
    ([[0, 2, 5]], [[0, 2, 5]], True, False, 0, None, False),
    ([[8]], [[0, 2, 8]], False, False, 0, None, True),
    ([[8]], [[0, 2, 8]], False, True, 0, None, True),
    ([[7, 8]], [[0, 2, 7, 8]], False, False, 0, None, False),  # rows behind a cache
    ([[0, 2]], [[0, 2, -1]], False, False, 0, 0, True),  # a free slot behind the rows
    ([[0, 2]], [[0, 2, -1]], False, True, 0, 0, False),
    ([[8]], [[3, 4, 5, 6, 7, 8]], False, False, 3, None, True),  # all that a window holds
    ([[8]], [[3, 5, 6, 7, 8]], False, False, 3, None, False),
    ([[8], [8]], [[3, 4, 5, 6, 7, 8]] * 2, False, False, 3, None, False),
]


@pytest.mark.parametrize(("rows", "slots", "padded", "flat", "first", "column", "none"), ALONE)
def test_where_no_mask_is_needed(rows, slots, padded, flat, first, column, none):
    given = torch.tensor(rows), torch.tensor(slots)
    found = pick_mask(None, *given, LENGTH, None, padded, flat, first, column)
    assert (found is None) == none


@pytest.mark.parametrize("first", [0, 3])
def test_a_flash_backend_is_told_of_padding(first):
    found = pick_mask(None, ROWS, SLOTS, LENGTH, None, True, True, first)
    assert found.dtype == torch.int64
    assert found.tolist() == [[int(key >= first) for key in row] for row in SLOTS.tolist()]
    free = torch.cat([SLOTS, torch.full((2, 2), 8)], 1)
    assert pick_mask(None, ROWS, free, LENGTH, None, True, True, first, 3).tolist() == found.tolist()


@pytest.mark.parametrize("columns", [LENGTH, 6])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("first", [0, 5])
def test_a_padding_mask(columns, samples, first):
    mask = (torch.arange(2 * LENGTH).view(2, LENGTH) % 4 != 1).long()[:samples, LENGTH - columns :]
    found = pick_mask(mask, ROWS, SLOTS, LENGTH, None, True, True, first)
    start = LENGTH - columns
    expected = [
        [int(mask[b % samples, key - start]) if key >= max(start, first) else 0 for key in row]
        for b, row in enumerate(SLOTS.tolist())
    ]
    assert found.tolist() == expected
    free = torch.cat([SLOTS, torch.full((2, 2), 8)], 1)
    assert pick_mask(mask, ROWS, free, LENGTH, None, True, True, first, 3).tolist() == expected


def test_a_padding_mask_shows_the_tokens_that_the_method_adds():
    mask = torch.ones(2, LENGTH).long().index_fill(1, torch.tensor([0, 8]), 0)
    slots = torch.tensor([[0, 2, 8, 9, 10], [-1, 1, 4, 9, 10]])
    found = pick_mask(mask, slots[:, -2:], slots, LENGTH, torch.tensor([8, 8]), True, True)
    assert found.tolist() == [[0, 1, 0, 1, 1], [0, 1, 1, 1, 1]]
