"""A left-padded batch, as a user runs it: `generate()` by the public names and nothing else."""

from __future__ import annotations

import pytest
import torch

from foveate import Random
from tests.models.build import BUILDERS, build, generate, inputs, single


@pytest.mark.oldest
@pytest.mark.parametrize(
    "family", [name for name in ("llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5") if name in BUILDERS]
)
def test_a_left_padded_batch_answers_as_its_samples_alone(family):
    """What went wrong, in silence, when a cache was taken for absent."""
    model = build(family)
    with Random(keep=0.3)(model):
        together = generate(model, inputs(family, "ragged"), 6)
        for row in range(3):
            alone = generate(model, single(family, "ragged", row), 6)
            assert torch.equal(alone.sequences[0, -6:], together.sequences[row, -6:])
