"""What a network learns and how its outputs are read: a class label (``Classes``) or an age (``Years``).

A head is a frozen dataclass of plain data: ``asdict(head)`` is what checkpoints, results and the metadata of exported
networks hold, and ``from_dict`` reads it back. Both kinds have the same methods:

===============  ==================================================================================================
``layer``        width of the features -> the last layer
``targets``      rows of a manifest -> float32 ``[n, k]``, NaN where the label is unknown
``loss``         (outputs, targets) of rows whose label is known -> ``[n]``
``imitation``    (outputs, outputs of a teacher) -> ``[n]``
``score``        (outputs, targets) -> ``[n]``, the ``metric`` of each row
``calibrate``    (outputs, targets) of validation rows -> what ``answer`` is fitted with
``answer``       (outputs, fitted) -> probabilities ``[n, classes]``, or age, low and high in years ``[n, 3]``
``frame``        answers as columns of a table
===============  ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from faces.research import evaluation, years
from faces.research.data import COMMON_RACES


@dataclass(frozen=True)
class Classes:
    """A class label: one logit a class, softmax, cross-entropy.

    Parameters
    ----------
    name : column of the manifest.
    classes : in the order of the outputs.
    weight : of its loss in the sum over the heads.
    gamma : above 0 the loss is the focal loss (Lin et al., 1708.02002): the cross-entropy of each row times
        ``(1 - p) ** gamma``, where p is the probability of the true class.
    smoothing : label smoothing.
    class_weights : one a class; the loss is then a weighted mean.
    """

    name: str
    classes: tuple[str, ...]
    weight: float = 1.0
    gamma: float = 0.0
    smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    metric: ClassVar[str] = "acc"
    best: ClassVar[str] = "max"

    def layer(self, width: int) -> nn.Module:
        return nn.Linear(width, len(self.classes))

    def targets(self, rows: pd.DataFrame) -> np.ndarray:
        codes = pd.Categorical(column(rows, self.name), categories=list(self.classes)).codes
        return np.where(codes < 0, np.nan, codes).astype(np.float32)[:, None]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        target = targets[:, 0].long()
        each = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.smoothing)
        if self.gamma:
            each = (1 - logits.softmax(1).gather(1, target[:, None])[:, 0]) ** self.gamma * each
        return each

    def row_weights(self, targets: Tensor) -> Tensor:
        """Weight of each row in the mean of the loss, ``[n]``."""
        if self.class_weights is None:
            return torch.ones_like(targets[:, 0])
        return targets.new_tensor(self.class_weights)[targets[:, 0].long()]

    def imitation(self, logits: Tensor, teacher: Tensor, *, guided: bool = False) -> Tensor:
        return F.cross_entropy(logits, teacher.softmax(1), reduction="none")

    def contradicts(self, teacher: Tensor, targets: Tensor) -> Tensor:
        """Whether a teacher's answer differs from a known label, bool ``[n]``."""
        return teacher.argmax(1) != targets[:, 0]

    def score(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.argmax(1) == targets[:, 0]).to(logits.dtype)

    def answer(self, logits: Tensor, fitted: Mapping) -> Tensor:
        return _scaled(logits, fitted).softmax(1)

    def calibrate(self, logits: np.ndarray, targets: np.ndarray, *, risk: float = 0.02, folds: int = 5) -> dict:
        """Fit scale, shift and abstain threshold on validation rows.

        Parameters
        ----------
        logits, targets : float arrays ``[n, classes]``, ``[n, 1]``; rows without a label are left out.
        risk : share of the answers above ``abstain_below`` that may be wrong.

        Returns
        -------
        dict: of ``scale``, ``shift`` (logits times the first plus the second) those that lower the cross-validated
        negative log-likelihood, and ``abstain_below``: the confidence below which the model abstains.
        """
        known = ~np.isnan(targets[:, 0])
        x, y = torch.from_numpy(logits[known]).double(), torch.from_numpy(targets[known, 0]).long()
        fold = torch.arange(len(y)) % folds
        found: dict = {}
        best = float(F.cross_entropy(x, y)) - 1e-9
        for parts in (("scale",), ("scale", "shift")):
            losses = [
                float(F.cross_entropy(_scaled(x[fold == k], _fit(x[fold != k], y[fold != k], parts)), y[fold == k]))
                for k in range(folds)
            ]
            if np.mean(losses) < best:
                best, found = float(np.mean(losses)), _fit(x, y, parts)
        likely = _scaled(x, found).softmax(1)
        confidence, right = likely.max(1).values.numpy(), (likely.argmax(1) == y).numpy()
        threshold = evaluation.abstain_threshold(pd.DataFrame({"confidence": confidence, "correct": right}), risk)
        return found | {"abstain_below": round(threshold, 4)}

    def frame(self, answers: np.ndarray) -> pd.DataFrame:
        """Probabilities ``[n, classes]`` as columns: NAME_p_CLASS, NAME_predicted, NAME_confidence."""
        table = {f"{self.name}_p_{label}": answers[:, number] for number, label in enumerate(self.classes)}
        predicted = np.array(self.classes, object)[answers.argmax(1)]
        return pd.DataFrame(table | {f"{self.name}_predicted": predicted, f"{self.name}_confidence": answers.max(1)})


