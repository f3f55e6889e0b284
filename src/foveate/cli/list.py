"""`foveate list`: what exists."""

import dataclasses
from enum import StrEnum
from typing import Annotated, Any

import typer

from foveate.cli.console import say, show_table
from foveate.cli.outputs import JsonFile, write_json
from foveate.errors import FoveateError

DEPTH = 32  # layers of the model that default stages are shown for


class What(StrEnum):
    """What can be listed."""

    methods = "methods"
    models = "models"
    suites = "suites"


def list_(
    what: Annotated[What | None, typer.Argument(help="List one of them only.")] = None,
    json_file: JsonFile = None,
) -> None:
    """List the pruning methods with their options, the model families, and the suites of questions."""
    found: dict[str, Any] = {}
    if what in (None, What.methods):
        found["methods"] = methods()
        _show_methods(found["methods"])
    if what in (None, What.models):
        found["models"] = models()
        _show_models(found["models"])
    if what in (None, What.suites):
        found["suites"] = suites()
        rows = [[row["name"], row["breaks"]] for row in found["suites"]]
        show_table("Suites of questions for the embedded model", ["suite", "made to break"], rows, 2)
    if json_file:
        write_json(json_file, found)


def methods() -> list[dict[str, Any]]:
    """Return what each method says of itself."""
    from foveate.pruners import METHODS

    return [
        {
            "name": name,
            "summary": method.summary,
            "stage": _stage(method),
            "needs": method.needs,
            "paper": method.paper,
            "url": method.url,
            "options": [
                {"name": item.name, "default": _default(item), "help": item.metadata["help"]}
                for item in dataclasses.fields(method)
                if item.metadata
            ],
        }
        for name, method in METHODS.items()
    ]


def models() -> list[dict[str, Any]]:
    """Return the model families, each with all that was tested: for each release of transformers every cell."""
    from foveate.families import FAMILIES
    from foveate.families.tested import cells_of

    return [
        {"family": family.title, "model_type": name, "example": family.example, "tested": cells_of(name)}
        for name, family in FAMILIES.items()
    ]


def suites() -> list[dict[str, str]]:
    """Return the suites of `foveate eval`, each with what it is made to break."""
    from foveate.measure.eval.suites import SUITES

    return [{"name": name, "breaks": suite.breaks} for name, suite in SUITES.items()]


def _stage(method: Any) -> list[int] | None:
    """Layers of the default stages; `None` for a method that cannot be built from defaults."""
    try:
        return list(method().layers(DEPTH))
    except (FoveateError, TypeError):
        return None


def _default(item: Any) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else "required"


def _show_methods(rows: list[dict[str, Any]]) -> None:
    show_table(
        "Methods",
        ["method", "what it keeps", "cut before layer", "needs", "paper"],
        [
            [
                row["name"],
                row["summary"],
                ", ".join(map(str, row["stage"])) if row["stage"] is not None else "by model",
                row["needs"] or "nothing",
                row["paper"],
            ]
            for row in rows
        ],
        5,
    )
    shared = _shared_options(rows)
    lines = [["any", *line] for line in shared] + [
        [row["name"], *line] for row in rows for line in _options(row) if line not in shared
    ]
    show_table("Options", ["method", "option", "default", "meaning"], lines, 4)
    say(f"Layers are counted from 0; stages are shown for a model of {DEPTH} layers. `--option name=value` sets one.")
    say("Several methods make a chain, each at layers of its own: `--method divprune:keep=0.5+btp`.")


def _show_models(rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        newest = list(row["tested"].values())[-1] if row["tested"] else {}
        backends = [name for name, cell in newest.get("backends", {}).items() if cell == "works"]
        cells = [cell for table in ("ways", "holding") for cell in newest.get(table, {}).values()]
        works, refused = cells.count("works"), sum(cell.startswith("refused") for cell in cells)
        counts = f"{works} work, {refused} refused" if cells else ""
        words = [row["family"], row["model_type"], row["example"]]
        lines.append([*words, ", ".join(row["tested"]), ", ".join(backends), counts])
    show_table(
        "Model families",
        ["family", "model_type", "example", "tested with transformers", "attention", "ways"],
        lines,
        6,
    )
    say("Ways of generating and of holding a model: docs/models.md has the table, `--json FILE` every cell.")


def _options(row: dict[str, Any]) -> list[list[str]]:
    return [[option["name"], str(option["default"]), option["help"]] for option in row["options"]]


def _shared_options(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Options that every method has with the same default, so that they are printed once."""
    return [line for line in _options(rows[0]) if all(line in _options(row) for row in rows)]
