"""What a type checker sees of the public names: the right ones, and no others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import foveate

pytest.importorskip("mypy")

# torch and transformers take mypy minutes, and are not asked about here
CONFIG = """
[mypy]
follow_imports = silent
[mypy-torch.*,transformers.*,numpy.*,PIL.*,safetensors.*,tokenizers.*,huggingface_hub.*,triton.*]
follow_imports = skip
ignore_missing_imports = True
"""
# each line with the error that it must give, if any
USE = """
import foveate
from foveate import GreedyPrune, Random
from foveate import GreedyPrun  # attr-defined
pruner = foveate.GreedyPrune(keep=0.22, threshold=0.5)
other: GreedyPrune = pruner
wrong: Random = pruner  # assignment
foveate.GreedyPrun(keep=0.22)  # attr-defined
foveate.GreedyPrune(kep=0.22)  # call-arg
foveate.GreedyPrune(threshold="high")  # arg-type
foveate.make("fastv", keep=0.22).keep_all  # attr-defined
handle = foveate.attach(object(), pruner)
handle.detach()
handle.dettach()  # attr-defined
foveate.load("folder").name.upper()
foveate.errors.BudgetError("no")
foveate.errors.BugdetError("no")  # attr-defined
foveate.tiny.load()
foveate.__version__.upper()
"""


def test_mypy_sees_the_public_names(tmp_path):
    names = "".join(f"foveate.{name}\n" for name in foveate.__all__)
    lines = (USE + names).splitlines()
    (tmp_path / "use.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "use.py"]
    path = {"MYPYPATH": str(Path(foveate.__file__).parent.parent)}
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | path, capture_output=True, text=True, timeout=280, check=False
    )
    found = {
        int(line): kind for line, kind in re.findall(r"^use\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.M)
    }
    expected = {number: line.split("# ")[1] for number, line in enumerate(lines, 1) if "# " in line}
    assert found == expected, done.stdout + done.stderr
