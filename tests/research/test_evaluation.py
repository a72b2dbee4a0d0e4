"""Figures and their intervals."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics

from faces.research import evaluation


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


def test_an_interval_is_seeded_and_copies_of_photos_do_not_make_it_narrower():
    right = np.arange(300) < 240
    single = evaluation.bootstrap(right)
    copied = evaluation.bootstrap(np.repeat(right, 10), np.repeat(np.arange(300), 10))
    naive = evaluation.bootstrap(np.repeat(right, 10))
    assert copied == pytest.approx(single)
    assert naive[2] - naive[1] < 0.5 * (copied[2] - copied[1])
    assert single == evaluation.bootstrap(right) != evaluation.bootstrap(right, seed=4)
    assert np.isnan(evaluation.bootstrap([])).all()


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [
        low <= 0.8 <= high
        for trial in range(300)
        for _, low, high in [evaluation.bootstrap(rng.random(150) < 0.8, resamples=300, seed=trial)]
    ]
    assert 0.90 < np.mean(covered) < 0.985


@pytest.mark.parametrize("right", [True, False])
def test_where_all_groups_agree_the_interval_is_wilsons(right):
    value, low, high = evaluation.bootstrap(np.full(40, right), np.arange(40) // 4)
    width = 1.96**2 / (10 + 1.96**2)  # of ten groups, not of forty photos
    expected = (1.0, 1 - width, 1.0) if right else (0.0, 0.0, width)
    assert (value, low, high) == pytest.approx(expected, abs=1e-3)
    one = evaluation.bootstrap(np.array([True, False, True]), np.zeros(3))
    assert one[0] == pytest.approx(2 / 3) and one[2] - one[1] > 0.5  # one group tells next to nothing
    assert evaluation.bootstrap([0, 0])[1:] == (0.0, 0.0)  # differences are no shares


def told(truth, said, absent=()):
    frame = pd.DataFrame({"source": "pets", "group": range(len(truth)), "pet_predicted": list(said)})
    measured = evaluation.measured(frame, "pet", pd.Series(list(truth), dtype=object))
    figures = evaluation.figures(frame, measured)
    return evaluation.told(figures.to_dict("records"), {"pet": absent})


def test_figures_are_told_and_too_few_test_photos_and_absent_classes():
    assert told("", "") == ["no test photos: nothing is known of how good it is"]
    assert told("c", "c", "d") == [
        "pets: pet: 1 of 1 test photos right, too few to tell how good it is; none shows d: nothing is known of those"
    ]
    [line] = told("c" * 20, "c" * 20, "d")
    assert line.startswith("pets: pet: 100.0% of 20 test photos right (95% interval 83.9% to 100.0%); none shows d")
    [line] = told("cd" * 10, "cc" * 10)
    assert line.startswith("pets: pet: 50.0% of 20 test photos right (95% interval") and "none" not in line
    row = {"head": "age", "metric": "mae", "source": "faces", "by": "", "photos": 40, "groups": 40}
    row |= {"mean": 4.666, "low": 4.1, "high": 5.2}
    assert evaluation.told([row, row | {"metric": "coverage"}, row | {"by": "gender"}], {}) == [
        "faces: age: 4.67 years of mean absolute error on 40 test photos (95% interval 4.10 to 5.20)"
    ]


def test_by_group_counts_every_photo_once_and_names_the_unknown():
    table, _ = frame()
    groups = evaluation.by_group(table, "source")
    assert list(groups.index) == ["a", "b", "unknown"]
    assert groups["photos"].sum() == len(table)
    assert groups.loc["a", "mean"] == pytest.approx(table.loc[table["source"] == "a", "correct"].mean())
    assert ((groups["low"] <= groups["mean"]) & (groups["mean"] <= groups["high"])).all()
    none = pd.DataFrame({"source": [], "correct": [], "group": []})
    assert list(evaluation.by_group(none, "source")) == ["photos", "groups", "mean", "low", "high"]


def sure(n=20_000, factor=3.0, seed=0):
    """Logits that claim ``factor`` times what is true of them: (logits, targets)."""
    rng = np.random.default_rng(seed)
    honest = np.c_[np.zeros(n), rng.normal(0, 2, n)]
    targets = (rng.random(n) < expit(honest[:, 1])).astype(int)
    return honest * factor, targets


def test_calibration_improves_and_accuracy_stays():
    logits, targets = sure()
    manifest = pd.DataFrame({"gender": np.array(["female", "male"])[targets], "group": np.arange(len(targets))})
    tables = [
        evaluation.predictions(manifest, logits / temperature, ["female", "male"], "gender") for temperature in (1, 3)
    ]
    assert tables[0]["correct"].equals(tables[1]["correct"])
    before, after = map(evaluation.calibration_error, tables)
    assert before > 0.08 and after < 0.015
    table = evaluation.reliability(tables[1])
    assert table["photos"].sum() == len(targets) and len(table) == 10
    assert table["confidence"].is_monotonic_increasing
    assert (abs(table["confidence"] - table["mean"]) < 0.04).all()
    assert (evaluation.reliability(tables[0])["mean"] < evaluation.reliability(tables[0])["confidence"]).all()


def answers(confidence, correct):
    return pd.DataFrame({"confidence": confidence, "correct": np.array(correct, bool)})


def test_risk_and_coverage_count_photos_of_one_confidence_together_and_the_lowest_threshold_keeps_the_risk():
    given = answers([0.99, 0.95, 0.9, 0.8, 0.7, 0.6], [1, 0, 1, 1, 1, 0])
    for risk, threshold in ((0.0, 0.99), (0.2, 0.7), (1.0, 0.6)):
        assert evaluation.abstain_threshold(given, risk) == threshold
    assert evaluation.abstain_threshold(answers([0.9], [0]), 0.1) == 1.0
    table = evaluation.risk_coverage(answers([0.9, 0.6, 0.9, 0.7], [1, 0, 0, 1]))
    assert table["threshold"].tolist() == [0.9, 0.7, 0.6]
    assert table["coverage"].tolist() == [0.5, 0.75, 1.0]
    assert table["risk"].tolist() == pytest.approx([1 / 2, 1 / 3, 2 / 4])


def test_groups_served_worse_are_those_whose_whole_interval_lies_below():
    age = np.repeat(["0-2", "20-29"], 1000)
    table = pd.DataFrame({"source": "web", "age_group": age, "coin": np.tile(["a", "b"], 1000), "group": range(2000)})
    table["correct"] = np.arange(2000) // 2 % 20 < np.where(age == "0-2", 14, 19)  # whichever the coin
    worse = evaluation.served_worse(table, ["age_group", "coin", "absent"])
    assert worse["value"].tolist() == ["0-2"] and worse["source"].tolist() == ["web"]
    assert worse.loc[0, "high"] < worse.loc[0, "overall"]
    assert evaluation.served_worse(table[age == "0-2"], ["age_group"]).empty


def test_qualities_measure_light_and_detail():
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8)[:, None], (24, 1, 3)).reshape(24, 24, 3)
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    found = evaluation.qualities(np.stack([np.zeros_like(ramp), np.full_like(ramp, 255), ramp, noise]))
    assert found["brightness"].tolist()[:2] == pytest.approx([0, 1])
    assert found["sharpness"].tolist()[:2] == pytest.approx([0, 0])
    assert found["sharpness"][3] > 5 * found["sharpness"][2]
    assert found["contrast"][2] > 0.1


def test_quartiles_are_named_by_their_ranges():
    named = evaluation.quartiles(pd.Series(np.arange(100) / 100))
    assert named.value_counts().tolist() == [25] * 4
    assert named.iloc[0] == "0.00 – 0.25" and named.iloc[-1] == "0.74 – 0.99"
    assert evaluation.quartiles(pd.Series([5.0] * 8)).isna().all()  # one value has no quarters
    assert evaluation.quartiles(pd.Series([1.0] * 6 + [2.0, 3.0])).tolist() == ["1.00 – 1.25"] * 6 + ["1.25 – 3.00"] * 2


def detected(n=300, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.2
    score = np.round(1 / (1 + np.exp(-(rng.normal(0, 1, n) + 2 * truth - 1))), 2)  # rounded, so that there are ties
    names = np.where(truth, "glasses", "none")
    return pd.DataFrame({"worn": names, "p_glasses": score, "group": np.arange(n) // 2})


def test_detection_figures_are_sklearns_and_none_where_nobody_is_to_find():
    frame = detected()
    truth, score = frame["worn"] == "glasses", frame["p_glasses"]
    table = evaluation.detection(frame, "worn", "glasses", threshold=0.4, resamples=200)
    expected = {
        "accuracy": metrics.accuracy_score(truth, score >= 0.4),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, score >= 0.4),
        "precision": metrics.precision_score(truth, score >= 0.4),
        "recall": metrics.recall_score(truth, score >= 0.4),
        "f1": metrics.f1_score(truth, score >= 0.4),
        "auc": metrics.roc_auc_score(truth, score),
    }
    assert table["value"].to_dict() == pytest.approx(expected)
    assert (table["low"] < table["value"]).all() and (table["value"] < table["high"]).all()
    nobody = evaluation.detection(frame.assign(worn="none"), "worn", "glasses", resamples=10)["value"]
    assert np.isnan(nobody["recall"]) and np.isnan(nobody["auc"]) and nobody["f1"] == 0


def test_the_best_threshold_is_that_of_the_highest_f1():
    frame = detected()
    truth, score = frame["worn"] == "glasses", frame["p_glasses"]
    found = evaluation.best_threshold(frame, "worn", "glasses")
    best = max(metrics.f1_score(truth, score >= t) for t in np.linspace(0.005, 0.995, 100))  # scores have two decimals
    assert metrics.f1_score(truth, score >= found) == pytest.approx(best)
    assert found not in set(score)


def test_resampling_draws_whole_groups():
    frame = pd.DataFrame({"group": [0, 0, 1, 1]})
    seen = []
    evaluation.resampled(frame, lambda weights: seen.append(tuple(weights)) or {"n": weights.sum()}, resamples=50)
    assert all(w[0] == w[1] and w[2] == w[3] and sum(w) == 4 for w in seen) and len(set(seen)) == 3


def test_a_predicted_class_that_no_label_has_counts_as_an_error():
    frame = pd.DataFrame({"label": list("aaaabbbb"), "said": list("aaazbbbz"), "group": range(8)})
    table = evaluation.class_scores(frame, "label", "said", resamples=200)
    assert table.loc["macro", "f1"] == pytest.approx(6 / 7)  # of a and of b: 3 found, 1 missed, none wrongly
    assert list(table.index) == ["a", "b", "macro"] and table["photos"].tolist() == [4, 4, 8]
    assert (table["low"] <= table["f1"]).all() and (table["f1"] <= table["high"]).all()
    assert evaluation.macro_scores(frame, "label", "said")["f1"] == pytest.approx(6 / 7)


def test_intervals_of_f1_are_drawn_by_groups():
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"label": draw.choice(list("abc"), 60), "group": 0})
    frame["said"] = np.where(draw.random(60) < 0.7, frame["label"], draw.choice(list("abcz"), 60))
    # One group: every draw is the whole table, so that both ends are scikit-learn's figure.
    together = evaluation.class_scores(frame, "label", "said", resamples=5)
    each = metrics.f1_score(frame["label"], frame["said"], labels=list("abc"), average=None)
    assert together.drop("macro")[["f1", "low", "high"]].to_numpy() == pytest.approx(np.stack([each] * 3, 1))
    assert together.loc["macro", ["f1", "low", "high"]].tolist() == pytest.approx([each.mean()] * 3)
    alone = evaluation.class_scores(frame.assign(group=range(60)), "label", "said", resamples=200)
    assert alone.loc["macro", "low"] < alone.loc["macro", "f1"] < alone.loc["macro", "high"]


def test_the_difference_of_two_f1_is_paired():
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"label": draw.choice(list("ab"), 80), "group": np.arange(80) // 2})
    one = rows.assign(said=np.where(draw.random(80) < 0.6, rows["label"], "a"))
    table = evaluation.f1_against({"one": one, "same": one}, "label", "said", resamples=50)
    assert table.loc["same − one", ["value", "low", "high"]].tolist() == [0, 0, 0]
    table = evaluation.f1_against({"one": one, "right": rows.assign(said=rows["label"])}, "label", "said", resamples=50)
    assert table.loc["right", "value"] == 1 and table.loc["right − one", "low"] > 0
    with pytest.raises(ValueError, match="another order"):
        evaluation.f1_against({"one": one, "other": one[::-1]}, "label", "said")
