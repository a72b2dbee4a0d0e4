"""Figures and their intervals."""

import numpy as np
import pandas as pd
import pytest

from faces import evaluation


def frame(n=200, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.choice(["female", "male"], n)
    logits = rng.normal(size=(n, 2)) + 2 * (truth[:, None] == np.array(["female", "male"]))
    manifest = pd.DataFrame({"gender": truth, "group": np.arange(n), "source": rng.choice(["a", "b", None], n)})
    return evaluation.predictions(manifest, logits, ["female", "male"], "gender"), logits


def test_predictions_are_probabilities_labels_and_losses():
    table, logits = frame()
    np.testing.assert_allclose(table["p_female"] + table["p_male"], 1)
    expected = np.where(logits[:, 0] > logits[:, 1], "female", "male")
    assert (table["predicted"] == expected).all()
    assert (table["correct"] == (expected == table["gender"])).all()
    of_truth = np.where(table["gender"] == "female", table["p_female"], table["p_male"])
    np.testing.assert_allclose(table["loss"], -np.log(of_truth))
    assert (table["confidence"] >= 0.5).all()


def test_interval_of_independent_photos_is_about_the_binomial_one():
    right = np.arange(1000) < 900
    mean, low, high = evaluation.bootstrap(right)
    spread = 1.96 * np.sqrt(0.9 * 0.1 / 1000)
    assert mean == 0.9
    assert low == pytest.approx(0.9 - spread, abs=0.004)
    assert high == pytest.approx(0.9 + spread, abs=0.004)


def test_copies_of_photos_do_not_make_an_interval_narrower():
    right = np.arange(300) < 240
    single = evaluation.bootstrap(right)
    copied = evaluation.bootstrap(np.repeat(right, 10), np.repeat(np.arange(300), 10))
    naive = evaluation.bootstrap(np.repeat(right, 10))
    assert copied == pytest.approx(single)
    assert naive[2] - naive[1] < 0.5 * (copied[2] - copied[1])


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [
        low <= 0.8 <= high
        for trial in range(300)
        for _, low, high in [evaluation.bootstrap(rng.random(150) < 0.8, resamples=300, seed=trial)]
    ]
    assert 0.90 < np.mean(covered) < 0.985


def test_bootstrap_is_seeded_and_takes_nothing_for_nothing():
    values = np.random.default_rng(0).random(50)
    assert evaluation.bootstrap(values, seed=3) == evaluation.bootstrap(values, seed=3)
    assert evaluation.bootstrap(values, seed=3) != evaluation.bootstrap(values, seed=4)
    assert np.isnan(evaluation.bootstrap([])).all()


def test_by_group_counts_every_photo_once_and_names_the_unknown():
    table, _ = frame()
    groups = evaluation.by_group(table, "source")
    assert list(groups.index) == ["a", "b", "unknown"]
    assert groups["photos"].sum() == len(table)
    assert groups.loc["a", "mean"] == pytest.approx(table.loc[table["source"] == "a", "correct"].mean())
    assert ((groups["low"] <= groups["mean"]) & (groups["mean"] <= groups["high"])).all()


def test_summary_and_confusion_agree():
    table, _ = frame()
    counts = evaluation.confusion(table, "gender", ["female", "male"])
    assert counts.to_numpy().sum() == len(table)
    right = counts.loc["female", "female"] + counts.loc["male", "male"]
    assert evaluation.summary(table)["accuracy"]["value"] == pytest.approx(right / len(table), abs=1e-4)
    assert (counts.sum(axis=1) == table["gender"].value_counts()[["female", "male"]].to_numpy()).all()


def test_records_are_plain_json():
    table = pd.DataFrame({"n": [1, 2], "mean": [0.123456, np.nan]}, index=["x", 3])
    assert evaluation.records(table) == {"x": {"n": 1, "mean": 0.1235}, "3": {"n": 2, "mean": None}}
