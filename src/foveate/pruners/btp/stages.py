"""BTP's stages: what one is, the published ones, a default for any depth, and scaling them to a budget."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from foveate.errors import BudgetError
from foveate.pruners.options import option, settle


@dataclass(frozen=True)
class BTPStage:
    """One cut of BTP.

    Attributes
    ----------
    layer
        It lies before this decoder layer, counted from 0 (the paper and its code count from 1).
    keep
        Share of the dense prompt's visual tokens that survive; 0 drops all that are left.
    attention
        The paper's λ: share of the survivors that attention picks; the rest is picked for diversity.
    over, split
        Rebalancing of the attention pick, see `select.rebalanced_top_k`; over = 1 is plain top-k. A split of None: no
        rebalancing, and all ⌊over · ⌊λk⌋⌋ best tokens are picked.
    spatial
        Share of the diversity places that the spatial seed takes; max-min diversity continues from there.
    scratch
        Share of the survivors that max-min diversity picks from nothing, as if no other token were picked; they join
        the others before it fills up.
    """

    layer: int = option(at_least=0)
    keep: float = option(at_least=0, at_most=1)
    attention: float = option(0.0, at_least=0, at_most=1)
    over: float = option(1.2, at_least=1, under=math.inf)
    split: float | None = option(0.5, at_least=0, at_most=1)
    spatial: float = option(0.0, at_least=0, at_most=1)
    scratch: float = option(0.0, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        settle(self, "btp, a stage")
        if self.layer == 0 and self.attention:
            raise BudgetError("btp: before layer 0 there is no attention to read: that stage needs attention=0")


def as_stages(stages: Iterable[Any]) -> tuple[BTPStage, ...]:
    """Stages from what a user or a JSON file writes: `BTPStage`, its fields as a mapping, or its values in order.

    Raises
    ------
    BudgetError
        When they are no stages, not in ascending order of layers, or keep more than the stage before.
    """
    if not isinstance(stages, Iterable):
        raise BudgetError(f"btp: stages must be several BTPStage(layer, keep, attention), got {stages!r}")
    made = []
    for item in stages:
        try:
            if isinstance(item, Mapping):
                item = BTPStage(**item)
            elif isinstance(item, Sequence) and not isinstance(item, str):
                item = BTPStage(*item)
        except TypeError as error:
            raise BudgetError(f"btp: {item!r} is no stage: {error}") from None
        if not isinstance(item, BTPStage):
            raise BudgetError(f"btp: {item!r} is no stage: give BTPStage(layer, keep, attention), or these in a tuple")
        made.append(item)
    if not made:
        raise BudgetError("btp: no stage at all; keep=1.0 switches it off")
    for before, after in itertools.pairwise(made):
        if after.layer <= before.layer or after.keep > before.keep:
            raise BudgetError(
                f"btp: stages must go deeper and keep no more than before, got {before.keep:.3g} before layer "
                f"{before.layer}, then {after.keep:.3g} before layer {after.layer}"
            )
    return tuple(made)


# Layers as in the released files, less one. The paper states keeps and λ, but neither its rebalancing nor the share of
# its seed: 1.2, a half and a half are ours. In LLaVA's released file the first stage keeps 288 tokens: 86 by
# attention, a seed of 144, which is 0.713 of the other 202, and 86 from nothing; Qwen's takes ⌊1.2 · ⌊0.1k⌋⌋ by
# attention. For LLaVA-1.5-13B no layers were published: these are inferred, one of two sets that lie nearest to
# LLaVA-1.5-7B's shares of the depth among those that with the paper's keeps cost its table 1's 1.68 TFLOPs.
_ROWS: Mapping[str, list[tuple[Any, ...]]] = {
    "paper-llava-1.5-7b": [(3, 1 / 2, 0.6, 1.2, 0.5, 0.5), (6, 1 / 4, 0.8), (14, 1 / 8, 1.0), (22, 0)],
    "released-llava-1.5-7b": [
        (3, 1 / 2, 0.3, 3.7, 0.5, 0.713, 0.3),
        (6, 1 / 4, 0.9, 1.5, 0.5, 0.0, 0.1),
        (14, 1 / 12, 1.0, 1.2, 1 / 3),
        (22, 0),
    ],
    "paper-llava-1.5-13b": [(3, 1 / 2, 0.6, 1.2, 0.5, 0.5), (8, 1 / 4, 0.8), (17, 1 / 8, 1.0), (28, 0)],
    "paper-qwen2.5-vl-7b": [(3, 1 / 2, 0.2, 1.2, 0.5, 0.5), (6, 1 / 4, 0.5), (15, 1 / 8, 0.8)],
    "released-qwen2.5-vl-7b": [(3, 1 / 2, 0.1, 1.2, None), (6, 1 / 4, 0.4, 1), (15, 1 / 8, 1.0), (22, 0)],
}
PRESETS: Mapping[str, tuple[BTPStage, ...]] = MappingProxyType({name: as_stages(rows) for name, rows in _ROWS.items()})
# (config.model_type, decoder layers, hidden size) of the models that the presets were made for
MADE_FOR: Mapping[tuple[str, int, int], str] = MappingProxyType(
    {
        ("llava", 32, 4096): "llava-1.5-7b",
        ("llava", 40, 5120): "llava-1.5-13b",
        ("qwen2_5_vl", 28, 3584): "qwen2.5-vl-7b",
    }
)
RAW = ("released-llava-1.5-7b",)  # attention averaged over heads before the softmax
DEFAULT = "default"  # among the names of stages
_PLACES, _KEEPS, _ATTENTION, _DROP = (3 / 32, 6 / 32, 14 / 32), (1 / 2, 1 / 4, 1 / 8), (0.4, 0.7, 1.0), 22 / 32


def default_stages(depth: int) -> tuple[BTPStage, ...]:
    """Stages for a model that has no preset: the paper's places as shares of the depth, halving, λ as for LLaVA-1.6.

    The last stage drops all that is left, as the paper's does; `BTP.final` decides whether it counts.
    """
    layers: list[int] = []
    for place in (*_PLACES, _DROP):
        layers.append(max(round(depth * place), layers[-1] + 1 if layers else 1))
    rows = [
        BTPStage(layer, keep, attention, spatial=0.5 if not number else 0.0)
        for number, (layer, keep, attention) in enumerate(zip(layers, _KEEPS, _ATTENTION, strict=False))
    ]
    return tuple(stage for stage in (*rows, BTPStage(layers[-1], 0.0)) if stage.layer < depth)


def preset_for(config: Any) -> str | None:
    """The model that presets were made for, if a config is that very model's."""
    text = config.get_text_config()
    return MADE_FOR.get((config.model_type, text.num_hidden_layers, text.hidden_size))


