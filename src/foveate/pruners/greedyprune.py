"""GreedyPrune: tokens that are salient and unlike each other, in one objective."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from foveate import select
from foveate.errors import BudgetError
from foveate.pruners.base import PromptRows, SingleStagePruner, VisualTokens, attends, option

# saliency and query of an objective, unless given
OF = {"volume": ("attention", "mean_text"), "threshold": ("cosine", "last")}
LIMITED = ("threshold", "fill", "center")  # what the threshold's objective alone reads
LIMIT = 0.9  # the threshold, unless given


@dataclass(frozen=True, kw_only=True)
class GreedyPrune(SingleStagePruner):
    """GreedyPrune, re-implemented from the abstract and reviews: choose for saliency and diversity at once, greedily.

    `objective="volume"`, the default, is ours: a joint optimisation of saliency and diversity, as the abstract has it.
    It maximises log det(diag(q) Sim diag(q)) over the kept tokens, that is 2 Σ log q plus the log-determinant of their
    cosines. Each greedy step takes the token of the largest q² times the squared length of what the ones taken before
    do not explain of its unit hidden state. q is the saliency, from 0 to 1 within the sample, plus `floor`, to the
    power `power`.

    `objective="threshold"` is the rule as reviews give it, and by itself that rule as it stands: the most salient
    token that is not too similar to one already taken, until the budget is spent. Saliency is the cosine to the last
    prompt token; two tokens are too similar when their cosine exceeds `threshold`. A threshold of 1 or more is plain
    top-k by saliency. It is not the default, as on the embedded model it is no better than random tokens: before a
    shallow layer that token has met neither the image nor the question, and the limit hardly binds.

    Source: Pei, Sun, Fu, Wang, "GreedyPrune" (arXiv 2506.13166). The paper's text was not at hand. From its abstract
    and published reviews: the cosine saliency to the last text token in a shallow layer, the objective of "threshold",
    and the pairwise limit. From a third party's design note: the greedy rule, threshold 0.9 and filling by saliency.
    Ours: "volume", saliency by attention, the stage, `mean_text`, "auto", `stop`, `relax`, `center`. No parity with
    the paper's tables is claimed.

    Raises
    ------
    BudgetError
        When an option makes no sense, or goes with the other objective.
    """

    name: ClassVar[str] = "greedyprune"
    paper: ClassVar[str] = "Pei et al., 2025, arXiv 2506.13166 (from its abstract and reviews)"
    url: ClassVar[str] = "https://arxiv.org/abs/2506.13166"
    summary: ClassVar[str] = "tokens that the question attends to, no two of them too alike"

    objective: Literal["volume", "threshold"] | None = option(
        None,
        "volume: the determinant of saliency times similarity, ours; threshold: the rule as reviews give it; none: "
        "volume, unless threshold, fill or center is given",
    )
    saliency: Literal["attention", "cosine"] | None = option(
        None,
        "attention of the text in the layer before, or cosine to the text; none: attention where that layer has any, "
        "but the cosine with objective=threshold",
    )
    query: Literal["last", "mean_text"] | None = option(
        None,
        "saliency to the last prompt token or to the text tokens' mean; none: the mean, but the last token with "
        "objective=threshold",
    )
    floor: float = option(
        1.0, "volume: what saliency, from 0 to 1, is raised by; more weighs diversity higher", over=0, under=math.inf
    )
    power: float = option(
        1.0, "volume: exponent of the raised saliency; less weighs diversity higher", over=0, under=math.inf
    )
    threshold: float | Literal["auto"] | None = option(
        None,
        "threshold: two visual tokens above this cosine are too alike to keep both, in [-1, inf); auto: the smallest "
        f"one that leaves enough; none: {LIMIT}",
        at_least=-1,
        under=math.inf,
    )
    fill: Literal["saliency", "stop", "relax"] = option(
        "saliency",
        "threshold: when it leaves too few, fill by saliency, stop short, or relax the threshold",
    )
    center: bool = option(
        False, "threshold: subtract the mean visual token before comparing visual tokens with each other"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        stray = self._given("floor", "power") if self._objective == "threshold" else self._given(*LIMITED)
        if stray:
            raise BudgetError(f"greedyprune: objective={self._objective!r} makes no use of {', '.join(stray)}")
        if self.threshold == "auto" and self.fill != "saliency":
            raise BudgetError("greedyprune: threshold='auto' always leaves enough: there is nothing for fill to do")
        if self.saliency == "attention" and not self.layer:
            raise BudgetError("greedyprune: before layer 0 there is no attention: saliency='cosine' needs none")

    @property
    def keeps_exactly(self) -> bool:  # type: ignore[override]
        """Only "stop" may keep fewer than the budget."""
        return self.fill != "stop"

    def resolved(self, config: Any) -> GreedyPrune:
        if self.saliency is None and self._attends and not attends(config, self.layer - 1):
            return dataclasses.replace(self, saliency="cosine")
        return self

    def notes(self, depth: int) -> tuple[str, ...]:
        if self.keeps_all or self._objective != "volume" or self._attends:
            return ()
        return ("greedyprune: saliency is the cosine to the text, which knows less of the question than attention",)

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor | None:
        if self.keeps_all or not self._attends:
            return None
        return rows.last[:, None] if self._query == "last" else rows.text

    def sums_rows(self, layer: int) -> bool:
        return self._query == "mean_text"

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        saliency, features = self._saliency(tokens), tokens.features.float()
        if self._objective == "volume":
            low = saliency.masked_fill(~tokens.valid, torch.inf).amin(-1, keepdim=True)
            high = saliency.masked_fill(~tokens.valid, -torch.inf).amax(-1, keepdim=True)
            ranged = (saliency - low) / (high - low).clamp(min=torch.finfo(saliency.dtype).tiny)
            weight = (ranged + self.floor).pow(self.power).masked_fill(~tokens.valid, 0)
            unit = torch.nn.functional.normalize(features, dim=-1)
            return select.low_rank_dpp(unit * weight[..., None], k, tokens.valid)
        if self.center:
            count = tokens.valid.sum(-1).clamp(min=1)[:, None, None]
            features = features - (features * tokens.valid[..., None]).sum(1, keepdim=True) / count
        if self.threshold == "auto":  # from a limit that leaves one token, or two opposite ones
            return select.suppression(features, saliency, k, -1.0, fill="relax", valid=tokens.valid)
        limit = LIMIT if self.threshold is None else self.threshold
        return select.suppression(features, saliency, k, limit, fill=self.fill, valid=tokens.valid)

    def _saliency(self, tokens: VisualTokens) -> Tensor:
        """(B, N) float32."""
        if self._attends:
            if tokens.attention is None:
                raise RuntimeError("GreedyPrune was given no attention; the engine must honour attention_rows")
            return tokens.attention.mean(1).sum(1)  # the sum over text rows ranks as their mean does
        query = tokens.query if self._query == "last" else tokens.mean_text
        return torch.cosine_similarity(tokens.features.float(), query.float()[:, None], dim=-1)

    def _given(self, *names: str) -> list[str]:
        """Those of these options that are not the default."""
        return [
            item.name
            for item in dataclasses.fields(self)
            if item.name in names and getattr(self, item.name) != item.default
        ]

    @property
    def _objective(self) -> str:
        return self.objective or ("threshold" if self._given(*LIMITED) else "volume")

    @property
    def _attends(self) -> bool:
        """Whether saliency is read from attention."""
        return self.layer > 0 and (self.saliency or OF[self._objective][0]) == "attention"

    @property
    def _query(self) -> str:
        return self.query or OF[self._objective][1]
