"""Altered pictures: files of their own with rows of their own, so that networks can be asked about them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import logit

from faces import images
from faces.research import drawing, evaluation

EYES = ((0.33, 0.40), (0.67, 0.40))  # where eyes are on average in frontal crops, as shares of the side
OF_FILES = ("path", "name", "sha256", "phash", "width", "height")  # columns that an altered file does not share


def zoom(image: Image.Image, factor: float) -> Image.Image:
    """Cut out more tightly (above 1), or more loosely with a black margin (below 1); the size stays."""
    width, height = (max(1, round(side * factor)) for side in image.size)
    canvas = Image.new("RGB", image.size)
    canvas.paste(image.resize((width, height)), ((image.width - width) // 2, (image.height - height) // 2))
    return canvas


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Scale down to a longer side of so many pixels; smaller pictures stay as they are."""
    factor = side / max(image.size)
    return image if factor >= 1 else image.resize([max(1, round(length * factor)) for length in image.size])


def compress(image: Image.Image, quality: int) -> Image.Image:
    """Encode as JPEG of this quality, 1 to 95, and decode again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def wear(image: Image.Image, seed: int, *, eyes: Sequence | np.ndarray = EYES, jitter: float = 0.02) -> Image.Image:
    """Draw glasses of a random kind at the eyes, given as shares of the side, or up to about ``jitter`` beside them."""
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big")])
    places = np.array(eyes) + rng.normal(0, jitter, (1, 2)) + rng.normal(0, jitter / 2, (2, 2))
    return drawing.put_on(rng, image, places * image.size, drawing.GLASSES[rng.integers(len(drawing.GLASSES))])


def save(
    photos: pd.DataFrame, folder: Path, change: Callable[[Image.Image, Any], Image.Image], values: Sequence
) -> pd.DataFrame:
    """Alter every photo once for each value by ``change``, and write the results as PNG; files that are there are kept.

    Returns the rows of ``photos`` once for each value, with ``path`` of the altered file and ``value``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for value in values:
        paths = []
        for path in photos["path"]:
            content = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:20]
            paths.append(folder / f"{content}_{change.__name__}_{value}.png")
            if not paths[-1].is_file():
                partial = paths[-1].with_suffix(".partial")
                change(images.open_rgb(path), value).save(partial, "PNG", compress_level=1)
                partial.replace(paths[-1])
        rows = photos.drop(columns=list(OF_FILES), errors="ignore")
        parts.append(rows.assign(path=[str(path) for path in paths], value=value))
    return pd.concat(parts, ignore_index=True)


def with_drawn_glasses(photos: pd.DataFrame, *, share: float, seed: int, folder: Path) -> pd.DataFrame:
    """The photos, and besides a share of the frontal training faces without glasses with glasses drawn onto them."""
    bare = photos[(photos["split"] == "train") & (photos["glasses"] == "no_glasses")]
    bare = bare[bare["pose"] == "frontal"] if "pose" in bare else bare
    drawn = save(bare.sample(frac=share, random_state=seed), folder, wear, [seed])
    return pd.concat([photos, drawn.drop(columns="value").assign(glasses="glasses")], ignore_index=True)


def ask(
    photos: pd.DataFrame,
    *,
    change: str,
    values: Sequence,
    networks: Mapping[str, str],
    number: int,
    seed: int,
    folder: Path,
    cache: Path,
) -> pd.DataFrame:
    """``experiments.predict`` of each network about photos as one change makes them, with ``network`` and ``value``.

    ``change`` is the name of one of this module, e.g. "zoom"; ``networks``: name -> folder of its run below ``folder``;
    ``number``: take so many photos at random.
    """
    from faces.research import experiments  # brings torch, which reading results does without

    some = photos.sample(min(number, len(photos)), random_state=seed)
    rows = save(some, folder / "altered", globals()[change], values)
    said = {name: experiments.predict(folder / run, rows, cache=cache) for name, run in networks.items()}
    return pd.concat([table.assign(network=name) for name, table in said.items()], ignore_index=True)


