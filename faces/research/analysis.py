"""Steps of the notebooks that train and judge classifiers: comparisons of recipes and models, analyses of errors."""

from __future__ import annotations

import json
import re
import timeit
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from faces import finding, images, predict
from faces.research import data, evaluate, evaluation
from faces.research.plots import FEWEST_IN_A_MEAN

BATCH = 64  # images that an exported network is given at once

# ------------------------------------------------------------------------------------------------------- predictions


def judged(predictions: pd.DataFrame, label: str) -> pd.DataFrame:
    """Predictions as ``evaluation`` wants them: ``p_CLASS``, ``predicted``, ``confidence``, ``correct``, ``loss``.

    They come as from ``experiments.predict``: ``LABEL_p_CLASS`` for each class. Rows without a label are left out.
    """
    known = predictions[predictions[label].notna()].reset_index(drop=True)
    columns = [name for name in known if name.startswith(f"{label}_p_")]
    likely = np.log(np.maximum(known[columns].to_numpy(float), 1e-12))
    return evaluation.predictions(known, likely, [name.removeprefix(f"{label}_p_") for name in columns], label)


def paired(before: pd.DataFrame, after: pd.DataFrame) -> tuple[float, float, float]:
    """Difference of the accuracies of two ``judged`` on the same rows, with its bootstrap interval over groups."""
    if before["group"].tolist() != after["group"].tolist():
        raise ValueError("the two predictions are not of the same photos in the same order")
    return evaluation.bootstrap(after["correct"].astype(float) - before["correct"], before["group"])


def percent(interval: Sequence[float], *, signed: bool = False) -> str:
    """A share and its interval in words.

    >>> percent((0.5, 0.45, 0.55))
    '50.0% (45.0 to 55.0)'
    >>> percent((-0.01, -0.02, 0.0), signed=True)
    '-1.0 points (-2.0 to +0.0)'
    """
    form = "{:+z.1f} points ({:+z.1f} to {:+z.1f})" if signed else "{:.1f}% ({:.1f} to {:.1f})"
    return form.format(*(100 * number for number in interval))


def in_words(table: pd.DataFrame, shares: Sequence[str], counts: Sequence[str] = ()) -> pd.DataFrame:
    """A table with shares as percentages and counts with thousands separated, for reading."""
    words = {name: table[name].map("{:.1%}".format) for name in shares}
    return table.assign(**words, **{name: table[name].map("{:,.0f}".format) for name in counts})


# ------------------------------------------------------------------------------------------------------- comparisons


# Columns of the summary of ``compare`` besides the accuracies by source.
SUMMARY = ("recipe", "parameters", "photos", "epochs", "kept", "val", "all", "low", "high", "tested", "minutes")


def sources_of(summary: pd.DataFrame) -> list[str]:
    """The columns of a summary of ``compare`` that are accuracies on the photos of one source."""
    return [name for name in summary if name not in SUMMARY]


