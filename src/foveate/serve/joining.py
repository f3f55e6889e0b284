"""Sequences that decode together, one token a step: others join after a prefill of their own, and leave when over."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from foveate.engine.arguments import cache_name, cache_of
from foveate.engine.cache_rows import check_rows, join_rows, take_rows
from foveate.errors import UnsupportedCacheError
from foveate.families import family_of
from foveate.serve.settings import ServeError


class Prefill:
    """Sees the positions of a prefill that `generate` runs; for `with`.

    Attributes
    ----------
    last
        (..., B or 1, 1) position ids of the last tokens; None: the decoder was given none.
    """

    def __init__(self, model: Any) -> None:
        self.decoder = family_of(model).parts(model).decoder
        self.last: Any = None

    def __enter__(self) -> Prefill:
        self.hook = self.decoder.register_forward_pre_hook(self._see, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()

    def _see(self, module: Any, args: tuple, kwargs: dict) -> None:
        found = kwargs.get("position_ids")
        self.last = None if found is None else found[..., -1:]


class Running:
    """The sequences that decode.

    Parameters
    ----------
    model
        The pruner with which the prompts were read is attached to it.
    config
        Of generation; its penalty for repetition holds.

    Attributes
    ----------
    cache, ids, mask, positions
        KV cache; (B, L) tokens with those drawn last; (B, L) mask of what is no padding; (..., B, 1) the positions of
        the tokens drawn last.
    """

    def __init__(self, model: Any, config: GenerationConfig) -> None:
        self.model, self.processors, self.padding = model, processors(model, config), config.pad_token_id
        self.cache: Any = None
        self._name = cache_name(model)
        self.ids = self.mask = self.positions = torch.empty(0)

    def join(self, out: Any, mask: Tensor, seen: Prefill) -> None:
        """Take in the rows of a prefill.

        Parameters
        ----------
        out
            What `generate` returned for one new token.
        mask
            (C, L) attention mask of the prompts.
        seen
            Their positions.
        """
        ids, mask = out["sequences"], pad(mask, (0, 1), value=1)
        positions = seen.last.expand(*seen.last.shape[:-2], len(ids), 1) + 1
        if self.cache is None:
            self.cache, self.ids, self.mask, self.positions = cache_of(out), ids, mask, positions
            return
        join_rows(self.cache, cache_of(out))
        most = max(self.ids.shape[1], ids.shape[1])
        self.ids = torch.cat([_to(one, most, self.padding) for one in (self.ids, ids)])
        self.mask = torch.cat([_to(one, most, 0) for one in (self.mask, mask)])
        self.positions = torch.cat([self.positions, positions], -2)

    def leave(self, stay: Sequence[int]) -> None:
        """Keep these rows alone."""
        rows = torch.tensor(stay, device=self.ids.device)
        padding = int(self.mask[rows].argmax(-1).min())
        take_rows(self.cache, rows, padding)
        self.ids, self.mask = self.ids[rows, padding:], self.mask[rows, padding:]
        self.positions = self.positions[..., rows, :]

    def scores(self) -> Tensor:
        """Return (B, V) scores of the tokens after those that were drawn last."""
        out = self.model(
            input_ids=self.ids[:, -1:],
            attention_mask=self.mask,
            position_ids=self.positions,
            use_cache=True,
            return_dict=True,
            **{self._name: self.cache},
        )
        return self.processors(self.ids, out.logits[:, -1].float())

    def take(self, tokens: Tensor) -> None:
        """Take in the tokens (B,) that were drawn."""
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        self.mask, self.positions = pad(self.mask, (0, 1), value=1), self.positions + 1


def _to(rows: Tensor, length: int, value: int) -> Tensor:
    return pad(rows, (length - rows.shape[1], 0), value=value)


def processors(model: Any, config: GenerationConfig) -> LogitsProcessorList:
    """Return what a model's generation config does to scores before a token is drawn.

    Raises
    ------
    ServeError
        It counts tokens from the beginning of the batch, which joined rows do not share.
    """
    config = copy.deepcopy(config)
    model._prepare_special_tokens(config, True, device=model.device)
    found = model._get_logits_processor(config, input_ids_seq_length=1, device=str(model.device))
    for one in found:
        if not isinstance(one, RepetitionPenaltyLogitsProcessor):
            raise ServeError(f"running batches cannot be joined with the {type(one).__name__} of this model's config")
    return found


@torch.inference_mode()
def check_joins(model: Any, config: GenerationConfig) -> None:
    """Raise unless batches of a model can be joined; runs two tokens of text.

    Raises
    ------
    ServeError
        Saying why not.
    """
    processors(model, config)
    config = copy.deepcopy(config)
    config.max_new_tokens = 1
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    with Prefill(model) as seen:
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    if seen.last is None:
        raise ServeError("running batches of this model cannot be joined: its decoder is given no positions")
    try:
        check_rows(cache_of(out))
    except UnsupportedCacheError as error:
        raise ServeError(str(error)) from None
