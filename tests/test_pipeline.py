"""From files to answers: each model runs once, little is decoded ahead, and Python users get plain objects."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import tiny_model
from PIL import Image
from tiny_model import COLOURS

import faces
from faces import cli, images, pipeline, predict


def test_a_model_of_several_tasks_runs_once(both, photos, monkeypatch):
    tasks = pipeline.load_tasks({"colour": str(both), "age": str(both)})
    assert tasks["colour"] is tasks["age"]
    asked = pipeline.Pipeline(tasks, "crop")
    ran, answers = [], predict.Model.answers
    monkeypatch.setattr(predict.Model, "answers", lambda *given: ran.append(given[2]) or answers(*given))
    found = {photo.name: photo.faces[0].answers for photo in asked.stream(photos, sorted(COLOURS))}
    assert ran == [["colour", "age"]]
    assert {name: answer["colour"].label for name, answer in found.items()} == COLOURS
    assert found["img_0.jpg"]["age"].years == pytest.approx(25.4, abs=0.2)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A network of colour and age, a smaller one that can answer colours before it, and what both were asked."""
    large = predict.Model(tiny_model.write(tmp_path / "large", heads=["colour", "age"], size=32))
    about = tiny_model.metadata(("colour", tiny_model.CLASSES, {"sure": 0.9}), "age", subject="face")
    small = tiny_model.write(tmp_path / "small", heads=["colour", "age"], about=about)
    monkeypatch.setattr(pipeline, "QUICK", {"large": str(small)})
    ran, real = [], predict.Model.answers

    def answers(model, pixels, *heads):
        ran.append((model.name, len(pixels)))
        return real(model, pixels, *heads)

    monkeypatch.setattr(predict.Model, "answers", answers)
    return large, ran


def test_a_small_network_answers_where_it_is_sure(quick, photos):
    large, ran = quick
    tiny_model.picture(photos / "img_1.jpg", (138, 131, 131))  # red by little
    names = sorted(COLOURS)
    expected = [photo.faces[0].answers for photo in pipeline.Pipeline({"colour": large}, "crop").stream(photos, names)]
    ran.clear()
    asked = pipeline.Pipeline({"colour": large}, "crop", quick=True)
    assert list(asked.settings["quick"]) == ["small"]
    found = [photo.faces[0].answers for photo in asked.stream(photos, names)]
    assert ran == [("small", 5), ("large", 1)]
    for one, other in zip(found, expected, strict=True):
        assert one["colour"].label == other["colour"].label
        assert one["colour"].confidence == pytest.approx(other["colour"].confidence, abs=1e-3)
    assert 0.5 < found[1]["colour"].confidence < 0.9


def test_ages_are_never_those_of_the_small_network(quick, photos):
    large, ran = quick
    asked = pipeline.Pipeline({"colour": large, "age": large}, "crop", quick=True)
    assert len(list(asked.stream(photos, sorted(COLOURS)))) == 5
    assert ran == [("large", 5)] and "quick" not in asked.settings


def test_heads_are_chosen_by_name_or_because_there_is_no_other(both, folder):
    model = predict.Model(both)
    assert list(model.heads) == ["colour", "age"]
    assert (model.head("age").classes, model.head("colour").classes) == ((), ("blue", "red"))
    assert predict.Model(folder).head("anything").classes == ("blue", "red")
    assert pipeline.load_tasks({"gender": "gender_cnn", "sex": "gender_cnn"})
    with pytest.raises(predict.UsageError, match="both has no head 'size'; it has colour, age"):
        pipeline.Pipeline({"size": model})
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    assert {name: rows.shape for name, rows in model.answers(pixels).items()} == {"colour": (2, 2), "age": (2, 3)}
    assert model.run(pixels, "age").shape == (2, 3)


def test_results_are_in_order_and_few_items_are_taken_before():
    taken = []

    def slow(number):
        time.sleep(0.01 * (number % 3))
        return number

    with ThreadPoolExecutor(3) as pool:
        results = pipeline.ordered(pool, slow, (taken.append(n) or n for n in range(50)), ahead=4)
        assert next(results) == 0 and len(taken) <= 5
        assert list(results) == list(range(1, 50))


def test_room_for_large_results_bounds_what_is_taken():
    taken, release = [], threading.Event()

    def work(number):
        if number == 0:
            release.wait(60)
        return number

    def items():
        for number in range(50):
            taken.append(number)
            yield number
            time.sleep(0.01)  # so that what was taken is done

    with ThreadPoolExecutor(2) as pool:
        results = pipeline.ordered(pool, work, items(), ahead=40, size=lambda _: 10, most=25)
        threading.Timer(1.0, release.set).start()
        assert next(results) == 0
        assert len(taken) <= 6


