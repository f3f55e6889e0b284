"""Scenes and questions: deterministic, in bounds, and true."""

from collections import Counter

import numpy as np
import pytest

from foveate import tiny
from foveate.tiny.questions import TASKS, Question, ask, evidence_tokens
from foveate.tiny.scenes import make_scene
from foveate.tiny.vocabulary import COLOURS, PLURALS


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(np.random.default_rng([4, i])) for i in range(120)]


def test_a_seed_gives_one_scene():
    first, again, other = (make_scene(np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert np.array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert not np.array_equal(first.image, other.image)


def test_one_to_fourteen_objects_inside_and_apart(scenes):
    counts = Counter(len(scene.objects) for scene in scenes)
    assert min(counts) >= 1
    assert max(counts) <= 14
    assert len(counts) > 8
    for scene in scenes:
        assert scene.image.shape == (224, 224, 3)
        assert scene.image.dtype == np.uint8
        boxes = [thing.box for thing in scene.objects]
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            assert 0 <= x0 < x1 <= 224
            assert 0 <= y0 < y1 <= 224
            assert all(x1 <= o[0] or o[2] <= x0 or y1 <= o[1] or o[3] <= y0 for o in boxes[:i])


def test_backgrounds_vary(scenes):
    corners = np.stack([scene.image[:40, :40].reshape(-1, 3) for scene in scenes]).astype(float)
    assert corners.mean(1).std(0).min() > 25  # other colours from scene to scene
    assert np.median(corners.std(1).mean(1)) > 8  # and texture within


def derive(question: Question, objects) -> str:
    """Answer a question from the objects by its words alone."""
    words = question.text.rstrip("?").split()
    by_box = {thing.box: thing for thing in objects}

    def named(colour, kind):
        (found,) = [t for t in objects if t.colour == colour and t.kind == kind]
        return found

    if question.task == "colour":
        kind, size = words[-1], words[-2] if words[-2] != "the" else None
        (found,) = [t for t in objects if t.kind == kind and size in (None, t.size)]
        return found.colour
    if question.task == "shape":
        colour, size = words[-2], words[-3] if words[-3] != "the" else None
        (found,) = [t for t in objects if t.colour == colour and size in (None, t.size)]
        return found.kind
    if question.task == "size":
        return named(*words[-2:]).size
    if question.task == "read":
        return named(words[3], "sign").text
    if question.task == "find":
        (found,) = [t for t in objects if t.text == words[-1]]
        return found.colour
    if question.task == "exist":
        return "yes" if any((t.colour, t.kind) == tuple(words[-2:]) for t in objects) else "no"
    if question.task == "count":
        name = words[2]
        if name in COLOURS:
            return str(sum(t.colour == name for t in objects))
        return str(sum(PLURALS[t.kind] == name for t in objects))
    if question.task == "position":
        x, y = named(*words[-2:]).centre
        return f"{'top' if y < 112 else 'bottom'} {'left' if x < 112 else 'right'}"
    first, second = (by_box[box] for box in question.boxes)
    assert [first.colour, first.kind, second.colour, second.kind] == [*words[3:5], *words[-2:]]
    dx, dy = first.centre[0] - second.centre[0], first.centre[1] - second.centre[1]
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_from_the_objects(scenes, task):
    rng, answers = np.random.default_rng(1), Counter()
    for scene in scenes:
        for _ in range(3):
            question = ask(rng, scene, task)
            if question is None:
                continue
            assert question.task == task
            assert question.answer == derive(question, scene.objects)
            assert set(question.boxes) <= {thing.box for thing in scene.objects}
            answers[question.answer] += 1
    assert sum(answers.values()) > 100
    assert max(answers.values()) < 0.62 * sum(answers.values())


def test_an_unknown_task_is_an_error(scenes):
    with pytest.raises(ValueError, match="unknown task 'smell'"):
        ask(np.random.default_rng(0), scenes[0], "smell")


def test_evidence_tokens_lie_under_the_boxes():
    question = Question("size", "", "", [(16, 32, 48, 48), (100, 100, 101, 101)])
    tokens = evidence_tokens(question).reshape(14, 14)
    assert set(zip(*map(list, np.nonzero(tokens)), strict=True)) == {(2, 1), (2, 2), (6, 6)}
    assert not evidence_tokens(Question("count", "", "0", [])).any()


def test_held_out_is_balanced_and_repeats():
    items = list(tiny.held_out(18, seed=3))
    assert [q.task for _, q in items] == list(TASKS) * 2
    again = list(tiny.held_out(18, seed=3))
    assert all(np.array_equal(a.image, b.image) and p == q for (a, p), (b, q) in zip(items, again, strict=True))
    assert not np.array_equal(next(iter(tiny.held_out(1, seed=4)))[0].image, items[0][0].image)
