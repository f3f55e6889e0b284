"""What is compared: the dense model, the two baselines, the oracle, and each method at each budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate import select
from foveate.errors import BudgetError, FoveateError, UnknownMethodError
from foveate.measure.budget import AFTER, MEAN, PromptCost, check_budget
from foveate.measure.eval.suites import Example
from foveate.pruners import Pruner, SingleStagePruner, VisualTokens
from foveate.pruners.spec import MethodSpec, brings_budget, build, has_option, method_class


class NoEvidenceError(FoveateError, ValueError):
    """The oracle was asked for where nobody says which visual tokens an answer lies under."""


@dataclass(frozen=True, kw_only=True)
class Evidence(SingleStagePruner):
    """Keep the evidence first, then random tokens until the budget is spent.

    What it loses against the dense model is what any method loses at that budget and stage, even with perfect choice.

    Parameters
    ----------
    masks
        (B, N) bool. The evidence of each sample of the batch to come; one image a sample.
    seed
        Seed of the random rest.
    """

    name: ClassVar[str] = "evidence"
    paper: ClassVar[str] = "diagnostic"
    summary: ClassVar[str] = "the tokens under the answer, then random ones; knows the truth"

    masks: Tensor | None = field(default=None, compare=False, repr=False)
    seed: int = 0

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        if self.masks is None or self.masks.shape != tokens.valid.shape:
            given = None if self.masks is None else tuple(self.masks.shape)
            raise NoEvidenceError(f"evidence for {given} (samples, tokens), the batch has {tuple(tokens.valid.shape)}")
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.rand(self.masks.shape, generator=generator)
        return select.top_k((draw + self.masks).to(tokens.features.device), k, tokens.valid)


def evidence_masks(examples: Sequence[Example], visual_tokens: int) -> Tensor:
    """Return the evidence of a batch, `(B, visual_tokens) bool`.

    Raises
    ------
    NoEvidenceError
        The suite names no evidence, or names it on another grid than the model's.
    """
    masks = torch.zeros(len(examples), visual_tokens, dtype=torch.bool)
    for row, example in zip(masks, examples, strict=True):
        if example.evidence is None or (example.evidence.numel() and int(example.evidence.max()) >= visual_tokens):
            raise NoEvidenceError("the oracle needs the embedded scenes and a model with their grid of visual tokens")
        row[example.evidence] = True
    return masks


DENSE, DOWNSAMPLE, RANDOM = "dense", "downsample", "random"


@dataclass(frozen=True)
class EvalArm:
    """One line of the result.

    Parameters
    ----------
    method
        `dense`, `downsample` or a method with its options, as written on the command line.
    keep
        The budget that was asked for; 1 for the dense model.
    spec
        How to make the pruner; `None` for the two arms that have none.
    own_budget
        The method is given no `keep`: it finds its budget itself, or its options bring it.
    config
        The model's, where `keep` is a mean share of visual tokens per layer for every method; `None` where it is
        whatever the method's own `keep` means.
    cost
        What `keep` is a share of for every method, where that is the KV cache or the FLOPs.
    """

    method: str
    keep: float | int = 1.0
    spec: MethodSpec | None = None
    own_budget: bool = False
    config: Any = None
    cost: PromptCost | None = None

    @property
    def means_layers(self) -> bool:
        """The budget is a mean share per layer, and not the share after the cut."""
        if self.spec is None or self.own_budget or self.cost is not None:
            return False
        return self.config is not None or _class(self.spec).keep_is_mean

    @property
    def label(self) -> str:
        """Name of the arm in the journal."""
        return self.method if self.own_budget or self.method == DENSE else f"{self.method} @ {self.keep}"

    @property
    def shrink(self) -> float | int:
        """Share of the image's pixels that the processor gets, or that of so many of its visual tokens."""
        return self.keep if self.method == DOWNSAMPLE else 1.0

    def pruner(self, seed: int = 0, masks: Any = None) -> Any:
        """Return this arm's pruner for one batch, or `None`.

        Parameters
        ----------
        seed
            Given to a method that draws at random, so that a batch draws the same whenever it is run.
        masks
            (B, N) bool, or None. The evidence, for the diagnostic method that needs it.
        """
        if self.spec is None:
            return None
        options = dict(self.spec.options) if self.own_budget else {**self.spec.options, "keep": self.keep}
        if self.spec.name == Evidence.name:
            made: Any = _evidence(options, seed, masks)
        else:
            made = build(self.spec.name, options)
            made = _drawing(made, seed)
        if self.own_budget or (self.config is None and self.cost is None):
            return made
        return made.with_mean(self.keep, self.config) if self.cost is None else self.cost.solved(made, self.keep)


def _drawing(pruner: Any, seed: int) -> Any:
    """The pruner, or each of a chain, with `seed` added to its own where it draws at random."""
    if len(pruner.members) > 1:
        return replace(pruner, methods=[_drawing(one, seed) for one in pruner.members])
    return replace(pruner, seed=seed + pruner.seed) if has_option(type(pruner), "seed") else pruner


def _class(spec: MethodSpec) -> type[Pruner]:
    """The class of a method, the diagnostic `evidence` among them."""
    return Evidence if spec.name == Evidence.name else method_class(spec.name)


