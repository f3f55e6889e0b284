"""What each option of each method costs at 16,000 visual tokens: time and memory of choosing, on made-up tokens.

On a CPU, process time on one thread. Every method runs with its defaults, with each other value of its options that
are words or switches (but for those in `SAME`, which compute as much), and with some numbers (`NUMBERS`); with one
budget for each of several images where it has that, and with as many text tokens as `--text` says where it reads
those. Methods of several stages run all of them. A time is given as a ratio to FastV's and to the method's own
defaults, and as a share of a dense prefill of a 7B model: its operations at the rate of a matrix product, measured in
the same run. Memory is the most that torch's allocator held above what was there before, over the bytes of the
features; it is taken in the same call as the time. Then the attention that the engine reads for a method.

It takes about 15 minutes on an idle core. The result is written after each case, and the same command, with the
same code, goes on where one was stopped.

    python benchmarks/option_costs.py --out benchmarks/results/option_costs.json
    python benchmarks/option_costs.py --defaults --visual 2880 --text 64 --out benchmarks/results/method_costs.json

The second is the quick look at every method with its defaults alone, at the visual tokens of a LLaVA-NeXT prompt.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import foveate
from foveate.engine.attention_rows import attention_rows, received, summed_rows
from foveate.engine.layout import lay_out
from foveate.families import Grid
from foveate.measure import environment
from foveate.measure.bench.counters import ON_CPU, peak_bytes
from foveate.measure.predict.selection import MadeUpPrompt, for_stage, grid_of, left, visual_tokens
from foveate.pruners import Pruner, Selection, SingleStagePruner, VisualTokens
from foveate.pruners.glimpseprune.modules import GlimpseConfig, GlimpseModules
from foveate.pruners.registry import METHODS

LAYERS, WIDTH, HEADS, MLP = 28, 3584, 28, 18944  # Qwen2.5-VL-7B's decoder
VISION = 1280  # width of its encoder
KEEP = 0.22
ROUNDS, SHORT = 5, 0.5  # seconds
PARTS = 16  # images, or frames of a video
NUMBERS: dict[str, tuple[dict[str, Any], ...]] = {
    "anchorprune": ({"novelty": 0.7},),
    "apet": ({"basis": 100},),
    "cdpruner": ({"theta": 0.8},),
    "dart": ({"visual_pivots": 64, "text_pivots": 64},),
    "greedyprune": ({"threshold": 0.5},),
    "hiprune": ({"alpha": 1.0},),
    "holov": ({"parts": 1000},),
    "scope": ({"alpha": 2.0},),
    "tome": ({"layer": 2},),
    "visionzip": ({"contextual": 0.5},),
    "vispruner": ({"important": 0.0},),
}
SAME = {"btp": ("variant", "score", "rebalance", "distance")}
VIDEO = ("evs", "vidcom2")
LAST = ("glimpseprune", "scope")  # take longest
LONG = {"anchorprune": {}, "dart": {}, "btp": {"query": "mean_text"}, "greedyprune": {}}  # these read the text


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with options, and what the prompt is: one image, several, or a video."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    shape: str = "image"
    long_text: bool = False

    @property
    def plain(self) -> bool:
        """With a short text and no options but GlimpsePrune's weights, without which it has no predictor."""
        return not self.long_text and self.options in ((), (("weights", "as published"),))

    @property
    def name(self) -> str:
        """As one reads it."""
        return ", ".join(f"{name}={value}" for name, value in self.options) or "defaults"


def cases() -> Iterator[Case]:
    """All there are."""
    base = {field.name for field in dataclasses.fields(Pruner)}
    for name, kind in METHODS.items():
        shape = "video" if name in VIDEO else "image"
        yield Case(name, shape=shape)
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            values: tuple[Any, ...] = ()
            if typing.get_origin(hint) is typing.Literal:
                values = typing.get_args(hint)
            elif hint is bool:
                values = (True, False)
            for value in values if field.name not in {*base, "per", *SAME.get(name, ())} else ():
                if value != field.default:
                    yield Case(name, ((field.name, value),), shape)
        for options in NUMBERS.get(name, ()):
            yield Case(name, tuple(options.items()), shape)
        if issubclass(kind, SingleStagePruner):
            yield Case(name, (("per", "image"),), "images")
        if name in LONG:
            yield Case(name, tuple(LONG[name].items()), shape, long_text=True)
    yield Case("glimpseprune", (("weights", "as published"),))


def config(width: int, heads: int) -> Any:
    """What methods ask of a model's config."""
    text = SimpleNamespace(num_hidden_layers=LAYERS, hidden_size=width, num_attention_heads=heads)
    return SimpleNamespace(model_type="qwen2_5_vl", num_hidden_layers=LAYERS, get_text_config=lambda: text)


