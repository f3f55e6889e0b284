"""GlimpsePrune's learned parts: the glimpse token's rows, and the predictor of what to keep (the paper's VIP)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.errors import IncompatibleWeightsError
from foveate.pruners.base import VisualTokens
from foveate.pruners.learned import Learned

THETA = 1e4
EPS = 1e-6
Turn = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class GlimpseConfig:
    """Sizes of the learned parts, and the model they belong to.

    Attributes
    ----------
    depth, hidden_size, heads
        L decoder layers of width D with H attention heads, of the base model.
    layer
        K: the cut lies before this decoder layer, counted from 0; attention is read in the layer before it.
    vision_layers
        Blocks of the vision encoder, from 0, whose outputs condition the predictor's blocks in this order; none: the
        predictor sees attention alone, in `blocks` blocks.
    vision_size
        C, width of those outputs.
    size, condition_size, predictor_heads, blocks
        E, F, heads and M of the predictor (section 3.3 and table 14 of the paper); no blocks: there is no predictor,
        and the glimpse token's attention itself decides.
    attention
        What the predictor is given: scaled products of query and key, or the logarithm of their softmax.
    window
        Attention in the predictor stays inside squares of so many rows and columns of tokens; 0: inside an image.
    length
        Glimpse tokens; the last one's attention counts.
    row_layers
        Layers before which there is a row, the first of them 0; none given: all.
    norm_eps
        Of the norm on the glimpse rows; that of the base model.
    """

    depth: int
    hidden_size: int
    heads: int
    layer: int
    vision_layers: tuple[int, ...] = ()
    vision_size: int = 0
    size: int = 256
    condition_size: int = 512
    predictor_heads: int = 4
    blocks: int = 4
    attention: Literal["logits", "log_softmax"] = "logits"
    window: int = 0
    length: int = 1
    row_layers: tuple[int, ...] = ()
    norm_eps: float = EPS

    def __post_init__(self) -> None:
        object.__setattr__(self, "vision_layers", tuple(self.vision_layers))
        object.__setattr__(self, "row_layers", tuple(self.row_layers) or tuple(range(self.depth)))
        if self.vision_layers:
            object.__setattr__(self, "blocks", len(self.vision_layers))
        else:
            object.__setattr__(self, "condition_size", 0)
        wrong = [
            what
            for what, fine in (
                (f"a cut before layer {self.layer} of {self.depth}", 0 < self.layer < self.depth),
                ("sizes under 1", min(self.hidden_size, self.heads, self.size, self.length) > 0 <= self.blocks),
                ("vision layers without a width", bool(self.vision_layers) == (self.vision_size > 0)),
                (
                    "a predictor whose width is no multiple of 4 times its heads",
                    (self.size + self.condition_size) % (4 * self.predictor_heads) == 0
                    and self.size % self.predictor_heads == 0,
                ),
                (f"glimpse rows before layers {self.row_layers}", 0 in self.row_layers),
                (f"attention {self.attention!r}", self.attention in ("logits", "log_softmax")),
            )
            if not fine
        ]
        if wrong:
            raise IncompatibleWeightsError(f"weights of GlimpsePrune cannot have {', nor '.join(wrong)}")


def default_layer(depth: int) -> int:
    """K = ⌈2L/3⌉ (section 3.2 of the paper)."""
    return -(-2 * depth // 3)


def published_vision_layers(depth: int, number: int = 4) -> tuple[int, ...]:
    """Vision blocks from the deepest up at even steps: 31, 23, 15, 7 of 32 and 23, 17, 11, 5 of 24 (table 14)."""
    return tuple(depth * (number - step) // number - 1 for step in range(min(number, depth)))


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, in fp32."""

    def __init__(self, size: int, eps: float = EPS) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Glimpse(nn.Module):
    """The glimpse token: one learned row a decoder layer, all through one projection and norm."""

    def __init__(self, config: GlimpseConfig) -> None:
        super().__init__()
        self.depth, self.layers = config.depth, config.row_layers
        self.rows = nn.Parameter(torch.randn(len(self.layers), config.length, config.hidden_size) * 0.02)
        self.projection = _linear(config.hidden_size, config.hidden_size)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, layers: int | None = None) -> Tensor:
        """(layers, length, D): the token's embedding, then what is added before each later layer."""
        rows = self.norm(self.projection(self.rows))
        if len(self.layers) < self.depth:
            place = torch.tensor(self.layers, device=rows.device)
            rows = rows.new_zeros(self.depth, *rows.shape[1:]).index_copy(0, place, rows)
        return rows[:layers]


