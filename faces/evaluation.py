"""Figures that say how good a model is, each with how sure one can be of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics import confusion_matrix


def predictions(manifest: pd.DataFrame, logits: np.ndarray, classes: Sequence[str], label: str) -> pd.DataFrame:
    """The manifest's rows with what a classifier says of them.

    Parameters
    ----------
    logits : float ``[n, classes]``, in the order of the rows.
    label : the column that holds the true class.

    Returns
    -------
    DataFrame with, added: ``p_<class>`` for every class, ``predicted``, ``confidence`` (the highest probability),
    ``correct``, and ``loss`` (cross-entropy in nats).
    """
    probabilities = softmax(np.asarray(logits, np.float64), axis=1)
    names = np.asarray(classes)
    truth = manifest[label].map({name: number for number, name in enumerate(classes)}).to_numpy()
    frame = manifest.assign(**{f"p_{name}": probabilities[:, number] for number, name in enumerate(classes)})
    frame["predicted"] = names[probabilities.argmax(1)]
    frame["confidence"] = probabilities.max(1)
    frame["correct"] = frame["predicted"] == frame[label]
    frame["loss"] = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12))
    return frame


def bootstrap(
    values: np.ndarray | pd.Series,
    groups: np.ndarray | pd.Series | None = None,
    *,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A mean over photos with its bootstrap percentile interval, drawn by whole groups.

    Near-duplicate photos are right or wrong together, so it is groups that are drawn with replacement, not photos
    (the cluster bootstrap; Field & Welsh, 2007).

    Parameters
    ----------
    values : one number a photo (1 for right and 0 for wrong gives the accuracy), ``[n]``.
    groups : group of each photo, ``[n]``; None where every photo stands for itself.
    statistic : of (sums, counts), both ``[resamples]``; default the mean, sums / counts.
    level : of the interval.

    Returns
    -------
    (value, low, high); NaNs for no photos.

    >>> bootstrap([1, 1, 1, 1])
    (1.0, 1.0, 1.0)
    """
    values = np.asarray(values, float)
    if not len(values):
        return (np.nan,) * 3
    codes = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, counts = np.bincount(codes, values), np.bincount(codes).astype(float)
    statistic = statistic or (lambda total, count: total / count)
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for start in range(0, resamples, 100):
        picks = rng.integers(0, len(sums), (min(100, resamples - start), len(sums)))
        drawn[start : start + len(picks)] = statistic(sums[picks].sum(1), counts[picks].sum(1))
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(statistic(sums.sum(), counts.sum())), float(low), float(high)


def by_group(frame: pd.DataFrame, column: str, value: str = "correct", *, seed: int = 0) -> pd.DataFrame:
    """A figure for each value of a column, with interval and counts.

    Parameters
    ----------
    frame : as from ``predictions``, with ``group``.
    column : e.g. "source" or "age_group".
    value : the column to average.

    Returns
    -------
    DataFrame indexed by the column's values: photos, groups, mean, low, high. Missing values of the column are
    one more row, named "unknown".
    """
    rows = {}
    for name, part in frame.groupby(frame[column].astype(object).fillna("unknown"), sort=True):
        mean, low, high = bootstrap(part[value], part["group"], seed=seed)
        rows[name] = {"photos": len(part), "groups": part["group"].nunique(), "mean": mean, "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(column)


def summary(frame: pd.DataFrame, *, seed: int = 0) -> dict:
    """Accuracy and loss of a predictions frame, as it goes into ``metrics.json``."""
    result: dict = {"photos": len(frame), "groups": int(frame["group"].nunique())}
    for name, column in (("accuracy", "correct"), ("loss", "loss")):
        value, low, high = bootstrap(frame[column], frame["group"], seed=seed)
        result[name] = {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
    return result


def confusion(frame: pd.DataFrame, label: str, classes: Sequence[str]) -> pd.DataFrame:
    """Counts of photos, true class down, predicted class across."""
    counts = confusion_matrix(frame[label], frame["predicted"], labels=list(classes))
    return pd.DataFrame(counts, pd.Index(classes, name=f"true {label}"), pd.Index(classes, name="predicted"))


def records(table: pd.DataFrame) -> dict:
    """A table of figures as plain numbers for JSON: {row: {column: value}}, four decimals."""
    return {str(row): {c: _plain(v) for c, v in values.items()} for row, values in table.to_dict("index").items()}


def _plain(value):
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else round(float(value), 4)
    return int(value) if isinstance(value, np.integer) else value
