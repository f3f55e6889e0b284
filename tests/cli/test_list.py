import json

from foveate.families import FAMILIES
from foveate.families.tested import recorded
from foveate.measure.eval.suites import SUITES
from foveate.pruners import METHODS


def test_everything_is_listed(run, tmp_path):
    found = run("list", "--json", tmp_path / "list.json")
    assert found.exit_code == 0, found.output
    data = json.loads((tmp_path / "list.json").read_text())
    assert [row["name"] for row in data["methods"]] == list(METHODS)
    assert [row["model_type"] for row in data["models"]] == list(FAMILIES)
    for word in [*METHODS, *FAMILIES, "threshold", "fill by saliency", "2506.13166"]:
        assert word in found.output
    for method in data["methods"]:
        assert {"name", "summary", "stage", "needs", "paper", "url", "options"} == set(method)
        assert all(option["help"] for option in method["options"])


def test_models_say_what_was_tested(run, tmp_path):
    found = run("list", "models", "--json", tmp_path / "list.json")
    assert found.exit_code == 0, found.output
    rows = {row["model_type"]: row for row in json.loads((tmp_path / "list.json").read_text())["models"]}
    data = recorded()
    assert {name: list(row["tested"]) for name, row in rows.items()} == {
        name: [version for version in data if name in data[version]["families"]] for name in FAMILIES
    }
    for name, row in rows.items():
        newest = list(row["tested"])[-1]  # Llama 4 itself raises in 5.24.0
        assert row["tested"][newest]["backends"]["eager"] == "works"
        (line,) = [line for line in found.output.splitlines() if f"| {name} " in line]
        assert newest in line
        backends = [name for name, cell in row["tested"][newest]["backends"].items() if cell == "works"]
        assert ", ".join(backends) in line
        cells = [*row["tested"][newest]["ways"].values(), *row["tested"][newest].get("holding", {}).values()]
        assert f"{cells.count('works')} work, " in line


def test_one_kind(run):
    assert "divprune" not in run("list", "models").output
    assert "Hub" not in run("list", "methods").output
    assert "qwen3_vl" not in run("list", "methods").output


def test_suites_say_what_they_are_made_to_break(run, tmp_path):
    found = run("list", "suites", "--json", tmp_path / "list.json")
    rows = {row["name"]: row["breaks"] for row in json.loads((tmp_path / "list.json").read_text())["suites"]}
    assert list(rows) == list(SUITES)
    assert "one visual token a character" in " ".join(found.output.split())
    assert all(name in found.output for name in SUITES)


def test_an_unknown_kind(run):
    assert run("list", "datasets").exit_code == 2


def test_output_that_is_no_terminal_is_plain(run):
    output = run("list").output
    assert "\x1b" not in output
    assert not set(output) & set("│━─╭╰┃")
