"""GlimpsePrune on the embedded model: what each part of it adds, and before which layer it cuts best.

Trains each variant on the same questions and evaluates all of them on the same held-out ones, beside baselines that
keep the same number of tokens. A variant that is there already is not trained again.

    python benchmarks/glimpse_ladder.py --out benchmarks/results/glimpse_ladder
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from foveate.learn.glimpse_step import Weighing
from foveate.learn.glimpse_train import Settings, sizes_for, train_glimpse
from foveate.learn.grounded import from_scenes
from foveate.measure.evaluate import Settings as Evaluation
from foveate.measure.evaluate import evaluate
from foveate.measure.loading import load_model
from foveate.measure.spec import parse_methods

ANSWER_ONLY = Weighing(place=0.0)
# name -> sizes, weighing, cut before layer
LADDER: dict[str, tuple[dict[str, Any], Weighing, int]] = {
    "glimpse, answer loss": ({"blocks": 0, "vision_layers": ()}, ANSWER_ONLY, 8),
    "+ localisation loss": ({"blocks": 0, "vision_layers": ()}, Weighing(), 8),
    "+ predictor": ({"vision_layers": ()}, Weighing(), 8),
    "+ vision condition": ({}, Weighing(), 8),
}
LAYERS = {f"before layer {layer}": ({}, Weighing(), layer) for layer in (4, 6, 10)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("glimpse-ladder"), help="weights and checkpoints")
    parser.add_argument("--steps", type=int, default=400)
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
    samples = from_scenes(args.steps * args.batch_size, args.seed)
    watched = from_scenes(90, args.seed + 1).items
    for name, (sizes, weighing, layer) in {**LADDER, **LAYERS}.items():
        folder = args.work / slug(name)
        if (folder / "training.json").exists():
            continue
        settings = Settings(
            batch_size=args.batch_size,
            accumulation=1,
            learning_rate=args.learning_rate,
            max_steps=args.steps,
            weighing=weighing,
            seed=args.seed,
            check_every=0,
            save_every=args.steps,
        )
        config = sizes_for(loaded.model, **{"size": args.size, "condition_size": args.size, "layer": layer, **sizes})
        found = train_glimpse(loaded, samples, watched, settings, folder, config, resume=True)
        print(name, json.dumps(found["held_out"]), flush=True)
    cap = f"max_keep={args.max_keep}"
    folders = {name: f"{args.work / slug(name)}" for name in (*LADDER, *LAYERS)}
    methods = [f"glimpseprune:{cap}", *(f"{folder}:{cap}" for folder in folders.values())]
    evaluation = Evaluation(
        methods=tuple(parse_methods(",".join(methods))), keeps=(args.max_keep,), samples=args.questions, layer=8
    )
    args.out.mkdir(parents=True, exist_ok=True)
    result = evaluate(loaded, evaluation, args.work / "answers")
    result["variants"] = {f"{folder}:{cap}": name for name, folder in folders.items()} | {
        f"glimpseprune:{cap}": "first token's attention, no training"
    }
    result["training"] = {
        name: json.loads((Path(folder) / "training.json").read_text())["configuration"]
        for name, folder in folders.items()
    }
    result["arguments"] = {key: str(value) for key, value in vars(args).items()}
    (args.out / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    (args.out / "result.md").write_text(table(result))


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
