"""What is compared: dense, random tokens, a smaller picture, and the methods asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from foveate.errors import BudgetError
from foveate.measure.budget import AFTER, PromptCost
from foveate.pruners import Pruner, Random
from foveate.pruners.base import depth_of
from foveate.pruners.spec import MethodSpec, brings_budget, build

DENSE, AGAIN, SMALLER, RANDOM = "dense", "dense again", "smaller picture", "random"


@dataclass(frozen=True)
class Arm:
    """One thing that is measured.

    Parameters
    ----------
    method
        As it was asked for, or what stands beside it.
    keep
        Budget asked for; none for dense, and for options that bring their own, such as BTP's published stages.
    pruner
        None: the dense model.
    """

    method: str
    keep: float | int | None
    pruner: Any = None

    @property
    def label(self) -> str:
        """Name of the arm in a result."""
        return self.method if self.keep is None else f"{self.method} @ {self.keep}"


def check_methods(methods: tuple[MethodSpec, ...], keeps: tuple[float | int, ...], config: Any = None) -> None:
    """Refuse what cannot be made, before a model is loaded.

    Parameters
    ----------
    methods, keeps
        As in the settings.
    config
        The model's, where it is known already.

    Raises
    ------
    UnknownMethodError, BudgetError
        A method, an option or a budget does not exist, or does not fit the model.
    """
    for spec in methods:
        if "keep" in spec.options:
            raise BudgetError(f"{spec}: the budget is given by --keep, for all methods")
        for keep in (None,) if has_own(spec) else keeps:
            made = _made(spec, keep)
            if config is not None:
                made.resolved(config).layers(depth_of(config))


def has_own(spec: MethodSpec) -> bool:
    """Whether a method is measured with the budget that its options bring, and not with --keep."""
    return brings_budget(spec.name, spec.options)


def make_arms(
    model: Any, methods: tuple[MethodSpec, ...], keeps: tuple[float | int, ...], vision: bool, budget: str = AFTER
) -> list[Arm]:
    """Return the arms, dense first and dense again last of the dense ones.

    Parameters
    ----------
    model
        Whose sizes a learned method without weights takes: it gets random ones of the published proportions.
    methods, keeps
        As in the settings.
    vision
        Whether the vision encoder runs.
    budget
        What keeps are shares of; another than "after" is solved for each prompt, by `at_cost`.

    Raises
    ------
    UnknownMethodError, BudgetError
        As `check_methods`.
    """
    check_methods(methods, keeps, model.config if budget == AFTER else None)
    arms = [Arm(DENSE, None), Arm(AGAIN, None)]
    own = [spec for spec in methods if has_own(spec)]
    for keep in keeps:
        arms.append(Arm(SMALLER, keep))
        arms.append(Arm(RANDOM, keep, Random(keep=keep, layer=0)))
        for spec in methods:
            if spec not in own and not (spec.name == RANDOM and not spec.options):
                arms.append(Arm(str(spec), keep, _made(spec, keep).for_bench(model, vision)))
    arms += [Arm(str(spec), None, _made(spec, None).for_bench(model, vision)) for spec in own]
    return arms


def at_cost(arms: list[Arm], cost: PromptCost) -> tuple[list[Arm], list[str]]:
    """Return the arms with budgets that take their share of a prompt, and why some are left out."""
    found, left_out = [], []
    for arm in arms:
        if arm.pruner is None or arm.keep is None:
            found.append(arm)
            continue
        try:
            found.append(dataclasses.replace(arm, pruner=cost.solved(arm.pruner, float(arm.keep))))
        except BudgetError as error:
            left_out.append(f"{arm.label}, {cost.visual} visual tokens: left out, {error}")
    return found, left_out


def _made(spec: MethodSpec, keep: float | int | None) -> Pruner:
    return build(spec.name, spec.options if keep is None else {**spec.options, "keep": keep})
