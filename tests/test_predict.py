"""The runtime's functions: models, listings, predictions."""

import itertools
import os
from types import SimpleNamespace

import helpers
import numpy as np
import pytest
import tiny_model
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from PIL import Image
from tiny_model import COLOURS

from faces import files, pipeline, predict

posix = pytest.mark.skipif(os.name == "nt", reason="links and permissions as POSIX has them")


def test_models_of_whole_pictures_and_of_their_centres_are_asked_together(folder, tmp_path):
    tasks = {
        "centre": predict.Model(folder),
        "all": predict.Model(tiny_model.write(tmp_path / "models" / "all", whole=True)),
        "larger": predict.Model(tiny_model.write(tmp_path / "models" / "larger", size=24)),
    }
    asked = pipeline.Pipeline(tasks, "crop")
    assert asked.frames == [(24, False), (16, True), (16, False)]
    picture = Image.new("RGB", (90, 30), (40, 0, 0))
    picture.paste((0, 0, 60), (30, 0, 60, 30))  # a blue centre between red sides
    picture.save(tmp_path / "a.png")
    [photo] = asked.stream(tmp_path, ["a.png"])
    assert [photo.faces[0].answers[task].label for task in tasks] == ["blue", "red", "blue"]


def test_probabilities_and_predictions_agree(model):
    pixels = np.zeros((3, 16, 16, 3), np.uint8)
    pixels[0, ..., 0], pixels[1, ..., 2] = 255, 20
    assert (model.name, model.classes, model.size) == ("tiny", ("blue", "red"), 16)
    probabilities = model.probabilities(pixels)
    assert probabilities.shape == (3, 2) and np.allclose(probabilities.sum(1), 1)
    red, blue, _ = model.head().read(model.run(pixels))
    assert (red.label, blue.label) == ("red", "blue")
    assert red.confidence == pytest.approx(1) and blue.confidence == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-4)
    assert blue.probabilities == dict(zip(["blue", "red"], probabilities[1].tolist(), strict=True))


def test_a_model_goes_by_path_or_by_name(folder, monkeypatch):
    assert predict.find_model(folder) == folder
    monkeypatch.setattr(predict, "ARTIFACTS", folder.parent)
    assert predict.find_model("tiny") == folder
    monkeypatch.chdir(folder)
    assert predict.Model(".").name == "tiny"


@pytest.mark.parametrize("kind", [predict.RuntimeException, predict.Fail, MemoryError])
def test_want_of_memory_in_a_network_is_a_plain_error_and_a_bug_is_not(model, monkeypatch, kind):
    with pytest.raises(InvalidArgument):
        model.probabilities(np.zeros((1, 5, 5, 3), np.uint8))
    monkeypatch.setattr(model, "session", SimpleNamespace(run=helpers.raising(kind("bad allocation"))))
    with pytest.raises(predict.UsageError, match="tiny failed on a batch of 1, try a smaller one: bad alloc") as caught:
        model.probabilities(np.zeros((1, 16, 16, 3), np.uint8))
    assert caught.value.__context__ is None
    monkeypatch.setattr(model, "session", SimpleNamespace(run=helpers.raising(TypeError("a bug"))))
    with pytest.raises(TypeError):
        model.probabilities(np.zeros((1, 16, 16, 3), np.uint8))


TREE = ["a.jpg", "a/b.jpg", "a-b.jpg", "a/.hidden.jpg", "a/c/d.jpg", "B.jpg", "b/a.jpg", "b0.jpg", "ü.jpg", "notes.txt"]
TREE += ["_a.jpg", "thumbs.jpg"]
LITTER = [".DS_Store", "a/Thumbs.db", "._a.jpg", "a/._b.jpg", "desktop.ini"]
LITTER += ["@eaDir/a.jpg", "b/__MACOSX/c.jpg", "$RECYCLE.BIN/d.jpg"]


@pytest.fixture
def tree(tmp_path):
    for name in [*TREE, *LITTER]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_listing_is_in_plain_order_of_the_whole_path_and_passes_over_what_systems_make(tree):
    assert list(files.find_files(tree, recursive=True)) == sorted(TREE)
    assert list(files.find_files(tree)) == sorted(name for name in TREE if "/" not in name)


@posix
def test_linked_files_are_listed_and_linked_folders_once(tmp_path):
    for name in ["store/cats/1.jpg", "store/dogs/2.jpg", "all/own/3.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    links = {"all/cats": "store/cats", "all/more": "store", "all/own/up": "all", "store/dogs/back": "all/own"}
    links |= {"all/own/z.jpg": "all/own/3.jpg"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    expected = ["cats/1.jpg", "more/dogs/2.jpg", "own/3.jpg", "own/z.jpg"]
    assert list(files.find_files(tmp_path / "all", recursive=True)) == expected
    assert list(files.find_files(tmp_path / "all")) == []
    (tmp_path / "whole").symlink_to(tmp_path / "all")
    assert list(files.find_files(tmp_path / "whole", recursive=True)) == expected


def test_a_folder_below_that_cannot_be_listed_does_not_stop_the_rest(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).rstrip("/\\").endswith("a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    expected = sorted([*(name for name in TREE if not name.startswith("a/")), "a/"])
    assert list(files.find_files(tree, recursive=True)) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_come_in_order_whatever_the_batch(model, photos, batch_size):
    (photos / "img_2a.jpg").write_text("no picture")
    names = sorted([*COLOURS, "img_2a.jpg", "vanished.jpg"], reverse=True)
    found = list(pipeline.Pipeline({"colour": model}, batch_size=batch_size).stream(photos, names, threads=2))
    assert [photo.name for photo in found] == names
    errors = {photo.name: str(photo.error) for photo in found if photo.error}
    assert errors == {"img_2a.jpg": "not a picture in a known format", "vanished.jpg": "No such file or directory"}
    assert {photo.name: face.answers["colour"].label for photo in found for face in photo.faces} == COLOURS


def test_predictions_stream(model, photos):
    asked = []
    names = (asked.append(name) or name for name in itertools.repeat("img_0.jpg", 500))
    answers = pipeline.Pipeline({"colour": model}, batch_size=2).stream(photos, names, threads=2)
    assert next(answers).faces[0].answers["colour"].label == "red"
    # Batches of two: those that are decoded ahead by two threads, and those that the networks run on and the next.
    assert len(asked) <= 2 * (2 + 2 + predict.PARALLEL_BATCHES + 1)
    answers.close()
