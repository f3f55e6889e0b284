"""`check_laws`: what it says of laws that hold, are broken or were not tested. Broken engines are in tests/laws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from foveate.errors import BudgetError, UnsupportedModelError
from foveate.pruners import Pruner, Random
from foveate.testing import LAWS, Law, Uneven, check_laws
from foveate.testing.laws import NO_SAMPLES, NOTHING
from tests.models.build import build, inputs, single

pytestmark = pytest.mark.oldest


@dataclass(frozen=True, kw_only=True)
class Bad(Pruner):
    """Has no budget, and chooses by what a sample shares its batch with."""

    name: ClassVar[str] = "bad"
    paper: ClassVar[str] = "test"
    summary: ClassVar[str] = "test"
    stops: bool = False

    def layers(self, depth):
        return (1,)

    def select(self, tokens):
        if self.stops:
            raise ZeroDivisionError("no token")
        return tokens.valid & (torch.arange(tokens.valid.shape[1]) % (1 + len(tokens.valid)) == 0)


def samples(layout, rows):
    return [single("llava", layout, row) for row in range(rows)]


def test_all_hold():
    model, batch = build("llava"), inputs("llava", "ragged with text only")
    laws = check_laws(model, batch, Uneven(), samples=samples("ragged with text only", 3))
    assert [law.name for law in laws] == list(LAWS)
    for law in laws:
        assert law.holds
        law.require()
    assert laws[0].difference == 0
    assert 0 < laws[1].difference < 1e-4


def test_what_was_not_tested_is_not_held():
    laws = check_laws(build("llava"), inputs("llava", "no image"), Bad())
    assert [law.holds for law in laws] == [None, None, None]
    assert [law.reason for law in laws] == ["bad has no option keep", NOTHING, NO_SAMPLES]
    for law in laws:
        with pytest.raises(AssertionError, match="was not tested"):
            law.require()


def test_a_choice_by_the_batch_is_found():
    _, masked, alone = check_laws(build("llava"), inputs("llava", "ragged"), Bad(), samples=samples("ragged", 3))
    assert masked.holds
    assert alone.holds is False
    with pytest.raises(AssertionError, match="sample 0 keeps other tokens before layer 1"):
        alone.require()


def test_a_tolerance_that_rounding_exceeds():
    masked = check_laws(build("llava"), inputs("llava", "ragged"), Random(keep=0.3), atol=1e-9)[1]
    assert masked.holds is False
    assert masked.difference < 1e-4


def test_a_run_that_stops_breaks_the_laws_that_need_it():
    keep_all, masked, alone = check_laws(
        build("llava"), inputs("llava", "ragged"), Bad(stops=True), samples=samples("ragged", 3)
    )
    assert keep_all.holds is None
    assert masked.holds is alone.holds is False
    with pytest.raises(AssertionError, match="ZeroDivisionError: no token") as found:
        masked.require()
    assert isinstance(found.value.__cause__, ZeroDivisionError)


def test_refusals_are_passed_on():
    model = build("llava")
    with pytest.raises(BudgetError):
        check_laws(model, inputs("llava", "one image"), Random(keep=0.3, layer=99))
    with pytest.raises(UnsupportedModelError):
        check_laws(model.get_decoder(), inputs("llava", "one image"), Random(keep=0.3))


def test_no_number_is_no_agreement():
    from foveate.testing.laws import _apart

    assert _apart(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 1.0])) == float("inf")
    assert Law("any", True).reason == ""