class PredictorBlock(nn.Module):
    """Attention among the tokens of one image, steered by one vision layer, then a gated feed-forward."""

    def __init__(self, config: GlimpseConfig) -> None:
        super().__init__()
        size, wide = config.size, config.size + config.condition_size
        self.heads = config.predictor_heads
        self.condition = _linear(config.vision_size, config.condition_size) if config.vision_layers else None
        self.norm = RMSNorm(size)
        self.query, self.key = _linear(wide, wide, bias=False), _linear(wide, wide, bias=False)
        self.value, self.out = _linear(size, size, bias=False), _linear(size, size, bias=False)
        self.feed_norm = RMSNorm(size)
        self.gate, self.up, self.down = _linear(size, 2 * size), _linear(size, 2 * size), _linear(2 * size, size)

    def forward(self, x: Tensor, vision: Tensor | None, turn: Turn, segments: Segments) -> Tensor:
        """(T, E) of all tokens, with their (T, C) vision features and rotary angles, see `rotate`."""
        z = self.norm(x)
        steered = z if self.condition is None or vision is None else torch.cat([z, self.condition(vision)], -1)
        query = rotate(self.query(steered).unflatten(-1, (self.heads, -1)), turn)
        key = rotate(self.key(steered).unflatten(-1, (self.heads, -1)), turn)
        value = self.value(z).unflatten(-1, (self.heads, -1))
        x = x + self.out(segments.attend(query, key, value).flatten(1))
        z = self.feed_norm(x)
        return x + self.down(nn.functional.silu(self.gate(z)) * self.up(z))


