import json

import pytest

from foveate import BTP
from foveate.measure.eval.evaluate import JOURNAL, RESULT, TABLES
from tests.cli.test_run import in_one_line
from tests.measure.own_data import rows, write_jsonl

pytestmark = pytest.mark.usefixtures("words_suite")


@pytest.fixture
def evaluate(run, llava_folder, tmp_path):
    def invoke(*arguments):
        suite = () if "--data" in arguments else ("--suite", "words")
        few = ("--samples", 4, "--max-new-tokens", 2, "--out", tmp_path / "out")
        return run("eval", "--model", llava_folder, *suite, *few, *arguments)

    return invoke


def test_result_tables_and_json(evaluate, tmp_path):
    found = evaluate(
        "--methods", "greedyprune:layer=0,threshold=0.7,fastv", "--keep", "0.5", "--json", tmp_path / "r.json"
    )
    assert found.exit_code == 0, found.output
    data = json.loads((tmp_path / "r.json").read_text())
    assert data == json.loads((tmp_path / "out" / RESULT).read_text())
    assert data["format"] == "foveate-eval-1"
    labels = [arm["arm"] for arm in data["arms"]]
    assert labels == [
        "dense",
        "downsample @ 0.5",
        "random @ 0.5",
        "random:layer=2 @ 0.5",
        "greedyprune:layer=0,threshold=0.7 @ 0.5",
        "fastv @ 0.5",
    ]
    page = (tmp_path / "out" / TABLES).read_text()
    for label in labels:
        method = label.removesuffix(" @ 0.5")
        assert f"| {method} " in found.output
        assert f"| {method} " in page


def test_a_mean_budget_and_a_saved_pruner(evaluate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    BTP(stages=[(1, 0.6, 0.4), (2, 0.3, 1.0)]).save_pretrained("mine")
    found = evaluate("--methods", "mine,fastv:layer=1,fastv:layer=3", "--keep", "0.5", "--budget", "mean")
    assert found.exit_code == 0, found.output
    data = json.loads((tmp_path / "out" / RESULT).read_text())
    arms = {arm["arm"]: arm for arm in data["arms"]}
    for label in ("mine @ 0.5", "fastv:layer=1 @ 0.5", "random @ 0.5"):
        assert abs(arms[label]["measured"]["mean_tokens_per_layer"] - 0.5) < 0.05
    assert "fastv:layer=3 @ 0.5" not in arms
    assert any("fastv:layer=3 @ 0.5" in line for line in data["out_of_reach"])
    assert "stages=(BTPStage(layer=1" in arms["mine @ 0.5"]["pruner"]
    said = " ".join(found.output.split())
    assert "OUT OF REACH: fastv:layer=3 @ 0.5" in said
    assert "For every method keep is the mean share" in said


def test_a_stopped_run_says_how_to_go_on(evaluate, tmp_path, monkeypatch):
    from foveate.measure.eval import evaluate as module

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_answer", stop)
        stopped = evaluate("--keep", "0.5")
    assert stopped.exit_code == 130
    assert "the same command continues" in stopped.output
    assert evaluate("--keep", "0.5").exit_code == 0


def test_another_configuration_in_the_same_folder(evaluate):
    assert evaluate("--keep", "0.5").exit_code == 0
    in_one_line(evaluate("--keep", "0.5", "--seed", 1), "seed", "--fresh")
    assert evaluate("--keep", "0.5", "--seed", 1, "--fresh").exit_code == 0


@pytest.fixture
def own(run, llava_folder, tmp_path):
    """Fifty questions of one's own, and the command about them."""
    data = write_jsonl(tmp_path / "own.jsonl", rows(tmp_path, 50))

    def invoke(*arguments):
        few = ("--methods", "fastv", "--max-new-tokens", 2, "--out", tmp_path / "out")
        return run("eval", "--model", llava_folder, "--data", data, *few, *arguments)

    return invoke


def test_fifty_questions_stopped_and_resumed(own, tmp_path, monkeypatch):
    from foveate.measure.eval.journal import Journal

    add, asked = Journal.add, []

    def stop(self, given):
        add(self, given)
        asked.append(1)
        if len(asked) == 7:
            raise KeyboardInterrupt

    options = ("--keep", 8, "--metric", "exact,f1", "--metric", "second=contains,kl")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", stop)
        stopped = own(*options)
    assert stopped.exit_code == 130
    assert not (tmp_path / "out" / RESULT).exists()
    half = (tmp_path / "out" / JOURNAL).read_bytes()
    (tmp_path / "out" / JOURNAL).write_bytes(half[:-9])
    found = own(*options)
    assert found.exit_code == 0, found.output
    assert "Metrics, 0 to 1; kl in nats" in found.output
    data = json.loads((tmp_path / "out" / RESULT).read_text())
    assert [arm["questions"] for arm in data["arms"]] == [50] * 4
    assert data["arms"][-1]["measured"]["visual_tokens"] == 8
    lines = (tmp_path / "out" / JOURNAL).read_bytes().splitlines()
    assert len({(row["arm"], row["index"]) for row in map(json.loads, lines[1:])}) == 200
    assert len(lines) < 1 + 200 + 16  # of the batch with half a line alone is asked again
    assert str(tmp_path) not in json.dumps({key: data[key] for key in ("configuration", "settings")})


def test_rows_that_are_left_out_are_named(own, tmp_path):
    (tmp_path / "3.png").write_bytes(b"no image")
    in_one_line(own("--keep", "0.5"), "line 4", "--bad-rows skip")
    assert not (tmp_path / "out").exists()
    found = own("--keep", "0.5", "--bad-rows", "skip", "--samples", 6, "--seed", 1)
    assert found.exit_code == 0, found.output
    assert "on 6 questions of 'own.jsonl'" in found.output
    whole = own("--keep", "0.5", "--bad-rows", "skip", "--fresh", "--json", tmp_path / "r.json")
    assert "left out: line 4: 3.png is not an image" in whole.output
    assert len(json.loads((tmp_path / "r.json").read_text())["skipped_rows"]) == 1


def test_a_layer_that_is_not_there_is_refused_before_anything_is_answered(own, tmp_path):
    in_one_line(own("--layer", 99), "layer 99")
    in_one_line(own("--oracle"), "the oracle")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--methods", "nope"), "nope"),
        (("--methods", "greedyprune:nope=1"), "nope"),
        (("--methods", "greedyprune:keep=0.5"), "--keep"),
        (("--keep", "1.5"), "1.5"),
        (("--keep", "half"), "half"),
        (("--suite", "nope"), "words"),
    ],
)
def test_bad_options(evaluate, arguments, word):
    in_one_line(evaluate(*arguments), word)
