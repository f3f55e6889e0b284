import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from foveate.measure.eval.summary import accuracy_gap
from foveate.measure.eval.tables import result_tables
from foveate.measure.report.charts import front
from tests.cli.test_run import in_one_line
from tests.measure.results import TASKS, write_result

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COMMITTED = [path for path in sorted(RESULTS.glob("*/result.json")) if '"foveate-eval-1"' in path.read_text()]
VOID = {"meta", "br", "input", "img", "link", "hr"}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return write_result(tmp_path_factory.mktemp("results") / "first")


@pytest.fixture(scope="module")
def html(result, tmp_path_factory):
    from typer.testing import CliRunner

    from foveate.cli import app

    path = tmp_path_factory.mktemp("page") / "out.html"
    found = CliRunner().invoke(app, ["report", str(result), "--html", str(path)])
    assert found.exit_code == 0, found.output
    return path


class Page(HTMLParser):
    """The tables of a page, its addresses, and whether its elements are closed as they were opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.addresses = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [
            value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "action")
        ]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def test_the_page_is_whole_and_names_no_address(html):
    text = html.read_text()
    page = Page(text)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!['\"]?#)", text)
    assert "default-src 'none'" in text
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_its_figures_are_those_of_the_json(html, result):
    data = json.loads((result / "result.json").read_text())
    accuracy, cost, by_task = result_tables(data)
    tables = Page(html.read_text()).tables
    for table in (accuracy, cost, by_task):
        assert [table.columns, *table.rows] in tables
    fastv = next(arm for arm in data["arms"] if arm["arm"] == "fastv @ 0.25")
    row = next(row for row in tables[0] if row[:2] == ["fastv", "0.25"])
    assert row[3] == f"{100 * fastv['right'] / 30:.1f}"
    kept = fastv["accuracy_kept"]
    assert row[4] == f"{100 * kept['value']:.1f} [{100 * kept['low']:.1f}, {100 * kept['high']:.1f}]"
    assert any("4.00 [3.60, 4.40]" in row for table in tables for row in table)


def test_a_chart_for_each_task_and_cost(html):
    text = html.read_text()
    assert len(re.findall(r"<figure data-task=", text)) == 1 + len(TASKS)
    assert len(re.findall(r"<svg[^>]*aria-label", text)) == 1 + len(TASKS) + 3  # prefill, total, FLOPs
    assert "prefill, % of dense" in text


def test_own_data_with_metrics_and_several_processes(run, tmp_path):
    """Scores between 0 and 1, a table of metrics, and the journal of a second process."""
    folders = [write_result(tmp_path / name, better) for name, better in (("one", 0.0), ("two", 0.2))]
    for folder in folders:
        first, *lines = (folder / "answers.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        for row in rows:
            row["correct"] = 0.75 * row["correct"]
        half = len(rows) // 2
        for name, part in (("answers.jsonl", rows[:half]), ("answers-1.jsonl", rows[half:])):
            (folder / name).write_text("\n".join([first, *map(json.dumps, part)]) + "\n")
        data = json.loads((folder / "result.json").read_text())
        for arm in data["arms"]:
            gap = {"value": -0.1, "low": -0.2, "high": 0.0}
            arm["metrics"] = {"anls": {"questions": 30, "mean": 0.5, "to_dense": gap, "over_random": None}}
        (folder / "result.json").write_text(json.dumps(data))
    assert run("report", folders[0], "--html", tmp_path / "out.html").exit_code == 0
    assert any(
        "-0.100 [-0.200, +0.000]" in row for table in Page((tmp_path / "out.html").read_text()).tables for row in table
    )
    found = run("report", "--compare", *folders, "--json", tmp_path / "both.json")
    assert found.exit_code == 0, found.output
    arms = {arm["arm"]: arm for arm in json.loads((tmp_path / "both.json").read_text())["arms"]}
    mine = arms["fastv @ 0.25"]
    assert mine["questions"] == 30
    assert mine["difference"]["value"] == pytest.approx(0.75 * (mine["gained"] - mine["lost"]) / 30)


def test_no_time_no_chart_of_time(run, tmp_path):
    folder = write_result(tmp_path / "plain", timed=False)
    assert run("report", folder, "--html", tmp_path / "out.html").exit_code == 0
    text = (tmp_path / "out.html").read_text()
    assert "measured time" not in text
    assert "FLOPs of the prefill, % of dense" in text


def test_a_result_without_answers(run, result, tmp_path):
    """As those in the repository, one of them of an earlier release."""
    (tmp_path / "only.json").write_text((result / "result.json").read_text())
    earlier = next(path for path in COMMITTED if "budget" not in json.loads(path.read_text())["configuration"])
    found = run("report", tmp_path / "only.json", earlier, "--html", tmp_path / "out.html")
    assert found.exit_code == 0, found.output
    text = (tmp_path / "out.html").read_text()
    Page(text)
    assert 'id="cards"' not in text
    assert text.count("<section>") == 2


def test_tables_csv_latex_and_png(run, result, tmp_path):
    names = {name: tmp_path / f"out.{name}" for name in ("csv", "latex", "png", "json")}
    found = run("report", result, *(word for name, path in names.items() for word in (f"--{name}", path)))
    assert found.exit_code == 0, found.output
    data = json.loads((result / "result.json").read_text())
    lines = list(csv.DictReader(names["csv"].open()))
    assert len(lines) == len(data["arms"]) * (1 + len(TASKS))
    for line in lines:
        arm = next(arm for arm in data["arms"] if arm["arm"] == line["arm"])
        one = arm if line["task"] == "all" else arm["tasks"][line["task"]]
        assert float(line["accuracy"]) == one["accuracy"]
        assert float(line["prefill_faster_q75"]) == arm["time"]["prefill_faster"]["q75"]
    table = names["latex"].read_text()
    assert table.count(r"\\") == 2 + len(data["arms"])  # the heads, the model, and each arm
    assert r"fastv & 0.25 & 25.0 & " in table
    with Image.open(names["png"]) as image:
        assert image.width > image.height
    assert json.loads(names["json"].read_text()) == [data]


def test_latex_escapes():
    from foveate.measure.report.export import escape

    assert escape(r"a_b & 5% {x} \y") == r"a\_b \& 5\% \{x\} \textbackslash{}y"


def test_without_a_file_tables_are_printed(run, result):
    found = run("report", result)
    assert found.exit_code == 0
    assert "| fastv " in found.output


def test_two_results_are_compared_by_question(run, result, tmp_path):
    other = write_result(tmp_path / "second", better=0.2)
    page, text = tmp_path / "both.html", tmp_path / "both.json"
    found = run("report", "--compare", result, other, "--json", text, "--html", page, "--csv", tmp_path / "c.csv")
    assert found.exit_code == 0, found.output
    arms = {arm["arm"]: arm for arm in json.loads(text.read_text())["arms"]}
    assert arms["dense"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    rows = [
        [json.loads(line) for line in (one / "answers.jsonl").read_text().splitlines()[1:]] for one in (result, other)
    ]
    old, new = ([row["correct"] for row in lines if row["arm"] == "fastv @ 0.25"] for lines in rows)
    mine = arms["fastv @ 0.25"]
    assert mine["difference"] == accuracy_gap(new, old).to_dict()
    assert mine["gained"] - mine["lost"] == sum(new) - sum(old) != 0
    assert sum(one["questions"] for one in mine["tasks"].values()) == mine["questions"] == 30
    assert any("fastv @ 0.25" in row for row in Page(page.read_text()).tables[0])
    assert "first" in (tmp_path / "c.csv").read_text().splitlines()[0]


def test_what_cannot_be_reported_is_said_in_one_line(run, result, tmp_path):
    in_one_line(run("report", tmp_path / "none.json"), "none.json")
    (tmp_path / "bad.json").write_text("{")
    in_one_line(run("report", tmp_path / "bad.json"), "bad.json", "not JSON")
    in_one_line(run("report", RESULTS / "predicted.json"), "no result of foveate eval")
    (tmp_path / "half.json").write_text('{"format": "foveate-eval-1"}')
    in_one_line(run("report", tmp_path / "half.json"), "not whole")
    in_one_line(run("report", "--compare", result), "two results")
    (tmp_path / "only.json").write_text((result / "result.json").read_text())
    in_one_line(run("report", "--compare", result, tmp_path / "only.json"), "answers.jsonl")
    other = write_result(tmp_path / "other")
    text = (other / "result.json").read_text()
    (other / "result.json").write_text(text.replace('"questions": "abc"', '"questions": "xyz"'))
    in_one_line(run("report", "--compare", result, other), "different questions")
    (other / "result.json").write_text(text)
    (other / "gallery" / "3.jpg").write_bytes(b"no image")
    in_one_line(run("report", other, "--html", tmp_path / "no.html"), "3.jpg")
    assert not (tmp_path / "no.html").exists()


def test_the_front_has_what_nothing_beats():
    assert front([(0.5, 90), (0.4, 95), (0.6, 97), (0.4, 80), (0.9, 97), (1.0, 100)]) == [1, 2, 5]


# what a person does on the page, and what is there then; written into the page's end, so that a dump of it has it
DRIVER = """
<script>
const seen = [], note = (name) => seen.push([name, document.querySelectorAll("#cards article").length,
  document.querySelectorAll("figure[data-task]:not([hidden]) svg").length,
  document.querySelectorAll("#cards article path").length,
  document.querySelectorAll("#cards article rect").length, document.querySelectorAll(".chosen").length]);
