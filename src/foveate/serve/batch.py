"""One batch through `generate`: each row draws, stops and is sent by itself."""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from foveate.serve.jobs import Done, Job, Piece, Pruned, TokenScore
from foveate.serve.joining import Prefill, Running
from foveate.serve.prompts import Prompts
from foveate.serve.sampling import draw
from foveate.serve.text import AnswerText


@dataclass
class Measured:
    """What a batch took.

    Attributes
    ----------
    rows
        Sequences in it.
    kv_bytes
        Of the KV cache at its end.
    selection_ms
        Spent selecting visual tokens.
    steps
        Seconds between the tokens after the first.
    first
        For each row that began here, the seconds from its arrival to its first token.
    pruned
        For each row, what was kept.
    """

    rows: int
    kv_bytes: int
    selection_ms: float
    steps: list[float]
    first: list[float]
    pruned: list[Pruned]


class Batches:
    """Answers batches of jobs on one model, in one thread at a time.

    Parameters
    ----------
    prompts
        Of the model.
    """

    def __init__(self, prompts: Prompts) -> None:
        self.prompts, self.model = prompts, prompts.loaded.model
        # its own: a tokenizer must not decode while another thread changes its padding
        self.tokenizer = copy.deepcopy(prompts.loaded.processor.tokenizer)
        self.config = plain_config(self.model.generation_config, self.tokenizer)

    @torch.inference_mode()
    def answer(self, jobs: Sequence[Job]) -> Measured:
        """Answer jobs that have the same pruner; each is sent its answer as soon as it is over.

        Raises
        ------
        Exception
            Whatever the model raises; jobs that are not over then know the tokens that they have.
        """
        pruner = jobs[0].pruner
        with contextlib.nullcontext() if pruner is None else pruner(self.model) as handle:
            steps = self._steps(jobs, handle)
            out = self._generate(self._inputs(jobs), steps, max(job.max_new for job in jobs))
        return _measured(len(jobs), cache_bytes(out), steps, steps.times)

    @torch.inference_mode()
    def answer_joined(self, jobs: list[Job], more: Callable[[int], list[Job]]) -> Iterator[Measured]:
        """As `answer`; jobs that come while others decode join them.

        Parameters
        ----------
        jobs
            Those that begin; those that join are appended.
        more
            Returns jobs that have the same pruner, given how many sequences run.

        Yields
        ------
        Measured
            What each prefill took, and the steps after it until the next one.
        """
        pruner, coming = jobs[0].pruner, list(jobs)
        running, rows = Running(self.model, self.config), _Steps([], self.tokenizer, None, list)
        with contextlib.nullcontext() if pruner is None else pruner(self.model) as handle:
            while coming:
                # 1. those that come are read by themselves, and take their place beside those that run
                new, inputs = self._steps(coming, handle), self._inputs(coming)
                with Prefill(self.model) as seen:
                    out = self._generate(inputs, new, 1)
                running.join(out, inputs["attention_mask"], seen)
                rows.add(new)
                most, coming = len(rows.rows), []
                # 2. one token a step, until others come or all are over
                while stay := rows.leave():
                    if len(stay) < len(running.ids):
                        running.leave(stay)
                    if coming := more(len(stay)):
                        break
                    rows.draw(running.scores())
                    running.take(rows.picked)
                    rows.stop()
                jobs += coming
                yield _measured(most, cache_bytes({"cache": running.cache}), new, rows.times)

    def _inputs(self, jobs: Sequence[Job]) -> Any:
        return self.prompts.batch([job.prompt for job in jobs])

    def _steps(self, jobs: Sequence[Job], handle: Any) -> _Steps:
        def kept() -> list[Pruned]:
            return pruned_rows(jobs, None if handle is None else handle.report.prefills[-1])

        return _Steps(jobs, self.tokenizer, self.config.eos_token_id, kept)

    def _generate(self, inputs: Any, steps: _Steps, longest: int) -> Any:
        config = copy.deepcopy(self.config)
        config.max_new_tokens = longest
        return self.model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([_Draw(steps)]),
            stopping_criteria=StoppingCriteriaList([_Stop(steps)]),
        )


def _measured(rows: int, held: int, began: _Steps, times: Sequence[float]) -> Measured:
    return Measured(
        rows,
        held,
        max((one.selection_ms for one in began.pruned), default=0.0),
        [after - before for before, after in itertools.pairwise(times)],
        began.first,
        began.pruned,
    )


