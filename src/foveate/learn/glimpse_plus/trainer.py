"""TRL's GRPO with pruned visual context, changed in three places.

1. While answers are sampled, the pruner is attached.
2. TRL scores an answer in one pass over prompt and answer. There the answer would see, in the layers before the cut,
   visual tokens that are not in the pruned cache, and "last prompt token" would not mean the prompt's end. So each
   such pass is replaced by `answer_logps`, which computes what sampling computed, also for the reference.
3. A sample's number travels with its answer through TRL's shuffling, so that its boxes are known when it is scored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from foveate.engine import Handle, attach
from foveate.learn.data import GroundedSample
from foveate.learn.errors import TrainingError
from foveate.learn.glimpse_plus.logps import answer_logps
from foveate.learn.glimpse_plus.pruner import GivenBoxes
from foveate.measure.bench.counters import Meter

INDEX = "sample"  # the column, and the entry of TRL's batch, that says which sample a row is


class PlusTrainer(GRPOTrainer):
    """`GRPOTrainer` whose every pass, sampling and scoring, policy and reference, runs with a pruner.

    Parameters
    ----------
    samples
        Those that the column `sample` of the data set counts.
    pruner
        None trains as TRL does, on all visual tokens.
    """

    def __init__(
        self, *, samples: Sequence[GroundedSample], pruner: GivenBoxes | None, args: GRPOConfig, **kwargs: Any
    ) -> None:
        self._samples, self._pruner = samples, pruner
        self._rows: list[int] = []
        self._sizes: dict[int, tuple[int, int]] = {}
        if pruner is not None:
            check_possible(args)
        super().__init__(args=args, **kwargs)
        self.meter = Meter(self.accelerator.device)
        self.add_callback(Costs(self.meter, self._note))

    def _note(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(value)

    def _size(self, row: int) -> tuple[int, int]:
        """Of a sample's image, in pixels."""
        if row not in self._sizes:
            self._sizes[row] = self._samples[row].image().size
        return self._sizes[row]

    @contextlib.contextmanager
    def _pruned(self, rows: Sequence[int]) -> Iterator[Handle | None]:
        """The model pruned for a batch of these samples."""
        if self._pruner is None:
            yield None
            return
        self._pruner.batch.boxes = [self._samples[row].boxes for row in rows]
        self._pruner.batch.sizes = [self._size(row) for row in rows]
        with attach(self.accelerator.unwrap_model(self.model), self._pruner) as handle:
            yield handle

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = [int(one[INDEX]) for one in inputs]
        self._sizes |= {row: one["images"][0].size for row, one in zip(self._rows, inputs, strict=True)}
        output = super()._generate_and_score_completions(inputs)
        return output | {INDEX: torch.tensor(self._rows)}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self._pruned(self._rows) as pruned:
            found = super()._generate_single_turn(*args, **kwargs)
        if pruned is not None:
            self._note("kept", pruned.report.last_layer_tokens)
            self._note("kv_share", pruned.report.kv_share)
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._rows = inputs[INDEX].tolist()
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        if self._pruner is not None:
            model = self._pruned_scores(model, logits_to_keep)
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _pruned_scores(self, model: Any, answer: int) -> Callable[..., Any]:
        """What TRL calls in place of the model; it gives the rows of a batch chunk by chunk."""
        at = 0

        def score(input_ids: Any, attention_mask: Any, labels: Any, fused_lm_head: bool, **inputs: Any) -> Any:
            nonlocal at
            rows, at = self._rows[at : at + len(input_ids)], at + len(input_ids)
            with self._pruned(rows):
                found = answer_logps(model, input_ids, attention_mask, answer, self.temperature, **inputs)
            return SimpleNamespace(log_probs=found[0], entropy=found[1])

        return score


class Costs(TrainerCallback):
    """Time and peak memory of each step, sampling to update, among TRL's own figures."""

    def __init__(self, meter: Meter, note: Callable[[str, float], None]) -> None:
        self.meter, self.note = meter, note

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.meter.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        for name, value in self.meter.stop().items():
            self.note(name, value)


class ShowSteps(TrainerCallback):
    """Report how far the training is."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress("fine-tuning", state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress("fine-tuning", state.global_step, state.max_steps)


def check_possible(args: GRPOConfig) -> None:
    """Refuse what does not go with a pruned KV cache.

    Raises
    ------
    TrainingError
        In one sentence.
    """
    if args.use_vllm:
        raise TrainingError("rollouts in vLLM would not be pruned, as hooks do not exist there: leave vLLM off")
    if args.use_transformers_continuous_batching:
        raise TrainingError("continuous batching has a paged KV cache, which cannot be pruned: leave it off")
    if args.gradient_checkpointing:
        raise TrainingError(
            "gradient checkpointing runs without a KV cache, which pruning needs: leave it off, or train unpruned"
        )
