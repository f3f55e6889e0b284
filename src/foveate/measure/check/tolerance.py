"""How exact a dense model is, and what that allows of a law."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.testing import NEVER, Law, dense_run, reference_logits
from foveate.testing.laws import ALONE, MASKED, NO_SAMPLES

# what torch says of shapes that do not fit; of devices, types, memory and kernels it says none of this
SHAPES = re.compile(r"(?<!buffer )\bsizes?\b|\bshapes?\b|\bdim(s|ensions?)?\b|\bchannels\b")
EXACT = 1e-4  # how far logits may lie apart in float32
TIMES = 3  # where rounding alone moves them further: so many times as far as it moves a dense run's
# a dense run that far from its reference, in standard deviations of the logits, is another model
LIMIT, LIMIT_HALF = 1e-3, 0.3


@dataclass(frozen=True)
class Noise:
    """How far two ways of running the dense model differ, as the largest difference of two logits.

    Attributes
    ----------
    reference
        The model's own run, and the reference with nothing hidden.
    alone
        A batch, and its samples one by one; 0 for a batch of one.
    spread
        Standard deviation of the logits.
    step
        The largest logit's last digits: as much as two roundings of it can make.
    fits
        False where the reference is so far off that it says nothing of this model.
    even
        False where the dense model itself gives a batch other logits than its samples.
    """

    reference: float
    alone: float
    spread: float
    step: float
    fits: bool
    even: bool

    @property
    def tolerance(self) -> float:
        """How far logits may lie apart that should be equal."""
        rounding = self.reference if self.fits else 0.0, self.alone if self.even else 0.0
        return max(EXACT, self.step, TIMES * max(rounding))


def is_refusal(error: Exception) -> bool:
    """Whether a processor or a model says so that it does not take a batch: a value, an index or a shape is wrong."""
    if type(error) is RuntimeError:
        return SHAPES.search(str(error)) is not None
    return isinstance(error, (FoveateError, ValueError, IndexError))


def measure_noise(model: Any, inputs: Any, samples: Sequence[Any], dense: Any, family: Family) -> Noise:
    """The noise of a batch, from its dense run and from its samples' own inputs."""
    logits = torch.stack(dense.logits, 1).float()
    nothing = torch.full(inputs["input_ids"].shape, NEVER)
    spread = float(logits.std())
    try:
        expected = reference_logits(model, inputs, dense.sequences[:, :-1], nothing, family=family)
        reference = float((logits - expected.float()).abs().nan_to_num(nan=float("inf")).max())
    except (FoveateError, ValueError, IndexError, RuntimeError, TypeError) as error:  # TypeError: no such argument
        if not (is_refusal(error) or isinstance(error, TypeError)):
            raise
        reference = float("inf")  # the laws that need no reference can still be tested
    alone = 0.0
    for row, sample in enumerate(samples):
        first = dense_run(model, sample, 1, family).logits[0][0].float()
        alone = max(alone, float((first - logits[row, 0]).abs().nan_to_num(nan=float("inf")).max()))
    step = 2 * torch.finfo(model.dtype).eps * float(logits.abs().max())
    limit = max(EXACT, step, (LIMIT_HALF if _is_half(model.dtype) else LIMIT) * spread)
    return Noise(reference, alone, spread, step, reference <= limit, alone <= limit)


def judged(law: Law, noise: Noise, dtype: torch.dtype) -> Law:
    """A law was not tested where the dense model breaks it itself, the reference does not fit, or rounding selects."""
    if law.error:
        return law
    if law.name == MASKED and not noise.fits:
        why = f"the reference is {noise.reference:.2g} from the dense model with nothing hidden: it does not fit"
        return dataclasses.replace(law, holds=None, reason=why)
    if law.name == ALONE and not noise.even and law.reason != NO_SAMPLES:
        why = f"the dense model itself gives a batch logits that are {noise.alone:.2g} from those of its samples alone"
        return dataclasses.replace(law, holds=None, reason=why)
    other_choice = law.name == ALONE and law.holds is False and law.difference is None
    if other_choice and _is_half(dtype):
        why = f"{law.reason}; in {str(dtype).removeprefix('torch.')} rounding may choose others: use float32"
        return dataclasses.replace(law, holds=None, reason=why)
    return law


def _is_half(dtype: torch.dtype) -> bool:
    return torch.finfo(dtype).bits < 32