def age_errors(photos: pd.DataFrame, **options) -> pd.DataFrame:
    """Mean absolute error of ages by network and value, with intervals; options as for ``ask``."""
    return mean_errors(ask(photos, **options))


def mean_errors(answers: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute error by network and value: network, value, photos, mean, low, high."""
    rows = []
    for (network, value), part in answers.groupby(["network", "value"], sort=False):
        figures = evaluation.interval((part["age_predicted"] - part["age"]).abs(), part["group"])
        rows.append({"network": network, "value": value, "photos": len(part)} | figures)
    return pd.DataFrame(rows)


def hide(pixels: np.ndarray, *, patch: int, stride: int) -> np.ndarray:
    """One image with a grey square over each part in turn: uint8 ``[rows * columns, size, size, 3]``."""
    starts = range(0, len(pixels) - patch + 1, stride)
    hidden = np.repeat(pixels[None], len(starts) ** 2, 0)
    for number, (top, left) in enumerate((top, left) for top in starts for left in starts):
        hidden[number, top : top + patch, left : left + patch] = 128
    return hidden


# --------------------------------------------------------------------------------------------------------- glasses

PLACES = {"none": None, "worn": (0.0, 0.0), "pushed up": (0.0, -0.26), "held": (0.0, 0.40)}  # shift from the eyes
PORTRAITS = Path(__file__).resolve().parents[2] / "samples" / "portraits" / "london"


def portraits(folder: Path, *, seed: int) -> pd.DataFrame:
    """Faces of the portraits in ``samples``, cut out as in use, with glasses drawn at several places.

    A row for each person and place has ``path``, ``group`` (the person), ``gender``, ``place``, and ``pixels``, the
    bytes of the picture in 64 pixels, uint8 ``[64, 64, 3]``.
    """
    from faces import finding
    from faces.predict import ARTIFACTS

    detector = finding.Detector(ARTIFACTS / "face_finder")
    people = pd.read_csv(PORTRAITS / "labels.csv", dtype=str).query("expression == 'neutral'")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for person in people.itertuples():
        picture = images.open_rgb(PORTRAITS / person.file)
        face = detector.find(picture)[0]
        left, top, right, _ = box = finding.margin(face)
        eyes = (np.array(sorted(face.landmarks[:2])) - (left, top)) / (right - left)
        crop = finding.cut(picture, box, 128)
        for place, shift in PLACES.items():
            image = crop if shift is None else wear(crop, seed, eyes=eyes + shift, jitter=0)
            path = folder / f"{person.person}_{place.replace(' ', '_')}.png"
            image.save(path)
            pixels = np.asarray(image.resize((64, 64))).tobytes()
            rows.append([str(path), person.person, person.gender, place, pixels])
    return pd.DataFrame(rows, columns=["path", "group", "gender", "place", "pixels"])


def worn_or_held(
    before: pd.DataFrame, *, seed: int, people: int, patch: int, stride: int, folder: Path, cache: Path
) -> dict[str, pd.DataFrame]:
    """What the network below ``folder`` answers about portraits with glasses at several places, and where it looks.

    ``before`` is the history of the network: a new one makes this step stale. ``patch`` and ``stride`` are of the grey
    squares that hide parts of the picture, in pixels of the network's input.

    Returns
    -------
    dict: "answers": group, gender, place, ``p_glasses``; "maps": of so many ``people`` besides ``pixels`` and ``drop``,
    the bytes of how much hiding each part lowers the log-odds of the answer, float32 ``[k, k]``.
    """
    import torch

    from faces.research import batches, experiments, training

    network, recipe, found, fitted = experiments.load(folder / "network")

    def answer(pixels: np.ndarray) -> np.ndarray:
        outputs = training.predict(network, batches.Batches(pixels, {}, 256))["glasses"]
        answers = found[0].answer(torch.from_numpy(outputs), fitted.get("glasses", {})).numpy()
        return answers[:, found[0].classes.index("glasses")]

    rows = portraits(folder / "portraits", seed=seed)
    squares = images.decode_all(rows["path"].tolist(), recipe.size)
    rows = rows.assign(p_glasses=answer(squares))
    some = rows[rows["group"].isin(rows["group"].unique()[:people])]
    drops = []
    for number, likely in zip(some.index, some["p_glasses"], strict=True):
        hidden = answer(hide(squares[number], patch=patch, stride=stride))
        # In log-odds: close to 0 and 1 a probability hardly moves. Their sign is that of the answer.
        odds = logit(np.clip(np.append(hidden, likely), 1e-6, 1 - 1e-6))
        drops.append(((odds[-1] - odds[:-1]) * np.sign(odds[-1])).astype(np.float32).tobytes())
    return {"answers": rows.drop(columns=["path", "pixels"]), "maps": some.drop(columns="path").assign(drop=drops)}


def detect(predictions: pd.DataFrame) -> pd.DataFrame:
    """``evaluation.detection`` of glasses on test photos, at the threshold of best F1 on validation photos.

    ``val_auc`` is the area under the ROC curve on validation photos.
    """
    named = predictions.rename(columns={"glasses_p_glasses": "p_glasses"})
    val, test = (named[named["split"] == split] for split in ("val", "test"))
    threshold = evaluation.best_threshold(val, "glasses", "glasses")
    table = evaluation.detection(test, "glasses", "glasses", threshold=threshold)
    return table.assign(val_auc=evaluation.detection(val, "glasses", "glasses", resamples=2).loc["auc", "value"])


def doubtful(photos: pd.DataFrame, *, recipe, folds: int, seed: int, folder: Path, cache: Path) -> pd.DataFrame:
    """Whether networks that have not seen a training photo contradict its label (cleanlab): ``suspect``, row by row."""
    from cleanlab.filter import find_label_issues
    from sklearn.model_selection import GroupKFold

    from faces.research import experiments

    train = photos[photos["split"] == "train"]
    parts = []
    split = GroupKFold(folds, shuffle=True, random_state=seed).split(train, groups=train["group"])
    for number, (fit, held) in enumerate(split):
        part = pd.concat([train.iloc[fit], train.iloc[held].assign(split="val")])
        experiments.train(recipe, part, folder / f"fold-{number}", cache=cache)
        parts.append(experiments.predict(folder / f"fold-{number}", train.iloc[held], cache=cache))
    asked = pd.concat(parts)
    likely = asked[["glasses_p_glasses", "glasses_p_no_glasses"]].to_numpy()
    issues = find_label_issues((asked["glasses"] == "no_glasses").astype(int).to_numpy(), likely, n_jobs=1)
    return pd.DataFrame({"suspect": pd.Series(issues, asked.index).reindex(photos.index, fill_value=False)})


def trials(
    photos: pd.DataFrame,
    suspects: pd.DataFrame,
    *,
    stages: Sequence,
    steady: Sequence,
    widths: Sequence[int],
    seeds: Sequence[int],
    drawn_share: float,
    folder: Path,
    cache: Path,
) -> dict[str, pd.DataFrame]:
    """Train small networks that differ in one thing, once for each of ``seeds``, and networks of several widths.

    ``suspects`` are those of ``doubtful``. Augmentation becomes harsher by ``stages`` and does not in ``steady`` ones.

    Returns
    -------
    dict: "what": run, seed, metric, value, low, high; "sizes": width, parameters and the same, of the first seed.
    """
    from faces.research import experiments, networks

    clean = photos[~suspects["suspect"].to_numpy()]
    drawn = with_drawn_glasses(clean, share=drawn_share, seed=seeds[0], folder=folder / "drawn")
    weighted, level = ([replace(one, balance=("glasses",)) for one in recipes] for recipes in (stages, steady))
    runs: dict[str | int, tuple[pd.DataFrame, Sequence]] = {
        "cleaned, weighted, harsher by stages": (clean, weighted),
        "suspects not left out": (photos, weighted),
        "classes not weighted": (clean, stages),
        "one strength of augmentation": (clean, level),
        "with drawn glasses": (drawn, weighted),
    }
    runs |= {width: (clean, [replace(stage, options={"width": width}) for stage in stages]) for width in widths}
    what, sizes = [], []
    for name, (rows, recipe) in runs.items():
        for seed in seeds if isinstance(name, str) else seeds[:1]:
            place = folder / "trials" / f"{name}-{seed}".replace(", ", "_").replace(" ", "_")
            seeded = [replace(stage, seed=seed) for stage in recipe]
            table = detect(experiments.run(rows, recipe=seeded, folder=place, cache=cache)["predictions"])
            table = table.rename_axis("metric").reset_index()
            if isinstance(name, str):
                what.append(table.assign(run=name, seed=seed))
            else:
                count = networks.parameter_count(experiments.load(place)[0])
                sizes.append(table.assign(width=name, parameters=count))
    return {"what": pd.concat(what), "sizes": pd.concat(sizes)}


def taught(
    photos: pd.DataFrame,
    suspects: pd.DataFrame,
    more_dirs: Sequence,
    *,
    stages: Sequence,
    more_photos: int,
    drawn_share: float,
    seed: int,
    folder: Path,
    cache: Path,
) -> dict[str, pd.DataFrame]:
    """Train a network by ``stages`` on labels and on the answers of their teacher, about photos without a label too.

    ``suspects``, those of ``doubtful``, are left out. Photos without a label are ``more_photos`` of ``more_dirs``, at
    random, none near a test photo. Returns what ``experiments.run`` does, and in "teacher" the figures of the teacher.
    """
    from faces.predict import find_model
    from faces.research import data, experiments

    clean = photos[~suspects["suspect"].to_numpy()]
    rows = with_drawn_glasses(clean, share=drawn_share, seed=seed, folder=folder / "drawn")
    if more_dirs:
        more = data.read(more_dirs)
        more = more.sample(min(more_photos, len(more)), random_state=seed).reset_index(drop=True)
        both = data.extend(photos, data.scan(more, cache=cache))
        more = data.usable(both.iloc[len(photos) :].query("split == 'train'"))
        rows = pd.concat([rows, more.assign(glasses=None)], ignore_index=True)
    found = experiments.run(rows, recipe=stages, folder=folder / "network", cache=cache)
    asked = photos[photos["split"] != "train"]
    teacher = detect(experiments.predict(find_model(stages[0].teachers[0]), asked, cache=cache))
    return found | {"teacher": teacher.rename_axis("metric").reset_index()}


def with_qualities(photos: pd.DataFrame, *, size: int, cache: Path) -> pd.DataFrame:
    """The rows with brightness, contrast and sharpness of each photo, see ``evaluation.qualities``."""
    from faces.research import batches

    pixels = batches.decode(photos, size, cache=cache)
    found = evaluation.qualities(pixels[np.arange(len(pixels))])
    return photos.assign(**{name: found[name].to_numpy() for name in found})


def scores(answers: pd.DataFrame, threshold: float, metric: str) -> pd.DataFrame:
    """One figure of finding glasses by value of a change, from rows of ``ask``: network, value, mean, low, high."""
    rows = []
    named = answers.rename(columns={"glasses_p_glasses": "p_glasses"})
    for (network, value), part in named.groupby(["network", "value"]):
        table = evaluation.detection(part, "glasses", "glasses", threshold=threshold, resamples=500)
        rows.append([network, value, *table.loc[metric]])
    return pd.DataFrame(rows, columns=["network", "value", "mean", "low", "high"])