def plain_config(found: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """Return a model's generation config without what draws tokens: that is each row's own affair."""
    config = copy.deepcopy(found)
    config.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_length=None)
    config.update(num_beams=1, num_return_sequences=1, return_dict_in_generate=True)
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    config.eos_token_id = [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    config.eos_token_id = config.eos_token_id or None
    return config


def pruned_rows(jobs: Sequence[Job], prefill: Any) -> list[Pruned]:
    """Return what a prefill's report says of each row; of a dense run it is None."""
    dense = [job.prompt.visual for job in jobs]
    if prefill is None or not prefill.stages:
        skipped = None if prefill is None else prefill.skipped or "the method made no cut"
        return [Pruned(number, number, skipped) for number in dense]
    rows = []
    for job, number, kept in zip(jobs, dense, prefill.stages[-1].kept, strict=True):
        least = 0 if job.pruner is None else job.pruner.min_visual
        few = number < least
        why = f"{number} visual tokens are fewer than min_visual={least}: so few run dense" if few else None
        rows.append(Pruned(number, number if few else len(kept), why, prefill.selection_ms))
    return rows


def cache_bytes(out: Any) -> int:
    """Return the bytes of the KV cache that `generate` left; 0 where it does not show its layers."""
    cache = next((out[name] for name in ("cache", "past_key_values") if name in out), None)
    tensors = [
        value
        for layer in getattr(cache, "layers", [])
        for value in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(value, Tensor)
    ]
    return sum(value.numel() * value.element_size() for value in tensors)


class _Row:
    """A job while its batch runs."""

    def __init__(self, job: Job, tokenizer: Any, ends: Sequence[int]) -> None:
        self.job, self.ends = job, ends
        self.text = AnswerText(tokenizer, job.stop)
        self.generator = job.sampling.generator()
        self.known = list(job.tokens)  # of a run before, which are not drawn again
        self.taken = 0
        self.scores: list[TokenScore] = []

    def take(self, token: int, pruned: Pruned) -> None:
        """The next token is there."""
        job = self.job
        if self.taken >= len(self.known):
            job.tokens.append(token)
        self.taken += 1
        ended = token in self.ends
        if not ended:
            self.text.add(token)
        if ended or self.text.stopped or self.taken == job.max_new:
            self.text.end()
            self._send(len(self.text.text))
            whole = ended or self.text.stopped
            job.finish(Done(self.text.text, "stop" if whole else "length", self.taken, pruned, self.scores))
        else:
            self._send(self.text.certain)

    def _send(self, certain: int) -> None:
        job = self.job
        if not job.streams or self.taken < len(self.known) or job.over:
            return
        text, scores = self.text.text[job.sent : certain], self.scores[job.scored :]
        if text or (scores and certain == len(self.text.text)):
            job.sent, job.scored = max(certain, job.sent), len(self.scores)
            job.send(Piece(text, scores))


class _Steps:
    """The rows of a batch, step by step."""

    def __init__(
        self, jobs: Sequence[Job], tokenizer: Any, ends: Sequence[int] | None, kept: Callable[[], list[Pruned]]
    ) -> None:
        self.rows = [_Row(job, tokenizer, ends or ()) for job in jobs]
        self.kept, self.pruned = kept, list[Pruned]()
        self.top = max((job.top for job in jobs if job.top is not None), default=None)
        self.times: list[float] = []
        self.first: list[float] = []
        self.picked = torch.empty(0, dtype=torch.long)
        self._scores: list[tuple[float, list[int], list[float]]] = []

    def add(self, other: _Steps) -> None:
        """Take in the rows of others after their first token."""
        self.rows, self.pruned = self.rows + other.rows, self.pruned + other.pruned
        self.top = max((row.job.top for row in self.rows if row.job.top is not None), default=None)
        self.times = self.times[-1:] or other.times[-1:]

    def leave(self) -> list[int]:
        """Let the rows that are over go; which of them stay."""
        stay = [number for number, row in enumerate(self.rows) if not row.job.over]
        self.rows, self.pruned = [self.rows[at] for at in stay], [self.pruned[at] for at in stay]
        return stay

    def draw(self, scores: Tensor) -> Tensor:
        """Draw each row's token; scores in which it is the only one that can be."""
        picked = draw(scores, [row.job.sampling for row in self.rows], [row.generator for row in self.rows])
        for number, row in enumerate(self.rows):
            if row.taken < len(row.known):
                picked[number] = row.known[row.taken]
        if self.top is not None:
            logarithms = scores.float().log_softmax(-1)
            own = logarithms.gather(-1, picked[:, None])[:, 0]
            best = logarithms.topk(max(self.top, 1), -1)
            self._scores = list(zip(own.tolist(), best.indices.tolist(), best.values.tolist(), strict=True))
        self.picked = picked
        return torch.full_like(scores, -torch.inf).scatter(-1, picked[:, None], 0.0)

    def stop(self) -> list[bool]:
        """Take in the tokens that were drawn; which rows are over."""
        tokens, now = self.picked.tolist(), time.monotonic()  # waits for the device
        self.times.append(now)
        if not self.pruned:
            self.pruned = self.kept()
        for number, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            job = row.job
            if not job.first_seen:
                job.first_seen = True
                self.first.append(now - job.arrived)
            if job.expired():
                continue
            if job.top is not None:
                own, ids, values = self._scores[number]
                top = tuple(zip(ids[: job.top], values[: job.top], strict=True))
                row.scores.append(TokenScore(token, own, top))
            row.take(token, self.pruned[number])
        return [row.job.over for row in self.rows]


class _Draw(LogitsProcessor):
    def __init__(self, steps: _Steps) -> None:
        self.steps = steps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.steps.draw(scores)


class _Stop(StoppingCriteria):
    def __init__(self, steps: _Steps) -> None:
        self.steps = steps

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(self.steps.stop(), device=input_ids.device)
