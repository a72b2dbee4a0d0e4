"""The notebooks keep their form, run end to end on drawn faces, and the runner refuses what it should."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml

from faces import demo, notebooks, predict

ALL = notebooks.find()
NAMES = [path.stem for path in ALL]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=ALL, ids=NAMES)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_form(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert "**Question.**" in notebook.cells[0].source
    assert notebook.cells[1].metadata.tags == ["parameters"]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    assert "metrics" in code(notebook)[-1].source
    assert notebook.cells[-1].cell_type == "markdown" and "## What the full run showed" in notebook.cells[-1].source
    assert not any(cell.outputs or cell.execution_count for cell in code(notebook))


def test_parameters_are_typed_commented_and_computed_from_nothing(notebook):
    for line in notebook.cells[1].source.splitlines():
        name, value = re.fullmatch(r"(\w+: (?:int|float|str|bool|list)) = (.+?)  # .{10,}", line).groups()
        yaml.safe_load(value)
        assert "(" not in value, name


def test_linked_figures_are_committed_and_written_by_their_own_notebook(notebook):
    prose = notebook.cells[-1].source
    source = "\n".join(cell.source for cell in code(notebook))
    linked = re.findall(r"\(\.\./figures/([\w-]+)\.png\)", prose)
    assert linked
    for name in linked:
        assert (notebooks.ROOT / "figures" / f"{name}.png").is_file()
        stem = re.sub(r"_(utkface|fairface)$", "_{source}", name)
        assert f'"{stem}"' in source


@pytest.mark.parametrize("profile", ["demo", "full"])
def test_profiles_name_only_parameters_that_the_notebooks_have(profile):
    blocks = notebooks.read_profile(profile)
    assert set(NAMES) <= set(blocks)
    for path in ALL:
        notebooks.check(path, blocks[path.stem])


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """All notebooks, run on drawn faces as `make demo` runs them, but in a folder of their own."""
    home = tmp_path_factory.mktemp("demo")
    notebooks.run_profile(
        "demo",
        parameters={
            "figures_dir": str(home / "figures"),
            "artifacts_dir": str(home / "artifacts"),
            "cache_dir": str(home / "cache"),
            "run_dir": str(home / "runs"),
        },
        folder=home / "notebooks",
    )
    return home


def test_every_notebook_runs_and_writes_what_it_promises(executed):
    for path in ALL:
        ran = nbformat.read(executed / "notebooks" / path.name, as_version=4)
        assert all(cell.execution_count for cell in code(ran))
        saved = [name for cell in code(ran) for name in re.findall(r'figures, f?"(\d\d_[\w{}]+)"', cell.source)]
        for name in saved:
            assert list((executed / "figures").glob(re.sub(r"\{\w+\}", "*", name) + ".png")), name


def test_exploration_finds_the_flaws_that_were_drawn(executed):
    metrics = json.loads((executed / "artifacts" / "gender_data" / "metrics.json").read_text())
    assert metrics["unreadable"] == 2
    exact = {key: value for key, value in metrics["duplicates"].items() if key.endswith("exact copies")}
    assert sum(row["clusters"] for row in exact.values()) >= 10
    assert metrics["duplicates"]["faces, exact copies"]["disagree on gender"] >= 1
    assert 0.5 <= metrics["balance"]["majority"] < 0.6 and metrics["balance"]["fair"] in (True, False)


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
    assert predict.main([str(faces), "--model", str(folder), "--output", str(output)]) == 1  # one file is broken
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


def test_plain_papermill_on_class_folders_that_tell_no_age(tmp_path):
    """The least that a user may have: two folders, one path given as a word, no runner."""
    photos = demo.make(tmp_path / "photos", 120, layout="class_folders", size=64)
    given = {"data_dirs": str(photos), "artifacts_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    given |= {"figures_dir": str(tmp_path / "figures")}
    given |= {"run_dir": str(tmp_path / "runs"), "epochs": 1, "final_epochs": 1, "finetune_epochs": 1}
    given |= {"baseline_epochs": 1, "second_epochs": 1, "ramp_epochs": 1, "schedules": ["growing"]}
    quick = notebooks.read_profile("demo")
    for path in ALL:
        own = {name: value for name, value in quick[path.stem].items() if not name.endswith(("_dirs", "_dir"))}
        known = notebooks.parameters_of(path)
        parameters = {name: value for name, value in (own | given).items() if name in known}
        papermill.execute_notebook(str(path), None, parameters, cwd=str(path.parent), progress_bar=False)
    assert predict.Model(tmp_path / "gender_cnn").classes == ("female", "male")
    assert "Trained on: photos. photos: the terms of its owners." in (tmp_path / "gender_cnn/MODEL_CARD.md").read_text()


# ------------------------------------------------------------------------------------------------- the runner


def little_notebook(folder, *cells, parameters="n: int = 1  # how many\nrate: float = 0.1  # how fast"):
    notebook = nbformat.v4.new_notebook()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.cells = [nbformat.v4.new_code_cell(parameters), *map(nbformat.v4.new_code_cell, cells)]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    path = Path(folder) / "01_little.ipynb"
    nbformat.write(notebook, path)
    return path


def test_a_failing_cell_is_reported_last_and_the_executed_copy_is_kept(tmp_path):
    path = little_notebook(tmp_path, "print('so far')", "1 / 0", "print('never')")
    with pytest.raises(notebooks.NotebookError) as error:
        notebooks.run(path, folder=tmp_path / "ran", progress=False)
    assert str(error.value).endswith("ZeroDivisionError: division by zero")
    assert "failed in cell 2" in str(error.value)
    kept = (tmp_path / "ran" / path.name).read_text()
    assert "so far" in kept and "ZeroDivisionError" in kept


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epoch": 3}, r"no parameter 'epoch'; it has n, rate"),
        ({"n": "three"}, "n must be int, not 'three'"),
        ({"n": True}, "n must be int, not True"),
        ({"n": 1.5}, "n must be int, not 1.5"),
        ({"rate": "fast"}, "rate must be float"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(tmp_path, parameters, message):
    path = little_notebook(tmp_path)
    with pytest.raises(notebooks.RunnerError, match=message):
        notebooks.run(path, parameters, folder=tmp_path / "ran")
    assert not (tmp_path / "ran").exists()


def test_numbers_reach_the_notebook_as_it_wants_them(tmp_path):
    assert notebooks.check(little_notebook(tmp_path), {"rate": 1, "n": 2}) == {"rate": 1.0, "n": 2}
    assert notebooks.check(little_notebook(tmp_path), {"rate": "3e-4"}) == {"rate": 3e-4}


def test_own_photos_take_the_place_of_all_the_profiles_photos(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(notebooks, "run", lambda path, parameters, **_: given.setdefault(path.stem, parameters))
    monkeypatch.chdir(tmp_path)
    notebooks.run_profile("full", data=["mine", "yours"], parameters={"epochs": 3})
    assert list(given) == NAMES
    for parameters in given.values():
        assert parameters["data_dirs"] == [str(tmp_path / "mine"), str(tmp_path / "yours")]
    assert given["02_train_gender_cnn"]["elsewhere_dirs"] == [] and given["02_train_gender_cnn"]["epochs"] == 3


def runner(*arguments):
    command = [sys.executable, "-m", "faces.notebooks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=notebooks.ROOT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "77"], "no notebook begins with '77'; there are 01_explore_gender_data"),
        (["--profile", "huge"], "no profile 'huge'; there are demo, full"),
        (
            ["-p", "epoch", "3"],
            "none of these notebooks has a parameter 'epoch'; they have accepted_risk, artifacts_dir",
        ),
        (["--only", "02", "-p", "epochs", "many"], "02_train_gender_cnn: epochs must be int, not 'many'"),
    ],
)
def test_the_command_refuses_with_one_line(arguments, message):
    ran = runner(*arguments)
    assert ran.returncode == 2
    assert message in ran.stderr and len(ran.stderr.splitlines()) == 1


def test_plain_papermill_knows_the_parameters():
    ran = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", str(ALL[1])], capture_output=True, text=True
    )
    assert "epochs: int (default 20)" in ran.stdout and "passes over the training set" in ran.stdout
