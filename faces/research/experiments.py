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
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file

from faces import trust
from faces.files import write_json
from faces.images import ImageError
from faces.predict import Model, find_model
from faces.research import augment, backbones, batches, data, evaluation, export, heads, networks, training, years
from faces.research.batches import CACHE, Batches
from faces.research.evaluate import predict as predict_exported

FORBID = ConfigDict(extra="forbid")
ABOUT = "model.json"  # what the weights of a run are of
FACE_LABELS = {"gender", "age", "age_group", "race", "glasses"}  # columns that only faces have


class SettingsError(ValueError):
    """A settings file has an unknown key, a value of the wrong type or an impossible one."""


@dataclass(frozen=True, config=FORBID)
class Augment(augment.Augment):  # noqa: D101
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
    oversample : mapping of str to mapping of str to int
        Column of the manifest -> value -> how often a photo with it is shown in an epoch; of several, the largest.
    age_loss, age_spread : str, float
        A key of ``years.KINDS``, and the standard deviation in years over which an exact age is spread.
    augment : Augment or None
    guide : str
        Folder of a trained network that is asked about every augmented image and whose maps are learnt along (see
        ``networks.HintedStudent``).
    teachers, distill : tuple of str, float
        Trained networks, by folder or name, whose averaged outputs are learnt along, and their share where there is a
        label. In a later stage, ``before`` is what the stage before has learnt.
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
    size: int = Field(default=96, ge=32)
    whole: bool = False
    weights: str = "imagenet"
    frozen: bool = False
    dropout: float = Field(default=0.2, ge=0, lt=1)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    stage_decay: float = Field(default=1.0, gt=0, le=1)
    schedule: Literal["one_cycle", "constant", "linear_warmup"] = "one_cycle"
    warmup: float = Field(default=0.2, ge=0, lt=1)
    gamma: float = Field(default=0.0, ge=0)
    smoothing: float = Field(default=0.05, ge=0, lt=1)
    balance: tuple[str, ...] = ()
    oversample: dict[str, dict[str, Annotated[int, Field(ge=1)]]] = Field(default_factory=dict)
    age_loss: str = "dldl"
    age_spread: float = Field(default=2.0, ge=0)
    augment: Augment | None = Field(
        default_factory=lambda: Augment(
            rotate=15, shift=0.08, zoom=(0.6, 1.3), brightness=0.25, contrast=0.25, grey=0.1, coarse=0.15
        )
    )
    teachers: tuple[str, ...] = ()
    guide: str = ""
    distill: float = Field(default=0.5, ge=0, le=1)
    average: float = Field(default=0.05, ge=0, lt=1)
    mirror: bool = False
    seed: int = Field(default=0, ge=0)


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
    recipe : several are stages: each starts from every tensor of the stage before whose name and shape fit.
    manifest : as from ``data.prepare``, every row decodable; labels may be missing.
    folder : of the run: checkpoints, ``history.csv``, and in the end ``weights.safetensors`` and ``model.json``.
    cache : of decoded pixels.
    keep : {"all", "best"}; the epochs whose weights stay on disk.

    Returns
    -------
    The network, with the heads of ``learn`` and ``along``, and its history, one row an epoch; ``stage`` counts the
    stages from 1.

    Raises
    ------
    ValueError : a column cannot be learnt, or there are no rows to train or to validate on.
    training.ResumeError : the folder holds a run with another recipe, other photos or other labels.
    """
    stages = [recipe] if isinstance(recipe, Recipe) else list(recipe)
    folder, histories = Path(folder), []
    for number, stage in enumerate(stages, 1):
        place = folder if len(stages) == 1 else folder / f"stage-{number}"
        if number > 1:
            before = str(folder / f"stage-{number - 1}")
            teachers = tuple(before if teacher == "before" else teacher for teacher in stage.teachers)
            stage = replace(stage, weights=before, teachers=teachers)
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
    rows["train"] = np.repeat(rows["train"], shown(recipe, manifest)[rows["train"]])
    identity = {"recipe": json.loads(json.dumps(asdict(recipe))), "data": content(manifest, targets)}
    pixels = batches.decode(manifest, recipe.size, whole=recipe.whole, cache=cache)
    for teacher in filter(None, (*recipe.teachers, recipe.guide)):
        identity[f"teacher {teacher}"] = _file_hash(_teacher(teacher) / "weights.safetensors")
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
        learner = networks.HintedStudent(network, load(_teacher(recipe.guide))[0], recipe.size)
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


def shown(recipe: Recipe, manifest: pd.DataFrame) -> np.ndarray:
    """How often each row is shown in an epoch, see ``Recipe.oversample``: int ``[n]``.

    Values that no photo has are named on stderr.
    """
    times = np.ones(len(manifest), int)
    for column, values in recipe.oversample.items():
        for value, number in values.items():
            members = manifest[column].astype(str) == value if column in manifest else np.zeros(len(manifest), bool)
            if not members.any():
                print(f"oversample: there is no photo whose {column} is {value!r}", file=sys.stderr)
            times[members] = np.maximum(times[members], number)
    return times


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


def _teacher(where: str) -> Path:
    """The folder of a trained network given by path or by the name of a published one."""
    return Path(where) if Path(where).is_dir() else find_model(where)


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def taught(
    recipe: Recipe, found: Sequence[heads.Head], manifest: pd.DataFrame, targets: Mapping[str, np.ndarray], **options
) -> dict[str, np.ndarray]:
    """Averaged outputs of a recipe's teachers, ``{head}/teacher``; NaN where they contradict a label."""
    sums: dict[str, list[np.ndarray]] = {}
    for teacher in recipe.teachers:
        for name, outputs in outputs_kept(_teacher(teacher), manifest, **options).items():
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
    backbones.WeightsError : the folder holds no trained network.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        recipe, found = Recipe(**about["recipe"]), [heads.from_dict(head) for head in about["heads"]]
        network = networks.build(recipe.backbone, found, size=recipe.size, options=recipe.options, mirror=recipe.mirror)
        network.load_state_dict(load_file(folder / "weights.safetensors"))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise backbones.WeightsError(f"no trained network in {folder}: {error}") from error
    return network.eval(), recipe, found, about["fitted"]


