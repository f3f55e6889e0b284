import itertools

import pytest

from foveate.learn.btp.curve import stages_from_curve

# n_l of LLaVA-1.5-7B as the paper gives it, at every fourth layer from layer 1 on: 64, 128 and 256 samples
PUBLISHED = [[0, 0, 325, 141, 155, 45, 1], [0, 0, 350, 166, 127, 36, 5], [0, 0, 332, 174, 145, 32, 3]]


@pytest.mark.parametrize("turned", PUBLISHED)
def test_the_published_curves_choose_the_same_places_whatever_the_samples(turned):
    # between layers 5 and 9, between 9 and 13, and between 17 and 21, of layers 1, 5, 9, ...
    assert stages_from_curve(turned, 3) == (2, 3, 5)


def test_the_largest_jumps_with_a_gap_between_them():
    turned = [0.0] * 32
    turned[10:20] = [0.5] * 10  # jumps before 10 and before 20
    turned[11] = 0.7  # and a smaller pair before 11 and 12: too near to 10
    turned[15] = 0.55
    assert stages_from_curve(turned, 2) == (10, 20)
    assert stages_from_curve(turned, 3) == (10, 15, 20)


def test_no_stage_too_early_or_too_late():
    turned = [0.9, 0.0, 0.0, 0.0] + [0.0] * 27 + [1.0]  # jumps before layers 1 and 31
    chosen = stages_from_curve(turned, 3)
    assert min(chosen) >= 3
    assert max(chosen) <= 24


def test_equal_jumps_are_taken_in_order():
    assert stages_from_curve([0.5] * 32, 3) == (3, 6, 9)


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 12, 28, 80])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_any_depth(depth, count):
    turned = [(7 * layer % 5) / 5 for layer in range(depth)]
    chosen = stages_from_curve(turned, count)
    gap = max(1, round(3 * depth / 32))
    assert len(chosen) <= count
    assert all(0 < layer < depth for layer in chosen)
    assert all(after - before >= gap for before, after in itertools.pairwise(chosen))