const pick = (id, value, how = "change") => {
  const node = document.getElementById(id);
  node.value = value;
  node.dispatchEvent(new Event(how));
};
note("start");
pick("arm", "fastv @ 0.25"); pick("change", "every"); note("every");
pick("task", "<read>"); note("task");
pick("words", "it, 5", "input"); note("search");
pick("words", "no such words", "input"); note("none");
pick("words", "", "input"); pick("task", "all"); pick("change", "lost"); note("lost");
pick("change", "gained"); note("gained");
pick("image", "3");
seen.push(["strip", document.querySelectorAll("#strip figure").length, document.getElementById("asked").textContent]);
seen.push(["wide", document.documentElement.scrollWidth <= window.innerWidth]);
seen.push(["nasty", document.querySelectorAll("img").length]);
seen.push(["errors", window.problems]);
const out = document.createElement("template");
out.id = "seen"; out.setAttribute("data-seen", JSON.stringify(seen)); document.body.append(out);
</script></body>"""
WATCH = """<script>window.problems = [];
addEventListener("error", (event) => problems.push(event.message));
addEventListener("securitypolicyviolation", (event) => problems.push(event.blockedURI));
const say = console.error; console.error = (...what) => problems.push(what.join(" "));</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(html, result, tmp_path, width):
    text = html.read_text().replace("<style>", WATCH + "<style>", 1)
    driven = tmp_path / "driven.html"
    driven.write_text(text.replace("</body>", DRIVER, 1))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path}/own",
    ]
    # a window of a browser with a head is never narrower than 500 pixels; without one it is as narrow as it is told to
    found = subprocess.run(
        [CHROMIUM, *options, f"--window-size={width},900", "--dump-dom", driven.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    written = re.search(r'data-seen="([^"]*)"', found.stdout)
    assert written, found.stderr
    seen = {name: values for name, *values in json.loads(written[1].replace("&quot;", '"').replace("&lt;", "<"))}
    rows = [json.loads(line) for line in (result / "answers.jsonl").read_text().splitlines()[1:]]
    dense, own = ({row["index"]: row for row in rows if row["arm"] == arm} for arm in ("dense", "fastv @ 0.25"))
    lost = sum(dense[at]["correct"] and not own[at]["correct"] for at in range(9))
    gained = sum(own[at]["correct"] and not dense[at]["correct"] for at in range(9))
    assert seen["start"][1] == seen["task"][1] == 1
    assert seen["every"][0] == 9
    assert seen["every"][2] == 9 * 4  # dropped, their edge, and the evidence twice
    assert seen["task"][0] == 3
    assert seen["every"][3] == 2  # the one box, twice
    assert seen["task"][4] == 1 + 6  # the head and a cell for each arm
    assert seen["search"][0] == 1
    assert seen["none"][0] == 0
    assert (seen["lost"][0], seen["gained"][0]) == (lost, gained)
    assert lost > 0
    assert seen["strip"][0] == 6
    assert "what is it, 3?" in seen["strip"][1]
    assert seen["wide"] == [True]
    assert seen["nasty"] == [0]
    assert seen["errors"] == [[]]
