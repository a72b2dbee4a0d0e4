"""Drawn faces: deterministic, in the layouts of public sets, with the flaws of real sets, learnable."""

import csv
import datetime
import io
import json
import re
import subprocess
import sys
from collections import Counter

import helpers
import numpy as np
import pytest
from PIL import Image, ImageChops, ImageStat

from faces.research import demo, drawing

UTKFACE_NAME = re.compile(r"(\d+)_([01])_([0-4])_(\d{17})\.jpg\.chip\.jpg")
N = 50  # distinct faces; flaws add 1 exact copy, 2 near copies and 1 broken file


def jpegs(folder):
    return sorted(folder.rglob("*.jpg"))


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def unreadable(path):
    try:
        Image.open(path).load()
    except OSError:
        return True
    return False


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def utkface(tmp_path_factory):
    return demo.make(tmp_path_factory.mktemp("demo") / "utkface", N, size=32)


@pytest.fixture(scope="module")
def people():
    return [demo._person(11, i, 32) for i in range(300)]


@pytest.mark.parametrize("layout", demo.LAYOUTS)
def test_make_is_deterministic(tmp_path, layout):
    first = demo.make(tmp_path / "first", 8, seed=3, layout=layout, size=32)
    again = demo.make(tmp_path / "again", 8, seed=3, layout=layout, size=32)
    other = demo.make(tmp_path / "other", 8, seed=4, layout=layout, size=32)
    assert contents(first) == contents(again)
    assert contents(first) != contents(other)
    assert {path.name for path in tmp_path.iterdir()} == {"again", "first", "other"}  # no temporary folder left


def test_a_larger_set_holds_the_smaller_one(tmp_path):
    small = demo.make(tmp_path / "small", 4, size=32, flaws=False, layout="class_folders")
    large = demo.make(tmp_path / "large", 8, size=32, flaws=False, layout="class_folders")
    assert {path.read_bytes() for path in jpegs(small)} < {path.read_bytes() for path in jpegs(large)}


def test_utkface_names_parse(utkface):
    labels = [UTKFACE_NAME.fullmatch(path.name).groups() for path in jpegs(utkface)]
    assert len(labels) == N + 4
    assert all(1 <= int(age) <= 94 for age, *_ in labels)
    assert {gender for _, gender, *_ in labels} == {"0", "1"}
    stamps = [stamp for *_, stamp in labels]
    assert len(set(stamps)) == len(stamps)
    assert all(datetime.datetime.strptime(stamp[:14], "%Y%m%d%H%M%S").year == 2017 for stamp in stamps)


def test_class_folders_without_flaws_in_an_empty_folder(tmp_path):
    (tmp_path / "set").mkdir()
    folder = demo.make(tmp_path / "set", 20, layout="class_folders", size=32, flaws=False)
    assert {path.relative_to(folder).parts[0] for path in jpegs(folder)} == set(drawing.GENDERS)
    assert all(re.fullmatch(r"\d{4}\.jpg", path.name) for path in jpegs(folder))
    assert len({path.read_bytes() for path in jpegs(folder)}) == len(jpegs(folder)) == 20
    assert not any(unreadable(path) for path in jpegs(folder))


def test_age_csv(tmp_path):
    folder = demo.make(tmp_path / "set", 20, layout="age_csv", size=32)
    rows = table(folder / "labels.csv")
    assert list(rows[0]) == ["file_name", "real_age"]
    assert sorted(row["file_name"] for row in rows) == [path.name for path in jpegs(folder / "final_files")]
    assert all(1 <= int(row["real_age"]) <= 85 for row in rows)


def test_fairface(tmp_path):
    folder = demo.make(tmp_path / "set", 36, layout="fairface", size=32, flaws=False)
    rows = table(folder / "fairface_label.csv")
    assert list(rows[0]) == ["file", "age", "gender", "race", "service_test"]
    assert {folder / row["file"] for row in rows} == set(jpegs(folder))
    assert Counter(row["file"].split("/")[0] for row in rows) == {"train": 30, "val": 6}
    ages, races = {name for _, name in demo.FAIRFACE_AGES}, {race for *_, race in drawing.SKINS}
    assert (len(ages), len(races)) == (9, 7)
    assert {row["age"] for row in rows} <= ages and {row["race"] for row in rows} <= races
    assert {row["gender"] for row in rows} == {"Male", "Female"}
    assert {row["service_test"] for row in rows} == {"True", "False"}


