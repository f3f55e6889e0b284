"""GlimpsePrune: a learned token glances at the image once, deep in the model, and what it does not need goes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from foveate import select
from foveate.errors import BudgetError, IncompatibleWeightsError
from foveate.pruners import learned
from foveate.pruners.base import AttentionForm, PromptRows, Pruner, VisualTokens, depth_of, option
from foveate.pruners.budget import check_keep, keep_behind, tokens_to_keep
from foveate.pruners.glimpseprune import authors_checkpoint
from foveate.pruners.glimpseprune.modules import GlimpseConfig, GlimpseModules, Segments, default_layer
from foveate.pruners.glimpseprune.sizes import sizes_for
from foveate.pruners.saving import find
from foveate.torch_state import own_randomness

HIDDEN = -1e4  # lower than any score: what a mask hides is -inf or its dtype's lowest, in fp16 -65504
CORNERS = {"tl": (0, 0), "tr": (0, 1), "bl": (1, 0), "br": (1, 1)}
UNTRAINED = (
    "no trained predictor: visual tokens are chosen by the head mean of the last prompt token's attention before "
    "layer {layer}, a training-free stand-in and not the published method"
)


@dataclass(frozen=True, kw_only=True)
class GlimpsePrune(Pruner):
    """Keep what a predictor trained on grounded questions says the answer is read from; how much depends on both.

    A learned glimpse token stands after the prompt up to layer K = ⌈2L/3⌉. Each head's attention from it to the
    visual tokens goes through a small predictor, which also sees the vision encoder, to one logit a token; what is
    less likely than `threshold` leaves the hidden states and the KV cache of all layers, and the glimpse token with it
    (sections 3.2 and 3.3). Prefill saves at most the layers after K; decoding saves in all.

    `foveate.load` gives it with its weights, the authors' own checkpoints included; `foveate train glimpse` trains
    them. Without weights the head mean of the last prompt token's attention, scaled to 0 to 1, stands in.

    Source: "A Glimpse to Compress", arXiv 2508.01548, and the released code where the paper is silent; see
    docs/methods/glimpseprune.md.

    Raises
    ------
    BudgetError
        When an option makes no sense, or the layer is not in the model.
    IncompatibleWeightsError
        On attaching, when the weights are for another model.
    """

    name: ClassVar[str] = "glimpseprune"
    paper: ClassVar[str] = "Zeng et al. 2025, arXiv 2508.01548"
    url: ClassVar[str] = "https://arxiv.org/abs/2508.01548"
    summary: ClassVar[str] = (
        "what a trained predictor says the answer is read from; how many depends on image and question"
    )
    needs: ClassVar[str] = "trained weights (without: a labelled stand-in)"
    uses_grids: ClassVar[bool] = True
    finds_budget: ClassVar[bool] = True
    shipped: ClassVar[Mapping[str, Path]] = {"glimpseprune-tiny": Path(__file__).parents[2] / "tiny" / "predictor"}

    keep: float | int | None = option(
        None,
        "share or count of the likeliest visual tokens, instead of threshold and caps; 1.0: off",
        check=check_keep,
    )
    threshold: float = option(0.5, "keep what is likelier than this, in [0, 1)", at_least=0, under=1)
    max_keep: float | None = option(
        None, "share of a prompt's visual tokens that is never exceeded, rounded down", over=0, at_most=1
    )
    min_keep: int = option(1, "visual tokens of a prompt that stay whatever the predictor says", at_least=1)
    anchors: tuple[Literal["tl", "tr", "bl", "br"], ...] = option(
        (), "corners of each image that always stay: tl, tr, bl, br"
    )
    layer: int | None = option(
        None, "cut before this decoder layer, from 0; none: as trained, or two thirds of them", at_least=0
    )
    compact_cache: bool = option(True, "also cut the KV cache of the layers before the stage to its survivors")
    weights: GlimpseModules | None = dataclasses.field(default=None, repr=False)

    @property
    def keeps_all(self) -> bool:
        """True for keep=1.0, the setting that switches the method off."""
        return isinstance(self.keep, float) and self.keep == 1.0

    def layers(self, depth: int) -> tuple[int, ...]:
        trained = None if self.weights is None else self.weights.config.layer
        layer = next(number for number in (self.layer, trained, default_layer(depth)) if number is not None)
        if self.layer is None and self.weights is not None and not layer < depth:
            raise IncompatibleWeightsError(
                f"glimpseprune: these weights cut before layer {layer} of {self.weights.config.depth}, the model has "
                f"{depth} layers"
            )
        if not 0 < layer < depth:
            raise BudgetError(f"glimpseprune: layer must be one of 1 to {depth - 1}, got {layer}")
        return (layer,)

    def with_mean(self, share: float, config: Any) -> GlimpsePrune:
        depth = depth_of(config)
        return dataclasses.replace(self, keep=keep_behind(self.name, share, self.layers(depth)[0], depth))

    def notes(self, depth: int) -> tuple[str, ...]:
        return () if self.weights is not None or self.keeps_all else (UNTRAINED.format(layer=self.layers(depth)[0]),)

    def for_bench(self, model: nn.Module, vision: bool) -> GlimpsePrune:
        """With weights: those that come with the package if they fit, else random ones of the published sizes."""
        made = self if self.weights is not None else dataclasses.replace(self, weights=_weights_for(model))
        if vision:
            return made
        return _WithoutVision(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)})

    def extra_tokens(self, model: nn.Module) -> Tensor | None:
        if self.weights is None or self.keeps_all:
            return None
        self.weights.check(model)
        with torch.no_grad():
            return self.weights.glimpse(self.layers(self.weights.config.depth)[0])

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor | None:
        if self.keeps_all:
            return None
        return rows.last[:, None] if self.weights is None else rows.extra[:, -1:]

    def attention_form(self) -> AttentionForm:
        if self.weights is None or self.weights.predictor is None:
            return "softmax"
        return self.weights.config.attention

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return () if self.weights is None or self.keeps_all else self.weights.config.vision_layers

    def kept(self, layer: int, dense: Tensor, present: Tensor) -> Tensor | None:
        if self.keeps_all:
            return present
        if self.keep is None or self.anchors:
            return None
        return torch.minimum(tokens_to_keep(self.keep, dense), present)

    def select(self, tokens: VisualTokens) -> Tensor:
        if self.keeps_all:
            return tokens.valid
        logits = self.logits(tokens)
        if tokens.attention is not None:  # after a sliding window: equal scores, which rounding would decide
            logits = logits.masked_fill((tokens.attention[:, :, 0] < HIDDEN).any(1), -math.inf)
        if self.keep is not None:
            count = tokens_to_keep(self.keep, tokens.dense)
        else:
            count = ((logits.sigmoid() > self.threshold) & tokens.valid).sum(-1).cpu()
            if self.max_keep is not None:
                count = torch.minimum(count, (tokens.dense.double() * self.max_keep).floor().long())
            count = count.clamp(min=self.min_keep)
        keep = select.top_k(logits, count, tokens.valid)
        return keep | self._anchored(tokens) if self.anchors else keep

    def logits(self, tokens: VisualTokens) -> Tensor:
        """(B, N) keep logits, fp32; padding is -inf.

        Without a predictor: of the heads' mean attention, scaled to run from 0 to 1 over a prompt's visual tokens.

        Raises
        ------
        IncompatibleWeightsError
            When the weights are for another vision encoder.
        """
        if tokens.attention is None:
            raise RuntimeError("GlimpsePrune was given no attention; the engine must honour attention_rows")
        if self.weights is None or self.weights.predictor is None:
            mean = tokens.attention[:, :, 0].mean(1)
            low = mean.masked_fill(~tokens.valid, math.inf).amin(-1, keepdim=True)
            high = mean.masked_fill(~tokens.valid, -math.inf).amax(-1, keepdim=True)
            scaled = (mean - low) / (high - low).clamp(min=torch.finfo(mean.dtype).tiny)
            return scaled.masked_fill(~tokens.valid, 0).logit(1e-6).masked_fill(~tokens.valid, -math.inf)
        predictor, config = self.weights.predictor, self.weights.config
        predictor.to(tokens.valid.device)  # nothing happens where it is there already
        sizes = [vision.shape[-1] for vision in tokens.vision]
        if sizes != [config.vision_size] * len(config.vision_layers):
            raise IncompatibleWeightsError(
                f"these weights are for {len(config.vision_layers)} vision layers of width {config.vision_size}, the "
                f"model gives {sizes}"
            )
        segments = Segments.of(tokens, config.window)
        kind = next(predictor.parameters())
        attention = _lowest_where_hidden(tokens.attention[:, :, 0].transpose(1, 2), tokens.valid).to(kind)
        cell = torch.stack([tokens.row, tokens.column], -1).clamp(min=0)
        found = predictor(
            segments.pick(attention),
            segments.pick_each(tokens.vision, kind),
            segments.pick(cell),
            segments,
        )
        return segments.put(found.float(), tokens.valid.shape, -math.inf)

    def _anchored(self, tokens: VisualTokens) -> Tensor:
        """(B, N) bool, corners of each grid."""
        most = max(map(len, tokens.grids))
        sizes = [
            [[grid.height, grid.width] for grid in grids] + [[0, 0]] * (most - len(grids)) for grids in tokens.grids
        ]
        last = torch.tensor(sizes, device=tokens.grid.device) - 1
        last = last.gather(1, tokens.grid.clamp(min=0)[..., None].expand(-1, -1, 2))
        cell = torch.stack([tokens.row, tokens.column], -1)
        found = torch.zeros_like(tokens.valid)
        for corner in self.anchors:
            found |= (cell == last * torch.tensor(CORNERS[corner], device=cell.device)).all(-1)
        return found & (tokens.grid >= 0) & tokens.valid

    def save_weights(self, folder: Path) -> dict[str, Any]:
        if self.weights is None:
            return {}
        sizes = self.weights.config
        cut = f"A cut before decoder layer {sizes.layer} of {sizes.depth}."
        return learned.save(self.weights, folder, "GlimpsePrune predictor", cut)

    @classmethod
    def recognises(cls, config: Any) -> bool:
        return authors_checkpoint.is_theirs(config)

    @classmethod
    def from_authors(cls, config: dict[str, Any], name: str) -> Self:
        return cls(**authors_checkpoint.load(config, find(name, authors_checkpoint.WEIGHTS)))

    @classmethod
    def load_weights(cls, config: dict[str, Any], name: str) -> dict[str, Any]:
        if "weights" not in config:
            return {}
        return {"weights": learned.load(config, name, lambda sizes: GlimpseModules(GlimpseConfig(**sizes)))}


@dataclass(frozen=True, kw_only=True)
class _WithoutVision(GlimpsePrune):
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


def _weights_for(model: Any) -> GlimpseModules:
    for folder in GlimpsePrune.shipped.values():
        with contextlib.suppress(IncompatibleWeightsError):
            weights = GlimpsePrune.from_pretrained(folder).weights
            if weights is not None:
                weights.check(model)
                return weights
    with own_randomness():
        torch.manual_seed(0)
        return GlimpseModules(sizes_for(model)).to(model.device, model.dtype).eval()


def _lowest_where_hidden(attention: Tensor, valid: Tensor) -> Tensor:
    """(B, N, H) scores in which tokens outside the layer's sliding window have the lowest that their head gives."""
    hidden = attention < HIDDEN
    low = attention.masked_fill(hidden | ~valid[..., None], math.inf).amin(1, keepdim=True)
    return torch.where(hidden, low.masked_fill(low.isinf(), 0), attention)
