"""Salient tokens of which no two are too alike: greedy non-maximum suppression with cosine as the overlap."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from foveate.kernels import dispatch
from foveate.select.checks import check_budget, check_features, check_mask, check_scores, exact, widest
from foveate.select.cosine import unit_rows
from foveate.tensors import best, descending, take_rows, wide

Greedy = Callable[[Tensor, Tensor], Tensor]  # the greedy set (B, N) for budgets (B,) and thresholds (B,)
BLOCK = 128  # candidates compared at a time
ROUNDS = 4  # of settling a block before looking whether it is settled: a look costs a read from the device
BISECTIONS = 10  # of the angle by "relax": it ends within a thousandth of the angle it starts from


@exact
def suppression(
    features: Tensor,
    scores: Tensor,
    k: int | Tensor,
    threshold: float,
    fill: Literal["saliency", "stop", "relax"] = "saliency",
    valid: Tensor | None = None,
) -> Tensor:
    """Take the best-scoring active token, put to rest all whose cosine to it exceeds `threshold`, repeat up to k.

    Equal to walking through the tokens from the best score to the worst and taking each one that is not too alike to
    one already taken. That is done in blocks, as matrix products of O(N k D) in all, with exactly the same result.

    Parameters
    ----------
    features
        (B, N, D) floating point; cosines are computed in float32 (float64 for float64). A row of zeros or with a NaN
        or infinity has cosine 0 to every other.
    scores
        (B, N) real numbers. NaN counts as minus infinity.
    k
        Tokens to keep: an int, or (B,) whole numbers, one for each row.
    threshold
        Two tokens with a cosine above it are too alike. From 1 on, nothing is suppressed: plain top-k.
    fill
        When fewer than k are left: "saliency" adds the best remaining by score; "stop" keeps fewer; "relax" raises
        the threshold, by bisection of its angle, as little as lets the greedy set reach k.
    valid
        (B, N) bool, False for padding, which is never kept; None: all tokens count.

    Returns
    -------
    Tensor
        keep (B, N) bool with exactly min(k, valid tokens) True in a row, or fewer with fill="stop". Ties in score go
        to the lowest index.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type, shape or value.

    Notes
    -----
    The rule is GreedyPrune's (Pei et al., arXiv 2506.13166) as reviews and a third party's note describe it.
    The size of the greedy set does not always grow with the threshold, so "relax" accepts only a threshold whose set
    it has counted.
    On CUDA a Triton kernel picks for the whole batch in one launch (see `kernels.dispatch`), and unless k lies on the
    GPU, nothing waits for it.
    """
    features = check_features(features)
    scores = check_scores(scores, features.shape[:2])
    if isinstance(threshold, bool) or not isinstance(threshold, Real):
        raise TypeError(f"threshold must be a number, got {threshold!r}")
    threshold = float(threshold)
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got NaN")
    if fill not in ("saliency", "stop", "relax"):
        raise ValueError(f"fill must be 'saliency', 'stop' or 'relax', got {fill!r}")
    valid = check_mask("valid", valid, scores.shape, features.device)
    budget = check_budget(k, valid)
    if threshold >= 1 or not valid.numel():  # rounding can lift a cosine over 1
        return best(scores, budget, valid)

    order = descending(scores, valid)
    limit = wide(features.new_empty(0)).new_full((len(features),), threshold)
    unit = functools.cache(lambda: unit_rows(wide(features)))

    def greedy(budget: Tensor, limit: Tensor) -> Tensor:
        return _greedy_set(features, unit, order, budget, limit, valid)

    keep = greedy(budget, limit)
    if fill == "stop":
        return keep
    if fill == "saliency":
        return keep | best(scores, budget - keep.sum(-1), valid & ~keep)
    return _relax(greedy, budget, limit, keep, best(scores, budget, valid))


def _greedy_set(
    features: Tensor, unit: Callable[[], Tensor], order: Tensor, budget: Tensor, limit: Tensor, valid: Tensor
) -> Tensor:
    """The greedy set by the way that suits the device; `unit` gives the features' unit rows where they are needed."""
    keep = dispatch.suppression(features, order, budget, limit, valid, agrees)
    if keep is not None:
        return keep
    if features.device.type == "cpu":
        return _walked(features, order, budget, limit, valid)
    return _greedy(unit(), order, budget, limit, valid)


def _walked(features: Tensor, order: Tensor, budget: Tensor, limit: Tensor, valid: Tensor) -> Tensor:
    """The same set on a CPU, where samples follow one another; arguments as of `_greedy`, features not normalised."""
    keep = torch.zeros_like(valid)
    for row, (present, most) in enumerate(zip(valid.sum(-1).tolist(), budget.tolist(), strict=True)):
        keep[row, walk(features[row], order[row, :present], most, float(limit[row]))] = True
    return keep


