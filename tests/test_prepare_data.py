"""tools/prepare_data.py on drawn folders in the layouts of the official downloads."""

import sys

import numpy as np
import pytest
from PIL import Image

from faces.research import data
from faces.research.notebooks import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import prepare_data


def draw(path, size=(200, 200)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    picture.save(path)


@pytest.fixture
def downloads(tmp_path):
    draw(tmp_path / "UTKFace/part1/26_1_2_20170116184024662.jpg.chip.jpg")
    fairface, heading = tmp_path / "fairface", "file,age,gender,race,service_test\n"
    for part, name in (("train", "train/2.jpg"), ("val", "val/1.jpg")):
        draw(fairface / name, (224, 224))
        (fairface / f"fairface_label_{part}.csv").write_text(f"{heading}{name},20-29,Male,Indian,True\n")
    mtfl = tmp_path / "MTFL"
    points = "80 120 100 85 115 90 90 110 130 130"  # five x, then five y
    for table, line in (
        ("training.txt", f" lfw_5590\\Ada_Love_0001.jpg {points} 2 1 1 3"),
        ("testing.txt", f"AFLW\\0001-image20056.jpg {points} 1 2 2 5"),
    ):
        draw(mtfl / line.split()[0].replace("\\", "/"))
        (mtfl / table).write_text(line + "\n\n")
    for character in {*prepare_data.COLOR6, *prepare_data.GRAY14}:
        draw(tmp_path / "simpsons/simpsons_dataset" / character / "pic_0000.jpg", (160, 208))
    return tmp_path


def prepare(downloads, name, folder, *options):
    return prepare_data.main([name, str(downloads / folder), str(downloads / "data" / name), *options])


MTFL = "train/glasses/lfw_5590__Ada_Love_0001.jpg", "test/no_glasses/AFLW__0001-image20056.jpg"
SIMPSONS = "color6/bart_simpson/pic_0000.jpg", "gray14/sideshow_bob/pic_0000.jpg"


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("utkface", "UTKFace", {"26_1_2_20170116184024662.jpg.chip.jpg": (128, 128)}),
        ("fairface", "fairface", {"train/2.webp": (112, 112), "val/1.webp": (112, 112)}),
        ("mtfl", "MTFL", dict.fromkeys(MTFL, (96, 96))),
        ("simpsons", "simpsons", dict(zip(SIMPSONS, [(80, 104), (64, 64)], strict=True))),
    ],
)
def test_an_official_download_becomes_the_folder_of_the_published_runs(downloads, name, folder, expected):
    (downloads / "data").mkdir()
    assert prepare(downloads, name, folder, "--partial") == 0
    target = downloads / "data" / name
    for path, size in expected.items():
        with Image.open(target / path) as picture:
            assert picture.size == size
            assert picture.mode == ("L" if path.startswith("gray14") else "RGB")
    assert not list((downloads / "data").glob("*.partial"))
    if name != "simpsons":
        manifest = data.read(target)
        assert set(manifest["name"]) == set(expected)
        assert manifest["gender"].notna().all()
    if name == "mtfl":
        by_name = manifest.set_index("name")
        assert by_name.loc[MTFL[0], "glasses"] == "glasses"
        assert set(manifest["pose"]) == {"frontal", "right_profile"}


def test_landmarks_lie_where_they_lie_in_the_published_crops():
    picture = Image.new("RGB", (200, 200))
    for x, y in ((80, 85), (120, 85), (100, 110), (85, 130), (115, 130)):
        picture.paste("white", (x - 3, y - 3, x + 3, y + 3))
    crop = np.asarray(prepare_data._around([80, 120, 100, 85, 115, 85, 85, 110, 130, 130])(picture).convert("L"), float)
    down, across = (np.average(np.arange(96) + 0.5, weights=crop.sum(axis)) / 96 for axis in (1, 0))
    assert across == pytest.approx(0.5, abs=0.01)
    assert down == pytest.approx(prepare_data.POINTS_TOP, abs=0.01)
    lit = np.flatnonzero(crop.max(1) > 128)
    assert (lit[-1] - lit[0]) / 96 == pytest.approx(prepare_data.POINTS_WIDTH * 51 / 45, abs=0.03)


@pytest.mark.parametrize(
    ("name", "folder", "broken", "message"),
    [
        ("utkface", "UTKFace", None, "lacks 23,708 of the published photos (and has 1 others)"),
        ("utkface", "MTFL", None, "no photo named as UTKFace's are"),
        ("utkface", "nowhere", None, "no such folder"),
        ("fairface", "fairface", ("fairface_label_val.csv", None), "fairface_label_val.csv is missing"),
        ("fairface", "fairface", ("fairface_label_val.csv", "a,b\n"), "has the columns ['a', 'b']"),
        ("fairface", "fairface", ("train/2.jpg", None), "1 photos that"),
        ("mtfl", "MTFL", ("testing.txt", "AFLW\\0001-image20056.jpg 1 2 3\n"), "testing.txt, line 1 is not"),
        ("mtfl", "MTFL", ("lfw_5590/Ada_Love_0001.jpg", None), "names in line 1"),
        ("simpsons", "UTKFace", None, "has no folder abraham_grampa_simpson"),
    ],
)
def test_what_is_not_the_official_download_is_refused(downloads, capsys, name, folder, broken, message):
    if broken:
        path = downloads / folder / broken[0]
        path.unlink() if broken[1] is None else path.write_text(broken[1])
    assert prepare(downloads, name, folder) == 2
    assert message in capsys.readouterr().err
    assert not (downloads / "data").exists()


def test_a_damaged_photo_and_a_folder_that_is_there_are_refused(downloads, capsys):
    (downloads / "data" / "utkface").mkdir(parents=True)
    assert prepare(downloads, "utkface", "UTKFace", "--partial") == 2
    assert "is there already" in capsys.readouterr().err
    (downloads / "MTFL/AFLW/0001-image20056.jpg").write_bytes(b"\xff\xd8 broken")
    assert prepare(downloads, "mtfl", "MTFL", "--partial") == 2
    assert "0001-image20056.jpg cannot be read" in capsys.readouterr().err
    assert not (downloads / "data" / "mtfl").exists()
