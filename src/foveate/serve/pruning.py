"""How a request is pruned: the operator's way, or what it asks for within the operator's limits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from typing import Any

from foveate.errors import BudgetError, UnknownMethodError, UnsupportedModelError
from foveate.pruners.base import Pruner
from foveate.pruners.budget import check_keep
from foveate.pruners.spec import build_with, has_option, method_class
from foveate.serve.errors import ApiError, bad
from foveate.serve.schema import Pruning
from foveate.serve.settings import ServeError, Settings

logger = logging.getLogger(__name__)
DENSE = "dense"
USUAL = 0.22
NEVER = 2**31 - 1  # visual tokens that no prompt has
POINTS = 5  # budgets for which the break-even length is worked out, where requests may choose theirs


def build(settings: Settings, name: str, keep: float | int | None) -> Pruner | None:
    """Return the pruner of a method's name and budget; None: dense.

    Raises
    ------
    UnknownMethodError, BudgetError
        There is no such method or option, or its value makes no sense.
    """
    if name == DENSE:
        return None
    options = dict(settings.options) if name == settings.method else {}
    own = keep if has_option(method_class(name), "keep") else None
    return build_with(name, options, own, USUAL)


def pruners(settings: Settings) -> list[Pruner | None]:
    """Return the pruner of each method that requests may have, at the operator's budget.

    Raises
    ------
    UnknownMethodError, BudgetError, ServeError
        One does not exist, or has no budget for requests to choose.
    """
    found = []
    for name in (settings.method, *settings.other_methods):
        found.append(build(settings, name, settings.keep))
        if settings.least_keep is not None and name != DENSE and not has_option(method_class(name), "keep"):
            raise ServeError(f"requests may choose their budget, but {name} takes none")
    return found


class Choices:
    """The pruners that requests may have.

    Parameters
    ----------
    model
        Each method is attached to it once, so that one that does not fit is found before the first request.
    settings
        The operator's.

    Raises
    ------
    FoveateError
        A method does not exist, does not fit the model, or has no budget for requests to choose.
    """

    def __init__(self, model: Any, settings: Settings) -> None:
        self.settings = settings
        self.methods = [settings.method, *settings.other_methods]
        for made in pruners(settings):
            with contextlib.nullcontext() if made is None else made(model):
                pass
        self.lengths = {name: self._lengths(name, model) for name in self.methods if name != DENSE}
        self._cached = functools.lru_cache(maxsize=256)(self._make)

    def choose(self, asked: Pruning | None, visual: int | None = None) -> Pruner | None:
        """Return the pruner of a request; None: it runs dense.

        Parameters
        ----------
        asked
            What the request asks for, if anything.
        visual
            Its visual tokens; None: not known yet, and a count is not held against the limits.

        Raises
        ------
        ApiError
            The operator does not allow it, or it makes no sense.
        """
        asked = asked or Pruning(method=None, keep=None)
        name = self.settings.method if asked.method is None else asked.method
        if asked.keep is not None and self.settings.least_keep is None:
            raise self._refused("a budget of its own", "foveate.keep")
        if name == DENSE and asked.method is not None and self.settings.method != DENSE:
            if self.settings.most_keep != 1.0:
                raise self._refused("a dense run", "foveate.method")
        elif name not in self.methods:
            raise self._refused(f"the method {name[:64]!r}; it has {', '.join(self.methods)}", "foveate.method")
        if name == DENSE:
            return None
        keep = self.settings.keep
        if asked.keep is not None:
            keep = self._within(asked.keep, visual)
        if keep == 1.0 and isinstance(keep, float):
            return None
        return self._cached(name, keep, self._share(keep, visual or 1))

    def describe(self, pruner: Pruner | None) -> dict[str, Any]:
        """Return a pruner's name and budget as a response has them."""
        if pruner is None:
            return {"method": DENSE, "keep": 1.0}
        return {"method": pruner.name, "keep": getattr(pruner, "keep", None)}

    def _within(self, keep: float | int, visual: int | None) -> float | int:
        low, high = self.settings.least_keep, self.settings.most_keep
        try:
            keep = check_keep(keep)
        except BudgetError as error:
            raise bad(str(error), "foveate.keep") from None
        if isinstance(keep, int) and visual is None:
            return keep
        share = keep if isinstance(keep, float) else min(1.0, keep / max(visual or 0, 1))
        if low is None or high is None or not low <= share <= high:
            raise bad(f"this server keeps between {low} and {high} of the visual tokens", "foveate.keep")
        return keep

    def _share(self, keep: float | int | None, visual: int) -> float | None:
        """Return the budget as the least share, of those looked at, that is not under it."""
        if keep is None or self.settings.least_keep is None:
            return None
        share = keep if isinstance(keep, float) else min(1.0, keep / visual)
        return next((point for point in self._points() if point >= share), 1.0)

    def _points(self) -> list[float]:
        low, high = self.settings.least_keep, self.settings.most_keep
        if low is None or high is None:
            return []
        return [low + (high - low) * at / (POINTS - 1) for at in range(POINTS)]

    def _make(self, name: str, keep: float | int | None, share: float | None) -> Pruner | None:
        try:
            made = build(self.settings, name, keep)
        except (BudgetError, UnknownMethodError) as error:
            raise bad(str(error), "foveate.keep") from None
        if made is None:
            return None
        lengths = self.lengths[name]
        least = lengths.get(share, NEVER if share is not None else 0)
        return dataclasses.replace(made, min_visual=max(made.min_visual, least))

    def _lengths(self, name: str, model: Any) -> dict[float | None, int]:
        """Return for each budget the visual tokens from which on pruning pays on this machine."""
        points: list[float | None] = [None, *self._points()]
        if self.settings.min_visual is not None:
            return dict.fromkeys(points, self.settings.min_visual)
        from foveate.measure.predict.predict import break_even

        try:
            rates = _rates(model)
            found = {}
            for point in points:
                made = build(self.settings, name, self.settings.keep if point is None else point)
                if made is None or point == 1.0:
                    continue
                share = 0.5 if made.finds_budget and getattr(made, "keep", None) is None else None
                length = break_even(model.config, made, rates, share=share)
                found[point] = NEVER if length is None else length
            return found
        except UnsupportedModelError as error:
            logger.warning("min_visual is 0 for %s: %s", name, error)
            return dict.fromkeys(points, 0)

    def _refused(self, what: str, param: str) -> ApiError:
        return ApiError(403, f"this server does not allow {what}", "override_not_allowed", param=param)


@functools.lru_cache(maxsize=1)
def _rates(model: Any) -> Any:
    """Return this machine's rates for a model; about ten seconds."""
    from foveate.measure.predict.measure_rates import measure_rates

    return measure_rates(model.device, model.dtype, model.config.get_text_config())
