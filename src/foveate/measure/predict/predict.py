"""What pruning would gain, from a model's config and a machine's rates, before anything is run (experimental)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.engine.flops import prefill_flops
from foveate.errors import BudgetError, UnsupportedModelError
from foveate.measure.predict import selection
from foveate.measure.predict.prices import Pricer, overhead, peaks, per_layer
from foveate.measure.predict.rates import Rates
from foveate.measure.predict.selection import extra_tokens
from foveate.pruners.base import Pruner


@dataclass(frozen=True)
class PrefillSeconds:
    """Seconds of a prefill.

    Parameters
    ----------
    vision
        Of the vision encoder, as it was given.
    before, behind
        Of the decoder layers before the first stage and after it.
    rest
        Of embedding the prompt, of the next token's logits, and of reading the prompt for what may be pruned.
    choosing, compaction
        Of showing the method its tokens and its choice; of removing tokens, from the KV cache too.
    """

    vision: float
    before: float
    behind: float
    rest: float
    choosing: float = 0.0
    compaction: float = 0.0

    @property
    def total(self) -> float:
        """Seconds to the first token."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Prediction:
    """A setting's predicted cost beside the dense run's.

    Parameters
    ----------
    visual, text, batch
        Visual and text tokens of each prompt, and prompts.
    stages
        (layer, visual tokens left) of each stage.
    tokens_per_layer
        Visual tokens that enter each decoder layer.
    dense, pruned
        Seconds of the prefill.
    flops_dense, flops_pruned
        Of the decoder layers for one prompt, as the report has them.
    kv_share
        Visual tokens in the KV cache as a share of the dense run's, as the report has it.
    kv_dense, kv_pruned
        Bytes of the KV cache after the prefill, text too.
    weights
        Bytes of the language model's weights.
    memory_dense, memory_pruned
        Bytes at the peak of the prefill above the weights: KV cache, and what is alive in a layer.
    skipped
        Why nothing would be pruned.
    """

    visual: int
    text: int
    batch: int
    stages: tuple[tuple[int, int], ...]
    tokens_per_layer: tuple[int, ...]
    dense: PrefillSeconds
    pruned: PrefillSeconds
    flops_dense: float
    flops_pruned: float
    kv_share: float
    kv_dense: float
    kv_pruned: float
    weights: float
    memory_dense: float
    memory_pruned: float
    skipped: str | None = None

    @property
    def speedup(self) -> float:
        """Dense time to the first token over the pruned run's."""
        return self.dense.total / self.pruned.total

    @property
    def implied(self) -> float:
        """Speed-up of the prefill by FLOPs alone."""
        return self.flops_dense / self.flops_pruned

    @property
    def memory_share(self) -> float:
        """Peak memory above the weights as a share of the dense run's."""
        return self.memory_pruned / self.memory_dense

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        ratios = {name: getattr(self, name) for name in ("speedup", "implied", "memory_share")}
        return {**dataclasses.asdict(self), **ratios}


MARGIN = 0.1  # how much faster a prediction must be to be believed; see benchmarks/results/predicted.md
LIMIT = 8192


