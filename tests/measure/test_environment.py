"""The recorder: what a result says about the run that made it."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

from foveate.measure import environment


@pytest.mark.parametrize(
    ("module", "argv", "typed"),
    [
        (None, ["/opt/env/bin/foveate", "eval", "--methods", "a,b"], "foveate eval --methods a,b"),
        ("foveate.__main__", ["/x/foveate/__main__.py", "eval", "--keep", "0.5"], "foveate eval --keep 0.5"),
        ("foveate.tiny.training.check", ["/x/check.py", "out.json"], "python -m foveate.tiny.training.check out.json"),
        (None, ["benchmarks/x.py", "--out", "two words"], "python benchmarks/x.py --out 'two words'"),
        (None, ["/home/somebody/foveate/benchmarks/x.py"], "python benchmarks/x.py"),
    ],
)
def test_the_command_is_what_one_types(module, argv, typed, monkeypatch):
    spec = None if module is None else ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", argv)
    assert environment.command() == typed


def test_the_command_of_a_script_that_runs(tmp_path):
    script = tmp_path / "benchmarks" / "x.py"
    script.parent.mkdir()
    script.write_text("from foveate.measure import environment\nprint(environment.command())\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder, name in ((tmp_path, "benchmarks/x.py"), (elsewhere, str(script))):
        done = subprocess.run([sys.executable, name, "--fast"], cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "python benchmarks/x.py --fast"
