"""The price of each part of a forward pass by a machine's rates, and what a method's stages add and save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.measure.predict import selection
from foveate.measure.predict.rates import LayerSizes, Rates
from foveate.measure.predict.selection import MadeUpPrompt, extra_tokens, rows_wanted
from foveate.pruners.base import Pruner

# In operations that have nothing to do. Counted on tiny models of real classes, the Python between them with it:
LAYER = 75  # a decoder layer of transformers
PROMPT = 100  # reading a prompt: where its images are
SHOW = 60  # gathering what a method is shown
CUT = 120  # removing tokens, and picking positions and masks for the next layers
ROWS = 20  # reading attention rows
EMBED_PASSES = 4  # over the hidden states of a prompt: words, image features put between them, the last norm
# Numbers alive at once: hidden states with residual and norm, and gate, up and their product in the MLP; beside these
# the embeddings of the whole prompt.
ALIVE_HIDDEN, ALIVE_WIDTH = 3, 3


@dataclass(frozen=True)
class Pricer:
    """Prices of a model's parts on a machine.

    Parameters
    ----------
    config
        The text config.
    rates
        Of the machine.
    batch
        Prompts at once, all alike.
    """

    config: Any
    rates: Rates
    batch: int

    @property
    def shape(self) -> LayerSizes:
        """Sizes of a decoder layer."""
        return LayerSizes.of(self.config)

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of a decoder layer."""
        shape = self.shape
        return shape.hidden * (2 * shape.query + 2 * shape.key + 3 * shape.width)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the language model's weights: its layers, embeddings and head."""
        vocabulary = (getattr(self.config, "vocab_size", None) or 0) * self.shape.hidden
        tied = getattr(self.config, "tie_word_embeddings", False)
        numbers = self.config.num_hidden_layers * self.layer_weights + vocabulary * (1 if tied else 2)
        return numbers * self.rates.itemsize

    def layer(self, tokens: float) -> float:
        """Seconds of a decoder layer in a prefill of `tokens` a prompt."""
        if tokens <= 0:
            return self.dispatch(LAYER)
        rates, shape, rows = self.rates, self.shape, tokens * self.batch
        linear = 2 * rows * self.layer_weights / rates.linear.at(rows)
        attention = 4 * self.batch * tokens * tokens * shape.query / rates.attention.at(tokens)
        return self._with_dispatch(linear + attention + rows * shape.pointwise / rates.pointwise.at(rows), LAYER)

    def ends(self, tokens: float) -> float:
        """Seconds of what is around the layers: embedding `tokens` a prompt, and the next token's logits."""
        return EMBED_PASSES * self.move(tokens * self.shape.hidden) + self.head()

    def head(self) -> float:
        """Seconds of the next token's logits."""
        vocabulary = getattr(self.config, "vocab_size", None) or 0
        return 2 * self.batch * self.shape.hidden * vocabulary / self.rates.linear.at(self.batch)

    @property
    def kv_bytes(self) -> int:
        """Bytes of a token in the KV cache of a layer."""
        return 2 * self.shape.key * self.rates.itemsize

    @property
    def stream(self) -> float:
        """Bytes a second that are read at best: what a product with one token reads of its weights."""
        return self.rates.linear.at(1) / 2 * self.rates.itemsize

    def show(self, tokens: float, visual: float, rows: int | None) -> float:
        """Seconds of showing a method `visual` of `tokens` a prompt, with `rows` attention rows."""
        seconds = self.move(visual * self.shape.hidden) + self.dispatch(SHOW)
        if not rows:
            return seconds
        keys = self.batch * tokens * self.shape.key * self.rates.itemsize / self.stream
        products = 2 * self.batch * rows * tokens * self.shape.query / self.rates.linear.at(rows)
        return seconds + keys + products + self.dispatch(ROWS)

    def cut(self, tokens: float) -> float:
        """Seconds of shortening the hidden states to `tokens` a prompt."""
        return self.move(tokens * self.shape.hidden) + self.dispatch(CUT)

    def compact(self, tokens: float, layers: int) -> float:
        """Seconds of cutting the KV cache of `layers` to `tokens` a prompt."""
        return 2 * layers * self.move(tokens * self.shape.key) if layers else 0.0

    def move(self, numbers: float) -> float:
        """Seconds of gathering so many numbers a prompt."""
        size = numbers * self.batch * self.rates.itemsize
        return 2 * size / self.rates.bandwidth.at(size) if size else 0.0

    def dispatch(self, operations: float) -> float:
        """Seconds of operations that have nothing to do."""
        return operations * self.rates.overhead

    def alive(self, tokens: float, prompt: float) -> float:
        """Bytes alive at once in a layer of `tokens` a prompt, of `prompt` at first; weights and KV cache apart."""
        shape = self.shape
        numbers = tokens * (ALIVE_HIDDEN * shape.hidden + ALIVE_WIDTH * shape.width) + prompt * shape.hidden
        return numbers * self.batch * self.rates.itemsize

    def _with_dispatch(self, seconds: float, operations: int) -> float:
        """On a CPU Python and kernels take turns; an accelerator computes while the next launches are on their way."""
        waiting = self.dispatch(operations)
        return seconds + waiting if self.rates.device.startswith("cpu") else max(seconds, waiting)


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
    name = selection.key(pruner, price.config, price.batch)
    if name not in rates.choosing:
        rates = selection.measure_choosing(rates, pruner, price.config, price.batch, text, [visual])
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
