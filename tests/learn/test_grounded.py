from collections import Counter

import numpy as np
import pytest

from foveate import tiny
from foveate.families import Grid
from foveate.learn.data import from_scenes
from foveate.learn.errors import TrainingDataError
from foveate.learn.glimpse.targets import target_mask


@pytest.fixture(scope="module")
def scenes():
    return from_scenes(40, 3)


def test_scenes_are_balanced_over_the_tasks_in_any_beginning(scenes):
    tasks = [sample.task for sample in scenes.items]
    assert tasks == [tiny.TASKS[place % len(tiny.TASKS)] for place in range(40)]
    assert len({id(sample.source) for sample in scenes.items}) < 12  # nine questions a scene where it allows them
    assert max(Counter(map(id, (sample.source for sample in scenes.items))).values()) <= 9


def test_boxes_lie_where_the_answer_is(scenes):
    """The target of each question covers the evidence that the scenes' own measure finds."""
    for sample in scenes.items:
        assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in sample.boxes)
        assert sample.image().size == (256, 256)
        pixels = [tuple(round(value * 256) for value in box) for box in sample.boxes]
        evidence = tiny.evidence_tokens(tiny.Question(sample.task, "", "", pixels))
        target = target_mask(sample.boxes, [Grid(16, 16)]).numpy()
        assert (target >= evidence).all()
        assert target.any() == bool(sample.boxes)


def test_a_count_of_none_has_no_boxes():
    counts = [sample for sample in from_scenes(180, 0).items if sample.task == "count"]
    assert any(sample.answer == "0" for sample in counts)
    assert all(len(sample.boxes) == int(sample.answer) for sample in counts)


def test_a_seed_gives_the_same_scenes_again(scenes):
    again, other = from_scenes(40, 3), from_scenes(40, 4)
    assert [(s.question, s.boxes) for s in again.items] == [(s.question, s.boxes) for s in scenes.items]
    assert again.fingerprint == scenes.fingerprint != other.fingerprint


def test_fewer_questions_a_scene():
    samples = from_scenes(12, 0, per_scene=1).items
    assert len({id(sample.source) for sample in samples}) == 12


def test_no_scene_is_in_an_evaluation_or_in_the_models_own_training():
    from foveate.tiny.scenes import HELD_OUT_STREAM, TRAINING_STREAM

    for seed in (0, 1):
        mine = {sample.image().tobytes() for sample in from_scenes(18, seed).items}
        held_out = {scene.pil().tobytes() for scene, _ in tiny.held_out(17, seed=seed)}
        streams = {TRAINING_STREAM, HELD_OUT_STREAM, HELD_OUT_STREAM + 1}
        drawn = {
            tiny.make_scene(np.random.default_rng([stream, seed, index])).pil().tobytes()
            for stream in streams
            for index in range(3)
        }
        assert not mine & (held_out | drawn)


@pytest.mark.parametrize("asked", [{"number": 0}, {"number": 3, "per_scene": 0}])
def test_nothing_asked_for(asked):
    with pytest.raises(TrainingDataError, match="at least one"):
        from_scenes(seed=0, **asked)
