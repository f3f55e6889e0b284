"""The dense model with the dropped tokens masked, for one forward pass: with labels, gradients, or embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel

from foveate.families import family_of
from foveate.testing.reference import _hidden


@contextlib.contextmanager
def masked(model: PreTrainedModel, padding: Tensor, gone: Tensor) -> Iterator[None]:
    """While open, each prompt token is hidden from layer `gone` (B, L) on; `padding` (B, L) is the attention mask."""
    with _hidden(model, padding.bool(), gone, padding.shape[1], False, family_of(model)):
        yield
