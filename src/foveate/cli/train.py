"""`foveate train`: the parts that are learned."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.cli.console import (
    Device,
    DType,
    complain,
    console,
    progress,
    quiet_loading,
    say,
    show_table,
    warn,
)
from foveate.cli.outputs import JsonFile, beside, folder_option, write_json
from foveate.errors import FoveateError


def glimpse(
    out: Annotated[
        Path,
        folder_option("Folder for foveate.load; --resume continues a stopped run there."),
    ],
    model: Annotated[str, typer.Option(help="A Hub id, a folder, or `tiny`, the embedded model.")] = "tiny",
    data: Annotated[Path | None, typer.Option(help="JSONL file with image, question, answer and boxes.")] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that the image paths of --data start from.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the datasets library; instead of --data.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Suite of questions: scenes or scenes-hard; instead of --data.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out samples that cannot be used.")] = False,
    samples: Annotated[
        int, typer.Option(min=1, help="Number of samples, drawn at random; 20,000 as published.")
    ] = 20_000,
    held_out: Annotated[int, typer.Option(min=1, help="Number of questions held out for evaluation.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for samples, initial weights and order.")] = 42,
    epochs: Annotated[float, typer.Option(help="Passes over the samples.")] = 1.0,
    max_steps: Annotated[
        int, typer.Option(help="Number of updates, overriding the epochs; -1 follows the epochs.")
    ] = -1,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per device and step.")] = 1,
    accumulation: Annotated[int, typer.Option(min=1, help="Steps per update.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of AdamW, with a cosine schedule.")] = 1e-4,
    layer: Annotated[
        int | None, typer.Option(min=1, help="Cut before this decoder layer; by default two thirds of the depth.")
    ] = None,
    vision_layers: Annotated[str | None, typer.Option(help="Vision blocks, from 0, deepest first, or `none`.")] = None,
    size: Annotated[int, typer.Option(min=8, help="Width of the predictor.")] = 256,
    condition_size: Annotated[int, typer.Option(min=8, help="Width of the predictor's vision condition.")] = 512,
    attention: Annotated[
        str, typer.Option(help="Attention that the predictor reads: logits or log_softmax.")
    ] = "logits",
    max_keep: Annotated[float | None, typer.Option(help="Maximum share kept during held-out evaluation.")] = 0.111,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer during held-out evaluation.")] = 32,
    check_every: Annotated[
        int, typer.Option(min=0, help="Updates between held-out evaluations; 0 evaluates at the end only.")
    ] = 100,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train in bfloat16 mixed precision.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the folder's last checkpoint.")] = False,
    json_file: JsonFile = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Train GlimpsePrune's predictor on images with boxes; the model stays frozen. Runs under `accelerate launch`."""
    from foveate.learn.errors import TrainingError
    from foveate.learn.glimpse.train import PICTURE, GlimpseSettings, earlier_run, need_accelerate, train_glimpse
    from foveate.measure.loading import check_place, load_model
    from foveate.measure.processes import current
    from foveate.pruners.glimpseprune.sizes import sizes_for

    # 1. what can be refused before anything is loaded
    need_accelerate()
    check_place(device, dtype)
    found = _found(data, images, dataset, suite, skip_bad)
    changes: dict[str, Any] = {"size": size, "condition_size": condition_size, "attention": attention}
    if attention not in ("logits", "log_softmax"):
        raise TrainingError(f"--attention is logits or log_softmax, got '{attention}'")
    if layer is not None:
        changes["layer"] = layer
    if vision_layers is not None:
        changes["vision_layers"] = _numbers(vision_layers)
    settings = GlimpseSettings(
        batch_size=batch_size,
        accumulation=accumulation,
        epochs=epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        bf16=bf16,
        seed=seed,
        check_every=check_every,
        max_keep=max_keep,
        max_new_tokens=max_new_tokens,
    )
    beside(out, json_file)
    earlier_run(out, resume)
    # 2. load
    processes = current()
    with console(stderr=True).status(f"loading {model}"):
        quiet_loading()
        loaded = load_model(model, processes.device(device), dtype)
    # 3. read the samples, and train
    with progress() as bar:
        bar.disable = bar.disable or not processes.main
        task = bar.add_task("preparing", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        given, kept_apart = _samples(found, suite, samples, held_out, seed, advance)
        try:
            config = sizes_for(loaded.model, **changes)
            result = train_glimpse(loaded, given, kept_apart, settings, out, config, resume, advance)
        except KeyboardInterrupt:
            complain(f"stopped; the same command with --resume continues from the last checkpoint in {out}")
            raise typer.Exit(130) from None
    # 4. show the result
    if not processes.main:
        return
    rows = [
        [name, *(_share(found[column]) for column in ("recall", "kept", "accuracy"))]
        for name, found in result["held_out"].items()
    ]
    show_table(f"{held_out} held-out questions", ["", "evidence kept", "visual tokens kept", "right"], rows, 1)
    if (out / PICTURE).exists():
        say(f"figure: {out / PICTURE}")
    else:
        warn("no figure: matplotlib is not installed (pip install 'foveate[viz]')")
    say(f"pruner: foveate.load({str(out)!r})")
    if json_file:
        write_json(json_file, result)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _numbers(text: str) -> tuple[int, ...]:
    """Vision blocks of "31,23,15,7", or none of "none"."""
    from foveate.learn.errors import TrainingError

    if text == "none":
        return ()
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdecimal() and len(piece) < 6 for piece in pieces):
        raise TrainingError(f"--vision-layers takes numbers such as 31,23,15,7, or none; got {text!r}")
    return tuple(map(int, pieces))


