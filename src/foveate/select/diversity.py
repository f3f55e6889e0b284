"""Tokens as different from each other as can be."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.select.checks import check_budget, check_features, check_mask, exact, widest
from foveate.select.cosine import repeats_of, take_rows, unit_rows

CHUNK = 256  # tokens of a start set compared at a time
CROWD = 128  # candidates that a round looks at closely
ROUND = 64  # most picks in a round


@exact
def max_min_diversity(
    features: Tensor, k: int | Tensor, start: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """Pick farthest points by cosine distance: each next token is the one whose nearest kept token is farthest.

    Only the cosine of each token to its nearest kept one is carried along, never an N x N matrix: O(N k D) in all.

    Parameters
    ----------
    features
        (B, N, D) floating point; cosines are computed in float32 (float64 for float64). A row of zeros or with a NaN
        or infinity has cosine 0 to every other.
    k
        Tokens to keep, the start set among them: an int, or (B,) whole numbers, one for each row.
    start
        (B, N) bool, tokens kept from the outset; where there are more than k, the first k of them. None, or a row
        without any: the first pick is the token farthest from the mean direction of the row's valid tokens, an outlier
        found in O(N D). (DivPrune takes the token whose nearest neighbour is farthest, which compares all pairs.)
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

    Notes
    -----
    The greedy 2-approximation of max-min diversity (Gonzalez 1985; DivPrune, Alvar et al., arXiv 2503.02175).
    """
    features = check_features(features)
    shape, device = features.shape[:2], features.device
    valid = check_mask("valid", valid, shape, device)
    start = torch.zeros_like(valid) if start is None else check_mask("start", start, shape, device) & valid
    budget = check_budget(k, valid)
    if not widest(budget):
        return torch.zeros_like(valid)

    unit = unit_rows(features)
    keep = start & (start.cumsum(-1) <= budget[:, None])
    mean = torch.bmm(valid[:, None].to(unit), unit).squeeze(1)
    repeats = repeats_of(unit, valid)
    outlier = _product(unit, mean).masked_fill_(~valid | repeats, torch.inf).argmin(-1, keepdim=True)
    seeded = keep.any(-1, keepdim=True) | (budget == 0)[:, None]
    keep.scatter_(1, outlier, keep.gather(1, outlier) | ~seeded)
    nearest = _to_set(unit, keep).masked_fill_(keep | ~valid | repeats, torch.inf)
    pick = _in_rounds if device.type == "cpu" else _one_by_one
    keep = pick(unit, nearest, keep, torch.minimum(budget, (valid & ~repeats | keep).sum(-1)))
    left = valid & ~keep
    return keep | left & (left.cumsum(-1) <= (budget - keep.sum(-1))[:, None])


def _product(unit: Tensor, vector: Tensor) -> Tensor:
    """Product (B, N) of each row of unit (B, N, D) with its sample's vector (B, D)."""
    return torch.bmm(unit, vector[..., None]).squeeze(-1)


def _to_set(unit: Tensor, chosen: Tensor) -> Tensor:
    """Cosine (B, N) of each token to the nearest chosen one; -inf in a row without any."""
    nearest = unit.new_full(unit.shape[:2], -torch.inf)
    members = (~chosen).to(torch.uint8).argsort(dim=-1, stable=True)[:, : widest(chosen.sum(-1))]
    for first in range(0, members.shape[1], CHUNK):
        part = members[:, first : first + CHUNK]
        absent = ~chosen.gather(1, part)
        cosine = torch.bmm(unit, take_rows(unit, part).mT).masked_fill_(absent[:, None], -torch.inf)
        torch.maximum(nearest, cosine.amax(-1), out=nearest)
    return nearest


def _one_by_one(unit: Tensor, nearest: Tensor, keep: Tensor, budget: Tensor) -> Tensor:
    """The plain form: one pick a step, no read from the device inside the loop.

    Parameters
    ----------
    nearest
        (B, N) cosine to the nearest kept token, inf for those that cannot be picked; used up.
    keep
        (B, N) bool, the tokens kept so far; filled in place.
    budget
        (B,) long, kept tokens wanted in all.
    """
    missing = budget - keep.sum(-1)
    for step in range(widest(missing)):
        pick = nearest.argmin(-1, keepdim=True)
        keep.scatter_(1, pick, keep.gather(1, pick) | (step < missing)[:, None])
        torch.maximum(nearest, _product(unit, take_rows(unit, pick).squeeze(1)), out=nearest)
        nearest.scatter_(1, pick, torch.inf)
    return keep


def _in_rounds(unit: Tensor, nearest: Tensor, keep: Tensor, budget: Tensor) -> Tensor:
    """The same picks with far less memory traffic, for a CPU, where the plain form reads all features for each pick.

    `nearest` only ever rises. So as long as the best of a small crowd, kept up to date, is under the lowest value that
    anyone outside had when the round began, it is the best of all; those outside catch up once a round.
    """
    size = min(CROWD, unit.shape[1])
    missing = budget - keep.sum(-1)
    while bool((missing > 0).any()):
        index = nearest.topk(size, largest=False, sorted=False).indices.sort(-1).values
        crowd, value = take_rows(unit, index), nearest.gather(1, index)
        bound = value.amax(-1, keepdim=True)
        begun = wanted = (missing > 0)[:, None]
        # The first pick of a round is the best of all, whether or not ties keep it out of the crowd.
        pick = nearest.argmin(-1, keepdim=True)
        value.masked_fill_(index == pick, torch.inf)
        picks, vectors = [pick], [take_rows(unit, pick)]
        while len(picks) < ROUND:
            value = value.maximum(_product(crowd, vectors[-1].squeeze(1)))
            place = value.argmin(-1, keepdim=True)
            wanted = wanted & (value.gather(1, place) < bound) & (len(picks) < missing)[:, None]
            if not bool(wanted.any()):
                break
            pick = torch.where(wanted, index.gather(1, place), pick)  # a row that is done repeats itself
            value.scatter_(1, place, torch.inf)
            picks.append(pick)
            vectors.append(take_rows(unit, pick))
        picked = torch.cat(picks, 1)
        fresh = torch.zeros_like(keep).scatter_(1, picked, begun.expand_as(picked))
        keep |= fresh
        missing = budget - keep.sum(-1)
        nearest.masked_fill_(fresh, torch.inf)
        if not bool((missing > 0).any()):
            break  # nobody is left to catch up for
        torch.maximum(nearest, torch.bmm(torch.cat(vectors, 1), unit.mT).amax(1), out=nearest)
    return keep
