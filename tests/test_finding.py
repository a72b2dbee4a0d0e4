"""Faces are found where they are, several, cut, small and turned; and nowhere else."""

import functools
import json
import shutil

import matplotlib.cbook
import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw

from faces import finding, images, predict, trust

FRAME = [images.Frame(96)]
PORTRAITS = sorted((predict.ROOT / "samples" / "portraits").glob("*/*.jpg"))


@pytest.fixture(scope="module")
def detector():
    return finding.Detector(predict.ARTIFACTS / "face_finder")


@pytest.fixture(scope="module")
def astronaut():
    return Image.fromarray(skimage.data.astronaut())


@pytest.fixture(scope="module")
def hopper():
    return Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB")


def saved(picture, path):
    picture.save(path)
    return path


def middle(face):
    return (face.left + face.right) / 2, (face.top + face.bottom) / 2


def test_portraits_hold_one_face_each(detector):
    assert len(PORTRAITS) == 214
    assert [len(detector.find(images.open_rgb(path))) for path in PORTRAITS[::6]] == [1] * 36


def test_a_face_is_found_with_its_landmarks_unless_its_score_is_too_low(detector, astronaut):
    [face] = detector.find(astronaut)
    assert face.score > 0.9 and middle(face) == pytest.approx((223, 119), abs=12)
    right_eye, left_eye, nose, *mouth = face.landmarks
    assert face.left < right_eye[0] < nose[0] < left_eye[0] < face.right
    assert face.top < max(right_eye[1], left_eye[1]) < nose[1] < min(y for _, y in mouth) < face.bottom
    assert finding.Detector(predict.ARTIFACTS / "face_finder", min_score=face.score + 0.01).find(astronaut) == []


def test_several_faces_the_largest_first(detector, astronaut, hopper):
    scene = Image.new("RGB", (1400, 700), "grey")
    scene.paste(hopper, (40, 50))
    scene.paste(astronaut.resize((300, 300)), (900, 300))
    first, second = detector.find(scene)
    assert middle(first)[0] < 640 < 900 < middle(second)[0]
    assert first.side > second.side


def without_anybody():
    for name in ("coffee", "rocket", "brick", "chelsea"):
        yield Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    yield Image.new("RGB", (300, 300), "white")
    yield Image.new("RGB", (5, 3))
    yield Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))
    page = Image.new("RGB", (300, 300), "white")
    ImageDraw.Draw(page).multiline_text((10, 10), "A page of text, and nobody on it.\n" * 15, fill="black")
    yield page


@pytest.mark.parametrize("side", [100, 300, 600])
def test_no_face_where_nobody_is_whatever_the_size(detector, tmp_path, side):
    for picture in without_anybody():
        picture.thumbnail((side, side))
        assert finding.look(saved(picture, tmp_path / "nobody.png"), FRAME, detector) == ([], [])


def test_a_small_head_and_shoulders_picture_is_cut(detector, hopper, tmp_path):
    [face] = detector.find(hopper)
    factor = 43 / face.side
    small = hopper.resize((round(hopper.width * factor), round(hopper.height * factor)), Image.Resampling.BILINEAR)
    assert max(small.size) <= 160
    [found], _ = finding.look(saved(small, tmp_path / "small.png"), FRAME, detector)
    assert middle(found) == pytest.approx([edge * factor for edge in middle(face)], abs=5)


def test_faces_cut_by_the_frame_are_found(detector, hopper):
    [face] = detector.find(hopper)
    for box in (
        (face.left + 0.25 * face.side, 0, hopper.width, hopper.height),
        (0, face.top + 0.2 * face.side, hopper.width, hopper.height),
        (0, 0, hopper.width, face.bottom - 0.1 * face.side),
    ):
        assert len(detector.find(hopper.crop([round(edge) for edge in box]))) == 1


def test_a_large_picture_is_searched_small_and_cut_at_full_size(detector, astronaut, tmp_path):
    scene = Image.new("RGB", (4000, 3000), (90, 120, 90))
    scene.paste(astronaut, (3000, 2000))
    scene.save(tmp_path / "large.jpg", quality=95)
    [face], [[square]] = finding.look(tmp_path / "large.jpg", FRAME, detector)
    assert middle(face) == pytest.approx((3223, 2119), abs=15)
    box = [edge - (3000, 2000)[number % 2] for number, edge in enumerate(finding.margin(face))]
    expected = np.asarray(finding.cut(astronaut, tuple(box), 96), float)
    assert np.abs(square - expected).mean() < 8  # grey levels


