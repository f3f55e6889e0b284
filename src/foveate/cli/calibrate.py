"""`foveate calibrate btp`: find a model's stages by measurement."""

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


def btp(
    out: Annotated[Path, folder_option("Folder for foveate.load; a stopped run continues there.")],
    model: Annotated[str, typer.Option(help="A Hub id, a folder, or `tiny`, the embedded model.")] = "tiny",
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of images; instead of --suite.")] = None,
    suite: Annotated[str | None, typer.Option(help="Suite of questions: scenes; instead of --images.")] = None,
    samples: Annotated[int, typer.Option(min=2, help="Number of images or questions.")] = 64,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed for the samples; not one that an evaluation uses.")
    ] = 1000,
    keep: Annotated[float, typer.Option(help="Budget: mean share of visual tokens per layer.")] = 0.22,
    stages: Annotated[int, typer.Option(min=1, help="Number of stages, not counting a drop at the end.")] = 3,
    tau: Annotated[float, typer.Option(help="Cosine below which a token counts as changed by a layer.")] = 0.93,
    rule: Annotated[
        str,
        typer.Option(
            help="measured: the stages whose answers are nearest to the dense model's; paper: stages where the share "
            "of changed tokens jumps, each keeping half of the one before; no answer is measured."
        ),
    ] = "measured",
    final: Annotated[
        str, typer.Option(help="auto drops the remaining tokens where that is harmless; keep never does.")
    ] = "auto",
    answer_tokens: Annotated[int, typer.Option(min=1, help="Number of answer tokens that are compared.")] = 4,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest KL divergence in nats at which a drop counts as harmless.")
    ] = 0.01,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in one forward pass.")] = 8,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    json_file: JsonFile = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Measure where and how to prune a model with BTP; no training, no labels. Runs under `accelerate launch`, too."""
    from foveate.learn.btp.calibrate import CalibrationSettings, calibrate_btp
    from foveate.measure.loading import check_place, load_model
    from foveate.measure.processes import alone_by_mistake, current

    beside(out, json_file)
    settings: Any = CalibrationSettings(
        keep=keep,
        stages=stages,
        tau=tau,
        rule=rule,  # type: ignore[arg-type]
        final=final,  # type: ignore[arg-type]
        answer_tokens=answer_tokens,
        tolerance=tolerance,
        seed=seed,
        batch_size=batch_size,
    )
    check_place(device, dtype)
    processes = current()
    if alone_by_mistake():
        warn("one process only: on CPUs `accelerate launch` needs MPI for more; --multi_gpu does without, also there")
    given = _samples(images, suite, samples, seed)
    with console(stderr=True).status(f"loading {model}"):
        quiet_loading()
        loaded = load_model(model, processes.device(device), dtype)
    with progress() as bar:
        bar.disable = bar.disable or not processes.main
        task = bar.add_task("preparing", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        try:
            result = calibrate_btp(loaded, given, settings, out, fresh, advance, processes)
        except KeyboardInterrupt:
            complain(f"stopped; what was measured is in {out}, and the same command continues there")
            raise typer.Exit(130) from None
    if processes.main:
        _show(result, out)
        if json_file:
            write_json(json_file, result)


def _samples(images: Path | None, suite: str | None, number: int, seed: int) -> Any:
    from foveate.learn.btp.samples import from_folder, from_suite
    from foveate.learn.errors import CalibrationError

    if (images is None) == (suite is None):
        raise CalibrationError("give either --images DIR or --suite NAME")
    return from_folder(images, number, seed) if images is not None else from_suite(str(suite), number, seed)


def _show(result: dict[str, Any], out: Path) -> None:
    from foveate.learn.btp.calibrate import PICTURE, RESULT

    if result["harmless"]:
        rows = [
            [
                one["where"],
                one["how"],
                ", ".join(f"{stage['layer']}: {stage['keep']:.1%}" for stage in one["stages"]),
                f"{one['kl']:.4f} ± {one['error']:.4f}",
                f"{one['same']:.1%}",
            ]
            for one in result["final"]
        ]
        columns = ["layers from", "how", "keep before layer", "KL, nats", "same words"]
        show_table("Measured on all samples", columns, rows, 3)
    if result["curve"]["note"]:
        warn(result["curve"]["note"])
    if result["left_out"]:
        say(f"out of reach of the budget: {len(result['left_out'])} candidates, listed in {out / RESULT}")
    if result["harmless"]:
        say(f"reading depth: layer {result['reading']} of {result['depth']}, above which most of the image is read")
        harmless = result["harmless"]["layer"]
        if harmless is None:
            say("dropping all that is left is harmless before no layer")
        else:
            say(f"dropping all that is left is harmless from layer {harmless} of {result['depth']} on")
    chosen = result["chosen"]
    cuts = ", ".join(f"{stage['keep']:.1%} before layer {stage['layer']}" for stage in chosen["stages"])
    say(f"selected: {cuts}; {chosen['mean_tokens_per_layer']:.1%} of the visual tokens per layer")
    if (out / PICTURE).exists():
        say(f"figure: {out / PICTURE}")
    else:
        warn("no figure: matplotlib is not installed (pip install 'foveate[viz]')")
    say(f"pruner: foveate.load({str(out)!r})")
