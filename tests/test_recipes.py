"""The published recipe on a handful of drawn faces: trains, resumes, publishes, and refuses plainly."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from faces import batches, models, predict, recipes, training
from faces.research import data, demo

TINY = recipes.Recipe(size=33, width=0.35, weights="random", epochs=2)


@pytest.fixture(scope="module")
def manifest(drawn_faces):
    return data.usable(data.prepare(drawn_faces), "gender").query("split != 'excluded'").reset_index(drop=True)


def test_targets_join_the_side_tasks_and_mark_the_unknown():
    rows = {
        "gender": ["male", "female", "male"],
        "age_group": ["0-2", None, "70+"],
        "race": ["White", "East Asian", None],
    }
    targets, outputs = recipes.targets_of(pd.DataFrame(rows), "gender")
    assert outputs == [1, 1, 1]
    assert targets.tolist() == [[1, 0, 1], [0, -1, 0], [1, 1, -1]]
    assert recipes.targets_of(pd.DataFrame(rows), "gender", 0)[1] == [1]
    assert recipes.targets_of(pd.DataFrame(rows), "race")[1] == [1, 1]


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pixels = batches.load_images(manifest, TINY.size)
    return *recipes.train(TINY, manifest, "gender", folder, pixels=pixels, progress=False), pixels, folder


@pytest.mark.slow
def test_side_tasks_are_learnt_and_dropped(trained, manifest):
    model, history, _, folder = trained
    assert model.classifier.out_features == 1 and len(history) == 2
    kept = training.checkpoints(folder)["path"].iloc[0]
    outputs = recipes.targets_of(manifest, "gender")[1]
    assert len(outputs) == 3
    whole = models.mobilenet_v2(sum(outputs), width=0.35, weights="random")
    training.rollback(whole, folder, "best")
    assert torch.equal(whole.classifier.weight[:1], model.classifier.weight) and kept.is_file()


@pytest.mark.slow
def test_a_finished_run_is_taken_as_it_is_and_another_recipe_refused(trained, manifest):
    model, history, pixels, folder = trained
    again, same = recipes.train(TINY, manifest, "gender", folder, pixels=pixels, progress=False)
    pd.testing.assert_frame_equal(same, history)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    with pytest.raises(training.ResumeError, match="settings differ"):
        recipes.train(replace(TINY, smoothing=0.2), manifest, "gender", folder, pixels=pixels, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.assign(gender="male"), "two classes are needed; `gender` has 1: male"),
        (lambda m: m[m["split"] != "val"], "no photo is left for val"),
    ],
)
def test_what_cannot_be_trained_on_is_said(manifest, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        recipes.train(TINY, change(manifest).reset_index(drop=True), "gender", tmp_path, progress=False)
    with pytest.raises(ValueError, match="32 pixels are too small"):
        recipes.train(replace(TINY, size=32), manifest, "gender", tmp_path, progress=False)


@pytest.mark.slow
def test_publishing_writes_calibrated_probabilities_and_honest_figures(trained, manifest, tmp_path):
    model, history, pixels, _ = trained
    about = {"recipe": recipes.described(TINY)}
    folder, figures = recipes.publish(
        model, tmp_path / "net", manifest=manifest, label="gender", pixels=pixels, history=history, metrics=about
    )
    written = json.loads((folder / "metrics.json").read_text())
    assert {"test", "test_by_gender", "test_by_age_group", "temperature", "recipe", "export"} <= set(written)
    shipped = predict.Model(folder)
    assert shipped.abstain_below == written["abstain_below"] == figures["abstain_below"]
    testing = np.flatnonzero(manifest["split"] == "test")
    said = np.array(shipped.classes)[shipped.probabilities(pixels[testing]).argmax(1)]
    right = (said == manifest["gender"].iloc[testing]).mean()
    assert written["test"]["faces"]["accuracy"]["value"] == pytest.approx(right, abs=1e-4)
    again, same = recipes.load(folder)
    assert same == written
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    with pytest.raises(models.WeightsError, match="no trained model in"):
        recipes.load(tmp_path / "nowhere")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Runs and models of the command go below the test's folder."""
    monkeypatch.setattr(recipes, "ROOT", tmp_path)
    monkeypatch.setattr(recipes, "ARTIFACTS", tmp_path / "artifacts")
    monkeypatch.setattr(predict, "ARTIFACTS", tmp_path / "artifacts")
    return tmp_path


