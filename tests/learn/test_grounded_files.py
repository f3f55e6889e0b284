"""Samples from files: our own fields, Visual-CoT's, and one plain sentence for what cannot be used."""

import json
import pickle

import pytest
from PIL import Image

from foveate.learn.data import GroundedSample, GroundedSamples, from_jsonl, split
from foveate.learn.data.rows import checked, out_of_square
from foveate.learn.errors import TrainingDataError

OWN = {"image": "a.png", "question": "what?", "answer": "that", "boxes": [[0.1, 0.2, 0.5, 1.0]]}


@pytest.fixture
def folder(tmp_path):
    """A folder with a wide image, a tall one, and one that its camera turned."""
    Image.new("RGB", (80, 40), "red").save(tmp_path / "a.png")
    Image.new("L", (30, 60), 7).save(tmp_path / "b.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "turned.jpg", exif=turned)
    return tmp_path


def write(folder, *rows, name="train.jsonl"):
    path = folder / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def one(folder, row, **options):
    (sample,) = from_jsonl(write(folder, row), **options).items
    return sample


def test_our_own_fields(folder):
    sample = one(folder, {**OWN, "task": "thing"})
    assert sample == GroundedSample("what?", "that", folder / "a.png", ((0.1, 0.2, 0.5, 1.0),), "thing")
    assert sample.image().getpixel((0, 0)) == (255, 0, 0)
    assert one(folder, {**OWN, "boxes": []}).boxes == ()
    assert one(folder, {**OWN, "answer": 3}).answer == "3"
    assert one(folder, {**OWN, "image": "b.png"}).image().mode == "RGB"
    pixels = one(folder, {**OWN, "boxes": [[8, 10, 40, 40], [0, 0, 80, 1]], "width": 80, "height": 40})
    assert pixels.boxes == ((0.1, 0.25, 0.5, 1.0), (0.0, 0.0, 1.0, 0.025))
    assert one(folder, {**OWN, "boxes": None, "bbox": "[0.1, 0.2, 0.5, 1]"}).boxes == ((0.1, 0.2, 0.5, 1.0),)


def test_images_in_another_folder(folder):
    (folder / "texts").mkdir()
    path = write(folder / "texts", OWN)
    assert from_jsonl(path, folder).items[0].source == folder / "a.png"
    assert from_jsonl(str(path), str(folder)).items[0].source == folder / "a.png"
    path = write(folder / "texts", {**OWN, "image": str(folder / "a.png")})
    assert from_jsonl(path).items[0].source == folder / "a.png"


VISCOT = {
    "question": "Who is wearing a shirt?",
    "answer": "girl",
    "full_answer": "The girl is wearing a shirt.",
    "image": "2331819.png",
    "width": 500,
    "height": 375,
    "bboxs": [[214, 0, 433, 374.5]],
    "dataset": "gqa",
    "split": "train",
    "thought": "1. We are looking for …",
}


@pytest.mark.parametrize("place", ["", "gqa/", "cot/gqa/"])
def test_visual_cot_as_it_is_published(folder, place):
    path = folder / f"{place}2331819.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (50, 37)).save(path)
    expected = (214 / 500, 0.0, 433 / 500, 374.5 / 375)
    assert one(folder, VISCOT) == GroundedSample("Who is wearing a shirt?", "girl", path, (expected,), "gqa")
    short = {name: value for name, value in VISCOT.items() if name != "answer"}
    assert one(folder, short).answer == "The girl is wearing a shirt."
    unsized = {name: value for name, value in VISCOT.items() if name not in ("width", "height")}
    unsized["bboxs"] = [[5, 0, 25, 37]]
    assert one(folder, unsized).boxes == ((0.1, 0.0, 0.5, 1.0),)


def test_the_part_of_visual_cot_whose_images_lie_elsewhere(folder):
    (folder / "cot" / "textvqa").mkdir(parents=True)
    Image.new("RGB", (5, 5)).save(folder / "cot" / "textvqa" / "t.png")
    sample = one(folder, {**VISCOT, "dataset": "textcap", "image": "t.png"})
    assert (sample.source.parent.name, sample.task) == ("textvqa", "textcap")


def test_the_size_of_a_turned_image_is_that_of_its_upright_form(folder):
    row = {"question": "q", "answer": "a", "image": "turned.jpg", "bboxs": [[4, 8, 20, 40]]}
    sample = one(folder, row)
    assert sample.image().size == (40, 80)
    assert sample.boxes == ((0.1, 0.1, 0.5, 0.5),)


REQUEST = " Please provide the bounding box coordinate of the region that can help you answer the question better."


def conversation(image, said, request=REQUEST):
    return {
        "dataset": "docvqa",
        "split": "train",
        "question_id": 138460,
        "image": image,
        "conversations": [
            {"from": "human", "value": f"<image>\nWhat is the share?{request}"},
            {"from": "gpt", "value": said},
            {"from": "human", "value": "<image>"},
            {"from": "gpt", "value": "8%"},
        ],
    }


def test_conversations_have_their_boxes_in_pixels_beside_the_path(folder):
    sample = one(folder, conversation(["a.png", "a.png###[8, 10, 40, 30]"], "[0.100, 0.375, 0.500, 0.625]"))
    assert sample == GroundedSample("What is the share?", "8%", folder / "a.png", ((0.1, 0.25, 0.5, 0.75),), "docvqa")


def test_conversations_without_them_have_shares_of_the_padded_square(folder):
    """The same box: the image of 80 x 40 has 20 pixels of padding above, the one of 30 x 60 has 15 at the left."""
    sample = one(folder, conversation("a.png", "[0.100, 0.375, 0.500, 0.625]"))
    assert sample.boxes == (pytest.approx((0.1, 0.25, 0.5, 0.75)),)
    stepwise = REQUEST.replace("Please", "Please think step by step and")
    sample = one(folder, conversation(["b.png"], "[0.5, 0.1, 0.7, 0.2]", stepwise))
    assert (sample.question, sample.answer) == ("What is the share?", "8%")
    assert sample.boxes == (pytest.approx((0.5, 0.1, 0.9, 0.2)),)


def test_a_published_pair_of_both_says_the_same():
    """Visual-CoT says of its document kpfl0225_13, of 2200 x 1700 pixels: [14, 645, 1776, 1617], and these shares."""
    found = out_of_square((0.006, 0.407, 0.807, 0.849), 2200, 1700)
    assert found == pytest.approx((14 / 2200, 645 / 1700, 1776 / 2200, 1617 / 1700), abs=0.002)


def test_a_conversation_about_no_region(folder):
    turns = [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "So."}]
    sample = one(folder, {"image": "a.png", "conversations": turns * 2})
    assert (sample.question, sample.answer, sample.boxes) == ("Why?", "So.", ())


