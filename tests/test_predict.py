"""The runtime's functions: models, listings, predictions, and the command line's refusals."""

import itertools
import json
import os
import sys

import numpy as np
import pytest
import tiny_model
from PIL import Image

from faces import files, images, predict

posix = pytest.mark.skipif(os.name == "nt", reason="links and permissions as POSIX has them")


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return predict.Model(folder)


@pytest.fixture
def photos(tmp_path):
    for number, colour in enumerate(["red", "blue", "red", "red", "blue"]):
        picture(tmp_path / "photos" / f"img_{number}.jpg", colour)
    return tmp_path / "photos"


COLOURS = {"img_0.jpg": "red", "img_1.jpg": "blue", "img_2.jpg": "red", "img_3.jpg": "red", "img_4.jpg": "blue"}


# ----------------------------------------------------------------------------------------------------- models


def test_a_model_knows_its_classes_and_size(model):
    assert (model.name, model.classes, model.size) == ("tiny", ("blue", "red"), 16)


def test_probabilities_and_predictions_agree(model):
    pixels = np.zeros((3, 16, 16, 3), np.uint8)
    pixels[0, ..., 0], pixels[1, ..., 2] = 255, 20
    probabilities = model.probabilities(pixels)
    assert probabilities.shape == (3, 2) and np.allclose(probabilities.sum(1), 1)
    red, blue, _ = model.predict(pixels)
    assert (red.label, blue.label) == ("red", "blue")
    assert red.confidence == pytest.approx(1) and blue.confidence == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-4)
    assert np.array_equal(blue.probabilities, probabilities[1])


def test_a_model_goes_by_path_or_by_name(folder, monkeypatch):
    assert predict.find_model(folder) == folder
    monkeypatch.setattr(predict, "ARTIFACTS", folder.parent)
    assert predict.find_model("tiny") == folder
    monkeypatch.chdir(folder)
    assert predict.Model(".").name == "tiny"


def test_a_batch_that_the_network_refuses_is_a_plain_error(model):
    with pytest.raises(predict.UsageError, match="tiny failed on a batch of 1"):
        model.probabilities(np.zeros((1, 5, 5, 3), np.uint8))


# --------------------------------------------------------------------------------------------------- listings

TREE = ["a.jpg", "a/b.jpg", "a-b.jpg", "a/.hidden.jpg", "a/c/d.jpg", "B.jpg", "b/a.jpg", "b0.jpg", "ü.jpg", "notes.txt"]


