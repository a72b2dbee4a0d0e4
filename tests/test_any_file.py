"""Whatever lies in a folder, each file ends up exactly once: in the results or in the errors."""

import io
import json
import os
import sys

import helpers
import pytest
from PIL import Image

from faces import cli, images
from faces.files import is_litter
from faces.outputs import escaped

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

FORMS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA")


STARTS = (b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM")


def encoded(form):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    turned = {"exif": exif} if form in ("JPEG", "PNG", "TIFF", "WEBP") else {}
    return helpers.encoded(Image.linear_gradient("L").resize((40, 30)).convert("RGB"), form, **turned)


@st.composite
def mangled(draw):
    """A picture with some of its bytes changed, cut off or repeated."""
    content = bytearray(encoded(draw(st.sampled_from(FORMS))))
    for _ in range(draw(st.integers(0, 8))):
        where = draw(st.integers(0, len(content) - 1))
        content[where] = draw(st.integers(0, 255))
    end = draw(st.integers(0, len(content)))
    return bytes(content[:end]) + bytes(content[: draw(st.integers(0, 64))])


started = st.builds(bytes.__add__, st.sampled_from(STARTS), st.binary(max_size=400))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about odd metadata
@settings(max_examples=600, deadline=None)
@given(st.one_of(started, mangled()))
def test_bytes_are_a_picture_or_an_image_error(content):
    try:
        picture = images.open_rgb(io.BytesIO(content), 16)
    except images.ImageError as error:
        assert str(error)
    else:
        assert picture.mode == "RGB" and picture.size == (16, 16)


names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1, max_size=30).filter(
    lambda name: name not in (".", "..") and len(os.fsencode(name)) < 200 and not is_litter(name)
)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take fewer names")
@settings(max_examples=25, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@given(files=st.dictionaries(names, st.one_of(st.binary(max_size=200), mangled()), max_size=12))
def test_every_file_is_answered_for_exactly_once(model, tmp_path_factory, files):
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    for name, content in files.items():
        (home / "photos" / name).write_bytes(content)
    output = home / "out.json"
    counts = cli.process_folder(home / "photos", output, tasks={"colour": model}, batch_size=3, progress=False)
    results = json.loads(output.read_text("utf-8"))
    errors = home / cli.ERRORS
    refused = json.loads(errors.read_text("utf-8")) if errors.exists() else {}
    skipped = json.loads((home / cli.RUN).read_text("utf-8"))["skipped"]
    assert (len(results), len(refused), len(skipped)) == counts
    assert sorted([*results, *refused, *skipped]) == sorted(map(escaped, files))


def test_files_that_go_grow_or_turn_into_others_while_the_run_goes_on(model, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(9):
        (photos / f"{number}.png").write_bytes(encoded("PNG"))
    names = ["0.png", "1.png", "2.png", "3.png", "4.png"]

    def walk(*_, **__):
        for name in names:
            if name == "1.png":
                (photos / name).unlink()
            if name == "2.png":
                (photos / name).write_bytes(encoded("PNG")[:50])
            if name == "3.png":
                (photos / name).unlink()
                (photos / name).mkdir()
            yield name

    monkeypatch.setattr(cli, "find_files", walk)
    output = tmp_path / "out.json"
    assert cli.process_folder(photos, output, tasks={"colour": model}, batch_size=1) == (2, 3, 0)
    assert sorted(json.loads((tmp_path / cli.ERRORS).read_text())) == ["1.png", "2.png", "3.png"]


def test_heic_is_read_where_it_can_be(model, tmp_path):
    picture = pytest.importorskip("pillow_heif").from_pillow(Image.new("RGB", (64, 48), "red"))
    picture.save(tmp_path / "IMG_0001.HEIC", quality=90)
    assert cli.process_folder(tmp_path / "IMG_0001.HEIC", tmp_path / "o.json", tasks={"colour": model}) == (1, 0, 0)
    assert images.open_rgb(tmp_path / "IMG_0001.HEIC").size == (64, 48)


def test_heic_is_told_by_name_where_it_cannot(monkeypatch):
    content = b"\0\0\0\x18ftypheic" + bytes(100)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(images.ImageError, match="pip install pillow-heif"):
        images.open_rgb(io.BytesIO(content))
