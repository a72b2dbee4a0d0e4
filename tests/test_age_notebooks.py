"""Notebooks 05 and 06, end to end on drawn faces."""

import json

import demo_run
import pytest

from faces import predict
from faces.research import steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    return demo_run.run(tmp_path_factory.mktemp("demo"), "05", "06")


def test_every_notebook_runs_and_writes_what_it_promises(executed):
    demo_run.check(executed)


def test_what_the_ages_are_like_is_measured(executed):
    step = steps.Steps(executed / "05", [], executed)
    fits = step.read("distributions")["fits"]
    names = {"Poisson", "normal", "Gumbel", "gamma", "Weibull", "log-normal", "2 normals", "3 normals"}
    assert set(fits["family"]) == names
    assert fits["p"].between(0, 1, inclusive="right").all() and fits["distance"].between(0, 1).all()
    assert len(step.read("learning_curve")) == 3


def least(table, *names):
    """Which of these rows has the least error."""
    return min(names, key=lambda name: table[name]["mean"])


def test_the_age_regressors_are_exported_with_intervals_and_their_errors(executed):
    folders = [executed / "artifacts" / name for name in ("age_resnet18", "age_mobilenet_v2", "age_mobilenet_v2_int8")]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    for folder, about in zip(folders, metrics, strict=True):
        assert predict.Model(folder).coverage == about["intervals"]["coverage"] == 0.9
        mae = about["test"]["faces"]["mae"]
        assert mae["low"] < mae["value"] < mae["high"]
        assert set(about["age_group_accuracy"]) == {"faces", "more_faces"}
    assert metrics[0]["change_of_error"]["low"] <= metrics[0]["change_of_error"]["value"]
    errors = json.loads((executed / "artifacts" / "age_errors" / "metrics.json").read_text())
    assert metrics[1]["taught_by"] == least(errors["networks"], "labels alone", "labels and teacher")


def test_the_analysis_compares_losses_networks_and_margins(executed):
    metrics = json.loads((executed / "artifacts" / "age_errors" / "metrics.json").read_text())
    assert set(metrics["losses"]) == {"dex", "median of bins", "dldl", "dldl, crops as they are"}
    assert metrics["chosen_loss"] == least(metrics["losses"], "dex", "median of bins", "dldl")
    assert metrics["network"] == least(metrics["networks"], *metrics["networks"])
    assert set(metrics["networks"]) == {"large network", "labels alone", "labels and teacher"}
    assert metrics["worst_bracket"]["from"] <= metrics["worst_bracket"]["to"]
    assert set(metrics["error_by"]) == {"decade", "gender", "race"}
    assert metrics["protocol_21_to_60"]["photos"] < metrics["overview"]["all ages"]["photos"]
