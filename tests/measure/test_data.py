"""Own data: every form of file, every way to name an image, and rows that cannot be used."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading

import numpy as np
import pytest
from PIL import Image

from foveate.measure.eval.data.errors import DataError
from foveate.measure.eval.data.questions import DataSettings, data_settings, load_questions
from foveate.measure.eval.metrics import parse_metrics
from tests.measure.folders import picture
from tests.measure.own_data import data_uri, png, rows, write_csv, write_jsonl


def seen(questions):
    """What a reader made of the data, without where it lies."""
    return [
        (one.index, one.task, one.question, one.answers, [np.asarray(image).tolist() for image in one.images])
        for one in questions
    ]


@pytest.fixture
def whole(tmp_path):
    return seen(load_questions(DataSettings(str(write_jsonl(tmp_path / "a.jsonl", rows(tmp_path))))))


def json_list(folder, given):
    (folder / "a.json").write_text("\ufeff \n" + json.dumps(given, indent=2, ensure_ascii=False), encoding="utf-8")
    return folder / "a.json"


def parquet(folder, given):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {name: [row[name] for row in given] for name in given[0]}
    columns["image"] = [(folder / name).read_bytes() for name in columns["image"]]
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=2)
    return folder / "a.parquet"


def saved(folder, given):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    columns = {name: [row[name] for row in given] for name in given[0]}
    columns["image"] = [str(folder / name) for name in columns["image"]]
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table = table.cast_column("task", datasets.ClassLabel(names=["first", "second"]))
    datasets.DatasetDict({"test": table}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


FORMS = {
    "JSON list": json_list,
    "CSV": lambda folder, given: write_csv(folder / "a.csv", given),
    "CSV with semicolons": lambda folder, given: write_csv(folder / "b.csv", given, ";"),
    "TSV": lambda folder, given: write_csv(folder / "a.tsv", given, "\t"),
    "Parquet with bytes": parquet,
    "datasets folder": saved,
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_reads_the_same(form, tmp_path, whole):
    questions = load_questions(DataSettings(str(FORMS[form](tmp_path, rows(tmp_path)))))
    assert seen(questions) == whole
    assert [questions[-1].index, len(questions[1:3])] == [5, 2]


def test_a_list_larger_than_what_is_read_at_once(tmp_path):
    picture().save(tmp_path / "0.png")
    given = [
        {"image": "0.png", "question": f"é{'x' * (at % 7)}", "answer": at, "n": [[], {}, 1e5]} for at in range(3000)
    ]
    questions = load_questions(DataSettings(str(json_list(tmp_path, given)), samples=40), seed=3)
    assert len(questions) == 40
    for one in questions:
        assert one.question == f"é{'x' * (int(one.answer) % 7)}"


def test_a_folder_of_images(tmp_path):
    (tmp_path / "deep").mkdir()
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "deep" / "b.jpg")
    (tmp_path / "notes.md").write_text("no image")
    one = load_questions(DataSettings(str(tmp_path), question="what?"))
    assert [(q.question, q.answers, q.where.rpartition("/")[2]) for q in one] == [
        ("what?", (), f"{tmp_path.name}, file a.png"),
        ("what?", (), "b.jpg"),
    ]
    (tmp_path / "a.txt").write_text("where?\n")
    (tmp_path / "deep" / "b.json").write_text(
        json.dumps({"question": "who?", "answers": ["me", "I"], "task": "people"})
    )
    with pytest.raises(DataError, match=r"file a.png: it has no answer, and other rows have one"):
        load_questions(DataSettings(str(tmp_path)))
    two = load_questions(DataSettings(str(tmp_path)), parse_metrics(["agreement"]))
    assert [(q.question, q.answers, q.task) for q in two] == [("where?", (), "all"), ("who?", ("me", "I"), "people")]


def test_ways_to_name_an_image(tmp_path):
    shown = picture(3)
    shown.save(tmp_path / "0.png")
    ways = ["0.png", str(tmp_path / "0.png"), data_uri(shown), {"path": "0.png"}]
    given = [{"image": way, "question": "what?", "answer": "x"} for way in ways]
    given.append({"images": ways, "question": "what?", "answer": "x"})
    questions = load_questions(DataSettings(str(write_jsonl(tmp_path / "a.jsonl", given))))
    assert [len(one.images) for one in questions] == [1, 1, 1, 1, 4]
    assert all(np.array_equal(image, shown) for one in questions for image in one.images)


def test_an_image_means_what_it_shows(tmp_path):
    """Opened by the one function that foveate has: depth, transparency and rotation are kept."""
    Image.fromarray(np.full((3, 4), 65535, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (3, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 2)).save(tmp_path / "turned.jpg", exif=exif)
    given = [{"image": name, "question": "?"} for name in ("deep.png", "clear.png", "turned.jpg")]
    deep, clear, turned = load_questions(DataSettings(str(write_jsonl(tmp_path / "a.jsonl", given))))
    assert (np.asarray(deep.image) == 255).all()
    assert (np.asarray(clear.image) == 255).all()
    assert turned.image.size == (2, 6)


@pytest.fixture
def web(tmp_path):
    """An image on a server of this machine, and what was asked for there."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(png(picture(4)))

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_urls_are_fetched_once_and_only_where_they_are_allowed(tmp_path, web):
    address, asked = web
    settings = DataSettings(str(write_jsonl(tmp_path / "a.jsonl", [{"image": f"{address}/a.png", "question": "?"}])))
    with pytest.raises(DataError, match="line 1.*--allow-urls"):
        load_questions(settings, downloads=tmp_path / "down")
    assert not asked
    assert not (tmp_path / "down").exists()
    allowed = dataclasses.replace(settings, allow_urls=True)
    for _ in range(2):
        (one,) = load_questions(allowed, downloads=tmp_path / "down")
        assert np.array_equal(one.image, picture(4))
    assert asked == ["/a.png"]
    write_jsonl(tmp_path / "a.jsonl", [{"image": f"{address}/gone.png", "question": "?"}])
    with pytest.raises(DataError, match="line 1.*404"):
        load_questions(allowed, downloads=tmp_path / "down")


