"""Steps of the notebook on portraits from elsewhere: exported models are asked about photos as a user's would be."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from faces import finding, images, predict
from faces.research import data, evaluation, explore, plots

SHOWN = Path(__file__).resolve().parents[2] / "samples"  # photos of people who agreed to be shown
CREDIT = "Portraits: DeBruine and Jones, Face Research Lab London Set, doi 10.6084/m9.figshare.5047666.v5, CC BY 4.0"
AS_TAKEN = "as taken"
TASKS = ("gender", "age", "glasses", "other")
SHARES = ("right", "covered", "turned")


def people(roots: Sequence[str | Path]) -> pd.DataFrame:
    """Labelled photos of folders, readable ones: photo (a number), person, expression, gender, age, ethnicity.

    ``file`` is the path below ``samples`` of photos that lie there and may be shown, otherwise missing.
    """
    found = data.usable(data.scan(data.read(list(roots)))).reset_index(drop=True)
    if "ethnicity" not in found and "race" in found:
        found["ethnicity"] = found["race"]
    for column in ("person", "expression", "gender", "age", "ethnicity", "glasses"):
        found[column] = found.get(column)
    found["person"] = found["person"].fillna(found.index.to_series().astype(str))
    paths = [Path(path).resolve() for path in found["path"]]
    found["file"] = [str(p.relative_to(SHOWN)) if p.is_relative_to(SHOWN) else None for p in paths]
    found["age"] = found["age"].astype(float)
    columns = ["path", "file", "source", "person", "expression", "gender", "age", "ethnicity", "glasses"]
    return found[columns].assign(photo=range(len(found)))


def ask(
    photos: pd.DataFrame, *, models: Sequence[str], margins: Sequence[float] = (), sides: Sequence[int] = ()
) -> pd.DataFrame:
    """Answers of all heads of exported models to the largest face of each photo, and to altered copies.

    ``margins`` are factors on the side of the square that is cut out around the face, ``sides`` long sides in pixels
    to which whole photos are scaled down before a face is looked for.

    Returns
    -------
    DataFrame: photo, variant, model, task, label and probability of the likeliest class, or age, low and high; ``face``
    is the side of the face in pixels, missing where none was found and the central square was taken.
    """
    loaded = [predict.Model(name) for name in models]
    detector = finding.Detector(predict.ARTIFACTS / "face_finder")
    variants = [AS_TAKEN, *(f"margin {m:g}" for m in margins), *(f"side {side}" for side in sides)]
    rows = []
    for variant in variants:
        kind, _, number = variant.partition(" ")
        cut = {
            model.frame: [_square(path, model.frame, detector, kind, number) for path in photos["path"]]
            for model in loaded
        }
        for model in loaded:
            squares = np.stack([square for square, _ in cut[model.frame]])
            faces = [side for _, side in cut[model.frame]]
            for task, classes, answers in _heads(model, squares):
                table = pd.DataFrame({"photo": photos["photo"], "face": faces})
                if classes:
                    best = answers.argmax(1)
                    table["label"], table["probability"] = np.array(classes, object)[best], answers.max(1)
                else:
                    table[["predicted", "low", "high"]] = answers
                rows.append(table.assign(variant=variant, model=model.name, task=task))
    return pd.concat(rows, ignore_index=True)


def _square(path: str, frame: images.Frame, detector: finding.Detector, kind: str, number: str):
    """The square of the largest face as a model sees it, and the face's side."""
    source: str | io.BytesIO = path
    if kind == "side":
        source, picture = io.BytesIO(), images.open_rgb(path)
        picture.thumbnail((int(number), int(number)))
        picture.save(source, "JPEG", quality=92)
    if kind == "margin" and (seen := detector.find(picture := images.open_rgb(path))):
        left, top, right, bottom = finding.margin(seen[0])
        reach = (right - left) * (float(number) - 1) / 2
        box = (left - reach, top - reach, right + reach, bottom + reach)
        return np.asarray(finding.cut(picture, box, frame.size)), seen[0].side
    found, squares = finding.look(source, [frame], detector)
    if not squares:
        return images.decode(source, *frame), np.nan
    return squares[0][0], found[0].side if found[0] else np.nan


def _heads(model: predict.Model, squares: np.ndarray, batch: int = 32):
    """(task, its classes or none, answers) of each head of a model."""
    answers = [model.answers(squares[start : start + batch]) for start in range(0, len(squares), batch)]
    tasks = {("female", "male"): "gender", ("glasses", "no_glasses"): "glasses", (): "age"}
    for name, head in model.heads.items():
        task = tasks.get(tuple(sorted(head.classes)), "other")
        yield task, head.classes, np.concatenate([part[name] for part in answers])


