"""Age as a distribution over years: how a network's outputs are trained, read, and how uncertain they are.

A target is a range of completed years, ``[low, high]``: UTKFace and ChaLearn label one year (``low == high``), FairFace
one of nine groups such as 20-29. Every kind below learns from both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faces.research.data import AGE_GROUPS

OLDEST = 116  # years, the oldest that UTKFace labels
BINS = OLDEST + 1  # one a year, from 0
CENTRE, SCALE = 35.0, 20.0  # a standardised output z means CENTRE + SCALE * z years


class Kind(NamedTuple):
    """How an age is learnt and read.

    layer : width of the features -> the last layer.
    loss : (outputs ``[n, k]``, ranges ``[n, 2]``, spread of the labels in years) -> ``[n]``.
    read : outputs -> years ``[n]``.
    deviation : outputs -> standard deviation in years ``[n]``; 1 where the kind has none.
    """

    layer: Callable[[int], nn.Module]
    loss: Callable[[Tensor, Tensor, float], Tensor]
    read: Callable[[Tensor], Tensor]
    deviation: Callable[[Tensor], Tensor]


def ranges(manifest: pd.DataFrame) -> np.ndarray:
    """Age labels as ranges of completed years.

    Returns
    -------
    float32 ``[n, 2]``, both ends included: ``age`` where it is known, else the bounds of ``age_group``, else NaN.

    >>> ranges(pd.DataFrame({"age": [26.0, None], "age_group": ["20-29", "70+"]}))
    array([[ 26.,  26.],
           [ 70., 116.]], dtype=float32)
    """
    ends: dict[str | None, tuple[float, float]] = {}
    for group in AGE_GROUPS:
        low, _, high = group.rstrip("+").partition("-")
        ends[group] = (int(low), int(high or OLDEST))
    unknown = (math.nan, math.nan)
    groups = manifest["age_group"] if "age_group" in manifest else [None] * len(manifest)
    found = np.array([ends.get(group, unknown) for group in groups], np.float32).reshape(len(manifest), 2)
    if "age" in manifest:
        age = manifest["age"].to_numpy(float)
        found[~np.isnan(age)] = age[~np.isnan(age), None].round()
    return found.clip(0, OLDEST)


def merge_duplicates(manifest: pd.DataFrame, most: float = 5.0) -> pd.DataFrame:
    """Give the near duplicates among the training photos one age.

    Copies of one photo show one age. Where the labels of a group span at most ``most`` years each photo gets their
    mean, where they span more its age becomes unknown. Rows of other splits stay as they are.
    """
    if "age" not in manifest:
        return manifest
    learns = (manifest["split"] == "train") & manifest["age"].notna()
    ages = manifest.loc[learns].groupby("group")["age"]
    merged = manifest.assign(age=manifest["age"].astype(float))
    merged.loc[learns, "age"] = ages.transform("mean")
    contradicts = (ages.transform("max") - ages.transform("min")).reindex(manifest.index, fill_value=0) > most
    merged.loc[contradicts, [c for c in ("age", "age_group") if c in merged]] = None
    return merged


def distance(years: Tensor, ranges: Tensor) -> Tensor:
    """Years by which each age ``[n]`` lies outside its range ``[n, 2]``: the absolute error of an exact label."""
    return F.relu(ranges[:, 0] - years) + F.relu(years - ranges[:, 1])


# ------------------------------------------------------------------------------- distributions over years, [n, BINS]


def _bins(logits: Tensor) -> Tensor:
    return torch.arange(BINS, device=logits.device, dtype=logits.dtype)


def log_mass(logits: Tensor, ranges: Tensor) -> Tensor:
    """Logarithm of the probability of each range: ``[n]``."""
    years = _bins(logits)
    inside = (years >= ranges[:, :1]) & (years <= ranges[:, 1:])
    return logits.masked_fill(~inside, -torch.inf).logsumexp(1) - logits.logsumexp(1)


def mean(logits: Tensor) -> Tensor:
    """Mean, ``[n]``."""
    return logits.softmax(1) @ _bins(logits)


def deviation(logits: Tensor) -> Tensor:
    """Standard deviation, ``[n]``, at least half a year."""
    likely, years = logits.softmax(1), _bins(logits)
    centre = likely @ years
    return (likely @ years.square() - centre.square()).clamp(min=0.25).sqrt()


def quantile(logits: Tensor, share: float) -> Tensor:
    """Quantile, ``[n]``, interpolated within its year."""
    likely = logits.softmax(1)
    below = likely.cumsum(1) - likely
    part = ((share - below) / likely.clamp(min=1e-9)).clamp(0, 1)
    return part.sum(1) - 0.5


median = partial(quantile, share=0.5)


def cross_entropy(logits: Tensor, ranges: Tensor, spread: float) -> Tensor:
    """Cross-entropy with the label, ``[n]``.

    An exact age is a normal distribution with a standard deviation of ``spread`` years about the label, so that heaps
    in the labels do not become heaps in the answers; 0 takes the label as it is. A range is one event.
    """
    known = -log_mass(logits, ranges)
    if not spread:
        return known
    normal = (-0.5 * ((_bins(logits) - ranges.mean(1, keepdim=True)) / spread).square()).softmax(1)
    exact = ranges[:, 0] == ranges[:, 1]
    return torch.where(exact, -(normal * logits.log_softmax(1)).sum(1), known)


def _dldl(logits: Tensor, ranges: Tensor, spread: float) -> Tensor:
    return cross_entropy(logits, ranges, spread) + distance(mean(logits), ranges)


# ---------------------------------------------------------------------------------------------------- other outputs


def _one(outputs: Tensor) -> Tensor:
    return torch.ones_like(outputs[:, 0])


def _point(loss: Callable[[Tensor], Tensor], read: Callable[[Tensor], Tensor] | None = None) -> Kind:
    """One number, and a loss of its distance to the label (standardised, unless ``read`` gives years)."""
    unit = 1.0 if read else SCALE
    read = read or (lambda outputs: CENTRE + SCALE * outputs[:, 0])
    return Kind(
        lambda width: nn.Linear(width, 1), lambda o, ranges, _: loss(distance(read(o), ranges) / unit), read, _one
    )


class Ordinal(nn.Module):
    """CORAL's last layer: one weight vector, and a threshold for each year: ``[n, width] -> [n, OLDEST]``.

    The thresholds start as those of a logistic distribution with mean ``CENTRE`` and deviation ``SCALE``.
    """

    def __init__(self, width: int):
        super().__init__()
        self.direction = nn.Linear(width, 1, bias=False)
        self.thresholds = nn.Parameter((CENTRE - torch.arange(OLDEST)) * (math.pi / (3**0.5 * SCALE)))

    def forward(self, x: Tensor) -> Tensor:
        return self.direction(x) + self.thresholds


def _coral(logits: Tensor, ranges: Tensor, _: float) -> Tensor:
    rank = torch.arange(OLDEST, device=logits.device)
    older, younger = rank < ranges[:, :1], rank >= ranges[:, 1:]
    each = F.binary_cross_entropy_with_logits(logits, older.to(logits.dtype), reduction="none")
    return (each * (older | younger)).sum(1)  # within a range it is unknown whether somebody is older than a year


def _distribution(loss: Callable[[Tensor, Tensor, float], Tensor], read: Callable[[Tensor], Tensor]) -> Kind:
    return Kind(lambda width: nn.Linear(width, BINS), loss, read, deviation)


KINDS = {
    "mse": _point(torch.square),
    "l1": _point(torch.abs),
    "huber": _point(lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none", delta=5 / SCALE)),
    # Years themselves, cut off at 0, under a squared error.
    "relu": _point(torch.square, lambda outputs: outputs[:, 0].relu()),
    # A distribution, read by its mean (DEX; Rothe et al., 2015) or its median, which minimises the absolute error.
    "dex": _distribution(cross_entropy, mean),
    "median": _distribution(cross_entropy, median),
    # The mean's absolute error besides (DLDL-v2; Gao et al., 2018).
    "dldl": _distribution(_dldl, mean),
    # "Is this person older than k?" for every k (CORAL; Cao et al., 1901.07884).
    "coral": Kind(Ordinal, _coral, lambda logits: (logits > 0).sum(1).to(logits.dtype), _one),
}


def is_distribution(kind: str) -> bool:
    """Whether the outputs are logits of a distribution over years."""
    return KINDS[kind].deviation is deviation
