"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Method = Annotated[str, typer.Option("--method", "-m", help="A method of `foveate list methods`.")]
Keep = Annotated[float, typer.Option("--keep", "-k", help="Share of the visual tokens to keep, over 0, at most 1.")]
MethodOptions = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the method; repeatable.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps, …")]
DType = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was measured as JSON, too.")]
