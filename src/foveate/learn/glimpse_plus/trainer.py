"""Log-probabilities of given answers, computed as `generate` computes them: prefill, then the answer on the cache.

In one pass over prompt and answer the answer would see, in the layers before the cut, visual tokens that are no longer
in the cache while generating. So the prompt runs first, with a KV cache that the pruner cuts, and the answer continues
on it; gradients flow through the cache.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from foveate.engine import Handle, attach
from foveate.engine.arguments import with_cache
from foveate.learn.data import GroundedSample
from foveate.learn.errors import TrainingError, refuse_states
from foveate.learn.glimpse_plus.pruner import GivenBoxes
from foveate.measure.bench.counters import Meter

PER_TOKEN = ("token_type_ids", "mm_token_type_ids")  # inputs of the processor with one entry a token


def answer_logps(
    model: Any, input_ids: Tensor, attention_mask: Tensor, answer: int, temperature: float = 1.0, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token and the entropy of the distribution it was drawn from.

    Parameters
    ----------
    model
        A vision-language model, with or without an adapter; an attached pruner works here as while generating.
    input_ids, attention_mask
        (B, P + C) long, the prompt padded on the left, then the answer padded on the right.
    answer
        C, length of the answers.
    temperature
        The logits are divided by it, as while sampling.
    inputs
        What else the processor gave, for the prompt.

    Returns
    -------
    tuple of Tensor
        Twice (B, C) float32; padding holds numbers without meaning. The entropy carries no gradient.

    Raises
    ------
    UnsupportedModelError
        For a model with linear attention or convolutions in its decoder.
    """
    refuse_states(getattr(model, "module", model))  # DistributedDataParallel has no config
    length = input_ids.shape[1] - answer
    inputs = {name: value[:, :length] if name in PER_TOKEN else value for name, value in inputs.items()}
    prompt, mask = input_ids[:, :length], attention_mask[:, :length]
    positions = _positions(model, prompt, mask, inputs)
    cache = DynamicCache()
    first = model(
        input_ids=prompt,
        attention_mask=mask,
        position_ids=positions,
        **with_cache(model, cache),
        use_cache=True,
        logits_to_keep=1,
        **inputs,
    )
    logits = first.logits[:, -1:]
    if answer > 1:
        words = input_ids[:, length:-1]
        # a sampled placeholder is a word
        types = {name: torch.zeros_like(words) for name in PER_TOKEN if inputs.get(name) is not None}
        rest = model(
            input_ids=words,
            attention_mask=attention_mask[:, :-1],
            position_ids=positions[..., -1:] + torch.arange(1, answer, device=positions.device),
            **with_cache(model, cache),
            use_cache=True,
            **types,
        )
        logits = torch.cat([logits, rest.logits], 1)
    return _score(logits, input_ids[:, length:], temperature)


def _positions(model: Any, prompt: Tensor, mask: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Position ids of a prompt as `generate` makes them: (B, P), or (3, B, P) where images have rows and columns.

    Made here, since Qwen's own way to go on after a prompt keeps state, and takes one token at a time.
    """
    plain = (mask.cumsum(-1) - 1).clamp(min=0)
    owner = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
    if owner is None:
        return plain
    if not any(inputs.get(name) is not None for name in ("image_grid_thw", "video_grid_thw")):
        return plain.expand(3, -1, -1)
    known = inspect.signature(owner.get_rope_index).parameters
    others = {name: value for name, value in inputs.items() if name in known}
    return cast("Tensor", owner.get_rope_index(input_ids=prompt, attention_mask=mask, **others)[0])


def _score(logits: Tensor, words: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = logits.float() / temperature
    everything = logits.logsumexp(-1)
    logps = logits.gather(-1, words[..., None])[..., 0] - everything
    with torch.no_grad():
        entropy = everything - (logits.softmax(-1) * logits).sum(-1)
    return logps, entropy


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