def test_a_list_in_one_file(folder):
    path = folder / "viscot.json"
    path.write_text(json.dumps([OWN, {**OWN, "image": "b.png"}], indent=1))
    assert [sample.source.name for sample in from_jsonl(path).items] == ["a.png", "b.png"]
    path.write_text(json.dumps([OWN, {**OWN, "image": "c.png"}]))
    with pytest.raises(TrainingDataError, match="viscot.json, item 1: there is no image .*c.png"):
        from_jsonl(path)


BAD = {
    "this is no JSON": '{"image": ',
    "a sample is a JSON object, not int": "3",
    "the field 'image' is missing": {**OWN, "image": None},
    "the field 'question' is missing": {name: value for name, value in OWN.items() if name != "question"},
    "the field 'answer' is missing": {name: value for name, value in OWN.items() if name != "answer"},
    "the field 'answer' holds no text, but '  '": {**OWN, "answer": "  "},
    "the field 'answer' holds no text, but \\['x'\\]": {**OWN, "answer": ["x"]},
    "the field 'boxes' is missing; \\[\\] says": {name: value for name, value in OWN.items() if name != "boxes"},
    "the field 'boxes' is no list of boxes, but 'all'": {**OWN, "boxes": "all"},
    "a box is four numbers x1, y1, x2, y2, not \\[0.1, 0.2, 0.3\\]": {**OWN, "boxes": [[0.1, 0.2, 0.3]]},
    "a box is four numbers x1, y1, x2, y2, not 0.1": {**OWN, "boxes": [0.1, 0.2, 0.3, 0.4]},
    "a box is four numbers x1, y1, x2, y2, not \\['0', 0, 1, 1\\]": {**OWN, "boxes": [["0", 0, 1, 1]]},
    "the box \\[0.5, 0.1, 0.4, 0.2\\] is empty: x2 must be larger": {**OWN, "boxes": [[0.5, 0.1, 0.4, 0.2]]},
    "the box \\[0.5, 0.1, 0.6, 0.1\\] is empty": {**OWN, "boxes": [[0.5, 0.1, 0.6, 0.1]]},
    "the box \\[0.5, 0.1, 0.6, nan\\] is not finite": {**OWN, "boxes": [[0.5, 0.1, 0.6, float("nan")]]},
    "the box \\[4, 8, 40, 30\\] reaches beyond the image: \\(4, 8, 40, 30\\) of its": {
        **OWN,
        "boxes": [[4, 8, 40, 30]],
    },
    "the box \\[586, 4435, 1083, 4517\\] reaches beyond the image: \\(0.345, 2.02, 0.637, 2.05\\)": {
        **VISCOT,
        "image": "a.png",
        "width": 1700,
        "height": 2200,
        "bboxs": [[586, 4435, 1083, 4517]],
    },
    "'width' and 'height' must both be positive numbers, not 80 and None": {**OWN, "width": 80},
    "'width' and 'height' must both be positive numbers, not 80 and 0": {**OWN, "width": 80, "height": 0},
    "there is no image .*nowhere.png": {**OWN, "image": "nowhere.png"},
    "the field 'image' is no path, but 7": {**OWN, "image": 7},
    "the field 'image' names no image, but holds \\[\\]": {**OWN, "image": []},
    "the field 'conversations' has no question with an answer": {"image": "a.png", "conversations": []},
    "the field 'conversations' has an empty question or answer": conversation("a.png", "[0, 0, 1, 1]")
    | {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]},
    "a box is four numbers x1, y1, x2, y2, not 'over there'": conversation("a.png", "over there"),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_lines_are_named(folder, said):
    path = write(folder, OWN, "", BAD[said], OWN)
    with pytest.raises(TrainingDataError, match=f"train.jsonl, line 3: {said}") as caught:
        from_jsonl(path)
    assert "\n" not in str(caught.value)
    found = from_jsonl(path, skip_bad=True)
    assert len(found.items) == 2
    assert found.skipped == (str(caught.value),)


