"""GLM's videos: frames look like images in the prompt, and stand in batches without images."""

from __future__ import annotations

import pytest
import torch

from foveate import FastV, Random
from foveate.testing import hidden_from, reference_logits
from tests.families.test_grids import shown
from tests.models.build import build, generate, inputs, visual
from tests.models.images import IMAGE, SIDE, VIDEO
from tests.models.qwen3_and_glm import NEWER

FAMILIES = [family for family in NEWER if family.startswith("glm")]
ROWS = [[3, "video", 2], [9], [2, "video", 4, "video", 3]]


@pytest.mark.oldest
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["generate", "forward"])
def test_where_each_token_of_a_video_lies(family, how):
    batch = inputs(family, ROWS)
    assert not (batch["input_ids"] == VIDEO).any()
    assert batch["mm_token_type_ids"].unique().tolist() == [0, 2]
    tokens = shown(build(family), batch, how)[0]
    assert tokens.grids_known
    assert tokens.grids == ((SIDE,) * 2, (), (SIDE,) * 4)
    there = (batch["input_ids"] == IMAGE)[2].nonzero().flatten()
    assert torch.equal(tokens.position[2], there)
    assert tokens.image[2].tolist() == [0] * 32 + [1] * 32
    assert tokens.grid[2].tolist() == [number for number in range(4) for _ in range(16)]
    assert tokens.row[2].tolist() == [row for row in range(4) for _ in range(4)] * 4
    assert tokens.column[2].tolist() == [*range(4)] * 16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pruner", [Random(keep=0.3), FastV(keep=0.3)])
def test_a_pruned_video_equals_the_masked_reference(family, pruner):
    model, batch = build(family), inputs(family, ROWS)
    with pruner(model) as pruned:
        out = generate(model, batch, 3)
    gone = hidden_from(pruned.report, visual(batch))
    for step, logits in enumerate(out.logits):
        sequences = out.sequences[:, : batch["input_ids"].shape[1] + step]
        expected = reference_logits(model, batch, sequences, gone)[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_takes_no_images_beside_videos(family):
    """If this changes, GLM belongs into the laws' layout with both."""
    batch = inputs(family, [[3, "video", 2, None, 4]])
    with pytest.raises(ValueError, match="do not match"), torch.no_grad():
        build(family)(**batch)
