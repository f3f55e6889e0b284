"""A model with adapters is pruned like one without."""

from __future__ import annotations

import copy

import pytest
import torch

import foveate
from tests.laws.methods import METHODS
from tests.models.build import build, generate, inputs

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # PEFT's own


@pytest.mark.parametrize("method", ["fastv", "glimpseprune"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_peft_model_is_pruned(family, method):
    model, batch = copy.deepcopy(build(family)), inputs(family, "ragged")
    with METHODS[method](model) as pruned:
        expected = generate(model, batch, 2)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=True))
    with foveate.attach(wrapped, METHODS[method]) as handle, torch.no_grad():
        found = generate(wrapped, batch, 2)
    assert [[row.tolist() for row in stage.kept] for stage in handle.report.stages] == [
        [row.tolist() for row in stage.kept] for stage in pruned.report.stages
    ]
    torch.testing.assert_close(found.logits[-1], expected.logits[-1], atol=1e-5, rtol=0)
