"""A recipe and a manifest become a trained network on disk; every task goes this way.

>>> recipe = Recipe(learn={"gender": 1.0}, backbone="small_resnet", weights="random", size=64)
>>> recipe.learning_rate
0.001
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file

from faces import trust
from faces.export import TERMS, versions
from faces.files import write_json
from faces.images import ImageError
from faces.research import augment, batches, cards, data, evaluation, export, heads, networks, training, years
from faces.research.batches import CACHE, Batches

FORBID = ConfigDict(extra="forbid")
ABOUT = "model.json"  # what the weights of a run are of


class SettingsError(ValueError):
    """A settings file has an unknown key, a value of the wrong type or an impossible one."""


@dataclass(frozen=True, config=FORBID)
class Augment(augment.Augment):
    __doc__ = augment.Augment.__doc__


@dataclass(frozen=True, config=FORBID)
class Recipe:
    """Everything that decides a training apart from the photos; the keys of a settings file.

    Parameters
    ----------
    learn, along : mapping of str to float
        Columns of the manifest -> weight of their loss. Those of ``learn`` are answered by the published network;
        those of ``along`` are only learnt with them, where the manifest has them. ``age`` is an age in years, also from
        ``age_group``; any other column a class label.
    backbone, options : str, mapping
        A key of ``backbones.BACKBONES`` or ``timm:NAME``, and its arguments.
    size, whole : int, bool
        Side of the images in pixels; all of each picture between black edges instead of its central square.
    weights : str
        Where the backbone starts: imagenet, random, a folder or a file of weights. In a later stage: what the stage
        before has learnt.
    frozen : bool
        Train the heads alone.
    optimizer, learning_rate, weight_decay : str, float, float
        The learning rate is that of the heads; stages of the backbone have it times ``stage_decay``, once more towards
        the input each.
    schedule, warmup : str, float
        ``warmup`` is the share of the run in which the learning rate rises.
    gamma, smoothing, balance : float, float, tuple of str
        Of class labels: focal loss, label smoothing, and the columns whose classes are weighted by rarity.
    age_loss, age_spread : str, float
        A key of ``years.KINDS``, and the standard deviation in years over which an exact age is spread.
    augment : Augment or None
    guide : str
        Folder of a trained network that is asked about every augmented image and whose maps are learnt along (see
        ``networks.HintedStudent``).
    teachers, distill : tuple of str, float
        Folders of trained networks whose averaged outputs are learnt along, and their share where there is a label.
    average : float
        Share of the run that the moving average of the weights looks back over; 0 for none.
    mirror : bool
        Answer with the average over the image and its mirror image.
    seed : int
        Of the initial weights, the order of the photos and all other randomness.
    """

    learn: dict[str, float] = Field(default_factory=lambda: {"gender": 1.0}, min_length=1)
    along: dict[str, float] = Field(default_factory=lambda: {"age_group": 0.3, "race": 0.3})
    backbone: str = "mobilenet_v2"
    options: dict = Field(default_factory=dict)
    size: int = Field(96, ge=32)
    whole: bool = False
    weights: str = "imagenet"
    frozen: bool = False
    dropout: float = Field(0.2, ge=0, lt=1)
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    stage_decay: float = Field(1.0, gt=0, le=1)
    schedule: Literal["one_cycle", "constant", "linear_warmup"] = "one_cycle"
    warmup: float = Field(0.2, ge=0, lt=1)
    gamma: float = Field(0.0, ge=0)
    smoothing: float = Field(0.05, ge=0, lt=1)
    balance: tuple[str, ...] = ()
    age_loss: str = "dldl"
    age_spread: float = Field(2.0, ge=0)
    augment: Augment | None = Field(
        default_factory=lambda: Augment(
            rotate=15, shift=0.08, zoom=(0.6, 1.3), brightness=0.25, contrast=0.25, grey=0.1, coarse=0.15
        )
    )
    teachers: tuple[str, ...] = ()
    guide: str = ""
    distill: float = Field(0.5, ge=0, le=1)
    average: float = Field(0.05, ge=0, lt=1)
    mirror: bool = False
    seed: int = Field(0, ge=0)


OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": lambda groups, rate: torch.optim.SGD(groups, rate, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
}


def train(
    recipe: Recipe | Sequence[Recipe],
    manifest: pd.DataFrame,
    folder: str | os.PathLike,
    *,
    cache: str | os.PathLike = CACHE,
    device: str = "auto",
    precision: str = "auto",
    keep: str = "all",
    progress: bool = True,
) -> tuple[networks.Network, pd.DataFrame]:
    """Train on the rows whose split is train; keep the epoch that is best on val.

    With one column in ``learn`` the best epoch is that of its metric, with several that of the least summed loss. A run
    that was interrupted goes on, also in the middle of an epoch.

    Parameters
    ----------
    recipe : Recipe or sequence of Recipe
        Several are stages: each starts from every tensor of the stage before whose name and shape fit.
    manifest : DataFrame
        As from ``data.prepare``, every row decodable; labels may be missing.
    folder : path
        Of the run: checkpoints, ``history.csv``, and in the end ``weights.safetensors`` and ``model.json``.
    cache : path, default "runs/cache"
        Of decoded pixels.
    keep : {"all", "best"}
        The epochs whose weights stay on disk.

    Returns
    -------
    network : Network
        With the heads of ``learn`` and ``along``.
    history : DataFrame
        One row an epoch; ``stage`` counts the stages from 1.

    Raises
    ------
    ValueError
        A column cannot be learnt, or there are no rows to train or to validate on.
    training.ResumeError
        The folder holds a run with another recipe, other photos or other labels.
    """
    stages = [recipe] if isinstance(recipe, Recipe) else list(recipe)
    folder, histories, network = Path(folder), [], None
    for number, stage in enumerate(stages, 1):
        place = folder if len(stages) == 1 else folder / f"stage-{number}"
        if network is not None:
            stage = replace(stage, weights=str(folder / f"stage-{number - 1}"))
        network, history = _stage(stage, manifest, place, cache, device, precision, keep, progress)
        histories.append(history.assign(stage=number))
    history = pd.concat(histories, ignore_index=True).assign(epoch=lambda table: range(1, len(table) + 1))
    if len(stages) > 1:
        for name in ("weights.safetensors", ABOUT):
            shutil.copyfile(folder / f"stage-{len(stages)}" / name, folder / name)
        history.to_csv(folder / "history.csv", index=False)
    return network, history


def _stage(recipe, manifest, folder, cache, device, precision, keep, progress):
    manifest = manifest[manifest["split"].isin(["train", "val"])].reset_index(drop=True)
    rows = {side: np.flatnonzero(manifest["split"] == side) for side in ("train", "val")}
    for side, members in rows.items():
        if not len(members):
            raise ValueError(f"no {side} images: {len(manifest)} images are too few to split, or all near duplicates")
    found = heads.of(recipe, manifest)
    targets = {head.name: head.targets(manifest) for head in found}
    learnt = np.any([~np.isnan(values).any(1) for values in targets.values()], axis=0) | bool(recipe.teachers)
    rows["train"] = rows["train"][learnt[rows["train"]]]
    identity = {"recipe": json.loads(json.dumps(asdict(recipe))), "data": content(manifest, targets)}
    pixels = batches.decode(manifest, recipe.size, whole=recipe.whole, cache=cache)
    for teacher in filter(None, (*recipe.teachers, recipe.guide)):
        identity[f"teacher {teacher}"] = _file_hash(Path(teacher) / "weights.safetensors")
    if recipe.teachers:
        targets |= taught(recipe, found, manifest, targets, cache=cache, device=device)
    torch.manual_seed(recipe.seed)
    network = networks.build(
        recipe.backbone,
        found,
        size=recipe.size,
        options=recipe.options,
        weights=recipe.weights,
        dropout=recipe.dropout,
        mirror=recipe.mirror,
        frozen=recipe.frozen,
    )
    feed = Batches(pixels, targets, recipe.batch_size, rows=rows["train"], shuffle=True, seed=recipe.seed)
    val = Batches(pixels, {head.name: targets[head.name] for head in found}, 256, rows=rows["val"])
    groups = networks.parameter_groups(network, recipe.learning_rate, recipe.stage_decay, recipe.weight_decay)
    learner: torch.nn.Module = network
    if recipe.guide:
        learner = networks.HintedStudent(network, load(recipe.guide)[0], recipe.size)
        groups.append({"params": list(learner.readers.parameters()), "weight_decay": recipe.weight_decay})
    schedules = {
        "one_cycle": training.one_cycle(recipe.warmup),
        "constant": training.constant,
        "linear_warmup": training.linear_warmup(recipe.warmup),
    }
    monitor, best = monitored(recipe, found)
    history = training.fit(
        learner,
        found,
        feed,
        val,
        optimizer=OPTIMIZERS[recipe.optimizer](groups, recipe.learning_rate),
        epochs=recipe.epochs,
        folder=folder,
        schedule=schedules[recipe.schedule],
        augment=recipe.augment,
        distill=recipe.distill,
        monitor=monitor,
        best=best,
        keep=keep,
        ema=average_decay(recipe.average, recipe.epochs, len(feed)),
        seed=recipe.seed,
        device=device,
        precision=precision,
        identity=identity,
        upgrade=with_defaults,
        progress=progress,
    )
    outputs = training.predict(network, val, device=device)
    fitted = {
        head.name: head.calibrate(outputs[head.name], val.targets[head.name][rows["val"]])
        for head in found
        if not np.isnan(val.targets[head.name][rows["val"]]).all()
    }
    training.write_safetensors(network.state_dict(), folder / "weights.safetensors")
    write_json(folder / ABOUT, {"recipe": asdict(recipe), "heads": [asdict(h) for h in found], "fitted": fitted})
    return network, history


def monitored(recipe: Recipe, found: Sequence[heads.Head]) -> tuple[str, str]:
    """The column of the history by which the best epoch is chosen, and whether its "min" or "max" is best."""
    if len(recipe.learn) == 1:
        head = found[0]
        return f"val_{head.name}_{head.metric}", head.best
    return "val_loss", "min"


def average_decay(share: float, epochs: int, steps: int) -> float | None:
    """Decay of a moving average of the weights over a share of a run; None for none."""
    back = share * epochs * steps
    return 1 - 1 / back if back > 1 else None


def content(manifest: pd.DataFrame, targets: Mapping[str, np.ndarray]) -> str:
    """A hash of the photos, their sides and their labels, in order: what a run was trained on."""
    digest = hashlib.sha256("\n".join(batches.contents(manifest)).encode())
    digest.update("\n".join(manifest["split"]).encode())
    for name, values in sorted(targets.items()):
        digest.update(name.encode() + np.ascontiguousarray(values, np.float32).tobytes())
    return digest.hexdigest()[:16]


def with_defaults(identity: dict) -> dict:
    """The identity of a run with every field that recipes have gained since at its default."""
    return identity | {"recipe": json.loads(json.dumps(asdict(Recipe(**identity["recipe"]))))}


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def taught(
    recipe: Recipe,
    found: Sequence[heads.Head],
    manifest: pd.DataFrame,
    targets: Mapping[str, np.ndarray],
    **options,
) -> dict[str, np.ndarray]:
    """Averaged outputs of a recipe's teachers, ``{head}/teacher``; NaN where they contradict a label."""
    sums: dict[str, list[np.ndarray]] = {}
    for folder in recipe.teachers:
        for name, outputs in outputs_of(folder, manifest, **options).items():
            sums.setdefault(name, []).append(outputs)
    answers = {}
    for head in found:
        if head.name not in sums:
            continue
        # Means of log-probabilities: logits of different networks have no common offset.
        each = [torch.from_numpy(outputs) for outputs in sums[head.name]]
        mean = torch.stack([o.log_softmax(1) if o.shape[1] > 1 else o for o in each]).mean(0)
        target = torch.from_numpy(targets[head.name])
        known = ~target.isnan().any(1)
        wrong = torch.zeros(len(mean), dtype=torch.bool)
        wrong[known] = head.contradicts(mean[known], target[known])
        mean[wrong] = torch.nan
        answers[f"{head.name}/teacher"] = mean.numpy()
    return answers


