"""Ways of `generate()`."""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from functools import partial

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList, TextIteratorStreamer

from foveate.pruners import FastV, Pruner
from tests.models.build import build, decoder, generate, inputs
from tests.models.sizes import LAYERS
from tests.ways.checks import (
    CLOSE,
    RAGGED,
    STEPS,
    Run,
    agree,
    dropped,
    fitting,
    prompt_positions,
    reference,
    run,
    same,
    unless_dense_fails,
)
from tests.ways.ways import NotApplicable, way

ALONE = "without a cache this transformers answers otherwise than with one, also without pruning"
MIXED_UP = "this transformers gives a sample the images of another one, also without pruning"


@way("greedy")
def greedy(family: str) -> None:
    """A left-padded batch of samples with another number of images each; so it is below, if nothing else is said."""
    agree(run(family))


@way("sampling")
def sampling(family: str) -> None:
    """The logits along the sampled words."""
    torch.manual_seed(3)
    agree(run(family, do_sample=True, temperature=2.0, top_k=0))


@way("several answers")
def several_answers(family: str) -> None:
    """`num_return_sequences=2`, sampled."""
    unless_dense_fails(partial(_several_answers, family), MIXED_UP)


def _several_answers(family: str, pruner: Pruner | None) -> None:
    torch.manual_seed(3)
    found = run(family, pruner=pruner, num_return_sequences=2, do_sample=True, temperature=2.0, top_k=0)
    gone, logits = dropped(found, copies=2), torch.stack(found.out.logits, 1)
    for number in range(2):
        expected = reference(found, found.out.sequences[number::2, :-1], gone)
        torch.testing.assert_close(logits[number::2], expected, **CLOSE)


@way("beam search")
def beam_search(family: str) -> None:
    """Three beams, two answers: the score of each is what the reference gives its words."""
    unless_dense_fails(partial(_beam_search, family), MIXED_UP)


def _beam_search(family: str, pruner: Pruner | None) -> None:
    found = run(family, pruner=pruner, num_beams=3, num_return_sequences=2, length_penalty=0.0, output_scores=True)
    gone, length = dropped(found, copies=3), found.batch["input_ids"].shape[1]
    for number in range(2):
        sequences = found.out.sequences[number::2]
        words = reference(found, sequences[:, :-1], gone).log_softmax(-1).gather(2, sequences[:, length:, None])
        torch.testing.assert_close(found.out.sequences_scores[number::2], words.sum((1, 2)), **CLOSE)


def attends(layer: torch.nn.Module) -> bool:
    """Whether it has attention; some layers of hybrid models have a running state in its place."""
    return hasattr(layer, "self_attn")


def unless_stateful(family: str) -> None:
    """Words that were wrong can be taken out of a cache, but not out of a state: transformers refuses."""
    if getattr(build(family), "_is_stateful", False):
        raise NotApplicable("transformers does not crop what linear attention has seen, also without pruning")


@way("prompt lookup")
def prompt_lookup(family: str) -> None:
    """`prompt_lookup_num_tokens=3`: words proposed from the prompt, the cache cropped where they are wrong."""
    unless_stateful(family)
    alone = partial(run, family, "one image", steps=8, eos_token_id=1)  # some releases want to know one
    found, expected = alone(prompt_lookup_num_tokens=3, max_matching_ngram_size=1), alone()
    found.out.sequences = found.out.sequences[:, : expected.out.sequences.shape[1]]  # or say a word more than asked
    same(found, expected)


@way("assisted")
def assisted(family: str) -> None:
    """The assistant is the same model disturbed, so that some of its words are taken and some are not."""
    unless_stateful(family)
    assistant = copy.deepcopy(build(family))
    with torch.no_grad():
        head = assistant.get_output_embeddings().weight
        head.add_(0.1 * torch.randn(head.shape, generator=torch.Generator().manual_seed(0)))
    alone = partial(run, family, "one image", steps=8)
    same(alone(assistant_model=assistant), alone())


class Words:
    """Stands for a tokenizer: a word is its number."""

    def decode(self, ids: list[int] | Tensor, **kwargs: object) -> str:
        return "".join(f"{int(word)} " for word in ids)


@way("streaming")
def streaming(family: str) -> None:
    """`generate()` in a thread of its own, its words read in this one while they come."""
    batch, model = inputs(family, "one image"), build(family)
    streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)
    found = []
    with fitting(family)(model) as pruned:
        thread = threading.Thread(target=lambda: found.append(generate(model, batch, streamer=streamer)))
        thread.start()
        words = "".join(streamer).split()
        thread.join()
    result = Run(family, batch, found[0], pruned.report)
    assert words == [str(word) for word in found[0].sequences[0, batch["input_ids"].shape[1] :].tolist()]
    agree(result)


