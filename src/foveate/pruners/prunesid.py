"""PruneSID: tokens grouped by principal directions, and from each group first those not too alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from foveate import select
from foveate.pruners.base import VisualTokens, option
from foveate.pruners.encoder import EncoderPruner
from foveate.tensors import descending, to_device

BISECTIONS = 24  # a prompt has fewer tokens than 2 to that power
ROUNDS = 8  # of the search for principal directions
SEPARATE = 3.0  # squared length of what tells groups apart, of 1 + that: makes tokens of two groups unlike


@dataclass(frozen=True, kw_only=True)
class PruneSID(EncoderPruner):
    """Group tokens by the principal direction that they lie along most; fill the budget with some of each group.

    Directions are the ⌊k / 4⌋ first principal components of the sigmoid of the features, less each token's mean. In a
    group, tokens by falling attention of the class token suppress those whose cosine exceeds k / 32 times the mean
    cosine of all pairs. Each group has a place, and the others are shared out by how many tokens of a group are not
    suppressed, up to a cap. A group's places go to these first, by attention, then to its others. Where the encoder
    has no class token, the mean over the queries of all patches stands in, and the report says so.

    Source: Fang et al., "PruneSID", ICLR 2026 (arXiv 2603.09480); the rule of the authors' code, in words of ours.
    There directions come from a random start and two rounds; here the start is always the same and there are eight.
    LLaVA's class token takes one of the places there.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    """

    name: ClassVar[str] = "prunesid"
    paper: ClassVar[str] = "Fang et al., ICLR 2026, arXiv 2603.09480"
    url: ClassVar[str] = "https://arxiv.org/abs/2603.09480"
    summary: ClassVar[str] = "groups by principal directions, and of each first what is not too alike"
    by_class_token: ClassVar[bool] = True

    group: int = option(4, "places of the budget for each principal direction, at least 1", at_least=1)
    strictness: float = option(
        1.0,
        "tokens of a group are too alike above k / 32 times the mean cosine times this, in (0, 100]",
        over=0,
        at_most=100,
    )

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return self.vision_attention(depth)

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        features, attention, valid = tokens.vision[0], tokens.class_received[0], tokens.valid
        k = torch.minimum(k, tokens.present)
        number = (k // self.group).clamp(min=1, max=max(features.shape[-1] - 1, 1))
        places, groups = to_device(k, valid.device)[:, None], int(number.max())
        member = principal(features, to_device(number, valid.device), groups, valid)
        unit = torch.nn.functional.normalize(features.float(), dim=-1).masked_fill(~valid[..., None], 0)
        pairs = (valid.sum(-1) * (valid.sum(-1) - 1)).clamp(min=1)
        mean = (unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))) / pairs
        limit = (self.strictness * places[:, 0] / 32 * mean).nan_to_num()
        free = self._not_suppressed(unit, member, attention, limit, valid)

        def count(of: Tensor) -> Tensor:
            return torch.zeros(len(of), groups, dtype=torch.long, device=of.device).scatter_add(1, member, of.long())

        size, survivors = count(valid), count(free)
        budget = shared_out(size, survivors, places)
        # by group, in it what is not suppressed first, in these by attention
        order = descending(attention, valid)
        for key in (~free, member.masked_fill(~valid, groups)):
            order = order.gather(1, key.gather(1, order).to(torch.int16).argsort(dim=-1, stable=True))
        start = torch.cat([torch.zeros_like(size[:, :1]), size.cumsum(-1)[:, :-1]], 1)
        sorted_member = member.gather(1, order)
        rank = torch.arange(valid.shape[1], device=valid.device) - start.gather(1, sorted_member)
        return torch.zeros_like(valid).scatter(1, order, rank < budget.gather(1, sorted_member)) & valid

    def _not_suppressed(self, unit: Tensor, member: Tensor, attention: Tensor, limit: Tensor, valid: Tensor) -> Tensor:
        """(B, N) bool, what stays when in each group, by falling attention, tokens suppress those too like them.

        All groups at once: coordinates of their own, long enough, make the tokens of two groups never too alike.
        """
        shift = torch.nn.functional.one_hot(member).to(unit) * SEPARATE**0.5
        joint = torch.cat([unit, shift], -1)  # cosine (c + 3) / 4 inside a group, c / 4 between two
        free = torch.zeros_like(valid)
        for row, above in enumerate(((limit + SEPARATE) / (1 + SEPARATE)).tolist()):
            one = slice(row, row + 1)
            stay = select.suppression(joint[one], attention[one], unit.shape[1], above, fill="stop", valid=valid[one])
            free[row] = stay[0]
        return free


def principal(features: Tensor, number: Tensor, most: int, valid: Tensor) -> Tensor:
    """(B, N) long, for each token the principal direction, of the row's `number` (B,), that it lies along most.

    Of the matrix (C, N) of sigmoids, less each token's mean over C, these are the right singular vectors with the
    largest values, found by subspace iteration from a start that is always the same. Columns of the start are
    orthogonalised in order, so a row with fewer directions finds the same alone. In float64; O(N C q).
    """
    rows = features.double().nan_to_num().sigmoid()
    rows = (rows - rows.mean(-1, keepdim=True)).masked_fill(~valid[..., None], 0)
    drawn = np.random.default_rng(0).standard_normal((most, rows.shape[-1]))
    start = to_device(torch.from_numpy(drawn).mT.contiguous(), rows.device).expand(len(rows), -1, -1)
    mine = torch.arange(most, device=rows.device) < number[:, None]
    basis = torch.linalg.qr(start * mine[:, None]).Q * mine[:, None]
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(torch.bmm(rows.mT, torch.bmm(rows, basis))).Q * mine[:, None]
    seen = torch.bmm(rows, basis)
    squares, turn = torch.linalg.eigh(torch.bmm(seen.mT, seen))  # smallest first
    found = squares > squares.amax(-1, keepdim=True) * 1e-10
    along = torch.bmm(seen, turn).abs() / squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()[:, None]
    along = along.masked_fill(~found[:, None], -1)
    return most - 1 - along.argmax(-1)  # the largest first


def shared_out(size: Tensor, survivors: Tensor, places: Tensor) -> Tensor:
    """(B, G) how many places each group gets of the row's `places` (B, 1).

    Parameters
    ----------
    size, survivors
        (B, G) tokens of each group, and those that are not suppressed.
    """
    least = size.clamp(max=1)
    cap = torch.minimum(5 * ((places + 63) // 64), torch.minimum(size, survivors))
    # caps are raised by one, all alike, until they hold the budget: by how much, by bisection
    low, high = torch.zeros_like(places), torch.zeros_like(places) + size.amax(-1, keepdim=True)
    for _ in range(BISECTIONS):
        middle = (low + high) // 2
        enough = torch.minimum(cap + middle, size).sum(-1, keepdim=True) >= places
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
        low = torch.minimum(low, high)
    cap = torch.minimum(cap + high, size)
    others = (places - least.sum(-1, keepdim=True)).clamp(min=0)
    total = survivors.sum(-1, keepdim=True).clamp(min=1)
    until = (survivors.cumsum(-1).double() * others / total).round().long()
    budget = torch.minimum(least + until.diff(dim=-1, prepend=torch.zeros_like(places)), cap)
    # what is left goes to the groups with the most survivors, each up to its cap
    order = survivors.argsort(dim=-1, descending=True, stable=True)
    room = (cap - budget).gather(1, order)
    before = room.cumsum(-1) - room
    more = torch.minimum((places - budget.sum(-1, keepdim=True) - before).clamp(min=0), room)
    return budget.scatter_add(1, order, more)
