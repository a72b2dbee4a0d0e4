"""Losses that torch lacks. All take logits and integer targets and return the mean over the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def multi_task(
    outputs: Sequence[int], *, weights: Sequence[float] | None = None, smoothing: float = 0.0
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A loss for several classifications of the same image, some of whose labels may be unknown.

    Parameters
    ----------
    outputs : number of outputs of each task; 1 means two classes under a sigmoid, more a softmax.
    weights : of each task's loss in the sum; default all 1.
    smoothing : label smoothing, of every task.

    Returns
    -------
    (logits ``[n, sum(outputs)]``, targets ``[n, len(outputs)]`` with -1 for unknown) -> scalar. Each task's loss
    is the mean over the images whose label is known.

    >>> loss = multi_task([1, 3])
    >>> loss(torch.zeros(2, 4), torch.tensor([[1, -1], [0, 2]])).round(decimals=4)
    tensor(1.7918)
    """
    weights = [1.0] * len(outputs) if weights is None else list(weights)
    if len(weights) != len(outputs):
        raise ValueError(f"{len(outputs)} tasks but {len(weights)} weights")

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total = logits.sum() * 0
        for part, target, weight in zip(logits.split(list(outputs), 1), targets.unbind(1), weights, strict=True):
            known = target >= 0
            # Without known labels the mean would be 0 / 0.
            share = weight / known.sum().clamp(min=1)
            if part.shape[1] == 1:
                wanted = target.to(part.dtype) * (1 - smoothing) + smoothing / 2
                each = F.binary_cross_entropy_with_logits(part[:, 0], wanted, reduction="none") * known
            else:
                each = F.cross_entropy(part, target, ignore_index=-1, reduction="none", label_smoothing=smoothing)
            total = total + each.sum() * share
        return total

    return loss


def focal(
    gamma: float = 2.0, class_weights: Sequence[float] | None = None, *, smoothing: float = 0.0
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Focal loss (Lin et al., 1708.02002) for several classes: cross-entropy that attends to what is still wrong.

    Each image's cross-entropy is multiplied by ``(1 - p) ** gamma``, where p is the probability that the network gives
    to the true class; with ``gamma`` 0 this is ``torch.nn.functional.cross_entropy``.

    Parameters
    ----------
    gamma : from 0; the larger, the less do images count that are right already.
    class_weights : one a class, e.g. from ``balanced_weights``; the mean is then weighted.
    smoothing : label smoothing, of the cross-entropy.

    Raises
    ------
    ValueError : ``gamma`` is negative.

    >>> loss = focal(gamma=2.0)
    >>> loss(torch.zeros(1, 4), torch.tensor([2])).round(decimals=4)
    tensor(0.7798)
    """
    if gamma < 0:
        raise ValueError(f"gamma must be 0 or more, not {gamma}")
    weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        likely = logits.log_softmax(1).gather(1, targets[:, None])[:, 0].exp()
        each = (1 - likely) ** gamma * each if gamma else each
        if weights is None:
            return each.mean()
        of_each = weights.to(logits.device)[targets]
        return (each * of_each).sum() / of_each.sum()

    return loss


def balanced_weights(targets: Sequence[int], classes: int) -> list[float]:
    """Class weights inverse to how often each class occurs, 1 on average over the images; 0 for absent classes."""
    counts = torch.bincount(torch.as_tensor(targets), minlength=classes).double()
    return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp(min=1)), 0.0).tolist()
