"""A classifier of pictures in class folders, trained from nothing and configured by a file.

``make train-simpsons CONFIG=configs/simpsons.yaml``, or ``python -m faces.configured FILE``, does in one go what
notebook 08 does step by step. Nothing here knows what the pictures show.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import nn

from faces import batches, losses, models, recipes, settings, training
from faces.images import ImageError
from faces.predict import ROOT
from faces.research import backbones, data, evaluation
from faces.research.augment import Augment
from faces.settings import setting

LABEL = "label"
AUGMENT = Augment(rotate=12, shift=0.08, zoom=(0.8, 1.25), brightness=0.2, contrast=0.2)


@dataclass(frozen=True)
class DatasetParameters:
    """Where the pictures are: a folder a class."""

    traindir: str = setting()
    testdir: str = setting("")  # empty: whole groups of near duplicates of traindir are kept for the test
    image_size: int = setting(64, least=64)  # side of the square input, pixels
    whole: bool = setting(False)  # keep all of each picture, between black edges; otherwise its central square


@dataclass(frozen=True)
class ModelParameters:
    """The network."""

    network: str = setting("cartoon_cnn", choices=("cartoon_cnn", "small_resnet"))
    width: int = setting(32, least=4)  # of small_resnet's first layer, channels
    weight_decay: float = setting(1e-4, least=0)
    dropout_rate: float = setting(0.25, least=0, below=1)
    mirror: bool = setting(False)  # once trained, it answers with the mean over a picture and its mirror image


@dataclass(frozen=True)
class TrainingParameters:
    """How it is trained."""

    batch_size: int = setting(64, least=1)
    learning_rate: float = setting(1e-3, least=0)
    num_epochs: int = setting(20, least=1)
    loss: str = setting("focal", choices=("focal", "cross_entropy"))
    focal_gamma: float = setting(2.0, least=0)
    balance_classes: bool = setting(False)  # weigh classes by how rare they are
    one_cycle: bool = setting(False)  # the learning rate rises and falls; otherwise it is constant
    augment: bool = setting(False)
    strength: float = setting(1.0, least=0)  # of the augmentation
    erase: float = setting(0.0, least=0, below=1)  # share of pictures that lose a rectangle, where they are augmented
    label_smoothing: float = setting(0.0, least=0, below=1)
    average: float = setting(0.0, least=0, below=1)  # share of the run that weights are averaged over
    seed: int = setting(0, least=0)


@dataclass(frozen=True)
class ComparisonParameters:
    """The runs in which notebook 08 compares the steps on the way to the network: all of one length."""

    num_epochs: int = setting(8, least=1)
    width: int = setting(16, least=4)


@dataclass(frozen=True)
class OutputParameters:
    """What is written, and where."""

    part_of_partitions: int = setting(4, least=1)  # parts that the curves are shown in besides the whole
    out_model_directory: str = setting("artifacts/simpsons_color6")
    out_graphics_directory: str = setting("figures")
    out_inference_directory: str = setting("runs/inference")
    run_directory: str = setting("runs/configured")  # checkpoints; a run that was cut short goes on from there
    cache_directory: str = setting("runs/cache")


SECTIONS = {
    "dataset_parameters": DatasetParameters,
    "model_parameters": ModelParameters,
    "training_parameters": TrainingParameters,
    "comparison_parameters": ComparisonParameters,
    "output_parameters": OutputParameters,
}


@dataclass(frozen=True)
class Settings:
    """All sections, checked."""

    dataset: DatasetParameters
    model: ModelParameters
    training: TrainingParameters
    comparison: ComparisonParameters
    output: OutputParameters


def settings_of(sections: Mapping[str, Mapping[str, Any]], where: str = "") -> Settings:
    """The sections as a notebook's parameters give them; settings.SettingsError for what is wrong with them."""
    checked = (
        settings.section(kind, sections.get(name, {}), name=name, where=where) for name, kind in SECTIONS.items()
    )
    return Settings(*checked)


def read(path: str | os.PathLike) -> Settings:
    """The sections of a YAML file; settings.SettingsError names the line of what is wrong."""
    return Settings(*settings.read(path, SECTIONS).values())


# ---------------------------------------------------------------------------------------------------- training


