"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Method = Annotated[
    str, typer.Option("--method", "-m", help="A method of `foveate list methods`, or the folder of a saved pruner.")
]
# text, in which a count (49) and a share (1.0) differ
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep", "-k", help="Visual tokens to keep: a share such as 0.22, or a count; a saved pruner has its own."
    ),
]
Keeps = Annotated[
    str,
    typer.Option(
        "--keep", "-k", help="Visual tokens to keep, comma-separated: shares such as 0.22, or counts such as 49."
    ),
]
MethodOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the method; repeatable.")
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, mps, …")]
DType = Annotated[str, typer.Option("--dtype", help="Data type: auto, float32, bfloat16 or float16.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON.")]
