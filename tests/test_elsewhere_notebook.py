"""Notebook 10 on drawn faces, and its tables."""

import json
from types import SimpleNamespace

import demo_run
import numpy as np
import pandas as pd
import pytest

from faces.research import elsewhere

NOTEBOOKS = ("10",)  # of the fixture `executed`


@pytest.mark.slow
def test_the_notebook_runs_and_every_model_answers_every_photo(executed):
    demo_run.check(executed)
    answers = pd.read_parquet(executed / "10" / "answers.parquet")
    assert set(answers["variant"]) == {"as taken", "margin 1.1", "side 64"}
    assert set(answers["task"]) == {"gender", "age", "glasses"}
    assert answers.groupby(["variant", "model"])["photo"].nunique().nunique() == 1
    assert set(json.loads((executed / "10" / "index.json").read_text())) == {"photos", "answers"}


def test_a_network_with_several_heads_answers_each():
    heads = {"sex": ("female", "male"), "age": (), "worn": ("no_glasses", "glasses")}
    model = SimpleNamespace(
        heads={name: SimpleNamespace(classes=classes) for name, classes in heads.items()},
        answers=lambda x: {name: np.zeros((len(x), len(classes) or 3)) for name, classes in heads.items()},
    )
    found = list(elsewhere._heads(model, np.zeros((5, 8, 8, 3), np.uint8), batch=2))
    assert [task for task, _, _ in found] == ["gender", "age", "glasses"]
    assert all(len(answers) == 5 for _, _, answers in found)


@pytest.fixture
def table():
    photos = pd.DataFrame({"photo": range(6), "person": list("aabbcc"), "gender": ["male"] * 6, "age": [30.0] * 6})
    photos = photos.assign(expression=["neutral", "smiling"] * 3, glasses=None)
    said = [
        {"photo": photo, "model": model, "task": "age", "predicted": years, "low": years - 1, "high": years + 1}
        for model, offset in (("first", 0), ("second", 2))
        for photo, years in enumerate([30 + offset, 31 + offset] * 3)
    ]
    said += [{"photo": p, "model": "third", "task": "gender", "label": "male"} for p in range(6)]
    return elsewhere.judged(pd.DataFrame(said).assign(variant=elsewhere.AS_TAKEN), photos)


def test_models_are_compared_on_the_same_photos_and_one_person_has_no_interval(table):
    ages = table[table["task"] == "age"]
    assert elsewhere.means(ages, "model", "absolute")["mean"].to_dict() == {"first": 0.5, "second": 2.5}
    assert elsewhere.means(ages, "model", "covered")["mean"].to_dict() == {"first": 1.0, "second": 0.0}
    apart = elsewhere.against_first(ages, "absolute")
    assert apart.loc["second", ["mean", "low", "high"]].tolist() == [2, 2, 2]
    one = elsewhere.means(table[table["person"] == "a"], "model", "absolute")
    assert one["low"].isna().all() and (one["people"] == 1).all()


def test_expressions_of_a_person_are_compared(table):
    pairs = elsewhere.between_expressions(table)
    assert set(pairs.loc[pairs["task"] == "age", "by"]) == {1.0}
    turned = elsewhere.means(pairs, "model", "turned").loc["third"]
    assert turned["mean"] == 0 and turned["high"] > 0.3  # three people prove little
