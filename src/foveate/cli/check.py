"""`foveate check`: do the laws of pruning hold for this model?"""

from math import isfinite
from typing import Annotated, Any

import typer

from foveate.cli.console import WRONG, Device, DType, console, quiet_loading, say, show_table
from foveate.cli.outputs import JsonFile, write_json


def check(
    model: Annotated[str, typer.Argument(help="A Hub id, a folder, or `tiny`, the embedded model.")] = "tiny",
    methods: Annotated[
        str, typer.Option(help="Methods with options, `random:keep=0.3,fastv`; `uneven` is one for tests.")
    ] = "random,fastv,uneven",
    family: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For a model type that is not listed: `default`, a listed type to treat it like, or FILE.py:NAME.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 4,
    attn: Annotated[
        str | None, typer.Option(help="Attention backend: sdpa, eager, …; by default the model's.")
    ] = None,
    device: Device = "auto",
    dtype: DType = "auto",
    json_file: JsonFile = None,
) -> None:
    """Test on a model that keep=1.0 changes nothing, that pruning equals masking, and that a batch equals its samples.

    Exit code 1 if one of them is broken, 2 if it cannot be tested at all.
    """
    with console(stderr=True).status(f"loading {model}"):
        from foveate.measure.check.check import (
            attention_named,
            check_model,
            family_named,
            make_pruners,
            use_attention,
        )
        from foveate.measure.loading import load_model

        quiet_loading()
        pruners = make_pruners(methods)
        attn = attention_named(attn)
        own = None if family is None else family_named(family)
        loaded = load_model(model, device, dtype, any_family=own is not None)
        use_attention(loaded.model, attn)
    if own is None:
        from foveate.families import family_of

        own = family_of(loaded.model)
    with console(stderr=True).status("checking") as status:
        results = check_model(
            loaded, pruners, own, steps, lambda result: status.update(f"checked {result.method} on {result.inputs}")
        )
    setting = _setting(loaded.model)
    show_table(f"{model}: {', '.join(setting.values())}", _columns(), [_row(result) for result in results], 2)
    _tell(results)
    if json_file:
        found = {"format": "foveate-check-1", "model": model, "family": own.title, **setting, "steps": steps}
        write_json(json_file, found | {"pruners": list(map(repr, pruners)), "results": list(map(_plain, results))})
    if any(law.holds is False for result in results for law in result.laws):
        raise typer.Exit(1)


def _setting(model: Any) -> dict[str, str]:
    return {
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(model.get_decoder().config._attn_implementation),
        "device": str(model.device),
    }


def _columns() -> list[str]:
    from foveate.testing import LAWS

    return ["inputs", "method", *LAWS, "allowed"]


def _row(result: Any) -> list[str]:
    if not result.laws:
        return [result.inputs, result.method, *["not tested"] * 3, ""]
    return [result.inputs, result.method, *map(_cell, result.laws), f"{result.noise.tolerance:.1g}"]


def _cell(law: Any) -> str:
    from foveate.testing.laws import NO_SAMPLES

    if law.holds is None:
        return "" if law.reason == NO_SAMPLES else "not tested"
    apart = "" if law.difference is None else f" {law.difference:.2g}"
    return f"holds{apart}" if law.holds else f"broken{apart} {WRONG}"


def _tell(results: list[Any]) -> None:
    """Say why something is broken or was not tested, each reason once, and the sum of it."""
    from foveate.testing.laws import NO_SAMPLES

    reasons: dict[str, list[str]] = {}
    for result in results:
        told = {result.skipped} | {
            f"{law.name}: {'broken' if law.holds is False else 'not tested'}: {law.reason}"
            for law in result.laws
            if law.reason and law.reason != NO_SAMPLES
        }
        for reason in told - {""}:
            reasons.setdefault(reason, []).append(f"{result.method} on {result.inputs}")
    for reason, where in sorted(reasons.items()):
        say(f"{reason} ({', '.join(where)})")
    noise = [result.noise for result in results if result.noise is not None]
    furthest = max((one.reference for one in noise if one.fits), default=0.0)
    say(
        "Figures are the largest differences of two logits that should be equal. Allowed is 0.0001, or what rounding "
        "does to the dense model: three times what its own run and the reference with nothing hidden differ by, here "
        f"up to {furthest:.1g}, or two steps of its largest logit. The standard deviation of its logits is "
        f"{noise[0].spread:.2g}."
    )
    laws = [law for result in results for law in result.laws]
    held, broken = (sum(law.holds is value for law in laws) for value in (True, False))
    if broken:
        say(f"{broken} of {held + broken} checks are broken: do not prune this model with this version.", "bold red")
    else:
        say(f"all {held} checks hold")


def _plain(result: Any) -> dict[str, Any]:
    from dataclasses import asdict

    laws = [
        {"law": law.name, "holds": law.holds, "difference": _finite(law.difference), "reason": law.reason}
        for law in result.laws
    ]
    noise = None
    if result.noise is not None:
        found = {**asdict(result.noise), "tolerance": result.noise.tolerance}
        noise = {name: _finite(value) for name, value in found.items()}
    return {
        "inputs": result.inputs,
        "method": result.method,
        "skipped": result.skipped or None,
        "noise": noise,
        "laws": laws,
    }


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity."""
    return value if value is None or isfinite(value) else None
