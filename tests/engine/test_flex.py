"""Flex attention: masks that are functions. Run eagerly, as compiling it for a CPU takes minutes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from foveate.engine import attach
from foveate.families import FAMILIES
from tests.engine import window_models
from tests.laws.methods import METHODS
from tests.models.build import build, generate, inputs

CASES = [
    ("llava", "one image", "fastv late"),
    ("llava", "ragged", "ladder"),
    ("llava", "ragged with text only", "glimpseprune"),
    ("internvl", "ragged", "btp logits compacted"),
    ("gemma3", "one image", "glimpseprune"),
    ("gemma3", "ragged", "ladder from 0 compacted"),
    ("mistral", "ragged", "ladder"),
]


pytestmark = [  # torch's and transformers' own
    pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without"),
]


@pytest.fixture(autouse=True)
def uncompiled():
    with torch.compiler.set_stance("force_eager"):
        yield


def tiny(name, attention):
    """Model, family and a function that makes inputs."""
    if name in window_models.BUILDERS and name != "qwen2_5_vl":
        return window_models.build(name, attention), window_models.FAMILY[name], window_models.window_inputs
    return build(name, attention), FAMILIES[name], inputs


@pytest.mark.parametrize(("name", "layout", "method"), CASES)
def test_flex_equals_sdpa(name, layout, method):
    outputs = []
    for attention in ("sdpa", "flex_attention"):
        model, family, make = tiny(name, attention)
        with attach(model, METHODS[method], family=family) as pruned:
            outputs.append(generate(model, make(name, layout), 4))
        assert pruned.report.last_layer_tokens < 1
    for ours, theirs in zip(outputs[1].logits, outputs[0].logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "layout"), [("llava", "ragged"), ("gemma3", "one image")])
def test_keep_all_is_bit_identical(name, layout):
    model, family, make = tiny(name, "flex_attention")
    batch = make(name, layout)
    dense = generate(model, batch, 3)
    for method in ("ladder", "glimpseprune"):
        with attach(model, dataclasses.replace(METHODS[method], keep=1.0), family=family, _always_gather=True):
            pruned = generate(model, batch, 3)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(pruned.logits, dense.logits, strict=True))
