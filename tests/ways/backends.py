"""Attention backends: the same results on each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import flash_attention_mask

from foveate.pruners import Pruner
from tests.engine.test_flash import MASKS, flash_like
from tests.models.build import build, build_anew, decoder
from tests.ways.checks import agree, run, unless_dense_fails
from tests.ways.ways import NotApplicable, way

FLASH = "flash_like"
SDPA_CAPS = "this model caps its attention's logits, which sdpa cannot"


@way("sdpa", table="backends")
def sdpa(family: str) -> None:
    if decoder(build(family)).config._attn_implementation != "sdpa":
        raise NotApplicable(SDPA_CAPS if family == "paligemma2" else "transformers has no sdpa for this model")
    agree(run(family))


@way("eager", table="backends")
def eager(family: str) -> None:
    agree(run(family, model=build(family, "eager")))


@way("flex", table="backends")
def flex(family: str) -> None:
    """`flex_attention`, run eagerly: compiling it for a CPU takes minutes."""
    try:
        model = build(family, "flex_attention")
        there = decoder(model).config._attn_implementation == "flex_attention"
    except (ValueError, ImportError):
        there = False
    if not there:
        raise NotApplicable("transformers has no flex attention for this model")
    why = "transformers' flex attention itself fails with this model, also unpruned"
    with torch.compiler.set_stance("force_eager"):
        unless_dense_fails(lambda pruner: agree(run(family, model=model, pruner=pruner)), why)


@way("flash (by its masks)", table="backends")
def flash(family: str) -> None:
    """A stand-in for flash attention on CPU: it takes the same flat padding masks, and computes the rest as sdpa."""
    if not getattr(build(family), "_supports_flash_attn", True):
        raise NotApplicable("transformers has no flash attention for this model")
    if getattr(decoder(build(family)).config, "attn_logit_softcapping", None):
        raise NotApplicable("the stand-in computes as sdpa does, which cannot cap logits")
    unless_dense_fails(partial(_flash_agrees, family), "this model's masks say more than flat ones can, also unpruned")


def _flash_agrees(family: str, pruner: Pruner | None) -> None:
    with _flash(family) as model:
        MASKS.clear()
        agree(run(family, model=model, pruner=pruner))
    assert {mask.ndim for mask in MASKS if mask is not None} == {2}


@contextlib.contextmanager
def _flash(family: str) -> Iterator[PreTrainedModel]:
    AttentionInterface.register(FLASH, flash_like)
    AttentionMaskInterface.register(FLASH, flash_attention_mask)
    try:
        model = build_anew(family, "sdpa")
        decoder(model).config._attn_implementation = FLASH
        yield model
    finally:
        for interface in (AttentionInterface, AttentionMaskInterface):
            with contextlib.suppress(KeyError):
                del interface._global_mapping[FLASH]
