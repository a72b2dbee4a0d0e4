"""Losses equal torch's where torch has them, and leave unknown labels out."""

import doctest

import pytest
import torch
from torch.nn import functional as F

from faces import losses


def logits(n=6, outputs=4):
    return torch.randn(n, outputs, generator=torch.Generator().manual_seed(0), requires_grad=True)


def test_the_example_in_the_docstring():
    tried = doctest.testmod(losses)
    assert tried.attempted and not tried.failed


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
