"""Several turns: KV caches that are passed on, copied, kept dense."""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from foveate import FastV
from foveate.engine.arguments import cache_of, with_cache
from foveate.pruners import Pruner
from tests.models.build import _samples, build, generate, inputs, model_inputs, visual
from tests.models.images import Picture
from tests.ways.checks import (
    CLOSE,
    LADDER,
    NEVER,
    STEPS,
    Run,
    agree,
    fitting,
    hidden_from,
    prompt_positions,
    reference,
    same,
    unless_dense_fails,
)
from tests.ways.ways import NotApplicable, way

OFF = "with a cache the model itself takes a conversation for another one than as a whole, also without pruning"
QUESTIONS = [torch.tensor([[5, 6, 7]]), torch.tensor([[11, 12, 13, 14]])]


def _attached(family: str, model: Any, pruner: Pruner | None) -> Any:
    pruner = fitting(family) if pruner is LADDER else pruner
    return contextlib.nullcontext() if pruner is None else pruner(model)


def _types(batch: dict[str, Tensor]) -> list[str]:
    """What says of each token what it is."""
    return [name for name in batch if name.endswith("token_type_ids")]


def _then(batch: dict[str, Tensor], words: Tensor) -> dict[str, Tensor]:
    """The conversation `batch` with `words` (1, n) said behind it."""
    more = words.shape[1]
    longer = {**batch, "input_ids": torch.cat([batch["input_ids"], words], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    for name in _types(batch):
        longer[name] = torch.nn.functional.pad(batch[name], (0, more))
    return longer


def _asked(model: Any, batch: dict[str, Tensor], cache: Any) -> Any:
    """A turn whose images are in the cache already."""
    words = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return generate(model, words, STEPS, **with_cache(model, cache))


def _first(report: Any) -> Any:
    """What the first prefill dropped, for a conversation that has become longer."""
    return None if report is None else SimpleNamespace(stages=report.prefills[0].stages)


@way("next turn, text")
def text_turn(family: str) -> None:
    """A second question with the first one's cache: what was dropped stays dropped."""
    unless_dense_fails(partial(_text_turn, family), OFF)


def _text_turn(family: str, pruner: Pruner | None) -> None:
    batch, model = inputs(family, "one image"), build(family)
    length = batch["input_ids"].shape[1]
    with _attached(family, model, pruner) as pruned:
        first = generate(model, batch, STEPS)
        said = _then(batch, torch.cat([first.sequences[:, length:], QUESTIONS[0]], 1))
        second = _asked(model, said, cache_of(first))
    report = None if pruned is None else pruned.report
    agree(Run(family, said, second, _first(report)))


@way("next turn, image")
def image_turn(family: str) -> None:
    """The second image is pruned when it comes; the first as it was."""
    unless_dense_fails(partial(_image_turn, family), OFF)


def _image_turn(family: str, pruner: Pruner | None) -> None:
    rows = [[4, None, 5, None, 3]]
    whole, begin = inputs(family, rows), inputs(family, [rows[0][:3]])
    second = [part for part in _samples(family, rows)[0] if isinstance(part, Picture)][1]
    past, model = begin["input_ids"].shape[1], build(family)
    if not torch.equal(begin["input_ids"], whole["input_ids"][:, :past]):
        raise NotApplicable("several images make other tokens than one alone, so they come together")
    later = {name: whole[name][:, past:] for name in _types(whole)}
    later |= model_inputs(family, [[second]])
    positions = prompt_positions(model, whole, 0)
    with _attached(family, model, pruner) as pruned, torch.no_grad():
        cache = cache_of(model(**begin, use_cache=True))
        logits = model(
            input_ids=whole["input_ids"][:, past:],
            attention_mask=whole["attention_mask"],
            position_ids=positions[..., past:],
            **with_cache(model, cache),
            **later,
        ).logits[:, -1]
    seen = visual(whole)
    where = torch.arange(seen.shape[1]) < past
    gone = torch.full(seen.shape, NEVER)
    for prefill, part in zip([] if pruned is None else pruned.report.prefills, (where, ~where), strict=False):
        gone = torch.minimum(gone, hidden_from(prefill, seen & part))
    found = Run(family, whole, None, None)
    torch.testing.assert_close(logits, reference(found, whole["input_ids"], gone)[:, 0], **CLOSE)
    assert pruned is None or len(pruned.report.prefills) == 2


@way("next turn, pruned anew")
def anew(family: str) -> None:
    """The whole conversation again, without the cache: the method sees the new question."""
    batch, model = inputs(family, "one image"), build(family)
    said = _then(batch, QUESTIONS[0])
    pruner = FastV(keep=0.3, layer=2)
    with pruner(model) as pruned:
        generate(model, batch, 1)
        second = generate(model, said, STEPS)
    with pruner(model) as alone:
        expected = generate(model, said, STEPS)
    found = Run(family, said, second, pruned.report)
    same(found, Run(family, said, expected, alone.report))
    agree(found)


@way("prefix cache, text")
def text_prefix(family: str) -> None:
    """A text that all conversations begin with, prefilled once, its cache copied; the image comes behind it."""
    unless_dense_fails(partial(_text_prefix, family), OFF)


def _text_prefix(family: str, pruner: Pruner | None) -> None:
    batch, model = inputs(family, [[9, None, 5]]), build(family)
    with _attached(family, model, pruner) as pruned, torch.no_grad():
        cache = cache_of(model(input_ids=batch["input_ids"][:, :6], use_cache=True))
        out = generate(model, batch, STEPS, **with_cache(model, copy.deepcopy(cache)))
        again = generate(model, batch, STEPS, **with_cache(model, copy.deepcopy(cache)))
    torch.testing.assert_close(out.sequences, again.sequences, atol=0, rtol=0)
    agree(Run(family, batch, out, None if pruned is None else pruned.report))


@way("prefix cache, image")
def image_prefix(family: str) -> None:
    """An image pruned once, its cache copied for each of two questions."""
    unless_dense_fails(partial(_image_prefix, family), OFF)


def _image_prefix(family: str, pruner: Pruner | None) -> None:
    batch, model = inputs(family, "one image"), build(family)
    with _attached(family, model, pruner) as pruned, torch.no_grad():
        cache = cache_of(model(**batch, use_cache=True))
        found = [_asked(model, _then(batch, words), copy.deepcopy(cache)) for words in QUESTIONS]
    report = None if pruned is None else pruned.report
    for words, out in zip(QUESTIONS, found, strict=True):
        agree(Run(family, _then(batch, words), out, _first(report)))


@way("dense prefix under paused()")
def dense_prefix(family: str) -> None:
    """An image prefilled whole while a pruner is attached, its cache copied: each question finds all of it."""
    unless_dense_fails(partial(_dense_prefix, family), OFF)


def _dense_prefix(family: str, pruner: Pruner | None) -> None:
    batch, model = inputs(family, "one image"), build(family)
    with _attached(family, model, pruner) as pruned, torch.no_grad():
        with contextlib.nullcontext() if pruned is None else pruned.paused():
            cache = cache_of(model(**batch, use_cache=True))
        found = [_asked(model, _then(batch, words), copy.deepcopy(cache)) for words in QUESTIONS]
    if pruned is not None:
        assert [prefill.skipped for prefill in pruned.report.prefills] == ["the pruner was paused"]
    for words, out in zip(QUESTIONS, found, strict=True):
        agree(Run(family, _then(batch, words), out, None))