def judged(answers: pd.DataFrame, photos: pd.DataFrame) -> pd.DataFrame:
    """Answers beside labels: ``right`` of classes; ``error`` (less the true age), ``absolute``, ``covered`` of ages."""
    table = answers.merge(photos.drop(columns="path", errors="ignore"), on="photo")
    truth = table["gender"].where(table["task"] == "gender", table["glasses"])
    table["right"] = (table["label"] == truth).astype(float).where(truth.notna() & (table["task"] != "age"))
    table["error"] = table["predicted"] - table["age"]
    table["absolute"] = table["error"].abs()
    inside = table["age"].between(table["low"], table["high"]).astype(float)
    return table.assign(covered=inside.where(table["error"].notna()))


def means(table: pd.DataFrame, by: str | list[str], column: str) -> pd.DataFrame:
    """Mean of a column for each value of ``by`` with its 95% interval, drawn by people, and their number.

    Shares on which all agree have Wilson's interval; one person has none.
    """
    rows = {}
    for value, part in table[table[column].notna()].groupby(by, sort=False):
        values = part[column].astype(bool if column in SHARES else float)
        people, figures = part["person"].nunique(), evaluation.bootstrap(values, part["person"])
        rows[value] = [people, len(part), *(figures if people > 1 else (figures[0], np.nan, np.nan))]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["people", "photos", "mean", "low", "high"])
    return table.set_index(pd.MultiIndex.from_tuples(table.index, names=by)) if isinstance(by, list) else table


def against_first(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean of a column of each model less that of the first, on the same photos, with its paired 95% interval."""
    wide = table.pivot(index=["photo", "person"], columns="model", values=column)[list(table["model"].unique())]
    apart = wide.iloc[:, 1:].sub(wide.iloc[:, 0], axis=0).melt(ignore_index=False, value_name="apart").reset_index()
    return means(apart, "model", "apart")


def moved(table: pd.DataFrame, kept: pd.DataFrame, of: str = "photo") -> pd.DataFrame:
    """What answers to altered copies differ by from those to the photos as taken: ``turned`` classes, ``by`` years."""
    before = kept[[of, "model", "task", "label", "predicted"]]
    both = table.merge(before, on=[of, "model", "task"], suffixes=("", "_before"))
    turned = (both["label"] != both["label_before"]).astype(float).where(both["task"] != "age")
    return both.assign(turned=turned, by=both["predicted"] - both["predicted_before"])


def between_expressions(kept: pd.DataFrame) -> pd.DataFrame:
    """Answers to the smiling photo of each person beside those to the neutral one, as ``moved`` has them."""
    wide = dict(list(kept.groupby("expression")))
    if not {"neutral", "smiling"} <= set(wide):
        return kept.iloc[:0].assign(turned=np.nan, by=np.nan)
    return moved(wide["smiling"], wide["neutral"], "person")


def told(table: pd.DataFrame, form: str) -> pd.DataFrame:
    """Means with their intervals as words, in ``mean``; ``form`` is how a number is written, e.g. {:.1%}."""
    return table[["people", "photos"]].assign(mean=evaluation.in_words(table, form))


def sheet(some: pd.DataFrame, answers: pd.DataFrame) -> tuple[list, list, list]:
    """Pictures, headings and answers of some photos for ``plots.answer_sheet``, in their order."""
    pictures, headings, said = [], [], []
    for row in some.to_dict("records"):
        picture = images.open_rgb(row["path"] if isinstance(row.get("path"), str) else SHOWN / row["file"])
        if row["file"]:  # portraits with much around the head
            width, height = picture.size
            picture = picture.crop((0.14 * width, 0.06 * height, 0.86 * width, 0.78 * height))
        pictures.append(np.asarray(images.square(picture, 96)))
        about = [row["gender"], "" if pd.isna(row["age"]) else f"{row['age']:.0f}", row["expression"]]
        headings.append(", ".join(str(part) for part in about if part))
        rows = answers[answers["photo"] == row["photo"]]
        by_question = rows.sort_values("task", key=lambda tasks: tasks.map(TASKS.index), kind="stable")
        said.append([in_words(one) for one in by_question.to_dict("records")])
    return pictures, headings, said


def in_words(row: dict) -> tuple[str, str]:
    """The model and its answer to one photo."""
    if row["task"] == "age":
        return row["model"], f"{row['predicted']:.0f} ({row['low']:.0f}–{row['high']:.0f})"
    return row["model"], f"{row['label'].replace('_', ' ')} {row['probability']:.0%}"


def browse(photos: pd.DataFrame, answers: pd.DataFrame, most: int = 24) -> None:
    """A slider for the confidence from which a class is answered; shows the answers that are wrong above it."""
    known = answers[answers["right"].notna()]

    def show(threshold: float):
        kept = known[known["probability"] >= threshold]
        wrong = kept[kept["right"] == 0].sort_values("probability", ascending=False)
        said = f"{len(kept)} of {len(known)} answered, {len(wrong)} of them wrong"
        rows = photos.set_index("photo").loc[wrong["photo"].head(most)]
        if not len(rows):
            return said, None
        titles = [f"{row.label} {row.probability:.0%}" for row in wrong.head(most).itertuples()]
        return said, plots.grid(images.decode_all(rows["path"], 96), titles)

    explore.interact(show, threshold=(0.5, 1.0, 0.01))
