"""What a method's stages do to a prefill: tokens in each layer, what selecting and removing cost, peak memory."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.measure.predict import selection as choosing
from foveate.measure.predict.parts import PROMPT, Pricer
from foveate.measure.predict.synthetic import MadeUpPrompt, extra_tokens, rows_wanted
from foveate.pruners.base import Pruner


def per_layer(visual: int, stages: Sequence[int], left: Sequence[int], depth: int) -> list[int]:
    """Return the visual tokens that enter each of `depth` layers, of `visual` and what each stage leaves."""
    cuts, now, rows = dict(zip(stages, left, strict=True)), visual, []
    for layer in range(depth):
        now = cuts.get(layer, now)
        rows.append(now)
    return rows


def overhead(
    price: Pricer, pruner: Pruner, visual: int, text: int, stages: Sequence[int], left: Sequence[int]
) -> dict[str, float]:
    """Seconds of what pruning adds; the pruner is one that was worked out for the model."""
    rates = price.rates
    name = choosing.key(pruner, price.config, price.batch)
    if name not in rates.choosing:
        rates = choosing.measure_choosing(rates, pruner, price.config, price.batch, text, [visual])
    chose, cut, now = rates.choosing[name].at(visual), 0.0, visual
    extra = extra_tokens(pruner)
    for layer, behind in zip(stages, left, strict=True):
        if not now:
            break
        asked = rows_wanted(pruner, layer, MadeUpPrompt(now, text))
        chose += price.show(text + now + extra, now, asked)
        if behind < now or extra:
            cut += price.cut(text + behind)
        now = behind
    if pruner.compact_cache:
        cut += price.compact(text + now, stages[-1])
    return {"choosing": chose, "compaction": cut, "rest": price.ends(text + visual) + price.dispatch(PROMPT)}


def peaks(
    price: Pricer,
    rows: Sequence[int],
    extra: Sequence[int],
    visual: int,
    text: int,
    stages: Sequence[int],
    compact: bool,
) -> list[float]:
    """Bytes alive in each layer, weights apart: the KV cache so far and what the layer works on."""
    found, cache = [], 0.0
    for layer, now in enumerate(rows):
        if layer in stages:  # hidden states as they come, as the method is shown them in float32, and as they leave
            whole = text + (rows[layer - 1] if layer else visual)
            found.append(cache + price.batch * whole * price.shape.hidden * (2 * price.rates.itemsize + 8))
            if compact:
                cache = layer * price.batch * (text + now) * price.kv_bytes
        cache += price.batch * (text + now + extra[layer]) * price.kv_bytes
        found.append(cache + price.alive(text + now + extra[layer], text + visual))
    return found
