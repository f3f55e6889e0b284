"""Realised against FLOPs-implied speed-up, growth over the number of visual tokens, and the four published shapes.

Three parts, each one command; all go through `foveate.measure.bench`, which `foveate bench` runs too. Random weights:
speed does not depend on them. Images are encoded before (`--no-vision`), so that time and operations are those of the
language model and of choosing; in the part `shapes` the vision encoder runs. Dense, dense again, random tokens and a
smaller picture stand beside the methods.

* `realised`: LLaVA-1.5's shape with 8 of 32 layers and a width of 1,536, 2,880 visual tokens (5 pictures), one thread,
  float32, 5 rounds. About 14 minutes on one core that does 90 GFLOPS.
* `growth`: 3 layers, width 768, pictures of 16 x 16 tokens, 256 to 16,384 visual tokens; leaves out a size that
  would take it over `--limit` seconds (420), and says so in the result. Without dense again and count of operations.
* `shapes`: the published models in full, for a GPU; `--dry` runs 4 layers of width 256 on a CPU, 576 tokens, 1 round.

    python benchmarks/realised.py realised
    python benchmarks/realised.py growth
    python benchmarks/realised.py shapes --shape qwen2.5-vl-7b
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from realised_growth import draw_growth, growth_markdown

from foveate.measure.bench.plot import draw
from foveate.measure.bench.published_shapes import SHAPES
from foveate.measure.bench.result import markdown
from foveate.measure.bench.run import random_model, run
from foveate.measure.bench.settings import BenchSettings
from foveate.measure.loading import LoadedModel
from foveate.pruners.spec import parse_methods
from foveate.torch_state import threads

RESULTS = Path(__file__).parent / "results"
METHODS = "greedyprune,fastv,divprune,glimpseprune,btp:variant=paper,btp:variant=released"
LAYERS, WIDTH, VISUAL = 8, 1536, 2880
SIZES = [256 << power for power in range(7)]  # to 16,384
GROWTH_LAYERS, GROWTH_WIDTH, PIXELS = 3, 768, 224  # a picture is 16 x 16 tokens
GROWTH_METHODS = "greedyprune,glimpseprune,btp:variant=paper"
ROUNDS = {256: 5, 512: 5, 1024: 5, 2048: 3, 4096: 2}  # else one
STEEP, BESIDE = 3.2, 1.3  # what twice the size takes; what a size takes beside its rounds, in rounds


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["realised", "growth", "shapes"])
    parser.add_argument("--shape", choices=list(SHAPES), help="llava-1.5-7b; in the part `shapes` all of them")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.22])
    parser.add_argument("--methods", help=f"{METHODS}; in the part `growth` {GROWTH_METHODS}")
    parser.add_argument("--visual", type=int, nargs="+", help="2880, or 256 to 16384, or 576 2880 8192")
    parser.add_argument("--batch", type=int, nargs="+", help="1, in the part `shapes` 1 8 32")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--decode", type=int, help="0; in the part `shapes` 16")
    parser.add_argument("--device", help="cpu; in the part `shapes` the accelerator")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=420.0, help="seconds of the part `growth`")
    parser.add_argument(
        "--dry", action="store_true", help="small sizes, to see that it runs; writes nothing by default"
    )
    parser.add_argument("--out", type=Path, help="JSON; .md and .png go beside it; benchmarks/results/realised_*.json")
    return parser.parse_args()


def settings(args: argparse.Namespace, **more: Any) -> BenchSettings:
    return BenchSettings(
        methods=tuple(parse_methods(args.methods or (GROWTH_METHODS if args.part == "growth" else METHODS))),
        keeps=tuple(args.keep),
        batch=tuple(args.batch or (1,)),
        decode=args.decode or 0,
        **more,
    )


def tell(what: str, done: int, total: int) -> None:
    print(f"{done}/{total} {what}", flush=True)


def model_of(args: argparse.Namespace, shape: str, layers: int | None, width: int | None) -> tuple[LoadedModel, Any]:
    layers, width = args.layers or layers, args.width or width
    loaded = random_model(shape, args.device or "cpu", args.dtype, "sdpa", layers, width)
    whole = SHAPES[shape]
    full = {"layers": (layers, whole.depth), "width": (width, whole.text["hidden_size"])}
    resized = {name: f"{value} of {of}" for name, (value, of) in full.items() if value is not None}
    return loaded, {"random_weights": True, "sizes_of": whole.checkpoint, "resized": resized}


def realised(args: argparse.Namespace) -> dict[str, Any]:
    small = (4, 256) if args.dry else (LAYERS, WIDTH)
    loaded, about = model_of(args, args.shape or "llava-1.5-7b", *small)
    visual = args.visual or [576 if args.dry else VISUAL]
    rounds = args.rounds or (2 if args.dry else 5)
    return run(loaded, settings(args, visual=tuple(visual), rounds=rounds, splits=1, vision=False), tell, about)


def growth(args: argparse.Namespace) -> dict[str, Any]:
    """One run a size, in one process, until the time is up."""
    layers, width = args.layers or GROWTH_LAYERS, args.width or GROWTH_WIDTH
    shape = SHAPES["llava-1.5-7b"].resized(layers, width)
    shape = dataclasses.replace(shape, vision={**shape.vision, "image_size": PIXELS})
    device = torch.device(args.device or "cpu")
    dtype = torch.float32 if args.dtype == "auto" else getattr(torch, args.dtype)
    loaded = LoadedModel(shape.name, shape.build(device, dtype, "sdpa"), None, lambda question, images: "")
    about = {"random_weights": True, "resized": {"layers": f"{layers} of 32", "width": f"{width} of 4096"}}
    about["resized"]["pictures"] = "of 16 x 16 tokens"
    began, a_round, before, found, left_out = time.monotonic(), 0.0, 1, None, []
    for size in args.visual or (SIZES[:3] if args.dry else SIZES):
        spent = time.monotonic() - began
        rounds = args.rounds or ROUNDS.get(size, 1)
        expected = a_round * (rounds + BESIDE) * STEEP ** math.log2(size / before)
        if found is not None and spent + expected > args.limit:
            left_out.append(
                f"{size} visual tokens: left out, {expected:.0f} s more would go over the limit of {args.limit:g} s"
            )
            continue
        plain = {"splits": 0, "vision": False, "again": False, "operations": False}
        now = run(loaded, settings(args, visual=(size,), rounds=rounds, **plain), tell, about)
        for entry in now["entries"]:
            entry["rounds"] = rounds
        before, a_round = size, (time.monotonic() - began - spent) / (rounds + BESIDE)
        if found is None:
            found = now
        else:
            found["entries"] += now["entries"]
            found["check"]["failures"] += now["check"]["failures"]
            found["notes"] += [note for note in now["notes"] if note not in found["notes"]]
    if found is None:
        raise SystemExit("no size was measured")
    found["notes"] += left_out
    found["settings"] |= {"visual": list(args.visual or SIZES), "rounds": args.rounds or "5 to 1"}
    return found


def shapes(args: argparse.Namespace, shape: str) -> dict[str, Any]:
    dry = args.dry
    args.device = args.device or ("cpu" if dry else "auto")
    args.batch = args.batch or ([1] if dry else [1, 8, 32])
    args.decode = (2 if dry else 16) if args.decode is None else args.decode
    loaded, about = model_of(args, shape, *((4, 256) if dry else (None, None)))
    visual = tuple(args.visual or ([576] if dry else [576, 2880, 8192]))
    return run(loaded, settings(args, visual=visual, rounds=args.rounds or (1 if dry else 7), splits=1), tell, about)


def write(result: dict[str, Any], out: Path, part: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    page = growth_markdown(result) if part == "growth" else markdown(result)
    out.with_suffix(".md").write_text(f"Made by `realised.py {part}`; do not edit.\n\n{page}")
    (draw_growth if part == "growth" else draw)(result, out.with_suffix(".png"))
    print(page)
    for failure in result["check"]["failures"]:
        print("slower or larger than dense:", failure["line"])
    print(f"written: {out}", flush=True)


def main() -> None:
    args = options()
    names = [args.shape] if args.shape else list(SHAPES)
    place = Path("dry") if args.dry else RESULTS
    with threads(args.threads if args.dry or args.part != "shapes" else None):
        if args.part == "shapes":
            for name in names:
                out = args.out or place / f"realised_{name}.json"
                write(shapes(args, name), out, args.part)
        else:
            result = realised(args) if args.part == "realised" else growth(args)
            write(result, args.out or place / f"realised_{args.part}.json", args.part)


if __name__ == "__main__":
    main()