def test_flaws_are_there_and_counted(tmp_path):
    assert len(jpegs(demo.make(tmp_path / "one", 1, size=32))) == 4
    folder = demo.make(tmp_path / "set", 100, size=32)
    assert len(jpegs(folder)) == 100 + 2 + 3 + 1
    assert sum(unreadable(path) for path in jpegs(folder)) == 1
    twins = {}
    for path in jpegs(folder):
        twins.setdefault(path.read_bytes(), []).append(UTKFACE_NAME.fullmatch(path.name).groups()[:2])
    twins = [labels for labels in twins.values() if len(labels) > 1]
    assert len(twins) == 2
    assert sorted((a[0] != b[0], a[1] != b[1]) for a, b in twins) == [(False, True), (True, False)]


def test_near_copies_look_like_their_original_and_are_not_the_same():
    face = demo._person(0, 0, 64)
    copy = demo._near_copy(np.random.default_rng(0), face)
    a, b = (Image.open(io.BytesIO(each["jpeg"])) for each in (face, copy))
    assert a.size == b.size and face["jpeg"] != copy["jpeg"]
    stranger = Image.open(io.BytesIO(demo._person(0, 1, 64)["jpeg"]))
    near, far = (ImageStat.Stat(ImageChops.difference(a, other)).mean[0] for other in (b, stranger))
    assert near < 12 < far


def test_a_second_call_writes_nothing(utkface, monkeypatch):
    before = contents(utkface)
    monkeypatch.setattr(demo, "_person", lambda *_: pytest.fail("drew again"))
    assert demo.make(utkface, N, size=32) == utkface
    assert contents(utkface) == before


def test_unknown_layouts_and_foreign_folders_are_refused_and_left_alone(tmp_path):
    with pytest.raises(ValueError, match="utkface, class_folders, age_csv, fairface"):
        demo.make(tmp_path, layout="imagenet")
    with pytest.raises(ValueError, match="n is 0"):
        demo.make(tmp_path, 0)
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path))):
        demo.make(tmp_path, 2, size=32)
    assert contents(tmp_path) == {"holiday.jpg": b"mine"}


def test_an_interrupted_run_leaves_no_half_set(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_write", helpers.raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        demo.make(tmp_path / "set", 2, size=32)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_draws_and_refuses_other_settings(tmp_path):
    command = [sys.executable, "-m", "faces.research.demo", str(tmp_path / "set"), "--size=32", "--no-flaws", "--n"]
    done = subprocess.run([*command, "3"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "set")
    before = contents(tmp_path)
    assert json.loads(before[f"set/{demo.SETTINGS_FILE}"])["n"] == 3
    for changed in (["3", "--seed", "1"], ["4"]):
        refused = subprocess.run([*command, *changed], capture_output=True, text=True)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
        assert re.search("other settings.*name another folder", refused.stderr) and contents(tmp_path) == before


def colours_and_edges(face):
    """Features of one face at 16 x 16: colours, and the strength of edges across and down."""
    image = Image.open(io.BytesIO(face["jpeg"]))
    edges = np.abs(np.gradient(np.asarray(image.convert("L"), float)))
    edges = edges.reshape(2, 16, 2, 16, 2).mean((2, 4))
    return np.concatenate([np.asarray(image.reduce(2)).ravel(), edges.ravel()])


@pytest.mark.slow
def test_gender_can_be_learnt_but_not_perfectly(people):
    signs = np.array([1 if p["gender"] == "female" else -1 for p in people])
    features = np.array([colours_and_edges(p) for p in people])
    features = (features - features.mean(0)) / (features.std(0) + 1e-9) / features.shape[1] ** 0.5
    train, test = features[:200], features[200:]
    # Ridge regression in its dual form: 200 equations, however many features there are.
    weights = train.T @ np.linalg.solve(train @ train.T + 0.2 * np.eye(200), signs[:200])
    assert 0.7 < np.mean(np.sign(test @ weights) == signs[200:]) < 0.995


def test_ages_are_broad_with_heaps_and_genders_balanced(people):
    counts = Counter(p["age"] for p in people)
    assert min(counts) == 1 and max(counts) > 75
    assert {age for age, _ in counts.most_common(2)} == {1, 26}
    assert 0.4 < np.mean([p["gender"] == "female" for p in people]) < 0.6
