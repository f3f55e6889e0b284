"""The same questions answered dense and pruned, side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.measure.bench.timing import PrefillTime, time_prefill
from foveate.measure.eval.answers import AnsweredBatch, run_batch
from foveate.measure.eval.suites import Example, is_correct
from foveate.measure.loading import LoadedModel
from foveate.measure.overlay import draw_panels, image_grids, overlay_row, seen_image


@dataclass(frozen=True)
class Comparison:
    """Answers of one batch, dense and pruned, and the prefill time of one beside the other.

    Parameters
    ----------
    loaded
        The model and its processor.
    examples
        What was asked.
    dense, pruned
        The answers.
    timed
        How long the prefill took.
    """

    loaded: LoadedModel
    examples: list[Example]
    dense: AnsweredBatch
    pruned: AnsweredBatch
    timed: PrefillTime

    @property
    def prefill(self) -> Any:
        """What the pruned run kept."""
        return self.pruned.report.prefills[0]

    def right(self, batch: AnsweredBatch) -> int:
        """Return how many answers of a batch are right."""
        return sum(is_correct(text, one.answer) for text, one in zip(batch.texts, self.examples, strict=True))

    def kept(self) -> list[tuple[int, int]]:
        """Return, by question, the visual tokens that survive the last stage and those of the dense prompt."""
        if not self.prefill.stages:
            return [(0, 0)] * len(self.examples)
        last = self.prefill.stages[-1]
        return [(len(positions), dense) for positions, dense in zip(last.kept, last.dense, strict=True)]

    def draw(self, path: Path) -> Path:
        """Write the image of the kept tokens: a row for each question, two or three beside each other."""
        rows, captions = [], []
        for at, example in enumerate(self.examples):
            image = seen_image(self.loaded.processor, self.dense.inputs, at, example.image)
            (grid,) = image_grids(self.loaded.model.config, self.dense.inputs, at)
            rows.append(overlay_row(image, self.prefill.stages, grid, at))
            answers = f"dense: {self.dense.texts[at]}, pruned: {self.pruned.texts[at]}"
            captions.append(f"{example.question}   {answers}")
        return draw_panels(rows, path, captions, columns=2 if len(rows) % 3 else 3)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "questions": [
                {"task": one.task, "question": one.question, "truth": one.answer, "dense": dense, "pruned": pruned}
                for one, dense, pruned in zip(self.examples, self.dense.texts, self.pruned.texts, strict=True)
            ],
            "right": {"dense": self.right(self.dense), "pruned": self.right(self.pruned)},
            "report": self.pruned.report.to_dict(),
            "prefill_time": self.timed.to_dict(),
        }


def compare(loaded: LoadedModel, examples: list[Example], pruner: Any, max_new_tokens: int = 32) -> Comparison:
    """Answer one batch of questions dense and pruned, and time the prefill of both.

    Parameters
    ----------
    loaded
        The model and its processor.
    examples
        One batch, one image each.
    pruner
        What is compared with the dense run.
    max_new_tokens
        Longest answer.
    """
    questions, images = [one.question for one in examples], [[one.image] for one in examples]
    dense = run_batch(loaded, questions, images, None, max_new_tokens)
    pruned = run_batch(loaded, questions, images, pruner, max_new_tokens)
    timed = time_prefill(loaded.model, dense.inputs, pruner)
    return Comparison(loaded, examples, dense, pruned, timed)
