"""Cartoon faces: deterministic, of every age and kind, and what is asked for shows."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageStat

from faces.research import drawing


@pytest.mark.parametrize("gender", drawing.GENDERS)
@pytest.mark.parametrize("age", [1, 5, 15, 50, 90])
def test_every_age_and_kind_of_glasses_can_be_drawn(gender, age):
    for skin, glasses in enumerate((None, *drawing.GLASSES)):
        face = drawing.draw_face(np.random.default_rng(age), gender, age, glasses=glasses, skin=skin, size=32)
        assert face.size == (32, 32) and face.mode == "RGB"
        assert ImageStat.Stat(face.convert("L")).stddev[0] > 10


def test_skin_follows_the_row_asked_for():
    def cheek(skin):  # the mean over faces, as light and pose differ
        rngs = [np.random.default_rng(seed) for seed in range(8)]
        images = [drawing.draw_face(rng, "male", 16, skin=skin, size=32) for rng in rngs]
        return np.mean([np.asarray(image.convert("L"))[17:22, 11:21].mean() for image in images])

    assert cheek(0) > cheek(5) + 20 > cheek(9) + 40


def test_wrinkles_and_glasses_show():
    def draw(age, glasses=None):
        rng = np.random.default_rng(7)
        return drawing.draw_face(rng, "female", age, glasses=glasses, skin=2, size=64).convert("L")

    assert ImageStat.Stat(ImageChops.difference(draw(30), draw(30, "sun"))).mean[0] > 2
    assert ImageStat.Stat(ImageChops.difference(draw(30), draw(80))).mean[0] > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gender": "other"}, "unknown gender 'other'; known: female, male"),
        *(({"age": 0}, "age is 0"), ({"age": 91}, "age is 91")),
        ({"glasses": "monocle"}, "unknown glasses 'monocle'"),
        *(({"skin": 10}, "skin is 10"), ({"size": 8}, "size is 8")),
    ],
)
def test_draw_face_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        drawing.draw_face(np.random.default_rng(0), **{"gender": "male", "age": 30, **options})


def test_drawing_needs_only_numpy_and_pillow():
    block = "import sys; sys.modules.update(dict.fromkeys(['torch', 'pandas', 'matplotlib', 'scipy', 'tqdm']));"
    done = subprocess.run([sys.executable, "-c", block + "import faces.research.demo"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", drawing.GLASSES)
@pytest.mark.parametrize("eyes", [((20, 40), (44, 40)), ((18, 30), (40, 44))])
def test_glasses_are_put_on_the_eyes_of_a_picture(kind, eyes):
    plain = Image.new("RGB", (64, 80), (200, 170, 150))
    worn = drawing.put_on(np.random.default_rng(0), plain, eyes, kind)
    changed = np.abs(np.asarray(worn, int) - np.asarray(plain, int)).max(2) > 12
    assert worn.size == plain.size and 0.02 < changed.mean() < 0.5
    for x, y in eyes:
        assert changed[y - 8 : y + 9, x - 8 : x + 9].any()
    assert not changed[:8].any() and not changed[-16:].any()
    again = drawing.put_on(np.random.default_rng(0), plain, eyes, kind)
    assert np.array_equal(np.asarray(again), np.asarray(worn))
    assert plain.getpixel((0, 0)) == (200, 170, 150)


def test_glasses_that_cannot_be_put_on():
    plain, rng = Image.new("RGB", (32, 32)), np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown glasses 'monocle'"):
        drawing.put_on(rng, plain, ((8, 16), (24, 16)), "monocle")
    with pytest.raises(ValueError, match=r"the eyes are 1.0 pixels apart"):
        drawing.put_on(rng, plain, ((8, 16), (9, 16)), "sun")