def published_for(variant: str, config: Any) -> str:
    """The paper's or released preset for a model: that of this very one, of its type, or LLaVA-1.5-7B's."""
    of_type = [name for (kind, *_), name in MADE_FOR.items() if kind == config.model_type]
    names = [preset_for(config), *of_type, *MADE_FOR.values()]
    return next(preset for name in names if (preset := f"{variant}-{name}") in PRESETS)


def published_stages(preset: str, depth: int) -> tuple[BTPStage, ...]:
    """The stages of a preset, at the same shares of the depth in a model of another depth."""
    made_for = next(layers for (_, layers, _), name in MADE_FOR.items() if preset.endswith(name))
    moved: list[BTPStage] = []
    for stage in PRESETS[preset]:
        layer = max(round(stage.layer * depth / made_for), moved[-1].layer + 1 if moved else 1)
        if layer < depth:
            moved.append(dataclasses.replace(stage, layer=layer))
    return tuple(moved)


def mean_tokens(stages: Sequence[BTPStage], depth: int) -> float:
    """Share of the visual tokens that the layers of a model of `depth` layers hold, averaged over all layers."""
    share, total, at = 1.0, 0.0, 0
    for stage in stages:
        total += share * (stage.layer - at)
        share, at = stage.keep, stage.layer
    return (total + share * (depth - at)) / depth


def scale_to(stages: tuple[BTPStage, ...], mean: float, depth: int) -> tuple[BTPStage, ...]:
    """The stages with every keep multiplied by one factor, and at most 1, so that `mean_tokens` is `mean`.

    Raises
    ------
    BudgetError
        When no factor does that: the layers before the first stage hold more, or those before a drop less.
    """

    def scaled(factor: float) -> tuple[BTPStage, ...]:
        return tuple(dataclasses.replace(stage, keep=min(1.0, factor * stage.keep)) for stage in stages)

    most = 1 / min((stage.keep for stage in stages if stage.keep), default=1.0)
    least_mean, most_mean = mean_tokens(scaled(0), depth), mean_tokens(scaled(most), depth)
    if not least_mean < mean <= most_mean:
        raise BudgetError(
            f"btp: a mean of {mean:.1%} of the visual tokens per layer cannot be reached by stages before layers "
            f"{', '.join(str(stage.layer) for stage in stages)} of {depth}: it lies between {least_mean:.1%} and "
            f"{most_mean:.1%}"
        )
    low, high = 0.0, most
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if mean_tokens(scaled(middle), depth) < mean else (low, middle)
    return scaled(high)
