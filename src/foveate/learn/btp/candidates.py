"""The schedules that calibration compares, all at the same mean number of tokens per layer."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.errors import BudgetError
from foveate.pruners.btp.method import BTP
from foveate.pruners.btp.stages import BTPStage, default_stages

# Keep of each stage as a share of the first one's, by the part of the stages that lies before it (0 first, 1 last).
LADDERS = {
    "halving": lambda part, stages: 0.5 ** (part * (stages - 1)),
    "gentle, then steep": lambda part, stages: 0.7 ** (part * (stages - 1)) if part < 1 else 0.12,
    "steep": lambda part, stages: 0.3 ** (part * (stages - 1)),
}
# Attention's share at the first and at the last stage, even steps between; the first is where calibration begins.
ATTENTION = {
    "0.6 to 1 (paper, LLaVA-1.5)": (0.6, 1.0),
    "0 to 1": (0.0, 1.0),
    "0.2 to 0.8 (paper, Qwen2.5-VL)": (0.2, 0.8),
    "0.9 to 1": (0.9, 1.0),
    "0.5 to 0.5": (0.5, 0.5),
}
EARLY = 1.5  # layers lie at this power of even steps


@dataclass(frozen=True)
class Candidate:
    """One schedule.

    Parameters
    ----------
    where
        How its layers came about.
    how
        Its keeps, attention shares and options.
    pruner
        Keeps solved for the budget.
    """

    where: str
    how: str
    pruner: BTP

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of its stages, a drop included."""
        return self.pruner.layers(self.depth)

    @property
    def depth(self) -> int:
        """Decoder layers of the model it is for."""
        if self.pruner.depth is None:
            raise ValueError("a candidate is for a model of known depth")
        return self.pruner.depth


