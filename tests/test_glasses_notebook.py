"""Notebook 08, end to end on drawn faces."""

import json

import demo_run
import pytest

from faces import predict, recipes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return demo_run.run(tmp_path_factory.mktemp("demo"), "08")


def test_every_notebook_runs_and_writes_what_it_promises(executed):
    demo_run.check(executed)


def test_the_network_is_small_and_every_size_was_trained(executed):
    folder = executed / "artifacts" / "glasses_cnn"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert predict.Model(folder).classes == ("glasses", "no_glasses")
    assert recipes.load(folder)[1]["recipe"]["network"] == "small_resnet"
    assert set(metrics["sizes"]) == {"3", "4"}
    assert metrics["sizes"]["3"]["weights"] < metrics["sizes"]["4"]["weights"] == metrics["weights"]
    assert len(metrics["what_helps"]) == 5


def test_the_figures_of_finding_glasses_have_intervals(executed):
    metrics = json.loads((executed / "artifacts" / "glasses_cnn" / "metrics.json").read_text())
    assert set(metrics["detection"]) == {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "auc"}
    for name, figure in metrics["detection"].items():
        assert figure["low"] <= figure["value"] <= figure["high"], name
    trained_on, suspects = metrics["data"]["photos"]["train"], metrics["suspects"]
    assert suspects["share"] == pytest.approx(suspects["photos"] / trained_on, abs=1e-4) and suspects["share"] < 0.5
    assert 0 < metrics["threshold"] < 1
    assert {row["batch"] for row in metrics["speed"]} == {1, 4, 16, 64, 256}
