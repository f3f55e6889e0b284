"""Where visual tokens lie, layers that read the keys of others, and the closed formula of operations; no model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foveate.engine.flops import prefill_flops
from foveate.engine.layout import _rows, lay_out
from foveate.engine.shared_kv import check_stages
from foveate.errors import BudgetError
from foveate.families import Grid, Run

A, B = (Grid(2, 3),), (Grid(1, 2, row_ends=1, after=2), Grid(2, 1))  # of 6 and of 5 + 2 tokens


def visual(*counts):
    """(B, L) bool with so many visual tokens in a row, behind one of text."""
    return torch.stack(
        [(torch.arange(max(counts) + 2) > 0) & (torch.arange(max(counts) + 2) <= one) for one in counts]
    )


def test_every_token_has_its_place():
    found = lay_out(visual(13, 6), [], [A, B, A])
    assert found.known
    assert found.grids == ((*A, *B), A)
    image, grid, row, column = found.places[:, 0, 1:14].tolist()
    assert image == [0] * 6 + [1] * 7
    assert grid == [0] * 6 + [1, 1, -1, -1, -1, 2, 2]
    assert row == [0, 0, 0, 1, 1, 1, 0, 0, -1, -1, -1, 0, 1]
    assert column == [0, 1, 2, 0, 1, 2, 0, 1, -1, -1, -1, 0, 0]
    assert found.places[:, 1, 1:7].tolist() == [[0] * 6, [0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    assert bool((found.places[:, ~visual(13, 6)] == -1).all())


@pytest.mark.parametrize("images", [None, [A], [A, A, A]])
def test_where_grids_do_not_add_up_each_run_is_an_image(images):
    runs = [Run(0, 1, 4, 0), Run(0, 5, 3, 0), Run(1, 1, 5, 0)]
    found = lay_out(visual(7, 5), runs, images)
    assert not found.known
    assert [[(one.height, one.width, one.known) for one in row] for row in found.grids] == [
        [(1, 4, False), (1, 3, False)],
        [(1, 5, False)],
    ]
    assert found.places[0, 0, 1:8].tolist() == [0] * 4 + [1] * 3


ROWS = [
    ([6, 6], [A, A], [[A], [A]]),
    ([12, 0, 6], [A, A, A], [[A, A], [], [A]]),
    ([6, 6, 7, 7], [A, B], [[A], [A], [B], [B]]),  # two beams of two samples
    ([6, 6], [A], [[A], [A]]),
    ([6, 5], [A, A], None),  # too few
    ([6, 7], [A, A], None),
    ([7, 5], [A, A], None),  # the sum is right, the samples are not
    ([6, 6, 6], [A, A], None),  # three rows of two images
    ([0, 0], [], None),
]


@pytest.mark.parametrize(("counts", "images", "rows"), ROWS)
def test_images_go_to_the_samples_whose_rows_they_fill(counts, images, rows):
    assert _rows(counts, images) == rows


SOURCES = [0, 1, 2, 1, 2, 5]  # layers 3 and 4 read the keys of 1 and 2


@pytest.mark.parametrize("stage", range(6))
def test_no_stage_between_keys_and_their_reader(stage):
    if stage in (0, 1, 5):
        check_stages("one", [stage], SOURCES)
        return
    said = rf"layers 1 and 2 .* layers 3 and 4, .* before layer {stage}, .* layers 0 and 1"
    with pytest.raises(BudgetError, match=said):
        check_stages("one", [0, stage], SOURCES)


def test_a_row_of_layers_is_told_by_its_ends():
    with pytest.raises(BudgetError, match=r"before layer 2, .* before layers 0 and 1$"):
        check_stages("one", [2], [0, 1, 1])
    said = "layer 1 .* layers 2 to 4, .* before layers 2 and 4, .* before layers 0 and 1$"
    with pytest.raises(BudgetError, match=said):
        check_stages("one", [2, 4], [0, 1, 1, 1, 1])
    with pytest.raises(BudgetError, match="before layers 0 to 3$"):
        check_stages("one", [4], [0, 1, 2, 3, 3])


LLAMA = {"hidden_size": 8, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_operations_are_those_of_each_product():
    """Queries, keys, values, output, attention map twice, three of the MLP; two for each multiply-add."""

    def layer(n, query, key):
        return 2 * (n * 8 * query + 2 * n * 8 * key + n * query * 8 + 2 * n * n * query + 3 * n * 8 * 20)

    assert prefill_flops(SimpleNamespace(**LLAMA), [5, 3]) == layer(5, 8, 4) + layer(3, 8, 4)
    assert prefill_flops(SimpleNamespace(**LLAMA, head_dim=3), [5]) == layer(5, 12, 6)
    alike = {**LLAMA, "num_key_value_heads": None}
    assert prefill_flops(SimpleNamespace(**alike), [5]) == layer(5, 8, 8)


@pytest.mark.parametrize(
    "more",
    [{"num_experts": 4}, {"num_local_experts": 2}, {"n_routed_experts": 2}, {"num_kv_shared_layers": 1},
     {"hidden_size_per_layer_input": 3}, {"is_heterogeneous": True}, {"layer_types": ["linear_attention"]},
     {"hidden_size": None}, {"intermediate_size": None}, {"num_attention_heads": None}],
)  # fmt: skip
def test_layers_that_the_formula_does_not_know(more):
    assert prefill_flops(SimpleNamespace(**{**LLAMA, **more}), [5]) is None
    assert prefill_flops(SimpleNamespace(**LLAMA, layer_types=["full_attention"], num_experts=None), [5]) is not None
