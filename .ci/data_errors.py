"""The table of docs/data-errors.md: what each file of tests/faults/test_data_files.py gets from `foveate eval`.

python .ci/data_errors.py --write puts it in; without --write it prints the table. Needs the extra `eval`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, HEAD = ROOT / "docs" / "data-errors.md", "| what is wrong | the line |\n"
ROWS = re.compile(r"^\d of \d rows of \S+ cannot be used \(--bad-rows skip leaves them out\): ")
sys.path.insert(0, str(ROOT))

from tests.faults.test_data_files import FILES, write_images  # noqa: E402

from foveate.cli.app import app  # noqa: E402


def line(name: str) -> str:
    """What the command says of a file, without the paths of this machine."""
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        folder = Path(place)
        write_images(folder)
        path = FILES[name][0](folder)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                app(["eval", "--out", "out", "--data", str(path)])
        except SystemExit as ended:
            if ended.code != 2:
                raise SystemExit(f"{name}: exit code {ended.code}") from None
        text = said.getvalue()
        if text.count("\n") != 1 or (folder / "out").exists():
            raise SystemExit(f"{name}: not one line, or something was written: {text}")
        text = text.removeprefix("foveate: ").strip().replace(f"{place}/", "").replace(place, ".")
        return ROWS.sub("… ", text).replace("`", "'").replace("|", "/")


def table() -> str:
    """The whole table."""
    rows = [f"| {name} | `{line(name)}` |\n" for name in FILES]
    return "".join([HEAD, "|---|---|\n", *rows])


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    made = table()
    if "--write" in sys.argv:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page[: page.index(HEAD)] + made, encoding="utf-8")
    else:
        print(made, end="")


if __name__ == "__main__":
    main()
