"""Notebooks 09 and 11, end to end on drawn people in class folders."""

import json

import demo_run
import pandas as pd
import pytest

from faces import predict
from faces.research import notebooks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    home = tmp_path_factory.mktemp("demo")
    demo_run.run(home, "09")
    given = {"model": str(home / "artifacts" / "people"), "figures_dir": str(home / "figures")}
    given["output_parameters"] = {"out_inference_directory": str(home / "inference")}
    notebooks.run_profile("demo", only=["11"], parameters=given, folder=home / "notebooks")
    return home


def test_every_notebook_runs_and_writes_what_it_promises(executed):
    demo_run.check(executed)


def test_plain_and_residual_focal_and_not_are_compared(executed):
    metrics = json.loads((executed / "artifacts" / "people" / "metrics.json").read_text())
    assert len(metrics["ablation"]) == 9
    assert metrics["kept"] == max(metrics["ablation"], key=lambda name: metrics["ablation"][name]["val f1"])
    assert set(metrics["splits"]) == {"split by group", "random split", "of it, with a near copy in training"}
    assert set(metrics["f1_by_class"]) == {"female", "male"}
    assert metrics["f1"]["low"] <= metrics["f1"]["value"] <= metrics["f1"]["high"]
    assert len(list((executed / "figures").glob("09_loss_*.png"))) == 1


def test_every_picture_of_the_folder_is_named_or_told(executed):
    said = pd.read_csv(executed / "inference" / "predictions.csv")
    metrics = json.loads((executed / "inference" / "metrics.json").read_text())
    assert metrics["pictures"] == len(said)
    assert set(metrics["errors"]) == {".demo.json", "male/0071.jpg"}  # no picture, and a truncated one
    assert set(said["character"]) <= set(predict.Model(executed / "artifacts" / "people").classes)
    assert said["probability"].between(0.5, 1).all()


def test_a_mistyped_key_is_refused_by_name(tmp_path):
    wrong = {"dataset_parameters": {"traindir": "anywhere"}, "training_parameters": {"num_epoch": 3}}
    with pytest.raises(notebooks.NotebookError, match=r"training_parameters\.num_epoch is not known .*num_epochs"):
        notebooks.run_profile("demo", only=["09"], parameters=wrong, folder=tmp_path)
