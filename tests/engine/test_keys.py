"""What a method is shown of the layer before its cut: keys, values, hidden states; and a method that only scores."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from foveate.engine import attach
from foveate.engine.attention_rows import attention_tap
from foveate.families import family_of
from foveate.pruners import ScorePruner
from tests.laws.methods import Telling
from tests.models.build import build, inputs, visual


@dataclass(frozen=True, kw_only=True)
class Seeing(Telling):
    seen: list = field(default_factory=list)

    def score(self, tokens):
        self.seen.append(tokens)
        return super().score(tokens)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "qwen3_vl"])
@pytest.mark.parametrize("layer", [1, 3])
def test_they_are_those_of_the_dense_model(family, layer):
    model, batch, found = build(family), inputs(family, "ragged"), {}
    parts = family_of(model).parts(model)

    def listen(query, key, value, mask, options):
        found["keys"], found["values"] = key, value

    def enters(module, args, kwargs):
        found["previous"] = args[0] if args else kwargs["hidden_states"]

    handle = parts.layers[layer - 1].register_forward_pre_hook(enters, with_kwargs=True)
    with attention_tap(parts.attention[layer - 1], listen), torch.no_grad():
        model(**batch)
    handle.remove()
    method = Seeing(layer=layer)
    with attach(model, method), torch.no_grad():
        model(**batch)
    (tokens,) = method.seen
    real, images = batch["attention_mask"].bool(), visual(batch)
    for row, valid in enumerate(tokens.valid):
        places = tokens.position[row, valid]
        assert torch.equal(tokens.keys[row][:, valid], found["keys"][row][:, places])
        assert torch.equal(tokens.values[row][:, valid], found["values"][row][:, places])
        assert torch.equal(tokens.previous[row, valid], found["previous"][row, places])
        assert not tokens.keys[row][:, ~valid].any()
        after = images[row].cumsum(-1) > 0
        text = (real[row] & ~images[row] & after).nonzero()[:, 0]
        assert torch.equal(tokens.text_keys[row][:, : len(text)], found["keys"][row][:, text])
        assert torch.equal(tokens.text_values[row][:, : len(text)], found["values"][row][:, text])
        assert not tokens.text_keys[row][:, len(text) :].any()


def test_nothing_is_shown_that_was_not_asked_for():
    @dataclass(frozen=True, kw_only=True)
    class Plain(Seeing):
        def kv(self, layer):
            return ()

        def wants_previous(self, layer):
            return False

        def score(self, tokens):
            self.seen.append(tokens)
            return tokens.features.sum(-1)

    model, method = build("llava"), Plain()
    with attach(model, method), torch.no_grad():
        model(**inputs("llava", "one image"))
    tokens = method.seen[0]
    shown = (tokens.keys, tokens.values, tokens.text_keys, tokens.text_values, tokens.previous)
    assert all(one is None for one in shown)


def test_a_score_is_all_that_a_method_needs():
    @dataclass(frozen=True, kw_only=True)
    class Brightest(ScorePruner):
        name = "brightest"
        paper = summary = "test"

        def score(self, tokens):
            return tokens.features.norm(dim=-1)

    model = build("llava")
    with attach(model, Brightest(keep=5, layer=1, per="image")) as handle, torch.no_grad():
        model(**inputs("llava", "two images"))
    assert [kept for kept, _ in handle.report.stages[0].per_image[0]] == [5, 5]
