"""OC-VTP: slots learnt without labels compete for the tokens, and each keeps the one that is most its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import select
from foveate.errors import IncompatibleWeightsError
from foveate.pruners import learned
from foveate.pruners.base import VisualTokens
from foveate.pruners.encoder import EncoderPruner
from foveate.pruners.ocvtp.modules import SlotConfig, SlotModules, slots_for
from foveate.torch_state import own_randomness

UNTRAINED = (
    "no trained slots: visual tokens are chosen by the attention that they receive in the vision encoder, a rule that "
    "only fills up in the published method"
)


@dataclass(frozen=True, kw_only=True)
class OCVTP(EncoderPruner):
    """Keep for each of k slots the visual token that attends to it most; slots were trained to rebuild all from them.

    The outputs of an early block of the vision encoder are encoded, and k slots, drawn from one learnt Gaussian,
    compete for them in slot attention. Slots may agree on a token: missing ones are then those that receive the most
    attention, mean over heads and over all queries, in the block whose output the model uses.

    `foveate.load` gives it with its weights; `foveate train ocvtp` trains them. Without weights all tokens are chosen
    as those that fill up, and the report says so.

    Source: Li, Zhao, Deng, Wang, Pajarinen, "Object-Centric Vision Token Pruning for Vision Language Models" (arXiv
    2511.20439), and the released code where the paper is silent. There slots are drawn anew for each image; here the
    draw has a seed, so that a prompt keeps the same tokens each time.

    Raises
    ------
    BudgetError
        When an option makes no sense; on attaching, when the encoder has no such block.
    IncompatibleWeightsError
        In the prefill, when the weights are for an encoder of another width.
    """

    name: ClassVar[str] = "ocvtp"
    paper: ClassVar[str] = "Li et al. 2025, arXiv 2511.20439"
    url: ClassVar[str] = "https://arxiv.org/abs/2511.20439"
    summary: ClassVar[str] = "for each of several slots, trained to rebuild the image, the token that is most its own"
    needs: ClassVar[str] = "trained weights (without: a labelled stand-in)"

    weights: SlotModules | None = dataclasses.field(default=None, repr=False)

    def notes(self, depth: int) -> tuple[str, ...]:
        return () if self.weights is not None or self.keeps_all else (f"{self.name}: {UNTRAINED}",)

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return () if self.weights is None or self.keeps_all else (self.weights.config.vision_layer,)

    def for_bench(self, model: nn.Module, vision: bool) -> EncoderPruner:
        """With weights, random ones of the published sizes where there are none."""
        made = self if self.weights is not None else dataclasses.replace(self, weights=_random(model))
        return super(OCVTP, made).for_bench(model, vision)

    def made_up_width(self, tokens: VisualTokens) -> int:
        return super().made_up_width(tokens) if self.weights is None else self.weights.config.vision_size

    def choose(self, tokens: VisualTokens, k: Tensor) -> Tensor:
        score = (tokens.received[0] + tokens.class_received[0]).nan_to_num(0, 0, 0)
        if self.weights is not None:
            score = score.masked_fill(_of_slots(self.weights, tokens, k), torch.inf)
        return select.top_k(score, k, tokens.valid)

    def save_weights(self, folder: Path) -> dict[str, Any]:
        if self.weights is None:
            return {}
        read = f"Reads block {self.weights.config.vision_layer} of the vision encoder, counted from 0."
        return learned.save(self.weights, folder, "OCVTP slots", read)

    @classmethod
    def load_weights(cls, config: dict[str, Any], name: str) -> dict[str, Any]:
        if "weights" not in config:
            return {}
        return {"weights": learned.load(config, name, lambda sizes: SlotModules(SlotConfig(**sizes)))}


@torch.no_grad()
def _of_slots(weights: SlotModules, tokens: VisualTokens, k: Tensor) -> Tensor:
    """(B, N) bool, the tokens of k (B,) slots; one sample after another, each without its padding."""
    features = tokens.vision[0]
    if features.shape[-1] != weights.config.vision_size:
        raise IncompatibleWeightsError(
            f"these weights are for a vision encoder of width {weights.config.vision_size}, the model's has "
            f"{features.shape[-1]}"
        )
    weights.to(tokens.valid.device)  # nothing happens where it is there already
    found, cells = torch.zeros_like(tokens.valid), tokens.grid >= 0  # separators have no features
    counts = zip(tokens.present.tolist(), torch.minimum(k, tokens.present).tolist(), strict=True)
    for row, (present, slots) in enumerate(counts):
        if slots:
            places = weights.places(features[row, :present], cells[row, :present], slots)
            found[row].index_fill_(0, places, True)
    return found & cells


def _random(model: Any) -> SlotModules:
    with own_randomness():
        torch.manual_seed(0)
        return SlotModules(slots_for(model)).to(model.device).eval()
