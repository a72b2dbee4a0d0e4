"""The page of a run holds all that it shows, tells names as they are, and needs nothing else."""

import json
import re

import pytest
from PIL import Image

from faces import report

FACE = {"gender": "male", "gender_probability": 0.98, "age": 34.2, "age_interval": [27, 42]}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b <i>.jpg", "c.jpg"):
        Image.new("RGB", (300, 200), "red").save(folder / name)
    return folder


def page(photos, records, **options):
    path = photos.parent / "report.html"
    shown = report.write(records, path, folder=photos, tasks=["gender", "age"], ages=["age"], **options)
    return shown, path.read_text(encoding="utf-8")


def facts(text):
    return [json.loads(found.replace("&quot;", '"')) for found in re.findall(r'data-facts="([^"]*)"', text)]


def test_every_face_has_a_thumbnail_and_its_facts(photos):
    two = {"faces": [FACE | {"box": [20, 20, 80, 90], "score": 0.9}, FACE | {"gender": "female"}]}
    shown, text = page(photos, [("a.jpg", two), ("c.jpg", {"faces": []})])
    assert shown == 3 and len(re.findall('src="data:image/jpeg;base64,', text)) == 3
    assert [fact.get("gender") for fact in facts(text)] == ["male", "female", None]
    assert facts(text)[0]["age_interval"] == [27, 42] and "no face" in text
    assert '"pictures": 2, "shown": 3, "left": 0' in text


def test_nothing_is_loaded_from_anywhere(photos):
    _, text = page(photos, [("a.jpg", {"faces": [FACE]})])
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text


def test_names_are_text_not_markup(photos):
    odd = "b <i>.jpg"
    _, text = page(photos, [(odd, {"faces": [FACE | {"gender": '<b onclick="x">'}]})])
    assert "b &lt;i&gt;.jpg" in text and "<i>" not in text and '<b onclick="x">' not in text


def test_a_photo_that_is_gone_is_told_and_the_rest_counted(photos):
    records = [("gone.jpg", {"faces": [FACE]}), ("a.jpg", {"faces": [FACE]}), ("c.jpg", {"faces": [FACE]})]
    shown, text = page(photos, records, most=2)
    assert shown == 2 and 'class="gone"' in text and '"left": 1' in text


def test_filters_and_histograms_work_in_a_browser(browser, photos):
    young = {"gender": "female", "gender_probability": 0.7, "age": 8.0, "age_interval": [5, 12]}
    report.write(
        [("a.jpg", {"faces": [FACE]}), ("b <i>.jpg", {"faces": [young]}), ("c.jpg", {"faces": []})],
        photos.parent / "report.html",
        folder=photos,
        tasks=["gender", "age"],
        ages=["age"],
    )
    browser.get((photos.parent / "report.html").as_uri())

    def find(selector):
        return browser.find_elements("css selector", selector)

    def visible():
        return [figure.get_property("title") for figure in find("figure") if figure.is_displayed()]

    assert visible() == ["a.jpg", "b <i>.jpg", "c.jpg"]
    assert find("#summary")[0].text == "3 of 3 faces shown, from 3 pictures"
    assert [count.text for count in find("small")] == ["1", "1", "1"]  # female, male, no face
    bars = [bar.get_property("title") for bar in find(".bars i")]
    assert "5 to 9 years: 1" in bars and "30 to 34 years: 1" in bars and len(bars) == 20
    find("input[type=checkbox]")[0].click()
    assert visible() == ["a.jpg", "c.jpg"]
    youngest = find("input[type=number]")[0]
    youngest.clear()
    youngest.send_keys("40")
    assert visible() == ["c.jpg"]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
