"""Running a tiny model pruned, and holding what came out against the slow reference."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import tests
from foveate.engine import Report
from foveate.errors import FoveateError
from foveate.pruners import Pruner
from foveate.testing import NEVER, hidden_from, prompt_positions, reference_logits
from tests.laws.methods import Ladder
from tests.models.build import build, generate, inputs, last_stage, visual
from tests.ways.ways import NotApplicable

LADDER = Ladder()  # three cuts, and another count for each sample; `fitting` to a family
STEPS = 3
# samples of other lengths in every family, one with two images
RAGGED: list[list[int | str | None]] = [[4, None, 5], [3, None, 2, None, 4], [9, None, 3]]
TESTS, TORCH, TRANSFORMERS = (Path(one).parent for one in (tests.__file__, torch.__file__, transformers.__file__))
CLOSE = dict(atol=1e-4, rtol=0.0)
__all__ = [
    "CLOSE",
    "LADDER",
    "NEVER",
    "RAGGED",
    "STEPS",
    "Run",
    "agree",
    "dropped",
    "fitting",
    "hidden_from",
    "prompt_positions",
    "reference",
    "run",
    "same",
    "unless_dense_fails",
]


@dataclass
class Run:
    """A pruned run.

    Attributes
    ----------
    batch
        The inputs it got.
    out
        What `generate()` returned: sequences, logits, the cache.
    report
        What the pruner did; None in a dense run.
    """

    family: str
    batch: dict[str, Tensor]
    out: Any
    report: Report | None


def run(
    family: str,
    layout: str | list = RAGGED,
    pruner: Pruner | None = LADDER,
    model: PreTrainedModel | None = None,
    steps: int = STEPS,
    **options: Any,
) -> Run:
    """Generate a few tokens, pruned unless `pruner` is None; `options` are those of `generate()`."""
    batch, model = inputs(family, layout), model or build(family)
    pruner = fitting(family) if pruner is LADDER else pruner
    with contextlib.nullcontext() if pruner is None else pruner(model) as pruned:
        out = generate(model, batch, steps, **options)
    return Run(family, batch, out, None if pruned is None else pruned.report)


def fitting(family: str) -> Ladder:
    """`LADDER`, its last cut where the family can have one."""
    return Ladder(cuts=(1, 3, last_stage(family)))


def agree(found: Run, close: dict[str, float] = CLOSE) -> None:
    """The logits of every step are those of the dense model with the dropped tokens masked."""
    logits = torch.stack(found.out.logits, 1).float()
    expected = reference(found, found.out.sequences[:, :-1], dropped(found))
    torch.testing.assert_close(logits, expected, **close)


def dropped(found: Run, copies: int = 1) -> Tensor:
    """(B, L) long, the layer from which each token of the prompt is gone; with beams every copy chose the same."""
    seen = visual(found.batch).repeat_interleave(copies, 0)
    if found.report is None:
        return torch.full(seen[::copies].shape, NEVER)
    gone = hidden_from(found.report, seen)
    assert (gone < NEVER).any(), "nothing was pruned"
    assert torch.equal(gone, gone[::copies].repeat_interleave(copies, 0)), "beams of one sample chose differently"
    return gone[::copies]


def reference(found: Run, sequences: Tensor, gone: Tensor) -> Tensor:
    """(B, t + 1, vocabulary) logits behind the prompt and each further token of `sequences` (B, L + t).

    They are those of the dense model with the dropped tokens masked.
    """
    return reference_logits(build(found.family), found.batch, sequences, gone).float()


def same(ours: Run, theirs: Run) -> None:
    """Two pruned runs chose the same tokens and said the same."""
    for one, other in zip(ours.report.stages, theirs.report.stages, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.kept, other.kept, strict=True)), "other tokens were kept"
    assert torch.equal(ours.out.sequences, theirs.out.sequences)


def unless_dense_fails(check: Callable[[Pruner | None], None], why: str, pruner: Pruner = LADDER) -> None:
    """Run `check(pruner)`; where it fails in the same way without a pruner, the model itself does not do it right.

    Raises
    ------
    NotApplicable
        With `why`.
    """
    try:
        check(pruner)
    except (FoveateError, NotApplicable):
        raise
    except Exception as ours:
        meant = meaning(ours)
        if meant is None:
            raise
        try:
            check(None)
        except Exception as theirs:  # noqa: BLE001 - compared with ours, which is raised else
            if meaning(theirs) == meant:
                raise NotApplicable(why) from None
        raise


def meaning(error: BaseException) -> tuple[Any, ...] | None:
    """What an error says of a model: logits are wrong, or something in transformers fails, where and with which words.

    None for any other, such as one of the test itself or of foveate. Numbers count for nothing: a pruned run has fewer
    tokens.
    """
    frames = [(Path(one.filename), one.name, one.lineno) for one in traceback.extract_tb(error.__traceback__)]
    if frames[-1][0] == Path(torch.testing._comparison.__file__):
        return AssertionError, *[one for one in frames[1:] if one[0].is_relative_to(TESTS)]
    where, name, _ = [one for one in frames if not one[0].is_relative_to(TORCH)][-1]
    if where.is_relative_to(TRANSFORMERS) or where == TESTS / "fake_devices.py":
        return type(error), re.sub(r"[\d.]+", "#", str(error)), where, name
    return None
