"""Shares of the visual tokens that a method leaves in each decoder layer, and budgets solved for a wanted share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from foveate.errors import BudgetError
from foveate.pruners.budget import check_share

if TYPE_CHECKING:
    from foveate.pruners.base import Pruner

Made = TypeVar("Made", bound="Pruner")
MANY = 2**40  # visual tokens of a prompt so long that rounding to whole ones is nothing
LEAST = 2.0**-30  # of a budget, where none at all is no budget
STEPS = 60
MEAN = "a mean of {:.1%} of the visual tokens per layer"


def left(method: Pruner, depth: int, visual: int = MANY) -> list[tuple[int, int]]:
    """The stages of a method and the visual tokens that each is planned to leave, of `visual` in the prompt.

    Parameters
    ----------
    method
        Worked out for a model of `depth` decoder layers.

    Raises
    ------
    BudgetError
        When that depends on the prompt.
    """
    now, found = visual, []
    for layer in method.layers(depth):
        one = method.member(layer)
        planned = one.planned(layer, torch.tensor([visual]), torch.tensor([now]))
        if planned is None:
            raise BudgetError(f"{one.name}: how many tokens it keeps depends on the prompt; give it keep, a share")
        now = int(planned)
        found.append((layer, now))
    return found


def per_layer(method: Pruner, depth: int, visual: int = MANY) -> list[int]:
    """Visual tokens that enter each decoder layer by plan, see `left`."""
    stages, now, rows = dict(left(method, depth, visual)), visual, []
    for layer in range(depth):
        now = stages.get(layer, now)
        rows.append(now)
    return rows


def mean(method: Pruner, depth: int, visual: int = MANY) -> float:
    """Share of the visual tokens that a layer holds on average by plan, see `left`."""
    return sum(per_layer(method, depth, visual)) / (visual * depth)


def solve(
    name: str, made: Callable[[float], Made], reached: Callable[[Made], float], wanted: float, what: str = MEAN
) -> Made:
    """The method that reaches a share, or comes closest where it goes by whole tokens or layers.

    Parameters
    ----------
    name
        Of the method, for the message.
    made
        The method at a setting over 0, at which it keeps least, and up to 1, at which it keeps most.
    reached
        Its share; it never falls as the setting grows.
    wanted
        The share, in (0, 1].
    what
        Form of the share in words.

    Raises
    ------
    BudgetError
        When no setting reaches it; the message says between what it must lie.
    """
    check_share(wanted)
    low, high = LEAST, 1.0
    least, most = reached(made(low)), reached(made(high))
    if not least - LEAST <= wanted <= most + LEAST:
        raise BudgetError(
            f"{name}: {what.format(wanted)} cannot be reached: it lies between {least:.1%} and {most:.1%}"
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(made(middle)) < wanted else (low, middle)
    return min((made(high), made(low)), key=lambda one: abs(reached(one) - wanted))
