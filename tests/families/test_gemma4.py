"""Gemma 4: grids where the patches' places are given, one row with a note where not, and what is refused."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.errors import UnsupportedModelError
from foveate.families import FAMILIES
from foveate.testing import check_laws
from tests.families.test_grids import shown
from tests.laws.methods import Ladder
from tests.tiny_models import build, inputs, make, pictures
from tests.tiny_newer import NEWER, newer

pytestmark = pytest.mark.skipif("gemma4" not in NEWER, reason="this transformers has no Gemma 4")


def small(**changes):
    model, config = newer("gemma4")
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    return make(model, type(config)(**config.to_dict()))


def test_generate_tells_no_rows_and_the_report_says_so():
    batch = inputs("gemma4", "two images")
    for how in ("generate", "beams"):
        tokens = shown(build("gemma4"), batch, how)[0]
        assert not tokens.grids_known
        assert [[grid.length for grid in row] for row in tokens.grids] == [[24, 36]] * (2 if how == "beams" else 1)
    with foveate.BTP(stages=[(1, 0.5, 0.5)])(build("gemma4")) as pruned:
        build("gemma4").generate(**batch, max_new_tokens=1)
    assert any("one row of tokens" in note for note in pruned.report.notes)


def test_the_pooler_takes_squares_row_by_row():
    """Each token is the mean of the square of patches that its row and column in the grid name."""
    (sample,), tower = pictures("gemma4", "two images"), build("gemma4").model.vision_tower
    given = inputs("gemma4", "two images")
    places = given["image_position_ids"]
    codes = torch.nn.functional.pad(places.float(), (0, 30))
    pooled, there = tower.pooler(codes, places, (places == -1).all(-1), 36)
    found = (pooled[there][:, :2] / tower.pooler.root_hidden_size).tolist()
    expected = [
        [2 * column + 0.5, 2 * row + 0.5]
        for image in sample
        for row in range(image.grids[0].height)
        for column in range(image.grids[0].width)
    ]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    grids = FAMILIES["gemma4"].image_grids(build("gemma4").config, given, [])
    assert grids == [image.grids for image in sample]


def test_with_experts():
    model = small(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32)
    assert hasattr(model.get_decoder().layers[0], "experts")
    for law in check_laws(model, inputs("gemma4", "ragged"), Ladder())[:2]:
        law.require()


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"hidden_size_per_layer_input": 8}, "per-layer embeddings"), ({"num_kv_shared_layers": 3}, "keys and values")],
)
def test_the_smaller_ones_are_refused(changes, says):
    with torch.device("meta"):
        cls, config = newer("gemma4")
        text = {**config.text_config.to_dict(), **changes}
        model = cls(type(config)(**{**config.to_dict(), "text_config": text}))
    with pytest.raises(UnsupportedModelError, match=says) as caught:
        foveate.attach(model, foveate.Random(keep=0.5))
    assert "\n" not in str(caught.value)


def test_vision_features_are_refused():
    with pytest.raises(UnsupportedModelError, match="averages patches by places") as caught:
        FAMILIES["gemma4"].vision_blocks(build("gemma4"))
    assert "\n" not in str(caught.value)
