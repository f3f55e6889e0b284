"""What a report looks like at a prompt and in a notebook: small, however large the run was."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import pytest
import torch

from foveate import Random
from foveate.engine.report import Prefill, Report, Stage
from tests.models.build import build, generate, inputs

TOKENS, BATCH = 2880, 8
NASTY = "<script>alert('x')</script> & \"more\" " + 100 * "a long reason "


def stage(layer: int, keep: int = 634) -> Stage:
    kept = [torch.arange(keep + row) for row in range(BATCH)]
    images = [[(keep // 2, TOKENS // 2), (keep + row - keep // 2, TOKENS // 2)] for row in range(BATCH)]
    return Stage(layer, kept, [TOKENS] * BATCH, images)


def prefill(cuts: int = 1, **changes: object) -> Prefill:
    entry = Prefill(
        stages=[stage(2 + at, 1000 - at) for at in range(cuts)],
        tokens_per_layer=[float(TOKENS)] * 80,
        mean_tokens_per_layer=0.27,
        kv_share=0.28,
        last_layer_tokens=0.22,
        selection_ms=12.34,
        compaction_ms=2.11,
        flops_dense=4e12,
        flops_pruned=1e12,
        skipped=None,
        notes=[],
    )
    return dataclasses.replace(entry, **changes)


LARGE = {
    "stage": stage(2),
    "prefill": prefill(),
    "many cuts": prefill(60, notes=[NASTY] * 40),
    "skipped": prefill(0, skipped=NASTY),
    "report": Report((prefill(),)),
    "many prefills": Report((prefill(60, notes=[NASTY] * 40), prefill(0, skipped=NASTY)) * 200),
    "nothing yet": Report(()),
}


@pytest.mark.parametrize("what", LARGE)
def test_a_repr_fits_a_screen(what):
    text = repr(LARGE[what])
    lines = sum(1 + len(line) // 80 for line in text.splitlines())
    assert lines <= 24, text
    assert "tensor" not in text


def test_a_repr_has_the_counts():
    assert repr(stage(2)) == (
        "<Stage before layer 2: 5,100 of 23,040 visual tokens kept in 8 samples (634 to 641 each), 16 images>"
    )
    assert repr(prefill(3, notes=["one"])) == (
        "<Prefill, 3 cuts from layer 2 on, the last before layer 4: 8,012 of 23,040 visual tokens kept in 8 samples "
        "(998 to 1,005 each), 16 images, mean per layer 27%, last layer 22%, KV cache 28%, FLOPs 25%, 1 note>"
    )
    assert repr(prefill(0, skipped="the pruner was paused")) == "<Prefill, nothing pruned: the pruner was paused>"
    assert repr(Report(())) == "<Report, no prefill yet>"
    many = repr(LARGE["many prefills"]).splitlines()
    assert many[0] == "<Report, 400 prefills, the last 6:"
    assert [line.split(":")[0] for line in many[1:]] == [f"  {number}" for number in range(394, 400)]


class Reader(HTMLParser):
    """Collects the rows of tables and complains of what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read(entry: Prefill | Report) -> Reader:
    reader = Reader()
    reader.feed(entry._repr_html_())
    reader.close()
    assert not reader.open
    return reader


@pytest.mark.parametrize("what", [name for name in LARGE if name != "stage"])
def test_html_is_small_whole_and_escaped(what):
    found = read(LARGE[what])
    assert found.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    assert len(found.rows) <= 30
    assert len({len(row) for row in found.rows}) <= 1
    html = LARGE[what]._repr_html_()
    assert len(html) < 12_000
    assert "color" not in html


