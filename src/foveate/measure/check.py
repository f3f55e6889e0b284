"""The three laws on a model as its user has it, with inputs that its own processor makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.measure.check_noise import Noise, judged, measure_noise
from foveate.measure.check_prompts import Prompts, prompts
from foveate.measure.loading import LoadedModel
from foveate.testing import Law, check_laws, dense_run


class CheckError(FoveateError):
    """The model answers none of the inputs that it would be checked with, even dense."""


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
        Why there are none, or why the batch is not the one that was wanted first.
    refusal
        The error that refused the method.
    """

    inputs: str
    method: str
    noise: Noise | None
    laws: tuple[Law, ...]
    skipped: str = ""
    refusal: FoveateError | None = None


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
    for choices in prompts():
        ready, why = None, ""
        for batch in choices:
            try:
                ready = _dense(loaded, batch, steps, family)
                break
            except Exception as error:  # not every model takes several images, or a batch with text alone
                why = why or f"the dense model does not take {batch.name}: {_line(error)}"
        if ready is None:
            yield from (Result(choices[0].name, pruner.name, None, (), why) for pruner in pruners)
            continue
        inputs, samples, dense, noise = ready
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
            laws = tuple(judged(law, noise, loaded.model.dtype) for law in laws)
            yield Result(batch.name, pruner.name, noise, laws, why)


def _dense(loaded: LoadedModel, batch: Prompts, steps: int, family: Family) -> tuple[Any, list[Any], Any, Noise]:
    """Inputs of a batch, of each of its samples alone, the dense model's run, and how exact that is."""
    inputs, samples = _inputs(loaded, batch)
    dense = dense_run(loaded.model, inputs, steps, family)
    return inputs, samples, dense, measure_noise(loaded.model, inputs, samples, dense, family)


def _inputs(loaded: LoadedModel, batch: Prompts) -> tuple[Any, list[Any]]:
    inputs = dict(loaded.inputs(batch.questions, batch.images))
    if len(batch.questions) == 1:
        return inputs, []
    pairs = zip(batch.questions, batch.images, strict=True)
    return inputs, [dict(loaded.inputs([question], [images])) for question, images in pairs]


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
