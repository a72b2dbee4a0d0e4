"""Comparisons of exported models."""

import pandas as pd
import pytest

from faces.research import analysis


@pytest.fixture
def answers():
    """Six photos, one without a label: a model that is right about three, and one that is right about four."""
    table = pd.DataFrame({"source": "faces", "group": range(6), "gender": ["male"] * 5 + [None]})
    said = (["male"] * 3 + ["female"] * 3, ["female"] + ["male"] * 4 + ["female"])
    return [table.assign(gender_predicted=labels) for labels in said]


def test_a_paired_difference_has_its_sign(answers):
    before, after = answers
    [row] = analysis.against(after, before, "gender").to_dict("records")
    assert row["photos"] == 5 and row["mean"] == pytest.approx(0.2) and row["low"] < 0.2 < row["high"]
    [row] = analysis.against(before, after, "gender").to_dict("records")
    assert row["mean"] == pytest.approx(-0.2)


def test_differences_are_told_in_points_and_years():
    rows = [
        {"metric": "acc", "mean": -0.01, "low": -0.02, "high": 0.0},
        {"metric": "mae", "mean": -0.5, "low": -1, "high": 0},
    ]
    told = analysis.in_units(pd.DataFrame(rows), signed=True)
    assert told == ["-1.0 points (-2.0 to +0.0)", "-0.50 years (-1.00 to +0.00)"]
