"""Chain: several methods, one after another, each at layers of its own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.errors import BudgetError
from foveate.pruners import shares
from foveate.pruners.base import Pruner, Selection, SingleStagePruner, VisualTokens, depth_of, option
from foveate.pruners.budget import check_share


@dataclass(frozen=True, kw_only=True, init=False, repr=False)
class Chain(Pruner):
    """Methods at different layers: each stage chooses among the tokens that the stages before it left.

    The methods stand in the order of their cuts, all cuts of one before all of the next. A share `keep` of a method is
    one of the prompt's visual tokens before any pruning, as without a chain; PyramidDrop alone takes shares of what
    reaches it. What a method reads (attention, keys, the vision encoder, the text) it is shown for the tokens that are
    left. The KV cache of the layers before a cut is shortened if the last method does that.

    Parameters
    ----------
    methods
        Pruners, in order; a chain among them stands for its methods.
    keep
        Mean share of visual tokens per decoder layer, by multiplying the budgets of all methods with one factor; None:
        as they are; 1.0: off.
    compact_cache
        Of all methods together; None: as the last one has it.
    min_visual
        Of all methods together; None: as they have it, which must be the same.

    Raises
    ------
    BudgetError
        When an option makes no sense, two methods cut before the same layer, or a method that reads whole grids is not
        the first; on attaching also when the order is not that of the layers, a method adds tokens to the prompt, a
        method would find nothing left, or `keep` cannot be reached.

    Examples
    --------
    >>> pruner = foveate.Chain(foveate.DivPrune(keep=0.5), foveate.BTP(keep=0.22))
    """

    name: ClassVar[str] = "chain"
    paper: ClassVar[str] = "of foveate"
    summary: ClassVar[str] = "what several methods, one after another, leave"
    keep_is_mean: ClassVar[bool] = True

    keep: float | None = option(
        None,
        "mean share of visual tokens per decoder layer, by scaling all budgets; none: as they are; 1.0: off",
        check=check_share,
    )
    depth: int | None = option(None, "decoder layers of the model; worked out on attaching", at_least=1)
    methods: tuple[Pruner, ...] = ()

    def __init__(
        self,
        *given: Pruner,
        methods: Iterable[Pruner] = (),
        keep: float | None = None,
        depth: int | None = None,
        compact_cache: bool | None = None,
        min_visual: int | None = None,
    ) -> None:
        made = (*given, *methods)
        for one in made:
            if not isinstance(one, Pruner):
                raise BudgetError(f"chain: a chain is made of methods, such as DivPrune(keep=0.5), got {one!r}")
        made = tuple(itertools.chain.from_iterable(_methods_of(one) for one in made))
        if not made:
            raise BudgetError("chain: no method is given; a chain is such as Chain(DivPrune(keep=0.5), BTP())")
        compact = _compacts(made) if compact_cache is None else compact_cache
        least = _least(made) if min_visual is None else min_visual
        _check_alone(made)
        made = tuple(dataclasses.replace(one, compact_cache=compact, min_visual=least) for one in made)
        own = {"methods": made, "keep": keep, "depth": depth, "compact_cache": compact, "min_visual": least}
        for name, value in own.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __repr__(self) -> str:
        options = [f"{name}={getattr(self, name)!r}" for name in ("keep", "depth") if getattr(self, name) is not None]
        return f"Chain({', '.join([*map(repr, self.methods), *options])})"

    @property
    def members(self) -> tuple[Pruner, ...]:
        return self.methods

    def member(self, layer: int) -> Pruner:
        return next(one for one in self.methods if layer in one.layers(self._depth()))

    def layers(self, depth: int) -> tuple[int, ...]:
        stages = [(one, one.layers(depth)) for one in self.methods]
        for (first, before), (second, after) in itertools.pairwise(one for one in stages if one[1]):
            if max(before) >= min(after):
                raise BudgetError(
                    f"chain: {first.name} cuts before {_listed(before)} and {second.name}, after it, before "
                    f"{_listed(after)}: the methods of a chain take turns, all cuts of one before those of the next"
                )
        return tuple(layer for _, cuts in stages for layer in cuts)

    def resolved(self, config: Any) -> Chain:
        """With all methods worked out for a model, and their budgets scaled to `keep`.

        Raises
        ------
        BudgetError
            When a method does not fit the model or its place in the chain, or `keep` cannot be reached.
        """
        depth, methods = depth_of(config), self.methods
        if self.keep == 1.0:
            methods = tuple(_off(one) for one in methods)
        made = dataclasses.replace(self, methods=methods, depth=depth)._each(lambda one: one.resolved(config))
        made.layers(depth)
        made._check_what_is_left(depth)
        if self.keep in (None, 1.0):
            return made

        def reached(one: Pruner) -> float:
            return shares.mean(one.resolved(config), depth)

        solved = shares.solve(self.name, lambda setting: made.set_to(setting, config), reached, self.keep)
        return solved.resolved(config)  # type: ignore[return-value]

    def select(self, tokens: VisualTokens) -> Tensor | Selection:
        return self.member(tokens.layer).select(tokens)

    def kept(self, layer: int, dense: Tensor, present: Tensor) -> Tensor | None:
        return self.member(layer).kept(layer, dense, present)

    def planned(self, layer: int, dense: Tensor, present: Tensor) -> Tensor | None:
        return self.member(layer).planned(layer, dense, present)

    def with_mean(self, share: float, config: Any) -> Chain:
        made = dataclasses.replace(self, keep=share)
        made.resolved(config)
        return made

    def scaled(self, factor: float, config: Any) -> Chain:
        return self._each(lambda one: one.scaled(factor, config))

    def notes(self, depth: int) -> tuple[str, ...]:
        found = [note for one in self.methods for note in one.notes(depth)]
        now = torch.tensor([shares.MANY])
        for one in self.methods if self.keep != 1.0 else ():
            before = now
            for layer in one.layers(depth):
                planned = one.planned(layer, torch.tensor([shares.MANY]), now)
                if planned is None:
                    return tuple(found)
                now = planned
            if int(before) == int(now):
                found.append(
                    f"chain: {one.name} takes nothing out: no more tokens reach it than its budget, which is of the "
                    "whole prompt"
                )
        return tuple(found)

    def for_bench(self, model: nn.Module, vision: bool) -> Chain:
        return self._each(lambda one: one.for_bench(model, vision))

    def extra_tokens(self, model: nn.Module) -> Tensor | None:
        for one in self.methods:
            if one.extra_tokens(model) is not None:
                raise BudgetError(
                    f"chain: {one.name} adds tokens to the prompt, which would stay through the cuts of the other "
                    "methods: it goes alone"
                )
        return None

    def save_weights(self, folder: Path) -> dict[str, Any]:
        names = [f"{number}-{one.name}" for number, one in enumerate(self.methods, 1)]
        for name, one in zip(names, self.methods, strict=True):
            one.save_pretrained(folder / name)
        return {"methods": names}

    def _each(self, changed: Callable[[Pruner], Pruner]) -> Chain:
        return dataclasses.replace(self, methods=tuple(map(changed, self.methods)))

    def _check_what_is_left(self, depth: int) -> None:
        """Refuse a method behind one that drops everything."""
        for before, after in itertools.pairwise(self.methods):
            last = before.layers(depth)[-1:]
            many = torch.tensor([shares.MANY])
            if last and (planned := before.planned(last[0], many, many)) is not None and not int(planned):
                raise BudgetError(
                    f"chain: {before.name} drops every visual token before layer {last[0]}: nothing is left for "
                    f"{after.name}"
                )

    def _depth(self) -> int:
        if self.depth is None:
            raise RuntimeError("a chain's stages depend on the model: ask resolved(config) first")
        return self.depth


def _methods_of(one: Pruner) -> tuple[Pruner, ...]:
    if isinstance(one, Chain) and one.keep is not None:
        raise BudgetError(f"chain: the chain among its methods has keep={one.keep}: give the whole chain a keep")
    return one.members


def _off(one: Pruner) -> Pruner:
    if not hasattr(one, "keep"):
        raise BudgetError(f"chain: {one.name} has no option keep, so keep=1.0 cannot switch it off")
    return dataclasses.replace(one, keep=1.0)  # type: ignore[call-arg]


def _compacts(methods: tuple[Pruner, ...]) -> bool:
    """What the last method says: what it cuts the caches to, the cuts before it would have left, too."""
    last = methods[-1]
    for one in methods[:-1]:
        if one.compact_cache and not last.compact_cache:
            raise BudgetError(
                f"chain: {one.name} has compact_cache and {last.name}, the last, has not: the caches are cut to what "
                "the last cut leaves, or not at all; give it to the last, or compact_cache to the chain"
            )
    return last.compact_cache


def _least(methods: tuple[Pruner, ...]) -> int:
    found = {one.min_visual: one.name for one in methods}
    if len(found) > 1:
        raise BudgetError(
            f"chain: min_visual is {' and '.join(f'{least} for {name}' for least, name in found.items())}: a prompt "
            "runs dense as a whole, or not; give it to the chain"
        )
    return next(iter(found))


def _check_alone(methods: tuple[Pruner, ...]) -> None:
    """Refuse what no model makes right."""
    for one in methods[1:]:
        if one.needs_all_tokens:
            raise BudgetError(f"chain: {one.name} reads whole grids, so it must come first, before anything is cut")
    fixed = [one for one in methods if isinstance(one, SingleStagePruner)]
    for first, second in itertools.combinations(fixed, 2):
        if first.layer == second.layer:
            raise BudgetError(
                f"chain: {first.name} and {second.name} both cut before layer {first.layer}: give one of them another "
                "layer"
            )


def _listed(layers: tuple[int, ...]) -> str:
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers))