def _found(data: Path | None, images: Path | None, dataset: Path | None, suite: str | None, skip_bad: bool) -> Any:
    """The samples of a file or folder; None of a suite, whose scenes are drawn later."""
    from foveate.learn import data as grounded
    from foveate.learn.errors import TrainingDataError

    if sum(one is not None for one in (data, dataset, suite)) != 1:
        raise TrainingDataError("give one of --data FILE, --dataset DIR and --suite NAME")
    if images is not None and data is None:
        raise TrainingDataError("--images goes with --data")
    if suite is not None:
        if suite not in grounded.SUITES:
            raise TrainingDataError(f"no suite '{suite}' to train on; there are {', '.join(grounded.SUITES)}")
        return None
    if data is not None:
        found = grounded.from_jsonl(data, images, skip_bad)
    else:
        found = grounded.from_datasets(str(dataset), skip_bad=skip_bad)
    if found.skipped:
        warn(f"left out {len(found.skipped)} samples, the first: {found.skipped[0]}")
    return found


def _samples(found: Any, suite: str | None, number: int, held_out: int, seed: int, advance: Any) -> tuple[Any, Any]:
    """What is learned from, and what is only looked at: never the same samples."""
    from foveate.learn import data as grounded

    if suite is None:
        return grounded.split(found, number, held_out, seed)
    return (
        grounded.SUITES[suite](number, seed, progress=advance),
        grounded.SUITES[suite](held_out, seed + 1, progress=advance).items,
    )


