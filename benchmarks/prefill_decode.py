"""Prefill and decode of a random-weight LLaVA, dense beside pruned, in one process.

What is measured is the language model: the images are encoded once, before, and handed over as `generate()` does, so
that vision tower and projector are in neither time nor FLOPs. Arms take turns, each round in another order, and a
ratio is the median over the rounds of dense time / pruned time of the same round. CPU time is that of the one process;
with one thread it is what the arm needed, whatever else the machine was doing.

    python benchmarks/prefill_decode.py --out benchmarks/results/prefill_decode.json
    python benchmarks/prefill_decode_table.py benchmarks/results/prefill_decode.json
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

import foveate
from foveate.measure import environment
from foveate.pruners import Pruner

IMAGE = 3
Clock = Callable[[], tuple[float, float]]


@dataclass
class Arm:
    """One setting and its times, a number a round: seconds of a prefill, seconds a decoded token (median of them)."""

    name: str
    pruner: Pruner | None
    wall: dict[str, list[float]] = field(default_factory=lambda: {"prefill": [], "decode": []})
    cpu: dict[str, list[float]] = field(default_factory=lambda: {"prefill": [], "decode": []})
    choosing: list[float] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--visual", type=int, default=2000)
    parser.add_argument("--text", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 64, the width of a head")
    parser.add_argument("--keep", type=float, nargs="*", default=[0.22, 0.11], help="none: only the cost of the hooks")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--overhead-rounds", type=int, default=15)
    parser.add_argument("--decode", type=int, default=16, help="tokens decoded in each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def build(args: argparse.Namespace) -> LlavaForConditionalGeneration:
    """Random weights; the tower is as small as can be, as it does not run."""
    text = dict(
        model_type="llama",
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        vocab_size=4096,
        max_position_embeddings=args.visual + args.text + args.decode,
        eos_token_id=None,
    )
    vision = dict(
        model_type="clip_vision_model",
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=16,
        patch_size=8,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_token_index=IMAGE)
    config._attn_implementation = args.attention
    torch.manual_seed(args.seed)
    return LlavaForConditionalGeneration(config).to(args.device, getattr(torch, args.dtype)).eval()


def prompt(args: argparse.Namespace, model: LlavaForConditionalGeneration) -> dict[str, Any]:
    """A fifth of the text, the image, the rest; visual features lie around centres, so that many are alike."""
    generator = torch.Generator().manual_seed(args.seed)
    ids = torch.randint(10, 4096, (args.batch, args.text + args.visual), generator=generator)
    before = args.text // 5
    ids[:, before : before + args.visual] = IMAGE
    shape = (args.batch, args.visual, args.hidden)
    centres = torch.randn(args.batch, args.visual // 8, args.hidden, generator=generator)
    which = torch.randint(0, args.visual // 8, shape[:2], generator=generator)
    features = centres[torch.arange(args.batch)[:, None], which] + 0.3 * torch.randn(shape, generator=generator)
    features = (0.02 * features).to(model.device, model.dtype)
    return {
        "input_ids": ids.to(model.device),
        "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(features))},
    }


def clock_for(device: torch.device) -> Clock:
    def read() -> tuple[float, float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter(), time.process_time()

    return read


@torch.inference_mode()
def run(model: LlavaForConditionalGeneration, inputs: dict[str, Any], arm: Arm, steps: int, clock: Clock) -> None:
    """One prefill and `steps` decoded tokens, added to the arm's times."""
    context = arm.pruner(model) if arm.pruner else contextlib.nullcontext()
    with context as pruned:
        marks = [clock()]
        cache = DynamicCache(config=model.config.get_text_config())
        out = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        marks.append(clock())
        for _ in range(steps):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            marks.append(clock())
    for times, position in ((arm.wall, 0), (arm.cpu, 1)):
        prefill, *decode = [after[position] - before[position] for before, after in itertools.pairwise(marks)]
        times["prefill"].append(prefill)
        times["decode"].append(statistics.median(decode))
    if pruned is not None:
        arm.report = pruned.report.to_dict()["prefills"][-1]
        arm.choosing.append(arm.report["selection_ms"])