def _scaled(logits: Tensor, fitted: Mapping) -> Tensor:
    return logits * fitted.get("scale", 1.0) + logits.new_tensor(fitted.get("shift", [0.0]))


def _fit(logits: Tensor, targets: Tensor, parts: Sequence[str]) -> dict:
    """Scale and shift of least cross-entropy, the first shift being 0."""

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        given = torch.from_numpy(values).requires_grad_()
        value = F.cross_entropy(logits * given[0].exp() + F.pad(given[1:], (1, 0)), targets)
        (gradient,) = torch.autograd.grad(value, given)
        return value.item(), gradient.numpy() * mask

    mask = np.array([1.0] + [float("shift" in parts)] * (logits.shape[1] - 1))
    log_scale, *shift = minimize(loss, 0 * mask, jac=True, method="L-BFGS-B").x.tolist()
    found: dict = {"scale": round(float(np.exp(log_scale)), 4)}
    return found | ({"shift": [0.0, *(round(value, 4) for value in shift)]} if "shift" in parts else {})


@dataclass(frozen=True)
class Years:
    """An age, learnt from exact ages and from age groups alike.

    Parameters
    ----------
    kind : a key of ``years.KINDS``.
    weight : of its loss in the sum over the heads.
    spread : standard deviation, in years, over which an exact label is spread; kinds with a distribution alone.
    """

    name: str = "age"
    kind: str = "dldl"
    weight: float = 1.0
    spread: float = 2.0
    metric: ClassVar[str] = "mae"
    best: ClassVar[str] = "min"

    def __post_init__(self):
        if self.kind not in years.KINDS:
            raise ValueError(f"no kind of age {self.kind!r}; there are {', '.join(years.KINDS)}")

    def layer(self, width: int) -> nn.Module:
        return years.KINDS[self.kind].layer(width)

    def targets(self, rows: pd.DataFrame) -> np.ndarray:
        return years.ranges(rows)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return years.KINDS[self.kind].loss(outputs, targets, self.spread)

    def row_weights(self, targets: Tensor) -> Tensor:
        return torch.ones_like(targets[:, 0])

    def imitation(self, outputs: Tensor, teacher: Tensor, *, guided: bool = False) -> Tensor:
        if not years.is_distribution(self.kind):
            return (self.read(outputs) - self.read(teacher)).abs() / years.SCALE
        apart = F.cross_entropy(outputs, teacher.softmax(1), reduction="none")
        # Beside a guide, the distance of the means in single years would drown what its maps teach.
        return apart + (years.mean(outputs) - years.mean(teacher)).abs() / (years.SCALE if guided else 1.0)

    def contradicts(self, teacher: Tensor, targets: Tensor, by: float = 10.0) -> Tensor:
        """Whether a teacher's answer lies more than so many years outside the label, bool ``[n]``."""
        return years.distance(self.read(teacher), targets) > by

    def read(self, outputs: Tensor) -> Tensor:
        """Ages in years, ``[n]``."""
        return years.KINDS[self.kind].read(outputs)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return years.distance(self.read(outputs), targets)

    def answer(self, outputs: Tensor, fitted: Mapping) -> Tensor:
        age = self.read(outputs)
        centre, below, above = self._reach(outputs, fitted.get("temperature"))
        width = fitted.get("width", 0.0)
        low, high = torch.minimum(age, centre - width * below), torch.maximum(age, centre + width * above)
        return torch.stack([age, low, high], 1).clamp(min=0)

    def _reach(self, outputs: Tensor, temperature: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """The centre of the interval, and how far it reaches down and up before it is scaled, in years ``[n]``."""
        if temperature is None:
            reach = years.KINDS[self.kind].deviation(outputs)
            return self.read(outputs), reach, reach
        low, centre, high = (years.quantile(outputs / temperature, share) for share in (0.05, 0.5, 0.95))
        return centre, (centre - low).clamp(min=0.5), (high - centre).clamp(min=0.5)

    def calibrate(self, outputs: np.ndarray, targets: np.ndarray, *, coverage: float = 0.9) -> dict:
        """Fit the intervals on validation rows with an exact age.

        Conformalised quantiles (Romano et al., 1905.03222) of a distribution, scaled about its median; which
        temperature flattens it first is what makes the decades of age most evenly covered. Of other kinds, split
        conformal prediction with one width for all (Papadopoulos et al., 2002).

        Returns
        -------
        dict: ``width``, the factor on the interval, ``temperature`` of a distribution, and ``coverage``, the share of
        ages that the intervals are to hold; empty where the rows are too few.
        """
        exact = targets[:, 0] == targets[:, 1]  # False for NaN
        logits, age = torch.from_numpy(outputs[exact]), torch.from_numpy(targets[exact, 0])
        rank, tried = int(np.ceil((len(age) + 1) * coverage)), []
        if rank > len(age):
            return {}
        for temperature in (1.0, 1.25, 1.5, 1.75, 2.0) if years.is_distribution(self.kind) else (None,):
            centre, below, above = self._reach(logits, temperature)
            scores = torch.where(age < centre, (centre - age) / below, (age - centre) / above)
            width = float(scores.sort().values[rank - 1])
            held = pd.Series((scores <= width).numpy()).groupby((age // 10).numpy()).agg(["mean", "size"])
            apart = (held["mean"] - coverage).abs().where(held["size"] >= 50)
            tried.append((apart.mean(), {"temperature": temperature} if temperature else {}, width))
        _, about, width = min(tried, key=lambda one: np.nan_to_num(one[0]))
        return about | {"width": round(width, 4), "coverage": coverage}

    def frame(self, answers: np.ndarray) -> pd.DataFrame:
        """Age, low and high ``[n, 3]`` as columns: NAME_predicted, NAME_low, NAME_high."""
        return pd.DataFrame(answers, columns=[f"{self.name}_{part}" for part in ("predicted", "low", "high")])


Head = Classes | Years


def from_dict(about: Mapping) -> Head:
    """The head that ``asdict`` made this of.

    >>> from dataclasses import asdict
    >>> from_dict(asdict(Classes("gender", ("female", "male")))).classes
    ('female', 'male')
    """
    kind = Classes if "classes" in about else Years
    known = {field.name for field in fields(kind)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items() if k in known}
    return kind(**values)


def column(rows: pd.DataFrame, name: str) -> pd.Series:
    """The labels of a column, missing ones as None; races in the words that all sources share."""
    if name not in rows:
        return pd.Series(None, rows.index, dtype=object)
    values = rows[name].astype(object).where(rows[name].notna(), None)
    return values.map(lambda race: COMMON_RACES.get(race, race)) if name == "race" else values


def of(recipe, manifest: pd.DataFrame) -> list[Head]:
    """The heads of a recipe: the columns that it learns, then those that it learns along.

    Raises
    ------
    ValueError : a column to learn has fewer than two classes, or a name that no part of a network can have.
    """
    found: list[Head] = []
    if wrong := [name for name in recipe.learn if "." in name or hasattr(nn.ModuleDict, name)]:
        raise ValueError(f"no head of a network can be called {wrong[0]!r}: give that column another name")
    for name, weight in {**recipe.learn, **{k: w for k, w in recipe.along.items() if k not in recipe.learn}}.items():
        if name == "age":
            if not np.isnan(years.ranges(manifest)).all():
                found.append(Years(name, recipe.age_loss, weight, recipe.age_spread))
            elif name in recipe.learn:
                raise ValueError("no age to learn: the photos have neither a column age nor age_group")
            continue
        labels = column(manifest, name).dropna()
        classes = tuple(sorted(labels.unique()))
        if len(classes) > 1:
            weights = balanced(labels[manifest["split"] == "train"], classes) if name in recipe.balance else None
            found.append(Classes(name, classes, weight, recipe.gamma, recipe.smoothing, weights))
        elif name in recipe.learn:
            raise ValueError(f"column {name!r} needs two classes; it has {', '.join(classes) or 'none'}")
    return found


def balanced(labels: Sequence[str] | pd.Series, classes: Sequence[str]) -> tuple[float, ...]:
    """Class weights inverse to the frequency of each class, 1 on average over the rows; 0 for absent classes.

    >>> balanced(["a", "a", "a", "b"], ["a", "b", "c"])
    (0.6666666666666666, 2.0, 0.0)
    """
    counts = pd.Series(labels).value_counts().reindex(list(classes), fill_value=0)
    present = (counts > 0).sum()
    return tuple(float(counts.sum() / (present * count)) if count else 0.0 for count in counts)


def total_loss(
    heads: Sequence[Head], outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], *, distill: float = 0.5
) -> Tensor:
    """Weighted sum of the heads' losses, each the mean over the rows that it has a label or a teacher's answer of.

    Parameters
    ----------
    outputs : ``{head: [n, k]}``; keys that end in ``/penalty`` are added as they are, ``{head}/teacher`` are those of a
        guide (see ``networks.HintedStudent``).
    targets : ``{head: [n, k]}``, NaN where unknown, and optionally ``{head}/teacher``: a teacher's outputs, NaN
        likewise.
    distill : share of the teacher in the loss of a row that has a label too.
    """
    total = sum((value.mean() for key, value in outputs.items() if key.endswith("/penalty")), torch.zeros(()))
    for head in heads:
        output, target = outputs[head.name], targets[head.name]
        guided = f"{head.name}/teacher" in outputs
        teacher = (outputs if guided else targets).get(f"{head.name}/teacher")
        known = ~target.isnan().any(1)
        each, weights = output.new_zeros(len(output)), output.new_zeros(len(output))
        each[known] = head.loss(output[known], target[known])
        weights[known] = head.row_weights(target[known])
        if teacher is not None:
            taught = ~teacher.isnan().any(1)
            share = torch.where(known[taught], distill, 1.0)
            alike = head.imitation(output[taught], teacher[taught], guided=guided)
            each[taught] = (1 - share) * each[taught] + share * alike
            weights[taught & ~known] = 1.0
        total = total + head.weight * (each * weights).sum() / weights.sum().clamp(min=1e-9)
    return total
