"""Figures that say how good a model is, each with how sure one can be of it.

A ``frame`` is as from ``predictions``, with ``group``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.ndimage import laplace
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from faces.research.data import AGE_BOUNDS, AGE_GROUPS

FEW = 10  # groups of test photos below which a share says nothing


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
    likely = softmax(np.asarray(logits, np.float64), axis=1)
    names = np.asarray(classes)
    truth = manifest[label].map({name: number for number, name in enumerate(classes)}).to_numpy()
    frame = manifest.assign(**{f"p_{name}": likely[:, number] for number, name in enumerate(classes)})
    frame["predicted"] = names[likely.argmax(1)]
    frame["confidence"] = likely.max(1)
    frame["correct"] = frame["predicted"] == frame[label]
    frame["loss"] = -np.log(np.maximum(likely[np.arange(len(truth)), truth], 1e-12))
    return frame


# ------------------------------------------------------------------------------------------------- confidence


def reliability(frame: pd.DataFrame) -> pd.DataFrame:
    """How often the network is right, for ten equally large shares of the photos from least to most confident.

    Returns
    -------
    DataFrame: photos, groups, mean (accuracy), low, high (its interval), confidence (mean).
    """
    share = pd.cut(frame["confidence"].rank(method="first"), 10, labels=False)
    table = by_group(frame.assign(share=share), "share")
    return table.assign(confidence=frame["confidence"].groupby(share).mean()).reset_index(drop=True)


def calibration_error(frame: pd.DataFrame, *, bins: int = 15) -> float:
    """Expected calibration error over equally filled bins: mean absolute gap of confidence and accuracy."""
    order = np.argsort(frame["confidence"].to_numpy(), kind="stable")
    gap = (frame["confidence"].to_numpy() - frame["correct"].to_numpy(float))[order]
    return float(sum(abs(part.sum()) for part in np.array_split(gap, bins)) / len(gap))


def risk_coverage(frame: pd.DataFrame) -> pd.DataFrame:
    """What answering only where the network is confident costs and brings (El-Yaniv & Wiener, 2010).

    Returns
    -------
    DataFrame, one row for each confidence that occurs, from the highest: ``threshold``, ``coverage`` (share of photos
    at or above it), ``risk`` (share of errors among those).
    """
    # Photos of one confidence are answered together or not at all.
    each = (~frame["correct"].astype(bool)).groupby(frame["confidence"]).agg(["sum", "size"])
    wrong, answered = each.sort_index(ascending=False).cumsum().to_numpy().T
    return pd.DataFrame({"threshold": each.index[::-1], "coverage": answered / len(frame), "risk": wrong / answered})


def abstain_threshold(frame: pd.DataFrame, risk: float) -> float:
    """The lowest confidence to answer at, if at most ``risk`` of the answers may be wrong; 1.0 if none will do.

    To be taken from validation photos.
    """
    table = risk_coverage(frame)
    enough = table[table["risk"] <= risk]
    return float(enough["threshold"].iloc[-1]) if len(enough) else 1.0


def heeding(threshold: float, confidences: pd.Series) -> float:
    """A threshold, no lower, below which two thirds of the answers about pictures of no known class stay."""
    return max(threshold, float(confidences.quantile(2 / 3)))


# -------------------------------------------------------------------------------------------------- intervals


def bootstrap(
    values: np.ndarray | pd.Series,
    groups: np.ndarray | pd.Series | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A mean over photos with its 95% bootstrap percentile interval, drawn by whole groups.

    Near-duplicate photos are right or wrong together, so it is groups that are drawn with replacement, not photos
    (the cluster bootstrap; Field & Welsh, 2007).

    Parameters
    ----------
    values : one number a photo (1 for right and 0 for wrong gives the accuracy), ``[n]``.
    groups : group of each photo, ``[n]``; None where every photo stands for itself.

    Returns
    -------
    (value, low, high); NaNs for no photos. Of truth values on which all groups agree, so that all draws are alike, the
    interval is Wilson's for as many trials as there are groups.

    >>> [round(figure, 2) for figure in bootstrap([True, True, True, True])]
    [1.0, 0.51, 1.0]
    """
    values = np.asarray(values)
    proportion, values = values.dtype == bool, values.astype(float)
    if not len(values):
        return (np.nan,) * 3
    codes = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, counts = np.bincount(codes, values), np.bincount(codes).astype(float)
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    step = max(1, 2**16 // len(sums))  # as many numbers as a processor's cache holds
    for start in range(0, resamples, step):
        picks = rng.integers(0, len(sums), (min(step, resamples - start), len(sums)))
        drawn[start : start + len(picks)] = sums[picks].sum(1) / counts[picks].sum(1)
    value = float(sums.sum() / counts.sum())
    if proportion and np.ptp(sums / counts) == 0:
        wilson = binomtest(round(value * len(sums)), len(sums)).proportion_ci(0.95, method="wilson")
        return value, min(value, float(wilson.low)), max(value, float(wilson.high))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value, float(low), float(high)


def interval(values: pd.Series, groups: pd.Series) -> dict[str, float]:
    """``bootstrap`` as cells of a row: mean, low and high."""
    return dict(zip(("mean", "low", "high"), bootstrap(values, groups), strict=True))


def words(figures: Sequence[float], form: str = "{:.1%}") -> str:
    """A value, and the ends of its interval in brackets, each written as ``form`` says.

    >>> words((0.5, 0.45, 0.55))
    '50.0% (45.0% to 55.0%)'
    """
    return f"{form} ({form} to {form})".format(*figures)


def resampled(
    frame: pd.DataFrame, statistics: Callable[[np.ndarray], dict[str, float]], *, resamples: int
) -> pd.DataFrame:
    """Any figures of a frame with their 95% bootstrap percentile intervals, drawn by whole groups.

    Parameters
    ----------
    statistics : of the photos' weights (how often each was drawn), ``[n]`` -> {name: value}.

    Returns
    -------
    DataFrame indexed by the names: value, low, high.
    """
    codes = np.unique(frame["group"], return_inverse=True)[1]
    groups, rng, drawn = codes.max() + 1, np.random.default_rng(0), []
    for _ in range(resamples):
        counts = np.bincount(rng.integers(0, groups, groups), minlength=groups)
        drawn.append(statistics(counts[codes].astype(float)))
    table = pd.DataFrame({"value": statistics(np.ones(len(frame)))})
    return table.assign(low=pd.DataFrame(drawn).quantile(0.025), high=pd.DataFrame(drawn).quantile(0.975))


def detection(
    frame: pd.DataFrame, label: str, positive: str, *, threshold: float = 0.5, resamples: int = 1000
) -> pd.DataFrame:
    """How well one class of two is found: accuracy, balanced accuracy, precision, recall, F1 and AUC, with intervals.

    Parameters
    ----------
    positive : the class that is to be found.
    threshold : the probability of it from which a photo is said to show it.

    Returns
    -------
    DataFrame indexed by the figures' names: value, low, high.
    """
    truth, score = (frame[label] == positive).to_numpy(), frame[f"p_{positive}"].to_numpy()
    said = score >= threshold
    order = np.argsort(score, kind="stable")
    ties = np.unique(score[order], return_inverse=True)[1]

    def figures(weights: np.ndarray) -> dict[str, float]:
        rest, alarm, miss, hit = np.bincount(2 * truth + said, weights, 4)
        recall, specificity = (a / (a + b) if a + b else np.nan for a, b in ((hit, miss), (rest, alarm)))
        # The share of pairs in which the positive photo scores higher, ties half: the area under the ROC curve.
        positives, negatives = (np.bincount(ties, weights[order] * which[order]) for which in (truth, ~truth))
        pairs = positives.sum() * negatives.sum()
        won = (positives * (negatives.cumsum() - negatives / 2)).sum()
        return {
            "accuracy": (hit + rest) / weights.sum(),
            "balanced_accuracy": (recall + specificity) / 2,
            "precision": hit / (hit + alarm) if hit + alarm else np.nan,
            "recall": recall,
            "f1": 2 * hit / (2 * hit + miss + alarm) if hit + miss + alarm else np.nan,
            "auc": won / pairs if pairs else np.nan,
        }

    return resampled(frame, figures, resamples=resamples)


def best_threshold(frame: pd.DataFrame, label: str, positive: str) -> float:
    """The probability of ``positive`` at which F1 is highest, midway between two photos' own.

    To be taken from validation photos.
    """
    # Photos of one score are found together or not at all.
    each = (frame[label] == positive).groupby(frame[f"p_{positive}"]).agg(["sum", "size"])
    hits, found = each.sort_index(ascending=False).cumsum().to_numpy().T
    best = int(np.argmax(2 * hits / (found + hits[-1])))
    return float(np.pad(each.index[::-1], (0, 1))[best : best + 2].mean())


def by_group(frame: pd.DataFrame, column: str, value: str = "correct") -> pd.DataFrame:
    """The mean of ``value`` for each value of a column, with interval and counts.

    Returns
    -------
    DataFrame indexed by the column's values: photos, groups, mean, low, high. Missing values of the column are
    one more row, named "unknown".
    """
    rows = {}
    for name, part in frame.groupby(frame[column].astype(object).fillna("unknown"), sort=True):
        rows[name] = [len(part), part["group"].nunique(), *bootstrap(part[value], part["group"])]
    columns = ["photos", "groups", "mean", "low", "high"]  # also without a row
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis(column)


def groups(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Accuracy of each value of each column that has several, each source apart.

    Returns
    -------
    DataFrame: value, photos, groups, mean, low, high, source, column, overall (accuracy of the source).
    """
    rows = []
    for source, part in frame.groupby("source"):
        for column in (name for name in columns if part[name].nunique() > 1):
            table = by_group(part, column).rename_axis("value").reset_index()
            rows.append(table.assign(source=source, column=column, overall=part["correct"].mean()))
    columns = ["value", "photos", "groups", "mean", "low", "high", "source", "column", "overall"]  # also without a row
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)


def measured(predictions: pd.DataFrame, name: str, label: pd.Series) -> dict[tuple[str, str], pd.Series]:
    """What is measured of each answer of a head: (NAME, "acc") of a class, "mae" in years and "coverage" of an age.

    Parameters
    ----------
    predictions : NAME_predicted, and of an age NAME_low and NAME_high.
    label : the true class, or the true age as a number; rows without one are missing from every figure.
    """
    predicted = predictions[f"{name}_predicted"]
    if f"{name}_low" not in predictions:
        return {(name, "acc"): (label == predicted).astype(float).where(label.notna())}
    inside = label.between(predictions[f"{name}_low"], predictions[f"{name}_high"]).astype(float)
    return {(name, "mae"): (label - predicted).abs(), (name, "coverage"): inside.where(label.notna())}


def figures(
    frame: pd.DataFrame,
    measured: Mapping[tuple[str, str], pd.Series],
    by: Sequence[str] = (),
    *,
    differences: bool = False,
) -> pd.DataFrame:
    """Means of what was measured of each photo, a source and a group of photos at a time.

    Parameters
    ----------
    frame : with ``source`` and ``group``.
    measured : (head, metric) -> a number of each row, missing where there is no label.
    by : columns whose values are looked at apart.
    differences : whether the numbers are differences, and not truth values (1 for right) or errors in years.

    Returns
    -------
    DataFrame: head, metric, source, by, value, photos, groups, mean, low, high; ``by`` and ``value`` are "" for all
    photos of a source; low and high are bootstrapped over groups.
    """
    rows = []
    for (head, metric), values in measured.items():
        known = values.notna()
        # Shares have intervals also where all answers are right.
        kind = float if differences or metric == "mae" else bool
        table = frame[known].assign(measured=values[known].astype(kind))
        for column in ("", *(c for c in by if c in table and c != head)):
            for (source, *value), part in table.groupby(["source", column] if column else ["source"]):
                about = [head, metric, source, column, value[0] if value else "", len(part), part["group"].nunique()]
                rows.append([*about, *bootstrap(part["measured"], part["group"])])
    columns = ["head", "metric", "source", "by", "value", "photos", "groups", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def told(figures: Sequence[Mapping], absent: Mapping[str, Sequence[str]]) -> list[str]:
    """What was found on test photos, a sentence a head and source: with its interval, or that they are too few.

    Parameters
    ----------
    figures : rows of ``figures``.
    absent : head -> classes that no test photo shows.
    """
    lines = [] if figures else ["no test photos: nothing is known of how good it is"]
    for row in figures:
        if row["by"] or row["metric"] not in ("acc", "mae"):
            continue
        few, photos = row["groups"] < FEW, f"{row['photos']:,} test photos"
        form = "{:.2f}" if row["metric"] == "mae" else "{:.1%}"
        text = f"{form.format(row['mean'])} years of mean absolute error on {photos}"
        if row["metric"] == "acc":
            right = round(row["mean"] * row["photos"]) if few else form.format(row["mean"])
            text = f"{right} of {photos} right"
        line = f"{row['source']}: {row['head']}: {text}"
        reach = f"{form} to {form}".format(row["low"], row["high"])
        line += ", too few to tell how good it is" if few else f" (95% interval {reach})"
        lacking = ", ".join(absent.get(row["head"], ()))
        lines.append(line + (f"; none shows {lacking}: nothing is known of those" if lacking else ""))
    return lines


def served_worse(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The groups whose whole interval lies below the accuracy of their source, worst first.

    Returns
    -------
    DataFrame: source, column, value, photos, mean, low, high, overall (of the source).
    """
    names = ["source", "column", "value", "photos", "groups", "mean", "low", "high", "overall"]
    table = groups(frame, [name for name in columns if name in frame])[names].astype({"value": str})
    return table[table["high"] < table["overall"]].sort_values("mean", ignore_index=True)


def qualities(pixels: np.ndarray) -> pd.DataFrame:
    """What can be measured of a photo without knowing what it shows.

    Parameters
    ----------
    pixels : uint8 ``[n, size, size, 3]``.

    Returns
    -------
    DataFrame: brightness (mean luma, 0..1), contrast (its standard deviation) and sharpness (standard deviation of
    the Laplacian of the luma, in the same units).
    """
    rows = []
    for image in pixels:
        luma = image @ np.array([0.299, 0.587, 0.114]) / 255
        rows.append({"brightness": luma.mean(), "contrast": luma.std(), "sharpness": laplace(luma).std()})
    return pd.DataFrame(rows, columns=["brightness", "contrast", "sharpness"])


def quartiles(values: pd.Series, digits: int = 2) -> pd.Series:
    """Each value's quarter of all of them, named by its range."""
    cut = pd.qcut(values, 4, duplicates="drop")
    names = {i: f"{max(i.left, values.min()):.{digits}f} – {i.right:.{digits}f}" for i in cut.cat.categories}
    return cut.cat.rename_categories(names)


def confusion(frame: pd.DataFrame, label: str, classes: Sequence[str]) -> pd.DataFrame:
    """Counts of photos, true class down, predicted class across."""
    counts = confusion_matrix(frame[label], frame["predicted"], labels=list(classes))
    return pd.DataFrame(counts, pd.Index(classes, name=f"true {label}"), pd.Index(classes, name="predicted"))


# ------------------------------------------------------------------------------------ age as its users judge it


def balanced_mean(values: pd.Series, cells: pd.Series, groups: pd.Series) -> tuple[float, float, float]:
    """Mean over the means of some cells, such as sex × age group, with its bootstrap interval.

    Each cell counts alike, however many photos are in it.

    >>> balanced_mean(pd.Series([1, 1, 4]), pd.Series(["a", "a", "b"]), pd.Series([0, 1, 2]))[0]
    2.5
    """
    means = values.groupby(cells).mean()
    weights = len(values) / (len(means) * values.groupby(cells).transform("size"))
    # The statistic's influence function: its mean is the statistic, its variance that of an estimate of cell means.
    return bootstrap(means.mean() + (values - values.groupby(cells).transform("mean")) * weights, groups)


def false_adults(frame: pd.DataFrame) -> pd.DataFrame:
    """How often a check by apparent age lets 13- to 17-year-olds pass, and asks young adults for a proof of age.

    Returns
    -------
    DataFrame: limit (18: who looks 18 passes; 25: who looks 25 does, "Challenge 25"), ages, of what share, photos,
    mean, low, high.
    """
    rows = []
    for limit in (18, 25):
        for first, last, share in ((13, 17, "pass"), (18, 24, "are asked"), (25, 200, "are asked")):
            part = frame[frame["age"].between(first, last)]
            flags = part["age_predicted"] >= limit if share == "pass" else part["age_predicted"] < limit
            ages = f"{first}–{last}" if last < 200 else f"{first}+"
            about = {"limit": limit, "ages": ages, "share": share, "photos": len(part)}
            rows.append(about | interval(flags, part["group"]))
    return pd.DataFrame(rows)


def by_limit(checks: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, pd.DataFrame]]:
    """Tables of ``false_adults`` by network, as panels: title -> network -> rows of one limit, indexed in words."""
    panels: dict = {}
    for name, check in checks.items():
        for limit, part in check.groupby("limit"):
            table = part.set_index(part["ages"] + " " + part["share"])
            panels.setdefault(f"Who looks {limit} passes", {})[name] = table
    return panels


def whipple(ages: pd.Series, groups: pd.Series) -> tuple[float, float, float]:
    """Whipple's index of heaping at 23 to 62 years, with its interval: 100 for none, 500 if all end in 0 or 5."""
    adult = ages.round().between(23, 62)
    return bootstrap((ages[adult].round() % 5 == 0).astype(float) * 500, groups[adult])


def age_answers(predictions: pd.DataFrame) -> pd.DataFrame:
    """Test photos with an exact age: error (predicted less true), absolute, covered, reach of intervals, decade."""
    table = predictions[predictions["split"].eq("test") & predictions["age"].notna()].reset_index(drop=True)
    error, start = table["age_predicted"] - table["age"], (table["age"] // 10 * 10).clip(upper=80).astype(int)
    return table.assign(
        error=error,
        absolute=error.abs(),
        covered=table["age"].between(table["age_low"], table["age_high"]),
        reach=table["age_high"] - table["age_low"],
        decade=start.map(lambda first: f"{first}–{first + 9}" if first < 80 else "80+"),
    )


def age_summary(frame: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Mean absolute error (over photos, over sex × age group, at 21 to 60 years), share within 5 years, and bias."""
    middle, groups = frame[frame["age"].between(21, 60)], frame["group"]
    return {
        "MAE": bootstrap(frame["absolute"], groups),
        "MAE, balanced": balanced_mean(frame["absolute"], frame["gender"] + frame["age_group"], groups),
        "MAE, 21–60": bootstrap(middle["absolute"], middle["group"]),
        "CS@5, %": bootstrap(100.0 * (frame["absolute"] <= 5), groups),
        "bias": bootstrap(frame["error"], groups),
    }


def age_group_share(predictions: pd.DataFrame, source: str) -> tuple[float, float, float]:
    """Share of a source's test photos whose answer lies in the labelled age group, with its interval."""
    table = predictions[predictions["split"].eq("test") & (predictions["source"] == source)]
    table = table[table["age_group"].notna()]
    answered = pd.cut(table["age_predicted"], AGE_BOUNDS, right=False, labels=AGE_GROUPS)
    return bootstrap(answered.astype(object) == table["age_group"], table["group"])


def worst_bracket(frame: pd.DataFrame) -> str:
    """The contiguous ages whose absolute errors exceed the mean by most, summed over the photos, in words."""
    excess = (frame["absolute"] - frame["absolute"].mean()).groupby(frame["age"].astype(int)).sum()
    sums = excess.cumsum()
    before = sums.shift(fill_value=0.0)
    last = (sums - before.cummin()).idxmax()  # the contiguous part of the largest sum (Kadane; Bentley, 1984)
    first = before.loc[last::-1].idxmin()
    part = frame[frame["age"].between(first, last)]
    about = "{:.1f} years off ({:.1f} to {:.1f})".format(*bootstrap(part["absolute"], part["group"]))
    return f"{first} to {last} years, {about}, {len(part):,} photos"


def in_words(table: pd.DataFrame, form: str = "{:.1%}") -> list[str]:
    """``words`` of each row with mean, low and high."""
    return [words(row, form) for row in table[["mean", "low", "high"]].to_numpy()]


# ------------------------------------------------------------------------------------------------ several classes


def macro_scores(frame: pd.DataFrame, label: str, predicted: str) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over the classes that occur among the labels."""
    precision, recall, f1, _ = precision_recall_fscore_support(
        frame[label], frame[predicted], labels=sorted(frame[label].unique()), average="macro", zero_division=0
    )
    accuracy = (frame[label] == frame[predicted]).mean()
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def class_scores(frame: pd.DataFrame, label: str, predicted: str, *, resamples: int = 1000) -> pd.DataFrame:
    """Precision, recall and F1 of each class that occurs among the labels, and their unweighted means (``macro``).

    Parameters
    ----------
    label, predicted : columns of the true and the predicted class, which may be one that no label has.

    Returns
    -------
    DataFrame indexed by class, ``macro`` last: photos, precision, recall, f1, and the 95% interval of f1 (low, high),
    bootstrapped by whole groups.
    """
    classes = sorted(frame[label].unique())
    by_weights = _f1_by_weights(frame, label, predicted, classes)

    def scores(weights: np.ndarray) -> dict[str, float]:
        each = by_weights(weights)
        return dict(zip(classes, each, strict=True)) | {"macro": np.nanmean(each)}

    precision, recall, f1, photos = precision_recall_fscore_support(
        frame[label], frame[predicted], labels=classes, zero_division=0
    )
    table = pd.DataFrame({"photos": photos, "precision": precision, "recall": recall, "f1": f1}, index=classes)
    table.loc["macro"] = [len(frame), precision.mean(), recall.mean(), f1.mean()]
    drawn = resampled(frame, scores, resamples=resamples)
    return table.astype({"photos": int}).join(drawn[["low", "high"]]).rename_axis(label)


def f1_against(pair: Mapping[str, pd.DataFrame], label: str, predicted: str, *, resamples: int = 1000) -> pd.DataFrame:
    """Macro-F1 of two predictions of the same rows, and their paired difference, second less first.

    Returns
    -------
    DataFrame: value, low and high (95%, bootstrapped by whole groups) of each, and of the difference.
    """
    (first, one), (second, other) = pair.items()
    if not (one["group"].to_numpy() == other["group"].to_numpy()).all():
        raise ValueError("predictions of other rows, or in another order, cannot be compared in pairs")
    classes = sorted(one[label].unique())
    scores = [_f1_by_weights(frame, label, predicted, classes) for frame in (one, other)]

    def figures(weights: np.ndarray) -> dict[str, float]:
        a, b = (float(np.nanmean(score(weights))) for score in scores)
        return {first: a, second: b, f"{second} − {first}": b - a}

    return resampled(one, figures, resamples=resamples)


def _f1_by_weights(
    frame: pd.DataFrame, label: str, predicted: str, classes: Sequence[str]
) -> Callable[[np.ndarray], np.ndarray]:
    """Weights of rows -> F1 of each class, NaN of those without weight.

    As scikit-learn's f1_score with ``labels`` and ``sample_weight``, thirty times as fast.
    """
    # What is predicted and never true is an error like any other: code -1.
    truth, said = (pd.Index(classes).get_indexer(frame[column]) for column in (label, predicted))
    known, hit = said >= 0, truth == said

    def scores(weights: np.ndarray) -> np.ndarray:
        rows = ((truth, slice(None)), (said, known), (truth, hit))
        true, answered, found = (np.bincount(of[which], weights[which], len(classes)) for of, which in rows)
        return np.where(true > 0, 2 * found / np.maximum(true + answered, 1e-9), np.nan)

    return scores
