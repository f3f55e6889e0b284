"""A bench run: every setting of a model, dense and pruned in one process, as one result."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from typing import Any

import torch

from foveate.measure import environment
from foveate.measure.bench.arms import AGAIN, DENSE, SMALLER, Arm, at_cost, make_arms
from foveate.measure.bench.counters import ON_CPU, ON_CUDA
from foveate.measure.bench.measure import measure
from foveate.measure.bench.prompts import BenchPrompt, encode, make_prompt
from foveate.measure.bench.published_shapes import shape_named
from foveate.measure.bench.result import RULE, entries, failures
from foveate.measure.bench.settings import BenchSettings
from foveate.measure.bench.timing import CPU, WALL
from foveate.measure.budget import AFTER, PromptCost
from foveate.measure.loading import LoadedModel, device_named, dtype_named, load_model
from foveate.pruners.budget import tokens_to_keep

FORMAT = "foveate-bench-1"
NOT_SMALLER = 1.5  # a smaller picture with more than so many times the tokens asked for is none
Advance = Callable[[str, int, int], None]


def random_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "sdpa",
    layers: int | None = None,
    width: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Return a model of a published shape with random weights, without a processor.

    Parameters
    ----------
    name
        Of `shapes.SHAPES`.
    device, dtype
        `auto` is the accelerator, if there is one; bfloat16 there, and float32 on a CPU.
    attention
        Name of the attention implementation.
    layers, width
        Fewer decoder layers, narrower ones.
    seed
        Of the weights.

    Raises
    ------
    LoadError
        No such shape, device, type or attention, or sizes that make no model.
    """
    shape = shape_named(name).resized(layers, width)
    place, kind = device_named(device), dtype_named(dtype)
    if not isinstance(kind, torch.dtype):
        kind = torch.float32 if place.type == "cpu" else torch.bfloat16
    return LoadedModel(name, shape.build(place, kind, attention, seed), None, _no_prompt)


def named_model(name: str, device: str = "auto", dtype: str = "auto", attention: str | None = None) -> LoadedModel:
    """Return a model by name, folder or `tiny`, with its own weights.

    Raises
    ------
    FoveateError
        As `loading.load_model`, and for an attention implementation that it cannot have.
    """
    from foveate.measure.check.check import use_attention

    loaded = load_model(name, device, dtype)
    use_attention(loaded.model, attention)
    return loaded


def run(
    loaded: LoadedModel, settings: BenchSettings, advance: Advance | None = None, about: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measure every setting and return the result, plain data for JSON.

    Parameters
    ----------
    loaded
        Of `random_model` or `named_model`; nothing may be attached to it.
    settings
        What to measure.
    advance
        Called with what was done, how many steps are done and how many there are.
    about
        What else the result should say of the model.

    Raises
    ------
    FoveateError
        A method, a budget or a prompt that the bench cannot take.
    """
    from foveate.families import family_of

    # 1. the arms
    model, started = loaded.model, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    arms = make_arms(model, settings.methods, settings.keeps, settings.vision, settings.budget)
    arms = [arm for arm in arms if settings.again or arm.label != AGAIN]
    clock = CPU if model.device.type == "cpu" and torch.get_num_threads() == 1 else WALL
    sizes = settings.visual or (None,)
    steps = len(sizes) * len(settings.batch) * (len(arms) + settings.rounds + 1 + settings.splits)
    done, found, notes = 0, [], []
    # 2. each number of visual tokens and batch size
    for visual in sizes:
        for batch in settings.batch:
            prompts, left_out = _prompts(loaded, arms, visual, batch, settings)
            notes += [line for line in left_out if line not in notes]
            here = [arm for arm in arms if arm.method != SMALLER or arm.label in prompts]
            if settings.budget != AFTER:
                cost = PromptCost.of(model, settings.budget, prompts[DENSE].visual, prompts[DENSE].text)
                here, left_out = at_cost(here, cost)
                notes += [line for line in left_out if line not in notes]

            def step(what: str, visual: int = prompts[DENSE].visual, batch: int = batch) -> None:
                nonlocal done
                done += 1
                if advance is not None:
                    advance(f"{visual} visual tokens, batch {batch}: {what}", min(done, steps), steps)

            measured = measure(model, family_of(model), here, prompts, settings, step)
            found += entries(measured, visual, batch, clock)
    # 3. the record
    result: dict[str, Any] = {
        "format": FORMAT,
        "command": environment.command(),
        "started": started,
        "settings": {
            **dataclasses.asdict(settings),
            "methods": [str(spec) for spec in settings.methods],
        },
        "model": {"name": loaded.name, **_shape(model), **(about or {})},
        "machine": environment.machine(model.device),
        "versions": environment.versions(),
        "clock": clock,
        "memory": ON_CUDA if model.device.type == "cuda" else ON_CPU,
        "entries": found,
        "notes": notes,
    }
    result["check"] = {"rule": RULE, "failures": failures(result)}
    return result


def _prompts(
    loaded: LoadedModel, arms: list[Arm], visual: int | None, batch: int, settings: BenchSettings
) -> tuple[dict[str, BenchPrompt], list[str]]:
    """Return the dense prompt and the smaller ones, and why one of those is missing."""

    def made(number: int | None) -> BenchPrompt:
        prompt = make_prompt(loaded, number, settings.text, batch, settings.seed)
        if settings.vision:
            return prompt
        return dataclasses.replace(prompt, inputs=encode(loaded.model, prompt.inputs))

    prompts, left_out = {DENSE: made(visual)}, []
    dense = prompts[DENSE].visual
    for arm in arms:
        if arm.method != SMALLER or arm.keep is None:
            continue
        wanted = int(tokens_to_keep(arm.keep, torch.tensor([dense])))
        smaller = made(wanted)
        if smaller.visual > NOT_SMALLER * wanted or smaller.visual >= dense:
            left_out.append(
                f"{arm.label}, {dense} visual tokens: left out, this model makes no fewer than {smaller.visual}"
            )
        else:
            prompts[arm.label] = smaller
    return prompts, left_out


def _shape(model: Any) -> dict[str, Any]:
    """Return the sizes of a model, for the result."""
    text = model.config.get_text_config()
    names = (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    vision = getattr(model.config, "vision_config", None)
    tower = {"depth": ("depth", "num_hidden_layers"), "hidden_size": ("hidden_size", "embed_dim")}
    return {
        "class": type(model).__name__,
        "type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(text._attn_implementation),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "text": {name: getattr(text, name, None) for name in names},
        "vision": {
            name: next((getattr(vision, one) for one in places if hasattr(vision, one)), None)
            for name, places in tower.items()
        },
    }


def _no_prompt(question: str, images: int) -> str:
    raise NotImplementedError("a model with random weights has no words")
