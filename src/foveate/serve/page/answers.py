"""What the page shows of one question: both answers, what was kept, and how long both took."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.errors import FoveateError
from foveate.measure.eval.answers import AnsweredBatch, run_batch, until_end
from foveate.measure.eval.latency import alternate, clock_of
from foveate.measure.loading import LoadedModel
from foveate.measure.overlay import NoGridError, Panel, image_grids, overlay_row, seen_image, visual_positions
from foveate.pruners import Pruner
from foveate.pruners.budget import check_keep
from foveate.pruners.spec import build_with
from foveate.serve.media import decode_image, too_large
from foveate.serve.settings import Settings

USUAL = 0.25  # budget where nothing says another
LONGEST = 1000  # characters of a question
LIMITS = Settings(served_name="page")  # of an image's bytes and pixels
ROUNDS, QUICK = 3, 2.0  # timed rounds, where both answers took no more seconds than this; else one


class PageError(FoveateError, ValueError):
    """Something on the page, or for it, is missing or makes no sense."""


@dataclass(frozen=True)
class Asked:
    """What a visitor asks.

    Parameters
    ----------
    image
        In 8-bit RGB, see `read_image`.
    question
        In plain words.
    method
        Of the registry, or a saved pruner.
    keep
        Share of the visual tokens; None: the method's own budget.
    layer
        Decoder layer before which to cut; None: the method's own.
    """

    image: Image.Image
    question: str
    method: str
    keep: float | None = USUAL
    layer: int | None = None

    def pruner(self) -> Pruner:
        """Return what prunes.

        Raises
        ------
        UnknownMethodError, BudgetError
            There is no such method, it takes no layer, or a value makes no sense.
        """
        # as a share, whatever number the page sends: 1 is all tokens here, not one
        keep = None if self.keep is None else check_keep(float(self.keep))
        return build_with(self.method, {} if self.layer is None else {"layer": self.layer}, keep, USUAL)


@dataclass(frozen=True)
class Answers:
    """Both answers, and what was kept.

    Parameters
    ----------
    pruner
        What pruned.
    dense, pruned
        The answers.
    lengths
        Tokens of the two answers.
    visual
        Visual tokens of the dense prompt.
    panels
        The image as it is, and with the kept tokens of each stage.
    undrawn
        Why there are no panels.
    seconds
        How long answering took.
    """

    pruner: Pruner
    dense: AnsweredBatch
    pruned: AnsweredBatch
    lengths: tuple[int, int]
    visual: int
    panels: list[Panel]
    undrawn: str | None
    seconds: float

    @property
    def prefill(self) -> Any:
        """What the pruned run kept, see `foveate.Report`."""
        return self.pruned.report.prefills[0]

    @property
    def skipped(self) -> str | None:
        """Why nothing was pruned, if nothing was."""
        if self.prefill.skipped or not self.prefill.stages:
            return self.prefill.skipped or "the method made no cut"
        if all(len(stage.kept[0]) == self.visual for stage in self.prefill.stages):
            return "the method kept every visual token"
        return None


@dataclass(frozen=True)
class Seconds:
    """Medians over alternating rounds, dense and pruned; the ratio is a median of its own.

    Parameters
    ----------
    dense, pruned
        Seconds.
    ratio
        Pruned over dense; under 1 is a gain.
    """

    dense: float
    pruned: float
    ratio: float


def read_image(file: Path | None) -> Image.Image:
    """Return an uploaded image in 8-bit RGB.

    Raises
    ------
    PageError
        There is none, or none any more.
    ApiError
        It is of no format that is taken, broken, or has too many bytes or pixels.
    """
    if file is None:
        raise PageError("choose an image")
    try:
        if file.stat().st_size > LIMITS.max_image_bytes:
            raise too_large(LIMITS.max_image_bytes)
        data = file.read_bytes()
    except OSError:
        raise PageError("the uploaded image is no longer there: choose it again") from None
    return decode_image(data, LIMITS)


class SideBySide:
    """Answers questions dense and pruned, one at a time.

    Parameters
    ----------
    loaded
        The model and its processor; nothing else may attach to it.
    max_new_tokens
        Longest answer.
    """

    def __init__(self, loaded: LoadedModel, max_new_tokens: int = 64) -> None:
        self.loaded, self.max_new_tokens = loaded, max_new_tokens
        self._one = threading.Lock()  # a model has one pruner, or none, at a time

    def answer(self, asked: Asked) -> Answers:
        """Return both answers.

        Raises
        ------
        FoveateError
            The question is empty or too long, or the method does not fit; the message says what would be right.
        """
        question = asked.question.encode(errors="replace").decode().strip()  # half a pair of UTF-16 is no text
        if not question:
            raise PageError("write a question")
        if len(question) > LONGEST:
            raise PageError(f"a question has at most {LONGEST} characters, this one has {len(question)}")
        pruner = asked.pruner()
        with self._one:
            began = time.perf_counter()
            dense, pruned = (
                run_batch(self.loaded, [question], [[asked.image]], one, self.max_new_tokens) for one in (None, pruner)
            )
            seconds = time.perf_counter() - began
        visual = visual_positions(self.loaded.model.config, dense.inputs["input_ids"][0].cpu()).numel()
        panels, undrawn = self._panels(asked.image, dense.inputs, pruned.report.prefills[0].stages)
        return Answers(pruner, dense, pruned, self._lengths(dense, pruned), visual, panels, undrawn, seconds)

    def time(self, answers: Answers) -> dict[str, Seconds]:
        """Return how long prefill and whole answer take, "prefill" and "total"; both answers as long as the dense."""
        rounds = ROUNDS if answers.seconds <= QUICK else 1
        inputs, length = answers.dense.inputs, answers.lengths[0]
        with self._one:
            before, after = alternate(self.loaded.model, inputs, inputs, answers.pruner, length, rounds)
        return {
            part: Seconds(
                statistics.median(before[part]),
                statistics.median(after[part]),
                statistics.median(new / old for old, new in zip(before[part], after[part], strict=True)),
            )
            for part in before
        }

    @property
    def clock(self) -> str:
        """Which clock counts, see `foveate.measure.eval.latency.clock_of`."""
        return clock_of(self.loaded.model)

    def _lengths(self, *batches: AnsweredBatch) -> tuple[int, int]:
        ends = self.loaded.model.generation_config.eos_token_id
        dense, pruned = (len(until_end(batch.tokens[0].tolist(), ends)) for batch in batches)
        return dense, pruned

    def _panels(self, image: Image.Image, inputs: Any, stages: Any) -> tuple[list[Panel], str | None]:
        try:
            (grid,) = image_grids(self.loaded.model.config, inputs)
        except NoGridError as error:
            return [], str(error)
        return overlay_row(seen_image(self.loaded.processor, inputs, 0, image), stages, grid), None
