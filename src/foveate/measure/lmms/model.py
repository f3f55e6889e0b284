"""The class that lmms-eval runs: any supported model, dense or with any method."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from transformers import StoppingCriteria, StoppingCriteriaList

from foveate.errors import BudgetError
from foveate.measure.bench.timing import synchronize
from foveate.measure.eval.arms import DENSE
from foveate.measure.images import as_rgb
from foveate.measure.loading import load_model
from foveate.pruners.spec import build_with, parse_value

LONGEST = 1024  # new tokens, where a task does not say
KEEP = 0.22
SAMPLING = ("top_p", "top_k", "num_beams", "repetition_penalty")
MEANS = ("visual_tokens", "visual_tokens_kept", "kv_share", "mean_tokens_per_layer")


class Foveate(lmms):
    """A model of transformers, pruned.

    Parameters
    ----------
    pretrained
        A Hub id, a folder, or `tiny`, the embedded model.
    method
        A method's name, the folder or Hub id of a saved pruner, or `dense`.
    keep
        Budget, as everywhere in foveate: a share, or a count. By default 0.22, or the method's own where it has one.
    batch_size
        Requests answered at once.
    device, dtype
        As for the commands of foveate.
    attn_implementation
        Attention backend; by default the model's.
    max_num_frames
        Frames of a video.
    system_prompt
        Put before every conversation; a file, or the text.
    options
        Of the method, such as `layer=2`.

    Raises
    ------
    FoveateError
        A model, a method, an option or a budget does not exist, or they do not go together.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str = DENSE,
        keep: float | int | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        max_num_frames: int = 32,
        system_prompt: str | None = None,
        max_batch_size: Any = None,
        **options: Any,
    ) -> None:
        from accelerate import Accelerator

        super().__init__()
        options = {name: parse_value(value) if isinstance(value, str) else value for name, value in options.items()}
        if method == DENSE and (keep is not None or options):
            raise BudgetError(f"keep and {sorted(options) or 'options'} go with a method; none was given")
        self.pruner = None if method == DENSE else build_with(method, options, keep, KEEP)
        accelerator = Accelerator()
        if accelerator.num_processes > 1:
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
            device = str(accelerator.device)
        self.loaded = load_model(pretrained, device or "auto", dtype)
        if attn_implementation is not None:
            self.loaded.model.set_attn_implementation(attn_implementation)
        if self.pruner is not None:
            self.pruner.resolved(self.loaded.model.config)  # what does not fit the model is said now
        self.batch_size = int(batch_size)
        self.max_num_frames = max_num_frames
        self.system_prompt = None if system_prompt is None else self._resolve_system_prompt(system_prompt)

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Return the answers, their tokens counted; time to first token and visual tokens go to the run's record."""
        answers: dict[int, GenerationResult] = {}
        record = _Record()
        same = sorted(
            range(len(requests)), key=lambda at: repr(requests[at].args[2])
        )  # stable: in order within a kind
        for _, kind in itertools.groupby(same, key=lambda at: repr(requests[at].args[2])):
            for places in _batched(kind, self.batch_size):
                batch = [requests[at].args for at in places]
                results = self._answer(batch, record)
                answers |= dict(zip(places, results, strict=True))
                for (context, _, settings, *_), result in zip(batch, results, strict=True):
                    self.cache_hook.add_partial("generate_until", (context, settings), result.text)
        record.log()
        return [answers[at] for at in range(len(requests))]

    def _answer(self, batch: Sequence[tuple[Any, ...]], record: _Record) -> list[GenerationResult]:
        chats = []
        for _, doc_to_messages, _, doc_id, task, split in batch:
            messages = doc_to_messages(self.task_dict[task][split][doc_id])
            if self.system_prompt:
                messages = self._apply_system_prompt(messages, self.system_prompt)
            chats.append(ChatMessages(messages=messages))
        model, settings = self.loaded.model, dict(batch[0][2])
        inputs = self._inputs(chats).to(model.device, dtype=model.dtype)
        first = FirstToken(model.device)
        start = first.now()
        arguments = {**inputs, **_generation(settings), "stopping_criteria": StoppingCriteriaList([first])}
        report = None
        with torch.inference_mode():
            if self.pruner is None:
                whole = model.generate(**arguments)
            else:
                with self.pruner(model) as pruned:
                    whole = model.generate(**arguments)
                report = pruned.report
        seconds = first.now() - start
        new = whole[:, inputs["input_ids"].shape[1] :]
        texts = self.loaded.processor.batch_decode(new, skip_special_tokens=True)
        asked = [int(row) for row in inputs["attention_mask"].sum(-1)]
        ends = model.generation_config.eos_token_id
        said = [_length(row, ends) for row in new.tolist()]
        record.add(len(batch), seconds, first.at - start if first.at else seconds, sum(said), report)
        return [
            GenerationResult(
                text=_until(text.strip(), settings.get("until")),
                token_counts=TokenCounts(input_tokens=before, output_tokens=after),
            )
            for text, before, after in zip(texts, asked, said, strict=True)
        ]

    def _inputs(self, chats: Sequence[ChatMessages]) -> Any:
        """The processed batch: by the model's chat template, or as foveate asks a model that has none."""
        processor = self.loaded.processor
        if getattr(processor, "chat_template", None):
            frames = {"num_frames": self.max_num_frames} if any(chat.extract_media()[1] for chat in chats) else {}
            return processor.apply_chat_template(
                [_images_rgb(chat.to_hf_messages()) for chat in chats],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
                padding_side="left",
                **frames,
            )
        questions = ["\n".join(_texts(chat)) for chat in chats]
        return self.loaded.process(questions, [[as_rgb(one) for one in chat.extract_media()[0]] for chat in chats])

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: tasks that are scored by likelihood are not answered."""
        raise NotImplementedError("foveate answers tasks of generate_until, and none of loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: tasks of several rounds are not answered."""
        raise NotImplementedError("foveate answers tasks of generate_until, and none of several rounds")


