"""How well a predictor's scores fit the tokens under the boxes: the loss that trains it, and what is reported."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6


def localisation_loss(
    logits: Tensor, target: Tensor, valid: Tensor, dice: float = 1.0, bce: float = 0.1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of Dice and binary cross-entropy, fp32; of each sample, then averaged over those with a target.

    Dice weighs more, as boxes are coarse: what matters is that no token of the answer is lost, not the box's rim.

    Parameters
    ----------
    logits
        (B, N) keep scores of the visual tokens.
    target
        (B, N) bool, tokens under the boxes. A sample without any takes no part.
    valid
        (B, N) bool, False for padding.
    dice, bce
        Weights; the published ones.

    Returns
    -------
    loss
        Scalar; zero, and still part of the graph, where no sample has a target.
    parts
        "dice" and "bce", scalars without weight and gradient.
    """
    target = target & valid
    counts = target.any(-1)
    scores = logits.float().masked_fill(~valid, 0)
    truth = target.float()
    probable = scores.sigmoid() * valid
    overlap = (probable * truth).sum(-1)
    losses = {
        "dice": 1 - (2 * overlap + EPSILON) / (probable.sum(-1) + truth.sum(-1) + EPSILON),
        "bce": (functional.binary_cross_entropy_with_logits(scores, truth, reduction="none") * valid).sum(-1)
        / valid.sum(-1).clamp(min=1),
    }
    means = {name: (each * counts).sum() / counts.sum().clamp(min=1) for name, each in losses.items()}
    return dice * means["dice"] + bce * means["bce"], {name: mean.detach() for name, mean in means.items()}


def recall(keep: Tensor, target: Tensor) -> Tensor:
    """Share of the target tokens that are kept, a scalar: mean over the samples that have any, NaN where none has.

    Parameters
    ----------
    keep, target
        (B, N) bool.
    """
    wanted = target.sum(-1)
    return ((keep & target).sum(-1) / wanted)[wanted > 0].mean()


def kept_share(keep: Tensor, valid: Tensor) -> Tensor:
    """Share of the visual tokens that are kept, a scalar: mean over the samples that have any, NaN where none has.

    Parameters
    ----------
    keep, valid
        (B, N) bool.
    """
    there = valid.sum(-1)
    return ((keep & valid).sum(-1) / there)[there > 0].mean()
