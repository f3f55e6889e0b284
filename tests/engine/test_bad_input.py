"""Bad input gives one clear error or a defined result, and the model answers afterwards exactly as before."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

import foveate
from foveate import FastV, GreedyPrune, Random
from foveate.engine.arguments import cache_of, with_cache
from foveate.errors import AlreadyAttachedError, BudgetError, UnsupportedCacheError, UnsupportedModelError
from foveate.families import Family
from tests.laws.methods import Ladder
from tests.models.build import ATTENTIVE, build, build_anew, feed_forward, generate, inputs
from tests.threads import at_once

ORIGINAL = AttentionInterface.get_interface


@pytest.fixture(params=ATTENTIVE)
def model(request):
    return build(request.param)


@pytest.fixture
def batch(model):
    return inputs(builder_of(model), "ragged")


def builder_of(model):
    return next(family for family in ATTENTIVE if build(family) is model)


def hook_ids(model):
    return [[*module._forward_pre_hooks, *module._forward_hooks] for module in model.modules()]


@pytest.fixture(autouse=True)
def untouched(model, batch):
    """Whatever a test does: no hook stays, nothing global is patched, and the answers are the same bits."""
    before = generate(model, batch, 3)
    hooks = hook_ids(model)  # transformers has some of its own
    yield
    assert hook_ids(model) == hooks
    assert AttentionInterface.get_interface is ORIGINAL
    after = generate(model, batch, 3)
    assert torch.equal(after.sequences, before.sequences)
    assert all(torch.equal(a, b) for a, b in zip(after.logits, before.logits, strict=True))


def test_stage_beyond_the_model(model):
    with pytest.raises(BudgetError, match="6 decoder layers"):
        foveate.attach(model, Random(keep=0.5, layer=6))


@pytest.mark.parametrize("cuts", [(3, 1), (2, 2), (-1, 2), (2, 6)])
def test_stages_that_make_no_sense(model, cuts):
    with pytest.raises(BudgetError, match="ascending"):
        foveate.attach(model, Ladder(cuts=cuts))


@pytest.mark.parametrize(("keep", "kept"), [(1.0, "all"), (10**6, "all"), (0.001, 1), (2, 2)])
def test_extreme_budgets_are_defined(model, batch, keep, kept):
    dense = generate(model, batch, 3)
    with Random(keep=keep)(model) as pruned:
        out = generate(model, batch, 3)
    stage = pruned.report.stages[0]
    assert [len(row) for row in stage.kept] == (stage.dense if kept == "all" else [kept] * 3)
    assert torch.equal(out.sequences, dense.sequences) or kept != "all"


def test_a_stage_may_keep_nothing(model, batch):
    class Nothing(Ladder):
        def select(self, tokens):
            return torch.zeros_like(tokens.valid)

    with Nothing(cuts=(2, 4))(model) as pruned:
        generate(model, batch, 3)
    assert pruned.report.last_layer_tokens == 0
    assert len(pruned.report.stages) == 1  # nothing is left to choose from at the second


def test_prompt_without_image(model):
    batch = inputs(builder_of(model), "no image")
    dense = generate(model, batch, 3)
    with GreedyPrune(keep=0.2)(model) as pruned:
        out = generate(model, batch, 3)
    assert torch.equal(out.sequences, dense.sequences)
    assert pruned.report.skipped == "no visual token in the prompt"
    assert pruned.report.stages == []
    assert "nothing pruned" in str(pruned.report)
    assert len(pruned.report.prefills) == 1


def test_report_before_any_run(model):
    with GreedyPrune()(model) as pruned:
        assert pruned.report.prefills == ()
        assert "not run" in str(pruned.report)
        with pytest.raises(AttributeError, match="has not run"):
            pruned.report.stages  # noqa: B018


def test_second_attach(model, batch):
    with (
        Random()(model),
        pytest.raises(AlreadyAttachedError, match=r"Random\(.*detach it first"),
    ):
        foveate.attach(model, FastV())
    foveate.attach(model, FastV()).detach()  # the first has left


def test_detach_twice_and_report_after_detach(model, batch):
    handle = foveate.attach(model, Random(keep=0.3))
    generate(model, batch, 1)
    handle.detach()
    handle.detach()
    assert handle.report.stages[0].dense


def test_not_a_pruner(model):
    with pytest.raises(TypeError, match="needs a pruner"):
        foveate.attach(model, "greedyprune")


@pytest.mark.parametrize("where", [0, 3])
def test_exception_inside_generate(model, batch, where):
    def fail(*_):
        raise ZeroDivisionError

    handle = feed_forward(model, where).register_forward_hook(fail)
    try:
        with pytest.raises(ZeroDivisionError), FastV(keep=0.3, layer=where + 1)(model):
            generate(model, batch, 3)
    finally:
        handle.remove()


def test_exception_in_a_method_and_then_a_good_run(model, batch):
    class Faulty(Ladder):
        def select(self, tokens):
            if tokens.layer == self.cuts[1]:
                raise ZeroDivisionError
            return super().select(tokens)

    with pytest.raises(ZeroDivisionError), Faulty(cuts=(1, 3, 4))(model):
        generate(model, batch, 3)
    handle = foveate.attach(model, FastV(keep=0.3))
    with pytest.raises(ValueError):  # more images than placeholders
        generate(model, {**batch, "input_ids": batch["input_ids"].clamp(max=80)}, 3)
    first = generate(model, batch, 3)
    assert torch.equal(generate(model, batch, 3).sequences, first.sequences)
    handle.detach()


@pytest.mark.parametrize("answer", [lambda valid: valid.float(), lambda valid: valid[:, :-1], lambda valid: valid[:1]])
def test_a_method_that_returns_something_else(model, batch, answer):
    class Wrong(Ladder):
        def select(self, tokens):
            return answer(tokens.valid)

    with pytest.raises(TypeError, match="bool mask of shape"), Wrong(cuts=(1, 3, 4))(model):
        generate(model, batch, 3)


def test_pruned_cache_outside_its_block(model, batch):
    with Random(keep=0.3, layer=2)(model):
        out = generate(model, batch, 2)
    with pytest.raises(UnsupportedCacheError, match="inside one"), torch.no_grad():
        model(input_ids=out.sequences[:, -1:], **with_cache(model, cache_of(out)))


def test_unknown_family(model):
    class Other(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config

    with pytest.raises(UnsupportedModelError, match="no config.model_type"):
        foveate.attach(torch.nn.Linear(1, 1), Random())
    config = type("Config", (), {"model_type": "elephant"})()
    with pytest.raises(UnsupportedModelError, match="'elephant' is not supported.*lacks a decoder.*image_token_id"):
        foveate.attach(Other(config), Random())
    with pytest.raises(UnsupportedModelError, match=r"text_model|lacks|nobody has tested"):
        foveate.attach(model.get_decoder(), Random())


def test_known_parts_of_an_unlisted_family_can_be_tried(batch):
    model = build("llava")
    batch = inputs("llava", "ragged")
    model.config.model_type, before = "elephant", model.config.model_type
    try:
        with pytest.raises(UnsupportedModelError, match="nobody has tested it"):
            foveate.attach(model, Random())
        with foveate.attach(model, Random(keep=0.3), family=Family("elephant", "Elephant", "")) as handle:
            generate(model, batch, 2)
        assert handle.report.last_layer_tokens < 0.4
    finally:
        model.config.model_type = before


def test_two_threads_on_one_model(model):
    family = builder_of(model)
    layouts = ["one image", "two images", "ragged", "no image"]
    pruner = FastV(keep=0.3)
    alone = {}
    for layout in layouts:
        with pruner(model) as pruned:
            alone[layout] = generate(model, inputs(family, layout), 4)
    with pruner(model) as pruned:

        def work(layout):
            return [generate(model, inputs(family, layout), 4) for _ in range(3)][-1]

        together = at_once(work, layouts)
    assert len(pruned.report.prefills) == 3 * len(layouts)
    for layout in layouts:
        assert all(torch.equal(a, b) for a, b in zip(alone[layout].logits, together[layout].logits, strict=True))


def test_a_dropped_model_is_freed(model):
    fresh = build_anew(builder_of(model), "sdpa")
    foveate.attach(fresh, Random())  # never detached
    gone = weakref.ref(fresh)
    del fresh
    gc.collect()
    assert gone() is None
