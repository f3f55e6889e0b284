import math

import pytest
import torch

from foveate.learn.glimpse.targets import kept_share, localisation_loss, recall

T, F = True, False


def bits(*rows):
    return torch.tensor(rows)


def logit(*probabilities):
    return [math.log(p / (1 - p)) for p in probabilities]


def test_by_hand():
    logits = torch.tensor([logit(0.8, 0.5, 0.2)])
    loss, parts = localisation_loss(logits, bits([T, F, F]), bits([T, T, T]))
    dice = 1 - 2 * 0.8 / (1.5 + 1)
    bce = -(math.log(0.8) + math.log(0.5) + math.log(0.8)) / 3
    assert parts["dice"].item() == pytest.approx(dice, abs=1e-5)
    assert parts["bce"].item() == pytest.approx(bce, abs=1e-5)
    assert loss.item() == pytest.approx(dice + 0.1 * bce, abs=1e-5)
    assert localisation_loss(logits, bits([T, F, F]), bits([T, T, T]), dice=0.0, bce=2.0)[0].item() == pytest.approx(
        2 * bce, abs=1e-5
    )


def test_a_batch_is_the_mean_of_its_samples_with_a_target():
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 9, 7]
    logits = torch.randn(3, 9, generator=generator)
    target = torch.rand(3, 9, generator=generator) > 0.6
    target[2] = False
    valid = torch.arange(9) < torch.tensor(lengths)[:, None]
    alone = [
        localisation_loss(
            logits[row : row + 1, :length], target[row : row + 1, :length], valid[row : row + 1, :length]
        )
        for row, length in enumerate(lengths[:2])
    ]
    loss, parts = localisation_loss(logits, target, valid)
    assert loss.item() == pytest.approx(sum(one.item() for one, _ in alone) / 2, abs=1e-6)
    assert parts["bce"].item() == pytest.approx(sum(one["bce"].item() for _, one in alone) / 2, abs=1e-6)


def test_padding_and_samples_without_boxes_get_no_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    loss, _ = localisation_loss(logits, bits([T, F, F], [F, F, F]), bits([T, T, F], [T, T, T]))
    loss.backward()
    assert (logits.grad != 0).tolist() == [[True, True, False], [False, False, False]]
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


def test_no_target_at_all_is_a_zero_that_can_be_trained_on():
    logits = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    loss, parts = localisation_loss(logits, torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == parts["dice"].item() == parts["bce"].item() == 0
    assert not logits.grad.any()


def test_padding_may_hold_anything():
    logits = torch.tensor([[0.3, -0.2, -math.inf]], requires_grad=True)
    loss, _ = localisation_loss(logits, bits([T, F, F]), bits([T, T, F]))
    loss.backward()
    short = localisation_loss(torch.tensor([[0.3, -0.2]]), bits([T, F]), bits([T, T]))[0]
    assert loss.item() == pytest.approx(short.item())
    assert logits.grad.isfinite().all()


def test_half_precision_scores_are_counted_in_full():
    """4,100 probabilities of a half sum to 2,050, which bfloat16 would round to 2,048."""
    logits = torch.zeros(1, 4100, dtype=torch.bfloat16)
    target = (torch.arange(4100) < 1024)[None]
    _, parts = localisation_loss(logits, target, torch.ones_like(target))
    assert parts["dice"].item() == pytest.approx(1 - 2 * 512 / (2050 + 1024), abs=1e-6)


def test_a_step_lowers_it():
    logits = torch.zeros(1, 6, requires_grad=True)
    target = bits([F, T, T, F, F, F])
    before, _ = localisation_loss(logits, target, torch.ones_like(target))
    before.backward()
    after, _ = localisation_loss(logits - logits.grad, target, torch.ones_like(target))
    assert after < before


def test_recall_and_kept_share():
    keep = bits([T, T, F, F], [F, F, F, T], [T, T, T, T])
    target = bits([T, F, T, F], [F, F, F, F], [T, T, T, T])
    valid = bits([T, T, T, T], [T, T, F, T], [T, T, T, T])
    assert recall(keep, target).item() == pytest.approx((0.5 + 1) / 2)
    assert kept_share(keep, valid).item() == pytest.approx((0.5 + 1 / 3 + 1) / 3)
    assert kept_share(keep, torch.zeros_like(valid)).isnan()
    assert recall(keep, torch.zeros_like(target)).isnan()
