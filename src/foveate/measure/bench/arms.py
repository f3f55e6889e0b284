"""What is compared: dense, random tokens, a smaller picture, and the methods asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.errors import BudgetError
from foveate.measure.spec import MethodSpec, build, method_class
from foveate.pruners import BTP, BTPStage, GlimpsePrune, Random, VisualTokens
from foveate.pruners.btp.stages import MADE_FOR, PRESETS
from foveate.pruners.saving import SHIPPED

DENSE, AGAIN, SMALLER, RANDOM = "dense", "dense again", "smaller picture", "random"
VARIANTS = ("paper", "released")


@dataclass(frozen=True)
class Arm:
    """One thing that is measured.

    Parameters
    ----------
    method
        As it was asked for, or what stands beside it.
    keep
        Share asked for; none for dense, and for stages that are taken as published.
    pruner
        None: the dense model.
    """

    method: str
    keep: float | None
    pruner: Any = None

    @property
    def label(self) -> str:
        """Name of the arm in a result."""
        return self.method if self.keep is None else f"{self.method} @ {self.keep:g}"


@dataclass(frozen=True, kw_only=True)
class FedGlimpse(GlimpsePrune):
    """GlimpsePrune whose vision features are zeros, as large as real ones: for images that came encoded."""

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return ()

    def logits(self, tokens: VisualTokens) -> Tensor:
        if self.weights is None:
            return super().logits(tokens)
        config = self.weights.config
        shape = (*tokens.valid.shape, config.vision_size)
        vision = tuple(tokens.features.new_zeros(shape) for _ in config.vision_layers)
        return super().logits(dataclasses.replace(tokens, vision=vision))


def check_methods(methods: tuple[MethodSpec, ...], keeps: tuple[float, ...], depth: int | None) -> None:
    """Refuse what cannot be made, before a model is loaded.

    Parameters
    ----------
    methods, keeps
        As in the settings.
    depth
        Decoder layers, where they are known already.

    Raises
    ------
    UnknownMethodError, BudgetError
        A method, an option or a budget does not exist, or does not fit the depth.
    """
    for spec in methods:
        if "keep" in spec.options:
            raise BudgetError(f"{spec}: the share to keep is set by --keep, for all methods")
        options = {key: value for key, value in spec.options.items() if (spec.name, key) != ("btp", "variant")}
        if spec.options.get("variant", "paper") not in VARIANTS:
            raise BudgetError(f"btp: variant is one of {', '.join(VARIANTS)}, got {spec.options['variant']!r}")
        if {"variant", "stages"} <= set(spec.options):
            raise BudgetError("btp: either variant, for published stages, or stages")
        for keep in keeps:
            own = has_own(spec)
            made = build(spec.name, options if own else {**options, "keep": keep})
            if depth is not None and not own:
                made.layers(depth)


def has_own(spec: MethodSpec) -> bool:
    """Say whether a method is measured with the budget that was published for it, and not with --keep."""
    return spec.name == "btp" and "variant" in spec.options


def make_arms(model: Any, methods: tuple[MethodSpec, ...], keeps: tuple[float, ...], vision: bool) -> list[Arm]:
    """Return the arms, dense first and dense again last of the dense ones.

    Parameters
    ----------
    model
        Whose sizes a learned method without weights takes: it gets random ones of the published proportions.
    methods, keeps
        As in the settings.
    vision
        Whether the vision encoder runs.

    Raises
    ------
    UnknownMethodError, BudgetError
        As `check_methods`.
    """
    depth = model.config.get_text_config().num_hidden_layers
    check_methods(methods, keeps, depth)
    arms = [Arm(DENSE, None), Arm(AGAIN, None)]
    for keep in keeps:
        arms.append(Arm(SMALLER, keep))
        arms.append(Arm(RANDOM, keep, Random(keep=keep, layer=0)))
        for spec in methods:
            if not has_own(spec) and not (spec.name == RANDOM and not spec.options):
                arms.append(Arm(str(spec), keep, _pruner(model, spec, keep, vision)))
    arms += [Arm(str(spec), None, published(model, **spec.options)) for spec in methods if has_own(spec)]
    return arms


def _pruner(model: Any, spec: MethodSpec, keep: float, vision: bool) -> Any:
    options = {**spec.options, "keep": keep}
    if spec.name == "btp" and "stages" not in options:
        return BTP.for_model(model, **options)
    pruner = build(spec.name, options)
    if issubclass(method_class(spec.name), GlimpsePrune):
        if pruner.weights is None:
            pruner = dataclasses.replace(pruner, weights=_predictor(model))
        if not vision:
            given = {field.name: getattr(pruner, field.name) for field in dataclasses.fields(pruner)}
            pruner = FedGlimpse(**given)
    return pruner


def _predictor(model: Any) -> Any:
    """The predictor that comes with the package if it is for this model, else one with random weights."""
    from foveate import load
    from foveate.errors import IncompatibleWeightsError
    from foveate.learn.glimpse.train import sizes_for
    from foveate.pruners.glimpseprune.modules import GlimpseModules

    for name in SHIPPED:
        weights = getattr(load(name), "weights", None)
        with contextlib.suppress(IncompatibleWeightsError):
            if weights is not None:
                weights.check(model)
                return weights
    torch.manual_seed(0)
    return GlimpseModules(sizes_for(model)).to(model.device, model.dtype).eval()


def published(model: Any, variant: str = "paper", **options: Any) -> BTP:
    """Return BTP with its published stages as they are, at the same shares of the depth in a model of another depth.

    Parameters
    ----------
    model
        One of a type that has published stages takes those, any other the first, LLaVA-1.5-7B's.
    variant
        `paper` or `released`; the released ones drop every visual token in the end.
    **options
        Of BTP.
    """
    kinds = {kind: (name, depth) for (kind, depth, _), name in MADE_FOR.items()}
    base, made_for = kinds.get(model.config.model_type) or next(iter(kinds.values()))
    depth = model.config.get_text_config().num_hidden_layers
    stages: list[BTPStage] = []
    for stage in PRESETS[f"{variant}-{base}"]:
        least = stages[-1].layer + 1 if stages else 1
        layer = max(least, round(stage.layer * depth / made_for))
        if layer < depth:
            stages.append(dataclasses.replace(stage, layer=layer))
    dropped = not stages[-1].keep
    final = "drop" if variant == "released" and dropped else "keep"
    return BTP(**{"stages": tuple(stages), "depth": depth, "final": final, **options})
