"""Scenes and questions to read: deterministic, in bounds, grammatical, and true by an independent derivation."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from foveate.measure.eval.suites import load_suite, suite_fingerprint
from foveate.tiny.drawing import GLYPHS, PATCH
from foveate.tiny.questions import LONG_TASKS, SHORT_TASKS, TASKS, Question, ask, cover, evidence_tokens, held_out
from foveate.tiny.scenes import GRID, LAYOUTS, SIZE, Style, follow, make_scene, random_text
from foveate.tiny.vocabulary import COLOURS, KINDS, PLURALS, WORD_ID, pieces, processor, text_ids, tokenizer


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(np.random.default_rng([4, i]), layout=LAYOUTS[i % 3]) for i in range(180)]


@pytest.fixture(scope="module")
def asked(scenes):
    rng = np.random.default_rng(1)
    out = [(scene, ask(rng, scene, task)) for scene in scenes for task in TASKS for _ in range(2)]
    return [(scene, question) for scene, question in out if question is not None]


def test_a_seed_gives_one_scene():
    first, again, other = (make_scene(np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert np.array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert not np.array_equal(first.image, other.image)


def test_objects_lie_inside_and_apart(scenes):
    assert {len(scene.objects) for scene in scenes} >= set(range(2, 13))
    for scene in scenes:
        assert scene.image.shape == (SIZE, SIZE, 3)
        boxes = [thing.box for thing in scene.objects]
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            assert 0 <= x0 < x1 <= SIZE
            assert 0 <= y0 < y1 <= SIZE
            assert all(x1 <= o[0] or o[2] <= x0 or y1 <= o[1] or o[3] <= y0 for o in boxes[:i])


def test_each_character_lies_on_a_patch_of_its_own(scenes):
    for scene in scenes:
        for sign in (t for t in scene.objects if t.kind == "sign"):
            patches = [int(cover([sign.glyph_box(i)]).argmax()) for i in range(len(sign.glyphs))]
            assert patches == list(range(patches[0], patches[0] + len(patches)))
            assert all(cover([sign.glyph_box(i)]).max() > 0.75 for i in range(len(sign.glyphs)))


def test_texts_are_numbers_or_words(scenes):
    rng = np.random.default_rng(0)
    assert {len(random_text(rng, "long")) for _ in range(80)} == {3, 4, 5, 6}
    assert {len(random_text(rng, "short")) for _ in range(20)} == {1, 2}
    words = [random_text(rng, "word") for _ in range(80)]
    assert all(set(word) <= set(GLYPHS) and 3 <= len(word) <= 6 for word in words)
    assert not any(re.search("[euy]{2}|[^euy]{2}", word) for word in words)
    with pytest.raises(ValueError, match="unknown layout 'heap'"):
        make_scene(rng, layout="heap")


def test_rows_are_in_order_of_height(scenes):
    seen = Counter()
    for scene in scenes:
        rows = {row: [t for t in scene.objects if t.row == row] for row in ("top", "middle", "bottom")}
        rows = [group for group in rows.values() if group]
        seen[len(rows)] += 1
        for above, below in itertools.pairwise(rows):
            assert max(t.box[3] for t in above) < min(t.box[1] for t in below) + 8
            assert max(t.centre[1] for t in above) < min(t.centre[1] for t in below)
    assert set(seen) == {0, 2, 3} or set(seen) == {0, 1, 2, 3}


def test_every_task_is_asked_and_no_answer_is_a_safe_guess(asked):
    answers = {task: Counter(q.answer for _, q in asked if q.task == task) for task in TASKS}
    for task, counts in answers.items():
        assert sum(counts.values()) >= 40, task
        assert max(counts.values()) < 0.62 * sum(counts.values()), task
    for task in LONG_TASKS:
        assert max(answers[task].values()) < 0.2 * sum(answers[task].values()), task


def test_an_unknown_task_is_an_error(scenes):
    with pytest.raises(ValueError, match="unknown task 'smell'"):
        ask(np.random.default_rng(0), scenes[0], "smell")


def test_grammar(asked):
    for _, question in asked:
        for text in (question.text, question.answer):
            words = text.rstrip("?.").replace(",", " ").split()
            for word, following in itertools.pairwise(words):
                if word in ("a", "an"):
                    assert (word == "an") == (following[0] in "aeiou"), text
        assert question.text.endswith(("?", "."))
    texts = " ".join(q.text + " " + q.answer for _, q in asked)
    assert "an orange" in texts
    assert "a orange" not in texts
    assert " crosss" not in texts


def test_words_and_ids_agree_with_the_tokenizer(asked):
    tokens = tokenizer()
    for _, question in asked[::7]:
        for text in (question.text, question.answer):
            assert tokens(text)["input_ids"][1:] == text_ids(text)
            assert WORD_ID["<unk>"] not in text_ids(text)
        assert tokens.decode(text_ids(question.answer)) == question.answer
    assert len(tokens("405127")["input_ids"]) == 7
    assert [tokens.decode([i]) for i in tokens("405127")["input_ids"][1:]] == list("405127")
    assert 150 <= len(WORD_ID) <= 400


def test_the_processor_makes_one_token_a_patch(scenes):
    out = processor()(images=[scenes[0].pil()], text="USER: <image>\nhow many stars are there? ASSISTANT:")
    assert (np.array(out["input_ids"]) == WORD_ID["<image>"]).sum() == GRID**2
    pixels = np.array(out["pixel_values"])[0]
    assert np.allclose(pixels, scenes[0].image.transpose(2, 0, 1) / 127.5 - 1, atol=1e-5)


# -- answers, derived from the objects by the words of the question alone


def one(objects, **wanted):
    (found,) = [t for t in objects if all(getattr(t, name) == value for name, value in wanted.items())]
    return found


def from_left(objects):
    return sorted(objects, key=lambda t: t.box[0] + t.box[2])


def corner(thing):
    x, y = thing.centre
    return f"{'top' if y < 128 else 'bottom'} {'left' if x < 128 else 'right'}"


def listed_group(words, objects):
    """The group that a list is asked of."""
    if "row" in words:
        return from_left(t for t in objects if t.row == words[words.index("row") - 1])
    name = words[words.index("the", 3) + 1]
    if name in COLOURS:
        return from_left(t for t in objects if t.colour == name)
    return from_left(t for t in objects if PLURALS[t.kind] == name)


def derive_short(task, words, objects):
    if task == "colour":
        size = {} if words[-2] == "the" else {"size": words[-2]}
        return one(objects, kind=words[-1], **size).colour
    if task == "shape":
        size = {} if words[-3] == "the" else {"size": words[-3]}
        return one(objects, colour=words[-2], **size).kind
    if task == "size":
        return one(objects, colour=words[-2], kind=words[-1]).size
    if task == "read":
        return " ".join(one(objects, colour=words[3], kind="sign").text)
    if task == "find":
        return one(objects, text=words[-1]).colour
    if task == "exist":
        return "yes" if any((t.colour, t.kind) == tuple(words[-2:]) for t in objects) else "no"
    if task == "count":
        name = words[2]
        return str(sum(t.colour == name if name in COLOURS else PLURALS[t.kind] == name for t in objects))
    if task == "position":
        return corner(one(objects, colour=words[-2], kind=words[-1]))
    a, b = one(objects, colour=words[3], kind=words[4]), one(objects, colour=words[-2], kind=words[-1])
    dx, dy = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def derive_long(task, words, objects):
    if task == "number":
        return " ".join(one(objects, kind="sign", colour=words[5]).text)
    if task == "spell":
        return " ".join(one(objects, kind="sign", colour=words[5]).text)
    if task in ("colours", "shapes"):
        return ", ".join(t.colour if task == "colours" else t.kind for t in listed_group(words, objects))
    if task == "each":
        return ", ".join(f"{t.colour} {corner(t)}" for t in from_left(t for t in objects if t.kind == words[-1]))
    if task == "row":
        names = [
            ("an " if t.colour[0] in "aeiou" else "a ") + f"{t.colour} {t.kind}" for t in listed_group(words, objects)
        ]
        return ", ".join(names[:-1]) + " and " + names[-1]
    if task == "compare":
        a, b = one(objects, colour=words[2], kind=words[3]), one(objects, colour=words[-2], kind=words[-1])
        order = ("small", "medium", "large")
        d = order.index(a.size) - order.index(b.size)
        size = "larger" if d > 0 else "smaller" if d < 0 else "as large"
        height = "higher" if a.centre[1] < b.centre[1] else "lower"
        return f"{size}, {height} and further {'left' if a.centre[0] < b.centre[0] else 'right'}"
    # A walk over cells of four by four patches, which `follow` does not know.
    cells = {(t.centre[1] // 64, t.centre[0] // 64): t for t in objects if t.arrow}
    here = next(cell for cell, t in cells.items() if t.colour == words[-2])
    path = []
    for _ in range({"two": 2, "three": 3}[words[1]]):
        step = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}[cells[here].arrow]
        here = (here[0] + step[0], here[1] + step[1])
        path.append(cells[here].colour)
    return ", then ".join(path)


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_from_the_objects(asked, task):
    derive = derive_short if task in SHORT_TASKS else derive_long
    for scene, question in asked:
        if question.task == task:
            words = question.text.rstrip("?.").split()
            assert question.answer == derive(task, words, scene.objects), question.text
            assert set(question.boxes) <= {thing.box for thing in scene.objects}


def test_arrows_lead_to_neighbours(scenes):
    signs = [(scene, t) for scene in scenes for t in scene.objects if t.arrow]
    assert len(signs) > 200
    for scene, sign in signs:
        onward = follow(scene.objects, sign)
        dx, dy = onward.box[0] - sign.box[0], onward.box[1] - sign.box[1]
        assert {"up": dy < -30, "down": dy > 30, "left": dx < -30, "right": dx > 30}[sign.arrow]


def test_steps_cover_the_answer_and_show_what_each_word_says(asked):
    for scene, question in asked:
        if question.task in SHORT_TASKS:
            assert not question.steps
            continue
        words = pieces(question.answer)
        assert [s.first for s in question.steps] == [0, *(s.last for s in question.steps[:-1])]
        assert question.steps[-1].last == len(words)
        by_box = {t.box: t for t in scene.objects}
        assert question.boxes
        whole = evidence_tokens(question)
        for number, step in enumerate(question.steps):
            said = words[step.first : step.last]
            assert step.boxes
            if question.task in ("number", "spell"):
                (sign,) = [by_box[b] for b in question.boxes]
                assert said == [sign.text[number]]
                assert step.boxes == [sign.glyph_box(number)]
            else:
                assert set(step.boxes) <= set(question.boxes)
                named = {w for b in step.boxes for w in (by_box[b].colour, by_box[b].kind)}
                assert {w for w in said if w in COLOURS or w in KINDS} <= named
            assert ((cover(step.boxes) >= 0.1) & whole).any()


def test_evidence_tokens_lie_under_the_boxes():
    question = Question("size", "", "", [(16, 32, 48, 48), (100, 100, 101, 101)])
    tokens = evidence_tokens(question).reshape(GRID, GRID)
    assert set(zip(*map(list, np.nonzero(tokens)), strict=True)) == {(2, 1), (2, 2), (6, 6)}
    assert not evidence_tokens(Question("count", "", "0", [])).any()
    assert PATCH * GRID == SIZE


def test_the_suite_gives_each_task_its_evidence():
    examples = load_suite("scenes", 17, 3)
    assert [example.task for example in examples] == list(TASKS)
    assert suite_fingerprint(examples) == suite_fingerprint(load_suite("scenes", 34, 3)[:17])
    for example, (scene, question) in zip(examples, held_out(17, 3), strict=True):
        assert (example.question, example.answer) == (question.text, question.answer)
        assert example.image.size == (SIZE, SIZE)
        assert example.image.tobytes() == scene.image.tobytes()
        assert example.evidence.tolist() == np.flatnonzero(evidence_tokens(question)).tolist()


def test_a_larger_picture_is_used_whole():
    """Boxes, evidence and the middle that "top left" goes by are those of 384 pixels."""
    items = list(held_out(3 * len(TASKS), 5, Style(side=384)))
    boxes = np.array([thing.box for scene, _ in items for thing in scene.objects])
    assert 0 <= boxes.min() < boxes.max() <= 384
    assert (boxes[:, :2].max(0) > 256).all()
    for scene, question in items:
        assert scene.image.shape == (384, 384, 3)
        shown = evidence_tokens(question, 24)
        assert shown.shape == (576,)
        assert shown.any() == bool(question.boxes)
        if question.task == "position":
            x0, y0, x1, y1 = question.boxes[0]
            down, right = (y0 + y1) / 2 > 192, (x0 + x1) / 2 > 192
            assert question.answer == f"{'bottom' if down else 'top'} {'right' if right else 'left'}"
