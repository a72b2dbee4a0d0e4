"""Test an exported model on labelled photos, with intervals; asks the ONNX file, without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd

from faces.pipeline import Pipeline
from faces.predict import TASKS, Head, Model, UsageError
from faces.research import data, evaluation

BY = ("gender", "age_group", "race")


def predict(model: Model, manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows that can be read, with the answers of an exported model about their central squares.

    Those are NAME_predicted and NAME_confidence of a head of classes, NAME_predicted, NAME_low and NAME_high of an age.
    """
    photos = Pipeline(dict.fromkeys(model.heads, model), "crop").stream("", manifest["path"].tolist())
    rows = []
    for number, photo in enumerate(photos):
        for face in photo.faces:
            row: dict = {"row": number}
            for name, answer in face.answers.items():
                if model.heads[name].classes:
                    row |= {f"{name}_predicted": answer.label, f"{name}_confidence": answer.confidence}
                else:
                    row |= {f"{name}_predicted": answer.years, f"{name}_low": answer.low, f"{name}_high": answer.high}
            rows.append(row)
    answers = pd.DataFrame(rows, columns=None if rows else ["row"]).set_index("row")
    return manifest.reset_index(drop=True).join(answers, how="inner")


def labels(predictions: pd.DataFrame, head: Head) -> pd.Series:
    """The true answers of a head: the column of its name, or the class folders if those are its classes."""
    if head.name in predictions:
        found = predictions[head.name]
    elif head.classes and "label" in predictions and set(predictions["label"].dropna()) <= set(head.classes):
        found = predictions["label"]
    else:
        return pd.Series(None, predictions.index, dtype=object)
    if not head.classes:
        return found.astype(float)
    found = found.map(lambda value: data.COMMON_RACES.get(value, value)) if head.name == "race" else found
    return found.astype(object).where(found.isin(head.classes), None)


def evaluate(model: Model, manifest: pd.DataFrame, by: Sequence[str] = BY) -> pd.DataFrame:
    """``evaluation.figures`` of an exported model.

    Parameters
    ----------
    manifest : with ``path``, ``source``, ``group`` and labels.
    by : columns whose values are looked at apart.

    Raises
    ------
    UsageError : no photo that can be read has a label of any head.
    """
    predictions, measured = predict(model, manifest), {}
    for head in model.heads.values():
        label = labels(predictions, head)
        if label.notna().any():
            measured |= evaluation.measured(predictions, head.name, label)
    if not measured:
        known = ", ".join(name for name in manifest if name not in data.OWN) or "none"
        raise UsageError(f"no labels of {', '.join(model.heads)}: the photos have {known}")
    return evaluation.figures(predictions, measured, by)


def main(argv: Sequence[str] | None = None) -> int:
    """Test a model on labelled photos; returns the exit status: 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="faces evaluate", description=main.__doc__)
    parser.add_argument("model", metavar="MODEL", help=f"a task ({', '.join(TASKS)}), a name, or a folder")
    parser.add_argument("data", metavar="DIR", nargs="+", help="folders of labelled photos, each showing one face")
    parser.add_argument("--by", default=",".join(BY), help="columns whose values are looked at apart (%(default)s)")
    split = "all photos, or those of the test split (%(default)s)"
    parser.add_argument("--split", choices=("all", "test"), default="all", help=split)
    parser.add_argument("--cache", metavar="DIR", help="folder that keeps the scan of the photos")
    parser.add_argument("--output", metavar="FILE.csv", help="write the figures there too")
    options = parser.parse_args(argv)
    try:
        model = Model(TASKS.get(options.model, options.model))
        if options.split == "test":
            manifest = data.prepare(options.data, cache=options.cache).query("split == 'test'")
        else:
            manifest = data.group(data.scan(data.read(options.data), cache=options.cache))
        figures = evaluate(model, data.usable(manifest), options.by.split(","))
        if options.output:
            figures.round(4).to_csv(options.output, index=False)
    except (UsageError, data.LayoutError, OSError) as error:
        print(f"faces evaluate: {error}", file=sys.stderr)
        return 2
    about = figures["by"].str.cat(figures["value"], sep=" ").str.strip().replace("", "all photos")
    shown = figures.assign(photos=figures["photos"].map("{:,}".format), of=about)
    for name in ("mean", "low", "high"):
        years = figures["metric"] == "mae"
        shown[name] = np.where(years, figures[name].map("{:.2f}".format), figures[name].map("{:.1%}".format))
    print(shown[["head", "metric", "source", "of", "photos", "mean", "low", "high"]].to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
