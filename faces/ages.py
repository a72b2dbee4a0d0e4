"""Age as something to learn: what a network's outputs mean in years, how it is trained, and how sure it may be.

A label is a range of completed years, ``[low, high]``: UTKFace and ChaLearn give one year (``low == high``),
FairFace one of nine groups such as 20-29. Every head below learns from both kinds alike.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from faces import batches, export, losses, models, recipes, training
from faces.hints import Pupil
from faces.research import data, evaluation
from faces.research.evaluation import find_max_subarray as find_max_subarray

OLDEST = 116  # years, the oldest that UTKFace labels
BINS = OLDEST + 1  # one a year, from 0
CENTRE, SCALE = 35.0, 20.0  # years; a network that answers 0 says the first, one that answers 1 the second more
SIDE_TASKS = ("gender", "race")

# ------------------------------------------------------------------------------------------------------- heads


@dataclass(frozen=True)
class Head:
    """What a network's outputs mean in years, and what it is punished for.

    outputs : how many there are.
    loss : (outputs float ``[n, outputs]``, ranges float ``[n, 2]``) -> scalar, the mean over the batch.
    decode : outputs -> ages in years, ``[n]``.
    spread : outputs -> how far the answer may be off, up to a factor, ``[n]``; years for heads that know.
    """

    outputs: int
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    spread: Callable[[torch.Tensor], torch.Tensor]


def miss(ages: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    """Years by which each age ``[n]`` lies outside its range ``[n, 2]``; the absolute error where that is one year."""
    return F.relu(ranges[:, 0] - ages) + F.relu(ages - ranges[:, 1])


def _years(outputs: torch.Tensor) -> torch.Tensor:
    return CENTRE + SCALE * outputs[:, 0]


def _unknown(outputs: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(outputs[:, 0])


def _point(punish: Callable[[torch.Tensor], torch.Tensor]) -> Head:
    def loss(outputs, ranges):
        return punish(miss(_years(outputs), ranges) / SCALE).mean()

    return Head(1, loss, _years, _unknown)


def _relu_loss(outputs: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    return miss(outputs[:, 0].relu(), ranges).square().mean()


def _bins(logits: torch.Tensor) -> torch.Tensor:
    return torch.arange(BINS, device=logits.device, dtype=logits.dtype)


def log_mass(logits: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    """Logarithm of the probability that a distribution over years gives to each range: ``[n]``."""
    years = _bins(logits)
    inside = (years >= ranges[:, :1]) & (years <= ranges[:, 1:])
    return logits.masked_fill(~inside, -torch.inf).logsumexp(1) - logits.logsumexp(1)


def expectation(logits: torch.Tensor) -> torch.Tensor:
    """Mean of a distribution over years, ``[n]``."""
    return logits.softmax(1) @ _bins(logits)


def deviation(logits: torch.Tensor) -> torch.Tensor:
    """Standard deviation of a distribution over years, ``[n]``, half a year at least."""
    likely, years = logits.softmax(1), _bins(logits)
    mean = likely @ years
    return (likely @ years.square() - mean.square()).clamp(min=0.25).sqrt()


def median(logits: torch.Tensor) -> torch.Tensor:
    """Median of a distribution over years, ``[n]``, interpolated within its year.

    The mean minimises the squared error, the median the absolute one, which is what is measured.
    """
    likely = logits.softmax(1)
    below = likely.cumsum(1) - likely
    # In the year that holds the half, the share of its probability that is still wanted.
    part = ((0.5 - below) / likely.clamp(min=1e-9)).clamp(0, 1)
    return part.sum(1) - 0.5


def _dex_loss(logits: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    return -log_mass(logits, ranges).mean()


def _dldl_loss(logits: torch.Tensor, ranges: torch.Tensor, width: float = 2.0) -> torch.Tensor:
    middle = ranges.mean(1, keepdim=True)
    bell = (-0.5 * ((_bins(logits) - middle) / width).square()).softmax(1)
    exact = ranges[:, 0] == ranges[:, 1]
    fit = torch.where(exact, -(bell * logits.log_softmax(1)).sum(1), -log_mass(logits, ranges))
    return (fit + miss(expectation(logits), ranges)).mean()


def _coral_loss(logits: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    rank = torch.arange(OLDEST, device=logits.device)
    older, younger = rank < ranges[:, :1], rank >= ranges[:, 1:]
    each = F.binary_cross_entropy_with_logits(logits, older.to(logits.dtype), reduction="none")
    # Within a range it is not known whether the person is older than a year.
    return (each * (older | younger)).sum(1).mean()


def _coral_years(logits: torch.Tensor) -> torch.Tensor:
    return (logits > 0).sum(1).to(logits.dtype)


HEADS = {
    # One number, punished by its squared, absolute or Huber-rounded distance (below 5 years squared, beyond linear).
    "mse": _point(torch.square),
    "l1": _point(torch.abs),
    "huber": _point(lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none", delta=5 / SCALE)),
    # As the earlier work had it: years themselves, cut off at 0 by a ReLU, squared error.
    "relu": Head(1, _relu_loss, lambda outputs: outputs[:, 0].relu(), _unknown),
    # A distribution over years under cross-entropy, read by its mean (DEX; Rothe et al., 2015) or its median.
    "dex": Head(BINS, _dex_loss, expectation, deviation),
    "median": Head(BINS, _dex_loss, median, deviation),
    # The same towards a bell around the label, and the mean's absolute error besides (DLDL-v2; Gao et al., 2018).
    "dldl": Head(BINS, _dldl_loss, expectation, deviation),
    # "Is this person older than k?" for every k, with one weight vector (CORAL; Cao et al., 1901.07884).
    "coral": Head(OLDEST, _coral_loss, _coral_years, _unknown),
}


def head_of(name: str) -> Head:
    """The head of that name; ValueError lists them."""
    if name not in HEADS:
        raise ValueError(f"no head {name!r}; there are {', '.join(HEADS)}")
    return HEADS[name]


class Ordinal(nn.Module):
    """CORAL's last layer: one weight vector, a threshold of its own for each output, ``[n, width] -> [n, outputs]``.

    With one direction for all, being older than 30 can never be likelier than being older than 29 once the thresholds
    have learnt their order. They start in it, as those of a logistic distribution about ``CENTRE`` with a deviation of
    ``SCALE``, so that this head sets out from the same guess as the others.
    """

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.direction = nn.Linear(width, 1, bias=False)
        self.thresholds = nn.Parameter((CENTRE - torch.arange(outputs)) * (math.pi / (3**0.5 * SCALE)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.direction(x) + self.thresholds


# ---------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Recipe(recipes.Recipe):
    """All that decides how an age regressor is trained, apart from the photos; see ``recipes.Recipe``."""

    network: str = "resnet50"  # or resnet18, mobilenet_v2
    head: str = "dldl"  # a key of HEADS
    batch_size: int = 64
    weight_decay: float = 0.05
    stage_decay: float = 0.7  # each stage's learning rate is that of the next one times this
    side_weight: float = 0.2  # of gender's and race's loss, where they are labelled; 0 for none
    smoothing: float = 0.0  # of the side tasks' labels


def ranges(manifest: pd.DataFrame) -> np.ndarray:
    """The age labels as ranges of completed years: int64 ``[n, 2]``, both ends included.

    ``age`` where it is known, else the bounds of ``age_group``.

    Raises
    ------
    ValueError : some row has neither; leave it out first.
    """
    ends = {}
    for group in data.AGE_GROUPS:
        low, _, high = group.rstrip("+").partition("-")
        ends[group] = (int(low), int(high or OLDEST))
    groups = manifest["age_group"] if "age_group" in manifest else pd.Series(None, manifest.index, dtype=object)
    found = np.array([ends.get(group, (-1, -1)) for group in groups], np.int64).reshape(len(manifest), 2)
    if "age" in manifest:
        known = manifest["age"].notna().to_numpy()
        found[known] = manifest["age"].to_numpy()[known, None].astype(float).round()
    if (found < 0).any():
        name = manifest["path"].iloc[int(np.flatnonzero(found[:, 0] < 0)[0])]
        raise ValueError(f"no age is known of {name} (and {(found[:, 0] < 0).sum() - 1} others): leave such rows out")
    return found.clip(0, OLDEST)


def settle(manifest: pd.DataFrame, most: float = 5.0) -> pd.DataFrame:
    """Give the near duplicates among the training photos one age, and leave out those whose labels contradict.

    Copies of one photo show one age. Where their labels span at most ``most`` years each gets their mean, where
    they span more nobody knows and the photos are dropped. Rows of other splits are never touched.
    """
    if "age" not in manifest:
        return manifest
    learns = (manifest["split"] == "train") & manifest["age"].notna()
    ages = manifest.loc[learns].groupby("group")["age"]
    span = (ages.transform("max") - ages.transform("min")).reindex(manifest.index, fill_value=0)
    settled = manifest.assign(age=manifest["age"].astype(float))
    settled.loc[learns, "age"] = ages.transform("mean")
    return settled[span <= most].reset_index(drop=True)


def build(recipe: Recipe, outputs: int) -> models.Finetuned:
    """The network of a recipe, for the outputs of its head and so many more for side tasks."""
    builders = {
        "resnet50": models.resnet50,
        "resnet18": models.resnet18,
        "mobilenet_v2": partial(models.mobilenet_v2, width=recipe.width),
    }
    if recipe.network not in builders:
        raise ValueError(f"no network {recipe.network!r}; there are {', '.join(builders)}")
    model = builders[recipe.network](outputs, dropout=recipe.dropout, weights=recipe.weights)
    if recipe.head == "coral":
        width, side = model.classifier.in_features, outputs - OLDEST
        parts = [Ordinal(width, OLDEST), *([nn.Linear(width, side)] if side else [])]
        model.classifier = Beside(parts)
    return model


class Beside(nn.ModuleList):
    """Modules side by side: each sees the same input, their outputs are joined."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self], 1)


