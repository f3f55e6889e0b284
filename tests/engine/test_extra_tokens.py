"""A method may add tokens behind the prompt: they see it, nothing sees them, and they leave again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from foveate import select
from foveate.engine import attach
from foveate.engine.arguments import cache_of
from foveate.errors import UnsupportedModelError
from foveate.pruners import PromptRows, Pruner, VisualTokens
from foveate.testing import NEVER, prompt_positions, reference_logits
from tests.models import TINY
from tests.models.build import ATTENTIVE, IMAGE, build, caches, generate, inputs
from tests.models.sizes import LAYERS

TAKING = [family for family in ATTENTIVE if not (family in TINY and TINY[family].streams)]
SEEN: list[VisualTokens] = []


@dataclass(frozen=True, kw_only=True)
class Glimpse(Pruner):
    """Keeps what its own last token attends to."""

    name: ClassVar[str] = "glimpse"
    paper: ClassVar[str] = "test"
    summary: ClassVar[str] = "test"
    number: int = 2
    cuts: tuple[int, ...] = (4,)

    def layers(self, depth: int) -> tuple[int, ...]:
        return self.cuts

    def extra_tokens(self, model) -> Tensor | None:
        return torch.linspace(-1, 1, self.number * 64).view(self.number, 64) if self.number else None

    def attention_rows(self, layer: int, rows: PromptRows) -> Tensor:
        return rows.extra if self.number else rows.last[:, None]

    def select(self, tokens: VisualTokens) -> Tensor:
        SEEN.append(tokens)
        score = torch.sin(tokens.position.float())
        return select.top_k(score, (tokens.dense * 0.3).long(), tokens.valid)


@pytest.mark.parametrize("family", TAKING)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["one image", "ragged", "ragged with text only"])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("cuts", [(4,), (2, 4)])
def test_the_answer_does_not_see_them(family, attention, layout, compact, cuts):
    model, batch = build(family, attention), inputs(family, layout)
    with_them = Glimpse(compact_cache=compact, cuts=cuts)
    with with_them(model) as pruned:
        ours = generate(model, batch, 5)
    with dataclasses.replace(with_them, number=0)(model) as plain:
        theirs = generate(model, batch, 5)
    for a, b in zip(pruned.report.stages, plain.report.stages, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.kept, b.kept, strict=True))
    for a, b in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    ours, theirs = (caches(family, cache_of(out)) for out in (ours, theirs))
    assert [x.keys.shape for x in ours] == [x.keys.shape for x in theirs]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_they_see_the_prompt_at_the_next_positions(attention):
    """Their hidden states equal those of a dense run with the same embeddings appended."""
    model, batch = build("llava", attention), inputs("llava", "one image")
    SEEN.clear()
    glimpse = Glimpse()
    with glimpse(model):
        generate(model, batch, 1)
    tokens = SEEN[-1]
    with torch.no_grad():
        features = model.model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
        embeds = model.get_input_embeddings()(batch["input_ids"])
        embeds[batch["input_ids"] == IMAGE] = torch.cat(list(features))
        embeds = torch.cat([embeds, glimpse.extra_tokens(model)[None]], 1)
        dense = build("llava", "eager").model.language_model(
            inputs_embeds=embeds, output_hidden_states=True, output_attentions=True
        )
    torch.testing.assert_close(tokens.extra, dense.hidden_states[4][:, -2:], atol=1e-4, rtol=0)
    visual = (batch["input_ids"][0] == IMAGE).nonzero()[:, 0]
    torch.testing.assert_close(tokens.attention, dense.attentions[3][:, :, -2:][..., visual], atol=1e-5, rtol=0)


def test_reference_agrees():
    model, batch = build("qwen3_vl"), inputs("qwen3_vl", "ragged")
    with Glimpse()(model) as pruned:
        out = generate(model, batch, 3)
    visual = batch["input_ids"] == IMAGE
    gone = torch.full(visual.shape, NEVER)
    for row, kept in enumerate(pruned.report.stages[0].kept):
        dropped = visual[row].clone()
        dropped[kept] = False
        gone[row, dropped] = 4
    expected = reference_logits(model, batch, out.sequences[:, :-1], gone)
    torch.testing.assert_close(torch.stack(out.logits, 1), expected, atol=1e-4, rtol=0)
    assert prompt_positions(model, batch, 0).shape[-1] == visual.shape[1]
    assert len(cache_of(out).layers) == LAYERS


@pytest.mark.parametrize("family", [family for family in TINY if TINY[family].streams])
def test_a_model_of_several_streams_takes_no_tokens_of_a_method(family):
    model = build(family)
    with pytest.raises(UnsupportedModelError, match="glimpse"):
        attach(model, Glimpse())
    with Glimpse(number=0)(model):
        pass
