"""Time that BTP takes to choose, beside a plain loop and beside the prefill of a 7B-shaped model, dense and pruned.

On a CPU a 7B model's prefill is worked out from its layers: one decoder layer of the real class with random weights is
timed at each number of tokens that occurs, and counted as often as the model has layers with so many. Choosing is
timed on its own, part by part, on features of the model's width, and added. A round times all of it once, in turns
forwards and backwards, and a ratio is the median over the rounds of times of one round. Then a slice of such a model
runs with BTP attached, turn about with the dense one: all that the hooks do is in that ratio, and choosing weighs more
than in the whole model, as the slice has as many stages as 32 layers have.

With `--device cuda` all layers run, with BTP attached, and times are those of CUDA events. THAT HAS NOT BEEN RUN ON A
GPU YET.

    python benchmarks/btp_selection.py --out benchmarks/results/btp_selection.json
    python benchmarks/btp_selection_table.py benchmarks/results/btp_selection.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from btp_selection_parts import HEADS, OTHERS, OURS, StageCase, Watch, clustered, stage_cases, stopwatch
from transformers import DynamicCache, LlamaConfig, LlamaModel, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from foveate.families import Grid
from foveate.measure import environment
from foveate.pruners import BTP

DEPTH, HIDDEN, TEXT, IMAGE = 32, 4096, 64, 3
GRIDS = {"576": (Grid(24, 24),), "2880": (Grid(24, 24),) * 5, "8192": (Grid(64, 128),)}
ROUNDS = {"576": 7, "2880": 5, "8192": 2}
SQUARES = {"576": (24, 1), "2880": (24, 5), "8192": (64, 2)}  # of a LLaVA: its images are squares of one size


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="auto: the faster one"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stages", nargs="+", default=["paper-llava-1.5-7b", "default"])
    parser.add_argument("--visual", nargs="+", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--rounds", type=int, help="for all of --visual; 7, 5 and 2 by their size")
    parser.add_argument("--layers", type=int, help="of the model that BTP is attached to; 8, on a GPU 32; 0: none")
    parser.add_argument("--attached", nargs="*", help="visual tokens there; all but 8192, on a GPU all")
    parser.add_argument("--attached-rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    args.layers = (DEPTH if on_gpu else 8) if args.layers is None else args.layers
    args.attached = [n for n in GRIDS if on_gpu or n != "8192"] if args.attached is None else args.attached
    args.rounds = [args.rounds or ROUNDS[visual] for visual in args.visual]
    args.hidden = HIDDEN // 16 if args.smoke else HIDDEN
    if not set(args.attached) <= set(GRIDS):
        parser.error(f"--attached: choose from {', '.join(GRIDS)}")
    return args


def llama(hidden: int, layers: int) -> dict[str, Any]:
    return dict(
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=64,
        max_position_embeddings=16384,
    )


class OneLayer:
    """A decoder layer, and what prefills through 32 of its kind take, in seconds of each round."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.hidden = args.hidden
        config = LlamaConfig(**llama(args.hidden, 1))
        config._attn_implementation = "sdpa"
        self.model = LlamaModel(config).eval()
        self.chosen: dict[str, float] = {}

    @torch.inference_mode()
    def seconds(self, length: int, watch: Watch) -> float:
        """Time that the layer takes for a prompt of `length` tokens."""
        hidden = clustered(length, self.hidden, length).to(self.model.dtype)
        cache = DynamicCache(config=self.model.config)
        return watch(lambda: self.model(inputs_embeds=hidden, past_key_values=cache, use_cache=True))[0]

    def take(self, dtype: str, watch: Watch) -> None:
        """Turn the weights into `dtype`; for "auto" into the type in which 640 tokens take less time."""
        if dtype == "auto":
            for name in ("bfloat16", "float32"):
                self.model.to(getattr(torch, name))
                self.chosen[name] = min(self.seconds(640, watch) for _ in range(4))
            dtype = min(self.chosen, key=self.chosen.__getitem__)
        self.model.to(getattr(torch, dtype))


def lengths(pruner: BTP | None, visual: int) -> list[int]:
    """Tokens that enter each of the 32 layers."""
    found = [visual + TEXT] * DEPTH
    for stage in pruner.schedule(DEPTH) if pruner else ():
        found[stage.layer :] = [round(stage.keep * visual) + TEXT] * (DEPTH - stage.layer)
    return found


