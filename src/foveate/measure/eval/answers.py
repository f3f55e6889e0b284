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
    kept_tokens
        Which of the visual tokens were kept, as `token_bits` writes it; `None` where nobody asked for it.
    """

    text: str
    kept: int
    visual: int
    mean_tokens_per_layer: float = 1.0
    kv_share: float = 1.0
    flops_share: float | None = 1.0
    skipped: str | None = None
    kept_tokens: str | None = None


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
    max_new_tokens: int = 8,
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
    max_new_tokens: int = 8,
    shrink: float | int = 1.0,
    which: bool = False,
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
    which
        Record which visual tokens were kept.
    """
    questions, images = _shrunk(loaded, examples, shrink)
    batch = run_batch(loaded, questions, images, pruner, max_new_tokens)
    visual = _visual(loaded, batch.inputs)
    dense = [Answer("", count, count) for count in visual]
    spent = dense if batch.report is None else _after(batch.report, dense)
    if which and batch.report is not None and batch.report.prefills and batch.report.prefills[0].stages:
        kept = batch.report.prefills[0].stages[-1].kept
        rows = zip(spent, kept, batch.inputs["input_ids"].cpu(), strict=True)
        spent = [
            replace(cost, kept_tokens=token_bits(torch.isin(visual_positions(loaded.model.config, ids), own)))
            for cost, own, ids in rows
        ]
    return [replace(cost, text=text) for cost, text in zip(spent, batch.texts, strict=True)]


def batch_inputs(loaded: LoadedModel, examples: list[Example], shrink: float | int = 1.0) -> Any:
    """Return what the processor makes of a batch of examples; the arguments are those of `answer_batch`."""
    return loaded.inputs(*_shrunk(loaded, examples, shrink))


def _shrunk(
    loaded: LoadedModel, examples: list[Example], shrink: float | int
) -> tuple[list[str], list[list[Image.Image]]]:
    """Questions, and images with that share of their pixels."""
    questions = [example.question for example in examples]
    shares = [shrink] * len(examples)
    if isinstance(shrink, int):
        whole = _visual(loaded, loaded.process(questions, [[example.image] for example in examples]))
        shares = [min(1.0, shrink / max(number, 1)) for number in whole]
    images = [[downsample(example.image, share)] for example, share in zip(examples, shares, strict=True)]
    return questions, images


def token_bits(kept: torch.Tensor) -> str:
    """Return `(N,) bool` as hexadecimal digits: the first token is the highest bit, zeros fill the last digit."""
    bits = "".join("1" if one else "0" for one in kept.tolist())
    digits = -(-len(bits) // 4)
    return f"{int(bits.ljust(4 * digits, '0') or '0', 2):0{digits}x}" if digits else ""


def token_list(bits: str, number: int) -> list[bool]:
    """Return what `token_bits` was given, of `number` tokens."""
    return [one == "1" for one in f"{int(bits or '0', 16):0{4 * len(bits)}b}"[:number]]


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
