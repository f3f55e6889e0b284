"""The three laws on a model as its user has it, with inputs that its own processor makes."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.errors import FoveateError
from foveate.families import FAMILIES, Family
from foveate.measure.check.tolerance import Noise, is_refusal, judged, measure_noise
from foveate.measure.loading import LoadedModel, LoadError
from foveate.pruners.registry import check_options
from foveate.pruners.spec import build_with, parse_methods
from foveate.testing import Law, Uneven, check_laws, dense_run


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
        Called with each result as it is there.

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
            except (FoveateError, ValueError, IndexError, RuntimeError) as error:
                if not is_refusal(error):
                    raise
                # not every model takes several images, or a batch with text alone
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


KEEP = 0.3  # where none is given


def make_pruners(text: str) -> list[Any]:
    """The methods of a comma-separated list, `uneven` among them.

    Raises
    ------
    UnknownMethodError
        No such method or option.
    BudgetError
        An option's value makes no sense.
    """
    pruners = []
    for spec in parse_methods(text):
        if spec.name == Uneven.name:
            check_options(spec.name, Uneven, spec.options)
            pruners.append(Uneven(**spec.options))
            continue
        pruners.append(build_with(spec.name, spec.options, None, KEEP))
    return pruners


def family_named(name: str) -> Family:
    """A listed family by its model type, the default, or the `NAME` of a file `FILE.py:NAME`.

    Raises
    ------
    LoadError
        No such family, file or name in it.
    """
    if name == "default":
        return Family("any", "any model", "")
    if name in FAMILIES:
        return FAMILIES[name]
    file, _, attribute = name.rpartition(":")
    if not file.endswith(".py") or not os.path.isfile(file):
        raise LoadError(f"no family '{name}': use default, FILE.py:NAME, or one of {', '.join(FAMILIES)}")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise LoadError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)  # dataclasses look for the module of a class
    spec.loader.exec_module(module)
    found = getattr(module, attribute, None)
    if not isinstance(found, Family):
        raise LoadError(f"{file} has no family named '{attribute}' (an instance of foveate.families.Family)")
    return found


def attention_named(name: str | None) -> str | None:
    """The name of an attention backend as it is, before a model is loaded; one with a `/` is a kernel of the Hub.

    Raises
    ------
    LoadError
        transformers has none of that name.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    if name is not None and name not in known and "/" not in name:
        raise LoadError(f"no attention backend '{name}'; there are {', '.join(known)}")
    return name


def use_attention(model: Any, name: str | None) -> None:
    """Switch the attention backend of the whole model; None leaves it as it is.

    Raises
    ------
    LoadError
        The model or this machine does not have it.
    """
    if name is None:
        return
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise LoadError(f"no attention backend '{name}' for this model: {str(error).splitlines()[0][:200]}") from error


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts: what it is, and a question and the images of each sample."""

    name: str
    questions: list[str]
    images: list[list[Image.Image]]


def prompts(seed: int = 0) -> list[list[Prompts]]:
    """One image; two of different shape; and a ragged batch with a sample of text alone.

    Each with what to take in its stead, in order, where a model does not take it.
    """
    from foveate import tiny

    rng = np.random.default_rng(seed)
    square, other = (tiny.make_scene(rng).pil() for _ in range(2))
    wide = other.resize((square.width * 3 // 2, square.height), Image.Resampling.BICUBIC)
    short, long = "how many circles are there?", "how many circles are there, and what colour is the largest square?"
    mixed = Prompts("a ragged batch", [short, long, long], [[wide], [], [square, wide]])
    images = Prompts("a ragged batch of images", [short, long], [[wide], [square, wide]])
    one_each = Prompts("a ragged batch, one image each", [short, long], [[wide], [square]])
    return [
        [Prompts("one image", [short], [[square]])],
        [Prompts("two images", [long], [[square, wide]])],
        [mixed, images, one_each],
    ]