def predict(
    config: Any,
    pruner: Pruner,
    visual: int,
    rates: Rates,
    *,
    text: int = 64,
    batch: int = 1,
    share: float | None = None,
    vision: float = 0.0,
) -> Prediction:
    """Predict prefill, KV cache, memory and FLOPs of a setting beside the dense run (experimental).

    Prompts are taken to be alike, with one image each, attention to be causal and of full length. The selection time
    is read in the rates; where it is not there, the method's `select` is timed on made-up tokens of that number.

    Parameters
    ----------
    config
        Of the model, or its text config.
    pruner
        The method and its options.
    visual, text, batch
        Visual and text tokens of each prompt, and prompts at once.
    rates
        Of the machine.
    share
        What a method that finds its own budget is taken to keep; None: its `max_keep`.
    vision
        Seconds of the vision encoder, which pruning does not change.

    Raises
    ------
    UnsupportedModelError
        The cost of the model's layers is not known.
    BudgetError
        The pruner does not fit the model, finds its own budget and none is assumed, or a number makes no sense.
    RatesError
        The selection time is not in the rates, which are of another machine.
    """
    # 1. the method's stages, and what each leaves
    _check(visual=visual, text=text, batch=batch)
    pruner, least = dataclasses.replace(pruner, min_visual=0).resolved(config), pruner.min_visual
    config = text_config(config)
    depth = config.num_hidden_layers
    stages = pruner.layers(depth)
    price = Pricer(config, rates, batch)
    skipped = "no visual tokens" if not visual else None
    if visual and visual < least:
        skipped = f"{visual} visual tokens are fewer than min_visual={least}: so few run dense"
    if skipped:
        stages, left = (), []
    else:
        left = selection.kept(pruner, config, visual, text, share)
    # 2. tokens in each layer and in its cache
    rows = per_layer(visual, stages, left, depth)
    extra = [extra_tokens(pruner) if stages and layer < stages[-1] else 0 for layer in range(depth)]
    held = [
        rows[stages[-1]] if stages and pruner.compact_cache and layer < stages[-1] else rows[layer]
        for layer in range(depth)
    ]
    # 3. seconds, then bytes
    first = stages[0] if stages else depth
    seconds = [price.layer(text + rows[layer] + extra[layer]) for layer in range(depth)]
    plain = price.layer(text + visual)
    dense = PrefillSeconds(vision, first * plain, (depth - first) * plain, price.ends(text + visual))
    pruned = dataclasses.replace(dense, before=sum(seconds[:first]), behind=sum(seconds[first:]))
    if stages:
        pruned = dataclasses.replace(pruned, **overhead(price, pruner, visual, text, stages, left))
    kv = [price.batch * (tokens + text) * price.kv_bytes for tokens in held]
    kv_dense = float(depth * batch * (visual + text) * price.kv_bytes)
    alive = price.alive(text + visual, text + visual)
    most = peaks(price, rows, extra, visual, text, stages, pruner.compact_cache)
    return Prediction(
        visual=visual,
        text=text,
        batch=batch,
        stages=tuple(zip(stages, left, strict=True)),
        tokens_per_layer=tuple(rows),
        dense=dense,
        pruned=pruned,
        flops_dense=_flops(config, [text + visual] * depth),
        flops_pruned=_flops(config, [text + now for now in rows]),
        kv_share=sum(held) / (visual * depth) if visual else 1.0,
        kv_dense=kv_dense,
        kv_pruned=float(sum(kv)),
        weights=float(price.weight_bytes),
        memory_dense=kv_dense + alive,
        memory_pruned=max(most),
        skipped=skipped,
    )


def break_even(
    config: Any,
    pruner: Pruner,
    rates: Rates,
    *,
    text: int = 64,
    batch: int = 1,
    share: float | None = None,
    vision: float = 0.0,
    margin: float = MARGIN,
    limit: int = LIMIT,
) -> int | None:
    """Return the least number of visual tokens from which pruning is predicted to be faster (experimental).

    Faster by more than `margin`, which stands for the error of the prediction. Put it into the pruner:
    `dataclasses.replace(pruner, min_visual=break_even(...))`.

    Parameters
    ----------
    config, pruner, rates, text, batch, share, vision
        As for `predict`.
    margin
        What the dense run must take longer than the pruned one, as a share.
    limit
        The most visual tokens to look at.

    Returns
    -------
    int or None
        Visual tokens of a prompt; None where pruning is not faster at the limit.

    Raises
    ------
    BudgetError
        Margin or limit make no sense, or as `predict`.
    """
    if not margin >= 0:
        raise BudgetError(f"the margin is a share of at least 0, got {margin!r}")
    _check(limit=limit)
    pruner = dataclasses.replace(pruner, min_visual=0).resolved(config)
    config = text_config(config)
    if selection.key(pruner, config, batch) not in rates.choosing:
        sizes = [size for size in selection.SIZES if size <= limit] or [limit]
        rates = selection.measure_choosing(rates, pruner, config, batch, text, sizes)

    def faster(visual: int) -> bool:
        found = predict(config, pruner, visual, rates, text=text, batch=batch, share=share, vision=vision)
        return found.speedup > 1 + margin

    low, high = 0, None
    for visual in _downwards(limit):
        if not faster(visual):
            low = visual
            break
        high = visual
    if high is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if faster(middle) else (middle, high)
    return high


def text_config(config: Any) -> Any:
    """Return the language model's part of a config.

    Raises
    ------
    UnsupportedModelError
        The cost of its layers is not known: a mixture of experts, running states, heads of several sizes.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if prefill_flops(text, [1]) is None:
        kind = getattr(text, "model_type", type(text).__name__)
        raise UnsupportedModelError(
            f"the cost of the decoder layers of '{kind}' is not known: nothing can be predicted"
        )
    return text


def _downwards(limit: int) -> list[int]:
    sizes = [limit]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] * 2 // 3)
    return sizes


def _flops(config: Any, tokens: Sequence[float]) -> float:
    found = prefill_flops(config, tokens)
    if found is None:
        raise UnsupportedModelError("the cost of these decoder layers is not known")
    return found


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        least = 0 if name in ("visual", "text") else 1
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise BudgetError(f"{name} is a whole number of at least {least}, got {number!r}")
    if numbers.get("visual", 1) + numbers.get("text", 0) < 1:
        raise BudgetError("a prompt has at least one token")
