"""The page of a run shows every face, tells names as they are, and needs nothing but the folder beside it."""

import io
import json
import os
import re
import sys

import pytest
from PIL import Image

from faces import files, inputs, report

FACE = {"gender": "male", "gender_probability": 0.98, "age": 34.2, "age_interval": [27, 42]}
YOUNG = {"gender": "female", "gender_probability": 0.7, "age": 8.0, "age_interval": [5, 12]}
BOX = {"box": [30, 40, 90, 120], "score": 0.9}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b <i>.jpg", "c.jpg"):
        Image.new("RGB", (300, 200), "red").save(folder / name)
    return folder


def write(photos, records, tasks=("gender", "age"), **options):
    path = photos.parent / "report.html"
    return report.write(records, path, folder=photos, tasks=list(tasks), ages=["age"], **options)


def about(photos):
    text = (photos.parent / "report.html").read_text(encoding="utf-8")
    return json.loads(re.search(r"const about = (.*);</script>", text)[1])


def rows(photos):
    text = (photos.parent / about(photos)["files"] / "rows.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("const rows = ").rstrip(";\n").replace(",\n]", "\n]"))


def thumbnails(photos):
    return sorted((photos.parent / about(photos)["files"]).glob("*/*.jpg"))


def test_every_face_has_a_row_and_a_thumbnail_but_only_so_many_are_shown(photos):
    two = {"faces": [FACE | BOX, YOUNG]}
    assert write(photos, [("a.jpg", two), ("c.jpg", {"faces": []})]) == 3
    male, female = ["male", 0.98], ["female", 0.7]
    assert rows(photos) == [
        ["a.jpg", [[male, [34.2, 27, 42], [30, 40, 90, 120]], [female, [8.0, 5, 12]]], 0],
        ["c.jpg", [], 2],
    ]
    assert [path.name for path in thumbnails(photos)] == ["0.jpg", "1.jpg", "2.jpg"]
    with Image.open(thumbnails(photos)[0]) as thumbnail:
        assert thumbnail.size == (report.SIDE, report.SIDE)
    assert about(photos)["counts"] == {"pictures": 2, "faces": 2, "without": 1, "shown": 3}
    assert about(photos)["photos"] == "photos/"
    records = [("a.jpg", {"faces": [FACE, FACE]}), ("c.jpg", {"faces": [FACE]}), ("c.jpg", {"faces": []})]
    assert write(photos, records, most=1) == 1
    assert about(photos)["counts"] == {"pictures": 3, "faces": 3, "without": 1, "shown": 1}
    assert len(rows(photos)) == len(rows(photos)[0][1]) == 1


def test_the_page_is_small_and_refers_to_nothing_elsewhere_and_a_label_is_never_markup(photos):
    write(photos, [(f"{number}.jpg", {"faces": [FACE]}) for number in range(1000)])
    text = (photos.parent / "report.html").read_text(encoding="utf-8")
    assert len(text) < 60_000 and "default-src 'none'" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources == ["data:,", f"{about(photos)['files']}/rows.js"] and "//" not in "".join(sources)
    assert "http" not in text.replace("http-equiv", "")
    write(photos, [("a.jpg", {"faces": [FACE]})], tasks=["</script><b>"])
    assert about(photos)["tasks"] == ["</script><b>"]
    assert "</script><b>" not in (photos.parent / "report.html").read_text(encoding="utf-8")


def test_addresses_of_odd_names(photos):
    names = ["b <i>.jpg", "ä/50 %?.jpg", str(photos / "a.jpg")]
    write(photos, [(name, {"faces": [FACE]}) for name in names])
    assert [row[3:] for row in rows(photos)] == [[], [], [(photos / "a.jpg").as_uri()]]
    assert [row[2] for row in rows(photos)] == [0, -1, 2]  # the second photo is gone


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are refused elsewhere")
def test_names_that_are_not_utf8(photos):
    write(photos, [(os.fsdecode(b"caf\xe9.jpg"), {"faces": [FACE]})])
    assert rows(photos) == [[r"caf\xe9.jpg", [[["male", 0.98], [34.2, 27, 42]]], -1, "caf%E9.jpg"]]