def prepare(dataset: DatasetParameters, *, seed: int = 0, cache: str | os.PathLike | None = None) -> pd.DataFrame:
    """The manifest of the pictures, split by groups of near duplicates; ``testdir`` is the test where it is given.

    Pictures of ``traindir`` that nearly equal one of ``testdir`` are left out of the training.

    Raises
    ------
    data.LayoutError : a folder is not there or holds no class folders.
    """
    manifest = data.read(dataset.traindir)
    if dataset.testdir:
        held_out = data.read(dataset.testdir).assign(subset="test")
        # One source, so that its test is the one that is given.
        source, understood = manifest["source"].iloc[0], manifest.attrs["read"]
        for about in held_out.attrs["read"].values():
            understood[source]["left_out"] += about["left_out"]
        manifest = pd.concat([manifest, held_out.assign(source=source)], ignore_index=True)
        manifest.attrs["read"] = understood
    if LABEL not in manifest:
        kinds = [column for column in ("gender", "glasses") if column in manifest]
        if not kinds:
            raise data.LayoutError(f"{dataset.traindir} holds no class folders")
        manifest = manifest.rename(columns={kinds[0]: LABEL})
    manifest = data.prepare(manifest, stratify=[LABEL], seed=seed, cache=cache)
    return data.usable(manifest, LABEL).query("split != 'excluded'").reset_index(drop=True)


def build(model: ModelParameters, classes: int, size: int) -> nn.Module:
    """The network of a section; ValueError where it does not take pictures of that size."""
    if model.network == "cartoon_cnn":
        if size != 64:
            raise ValueError(f"cartoon_cnn takes pictures of 64 pixels, not {size}: set dataset_parameters.image_size")
        return models.cartoon_cnn(classes, dropout=model.dropout_rate)
    return models.small_resnet(classes, width=model.width, dropout=model.dropout_rate)


def answering(network: nn.Module, model: ModelParameters) -> nn.Module:
    """The network as it answers once it is trained: with its weights, and on the mirror image too where so chosen."""
    return models.Mirrored(*network) if model.mirror else network


