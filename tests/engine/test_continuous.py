"""Continuous batching is refused at the call, in every form of it; without a pruner at work it goes on."""

from __future__ import annotations

import copy
import logging
import threading

import pytest
import torch
import transformers
from packaging.version import Version
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import foveate
from foveate import FastV, Random
from foveate.engine.compat import ENTRIES
from foveate.errors import UnsupportedModelError
from tests.models.build import build, generate, inputs

pytestmark = pytest.mark.oldest
PROMPTS = [[4, 9, 3, 5], [6, 2]]
RUNS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="older releases fail at this model, also unpruned"
)
ASKS = {
    "generate_batch": lambda model: model.generate_batch(PROMPTS, max_new_tokens=2),
    "no prompt at all": lambda model: model.generate_batch([]),
    "continuous_batching_context_manager": lambda model: model.continuous_batching_context_manager(),
    "init_continuous_batching": lambda model: model.init_continuous_batching(),
    "generate": lambda model: model.generate(torch.tensor(PROMPTS[:1]), cache_implementation="paged"),
}


def answers(model: torch.nn.Module) -> list[list[int]]:
    """Three words for each prompt, by continuous batching in little memory."""
    config = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
    found = model.generate_batch(PROMPTS, continuous_batching_config=config, max_new_tokens=3, progress_bar=False)
    assert [answer.error for answer in found.values()] == [None] * len(PROMPTS)
    return [answer.generated_tokens for answer in found.values()]


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_refused_at_the_call(family, ask, caplog):
    model, threads = build(family), threading.active_count()
    with (
        FastV(keep=0.3)(model),
        caplog.at_level(logging.ERROR),
        pytest.raises(UnsupportedModelError, match="continuous batching"),
    ):
        ASKS[ask](model)
    assert threading.active_count() == threads
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not set(ENTRIES) & set(model.__dict__)


def test_the_release_has_no_other_way_in():
    """A new method of transformers' own would be refused late; this is where to learn of it."""
    from transformers.generation.continuous_batching import continuous_api

    public = {name for name in vars(continuous_api.ContinuousMixin) if not name.startswith("_")}
    assert public - {"generation_config", "destroy_cached_continuous_batching_manager"} == set(ENTRIES)


def test_refused_through_a_compiled_model():
    held = torch.compile(build("llava"), backend="eager")
    with Random(keep=0.3)(held), pytest.raises(UnsupportedModelError, match="continuous batching"):
        held.generate_batch(PROMPTS)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # PEFT's own
def test_refused_through_an_adapted_model():
    peft = pytest.importorskip("peft")
    held = peft.get_peft_model(copy.deepcopy(build("llava")), peft.LoraConfig(target_modules=["q_proj"]))
    with Random(keep=0.3)(held), pytest.raises(UnsupportedModelError, match="continuous batching"):
        held.generate_batch(PROMPTS)


@RUNS
def test_dense_before_paused_and_behind():
    model, _ = foveate.tiny.load()
    dense = answers(model)
    assert all(len(words) for words in dense)
    with Random(keep=0.3)(model) as pruned:
        with pytest.raises(UnsupportedModelError, match="generate_batch"):
            answers(model)
        with pruned.paused():
            assert answers(model) == dense
        with pytest.raises(UnsupportedModelError, match="generate_batch"):
            answers(model)
    assert answers(model) == dense


def test_pruning_goes_on_after_a_refusal():
    model, batch = build("llava"), inputs("llava", "one image")
    with Random(keep=0.3)(model):
        expected = generate(model, batch, 3)
    with Random(keep=0.3)(model) as pruned:
        with pytest.raises(UnsupportedModelError):
            model.generate_batch(PROMPTS)
        found = generate(model, batch, 3)
    assert torch.equal(found.sequences, expected.sequences)
    assert len(pruned.report.prefills) == 1


def test_what_was_put_over_it_later_stays_and_is_dense_again():
    model = build("llava")
    handle = foveate.attach(model, Random(keep=0.3))
    inner = model.generate_batch
    model.generate_batch = lambda *args, **kwargs: inner(*args, **kwargs)
    try:
        handle.detach()
        assert model.generate_batch([]) == {}
    finally:
        del model.__dict__["generate_batch"]


def test_a_method_of_the_models_own_comes_back():
    model = build("llava")
    model.generate_batch = mine = lambda inputs: "mine"
    try:
        with Random(keep=0.3)(model), pytest.raises(UnsupportedModelError):
            model.generate_batch([])
        assert model.__dict__["generate_batch"] is mine
    finally:
        del model.__dict__["generate_batch"]