def outputs_of(
    folder: str | os.PathLike, manifest: pd.DataFrame, *, cache: str | os.PathLike = CACHE, device: str = "auto"
) -> dict[str, np.ndarray]:
    """Outputs of a trained network for every row: ``{head: float32 [n, k]}``; as precise as a training's own."""
    return _outputs(*load(folder)[:2], manifest, cache, device, precision="auto")


def outputs_kept(folder: Path, manifest: pd.DataFrame, *, cache: str | os.PathLike = CACHE, device: str = "auto"):
    """``outputs_of``, kept in the cache, so that a run that is taken up again need not ask its teachers again."""
    asked = [*(_file_hash(folder / name) for name in (ABOUT, "weights.safetensors")), *batches.contents(manifest)]
    path = Path(cache) / "outputs" / f"{hashlib.sha256(' '.join(asked).encode()).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        outputs = outputs_of(folder, manifest, cache=cache, device=device)
        training.write_safetensors({name: torch.from_numpy(rows) for name, rows in outputs.items()}, path)
    return {name: rows.numpy() for name, rows in load_file(path).items()}


def _outputs(network, recipe, manifest, cache, device, precision="fp32"):
    pixels = batches.decode(manifest, recipe.size, whole=recipe.whole, cache=cache)
    return training.predict(network, Batches(pixels, {}, 256), device=device, precision=precision)


def predict(
    folder: str | os.PathLike, manifest: pd.DataFrame, *, cache: str | os.PathLike = CACHE, device: str = "auto"
) -> pd.DataFrame:
    """The manifest's rows with the calibrated answers of a finished run; see ``frame`` of each head."""
    network, recipe, found, fitted = load(folder)
    return answered(manifest, _outputs(network, recipe, manifest, cache, device), recipe, found, fitted)


def answered(
    manifest: pd.DataFrame,
    outputs: Mapping[str, np.ndarray],
    recipe: Recipe,
    found: Sequence[heads.Head],
    fitted: Mapping[str, Mapping],
) -> pd.DataFrame:
    """The manifest's rows with the calibrated answers that are read from a network's outputs about them."""
    tables = []
    for head in found:
        if head.name in recipe.learn:
            answers = head.answer(torch.from_numpy(outputs[head.name]), fitted.get(head.name, {}))
            tables.append(head.frame(answers.numpy()).set_axis(manifest.index))
    return pd.concat([manifest, *tables], axis=1)