def method_of(case: Case, width: int, heads: int) -> Pruner | None:
    """The case's method for such a model; None where its options do not go together alone."""
    options = dict(case.options)
    if options.pop("weights", None):
        sizes = GlimpseConfig(LAYERS, width, heads, 19, (23, 17, 11, 5), VISION if width == WIDTH else width)
        options["weights"] = GlimpseModules(sizes).eval()
    try:
        return foveate.make(case.method, **options).resolved(config(width, heads))
    except foveate.BudgetError:
        return None


def fits(case: Case) -> bool:
    """Whether the case's options go together."""
    return case.method in LAST or method_of(case, WIDTH, HEADS) is not None


def grids_of(case: Case, number: int, parts: int) -> list[list[Grid]]:
    """The grids of each image."""
    if case.shape == "image":
        return [[grid_of(number)]]
    several = [grid_of(number // parts) for _ in range(parts)]
    return [several] if case.shape == "video" else [[one] for one in several]


def made_up(case: Case, method: Pruner, prompt: MadeUpPrompt, vision: int, parts: int = PARTS) -> VisualTokens:
    """The tokens before the first stage."""
    images = grids_of(case, prompt.visual, parts)
    number = sum(grid.length for grids in images for grid in grids)
    prompt = dataclasses.replace(prompt, visual=number)
    tokens = visual_tokens(prompt, method, method.layers(LAYERS)[0])
    image, grid, row, column = lay_out(torch.ones(1, number, dtype=torch.bool), [], images).places
    return dataclasses.replace(
        tokens,
        image=image,
        grid=grid,
        row=row,
        column=column,
        grids=(tuple(one for grids in images for one in grids),),
        vision=tuple(one[..., :vision].contiguous() for one in tokens.vision),
    )


def choosing(
    case: Case, method: Pruner, prompt: MadeUpPrompt, vision: int, parts: int = PARTS
) -> Iterator[Callable[[], Any]]:
    """What is to be timed at each stage."""
    tokens = made_up(case, method, prompt, vision, parts)
    prompt = dataclasses.replace(prompt, visual=tokens.valid.shape[1])
    for layer in method.layers(LAYERS):
        tokens = for_stage(tokens, prompt, method, layer)
        found: list[Selection] = []

        def choose(shown: VisualTokens = tokens, found: list[Selection] = found) -> None:
            chosen = method.select(shown)
            found.append(chosen if isinstance(chosen, Selection) else Selection(chosen))

        yield choose
        last = found[-1]
        if not bool(last.keep.any()):
            return
        if last.carry is not None:
            tokens = dataclasses.replace(tokens, carried=last.carry)
        tokens = left(tokens, last.keep & tokens.valid)


def prefill_flops(number: int) -> float:
    """Of a dense 7B prefill of so many tokens: its products of matrices, attention as a causal triangle."""
    layer = 2 * WIDTH * (2 * WIDTH + 2 * 512 + 3 * MLP) * number + 2 * number**2 * WIDTH
    return float(LAYERS * layer)


def rate() -> float:
    """Operations a second of a product of matrices here."""
    one, other = torch.randn(1024, WIDTH), torch.randn(WIDTH, 4096)
    times = []
    for _ in range(5):
        start = time.process_time()
        one @ other
        times.append(time.process_time() - start)
    return 2 * 1024 * WIDTH * 4096 / min(times)


def measured(stages: Callable[[], Iterator[Callable[[], Any]]]) -> dict[str, float]:
    """Seconds of all stages and the highest memory of any; of short calls the shortest of five."""
    times, most = [], 0
    while len(times) < ROUNDS and sum(times) < SHORT:
        seconds = 0.0
        for stage in stages():

            def timed(stage: Callable[[], Any] = stage) -> float:
                start = time.process_time()
                stage()
                return time.process_time() - start

            taken, held = peak_bytes(torch.device("cpu"), timed)
            seconds, most = seconds + taken, max(most, held or 0)
        times.append(seconds)
    return {"seconds": min(times), "bytes": most}


def read_by_the_engine(number: int, text: int) -> dict[str, Callable[[], Any]]:
    """Attention that methods ask for, in the decoder and in the vision encoder."""
    size, keys = WIDTH // HEADS, number + text
    key = torch.randn(1, 4, keys, size)
    query = torch.randn(1, HEADS, keys, size)
    rows = torch.arange(number, keys)[None]
    patches = torch.randn(2, 1, 16, number, VISION // 16)
    return {
        "one row of the decoder": lambda: attention_rows(query, key, None, {}, rows[:, -1:]),
        f"the sum of {text:,} rows": lambda: summed_rows(query, key, None, {}, rows),
        "what patches receive, no class token": lambda: received(*patches, None, {}),
        "what patches receive, with a class token": lambda: received(*patches, None, {}, 0),
    }


def page(result: dict[str, Any]) -> str:
    """The tables."""
    settings, machine = result["settings"], result["machine"]
    lines = [
        "# What methods cost" if settings["defaults"] else "# What options cost",
        "",
        "Made by `option_costs.py`; do not edit.",
        "",
        f"`{result['command']}`",
        "",
        f"Choosing among {settings['visual']:,} visual tokens of {WIDTH} dimensions in float32, {KEEP:.0%} kept where "
        f"a method has such a budget; CPU time on one thread of {machine['cpu']}, which other work shared; torch "
        f"{result['versions']['torch']}. Nothing here was run on a GPU.",
        "",
        "*Of a prefill*: time over that of a dense prefill of as many tokens by a 7B model, taken as its operations "
        "at the rate of a matrix product, measured in the same run. *Memory*: the most held above the inputs, over "
        "the bytes of the features. *Text*: tokens of the question. "
        f"*images*: {PARTS} images, *video*: {PARTS} frames.",
        "",
    ]
    if result["missing"]:
        lines += [f"Not measured yet: {'; '.join(result['missing'])}.", ""]
    lines += [
        "| method | options | prompt | text | time, × FastV | time, × its defaults | of a prefill, % | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    own = {one["method"]: one["seconds"] for one in reversed(result["cases"]) if one["options"] == "defaults"}
    for one in sorted(result["cases"], key=lambda one: list(METHODS).index(one["method"])):
        lines.append(
            f"| {one['method']} | {one['options']} | {one['shape']} | {one['text']:,} | "
            f"{one['seconds'] / own['fastv']:,.1f} | {one['seconds'] / own[one['method']]:.2f} | "
            f"{100 * one['of_prefill']:.3f} | {one['memory']:.2f} |"
        )
    lines += [
        "",
        "## What the engine reads for a method",
        "",
        "Of one layer of the decoder, 28 heads, and one block of a vision encoder of 16 heads with as many patches.",
        "",
        "| what | of a prefill, % | memory |",
        "|---|---|---|",
    ]
    for one in result["read"]:
        lines.append(f"| {one['what']} | {100 * one['of_prefill']:.3f} | {one['memory']:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visual", type=int, default=16000)
    parser.add_argument("--text", type=int, default=6000)
    parser.add_argument(
        "--defaults", action="store_true", help="no options but GlimpsePrune's weights, and no long text"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    whole, size, at_once = prefill_flops(args.visual), args.visual * WIDTH * 4, rate()
    found: list[dict[str, Any]] = []
    if args.out and args.out.exists():
        before = json.loads(args.out.read_text())
        if (before["settings"], before["code"]) == (settings, environment.code_fingerprint()):
            found = before["cases"]
    todo = [case for case in cases() if fits(case) and (case.plain or not args.defaults)]
    todo.sort(key=lambda case: (case.method != "fastv", bool(case.options), case.method in LAST))
    names = [f"{case.method} {case.name}, {case.shape}, text {args.text if case.long_text else 64}" for case in todo]
    read: list[dict[str, Any]] = []

    def entry(figures: dict[str, float]) -> dict[str, float]:
        return {**figures, "of_prefill": figures["seconds"] * at_once / whole, "memory": figures["bytes"] / size}

    def write() -> None:
        there = {one["case"] for one in found}
        result = {
            "what": "time and memory of choosing, for each option of each method",
            "command": environment.command(),
            "settings": settings,
            "memory": ON_CPU,
            "machine": environment.machine(torch.device("cpu")),
            "versions": environment.versions(),
            "code": environment.code_fingerprint(),
            "product_rate": at_once,
            "prefill_flops": whole,
            "missing": [name for name in names if name not in there],
            "cases": found,
            "read": read,
        }
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(page(result))
        elif not result["missing"]:
            print(page(result))

    with torch.inference_mode():
        for case, name in zip(todo, names, strict=True):
            if any(one["case"] == name for one in found):
                continue
            method = method_of(case, WIDTH, HEADS)
            text = args.text if case.long_text else 64
            prompt = MadeUpPrompt(args.visual, text, hidden=WIDTH, heads=HEADS)
            figures = entry(measured(lambda: choosing(case, method, prompt, VISION)))  # noqa: B023
            one = {"method": case.method, "options": case.name, "shape": case.shape, "text": text}
            found.append({"case": name, **one, **figures})
            print(found[-1], flush=True)
            write()
        works = read_by_the_engine(args.visual, args.text)
        read += [{"what": what, **entry(measured(lambda: iter([work])))} for what, work in works.items()]  # noqa: B023
    write()


if __name__ == "__main__":
    main()