def test_html_of_a_prefill():
    found = read(prefill(2, notes=[NASTY]))
    assert found.rows == [
        ["", "dense", "pruned", "share"],
        ["visual tokens before decoder layer 2 in 8 samples (1,000 to 1,007 each)", "23,040", "8,028", "34.8%"],
        ["visual tokens before decoder layer 3 in 8 samples (999 to 1,006 each)", "23,040", "8,020", "34.8%"],
        ["visual tokens a layer, mean", "", "", "27.0%"],
        ["visual tokens at the last layer", "", "", "22.0%"],
        ["visual tokens in the KV cache", "", "", "28.0%"],
        ["GFLOPs of the decoder layers, mean of a sample", "4,000", "1,000", "25.0%"],
        ["choosing the tokens, ms", "", "12.3", ""],
        ["cutting the others, ms", "", "2.1", ""],
    ]
    assert "note: <script>alert('x')</script> & \"more\"" in found.text


def few(*kept: int, images: int = 1) -> Stage:
    return Stage(
        2, [torch.arange(count) for count in kept], [9] * len(kept), [[(1, 4)] * images] + [[]] * len(kept[1:])
    )


def test_one_is_not_counted_and_two_are():
    assert repr(few(3)) == "<Stage before layer 2: 3 of 9 visual tokens kept>"
    assert repr(few(3, images=2)) == "<Stage before layer 2: 3 of 9 visual tokens kept, 2 images>"
    assert repr(few(3, 3)) == "<Stage before layer 2: 6 of 18 visual tokens kept in 2 samples (3 each)>"
    assert repr(few(3, 4)) == "<Stage before layer 2: 7 of 18 visual tokens kept in 2 samples (3 to 4 each)>"
    assert repr(prefill(1)).startswith("<Prefill, before layer 2: ")
    assert repr(prefill(2)).startswith("<Prefill, 2 cuts from layer 2 on, the last before layer 3: ")
    assert repr(prefill(0)).startswith("<Prefill, no cut, ")
    assert repr(prefill(1, notes=["one", "two"])).endswith(", 2 notes>")
    assert "FLOPs" not in repr(prefill(1, flops_dense=None))
    assert "FLOPs 0%" in repr(prefill(1, flops_pruned=0.0))


@pytest.mark.parametrize("count", [6, 7, 8])
def test_of_more_than_six_the_last_are_shown(count):
    assert repr(Report((prefill(),) * count)).startswith(
        f"<Report, {count} prefills{', the last 6' if count > 6 else ''}:\n  {count - 6}: before layer 2: "
    )
    found = read(prefill(count, notes=[f"note {number}" for number in range(count)]))
    cuts = [row[0].split(" in 8")[0] for row in found.rows[1:8]]
    shown = [f"visual tokens before decoder layer {2 + at}" for at in range(count - 6, count)]
    assert cuts[: len(shown) + (count > 6)] == ([f"{count - 6} earlier cuts"] if count > 6 else []) + shown
    assert ("note 5" in found.text, "note 6" in found.text) == (True, False)
    assert (f"and {count - 6} more" in found.text) == (count > 6)
    several = read(Report((prefill(),) * count))
    assert [row[0] for row in several.rows if row[0].isdigit()] == [str(count - 6 + at) for at in range(6)]
    assert several.text.startswith(f"{count} prefills{', the last 6' if count > 6 else ''}:")


def test_a_report_speaks_of_its_last_prefill():
    assert Report((prefill(), prefill(kv_share=0.5), prefill(kv_share=0.25))).kv_share == 0.25
    assert read(Report((prefill(), prefill(2)), seen=2)).text.count("The last one:") == 1
    assert "The last one:" not in read(Report((prefill(),))).text
    assert Report((prefill(),), seen=0).seen == 0
    assert Report((prefill(),)).seen == 1


def test_of_a_real_run():
    with Random(keep=0.3)(build("llava")) as pruned:
        generate(build("llava"), inputs("llava", "ragged"), 2)
        with pruned.paused():
            generate(build("llava"), inputs("llava", "ragged"), 2)
    assert repr(pruned.report).splitlines()[0] == "<Report, 2 prefills:"
    assert "nothing pruned: the pruner was paused" in repr(pruned.report)
    found = read(pruned.report)
    assert [row[0] for row in found.rows] == ["prefill", "0", "1"]
    assert read(pruned.report.prefills[0]).rows[1][0].startswith("visual tokens before decoder layer")
