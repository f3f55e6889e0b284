import numpy as np
import pytest

from foveate.measure.eval import summary
from foveate.measure.eval.summary import accuracy_gap, accuracy_kept


def test_resamples_repeat_with_the_seed_and_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    values = np.random.default_rng(0).random((7, 2))
    counts = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=50)
    assert np.allclose(summary._resampled(values.T, 50, 3), counts @ values)
    monkeypatch.setattr(summary, "AT_ONCE", 40)  # five at a time
    assert np.allclose(summary._resampled(values.T, 50, 3), counts @ values)
    assert not np.allclose(summary._resampled(values.T, 50, 4), counts @ values)


def test_an_arm_that_equals_the_dense_one_keeps_all_without_doubt():
    right = np.random.default_rng(0).integers(0, 2, 200)
    kept = accuracy_kept(right, right)
    assert (kept.value, kept.low, kept.high) == (1.0, 1.0, 1.0)


def test_pairing_narrows_the_interval():
    """The same two accuracies are told apart better where the arms fail on the same questions."""
    rng = np.random.default_rng(1)
    dense = (rng.random(400) < 0.7).astype(int)
    paired = dense.copy()
    paired[np.flatnonzero(dense)[:20]] = 0
    shuffled = rng.permutation(paired)
    close, wide = accuracy_kept(paired, dense), accuracy_kept(shuffled, dense)
    assert close.value == wide.value
    assert close.high - close.low < (wide.high - wide.low) / 2


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Truth by construction: dense right with 0.8; the arm right with 0.9 where dense is, with 0.1 where it is not."""
    truth = (0.8 * 0.9 + 0.2 * 0.1) / 0.8
    rng, covered, runs = np.random.default_rng(2), 0, 200
    for _ in range(runs):
        dense = rng.random(300) < 0.8
        arm = np.where(dense, rng.random(300) < 0.9, rng.random(300) < 0.1)
        kept = accuracy_kept(arm, dense, resamples=400)
        covered += kept.low <= truth <= kept.high
    assert 0.90 <= covered / runs <= 0.99


def test_the_gap_of_known_data():
    gap = accuracy_gap([1, 1, 1, 0], [1, 0, 0, 0])
    assert gap.value == pytest.approx(0.5)
    assert gap.low >= 0


def test_nothing_right_leaves_no_share():
    assert accuracy_kept([0, 0], [0, 0]).value is None
    assert accuracy_kept([], []).value is None


def test_arms_of_different_questions_are_refused():
    with pytest.raises(ValueError, match="same questions"):
        accuracy_kept([1, 0], [1, 0, 1])