def evaluate(
    predictions: pd.DataFrame, found: Sequence[heads.Head], by: Sequence[str] = ("gender", "age_group", "race")
) -> pd.DataFrame:
    """``evaluation.figures`` of what ``predict`` gives; ages are counted where the label is an exact one."""
    measured = {}
    for head in found:
        is_class = isinstance(head, heads.Classes)
        label = heads.column(predictions, head.name) if is_class else predictions[head.name].astype(float)
        measured |= evaluation.measured(predictions, head.name, label)
    return evaluation.figures(predictions, measured, by)


def run(
    manifest: pd.DataFrame, *, recipe: Recipe | Sequence[Recipe], folder: str | os.PathLike, **options
) -> dict[str, pd.DataFrame]:
    """Train, or take up a run, as ``train`` does; a step of a notebook.

    Returns
    -------
    dict: "history", and "predictions" of the val and test rows.
    """
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
    teacher: str | os.PathLike = "",
    **options,
) -> dict[str, pd.DataFrame]:
    """``run`` from the weights, beside the guide or taught by the network that an earlier step has written.

    ``before``, that step's history, is an input so that a new one makes this step stale.
    """
    recipe = replace(recipe, weights=str(weights or recipe.weights), guide=str(guide or recipe.guide))
    recipe = replace(recipe, teachers=(str(teacher),) if teacher else recipe.teachers)
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

    Answers are cut off at the youngest and the oldest age of the manifest. Columns: run, photos, mean, low, high.
    """
    train, rest = manifest[manifest["split"] == "train"], manifest[manifest["split"] != "train"]
    some, rows = pd.concat([train.sample(min(number, len(train)), random_state=seed), rest]), []
    for name, recipe in recipes.items():
        said = run(some, recipe=recipe, folder=Path(folder) / name, **options)["predictions"]
        said = said[said["split"].eq(split) & said["age"].notna()]
        predicted = said["age_predicted"].clip(manifest["age"].min(), manifest["age"].max())
        figures = evaluation.interval((predicted - said["age"]).abs(), said["group"])
        rows.append({"run": name, "photos": len(said)} | figures)
    return pd.DataFrame(rows)


def heed_strangers(folder: str | os.PathLike, folders: Sequence[str], *, cache: str | os.PathLike = CACHE) -> float:
    """Raise the abstain threshold of a finished run until two thirds of the pictures of no class stay below it.

    Parameters
    ----------
    folder : of a run with one class label, to which the threshold is written.
    folders : of pictures; those whose label is one of the classes are left out, and those that a split tests on.
    """
    about = json.loads((Path(folder) / ABOUT).read_text(encoding="utf-8"))
    [head] = about["heads"]
    photos = data.usable(data.prepare(folders, stratify=["label"], seed=0, cache=cache), "label")
    strangers = photos[~photos["label"].isin(head["classes"]) & photos["split"].isin(["train", "val"])]
    said = predict(folder, strangers.drop(columns="label").reset_index(drop=True), cache=cache)
    fitted = about["fitted"][head["name"]]
    limit = evaluation.heeding(fitted["abstain_below"], said[f"{head['name']}_confidence"])
    fitted["abstain_below"] = round(limit, 4)
    write_json(Path(folder) / ABOUT, about)
    return fitted["abstain_below"]


def publish(
    folder: str | os.PathLike,
    target: str | os.PathLike,
    manifest: pd.DataFrame,
    *,
    subject: str = "face",
    half: bool = False,
    int8: bool = False,
    in_front_of: str = "",
    overwrite: bool = False,
    cache: str | os.PathLike = CACHE,
) -> dict:
    """Export a finished run, test the exported network, write its model folder, and return its metrics.

    The folder holds model.onnx, weights.safetensors, model.json, metrics.json, history.csv and MODEL_CARD.md. A network
    whose training images are all grey sees colours as grey from then on (see ``backbones.accept_colour``).

    Parameters
    ----------
    folder, target : of the run, and of the model; they may be the same.
    manifest : the photos that it was trained on; it is tested on those whose split is test.
    subject : {"face", "picture"}; what an image shows.
    half : store the weights in 16 bits.
    int8 : compute its backbone in 8 bits (see ``export.quantize``).
    in_front_of : a larger exported network that it can answer before, by folder or name (see ``sure_from``).
    overwrite : replace a model that is there already.

    Raises
    ------
    FileExistsError : the target holds a model already.
    export.ExportError : the exported network answers otherwise than the trained one.
    """
    folder, target = Path(folder), Path(target)
    if (target / "model.onnx").exists() and not overwrite:
        raise FileExistsError(f"{target} holds a model already: name another folder, or overwrite it (--overwrite)")
    network, recipe, found, fitted = load(folder)
    found = [head for head in found if head.name in recipe.learn]
    for name in set(network.heads) - set(recipe.learn):
        del network.heads[name]
    manifest = manifest.reset_index(drop=True)
    pixels = batches.decode(manifest, recipe.size, whole=recipe.whole, cache=cache)
    train, test = (np.flatnonzero(manifest["split"] == side) for side in ("train", "test"))
    unseen = np.flatnonzero(manifest["split"] != "train")
    parts = (pixels[train[start : start + 64]] for start in range(0, len(train), 64))
    if all((part == part[..., :1]).all() for part in parts):
        backbones.accept_colour(network)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        place = Path(temporary)
        about: dict[str, Any] = {"size": recipe.size, "whole": recipe.whole, "subject": subject, "half": half}
        compared = pixels[_some(unseen, 500)]

        def write() -> float:
            found_apart = export.export(network, place / "model.onnx", found, pixels=compared, fitted=fitted, **about)
            if int8:
                export.quantize(place / "model.onnx", place / "model.onnx", pixels[_some(train, 300)])
            return found_apart

        difference = write()
        val = np.flatnonzero(manifest["split"] == "val")
        if int8:
            fitted |= refitted(place / "model.onnx", found, fitted, pixels, manifest, val)
            write()
        if in_front_of:
            ours = export.frame(place / "model.onnx", found, pixels, val)
            theirs = predict_exported(Model(in_front_of), manifest.iloc[val])
            for head in found:
                if isinstance(head, heads.Classes):
                    sure = sure_from(ours, theirs, heads.column(manifest.iloc[val], head.name), head.name)
                    fitted[head.name] = fitted[head.name] | {"sure": sure}
            write()
        photos = manifest.iloc[test].reset_index(drop=True)
        figures = evaluation.figures(photos, {})
        if len(test):
            answers = export.frame(place / "model.onnx", found, pixels, test)
            figures = evaluate(pd.concat([photos, answers], axis=1), found)
        splits, told = manifest.groupby("source")["split"], asdict(near(recipe))
        counts = {source: part.value_counts().sort_index().to_dict() for source, part in splits}
        metrics = {
            "model": target.name,
            "parameters": networks.parameter_count(network),
            "recipe": told,
            "heads": [asdict(head) | {"fitted": fitted.get(head.name, {})} for head in found],
            "data": {"fingerprint": data.fingerprint(manifest), "photos": counts},
            "test": json.loads(figures.round(4).to_json(orient="records")),
            "export": {"largest_difference": float(f"{difference:.1e}"), "int8": int8},
            "made_with": export.versions(),
        }
        weights = network.state_dict()
        if half:
            weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
        training.write_safetensors(weights, place / "weights.safetensors")
        write_json(place / ABOUT, {"recipe": told, "heads": [asdict(h) for h in found], "fitted": fitted})
        write_json(place / "metrics.json", metrics)
        shutil.copyfile(folder / "history.csv", place / "history.csv")
        card = export.card(metrics, figures, manifest[manifest["split"] == "train"], subject)
        (place / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        target.mkdir(exist_ok=True)
        for path in place.iterdir():
            shutil.copyfile(path, target / f".{path.name}.partial")  # with the permissions that the umask gives
            (target / f".{path.name}.partial").replace(target / path.name)
    trust.vouch(target)
    return metrics


def near(recipe: Recipe) -> Recipe:
    """The recipe with paths below the working folder as seen from there: what is published tells no more of a machine.

    >>> near(Recipe(weights=str(Path.cwd() / "runs" / "first"), teachers=("faces_small",))).weights
    'runs/first'
    """

    def seen(place: str) -> str:
        return Path(place).relative_to(Path.cwd()).as_posix() if Path(place).is_relative_to(Path.cwd()) else place

    teachers = tuple(seen(teacher) for teacher in recipe.teachers)
    return replace(recipe, weights=seen(recipe.weights), guide=seen(recipe.guide), teachers=teachers)


def refitted(
    path: Path,
    found: Sequence[heads.Head],
    fitted: Mapping[str, Mapping],
    pixels: batches.Pixels,
    manifest: pd.DataFrame,
    val: np.ndarray,
) -> dict[str, dict]:
    """What was fitted of class labels, fitted once more to the answers of an 8-bit file.

    Rounding moves the boundary between classes, and with it how sure answers are. Its logarithmic probabilities serve
    as logits, so that the new scale and shift go on top of those that are in the file.
    """
    again: dict[str, dict] = {}
    answers = export.frame(path, found, pixels, val) if len(val) else pd.DataFrame()
    for head in found:
        targets = head.targets(manifest.iloc[val])
        if not isinstance(head, heads.Classes) or np.isnan(targets).all():
            continue
        logits = np.log(answers[[f"{head.name}_p_{label}" for label in head.classes]].clip(lower=1e-9).to_numpy(float))
        more, before = head.calibrate(logits, targets), fitted.get(head.name, {})
        scale = more.pop("scale", 1.0)
        shift = scale * np.array(before.get("shift", [0.0])) + np.array(more.pop("shift", [0.0]))
        again[head.name] = {"scale": scale * before.get("scale", 1.0), "shift": shift.tolist()} | more
    return again


LOST = 0.001  # share of a class's validation photos that a small network may get wrong where a larger one is right


def sure_from(ours: pd.DataFrame, theirs: pd.DataFrame, label: pd.Series, name: str) -> float:
    """Confidence from which a small network's answers are as often right as those of a larger one.

    For every class alone, so that none pays for another: counted from the surest answer down, no more than ``LOST`` of
    its photos are lost on balance, those that the small network alone gets right taken off.

    Parameters
    ----------
    ours, theirs : answers of the small and the larger network, as from ``predict``, row by row.
    label : the true class, NaN where it is not known.
    name : of the head.
    """
    label = pd.Series(label.to_numpy())
    right, before = (table[f"{name}_predicted"] == label for table in (ours, theirs))
    gained, confidence = right.astype(int) - before.astype(int), ours[f"{name}_confidence"].astype(float)
    limit = 0.0
    for _, members in label.dropna().groupby(label):
        ordered = confidence[members.index].sort_values(ascending=False, kind="stable")
        lost = gained[ordered.index].cumsum() < -LOST * len(members)
        if lost.any():
            limit = max(limit, ordered[lost].iloc[0])
    return min(1.0, float(np.floor(limit * 1e4) + 1) / 1e4)


def _some(rows: np.ndarray, number: int) -> np.ndarray:
    return rows[:: max(1, len(rows) // number)]


# ------------------------------------------------------------------------------------------------------ command line


@dataclass(frozen=True, config=FORBID)
class Settings:
    """A settings file: the photos, where the run goes, and the recipe or its stages.

    Parameters
    ----------
    data : folders of photos, any layout that ``data.read`` knows.
    run : folder of the run.
    stratify : columns whose distribution the splits share.
    seed : of the split.
    limit : take so many photos of each side, for a trial.
    strangers : folders of pictures of none of the classes, see ``heed_strangers``.
    half : store the published weights in 16 bits.
    in_front_of : a larger exported network that this one can answer before, see ``sure_from``.
    """

    data: list[str]
    run: str
    recipe: Recipe | list[Recipe]
    stratify: list[str] = Field(default_factory=lambda: ["glasses", "gender", "age_group"])
    seed: int = 0
    limit: int | None = None
    strangers: list[str] = Field(default_factory=list)
    half: bool = False
    in_front_of: str = ""


def read_settings(path: str | os.PathLike, changes: Sequence[str] = ()) -> Settings:
    """A settings file, checked.

    Parameters
    ----------
    changes : ``KEY=VALUE``, with dots between nested keys and values as YAML has them. Of a recipe in stages,
        ``recipe.1.KEY`` is the second stage's, ``recipe.KEY`` that of all.

    Raises
    ------
    SettingsError : the file cannot be read, or a key is unknown or its value impossible; the message says which.
    """
    return _settings(_read_yaml(path), changes, str(path))


def _read_yaml(path: str | os.PathLike) -> dict:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold the keys data, run and recipe, as configs/simpsons.yaml does")
    if former := [str(key) for key in content if str(key).endswith("_parameters")]:
        told = f"{path} has the sections of an earlier version ({', '.join(former)}): "
        raise SettingsError(f"{told}write the keys data, run and recipe instead, as configs/simpsons.yaml does")
    return content


def _settings(content: dict, changes: Sequence[str], place: str) -> Settings:
    own, recipes = ({field.name for field in fields(kind)} for kind in (Settings, Recipe))
    for change in changes:
        keys, equals, value = change.partition("=")
        if not equals:
            raise SettingsError(f"{change!r} is not KEY=VALUE")
        *parents, last = keys.split(".")
        if (parents or [last])[0] in recipes - own:
            parents = ["recipe", *parents]
        found: list[dict | list] = [content]
        try:
            for parent in parents:
                found = [_at(inner, parent) for each in found for inner in _stages(each, parent)]
            for inner in (inner for each in found for inner in _stages(each, last)):
                inner[last] = yaml.safe_load(value)
        except (TypeError, ValueError, IndexError, AttributeError, yaml.YAMLError):
            raise SettingsError(f"{change!r} does not fit the settings: there is no such key") from None
    try:
        return TypeAdapter(Settings).validate_python(content)
    except ValidationError as error:
        raise SettingsError(f"{place}: {_wrong(error, isinstance(content.get('recipe'), list))}") from None


def _stages(place: dict | list, key: str) -> list:
    """Where a key is to be found: of a list of stages in each, unless it is the number of one."""
    return place if isinstance(place, list) and not key.isdigit() else [place]


def _at(place: dict | list, key: str) -> dict | list:
    return place[int(key)] if isinstance(place, list) else place.setdefault(key, {})


def _wrong(error: ValidationError, stages: bool) -> str:
    """What is wrong with settings; pydantic tries a recipe as one and as a list of stages, and tells of both."""
    kinds = ("Recipe", "list[Recipe]")
    told = [one for one in error.errors() if kinds[not stages] not in one["loc"]]
    return "; ".join(f"{'.'.join(str(key) for key in one['loc'] if key not in kinds)}: {one['msg']}" for one in told)


def of_folders(photos: pd.DataFrame, folders: Sequence[str], *, label: str | None, run: str) -> dict:
    """The content of a settings file for somebody's own photos: MobileNetV2 from ImageNet weights.

    A set of which an epoch would have under 50 steps is learnt in smaller batches, at a learning rate that falls with
    the root of their size.

    Parameters
    ----------
    photos, folders : as from ``data.read``, and where they are.
    label : the column to learn; None for gender or label, whichever the photos have.

    Raises
    ------
    data.LayoutError : the photos have no such label.
    """
    label = label or next((name for name in ("gender", "label") if name in photos), "label")
    number = 0.75 * len(data.usable(photos, label))
    along = ("gender", "race") if label == "age" else ("age_group", "race")
    batch_size = next(size for size in (128, 64, 32, 16) if number >= 50 * size or size == 16)
    recipe: dict[str, Any] = {"learn": {label: 1.0}, "along": {name: 0.3 for name in along if name != label}}
    recipe |= {"batch_size": batch_size, "learning_rate": 1e-3 * (batch_size / 128) ** 0.5}
    return {"data": list(folders), "run": run, "stratify": [label, "age_group"], "recipe": recipe}


def prepare(settings: Settings, cache: str | os.PathLike = CACHE, photos: pd.DataFrame | None = None) -> pd.DataFrame:
    """The manifest of a settings file: read, scanned, grouped, split as frozen; one age for near duplicates.

    Files that cannot be decoded are named on stderr and left out.
    """
    photos = settings.data if photos is None else photos
    manifest = data.prepare(photos, stratify=settings.stratify, seed=settings.seed, cache=cache)
    for row in manifest[manifest["error"].notna()].itertuples():
        print(f"left out: {row.path}: {row.error}", file=sys.stderr)
    manifest = years.merge_duplicates(data.usable(manifest).query("split != 'excluded'"))
    if settings.limit:
        shuffled = manifest.sample(frac=1, random_state=settings.seed)
        manifest = shuffled.groupby("split").head(settings.limit).sort_index()
    return manifest.reset_index(drop=True)


def train_and_publish(
    settings: Settings, photos: pd.DataFrame, *, overwrite: bool = False, cache: str = CACHE, device: str = "auto"
) -> list[str]:
    """Train, test and export what settings say, into the folder of the run; returns what was found, in sentences.

    Whatever can be refused without opening a photo is refused first.
    """
    stages = settings.recipe if isinstance(settings.recipe, list) else [settings.recipe]
    folder, recipe = Path(settings.run), stages[-1]
    if folder.resolve() in [Path(one).resolve() for one in settings.data]:
        raise SettingsError(f"{folder} holds the photos: name another folder for the run")
    if (folder / "model.onnx").exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a model already: name another folder, or overwrite it (--overwrite)")
    shown = [name for name in recipe.learn if name in photos]
    print(data.describe(photos, shown[0] if len(shown) == 1 else None), file=sys.stderr)
    found = heads.of(recipe, photos.assign(split="train"))
    first = stages[0]
    networks.build(first.backbone, found, size=first.size, options=first.options, weights=first.weights)
    manifest = prepare(settings, cache, photos)
    print(manifest.groupby(["source", "split"]).size().to_string(), file=sys.stderr, flush=True)
    train(settings.recipe, manifest, folder, cache=cache, device=device, keep="best")
    if not training.is_first_process():
        return []
    if settings.strangers:
        heed_strangers(folder, settings.strangers, cache=cache)
    subject = "face" if FACE_LABELS & set(recipe.learn) else "picture"
    kind: dict[str, Any] = {"subject": subject, "half": settings.half, "in_front_of": settings.in_front_of}
    metrics = publish(folder, folder, manifest, **kind, overwrite=True, cache=cache)
    training.remove_checkpoints(folder)
    test = manifest[manifest["split"] == "test"]
    seen = {head.name: set(heads.column(test, head.name)) for head in found}
    absent = {head.name: [c for c in getattr(head, "classes", ()) if c not in seen[head.name]] for head in found}
    return evaluation.told(metrics["test"], absent)


EXAMPLES = """examples:
  faces train photos                        photos/cats/*.jpg, photos/dogs/*.jpg -> runs/photos
  faces train faces more --label race epochs=20 --name race_model
  faces train configs/simpsons.yaml run=runs/trial epochs=3
  python process.py other --model runs/photos
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train a network on labelled photos, test it and export it; goes on where it was interrupted."""
    look: dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="faces train", description=main.__doc__, **look)
    given = "folders of photos or a settings file; "
    given += "then settings, e.g. epochs=20 weights=random options.width=0.35 (as in class Recipe)"
    parser.add_argument("given", nargs="+", metavar="DIR|FILE|KEY=VALUE", help=given)
    parser.add_argument("--label", help="the column to learn (default: gender or label, whichever the photos have)")
    parser.add_argument("--recipe", metavar="FILE", help="a settings file whose recipe is used on the folders")
    parser.add_argument("--name", help="of the model: a folder below runs/, or a path (default: that of the photos)")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there already")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--cache", default=CACHE, help=f"folder of decoded photos (default: {CACHE})")
    options = parser.parse_intermixed_args(argv)
    try:
        settings, photos = _asked(options)
        training.keep_freed_memory()
        how = {"overwrite": options.overwrite, "cache": options.cache, "device": options.device}
        lines = train_and_publish(settings, photos, **how)
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImageError) as error:
        print(f"faces train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("faces train: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print(*lines, f"{settings.run} written; use it with: python process.py DIR --model {settings.run}", sep="\n")
    return 0


def _asked(options: argparse.Namespace) -> tuple[Settings, pd.DataFrame]:
    """Settings and photos of a command line."""
    changes = [one for one in options.given if "=" in one and not Path(one).exists()]
    places = [one for one in options.given if one not in changes]
    file = next((one for one in places if Path(one).suffix.lower() in (".yaml", ".yml")), None)
    if not places or (file and (len(places) > 1 or options.recipe)):
        raise SettingsError("name folders of photos (--recipe FILE: with the recipe of a file), or one settings file")
    if options.label and (file or options.recipe):
        raise SettingsError(f"--label goes with folders alone: {file or options.recipe} says what is learnt")
    if file:
        content, photos = _read_yaml(file), None
    else:
        photos, run = data.read(places), _run_folder(Path(places[0]).resolve().name)
        if options.recipe:
            content = _read_yaml(options.recipe) | {"data": places, "run": run}
        else:
            content = of_folders(photos, places, label=options.label, run=run)
            if any(change.startswith(("batch_size=", "recipe.batch_size=")) for change in changes):
                del content["recipe"]["batch_size"], content["recipe"]["learning_rate"]
    if options.name:
        content["run"] = _run_folder(options.name)
    settings = _settings(content, changes, file or options.recipe or "settings")
    return settings, data.read(settings.data) if photos is None or settings.data != places else photos


def _run_folder(name: str) -> str:
    return name if os.sep in name else os.path.join("runs", name)  # noqa: PTH118


if __name__ == "__main__":
    sys.exit(main())
