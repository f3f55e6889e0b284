"""Tokens as different from each other as can be."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from foveate.kernels import dispatch
from foveate.select.checks import check_budget, check_features, check_mask, exact, widest
from foveate.select.cosine import UnitRows, repeats_of, unit_rows
from foveate.select.isolated import most_isolated, most_isolated_of_one
from foveate.select.lazy_greedy import Capped, Index
from foveate.tensors import take_rows, wide

CHUNK = 256  # tokens of a start set compared at a time
First = Literal["published", "outlier"]


@exact
def max_min_diversity(
    features: Tensor,
    k: int | Tensor,
    start: Tensor | None = None,
    valid: Tensor | None = None,
    first: First = "published",
) -> Tensor:
    """Pick farthest points by cosine distance: each next token is the one whose nearest kept token is farthest.

    Only the cosine of each token to its nearest kept one is carried along, never an N x N matrix: O(N k D) in all,
    after the first pick.

    Parameters
    ----------
    features
        (B, N, D) floating point; cosines are computed in float32 (float64 for float64). A row of zeros or with a NaN
        or infinity has cosine 0 to every other.
    k
        Tokens to keep, the start set among them: an int, or (B,) whole numbers, one for each row.
    start
        (B, N) bool, tokens kept from the outset; where there are more than k, the first k of them. None, or a row
        without any: the first pick is as `first` says.
    valid
        (B, N) bool, False for padding, which is never kept; None: all tokens count.
    first
        The first pick of a row without a start. "published", as DivPrune and BTP have it: the token whose nearest
        neighbour is farthest, exactly; O(N² D) at worst, in blocks. On a CPU few tokens are compared with all others
        where images vary smoothly. "outlier": the token farthest from the mean direction of the row's valid tokens,
        O(N D).

    Returns
    -------
    Tensor
        keep (B, N) bool with exactly min(k, valid tokens) True in a row. Ties go to the lowest index.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type or shape, k is negative, or `first` is unknown.

    Notes
    -----
    The greedy 2-approximation of max-min diversity (Gonzalez 1985; DivPrune, Alvar et al., arXiv 2503.02175).
    On CUDA a Triton kernel picks for the whole batch in one launch (see `kernels.dispatch`), and unless k lies on the
    GPU, nothing waits for it.
    """
    features = check_features(features)
    shape, device = features.shape[:2], features.device
    valid = check_mask("valid", valid, shape, device)
    start = torch.zeros_like(valid) if start is None else check_mask("start", start, shape, device) & valid
    budget = check_budget(k, valid)
    if first not in get_args(First):
        raise ValueError(f"first must be one of {', '.join(get_args(First))}, got {first!r}")
    keep = dispatch.max_min_diversity(features, budget, start, valid, first, agrees)
    if keep is not None:
        return keep
    if not widest(budget):
        return torch.zeros_like(valid)

    start = start & (start.cumsum(-1) <= budget[:, None])
    pick = _lazily if device.type == "cpu" else _one_by_one
    keep = pick(features, budget, start, valid, repeats_of(features, valid), first)
    left = valid & ~keep
    return keep | left & (left.cumsum(-1) <= (budget - keep.sum(-1))[:, None])


def _product(unit: Tensor, vector: Tensor) -> Tensor:
    """Product (B, N) of each row of unit (B, N, D) with its sample's vector (B, D)."""
    return torch.bmm(unit, vector[..., None]).squeeze(-1)


def _to_set(unit: Tensor, chosen: Tensor) -> Tensor:
    """Cosine (B, N) of each token to the nearest selected one; -inf in a row without any."""
    nearest = unit.new_full(unit.shape[:2], -torch.inf)
    members = (~chosen).to(torch.uint8).argsort(dim=-1, stable=True)[:, : widest(chosen.sum(-1))]
    for first in range(0, members.shape[1], CHUNK):
        part = members[:, first : first + CHUNK]
        absent = ~chosen.gather(1, part)
        cosine = torch.bmm(unit, take_rows(unit, part).mT).masked_fill_(absent[:, None], -torch.inf)
        torch.maximum(nearest, cosine.amax(-1), out=nearest)
    return nearest


def _lazily(features: Tensor, budget: Tensor, start: Tensor, valid: Tensor, repeats: Tensor, first: First) -> Tensor:
    """The same picks on a CPU, where the plain form reads all features for each; arguments as of `_one_by_one`."""
    keep = torch.zeros_like(valid)
    for row, count in enumerate(budget.tolist()):
        if count:
            keep[row] = farthest_points(features[row], count, start[row], valid[row], repeats[row], first)
    return keep


