"""The harder split: deterministic, apart from what is trained on, its answers true and their evidence in the grid."""

import hashlib

import numpy as np
import pytest

from foveate import tiny
from foveate.learn.data import SUITES, from_scenes
from foveate.measure.eval.suites import load_suite, suite_fingerprint
from foveate.tiny.scenes import TRAINED, Style, make_scene
from foveate.tiny.vocabulary import PLURALS, WORD_ID, pieces, text_ids


@pytest.fixture(scope="module")
def items():
    return list(tiny.held_out_hard(180, seed=1))


def test_the_trained_scenes_are_what_they_were():
    """The committed results were measured on them, so a change of the drawing must not pass unseen."""
    examples = load_suite("scenes", 34, 1)
    assert suite_fingerprint(examples) == "69fd9a7881e1d41f"
    evidence = str([example.evidence.tolist() for example in examples])
    assert hashlib.sha256(evidence.encode()).hexdigest()[:16] == "ebc44221403f21a5"


def test_a_seed_gives_one_suite():
    first, again, other = (suite_fingerprint(load_suite("scenes-hard", 14, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert suite_fingerprint(load_suite("scenes-hard", 21, 1)[:14]) == first  # a longer suite begins the same


def test_tasks_in_turn_with_evidence_inside_the_grid():
    examples = load_suite("scenes-hard", 90, 0)
    assert [example.task for example in examples] == list(tiny.HARD_TASKS) * 10
    for example in examples:
        assert example.evidence.numel() > 0
        assert 0 <= int(example.evidence.min()) <= int(example.evidence.max()) < 256


def test_only_words_of_the_vocabulary(items):
    for _, question in items:
        assert text_ids(question.text)
        assert all(word in WORD_ID for word in pieces(question.answer))


def test_answers_are_true_and_boxes_are_theirs(items):
    for scene, question in items:
        words = question.text.rstrip("?.").split()
        boxed = [t for t in scene.objects if t.box in question.boxes]
        assert len(boxed) == len(question.boxes) > 0
        if question.task == "read-number":
            signs = [t for t in scene.objects if t.text and t.colour == words[-2]]
            assert [" ".join(t.text) for t in signs] == [question.answer]
            assert signs == boxed
        elif question.task == "letters":
            (sign,) = [t for t in scene.objects if t.text and t.colour == words[-2]]
            assert question.answer.split() == list(sign.text)
            assert len(question.steps) == len(sign.text)
        elif question.task == "colours-size":
            size, plural = words[5:7]
            mine = [t for t in scene.objects if (t.size, PLURALS[t.kind]) == (size, plural)]
            assert question.answer == ", ".join(t.colour for t in sorted(mine, key=lambda t: t.centre[0]))
            assert len(question.steps) == len(mine)
        elif question.task == "exist-size":
            size, colour, kind = words[-3:]
            same = [t for t in scene.objects if (t.colour, t.kind) == (colour, kind)]
            exact = [t for t in same if t.size == size]
            assert question.answer == ("yes" if exact else "no")
            assert boxed == (exact or same)
        elif question.task == "count-kind":
            mine = [t for t in scene.objects if (t.colour, PLURALS[t.kind]) == (words[2], words[3])]
            assert len(mine) == int(question.answer)
            assert boxed == mine
        elif question.task == "relation-sign":
            (sign,) = [t for t in scene.objects if t.text == words[-1]]
            (thing,) = [t for t in scene.objects if (t.colour, t.kind) == (words[3], words[4])]
            (x, y), (a, b) = thing.centre, sign.centre
            truth = {"left": a - x, "right": x - a, "above": b - y, "below": y - b}
            assert max(truth, key=truth.get) == question.answer


def test_answers_do_not_give_themselves_away(items):
    """No task is answered by one word alone."""
    for task in tiny.HARD_TASKS:
        answers = [question.answer for _, question in items if question.task == task]
        assert max(answers.count(a) for a in set(answers)) <= 0.75 * len(answers)


def test_crowded_and_alike(items):
    sizes = [len(scene.objects) for scene, _ in items]
    assert min(sizes) > 10
    assert max(sizes) <= 24
    assert all(len({t.colour for t in scene.objects}) <= 5 for scene, _ in items)
    assert all(len({t.kind for t in scene.objects} - {"sign"}) <= 5 for scene, _ in items)


def test_training_scenes_are_never_in_an_evaluation():
    for seed in (0, 1):
        mine = {sample.image().tobytes() for sample in from_scenes(21, seed, hard=True).items}
        held_out = {scene.pil().tobytes() for scene, _ in tiny.held_out_hard(14, seed=seed)}
        plain = {sample.image().tobytes() for sample in from_scenes(9, seed).items}
        assert not mine & (held_out | plain)


def test_training_samples_of_the_harder_split():
    samples, again = from_scenes(45, 3, hard=True), SUITES["scenes-hard"](45, 3)
    assert samples.fingerprint == again.fingerprint != from_scenes(45, 3).fingerprint
    assert [sample.task for sample in samples.items] == list(tiny.HARD_TASKS) * 5
    assert all(sample.boxes for sample in samples.items)


def test_a_style_does_what_it_says():
    rng = np.random.default_rng
    assert np.array_equal(make_scene(rng(5)).image, make_scene(rng(5), Style()).image)
    assert Style() == TRAINED
    small = make_scene(rng(5), Style(fewest=8, most=8, sizes=(1.0, 0.0, 0.0), layout="scattered"))
    assert {t.size for t in small.objects} == {"small", ""}
    assert len(small.objects) == 8
    calm, busy = (make_scene(rng(5), Style(clutter=(n, n))).image for n in (0, 40))
    assert not np.array_equal(calm, busy)


def test_an_unknown_task():
    scene, _ = next(tiny.held_out_hard(1))
    with pytest.raises(ValueError, match="unknown task 'size'"):
        tiny.ask_hard(np.random.default_rng(0), scene, "size")