def test_a_new_report_replaces_the_old_one_and_nothing_else(photos):
    mine = photos.parent / "report_files" / "mine.txt"
    mine.parent.mkdir()
    mine.touch()
    for _ in range(2):
        write(photos, [("a.jpg", {"faces": [FACE]})])
        before = about(photos)["files"]

    def broken():
        yield "a.jpg", {"faces": [FACE]}
        raise OSError("no more records")

    with pytest.raises(OSError, match="no more records"):
        write(photos, broken())
    assert about(photos)["files"] == before and len(rows(photos)) == 1
    assert mine.exists() and len(list((mine.parent / report.THUMBNAILS).iterdir())) == 1
    found = list(files.find_files(photos.parent, recursive=True))
    assert "report_files/mine.txt" in found and not [name for name in found if report.THUMBNAILS in name]


# --------------------------------------------------------------------------------------------------- in a browser


class Page:
    """The page in a browser, as a person sees it."""

    def __init__(self, browser, photos):
        self.browser = browser
        browser.get((photos.parent / "report.html").as_uri())

    def find(self, selector):
        """The elements, after what was asked for is drawn."""
        self.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        [found] = self.find(selector)
        return found

    def names(self):
        """Of the faces in the list, in its order."""
        tiles = sorted(self.find("#faces li"), key=lambda tile: int(tile.get_dom_attribute("data-at")))
        return [tile.find_element("css selector", ".more").text.split("% · ")[-1] for tile in tiles]

    def sort(self, value):
        self.run("sort.value = arguments[0]; sort.dispatchEvent(new Event('input'))", value)

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 30).until(lambda _: condition())

    def press(self, *names):
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.browser).send_keys(*(getattr(Keys, name) for name in names)).perform()


@pytest.fixture
def page(browser, photos):
    records = [
        ("a.jpg", {"faces": [FACE | BOX, FACE | {"gender_probability": 0.6, "box": [150, 20, 200, 90], "score": 0.8}]}),
        ("b <i>.jpg", {"faces": [YOUNG]}),
        ("c.jpg", {"faces": []}),
    ]
    write(photos, records)
    browser.get_log("browser")
    yield Page(browser, photos)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_filters_and_bars(page):
    assert page.names() == ["a.jpg", "a.jpg", "b <i>.jpg"]
    assert page.one("#summary").text == "3 of 3 faces, in 3 pictures"
    page.wait(lambda: page.run("return [...document.querySelectorAll('#faces img')].every(i => i.naturalWidth > 0)"))
    bars = page.find(".class")
    assert [bar.text.split("\n") for bar in bars] == [["male", "2"], ["female", "1"]]
    bars[1].click()
    assert page.names() == ["b <i>.jpg"] and page.one("#summary").text == "1 of 3 faces, in 3 pictures"
    assert [bar.text.split("\n")[1] for bar in bars] == ["2", "1"]  # a bar counts what the other filters let pass
    bars[1].click()
    chart = page.one(".ages")
    assert chart.get_dom_attribute("aria-label") == "Faces by age. 5 to 9: 1; 30 to 34: 2"
    assert [label.text for label in page.find(".axis span")] == ["0", "20", "40", "60", "80", "100"]
    page.find(".ages i")[6].click()
    assert page.names() == ["a.jpg", "a.jpg"]
    assert [field.get_property("value") for field in page.find("input[type=number]")] == ["30", "34"]
    page.find(".ages i")[6].click()
    assert len(page.names()) == 3
    page.find("input[type=number]")[1].send_keys("20")
    assert page.names() == ["b <i>.jpg"] and [bar.text.split("\n")[1] for bar in bars] == ["0", "1"]
    page.one("#clear").click()
    page.one("#search").send_keys("B <")
    assert page.names() == ["b <i>.jpg"]
    page.one("#clear").click()
    page.run("sure.value = 65; sure.dispatchEvent(new Event('input'))")
    assert page.names() == ["a.jpg", "b <i>.jpg"]
    page.run("bound.value = 'max'; bound.dispatchEvent(new Event('input'))")
    assert len(page.names()) == 3 and page.one("#percent").text == "100%"
    assert page.one("#tasks").is_displayed() and page.one("#confidence").is_displayed()
    page.run("kind.value = 'without'; kind.dispatchEvent(new Event('input'))")
    assert not page.one("#tasks").is_displayed() and not page.one("#confidence").is_displayed()
    assert page.names() == ["c.jpg"] and "1 of 1 pictures without a face" in page.one("#summary").text


