"""Clips and large images: what is drawn, what is asked, and that the evidence is in the right image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from foveate import tiny
from foveate.measure.eval.suites import load_suite, suite_fingerprint, untrained
from foveate.tiny.clips import CLIP_TASKS, FRAMES, ask_clip, make_clip
from foveate.tiny.drawing import PATCH
from foveate.tiny.large import LARGE_TASKS, ask_large, make_large, stacked, tiles
from foveate.tiny.scenes import SIZE, TOKENS
from foveate.tiny.vocabulary import WORD_ID, pieces, text_ids

CLIPS = [make_clip(np.random.default_rng([5, i])) for i in range(150)]
RNG = np.random.default_rng(1)
QUESTIONS = [(clip, ask_clip(RNG, clip, task)) for clip in CLIPS for task in CLIP_TASKS for _ in range(2)]
QUESTIONS = [(clip, question) for clip, question in QUESTIONS if question is not None]


def at(track, frame):
    """Where the unclipped box of an object is in a frame."""
    return np.array(track.whole[frame][:2])


def named(clip, text):
    """The object that a question names."""
    (track,) = [track for track in clip.tracks if track.name in text]
    return track


def test_objects_move_by_whole_patches_and_enter_and_leave_for_good():
    ways = {"left": (-PATCH, 0), "right": (PATCH, 0), "up": (0, -PATCH), "down": (0, PATCH), "": (0, 0)}
    seen = {"still": [], "moves": [], "enters": [], "leaves": []}
    for clip in CLIPS:
        assert len({track.name for track in clip.tracks}) == len(clip.tracks)
        for track in clip.tracks:
            for frame in range(FRAMES - 1):
                assert (at(track, frame + 1) - at(track, frame)).tolist() == list(ways[track.way])
            seen[track.role].append("".join("x" if thing else "." for thing in track.things))
    assert set(seen["still"]) == set(seen["moves"]) == {"x" * FRAMES}
    assert set(seen["enters"]) == {"." * n + "x" * (FRAMES - n) for n in range(1, FRAMES - 1)}
    assert set(seen["leaves"]) == {"x" * (n + 1) + "." * (FRAMES - 1 - n) for n in range(1, FRAMES - 1)}


@pytest.mark.parametrize("index", range(3))
def test_what_is_not_an_object_stays_as_it_is(index):
    clip = CLIPS[index]
    frames = clip.frames()
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    assert np.array_equal(frames, clip.frames())
    covered = np.zeros((FRAMES, SIZE, SIZE), dtype=bool)
    for track in clip.tracks:
        for x0, y0, x1, y1 in track.boxes():
            covered[y0 // SIZE, y0 % SIZE : y0 % SIZE + y1 - y0, x0:x1] = True
    for before, after in itertools.pairwise(range(FRAMES)):
        free = ~covered[before] & ~covered[after]
        assert np.array_equal(frames[before][free], frames[after][free])
    assert all((frames[0] != frame).any() for frame in frames[-1:])


def test_directions_and_numbers_of_movers_are_those_of_the_boxes():
    answers = {"move": set(), "moving": set()}
    for clip, question in QUESTIONS:
        if question.task == "move":
            dx, dy = at(named(clip, question.text), 1) - at(named(clip, question.text), 0)
            assert question.answer == {(-1, 0): "left", (1, 0): "right", (0, -1): "up", (0, 1): "down"}.get(
                (np.sign(dx), np.sign(dy)), "still"
            )
        elif question.task == "moving":
            assert question.answer == str(sum((at(t, 0) != at(t, 1)).any() for t in clip.tracks))
        if question.task in answers:
            answers[question.task].add(question.answer)
    assert answers == {"move": {"left", "right", "up", "down", "still"}, "moving": set("0123456") & answers["moving"]}
    assert len(answers["moving"]) > 4


def test_order_is_that_of_the_frames():
    tasks = set()
    for clip, question in QUESTIONS:
        if question.task not in ("enter", "next", "order"):
            continue
        enters = "enters" in question.text
        group = [t for t in clip.tracks if (t.things[0 if enters else -1] is None)]
        first = {t.name: [i for i, thing in enumerate(t.things) if thing][0 if enters else -1] for t in group}
        order = sorted(first, key=first.get)
        assert len(set(first.values())) == len(order) > 1, "no two at the same time"
        if question.task == "order":
            assert question.answer == ", ".join(order)
            for step, name in zip(question.steps, order, strict=True):
                assert step.boxes == named(clip, name).evidence()
        elif question.task == "enter":
            assert question.answer == order[0 if "first" in question.text else -1]
        else:
            (asked,) = [name for name in order if name in question.text]
            assert order.index(question.answer) - order.index(asked) == (1 if "after" in question.text else -1)
        tasks.add(question.task)
    assert tasks == {"enter", "next", "order"}


def test_what_is_asked_of_a_frame_has_its_evidence_there():
    changed = 0
    for clip, question in QUESTIONS:
        if question.task not in ("place", "read", "number"):
            continue
        frame = 0 if "first" in question.text else FRAMES - 1
        track, (box,) = named(clip, question.text), question.boxes
        assert box == track.things[frame].box
        assert box[1] // SIZE == (box[3] - 1) // SIZE == frame
        if question.task == "place":
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2 - SIZE * frame
            assert question.answer == f"{'top' if y < 128 else 'bottom'} {'left' if x < 128 else 'right'}"
        else:
            assert question.answer == " ".join(track.things[frame].text)
            changed += track.things[0].text != track.things[-1].text
    assert changed > 5, "the frame matters: signs change what they say"


def test_every_question_of_a_clip_is_written_in_known_words():
    assert {question.task for _, question in QUESTIONS} == set(CLIP_TASKS)
    for _, question in QUESTIONS:
        assert set(pieces(question.text + question.answer)) <= set(WORD_ID)
        assert question.boxes
        assert text_ids(question.answer)


def test_a_large_image_is_four_tiles_and_asked_about_as_a_whole():
    scene = make_large(np.random.default_rng(3))
    assert scene.image.shape == (2 * SIZE, 2 * SIZE, 3)
    four = tiles(scene)
    assert np.array_equal(four[1], scene.image[:SIZE, SIZE:])
    assert np.array_equal(four[2], scene.image[SIZE:, :SIZE])
    column = np.concatenate(four)
    for thing in scene.objects:
        (x0, y0, x1, y1), (a0, b0, a1, b1) = thing.box, stacked(thing.box)
        assert np.array_equal(scene.image[y0:y1, x0:x1], column[b0:b1, a0:a1])
    rng, across = np.random.default_rng(4), 0
    for scene in [make_large(rng) for _ in range(6)]:
        for task in LARGE_TASKS:
            question = ask_large(rng, scene, task)
            if question is None:
                continue
            assert set(question.boxes) <= {stacked(thing.box) for thing in scene.objects}
            assert {box for step in question.steps for box in step.boxes} <= {
                stacked(thing.glyph_box(i)) for thing in scene.objects for i in range(len(thing.text))
            } | set(question.boxes)
            across += len({box[1] // SIZE for box in question.boxes}) > 1
    assert across > 15, "many questions need several tiles"


@pytest.mark.parametrize(("name", "images"), [("scenes-video", FRAMES), ("scenes-large", 4)])
def test_the_suite_shows_the_images_and_its_evidence(name, images):
    examples = load_suite(name, 16, 2)
    asked = tiny.held_out_clips(16, seed=2) if images == FRAMES else tiny.held_out_large(16, seed=2)
    for example, (shown, question) in zip(examples, asked, strict=True):
        pixels = shown.frames() if images == FRAMES else tiles(shown)
        assert np.array_equal(np.stack(example.images), pixels)
        assert (example.task, example.question, example.answer) == (question.task, question.text, question.answer)
        assert example.evidence.max() < images * TOKENS
        held = {box[1] // SIZE for box in question.boxes}
        assert set((example.evidence // TOKENS).tolist()) == held, "the right tokens of the right image"
        for x0, y0, x1, y1 in question.boxes:
            middle = (y0 + y1) // 2 // PATCH * (SIZE // PATCH) + (x0 + x1) // 2 // PATCH
            assert middle in example.evidence
    assert suite_fingerprint(examples) == suite_fingerprint(load_suite(name, 16, 2))
    assert suite_fingerprint(examples) != suite_fingerprint(load_suite(name, 16, 3))


def test_a_result_says_that_the_weights_were_not_trained_for_a_suite():
    assert untrained("tiny-many", ["scenes-video", "scenes-large"]) == untrained("tiny", ["scenes"]) == []
    (note,) = untrained("tiny", ["scenes-video", "scenes-two"])
    assert "scenes-video is for the model tiny-many" in note