def _evidence(options: dict[str, Any], seed: int, masks: Any) -> Any:
    known = {item.name for item in fields(Evidence)} - {"masks", "seed"}
    if set(options) - known:
        raise UnknownMethodError(f"evidence has no option {sorted(set(options) - known)}; it has {sorted(known)}")
    return Evidence(masks=masks, seed=seed, **options)


def plan_arms(
    methods: Sequence[MethodSpec],
    keeps: Sequence[float | int],
    layer: int | None,
    oracle: bool,
    config: Any = None,
    out_of_reach: list[str] | None = None,
    cost: PromptCost | None = None,
) -> list[EvalArm]:
    """Return the arms of an evaluation: dense first, the baselines always, then the methods.

    The baselines are a smaller image, and random tokens at each stage that a method cuts at.

    Parameters
    ----------
    methods
        What was asked for.
    keeps
        Budgets: shares of the visual tokens, or counts of them.
    layer
        Stage for every method that has one and was given none.
    oracle
        Add the diagnostic `evidence`.
    config
        The model's: `keeps` are then mean shares of visual tokens per layer, the same for methods with a cut
        anywhere or several.
    out_of_reach
        Gets a line for each method and mean share that it cannot reach; such an arm is left out.
    cost
        What `keeps` are shares of, for every method, where that is the KV cache or the FLOPs; instead of `config`.

    Raises
    ------
    BudgetError
        No budget, or one out of range.
    UnknownMethodError
        No such method or option; before anything is run.
    """
    same = config is not None or cost is not None
    check_keeps(keeps, same)
    wanted = [_placed(spec, layer) for spec in methods]
    if oracle and Evidence.name not in [spec.name for spec in wanted]:
        wanted.append(_placed(MethodSpec(Evidence.name), layer))
    wanted = [*_baselines(wanted, layer, same_cost=same), *wanted]
    arms = [EvalArm(DENSE)] + [EvalArm(DOWNSAMPLE, keep) for keep in dict.fromkeys(keeps)]
    for spec in {str(spec): spec for spec in wanted}.values():
        arms += [replace(arm, cost=None if arm.own_budget else cost) for arm in _budgets(spec, keeps, config)]
    return [arm for arm in arms if _makes_sense(arm, out_of_reach)]


def check_keeps(keeps: Sequence[float | int], mean: bool) -> None:
    """Refuse budgets that an evaluation cannot have.

    Raises
    ------
    BudgetError
        None, one out of range, or a count where a budget is a mean per layer.
    """
    if not keeps:
        raise BudgetError("an evaluation needs at least one budget")
    check_budget(MEAN if mean else AFTER, keeps)


def _makes_sense(arm: EvalArm, out_of_reach: list[str] | None) -> bool:
    """A wrong option is said now, not after an hour; a mean share out of reach concerns this arm alone."""
    replace(arm, config=None, cost=None).pruner()
    try:
        arm.pruner()
    except BudgetError as error:
        if out_of_reach is None:
            raise
        out_of_reach.append(f"{arm.label}: {error}")
        return False
    return True


def _baselines(specs: Sequence[MethodSpec], layer: int | None, same_cost: bool) -> list[MethodSpec]:
    """Random tokens at every stage that a method cuts at: a later cut loses less, whatever it keeps.

    Where all methods have the same cost, random tokens at their own stage, where they are most, belong there too.
    """
    default = stage(MethodSpec(RANDOM))
    there = [stage(spec) for spec in specs if spec.name == RANDOM]
    wanted: list[int | None] = [at for at in dict.fromkeys(map(stage, specs)) if at is not None and at not in there]
    if same_cost and default not in (*wanted, *there):
        wanted.insert(0, default)
    if not wanted and not there:
        wanted = [default if layer is None else layer]
    return [MethodSpec(RANDOM, {} if at == default else {"layer": at}) for at in wanted]


def stage(spec: MethodSpec) -> int | None:
    """Return the layer that a method with one cut cuts before; `None` for a method of several cuts."""
    if not has_option(_class(spec), "layer"):
        return None
    default = next(item.default for item in fields(_class(spec)) if item.name == "layer")
    layer = spec.options.get("layer", default)
    return layer if isinstance(layer, int) else None


def _placed(spec: MethodSpec, layer: int | None) -> MethodSpec:
    if layer is None or "layer" in spec.options or not has_option(_class(spec), "layer"):
        return spec
    return MethodSpec(spec.name, {"layer": layer, **spec.options})


def _budgets(spec: MethodSpec, keeps: Sequence[float | int], config: Any) -> list[EvalArm]:
    written, method = str(spec), _class(spec)
    if method.finds_budget or (method is not Evidence and brings_budget(spec.name, spec.options)):
        return [EvalArm(written, 1.0, spec, own_budget=True)]
    if "keep" in spec.options:
        raise UnknownMethodError(f"'{written}': budgets are given by --keep, for every method the same")
    if not has_option(method, "keep"):
        return [EvalArm(written, 1.0, spec, own_budget=True)]
    return [EvalArm(written, keep, spec, config=config) for keep in dict.fromkeys(keeps)]