def test_orders(page):
    page.sort("unsure")
    assert page.names() == ["a.jpg", "b <i>.jpg", "a.jpg"]
    page.sort("sure")
    assert page.names() == ["a.jpg", "b <i>.jpg", "a.jpg"] and page.find("#faces .more")[0].text == "98% · a.jpg"
    page.sort("age up")
    assert page.names()[0] == "b <i>.jpg"
    page.sort("age down")
    assert page.names()[-1] == "b <i>.jpg"


def test_a_click_opens_the_photo_and_arrows_go_on(page):
    page.find("#faces button")[0].click()
    boxes = page.wait(lambda: page.find("#boxes button"))
    assert page.one("#name").text == "a.jpg" and page.one("#place").text == "1 of 3"
    assert [box.get_dom_attribute("aria-pressed") for box in boxes] == ["true", "false"]
    inside = page.run(
        "const [box, image] = [arguments[0], original].map(e => e.getBoundingClientRect()), unit = image.width / 300;"
        "return [(box.left - image.left) / unit, (box.top - image.top) / unit, box.width / unit, box.height / unit]",
        boxes[0],
    )
    assert inside == pytest.approx([30, 40, 60, 80], abs=1)
    page.press("ARROW_RIGHT")
    assert page.one("#place").text == "2 of 3"
    assert page.one("tr[aria-current]").text == "2 male 60% 34 (27 to 42)"
    page.press(*["ARROW_RIGHT"] * 3)
    assert page.one("#name").text == "b <i>.jpg" and page.one("#place").text == "3 of 3"
    page.wait(lambda: page.run("return original.naturalWidth") == 300)
    page.press("ESCAPE")
    assert not page.one("#photo").is_displayed()
    page.press("ARROW_LEFT", "ENTER")  # the focus is back on the face that was shown
    assert page.one("#place").text == "2 of 3"
    page.press("ESCAPE")


def test_marked_faces_are_exported(page, browser, tmp_path):
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})

    def saved():
        page.one("#save").click()
        page.wait(lambda: (tmp_path / "names.txt").exists() and (tmp_path / "names.txt").stat().st_size)
        text = (tmp_path / "names.txt").read_text(encoding="utf-8")
        (tmp_path / "names.txt").unlink()
        return text

    assert saved() == "a.jpg\nb <i>.jpg\n"  # each photo once
    page.find("#faces button")[2].send_keys("m")
    assert page.one("#marked").text == "only marked (1)"
    page.one("#only").click()
    assert saved() == "b <i>.jpg\n"
    page.one("#clear").click()
    page.run("shown[0].row[0] = 'a\\n.jpg'")
    assert list(inputs.read_names(io.BytesIO(saved().encode()))) == ["a\n.jpg", "b <i>.jpg"]


def test_of_many_faces_only_those_in_view_exist(browser, photos):
    from selenium.webdriver.common.keys import Keys

    write(photos, [(f"{number:05}.jpg", {"faces": [FACE]}) for number in range(5000)])
    page = Page(browser, photos)
    assert page.one("#summary").text == "5,000 of 5,000 faces, in 5,000 pictures"
    assert page.names()[0] == "00000.jpg" and len(page.find("#faces li")) < 200
    page.run("scrollTo(0, document.body.scrollHeight)")
    page.wait(lambda: page.names()[-1] == "04999.jpg")
    assert len(page.find("#faces li")) < 200
    page.run("scrollTo(0, 0)")
    page.wait(lambda: page.names()[0] == "00000.jpg")
    page.find("#faces button")[0].send_keys(Keys.END)
    assert page.run("return document.activeElement.textContent").endswith("04999.jpg")


def test_what_is_missing_is_told(browser, photos):
    import shutil

    (photos / "c.jpg").write_text("not a picture")
    write(photos, [("c.jpg", {"faces": [FACE]})])
    page = Page(browser, photos)
    assert page.one("#faces .picture").text == "gone"
    page.one("#faces button").click()
    page.wait(lambda: "The photo is not at photos/c.jpg" in page.one("#trouble").text)
    shutil.rmtree(photos.parent / "report_files")
    page = Page(browser, photos)
    assert "is missing: keep that folder beside this page" in page.one("#none").text
    browser.get_log("browser")
