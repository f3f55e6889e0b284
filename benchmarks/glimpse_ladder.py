"""GlimpsePrune on the embedded model: what each part of it adds, and before which layer it cuts best.

Trains each variant on the same questions and evaluates all of them on the same held-out ones, beside baselines that
keep the same number of tokens. Variants that are there already are not trained again.

    python benchmarks/glimpse_ladder.py --out benchmarks/results/glimpse_ladder
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from foveate.learn.data import from_scenes
from foveate.learn.glimpse.step import GlimpseForTraining, Weighing, collate, read_prompt
from foveate.measure.eval.evaluate import EvalSettings as Evaluation
from foveate.measure.eval.evaluate import evaluate
from foveate.measure.loading import load_model
from foveate.pruners import GlimpsePrune
from foveate.pruners.glimpseprune.modules import GlimpseModules
from foveate.pruners.glimpseprune.sizes import sizes_for
from foveate.pruners.spec import parse_methods

ANSWER_ONLY = Weighing(place=0.0)
CUT = 10  # where the shipped predictor cuts: the embedded model reads in layers 9 to 11
# name -> sizes, weighing, cut before layer
LADDER: dict[str, tuple[dict[str, Any], Weighing, int]] = {
    "glimpse, answer loss": ({"blocks": 0, "vision_layers": ()}, ANSWER_ONLY, CUT),
    "+ localisation loss": ({"blocks": 0, "vision_layers": ()}, Weighing(), CUT),
    "+ predictor": ({"vision_layers": ()}, Weighing(), CUT),
    "+ vision condition": ({}, Weighing(), CUT),
}
LAYERS = {f"before layer {layer}": ({}, Weighing(), layer) for layer in (4, 6, 8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("glimpse-ladder"), help="weights and checkpoints")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--max-keep", type=float, default=0.111)
    parser.add_argument("--questions", type=int, default=900)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = load_model("tiny", device="cpu")
    args.work.mkdir(parents=True, exist_ok=True)  # before the training, not at its end
    if not all((args.work / slug(name) / "config.json").exists() for name in {**LADDER, **LAYERS}):
        train(loaded, args)
    cap = f"max_keep={args.max_keep}"
    folders = {name: f"{args.work / slug(name)}" for name in (*LADDER, *LAYERS)}
    stand_in = f"glimpseprune:{cap},layer={CUT}"
    methods = [f"random:layer={CUT}", stand_in, *(f"{folder}:{cap}" for folder in folders.values())]
    evaluation = Evaluation(
        methods=tuple(parse_methods(",".join(methods))), keeps=(args.max_keep,), samples=args.questions
    )
    args.out.mkdir(parents=True, exist_ok=True)
    result = evaluate(loaded, evaluation, args.work / "answers")
    result["variants"] = {f"{folder}:{cap}": name for name, folder in folders.items()} | {
        stand_in: "first token's attention, no training"
    }
    result["training"] = json.loads((args.work / "losses.json").read_text())
    result["arguments"] = {key: str(value) for key, value in vars(args).items()}
    (args.out / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    (args.out / "result.md").write_text(table(result))


def train(loaded: Any, args: argparse.Namespace) -> None:
    """Train all variants at once: what comes before the glimpse token is the same for all, and is computed once."""
    samples = from_scenes(args.steps * args.batch_size, args.seed).items
    loaded.model.requires_grad_(False)
    learners: dict[str, GlimpseForTraining] = {}
    for name, (sizes, weighing, layer) in {**LADDER, **LAYERS}.items():
        torch.manual_seed(args.seed)
        config = sizes_for(loaded.model, **{"size": args.size, "condition_size": args.size, "layer": layer, **sizes})
        learners[name] = GlimpseForTraining(loaded, GlimpseModules(config), weighing)
    optimizers = {
        name: torch.optim.AdamW(learner.parameters(), lr=args.learning_rate) for name, learner in learners.items()
    }
    schedules = [
        get_cosine_schedule_with_warmup(optimizer, args.steps // 10, args.steps) for optimizer in optimizers.values()
    ]
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(args.seed)).tolist()
    widest = learners["+ vision condition"].learned.config
    losses: dict[str, list[dict[str, float]]] = {name: [] for name in learners}
    for step in range(args.steps):
        picked = order[step * args.batch_size : (step + 1) * args.batch_size]
        batch = collate(loaded, [samples[number] for number in picked])
        start, placed, labels = batch.pop("start"), batch.pop("placed"), batch.pop("labels")
        read = read_prompt(loaded.model, widest, batch, start)
        for name, learner in learners.items():
            vision = read.tokens.vision if learner.learned.config.vision_layers else ()
            tokens = dataclasses.replace(read.tokens, vision=vision)
            own = dataclasses.replace(read, tokens=tokens, cache=copy.deepcopy(read.cache))
            found = learner.answer(own, batch, start, placed, labels)
            found["loss"].backward()
            torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimizers[name].step()
            optimizers[name].zero_grad()
            losses[name].append({"step": step, **{key: float(value.detach()) for key, value in found.items()}})
        for schedule in schedules:
            schedule.step()
        if step % 20 == 0:
            print(step, {name: round(rows[-1]["loss"], 3) for name, rows in losses.items()}, flush=True)
    for name, learner in learners.items():
        GlimpsePrune(weights=learner.learned.eval()).save_pretrained(args.work / slug(name))
    thinned = {name: rows[::20] for name, rows in losses.items()}
    (args.work / "losses.json").write_text(json.dumps(thinned, indent=2) + "\n")


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def table(result: dict[str, Any]) -> str:
    """One line an arm."""
    lines = ["| variant | right, % of dense [95 %] | visual tokens in the cache while answering, % |", "|---|---|---|"]
    for arm in result["arms"]:
        kept = arm["accuracy_kept"]
        share = [f"{100 * kept[name]:.1f}" for name in ("value", "low", "high")]
        name = result["variants"].get(arm["method"], arm["arm"])
        lines.append(f"| {name} | {share[0]} [{share[1]}, {share[2]}] | {100 * arm['measured']['kv_share']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
