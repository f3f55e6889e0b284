"""The methods and settings that the laws are tested for; a new method adds a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import foveate
from foveate import BTP, DivPrune, FastV, GlimpsePrune, GreedyPrune, PyramidDrop, Random, select
from foveate.engine import attach
from foveate.errors import BudgetError, UnsupportedModelError
from foveate.pruners import Pruner, ScorePruner, Selection, VisualTokens
from foveate.pruners.base import KeyOrValue
from foveate.pruners.glimpseprune.modules import GlimpseConfig, GlimpseModules
from foveate.pruners.ocvtp.modules import SlotConfig, SlotModules
from tests.models import TINY
from tests.models.build import UNSEEN, WITH_STATES
from tests.models.sizes import LAYERS


@dataclass(frozen=True, kw_only=True)
class Ladder(Pruner):
    """Three stages, each sample another count: what no method may do by itself, but the engine must survive."""

    name: ClassVar[str] = "ladder"
    paper: ClassVar[str] = "test"
    summary: ClassVar[str] = "test"
    keep: float = 0.7
    cuts: tuple[int, ...] = (1, 3, 5)

    def layers(self, depth: int) -> tuple[int, ...]:
        return self.cuts

    def select(self, tokens: VisualTokens) -> Tensor:
        if self.keep == 1.0:
            return tokens.valid
        k = (tokens.present * self.keep).long() - tokens.dense % 3
        place = torch.arange(tokens.valid.shape[1], device=tokens.valid.device)
        score = torch.sin(place * 7.0 + tokens.layer).expand(tokens.valid.shape)
        return select.top_k(score, k.clamp(min=0), tokens.valid)


@dataclass(frozen=True, kw_only=True)
class Merging(Ladder):
    """The ladder's stages; every other token that leaves goes into a survivor, with a weight of its own."""

    name: ClassVar[str] = "merging"
    how: str = "average"
    factor: float = 1.0

    def select(self, tokens: VisualTokens) -> Tensor | Selection:
        keep = super().select(tokens) & tokens.valid
        column = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
        before = torch.where(keep, column, -1).cummax(-1).values  # the nearest survivor before it, if any
        into = torch.where(column % 2 == 0, before, -1)
        return Selection(keep, into, (0.2 + column % 3) * self.factor, self.how)


@dataclass(frozen=True, kw_only=True)
class Telling(ScorePruner):
    """Scores by keys and values of the layer before, of text and images, and by how much its hidden states changed."""

    name: ClassVar[str] = "telling"
    paper: ClassVar[str] = "test"
    summary: ClassVar[str] = "test"
    keep: float = 0.4
    layer: int = 1
    lowest_layer: ClassVar[int] = 1

    def kv(self, layer: int) -> tuple[KeyOrValue, ...]:
        return ("keys", "values")

    def wants_previous(self, layer: int) -> bool:
        return True

    def score(self, tokens: VisualTokens) -> Tensor:
        like = torch.einsum("bgne,bgte->bn", tokens.keys, tokens.text_keys)
        size = tokens.values.norm(dim=-1).sum(1) + tokens.text_values.sum((1, 2, 3))[:, None]
        return like + size + (tokens.features - tokens.previous).norm(dim=-1)


def glimpse(**changes) -> GlimpseModules:
    """Random weights that choose: some tokens of each image, and never all."""
    torch.manual_seed(5)
    sizes = {"depth": LAYERS, "hidden_size": 64, "heads": 4, "layer": 4, "size": 16, "predictor_heads": 2, "blocks": 2}
    modules = GlimpseModules(GlimpseConfig(**{**sizes, **changes}))
    with torch.no_grad():
        modules.glimpse.rows.mul_(50)
        modules.predictor.attention_in.weight.mul_(20)
        modules.predictor.out.weight.mul_(10)
    return modules.eval()


def slots(**changes) -> SlotModules:
    """Random weights whose slots differ, and mostly take tokens of their own."""
    torch.manual_seed(6)
    modules = SlotModules(SlotConfig(**{"vision_layer": 1, "vision_size": 32, "size": 16, **changes}))
    with torch.no_grad():
        modules.log_std.zero_()
        modules.attention.query.weight.mul_(3)
        modules.attention.key.weight.mul_(3)
    return modules.eval()


METHODS: dict[str, Pruner] = {
    "random": Random(keep=0.3),
    "random mid": Random(keep=5, layer=3, seed=1),
    "fastv": FastV(keep=0.3),
    "fastv late": FastV(keep=0.3, layer=5),
    "divprune": DivPrune(keep=0.3),
    "divprune mid per image": DivPrune(keep=0.3, layer=2, per="image"),
    "greedyprune": GreedyPrune(keep=0.3),
    "greedyprune stop": GreedyPrune(keep=0.5, layer=0, objective="threshold", threshold=0.1, fill="stop"),
    "greedyprune relax": GreedyPrune(
        keep=0.4, layer=1, objective="threshold", threshold=0.0, fill="relax", center=True, query="mean_text"
    ),
    "greedyprune compacted": GreedyPrune(
        keep=0.3, layer=3, per="image", compact_cache=True, objective="threshold", threshold="auto"
    ),
    "btp": BTP(stages=[(1, 0.7, 0.4, 1.5, 0.5, 0.5), (3, 0.4, 0.7), (4, 0.2, 1.0, 2.0)]),
    "btp from 0 to nothing": BTP(
        keep=0.3,
        stages=[(0, 0.6, 0.0, 1.2, 0.5, 1.0), (2, 0.4, 0.5), (5, 0.0)],
        final="drop",
        query="mean_text",
        distance="euclidean",
    ),
    "btp logits compacted": BTP(stages=[(2, 0.4, 0.5, 3.7)], score="logits", compact_cache=True),
    "glimpseprune": GlimpsePrune(
        weights=glimpse(vision_layers=(2, 0), vision_size=32, condition_size=16), min_keep=2, max_keep=0.5
    ),
    "glimpseprune two tokens": GlimpsePrune(
        weights=glimpse(length=2, attention="log_softmax", layer=2), max_keep=0.4, anchors=("tl",), compact_cache=False
    ),
    "glimpseprune untrained": GlimpsePrune(threshold=0.3, max_keep=0.4),
    "pyramiddrop": PyramidDrop(keep=0.2),
    "ladder": Ladder(),
    "merging": Merging(),
    "merging compacted, added": Merging(cuts=(0, 3), how="add", compact_cache=True),
    "telling": Telling(),
    "telling late per image": Telling(layer=4, keep=0.5, per="image"),
    "ladder from 0 compacted": Ladder(cuts=(0, 2, 4), compact_cache=True),
    "chain": foveate.Chain(DivPrune(keep=0.7), FastV(keep=0.5, layer=2), Merging(cuts=(3, 4))),
}