@pytest.mark.slow
def test_min_face_finds_smaller_faces_of_large_pictures_within_max_pixels_and_drops_others(astronaut, tmp_path):
    scene = Image.new("RGB", (4000, 3000), (90, 120, 90))
    scene.paste(astronaut.resize((170, 170), Image.Resampling.BILINEAR), (3000, 2000))  # a face of 33 pixels
    scene.paste(astronaut, (500, 500))  # of 100
    scene.save(tmp_path / "large.jpg", quality=95)
    found = {}
    for asked in (None, 25, 60, 200):
        detector = finding.Detector(predict.ARTIFACTS / "face_finder", min_face=asked)
        see = functools.partial(finding.look, detector=detector, crops=False)
        found[asked] = len(see(tmp_path / "large.jpg", FRAME)[0])
    assert found == {None: 1, 25: 2, 60: 1, 200: 0}
    detector = finding.Detector(predict.ARTIFACTS / "face_finder", min_face=25)
    [_, small], _ = finding.look(tmp_path / "large.jpg", FRAME, detector, max_pixels=12_000_000)  # decoded twice
    assert middle(small) == pytest.approx((3074, 2040), abs=8)
    with pytest.raises(images.ImageError):
        finding.look(tmp_path / "large.jpg", FRAME, detector, max_pixels=100_000)


def test_a_picture_that_is_turned_by_its_exif_is_found_upright(detector, astronaut, tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    astronaut.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    [face], _ = finding.look(tmp_path / "turned.jpg", FRAME, detector, crops=False)
    assert middle(face) == pytest.approx((223, 119), abs=12)


@pytest.mark.parametrize("side", [100, 224, 600])
def test_a_crop_is_taken_as_it_is_unless_faces_are_to_be_detected(detector, astronaut, tmp_path, side):
    [face] = detector.find(astronaut)
    crop = finding.cut(astronaut, finding.margin(face), side)
    path = saved(crop, tmp_path / "crop.png")
    faces, [[square]] = finding.look(path, FRAME, detector)
    assert faces == [None] and (square == np.asarray(images.square(crop, 96))).all()
    [found], _ = finding.look(path, FRAME, detector, crops=False)
    assert found is not None


def test_a_cut_beyond_the_edge_repeats_it():
    picture = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8)[:, None, None], (1, 100, 3)))
    cut = np.asarray(finding.cut(picture, (-50.0, -50.0, 50.0, 50.0), 100))
    assert (cut[:50] == cut[50]).all() and (cut[:, :50] == cut[:, 50:51]).all() and cut[-1, -1, 0] == 49
    assert not np.asarray(finding.cut(picture, (200.0, 200.0, 300.0, 300.0), 8)).any()


def test_of_boxes_that_overlap_the_likeliest_stays():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [30, 30, 40, 40], [2, 2, 5, 5]], float)
    scores = np.array([0.8, 0.9, 0.7, 0.6])
    assert finding.non_maximum_suppression(boxes, scores, 0.5) == [1, 2, 3]
    assert finding.non_maximum_suppression(boxes, scores, 0.9) == [1, 0, 2, 3]
    assert finding.non_maximum_suppression(np.empty((0, 4)), np.empty(0), 0.5) == []


def test_without_the_listed_network_there_is_a_plain_error(tmp_path):
    with pytest.raises(finding.DetectorError, match=r"model\.onnx"):
        finding.Detector(tmp_path)
    folder = tmp_path / "face_finder"
    shutil.copytree(predict.ARTIFACTS / "face_finder", folder)
    trust.vouch(folder)
    finding.Detector(folder)
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(finding.DetectorError, match="damaged or was swapped"):
        finding.Detector(folder)


def test_the_margins_are_the_measured_ones():
    measured = json.loads((predict.ARTIFACTS / "face_finder" / "margin.json").read_text(encoding="utf-8"))
    for name, constant in (("margin", finding.MARGIN), ("below", finding.BELOW)):
        medians = [measured[source]["framed"][name]["50%"] for source in ("fairface", "utkface")]
        assert min(medians) <= constant <= max(medians)
    for about in measured.values():
        margin, below = about["alone"]["margin"], about["alone"]["below"]
        assert finding.CROP_MARGIN[0] <= margin["10%"] and margin["90%"] <= finding.CROP_MARGIN[1]
        assert -finding.CROP_OFFSET < below["2%"] < below["98%"] < finding.CROP_OFFSET
