"""From a folder to a manifest whose splits do not leak: layouts, scanning, near duplicates, splits, files."""

import contextlib
import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from faces import images
from faces.research import data, demo

# Real names of UTKFace that do not keep to its pattern, and what they still tell: age, gender, race.
MALFORMED = {
    "14_0_0_2017011022340900.jpg.chip.jpg": (14, "male", "White"),
    "24_0_1_20170116220224657 .jpg.chip.jpg": (24, "male", "Black"),
    "28_1_2_201701161846515488.jpg.chip.jpg": (28, "female", "Asian"),
    "38_0_1_201701162330572788.jpg.chip.jpg": (38, "male", "Black"),
    "39_1_20170116174525125.jpg.chip.jpg": (39, "female", None),
    "55_0_0_20170116232725357jpg.chip.jpg": (55, "male", "White"),
    "61_1_20170109142408075.jpg.chip.jpg": (61, "female", None),
    "61_1_20170109150557335.jpg.chip.jpg": (61, "female", None),
}
REGULAR = {
    "1_0_3_20161219140530307.jpg.chip.jpg": (1, "male", "Indian"),
    "116_1_4_20170120134921760.jpg.chip.jpg": (116, "female", "Others"),
}


def put(root, *names):
    """Empty files with these names; reading labels opens none of them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(root, name, text):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def known(values):
    """A column as a list, with None for what is missing."""
    return [None if pd.isna(value) else value for value in values]


def column(manifest, label, key="name"):
    return dict(zip(manifest[key], known(manifest[label]), strict=True))


def picture(seed=0, size=96):
    """Soft random blots: no two seeds are near duplicates."""
    blots = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((size, size), Image.Resampling.BICUBIC)


# --------------------------------------------------------------------------------------------------- read


@pytest.mark.parametrize(
    ("female", "male"),
    [("female", "male"), ("Female", "MALE"), ("weiblich", "männlich"), ("f", "m"), ("F", "masculin")],
)
def test_class_folders_of_genders(tmp_path, female, male):
    put(tmp_path, f"{female}/1.jpg", f"{female}/deep/er/2.PNG", f"{male}/1.jpeg")
    manifest = data.read(tmp_path)
    assert column(manifest, "gender") == {
        f"{female}/1.jpg": "female",
        f"{female}/deep/er/2.PNG": "female",
        f"{male}/1.jpeg": "male",
    }
    assert "label" not in manifest
    assert known(manifest["subset"]) == [None] * 3
    assert all(Path(path) == tmp_path / name for path, name in zip(manifest.path, manifest.name, strict=True))


@pytest.mark.parametrize("wrapping", ["", "archive/", "archive/images/"])
@pytest.mark.parametrize(
    ("folders", "subsets"),
    [
        ("Training/female Training/male valid/male test/female", ["train", "train", "val", "test"]),
        *(("train/female train/male", ["train"] * 2), ("test/female test/male", ["test"] * 2)),
    ],
)
def test_class_trees_below_train_and_test_or_one_of_them(tmp_path, wrapping, folders, subsets):
    names = [f"{wrapping}{folder}/1.jpg" for folder in folders.split()]
    manifest = data.read(put(tmp_path, *names))
    assert column(manifest, "subset") == dict(zip(names, subsets, strict=True))
    assert column(manifest, "gender") == {name: name.split("/")[-2] for name in names}


@pytest.mark.parametrize("parts", [("",), ("part1/", "part2/")])
def test_utkface_names_malformed_ones_included(tmp_path, parts):
    named = MALFORMED | REGULAR
    names = {parts[number % len(parts)] + name: told for number, (name, told) in enumerate(named.items())}
    manifest = data.read(put(tmp_path, *names, "unnamed.jpg"))
    for label, expected in zip(("age", "gender", "race"), zip(*names.values(), strict=True), strict=True):
        assert column(manifest, label) == {**dict(zip(names, expected, strict=True)), "unnamed.jpg": None}
    assert known(manifest["subset"]) == [None] * len(manifest) and "label" not in manifest


@pytest.mark.parametrize("layout", ["utkface", "fairface", "age_csv", "class_folders"])
def test_every_layout_that_demo_draws_is_read(tmp_path, layout):
    manifest = data.read(demo.make(tmp_path / "demo", 6, layout=layout, size=16))
    labels = {"utkface": {"age", "gender", "race", "age_group"}, "fairface": {"gender", "race", "age_group"}}
    labels |= {"age_csv": {"age", "age_group"}, "class_folders": {"gender"}}
    assert labels[layout] <= set(manifest.columns)
    assert len(manifest) == 9  # a copy, a near copy and a broken one on top
    assert manifest[list(labels[layout])].notna().all(axis=None)


@pytest.mark.parametrize("pair", [False, True])
def test_fairface_in_one_table_or_its_original_pair(tmp_path, pair):
    put(tmp_path, "train/1.jpg", "train/2.jpg", "val/1.jpg")
    head = "file,age,gender,race,service_test\n"
    train = "train/1.jpg,50-59,Male,Latino_Hispanic,True\ntrain/2.jpg,more than 70,Female,White,False\n"
    val = "val/1.jpg,0-2,Female,Black,True\n"
    for name, rows in {"_train": train, "_val": val}.items() if pair else {"": train + val}.items():
        table(tmp_path, f"fairface_label{name}.csv", head + rows)
    manifest = data.read(tmp_path)
    assert column(manifest, "age_group") == {"train/1.jpg": "50-59", "train/2.jpg": "70+", "val/1.jpg": "0-2"}
    assert set(manifest["age_group"]) <= set(data.AGE_GROUPS)
    assert column(manifest, "subset") == {"train/1.jpg": "train", "train/2.jpg": "train", "val/1.jpg": "val"}
    assert known(manifest["gender"]) == ["male", "female", "female"]
    assert known(manifest["race"]) == ["Latino_Hispanic", "White", "Black"]
    assert "age" not in manifest


@pytest.mark.parametrize("folder", ["", "final_files/", "some/where/"])
def test_chalearn_labels(tmp_path, folder):
    put(tmp_path, f"{folder}000001.jpg", f"{folder}000002.jpg")
    table(tmp_path, "labels.csv", "file_name,real_age\n000001.jpg,31\n000002.jpg,4\n")
    manifest = data.read(tmp_path)
    assert column(manifest, "age") == {f"{folder}000001.jpg": 31, f"{folder}000002.jpg": 4}
    assert known(manifest["age_group"]) == ["30-39", "3-9"]
    assert all(Path(path).is_file() for path in manifest["path"])


WORDS = ["None", "NA", "null", "nan", "N/A", ""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "path,split,source,group,glasses,gender,name\n"
            "a.jpg,train,flickr,7,True,F,Ann\nb.jpg,Validation,flickr,7,False,man,Bob\nc.jpg,test,,8,True,,Cy\n",
            {
                **{"name": ["a.jpg", "b.jpg", "c.jpg"], "subset": ["train", "val", "test"]},
                **{"origin": ["flickr", "flickr", None], "identity": ["7", "7", "8"]},
                **{"glasses": ["True", "False", "True"], "gender": ["female", "male", None]},
            },
        ),
        (
            "file,name,subset,label\na.jpg,same,Testing,01\nb.jpg,same,,02\n",
            {"name": ["a.jpg", "b.jpg"], "title": ["same"] * 2, "subset": ["test", None], "label": ["01", "02"]},
        ),
        ("file,gender\ntrain\\x.jpg,male\nval\\y.jpg,female\n", {"subset": ["train", "val"]}),
        ("sep=;\nfile;age;label;\na.jpg;31,5;x;\nb.jpg;4;y;\n", {"age": [31.5, 4], "label": ["x", "y"]}),
        (
            "file,region,age,identity\n"
            + "".join(f"{f}.jpg,{w},{w or 30},{w}\n" for f, w in zip("abcdef", WORDS, strict=True)),
            # Nobody is NA years old, or the person None.
            {"region": [*WORDS[:-1], None], "age": [None] * 5 + [30], "identity": [None] * 6},
        ),
        ("file,gender\na.jpg,man\nb.jpg,woman\nc.jpg,NA\nd.jpg,\n", {"gender": ["male", "female", None, None]}),
        ("file,gender\na.jpg,boy\nb.jpg,girl\nc.jpg,man\n", {"gender": ["boy", "girl", "man"]}),
        (
            "file,gender\na.jpg,M\nb.jpg,Female\nc.jpg,f\nd.jpg,other\n",
            {"gender": ["male", "female", "female", "other"]},
        ),
        ("file,gender\na.jpg,0\nb.jpg,1\nc.jpg,1\n", {"gender": ["0", "1", "1"]}),
    ],
    ids=["own", "names", "backslashes", "German", "missing", "man", "boy", "other", "numbers"],
)
def test_a_table_of_ones_own(tmp_path, text, expected):
    put(tmp_path, *(f"{name}.jpg" for name in [*"abcdef", "train/x", "val/y"]))
    table(tmp_path, "meta.csv", text)
    manifest = data.read(tmp_path)
    assert {name: known(manifest[name]) for name in expected} == expected
    assert set(manifest["source"]) == {tmp_path.name}
    assert not {"split", "group"} & set(manifest.columns)  # those are the manifest's own, and come later


def test_rows_of_a_table_whose_files_are_gone_are_found_by_scan(tmp_path):
    put(tmp_path, "sub/b.jpg")
    picture().save(tmp_path / "sub/b.jpg")
    table(tmp_path, "labels.csv", "file_name,real_age\na.jpg,31\nb.jpg,4\n,5\n")
    scanned = data.scan(data.read(tmp_path))
    assert column(scanned, "error") == {"sub/a.jpg": "No such file or directory", "sub/b.jpg": None}


def test_meglass(tmp_path):
    names = ["1@N08_identity_4@28_1.jpg", "1@N08_identity_4@29_0.jpg", "2@N00_identity_1@5_0.jpg"]
    put(tmp_path / "MeGlass_120x120", *names)
    table(tmp_path, "meta.txt", "".join(f"{name} {number % 2}\n" for number, name in enumerate(names)) + "\n")
    manifest = data.read(tmp_path)
    assert manifest["name"].tolist() == [f"MeGlass_120x120/{name}" for name in names]
    assert manifest["glasses"].tolist() == ["no_glasses", "glasses", "no_glasses"]
    assert manifest["identity"].tolist() == ["1@N08_identity_4", "1@N08_identity_4", "2@N00_identity_1"]
    assert all(Path(path).is_file() for path in manifest["path"])


@pytest.mark.parametrize("text", ["", "a.jpg\n", "a.jpg 2\n", "gone.jpg 1\n"])
def test_a_meglass_list_that_says_nothing_is_refused(tmp_path, text):
    put(tmp_path, "a.jpg")
    table(tmp_path, "meta.txt", text)
    with pytest.raises(data.LayoutError, match=r"meta\.txt"):
        data.read(tmp_path)


def test_one_root_may_be_text_and_several_get_a_source_each(tmp_path):
    put(tmp_path / "one", "1_0_0_20161219140530307.jpg.chip.jpg")
    put(tmp_path / "two", "female/1.jpg", "male/1.jpg")
    alone = data.read(str(tmp_path / "two"))
    assert known(alone["source"]) == ["two", "two"]
    both = data.read([tmp_path / "two", str(tmp_path / "one")])
    assert known(both["source"]) == ["one", "two", "two"]
    assert known(both["age"]) == [1, None, None]
    assert known(both["age_group"]) == ["0-2", None, None]


def test_roots_of_the_same_name_stay_distinct(tmp_path):
    roots = [tmp_path / name for name in ("a/faces", "b/faces-2", "c/faces", "d/faces")]
    for root in roots:
        put(root, "female/1.jpg", "male/1.jpg")
    manifest = data.read(roots)
    assert manifest["source"].nunique() == 4
    assert not manifest.duplicated(["source", "name"]).any()
    of_source = {(row.source, Path(row.path).parents[1]) for row in manifest.itertuples()}
    assert len(of_source) == 4  # each name stands for one folder


def test_the_order_of_a_listing_has_no_influence(tmp_path, monkeypatch):
    put(tmp_path, "female/1.jpg", "female/2.jpg", "male/1.jpg", "male/0.jpg")
    expected, scandir = data.read(tmp_path), os.scandir

    @contextlib.contextmanager
    def backwards(folder):
        with scandir(folder) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    monkeypatch.setattr(os, "scandir", backwards)
    pd.testing.assert_frame_equal(data.read(tmp_path), expected)


MACHINE_MADE = [".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", ".Trash-1000"]
MACHINE_MADE += ["lost+found", "System Volume Information"]


@pytest.mark.parametrize("folder", MACHINE_MADE)
@pytest.mark.parametrize("subsets", [False, True])
def test_folders_that_systems_make_are_neither_classes_nor_photos(tmp_path, folder, subsets):
    names = ["train/cats/1.jpg", "test/dogs/2.jpg"] if subsets else ["cats/1.jpg", "dogs/2.jpg"]
    put(tmp_path, *names, f"{folder}/1.jpg", f"{names[0].rpartition('/')[0]}/{folder}/1.jpg", f"{folder}/cats/3.jpg")
    put(tmp_path, names[0].replace("1.jpg", ".trashed-1.jpg"))
    manifest = data.read(tmp_path)
    assert column(manifest, "label") == dict(zip(names[:2], ["cats", "dogs"], strict=True)) and len(manifest) == 2
    said = data.describe(manifest)
    assert f"{folder}/" in said and "1 hidden images" in said and "cats 1" in said and "dogs 1" in said


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are refused elsewhere")
def test_names_that_are_not_utf8_are_left_out_by_name(tmp_path):
    put(tmp_path, "cats/1.jpg", "cats/2.jpg", "dogs/1.jpg")
    (tmp_path / "cats" / "2.jpg").rename(os.fsdecode(bytes(tmp_path / "cats") + b"/\xff.jpg"))
    manifest = data.read(tmp_path)
    assert sorted(manifest["name"]) == ["cats/1.jpg", "dogs/1.jpg"]
    assert "left out: cats/\\udcff.jpg (a name that is not UTF-8)" in data.describe(manifest)


def test_what_lies_beside_train_and_test_is_no_class(tmp_path):
    put(tmp_path, "train/cats/1.jpg", "train/dogs/1.jpg", "test/cats/2.jpg", "docs/screenshot.png", "banner.png")
    manifest = data.read(tmp_path)
    assert sorted(manifest["label"]) == ["cats", "cats", "dogs"]
    assert "left out: 2 images beside its folders of " in data.describe(manifest)
    put(tmp_path / "vehicles", "train/1.jpg", "car/2.jpg")
    assert known(data.read(tmp_path / "vehicles")["label"]) == ["car", "train"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_linked_class_folders_are_followed_and_circles_are_not(tmp_path):
    put(tmp_path / "store", "cats/1.jpg", "dogs/deep/2.jpg")
    put(tmp_path / "one", "birds/3.jpg")
    for link, target in {"one/cats": "store/cats", "one/dogs": "store/dogs", "store/cats/up": "one"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "one/fish").symlink_to(tmp_path / "gone")
    (tmp_path / "one/again").symlink_to(tmp_path / "store/cats")
    manifest = data.read(tmp_path / "one")
    assert sorted(manifest["label"]) == ["again", "birds", "dogs"]  # links in order: again is cats
    said = data.describe(manifest)
    assert "cats (a link to what is read already)" in said and "fish (a link to nothing)" in said


def test_photos_with_utkface_names_that_somebody_sorted(tmp_path):
    put(tmp_path, *(f"{folder}/{name}" for folder, name in zip(["beard", "no_beard"], REGULAR, strict=True)))
    manifest = data.read(tmp_path)
    assert sorted(manifest["label"]) == ["beard", "no_beard"] and not {"gender", "age"} & set(manifest)


@pytest.mark.parametrize(
    "classes",
    [("boy", "girl", "man", "woman"), ("girl", "woman"), ("man", "woman"), ("female", "male", "other")]
    + [("01", "02", "Female")],
)
def test_classes_keep_their_names(tmp_path, classes):
    put(tmp_path / "people", *(f"{name}/1.jpg" for name in classes))
    manifest = data.read(tmp_path / "people")
    assert column(manifest, "label") == {f"{name}/1.jpg": name for name in classes} and "gender" not in manifest
    put(tmp_path / "table", *(f"{name}.jpg" for name in classes))
    table(tmp_path / "table", "labels.csv", "file,label\n" + "".join(f"{name}.jpg,{name}\n" for name in classes))
    manifest = data.read(tmp_path / "table")
    assert sorted(manifest["label"]) == list(classes) and "gender" not in manifest


def test_genders_join_photos_that_have_one(tmp_path):
    put(tmp_path / "faces", *REGULAR)
    put(tmp_path / "women", "Female/1.jpg")
    manifest = data.read([tmp_path / "faces", tmp_path / "women"])
    assert sorted(manifest["gender"]) == ["female", "female", "male"] and "label" not in manifest
    put(tmp_path / "cats", "cats/1.jpg")
    manifest = data.read([tmp_path / "faces", tmp_path / "cats"])
    assert known(manifest["label"].dropna()) == ["cats"] and manifest["gender"].isna().sum() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 1], ["0", "1", "1"]),
        ([True, False, True], ["True", "False", "True"]),
        ([0.0, None, 1.0], ["0", None, "1"]),
        (["TRUE", "false", ""], ["True", "False", None]),
        (["01", "1.5", "2.0"], ["01", "1.5", "2.0"]),
    ],
)
def test_numbers_and_truth_values_are_names_of_classes(tmp_path, values, expected):
    assert known(data.class_names(pd.Series(values).replace("", None))) == expected
    put(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    frame = pd.DataFrame({"file": ["0.jpg", "1.jpg", "2.jpg"], "smile": values})
    frame.to_csv(tmp_path / "labels.csv", index=False)
    assert known(data.read(tmp_path)["smile"]) == expected


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_a_csv_of_any_separator_and_code(tmp_path, separator, code):
    put(tmp_path, "a.jpg", "å.jpg")
    text = "File Name,Label,Real Age\na.jpg, Käse,31\nå.jpg,Brot,4\n".replace(",", separator)
    (tmp_path / "LABELS.CSV").write_bytes(text.encode(code))
    manifest = data.read(tmp_path)
    assert known(manifest["name"]) == ["a.jpg", "å.jpg"] and known(manifest["label"]) == ["Käse", "Brot"]
    assert known(manifest["age"]) == [31, 4]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("classes.csv", b"id,name\n0,cats\n1,dogs\n", "classes.csv names 2 files, the first cats, not found"),
        ("notes.csv", b"Bild;Klasse\na;b\n", "notes.csv has no column `file`, .* in its first line: Bild, Klasse"),
        ("broken.csv", b'file,label\n"a.jpg,cats\n', "broken.csv cannot be read as CSV"),
        ("list.csv", b"file\ncats/a.jpg\n", "list.csv names files and says nothing of them"),
        ("binary.csv", bytes(range(256)), "binary.csv is not text"),
        ("meta.txt", b"camera: phone\n", "meta.txt, entry 1: not a file's name and 0 or 1"),
        ("scores.csv", b"epoch,loss\n1,0.5\n", "scores.csv has no column `file`"),
        ("empty.csv", b"", "empty.csv "),
    ],
)
def test_other_files_stop_no_class_folders_and_are_named_where_there_are_none(tmp_path, name, content, reason):
    stray = ["notes.txt", "cats/.DS_Store", "cats/._1.jpg", "dogs/Thumbs.db", "dogs/1.json", "script.py", "a.mp4"]
    put(tmp_path, "cats/a.jpg", "dogs/b.jpg", *stray)
    (tmp_path / name).write_bytes(content)
    manifest = data.read(tmp_path)
    assert column(manifest, "label") == {"cats/a.jpg": "cats", "dogs/b.jpg": "dogs"}
    assert re.search(reason, data.describe(manifest))
    put(tmp_path, "loose.jpg")
    with pytest.raises(data.LayoutError, match=reason):
        data.read(tmp_path)


def test_photos_that_a_csv_does_not_name_are_counted(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    table(tmp_path, "labels.csv", "file,path,label\na.jpg,other/x.jpg,x\nb.jpg,,\nc.jpg,,y\n")
    manifest = data.read(tmp_path)
    assert known(manifest["path"]) == [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    assert data.describe(manifest, "label") == (
        f"{tmp_path.name}: 3 images by labels.csv\n  left out: 1 images that labels.csv do not name\n"
        "label: x 1, y 1; 1 images have none"
    )
    scanned = data.scan(manifest)
    assert data.describe(scanned).startswith(f"{tmp_path.name}: 3 images by labels.csv\n")


@pytest.mark.parametrize("make", [None, "file"])
def test_a_missing_root_says_what_to_do(tmp_path, make):
    root = tmp_path / "photos"
    if make:
        root.touch()
    with pytest.raises(FileNotFoundError, match=r"no such data folder: .*photos.*python -m faces\.research\.demo"):
        data.read(root)
    with pytest.raises(data.LayoutError, match="no data folder"):
        data.read([])


@pytest.mark.parametrize(
    ("names", "text", "found"),
    [
        ([], None, "holds no image"),
        (["readme.txt"], None, "holds no image"),
        (["a.jpg", "b.jpg"], None, "holds 2 images, 2 of them in no class folder .*found: none; first image: a.jpg"),
        (["cats/a.jpg", "b.jpg"], None, "holds 2 images, 1 of them in no class folder .*found: cats;"),
        (["cats/a.jpg", "cats/b.jpg"], None, "found: cats;"),
        (["test/a.jpg", "train/b.jpg"], None, "holds 2 images, 2 of them"),
        (["a.jpg"], "file,age\nx.jpg,3\ny.jpg,4\n", r"labels\.csv names 2 files, the first x\.jpg, not found below"),
        (["a.jpg"], "file,age\nfar/down/a.jpg,3\n", r"names 1 files, the first far/down/a\.jpg, not found"),
        (["a.jpg"], "file,age\n[a].jpg,3\n", r"the first \[a\]\.jpg, not found"),
        (["a.jpg"], "file,age\n", "names no file in its column `file`"),
        (["a.jpg"], "file,age\n,3\n", "names no file in its column `file`"),
    ],
)
def test_a_layout_that_is_not_understood_is_told_with_those_that_are(tmp_path, names, text, found):
    put(tmp_path, *names)
    if text:
        table(tmp_path, "labels.csv", text)
    with pytest.raises(data.LayoutError, match=found) as caught:
        data.read(tmp_path)
    assert data.UNDERSTOOD in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("age", "bucket"),
    [("0", "0-2"), ("2", "0-2"), ("2.9", "0-2"), ("3", "3-9"), ("9", "3-9"), ("9.5", "3-9"), ("10", "10-19")]
    + [("19", "10-19"), ("20", "20-29"), ("69", "60-69"), ("70", "70+"), ("116", "70+"), ("", None), ("-1", None)],
)
def test_age_groups_come_from_years(tmp_path, age, bucket):
    put(tmp_path, "a.jpg", "b.jpg")
    table(tmp_path, "labels.csv", f"file,age\na.jpg,{age}\nb.jpg,50\n")
    assert known(data.read(tmp_path)["age_group"]) == [bucket, "50-59"]


def test_given_age_groups_stay_and_years_fill_the_gaps(tmp_path):
    put(tmp_path / "fair", "val/1.jpg")
    table(tmp_path / "fair", "labels.csv", "file,age,gender\nval/1.jpg,30-39,Male\n")
    put(tmp_path / "utk", "71_0_0_20161219140530307.jpg.chip.jpg")
    assert known(data.read([tmp_path / "fair", tmp_path / "utk"])["age_group"]) == ["30-39", "70+"]


# --------------------------------------------------------------------------------------------------- scan


@pytest.fixture
def mixed(tmp_path):
    """A folder of two good pictures and four that cannot be read."""
    root = put(tmp_path / "mixed", "female/zero.jpg", "male/gone.jpg")
    picture(1, 96).save(root / "female/good.jpg")
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6  # upright it is 40 pixels wide and 30 high
    picture(2, 48).resize((30, 40)).save(root / "male/good.png", exif=exif)
    whole = (root / "female/good.jpg").read_bytes()
    (root / "male/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "male/text.jpg").write_text("not a picture")
    manifest = data.read(root)
    (root / "male/gone.jpg").unlink()
    return manifest


def test_scan_counts_errors_and_raises_none_and_scanning_again_replaces(mixed):
    scanned = data.scan(mixed)
    errors = column(scanned, "error")
    assert errors["female/good.jpg"] is None
    assert errors["male/good.png"] is None
    assert errors["female/zero.jpg"] == "empty file"
    assert "truncated" in errors["male/cut.jpg"]
    assert "not a picture" in errors["male/text.jpg"]
    assert errors["male/gone.jpg"] == "No such file or directory"
    assert (column(scanned, "width")["male/good.png"], column(scanned, "height")["male/good.png"]) == (40, 30)
    bad = scanned["error"].notna()
    assert scanned.loc[bad, ["width", "height", "sha256", "phash"]].isna().all(axis=None)
    assert scanned.loc[~bad, ["sha256", "phash"]].map(len).eq(64).all(axis=None)
    pd.testing.assert_frame_equal(scanned[mixed.columns], mixed)
    once = data.scan(mixed.iloc[::-2])
    assert list(once.index) == list(mixed.index[::-2])
    pd.testing.assert_frame_equal(data.scan(once), once)


def test_the_cache_is_used_until_a_file_changes(mixed, tmp_path, monkeypatch):
    opened, open_rgb = [], images.open_rgb
    monkeypatch.setattr(images, "open_rgb", lambda *args: opened.append(args) or open_rgb(*args))
    cache = tmp_path / "made/cache"
    fresh = data.scan(mixed, cache=cache)
    readings = len(opened)
    assert readings >= 2
    again = data.scan(mixed, cache=cache)
    assert len(opened) == readings
    assert {name: known(fresh[name]) for name in fresh} == {name: known(again[name]) for name in again}

    path = fresh.loc[fresh["name"] == "female/good.jpg", "path"].item()
    picture(3).save(path)
    changed = data.scan(mixed, cache=cache)
    assert len(opened) > readings
    assert column(changed, "sha256")["female/good.jpg"] != column(fresh, "sha256")["female/good.jpg"]
    Path(path).unlink()
    assert column(data.scan(mixed, cache=cache), "error")["female/good.jpg"]


def test_the_cache_keeps_hashes_as_text(tmp_path):
    """The perceptual hash of a plain area consists of digits only."""
    put(tmp_path, "a/1.png", "b/1.png")
    for name in ("a/1.png", "b/1.png"):
        Image.new("RGB", (32, 32), "grey").save(tmp_path / name)
    manifest = data.read(tmp_path)
    fresh, again = (data.scan(manifest, cache=tmp_path / "cache") for _ in range(2))
    assert fresh["phash"].str.isdecimal().all()
    assert known(again["phash"]) == known(fresh["phash"])
    assert data.group(again)["group"].nunique() == 1


# -------------------------------------------------------------------------------------------------- group


def of_hashes(*codes, **columns):
    """A manifest of 256-bit perceptual hashes, given as ints; None where the picture cannot be read."""
    phash = [None if code is None else f"{code:064x}" for code in codes]
    fixed = {"name": range(len(codes)), "source": "a", "phash": pd.Series(phash, dtype=object)}
    return pd.DataFrame(fixed | columns)


def ones(count, start=0):
    return ((1 << count) - 1) << start


def test_copies_share_a_group_and_others_do_not(tmp_path, drawn_faces):
    originals = data.usable(data.scan(data.read(drawn_faces))).drop_duplicates("sha256").iloc[:6]
    put(tmp_path / "copies", *(f"{kind}/{i}.jpg" for kind in ("exact", "again", "crop", "dim") for i in range(6)))
    for i, path in enumerate(originals["path"]):
        face = Image.open(path)
        versions = {
            "again": face.resize((96, 96)),
            "crop": face.crop((1, 1, 63, 63)),
            "dim": face.point(lambda value: int(0.7 * value)),
        }
        for kind, version in versions.items():
            version.save(tmp_path / f"copies/{kind}/{i}.jpg", quality=70)
        shutil.copy(path, tmp_path / f"copies/exact/{i}.jpg")
    copies = data.scan(data.read(tmp_path / "copies"))
    grouped = data.group(pd.concat([originals.assign(label="original"), copies], ignore_index=True))
    of_original = grouped.loc[grouped["label"] == "original", "group"].tolist()
    assert len(set(of_original)) == 6
    for kind in ("exact", "again", "crop", "dim"):
        assert grouped.loc[grouped["label"] == kind, "group"].tolist() == of_original, kind


def test_distinct_drawn_faces_do_not_collapse(drawn_faces):
    grouped = data.group(data.scan(data.read(drawn_faces)))
    assert 110 <= grouped["group"].nunique() < len(grouped)
    assert grouped["group"].value_counts().max() <= 6


CHAIN = (0, ones(40), ones(80), ones(52, 150), ones(53, 200))
FAR = [ones(60, 60 * i) for i in range(4)]


@pytest.mark.parametrize(
    ("codes", "columns", "options", "expected"),
    [
        (CHAIN, {}, {}, [0, 0, 0, 0, 1]),
        (CHAIN, {}, {"max_distance": 39}, [0, 1, 2, 3, 4]),
        (CHAIN, {}, {"max_distance": 40}, [0, 0, 0, 1, 2]),
        (FAR, {}, {}, [0, 1, 2, 3]),
        (FAR, {"identity": ["ann", None, "ann", None]}, {}, [0, 1, 0, 2]),
        # The same name in another source is another person.
        (FAR, {"identity": [7] * 4, "source": ["x", "x", "y", "y"]}, {}, [0, 0, 1, 1]),
        ([0, ones(10), ones(128), ones(120, 130)], {"identity": [1, 2, 2, 3]}, {}, [0, 0, 0, 1]),
        ([None, None, 0, None, 0], {}, {}, [0, 1, 2, 3, 2]),  # what cannot be read
        ([None, None], {}, {}, [0, 1]),
    ],
)
def test_likeness_and_identity_join_in_chains(codes, columns, options, expected):
    assert data.group(of_hashes(*codes, **columns), **options)["group"].tolist() == expected


def test_any_index_and_an_empty_manifest_will_do():
    odd = of_hashes(0, ones(90), 1).set_index(pd.Index([5, 3, 9]))
    assert data.group(odd)["group"].to_dict() == {5: 0, 3: 1, 9: 0}
    assert len(data.group(of_hashes())) == 0


@pytest.mark.parametrize("block", [1, 7, 256])
@pytest.mark.parametrize("max_distance", [0, 20, 110, 256])
def test_near_pairs_equal_brute_force(max_distance, block):
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 2**64, (60, 4), dtype=np.uint64)
    codes[30:40] = codes[:10]  # copies
    codes[40:50] = codes[:10] ^ rng.integers(0, 2**16, (10, 4), dtype=np.uint64)  # near copies
    bits = np.unpackbits(codes.view(np.uint8), axis=1).astype(int)
    expected = {
        (i, j, distance)
        for i in range(60)
        for j in range(i + 1, 60)
        if (distance := int((bits[i] != bits[j]).sum())) <= max_distance
    }
    found = list(zip(*map(np.ndarray.tolist, data.near_pairs(codes, max_distance, block=block)), strict=True))
    assert len(found) == len(expected)
    assert set(found) == expected
    assert expected


def test_hash_codes_keep_every_bit():
    text = pd.Series(["0" * 63 + "1", "8" + "0" * 63, None, "f" * 64])
    codes = data.hash_codes(text)
    assert codes.shape == (4, 4)
    assert np.bitwise_count(codes).sum(1).tolist() == [1, 1, 0, 256]
    assert codes[0, 3] == 1
    assert codes[1, 0] == 1 << 63


# -------------------------------------------------------------------------------------------------- split


def grouped_rows(n=600, source="web", seed=0, **columns):
    """A manifest as `group` returns it, of made-up rows: groups of one to three, two labels, none unreadable."""
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, max(1, int(n * 0.7)), n))
    frame = pd.DataFrame(
        {
            "path": [f"{source}/{i}.jpg" for i in range(n)],
            "name": [f"{i:05d}.jpg" for i in rng.permutation(n)],
            "source": source,
            "subset": pd.Series([None] * n, dtype=object),
            "gender": rng.choice(["female", "male"], n, p=[0.3, 0.7]),
            "age_group": rng.choice(["0-2", "20-29", "70+"], n, p=[0.2, 0.6, 0.2]),
            "error": pd.Series([None] * n, dtype=object),
            "group": group,
        }
    )
    return frame.assign(**columns)


def two_sources():
    """One source without and one with an official test set."""
    one, two = grouped_rows(), grouped_rows(400, "bench", seed=1)
    two["subset"] = ["test" if group % 4 == 0 else "train" for group in two["group"]]
    two["group"] += one["group"].max() + 1
    return pd.concat([one, two], ignore_index=True)


def shares(manifest):
    return manifest["split"].value_counts(normalize=True)


def split_by_name(manifest):
    return dict(zip(manifest["source"] + "/" + manifest["name"], manifest["split"], strict=True))


def test_drawn_faces_end_to_end(drawn_faces, tmp_path):
    manifest = data.prepare(drawn_faces, cache=tmp_path)
    assert manifest["split"].value_counts()["excluded"] == 1  # the truncated one
    usable = data.usable(manifest)
    assert usable.groupby("group")["split"].nunique().max() == 1
    assert usable.groupby("sha256")["split"].nunique().max() == 1
    assert usable["sha256"].duplicated().any()
    assert set(usable["split"]) == {"train", "val", "test"}
    steps = data.split(data.group(data.scan(data.read(drawn_faces))))
    assert split_by_name(steps) == split_by_name(manifest)
    looked_at = data.read(drawn_faces)
    assert split_by_name(data.prepare(looked_at, cache=tmp_path)) == split_by_name(manifest)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_straddles_the_splits_whatever_the_order_of_rows_or_numbers_of_groups(seed):
    manifest = two_sources()
    split = data.split(manifest, seed=seed)
    assert set(split["split"]) == {"train", "val", "test"}
    assert split.groupby("group")["split"].nunique().max() == 1 < split.groupby("group").size().max()
    renumbered = np.random.default_rng(seed).permutation(manifest["group"].max() + 1)
    shuffled = manifest.assign(group=renumbered[manifest["group"]]).sample(frac=1, random_state=seed)
    expected = split_by_name(split)
    assert split_by_name(data.split(shuffled, seed=seed)) == expected
    assert split_by_name(data.split(shuffled.reset_index(drop=True), seed=seed)) == expected
    assert split_by_name(data.split(manifest, seed=seed + 1)) != expected


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.15), (0.2, 0.3), (0, 0.2), (0.2, 0), (0, 0), (0.4, 0.5)])
def test_fractions_are_kept(val, test):
    leaders = data.split(grouped_rows(1000), val=val, test=test).drop_duplicates("group")
    found = shares(leaders).reindex(["train", "val", "test"], fill_value=0)
    assert np.abs(found - [1 - val - test, val, test]).max() < 0.01


@pytest.mark.parametrize("label", ["gender", "age_group"])
def test_labels_are_spread_evenly(label):
    leaders = data.split(grouped_rows(2000)).sort_values("name").drop_duplicates("group")
    spread = pd.crosstab(leaders["split"], leaders[label], normalize="index")
    assert (spread.max() - spread.min()).max() < 0.02


def test_rare_and_missing_labels_do_not_stop_it():
    manifest = grouped_rows(200)
    manifest.loc[5, "age_group"] = "the only one"
    manifest.loc[9:20, "gender"] = None
    manifest = data.split(manifest, stratify=("gender", "age_group", "no such label"))
    assert set(manifest["split"]) == {"train", "val", "test"}


def test_one_rare_label_does_not_cost_the_others_their_even_spread():
    spread = []
    for seed in range(10):
        manifest = grouped_rows(400).assign(group=range(400))
        manifest.loc[5, "age_group"] = "the only one"
        split = data.split(manifest, seed=seed)
        spread.append(split["gender"].eq("male").groupby(split["split"]).mean()["test"])
    assert np.ptp(spread) < 0.04  # drawn without strata it would be about 0.2


def test_each_source_gives_its_share():
    both = pd.concat([grouped_rows(900, "large"), grouped_rows(100, "small", seed=1)], ignore_index=True)
    both.loc[both["source"] == "small", "group"] += 1000
    leaders = data.split(both).drop_duplicates("group")
    test = leaders["split"].eq("test").groupby(leaders["source"]).mean()
    assert np.abs(test - 0.15).max() < 0.03


def test_an_official_test_set_stays_test_and_only_that():
    before = two_sources()
    manifest = data.split(before, val=0.2)
    bench = manifest[manifest["source"] == "bench"]
    assert (bench["split"].eq("test") == bench["subset"].eq("test")).all()
    train = bench[bench["subset"] == "train"].drop_duplicates("group")
    assert shares(train)["val"] == pytest.approx(0.2, abs=0.02)
    assert manifest.loc[manifest["source"] == "web", "split"].eq("test").any()


def test_an_official_val_is_the_test_unless_there_is_one_and_then_drawn_like_the_rest():
    manifest = grouped_rows(300)
    manifest["subset"] = ["val" if group % 5 == 0 else "train" for group in manifest["group"]]
    split = data.split(manifest)
    assert (split["split"].eq("test") == manifest["subset"].eq("val")).all()
    assert split["split"].eq("val").any()
    manifest["subset"] = np.array(["test", "val", "train", "train"])[manifest["group"] % 4]
    split = data.split(manifest)
    assert (split["split"].eq("test") == manifest["subset"].eq("test")).all()
    assert split.loc[manifest["subset"] == "val", "split"].isin(["train", "val"]).all()


def test_unreadable_rows_and_near_duplicates_of_an_official_test_set_are_excluded():
    manifest = two_sources()
    testing = manifest.index[manifest["subset"] == "test"]
    from_web, from_train = manifest.index[3], manifest.index[manifest["subset"] == "train"][0]
    manifest.loc[from_web, "group"] = manifest.loc[testing[0], "group"]
    manifest.loc[from_train, "group"] = manifest.loc[testing[1], "group"]
    broken = [0, 7, testing[2]]
    manifest.loc[broken, "error"] = "truncated"
    split = data.split(manifest)
    assert split.index[split["split"] == "excluded"].tolist() == sorted([*broken, from_web, from_train])
    assert split.loc[testing.difference(broken), "split"].eq("test").all()


def test_sources_of_one_split_alone():
    assert set(data.split(grouped_rows(9, error="empty file"))["split"]) == {"excluded"}
    assert set(data.split(grouped_rows(9, subset="test"))["split"]) == {"test"}


@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize("labels", [("gender", "age_group"), ()])
def test_tiny_sets_are_split_too(n, labels):
    manifest = grouped_rows(n).assign(group=range(n))
    split = data.split(manifest, stratify=labels)["split"]
    assert split.eq("train").any()
    assert set(split) == {"train", "val", "test"} if n >= 3 else set(split) <= {"train", "val", "test"}


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (-0.1, 0.2), (0.1, -0.1), (1, 0), (0, 1.2), (float("nan"), 0.1)])
def test_fractions_that_leave_nothing_are_refused(fractions):
    with pytest.raises(ValueError, match="fractions"):
        data.split(grouped_rows(20), val=fractions[0], test=fractions[1])


# --------------------------------------------------------------------------------------------- fingerprint


def full(drawn_faces):
    manifest = data.split(data.group(data.scan(data.read(drawn_faces))))
    manifest["label"] = pd.Series(["01", None, "NA", "å,b", 'say "so"', "1e5"] * 50, dtype=object)[: len(manifest)]
    manifest["score"] = [0.1 + 0.2, np.nan, 1 / 3] + [1e-17 * i for i in range(len(manifest) - 3)]
    manifest["glasses"] = [True, False] * (len(manifest) // 2) + [True] * (len(manifest) % 2)
    return manifest


def test_the_fingerprint_changes_with_a_label_or_a_split_and_not_with_the_order(drawn_faces):
    manifest = full(drawn_faces)
    expected = data.fingerprint(manifest)
    assert len(expected) == 16
    assert data.fingerprint(manifest.sample(frac=1, random_state=0)[manifest.columns[::-1]]) == expected
    assert data.fingerprint(manifest.drop(index=0)) != expected
    for name, value in (("gender", "unknown"), ("age", 33.5), ("split", "nowhere"), ("label", None), ("label", "1")):
        changed = manifest.copy()
        changed.loc[0, name] = value
        assert data.fingerprint(changed) != expected, name


def test_the_fingerprint_changes_with_a_byte_and_not_with_the_place(tmp_path):
    places = [tmp_path / place / "faces" for place in ("here", "over there")]
    before, elsewhere = (data.prepare(demo.make(place, 4, size=16, flaws=False)) for place in places)
    assert before["path"].iloc[0] != elsewhere["path"].iloc[0]
    assert data.fingerprint(before) == data.fingerprint(elsewhere)
    with Path(before["path"].iloc[0]).open("ab") as file:
        file.write(b"\0")  # behind the end of the JPEG, so that the picture stays as it is
    after = data.prepare(places[0])
    assert known(after["phash"]) == known(before["phash"])
    assert data.fingerprint(after) != data.fingerprint(before)


def test_usable_leaves_out_errors_and_missing_labels_and_lists_the_known_ones():
    manifest = grouped_rows(4)
    manifest["error"] = [None, "truncated", None, None]
    manifest["gender"] = ["male", "male", None, "female"]
    assert data.usable(manifest).index.tolist() == [0, 2, 3]
    assert data.usable(manifest, "gender", "age_group").index.tolist() == [0, 3]
    assert data.usable(manifest.drop(columns="error")).index.tolist() == [0, 1, 2, 3]
    with pytest.raises(data.LayoutError, match=r"no label `age` \(known: gender, age_group\)"):
        data.usable(manifest, "age")
    with pytest.raises(data.LayoutError, match="known: none"):
        data.usable(of_hashes(0), "gender")


# --------------------------------------------------------------------------------------------------- extend


def test_further_sources_join_without_moving_anything_or_leaking(tmp_path, drawn_faces):
    manifest = data.split(data.group(data.scan(data.read(drawn_faces))), seed=3)
    more = tmp_path / "more"
    demo.make(more, 30, seed=9, layout="class_folders", size=64, flaws=False)
    for split in ("train", "val", "test"):
        for path in manifest.loc[manifest["split"] == split, "path"].head(2):
            shutil.copy(path, more / "female" / f"copy_of_{split}_{Path(path).name}")
    both = data.extend(manifest, data.scan(data.read(more)))
    before, added = both.iloc[: len(manifest)], both.iloc[len(manifest) :]
    pd.testing.assert_frame_equal(before[manifest.columns], manifest, check_dtype=False)
    assert not set(added["group"]) & set(before["group"])
    barred = added["name"].str.contains("copy_of_(?:val|test)")
    assert barred.sum() == 4 and added["name"].str.contains("copy_of_train").sum() == 2
    assert set(added.loc[barred, "split"]) == {"excluded"} and set(added.loc[~barred, "split"]) == {"train"}


def test_official_test_photos_of_a_further_source_are_tested_on_unless_they_were_learnt(tmp_path, drawn_faces):
    manifest = data.split(data.group(data.scan(data.read(drawn_faces))), seed=3)
    drawn = demo.make(tmp_path / "drawn", 30, seed=9, layout="class_folders", size=64, flaws=False)
    for subset, gender in itertools.product(("train", "test"), ("female", "male")):
        (tmp_path / "more" / subset / gender).mkdir(parents=True)
    for number, path in enumerate(sorted(drawn.glob("*/*.jpg"))):
        shutil.copy(path, tmp_path / "more" / ("train", "test")[number % 2] / path.parent.name / path.name)
    learnt = manifest.loc[manifest["split"] == "train", "path"].iloc[0]
    shutil.copy(learnt, tmp_path / "more" / "test" / "male" / "learnt.jpg")
    (tmp_path / "more" / "test" / "male" / "broken.jpg").write_bytes(b"no picture")
    added = data.extend(manifest, data.scan(data.read(tmp_path / "more"))).iloc[len(manifest) :]
    of = added.set_index("name")["split"]
    assert of["test/male/learnt.jpg"] == of["test/male/broken.jpg"] == "excluded"
    rest = of.drop(["test/male/learnt.jpg", "test/male/broken.jpg"])
    moved = rest[rest != [name.split("/")[0] for name in rest.index]]
    assert set(moved) <= {"excluded"} and len(moved) <= 1  # drawn faces may look alike by chance
