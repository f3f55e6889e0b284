"""Comparing candidates measured on the same samples."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
