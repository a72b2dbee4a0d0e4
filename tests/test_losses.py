"""Losses equal torch's where torch has them, and leave unknown labels out."""

import pytest
import torch
from seeds import SEED
from torch.nn import functional as F

from faces import losses


def logits(n=6, outputs=4):
    return torch.randn(n, outputs, generator=torch.Generator().manual_seed(SEED), requires_grad=True)


def test_one_task_is_the_usual_loss():
    given, two, three = logits(), torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([0, 2, 1, 1, 0, 2])
    binary = losses.multi_task([1])(given[:, :1], two[:, None])
    assert torch.allclose(binary, F.binary_cross_entropy_with_logits(given[:, 0], two.float()))
    many = losses.multi_task([3], smoothing=0.1)(given[:, :3], three[:, None])
    assert torch.allclose(many, F.cross_entropy(given[:, :3], three, label_smoothing=0.1))


def test_smoothing_of_one_output_is_that_of_two():
    given, targets = logits(outputs=1), torch.tensor([0, 1, 1, 0, 1, 0])
    as_two = torch.cat([torch.zeros_like(given), given], 1)
    expected = F.cross_entropy(as_two, targets, label_smoothing=0.2)
    assert torch.allclose(losses.multi_task([1], smoothing=0.2)(given, targets[:, None]), expected)


def test_tasks_are_weighted_and_unknown_labels_left_out():
    given = logits()
    targets = torch.tensor([[0, 2], [1, -1], [1, 0], [-1, 1], [0, -1], [1, -1]])
    loss = losses.multi_task([1, 3], weights=[1.0, 0.5])(given, targets)
    first, second = targets[:, 0] >= 0, targets[:, 1] >= 0
    expected = F.binary_cross_entropy_with_logits(given[first, 0], targets[first, 0].float())
    expected = expected + 0.5 * F.cross_entropy(given[second, 1:], targets[second, 1])
    assert torch.allclose(loss, expected)
    loss.backward()
    assert (given.grad[3, 0] == 0) and (given.grad[1, 1:] == 0).all()


def test_a_batch_without_any_known_label_costs_nothing():
    given = logits()
    loss = losses.multi_task([1, 3])(given, torch.full((6, 2), -1))
    loss.backward()
    assert loss == 0 and (given.grad == 0).all()


def test_as_many_weights_as_tasks():
    with pytest.raises(ValueError, match="2 tasks but 1 weights"):
        losses.multi_task([1, 3], weights=[1.0])


# ------------------------------------------------------------------------------------------------------- focal


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(16, 5, generator=generator) * 3, torch.randint(0, 5, (16,), generator=generator)


# Not both: torch weighs the smoothed part by class too.
@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), (None, 0.1), ([1.0, 2.0, 0.5, 3.0, 1.0], 0.0)])
def test_focal_loss_is_cross_entropy_at_gamma_0(batch, weights, smoothing):
    logits, targets = batch
    expected = F.cross_entropy(logits, targets, weight=weights and torch.tensor(weights), label_smoothing=smoothing)
    torch.testing.assert_close(losses.focal(0.0, weights, smoothing=smoothing)(logits, targets), expected)


def test_focal_loss_is_the_formula(batch):
    logits, targets = batch
    p = logits.softmax(1)[torch.arange(16), targets]
    for gamma in (0.5, 2.0, 5.0):
        torch.testing.assert_close(losses.focal(gamma)(logits, targets), ((1 - p) ** gamma * -p.log()).mean())


def test_focal_loss_heeds_what_is_wrong():
    right, wrong = torch.tensor([[6.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    target = torch.tensor([0])
    shares = [(losses.focal(gamma)(right, target) / losses.focal(gamma)(wrong, target)).item() for gamma in (0, 1, 2)]
    assert shares == sorted(shares, reverse=True) and shares[2] < shares[0] / 1000


def test_focal_gradients_are_finite_where_the_network_is_certain():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    losses.focal(2.0)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad.isfinite().all()
    with pytest.raises(ValueError, match="gamma must be 0 or more, not -1"):
        losses.focal(-1)


def test_balanced_weights_make_every_class_count_alike():
    weights = losses.balanced_weights([0, 0, 0, 1, 3, 3], 4)
    assert weights == pytest.approx([6 / 9, 2, 0, 1])
    assert sum(weights[c] for c in [0, 0, 0, 1, 3, 3]) == pytest.approx(6)
