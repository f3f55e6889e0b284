import pytest
import torch

from foveate.learn.btp.candidates import batch_sums, beaten, choose, depth_of_harmless_drop, reading_depth, scores


def test_scores_from_sums_are_those_from_all_samples():
    kl = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)).double()
    same = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)).double()
    parts = [batch_sums(kl[:, at : at + 6], same[:, at : at + 6]) for at in range(0, 20, 6)]
    found = scores({name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]})
    assert torch.allclose(found.kl, kl.mean(1))
    assert torch.allclose(found.same, same.mean(1))
    assert torch.allclose(found.error, kl.std(1) / 20**0.5)
    between = torch.stack([torch.stack([(a - b).std() / 20**0.5 for b in kl]) for a in kl])
    assert torch.allclose(found.paired, between, atol=1e-9)


def made(*rows):
    kl = torch.tensor(rows)
    return scores(batch_sums(kl, torch.ones_like(kl)))


def test_earlier_layers_stay_unless_others_are_clearly_better():
    noisy = made([0.1, 0.3, 0.1, 0.3], [0.3, 0.1, 0.3, 0.08])
    assert noisy.kl[1] < noisy.kl[0]
    assert choose(noisy, ["a", "b"]) == 0
    clear = made([0.3, 0.31, 0.3, 0.31], [0.1, 0.11, 0.1, 0.11])
    assert choose(clear, ["a", "b"]) == 1


def test_a_candidate_is_beaten_by_more_than_three_standard_errors_of_the_difference():
    # differences of 0.15 with a standard error of 0.05 (n = 4, standard deviation 0.1), and a little more or less
    steps = [0.0, 0.0, 0.2, 0.2]
    scale = 0.1 / torch.tensor(steps).std().item()
    other = [1 + 0.15 + scale * (step - 0.1) for step in steps]
    assert beaten(made([1.0] * 4, [value + 0.01 for value in other]), 1)
    assert not beaten(made([1.0] * 4, [value - 0.01 for value in other]), 1)
    assert not beaten(made([1.0] * 4, other), 0)


def test_of_the_same_layers_the_least_divergence_is_taken():
    noisy = made([0.1, 0.3, 0.1, 0.3], [0.3, 0.1, 0.3, 0.08])
    assert choose(noisy, ["a", "a"]) == 1


@pytest.mark.parametrize(
    ("kl", "same", "layer"),
    [
        ([2, 1, 0.005, 0.001], [0.5, 0.8, 1, 1], 2),
        ([2, 0.005, 1, 0.001], [0.5, 1, 0.8, 1], 3),  # harmless at 1, but not from there on
        ([2, 1, 0.005, 0.001], [0.5, 0.8, 0.98, 1], 3),
        ([2, 1, 0.5, 0.2], [1, 1, 1, 1], None),
        ([2, 1, 0.5, float("nan")], [1, 1, 1, 1], None),
        ([0.0, 0.0], [1, 1], 0),
    ],
)
def test_harmless_means_from_there_on(kl, same, layer):
    assert depth_of_harmless_drop(kl, same) == layer


@pytest.mark.parametrize(
    ("kl", "layer"),
    [([1, 0.9, 0.5, 0.1], 2), ([1, 0.4, 0.6, 0.1], 3), ([1, 1, 1, 0.6], 4), ([0, 0], 0), ([0, 0.1, 0], 2)],
)
def test_reading_depth_is_where_half_of_the_harm_is_left(kl, layer):
    assert reading_depth(kl) == layer


def test_a_candidate_that_gives_no_numbers_is_never_taken():
    assert choose(made([float("nan"), 0.1], [0.5, 0.4], [0.6, 0.6]), ["a", "b", "b"]) == 1
