"""Notebooks 01 to 04, end to end on drawn faces."""

import demo_run
import pandas as pd
import pytest

from faces.research import analysis, steps

pytestmark = pytest.mark.slow
NOTEBOOKS = ("01", "02", "03", "04")  # of the fixture `executed`


def tables(executed, number, step):
    return steps.Steps(executed / number, [], executed).read(step)


def test_every_notebook_runs_and_writes_what_it_promises(executed):
    demo_run.check(executed, without=("04_attributions",))  # means of 50 photos a class: fewer are drawn


def test_exploration_finds_the_flaws_that_were_drawn(executed):
    assert tables(executed, "01", "photos")["error"].count() == 2
    copies = tables(executed, "01", "copies").set_index(["kind", "source"])
    assert copies.loc["exact", "sets"].sum() >= 10
    assert copies.loc[("exact", "faces"), "differ_in_gender"] >= 1
    assert tables(executed, "01", "mean_faces").query("photos < 50")["pixels"].isna().all()


def test_the_small_network_learns_and_every_recipe_is_compared(executed):
    summary = tables(executed, "02", "ablation")["summary"]
    assert len(summary) == 5 and summary["all"].max() > 0.6  # a coin gets half
    assert (summary["low"] <= summary["all"]).all() and (summary["all"] <= summary["high"]).all()
    assert {"gender_cnn", "gender_cnn_plus"} <= {path.parent.name for path in executed.glob("models/*/model.onnx")}
    assert set(tables(executed, "02", "elsewhere")["source"]) == {"glasses"}


def test_fine_tuning_goes_through_its_stages_and_is_exported(executed):
    found = tables(executed, "03", "comparison")
    assert len(found["summary"]) == 7 and found["summary"]["photos"].max() == 160
    assert found["history"].groupby("recipe")["stage"].max()["two stages"] == 2
    assert tables(executed, "03", "final")["history"]["stage"].tolist() == [1, 2]
    assert list(tables(executed, "03", "speed")["model"]) == ["gender_mobilenet_v2", "gender_cnn_plus"]


def test_the_analysis_is_of_the_network_that_was_exported(executed):
    final = analysis.judged(tables(executed, "03", "final")["predictions"], "gender")
    answers = analysis.answers_of(tables(executed, "04", "answers"), "gender_mobilenet_v2", "gender")
    key = ["path", "confidence"]
    both = pd.merge(final[key], answers[key], on="path", suffixes=("_torch", "_onnx"))
    assert len(both) == len(answers) == (final["split"] == "test").sum()
    assert (both["confidence_torch"] - both["confidence_onnx"]).abs().max() < 1e-3
    assert len(tables(executed, "04", "views")) == 8 and len(tables(executed, "04", "portraits")) == 6
    assert tables(executed, "04", "attributions")["pixels"].isna().all()  # too few photos to average
    assert set(tables(executed, "04", "audit")["suspects"]["source"]) == {"faces", "more_faces"}