def glimpse_plus(
    config: Annotated[
        Path,
        typer.Argument(help="YAML or JSON file: `model: …`, `data: …`; docs/train-glimpse-plus.md has all settings."),
    ],
    out: Annotated[
        Path,
        folder_option("Folder for adapter, merged model and predictor; a stopped run continues there."),
    ],
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of going on.")] = False,
    json_file: JsonFile = None,
    device: Device = "auto",
) -> None:
    """Experimental: fine-tune by GRPO on pruned context, merge, train a predictor. Runs under `accelerate launch`."""
    from foveate.learn.glimpse_plus.config import read_settings
    from foveate.learn.glimpse_plus.setup import load_samples
    from foveate.learn.glimpse_plus.train import ADAPTER, MODEL, PREDICTOR, STEPS, need_trl, train_plus
    from foveate.measure.loading import check_place
    from foveate.measure.processes import current

    beside(out, json_file)
    settings = read_settings(config)
    check_place(device)
    need_trl()
    processes = current()
    quiet_loading()
    with progress() as bar:
        bar.disable = bar.disable or not processes.main
        task = bar.add_task("preparing", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        samples, held_out = load_samples(settings, advance)
        try:
            result = train_plus(settings, samples, held_out, out, fresh, device, advance, processes)
        except KeyboardInterrupt:
            complain(f"stopped; the checkpoints are in {out}, and the same command continues there")
            raise typer.Exit(130) from None
    if processes.main:
        _show(result, {"adapter": out / ADAPTER, "figures": out / ADAPTER / STEPS, "model": out / MODEL})
        if "predictor" in result["done"]:
            say(f"predictor: {out / PREDICTOR}")
        if json_file:
            write_json(json_file, result)


def _show(result: dict[str, Any], files: dict[str, Path]) -> None:
    done = result["done"]["rl"]
    if done["left_out"]:
        say(f"left out: {done['left_out']} samples over max_prompt, or over max_pruned_prompt once pruned")
    if "seconds_per_step" in done:
        memory = f", at most {done['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in done else ""
        say(f"{done['steps']} steps of {done['seconds_per_step']:.1f} s{memory}")
    for name, path in files.items():
        say(f"{name}: {path}")


def ocvtp(
    out: Annotated[Path, folder_option("Folder for foveate.load.")],
    model: Annotated[str, typer.Option(help="A Hub id, a folder, or `tiny`, the embedded model.")] = "tiny",
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of images to learn from; they need no labels.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Suite whose images are learned from: scenes or scenes-hard.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of images, drawn at random.")] = 2_000,
    held_out: Annotated[int, typer.Option(min=1, help="Number of images held out for evaluation.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for images, initial weights and order.")] = 42,
    epochs: Annotated[float, typer.Option(help="Passes over the images.")] = 30.0,
    max_steps: Annotated[
        int, typer.Option(help="Number of updates, overriding the epochs; -1 follows the epochs.")
    ] = -1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per update.")] = 12,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of AdamW, with a cosine schedule.")] = 1e-3,
    vision_layer: Annotated[
        int | None, typer.Option(min=0, help="Vision block that is read, from 0; by default a third of the depth.")
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Width of the slots.")] = 512,
    json_file: JsonFile = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Experimental: train OC-VTP's slots to rebuild the vision encoder's features; the model stays frozen."""
    from foveate.learn.errors import TrainingDataError
    from foveate.learn.ocvtp.train import SlotSettings, image_folder, image_samples, train_slots
    from foveate.measure.loading import check_place, load_model
    from foveate.pruners.ocvtp.modules import slots_for

    beside(out, json_file)
    if sum(one is not None for one in (images, suite)) != 1:
        raise TrainingDataError("give one of --images DIR and --suite NAME")
    settings = SlotSettings(batch_size, epochs, max_steps, learning_rate, seed=seed)
    image_folder(images, suite, samples + held_out, seed)
    check_place(device, dtype)
    with console(stderr=True).status(f"loading {model}"):
        quiet_loading()
        loaded = load_model(model, device, dtype)
    with progress() as bar:
        task = bar.add_task("preparing", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        given, apart = image_samples(images, suite, samples, held_out, seed, advance)
        config = slots_for(loaded.model, vision_layer=vision_layer, size=size)
        result = train_slots(loaded, given, apart, settings, out, config, advance)
    found = result["held_out"]
    say(f"loss on {found['images']} held-out images: {found['loss before']} before, {found['loss after']} after")
    say(f"pruner: foveate.load({str(out)!r})")
    if json_file:
        write_json(json_file, result)


def tiny(
    out: Annotated[Path, folder_option("Folder for scenes, checkpoints, log, curve and weights.")],
    seed: Annotated[int, typer.Option(min=0, help="Random seed for scenes, questions and initial weights.")] = 0,
    steps_vision: Annotated[
        int | None, typer.Option(min=1, help="Steps of the vision stage; by default as shipped.")
    ] = None,
    steps_language: Annotated[
        int | None, typer.Option(min=1, help="Steps of the language stage; by default as shipped.")
    ] = None,
    scenes: Annotated[
        int | None, typer.Option(min=50, help="Number of training scenes; by default as shipped.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the folder's last checkpoint.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Torch CPU threads.")] = 1,
    questions: Annotated[
        int, typer.Option(min=0, help="Held-out questions of the final check; 0 skips it. The recipe many has none.")
    ] = 1020,
    recipe: Annotated[
        str,
        typer.Option(
            help="shipped; unled: attention never led; sizes: never led, and pictures of all sizes; "
            "large: 576 visual tokens, 16 layers, for a GPU; "
            "many: the shipped weights, further on clips and large images."
        ),
    ] = "shipped",
    device: Annotated[str, typer.Option(help="Device to train on: cpu, cuda, …")] = "cpu",
) -> None:
    """Train the embedded model and check it against its requirements."""
    from foveate.measure.loading import device_named

    quiet_loading()
    asked = {"seed": seed, "scenes": scenes, "steps_vision": steps_vision}
    asked = {name: value for name, value in asked.items() if value is not None}
    run = _course(out, recipe, asked, steps_language, str(device_named(device)))
    bars: dict[str, Any] = {}
    with progress() as display:

        def show(stage: str, done: int, total: int, text: str) -> None:
            if stage not in bars:
                bars[stage] = display.add_task(stage, total=total)
            display.update(bars[stage], completed=done, description=f"{stage} {text}".strip())

        try:
            weights = run(resume=resume, threads=threads, progress=show)
        except (FileExistsError, ValueError) as error:
            raise FoveateError(str(error)) from error
    say(f"weights: {weights}")
    if questions and recipe != "many":
        _check(weights, out / "check.json", questions)


def _course(
    out: Path, recipe: str, asked: dict[str, Any], steps_language: int | None, device: str
) -> Callable[..., Path]:
    """What trains by a recipe, with what was asked for in place of its own."""
    from foveate.tiny.training.many import ManyRecipe, train_many
    from foveate.tiny.training.recipe import RECIPES
    from foveate.tiny.training.train import train

    if recipe == "many":
        if set(asked) > {"seed"} or device != "cpu":
            raise FoveateError("the recipe 'many' starts from the shipped weights, on the CPU: leave out the rest")
        return partial(train_many, out, ManyRecipe(**asked).lasting(steps_language))
    if recipe not in RECIPES:
        raise FoveateError(f"no recipe {recipe!r}; there are {', '.join((*RECIPES, 'many'))}")
    chosen = replace(RECIPES[recipe], **asked)
    return partial(train, out, chosen if steps_language is None else chosen.lasting(steps_language), device=device)


def _check(weights: Path, path: Path, questions: int) -> None:
    """Measure the new weights, print the table, write it."""
    from transformers import LlavaForConditionalGeneration

    from foveate.measure import environment
    from foveate.tiny.scenes import SIZE
    from foveate.tiny.training.check import ATTENTION_HEADS, attention_rows, check, shipped_hit_rates, verdict, write

    model = LlavaForConditionalGeneration.from_pretrained(weights).float().eval()
    table, layers = check(model, questions, 1), len(model.model.language_model.layers)
    if model.config.vision_config.image_size == SIZE:
        table["attention_shipped"] = shipped_hit_rates(questions, 1)
    write(path, table, layers, environment.command(), questions, 1)
    rows = [
        [what, f"{figure:.1f}", f"{low:.1f} to {high:.1f}", wanted, "yes" if met else "no"]
        for what, figure, (low, high), wanted, met in verdict(table, layers)
    ]
    show_table("Requirements of the embedded model, in %", ["what", "figure", "95 %", "wanted", "met"], rows)
    seen = attention_rows(table)
    area = table["attention"]["area"][0]
    title = f"Attention of the last prompt token, by layer: share on the evidence, which is {area:.3f} of the area"
    show_table(title, ATTENTION_HEADS[: len(seen[0])], seen, text_columns=0)
    say(f"figures: {path}")
