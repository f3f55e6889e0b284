"""One number for every method: a share of tokens per layer, of the KV cache or of the FLOPs, and the budget for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from foveate.engine.flops import prefill_flops
from foveate.errors import BudgetError
from foveate.families import family_of
from foveate.measure.overlay import visual_positions
from foveate.pruners import Pruner, shares
from foveate.pruners.base import depth_of
from foveate.pruners.budget import check_keep

if TYPE_CHECKING:
    from PIL import Image

    from foveate.measure.loading import LoadedModel

AFTER, MEAN = "after", "mean"
BUDGETS = (AFTER, MEAN, "kv", "flops")
WORDS = {
    MEAN: "the mean share of visual tokens over all decoder layers",
    "kv": "the share of the visual tokens that the KV cache holds, over all layers",
    "flops": "the share of the FLOPs of the decoder's prefill, text included",
}
FORMS = {
    "kv": "{:.1%} of the visual tokens in the KV cache",
    "flops": "{:.1%} of the FLOPs of the decoder's prefill",
}


def check_budget(budget: str, keeps: Sequence[float | int]) -> None:
    """Refuse a meaning of `--keep` that there is not, and counts where a share is meant.

    Raises
    ------
    BudgetError
        When `budget` is none of `BUDGETS`, or a keep is none, or is a count and `budget` another than "after".
    """
    if budget not in BUDGETS:
        raise BudgetError(f"--budget is one of {', '.join(BUDGETS)}, got '{budget}'")
    for keep in keeps:
        if not isinstance(check_keep(keep), float) and budget != AFTER:
            what = "a mean per layer" if budget == MEAN else f"a budget of {budget}"
            raise BudgetError(f"{what} is a share such as 0.22, and not the count {keep}")


@dataclass(frozen=True)
class PromptCost:
    """What a share is a share of, for a prompt of a model.

    Attributes
    ----------
    budget
        "mean", "kv" or "flops", see `WORDS`; as the fields of the report.
    config
        The model's.
    visual, text
        Visual and text tokens of the prompt.
    cached
        For each decoder layer whether it has a KV cache; None: all have.
    """

    budget: Literal["mean", "kv", "flops"]
    config: Any
    visual: int
    text: int
    cached: tuple[bool, ...] | None = None

    @classmethod
    def of(cls, model: Any, budget: Any, visual: int, text: int) -> PromptCost:
        """That of a prompt of this model."""
        family = family_of(model)
        parts = family.parts(model)
        sources = family.kv_sources(parts)
        cached = (one is not None and sources[layer] == layer for layer, one in enumerate(parts.attention))
        return cls(budget, model.config, visual, text, tuple(cached))

    @classmethod
    def of_question(cls, loaded: LoadedModel, budget: Any, question: str, images: list[Image.Image]) -> PromptCost:
        """That of a question about images."""
        ids = loaded.inputs([question], [images])["input_ids"]
        visual = visual_positions(loaded.model.config, ids[0]).numel()
        return cls.of(loaded.model, budget, visual, ids.shape[1] - visual)

    def share(self, pruner: Pruner) -> float:
        """The share that a method takes of such a prompt, by plan: see `Pruner.planned`.

        Raises
        ------
        BudgetError
            When the method does not fit the model, what it keeps depends on the prompt, or no formula knows the
            model's FLOPs.
        """
        depth = depth_of(self.config)
        method = pruner.resolved(self.config)
        rows = shares.per_layer(method, depth, self.visual)
        if self.budget == MEAN:
            return sum(rows) / (self.visual * depth)
        if self.budget == "flops":
            text = self.config.get_text_config()
            pruned = prefill_flops(text, [row + self.text for row in rows])
            dense = prefill_flops(text, [self.visual + self.text] * depth)
            if pruned is None or dense is None:
                raise BudgetError("the FLOPs of this model's layers are in no formula here; --budget mean or kv does")
            return pruned / dense
        if method.compact_cache:
            last = max(method.layers(depth), default=0)
            rows = [rows[max(layer, last)] for layer in range(depth)]
        held = [row for layer, row in enumerate(rows) if self.cached is None or self.cached[layer]]
        return sum(held) / (self.visual * len(held)) if held else 1.0

    def solved(self, pruner: Pruner, share: float) -> Pruner:
        """The same method with the budget that takes this share, to the nearest token of each stage (VTW: layer).

        Raises
        ------
        BudgetError
            When no budget of the method does, with the range in which it lies; otherwise as `share`.
        """
        check_budget(self.budget, [share])
        if not self.visual:
            return pruner
        if self.budget == MEAN or share == 1.0:
            return pruner.with_mean(share, self.config)
        return shares.solve(
            pruner.name, lambda setting: pruner.set_to(setting, self.config), self.share, share, FORMS[self.budget]
        )
