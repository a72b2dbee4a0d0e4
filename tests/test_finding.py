"""Faces are found where they are, several, turned and cut out of larger pictures; and nowhere else."""

import json

import matplotlib.cbook
import numpy as np
import pytest
import skimage.data
from PIL import Image

from faces import finding, images, predict


@pytest.fixture(scope="module")
def finder():
    return finding.Finder(predict.ARTIFACTS / "face_finder")


@pytest.fixture(scope="module")
def astronaut():
    return Image.fromarray(skimage.data.astronaut())


@pytest.fixture(scope="module")
def hopper():
    return Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB")


def middle(face):
    return (face.left + face.right) / 2, (face.top + face.bottom) / 2


def test_a_face_is_found_with_its_eyes(finder, astronaut):
    [face] = finder.find(astronaut)
    assert face.score > 0.95 and middle(face) == pytest.approx((223, 116), abs=12)
    (x1, y1), (x2, y2) = face.eyes
    assert face.left < x1 < x2 < face.right and face.top < min(y1, y2)


def test_several_faces_the_largest_first(finder, astronaut, hopper):
    scene = Image.new("RGB", (1400, 700), "grey")
    scene.paste(hopper, (40, 50))
    scene.paste(astronaut.resize((300, 300)), (900, 300))
    first, second = finder.find(scene)
    assert middle(first)[0] < 640 < 900 < middle(second)[0]
    assert first.right - first.left > second.right - second.left


@pytest.mark.parametrize("name", ["coffee", "rocket", "brick"])
def test_nobody_is_found_where_nobody_is(finder, name):
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    assert finder.find(picture) == []
    assert finder.find(Image.new("RGB", (5, 3))) == []


def test_a_large_picture_is_searched_small_and_cut_at_full_size(finder, astronaut, tmp_path):
    scene = Image.new("RGB", (4000, 3000), (90, 120, 90))
    scene.paste(astronaut, (3000, 2000))
    scene.save(tmp_path / "large.jpg", quality=95)
    [face], [[square]] = finding.look(tmp_path / "large.jpg", [images.Frame(96)], finder)
    assert middle(face) == pytest.approx((3223, 2116), abs=15)
    box = [edge - (3000, 2000)[number % 2] for number, edge in enumerate(finding.margin(face))]
    expected = np.asarray(finding.cut(astronaut, tuple(box), 96), float)
    assert np.abs(square - expected).mean() < 8  # grey levels


def test_a_picture_that_is_turned_by_its_exif_is_found_upright(finder, astronaut, tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    astronaut.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    [face], _ = finding.look(tmp_path / "turned.jpg", [images.Frame(96)], finder, crops=False)
    assert middle(face) == pytest.approx((223, 116), abs=12)


def test_a_crop_is_taken_as_it_is_unless_faces_are_to_be_detected(finder, astronaut, tmp_path):
    [face] = finder.find(astronaut)
    crop = finding.cut(astronaut, finding.margin(face), 224)
    crop.save(tmp_path / "crop.png")
    faces, [[square]] = finding.look(tmp_path / "crop.png", [images.Frame(96)], finder)
    assert faces == [None] and (square == np.asarray(images.square(crop, 96))).all()
    [found], _ = finding.look(tmp_path / "crop.png", [images.Frame(96)], finder, crops=False)
    assert found is not None
    crop.resize((100, 100)).save(tmp_path / "small.png")
    assert finding.look(tmp_path / "small.png", [images.Frame(96), images.Frame(64)], finder)[0] == [None]
    Image.new("RGB", (900, 900)).save(tmp_path / "nobody.png")
    assert finding.look(tmp_path / "nobody.png", [images.Frame(96)], finder) == ([], [])


def test_a_cut_beyond_the_edge_is_black_there():
    picture = Image.new("RGB", (100, 100), "white")
    cut = np.asarray(finding.cut(picture, (-50.0, 0.0, 50.0, 100.0), 40))
    assert (cut[:, :20] == 0).all() and (cut[:, 20:] == 255).all()
    assert not np.asarray(finding.cut(picture, (200.0, 200.0, 300.0, 300.0), 8)).any()


def test_of_boxes_that_overlap_the_likeliest_stays():
    boxes = np.array([[0, 0, 10, 10, 0.8], [1, 1, 11, 11, 0.9], [30, 30, 40, 40, 0.7], [2, 2, 5, 5, 0.6]], float)
    assert finding.keep(boxes, 0.5).tolist() == [1, 2, 3]
    assert finding.keep(boxes, 0.5, smaller=True).tolist() == [1, 2]
    assert finding.keep(np.empty((0, 5)), 0.5).tolist() == []


def test_without_its_networks_there_is_a_plain_error(tmp_path):
    with pytest.raises(finding.FinderError, match=r"pnet\.onnx"):
        finding.Finder(tmp_path)


def test_the_margin_is_the_measured_one():
    measured = json.loads((predict.ARTIFACTS / "face_finder" / "margin.json").read_text(encoding="utf-8"))
    for name, constant in (("margin", finding.MARGIN), ("below", finding.BELOW)):
        medians = [source[name]["50%"] for source in measured.values()]
        assert min(medians) <= constant <= max(medians)
