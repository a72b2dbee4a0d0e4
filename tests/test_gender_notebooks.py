"""Notebooks 01 to 04, end to end on drawn faces."""

import json

import demo_run
import pandas as pd
import pytest

from faces import cli, predict
from faces.research import notebooks, steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return demo_run.run(tmp_path_factory.mktemp("demo"), "01", "02", "03", "04")


def test_every_notebook_runs_and_writes_what_it_promises(executed):
    demo_run.check(executed)


def test_exploration_finds_the_flaws_that_were_drawn(executed):
    step = steps.Steps(executed / "01", [], executed)
    assert step.read("photos")["error"].count() == 2
    copies = step.read("copies").set_index(["kind", "source"])
    assert copies.loc["exact", "sets"].sum() >= 10
    assert copies.loc[("exact", "faces"), "differ_in_gender"] >= 1
    assert step.read("mean_faces").query("photos < 50")["pixels"].isna().all()


def test_the_trained_network_has_learnt_and_labels_a_folder(executed, tmp_path):
    folder = executed / "artifacts" / "gender_cnn_plus"
    metrics = json.loads((folder / "metrics.json").read_text())
    drawn = metrics["test"]["faces"]
    assert drawn["accuracy"]["value"] > 0.65  # a coin gets half
    assert drawn["accuracy"]["low"] < drawn["accuracy"]["value"] < drawn["accuracy"]["high"]
    assert metrics["weights"] <= 500_000
    assert len(metrics["ablation"]) == 5
    faces = notebooks.ROOT / "runs" / "demo" / "faces"
    output = tmp_path / "labels.json"
    assert cli.label([str(faces), "--model", str(folder), "--output", str(output), "--faces", "crop"]) == 1
    labels = json.loads(output.read_text())
    truth = {name: ("male", "female")[int(name.split("_")[1])] for name in labels}
    assert sum(labels[name] == truth[name] for name in labels) / len(labels) > 0.75


def test_fine_tuning_exports_two_networks_and_compares_every_recipe(executed):
    folder, small = (executed / "artifacts" / f"gender_mobilenet_v2{suffix}" for suffix in ("", "_int8"))
    metrics, of_small = (json.loads((where / "metrics.json").read_text()) for where in (folder, small))
    assert len(metrics["ablation"]) == 8 and metrics["ablation"]["recipe, all photos"]["photos"] > 240
    assert {"gender_cnn", "gender_cnn_plus", "gender_mobilenet_v2_int8"} < set(metrics["comparison"]["faces"])
    assert set(metrics["speed"]) == {folder.name, small.name}
    change = of_small["change_of_accuracy"]
    assert change["low"] <= change["value"] <= change["high"]
    assert predict.Model(small).abstain_below == predict.Model(folder).abstain_below == metrics["abstain_below"]
    epochs = metrics["first_cycle"]["epochs"] + metrics["recipe"]["epochs"]
    assert pd.read_csv(folder / "history.csv")["epoch"].tolist() == list(range(1, epochs + 1))


def test_the_analysis_is_of_the_exported_network(executed):
    metrics = json.loads((executed / "artifacts" / "gender_errors" / "metrics.json").read_text())
    trained = json.loads((executed / "artifacts" / "gender_mobilenet_v2" / "metrics.json").read_text())
    assert metrics["data"]["same_as_trained_on"] is True
    assert metrics["threshold"] == pytest.approx(trained["abstain_below"], abs=1e-3)
    for source, figures in metrics["test"].items():
        assert figures["accuracy"] == trained["test"][source]["accuracy"]
    assert len(metrics["test_time_augmentation"]) == 8 and set(metrics["suspects"]) == {"faces", "more_faces"}