def test_an_image_that_is_none(folder):
    (folder / "a.png").write_bytes(b"none")
    sample = one(folder, OWN)  # not opened to be listed
    with pytest.raises(TrainingDataError, match="cannot read the image .*a.png"):
        sample.image()
    with pytest.raises(TrainingDataError, match="line 1: cannot read the image's size"):
        one(folder, {"image": "a.png", "question": "q", "answer": "a", "bboxs": [[1, 1, 2, 2]]})


def test_bad_files(folder):
    with pytest.raises(TrainingDataError, match="no file .*missing.jsonl"):
        from_jsonl(folder / "missing.jsonl")
    with pytest.raises(TrainingDataError, match="no folder .*gone for the images of .*train.jsonl"):
        from_jsonl(write(folder, OWN), folder / "gone")
    with pytest.raises(TrainingDataError, match="train.jsonl has no sample$"):
        from_jsonl(write(folder, "", " "))
    with pytest.raises(TrainingDataError, match="train.jsonl has no sample that can be used: .*line 1"):
        from_jsonl(write(folder, {**OWN, "boxes": 3}), skip_bad=True)
    (folder / "train.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingDataError, match="train.jsonl is neither JSON nor lines of JSON"):
        from_jsonl(folder / "train.jsonl")
    (folder / "train.jsonl").write_text("[1, 2")
    with pytest.raises(TrainingDataError, match="train.jsonl is neither JSON nor lines of JSON"):
        from_jsonl(folder / "train.jsonl")


def test_a_box_that_sticks_out_by_rounding_is_cut():
    assert checked((-0.005, 0.0, 0.5, 1.009), "") == (0.0, 0.0, 0.5, 1.0)
    for beyond in ((-0.02, 0.0, 0.5, 1.0), (0.0, 0.0, 0.5, 1.02), (1.0, 0.0, 1.005, 1.0), (-0.005, 0.0, 0.0, 1.0)):
        with pytest.raises(TrainingDataError, match="beyond"):
            checked(beyond, "")


def test_the_fingerprint_sees_any_change(folder):
    rows = [OWN, {**OWN, "question": "what then?"}, {**OWN, "boxes": []}, {**OWN, "answer": "this"}]
    rows += [{**OWN, "task": "t"}, {**OWN, "image": "b.png"}]
    prints = [from_jsonl(write(folder, row)).fingerprint for row in rows]
    assert len(set(prints)) == len(rows)
    assert from_jsonl(write(folder, OWN)).fingerprint == prints[0]
    Image.new("RGB", (90, 50), "blue").save(folder / "a.png")
    assert from_jsonl(write(folder, OWN)).fingerprint != prints[0]


def samples(images=20, each=3):
    made = [Image.new("RGB", (1, 1)) for _ in range(images)]
    items = [
        GroundedSample(f"{image} {number}", "a", made[image]) for image in range(images) for number in range(each)
    ]
    return GroundedSamples(tuple(items), "made up", "f")


def test_what_is_held_out_shares_no_image_with_the_rest():
    found = samples()
    learned, apart = split(found, 25, 6, seed=0)
    assert (len(learned.items), len(apart)) == (25, 6)
    assert not {id(one.source) for one in learned.items} & {id(one.source) for one in apart}
    again, other = split(found, 25, 6, seed=0), split(found, 25, 6, seed=1)
    assert again == (learned, apart)
    assert other[1] != apart
    assert len({learned.fingerprint, other[0].fingerprint, split(found, 24, 6, seed=0)[0].fingerprint, "f"}) == 4
    most, _ = split(found, 20_000, 6, seed=0)
    assert 60 - 6 * 3 <= len(most.items) < 54 + 1


@pytest.mark.parametrize("held_out", [60, 61, 59])
def test_too_few_to_hold_out(held_out):
    with pytest.raises(TrainingDataError, match=f"made up has 60 samples: too few to hold {held_out} out"):
        split(samples(), 1, held_out, seed=0)


def test_samples_of_files_travel_to_workers(folder):
    found = from_jsonl(write(folder, OWN))
    assert pickle.loads(pickle.dumps(found)) == found