def few(photos: pd.DataFrame, train: int, seed: int) -> pd.DataFrame:
    """All test rows, and so many others, drawn once: at most half of the training and 1,000 of the validation rows."""
    rows = dict(list(photos.sample(frac=1, random_state=seed).groupby("split")))
    least = min(train, len(rows["train"]) // 2)
    kept = [rows["train"].head(least), rows["val"].head(1000), rows["test"]]
    return pd.concat(kept).sort_index().reset_index(drop=True)


def compare(
    photos: pd.DataFrame, *, recipes: Mapping, folder: Path, cache: Path, train: int | None = None, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Train recipes of one label on the same photos, or ``train`` of them (see ``few``); test each on all test photos.

    Returns
    -------
    dict: "summary": recipe, parameters, photos, epochs, kept (epoch), val, one column a source, all with its interval
    low to high, tested (photos), minutes; "history": of all, with ``recipe``; see ``plain_names``.
    """
    from faces.research import experiments, networks

    photos = photos if train is None else few(photos, train, seed)
    rows, histories = [], []
    for name, recipe in recipes.items():
        place = run_folder(folder, name)
        run = experiments.run(photos, recipe=recipe, folder=place, cache=cache, keep="best")
        network, last, _, _ = experiments.load(place)
        label = next(iter(last.learn))
        history = plain_names(run["history"], label)
        answers = judged(run["predictions"], label)
        tested = answers[answers["split"] == "test"]
        final = history[history["stage"] == history["stage"].max()]
        by_source = tested.groupby("source")["correct"].mean()
        mean, low, high = evaluation.bootstrap(tested["correct"], tested["group"])
        row = {
            "recipe": name,
            "parameters": sum(map(networks.parameter_count, (network.features, network.heads[label]))),
            "photos": int((photos["split"] == "train").sum()),
            "epochs": len(history),
            "kept": int(final.loc[final["val_acc"].idxmax(), "epoch"]),
            "val": final["val_acc"].max(),
        }
        # A folder of photos may be named like a column.
        row |= by_source.rename(lambda name: f"{name} (source)" if name in SUMMARY else name).to_dict()
        row |= {"all": mean, "low": low, "high": high, "tested": len(tested)}
        rows.append(row | {"minutes": history["seconds"].sum() / 60})
        histories.append(history.assign(recipe=name))
    return {"summary": pd.DataFrame(rows), "history": pd.concat(histories, ignore_index=True)}


def run_folder(folder: Path, name: str) -> Path:
    """Where ``compare`` keeps the run of a recipe.

    >>> run_folder(Path("runs"), "+ padding, no Dropout2d").as_posix()
    'runs/padding_no_dropout2d'
    """
    return Path(folder) / "_".join(re.findall(r"\w+", name.lower()))


def plain_names(history: pd.DataFrame, label: str) -> pd.DataFrame:
    """A history of one label: epoch, stage, train_loss, train_acc, val_loss, val_acc, lr, seconds, images_per_s."""
    named = history.rename(columns={f"{side}_{label}_acc": f"{side}_acc" for side in ("train", "val")})
    kept = ["epoch", "stage", "train_loss", "train_acc", "val_loss", "val_acc", "lr", "seconds", "images_per_s"]
    return named[kept]


def elsewhere(
    folders: Sequence[Path], *, label: str, recipes: Sequence[str], folder: Path, cache: Path
) -> pd.DataFrame:
    """Photos of another kind, and what each network of ``compare`` says of them: RECIPE_p_CLASS."""
    from faces.research import experiments

    photos = data.group(data.usable(data.scan(data.read(folders), cache=cache), label).reset_index(drop=True))
    table = photos[["source", "group", label]]
    for name in recipes:
        answers = experiments.predict(run_folder(folder, name), photos, cache=cache)
        table = table.join(answers.filter(like=f"{label}_p_").rename(columns=lambda c, n=name: c.replace(label, n, 1)))
    return table


def answers_of(table: pd.DataFrame, model: str, label: str) -> pd.DataFrame:
    """``judged`` for one of several models in a table whose columns are MODEL_p_CLASS."""
    prefix = f"{model}_p_"
    return judged(table.rename(columns=lambda name: name.replace(prefix, f"{label}_p_")), label)


def rivals(*, model: str) -> pd.DataFrame:
    """Accuracies of installable classifiers on the same photos, as ``benchmarks/peers.py`` wrote them to artifacts."""
    metrics = json.loads((predict.ARTIFACTS / model / "metrics.json").read_text(encoding="utf-8"))
    rows = [
        {"model": name, "photos of": source, "photos": found["photos"], **found["accuracy"]}
        | {"images_per_s": about["images_per_s"]}
        for name, about in metrics["models"].items()
        for source, found in about["test"].items()
    ]
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------------- exported models


class Exported:
    """The head ``label`` of an exported classifier: uint8 ``[n, size, size, 3]`` -> probabilities ``[n, classes]``."""

    def __init__(self, model: str, label: str, folder: Path | None = None):
        self.model = find(model, folder)
        self.head, self.frame = self.model.head(label), self.model.frame
        self.classes, self.abstain_below = self.head.classes, self.head.abstain_below

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        return np.concatenate([self.model.run(part, self.head.name) for part in parts])


def ask(
    photos: pd.DataFrame, *, models: Sequence[str], label: str, splits: Sequence[str], folder: Path | None = None
) -> pd.DataFrame:
    """What exported models, of ``folder`` first, say of rows: MODEL_p_CLASS; brightness and sharpness of each photo."""
    asked = photos[photos["split"].isin(splits)].reset_index(drop=True)
    networks = {name: Exported(name, label, folder) for name in models}
    frames = sorted({network.frame for network in networks.values()}, reverse=True)  # the largest shows most
    found, qualities = {name: [] for name in networks}, []
    for start in range(0, len(asked), BATCH):
        paths = asked["path"].iloc[start : start + BATCH].tolist()
        stacks = {frame: images.decode_all(paths, frame.size, frame.whole) for frame in frames}
        qualities.append(evaluation.qualities(stacks[frames[0]])[["brightness", "sharpness"]])
        for name, network in networks.items():
            found[name].append(network(stacks[network.frame]))
    table = asked.join(pd.concat(qualities, ignore_index=True).round(4))
    for name, network in networks.items():
        columns = [f"{name}_p_{label}" for label in network.classes]
        table = table.join(pd.DataFrame(np.concatenate(found[name]), columns=columns))
    return table


def threshold(*, model: str, label: str, folder: Path | None = None) -> pd.DataFrame:
    """``abstain_below`` of an exported model: the confidence below which it abstains, fitted on validation photos."""
    return pd.DataFrame({"model": [model], "abstain_below": [Exported(model, label, folder).abstain_below]})


def exported(photos: pd.DataFrame, *, models: Sequence[str], folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """The test rows with the answers of each exported model, see ``evaluate.predict``."""
    asked = photos[photos["split"] == "test"]
    labels = ("gender", "age", "age_group", "race", "glasses")
    asked = asked[["path", "source", "group", "split", *(name for name in labels if name in photos)]]
    return {name: evaluate.predict(find(name, folder), asked) for name in models}


def measured(answers: pd.DataFrame, heads: Sequence[str]) -> dict[tuple[str, str], pd.Series]:
    """What is measured of each answer, (head, metric) -> a number for each photo; see ``evaluation.measured``."""
    found = {}
    for head in heads:
        truth = answers[head].astype(float) if head == "age" else answers[head]
        found |= evaluation.measured(answers, head, truth)
    return found


def against(after: pd.DataFrame, before: pd.DataFrame, head: str, by: Sequence[str] = ()) -> pd.DataFrame:
    """Paired differences of two models' answers to the same photos, ``after`` less ``before``, by source and groups."""
    one, other = measured(after, [head]), measured(before, [head])
    return evaluation.figures(after, {key: one[key] - other[key] for key in one}, by, differences=True)


def averaged(tables: Sequence[pd.DataFrame], head: str) -> pd.DataFrame:
    """The first of some models' answers, with the mean of all their probabilities of the two classes of ``head``."""
    one, other = sorted(tables[0][head].dropna().unique())
    sure = [(table[f"{head}_confidence"], table[f"{head}_predicted"] == one) for table in tables]
    share = sum(confidence.where(chosen, 1 - confidence) for confidence, chosen in sure) / len(tables)
    said = {f"{head}_predicted": np.where(share >= 0.5, one, other), f"{head}_confidence": np.maximum(share, 1 - share)}
    return tables[0].assign(**said)


def quick(small: pd.DataFrame, whole: pd.DataFrame, head: str, sure: float) -> pd.DataFrame:
    """``against`` of a small model that answers alone from a confidence on, and of the share ``alone`` by source."""
    said = [f"{head}_predicted", f"{head}_confidence"]
    alone = small[f"{head}_confidence"] >= sure
    mixed = whole.assign(**small[said].where(alone, whole[said]))
    share = alone[whole[head].notna()].groupby(whole["source"]).mean()
    return against(mixed, whole, head).assign(alone=lambda table: table["source"].map(share))


def since_stage(
    photos: pd.DataFrame, answers: pd.DataFrame, *, run: Path, number: int, by: Sequence[str], cache: Path
) -> pd.DataFrame:
    """What the stages after that number changed in answers about test photos: ``against`` for each head; a step.

    ``answers`` are those of the finished run, as from ``experiments.run``.
    """
    from faces.research import experiments

    test = photos[photos["split"] == "test"].reset_index(drop=True)
    before = experiments.predict(run / f"stage-{number}", test, cache=cache)
    after = answers[answers["split"] == "test"].reset_index(drop=True)
    learnt = experiments.load(run)[1].learn
    return pd.concat([against(after, before, name, by) for name in learnt], ignore_index=True)


def mirrored(photos: pd.DataFrame, *, run: Path, cache: Path) -> pd.DataFrame:
    """What an average over image and mirror image adds to a trained network's answers: ``against`` for each head."""
    from faces.research import batches, experiments, training

    test = photos[photos["split"] == "test"].reset_index(drop=True)
    network, recipe, heads, fitted = experiments.load(run)
    feed, answers = batches.Batches(batches.decode(test, recipe.size, whole=recipe.whole, cache=cache), {}, 256), {}
    for looks in (1, 2):
        network.mirror = looks == 2
        answers[looks] = experiments.answered(test, training.predict(network, feed), recipe, heads, fitted)
    return pd.concat([against(answers[2], answers[1], name) for name in recipe.learn], ignore_index=True)


def in_units(table: pd.DataFrame, *, signed: bool = False) -> list[str]:
    """Rows of ``evaluation.figures`` with their intervals in words: years of an error, else percent."""
    years = "{:+z.2f} years ({:+z.2f} to {:+z.2f})" if signed else "{:.2f} years ({:.2f} to {:.2f})"
    rows = zip(table["metric"], table[["mean", "low", "high"]].to_numpy(), strict=True)
    return [years.format(*row) if metric == "mae" else percent(row, signed=signed) for metric, row in rows]


def find(name: str, folder: Path | None = None) -> predict.Model:
    """An exported model below ``folder``, where runs write them, or else a published one; on one thread."""
    own = Path(folder or "", name)
    return predict.Model(own if folder and (own / "model.onnx").is_file() else name, threads=1)


def speed(*, models: Sequence[str], label: str = "", folder: Path | None = None) -> pd.DataFrame:
    """Size of each exported model, and its median time in 30 for one image on one thread, of one head or all."""
    rows = []
    for name in models:
        model = find(name, folder)
        heads = [model.head(label).name] if label else []
        one = np.zeros((1, model.size, model.size, 3), np.uint8)
        took = 1e3 * np.median(timeit.repeat(partial(model.answers, one, heads), repeat=30, number=1))
        size = (model.folder / "model.onnx").stat().st_size / 1e6
        rows.append({"model": name, "megabytes": round(size, 2), "ms_an_image": round(took, 2)})
    return pd.DataFrame(rows)


def layers(network, size: int) -> pd.DataFrame:
    """Parts of a network's backbone, and its heads: kind, channels and side of their maps in pixels, parameters."""
    from faces.research import networks

    table = networks.layer_table(network, size).reset_index()
    table.insert(1, "kind", [type(layer).__name__ for layer in network.features.children()])
    columns = ["layer", "kind", "channels", "side", "parameters"]
    heads = [
        [f"head {name}", "Linear", layer.out_features, 1, networks.parameter_count(layer)]
        for name, layer in network.heads.items()
    ]
    return pd.concat([table, pd.DataFrame(heads, columns=columns)], ignore_index=True)[columns]


# ------------------------------------------------------------------------------------------------ analysis of errors


groups = evaluation.groups  # by the name that the notebooks know


def quarters(frame: pd.DataFrame, columns: Mapping[str, int]) -> pd.DataFrame:
    """The quarter that each photo is in among those of its source, by its range, for columns -> decimals."""
    for column, digits in columns.items():
        parts = [evaluation.quartiles(part, digits).astype(object) for _, part in frame.groupby("source")[column]]
        frame = frame.assign(**{f"{column} (quarters)": pd.concat(parts)})
    return frame


def abstaining(frame: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Coverage and risk of answering at a confidence of ``threshold`` or more, each source apart, with intervals."""
    rows = []
    for source, part in frame.groupby("source"):
        sure, all_wrong = part[part["confidence"] >= threshold], 1 - part["correct"].mean()
        rows.append([source, len(sure) / len(part), *evaluation.bootstrap(~sure["correct"], sure["group"]), all_wrong])
    columns = ["source", "coverage", "risk", "low", "high", "risk of answering all"]
    return pd.DataFrame(rows, columns=columns).set_index("source")


VIEWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mirror": {"flip": True},
    "crop": {"across": 1.1, "down": 1.1},
    "crop, left": {"across": 1.1, "down": 1.1, "shift": (0.05, 0)},
    "crop, right": {"across": 1.1, "down": 1.1, "shift": (-0.05, 0)},
    "stretched across": {"across": 1.1},
    "stretched down": {"down": 1.1},
}
SETS = {
    "mirror": ["plain", "mirror"],
    "crops": ["plain", "crop", "crop, left", "crop, right"],
    "stretches": ["plain", "stretched across", "stretched down"],
    "all seven": list(VIEWS),
}


def test_time_augmentation(photos: pd.DataFrame, *, model: str, label: str, folder: Path | None = None) -> pd.DataFrame:
    """Differences of accuracy on the test rows between several views of each photo and the plain one, with intervals.

    The table has ``views`` (a key of ``SETS``), ``by``: probabilities "averaged", or "voted" (ties by the plain view),
    mean, low, high, photos.
    """
    import torch

    from faces.research.augment import view

    network = Exported(model, label, folder)
    test = photos[photos["split"] == "test"].reset_index(drop=True)
    truth, looks = test[label].map(network.classes.index).to_numpy(), {name: [] for name in VIEWS}
    for start in range(0, len(test), BATCH):
        pixels = images.decode_all(test["path"].iloc[start : start + BATCH], *network.frame)
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
        for name, change in VIEWS.items():
            seen = view(x, **change).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
            looks[name].append(network(seen))
    likely = {name: np.concatenate(parts) for name, parts in looks.items()}
    plain, rows = likely["plain"].argmax(1), []
    for name, members in SETS.items():
        stack = np.stack([likely[member] for member in members])
        one_hot = np.eye(stack.shape[2])
        votes = one_hot[stack.argmax(2)].sum(0) + 0.5 * one_hot[plain]
        for by, answer in {"averaged": stack.mean(0).argmax(1), "voted": votes.argmax(1)}.items():
            change = (answer == truth).astype(float) - (plain == truth)
            rows.append({"views": name, "by": by} | evaluation.interval(change, test["group"]) | {"photos": len(test)})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------ attributions


def occlusion(network: Exported, pixels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """By how much the log-odds of a class fall where a sixth of the image's side is covered with grey.

    Occlusion (Zeiler & Fergus, 1311.2901) needs answers alone, so that the exported network itself is explained.

    From uint8 ``[n, size, size, 3]`` and the number of the class of each image, ``[n]``: float32 ``[n, size, size]``.
    """
    import torch
    from captum.attr import Occlusion

    def forward(x: torch.Tensor) -> torch.Tensor:
        likely = network(x.permute(0, 2, 3, 1).byte().contiguous().numpy()).astype(float).clip(1e-6, 1 - 1e-6)
        return torch.from_numpy(np.log(likely / (1 - likely)))

    side = max(2, network.frame.size // 6)
    found = Occlusion(forward).attribute(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).float(),
        sliding_window_shapes=(3, side, side),
        strides=(3, side // 2, side // 2),
        baselines=127.0,
        target=torch.from_numpy(numbers),
        perturbations_per_eval=4,
    )
    return found.mean(1).float().numpy()


def portraits(where: Path, *, model: str, label: str, names: Sequence[str], folder: Path | None = None) -> pd.DataFrame:
    """Faces of portraits that may be shown, files below ``where``: the network's answers, and what it looks at.

    The table has ``portrait``, ``predicted``, ``confidence``; ``pixels`` and ``saliency``: bytes of uint8
    ``[size, size, 3]`` and float16 ``[size, size]``, see ``occlusion``.
    """
    network, detector = Exported(model, label, folder), finding.Detector(predict.ARTIFACTS / "face_finder")
    pixels = np.stack([finding.look(where / name, [network.frame], detector)[1][0][0] for name in names])
    likely = network(pixels)
    maps = occlusion(network, pixels, likely.argmax(1))
    return pd.DataFrame(
        {
            "portrait": [Path(name).stem for name in names],
            "predicted": [network.classes[number] for number in likely.argmax(1)],
            "confidence": likely.max(1),
            "pixels": [image.tobytes() for image in pixels],
            "saliency": [each.astype(np.float16).tobytes() for each in maps],
        }
    )


def mean_attributions(
    photos: pd.DataFrame, *, model: str, label: str, source: str, each: int, seed: int, folder: Path | None = None
) -> pd.DataFrame:
    """``occlusion`` averaged over test photos of one source, class by class, and the mean of those photos.

    The table has ``class``, ``photos``, ``pixels`` and ``saliency`` as that of ``portraits``; none below 50 photos.
    """
    network, rows = Exported(model, label, folder), []
    test = photos[(photos["split"] == "test") & (photos["source"] == source)]
    for number, name in enumerate(network.classes):
        part = test[test[label] == name].sample(frac=1, random_state=seed).head(each)
        pixels = images.decode_all(part["path"].tolist(), *network.frame)
        maps = occlusion(network, pixels, np.full(len(part), number)) if len(part) else np.zeros((1, 1, 1))
        shown = len(part) >= FEWEST_IN_A_MEAN
        mean = pixels.mean(0).round().astype(np.uint8).tobytes() if shown else None
        about = {"class": name, "photos": len(part), "pixels": mean}
        rows.append(about | {"saliency": maps.mean(0).astype(np.float16).tobytes() if shown else None})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------- label audit


def label_audit(
    photos: pd.DataFrame, *, label: str, recipe, train: int, folds: int, seed: int, folder: Path, cache: Path
) -> dict[str, pd.DataFrame]:
    """Find training labels that are likely wrong, and whether leaving them out helps.

    A network learns from ``train`` photos, which are then left out. On its features of all other training photos a
    logistic regression is fitted fold by fold, near duplicates together, and cleanlab's confident learning (Northcutt
    et al., 1911.00068) compares its out-of-fold predictions with the labels.

    Returns
    -------
    dict: "suspects", a row a source: photos, suspect, conflicting (near duplicates whose labels differ), both;
    "cleaning", a row a source: accuracy of the regression on test photos fitted with and without the suspects, and the
    paired difference; "worst": the 24 likeliest errors.
    """
    from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from faces.research import experiments

    learnt = few(photos, train, seed)
    network, _ = experiments.train(recipe, learnt, folder, cache=cache, keep="best")
    seen = set(learnt.loc[learnt["split"] == "train", "path"])
    audit = photos[(photos["split"] == "train") & ~photos["path"].isin(seen)].reset_index(drop=True)
    test = photos[photos["split"] == "test"].reset_index(drop=True)
    classes = sorted(photos[label].unique())
    truth, judged_by = (rows[label].map(classes.index).to_numpy() for rows in (audit, test))
    inside, outside = (_features(network, recipe, rows, cache) for rows in (audit, test))

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=200))
    kept_together = GroupKFold(folds, shuffle=True, random_state=seed)
    likely = cross_val_predict(model, inside, truth, groups=audit["group"], cv=kept_together, method="predict_proba")
    suspect = find_label_issues(truth, likely, n_jobs=1)
    conflicting = audit.groupby("group")[label].transform("nunique") > 1
    audit = audit.assign(suspect=suspect, conflicting=conflicting, both=conflicting & suspect)
    counts = {name: (name, "sum") for name in ("suspect", "conflicting", "both")}
    suspects = audit.groupby("source").agg(photos=("suspect", "size"), **counts).reset_index()
    right = [model.fit(inside[kept], truth[kept]).predict(outside) == judged_by for kept in (truth >= 0, ~suspect)]
    rows = []
    for source, members in test.groupby("source").indices.items():
        before, after = (hits[members] for hits in right)
        about = {"source": source, "with": before.mean(), "without": after.mean()}
        rows.append(about | evaluation.interval(after.astype(float) - before, test["group"].iloc[members]))
    given = likely[np.arange(len(truth)), truth]
    worst = audit.assign(probability=given)[suspect].sort_values("probability").head(24)
    worst = worst[["path", "source", label, "probability"]].reset_index(drop=True)
    return {"suspects": suspects, "cleaning": pd.DataFrame(rows), "worst": worst}


def _features(network, recipe, rows: pd.DataFrame, cache: Path) -> np.ndarray:
    """What the heads of a network see of each row, ``[n, width]``."""
    import torch

    from faces.research import batches, training

    pixels = batches.decode(rows, recipe.size, whole=recipe.whole, cache=cache)
    device, feed = training.pick_device(), batches.Batches(pixels, {}, 256)
    network = network.to(device).eval()
    with torch.inference_mode():
        parts = [network.embed(training.to_float(feed.take(some)[0], device)).cpu() for some in feed.order()]
    return torch.cat(parts).numpy()
