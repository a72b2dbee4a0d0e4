"""The service's page in a real browser: a photo is dropped or chosen, the answer appears; nothing else is asked for.

Needs what the fixture `browser` needs; without it these tests are skipped.
"""

import base64
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import tiny_model
from PIL import Image

from faces import predict

pytest.importorskip("fastapi")
pytest.importorskip("selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.slow

# What a drop from the desktop is to a page: an event that carries files.
DROP = """
const [target, name, base64] = arguments, bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
const carried = new DataTransfer();
carried.items.add(new File([bytes], name, {type: 'image/jpeg'}));
target.dispatchEvent(new DragEvent('drop', {dataTransfer: carried, bubbles: true, cancelable: true}));
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {
        "glasses": tiny_model.write(folder / "glasses", classes=["no_glasses", "glasses"]),
        "age": tiny_model.write(folder / "age", age=True),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wanted = ",".join(f"{task}={where}" for task, where in models.items())
    command = [sys.executable, "-m", "faces.serve", "--port", str(port), "--tasks", wanted]
    with subprocess.Popen(command, cwd=predict.ROOT) as server:
        for _ in range(600):  # a minute
            try:
                urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except URLError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
        server.terminate()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    return browser


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (120, 100), "red").save(tmp_path / "red.jpg")
    return tmp_path / "red.jpg"


def answer(page, word):
    said = page.find_element(By.ID, "answer")
    WebDriverWait(page, 10).until(lambda _: word in said.text)
    return said.text


def test_a_chosen_photo_is_answered_and_shown(page, photo):
    page.find_element(By.ID, "file").send_keys(str(photo))
    said = answer(page, "years").split("\n")
    assert said[0] == "glasses" and said[1].startswith("glasses ") and said[1].endswith(" %")
    assert said[2] == "age" and said[3].endswith(" years")
    image = page.find_element(By.CSS_SELECTOR, "#drop img")
    WebDriverWait(page, 5).until(lambda _: image.get_property("naturalWidth") == 120)


def test_a_dropped_photo_is_answered(page, photo):
    page.execute_script(
        DROP, page.find_element(By.ID, "drop"), "red.jpg", base64.b64encode(photo.read_bytes()).decode()
    )
    assert "years" in answer(page, "years")


def test_what_is_no_picture_is_said(page, tmp_path):
    (tmp_path / "letter.jpg").write_text("dear diary")
    page.find_element(By.ID, "file").send_keys(str(tmp_path / "letter.jpg"))
    assert "not a picture" in answer(page, "picture")
    assert page.find_element(By.CSS_SELECTOR, "#answer .error").is_displayed()


def test_the_page_asks_this_service_alone_and_complains_of_nothing(page, address, photo):
    page.find_element(By.ID, "file").send_keys(str(photo))
    answer(page, "years")
    asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith((address, "blob:", "data:")) for name in asked)
    assert not [
        entry for entry in page.get_log("browser") if entry["level"] == "SEVERE" and "422" not in entry["message"]
    ]
