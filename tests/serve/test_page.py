"""What the page of `foveate demo --page` shows, without Gradio."""

from __future__ import annotations

import copy
import dataclasses
import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from foveate import Random, tiny
from foveate.cli import app as commands
from foveate.errors import BudgetError, UnknownMethodError
from foveate.measure.eval.answers import run_batch
from foveate.pruners.registry import METHODS, SHIPPED
from foveate.serve.page.answers import LIMITS, LONGEST, Asked, PageError, Seconds, SideBySide
from foveate.serve.page.html import OWN, shown


@pytest.fixture(scope="module")
def sides(loaded):
    # a model of its own: the other servers of these tests attach to theirs at any time
    return SideBySide(dataclasses.replace(loaded, model=copy.deepcopy(loaded.model)))


@pytest.fixture(scope="module")
def long():
    """A scene whose question has a long answer: (image, question)."""
    scene, question = next(pair for pair in tiny.held_out(34) if pair[1].task == "row")
    return scene.pil(), question.text


@pytest.fixture
def file(long, tmp_path):
    long[0].save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


class Seen(HTMLParser):
    """Text by class, cells of the table, and attributes of the images; elements are closed as they were opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.images, self.text = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.images.append(values)
            return
        self.open.append((tag, values.get("class", "")))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, name = self.open[-1]
        self.text[name] = self.text.get(name, "") + data
        if tag in ("td", "th"):
            self.rows[-1][-1] += data


def only_message(pages):
    (page,) = pages
    seen = Seen(page)
    assert 'role="alert"' in page
    assert set(seen.text) == {"fv-error"}
    return seen.text["fv-error"]


def test_answers_are_those_of_two_runs(sides, long):
    image, question = long
    asked = Asked(image, question, "random", 0.5)
    found = sides.answer(asked)
    for batch, pruner in ((found.dense, None), (found.pruned, asked.pruner())):
        assert batch.texts == run_batch(sides.loaded, [question], [[image]], pruner, 64).texts
    assert found.visual == 256
    assert [int(panel.mask.sum()) for panel in found.panels[1:]] == [128]
    assert found.lengths[0] == len(found.dense.tokens[0]) > 5
    assert found.skipped is None
    times = sides.time(found)
    assert set(times) == {"prefill", "total"}
    assert all(one.dense > 0 and one.pruned > 0 and one.ratio > 0 for one in times.values())
    assert times["total"].dense > times["prefill"].dense


def test_the_page_has_answers_then_times(sides, file, long):
    first, last = (Seen(page) for page in shown(sides, file, long[1], "pyramiddrop", 0.25, False))
    assert "timing…" in first.rows[-1]
    assert first.rows[:-2] == last.rows[:-2]
    assert last.rows[0] == ["", "dense", "pruned", "share"]
    stages = [row for row in last.rows if row[0].startswith("visual tokens before")]
    assert len(stages) == 3 == len(last.images) - 1
    assert [row[1] for row in stages] == ["256"] * 3
    for row, image in zip(stages, last.images[1:], strict=True):
        assert f"{row[2]} of 256" in image["alt"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in last.images)
    for row in last.rows[-2:]:
        assert re.fullmatch(r"\d+ %", row[3])
    assert "Times are of this machine" in last.text["fv-small"]
    assert "answer of" in last.text["fv-small"]


@pytest.mark.parametrize(
    ("prefill", "total", "said"),
    [(0.8, 1.2, "made the whole slower"), (1.1, 1.1, "made the prefill and the whole slower"), (0.8, 1.02, None)],
)
def test_a_loss_is_said(sides, file, long, monkeypatch, prefill, total, said):
    times = {"prefill": Seconds(1.0, prefill, prefill), "total": Seconds(1.0, total, total)}
    monkeypatch.setattr(sides, "time", lambda answers: times)
    *_, page = shown(sides, file, long[1], "random", 0.25, False)
    assert ("slower" in page) == (said is not None)
    assert said is None or said in page


def test_what_is_not_pruned_says_why(sides, file, monkeypatch):
    *_, page = shown(sides, file, "what is in the top row?", "random", 1.0, False)
    assert "Nothing was pruned: " in page
    assert "256 of 256 visual tokens after the last cut" in page
    *_, page = shown(sides, file, "what is in the top row?", "evs", 0.5, False)  # for videos
    assert "Nothing was pruned: the method kept every visual token" in page
    monkeypatch.setattr(Asked, "pruner", lambda self: Random(keep=0.5, min_visual=1000))
    *_, page = shown(sides, file, "what is in the top row?", "random", 0.5, False)
    reason = Seen(page).text["fv-note"]
    assert reason.startswith("Nothing was pruned: ")
    assert "1000" in reason


def test_the_method_may_decide_how_many(sides, file):
    def kept(own, keep):
        *_, page = shown(sides, file, "what colour is the ring?", "glimpseprune-tiny", keep, own)
        return [row[2] for row in Seen(page).rows if row[0].startswith("visual tokens before")]

    assert kept(True, 0.5) == kept(True, 0.1) != kept(False, 0.5) == ["128"]
    *_, page = shown(sides, file, "what?", "random", 0.5, True)  # which has no budget of its own
    assert "128 of 256" in page


def test_a_layer(sides, file):
    *_, page = shown(sides, file, "what?", "random", 0.5, False, "3")
    assert "before decoder layer 3" in page
    assert "btp has no option layer" in only_message(shown(sides, file, "what?", "btp", 0.5, False, "3"))


def test_plain_messages(sides, file, tmp_path):
    def message(file=file, question="what?", method="random", keep=0.5, layer=OWN):
        return only_message(shown(sides, file, question, method, keep, False, layer))

    assert message(file=None) == "Not answered: choose an image"
    assert message(question="") == message(question=" \n") == "Not answered: write a question"
    assert str(LONGEST) in message(question="x" * (LONGEST + 1))
    for keep in (0, -1, float("nan"), 2.5):
        assert "keep" in message(keep=keep).lower()
    assert "nosuch" in message(method="nosuch")
    assert "layer 99 is not in a model of 12" in message(layer="99")
    assert "number of images" in message(question="what is <image>?")
    assert "choose it again" in message(file=str(tmp_path / "none.png"))
    for data in (b"", b"no image", Path(file).read_bytes()[:200], b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        (tmp_path / "bad.png").write_bytes(data)
        assert "image" in message(file=str(tmp_path / "bad.png"))
        assert str(tmp_path) not in message(file=str(tmp_path / "bad.png"))
    Image.new("1", (9_000, 9_000)).save(tmp_path / "bomb.png")  # 10 kB
    assert "pixels" in message(file=str(tmp_path / "bomb.png"))
    (tmp_path / "long.png").write_bytes(Path(file).read_bytes() + bytes(LIMITS.max_image_bytes))
    assert "bytes" in message(file=str(tmp_path / "long.png"))


def test_odd_images_and_questions(sides, tmp_path):
    for number, image in enumerate([Image.new("L", (1, 1)), Image.new("I;16", (90, 2)), Image.new("RGBA", (2, 90))]):
        image.save(tmp_path / f"{number}.png")
        assert "64 of 256" in next(
            shown(sides, str(tmp_path / f"{number}.png"), "\ud800 \x00 🙂", "random", 0.25, False)
        )


def test_no_trace_for_visitors(sides, file, monkeypatch, caplog):
    monkeypatch.setattr(SideBySide, "time", lambda *_: {}["secret"])
    with caplog.at_level(logging.ERROR):
        *_, page = shown(sides, file, "what?", "random", 0.5, False)
    assert "terminal" in page
    assert "secret" not in page
    assert "secret" in caplog.text


def test_text_is_escaped(sides, file, monkeypatch):
    assert "<b>" not in "".join(shown(sides, file, "what?", "<b>", 0.5, False))
    monkeypatch.setattr(sides.loaded.processor, "batch_decode", lambda *_, **__: ["<b>&"])
    page = next(shown(sides, file, "what?", "random", 0.5, False))
    assert "<b>" not in page
    assert Seen(page).text["fv-answer"] == "<b>&" * 2


@pytest.mark.parametrize("keep", [0, 2, 64, -0.5])
def test_keep_is_a_share(keep, long):
    with pytest.raises(BudgetError):
        Asked(*long, "random", keep).pruner()


def test_one_is_all_tokens(long):
    assert Asked(*long, "random", 1).pruner().keep == 1.0
    with pytest.raises(UnknownMethodError):
        Asked(*long, "nosuch").pruner()
    with pytest.raises(PageError):
        SideBySide(None).answer(Asked(long[0], " ", "random"))


def test_many_at_once(sides, long):
    """Threads take turns: each gets the answers that its own settings give alone."""
    asked = [Asked(*long, method, keep) for method in ("random", "btp") for keep in (0.1, 0.6)]

    def outcome(one):
        found = sides.answer(one)
        sides.time(found)
        return found.dense.texts, found.pruned.texts, [stage.kept[0].tolist() for stage in found.prefill.stages]

    alone = [outcome(one) for one in asked]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(outcome, asked)) == alone


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, *SHIPPED])
def test_every_method(sides, file, method):
    seen = Seen(next(shown(sides, file, "what is in the top row?", method, 0.25, True)))
    assert "fv-error" not in seen.text
    assert len(seen.images) >= 2


def test_without_the_extra_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    found = CliRunner().invoke(commands, ["demo", "--page"])
    assert found.exit_code == 2
    assert found.output.splitlines() == ["foveate: gradio is not installed: pip install 'foveate[demo]'"]