def train(
    chosen: Settings,
    manifest: pd.DataFrame,
    pixels: np.ndarray,
    folder: str | os.PathLike,
    *,
    precision: str = "auto",
    device: str = "auto",
    progress: bool = True,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train on the rows whose split is train; keep the epoch that is best on val. On a GPU where there is one.

    Parameters
    ----------
    manifest, pixels : from ``prepare``; uint8 ``[n, size, size, 3]``.
    folder : checkpoints and ``history.csv``; a run that was cut short goes on from there.

    Returns
    -------
    The network, and its history.
    """
    names, rate = recipes.classes(manifest, LABEL), chosen.training
    targets = manifest[LABEL].map(names.index).to_numpy()
    rows = recipes.training_rows(manifest)
    feed = batches.loader(pixels[rows["train"]], targets[rows["train"]], rate.batch_size, shuffle=True, seed=rate.seed)
    val = batches.loader(pixels[rows["val"]], targets[rows["val"]], 256)
    torch.manual_seed(rate.seed)
    model = build(chosen.model, len(names), pixels.shape[1])
    weights = losses.balanced_weights(targets[rows["train"]], len(names)) if rate.balance_classes else None
    gamma = rate.focal_gamma if rate.loss == "focal" else 0.0
    history = training.fit(
        model,
        feed,
        val,
        loss=losses.focal(gamma, weights, smoothing=rate.label_smoothing),
        optimizer=torch.optim.AdamW(model.parameters(), rate.learning_rate, weight_decay=chosen.model.weight_decay),
        epochs=rate.num_epochs,
        folder=folder,
        schedule=training.one_cycle() if rate.one_cycle else training.constant,
        augment=replace(AUGMENT.scaled(rate.strength), erase=rate.erase) if rate.augment else None,
        ema=recipes.average_decay(rate.average, rate.num_epochs, len(feed)),
        seed=rate.seed,
        precision=precision,
        device=device,
        settings={"dataset": asdict(chosen.dataset), "model": asdict(chosen.model), "training": asdict(rate)},
        progress=progress,
    )
    training.rollback(model, folder, "best")
    return answering(model, chosen.model), history


def scores(frame: pd.DataFrame) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over the classes that occur, of a predictions frame."""
    precision, recall, f1, _ = precision_recall_fscore_support(
        frame[LABEL], frame["predicted"], labels=sorted(frame[LABEL].unique()), average="macro", zero_division=0
    )
    return {"accuracy": frame["correct"].mean(), "precision": precision, "recall": recall, "f1": f1}


def by_epoch(
    chosen: Settings,
    manifest: pd.DataFrame,
    pixels: np.ndarray,
    folder: str | os.PathLike,
    split: str,
    *,
    most: int = 30,
    **options,
) -> pd.DataFrame:
    """``scores`` and mean cross-entropy of a split over the epochs of a run, from its checkpoints.

    Of a run with more than ``most`` epochs, so many are looked at, spread evenly from the first to the last.
    """
    names, members = recipes.classes(manifest, LABEL), np.flatnonzero(manifest["split"] == split)
    feed, photos = batches.loader(pixels[members], np.zeros(len(members)), 256), manifest.iloc[members]
    model, rows = build(chosen.model, len(names), pixels.shape[1]), []
    epochs = training.checkpoints(folder)["epoch"].to_numpy()
    for place in np.unique(np.linspace(0, len(epochs) - 1, min(most, len(epochs))).round().astype(int)):
        epoch = int(epochs[place])
        training.rollback(model, folder, epoch)
        outputs = training.predict(answering(model, chosen.model), feed, **options)
        frame = evaluation.predictions(photos, outputs, names, LABEL)
        rows.append({"epoch": epoch, "loss": frame["loss"].mean(), **scores(frame)})
    return pd.DataFrame(rows)


def f1_interval(frame: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Macro-F1 over the classes that occur, with its 95 % interval, bootstrapped by whole groups."""
    names = sorted({*frame[LABEL], *frame["predicted"]})
    truth, said = (pd.Categorical(frame[column], names).codes for column in (LABEL, "predicted"))
    groups = np.unique(frame["group"], return_inverse=True)[1]
    rng, drawn = np.random.default_rng(seed), []

    def macro(weights: np.ndarray) -> float:
        table = np.zeros((len(names), len(names)))
        np.add.at(table, (truth, said), weights)
        total = table.sum(0) + table.sum(1)
        return float((2 * table.diagonal() / np.maximum(total, 1e-9))[table.sum(1) > 0].mean())

    for _ in range(resamples):
        counts = np.bincount(rng.integers(0, groups.max() + 1, groups.max() + 1), minlength=groups.max() + 1)
        drawn.append(macro(counts[groups].astype(float)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return macro(np.ones(len(frame))), float(low), float(high)


# ------------------------------------------------------------------------------------------------ command line


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m faces.configured", description="Train a classifier as a file says, and export it."
    )
    parser.add_argument("config", metavar="FILE", help="YAML with the sections " + ", ".join(SECTIONS))
    options = parser.parse_args(argv)
    try:
        chosen = read(options.config)
        folder, figures = train_and_publish(chosen)
    except (settings.SettingsError, data.LayoutError, ImageError, ValueError, OSError) as error:
        print(f"faces.configured: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("faces.configured: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    for line in evaluation.told(figures):
        print(line)
    if figures["f1"]["value"] is not None:
        print(f"macro-F1 {figures['f1']['value']:.3f}")
    print(f"{folder} written; use it with: python process.py DIR --model {folder}")
    return 0


def train_and_publish(chosen: Settings, *, progress: bool = True) -> tuple[Path, dict]:
    """From a configuration to a model folder; see ``train`` and ``recipes.publish``."""
    output = chosen.output
    manifest = prepare(chosen.dataset, seed=chosen.training.seed, cache=ROOT / output.cache_directory)
    print(data.describe(manifest, LABEL), file=sys.stderr)
    pixels = batches.load_images(manifest, chosen.dataset.image_size, whole=chosen.dataset.whole)
    target = ROOT / output.out_model_directory
    model, history = train(chosen, manifest, pixels, ROOT / output.run_directory / target.name, progress=progress)
    return publish(chosen, model, history, manifest, pixels, target)


def publish(
    chosen: Settings,
    model: nn.Module,
    history: pd.DataFrame,
    manifest: pd.DataFrame,
    pixels: np.ndarray,
    folder: Path,
    metrics: dict | None = None,
) -> tuple[Path, dict]:
    """Calibrate, test and export a trained network; ``recipes.publish`` with macro-F1 besides.

    Where all pictures are grey, it will see those in colour as grey too (``backbones.accept_colour``).
    """
    grey = all((part == part[..., :1]).all() for part in pixels)
    if grey:
        backbones.accept_colour(model)
    rows = np.flatnonzero(manifest["split"] == "test")
    feed, names = batches.loader(pixels[rows], np.zeros(len(rows)), 256), recipes.classes(manifest, LABEL)
    frame = evaluation.predictions(
        manifest.iloc[rows].reset_index(drop=True), training.predict(model, feed), names, LABEL
    )
    f1 = dict(zip(("value", "low", "high"), (round(x, 4) for x in f1_interval(frame)), strict=True))
    about = {
        "data": {"fingerprint": data.fingerprint(manifest), "photos": manifest["split"].value_counts().to_dict()},
        # As recipes.load wants it.
        "recipe": {"network": chosen.model.network, "width": chosen.model.width, "mirror": chosen.model.mirror},
        "grey": grey,
        "settings": {name: asdict(part) for name, part in vars(chosen).items() if name not in ("comparison", "output")},
        "f1": f1,
        **(metrics or {}),
    }
    return recipes.publish(
        model,
        folder,
        manifest=manifest,
        label=LABEL,
        pixels=pixels,
        history=history,
        metrics=about,
        whole=chosen.dataset.whole,
    )


if __name__ == "__main__":
    training.keep_freed_memory()
    sys.exit(main())