class FirstToken(StoppingCriteria):
    """Stops nothing, and notes when the first token is there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.at = device, 0.0

    def now(self) -> float:
        """Return the time at which the device has done all that it was given."""
        synchronize(self.device)
        return time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Note the time, once."""
        if not self.at:
            self.at = self.now()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class _Record:
    """Sums over all batches of a run."""

    def __init__(self) -> None:
        self.requests, self.seconds, self.tokens, self.not_pruned = 0, 0.0, 0, 0
        self.first: float = 0.0
        self.sums = dict.fromkeys(MEANS, 0.0)
        self.reasons: set[str] = set()

    def add(self, requests: int, seconds: float, first: float, tokens: int, report: Any) -> None:
        self.requests += requests
        self.seconds += seconds
        self.first += first * requests
        self.tokens += tokens
        if report is None:
            return
        prefill = report.prefills[0] if report.prefills else None
        if prefill is None or not prefill.stages:
            self.not_pruned += requests
            self.reasons.add((prefill.skipped if prefill else None) or "the pruner made no cut")
            return
        last = prefill.stages[-1]
        values = (sum(last.dense), sum(map(len, last.kept)), prefill.kv_share, prefill.mean_tokens_per_layer)
        for name, value in zip(MEANS, values, strict=True):
            self.sums[name] += value * (1 if name.startswith("visual") else requests)

    def log(self) -> None:
        """Hand the sums to lmms-eval, which writes them to the result as `throughput`."""
        if not self.requests:
            return
        more: dict[str, Any] = {"ttft": self.first / self.requests}
        pruned = self.requests - self.not_pruned
        if any(self.sums.values()):
            more |= {name: value / pruned for name, value in self.sums.items()}
        if self.not_pruned:
            from loguru import logger

            more["not_pruned"] = self.not_pruned
            logger.warning(f"foveate: {self.not_pruned} requests were NOT PRUNED: {'; '.join(sorted(self.reasons))}")
        log_metrics(self.seconds, self.tokens, self.tokens / self.seconds if self.seconds else 0.0, more)


def _generation(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` for a task's own settings; greedy unless a temperature says otherwise."""
    found = {name: settings[name] for name in SAMPLING if settings.get(name) is not None}
    temperature = settings.get("temperature") or 0
    sampled = temperature > 0 and settings.get("do_sample", True)
    if not sampled:
        found = {name: value for name, value in found.items() if name not in ("top_p", "top_k")}
    return {
        **found,
        "max_new_tokens": int(settings.get("max_new_tokens") or LONGEST),
        "do_sample": sampled,
        **({"temperature": temperature} if sampled else {}),
    }


def _until(text: str, stops: str | Iterable[str] | None) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.split(stop)[0] if stop else text
    return text


def _length(tokens: list[int], ends: int | list[int] | None) -> int:
    """How many tokens an answer has, the one that ends it included."""
    known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return next((at + 1 for at, token in enumerate(tokens) if token in known), len(tokens))


def _texts(chat: ChatMessages) -> Iterable[str]:
    return (part.text for message in chat.messages for part in message.content if part.type == "text")


def _images_rgb(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for part in (part for message in messages for part in message["content"]):
        if part["type"] == "image" and hasattr(part["image"], "convert"):
            part["image"] = as_rgb(part["image"])
    return messages


def _batched(places: Iterable[int], size: int) -> Iterable[tuple[int, ...]]:
    left = list(places)
    return (tuple(left[at : at + size]) for at in range(0, len(left), size))
