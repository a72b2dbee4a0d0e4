"""The recipe behind the published classifiers: MobileNetV2 fine-tuned on a manifest, in one call.

Notebook 03 finds it and runs it; ``python -m faces.recipes DIR`` (``make train DATA=DIR``) runs it on anybody's own
class folders, without a notebook.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from faces import batches, export, losses, models, training
from faces.images import ImageError
from faces.predict import ARTIFACTS, ROOT, Model
from faces.research import data, evaluation
from faces.research.augment import Augment

SIDE_TASKS = ("age_group", "race")
AUGMENT = Augment(rotate=15, shift=0.08, zoom=(0.6, 1.3), brightness=0.25, contrast=0.25, grey=0.1, coarse=0.15)


@dataclass(frozen=True)
class Recipe:
    """All that decides how a classifier is trained, apart from the photos."""

    size: int = 96  # side of the square input, pixels
    width: float = 1.0  # MobileNetV2's width multiplier
    weights: str = "imagenet"  # where the backbone starts: imagenet, random, or a model folder
    dropout: float = 0.2  # before the last layer
    epochs: int = 10  # passes over the training photos
    batch_size: int = 128  # photos a step; fewer where a set is so small that an epoch would have under 50 steps
    learning_rate: float = 1e-3  # AdamW's peak, for 128 photos a step; scaled by the root of the batch size
    weight_decay: float = 0.05  # AdamW's
    warmup: float = 0.2  # share of the run in which the learning rate rises; then it falls to nothing
    smoothing: float = 0.05  # of the labels
    side_weight: float = 0.3  # of each side task's loss (age group and race, where they are labelled); 0 for none
    average: float = 0.05  # share of the run that the moving average of the weights looks back over; 0 for none
    augment: Augment | None = AUGMENT  # of the training photos, fresh every epoch
    seed: int = 0  # of the weights, the order of photos and all other randomness


def train(
    recipe: Recipe,
    manifest: pd.DataFrame,
    label: str,
    folder: str | os.PathLike,
    *,
    pixels: np.ndarray | None = None,
    precision: str = "auto",
    device: str = "auto",
    progress: bool = True,
) -> tuple[models.Finetuned, pd.DataFrame]:
    """Train a classifier on the rows of a manifest whose split is train; keep the epoch that is best on val.

    Parameters
    ----------
    manifest : as from ``data.prepare``, every row decodable and labelled (``data.usable``).
    label : the column to learn. Where the manifest has ``age_group`` and ``race`` besides, they are learnt along
        (with unknown values left out), because what they teach serves the label too; their outputs are dropped.
    folder : checkpoints and ``history.csv``; a run that was cut short goes on from there.
    pixels : the decoded images, uint8 ``[n, size, size, 3]``, in the order of the rows; loaded where not given.

    Returns
    -------
    The network, with one output for two classes and else one a class, in the order of ``classes``; and its history.

    Raises
    ------
    ValueError : fewer than two classes, no photo to train or to validate on; or see ``check``.
    models.WeightsError : see ``check``.
    training.ResumeError : ``folder`` holds a run with other settings.
    """
    check(recipe)
    classes_to_learn(manifest, label)
    rows = training_rows(manifest)
    targets, outputs = targets_of(manifest, label, recipe.side_weight)
    weights = [1.0] + [recipe.side_weight] * (len(outputs) - 1)
    if pixels is None:
        pixels = batches.load_images(manifest, recipe.size)
    batch_size = recipe.batch_size
    while batch_size > 16 and len(rows["train"]) / batch_size < 50:
        batch_size //= 2
    feed = batches.loader(pixels[rows["train"]], targets[rows["train"]], batch_size, shuffle=True, seed=recipe.seed)
    val = batches.loader(pixels[rows["val"]], targets[rows["val"]], 256)
    torch.manual_seed(recipe.seed)
    model = models.mobilenet_v2(sum(outputs), width=recipe.width, dropout=recipe.dropout, weights=recipe.weights)
    rate = recipe.learning_rate * (batch_size / 128) ** 0.5
    history = training.fit(
        model,
        feed,
        val,
        loss=losses.multi_task(outputs, weights=weights, smoothing=recipe.smoothing),
        optimizer=torch.optim.AdamW(decayed(model.parameters(), recipe.weight_decay), rate),
        epochs=recipe.epochs,
        folder=folder,
        schedule=training.one_cycle(recipe.warmup),
        augment=recipe.augment,
        metrics={"acc": training.accuracy_of_first(outputs[0])},
        ema=average_decay(recipe.average, recipe.epochs, len(feed)),
        seed=recipe.seed,
        device=device,
        precision=precision,
        settings={key: repr(value) for key, value in asdict(recipe).items()} | {"outputs": outputs},
        progress=progress,
    )
    training.rollback(model, folder, "best")
    return model.keep_outputs(outputs[0]), history


def check(recipe: Recipe) -> None:
    """Say what a recipe asks for in vain, before all photos are decoded for it.

    Raises
    ------
    ValueError : images below 33 pixels, or a width that there are no ImageNet weights for.
    models.WeightsError : the weights to start from cannot be had.
    """
    if recipe.size < 33:
        raise ValueError(f"images of {recipe.size} pixels are too small for MobileNetV2; 33 is the least")
    models.mobilenet_v2(width=recipe.width, weights=recipe.weights)


def described(recipe: Recipe) -> dict:
    """The recipe as it goes into ``metrics.json``."""
    return asdict(recipe) | {"weights": str(recipe.weights)}


def load(folder: str | os.PathLike) -> tuple[nn.Module, dict]:
    """The network of a model folder that ``publish`` wrote, and what its ``metrics.json`` says.

    Raises
    ------
    models.WeightsError : the folder holds no such model.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        tensors, shape = load_file(folder / "weights.safetensors"), about["recipe"]
        name, width = shape.get("network", "mobilenet_v2"), shape.get("width")
        if name == "mobilenet_v2":
            model = models.mobilenet_v2(len(tensors["classifier.bias"]), width=width, weights="random")
        else:
            outputs = len(Model(folder).classes)
            builders = {"small_resnet": partial(models.small_resnet, width=width), "cartoon_cnn": models.cartoon_cnn}
            model = builders[name](outputs)
            model = models.Mirrored(*model) if shape.get("mirror") else model
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise models.WeightsError(f"no trained model in {folder}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError):
        raise models.WeightsError(f"{folder}/metrics.json does not say which network its weights are of") from None
    return model.eval(), about


def classes(manifest: pd.DataFrame, label: str) -> list[str]:
    """The classes of a label, in the order of a network's outputs."""
    return sorted(manifest[label].dropna().unique())


def classes_to_learn(manifest: pd.DataFrame, label: str) -> list[str]:
    """``classes``; ValueError where there are fewer than two."""
    names = classes(manifest, label)
    if len(names) < 2:
        raise ValueError(f"two classes are needed; `{label}` has {len(names)}: {', '.join(names) or 'none'}")
    return names


def training_rows(manifest: pd.DataFrame) -> dict[str, np.ndarray]:
    """The numbers of the rows to train and to validate on, {"train": …, "val": …}; ValueError where there are none."""
    rows = {split: np.flatnonzero(manifest["split"] == split) for split in ("train", "val")}
    for split, members in rows.items():
        if not len(members):
            raise ValueError(f"no photo is left for {split}: {len(manifest)} are too few, or all are near duplicates")
    return rows


def targets_of(manifest: pd.DataFrame, label: str, side_weight: float = 1.0) -> tuple[np.ndarray, list[int]]:
    """Targets ``[n, tasks]`` of the label and the side tasks, -1 for unknown; and the number of outputs of each."""
    side = side_columns(manifest, [task for task in SIDE_TASKS if task != label] if side_weight else [])
    return coded([manifest[label], *side], len(manifest))


def side_columns(manifest: pd.DataFrame, tasks: Iterable[str]) -> list[pd.Series]:
    """The columns of those tasks that can be learnt along: the manifest has them, with more than one value."""
    columns = [
        manifest[task].map(data.COMMON_RACES) if task == "race" else manifest[task]
        for task in tasks
        if task in manifest
    ]
    return [column for column in columns if column.nunique() > 1]


def coded(columns: Sequence[pd.Series], n: int) -> tuple[np.ndarray, list[int]]:
    """Class numbers of columns of ``n`` rows, int64 ``[n, columns]``, -1 for unknown; and the outputs of each."""
    codes = [pd.Categorical(column, categories=sorted(column.dropna().unique())) for column in columns]
    targets = np.stack([code.codes for code in codes], 1) if codes else np.empty((n, 0))
    outputs = [len(code.categories) for code in codes]
    return targets.astype(np.int64), [1 if count == 2 else count for count in outputs]


def average_decay(share: float, epochs: int, steps: int) -> float | None:
    """Decay of a moving average of the weights over a share of a run of so many steps an epoch; None for none.

    An average that looks back over k steps has a decay of 1 - 1/k.
    """
    back = share * epochs * steps  # in another order its last digit may differ, and a run would not know its checkpoint
    return 1 - 1 / back if back > 1 else None


def decayed(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict]:
    """Parameters for AdamW: decay pulls on matrices and kernels, not on biases and BatchNorm's scales."""
    parameters = list(parameters)
    kernels = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


# -------------------------------------------------------------------------------------------------------- publish


def publish(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    manifest: pd.DataFrame,
    label: str,
    pixels: np.ndarray,
    history: pd.DataFrame,
    metrics: dict,
    risk: float = 0.02,
    half: bool = False,
    whole: bool = False,
    unlabelled: Sequence[str] = (),
) -> tuple[Path, dict]:
    """Calibrate a trained classifier, test it, and export it as a model folder.

    Temperature and abstain threshold are fitted on the validation photos; every figure is of the test photos.

    Parameters
    ----------
    manifest, label, pixels : as for ``train``.
    metrics : further entries of ``metrics.json``.
    risk : share of answers that may be wrong above the abstain threshold.
    half, whole : keep weights in 16 bits; the pixels are of whole pictures (see ``export.export``).
    unlabelled : sources of photos that it learnt from besides, by what another network said of them.

    Returns
    -------
    The folder, and what its ``metrics.json`` says.
    """
    names = classes(manifest, label)
    said, logits = {}, {}
    for split in ("val", "test"):
        rows = np.flatnonzero(manifest["split"] == split)
        said[split] = manifest.iloc[rows].reset_index(drop=True)
        feed = batches.loader(pixels[rows], np.zeros(len(rows)), 256)
        logits[split] = training.predict(model, feed) if len(rows) else np.empty((0, len(names)))
    heat = evaluation.temperature(logits["val"], said["val"][label].map(names.index).to_numpy())
    for split, frame in said.items():
        said[split] = evaluation.predictions(frame, logits[split], names, label, temperature=heat)
    threshold = evaluation.abstain_threshold(said["val"], risk)
    figures = {
        "model": Path(folder).name,
        "label": label,
        "classes": names,
        "weights": models.parameter_count(model),
        "temperature": round(heat, 4),
        "abstain_below": round(threshold, 4),
        "val": evaluation.summary(said["val"]),
        **evaluation.by_source(said["test"], (label, *SIDE_TASKS)),
        **metrics,
    }
    card = card_of(figures, manifest, label, pixels.shape[1], unlabelled, whole=whole)
    sample = np.flatnonzero(manifest["split"] != "train")
    where = export.export(
        model,
        folder,
        classes=names,
        size=pixels.shape[1],
        pixels=pixels[sample[:: max(1, len(sample) // 500)]],
        metrics=figures,
        history=history,
        card=card,
        temperature=heat,
        abstain_below=threshold,
        half=half,
        whole=whole,
    )
    return where, figures


def card_of(
    figures: dict,
    manifest: pd.DataFrame,
    label: str,
    size: int,
    unlabelled: Sequence[str] = (),
    *,
    whole: bool = False,
) -> str:
    """The model card of a classifier of ``label`` that was trained on the manifest's training photos.

    unlabelled, whole : as for ``publish``; the terms of unlabelled photos hold too.
    """
    about_faces = label in ("gender", "glasses", *SIDE_TASKS)
    what = ("crop of one face" if about_faces else "picture") + ", the whole of it between black edges" * whole
    return export.model_card(
        figures["model"],
        task=f"`{label}` ({' or '.join(classes(manifest, label))}) from a {size}×{size} {what}",
        sources=sorted({*manifest.loc[manifest["split"] == "train", "source"], *unlabelled}),
        metrics=figures,
        failures=[*(["faces"] if about_faces else []), "gender" if label == "gender" else "label"],
    )


# --------------------------------------------------------------------------------------------------- command line

EXAMPLES = """examples:
  python -m faces.recipes photos                  photos/cats/*.jpg, photos/dogs/*.jpg -> artifacts/photos
  python -m faces.recipes faces more --label race --name race_model
  python process.py other_photos --model photos   what it was trained for
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, or 2 with the reason on stderr."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m faces.recipes",
        description="Train the published recipe on your own labelled photos and export it for process.py.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="class folders, or any layout that faces.research.data reads"
    )
    parser.add_argument("--label", help="the column to learn (default: gender or label, whichever the photos have)")
    parser.add_argument("--name", help="of the model: a folder in artifacts/, or a path (default: that of DIR)")
    parser.add_argument("--overwrite", action="store_true", help="replace a model of that name")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, metavar="N", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=defaults.size, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--width", type=float, default=defaults.width, metavar="FACTOR", help="default: %(default)s")
    parser.add_argument(
        "--weights", default=defaults.weights, help="where to start: imagenet, random, or a model folder (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, metavar="N", help="default: %(default)s")
    options = parser.parse_args(argv)
    settings = {key: getattr(options, key) for key in ("epochs", "size", "width", "weights", "seed")}
    try:
        folder, figures = train_and_publish(
            options.folders,
            replace(defaults, **settings),
            label=options.label,
            name=options.name,
            overwrite=options.overwrite,
        )
    except (ValueError, OSError, ImageError) as error:
        print(f"faces.recipes: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("faces.recipes: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    for line in evaluation.told(figures):
        print(line)
    name = folder.name if folder.parent == ARTIFACTS else folder
    print(f"{folder} written; use it with: python process.py DIR --model {name}")
    return 0


def train_and_publish(
    folders: list[str], recipe: Recipe, *, label: str | None = None, name: str | None = None, overwrite: bool = False
) -> tuple[Path, dict]:
    """From folders of labelled photos to a model folder; see ``train`` and ``publish``.

    Raises
    ------
    FileExistsError : there is a model of that name already, and ``overwrite`` was not asked for.
    data.LayoutError : the photos' labels cannot be read, or there is no such label.
    ValueError, models.WeightsError : see ``train``; what can be told from the recipe alone is told at once.
    """
    name = name or Path(folders[0]).resolve().name
    target = Path(name) if os.sep in name else ARTIFACTS / name
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists: choose another name with --name, or replace it with --overwrite")
    runs = ROOT / "runs" / "recipes" / target.name
    manifest = data.read(folders)
    label = label or next((column for column in ("gender", "label") if column in manifest), "label")
    data.usable(manifest, label)  # what cannot be had is said here, not after all photos were decoded
    manifest[label] = data.class_names(manifest[label])
    print(data.describe(manifest, label), file=sys.stderr)
    classes_to_learn(manifest, label)
    check(recipe)
    stratify = [label, "age_group"]
    manifest = data.prepare(manifest, stratify=stratify, seed=recipe.seed, cache=ROOT / "runs" / "cache")
    broken = manifest[manifest["error"].notna()]
    for path, error in zip(broken["path"], broken["error"], strict=True):
        print(f"left out: {path}: {error}", file=sys.stderr)
    fingerprint = data.fingerprint(manifest)
    manifest = data.usable(manifest, label).query("split != 'excluded'").reset_index(drop=True)
    counts = manifest["split"].value_counts().to_dict()
    print(f"{len(manifest):,} photos of {', '.join(classes(manifest, label))}: {counts}", file=sys.stderr)
    pixels = batches.load_images(manifest, recipe.size)
    model, history = train(recipe, manifest, label, runs, pixels=pixels)
    about = {
        "data": {"fingerprint": fingerprint, "seed": recipe.seed, "photos": counts},
        "recipe": described(recipe),
    }
    published = publish(model, target, manifest=manifest, label=label, pixels=pixels, history=history, metrics=about)
    # The checkpoints have served; the model folder holds the weights and the history.
    shutil.rmtree(runs)
    return published


if __name__ == "__main__":
    training.keep_freed_memory()
    sys.exit(main())
