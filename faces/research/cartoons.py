"""Steps of the notebook on cartoons: a class label of whole pictures, learnt from nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.model_selection import train_test_split

from faces import images, predict
from faces.research import altered, batches, demo, evaluation, experiments, training
from faces.research.experiments import Augment, Recipe

PLAIN: dict[str, Any] = {"backbone": "cartoon_cnn", "options": {}, "size": 64, "whole": False, "dropout": 0.25}
PLAIN |= {"learning_rate": 1e-3, "weight_decay": 1e-4, "schedule": "constant", "warmup": 0.2}
RESIDUAL: dict[str, Any] = {"backbone": "small_resnet", "weights": "random", "dropout": 0.2, "learning_rate": 3e-3}
RESIDUAL |= {"warmup": 0.3}
BARE: dict[str, Any] = {"smoothing": 0.0, "augment": None, "average": 0.0, "mirror": False}
MILD = Augment(rotate=12, shift=0.08, zoom=(0.8, 1.25), brightness=0.2, contrast=0.2)


def ladder(recipe: Recipe, *, epochs: int, width: int, wide: int) -> dict[str, Recipe]:
    """Runs of equal length from a plain network to a residual one, one change at a time, and ``recipe`` itself."""
    label = next(iter(recipe.learn))
    plain = replace(recipe, **PLAIN, **BARE, weights="random", epochs=epochs)
    small = replace(recipe, **RESIDUAL, **BARE, epochs=epochs, size=64, whole=False, options={"width": width})
    augmented = replace(small, augment=MILD)
    smooth = replace(augmented, smoothing=0.1, average=0.05)
    size = recipe.size if recipe.whole else smooth.size
    large = replace(smooth, size=size, whole=recipe.whole, options={"width": wide})
    return {
        "plain": plain,
        "plain, focal loss": replace(plain, gamma=2.0),
        "plain, weighted classes": replace(plain, balance=(label,)),
        "residual": small,
        "residual, augmented": augmented,
        "… smoothed, averaged": smooth,
        "… with focal loss": replace(smooth, gamma=2.0),
        "… larger": large,
        "published": recipe,
    }


def compare(photos: pd.DataFrame, *, recipes: Mapping[str, Recipe], folder: Path, cache: Path) -> pd.DataFrame:
    """Train each recipe; its epochs, and macro-F1 and accuracy on validation and test pictures."""
    rows = []
    for number, (run, recipe) in enumerate(recipes.items()):
        label = next(iter(recipe.learn))
        said = experiments.run(photos, recipe=recipe, folder=folder / f"{number}", cache=cache)["predictions"]
        row = {"run": run, "epochs": recipe.epochs}
        for side, part in said.groupby("split"):
            scores = evaluation.macro_scores(part, label, f"{label}_predicted")
            row |= {f"{side}_{name}": scores[name] for name in ("f1", "accuracy")}
        rows.append(row)
    return pd.DataFrame(rows)


def by_epoch(photos: pd.DataFrame, *, recipe: Recipe, folder: Path, cache: Path, most: int = 30) -> pd.DataFrame:
    """Loss and macro scores on test pictures after each epoch, or after ``most`` of them spread evenly."""
    label = next(iter(recipe.learn))
    experiments.train(recipe, photos, folder, cache=cache)
    network, _, [head], _ = experiments.load(folder)
    test = photos[photos["split"] == "test"].reset_index(drop=True)
    feed = batches.Batches(batches.decode(test, recipe.size, whole=recipe.whole, cache=cache), {}, 256)
    epochs, rows = training.checkpoints(folder)["epoch"].to_numpy(), []
    for place in np.unique(np.linspace(0, len(epochs) - 1, min(most, len(epochs))).round().astype(int)):
        training.load_checkpoint(network, folder, int(epochs[place]))
        logits = training.predict(network, feed)[label]
        frame = evaluation.predictions(test, logits, head.classes, label)
        scores = evaluation.macro_scores(frame, label, "predicted")
        rows.append({"epoch": int(epochs[place]), "loss": frame["loss"].mean()} | scores)
    return pd.DataFrame(rows)


def at_random(photos: pd.DataFrame, *, label: str, seed: int) -> pd.DataFrame:
    """The same pictures, split in the same proportions whatever they resemble."""
    share = photos["split"].value_counts(normalize=True)
    halves = {"random_state": seed, "test_size": share["test"], "stratify": photos[label]}
    rest, test = train_test_split(photos.index, **halves)
    halves |= {"test_size": share["val"] / (1 - share["test"]), "stratify": photos.loc[rest, label]}
    _, val = train_test_split(rest, **halves)
    split = pd.Series("train", photos.index).mask(photos.index.isin(test), "test").mask(photos.index.isin(val), "val")
    return photos.assign(split=split)


def splits(photos: pd.DataFrame, *, recipe: Recipe, seed: int, folder: Path, cache: Path) -> pd.DataFrame:
    """The same recipe on a split by groups and on a random one: macro scores on the test pictures of each."""
    label = next(iter(recipe.learn))
    random = at_random(photos, label=label, seed=seed)
    learnt = set(random.loc[random["split"] == "train", "group"])
    rows = []
    for name, manifest in (("by groups", photos), ("at random", random)):
        said = experiments.run(manifest, recipe=recipe, folder=folder / name.replace(" ", "_"), cache=cache)
        test = said["predictions"].query("split == 'test'")
        rows.append({"split": name} | evaluation.macro_scores(test, label, f"{label}_predicted"))
    copies = test[test["group"].isin(learnt)]
    rows.append({"split": "at random, near copy learnt"} | evaluation.macro_scores(copies, label, f"{label}_predicted"))
    return pd.DataFrame(rows)


def on_plain(
    photos: pd.DataFrame, *, label: str, run: Path, scales: Sequence[float], folder: Path, cache: Path
) -> pd.DataFrame:
    """What a trained network says of test pictures that stand small in the middle of a white or a black square.

    ``scales`` are long sides of the picture over that of the square. The table has background, scale, group, the label,
    ``predicted`` and ``confidence``.
    """
    test = photos.loc[photos["split"] == "test", ["path", "group", label]]
    rows = []
    for background in ("white", "black"):

        def on_square(picture: Image.Image, scale: float, colour: str = background) -> Image.Image:
            side = round(max(picture.size) / scale)
            square = Image.new("RGB", (side, side), colour)
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            return square

        squares = altered.save(test, folder / background, on_square, scales)
        said = experiments.predict(run, squares, cache=cache)
        rows.append(_answers(said, label).assign(background=background, scale=squares["value"]))
    return pd.concat(rows, ignore_index=True)


def drawings(*, label: str, run: Path, folder: Path, cache: Path, number: int = 120, shown: int = 16) -> pd.DataFrame:
    """Answers to drawn faces, which are none of the characters: ``predicted``, ``confidence``; of a few, ``pixels``."""
    demo.make(folder, number, seed=0, layout="class_folders", size=96, flaws=False)
    paths = [str(path) for path in sorted(folder.rglob("*.jpg"))]
    said = _answers(experiments.predict(run, pd.DataFrame({"path": paths}), cache=cache), label)
    chosen = set(np.random.default_rng(0).permutation(len(paths))[:shown])
    squares = [images.decode(path, 64).tobytes() if i in chosen else None for i, path in enumerate(paths)]
    return said.assign(number=range(len(said)), pixels=squares)


def strangers(pictures: pd.DataFrame, *, label: str, known: Sequence[str], run: Path, cache: Path) -> pd.DataFrame:
    """Answers to pictures of none of the ``known`` classes: ``shown``, ``split``, ``predicted`` and ``confidence``."""
    others = pictures[~pictures[label].isin(known)].reset_index(drop=True)
    said = experiments.predict(run, others.rename(columns={label: "shown"}), cache=cache)
    return _answers(said, label).assign(shown=others[label], split=others["split"])


def heeding(met: pd.DataFrame, own: pd.DataFrame, label: str, limit: float) -> tuple[float, str]:
    """``evaluation.heeding`` of ``strangers`` met in training, and in words what it does on test pictures.

    ``own`` are test pictures of the known classes, as from ``experiments.predict``.
    """
    limit = evaluation.heeding(limit, met.loc[met["split"] != "test", "confidence"])
    new, sure = met[met["split"] == "test"], own[own[f"{label}_confidence"] >= limit]
    wrong = (sure[label] != sure[f"{label}_predicted"]).mean()
    words = f"threshold {limit:.0%}: {(new['confidence'] >= limit).mean():.0%} of {len(new):,} strangers are named"
    words += f"; of the known, {len(sure) / len(own):.1%} of the test pictures, {wrong:.1%} of those wrongly"
    return limit, words


def name_pictures(folder: Path, model: str, shown: int = 24) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """What an exported network says of the pictures of a folder: file, label (or unknown), confidence, error.

    The pictures stand in random order, and ``shown`` of them are returned as squares.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}; set pictures_dir to a folder of pictures")
    network, rows, squares = predict.Model(model), [], []
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in images.SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no picture in {folder}; set pictures_dir to a folder of pictures")
    for number in np.random.default_rng(0).permutation(len(files)):
        row = {"file": str(files[number].relative_to(folder)), "label": "", "confidence": np.nan, "error": None}
        try:
            square = images.decode(files[number], *network.frame)
            [likely] = network.run(square[None])
            sure = likely.max() >= (network.abstain_below or 0)
            row |= {"label": network.classes[likely.argmax()] if sure else "unknown", "confidence": likely.max()}
            squares = [*squares, square][:shown]
        except images.ImageError as error:
            row["error"] = str(error)
        rows.append(row)
    return pd.DataFrame(rows).sort_values("error", na_position="first", kind="stable", ignore_index=True), squares


def abstention(answers: pd.DataFrame, label: str, risk: float) -> dict:
    """Threshold of a risk on validation pictures, and what it does on test pictures: coverage and risk, and curve."""
    frame = answers.rename(columns={f"{label}_confidence": "confidence"})
    frame = frame.assign(correct=frame[label] == frame[f"{label}_predicted"])
    sides = dict(list(frame.groupby("split")))
    threshold = evaluation.abstain_threshold(sides["val"], risk)
    kept = sides["test"][sides["test"]["confidence"] >= threshold]
    about = {"threshold": threshold, "coverage": len(kept) / len(sides["test"]), "risk": (~kept["correct"]).mean()}
    return about | {"curve": evaluation.risk_coverage(sides["test"])}


def _answers(said: pd.DataFrame, label: str) -> pd.DataFrame:
    columns = [column for column in ("group", label) if column in said]
    renamed = {f"{label}_predicted": "predicted", f"{label}_confidence": "confidence"}
    return said.rename(columns=renamed)[[*columns, *renamed.values()]]
