"""A default device of the user's own changes nothing: tensors for which foveate names no device are the host's.

With "meta" as the default, whatever was made there by mistake has no values and fails at once.
"""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.engine import attach
from tests.laws.methods import FIELD, METHODS
from tests.models.build import build, inputs


@pytest.fixture(autouse=True)
def no_default_device_stays():
    yield
    torch.set_default_device(None)


def prefill(model, batch):
    return model(**batch, use_cache=True).logits


@pytest.mark.parametrize("name", [*METHODS, *FIELD])
def test_a_default_device_changes_nothing(name):
    """On LLaVA, whose own code names its devices."""
    model, batch, method = build("llava"), inputs("llava", "ragged"), {**METHODS, **FIELD}[name]
    with torch.no_grad():
        with attach(model, method) as handle:
            before, kept = prefill(model, batch), handle.report
        torch.set_default_device("meta")
        with attach(model, method) as handle:
            after, same = prefill(model, batch), handle.report
        torch.set_default_device(None)
    assert torch.equal(before, after)
    assert kept.skipped == same.skipped
    for one, other in zip(kept.stages, same.stages, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.kept, other.kept, strict=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [("glimpseprune", {"max_keep": 0.3}), ("glimpseprune", {"max_keep": 0.5}), ("btp", {"keep": 0.5})],
)
def test_budgets_are_the_hosts(name, options):
    """`GlimpsePrune(max_keep=...)` failed with a default device, and other budgets became tensors of it."""
    torch.set_default_device("meta")
    made = foveate.make(name, **options)
    assert made == foveate.make(name, **options)
