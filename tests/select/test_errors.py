"""Wrong arguments: a TypeError or ValueError that says what was given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate import select

SCORES, FEATURES = torch.zeros(2, 3), torch.ones(2, 3, 4)

BUDGETS: list[tuple[Any, type[Exception], str]] = [
    (-1, ValueError, "-1"),
    (True, TypeError, "True"),
    (1.5, TypeError, "1.5"),
    ("2", TypeError, "'2'"),
    (torch.tensor([1, -2]), ValueError, "-2"),
    (torch.tensor([1.0, 2.0]), TypeError, "float32"),
    (torch.tensor([True, False]), TypeError, "bool"),
    (torch.tensor([1, 2, 3]), ValueError, r"\(3,\)"),
]


@pytest.mark.parametrize(("k", "error", "message"), BUDGETS)
def test_budget(k: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select.top_k(SCORES, k)
    with pytest.raises(error, match=message):
        select.rebalanced_top_k(SCORES, k)
    with pytest.raises(error, match=message):
        select.suppression(FEATURES, SCORES, k, 0.5)
    with pytest.raises(error, match=message):
        select.max_min_diversity(FEATURES, k)


@pytest.mark.parametrize(
    ("valid", "error", "message"),
    [
        (torch.ones(2, 3), TypeError, "float32"),
        ([[True] * 3] * 2, TypeError, "list"),
        (torch.ones(2, 4, dtype=torch.bool), ValueError, r"\(2, 4\)"),
    ],
)
def test_masks(valid: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select.top_k(SCORES, 1, valid)
    with pytest.raises(error, match=message):
        select.rebalanced_top_k(SCORES, 1, valid=valid)
    with pytest.raises(error, match=message):
        select.suppression(FEATURES, SCORES, 1, 0.5, valid=valid)
    with pytest.raises(error, match=message):
        select.max_min_diversity(FEATURES, 1, valid=valid)
    with pytest.raises(error, match=f"start.*{message}"):
        select.max_min_diversity(FEATURES, 1, start=valid)


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        ([[1.0]], TypeError, "list"),
        (torch.zeros(3), ValueError, r"\(3,\)"),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError, "complex64"),
    ],
)
def test_scores(scores: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select.top_k(scores, 1)
    with pytest.raises(error, match=message):
        select.rebalanced_top_k(scores, 1)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (None, TypeError, "NoneType"),
        (torch.ones(2, 3), ValueError, r"\(2, 3\)"),
        (torch.ones(2, 3, 0), ValueError, r"\(2, 3, 0\)"),
        (torch.ones(2, 3, 4, dtype=torch.int64), TypeError, "int64"),
    ],
)
def test_features(features: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select.max_min_diversity(features, 1)
    with pytest.raises(error, match=message):
        select.suppression(features, SCORES, 1, 0.5)


def test_scores_of_another_shape_than_the_features() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 5\)"):
        select.suppression(torch.ones(2, 5, 4), SCORES, 1, 0.5)


@pytest.mark.parametrize(
    ("threshold", "error", "message"),
    [
        (float("nan"), ValueError, "NaN"),
        ("0.5", TypeError, "'0.5'"),
        (True, TypeError, "True"),
        (None, TypeError, "None"),
    ],
)
def test_threshold(threshold: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select.suppression(FEATURES, SCORES, 1, threshold)


def test_fill() -> None:
    with pytest.raises(ValueError, match="'fill_saliency'"):
        select.suppression(FEATURES, SCORES, 1, 0.5, fill="fill_saliency")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("over", "error", "message"),
    [
        (0.99, ValueError, "0.99"),
        (float("nan"), ValueError, "nan"),
        (float("inf"), ValueError, "inf"),
        (True, TypeError, "True"),
        ("2", TypeError, "'2'"),
        (None, TypeError, "None"),
    ],
)
def test_over(over: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"over.*{message}"):
        select.rebalanced_top_k(SCORES, 1, over)


@pytest.mark.parametrize(
    ("split", "error", "message"),
    [
        (1.01, ValueError, "1.01"),
        (-0.1, ValueError, "-0.1"),
        (float("nan"), ValueError, "nan"),
        (-1, ValueError, "-1"),
        (False, TypeError, "False"),
        ("half", TypeError, "'half'"),
        (None, TypeError, "None"),
    ],
)
def test_split(split: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"split.*{message}"):
        select.rebalanced_top_k(SCORES, 1, split=split)


@pytest.mark.parametrize(
    ("side", "error", "message"),
    [
        (0, ValueError, "0"),
        (-3, ValueError, "-3"),
        (2.0, TypeError, "2.0"),
        (True, TypeError, "True"),
        ("2", TypeError, "'2'"),
    ],
)
def test_sides_of_a_grid(side: Any, error: type[Exception], message: str) -> None:
    for function in (select.spatial_order, lambda height, width: select.spatial_seed(height, width, 1)):
        with pytest.raises(error, match=f"height.*{message}"):
            function(side, 2)
        with pytest.raises(error, match=f"width.*{message}"):
            function(2, side)


@pytest.mark.parametrize(("k", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)])
def test_cells_to_take(k: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"k .*{k}"):
        select.spatial_seed(2, 2, k)


@pytest.mark.parametrize("metric", ["chebyshev", "", None, ["manhattan"]])
def test_metric(metric: Any) -> None:
    with pytest.raises(ValueError, match="metric.*manhattan, euclidean"):
        select.spatial_order(2, 2, metric)
    with pytest.raises(ValueError, match="metric.*manhattan, euclidean"):
        select.spatial_seed(2, 2, 1, metric)


def test_arguments_may_be_given_by_name() -> None:
    features, scores = torch.eye(3)[None], torch.tensor([[1.0, 3.0, 2.0]])
    assert select.top_k(k=1, scores=scores).tolist() == [[False, True, False]]
    assert select.rebalanced_top_k(k=1, scores=scores).tolist() == [[False, True, False]]
    assert select.suppression(k=1, threshold=0.5, features=features, scores=scores).tolist() == [[False, True, False]]
    assert select.max_min_diversity(k=2, features=features).sum() == 2
    assert select.low_rank_dpp(k=2, factors=features).sum() == 2
    assert select.dpp(k=2, kernel=features).sum() == 2
