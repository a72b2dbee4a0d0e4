"""What several test files share."""

import os
import shutil

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several at a time, each with as many threads as there are cores, would wait for each other in busy loops.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import demo_run
import pytest
import tiny_model
from PIL import Image

from faces import predict
from faces.research import demo, notebooks


def pytest_collection_modifyitems(items):
    """The longest modules first, so that no worker is left with one of them at the end (``--no-loadscope-reorder``)."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not hasattr(getattr(item, "module", None), "NOTEBOOKS"), item.path not in slow))


@pytest.fixture(scope="session")
def drawn_faces(tmp_path_factory):
    """Folder of 120 distinct drawn faces, 64 pixels, with UTKFace names; plus copies and one truncated file.

    Made once for all tests, so read from it only: a test that changes files draws its own with `demo.make`.
    """
    return demo.make(tmp_path_factory.mktemp("drawn") / "faces", 120, size=64)


@pytest.fixture(scope="session")
def kernel():
    """A kernel for all notebooks that are run on drawn faces."""
    with notebooks.one_kernel() as manager:
        yield manager


@pytest.fixture(scope="module")
def executed(request, tmp_path_factory, kernel):
    """Folder of a run of the module's NOTEBOOKS on drawn faces."""
    return demo_run.run(tmp_path_factory.mktemp("demo"), kernel, *request.module.NOTEBOOKS)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, by selenium.

    Needs it, its driver and selenium (`apt-get install chromium chromium-driver`, `pip install selenium`); without
    them, what asks for it is skipped.
    """
    webdriver = pytest.importorskip("selenium.webdriver")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    chromium, driver = next(filter(None, found), None), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("Chromium or its driver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=800,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


@pytest.fixture
def scene():
    """A grey picture with the portrait of the astronaut in it, whose face is at (723, 316)."""
    scene = Image.new("RGB", (1200, 800), "grey")
    scene.paste(Image.fromarray(pytest.importorskip("skimage.data").astronaut()), (500, 200))
    return scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a tiny network that tells red from blue."""
    return tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return predict.Model(folder)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of a network of faces with the heads colour and age."""
    return tiny_model.write(tmp_path_factory.mktemp("models") / "both", heads=["colour", "age"])


@pytest.fixture
def photos(tmp_path):
    """A folder of the pictures that ``tiny_model.COLOURS`` names."""
    for name, colour in tiny_model.COLOURS.items():
        tiny_model.picture(tmp_path / "photos" / name, colour)
    return tmp_path / "photos"
