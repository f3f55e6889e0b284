"""Ways of `generate()`."""

from __future__ import annotations

from functools import partial

import torch

from foveate.pruners import Pruner
from tests.ways.checks import CLOSE, agree, dropped, reference, run, unless_dense_fails
from tests.ways.ways import way


@way("greedy")
def greedy(family: str) -> None:
    agree(run(family))


@way("sampling")
def sampling(family: str) -> None:
    torch.manual_seed(3)
    agree(run(family, do_sample=True, temperature=2.0, top_k=0))


MIXED_UP = "this transformers gives a sample the images of another one, also without pruning"


@way("beam search")
def beam_search(family: str) -> None:
    unless_dense_fails(partial(_beam_scores, family), MIXED_UP)


def _beam_scores(family: str, pruner: Pruner | None) -> None:
    """The score of each beam is what the reference gives its words."""
    found = run(family, pruner=pruner, num_beams=3, num_return_sequences=2, length_penalty=0.0, output_scores=True)
    gone, length = dropped(found, copies=3), found.batch["input_ids"].shape[1]
    sequences = found.out.sequences.unflatten(0, (-1, 2))
    for number in range(2):
        total = torch.zeros(len(sequences))
        for end in range(length, sequences.shape[-1]):
            logits = reference(found, sequences[:, number, :end], gone)
            total += logits.log_softmax(-1).gather(1, sequences[:, number, end : end + 1])[:, 0]
        torch.testing.assert_close(found.out.sequences_scores.unflatten(0, (-1, 2))[:, number], total, **CLOSE)
