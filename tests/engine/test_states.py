"""Decoders with linear attention beside attention: what was removed is in no later state; the rest raises."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache

from foveate import BTP, FastV, PyramidDrop, Random
from foveate.engine import attach, attachment, layer_hooks
from foveate.engine import layer_inputs as state_inputs
from foveate.engine.arguments import cache_of, with_cache
from foveate.engine.cache import has_state
from foveate.errors import BudgetError, UnsupportedCacheError, UnsupportedModelError
from foveate.learn.errors import refuse_states
from tests.laws import test_laws
from tests.laws.methods import METHODS, Ladder
from tests.models.build import WITH_STATES, build, generate, inputs

pytestmark = pytest.mark.skipif(not WITH_STATES, reason="this transformers has no cache layers with a state")
FAMILY = "qwen3_5"  # linear, full, linear, full, full, linear


@pytest.mark.parametrize("method", [FastV(keep=0.3), BTP(stages=[(2, 0.6, 0.5), (5, 0.3, 0.5)])])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_of_the_layers_that_have_them(method, attention, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", method)
    test_laws.test_laws(FAMILY, attention, "ragged", "mine")


@pytest.mark.parametrize(
    ("method", "layers"), [(FastV(keep=0.3, layer=3), "3"), (PyramidDrop(keep=0.3), "1, 3"), (METHODS["btp"], "1, 3")]
)
def test_rows_of_other_layers_are_refused(method, layers):
    says = f"layers before {layers} have none .*can lie before 2, 4, 5$"
    with pytest.raises(BudgetError, match=says):
        attach(build(FAMILY), method)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_states_have_seen_what_was_there_and_keys_are_short(layer):
    model, batch = build(FAMILY), inputs(FAMILY, "one image")
    dense = generate(model, batch, 1)
    with Random(keep=0.25, layer=layer)(model) as pruned:
        out = generate(model, batch, 1)
    report = pruned.report
    prompt, kept = batch["input_ids"].shape[1], len(report.stages[0].kept[0])
    short = prompt - report.stages[0].dense[0] + kept
    for number, (ours, theirs) in enumerate(zip(cache_of(out).layers, cache_of(dense).layers, strict=True)):
        if number in (0, 2, 5):
            same = torch.equal(ours.recurrent_states[0], theirs.recurrent_states[0])
            assert same == (number < layer)
            assert ours.recurrent_states[0].shape == theirs.recurrent_states[0].shape
        else:
            assert ours.keys.shape[-2] == (prompt if number < layer else short)
    with_keys = [number for number in (1, 3, 4) if number < layer]
    share = kept / report.stages[0].dense[0]
    assert report.kv_share == pytest.approx((len(with_keys) + (3 - len(with_keys)) * share) / 3)
    assert report.flops_dense is None


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("family", WITH_STATES)
def test_a_second_turn(family, compact):
    model, batch = build(family), inputs(family, "one image")
    with Ladder(compact_cache=compact)(model):
        first = generate(model, batch, 3)
        more = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], 1)
        mask = torch.ones_like(more)
        second = generate(model, {"input_ids": more, "attention_mask": mask}, 3, **with_cache(model, cache_of(first)))
        if compact:
            return
        whole = {**batch, "input_ids": more, "attention_mask": mask}
        if "mm_token_type_ids" in batch:
            longer = (0, more.shape[1] - batch["input_ids"].shape[1])
            whole["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], longer)
        whole = generate(model, whole, 3)
    for ours, theirs in zip(second.logits, whole.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_later_turn_whose_samples_keep_different_numbers_is_refused():
    """Padding would come behind a state that is not zero, and the state would fade."""
    model = build(FAMILY)
    words = torch.tensor([[5, 6, 7], [8, 9, 3]])
    batch = inputs(FAMILY, [[3, None, 2], [3, None, 2]])  # of two sizes
    size = batch["input_ids"].shape[1] + 3

    def turns(keep):
        with Random(keep=keep)(model), torch.no_grad():
            cache = cache_of(model(input_ids=words, use_cache=True))
            mask = torch.ones(2, size, dtype=torch.long)
            mask[:, 3:] = batch["attention_mask"]
            positions = torch.arange(3, size).expand(4, 2, -1)
            model(**{**batch, "attention_mask": mask, "position_ids": positions}, **with_cache(model, cache))

    with pytest.raises(UnsupportedCacheError, match="in a later turn, samples of a batch that keep different numbers"):
        turns(0.3)


def test_assisted_generation_is_refused_as_without_a_pruner():
    model, batch = build(FAMILY), inputs(FAMILY, "one image")
    with pytest.raises((ValueError, RuntimeError)) as dense:
        generate(model, batch, 3, prompt_lookup_num_tokens=2)
    with pytest.raises(type(dense.value)) as pruned, Random(keep=0.3)(model):
        generate(model, batch, 3, prompt_lookup_num_tokens=2)
    assert str(pruned.value) == str(dense.value)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_follows_the_beams(beams):
    """Without a cache every step runs the whole of each beam."""
    model, batch = build(FAMILY), inputs(FAMILY, "ragged")
    with Random(keep=0.3)(model):
        ours, theirs = (generate(model, batch, 5, num_beams=beams, use_cache=use).sequences for use in (True, False))
    assert torch.equal(ours, theirs)


def test_training_on_the_cache_is_refused():
    with pytest.raises(UnsupportedModelError, match="cannot be trained with its cache"):
        refuse_states(build(FAMILY))
    refuse_states(build("qwen3_vl"))


def the_mask_stays(monkeypatch):
    """Padding goes into the states."""
    monkeypatch.setattr(layer_hooks, "pick_state_inputs", lambda kwargs, *_: {**kwargs, "attention_mask": None})


def nothing_is_refused(monkeypatch):
    """Tokens of the method's own stay in the states."""
    monkeypatch.setattr(attachment, "check_method", lambda *_: None)


@pytest.mark.parametrize(
    ("broken", "method"),
    [(the_mask_stays, "ladder"), (the_mask_stays, "random"), (nothing_is_refused, "glimpseprune")],
)
@pytest.mark.parametrize("family", [family for family in (FAMILY, "lfm2_vl") if family in WITH_STATES])
def test_broken_on_purpose(family, broken, method, monkeypatch):
    def check():
        test_laws.test_laws(family, "sdpa", "ragged", method)

    check()
    broken(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()


def test_a_mask_of_another_form_is_refused():
    with pytest.raises(UnsupportedModelError, match="a mask of another form"):
        state_inputs._pick_mask(torch.ones(1, 1, 3, 3), None, torch.ones(1, 3, 2))


def test_masks_of_another_form_are_refused_before_any_layer_runs():
    model, batch = build(FAMILY), inputs(FAMILY, "one image")
    length = batch["input_ids"].shape[1]
    square = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    masks = {"full_attention": square, "linear_attention": square}
    batch["position_ids"] = torch.arange(length).expand(3, 1, -1)  # the model would count them by a flat mask
    cache = DynamicCache(config=model.config.get_text_config())
    with attach(model, Random(keep=0.3, layer=3)), torch.no_grad():
        with pytest.raises(UnsupportedModelError, match="a mask of another form"):
            model(**{**batch, "attention_mask": masks}, **with_cache(model, cache))
        assert cache.get_seq_length() == 0
        assert not any(has_state(layer) for layer in cache.layers if hasattr(layer, "has_previous_state"))
        model(**{**batch, "attention_mask": {**masks, "linear_attention": None}}, **with_cache(model, cache))
