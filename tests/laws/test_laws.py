"""The three laws, all on one pruned run: every method on every family, every backend and shape with every method."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import pytest

from foveate.testing import Law, check_laws, dense_run
from foveate.testing.laws import NOTHING
from tests.laws.methods import FIELD, METHODS, REFUSED, VIDEO, assert_refused
from tests.models.build import ABSENT, BUILDERS, LAYOUTS, RELATIVES, WITH_VIDEOS, build, inputs, single

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
# Every method on every family; on these every backend and shape with every method, as each has what others have not:
# plain attention, rotary positions of several axes, deep-stack, windows and two-way images, running states
WHOLE = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "qwen3_5")
# one cut by attention, several uneven cuts, tokens that are added: on every backend and shape of every family
CORE = ("fastv", "ladder", "glimpseprune two tokens")
ONE_FRAME = ("kimi_k25",)  # whose video here is


def places(family: str) -> list[tuple[str, str]]:
    """Attention backends and shapes that the laws are tested with."""
    shapes = [layout for layout in SHAPES if layout != "video" or family in WITH_VIDEOS]
    if family not in RELATIVES:
        return [(attention, layout) for attention in ("sdpa", "eager") for layout in shapes]
    chosen = [("sdpa", "ragged"), ("sdpa", "video"), ("eager", "one image")]
    return [(attention, layout) for attention, layout in chosen if layout in shapes]


def cases() -> Iterator[tuple[str, str, str, str]]:
    """Family, backend, shape and method; ordered so that what a family needs for a shape is made once."""
    for number, family in enumerate(BUILDERS):
        there = places(family)
        with_images = [place for place in there if place[1] != "no image"]
        for place in there:
            for rank, method in enumerate(METHODS):
                # the others meet each family once, and each backend and shape by turns
                once = with_images[(number + rank) % len(with_images)] == place
                core = method in CORE and (family not in RELATIVES or place == ("sdpa", "ragged"))
                if family in WHOLE or once or core:
                    yield family, *place, method
            for rank, method in enumerate(FIELD):
                if method in VIDEO:
                    once = place == ("sdpa", "video") and family not in ONE_FRAME
                else:
                    once = family in WHOLE and with_images[(number + rank) % len(with_images)] == place
                if once:
                    yield family, *place, method


CASES = list(cases())


def test_every_pair_is_among_the_cases():
    assert {(family, method) for family, _, _, method in CASES if method in METHODS} == {
        *itertools.product(BUILDERS, METHODS)
    }
    field = {(family, method) for family, _, _, method in CASES if method in FIELD}
    assert field == {
        (family, method)
        for family, method in itertools.product(BUILDERS, FIELD)
        if (family in {*WITH_VIDEOS} - {*ONE_FRAME} if method in VIDEO else family in WHOLE)
    }
    some = {(attention, layout, method) for _, attention, layout, method in CASES}
    assert some >= {*itertools.product(("sdpa", "eager"), SHAPES, METHODS)}
    assert {*WHOLE} <= {*BUILDERS} | ABSENT


@functools.lru_cache(maxsize=4)
def prepared(family: str, attention: str, layout: str):
    """Inputs, each sample alone, and the dense run: the same for every method, and methods come one after another."""
    batch = inputs(family, layout)
    alone = [single(family, layout, row) for row in range(len(LAYOUTS[layout]))] if SHAPES[layout] else []
    return batch, alone, dense_run(build(family, attention), batch, STEPS)


def laws(family: str, attention: str, layout: str, method: str) -> dict[str, Law]:
    batch, alone, dense = prepared(family, attention, layout)
    model = build(family, attention)
    results = check_laws(model, batch, (METHODS | FIELD)[method], steps=STEPS, samples=alone, dense=dense)
    return {law.name: law for law in results}


@pytest.mark.parametrize(("family", "attention", "layout", "method"), CASES, ids=map("-".join, CASES))
def test_laws(family, attention, layout, method):
    if (family, method) in REFUSED:
        return assert_refused(build(family, attention), method)
    keep_all, masked, alone = laws(family, attention, layout, method).values()
    keep_all.require()
    if layout != "no image" or masked.reason != NOTHING:
        masked.require()
    if SHAPES[layout]:
        alone.require()
