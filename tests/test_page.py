"""The service's pages in a real browser: photos are dropped or chosen, the answers appear; nothing else is asked for.

Needs what the fixture `browser` needs; without it these tests are skipped.
"""

import base64
import subprocess
import sys

import helpers
import pytest
import tiny_model
from PIL import Image

from faces import images, predict

pytest.importorskip("fastapi")
pytest.importorskip("selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.slow

# What a drop from the desktop is to a page: an event that carries files.
DROP = """
const [target, files] = arguments, carried = new DataTransfer();
for (const [name, base64] of Object.entries(files)) {
  carried.items.add(new File([Uint8Array.from(atob(base64), c => c.charCodeAt(0))], name, {type: 'image/jpeg'}));
}
target.dispatchEvent(new DragEvent('drop', {dataTransfer: carried, bubbles: true, cancelable: true}));
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {
        "glasses": tiny_model.write(folder / "glasses", classes=["no_glasses", "glasses"]),
        "age": tiny_model.write(folder / "age", age=True),
    }
    port, wanted = helpers.free_port(), ",".join(f"{task}={where}" for task, where in models.items())
    command = [sys.executable, "-m", "faces.serve", "--port", str(port), "--tasks", wanted]
    with subprocess.Popen(command, cwd=predict.ROOT) as server:
        helpers.answering(server, port)
        yield f"http://127.0.0.1:{port}/"
        server.terminate()


PORTRAIT = predict.ROOT / "samples" / "portraits" / "london" / "001_smiling.jpg"
# Keeps what the page sends, and its size in pixels.
SPY = """
window.sent = [];
const fetch_ = window.fetch;
window.fetch = async (path, options) => {
  const file = options.body.get('image'), size = {name: file.name, bytes: file.size};
  try { const {width, height} = await createImageBitmap(file); Object.assign(size, {width, height}); } catch {}
  window.sent.push(size);
  return fetch_(path, options);
};
"""


@pytest.fixture
def page(browser, address):
    browser.get(address)
    browser.execute_script(SPY)
    return browser


def choose(page, *paths):
    page.find_element(By.ID, "file").send_keys("\n".join(map(str, paths)))
    return cards(page, len(paths))


def cards(page, count):
    """The answers, as text, once all are there."""
    status = page.find_element(By.ID, "status")
    WebDriverWait(page, 60).until(lambda _: status.text == f"{count} of {count} answered")
    return page.find_elements(By.CSS_SELECTOR, "#answers > li")


def test_several_photos_are_answered_face_by_face(page, tmp_path):
    two = Image.new("RGB", (640, 320), "white")
    with Image.open(PORTRAIT) as portrait:
        two.paste(portrait, (0, 0))
        two.paste(portrait.resize((280, 280)), (340, 0))
    two.save(tmp_path / "two.jpg")
    Image.new("RGB", (600, 400), "grey").save(tmp_path / "nobody.png")
    one, both, nobody = choose(page, PORTRAIT, tmp_path / "two.jpg", tmp_path / "nobody.png")
    assert one.text.startswith("1\n001_smiling.jpg\nglasses: ") and one.text.endswith(" years")
    faces = both.find_elements(By.CSS_SELECTOR, "ol > li")
    boxes = both.find_elements(By.CSS_SELECTOR, ".box")
    assert len(faces) == 2 and [box.text for box in boxes] == ["1", "2"]
    picture = both.find_element(By.TAG_NAME, "img").rect
    middles = [(box.rect["x"] + box.rect["width"] / 2 - picture["x"]) / picture["width"] for box in boxes]
    assert middles == pytest.approx([0.25, 0.75], abs=0.05)  # the larger one is on the left
    assert nobody.text == "nobody.png\nNo face was found." and not nobody.find_elements(By.CSS_SELECTOR, ".box")


def test_a_dropped_photo_is_answered(page):
    content = base64.b64encode(PORTRAIT.read_bytes()).decode()
    page.execute_script(DROP, page.find_element(By.ID, "drop"), {"a.jpg": content, "b.jpg": content})
    assert [card.text.split("\n")[1] for card in cards(page, 2)] == ["a.jpg", "b.jpg"]


def test_a_large_photo_is_scaled_down_and_turned_before_it_is_sent(page, tmp_path):
    with Image.open(PORTRAIT) as portrait:
        exif = portrait.getexif()
        exif[images.ORIENTATION] = 6  # to be turned right by a quarter
        large = portrait.resize((3000, 3000)).crop((0, 0, 3000, 2700)).transpose(Image.Transpose.ROTATE_90)
        large.save(tmp_path / "large.jpg", exif=exif)
    [card] = choose(page, tmp_path / "large.jpg")
    [sent] = page.execute_script("return window.sent")
    assert (sent["width"], sent["height"]) == (2000, 1800)
    box, picture = card.find_element(By.CSS_SELECTOR, ".box").rect, card.find_element(By.TAG_NAME, "img").rect
    middle = [(box[x] + box[size] / 2 - picture[x]) / picture[size] for x, size in (("x", "width"), ("y", "height"))]
    assert middle == pytest.approx([0.5, 0.6], abs=0.06)


def test_no_picture_stands_above_an_answer_about_another(page, tmp_path):
    choose(page, PORTRAIT)
    assert page.find_elements(By.CSS_SELECTOR, "#answers img")
    (tmp_path / "letter.jpg").write_text("dear diary")
    [card] = choose(page, tmp_path / "letter.jpg")
    assert "not a picture" in card.find_element(By.CSS_SELECTOR, ".error").text
    assert not page.find_elements(By.CSS_SELECTOR, "#answers img")
    with Image.open(PORTRAIT) as portrait:
        portrait.save(tmp_path / "scan.tif")  # which the service reads and the browser does not
    [card] = choose(page, tmp_path / "scan.tif")
    assert "years" in card.text and "does not show pictures of this format" in card.text
    assert not page.find_elements(By.CSS_SELECTOR, "#answers img, .box")


def test_the_pages_ask_this_service_alone_and_complain_of_nothing(page, address):
    page.get_log("browser")
    choose(page, PORTRAIT)
    asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    page.get(address + "docs")
    WebDriverWait(page, 10).until(lambda _: len(page.find_elements(By.TAG_NAME, "section")) == 5)
    titles = [title.text for title in page.find_elements(By.TAG_NAME, "h2")]
    assert titles[:2] == ["POST /v1/predict", "POST /predict"]
    text = page.find_element(By.TAG_NAME, "body").text
    assert "1 to 16 files" in text and "`" not in text and page.find_element(By.TAG_NAME, "code").text == "image"
    asked += page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked and all(name.startswith((address, "blob:", "data:")) for name in asked)
    assert not [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
