"""The vision encoder runs once for all arms of a batch, and no answer changes by it."""

import pytest
import torch

from foveate.families import family_of
from foveate.measure.eval import shared_vision as module
from foveate.measure.eval.batch import Batch, Way
from foveate.measure.eval.shared_vision import SharedVision
from foveate.measure.eval.suites import load_suite
from foveate.pruners import METHODS
from foveate.pruners.base import depth_of
from foveate.pruners.spec import build
from tests.models.build import LAYOUTS, SEEING, inputs
from tests.models.build import build as build_model

WAY = Way(max_new_tokens=3, score_tokens=2, which=True)
IMAGES = [name for name in METHODS if name not in ("evs", "vidcom2")]


@pytest.fixture
def questions(words_suite):
    return load_suite("words", 2, 0)


def counted(model, monkeypatch):
    """How often each block of the vision encoder computes."""
    blocks = family_of(model).vision_blocks(model)
    calls = [0] * len(blocks)
    for number, block in enumerate(blocks):

        def forward(*args, number=number, whole=block.forward, **kwargs):
            calls[number] += 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(block, "forward", forward)
    return calls


@pytest.mark.parametrize("name", IMAGES)
def test_answers_are_those_of_an_encoder_that_runs_for_each_arm(loaded, questions, name):
    pruner = build(name, {"keep": 0.5} if "keep" in METHODS[name].__dataclass_fields__ else {})
    if not set(pruner.resolved(loaded.model.config).layers(depth_of(loaded.model.config))):
        pytest.skip("cuts behind the last layer of so small a model")
    shared = Batch(loaded, questions, WAY)
    dense = [answer.tokens for answer in shared.answer(None)]
    for _ in range(2):
        assert shared.answer(pruner) == Batch(loaded, questions, WAY, dense).answer(pruner)


def test_blocks_compute_once_but_where_attention_is_read(loaded, questions, monkeypatch):
    calls = counted(loaded.model, monkeypatch)
    batch, read = Batch(loaded, questions, Way(max_new_tokens=1)), build("fastervlm", {"keep": 0.5})
    batch.answer(None)
    assert calls == [1] * len(calls)
    batch.answer(build("divprune", {"keep": 0.5}))
    assert calls == [1] * len(calls)
    batch.answer(read)
    heard = read.resolved(loaded.model.config).vision_attention(len(calls))
    assert calls == [1 + (number in heard) for number in range(len(calls))]
    batch.answer(None, 0.5)  # a smaller image is another one
    assert calls == [2 + (number in heard) for number in range(len(calls))]


def test_other_images_are_computed(loaded, words_suite, monkeypatch):
    first, second = ([one] for one in load_suite("words", 2, 0))
    vision = SharedVision(loaded.model)
    alone = Batch(loaded, second, WAY).answer(None)
    with vision.sharing():
        Batch(loaded, first, WAY).answer(None)
    batch = Batch(loaded, second, WAY)
    batch._vision = vision
    assert batch.answer(None) == alone


def test_too_many_images_are_not_held(loaded, questions, monkeypatch):
    calls = counted(loaded.model, monkeypatch)
    monkeypatch.setattr(module, "LIMIT", -1)
    batch = Batch(loaded, questions, Way(max_new_tokens=1))
    batch.answer(None)
    batch.answer(None)
    assert calls == [2] * len(calls)


def test_the_model_is_left_as_it_was(loaded):
    blocks = family_of(loaded.model).vision_blocks(loaded.model)
    blocks[0].forward = own = lambda *args: args  # as accelerate does
    try:
        with SharedVision(loaded.model).sharing():
            assert blocks[0].forward is not own
        assert blocks[0].forward is own
        assert "forward" not in vars(blocks[1])
    finally:
        del blocks[0].forward


@torch.inference_mode()
@pytest.mark.parametrize("family", SEEING)
def test_every_family_computes_the_same_again(family):
    model, batch = build_model(family), inputs(family, next(iter(LAYOUTS)))
    vision, plain = SharedVision(model), model(**batch).logits
    for _ in range(3):
        with vision.sharing():
            assert torch.equal(model(**batch).logits, plain)
    assert vision._calls