def _one_by_one(
    features: Tensor, budget: Tensor, start: Tensor, valid: Tensor, repeats: Tensor, first: First
) -> Tensor:
    """The plain form: one pick a step, no read from the device inside the loop.

    Parameters
    ----------
    budget
        (B,) long, kept tokens wanted in all; where repeats are left out there may be fewer.
    start, valid
        (B, N) bool; at most `budget` of `start`.
    repeats
        (B, N) bool, tokens that are not picked.
    """
    unit, keep = unit_rows(wide(features)), start.clone()
    seeded = keep.any(-1, keepdim=True) | (budget == 0)[:, None]
    if not bool(seeded.all()):  # one read from the device, as of `missing` below
        if first == "published":
            pick = most_isolated(unit, valid, valid & ~repeats)
        else:
            mean = torch.bmm(valid[:, None].to(unit), unit).squeeze(1)
            pick = _product(unit, mean).masked_fill_(~valid | repeats, torch.inf).argmin(-1, keepdim=True)
        keep.scatter_(1, pick, keep.gather(1, pick) | ~seeded)
    nearest = _to_set(unit, keep).masked_fill_(keep | ~valid | repeats, torch.inf)
    missing = torch.minimum(budget, (valid & ~repeats | keep).sum(-1)) - keep.sum(-1)
    for step in range(widest(missing)):
        pick = nearest.argmin(-1, keepdim=True)
        keep.scatter_(1, pick, keep.gather(1, pick) | (step < missing)[:, None])
        torch.maximum(nearest, _product(unit, take_rows(unit, pick).squeeze(1)), out=nearest)
        nearest.scatter_(1, pick, torch.inf)
    return keep


WORTH = 100_000_000  # multiplications of the plain loop: with fewer it is the faster one, at 64 to 3,584 features


def farthest_points(features: Tensor, k: int, start: Tensor, valid: Tensor, repeats: Tensor, first: First) -> Tensor:
    """One sample's `max_min_diversity`, without repeated tokens: it may fall short of k by them.

    Parameters
    ----------
    features
        (N, D) of any floating-point type.
    start, valid, repeats
        (N,) bool; at most k of `start`.
    """
    unit, keep = UnitRows(features), start.clone()
    if not bool(keep.any()) and first == "published":
        keep[most_isolated_of_one(unit, valid, valid & ~repeats)] = True
    elif not bool(keep.any()):
        outlier = unit.compare(unit.mean(valid)[None], None)[0].masked_fill_(~valid | repeats, torch.inf).argmin()
        keep[outlier] = True
    nearest = unit.inverse.new_full(keep.shape, -torch.inf)
    for part in keep.nonzero()[:, 0].split(CHUNK):
        torch.maximum(nearest, unit.compare(unit.take(part), None).amax(0), out=nearest)
    nearest.masked_fill_(keep | ~valid | repeats, torch.inf)
    missing = min(k - int(keep.sum()), int(nearest.isfinite().sum()))
    if features.numel() * missing < WORTH:
        return _loop(unit_rows(wide(features)), nearest, keep, missing)
    keep[Farthest(unit, -nearest, missing).run()] = True
    return keep


def _loop(unit: Tensor, nearest: Tensor, keep: Tensor, missing: int) -> Tensor:
    for step in range(missing):
        pick = int(nearest.argmin())
        keep[pick] = True
        nearest[pick] = torch.inf
        if step < missing - 1:
            torch.maximum(nearest, unit @ unit[pick], out=nearest)
    return keep


class Farthest(Capped):
    """Max-min diversity: the gain is minus the cosine to the nearest kept token; rows of length one."""

    def beside(self, products: Tensor, index: Index) -> Tensor:
        return products.neg_()


def agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel on `device` selects from a small problem what the plain form does on the CPU."""
    from foveate.kernels.diversity import max_min_diversity as kernel

    features, budget, valid = dispatch.small_problem(dtype)
    start = torch.zeros_like(valid)
    start[2, 3:6] = True
    budget[0] = 40
    there, count, begun, real = (tensor.to(device) for tensor in (features, budget, start, valid))
    return all(
        torch.equal(
            kernel(there, count, begun, real, first).cpu(), max_min_diversity(features, budget, start, valid, first)
        )
        for first in get_args(First)
    )
