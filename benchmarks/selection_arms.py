"""What choosing is measured against: a plain incremental loop, and the form that reads k² rows; see selection.py.

Each takes one sample's features (N, D) and returns a mask (N,). The loops are written as well as they can be without
other mathematics: a vector of N numbers is carried along, a pick is one product of all features with one vector, and
nothing is read from the device inside. The k²-reading form is the one that DivPrune's and CDPruner's released code
have: an N x N matrix first, and then at each pick the rows of everything picked so far.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import normalize

from foveate import select

THRESHOLD = 0.9  # of suppression: GreedyPrune's
Arm = Callable[[Tensor, Tensor, int], Tensor]


def clustered(batch: int, number: int, width: int) -> Tensor:
    """(B, N, D) around N / 8 centres, as many visual tokens are alike."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(max(number // 8, 1), width, generator=generator)
    which = torch.randint(0, len(centres), (batch, number), generator=generator)
    return torch.randn(batch, number, width, generator=generator).mul_(0.3).add_(centres[which]).mul_(0.02)


def uniform(batch: int, number: int, width: int) -> Tensor:
    """(B, N, D) in directions that have nothing to do with each other."""
    return torch.randn(batch, number, width, generator=torch.Generator().manual_seed(0))


def saliency(batch: int, number: int) -> Tensor:
    """(B, N) in (0, 1)."""
    return torch.rand(batch, number, generator=torch.Generator().manual_seed(1)).clamp_(min=1e-3)


def relevant(features: Tensor, scores: Tensor) -> Tensor:
    """CDPruner's factors: unit features times relevance, in the features' type."""
    return (normalize(features.float(), dim=-1) * scores[..., None]).to(features.dtype)


def first_pick(unit: Tensor) -> Tensor:
    """Index of the token whose nearest neighbour is farthest; all pairs are compared, a block at a time."""
    nearest = []
    for first in range(0, len(unit), 512):
        cosine = unit[first : first + 512] @ unit.T
        cosine.diagonal(first).fill_(-torch.inf)
        nearest.append(cosine.amax(1))
    return torch.cat(nearest).argmin()


def diversity_loop(features: Tensor, scores: Tensor, k: int) -> Tensor:
    unit = normalize(features.float(), dim=-1)
    keep = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    nearest, pick = torch.full_like(unit[:, 0], -torch.inf), first_pick(unit)
    for _ in range(k):
        keep[pick] = True
        nearest = torch.maximum(nearest, unit @ unit[pick])
        nearest[pick] = torch.inf
        pick = nearest.argmin()
    return keep


def diversity_rows(features: Tensor, scores: Tensor, k: int) -> Tensor:
    unit = normalize(features.float(), dim=-1)
    picks = torch.empty(k, dtype=torch.long, device=unit.device)
    distance = 1 - unit @ unit.T
    distance.fill_diagonal_(torch.inf)
    picks[0] = distance.amin(0).argmax()
    for step in range(1, k):
        nearest = distance.index_select(0, picks[:step]).amin(0)
        picks[step] = nearest.index_fill_(0, picks[:step], -torch.inf).argmax()
    return _mask(picks, len(unit))


def suppression_loop(features: Tensor, scores: Tensor, k: int) -> Tensor:
    unit, left = normalize(features.float(), dim=-1), scores.clone()
    keep = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    for step in range(k):
        pick = left.argmax()
        if step % 64 == 0 and not left[pick] > -torch.inf:  # nobody is active; rarely asked, as it costs a read
            break
        keep[pick] |= left[pick] > -torch.inf
        left[pick] = -torch.inf
        left = left.masked_fill(unit @ unit[pick] > THRESHOLD, -torch.inf)
    return _filled(keep, scores, k)


