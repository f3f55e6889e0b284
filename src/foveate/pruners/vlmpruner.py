"""VLM-Pruner: outward from a few pivots, in rounds, what is not too like anything kept; the rest merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.pruners.base import KeyOrValue, Selection, SingleStagePruner, VisualTokens, option
from foveate.tensors import take_rows, to_device

CHANNELS = 256  # those that vary most over the visual tokens, by which they are compared
REWARD = 0.5  # how much less like a token far away must be: 1 + this at the length of the diagonal
STEP = 0.1  # by which the threshold rises from round to round
OWN = 0.3  # what a survivor keeps of itself where others merge into it


@dataclass(frozen=True, kw_only=True)
class VLMPruner(SingleStagePruner):
    """Begin with pivots and take, from near to far, tokens that are not too like any taken; merge the rest into them.

    Pivots are farthest points by the keys of the layer before the cut, from the one with the largest L1 norm on. A
    token's likeness is its largest cosine to one taken, on the 256 channels that vary most, times 1 + d / 2, where d
    is the distance on the grid to the nearest taken one, in diagonals. A round walks through the others from the least
    like on, `batch` at a time, and takes those under `threshold`; it ends where its first batch gives none, and the
    next one's threshold is 0.1 higher. Each token that leaves goes into its likest survivor, of which 0.3 stay, and
    the mean of those that go there, weighted by likeness, makes 0.7.

    Source: Wu et al., "VLM-Pruner", CVPR 2026 (arXiv 2512.02700); the rule of the authors' code, in words of ours.
    There a round that takes none ends it all, with fewer tokens than asked for; here the threshold rises on. Tokens on
    two grids lie a diagonal apart, which that code, made for one image, leaves open.

    Raises
    ------
    BudgetError
        When an option makes no sense.
    """

    name: ClassVar[str] = "vlmpruner"
    paper: ClassVar[str] = "Wu et al., CVPR 2026, arXiv 2512.02700"
    url: ClassVar[str] = "https://arxiv.org/abs/2512.02700"
    summary: ClassVar[str] = "outward from pivots, what is not too like anything kept; the rest merged"
    lowest_layer: ClassVar[int] = 1  # before layer 0 there are no keys to read
    keeps_exactly: ClassVar[bool] = True
    uses_grids: ClassVar[bool] = True

    pivots: int = option(4, "tokens to begin with, at least 1", at_least=1)
    threshold: float = option(
        0.8, "likeness under which the first round takes tokens, in [-2, 2]", at_least=-2, at_most=2
    )
    batch: int = option(16, "tokens that are looked at together, at least 1", at_least=1)
    merge: bool = option(True, "merge each token that leaves into the survivor most like it; else it is dropped")

    def kv(self, layer: int) -> tuple[KeyOrValue, ...]:
        return () if self.keeps_all else ("keys",)

    def choose(self, tokens: VisualTokens, k: Tensor) -> Selection:
        if tokens.keys is None:
            raise RuntimeError("VLM-Pruner was given no keys; the engine must honour kv")
        k = torch.minimum(k, tokens.present)
        unit = _varied(tokens.features.float().nan_to_num(), tokens.valid)  # a NaN is less than no threshold
        walk = _Walk(tokens, unit, to_device(k, tokens.valid.device)[:, None])
        walk.take(*_pivots(tokens, k.clamp(max=self.pivots)))
        limit = self.threshold
        while bool((walk.left > 0).any()):  # one look at the device for a round
            walk.round(limit, self.batch, all_of=limit > 1 + 2 * REWARD)
            limit += STEP
        if not self.merge:
            return Selection(walk.keep)
        return _merged(unit, walk.keep, tokens.valid, int(k.max()))


class _Walk:
    """The tokens taken so far, and how near all others are to them.

    `keep` (B, N) bool; `left` (B, 1) places; `near` (B, N) largest cosine, `away` (B, N) least distance in diagonals.
    """

    def __init__(self, tokens: VisualTokens, unit: Tensor, places: Tensor) -> None:
        self.tokens, self.unit, self.left = tokens, unit, places.clone()
        self.keep = torch.zeros_like(tokens.valid)
        self.near = torch.full_like(unit[..., 0], -torch.inf)
        self.away = torch.ones_like(self.near)
        most = max(1, *map(len, tokens.grids))
        sides = [
            [(g.height**2 + g.width**2) ** 0.5 for g in grids] + [1.0] * (most - len(grids)) for grids in tokens.grids
        ]
        table = to_device(torch.tensor(sides), tokens.valid.device)
        self.diagonal = table.gather(1, tokens.grid.clamp(min=0))

    def likeness(self) -> Tensor:
        return self.near * (1 + REWARD * self.away)

    def take(self, columns: Tensor, there: Tensor) -> None:
        """Take the tokens at `columns` (B, c), where `there`."""
        tokens = self.tokens
        taken = torch.zeros(self.keep.shape, dtype=torch.long, device=columns.device)
        self.keep = self.keep | (taken.scatter_add(1, columns, there.long()) > 0)
        self.left = self.left - there.sum(-1, keepdim=True)
        cosine = torch.bmm(self.unit, take_rows(self.unit, columns).mT).masked_fill(~there[:, None], -torch.inf)
        self.near = torch.maximum(self.near, cosine.amax(-1))
        apart = [(one[..., None] - one.gather(1, columns)[:, None]).float() for one in (tokens.row, tokens.column)]
        length = torch.hypot(*apart) / self.diagonal[..., None]
        other = (tokens.grid[..., None] != tokens.grid.gather(1, columns)[:, None]) | (tokens.grid < 0)[..., None]
        length = length.masked_fill(other, 1).masked_fill(~there[:, None], 1)
        self.away = torch.minimum(self.away, length.amin(-1))

    def round(self, limit: float, batch: int, all_of: bool) -> None:
        """Walk once through those not taken, the least like first."""
        candidate = self.tokens.valid & ~self.keep
        order = self.likeness().masked_fill(~candidate, torch.inf).argsort(dim=-1, stable=True)
        going = self.left > 0
        for start in range(0, order.shape[1], batch):
            index = order[:, start : start + batch]
            likeness = self.likeness().gather(1, index)
            fits = candidate.gather(1, index) & going & ((likeness < limit) | all_of)
            rank = likeness.masked_fill(~fits, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
            fits = fits & (rank < self.left)
            self.take(index, fits)
            if not start:
                going = going & fits.any(-1, keepdim=True)
            going = going & (self.left > 0)
            if start // batch % 8 == 0 and not bool(going.any()):
                break


def _varied(features: Tensor, valid: Tensor) -> Tensor:
    """Unit vectors (B, N, 256 or fewer) of the channels that vary most over the valid tokens; zeros for padding."""
    count = valid.sum(-1).clamp(min=1)[:, None, None]
    there = valid[..., None]
    mean = (features * there).sum(1, keepdim=True) / count
    variance = ((features - mean).square() * there).sum(1)
    channels = variance.topk(min(CHANNELS, features.shape[-1]), dim=-1).indices.sort(dim=-1).values
    chosen = features.gather(2, channels[:, None].expand(-1, features.shape[1], -1))
    return torch.nn.functional.normalize(chosen, dim=-1).masked_fill(~there, 0)


def _pivots(tokens: VisualTokens, number: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (B, p) of farthest points by keys, and which of them (B, p) are among the row's number (B,)."""
    keys = tokens.keys.transpose(1, 2).flatten(2).float()  # type: ignore[union-attr]
    far = keys.abs().sum(-1)
    columns: list[Tensor] = []
    for step in range(int(number.max())):
        columns.append(far.masked_fill(~tokens.valid, -torch.inf).argmax(-1, keepdim=True))
        apart = torch.linalg.vector_norm(keys - take_rows(keys, columns[-1]), dim=-1)
        far = (apart if not step else torch.minimum(far, apart)).scatter(1, torch.cat(columns, 1), -torch.inf)
    there = torch.arange(len(columns), device=keys.device) < to_device(number, keys.device)[:, None]
    return torch.cat(columns, 1) if columns else there.long(), there


def _merged(unit: Tensor, keep: Tensor, valid: Tensor, most: int) -> Selection:
    """Each token that leaves goes into its likest survivor, with a weight such that 0.3 of that one stays."""
    columns = torch.argsort((~keep).to(torch.uint8), dim=-1, stable=True)[:, : max(most, 1)]
    cosine = torch.bmm(unit, take_rows(unit, columns).mT).masked_fill(~keep.gather(1, columns)[:, None], -torch.inf)
    best, place = cosine.max(-1)
    goes = valid & ~keep & keep.any(-1, keepdim=True)
    weight = best.clamp(min=0).masked_fill(~goes, 0)
    into = columns.gather(1, place)
    total = torch.zeros_like(weight).scatter_add(1, into, weight)
    weight = weight / total.gather(1, into).clamp(min=1e-8) * ((1 - OWN) / OWN)
    return Selection(keep, into.masked_fill(~goes, -1), weight)
