"""Llama 4: queries that are scaled by their place, tiles whose order the separators tell."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from foveate.families import FAMILIES, Grid, Run
from foveate.testing import check_laws
from tests.laws.methods import Ladder
from tests.models import TINY
from tests.models.build import inputs, make
from tests.models.images import AROUND, IMAGE, LINE, VISION_START, WHOLE

pytestmark = pytest.mark.skipif("llama4" not in TINY, reason="this transformers cannot run Llama 4")


def steep(attention: str = "sdpa"):
    """A model whose layers without rotary positions scale queries anew every fourth token, as 8192nd in real ones."""
    model, config = TINY["llama4"].make()
    config.text_config.floor_scale, config.text_config.attn_scale = 4, 1.0
    return make(model, config, attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cuts", [(0, 2, 4), (1, 3, 5)])
def test_queries_are_scaled_for_their_own_places(attention, cuts):
    for law in check_laws(steep(attention), inputs("llama4", "one image"), Ladder(cuts=cuts))[:2]:
        law.require()


def test_without_that_the_laws_break(monkeypatch):
    monkeypatch.setattr(type(FAMILIES["llama4"]), "scaled_rows", lambda self, attention: None)
    masked = check_laws(steep(), inputs("llama4", "one image"), Ladder(cuts=(1, 3, 5)))[1]
    assert masked.holds is False


def test_chunks_are_shorter_than_the_prompts():
    """Else the laws would run without them."""
    _, config = TINY["llama4"].make()
    assert config.text_config.layer_types.count("chunked_attention") == 4
    assert config.text_config.attention_chunk_size < inputs("llama4", "one image")["input_ids"].shape[1] // 2


def placed(ids: list[int], lengths: int = 16):
    """Regions of the grids of a prompt of these ids, in which 0 stands for a tile."""
    words, runs = [], []
    for word in ids:
        if word == 0:
            runs.append(Run(0, len(words), lengths, IMAGE, words[-1]))
        words += [IMAGE] * lengths if word == 0 else [word]
    config = TINY["llama4"].make()[1]
    return FAMILIES["llama4"].image_grids(config, {"input_ids": torch.tensor([words])}, runs)


def test_rows_of_tiles_are_told_by_their_separators():
    """As its processor writes them: `LINE` between the tiles of a row, `AROUND` behind each row."""
    four = [VISION_START, 0, LINE, 0, AROUND, 0, LINE, 0, AROUND, WHOLE, 0]
    (image,) = placed(four)
    assert [grid.region for grid in image] == [
        (0, 0, 0.5, 0.5),
        (0.5, 0, 1, 0.5),
        (0, 0.5, 0.5, 1),
        (0.5, 0.5, 1, 1),
        (0, 0, 1, 1),
    ]
    column, single = placed([VISION_START, 0, AROUND, 0, AROUND, WHOLE, 0, 5, VISION_START, WHOLE, 0])
    assert [grid.region for grid in column] == [(0, 0, 1, 0.5), (0, 0.5, 1, 1), (0, 0, 1, 1)]
    assert single == (Grid(4, 4),)
    assert placed(four, 9) is None


def test_tiles_in_no_raster_are_parts_of_unknown_place():
    (image,) = placed([VISION_START, 0, LINE, 0, AROUND, 0, AROUND, WHOLE, 0])
    assert [grid.region for grid in image] == [None, None, None, (0, 0, 1, 1)]


def test_without_ids_nothing_is_guessed():
    runs = [dataclasses.replace(run, before=None) for run in (Run(0, 1, 16), Run(0, 19, 16))]
    assert FAMILIES["llama4"].image_grids(TINY["llama4"].make()[1], {}, runs) is None