def _greedy(unit: Tensor, order: Tensor, budget: Tensor, limit: Tensor, valid: Tensor) -> Tensor:
    """The greedy set (B, N) for thresholds `limit` (B,), of at most `budget` (B,) tokens.

    A block of candidates is first compared with everything taken before it, then settled inside.
    """
    batch, number, width = unit.shape
    most = widest(budget)
    taken = unit.new_zeros(batch, most + 1, width)  # the last place catches what is not taken
    places = torch.arange(most, device=unit.device)
    count = torch.zeros_like(budget)
    keep = torch.zeros_like(valid)
    limit = limit[:, None, None]
    for start in range(0, number if most else 0, BLOCK):
        index = order[:, start : start + BLOCK]
        block = take_rows(unit, index)
        active = valid.gather(1, index)
        if start:
            filled = min(start, most)  # no more than that can be taken, whatever the device holds
            alike = torch.bmm(block, taken[:, :filled].mT) > limit
            alike &= places[:filled] < count[:, None, None]
            active &= ~alike.any(-1)
        chosen = _settle(active, (torch.bmm(block, block.mT) > limit).tril_(-1))
        place = count[:, None] + chosen.cumsum(-1) - 1
        chosen &= place < budget[:, None]
        place = place.masked_fill(~chosen, most)
        taken.scatter_(1, place[..., None].expand(-1, -1, width), block)
        keep.scatter_(1, index, chosen)
        count += chosen.sum(-1)
        if bool((count >= budget).all()):  # one read from the device a block
            break
    return keep


def _settle(active: Tensor, rivals: Tensor) -> Tensor:
    """Greedy choice inside a block, best candidate first.

    Parameters
    ----------
    active
        (B, C) bool, candidates still in play.
    rivals
        (B, C, C) bool, True at [b, j, i] where i comes before j and is too alike to it.

    Notes
    -----
    Start from everyone and repeat "j is in unless one of its rivals is in": after t rounds the first t candidates are
    right, and a round that changes nothing ends it. A few rounds nearly always do (Zheng et al., Cluster-NMS,
    arXiv 2005.03572, section 4).
    """
    weight = rivals.to(torch.float32)
    chosen = active
    for _ in range(0, active.shape[1], ROUNDS):
        for _ in range(ROUNDS):
            before = chosen
            chosen = active & (torch.bmm(weight, before[..., None].to(weight)).squeeze(-1) == 0)
        if torch.equal(chosen, before):
            break
    return chosen


def _relax(greedy: Greedy, budget: Tensor, limit: Tensor, first: Tensor, plain: Tensor) -> Tensor:
    """For rows whose `first` set is too small, the greedy set at a raised threshold that reaches the budget.

    `walk` gives the greedy set for limits (B,) and budgets (B,); `plain` is the set at threshold 1, which always
    reaches.
    """
    enough = first.sum(-1) >= budget
    # where the kernel runs, walks of nothing cost less than waiting for the GPU
    if not dispatch.supported(limit.device) and bool(enough.all()):
        return first
    kept = torch.where(enough[:, None], first, plain)
    wanted = budget.masked_fill(enough, 0)
    # Angles, as tokens in a language model are often so alike that cosines crowd just under 1.
    low = limit.clamp(min=-1).acos()
    high = torch.where(enough, low, torch.zeros_like(low))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        trial = greedy(wanted, middle.cos())
        reached = trial.sum(-1) >= budget
        kept = torch.where((reached & ~enough)[:, None], trial, kept)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return kept


WALK_BLOCK = 96  # candidates compared at a time


def walk(features: Tensor, order: Tensor, most: int, limit: float) -> Tensor:
    """Take each token whose cosine to all taken before is at most `limit`, until there are `most`.

    A block of candidates is compared with all that were taken before it in one product, and then with each other. Only
    tokens that come up are normalised.

    Parameters
    ----------
    features
        (N, D) of any floating-point type.
    order
        (C,) the candidates' indices, best first.

    Returns
    -------
    Tensor
        The indices taken, best first.
    """
    most = min(most, len(order))
    taken = torch.empty(most, features.shape[1], dtype=torch.promote_types(features.dtype, torch.float32))
    places: list[Tensor] = []
    count = 0
    for index in order.split(WALK_BLOCK):
        block = unit_rows(wide(features.index_select(0, index)))
        if count:
            near = (taken[:count] @ block.T).amax(0)
            left = (near <= limit).nonzero()[:, 0]
            index, block = index[left], block.index_select(0, left)
        chosen = _settle_one(block @ block.T > limit, most - count)
        places.append(index[chosen])
        torch.index_select(block, 0, chosen, out=taken[count : count + len(chosen)])
        count += len(chosen)
        if count == most:
            break
    return torch.cat(places) if places else order[:0]


def _settle_one(alike: Tensor, most: int) -> Tensor:
    """Places, at most `most`, of those not too alike to one taken before; `alike` (C, C) bool, best first."""
    rest = (~alike).numpy()
    active = np.ones(len(rest), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < most and active.any():
        place = int(active.argmax())
        chosen.append(place)
        active &= rest[place]
        active[place] = False
    return torch.tensor(chosen, dtype=torch.long)


def agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel on `device` selects from a small problem what the plain form does on the CPU."""
    from foveate.kernels.suppression import greedy as kernel

    features, budget, valid = dispatch.small_problem(dtype)
    order = descending(torch.randn(valid.shape, generator=torch.Generator().manual_seed(1)), valid)
    limit = torch.tensor([0.5, 0.3, 0.2])
    at = functools.partial(Tensor.to, device=device)
    fused = kernel(at(features), at(order), at(budget), at(limit), at(valid))
    return torch.equal(fused.cpu(), _greedy(unit_rows(features.float()), order, budget, limit, valid))
