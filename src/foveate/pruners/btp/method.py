"""BTP, balanced token pruning: several stages, diverse tokens early, attended ones late."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from foveate import select
from foveate.errors import BudgetError
from foveate.pruners.base import PromptRows, Pruner, VisualTokens, depth_of, option
from foveate.pruners.btp.spread import spread, spread_ranks
from foveate.pruners.btp.stages import (
    DEFAULT,
    PRESETS,
    RAW,
    BTPStage,
    as_stages,
    default_stages,
    mean_tokens,
    preset_for,
    published_for,
    published_stages,
    scale_to,
)
from foveate.pruners.budget import check_share, tokens_to_keep


def _stages_given(stages: Any) -> tuple[BTPStage, ...] | str:
    if not isinstance(stages, str):
        return as_stages(stages)
    if stages != DEFAULT and stages not in PRESETS:
        raise BudgetError(f"btp: no stages {stages!r}; there are {', '.join([DEFAULT, *PRESETS])}")
    return stages


@dataclass(frozen=True, kw_only=True)
class BTP(Pruner):
    """Keep, at each of several stages, some tokens for the attention they get and the rest for their diversity.

    At a stage that keeps k tokens, ⌊λk⌋ are picked by the attention of the last prompt token in the layer before,
    averaged over heads and rebalanced towards the front of the prompt (section 4.2, eq. 8-10); of the other places a
    share goes to a set spread evenly over the images' grids (eq. 11), and max-min diversity of the current hidden
    states fills up to exactly k, going on from all that is selected. λ rises with depth (eq. 7 and table 7).

    Source: "Balanced Token Pruning", arXiv 2505.22038; where paper and released code differ, see docs/methods/btp.md.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the stages do not fit the model or cannot reach `keep`.
    """

    name: ClassVar[str] = "btp"
    paper: ClassVar[str] = "Li et al., NeurIPS 2025, arXiv 2505.22038"
    url: ClassVar[str] = "https://arxiv.org/abs/2505.22038"
    summary: ClassVar[str] = (
        "in stages: diverse tokens in early layers, attended ones in later layers; calibrated to the model"
    )
    needs: ClassVar[str] = "calibration (optional)"
    uses_grids: ClassVar[bool] = True
    keep_is_mean: ClassVar[bool] = True

    keep: float | None = option(
        None,
        "mean share of visual tokens per decoder layer, by scaling all stages; none: as they are; 1.0: off",
        check=check_share,
    )
    variant: Literal["auto", "default", "paper", "released"] = option(
        "auto",
        "paper, released: the published stages, in a model of another depth at the same shares of it; default: "
        "derived from the depth; auto: the paper's for the models that it gives stages for, else default",
    )
    stages: tuple[BTPStage, ...] | str | None = option(
        None,
        "instead of a variant: (layer, keep, attention, over, split, spatial, scratch) each, or by name: "
        f"{', '.join([DEFAULT, *PRESETS])}",
        check=_stages_given,
    )
    final: Literal["keep", "drop", "auto"] | None = option(
        None,
        "a last stage that drops everything: leave it out (keep), do it (drop), or do it where calibration found it "
        "harmless (auto); none: do it with variant=released alone",
    )
    harmless: int | None = option(
        None, "layer before which dropping all that is left was measured to be harmless", at_least=0
    )
    depth: int | None = option(
        None, "decoder layers of the model that the stages were made for; no other is taken", at_least=1
    )
    attention: float | None = option(None, "λ of every stage; none: each stage's own", at_least=0, at_most=1)
    score: Literal["softmax", "logits"] | None = option(
        None,
        "attention averaged over heads after or before softmax; none: after, but before with LLaVA's released stages, "
        "as published",
    )
    query: Literal["last", "mean_text"] = option("last", "attention of the last prompt token, or mean over the text")
    rebalance: bool = option(True, "undo attention's bias towards the end of the prompt")
    spatial_seed: bool = option(True, "begin diversity with cells spread over the images")
    distance: Literal["manhattan", "euclidean"] = option("manhattan", "between cells, for the spatial seed")
    first: Literal["published", "outlier"] = option(
        "published",
        "where diversity begins without a start: at the token whose nearest neighbour is farthest, or at the one "
        "farthest from the mean",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages is not None and self.variant != "auto":
            raise BudgetError("btp: either stages, or a variant that says which")
        if self.score == "logits" and self.query != "last":
            raise BudgetError("btp: score='logits' goes with query='last': other tokens do not see every image")

    @classmethod
    def brings_budget(cls, options: Mapping[str, Any]) -> bool:
        return options.get("variant") in ("paper", "released")

    def resolved(self, config: Any) -> BTP:
        """With the stages as they are done in this model: variant, λ, drop and budget worked out.

        Raises
        ------
        BudgetError
            When the stages were made for another depth, do not fit, or cannot reach `keep`.
        """
        depth, final, preset = depth_of(config), self.final, self.stages
        if self.stages is not None:
            stages: tuple[BTPStage, ...] | str = self.stages
        elif self.variant in ("paper", "released"):
            preset = published_for(self.variant, config)
            stages = published_stages(preset, depth)
            if final is None and self.variant == "released" and not stages[-1].keep:
                final = "drop"
        else:
            made_for = preset_for(config) if self.variant == "auto" else None
            stages = DEFAULT if made_for is None else PRESETS[f"paper-{made_for}"]
        raw = preset in RAW and self.query == "last"
        score = self.score or ("logits" if raw else "softmax")
        made = dataclasses.replace(self, variant="auto", stages=stages, final=final, score=score)
        stages = made.schedule(depth)
        if self.keep == 1.0:
            return dataclasses.replace(made, stages=stages, final="keep")
        return dataclasses.replace(made, stages=stages, keep=None, attention=None, depth=depth)

    def schedule(self, depth: int) -> tuple[BTPStage, ...]:
        """The stages in a model of `depth` decoder layers, of which nothing else is known: see `resolved`.

        Raises
        ------
        BudgetError
            When the stages were made for another depth, do not fit, or cannot reach `keep`.
        """
        if self.depth not in (None, depth):
            raise BudgetError(f"btp: these stages were made for a model of {self.depth} layers, this one has {depth}")
        if self.stages is None and self.brings_budget({"variant": self.variant}):
            raise RuntimeError("BTP's published stages depend on the model: ask resolved(config) first")
        if self.stages is None or isinstance(self.stages, str):
            stages = PRESETS.get(self.stages or DEFAULT) or default_stages(depth)
        else:
            stages = self.stages
        if self.attention is not None:
            stages = tuple(dataclasses.replace(stage, attention=self.attention) for stage in stages)
        drop = [stage for stage in stages if not stage.keep]
        stages = tuple(stage for stage in stages if stage.keep)
        if self.final == "auto":
            drop = [] if self.harmless is None else [BTPStage(self.harmless, 0.0)]
        if self.final == "drop" and not drop:
            raise BudgetError("btp: final='drop' needs a stage that keeps 0")
        if self.final in ("drop", "auto") and self.keep != 1.0:
            stages = as_stages([stage for stage in stages if not drop or stage.layer < drop[0].layer] + drop)
        if not stages:
            raise BudgetError("btp: no stage is left that keeps anything; final='drop' does one that keeps 0")
        if stages[-1].layer >= depth:
            raise BudgetError(f"btp: a stage before layer {stages[-1].layer} does not fit a model of {depth} layers")
        return stages if self.keep in (None, 1.0) else scale_to(stages, self.keep, depth)

    def mean_tokens(self, depth: int) -> float:
        """Share of the visual tokens that a layer holds on average, in a model of `depth` decoder layers."""
        return 1.0 if self.keep == 1.0 else mean_tokens(self.schedule(depth), depth)

    def with_mean(self, share: float, config: Any) -> BTP:
        made = dataclasses.replace(self, keep=share)
        made.resolved(config)
        return made

    def scaled(self, factor: float, config: Any) -> BTP:
        made = dataclasses.replace(self, keep=None if self.keep == 1.0 else self.keep).resolved(config)
        stages = made.schedule(depth_of(config))
        kept = tuple(dataclasses.replace(one, keep=min(1.0, factor * one.keep)) for one in stages)
        return dataclasses.replace(made, stages=kept)

    def layers(self, depth: int) -> tuple[int, ...]:
        return tuple(stage.layer for stage in self.schedule(depth))

    def notes(self, depth: int) -> tuple[str, ...]:
        if self.keep == 1.0 or self.final in ("keep", None):
            return ()
        if self.final == "auto":
            unknown = "btp: final='auto' drops nothing: no calibration says where that is harmless"
            return (unknown,) if self.harmless is None else ()
        return (
            f"btp: every visual token is dropped before layer {self.layers(depth)[-1]} of {depth}; models that still "
            "read the image there lose reading tasks (final='keep' does not drop)",
        )

    def attention_form(self) -> Literal["softmax", "logits"]:
        return self.score or "softmax"

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor | None:
        stage = self._stage(layer)
        if self.keep == 1.0 or not stage.keep or not stage.attention:
            return None
        return rows.last[:, None] if self.query == "last" else rows.text

    def sums_rows(self, layer: int) -> bool:
        return self.query == "mean_text"

    def kept(self, layer: int, dense: Tensor, present: Tensor) -> Tensor:
        share = self._stage(layer).keep
        if self.keep == 1.0:
            return present
        return torch.minimum(tokens_to_keep(share, dense), present) if share else torch.zeros_like(present)

    def select(self, tokens: VisualTokens) -> Tensor:
        stage = self._stage(tokens.layer)
        if self.keep == 1.0:
            return tokens.valid
        if not stage.keep:
            return torch.zeros_like(tokens.valid)
        k = self.kept(tokens.layer, tokens.dense, tokens.present)
        attended = _share(stage.attention, k)
        chosen = self._attended(tokens, stage, attended, k)
        if stage.attention == 1:
            return chosen
        worth = chosen.double()  # of what is picked more than once, or too much, the first in this order stay
        if stage.scratch:
            count = _share(stage.scratch, k)
            alone = select.max_min_diversity(tokens.features, count, valid=tokens.valid, first=self.first)
            worth, chosen = worth.where(chosen | ~alone, 0.5), chosen | alone
        if self.spatial_seed and stage.spatial:
            seed = spread(tokens, _share(stage.spatial, k - attended), self.distance)
            rank, _ = spread_ranks(tokens, self.distance)
            worth, chosen = worth.where(chosen | ~seed, -rank.double()), chosen | seed
        start = select.top_k(worth, k, chosen)
        return select.max_min_diversity(tokens.features, k, start=start, valid=tokens.valid, first=self.first)

    def _attended(self, tokens: VisualTokens, stage: BTPStage, share: Tensor, k: Tensor) -> Tensor:
        """The pick by attention of `share` (B,) of the k (B,) places; more, and at most k, without rebalancing."""
        if not stage.attention:
            return torch.zeros_like(tokens.valid)
        if tokens.attention is None:
            raise RuntimeError("BTP was given no attention; the engine must honour attention_rows")
        score = tokens.attention.mean(1).sum(1)  # the sum over text rows ranks as their mean does
        if stage.split is None:
            return select.top_k(score, torch.minimum(_share(stage.over, share), k), tokens.valid)
        if not self.rebalance:
            return select.top_k(score, share, tokens.valid)
        return select.rebalanced_top_k(score, share, stage.over, stage.split, tokens.valid)

    def _stage(self, layer: int) -> BTPStage:
        if self.stages is None or isinstance(self.stages, str):
            raise RuntimeError("BTP's stages depend on the model: ask resolved(config) first")
        return next(stage for stage in self.stages if stage.layer == layer)


def _share(share: float, k: Tensor) -> Tensor:
    """⌊share · k⌋, and not one less where the product is whole but for its last bit."""
    return (share * k.double() + 1e-9).floor().long()
