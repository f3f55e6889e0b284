"""Every family in every way does what `tested.json` says: works, is refused with that sentence, not applicable."""

from __future__ import annotations

import os

import pytest
import transformers

from foveate.families import FAMILIES
from foveate.families.tested import WORKS, recorded, release
from tests.models.build import BUILDERS
from tests.ways.ways import families, load_ways, outcome

pytestmark = [
    pytest.mark.oldest,
    # torch's and transformers' own, when flex attention runs eagerly
    pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without"),
]

DATA = recorded()
WAYS = load_ways()
THIS = release(transformers.__version__)
# of a release that was not recorded, what the one before it did is expected
COLUMN = max((version for version in DATA if release(version) <= THIS), key=release, default=min(DATA, key=release))
NEWEST = max(DATA, key=release)
HERE = [name for name, way in WAYS.items() if way.oldest or COLUMN == NEWEST]


# Compiling takes most of the time of all ways: these stand for the others; FOVEATE_ALL_WAYS=1 takes every one.
COMPILED = {"llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "qwen3_5", "idefics3", "pixtral", "glm4v", "gemma4_e2b"}


@pytest.mark.parametrize("way", HERE)
@pytest.mark.parametrize("family", families())
def test_does_what_is_said(family, way):
    if "compiled" in way and family not in COMPILED and not os.environ.get("FOVEATE_ALL_WAYS"):
        pytest.skip("another decoder is compiled for this one")
    said = DATA[COLUMN]["families"].get(family, {}).get(WAYS[way].table, {}).get(way)
    assert said is not None, "a blank cell: run `python -m tests.ways.record`"
    assert outcome(family, way) == said


def test_every_family_is_there():
    assert {name for run in DATA.values() for name in run["families"]} >= set(FAMILIES)
    # whose forward raises in that release, also without a pruner
    assert set(FAMILIES) - set(DATA[NEWEST]["families"]) <= {"llama4"}
    assert set(DATA[COLUMN]["families"]) == set(BUILDERS)


@pytest.mark.parametrize("version", DATA)
def test_no_cell_is_blank_left_over_or_odd(version):
    expected = {name: way.table for name, way in WAYS.items() if way.oldest or version == NEWEST}
    for family, tables in DATA[version]["families"].items():
        assert {name: table for table, cells in tables.items() for name in cells} == expected, family
        for cell in (cell for cells in tables.values() for cell in cells.values()):
            assert cell == WORKS or cell.startswith(("refused: ", "not applicable: "))
