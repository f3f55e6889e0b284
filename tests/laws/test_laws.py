"""The three laws for every method, family, attention backend and batch shape, all three on one pruned run."""

from __future__ import annotations

import functools

import pytest

from foveate.testing import Law, check_laws, dense_run
from foveate.testing.laws import NOTHING
from tests.laws.methods import METHODS, REFUSED, assert_refused
from tests.tiny_models import BUILDERS, LAYOUTS, RELATIVES, WITH_VIDEOS, build, inputs, single

STEPS = 4
# the third law is worth its time where samples differ
SHAPES = {
    "one image": False,
    "two images": False,
    "no image": False,
    "ragged": True,
    "ragged with text only": True,
    "video": True,
}
CASES = [
    (family, attention, layout)
    for family in BUILDERS
    for attention in ("sdpa", "eager")
    for layout in SHAPES
    if layout != "video" or family in WITH_VIDEOS
    if family not in RELATIVES
    or (attention, layout) in (("sdpa", "ragged"), ("sdpa", "video"), ("eager", "one image"))
]


@functools.lru_cache(maxsize=4)
def prepared(family: str, attention: str, layout: str):
    """Inputs, each sample alone, and the dense run: the same for every method, and methods come one after another."""
    batch = inputs(family, layout)
    alone = [single(family, layout, row) for row in range(len(LAYOUTS[layout]))] if SHAPES[layout] else []
    return batch, alone, dense_run(build(family, attention), batch, STEPS)


def laws(family: str, attention: str, layout: str, method: str) -> dict[str, Law]:
    batch, alone, dense = prepared(family, attention, layout)
    model = build(family, attention)
    results = check_laws(model, batch, METHODS[method], steps=STEPS, samples=alone, dense=dense)
    return {law.name: law for law in results}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("family", "attention", "layout"), CASES, ids=map("-".join, CASES))
def test_laws(family, attention, layout, method):
    if (family, method) in REFUSED:
        return assert_refused(build(family, attention), method)
    keep_all, masked, alone = laws(family, attention, layout, method).values()
    keep_all.require()
    if layout != "no image" or masked.reason != NOTHING:
        masked.require()
    if SHAPES[layout]:
        alone.require()
