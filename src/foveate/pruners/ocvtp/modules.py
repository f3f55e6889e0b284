"""OC-VTP's learned parts that choosing needs: the features' encoder, where slots start, and slot attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import IncompatibleWeightsError
from foveate.families import family_of
from foveate.pruners.learned import Learned
from foveate.tensors import to_device

ROWS = 512  # tokens whose attention is held at a time
EPS = 1e-5


@dataclass(frozen=True)
class SlotConfig:
    """Sizes of the learned parts, and the vision encoder they belong to.

    Attributes
    ----------
    vision_layer
        Block of the vision encoder, from 0, whose outputs are read.
    vision_size
        C, the width of those outputs.
    size
        W, the width of slots, keys and values.
    iterations
        Of slot attention.
    seed
        Of the slots' starting points where tokens are chosen.
    """

    vision_layer: int
    vision_size: int
    size: int = 512
    iterations: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.vision_size, self.size, self.iterations) < 1 or self.vision_layer < 0:
            raise IncompatibleWeightsError(f"weights of OC-VTP cannot have such sizes: {self}")


def published_vision_layer(depth: int) -> int:
    """Block 8 of CLIP's 24, and the block at the same depth of another encoder."""
    return depth // 3


def slots_for(model: Any, **changes: Any) -> SlotConfig:
    """The published proportions for a model.

    Raises
    ------
    IncompatibleWeightsError
        The vision encoder has no such block.
    UnsupportedModelError
        Its blocks are not found.
    """
    family = family_of(model)
    depth = len(family.vision_blocks(model))
    layer = changes.pop("vision_layer", None)
    layer = published_vision_layer(depth) if layer is None else layer
    if not 0 <= layer < depth:
        raise IncompatibleWeightsError(f"the vision encoder has {depth} blocks, and no {layer}")
    return SlotConfig(layer, family.vision_width(model.config), **changes)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.bias)
    return linear


class SlotAttention(nn.Module):
    """Slots that compete for the tokens: what a token attends to is shared out over the slots."""

    def __init__(self, size: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.norm_tokens, self.norm_slots, self.norm_feed = (nn.LayerNorm(size) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.update = nn.GRUCell(size, size)
        self.feed = nn.Sequential(_linear(size, 4 * size), nn.GELU(), _linear(4 * size, size))
        nn.init.zeros_(self.update.bias_ih)
        nn.init.zeros_(self.update.bias_hh)

    def forward(
        self, tokens: Tensor, there: Tensor, start: Tensor, look: Callable[[Tensor], None], rows: int = ROWS
    ) -> Tensor:
        """Slots (B, K, W) after the last iteration.

        Gradients reach the parameters and the start through the last iteration alone.

        Parameters
        ----------
        tokens
            (B, T, W) encoded features.
        there
            (B, T) bool, False for tokens that no slot is to see.
        start
            (B, K, W) slots to begin with.
        look
            Called in the last iteration with the attention (B, K, t) of each `rows` tokens, in order; over the slots
            it sums to 1, and to 0 for a token that none is to see.
        """
        tokens = self.norm_tokens(tokens)
        split = [one.split(rows, 1) for one in (self.key(tokens), self.value(tokens), there.to(tokens.dtype))]
        slots = start
        for iteration in range(self.iterations):
            last = iteration + 1 == self.iterations
            if last:
                slots = slots.detach() + start - start.detach()
            query = self.query(self.norm_slots(slots)) * slots.shape[-1] ** -0.5
            mixed, weight = torch.zeros_like(slots), slots.new_zeros(*slots.shape[:2], 1)
            for key, value, counts in zip(*split, strict=True):
                share = torch.bmm(query, key.mT).softmax(1) * counts[:, None]
                mixed, weight = mixed + torch.bmm(share, value), weight + share.sum(-1, keepdim=True)
                if last:
                    look(share)
            slots = self.update((mixed / (weight + EPS)).flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.feed(self.norm_feed(slots))
        return slots


class SlotModules(Learned):
    """What OC-VTP chooses by: tokens are encoded, slots begin at draws from one learnt Gaussian, and compete."""

    config: SlotConfig

    def __init__(self, config: SlotConfig, about: dict[str, Any] | None = None) -> None:
        super().__init__(config, about)
        wide, size = 2 * config.vision_size, config.size
        self.encoder = nn.Sequential(
            nn.LayerNorm(config.vision_size), _linear(config.vision_size, wide), nn.GELU(), _linear(wide, size)
        )
        self.mean, self.log_std = nn.Parameter(torch.empty(1, size)), nn.Parameter(torch.empty(1, size))
        nn.init.xavier_uniform_(self.mean)
        nn.init.xavier_uniform_(self.log_std)
        self.attention = SlotAttention(size, config.iterations)

    def start(self, draw: Tensor) -> Tensor:
        """Slots (..., W) to begin with, from as many standard normal numbers."""
        return self.mean + draw * self.log_std.exp()

    def places(self, features: Tensor, there: Tensor, slots: int) -> Tensor:
        """(slots,) long: for each slot the token that attends to it most, of equal ones the first.

        The draws depend on the seed and on how many slots there are, on nothing else. Of the attention only `ROWS`
        tokens are held at a time.

        Parameters
        ----------
        features
            (T, C), T at least 1.
        there
            (T,) bool, False for tokens that are not to be chosen.
        """
        features = features.to(self.mean.dtype)
        generator = torch.Generator().manual_seed(self.config.seed)
        draw = to_device(torch.randn(slots, self.config.size, generator=generator), features.device).to(features)
        best = features.new_full((slots,), -torch.inf)
        place, seen = torch.zeros(slots, dtype=torch.long, device=features.device), 0

        def look(share: Tensor) -> None:
            nonlocal best, place, seen
            most, at = share[0].max(-1).values, share[0].argmax(-1)
            place, best = torch.where(most > best, at + seen, place), torch.maximum(best, most)
            seen += share.shape[-1]

        self.attention(self.encoder(features)[None], there[None], self.start(draw)[None], look)
        return place
