"""One batch of questions and what its arms share: the processed prompts, the encoded images and the dense answers."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from foveate.measure.eval.answers import Answer, answer_batch, batch_inputs, spent_on
from foveate.measure.eval.scoring import Forced, after_prompts, answer_words, compare, likeliest_letter
from foveate.measure.eval.shared_vision import SharedVision
from foveate.measure.eval.suites import Example
from foveate.measure.loading import InputError, LoadedModel

Mode = Literal["generate", "score"]


@dataclass(frozen=True)
class Way:
    """How answers are made.

    Parameters
    ----------
    mode
        "generate", or "score": the dense model's answer is read, and nothing generated but that.
    max_new_tokens
        Longest answer.
    score_tokens
        First tokens of the dense answer by which next words are compared; 0 compares none.
    which
        Record which visual tokens were kept.
    """

    mode: Mode = "generate"
    max_new_tokens: int = 32
    score_tokens: int = 0
    which: bool = False


class Batch:
    """A batch of questions.

    Parameters
    ----------
    loaded
        The model and its processor.
    examples
        The questions, with their images.
    way
        How they are answered.
    dense
        The ids of the first tokens of the dense answers, where they are known from before.
    """

    def __init__(
        self, loaded: LoadedModel, examples: Sequence[Example], way: Way, dense: list[list[int]] | None = None
    ) -> None:
        self.loaded, self.examples, self.way = loaded, examples, way
        self._dense = dense
        self._vision = SharedVision(loaded.model)

    @cached_property
    def inputs(self) -> Any:
        """The processed prompts."""
        return batch_inputs(self.loaded, self.examples)

    def answer(self, pruner: Any, shrink: float | int = 1.0) -> list[Answer]:
        """Return the answers of an arm; of the dense one with the ids of their first tokens, where they are scored."""
        if shrink != 1 or isinstance(shrink, int):
            return self._answer(self._smaller(shrink), pruner)
        with self._vision.sharing(pruner):
            return self._answer(self.inputs, pruner)

    def _answer(self, inputs: Any, pruner: Any) -> list[Answer]:
        dense = pruner is None and inputs is self.inputs
        way = self.way
        if way.mode == "generate" or (dense and self._dense is None):
            answers = answer_batch(self.loaded, self.examples, pruner, way.max_new_tokens, 1.0, way.which, inputs)
            if dense and self._dense is None:
                self._dense = [(answer.tokens or [])[: way.score_tokens] for answer in answers]
        else:
            answers = []
        if not way.score_tokens:
            return [replace(answer, tokens=None) for answer in answers]
        words, report = self._words(inputs, pruner)
        if not answers:
            answers = spent_on(self.loaded, inputs, report, way.which)
        if way.mode == "score":
            answers = [
                replace(answer, text=self._said(example, own, real))
                for answer, example, own, real in zip(answers, self.examples, words, self._forced.real, strict=True)
            ]
        far = compare(self._words_of_dense, words, self._forced.real)
        tokens = self._dense if dense else [None] * len(answers)
        return [
            replace(answer, distance=one, tokens=own)
            for answer, one, own in zip(answers, far, tokens, strict=True)  # type: ignore[arg-type]
        ]

    def _smaller(self, shrink: float | int) -> Any:
        return batch_inputs(self.loaded, self.examples, shrink)

    @cached_property
    def _forced(self) -> Forced:
        return self._force(self.inputs)

    def _force(self, inputs: Any) -> Forced:
        if self._dense is None:
            raise RuntimeError("the dense answers come first")
        ends = self.loaded.model.generation_config.eos_token_id
        end = ends[0] if isinstance(ends, list) else ends or 0  # an answer that is shorter has it already
        longest = max(len(tokens) for tokens in self._dense)
        padded = [tokens + [end] * (longest - len(tokens)) for tokens in self._dense]
        return after_prompts(inputs, torch.tensor(padded, device=inputs["input_ids"].device), ends)

    @cached_property
    def _words_of_dense(self) -> Tensor:
        words = answer_words(self.loaded.model, self._forced)
        if words.isnan().any():
            raise InputError(
                f"{self.loaded.name} itself gives no numbers (NaN) on these questions: try another --dtype"
            )
        return words

    def _words(self, inputs: Any, pruner: Any) -> tuple[Tensor, Any]:
        """Log-probabilities of the next words after the dense answer's, and the report."""
        forced = self._forced if inputs is self.inputs else self._force(inputs)
        if pruner is None:
            same = inputs is self.inputs
            return (self._words_of_dense if same else answer_words(self.loaded.model, forced)), None
        with pruner(self.loaded.model) as pruned:
            words = answer_words(self.loaded.model, forced)
        return words, pruned.report

    def _said(self, example: Example, words: Tensor, real: Tensor) -> str:
        """The likeliest letter of a choice; without choices the likeliest word at each place of the dense answer."""
        choices = getattr(example, "choices", ())
        if choices:
            return string.ascii_uppercase[likeliest_letter(words[0], self._letters[: len(choices)])]
        text = self.loaded.processor.tokenizer.decode(words.argmax(-1)[real], skip_special_tokens=True)
        return str(text).strip()

    @cached_property
    def _letters(self) -> list[list[int]]:
        """Ids of the tokens that a letter can be: as the first word, and with a blank before it."""
        encode = self.loaded.processor.tokenizer.encode
        return [
            [encode(text, add_special_tokens=False)[-1] for text in (letter, f" {letter}")]
            for letter in string.ascii_uppercase
        ]
