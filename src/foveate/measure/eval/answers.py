"""One batch of questions, answered dense or pruned, with what the report says was kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from foveate.measure.eval.suites import Example
from foveate.measure.loading import LoadedModel, Videos
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
    tokens
        Ids of the first tokens of the answer; `None` where nobody asked for them.
    distance
        "kl" and "same-tokens" of the first tokens, see `scoring.compare`; `None` where nobody asked for them.
    """

    text: str
    kept: int
    visual: int
    mean_tokens_per_layer: float = 1.0
    kv_share: float = 1.0
    flops_share: float | None = 1.0
    skipped: str | None = None
    kept_tokens: str | None = None
    tokens: list[int] | None = None
    distance: dict[str, float] | None = None


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
    tokens
        (B, T) long, the ids of the answers.
    """

    texts: list[str]
    inputs: Any
    report: Any = None
    tokens: Any = None


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
    return generate(loaded, loaded.inputs(questions, images), pruner, max_new_tokens)


@torch.inference_mode()
def generate(loaded: LoadedModel, inputs: Any, pruner: Any = None, max_new_tokens: int = 32) -> AnsweredBatch:
    """Return the greedy answers to a processed batch; the arguments are those of `run_batch`."""
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
    if pruner is None:
        whole, report = loaded.model.generate(**inputs, **settings), None
    else:
        with pruner(loaded.model) as pruned:
            whole = loaded.model.generate(**inputs, **settings)
        report = pruned.report
    new = whole[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in loaded.processor.batch_decode(new, skip_special_tokens=True)]
    return AnsweredBatch(texts, inputs, report, new)


def answer_batch(
    loaded: LoadedModel,
    examples: Sequence[Example],
    pruner: Any = None,
    max_new_tokens: int = 32,
    shrink: float | int = 1.0,
    which: bool = False,
    inputs: Any = None,
) -> list[Answer]:
    """Return the answers to a batch of examples and what each cost.

    Parameters
    ----------
    loaded, pruner, max_new_tokens
        See `run_batch`.
    examples
        Any number of images and videos each.
    shrink
        Share of each image's pixels that is given to the processor; a count: this share of its visual tokens.
    which
        Record which visual tokens were kept.
    inputs
        The processed batch, where it is there already.
    """
    inputs = batch_inputs(loaded, examples, shrink) if inputs is None else inputs
    batch = generate(loaded, inputs, pruner, max_new_tokens)
    spent = spent_on(loaded, inputs, batch.report, which)
    ends = loaded.model.generation_config.eos_token_id
    tokens = [until_end(row, ends) for row in batch.tokens.tolist()]
    return [replace(cost, text=text, tokens=own) for cost, text, own in zip(spent, batch.texts, tokens, strict=True)]


def until_end(tokens: list[int], ends: int | list[int] | None) -> list[int]:
    """Return the tokens of an answer up to the one that ends it."""
    known = [] if ends is None else [ends] if isinstance(ends, int) else ends
    at = next((at for at, token in enumerate(tokens) if token in known), len(tokens))
    return tokens[: at + 1]


def spent_on(loaded: LoadedModel, inputs: Any, report: Any, which: bool = False) -> list[Answer]:
    """Return what each sample of a processed batch cost, without its answer; `report` is `None` of a dense run."""
    dense = [Answer("", count, count) for count in _visual(loaded, inputs)]
    spent = dense if report is None else _after(report, dense)
    if which and report is not None and report.prefills and report.prefills[0].stages:
        kept = report.prefills[0].stages[-1].kept
        rows = zip(spent, kept, inputs["input_ids"].cpu(), strict=True)
        spent = [
            replace(cost, kept_tokens=token_bits(torch.isin(visual_positions(loaded.model.config, ids), own)))
            for cost, own, ids in rows
        ]
    return spent


def batch_inputs(loaded: LoadedModel, examples: Sequence[Example], shrink: float | int = 1.0) -> Any:
    """Return what the processor makes of a batch of examples; the arguments are those of `answer_batch`."""
    questions = [example.question for example in examples]
    shares = [shrink] * len(examples)
    if isinstance(shrink, int):
        shown = [list(example.images) for example in examples], [list(example.videos) for example in examples]
        whole = _visual(loaded, loaded.process(questions, *_images_alone(*shown)))
        shares = [min(1.0, shrink / max(number, 1)) for number in whole]
    pairs = list(zip(examples, shares, strict=True))
    images = [[downsample(image, share) for image in example.images] for example, share in pairs]
    videos = [
        [tuple(downsample(frame, share) for frame in video) for video in example.videos] for example, share in pairs
    ]
    return loaded.inputs(questions, *_images_alone(images, videos))


def _images_alone(images: list[list[Image.Image]], videos: Videos) -> tuple[Any, ...]:
    """Images, and videos where there are any."""
    return (images, videos) if any(videos) else (images,)


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
