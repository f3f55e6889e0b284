"""The k best by score."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.select.checks import check_budget, check_mask, check_scores, exact


def descending(scores: Tensor, valid: Tensor) -> Tensor:
    """Order (B, N) from the best score to the worst: ties by index, tokens that are not valid last."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    # A second stable sort keeps padding last, even behind a valid score of minus infinity.
    padding = ~valid.gather(1, order)
    return order.gather(1, padding.to(torch.uint8).argsort(dim=-1, stable=True))


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


def best(scores: Tensor, budget: Tensor, valid: Tensor) -> Tensor:
    """`top_k` of checked arguments: budget (B,) long, at most the row's valid tokens, and not read from its device."""
    within = torch.arange(scores.shape[1], device=scores.device) < budget[:, None]
    return torch.zeros_like(valid).scatter_(1, descending(scores, valid), within)