# -------------------------------------------------------------------------------------------------- trained networks


def load(folder: str | os.PathLike) -> tuple[networks.Network, Recipe, list[heads.Head], dict[str, dict]]:
    """The network of a finished run, its recipe, its heads, and what was fitted of each on validation rows.

    Raises
    ------
    networks.WeightsError
        The folder holds no trained network.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        recipe, found = Recipe(**about["recipe"]), [heads.from_dict(head) for head in about["heads"]]
        network = networks.build(recipe.backbone, found, size=recipe.size, options=recipe.options, mirror=recipe.mirror)
        network.load_state_dict(load_file(folder / "weights.safetensors"))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise networks.WeightsError(f"no trained network in {folder}: {error}") from error
    return network.eval(), recipe, found, about["fitted"]


def outputs_of(
    folder: str | os.PathLike, manifest: pd.DataFrame, *, cache: str | os.PathLike = CACHE, device: str = "auto"
) -> dict[str, np.ndarray]:
    """Outputs of a trained network for every row: ``{head: float32 [n, k]}``."""
    network, recipe, _, _ = load(folder)
    pixels = batches.decode(manifest, recipe.size, whole=recipe.whole, cache=cache)
    return training.predict(network, Batches(pixels, {}, 256), device=device)


def predict(folder: str | os.PathLike, manifest: pd.DataFrame, **options) -> pd.DataFrame:
    """The manifest's rows with the calibrated answers of a finished run; see ``frame`` of each head.

    Parameters
    ----------
    options : ``cache`` and ``device``, as for ``train``.
    """
    _, recipe, found, fitted = load(folder)
    outputs = outputs_of(folder, manifest, **options)
    tables = []
    for head in found:
        if head.name in recipe.learn:
            answers = head.answer(torch.from_numpy(outputs[head.name]), fitted.get(head.name, {}))
            tables.append(head.frame(answers.numpy()).set_axis(manifest.index))
    return pd.concat([manifest, *tables], axis=1)


def evaluate(
    predictions: pd.DataFrame, found: Sequence[heads.Head], by: Sequence[str] = ("gender", "age_group", "race")
) -> pd.DataFrame:
    """Figures of predictions with bootstrap intervals over groups of near duplicates.

    Parameters
    ----------
    predictions : DataFrame
        As from ``predict``, with ``source`` and ``group``.

    Returns
    -------
    DataFrame
        As from ``evaluation.figures``. Ages are counted where the label is an exact one.
    """
    measured = {}
    for head in found:
        is_class = isinstance(head, heads.Classes)
        label = heads.column(predictions, head.name) if is_class else predictions[head.name].astype(float)
        values_of = evaluation.measured(predictions, head.name, label)
        measured |= {(head.name, metric): values for metric, values in values_of.items()}
    return evaluation.figures(predictions, measured, by)


def run(
    manifest: pd.DataFrame, *, recipe: Recipe | Sequence[Recipe], folder: str | os.PathLike | None = None, **options
) -> dict[str, pd.DataFrame]:
    """Train, or take up a run, and return its tables; a step of a notebook.

    Parameters
    ----------
    folder : path, optional
        Of the run; default one under ``runs`` that is named after recipe and labels.
    options : as for ``train``.

    Returns
    -------
    dict
        "history", and "predictions" of the val and test rows.
    """
    if folder is None:
        stages = [recipe] if isinstance(recipe, Recipe) else list(recipe)
        text = json.dumps([asdict(stage) for stage in stages]) + data.fingerprint(manifest)
        folder = Path("runs") / "experiments" / hashlib.sha256(text.encode()).hexdigest()[:12]
    _, history = train(recipe, manifest, folder, **options)
    asked = manifest[manifest["split"].isin(["val", "test"])].reset_index(drop=True)
    few = {key: value for key, value in options.items() if key in ("cache", "device")}
    return {"history": history, "predictions": predict(folder, asked, **few)}


def run_after(
    manifest: pd.DataFrame,
    before: pd.DataFrame,
    *,
    recipe: Recipe,
    weights: str | os.PathLike = "",
    guide: str | os.PathLike = "",
    **options,
) -> dict[str, pd.DataFrame]:
    """``run`` from the weights or beside the guide that an earlier step has written.

    ``before``, that step's history, is an input so that a new one makes this step stale.
    """
    recipe = replace(recipe, weights=str(weights or recipe.weights), guide=str(guide or recipe.guide))
    return run(manifest, recipe=recipe, **options)


def compare_ages(
    manifest: pd.DataFrame,
    *,
    recipes: Mapping[str, Recipe],
    split: str,
    number: int,
    seed: int,
    folder: str | os.PathLike,
    **options,
) -> pd.DataFrame:
    """Mean absolute error of each recipe on one split, after training on ``number`` photos; a step of a notebook.

    Answers are cut off at the youngest and the oldest age of the manifest.

    Returns
    -------
    DataFrame
        run, photos, mean, low, high.
    """
    train, rest = manifest[manifest["split"] == "train"], manifest[manifest["split"] != "train"]
    some, rows = pd.concat([train.sample(min(number, len(train)), random_state=seed), rest]), []
    for name, recipe in recipes.items():
        said = run(some, recipe=recipe, folder=Path(folder) / name, **options)["predictions"]
        said = said[said["split"].eq(split) & said["age"].notna()]
        predicted = said["age_predicted"].clip(manifest["age"].min(), manifest["age"].max())
        mean, low, high = evaluation.bootstrap((predicted - said["age"]).abs(), said["group"])
        rows.append({"run": name, "photos": len(said), "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def publish(
    folder: str | os.PathLike,
    target: str | os.PathLike,
    manifest: pd.DataFrame,
    *,
    subject: str = "face",
    half: bool = False,
    overwrite: bool = False,
    cache: str | os.PathLike = CACHE,
    device: str = "auto",
) -> dict:
    """Test a finished run and write its model folder: model.onnx, weights.safetensors, metrics.json, history.csv, card.

    Parameters
    ----------
    folder, target : path
        Of the run, and of the model.
    manifest : DataFrame
        Whose test rows it is tested on.
    subject : {"face", "picture"}
        What an image shows.
    half : bool, default False
        Store the weights of model.onnx in 16 bits.
    overwrite : bool, default False
        Replace a model folder that is there already.

    Returns
    -------
    dict
        The content of metrics.json.

    Raises
    ------
    FileExistsError
        The target is there already.
    export.ExportError
        The exported network answers otherwise than the trained one.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target} is there already: name another folder, or overwrite it on purpose (--overwrite)"
        )
    network, recipe, found, fitted = load(folder)
    found = [head for head in found if head.name in recipe.learn]
    test = manifest[manifest["split"] == "test"].reset_index(drop=True)
    figures = evaluate(predict(folder, test, cache=cache, device=device), found)
    pixels = batches.decode(test, recipe.size, whole=recipe.whole, cache=cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        place = Path(temporary) / target.name
        place.mkdir()
        difference = export.export(
            network,
            place / "model.onnx",
            found,
            fitted=fitted,
            size=recipe.size,
            whole=recipe.whole,
            subject=subject,
            pixels=pixels[np.arange(len(test))[:: max(1, len(test) // 500)]],
            half=half,
        )
        metrics = {
            "model": target.name,
            "parameters": networks.parameter_count(network.features),
            "recipe": asdict(recipe),
            "heads": [asdict(head) | {"fitted": fitted.get(head.name, {})} for head in found],
            "data": {"fingerprint": data.fingerprint(manifest), "photos": _counts(manifest)},
            "test": json.loads(figures.round(4).to_json(orient="records")),
            "export": {"largest_difference": float(f"{difference:.1e}")},
            "made_with": versions(),
        }
        learnt = {name: value for name, value in network.state_dict().items() if not _only_along(name, recipe)}
        training.write_safetensors(learnt, place / "weights.safetensors")
        write_json(place / "metrics.json", metrics)
        shutil.copyfile(Path(folder) / "history.csv", place / "history.csv")
        (place / "MODEL_CARD.md").write_text(card(metrics, figures, manifest, subject), encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        place.replace(target)
    trust.vouch(target)
    return metrics


def _only_along(name: str, recipe: Recipe) -> bool:
    return name.startswith("heads.") and name.split(".")[1] not in recipe.learn


def _counts(manifest: pd.DataFrame) -> dict:
    counts = manifest.groupby(["source", "split"]).size()
    return {source: {side: int(n) for (_, side), n in part.items()} for source, part in counts.groupby(level=0)}


def card(metrics: Mapping, figures: pd.DataFrame, manifest: pd.DataFrame, subject: str) -> str:
    """The text of MODEL_CARD.md."""
    sources = sorted(manifest.loc[manifest["split"] == "train", "source"].unique())
    names = ", ".join(head["name"] for head in metrics["heads"])
    size, what = metrics["recipe"]["size"], "crop of one face" if subject == "face" else "picture"
    lines = [f"# {metrics['model']}", "", f"Predicts {names} from a {size}×{size} {what}."]
    lines += ["", "| test photos of | number | metric | value | 95 % interval |", "|---|---|---|---|---|"]
    for row in figures[figures["by"] == ""].itertuples():
        unit = "{:.2f} years" if row.metric == "mae" else "{:.1%}"
        mean, low, high = (unit.format(value) for value in (row.mean, row.low, row.high))
        lines.append(f"| {row.source} | {row.photos:,} | {row.head} {row.metric} | {mean} | {low} – {high} |")
    lines += ["", "Intervals: bootstrap over groups of near-duplicate photos. All figures: `metrics.json`.", ""]
    lines += ["## Training data and its terms", "", f"Trained on: {', '.join(sources)}."]
    lines += [TERMS.get(source, f"{source}: the terms of its owners.") for source in sources]
    return cards.header(metrics, sources) + "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------ command line


@dataclass(frozen=True, config=FORBID)
class Settings:
    """A settings file: the photos, where the run goes, and the recipe or its stages.

    Parameters
    ----------
    data : list of str
        Folders of photos, any layout that ``data.read`` knows.
    run : str
        Folder of the run.
    recipe : Recipe or list of Recipe
    stratify : list of str
        Columns whose distribution the splits share.
    seed : int
        Of the split.
    limit : int, optional
        Take so many photos of each side, for a trial.
    """

    data: list[str]
    run: str
    recipe: Recipe | list[Recipe]
    stratify: list[str] = Field(default_factory=lambda: ["glasses", "gender", "age_group"])
    seed: int = 0
    limit: int | None = None


def read_settings(path: str | os.PathLike, changes: Sequence[str] = ()) -> Settings:
    """A settings file, checked; ``changes`` are ``key=value`` or ``recipe.key=value`` and win over the file.

    Raises
    ------
    SettingsError
        Names the file and every key that is unknown or impossible.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        for change in changes:
            keys, equals, value = change.partition("=")
            if not equals:
                raise SettingsError(f"{change!r} is not KEY=VALUE")
            *parents, last = keys.split(".")
            place = content
            for parent in parents:
                place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
            place[last] = yaml.safe_load(value)
        return TypeAdapter(Settings).validate_python(content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise SettingsError(f"{path}: {wrong}") from None
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


def prepare(settings: Settings, cache: str | os.PathLike = CACHE) -> pd.DataFrame:
    """The manifest of a settings file: read, scanned, grouped, split as frozen; one age for near duplicates."""
    manifest = data.prepare(settings.data, stratify=settings.stratify, seed=settings.seed, cache=cache)
    manifest = years.merge_duplicates(data.usable(manifest).query("split != 'excluded'"))
    if settings.limit:
        shuffled = manifest.sample(frac=1, random_state=settings.seed)
        manifest = shuffled.groupby("split").head(settings.limit).sort_index()
    return manifest.reset_index(drop=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Train what a settings file says; returns the exit status: 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m faces.research.experiments", description=main.__doc__)
    parser.add_argument("settings", help="a YAML file, e.g. configs/faces.yaml")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="e.g. recipe.epochs=3 run=runs/trial")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--cache", default=CACHE, help=f"folder of decoded photos (default: {CACHE})")
    options = parser.parse_args(argv)
    try:
        settings = read_settings(options.settings, options.changes)
        manifest = prepare(settings, options.cache)
        print(manifest.groupby(["source", "split"]).size().to_string(), flush=True)
        training.keep_freed_memory()
        _, history = train(settings.recipe, manifest, settings.run, cache=options.cache, device=options.device)
    except (ValueError, OSError, FloatingPointError, ImageError) as error:
        print(f"faces.research.experiments: {error}", file=sys.stderr)
        return 2
    print(history.T.round(4).to_string())
    print(f"written to {settings.run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
