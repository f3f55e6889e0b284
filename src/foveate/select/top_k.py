"""The k best by score."""

from __future__ import annotations

import math
import operator
from numbers import Real

import torch
from torch import Tensor

from foveate.select.checks import check_budget, check_mask, check_scores, exact
from foveate.tensors import best, descending


@exact
def top_k(scores: Tensor, k: int | Tensor, valid: Tensor | None = None) -> Tensor:
    """Keep the k tokens with the highest scores.

    Parameters
    ----------
    scores
        (B, N) real numbers. NaN counts as minus infinity.
    k
        Tokens to keep: an int, or (B,) whole numbers, one for each row.
    valid
        (B, N) bool, False for padding, which is never kept; None: all tokens count.

    Returns
    -------
    Tensor
        keep (B, N) bool with exactly min(k, valid tokens) True in a row. Ties go to the lowest index.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type or shape, or k is negative.
    """
    scores = check_scores(scores)
    valid = check_mask("valid", valid, scores.shape, scores.device)
    return best(scores, check_budget(k, valid), valid)


@exact
def rebalanced_top_k(
    scores: Tensor,
    k: int | Tensor,
    over: float = 1.2,
    split: float | int = 0.5,
    valid: Tensor | None = None,
) -> Tensor:
    """Take somewhat more than k candidates by score; of these keep the front ones first, then the back ones by score.

    The ⌊over · k⌋ best tokens are the candidates. Those in front of the split are all kept (the best k of them, if
    there are more), and the best of the others take the places left.

    Parameters
    ----------
    scores
        (B, N) real numbers. NaN counts as minus infinity.
    k
        Tokens to keep: an int, or (B,) whole numbers, one for each row.
    over
        Candidates as a multiple of k, at least 1; 1 is plain top-k.
    split
        Where the back begins, counted in the row's valid tokens: a float is a share in [0, 1] of them, rounded
        down, an int the index of the first token of the back. So 1.0 is after the last token, and 1 after the first.
    valid
        (B, N) bool, False for padding, which is never kept; None: all tokens count.

    Returns
    -------
    Tensor
        keep (B, N) bool with exactly min(k, valid tokens) True in a row. Ties go to the lowest index.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type, shape or value.

    Notes
    -----
    Balanced Token Pruning, arXiv 2505.22038, eq. 8-10, where split is a half; the paper does not state its `over`.
    A fixed number of launches on a GPU and, unless k lies there, no wait for it: it needs no kernel of its own.
    """
    scores = check_scores(scores)
    valid = check_mask("valid", valid, scores.shape, scores.device)
    budget = check_budget(k, valid)
    over = _check_over(over)
    present = valid.sum(-1)
    back = _back(split, present)

    wanted = _floor(over, budget)
    candidates = torch.minimum(wanted, present.double()).long()
    order = descending(scores, valid)
    candidate = torch.arange(scores.shape[1], device=scores.device) < candidates[:, None]
    front = candidate & ((valid.cumsum(-1) - 1).gather(1, order) < back[:, None])
    after = candidate & ~front
    left = (budget - front.sum(-1)).clamp(min=0)
    kept = front & (front.cumsum(-1) <= budget[:, None]) | after & (after.cumsum(-1) <= left[:, None])
    return torch.zeros_like(valid).scatter_(1, order, kept)


def _check_over(over: float) -> float:
    if isinstance(over, bool) or not isinstance(over, Real):
        raise TypeError(f"over must be a number, got {over!r}")
    if not 1 <= float(over) < math.inf:
        raise ValueError(f"over must be a finite number of at least 1, got {over!r}")
    return float(over)


def _floor(share: float, count: Tensor) -> Tensor:
    """⌊share · count⌋, of the share as it is written.

    1.15 · 100 is 114.99999999999999 in binary; a billionth more puts the floor right and moves no other one.
    """
    return (share * count.double() + 1e-9).floor()


def _back(split: float | int, present: Tensor) -> Tensor:
    """Index (B,) among a row's valid tokens at which the back begins."""
    if isinstance(split, bool) or not isinstance(split, Real):
        raise TypeError(f"split must be a share or an index, got {split!r}")
    try:
        index = operator.index(split)
    except TypeError:
        share = float(split)
        if not 0 <= share <= 1:
            raise ValueError(f"split must be a share in [0, 1] or an int, got {split!r}") from None
        return _floor(share, present).long()
    if index < 0:
        raise ValueError(f"split must not be negative, got {split!r}")
    return torch.full_like(present, index)