def test_a_photo_by_path_image_or_array(both, photos):
    tasks = {"colour": str(both), "age": str(both)}
    picture = Image.open(photos / "img_0.jpg")
    for photo in (photos / "img_0.jpg", str(photos / "img_0.jpg"), picture, np.asarray(picture)):
        [face] = faces.label(photo, tasks=tasks, faces="crop")
        assert face.answers["colour"].label == "red" and face.answers["colour"].confidence > 0.9
        assert list(face.answers["colour"].probabilities) == ["blue", "red"]
        assert face.answers["age"].low <= face.answers["age"].years <= face.answers["age"].high
        assert face.box is face.score is None


def test_an_image_is_read_as_its_file_is(both, tmp_path):
    dark = np.full((64, 64), 60 * 257, np.uint16)
    Image.fromarray(dark).save(tmp_path / "a.tif")
    Image.new("RGBA", (64, 64), (255, 0, 0, 20)).save(tmp_path / "b.png")
    turned = Image.new("RGB", (64, 32), "blue")
    turned.paste("red", (0, 0, 32, 32))
    turned.getexif()[0x112] = 3
    turned.save(tmp_path / "c.png", exif=turned.getexif())
    for path in sorted(tmp_path.iterdir()):
        by_path, by_image = (faces.label(of(path), {"colour": str(both)}, faces="crop") for of in (str, Image.open))
        assert by_path == replace(by_image, name=str(path))


def test_a_face_in_a_scene_has_a_box(scene):
    [face] = faces.label(scene, tasks=["gender", "age", "glasses"])
    left, top, right, bottom = face.box
    assert (left + right) / 2 == pytest.approx(723, abs=15) and (top + bottom) / 2 == pytest.approx(316, abs=15)
    assert face.score > 0.9 and face.answers["gender"].label == "female"
    assert not faces.label(Image.new("RGB", (1200, 800), "grey"))


def test_a_plot_is_what_annotate_draws(both, photos, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    rest = ["--faces", "crop", "--output", str(tmp_path / "a.json"), "--annotate", str(tmp_path / "seen")]
    assert cli.label([str(photos), "--tasks", f"colour={both},age={both}", *rest]) == 0
    drawn = np.asarray(Image.open(tmp_path / "seen" / "img_0.jpg")).astype(float)
    tasks = {"colour": str(both), "age": str(both)}
    [first, *_] = faces.label_folder(photos, tasks, faces="crop")
    _, ax = pyplot.subplots()
    for photo in (first, *(faces.label(of(photos / "img_0.jpg"), tasks, faces="crop") for of in (str, Image.open))):
        assert photo.plot(ax) is ax
        assert np.abs(ax.images[-1].get_array() - drawn).mean() < 2  # of 255: the copy is a JPEG
    assert faces.label(Image.new("RGB", (1200, 800))).plot() is not ax
    pyplot.close("all")
    (photos / "img_0.jpg").unlink()
    with pytest.raises(images.ImageError, match="No such file"):
        first.plot()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        first.plot()


def test_what_cannot_be_done_is_said(photos):
    (photos / "notes.jpg").write_text("no picture")
    with pytest.raises(images.ImageError, match=r"notes\.jpg: not a picture") as caught:
        faces.label(photos / "notes.jpg")
    assert caught.value.kind == "not a picture"
    for wrong, complaint in {
        ("tasks", ("height",)): "no task 'height'; there are gender, age, glasses",
        ("tasks", "height"): "no task 'height'; there are gender, age, glasses",
        ("tasks", ()): "no task is asked for; there are gender, age, glasses",
        ("faces", "all"): "faces is 'all'; give one of auto, crop, detect",
    }.items():
        with pytest.raises(predict.UsageError, match=complaint):
            faces.label(photos / "img_0.jpg", **dict([wrong]))
    for wrong in ((photos / "img_0.jpg").read_bytes(), np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint16), None):
        with pytest.raises(TypeError, match=r"an array of (float64|uint16)|str"):
            faces.label(wrong)


def test_a_folder_is_labelled_file_by_file(both, photos):
    (photos / "img_9.jpg").touch()
    found = list(faces.label_folder(photos, {"colour": str(both)}, faces="crop"))
    assert [photo.name for photo in found] == [*sorted(COLOURS), "img_9.jpg"]
    assert str(found[-1].error) == "empty file" and found[-1].faces == ()
    assert found[0].faces[0].answers["colour"].label == "red" and found[0].error is None
