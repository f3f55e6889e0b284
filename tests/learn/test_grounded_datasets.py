"""Samples from folders of the datasets library."""

import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from foveate.learn.data import from_datasets
from foveate.learn.errors import TrainingDataError

datasets = pytest.importorskip("datasets")

ROWS = {
    "question": ["what?", "where?"],
    "answer": ["that", "there"],
    "bboxs": [[[8.0, 10.0, 40.0, 40.0]], []],
    "width": [80, 30],
    "height": [40, 60],
    "dataset": ["gqa", "gqa"],
}
BOXES = [((0.1, 0.25, 0.5, 1.0),), ()]


@pytest.fixture
def pictures():
    return [Image.new("RGB", (80, 40), "red"), Image.fromarray(np.full((60, 30), 9, np.uint8))]


def save(folder, columns):
    table = datasets.Dataset.from_dict(columns)
    if "image" in columns and not isinstance(columns["image"][0], str):
        table = table.cast_column("image", datasets.Image())
    table.save_to_disk(folder)
    return folder


def check(found):
    assert [(one.question, one.answer, one.task) for one in found.items] == [
        ("what?", "that", "gqa"),
        ("where?", "there", "gqa"),
    ]
    assert [one.boxes for one in found.items] == BOXES
    assert [one.image().size for one in found.items] == [(80, 40), (30, 60)]
    assert all(one.image().mode == "RGB" for one in found.items)
    assert found.items[0].image().getpixel((0, 0)) == (255, 0, 0)


def test_images_in_a_column(tmp_path, pictures):
    folder = save(tmp_path / "set", {**ROWS, "image": pictures})
    found = from_datasets(folder)
    check(found)
    assert from_datasets(str(folder)).fingerprint == found.fingerprint
    check(pickle.loads(pickle.dumps(found)))
    other = save(tmp_path / "other", {**ROWS, "answer": ["this", "there"], "image": pictures})
    assert from_datasets(other).fingerprint != found.fingerprint


def test_the_size_of_an_image_in_a_column(tmp_path, pictures):
    columns = {name: values for name, values in ROWS.items() if name not in ("width", "height")}
    check(from_datasets(save(tmp_path / "set", {**columns, "image": pictures})))


def test_paths_in_a_column(tmp_path, pictures):
    folder = save(tmp_path / "set", {**ROWS, "image": ["a.png", "b.png"]})
    with pytest.raises(TrainingDataError, match="set, row 0: there is no image .*a.png"):
        from_datasets(folder)
    for picture, name in zip(pictures, "ab", strict=True):
        picture.save(folder / f"{name}.png")
    check(from_datasets(folder))
    with pytest.raises(TrainingDataError, match="row 0: the field 'image' is no path, but 3"):
        from_datasets(save_numbers(tmp_path / "numbers"))


def save_numbers(folder):
    datasets.Dataset.from_dict({**ROWS, "image": [3, 4]}).save_to_disk(folder)
    return folder


def test_several_splits(tmp_path, pictures):
    table = datasets.Dataset.from_dict({**ROWS, "image": pictures}).cast_column("image", datasets.Image())
    folder = tmp_path / "set"
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(folder)
    assert [len(from_datasets(folder, name).items) for name in ("train", "test")] == [2, 1]
    for name in (None, "validation"):
        with pytest.raises(TrainingDataError, match="set has the splits train, test; which one"):
            from_datasets(folder, name)
    datasets.DatasetDict({"only": table}).save_to_disk(tmp_path / "one")
    check(from_datasets(tmp_path / "one"))
    with pytest.raises(TrainingDataError, match="has no splits to choose 'train' from"):
        from_datasets(save(tmp_path / "bare", {**ROWS, "image": pictures}), "train")


def test_bad_rows_are_named(tmp_path, pictures):
    folder = save(tmp_path / "set", {**ROWS, "image": pictures, "answer": ["that", None]})
    with pytest.raises(TrainingDataError, match="set, row 1: the field 'answer' is missing"):
        from_datasets(folder)
    found = from_datasets(folder, skip_bad=True)
    assert (len(found.items), len(found.skipped)) == (1, 1)
    outside = save(tmp_path / "outside", {**ROWS, "image": pictures, "width": [8, 30]})
    with pytest.raises(TrainingDataError, match="row 0: the box .* reaches beyond the image"):
        from_datasets(outside)


def test_the_image_behind_a_row_that_was_left_out_is_not_taken_for_the_next(tmp_path, pictures):
    folder = save(tmp_path / "set", {**ROWS, "image": pictures, "answer": [None, "there"]})
    (sample,) = from_datasets(folder, skip_bad=True).items
    assert sample.image().size == (30, 60)


def test_an_image_that_is_none(tmp_path):
    features = datasets.Features({**datasets.Dataset.from_dict(ROWS).features, "image": datasets.Image()})
    broken = [{"bytes": b"none", "path": None}] * 2
    datasets.Dataset.from_dict({**ROWS, "image": broken}, features=features).save_to_disk(tmp_path / "set")
    sample = from_datasets(tmp_path / "set").items[1]
    with pytest.raises(TrainingDataError, match="cannot read the image of .*set, row 1"):
        sample.image()


def test_bad_folders(tmp_path):
    with pytest.raises(TrainingDataError, match="no folder .*nowhere"):
        from_datasets(tmp_path / "nowhere")
    with pytest.raises(TrainingDataError, match="holds no samples written by save_to_disk"):
        from_datasets(tmp_path)
    empty = {name: values[:0] for name, values in ROWS.items()}
    datasets.Dataset.from_dict({**empty, "image": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(TrainingDataError, match="empty holds no samples"):
        from_datasets(tmp_path / "empty")


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TrainingDataError, match="needs the datasets library: pip install 'foveate\\[train\\]'"):
        from_datasets(tmp_path)