# Methods whose way through the engine one of the above has, too, such as a mask before layer 0, or a stage that drops
# all: each meets each family of `WHOLE` in test_laws.py once, and those for videos each family that takes some.
FIELD: dict[str, Pruner] = {
    "greedyprune before layer 0": GreedyPrune(keep=0.3, layer=0),
    "greedyprune last row per image": GreedyPrune(keep=0.4, layer=3, per="image", query="last", floor=0.01),
    "cdpruner": foveate.CDPruner(keep=0.3, theta=0.6),
    "vtw": foveate.VTW(layer=3),
    "evs": foveate.EVS(keep=0.6),
    "vidcom2": foveate.VidCom2(keep=0.4),
    "hiprune": foveate.HiPrune(keep=0.4, alpha=0.8),
    "fastervlm": foveate.FasterVLM(keep=0.3),
    "vispruner": foveate.VisPruner(keep=0.4, per="image"),
    "visionzip": foveate.VisionZip(keep=0.4, contextual=0.4),
    "holov": foveate.HoloV(keep=0.3, layer=2),
    "dart": foveate.DART(keep=0.4, visual_pivots=2, text_pivots=2),
    "scope": foveate.SCOPE(keep=0.4),
    "anchorprune": foveate.AnchorPrune(keep=0.5, novelty=0.6),
    "v2drop": foveate.V2Drop(keep=0.4),
    "apet": foveate.ApET(keep=0.5, basis=3),
    "mmtok": foveate.MMTok(keep=0.4),
    "ivcprune": foveate.IVCPrune(keep=0.4, layer=2),
    "agilepruner": foveate.AgilePruner(keep=0.4, average=3.0, step=0.1),
    "prunesid": foveate.PruneSID(keep=0.5, group=2),
    "vlmpruner": foveate.VLMPruner(keep=0.5, pivots=2, threshold=0.1, batch=2),
    "sparsevlm": foveate.SparseVLM(keep=0.5),
    "sparsevlm recycling": foveate.SparseVLM(keep=0.4, version=1, schedule=64),
    "tome": foveate.ToMe(keep=0.3, layer=2),
    "ocvtp": foveate.OCVTP(keep=0.4, weights=slots()),
    "ocvtp untrained per image": foveate.OCVTP(keep=0.3, per="image"),
    "uniform": foveate.Uniform(keep=0.3, layer=1),
    "pool": foveate.Pool(keep=0.3, per="image"),
    "chain of vision": foveate.Chain(
        foveate.FasterVLM(keep=0.7), foveate.VisionZip(keep=0.5, layer=1, contextual=0.4), foveate.SCOPE(layer=3)
    ),
    "chain per image, compacted": foveate.Chain(
        foveate.HiPrune(keep=0.8, alpha=0.8),
        DivPrune(keep=0.5, layer=1, per="image"),
        GlimpsePrune(threshold=0.3, max_keep=0.3, layer=2),
    ),
    "chain of keys and text": foveate.Chain(
        foveate.ToMe(keep=0.7), foveate.DART(keep=0.5), foveate.AnchorPrune(keep=0.3, layer=4), foveate.VTW(layer=5)
    ),
    "chain of a video": foveate.Chain(
        foveate.EVS(keep=0.6), foveate.Uniform(keep=0.3, layer=1), BTP(stages=[(2, 0.2, 1.0)])
    ),
}
VIDEO = ("evs", "vidcom2", "chain of a video")

# attention rows of a layer that has none, tokens that a running state would keep, vision features that cannot be lined
# up, stages between layers that share keys and values, added tokens that would need several states: these raise where
# they are attached
ADDING = ("glimpseprune", "glimpseprune two tokens")
SPARSE = ("sparsevlm", "sparsevlm recycling")
READING = ("btp", "pyramiddrop", *ADDING, "telling", *SPARSE)  # the others read the one layer that has attention
REFUSED = {(family, method) for family in WITH_STATES for method in READING} | {
    (family, "glimpseprune") for family in UNSEEN
}
REFUSED |= {
    (family, method)
    for family, tiny in TINY.items()
    for method, pruner in (METHODS | FIELD).items()
    if max(pruner.layers(LAYERS)) > tiny.last_stage or (tiny.streams and method in ADDING)
}


def assert_refused(model, method: str) -> None:
    """Attaching raises one sentence and leaves no hook."""
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    with (
        pytest.raises(
            (BudgetError, UnsupportedModelError),
            match="linear attention|vision encoder|keys and values|several states",
        ) as caught,
        attach(model, (METHODS | FIELD)[method]),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert hooks == [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