def arms_for(keep: list[float]) -> list[Arm]:
    arms = [Arm("dense", None)]
    for share in keep:
        pruners = [
            foveate.Random(keep=share, layer=0),
            foveate.DivPrune(keep=share, layer=0),
            foveate.GreedyPrune(keep=share, layer=0),
            foveate.Random(keep=share, layer=2),
            foveate.DivPrune(keep=share, layer=2),
            foveate.GreedyPrune(keep=share, layer=2),
            foveate.FastV(keep=share, layer=2),
        ]
        arms += [Arm(f"{pruner.name} keep {share:g} before layer {pruner.layer}", pruner) for pruner in pruners]
    return arms


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "q25": low, "q75": high}


def versus(dense: list[float], other: list[float]) -> dict[str, float]:
    """How many times faster than dense, round by round."""
    return spread([a / b for a, b in zip(dense, other, strict=True)])


def entry(arm: Arm, dense: Arm) -> dict[str, Any]:
    found: dict[str, Any] = {"name": arm.name}
    for phase in ("prefill", "decode"):
        found[phase] = {
            "wall_s": spread(arm.wall[phase]),
            "cpu_s": spread(arm.cpu[phase]),
            "faster_wall": versus(dense.wall[phase], arm.wall[phase]),
            "faster_cpu": versus(dense.cpu[phase], arm.cpu[phase]),
        }
    if arm.pruner is not None:
        found |= {"method": arm.pruner.name, "keep": arm.pruner.keep, "layer": arm.pruner.layer}  # type: ignore[attr-defined]
        found["choosing_ms"] = spread(arm.choosing)
        found["kept"] = [len(kept) for stage in arm.report["stages"] for kept in stage["kept"]]
        found["kv_share"] = arm.report["kv_share"]
        found["flops_dense"], found["flops_pruned"] = arm.report["flops_dense"], arm.report["flops_pruned"]
        implied = arm.report["flops_dense"] / arm.report["flops_pruned"]
        found["implied"] = implied
        for kind in ("wall", "cpu"):
            found[f"realised_to_implied_{kind}"] = found["prefill"][f"faster_{kind}"]["median"] / implied
    return found


def overhead(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any], args: argparse.Namespace, clock: Clock
) -> Any:
    """Dense beside a pruner with keep=1.0, in pairs of alternating order: the cost of the hooks alone."""
    dense, hooked = Arm("dense", None), Arm("keep all", foveate.GreedyPrune(keep=1.0))
    for number in range(args.overhead_rounds):
        for arm in (dense, hooked) if number % 2 else (hooked, dense):
            run(model, inputs, arm, args.decode, clock)
        print(f"overhead {number + 1}/{args.overhead_rounds}", flush=True)
    return {
        phase: {
            f"{kind}_ratio": spread([b / a for a, b in zip(times(dense)[phase], times(hooked)[phase], strict=True)])
            for kind, times in (("wall", lambda arm: arm.wall), ("cpu", lambda arm: arm.cpu))
        }
        for phase in ("prefill", "decode")
    }


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    model = build(args)
    inputs, clock = prompt(args, model), clock_for(model.device)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    arms = arms_for(args.keep)
    for arm in arms:  # warm up
        run(model, inputs, Arm(arm.name, arm.pruner), 2, clock)
    for number in range(args.rounds):
        for place in range(len(arms)):
            run(model, inputs, arms[(place + number) % len(arms)], args.decode, clock)
        print(f"round {number + 1}/{args.rounds}: dense prefill {arms[0].wall['prefill'][-1]:.2f} s", flush=True)
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    result = {
        "what": "prefill and decode of the language model of a random-weight LLaVA, dense beside pruned",
        "command": environment.command(),
        "started": started,
        "seed": args.seed,
        "settings": settings,
        "machine": environment.machine(model.device),
        "versions": environment.versions(),
        "parameters": sum(weight.numel() for weight in model.model.language_model.parameters()),
        "arms": [entry(arm, arms[0]) for arm in arms],
        "keep_all": overhead(model, inputs, args, clock) if args.overhead_rounds else None,
    }
    text = json.dumps(result, indent=1) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
