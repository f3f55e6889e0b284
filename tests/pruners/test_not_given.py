"""A method that the engine does not give what it asked for says so, instead of choosing by something else."""

from __future__ import annotations

import dataclasses

import pytest

import foveate
from foveate.pruners.base import Pruner
from tests.models.build import build, generate, inputs

WANTED = [
    ("anchorprune", "text"),
    ("btp", "attention"),
    ("dart", "keys"),
    ("dart", "text_keys"),
    ("dart", "text"),
    ("fastv", "attention"),
    ("glimpseprune", "attention"),
    ("greedyprune", "attention"),
    ("ivcprune", "values"),
    ("ivcprune", "text_values"),
    ("ivcprune", "rotary"),
    ("mmtok", "text"),
    ("pyramiddrop", "attention"),
    ("sparsevlm", "attention"),
    ("sparsevlm", "rotary"),
    ("sparsevlm", "text_rotary"),
    ("v2drop", "previous"),
    ("vlmpruner", "keys"),
]


@pytest.fixture(scope="module")
def shown():
    """Each method as a model resolves it, and the tokens that it was shown, by method."""
    found = {}
    model = build("llava")
    for name in dict(WANTED):
        with pytest.MonkeyPatch.context() as patch, foveate.make(name)(model) as pruned:
            owner = type(foveate.make(name))
            select = owner.select

            def watched(self, tokens, name=name, select=select):
                found.setdefault(name, []).append((self, tokens))
                return select(self, tokens)

            patch.setattr(owner, "select", watched)
            generate(pruned.model, inputs("llava", "one image"), 1)
    return found


@pytest.mark.parametrize(("name", "what"), WANTED)
def test_what_was_asked_for_and_is_not_there_is_an_error(name, what, shown):
    for method, tokens in shown[name]:
        if getattr(tokens, what) is None:
            continue  # a stage that chooses without it
        method.select(tokens)
        with pytest.raises(RuntimeError, match="the engine must honour"):
            method.select(dataclasses.replace(tokens, **{what: None}))
        return
    pytest.fail(f"{name} was never given {what}")


def test_the_listed_methods_are_those_that_ask(shown):
    wanting = {"kv", "wants_previous", "wants_text", "wants_rotary", "attention_rows"}
    for name, owner in foveate.pruners.registry.METHODS.items():
        asks = any(getattr(owner, one, None) is not getattr(Pruner, one) for one in wanting)
        may_do_without = {"chain", "tome"}  # its methods ask; before layer 0 it compares features
        assert not asks or name in dict(WANTED) or name in may_do_without, name