def train(
    recipe: Recipe,
    manifest: pd.DataFrame,
    folder: str | os.PathLike,
    *,
    pixels: np.ndarray,
    teacher: np.ndarray | None = None,
    guide: models.Finetuned | None = None,
    precision: str = "auto",
    device: str = "auto",
    progress: bool = True,
) -> tuple[models.Finetuned, pd.DataFrame]:
    """Train an age regressor on the rows whose split is train; keep the epoch with the least error on val.

    Parameters
    ----------
    manifest : as from ``data.prepare``, every row decodable, with a known age or age group.
    folder : checkpoints and ``history.csv``; a run that was cut short goes on from there.
    pixels : the decoded images, uint8 ``[n, size, size, 3]``, in the order of the rows.
    teacher : what a network with the same head, one with a distribution over years, says of every row as it is:
        ``[n, outputs]``, NaN where it was not asked. Half of the loss is then to answer alike (Hinton et al.,
        1503.02531).
    guide : a trained network whose outputs are such a distribution. The same holds for what it says of every training
        photo as it is changed, and the maps of its stages are learnt along (see ``hints.Pupil``), which takes a deep
        network that starts from nothing a long way in few steps. Give a teacher or a guide, not both.

    Returns
    -------
    The network, whose outputs are those of the head alone; and its history with ``val_mae`` in years, counted for
    age groups from their bounds.

    Raises
    ------
    ValueError : no photo to train or to validate on, no such network or head, or one without a distribution over years
        although there is a guide.
    training.ResumeError : ``folder`` holds a run with other settings.
    """
    rows = recipes.training_rows(manifest)
    head = head_of(recipe.head)
    if guide is not None and (teacher is not None or head.outputs != BINS):
        raise ValueError("a guide takes the place of a teacher, and wants a head with a distribution over years")
    side_columns = recipes.side_columns(manifest, SIDE_TASKS if recipe.side_weight else ())
    side, side_outputs = recipes.coded(side_columns, len(manifest))
    targets = np.concatenate([ranges(manifest), side], 1).astype(np.float32)
    if teacher is not None:
        targets = np.concatenate([targets, teacher.astype(np.float32)], 1)
    feed = batches.loader(
        pixels[rows["train"]], targets[rows["train"]], recipe.batch_size, shuffle=True, seed=recipe.seed
    )
    val = batches.loader(pixels[rows["val"]], targets[rows["val"]], 256)
    torch.manual_seed(recipe.seed)
    outputs = head.outputs + sum(side_outputs)
    model = build(recipe, outputs)
    rate = recipe.learning_rate * (recipe.batch_size / 128) ** 0.5
    settings = {key: repr(value) for key, value in asdict(recipe).items()} | {"side": side_outputs}
    groups = parameter_groups(model, rate, recipe.stage_decay, recipe.weight_decay)
    learner = model
    if guide is not None:
        learner = Pupil(model, guide, recipe.size)
        groups += recipes.decayed(learner.readers.parameters(), recipe.weight_decay)
        settings |= {"guide": True}
    history = training.fit(
        learner,
        feed,
        val,
        loss=_loss(head, side_outputs, recipe),
        optimizer=torch.optim.AdamW(groups, rate),
        epochs=recipe.epochs,
        folder=folder,
        schedule=training.one_cycle(recipe.warmup),
        augment=recipe.augment,
        metrics={"mae": error_of(head)},
        monitor="val_mae",
        keep="min",  # a checkpoint of ResNet50 takes 0.4 GB
        ema=recipes.average_decay(recipe.average, recipe.epochs, len(feed)),
        seed=recipe.seed,
        device=device,
        precision=precision,
        settings=settings | {"teacher": teacher is not None},
        progress=progress,
    )
    training.rollback(learner, folder, "best", mode="min")
    return keep_head(model, head), history