def spread_of(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


@torch.inference_mode()
def choosing(args: argparse.Namespace, visual: str, rounds: int, layer: OneLayer | None, dtype: torch.dtype) -> Any:
    """Time choosing, and on a CPU the layers, at one number of visual tokens."""
    device = torch.device(args.device)
    watch, grids = stopwatch(device, args.threads), GRIDS[visual]
    if args.smoke:
        grids = tuple(Grid(grid.height // 8, grid.width // 8) for grid in grids)
    number = sum(grid.cells for grid in grids)
    pruners = {name: BTP(stages=name, depth=DEPTH).resolved(DEPTH) for name in args.stages}
    cases = {
        name: stage_cases(pruner, DEPTH, grids, TEXT, args.hidden, dtype, device) for name, pruner in pruners.items()
    }
    needed = {length for pruner in (None, *pruners.values()) for length in lengths(pruner, number)}
    layers: dict[int, list[float]] = {length: [] for length in sorted(needed)} if layer else {}
    for turn in range(rounds):
        for length in list(layers)[:: 1 if turn % 2 else -1]:
            layers[length].append(layer.seconds(length, watch))  # type: ignore[union-attr]
        for name, stages in cases.items():
            for case in stages:
                for time_it in (case.time_ours, case.time_loop)[:: 1 if turn % 2 else -1]:
                    time_it(watch, pruners[name])
        print(f"{visual}: round {turn + 1}/{rounds}", flush=True)
    entry: dict[str, Any] = {
        "visual": number,
        "grids": [(grid.height, grid.width) for grid in grids],
        "rounds": rounds,
    }
    entry |= {"layer_s": {length: spread_of(seconds) for length, seconds in layers.items()}, "schedules": {}}
    if layers:
        dense = [DEPTH * seconds for seconds in layers[number + TEXT]]
        entry["dense_s"] = spread_of(dense)
    for name, stages in cases.items():
        pruned = None
        if layers:
            pruned = [sum(layers[n][turn] for n in lengths(pruners[name], number)) for turn in range(rounds)]
        entry["schedules"][name] = schedule(pruners[name], stages, rounds, dense if layers else None, pruned)
    return entry


def schedule(
    pruner: BTP, cases: list[StageCase], rounds: int, dense: list[float] | None, pruned: list[float] | None
) -> dict[str, Any]:
    """Parts of all stages, and their sums as shares of the dense prefill."""

    def total(case: StageCase, parts: tuple[str, ...], turn: int) -> float:
        return sum(case.seconds[part][turn] for part in parts if case.seconds[part])

    looped = (*OURS[:2], *OTHERS[1:])
    ours, loop = (
        [sum(total(case, parts, turn) for case in cases) for turn in range(rounds)] for parts in (OURS, looped)
    )
    found: dict[str, Any] = {
        "mean_tokens": pruner.mean_tokens(DEPTH),
        "choosing_s": spread_of(ours),
        "loop_to_ours": spread_of([a / b for a, b in zip(loop, ours, strict=True)]),
        "stages": [],
    }
    if dense and pruned:
        found["choosing_to_dense"] = spread_of([a / b for a, b in zip(ours, dense, strict=True)])
        found["loop_to_dense"] = spread_of([a / b for a, b in zip(loop, dense, strict=True)])
        found["layers_to_dense"] = spread_of([a / b for a, b in zip(pruned, dense, strict=True)])
        found["pruned_to_dense"] = spread_of([(a + b) / c for a, b, c in zip(pruned, ours, dense, strict=True)])
        found["looped_to_dense"] = spread_of([(a + b) / c for a, b, c in zip(pruned, loop, dense, strict=True)])
    for case in cases:
        parts = {part: spread_of(seconds) for part, seconds in case.seconds.items() if seconds}
        stage = {"layer": case.layer, "tokens": case.tokens.valid.shape[1], "keep": case.k, "parts_s": parts}
        stage |= {"attended": case.attended, "seeded": case.seeded, "loop_picks_alike": case.alike}
        both = [total(case, looped, turn) / total(case, OURS, turn) for turn in range(rounds)]
        stage["loop_to_ours"] = spread_of(both)
        if dense:
            stage["to_dense"] = spread_of([total(case, OURS, turn) / dense[turn] for turn in range(rounds)])
            stage["parts_to_dense"] = {
                part: spread_of([a / b for a, b in zip(seconds, dense, strict=True)])
                for part, seconds in case.seconds.items()
                if seconds
            }
        found["stages"].append(stage)
    return found


def llava(args: argparse.Namespace, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """Random weights; the tower is as small as can be, as it does not run."""
    vision = dict(
        model_type="clip_vision_model",
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=16,
        patch_size=8,
    )
    text = dict(model_type="llama", **llama(args.hidden, args.layers))
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_token_index=IMAGE)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    standard = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # the weights are made where and as they are needed: 32 layers are 13 GB in half
    try:
        with torch.device(args.device):
            return LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(standard)


@torch.inference_mode()
def attached(args: argparse.Namespace, model: LlavaForConditionalGeneration, visual: str) -> dict[str, Any]:
    """A prefill with BTP attached beside the dense one, turn about."""
    device, (side, images) = torch.device(args.device), SQUARES[visual]
    side = side // 8 if args.smoke else side
    watch, number = stopwatch(device, args.threads), side * side * images
    ids = torch.full((1, number + TEXT), 10)
    ids[:, TEXT // 2 : TEXT // 2 + number] = IMAGE
    features = clustered(number, args.hidden, 0).to(device, model.dtype).view(images, side * side, -1)
    inputs = {
        "input_ids": ids.to(device),
        "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(features))},
    }

    def prefill() -> None:
        cache = DynamicCache(config=model.config.get_text_config())
        model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)

    pruner = BTP.for_model(model)
    dense, pruned, selection = [], [], []
    for turn in range(args.attached_rounds + 1):
        if turn % 2:
            dense.append(watch(prefill)[0])
        with pruner(model) as handle:
            pruned.append(watch(prefill)[0])
        selection.append(handle.report.selection_ms / 1e3)
        if not turn % 2:
            dense.append(watch(prefill)[0])
        print(f"{visual}: attached, turn {turn}/{args.attached_rounds}", flush=True)
    report = handle.report.to_dict()["prefills"][-1]
    dense, pruned, selection = dense[1:], pruned[1:], selection[1:]  # the first turn warms up
    return {
        "visual": number,
        "images": images,
        "layers": args.layers,
        "stages": [(stage["layer"], len(stage["kept"][0])) for stage in report["stages"]],
        "implied": report["flops_pruned"] / report["flops_dense"],
        "dense_s": spread_of(dense),
        "pruned_s": spread_of(pruned),
        "selection_s": spread_of(selection),
        "pruned_to_dense": spread_of([a / b for a, b in zip(pruned, dense, strict=True)]),
        "selection_to_dense": spread_of([a / b for a, b in zip(selection, dense, strict=True)]),
    }


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    layer, dtype = None, torch.bfloat16 if args.dtype == "auto" else getattr(torch, args.dtype)
    chosen: dict[str, float] = {}
    if device.type == "cpu":
        layer = OneLayer(args)
        layer.take(args.dtype, stopwatch(device, args.threads))
        chosen, dtype = layer.chosen, layer.model.dtype
    print(f"{dtype}, {chosen}", flush=True)
    runs = zip(args.visual, args.rounds, strict=True)
    found = [choosing(args, visual, rounds, layer, dtype) for visual, rounds in runs]
    layer = None  # its memory is wanted
    hooked = []
    if args.layers:
        model = llava(args, dtype)
        hooked = [attached(args, model, visual) for visual in args.attached]
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    result = {
        "what": "BTP's choosing beside a plain loop and beside prefills of a 7B-shaped model, dense and pruned",
        "command": environment.command(),
        "started": started,
        "settings": settings | {"dtype": str(dtype).removeprefix("torch."), "depth": DEPTH, "text": TEXT},
        "dtype_s": chosen,
        "machine": environment.machine(device),
        "versions": environment.versions(),
        "choosing": found,
        "attached": hooked,
    }
    text = json.dumps(result, indent=1) + "\n"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
