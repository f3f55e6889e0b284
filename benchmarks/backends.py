"""The laws' core on every attention backend that is installed: on a GPU, what tests on a CPU can only imitate.

For each backend and floating type: does keep=1.0 change nothing, every token gathered, bit by bit; and does a pruned
run give what sdpa gives with the same tokens kept. The answer of a pruned sdpa run in float32 is fed to all of them,
so that rounding cannot lead them to other words. In half precision two backends differ also without pruning: a pruned
run may differ `--times` as much as the dense one, and by `--atol` or `--half-atol` more.

    python benchmarks/backends.py --out backends.json                    # the embedded model
    python benchmarks/backends.py --model Qwen/Qwen2.5-VL-3B-Instruct --out backends.json
    python benchmarks/backends.py --backends sdpa flash_attention_2 --dtypes bfloat16

On a CPU, flex attention runs uncompiled. A backend that is not there is written down with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from foveate import FastV, Random, tiny
from foveate.engine import attach
from foveate.errors import FoveateError
from foveate.measure import environment
from foveate.measure.loading import LoadedModel, load_model
from foveate.pruners import Pruner

BACKENDS = (
    "sdpa",
    "eager",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "kernels-community/flash-attn2",
    "kernels-community/vllm-flash-attn3",
)
HALF_ONLY = ("flash", "kernels-community")
DTYPES = ("float32", "bfloat16", "float16")
QUESTIONS = (
    ["how many circles are there?"],
    ["how many circles are there?", "is there a red square?"],
    ["is there a red square?", "how many circles are there?", "what color is the circle?"],
)
METHODS: dict[str, Pruner] = {"random before": Random(keep=0.25, layer=0), "random within": Random(keep=5, layer=2)}


def batches(loaded: LoadedModel) -> list[Any]:
    """One prompt alone, then batches of which each sample has another length."""
    picture = np.random.default_rng(3)
    images = [[tiny.make_scene(picture).pil()] for _ in range(len(QUESTIONS))]
    return [loaded.inputs(questions, images[: len(questions)]) for questions in QUESTIONS]


class Say(LogitsProcessor):
    """Makes `generate()` say the answer (B, T), whatever its logits are."""

    def __init__(self, answer: Tensor, prompt: int) -> None:
        self.answer, self.prompt = answer, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        word = self.answer[:, input_ids.shape[1] - self.prompt, None].to(scores.device)
        return torch.full_like(scores, float("-inf")).scatter(1, word, 0.0)


def logits(model: Any, batch: Any, pruner: Pruner | None, answer: Tensor, gather: bool = False) -> Tensor:
    """(B, T, vocabulary) in float32 on the CPU, before each of the answer's tokens (B, T)."""
    context = contextlib.nullcontext() if pruner is None else attach(model, pruner, _always_gather=gather)
    say = LogitsProcessorList([Say(answer, batch["input_ids"].shape[1])])
    with torch.no_grad(), context:
        out = model.generate(
            **batch,
            do_sample=False,
            max_new_tokens=answer.shape[1],
            min_new_tokens=answer.shape[1],
            logits_processor=say,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return torch.stack(out.logits, 1).float().cpu()


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def check(loaded: LoadedModel, reference: dict[str, Any], times: float, atol: float) -> dict[str, Any]:
    """The two laws for the backend that the model has now; `reference` is that of sdpa in the same type."""
    model, given, rows = loaded.model, batches(loaded), []
    for number, batch in enumerate(given):
        answer = reference["answers"][number]
        dense = logits(model, batch, None, answer)
        same = [
            logits(model, batch, pruner, answer, gather=True)
            for pruner in (Random(keep=1.0, layer=0), FastV(keep=1.0, layer=2))
        ]
        row: dict[str, Any] = {
            "samples": len(dense),
            "keep all identical": all(torch.equal(one, dense) for one in same),
            "keep all difference": max(difference(one, dense) for one in same),
            "dense differs from sdpa": difference(dense, reference["dense"][number]),
        }
        for name, pruner in METHODS.items():
            found = difference(logits(model, batch, pruner, answer), reference[name][number])
            row[f"{name} differs from sdpa"] = found
            row[f"{name} equal"] = found <= times * row["dense differs from sdpa"] + atol
        rows.append(row)
    holds = all(value for row in rows for key, value in row.items() if key.endswith(("identical", "equal")))
    return {"holds": holds, "batches": rows}


def references(loaded: LoadedModel, answers: list[Tensor]) -> dict[str, Any]:
    """What sdpa gives in the model's type: dense, and with each method."""
    given = batches(loaded)
    methods: dict[str, Pruner | None] = {"dense": None, **METHODS}
    return {"answers": answers} | {
        name: [logits(loaded.model, batch, pruner, answer) for batch, answer in zip(given, answers, strict=True)]
        for name, pruner in methods.items()
    }


def answers(loaded: LoadedModel, steps: int) -> list[Tensor]:
    """What sdpa says in float32 with a method, for each batch (B, T)."""
    found = []
    visual = [loaded.model.config.image_token_id]
    for batch in batches(loaded):
        with torch.no_grad(), attach(loaded.model, METHODS["random before"]):
            out = loaded.model.generate(
                **batch, do_sample=False, max_new_tokens=steps, min_new_tokens=steps, suppress_tokens=visual
            )
        found.append(out[:, -steps:].cpu())
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {}
    loaded = load_model(options.model, options.device, "float32")
    loaded.model.set_attn_implementation("sdpa")
    words = answers(loaded, options.steps)
    for dtype in options.dtypes:
        loaded = load_model(options.model, options.device, dtype)
        loaded.model.set_attn_implementation("sdpa")
        reference = references(loaded, words)
        exact = dtype == "float32"
        for backend in options.backends:
            if exact and backend.startswith(HALF_ONLY):
                continue
            try:
                loaded.model.set_attn_implementation(backend)
                found = check(loaded, reference, options.times, options.atol if exact else options.half_atol)
            except (ImportError, ValueError, OSError, RuntimeError, FoveateError) as error:
                found = {"holds": None, "reason": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
            results.setdefault(backend, {})[dtype] = found
            print(f"{backend}, {dtype}: {found['holds']} {found.get('reason', '')}", flush=True)
    return {
        "what": __doc__.splitlines()[0],
        "date": datetime.date.today().isoformat(),
        "command": environment.command(),
        "versions": environment.versions(),
        "machine": environment.machine(loaded.model.device),
        "options": {name: str(value) for name, value in vars(options).items()},
        "results": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--steps", type=int, default=4, help="tokens of the answer")
    parser.add_argument("--times", type=float, default=3.0, help="as much of the difference that is there unpruned")
    parser.add_argument("--atol", type=float, default=1e-3, help="beside it, in float32")
    parser.add_argument("--half-atol", type=float, default=0.1, help="beside it, in half precision")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    if options.device == "cpu" or not torch.accelerator.is_available():
        torch.compiler.set_stance("force_eager")
    found = run(options)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