def film(path, frames=20):
    made = [Image.new("RGB", (16, 12), (12 * at, 0, 0)) for at in range(frames)]
    made[0].save(path, save_all=True, append_images=made[1:], duration=40, loop=0)


def coded(path, frames=20):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for at in range(frames):
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (12 * at, 0, 0)))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.mark.parametrize(("name", "make"), [("a.gif", film), ("a.mp4", coded)])
def test_videos_are_frames_at_even_distances(tmp_path, name, make):
    make(tmp_path / name)
    path = write_jsonl(tmp_path / "a.jsonl", [{"video": name, "question": "?"}])
    (one,) = load_questions(DataSettings(str(path), frames=4))
    (frames,) = one.videos
    reds = [int(np.asarray(frame)[..., 0].mean()) for frame in frames]
    assert reds == pytest.approx([0, 72, 156, 228], abs=8)  # frames 0, 6, 13 and 19
    assert one.images == ()
    assert np.array_equal(one.image, frames[0])


def test_a_video_of_frames_in_files(tmp_path):
    for at in range(3):
        picture(at).save(tmp_path / f"{at}.png")
    path = write_jsonl(tmp_path / "a.jsonl", [{"video": ["0.png", "1.png", "2.png"], "question": "?"}])
    (one,) = load_questions(DataSettings(str(path), frames=2))
    assert [np.array_equal(frame, picture(at)) for frame, at in zip(one.videos[0], (0, 2), strict=True)] == [
        True,
        True,
    ]


def test_other_names_and_choices(tmp_path):
    picture().save(tmp_path / "0.png")
    given = [
        {"img": "0.png", "query": "which?", "A": "cat", "B": "dog", "C": None, "label": "B", "kind": "animals"},
        {"img": "0.png", "query": "which?", "A": "cat", "B": "dog", "C": "cow", "label": 2, "kind": "animals"},
        {"img": "0.png", "query": "which? (A) cat (B) dog", "A": "cat", "B": "dog", "label": "cat", "kind": "animals"},
    ]
    names = ("image=img", "question=query", "choices=A,B,C", "answer=label", "task=kind")
    found = load_questions(DataSettings(str(write_jsonl(tmp_path / "a.jsonl", given)), fields=names))
    assert [one.answers for one in found] == [("B", "dog"), ("C", "cow"), ("A", "cat")]
    assert found.tasks == ("animals",)
    assert found[1].question.split("\n")[:4] == ["which?", "A. cat", "B. dog", "C. cow"]
    assert found[2].question == "which? (A) cat (B) dog"  # they are there already


