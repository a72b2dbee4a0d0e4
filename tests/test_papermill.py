"""Plain papermill, without the project's runner, on what little a user may have."""

import subprocess
import sys
from contextlib import nullcontext

import papermill
import pytest

from faces import predict
from faces.research import demo, notebooks

pytestmark = pytest.mark.slow


def test_plain_papermill_on_class_folders_that_tell_no_age(tmp_path):
    """The least that a user may have: two folders, one path given as a word, no runner."""
    photos = demo.make(tmp_path / "photos", 120, layout="class_folders", size=64)
    given = {"data_dirs": str(photos), "artifacts_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    given |= {"figures_dir": str(tmp_path / "figures")}
    given |= {"run_dir": str(tmp_path / "runs"), "out_dir": str(tmp_path / "runs"), "epochs": 1}
    quick = notebooks.read_profile("demo")
    for path in notebooks.find(["01", "02", "05"]):
        own = {name: value for name, value in quick[path.stem].items() if not name.endswith(("_dirs", "_dir"))}
        known = notebooks.parameters_of(path)
        parameters = {name: value for name, value in (own | given).items() if name in known}
        refused = pytest.raises(papermill.PapermillExecutionError, match="no label `age`")
        how = {"cwd": str(path.parent), "progress_bar": False}
        with notebooks.one_kernel() as kernel, refused if "_age_" in path.stem else nullcontext():
            papermill.execute_notebook(str(path), None, parameters, km=kernel, **how)
    model = tmp_path / "runs" / "models" / "gender_cnn"
    assert predict.Model(model).classes == ("female", "male")
    card = " ".join((model / "MODEL_CARD.md").read_text().split())
    assert "Trained on: photos. photos: the terms of its owners." in card


def test_plain_papermill_knows_the_parameters():
    ran = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", str(notebooks.find()[1])], capture_output=True, text=True
    )
    assert "epochs: int (default 20)" in ran.stdout and "passes over the training set" in ran.stdout