def error_of(head: Head) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Absolute error in years, one number an image, as a metric for ``training.fit``."""
    return lambda outputs, targets: miss(head.decode(outputs[:, : head.outputs]), targets[:, :2])


def _loss(head: Head, side_outputs: list[int], recipe: Recipe):
    weights = [recipe.side_weight] * len(side_outputs)
    side = losses.multi_task(side_outputs, weights=weights, smoothing=recipe.smoothing) if side_outputs else None
    known, own = 2 + len(side_outputs), head.outputs + sum(side_outputs)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        mine = outputs[:, : head.outputs]
        total = head.loss(mine, targets[:, :2])
        taught = targets[:, known:]
        asked = ~taught.isnan().any(1) if taught.shape[1] else None
        if asked is not None and asked.any():
            share = asked.float().mean() / 2
            total = (1 - share) * total + share * imitation(mine[asked], taught[asked])
        guided = outputs[:, own:]  # in training beside a guide: what it says, and how far the maps are apart
        if guided.shape[1]:
            # In years, the distance of the means would drown what the maps teach.
            total = (total + imitation(mine, guided[:, :-1], unit=SCALE)) / 2 + guided[:, -1].mean()
        if side:
            total = total + side(outputs[:, head.outputs : own], targets[:, 2:known].long())
        return total

    return loss


def imitation(logits: torch.Tensor, taught: torch.Tensor, unit: float = 1.0) -> torch.Tensor:
    """How far a student's distributions over years are from its teacher's.

    Mean cross-entropy and distance of the means, the latter in units of so many years.
    """
    apart = F.cross_entropy(logits, taught.softmax(1), reduction="none")
    return (apart + (expectation(logits) - expectation(taught)).abs() / unit).mean()


def keep_head(model: models.Finetuned, head: Head) -> models.Finetuned:
    """Drop the outputs of the side tasks."""
    if isinstance(model.classifier, Beside):
        model.classifier = model.classifier[0]
        return model
    return model.keep_outputs(head.outputs)


def parameter_groups(model: models.Finetuned, rate: float, stage_decay: float, weight_decay: float) -> list[dict]:
    """Parameters for AdamW with discriminative learning rates (Howard & Ruder, 1801.06146).

    The head learns at ``rate``, the last stage of the backbone at ``rate * stage_decay``, the one before at that times
    ``stage_decay`` again, since the first layers see edges that pretraining has taught already. Weight decay pulls on
    matrices and kernels only.
    """
    stages = [list(model.classifier.parameters())]
    stages += [list(stage.parameters()) for stage in reversed(list(model.features)) if list(stage.parameters())]
    groups = []
    for depth, stage in enumerate(stages):
        parts = recipes.decayed(stage, weight_decay)
        groups += [part | {"lr": rate * stage_decay**depth} for part in parts if part["params"]]
    return groups


# -------------------------------------------------------------------------------------------------- evaluation


def answers(outputs: np.ndarray, head: Head) -> np.ndarray:
    """What a network says, from its outputs ``[n, outputs]``: float32 ``[n, 2]``, age and spread."""
    logits = torch.from_numpy(np.ascontiguousarray(outputs))
    return torch.stack([head.decode(logits), head.spread(logits)], 1).numpy()


def intervals(said: np.ndarray, width: float) -> np.ndarray:
    """Age and spread ``[n, 2]`` as what an exported regressor says: age, low, high, ``[n, 3]``, none below 0."""
    age, reach = said[:, 0], width * said[:, 1]
    return np.stack([age, age - reach, age + reach], 1).clip(0)


def predictions(manifest: pd.DataFrame, years: np.ndarray) -> pd.DataFrame:
    """The manifest's rows with what a regressor says of them.

    Parameters
    ----------
    years : age, low and high of each row's photo, float ``[n, 3]``; without intervals the age alone, ``[n]``.

    Returns
    -------
    DataFrame with, added: ``predicted``, ``error`` (predicted less true), ``absolute`` (its size); with intervals
    ``low``, ``high``, ``reach`` (the interval's length) and ``covered`` (1 where it holds the true age, else 0).
    """
    years = np.asarray(years, float).reshape(len(manifest), -1)
    frame = manifest.assign(predicted=years[:, 0])
    frame["error"] = frame["predicted"] - frame["age"].astype(float)
    frame["absolute"] = frame["error"].abs()
    if years.shape[1] > 1:
        frame["low"], frame["high"] = years[:, 1], years[:, 2]
        frame["reach"] = frame["high"] - frame["low"]
        frame["covered"] = frame["age"].between(frame["low"], frame["high"]).astype(float)
    return frame


def interval_width(said: np.ndarray, ages: np.ndarray | pd.Series, coverage: float = 0.9) -> float:
    """Half the width, in spreads, of intervals that hold the age of a new photo with probability ``coverage``.

    Split conformal prediction with normalised residuals (Papadopoulos et al., 2002): the quantile of error / spread
    with the correction for a finite number of photos. To be taken from validation photos, like the temperature of a
    classifier.

    Parameters
    ----------
    said : age and spread, ``[n, 2]``, as from ``answers``.
    ages : the true ones, ``[n]``.

    Raises
    ------
    ValueError : there are too few photos for such a coverage.
    """
    scores = np.sort(np.abs(said[:, 0] - np.asarray(ages, float)) / said[:, 1])
    rank = int(np.ceil((len(scores) + 1) * coverage))
    if not 0 < coverage < 1 or rank > len(scores):
        raise ValueError(f"{len(scores)} photos are too few for intervals of coverage {coverage}")
    return float(scores[rank - 1])


def cumulative_score(frame: pd.DataFrame, years: int = 5) -> float:
    """Share of photos whose error is at most so many years (CS@5)."""
    return float((frame["absolute"] <= years).mean())


def bucket(ages: np.ndarray | pd.Series) -> np.ndarray:
    """The age group of each age in years, as in ``data.AGE_GROUPS``; 9.7 years are nine completed ones."""
    starts = [int(group.rstrip("+").partition("-")[0]) for group in data.AGE_GROUPS]
    found = np.searchsorted(starts, np.floor(np.asarray(ages, float)), side="right") - 1
    return np.array(data.AGE_GROUPS)[found.clip(0)]


def summary(frame: pd.DataFrame, *, seed: int = 0) -> dict:
    """The figures of a predictions frame, as they go into ``metrics.json``; years, and shares of photos."""
    about: dict = {"photos": len(frame), "groups": int(frame["group"].nunique())}
    measured = {"mae": frame["absolute"], "cs5": frame["absolute"] <= 5, "bias": frame["error"]}
    if "covered" in frame:
        measured |= {"coverage": frame["covered"], "interval_years": frame["reach"]}
    for name, values in measured.items():
        value, low, high = evaluation.bootstrap(values, frame["group"], seed=seed)
        about[name] = {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
    return about


def tested(manifest: pd.DataFrame, years: np.ndarray, *, seed: int = 0) -> dict:
    """The figures of test photos for ``metrics.json``, each source apart.

    Parameters
    ----------
    manifest : the test photos, with ``age`` or ``age_group`` known.
    years : what the regressor says of each, ``[n, 3]``.

    Returns
    -------
    {"test": {source: summary}, "test_21_to_60": likewise, "test_by_<column>": {source: {value: figures}}} of photos
    whose age is known in years; {"age_group_accuracy": {source: figures}} of all that have an age group.
    """
    known = manifest["age"].notna().to_numpy()
    frame = predictions(manifest[known], years[known])
    sources = dict(list(frame.groupby("source")))
    middle = frame[frame["age"].between(21, 60)]
    about = {
        "test": {source: summary(part, seed=seed) for source, part in sources.items()},
        "test_21_to_60": {source: summary(part, seed=seed) for source, part in middle.groupby("source")},
    }
    for column in ("age_group", *SIDE_TASKS):
        by_source = {
            source: evaluation.records(evaluation.by_group(part, column, "absolute", seed=seed))
            for source, part in sources.items()
            if column in part and part[column].notna().any()
        }
        about |= {f"test_by_{column}": by_source} if by_source else {}
    grouped = manifest.assign(correct=bucket(years[:, 0]) == manifest["age_group"])[manifest["age_group"].notna()]
    about["age_group_accuracy"] = evaluation.records(evaluation.by_group(grouped, "source", seed=seed))
    return about


def excess_by_age(frame: pd.DataFrame) -> pd.Series:
    """Mean absolute error of each year of age less that of all photos, 0 for years without photos; from age 0 on."""
    by_age = frame.groupby(frame["age"].astype(int))["absolute"].mean() - frame["absolute"].mean()
    return by_age.reindex(range(int(frame["age"].max()) + 1), fill_value=0.0)


def load(folder: str | os.PathLike, recipe: Recipe) -> models.Finetuned:
    """The network of a recipe with the weights of a folder that ``models.save_weights`` wrote.

    Raises
    ------
    models.WeightsError : the folder holds no weights of that network and head.
    """
    path, head = Path(folder) / "weights.safetensors", head_of(recipe.head)
    model = keep_head(build(replace(recipe, weights="random"), head.outputs), head)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise models.WeightsError(f"{path} holds no {recipe.network} with the head {recipe.head}: {error}") from error
    return model.eval()


# ------------------------------------------------------------------------------------------------------ export


def publish(
    model: models.Finetuned,
    recipe: Recipe,
    folder: str | os.PathLike,
    *,
    manifest: pd.DataFrame,
    pixels: np.ndarray,
    history: pd.DataFrame,
    metrics: dict,
    coverage: float = 0.9,
    precision: str = "fp32",
) -> tuple[Path, dict]:
    """Fit a regressor's intervals, test it, and export it as a model folder.

    The intervals' width comes from the validation photos with an age in years; every figure is of the test photos.

    Parameters
    ----------
    manifest, pixels : as for ``train``, with the test photos.
    metrics : further entries of ``metrics.json``.
    precision : of the predictions that are tested here (see ``training.predict``); the export is always fp32.

    Returns
    -------
    The folder, and what its ``metrics.json`` says.
    """
    head, said = head_of(recipe.head), {}
    members = {split: np.flatnonzero(manifest["split"] == split) for split in ("val", "test")}
    members["val"] = members["val"][manifest["age"].iloc[members["val"]].notna()]
    for split, rows in members.items():
        feed = batches.loader(pixels[rows], np.zeros(len(rows)), 256)
        said[split] = answers(training.predict(model, feed, precision=precision), head)
    width = interval_width(said["val"], manifest["age"].iloc[members["val"]], coverage)
    figures = {
        "model": Path(folder).name,
        "weights": models.parameter_count(model),
        "recipe": recipes.described(recipe),
        "intervals": {"coverage": coverage, "width": round(width, 4)},
        **tested(manifest.iloc[members["test"]].reset_index(drop=True), intervals(said["test"], width)),
        **metrics,
    }
    sample = np.concatenate(list(members.values()))
    where = export.export_age(
        model,
        folder,
        decode=head.decode,
        spread=head.spread,
        width=width,
        coverage=coverage,
        size=pixels.shape[1],
        pixels=pixels[sample[:: max(1, len(sample) // 200)]],
        metrics=figures,
        history=history,
        card=card_of(figures, manifest, pixels.shape[1]),
    )
    return where, figures


def card_of(figures: dict, manifest: pd.DataFrame, size: int) -> str:
    """The model card of a regressor that was trained on the manifest's training photos."""
    share = figures["intervals"]["coverage"]
    return export.model_card(
        figures["model"],
        task=f"age in years, with an interval to hold {share:.0%} of ages, from a {size}×{size} crop of one face",
        sources=sorted(manifest.loc[manifest["split"] == "train", "source"].unique()),
        metrics=figures,
        failures=["faces", "age"],
    )