class Predictor(nn.Module):
    """Attention of the glimpse token in, one keep logit a visual token out (section 3.3 of the paper; its VIP)."""

    def __init__(self, config: GlimpseConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_in = _linear(config.heads, config.size)
        self.blocks = nn.ModuleList(PredictorBlock(config) for _ in range(config.blocks))
        self.out = _linear(config.size, 1)

    def forward(self, attention: Tensor, vision: Iterable[Tensor], cell: Tensor, segments: Segments) -> Tensor:
        """Keep logits.

        Parameters
        ----------
        attention
            (T, H) attention of the glimpse token to each visual token, of all images one after another.
        vision
            (T, C) features of each vision layer, or none; one is held at a time.
        cell
            (T, 2) row and column of each token in its image.
        segments
            Which tokens belong together.

        Returns
        -------
        Tensor
            (T,) logits.
        """
        angles = rotary_angles(cell, (self.config.size + self.config.condition_size) // self.config.predictor_heads)
        turn = angles.cos()[:, None], angles.sin()[:, None]
        x = self.attention_in(attention)
        features = iter(vision)
        for block in self.blocks:
            x = block(x, next(features, None), turn, segments)
        return self.out(x)[:, 0]


class GlimpseModules(Learned):
    """Glimpse and predictor together: what is trained, saved and loaded."""

    def __init__(self, config: GlimpseConfig, about: dict[str, Any] | None = None) -> None:
        super().__init__(config, about)
        self.glimpse = Glimpse(config)
        self.predictor = Predictor(config) if config.blocks else None

    def check(self, model: Any) -> None:
        """Raise unless the modules fit the model.

        Raises
        ------
        IncompatibleWeightsError
            Naming what differs.
        """
        text = model.config.get_text_config()
        theirs = {
            "depth": text.num_hidden_layers,
            "hidden_size": text.hidden_size,
            "heads": attention_heads(text, self.config.layer - 1),
        }
        wrong = [
            f"{name} {ours}, not {it}" for name, it in theirs.items() if (ours := getattr(self.config, name)) != it
        ]
        if wrong:
            raise IncompatibleWeightsError(f"these weights are for a model of {', '.join(wrong)}")


def attention_heads(text: Any, layer: int) -> int:
    """Query heads of a decoder layer, also where its neighbours have others."""
    own = text.per_layer_config[layer] if getattr(text, "is_heterogeneous", False) else text
    return int(own.num_attention_heads)


def rotary_angles(cell: Tensor, width: int) -> Tensor:
    """(T, width / 2) angles: half the frequencies turn with the row, half with the column."""
    number = width // 4
    frequency = THETA ** (-torch.arange(number, device=cell.device, dtype=torch.float32) / number)
    return (cell.float()[:, :, None] * frequency).flatten(1)


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Turn (T, heads, d) by angles whose cosine and sine are (T, 1, d / 2); entry i goes with entry i + d / 2."""
    first, second = x.float().chunk(2, -1)
    cos, sin = turn
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(turned, -1).to(x.dtype)


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


@dataclass(frozen=True)
class Segments:
    """Which tokens of a long row belong together.

    Attributes
    ----------
    order
        (T,) long, places in the flattened (B, N) batch of all visual tokens, so that segments of one length follow
        one another.
    groups
        (number, length) of segments, in that order; known on the host, so nothing is padded or synced.
    """

    order: Tensor
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tokens: VisualTokens, window: int = 0) -> Segments:
        """One segment a grid: an image, or each crop, tile or frame of it; a separator is a segment of its own.

        Parameters
        ----------
        window
            Cut each grid into squares of so many rows and columns, each a segment; 0: do not.
        """
        batch = tokens.valid.shape[0]
        most = max(map(len, tokens.grids), default=0)
        own = torch.arange(batch, device=tokens.grid.device)[:, None] * most + tokens.grid
        number = batch * most
        if window:
            sizes = [(grid.height, grid.width) for grids in tokens.grids for grid in grids]
            high, wide = (max((-(-size[axis] // window) for size in sizes), default=1) for axis in (0, 1))
            own = (own * high + tokens.row // window) * wide + tokens.column // window
            number *= high * wide
        lone, padding = number, number + 1
        segment = torch.where(tokens.grid >= 0, own, lone)
        segment = segment.masked_fill(~tokens.valid, padding).flatten()
        lengths = torch.bincount(segment, minlength=padding + 1).tolist()  # one sync; a cut may have left any number
        there = sorted((number for number in range(lone) if lengths[number]), key=lambda number: lengths[number])
        rank = torch.full((padding + 1,), padding)
        rank[torch.tensor([*there, lone], dtype=torch.long)] = torch.arange(len(there) + 1)
        order = rank.to(segment.device)[segment].argsort(stable=True)[: sum(lengths[:padding])]
        counts = Counter(lengths[number] for number in there)
        groups = [(number, length) for length, number in counts.items()]
        return cls(order, (*groups, *([(lengths[lone], 1)] if lengths[lone] else [])))

    def pick(self, tensor: Tensor) -> Tensor:
        """(T, ...) rows of a (B, N, ...) tensor in this order."""
        return tensor.flatten(0, 1)[self.order]

    def pick_each(self, tensors: Sequence[Tensor], like: Tensor) -> Iterator[Tensor]:
        """The same of several tensors, in the type and on the device of `like`, each made when it is asked for."""
        return (self.pick(tensor.to(like)) for tensor in tensors)

    def put(self, values: Tensor, shape: Sequence[int], fill: float) -> Tensor:
        """(B, N) from (T,) values; `fill` elsewhere."""
        full = values.new_full((shape[0] * shape[1],), fill)
        return full.index_copy(0, self.order, values).view(*shape)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Scaled dot-product attention of (T, heads, d) inside each segment; (T, heads, d of the values)."""
        found, start, width = [value[:0]], 0, value.shape[-1]
        # with values of another width torch falls back to a kernel that writes out all N x N products
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
        for number, length in self.groups:
            part = slice(start, start + number * length)
            shaped = [x[part].unflatten(0, (number, length)).transpose(1, 2) for x in (query, key, value)]
            mixed = torch.nn.functional.scaled_dot_product_attention(*shaped)[..., :width]
            found.append(mixed.transpose(1, 2).flatten(0, 1))
            start += number * length
        return torch.cat(found)