def layer_sets(curve: Sequence[int], reading: int, count: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Where stages may lie, in the order of preference; the same layers stand once, under their first name.

    From layer 0 to the reading depth, `count` of them after layer 0, one more, and one less: denser early, where a
    token that goes is spared by most layers (as the paper's own layers lie), or evenly; the rule's layers from the
    curve, and the default ones by depth, each with and without a stage before layer 0 in front. Before layer 0 there
    is no attention yet, so that such a stage picks for diversity alone, and it saves most.
    """
    default = tuple(stage.layer for stage in default_stages(depth) if stage.keep)[:count]
    sets = {f"{more} to the reading depth, denser early": _spaced(reading, more, EARLY) for more in _near(count)}
    sets |= {f"{more} to the reading depth, even": _spaced(reading, more, 1) for more in _near(count)}
    sets |= {"curve": tuple(curve), "curve, and layer 0": (0, *curve)}
    sets |= {"default": default, "default, and layer 0": (0, *default)}
    first: dict[tuple[int, ...], str] = {}
    for name, layers in sets.items():
        if layers and max(layers) < depth:
            first.setdefault(layers, name)
    return {name: layers for layers, name in first.items()}


def _near(count: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys((count + 1, count + 2, max(count, 2))))


def _spaced(reach: int, count: int, power: float) -> tuple[int, ...]:
    return tuple(dict.fromkeys(round(reach * (at / (count - 1)) ** power) for at in range(count)))


def make_stages(layers: Sequence[int], ladder: str, attention: str) -> tuple[BTPStage, ...]:
    """Stages before these layers, keeps not yet scaled to a budget."""
    low, high = ATTENTION[attention]
    stages = []
    for number, layer in enumerate(layers):
        part = number / (len(layers) - 1) if len(layers) > 1 else 1.0
        share = low + (high - low) * part if layer else 0.0
        keep = LADDERS[ladder](part if len(layers) > 1 else 0.0, len(layers))
        stages.append(BTPStage(layer, keep, round(share, 4)))
    return tuple(stages)


def solve(stages: Sequence[BTPStage], budget: float, depth: int, drop: int | None) -> BTP:
    """BTP with these stages scaled to the budget, and all that is left dropped before layer `drop` if one is given.

    Raises
    ------
    BudgetError
        When they cannot reach it, when a stage would keep everything, or when one is not above the drop.
    """
    if drop is not None and stages[-1].layer >= drop:
        raise BudgetError(f"btp: a stage before layer {stages[-1].layer} is not above the drop before layer {drop}")
    pruner = BTP(
        keep=budget, stages=tuple(stages), depth=depth, final="keep" if drop is None else "auto", harmless=drop
    )
    solved = [stage for stage in pruner.schedule(depth) if stage.keep]
    if solved[0].keep >= 1:
        raise BudgetError(f"btp: the stage before layer {solved[0].layer} would keep everything")
    rounded = tuple(dataclasses.replace(stage, keep=round(stage.keep, 6)) for stage in solved)
    return dataclasses.replace(pruner, stages=rounded)


def by_the_paper(layers: Sequence[int], budget: float, depth: int) -> Candidate:
    """The one schedule of the paper's own calibration: the curve's layers, halving, its shares of LLaVA-1.5.

    Raises
    ------
    BudgetError
        When the layers cannot reach the budget.
    """
    ladder, attention = next(iter(LADDERS)), next(iter(ATTENTION))
    pruner = solve(make_stages(layers, ladder, attention), budget, depth, None)
    return Candidate("curve", f"{ladder}, attention {attention}", pruner)


def first_round(
    curve: Sequence[int], reading: int, count: int, budget: float, depth: int
) -> tuple[list[Candidate], list[str]]:
    """All layers with all ladders of keep, attention's share as in the paper; and what is left out, with why."""
    found, out = [], []
    sets, attention = layer_sets(curve, reading, count, depth), next(iter(ATTENTION))
    for (where, layers), ladder in itertools.product(sets.items(), LADDERS):
        how = f"{ladder}, attention {attention}"
        try:
            found.append(Candidate(where, how, solve(make_stages(layers, ladder, attention), budget, depth, None)))
        except BudgetError as error:
            out.append(f"{where} {list(layers)}, {how}: {error}")
    return found, out


def attention_round(best: Candidate, budget: float) -> list[Candidate]:
    """The best one's layers and keeps with the other ladders of attention's share."""
    layers = [stage.layer for stage in kept_stages(best)]
    made = []
    for name in ATTENTION:
        if best.how.endswith(f"attention {name}"):
            continue
        shares = [stage.attention for stage in make_stages(layers, "halving", name)]
        stages = [
            dataclasses.replace(stage, attention=share) for stage, share in zip(kept_stages(best), shares, strict=True)
        ]
        made.append((f"{best.how.partition(', attention')[0]}, attention {name}", stages))
    return list(_solved(best, made, budget))


def seed_round(best: Candidate, budget: float) -> list[Candidate]:
    """The best one with a spatial seed, and with attention not rebalanced, or more so."""
    stages = kept_stages(best)
    made = [
        (f"{best.how}; seed {share:g}", [dataclasses.replace(stages[0], spatial=share), *stages[1:]])
        for share in (0.25, 0.5)
    ] + [
        (f"{best.how}; over {over:g}", [dataclasses.replace(stage, over=over) for stage in stages])
        for over in (1.0, 1.5)
    ]
    return list(_solved(best, made, budget))


def drop_round(best: Candidate, budget: float, drop: int) -> list[Candidate]:
    """The best one with all that is left dropped before a layer, and so more tokens above it."""
    return list(_solved(best, [(f"{best.how}; drop", kept_stages(best))], budget, drop))


def kept_stages(candidate: Candidate) -> tuple[BTPStage, ...]:
    """Its stages that keep something."""
    return tuple(stage for stage in candidate.pruner.stages if isinstance(stage, BTPStage))


def _solved(
    best: Candidate, made: Iterable[tuple[str, Sequence[BTPStage]]], budget: float, drop: int | None = None
) -> Iterator[Candidate]:
    for how, stages in made:
        try:
            pruner = solve(stages, budget, best.depth, drop)
        except BudgetError:
            continue  # a variant that does not fit is no loss
        yield Candidate(best.where, how, pruner)


MARGIN = 3.0  # paired standard errors; some thirty candidates on 64 samples: chance alone makes gaps of more than two


@dataclass(frozen=True)
class Scores:
    """What the running sums of a pass say of each candidate.

    Attributes
    ----------
    kl
        (C,) mean KL in nats.
    error
        (C,) its standard error.
    same
        (C,) share of answer tokens that stay the dense model's.
    paired
        (C, C) standard error of the difference of two candidates on the same samples.
    """

    kl: Tensor
    error: Tensor
    same: Tensor
    paired: Tensor


def batch_sums(kl: Tensor, same: Tensor) -> dict[str, Tensor]:
    """Sums over the samples of a batch, from (C, B) tensors; their size does not depend on B."""
    kl, same = kl.double(), same.double()
    return {
        "samples": torch.tensor(float(kl.shape[1]), dtype=torch.float64),
        "kl": kl.sum(1),
        "products": kl @ kl.T,
        "same": same.sum(1),
    }


def scores(sums: dict[str, Tensor]) -> Scores:
    """Means and standard errors from the sums of all batches."""
    number = float(sums["samples"])
    mean = sums["kl"] / number
    mean = mean.masked_fill(mean.isnan(), math.inf)  # a model that breaks under pruning is never the best
    cross = sums["products"] / number - mean[:, None] * mean
    variance = cross.diagonal()
    between = (variance[:, None] + variance - 2 * cross).clamp(min=0)
    free = max(number - 1, 1)
    return Scores(mean, (variance.clamp(min=0) / free).sqrt(), sums["same"] / number, (between / free).sqrt())


def least(found: Scores) -> int:
    """The candidate of least mean KL; of equal ones the first."""
    return int(found.kl.argmin())


def beaten(found: Scores, mine: int) -> bool:
    """Whether another candidate is better than this one by more than three paired standard errors.

    Of many candidates measured on few samples the best looks better than it is; under this margin it is not believed.
    """
    best = least(found)
    return not bool(found.kl[mine] - found.kl[best] <= MARGIN * found.paired[mine, best])  # NaN is beaten, too


def choose(found: Scores, layers: Sequence[Hashable]) -> int:
    """The candidate to take: first its layers, then the least mean KL among those of these layers.

    So that chance does not decide between layers that the samples cannot distinguish, they are gone through in their
    order: the first are taken whose best candidate is not beaten.

    Parameters
    ----------
    found
        Of C candidates.
    layers
        What the stages of each have in common with those of others; in the order of preference.
    """
    for group in dict.fromkeys(layers):
        members = [at for at, own in enumerate(layers) if own == group]
        mine = min(members, key=lambda at: float(found.kl[at]))
        if not beaten(found, mine):
            return mine
    return least(found)


def depth_of_harmless_drop(
    kl: Sequence[float], same: Sequence[float], tolerance: float = 0.01, agreement: float = 0.99
) -> int | None:
    """The smallest layer from which on dropping every visual token changes next to nothing.

    From there on, that is at this layer and at each deeper one, the mean KL is at most `tolerance` nats and at least
    `agreement` of the answers' tokens stay the same.

    Parameters
    ----------
    kl, same
        By the layer before which everything is dropped, from layer 0.

    Returns
    -------
    int or None
        None where not even the drop before the last layer is harmless.
    """
    harmless = None
    for layer in reversed(range(len(kl))):
        if not (kl[layer] <= tolerance and same[layer] >= agreement) or math.isnan(kl[layer]):
            break
        harmless = layer
    return harmless


def reading_depth(kl: Sequence[float]) -> int:
    """The smallest layer from which on dropping every visual token costs at most half of what it costs at the outset.

    Most of what the answers take from the image has been taken in the layers above it.

    Parameters
    ----------
    kl
        Mean KL by the layer before which everything is dropped, from layer 0.
    """
    return next(layer for layer in range(len(kl) + 1) if all(value <= kl[0] / 2 for value in kl[layer:]))
