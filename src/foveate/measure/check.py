"""The three laws on a model as its user has it, with inputs that its own processor makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.measure.loading import LoadedModel
from foveate.testing import NEVER, Law, check_laws, dense_run, reference_logits
from foveate.testing.laws import ALONE, MASKED, NO_SAMPLES

EXACT = 1e-4  # how far logits may lie apart in float32
TIMES = 3  # where rounding alone moves them further: so many times as far as it moves a dense run's
LIMIT = {torch.float32: 1e-3}  # a dense run this far from its reference, in deviations of the logits, is another model
LIMIT_HALF = 0.3


class CheckError(FoveateError):
    """The model answers none of the inputs that it would be checked with, even dense."""


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts: what it is, and a question and the images of each sample."""

    name: str
    questions: list[str]
    images: list[list[Image.Image]]


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


@dataclass(frozen=True)
class Result:
    """What came of one method on one batch.

    Attributes
    ----------
    inputs, method
        Names of the batch and of the method.
    noise
        None where the model does not take the batch.
    laws
        Empty where it does not, or where the method is refused.
    skipped
        Why there are none.
    refusal
        The error that refused the method.
    """

    inputs: str
    method: str
    noise: Noise | None
    laws: tuple[Law, ...]
    skipped: str = ""
    refusal: FoveateError | None = None


def prompts(seed: int = 0) -> list[Prompts]:
    """One image; two of different shape; and a ragged batch with a sample of text alone."""
    from foveate import tiny

    rng = np.random.default_rng(seed)
    square, other = (tiny.make_scene(rng).pil() for _ in range(2))
    wide = other.resize((square.width * 3 // 2, square.height), Image.Resampling.BICUBIC)
    short, long = "how many circles are there?", "how many circles are there, and what colour is the largest square?"
    return [
        Prompts("one image", [short], [[square]]),
        Prompts("two images", [long], [[square, wide]]),
        Prompts("a ragged batch", [short, long, long], [[wide], [], [square, wide]]),
    ]


def check_model(
    loaded: LoadedModel,
    pruners: Sequence[Any],
    family: Family,
    steps: int = 4,
    done: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run the laws for each method on each batch.

    Parameters
    ----------
    loaded
        Model, processor and prompt.
    pruners
        The methods.
    family
        The model's.
    steps
        Tokens to generate.
    done
        Told each result as it is there.

    Raises
    ------
    CheckError
        When the dense model answers none of the batches.
    FoveateError
        When the model is refused, or every method.
    """
    results = []
    for result in _results(loaded, pruners, family, steps):
        done(result)
        results.append(result)
    if not any(result.laws for result in results):
        for result in results:
            if result.refusal is not None:
                raise result.refusal
        raise CheckError(f"{loaded.name} answers none of the prompts, even dense: {results[0].skipped}")
    return results


def _results(loaded: LoadedModel, pruners: Sequence[Any], family: Family, steps: int) -> Iterator[Result]:
    for batch in prompts():
        try:
            inputs, samples = _inputs(loaded, batch)
            dense = dense_run(loaded.model, inputs, steps, family)
            noise = _noise(loaded.model, inputs, samples, dense, family)
        except Exception as error:  # not every model takes several images, or a batch with text alone
            why = f"the dense model does not take {batch.name}: {_line(error)}"
            yield from (Result(batch.name, pruner.name, None, (), why) for pruner in pruners)
            continue
        for pruner in pruners:
            try:
                laws = check_laws(
                    loaded.model,
                    inputs,
                    pruner,
                    steps=steps,
                    atol=noise.tolerance,
                    family=family,
                    samples=samples,
                    dense=dense,
                )
            except FoveateError as error:  # another method may still be checked
                yield Result(batch.name, pruner.name, noise, (), f"{pruner.name} is refused: {error}", error)
                continue
            judged = tuple(_judged(law, noise, loaded.model.dtype) for law in laws)
            yield Result(batch.name, pruner.name, noise, judged)


def _inputs(loaded: LoadedModel, batch: Prompts) -> tuple[Any, list[Any]]:
    inputs = dict(loaded.inputs(batch.questions, batch.images))
    if len(batch.questions) == 1:
        return inputs, []
    pairs = zip(batch.questions, batch.images, strict=True)
    return inputs, [dict(loaded.inputs([question], [images])) for question, images in pairs]


def _noise(model: Any, inputs: Any, samples: Sequence[Any], dense: Any, family: Family) -> Noise:
    logits = torch.stack(dense.logits, 1).float()
    nothing = torch.full(inputs["input_ids"].shape, NEVER)
    spread = float(logits.std())
    try:
        expected = reference_logits(model, inputs, dense.sequences[:, :-1], nothing, family=family)
        reference = float((logits - expected.float()).abs().nan_to_num(nan=float("inf")).max())
    except Exception:  # the laws that need no reference can still be tested
        reference = float("inf")
    alone = 0.0
    for row, sample in enumerate(samples):
        first = dense_run(model, sample, 1, family).logits[0][0].float()
        alone = max(alone, float((first - logits[row, 0]).abs().nan_to_num(nan=float("inf")).max()))
    step = 2 * torch.finfo(model.dtype).eps * float(logits.abs().max())
    limit = max(EXACT, step, LIMIT.get(model.dtype, LIMIT_HALF) * spread)
    return Noise(reference, alone, spread, step, reference <= limit, alone <= limit)


def _judged(law: Law, noise: Noise, dtype: torch.dtype) -> Law:
    """A law was not tested where the dense model breaks it itself, the reference does not fit, or rounding chooses."""
    if law.name == MASKED and not noise.fits:
        why = f"the reference is {noise.reference:.2g} from the dense model with nothing hidden: it does not fit"
        return dataclasses.replace(law, holds=None, reason=why)
    if law.name == ALONE and not noise.even and law.reason != NO_SAMPLES:
        why = f"the dense model itself gives a batch logits that are {noise.alone:.2g} from those of its samples alone"
        return dataclasses.replace(law, holds=None, reason=why)
    other_choice = law.name == ALONE and law.holds is False and law.difference is None and not law.error
    if other_choice and torch.finfo(dtype).bits < 32:
        why = f"{law.reason}; in {str(dtype).removeprefix('torch.')} rounding may choose others: use float32"
        return dataclasses.replace(law, holds=None, reason=why)
    return law


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
