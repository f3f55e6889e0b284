"""One batch of questions, answered dense or pruned, with what the report says was kept."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from foveate.measure.eval.suites import Example
from foveate.measure.loading import LoadedModel
from foveate.measure.overlay import visual_positions


@dataclass(frozen=True)
class Answer:
    """The answer to one question and what it cost.

    Parameters
    ----------
    text
        What the model said.
    kept, visual
        Visual tokens after the last stage, and before any pruning.
    mean_tokens_per_layer, kv_share, flops_share
        Shares of the dense run, the first two of its visual tokens, of the batch that the question was in; `None`
        where the report knows no FLOPs.
    skipped
        Why nothing was pruned although it was asked for.
    """

    text: str
    kept: int
    visual: int
    mean_tokens_per_layer: float = 1.0
    kv_share: float = 1.0
    flops_share: float | None = 1.0
    skipped: str | None = None


@dataclass(frozen=True)
class AnsweredBatch:
    """A batch that was answered.

    Parameters
    ----------
    texts
        The answers.
    inputs
        What the processor made of questions and images.
    report
        What was kept; `None` of a dense run.
    """

    texts: list[str]
    inputs: Any
    report: Any = None


@torch.inference_mode()
def run_batch(
    loaded: LoadedModel,
    questions: list[str],
    images: list[list[Image.Image]],
    pruner: Any = None,
    max_new_tokens: int = 32,
) -> AnsweredBatch:
    """Return the greedy answers to a batch of questions.

    Parameters
    ----------
    loaded
        The model and its processor.
    questions
        One a sample.
    images
        Those of each sample.
    pruner
        `None` answers dense.
    max_new_tokens
        Longest answer.
    """
    inputs = loaded.inputs(questions, images)
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
    if pruner is None:
        return AnsweredBatch(_decode(loaded, inputs, loaded.model.generate(**inputs, **settings)), inputs)
    with pruner(loaded.model) as pruned:
        tokens = loaded.model.generate(**inputs, **settings)
    return AnsweredBatch(_decode(loaded, inputs, tokens), inputs, pruned.report)


def answer_batch(
    loaded: LoadedModel,
    examples: list[Example],
    pruner: Any = None,
    max_new_tokens: int = 32,
    shrink: float | int = 1.0,
) -> list[Answer]:
    """Return the answers to a batch of examples and what each cost.

    Parameters
    ----------
    loaded, pruner, max_new_tokens
        See `run_batch`.
    examples
        One image each.
    shrink
        Share of each image's pixels that is given to the processor; a count: this share of its visual tokens.
    """
    questions = [example.question for example in examples]
    shares = [shrink] * len(examples)
    if isinstance(shrink, int):
        whole = _visual(loaded, loaded.process(questions, [[example.image] for example in examples]))
        shares = [min(1.0, shrink / max(number, 1)) for number in whole]
    images = [[downsample(example.image, share)] for example, share in zip(examples, shares, strict=True)]
    batch = run_batch(loaded, questions, images, pruner, max_new_tokens)
    visual = _visual(loaded, batch.inputs)
    dense = [Answer("", count, count) for count in visual]
    spent = dense if batch.report is None else _after(batch.report, dense)
    return [replace(cost, text=text) for cost, text in zip(spent, batch.texts, strict=True)]


def _visual(loaded: LoadedModel, inputs: Any) -> list[int]:
    """Visual tokens of each prompt."""
    return [visual_positions(loaded.model.config, row).numel() for row in inputs["input_ids"]]


def _decode(loaded: LoadedModel, inputs: Any, tokens: torch.Tensor) -> list[str]:
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]


def _after(report: Any, dense: list[Answer]) -> list[Answer]:
    """Return what pruning left of each sample's dense cost, read from the report."""
    if not report.prefills:
        return [replace(cost, skipped="the pruner saw no prefill") for cost in dense]
    first = report.prefills[0]  # the prompt's own
    if not first.stages:
        return [replace(cost, skipped=first.skipped or "the pruner made no cut") for cost in dense]
    return [
        replace(
            cost,
            kept=len(positions),
            mean_tokens_per_layer=float(first.mean_tokens_per_layer),
            kv_share=float(first.kv_share),
            flops_share=first.flops_pruned / first.flops_dense if first.flops_dense else None,
            skipped=first.skipped,
        )
        for cost, positions in zip(dense, first.stages[-1].kept, strict=True)
    ]


def downsample(image: Image.Image, keep: float) -> Image.Image:
    """Return the image with `keep` of its pixels.

    Parameters
    ----------
    image
        Any size.
    keep
        Share of the pixels, over 0 and at most 1.
    """
    side = math.sqrt(keep)
    size = max(1, round(image.width * side)), max(1, round(image.height * side))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