@pytest.fixture
def tree(tmp_path):
    for name in [*TREE, ".DS_Store", "a/Thumbs.db", "._a.jpg", "a/._b.jpg", "desktop.ini"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_recursive_listing_is_in_plain_order_of_the_whole_path(tree):
    assert list(predict.find_files(tree, recursive=True)) == sorted(TREE)


def test_listing_stays_in_the_folder(tree):
    assert list(predict.find_files(tree)) == sorted(name for name in TREE if "/" not in name)


@posix
def test_links_to_files_count_and_links_to_folders_are_not_followed(tree):
    (tree / "a" / "up").symlink_to(tree)
    (tree / "z.jpg").symlink_to(tree / "a.jpg")
    assert list(predict.find_files(tree, recursive=True)) == sorted([*TREE, "z.jpg"])


@posix
def test_a_link_to_itself_is_listed_to_be_reported(tree, model):
    (tree / "self.jpg").symlink_to("self.jpg")
    assert "self.jpg" in list(predict.find_files(tree))
    [(_, answer)] = predict.predict_files({"colour": model}, tree, ["self.jpg"])
    assert "symbolic links" in str(answer)


def test_a_folder_below_that_cannot_be_listed_does_not_stop_the_rest(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).rstrip("/\\").endswith("a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    expected = sorted([*(name for name in TREE if not name.startswith("a/")), "a/"])
    assert list(predict.find_files(tree, recursive=True)) == expected


# ------------------------------------------------------------------------------------------------ predictions


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_come_in_order_whatever_the_batch(model, photos, batch_size):
    (photos / "img_2a.jpg").write_text("no picture")
    names = sorted([*COLOURS, "img_2a.jpg", "vanished.jpg"], reverse=True)
    answers = list(predict.predict_files({"colour": model}, photos, names, batch_size=batch_size, threads=2))
    assert [name for name, _ in answers] == names
    errors = {name: str(answer) for name, answer in answers if isinstance(answer, images.ImageError)}
    assert errors == {"img_2a.jpg": "not a picture in a known format", "vanished.jpg": "No such file or directory"}
    assert {name: answer["colour"].label for name, answer in answers if name not in errors} == COLOURS


def test_predictions_stream(model, photos):
    asked = []
    names = (asked.append(name) or name for name in itertools.repeat("img_0.jpg", 500))
    answers = predict.predict_files({"colour": model}, photos, names, batch_size=2, threads=2)
    assert next(answers)[1]["colour"].label == "red"
    assert len(asked) <= 2 * 3
    answers.close()


def test_a_batch_without_a_single_picture(model, tmp_path):
    (tmp_path / "a.jpg").touch()
    [(name, answer)] = predict.predict_files({"colour": model}, tmp_path, ["a.jpg"])
    assert (name, str(answer)) == ("a.jpg", "empty file")


# ---------------------------------------------------------------------------------------------------- writing


def test_json_object_is_json(tmp_path):
    pairs = {"a\n.jpg": "x", "ü 😀.jpg": {"label": "y", "probability": 0.5}, 'q"\\': "z", "😀 caf\udce9": "v"}
    path = tmp_path / "file.json"
    with files.whole_file(path) as file:
        out = predict.JsonObject(file)
        for key, value in pairs.items():
            out.add(key, value)
        out.close()
    assert json.loads(path.read_text("utf-8")) == pairs
    assert "ü 😀.jpg" in path.read_text("utf-8")  # readable, not escaped


# --------------------------------------------------------------------------------------------------- a folder


def test_process_folder_counts_and_writes(model, photos, tmp_path):
    (photos / "img_9.jpg").touch()
    output = tmp_path / "labels.json"
    assert predict.process_folder(photos, output, tasks={"colour": model}, progress=False) == (5, 1)
    assert json.loads(output.read_text()) == COLOURS
    assert json.loads((tmp_path / predict.ERRORS).read_text()) == {"img_9.jpg": "empty file"}


def test_no_terminal_and_no_stderr_at_all(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert predict.process_folder(photos, tmp_path / "labels.json", tasks={"colour": model}) == (5, 0)


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("where", ["photos", "photos/below"])
def test_what_is_written_is_not_read(model, photos, tmp_path, recursive, where):
    picture(photos / "below" / "a.jpg", "red")
    (photos / "img_9.jpg").touch()
    (photos / f".{predict.ERRORS}.x7_2").touch()  # left by a run that was killed
    output = tmp_path / where / "labels.json"
    unfinished = 1 if where == "photos/below" else 0
    for _ in range(2):
        counts = predict.process_folder(photos, output, tasks={"colour": model}, recursive=recursive)
        assert counts == (5 + recursive, 1 + unfinished)
    assert output.parent / predict.ERRORS in output.parent.iterdir()


def test_an_interrupt_leaves_the_old_results(photos, folder, tmp_path, monkeypatch, capsys):
    output, errors = tmp_path / "labels.json", tmp_path / predict.ERRORS
    output.write_text("old"), errors.write_text("old too")
    decode = images.decode_sizes

    def interrupted(path, sizes):
        if path.endswith("img_3.jpg"):
            raise KeyboardInterrupt
        return decode(path, sizes)

    monkeypatch.setattr(images, "decode_sizes", interrupted)
    command = [str(photos), "--output", str(output), "--model", str(folder), "--batch-size", "1"]
    assert predict.main(command) == 130
    assert (output.read_text(), errors.read_text()) == ("old", "old too")
    assert sorted(tmp_path.iterdir()) == sorted([output, errors, photos])
    assert capsys.readouterr().err == "process.py: interrupted; nothing was written\n"


def test_want_of_memory_is_one_line(photos, folder, tmp_path, monkeypatch, capsys):
    def starve(*_):
        raise MemoryError

    monkeypatch.setattr(np, "stack", starve)
    assert predict.main([str(photos), "--output", str(tmp_path / "a.json"), "--model", str(folder)]) == 2
    assert capsys.readouterr().err == "process.py: not enough memory; try a smaller --batch-size\n"
    assert not (tmp_path / "a.json").exists()


# ------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def refused(photos, folder, tmp_path, capsys):
    """Runs the command line with ``{photos}`` and so on filled in, and returns its one line of complaint."""

    def run(*arguments):
        places = {"photos": photos, "model": folder, "tmp": tmp_path}
        before = sorted(tmp_path.rglob("*"))
        try:
            status = predict.main([argument.format(**places) for argument in arguments])
        except SystemExit as exit:  # argparse leaves this way
            status = exit.code
        out, err = capsys.readouterr()
        *usage, line = err.splitlines()
        assert (status, out) == (2, "")
        assert line.startswith("process.py: ")
        assert not usage or usage[0].startswith("usage: ")
        assert sorted(tmp_path.rglob("*")) == before  # no results, no errors, nothing half made
        return line.replace(str(tmp_path), "TMP")

    return run


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{tmp}/none"], "TMP/none does not exist"),
        (["{photos}/img_0.jpg"], "TMP/photos/img_0.jpg is a file, not a folder"),
        ([""], "DIR is empty; name a folder"),
        ([], "the following arguments are required: DIR"),
        (
            ["{photos}", "--output", "{tmp}/no/a.json"],
            "cannot write TMP/no/a.json: name a file in a folder that exists",
        ),
        (["{photos}", "--output", "{tmp}"], "cannot write TMP: name a file in a folder that exists"),
        (["{photos}", "--output", ""], "cannot write .: name a file in a folder that exists"),
        (
            ["{photos}", "--output", "{tmp}/process_errors.json"],
            "cannot write TMP/process_errors.json: that name is for the list of unreadable files",
        ),
        (["{photos}", "--batch-size", "0"], "argument --batch-size: '0' is not a whole number above 0"),
        (["{photos}", "--batch-size", "x"], "argument --batch-size: 'x' is not a whole number above 0"),
        (["{photos}", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(refused, arguments, complaint):
    line = refused(
        *arguments, *(["--model", "{model}", "--output", "{tmp}/a.json"] if "--output" not in arguments else [])
    )
    assert line.removeprefix("process.py: ").removeprefix("error: ") == complaint


@posix
def test_a_pipe_or_device_is_not_replaced_by_results(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    line = refused("{photos}", "--output", "{tmp}/pipe")
    assert line == "process.py: cannot write TMP/pipe: name a file in a folder that exists"


def test_an_output_folder_that_takes_no_files(refused, monkeypatch):
    def refuse(dir, prefix):
        raise PermissionError(13, "Permission denied", f"{dir}/{prefix}x7_2")

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    line = refused("{photos}", "--model", "{model}", "--output", "{tmp}/a.json")
    assert line == "process.py: Permission denied: TMP/a.json"


def test_unknown_model_lists_the_known_ones(refused, tmp_path, monkeypatch):
    for name in ("zebra", "ant"):
        tiny_model.write(tmp_path / "artifacts" / name)
    (tmp_path / "artifacts" / "empty").mkdir()
    monkeypatch.setattr(predict, "ARTIFACTS", tmp_path / "artifacts")
    line = refused("{photos}", "--model", "cow", "--output", "{tmp}/a.json")
    assert line == "process.py: no model 'cow': name a folder that holds a model.onnx, or one of ant, zebra"


def test_unknown_model_where_there_is_none(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "ARTIFACTS", tmp_path / "nowhere")
    assert refused("{photos}", "--model", "cow").endswith("or one of those in artifacts/ (there are none)")


def write_garbage(folder):
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"\x08\x07garbage" * 50)


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (write_garbage, "cannot be loaded"),
        (lambda folder: tiny_model.write(folder, metadata={}), "was not written by faces.export"),
        (lambda folder: tiny_model.write(folder, metadata={"faces": "{}"}), "was not written by faces.export"),
        (lambda folder: tiny_model.write(folder, metadata={"faces": "["}), "cannot be loaded"),
        (
            lambda folder: tiny_model.write(folder, metadata={"faces": '{"classes": ["a", "b"], "size": 17}'}),
            "cannot be loaded",
        ),
        (lambda folder: tiny_model.write(folder, outputs=3), "names 2 classes but answers two photos with (2, 3)"),
    ],
    ids=["garbage", "no metadata", "empty metadata", "damaged metadata", "other size", "other classes"],
)
def test_a_file_that_is_no_model_of_ours(refused, tmp_path, write, complaint):
    write(tmp_path / "odd")
    line = refused("{photos}", "--model", "{tmp}/odd", "--output", "{tmp}/a.json")
    assert line.startswith(f"process.py: {os.path.join('TMP', 'odd', 'model.onnx')} {complaint}")  # noqa: PTH118


def test_names_are_printed_without_control_characters():
    assert predict._printable("a\nb\x1b[31m ü 😀 caf\udce9") == "a\\nb\\x1b[31m ü 😀 caf\\udce9"


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are refused elsewhere")
def test_a_name_that_is_not_utf8_is_found_and_read(model, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        picture(tmp_path / name, "red")
    except OSError:
        pytest.skip("this file system refuses the name")
    answers = predict.predict_files({"colour": model}, tmp_path, predict.find_files(tmp_path))
    assert [(name, "red")] == [(found, answer["colour"].label) for found, answer in answers]


# ------------------------------------------------------------------------------------------------ abstaining


def labels_of(photos, tmp_path, *arguments, model):
    output = tmp_path / "labels.json"
    status = predict.main([str(photos), "--model", str(model), "--output", str(output), *arguments])
    return status, json.loads(output.read_text()) if output.exists() else None


@pytest.fixture
def unsure(photos):
    picture(photos / "img_5.jpg", (90, 0, 80))  # nearly as blue as red
    return photos


def test_what_is_not_sure_enough_is_unknown(unsure, tmp_path, folder):
    plain = labels_of(unsure, tmp_path, model=folder)[1]
    assert plain["img_5.jpg"] == "red"
    assert labels_of(unsure, tmp_path, "--min-confidence", "0", model=folder)[1] == plain
    found = labels_of(unsure, tmp_path, "--min-confidence", "0.99", "--confidence", model=folder)[1]
    assert found["img_5.jpg"]["label"] == "unknown" and 0.5 < found["img_5.jpg"]["probability"] < 0.99
    assert found["img_0.jpg"]["label"] == "red"


def test_a_model_may_carry_its_own_threshold(unsure, tmp_path, folder, capsys):
    about = {"classes": tiny_model.CLASSES, "size": tiny_model.SIZE, "abstain_below": 0.99}
    careful = tiny_model.write(tmp_path / "careful", metadata={"faces": json.dumps(about)})
    assert predict.Model(careful).abstain_below == 0.99
    assert labels_of(unsure, tmp_path, "--min-confidence", "auto", model=careful)[1]["img_5.jpg"] == "unknown"
    (tmp_path / "labels.json").unlink()
    assert labels_of(unsure, tmp_path, "--min-confidence", "auto", model=folder) == (2, None)
    assert "has no threshold of its own: give --min-confidence a number" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1.1", "-0.1", "nan", "sure", ""])
def test_a_threshold_is_a_probability(value, photos, capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.main([str(photos), "--min-confidence", value])
    assert stopped.value.code == 2
    assert 'is neither a probability from 0 to 1 nor "auto"' in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ several tasks


@pytest.fixture(scope="module")
def ages(tmp_path_factory):
    """An age regressor that looks at larger squares than the classifier."""
    return tiny_model.write(tmp_path_factory.mktemp("models") / "ages", age=True, size=24)


def test_an_age_regressor_gives_years_and_no_probabilities(ages):
    model = predict.Model(ages)
    assert (model.classes, model.coverage, model.size) == ((), 0.9, 24)
    [age] = model.predict(np.full((1, 24, 24, 3), (200, 0, 0), np.uint8))
    assert (age.years, age.low, age.high) == pytest.approx((20, 14.5, 25.5))
    with pytest.raises(predict.UsageError, match="ages gives ages, not probabilities"):
        model.probabilities(np.zeros((1, 24, 24, 3), np.uint8))


def test_several_models_look_at_one_decoded_photo(photos, tmp_path, folder, ages, monkeypatch):
    opened, open_rgb = [], images.open_rgb
    monkeypatch.setattr(images, "open_rgb", lambda path, size, **_: opened.append(size) or open_rgb(path, size))
    (photos / "img_9.jpg").touch()
    output = tmp_path / "labels.json"
    wanted = f"colour={folder},age={ages}"
    assert predict.main([str(photos), "--output", str(output), "--tasks", wanted, "--confidence"]) == 1
    assert opened == [24] * 6
    found = json.loads(output.read_text())
    assert list(found["img_0.jpg"]) == ["colour", "colour_probability", "age", "age_interval"]
    assert {name: entry["colour"] for name, entry in found.items()} == COLOURS
    assert found["img_0.jpg"]["age"] == 25.4 and found["img_1.jpg"]["age_interval"] == [0, 6]


@pytest.mark.parametrize("how", [["--model", "{}"], ["--tasks", "age={}"]])
def test_ages_alone(photos, tmp_path, ages, how):
    output = tmp_path / "labels.json"
    assert predict.main([str(photos), "--output", str(output), how[0], how[1].format(ages)]) == 0
    assert json.loads(output.read_text())["img_0.jpg"] == {"age": 25.4, "age_interval": [19, 31]}


@pytest.mark.parametrize("batch_size", ["1", "2", "64"])
def test_a_task_alone_is_plain_and_tells_the_same_beside_others(photos, tmp_path, folder, ages, batch_size):
    output = tmp_path / "labels.json"
    rest = ["--output", str(output), "--batch-size", batch_size, "--tasks"]
    assert predict.main([str(photos), *rest, f"colour={folder}"]) == 0
    assert json.loads(output.read_text()) == COLOURS
    assert predict.main([str(photos), *rest, f"age={ages},colour={folder}"]) == 0
    assert {name: entry["colour"] for name, entry in json.loads(output.read_text()).items()} == COLOURS


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ("height", "no task 'height'; there are gender, age, or name a model: TASK=MODEL"),
        ("gender,gender", "'gender' is asked for twice"),
        ("", "no task ''"),
        ("gender,", "no task ''"),
        ("gender=", "no task 'gender='"),
        ("=gender_cnn", "no task '=gender_cnn'"),
    ],
)
def test_tasks_that_there_are_not(refused, wanted, complaint):
    assert complaint in refused("{photos}", "--output", "{tmp}/a.json", "--tasks", wanted)


def test_one_model_or_tasks_but_not_both(refused):
    line = refused("{photos}", "--output", "{tmp}/a.json", "--tasks", "age", "--model", "{model}")
    assert "not allowed with argument" in line


def test_thresholds_are_for_labels(refused, ages, photos, tmp_path, folder):
    rest = ["{photos}", "--output", "{tmp}/a.json", "--min-confidence", "0.99", "--tasks"]
    assert refused(*rest, f"age={ages}").endswith("--min-confidence is for labels, and ages alone were asked for")
    picture(photos / "img_5.jpg", (90, 0, 80))
    assert predict.main([part.format(photos=photos, tmp=tmp_path) for part in rest] + [f"a={ages},c={folder}"]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["img_5.jpg"]["c"] == "unknown"