def suppression_rows(features: Tensor, scores: Tensor, k: int) -> Tensor:
    unit = normalize(features.float(), dim=-1)
    alike, picks = unit @ unit.T, torch.empty(k, dtype=torch.long, device=unit.device)
    picks[0] = scores.argmax()
    for step in range(1, k):
        near = alike.index_select(0, picks[:step]).amax(0)
        left = scores.masked_fill(near > THRESHOLD, -torch.inf).index_fill_(0, picks[:step], -torch.inf)
        pick = left.argmax()
        if step % 64 == 0 and not left[pick] > -torch.inf:
            break
        # nobody active: the first pick once more
        picks[step] = torch.where(left[pick] > -torch.inf, pick, picks[0])
    else:
        step = k
    return _filled(_mask(picks[:step], len(unit)), scores, k)


def dpp_loop(features: Tensor, scores: Tensor, k: int) -> Tensor:
    """Chen, Zhang, Zhou 2018 with rows of the kernel worked out as they are needed."""
    factors = features.float()
    return _determinants(lambda pick: factors @ factors[pick], factors.square().sum(1), k)


def dpp_rows(features: Tensor, scores: Tensor, k: int) -> Tensor:
    """The same with the kernel formed first."""
    factors = features.float()
    kernel = factors @ factors.T
    return _determinants(lambda pick: kernel[pick], kernel.diagonal().clone(), k)


def _determinants(row_of: Callable[[Tensor], Tensor], left: Tensor, k: int) -> Tensor:
    rows = left.new_zeros(k, len(left))
    keep = torch.zeros(len(left), dtype=torch.bool, device=left.device)
    for step in range(k):
        pick = left.argmax()
        row = row_of(pick) - rows[:step, pick] @ rows[:step]
        rows[step] = row = row / left[pick].clamp(min=1e-12).sqrt()
        left = left - row * row
        left[pick] = -torch.inf
        keep[pick] = True
    return keep


def _mask(picks: Tensor, number: int) -> Tensor:
    return torch.zeros(number, dtype=torch.bool, device=picks.device).index_fill_(0, picks, True)


def _filled(keep: Tensor, scores: Tensor, k: int) -> Tensor:
    left = scores.masked_fill(keep, -torch.inf).argsort(descending=True, stable=True)
    missing = torch.arange(len(left), device=left.device) < k - keep.sum()
    return keep.scatter(0, left, keep[left] | missing)


OURS: dict[str, Arm] = {
    "max-min diversity": lambda features, scores, k: select.max_min_diversity(features, k),
    "suppression": lambda features, scores, k: select.suppression(features, scores, k, THRESHOLD),
    "low-rank DPP": lambda features, scores, k: select.low_rank_dpp(features, k),
}
LOOPS: dict[str, Arm] = {
    "max-min diversity": diversity_loop,
    "suppression": suppression_loop,
    "low-rank DPP": dpp_loop,
}
ROWS: dict[str, Arm] = {
    "max-min diversity": diversity_rows,
    "suppression": suppression_rows,
    "low-rank DPP": dpp_rows,
}


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """`foveate.select` without its kernels for a GPU."""
    try:
        fused = importlib.import_module("foveate.kernels.dispatch")
    except ModuleNotFoundError:
        yield
        return
    with mock.patch.object(fused, "attempt", return_value=None):
        yield


def by_sample(arm: Arm) -> Arm:
    """The same for features (B, N, D), sample by sample."""
    return lambda features, scores, k: torch.stack([arm(*one, k) for one in zip(features, scores, strict=True)])


def plain(method: str) -> Arm:
    def arm(features: Tensor, scores: Tensor, k: int) -> Tensor:
        with plain_forms():
            return OURS[method](features, scores, k)

    return arm


def arms_of(method: str, on_gpu: bool) -> dict[str, Arm]:
    """Ours, on a GPU its plain form, and the two others."""
    found = {"ours": OURS[method]}
    if on_gpu:
        found["plain form"] = plain(method)
    return found | {"loop": by_sample(LOOPS[method]), "k² rows": by_sample(ROWS[method])}