@pytest.mark.parametrize(
    ("field", "value", "answers"),
    [
        ("answer", 3, ("3",)),
        ("answer", ["a", "b"], ("a", "b")),
        ("answers", [{"answer": "yes", "answer_id": 1}, {"answer": "no"}], ("yes", "no")),  # VQA
        ("answers", {"text": ["x"], "answer_start": [0]}, ("x",)),  # SQuAD
        ("answers", [], ()),
    ],
)
def test_forms_of_answers(tmp_path, field, value, answers):
    picture().save(tmp_path / "0.png")
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "0.png", "question": "?", field: value}])
    assert load_questions(DataSettings(str(path)))[0].answers == answers


def test_boxes_are_shares_of_the_image(tmp_path):
    picture(0, 40, 20).save(tmp_path / "0.png")
    given = [{"image": "0.png", "question": "?", "boxes": box} for box in ([[0, 0, 0.5, 1]], [[10, 5, 40, 20]])]
    one, two = load_questions(DataSettings(str(write_jsonl(tmp_path / "a.jsonl", given))))
    assert one.boxes == ((0, 0, 0.5, 1),)
    assert two.boxes == ((0.25, 0.25, 1, 1),)


def test_bad_rows_are_named_and_skipped(tmp_path):
    given = rows(tmp_path)
    given[1]["image"] = "gone.png"
    given[4] = ["no object"]
    path = write_jsonl(tmp_path / "a.jsonl", given)
    with path.open("a") as file:
        file.write("\n{half\n")
    with pytest.raises(DataError) as caught:
        load_questions(DataSettings(str(path)))
    said = str(caught.value)
    for part in ("3 of 7 rows", "line 2: no image file", "line 5: a row is a JSON object", "line 8: it is no JSON"):
        assert part in said
    found = load_questions(DataSettings(str(path), skip_bad=True))
    assert [one.where.rpartition(" ")[2] for one in found] == ["1", "3", "4", "6"]
    assert len(found.skipped) == 3
    assert [one.index for one in found] == [0, 1, 2, 3]


def test_batches_are_of_prompts_of_a_length_and_hold_each_question_once(tmp_path):
    for at, width in enumerate((400, 100, 300, 100, 300, 400)):
        picture(at, width, 56).save(tmp_path / f"{at}.png")
    given = [{"image": f"{at}.png", "question": "?"} for at in range(6)]
    found = load_questions(DataSettings(str(write_jsonl(tmp_path / "a.jsonl", given))))
    assert found.batches(2) == [[1, 3], [2, 4], [0, 5]]
    long = {"image": "1.png", "question": "why " * 40}
    found = load_questions(DataSettings(str(write_jsonl(tmp_path / "a.jsonl", [long, *given]))))
    assert found.batches(2)[-1] == [0]


def test_the_fingerprint_is_of_questions_answers_and_pixels(tmp_path):
    given = rows(tmp_path, 2)
    path = write_jsonl(tmp_path / "a.jsonl", given)
    first = load_questions(DataSettings(str(path))).fingerprint
    assert load_questions(DataSettings(str(path))).fingerprint == first
    picture(77).save(tmp_path / "0.png")
    second = load_questions(DataSettings(str(path))).fingerprint
    given[1]["answer"] = "word2"
    write_jsonl(path, given)
    assert len({first, second, load_questions(DataSettings(str(path))).fingerprint}) == 3


def test_a_row_that_changes_later_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows(tmp_path))
    found = load_questions(DataSettings(str(path)))
    (tmp_path / "3.png").write_bytes(b"gone")
    with pytest.raises(DataError, match="line 4.*could be used before"):
        found[3]


def test_a_metric_needs_what_it_needs(tmp_path):
    given = rows(tmp_path, 2)
    del given[1]["answer"]
    path = write_jsonl(tmp_path / "a.jsonl", given)
    with pytest.raises(DataError, match="line 2: it has no answer, and the metric 'f1' needs one"):
        load_questions(DataSettings(str(path)), parse_metrics(["f1"]))
    with pytest.raises(DataError, match="line 1: it has no choices"):
        load_questions(DataSettings(str(path)), parse_metrics(["choice"]))
    assert len(load_questions(DataSettings(str(path)), parse_metrics(["identical"]))) == 2


@pytest.mark.parametrize("given", [{"split": "test"}, {"allow_urls": True}, {"bad_rows": "skip"}, {"question": "?"}])
def test_settings_of_data_without_data(given):
    with pytest.raises(DataError, match="--data"):
        data_settings(None, **given)


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"pip install 'foveate\[eval\]'"):
        load_questions(DataSettings(str(tmp_path / "a.parquet")))
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"pip install 'foveate\[eval\]'"):
        load_questions(DataSettings(str(tmp_path / "saved")))
