"""Every script in examples/, the notebook, and the lines of README run as they stand, on the embedded model."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from foveate import tiny
from foveate.tiny.model import WEIGHTS

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = ["add_a_method", "make_questions", "own_data", "quick_start", "several_images", "vlmevalkit"]

pytestmark = pytest.mark.skipif(
    not (WEIGHTS / "model.safetensors").is_file(), reason="the embedded model has no weights here"
)


def script(monkeypatch, name, *arguments):
    """What a script prints."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return printed.getvalue()


def test_none_is_forgotten():
    # quantised.py needs libraries of its own: tests/test_quantised_example.py; run_notebook.py runs the notebook below
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, "quantised", "run_notebook"}
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]:
        assert f"(../examples/{path.name})" in page


@pytest.mark.parametrize("name", SCRIPTS)
def test_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 40


def test_quick_start(monkeypatch):
    found = script(monkeypatch, "quick_start")
    assert found.count("cross") == 2  # dense and pruned
    assert "64 of 256" in found


def test_several_images(monkeypatch):
    found = script(monkeypatch, "several_images")
    assert "sample 0: 64 of 256 visual tokens kept\n" in found
    assert "sample 1: 64 of 256 visual tokens kept, 64 of 256 visual tokens kept\n" in found


def test_make_questions(monkeypatch, tmp_path):
    assert (
        script(monkeypatch, "make_questions", tmp_path / "my")
        == f"50 questions in {tmp_path / 'my/questions.jsonl'}\n"
    )
    rows = [json.loads(line) for line in (tmp_path / "my" / "questions.jsonl").read_text().splitlines()]
    assert all((tmp_path / "my" / row["image"]).is_file() and row["answer"] for row in rows)
    assert {row["task"] for row in rows} == set(tiny.TASKS)


def test_own_data(monkeypatch, tmp_path):
    asked = ["what shape is the medium blue object?"] * 2
    for number in range(2):
        tiny.make_scene(np.random.default_rng(3)).pil().save(tmp_path / f"{number}.png")
    rows = [
        {"image": f"{at}.png", "question": ask, "answer": truth}
        for at, (ask, truth) in enumerate(zip(asked, ["Cross.", "square"], strict=True))
    ]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "questions.jsonl").write_text(lines, encoding="utf-8")
    found = script(monkeypatch, "own_data", tmp_path).splitlines()
    assert [line.split()[0] for line in found] == ["dense", "fastv", "fastv", "random"]
    assert found[0].endswith("1 of 2 right")


RUN = """
from vlmeval.config import supported_VLM
model = supported_VLM["tiny-fastv"](use_vllm=False)
message = [{"type": "image", "value": "scene.png"}, {"type": "text", "value": "what shape is blue?"}]
print("answer:", model.generate_inner(message, dataset="MMBench"))
print("others:", sorted(supported_VLM))
"""


def test_vlmevalkit(monkeypatch, tmp_path):
    """With a stand-in for VLMEvalKit, which is in no registry: its table of models, its base class, its run.py."""
    for name in ("vlmeval", "vlmeval.config", "vlmeval.vlm", "vlmeval.vlm.base"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["vlmeval.config"].supported_VLM = {"another": None}
    sys.modules["vlmeval.vlm.base"].BaseModel = type("BaseModel", (), {})
    monkeypatch.chdir(tmp_path)
    tiny.make_scene(np.random.default_rng(3)).pil().save("scene.png")
    Path("run.py").write_text(RUN, encoding="utf-8")
    found = script(monkeypatch, "vlmevalkit", "--model", "tiny-fastv")
    assert "answer: cross" in found
    assert "'another'" in found


def test_add_a_method(monkeypatch):
    found = script(monkeypatch, "add_a_method")
    assert "64 of 256" in found
    assert found.count("holds:") == 3


def test_notebook():
    runner = runpy.run_path(str(EXAMPLES / "run_notebook.py"))
    path = EXAMPLES / "tour.ipynb"
    stored = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    book = runner["run"](path)
    for old, new in zip(stored, (cell for cell in book["cells"] if cell["cell_type"] == "code"), strict=True):
        kinds = [[kind for output in cell["outputs"] for kind in output.get("data", ["text"])] for cell in (old, new)]
        assert kinds[0] == kinds[1], "stale outputs: python examples/run_notebook.py examples/tour.ipynb"
    printed = "".join(line for cell in stored for output in cell["outputs"] for line in output.get("text", []))
    assert "same bits: True" in printed
    assert "detached, too: True" in printed


def test_readme_runs(monkeypatch, tmp_path):
    """The ten lines under "Use", with the embedded model in the place of LLaVA, whose prompt it shares."""
    monkeypatch.chdir(tmp_path)
    tiny.make_scene(np.random.default_rng(3)).pil().save("cat.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    code, known = re.subn(r'^name = ".*"$', f"name = {str(WEIGHTS)!r}", code, flags=re.MULTILINE)
    code, asked = re.subn("What is on the sofa", "what shape is the medium blue object", code)
    assert known == asked == 1
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert "128 of 256" in printed.getvalue()