@way("logits processors")
def logits_processors(family: str) -> None:
    """One of the caller's own, beside a repetition penalty, which reads the prompt."""
    lengths = []

    def look(ids: Tensor, scores: Tensor) -> Tensor:
        lengths.append(ids.shape[1])
        return scores

    found = run(family, logits_processor=LogitsProcessorList([look]), repetition_penalty=1.3)
    length = found.batch["input_ids"].shape[1]
    assert lengths == [length + step for step in range(STEPS)], "it must see the dense prompt"
    agree(found)


@way("stopping criteria")
def stopping_criteria(family: str) -> None:
    """`max_length` counts the dense prompt; a criterion of the caller's own sees it."""
    length = inputs(family, RAGGED)["input_ids"].shape[1]
    seen = []

    def stop(ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        seen.append(ids.shape[1])
        return torch.full((len(ids),), ids.shape[1] >= length + 2)

    found = run(family, stopping_criteria=StoppingCriteriaList([stop]))
    assert seen == [length + 1, length + 2]
    agree(found)
    found = run(family, steps=None, max_length=length + 2)
    assert found.out.sequences.shape[1] == length + 2
    agree(found)


@way("hidden states and attentions")
def internals(family: str) -> None:
    """As long as what the layer really saw; the last hidden state and the logits are as long as the prompt."""
    batch, model = inputs(family, "one image"), build(family, "eager")
    pruner = FastV(keep=0.3, layer=2)
    with pruner(model) as pruned, torch.no_grad():
        out = model(**batch, output_hidden_states=True, output_attentions=True)
    length = batch["input_ids"].shape[1]
    short = length - pruned.report.stages[0].dense[0] + len(pruned.report.stages[0].kept[0])
    assert short < length
    assert [states.shape[-2] for states in out.hidden_states[:LAYERS]] == [length] * 3 + [short] * 3
    seen = [length if number < 2 else short for number, layer in enumerate(decoder(model).layers) if attends(layer)]
    assert [weights.shape[-1] for weights in out.attentions] == seen
    assert out.logits.shape[1] == length


@way("use_cache=False")
def without_cache(family: str) -> None:
    """Every step is a prefill and is pruned again; by a method that ignores the question, to the same tokens."""
    unless_dense_fails(partial(_without_cache, family), ALONE)


def _without_cache(family: str, pruner: Pruner | None) -> None:
    with_cache, found = run(family, pruner=pruner), run(family, pruner=pruner, use_cache=False)
    agree(found)
    if pruner is not None:
        assert len(found.report.prefills) == STEPS
        same(found, with_cache)


@way("inputs_embeds")
def embeddings(family: str) -> None:
    """The prompt as embeddings of its ids, images as pixels; the model's own positions come along."""
    unless_dense_fails(partial(_embeddings, family), "without ids this model answers otherwise, also without pruning")


def _embeddings(family: str, pruner: Pruner | None) -> None:
    batch, model = inputs(family, RAGGED), build(family)
    if "inputs_embeds" not in inspect.signature(model.prepare_inputs_for_generation).parameters:
        raise NotApplicable("transformers' generate() takes none for this model")
    ids = batch["input_ids"]
    given = {name: value for name, value in batch.items() if name != "input_ids"}
    with torch.no_grad():
        given["inputs_embeds"] = model.get_input_embeddings()(ids)
        positions = prompt_positions(model, batch, 0)
        if positions.ndim == 3:  # without ids these models count images as text, also unpruned
            given["position_ids"] = positions
    with contextlib.nullcontext() if pruner is None else fitting(family)(model) as pruned:
        out = generate(model, given, STEPS)
    out.sequences = torch.cat([ids, out.sequences[:, -STEPS:]], 1)
    agree(Run(family, batch, out, None if pruned is None else pruned.report))


@way("right padding")
def right_padding(family: str) -> None:
    """A plain forward pass of a batch padded on the right: each sample's logits are those of the sample alone."""
    batch, model = inputs(family, RAGGED), build(family)
    padding = (batch["attention_mask"] == 0).sum(-1).tolist()
    length = batch["input_ids"].shape[1]
    turned = {
        name: torch.stack([row.roll(-pad, 0) for row, pad in zip(value, padding, strict=True)])
        if value.shape[:2] == batch["input_ids"].shape
        else value
        for name, value in batch.items()
    }
    with fitting(family)(model) as pruned, torch.no_grad():
        left, right = model(**batch).logits, model(**turned).logits
    assert not pruned.report.skipped
    for row, pad in enumerate(padding):
        torch.testing.assert_close(right[row, length - pad - 1], left[row, -1], **CLOSE)