QUICK = ["--epochs", "1", "--size", "33", "--width", "0.35", "--weights", "random"]


@pytest.mark.slow
def test_the_command_trains_on_class_folders_for_process_py(home, capsys):
    photos = demo.make(home / "smileys", 60, layout="class_folders", size=48)
    (photos / "female").rename(photos / "cats")
    (photos / "male").rename(photos / "dogs")
    assert recipes.main([str(photos), *QUICK]) == 0
    said = capsys.readouterr()
    assert "python process.py DIR --model smileys" in said.out and "test photos right" in said.out
    assert re.search(r"\d of \d+ test photos right, too few to tell how good it is", said.out)
    assert re.match(r"smileys: \d+ images by class folders\nlabel: (cats|dogs) \d+, ", said.err)
    assert "left out:" in said.err
    folder = home / "artifacts" / "smileys"
    history = pd.read_csv(folder / "history.csv")
    assert {"train_loss", "train_acc", "val_loss", "val_acc"} <= set(history) and len(history) == 1
    assert predict.Model("smileys").classes == ("cats", "dogs")
    assert not (home / "runs" / "recipes" / "smileys").exists()
    assert recipes.main([str(photos), *QUICK]) == 2
    assert "exists: choose another name with --name, or replace it with --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such data folder: nowhere"),
        (["{faces}", "--label", "smile", "--name", "net"], "the data have no label `smile`"),
        (
            ["{faces}", "--name", "net", "--weights", "nowhere", "--width", "0.35"],
            "no weights to start from in nowhere",
        ),
        (["{faces}", "--name", "net", "--size", "16"], "images of 16 pixels are too small"),
    ],
)
def test_the_command_refuses_in_one_line(home, drawn_faces, capsys, arguments, message):
    filled = [argument.format(faces=drawn_faces) for argument in arguments]
    assert recipes.main(filled) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("faces.recipes: ") and message in last
    assert not Path(home / "artifacts").exists()


@pytest.mark.parametrize("values", [["0", "1"], ["1.0", "0.0", ""], ["TRUE", "FALSE"]])
def test_numbers_and_truth_values_of_a_csv_are_classes(home, capsys, monkeypatch, values):
    def stop(manifest, **_):
        raise ValueError(f"classes {recipes.classes(manifest, 'smile')}")

    monkeypatch.setattr(data, "prepare", stop)
    (home / "smiles").mkdir()
    for number in range(6):
        (home / "smiles" / f"{number}.jpg").touch()
    rows = (f"{number}.jpg,{values[number % len(values)]}" for number in range(6))
    (home / "smiles" / "labels.csv").write_text("\n".join(["file,smile", *rows]))
    assert recipes.main([str(home / "smiles"), "--label", "smile", *QUICK]) == 2
    names = ["False", "True"] if "TRUE" in values else ["0", "1"]
    assert f"classes {names}" in (said := capsys.readouterr().err)
    assert said.startswith("smiles: 6 images by labels.csv\nsmile: ")


def test_one_class_is_refused_before_any_photo_is_opened(home, capsys, monkeypatch):
    monkeypatch.setattr(data, "scan", lambda *_, **__: pytest.fail("photos were opened"))
    photos = demo.make(home / "smiles", 3, layout="class_folders", size=48)
    names = sorted(path.relative_to(photos).as_posix() for path in photos.glob("*/*.jpg"))
    (photos / "labels.csv").write_text("\n".join(["file,smile", *(f"{name},1" for name in names)]))
    assert recipes.main([str(photos), "--label", "smile", *QUICK]) == 2
    assert "two classes are needed; `smile` has 1: 1" in capsys.readouterr().err


def test_weights_that_cannot_be_had_are_told_before_any_photo_is_opened(home, drawn_faces, capsys, monkeypatch):
    def unreachable(**_):
        raise models.URLError("no route")

    monkeypatch.setattr(models, "torchvision_mobilenet_v2", unreachable)
    monkeypatch.setattr(data, "scan", lambda *_, **__: pytest.fail("photos were opened"))
    assert recipes.main([str(drawn_faces), "--name", "net"]) == 2
    assert "set TORCH_HOME to a folder that holds" in capsys.readouterr().err
