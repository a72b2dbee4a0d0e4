"""Figures show what their tables hold."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from faces.research import evaluation, plots

mpl.use("agg")


@pytest.fixture(autouse=True)
def closed_figures():
    plots.theme()
    yield
    plt.close("all")


def test_counts_carry_their_numbers():
    manifest = pd.DataFrame({"gender": ["female"] * 25 + ["male"] * 35, "split": ["train", "test"] * 30})
    ax = plots.counts(manifest, "gender", "split", order=["female", "male"], ax=plt.gca())
    assert [text.get_text() for text in ax.texts] == ["13", "17", "12", "18"]


def test_intervals_and_confusion_show_what_the_tables_hold():
    table = pd.DataFrame({"gender": ["f", "f", "m", "m"], "predicted": ["f", "m", "m", "m"], "group": range(4)})
    table["correct"] = table["gender"] == table["predicted"]
    ax = plots.confusion(evaluation.confusion(table, "gender", ["f", "m"]), title="", ax=plt.gca())
    assert [text.get_text() for text in ax.texts] == ["50.0%\n1", "50.0%\n1", "0.0%\n0", "100.0%\n2"]
    plt.figure()
    ax = plots.intervals(evaluation.by_group(table, "gender"), xlabel="accuracy")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["f  (2)", "m  (2)"]
