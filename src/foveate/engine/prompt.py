"""Facts about a prompt: where the question ends, where its visual tokens lie."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from foveate.engine.arguments import cache_of
from foveate.engine.forward_pass import ForwardPass, PrefillRecord, Prompt
from foveate.engine.layout import lay_out
from foveate.families import Family, Parts, find_runs, visual_mask

NONE = "no visual token in the prompt"
UNSEEN = (
    "no visual token in the prompt, as far as embeddings tell: with images merged into inputs_embeds already, pass "
    "mm_token_type_ids, 1 where an image is"
)
UNSEEN_BY_GENERATE = UNSEEN + "; generate() of this model takes none, only a call of the model itself does"
SCORED = (
    "logits of the last {} tokens were asked for: the question was taken to end at the first of these, as while "
    "generating the answer after it (with labels, before the first label); answer tokens see dropped tokens in the "
    "layers before a stage, which a method with compact_cache hides from them while generating"
)
LABELLED = "the labels begin before any visual token: what they ask for must not be predicted from a dropped one"


def read_prompt(
    kwargs: Mapping[str, Any],
    labels: Tensor | None,
    family: Family,
    parts: Parts,
    config: Any,
    asked: Tensor | None = None,
    scored: Any = None,
) -> ForwardPass | None:
    """The forward of a forward pass of the base model; None if it has no tokens (the model says what it misses).

    Parameters
    ----------
    kwargs
        Arguments of the base model's forward.
    labels
        (B, L) of the whole model's forward, or None.
    asked
        (1, P) ids of the conversation up to the end of the question, where proposals for the answer come after it.
        They may be of a call that failed before it came here: then they are not what this prompt begins with.
    scored
        `logits_to_keep` of the whole model's forward: logits of several last tokens are those of an answer, and its
        question ends at the first of them.
    """
    tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if tokens is None:
        return None
    forward = ForwardPass(length=tokens.shape[1])
    visual = visual_mask(parts, kwargs)
    if visual is None or _is_answer(kwargs):
        return forward
    # 1. which tokens are real, and where the question ends
    placeholders = visual
    real = real_tokens(kwargs.get("attention_mask"), forward.length, cache_of(kwargs))
    if real is not None:
        real = real.expand_as(visual)
        visual = visual & real
    query = last_prompt_token(forward.length, real, labels, tokens)
    if asked is not None and kwargs.get("input_ids") is not None:
        past, ids = _seen(cache_of(kwargs)), kwargs["input_ids"]
        new = asked[:, past:].to(ids.device)
        if new.shape[1] and torch.equal(new, ids[:, : new.shape[1]]):
            query = query.clamp(max=new.shape[1] - 1)
    answers = _answer_rows(scored, forward.length) if labels is None and asked is None else 1
    if answers > 1:
        query = query.clamp(max=forward.length - answers)
    # The last prompt token speaks the answer's first word: it stays, even if it is part of an image.
    before = visual & (torch.arange(forward.length, device=visual.device) < query[:, None])
    there = torch.ones_like(visual) if real is None else real
    ids = kwargs.get("input_ids")
    # 2. what may be pruned, and how much of it there is
    facts = [visual, before, there, *([] if ids is None else [ids])]
    everywhere, counted, present, *words = torch.stack([fact.long() for fact in facts]).cpu()  # one sync a prefill
    counts = counted.sum(-1).tolist()
    text = (present.sum(-1) - counted.sum(-1)).tolist()
    forward.record = PrefillRecord(text, counts, None)
    if not any(counts):
        labelled = labels is not None and bool(everywhere.any())
        unseen = NONE
        if ids is None and kwargs.get("mm_token_type_ids") is None:
            takes = "mm_token_type_ids" in inspect.signature(parts.base.forward).parameters
            unseen = UNSEEN if takes else UNSEEN_BY_GENERATE
        forward.record.skipped = LABELLED if labelled else unseen
        return forward
    if answers > 1:
        forward.record.notes.append(SCORED.format(answers))
    # 3. where each visual token lies in its image
    runs = find_runs(everywhere.bool(), words[0] if words else None)
    layout = lay_out(everywhere.bool(), runs, family.image_grids(config, kwargs, runs))
    layout = dataclasses.replace(layout, places=layout.places.to(visual.device).masked_fill(~before, -1))
    forward.record.image = layout.places[0]
    encoded = bool(kwargs.get("mm_encoder_outputs"))
    forward.prompt = Prompt(before, layout, real, query, counts, forward.record, placeholders, ids, encoded)
    return forward


def _answer_rows(scored: Any, length: int) -> int:
    """How many of the last tokens logits are asked for, as `logits_to_keep` says it: a count, or their indices."""
    if isinstance(scored, Tensor):
        scored = length - int(scored.min()) if scored.ndim and scored.numel() else 1
    return scored if isinstance(scored, int) and 1 < scored < length else 1  # of all tokens: that says nothing


def _is_answer(kwargs: Mapping[str, Any]) -> bool:
    """True for several tokens after a cache without an image: placeholder ids among them are words.

    Prompt lookup and assistants propose such ids, and an answer that is passed on to the next turn may hold some.
    """
    cache = cache_of(kwargs)
    if kwargs.get("input_ids") is None or not _seen(cache):
        return False
    if kwargs.get("mm_encoder_outputs"):
        return False
    features = (value for name, value in kwargs.items() if name not in ("inputs_embeds", "attention_mask"))
    return not any(isinstance(one, Tensor) and one.is_floating_point() for one in _flat(features))


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """The values, and those in lists."""
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else (value,)


def last_prompt_token(length: int, prompt: Tensor | None, labels: Tensor | None, tokens: Tensor) -> Tensor:
    """(B,) dense position of the last prompt token.

    With labels (training, scoring an answer) the prompt ends before the first label: the same token that is last
    while generating, so that both keep the same visual tokens.

    Parameters
    ----------
    prompt
        (B, L) bool, real tokens; None: all.
    labels
        (B, L), -100 on the prompt; or None.
    tokens
        (B, L, …), for the batch size and device.
    """
    place = torch.arange(length, device=tokens.device)
    last = torch.full((tokens.shape[0],), length - 1, device=tokens.device)
    if prompt is not None:
        last = (place * prompt).amax(-1)
    if labels is not None and labels.shape == tokens.shape[:2]:
        answer = labels.to(tokens.device) != -100
        answer[:, 0] = False  # no token comes before it that could be asked for it
        first = torch.where(answer, place, length).amin(-1)
        last = torch.where((first > 0) & (first < length), first - 1, last)
    return last


def real_tokens(mask: Any, length: int, cache: Any) -> Tensor | None:
    """(B, L) bool, False for padding; None where the mask does not tell, or there is none.

    Parameters
    ----------
    mask
        As the base model is given it: (B, K), or what the layers take, as `generate()` makes it for static caches:
        (B, 1, L, K), bool or additive, or a dict of those for each kind of layer.
    """
    if isinstance(mask, Mapping):
        mask = next((one for one in mask.values() if one is not None), None)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        return None
    if mask.ndim == 2:
        return mask[:, -length:].bool()
    past = _seen(cache)
    first = past - max(past + length - mask.shape[3], 0)  # the columns of a sliding window begin later
    own = mask[:, 0, :, first : first + length].diagonal(dim1=1, dim2=2)  # padding does not even see itself
    return own if own.dtype == torch.bool else own == 0


def _seen(cache: Any) -> int:
    """Tokens that a cache has seen; none if it is not one, which `check_cache` refuses later."""
    return int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
