from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate import select
from tests.select import reference

SIDES, METRICS = st.integers(1, 9), st.sampled_from(("manhattan", "euclidean"))


def cells(height: int, width: int, metric: str) -> list[int]:
    """Cells in the order in which they are taken."""
    return select.spatial_order(height, width, metric).argsort().tolist()


@given(SIDES, SIDES, METRICS)
def test_agrees_with_the_definition(height: int, width: int, metric: str) -> None:
    assert cells(height, width, metric) == reference.spatial_order(height, width, metric)


@pytest.mark.parametrize("metric", ["manhattan", "euclidean"])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (13, 40), (1, 300), (300, 1)])
def test_agrees_with_the_plain_greedy_on_larger_grids(height: int, width: int, metric: str) -> None:
    row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
    nearest, taken = torch.full((height * width,), 10**6), []
    for _ in range(height * width):
        pick = 0 if not taken else int(nearest.argmax())
        rows, columns = (row - row[pick]).abs(), (column - column[pick]).abs()
        distance = rows + columns if metric == "manhattan" else rows**2 + columns**2
        nearest = torch.minimum(nearest, distance)
        taken.append(pick)
    assert cells(height, width, metric) == taken


@given(SIDES, SIDES, METRICS, st.integers(0, 90))
def test_the_seed_is_the_beginning_of_the_order(height: int, width: int, metric: str, k: int) -> None:
    seed = select.spatial_seed(height, width, k, metric)
    assert seed.dtype == torch.bool
    assert set(seed.nonzero().flatten().tolist()) == set(cells(height, width, metric)[:k])


def test_the_seed_of_the_paper() -> None:
    seed = select.spatial_seed(24, 24, 144)
    assert seed.shape == (576,)
    assert seed.sum() == 144
    assert seed[0]


def test_corners_and_middle_come_first() -> None:
    assert cells(5, 5, "manhattan")[:5] == [0, 24, 4, 12, 20]
    assert cells(5, 5, "euclidean")[:5] == [0, 24, 4, 20, 12]


def test_the_metrics_differ() -> None:
    assert not torch.equal(select.spatial_order(24, 24), select.spatial_order(24, 24, "euclidean"))


def test_changing_a_result_changes_no_later_one() -> None:
    before = select.spatial_order(4, 4).tolist()
    select.spatial_order(4, 4).zero_()
    assert select.spatial_order(4, 4).tolist() == before


def test_a_result_of_inference_mode_can_be_changed_outside() -> None:
    with torch.inference_mode():
        select.spatial_order(7, 3)
    order = select.spatial_order(7, 3)
    order[0] = 5
    assert order[0] == 5
