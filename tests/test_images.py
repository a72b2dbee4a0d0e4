"""Every kind of picture comes out as the right-way-up RGB square, every other file as an ImageError."""

import io

import numpy as np
import pytest
from PIL import Image

from faces import images

# Pillow's, about odd metadata; pytest undoes the filter that faces.images sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

T = Image.Transpose
# What a camera stores for an upright scene when it writes this EXIF orientation.
STORED = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE}
STORED |= {6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(width=96, height=64):
    """A red top left, green top right, blue bottom left and white bottom right quarter."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return Image.fromarray(pixels)


def smooth(width, height, seed=0):
    """Soft random blots of colour, the kind of content that JPEG keeps."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def opened(image, format, size=None, **options):
    """Pixels of `image` after it was saved and opened again."""
    return np.asarray(images.open_rgb(io.BytesIO(encoded(image, format, **options)), size)).astype(int)


def corners(pixels):
    """Colours in the middle of the four quarters, read as text is."""
    height, width, _ = pixels.shape
    spots = [pixels[y, x] for y in (height // 4, -height // 4) for x in (width // 4, -width // 4)]
    return [tuple(int(round(value / 255) * 255) for value in spot) for spot in spots]


def difference(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).mean()


# ------------------------------------------------------------------------------------------- right way up


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_every_exif_orientation_comes_out_right_way_up(format, orientation, size):
    upright, exif = quarters(), Image.Exif()
    stored = upright.transpose(STORED[orientation]) if orientation in STORED else upright
    exif[images.ORIENTATION] = orientation
    pixels = opened(stored, format, size, exif=exif)
    assert pixels.shape == ((size, size, 3) if size else (64, 96, 3))
    assert corners(pixels) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!", b"Exif\0\0II*\0\x08", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_does_not_cost_the_picture(exif):
    assert corners(opened(quarters(), "JPEG", exif=exif)) == [RED, GREEN, BLUE, WHITE]


# -------------------------------------------------------------------------------------------------- modes


def test_grey_stays_grey():
    assert (opened(Image.new("L", (8, 8), 90), "PNG") == 90).all()
    assert difference(opened(Image.new("L", (8, 8), 90), "JPEG", 4), 90) < 1.5


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new(mode, (30, 10), (0,) * len(mode))  # black, and fully transparent
    image.paste((0,) * (len(mode) - 1) + (255,), (10, 0, 20, 10))
    image.paste((0,) * (len(mode) - 1) + (51,), (20, 0, 30, 10))  # a fifth of black over white
    pixels = opened(image, "PNG")
    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 10:20] == 0).all()
    assert (pixels[:, 20:] == 204).all()


def test_palette_without_transparency_keeps_its_colours():
    image = quarters().quantize(4)
    assert image.mode == "P"
    assert corners(opened(image, "PNG")) == [RED, GREEN, BLUE, WHITE]
    assert corners(opened(image, "PNG", 16)) == [RED, GREEN, BLUE, WHITE]


def test_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (20, 10), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (10, 0, 20, 10))
    pixels = opened(image, "PNG", transparency=0)
    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 10:] == RED).all()


def test_rgb_with_a_transparent_colour_is_laid_on_white():
    image = Image.new("RGB", (20, 10), BLUE)
    image.paste(RED, (10, 0, 20, 10))
    pixels = opened(image, "PNG", transparency=BLUE)
    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 10:] == RED).all()


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(format):
    assert corners(opened(quarters().convert("CMYK"), format)) == [RED, GREEN, BLUE, WHITE]


def test_one_bit_pictures_are_black_and_white():
    image = Image.new("1", (20, 10), 1)
    image.paste(0, (0, 0, 10, 10))
    pixels = opened(image, "PNG")
    assert (pixels[:, :10] == 0).all()
    assert (pixels[:, 10:] == 255).all()


@pytest.mark.parametrize(
    ("level", "expected"), [(0, 0), (4200, 16), (32_768, 128), (65_535, 255)], ids=["black", "dark", "middle", "white"]
)
def test_16_bit_grey_is_scaled_not_clipped(level, expected):
    little = Image.fromarray(np.full((8, 8), level, np.uint16))
    big = Image.frombytes("I;16B", (8, 8), np.full((8, 8), level, ">u2").tobytes())
    for pixels in (opened(little, "PNG"), opened(little, "TIFF"), opened(big, "TIFF"), opened(little, "PNG", 4)):
        assert np.abs(pixels - expected).max() <= 1


def test_32_bit_grey_is_scaled_not_clipped():
    levels = np.linspace(0, 2**31 - 2**8, 64).reshape(8, 8).astype(np.int32)
    pixels = opened(Image.fromarray(levels), "TIFF")[..., 0]
    assert pixels[0, 0] == 0
    assert pixels[-1, -1] == 255  # one bit of the 32 is the sign
    assert (np.diff(pixels.ravel()) >= 0).all()


@pytest.mark.parametrize("brightest", [1.0, 255.0])
def test_float_pictures_may_be_fractions_or_grey_values(brightest):
    ramp = np.linspace(0, brightest, 64, dtype=np.float32).reshape(8, 8)
    pixels = opened(Image.fromarray(ramp), "TIFF")[..., 0]
    assert np.abs(pixels - np.linspace(0, 255, 64).reshape(8, 8)).max() <= 0.51


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_float_pictures_with_holes_keep_the_rest(hole):
    grey = np.full((8, 8), 0.5, np.float32)
    grey[0, 0] = hole
    pixels = opened(Image.fromarray(grey), "TIFF")
    assert np.isin(pixels[1:], (127, 128)).all()


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_other_colour_spaces_become_rgb(mode):
    assert opened(Image.new(mode, (8, 6)), "TIFF").shape == (6, 8, 3)


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 95}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"progressive": True, "subsampling": 2}),
        ("BMP", {}),
        ("PPM", {}),
        ("GIF", {}),
    ],
)
def test_formats(format, options):
    for size in (None, 16):
        assert corners(opened(quarters(), format, size, **options)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_shows_its_first_frame(format):
    later = [Image.new("RGB", (96, 64), colour) for colour in ("black", "blue")]
    pixels = opened(quarters(), format, save_all=True, append_images=later, duration=50)
    assert corners(pixels) == [RED, GREEN, BLUE, WHITE]


def test_paths_may_be_text(tmp_path):
    quarters().save(tmp_path / "a.png")
    assert images.open_rgb(str(tmp_path / "a.png")).size == images.open_rgb(tmp_path / "a.png").size == (96, 64)


# ------------------------------------------------------------------------------------------- size and crop


@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (900, 1601), (640, 640)])
def test_fast_decoding_of_a_large_jpeg_agrees_with_full_decoding(width, height):
    jpeg = encoded(smooth(width, height), "JPEG", quality=90)
    fast = images.open_rgb(io.BytesIO(jpeg), 64)
    full = images.square(Image.open(io.BytesIO(jpeg)).convert("RGB"), 64)
    assert fast.size == (64, 64)
    assert difference(fast, full) < 1
    assert difference(fast, full.transpose(T.FLIP_LEFT_RIGHT)) > 10  # the measure does tell pictures apart


@pytest.mark.parametrize("upright", [False, True])
def test_the_central_square_is_kept(upright):
    image = Image.new("RGB", (120, 40), RED)
    image.paste(GREEN, (40, 0, 80, 40))
    image = image.transpose(T.ROTATE_90) if upright else image
    assert (opened(image, "PNG", 40) == GREEN).all()
    assert (opened(image, "PNG", 10)[1:-1, 1:-1] == GREEN).all()


@pytest.mark.parametrize("upright", [False, True])
def test_the_whole_picture_is_kept_between_black_edges(upright):
    image = Image.new("RGB", (120, 40), RED)
    image.paste(GREEN, (40, 0, 80, 40))
    image = image.transpose(T.ROTATE_90) if upright else image
    pixels = np.asarray(images.open_rgb(io.BytesIO(encoded(image, "PNG")), 60, whole=True))
    pixels = pixels.transpose(1, 0, 2) if upright else pixels
    assert pixels.shape == (60, 60, 3)
    assert not pixels[:20].any() and not pixels[40:].any()
    assert (pixels[22:38, :18] == RED).all() and (pixels[22:38, 22:38] == GREEN).all()
    assert (pixels[22:38, 42:] == RED).all()


def test_a_thin_picture_keeps_a_line_in_the_whole_frame():
    image = images.square(Image.new("RGB", (500, 1), RED), 16, True)
    assert (np.asarray(image).reshape(-1, 3) == RED).all(1).sum() == 16


@pytest.mark.parametrize("wanted", [[(64, True)], [(64, False), (32, False)], [(64, True), (64, False), (32, True)]])
def test_frames_of_one_decoded_picture_are_as_those_decoded_alone(wanted, tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(800, 500), "JPEG", quality=90))
    frames = [images.Frame(*each) for each in wanted]
    for pixels, frame in zip(images.decode_frames(tmp_path / "a.jpg", frames), frames, strict=True):
        assert pixels.shape == (frame.size, frame.size, 3)
        assert difference(pixels, images.decode(tmp_path / "a.jpg", *frame)) < 2


def test_a_square_of_the_right_size_is_not_touched():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert difference(opened(noise, "PNG", 16), noise) == 0


def test_scaling_down_averages():
    """Without antialiasing a checkerboard would come out as one of its colours, or as stripes."""
    board = Image.fromarray(np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255)
    assert np.abs(opened(board, "PNG", 8) - 127.5).max() < 10


def test_small_and_thin_pictures_are_scaled_up():
    assert opened(Image.new("RGB", (1, 1), RED), "PNG", 8).tolist() == np.full((8, 8, 3), RED).tolist()
    assert opened(Image.new("RGB", (500, 1), RED), "PNG", 8).shape == (8, 8, 3)


def test_decode_is_open_rgb_as_an_array(tmp_path):
    quarters().save(tmp_path / "a.png")
    pixels = images.decode(tmp_path / "a.png", 16)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert corners(pixels) == [RED, GREEN, BLUE, WHITE]


def test_decode_all_stacks_and_names_the_damaged_file(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        quarters().save(path)
    assert images.decode_all(paths, 16).tolist() == [images.decode(path, 16).tolist() for path in paths]
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(images.ImageError, match=r"b\.png: empty file"):
        images.decode_all(paths, 16)


# --------------------------------------------------------------------------------------------- not pictures

JPEG = encoded(smooth(64, 48), "JPEG")
PNG = encoded(smooth(64, 48), "PNG")
BAD_FILES = {
    "cut_header.jpg": (JPEG[:30], "known format|[Tt]runcated|damaged"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut.png": (PNG[: len(PNG) // 2], "truncated"),
    "nothing.jpg": (b"", "empty file"),
    "text.jpg": (b"These are words, not a picture.\n" * 20, "not a picture"),
    "page.png": (b"<!DOCTYPE html><title>404</title>", "not a picture"),
}


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_have_a_plain_reason(tmp_path, name, size):
    content, reason = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(images.ImageError, match=reason) as caught:
        images.open_rgb(tmp_path / name, size)
    assert name not in str(caught.value)  # whoever reports it puts the name there
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_have_a_plain_reason(tmp_path):
    with pytest.raises(images.ImageError, match="No such file"):
        images.open_rgb(tmp_path / "missing.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(images.ImageError, match=r"directory|Permission"):
        images.open_rgb(tmp_path / "folder.jpg")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(images.ImageError, match="96x64 pixels is over the limit of 6143"):
        opened(quarters(), "PNG", 16)
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 64)
    assert opened(quarters(), "PNG", 16).shape == (16, 16, 3)


def test_a_decompression_bomb_is_refused():
    """A header that claims 4 gigapixels, as Pillow itself refuses it."""
    bomb = b"P6 65535 65535 255\n" + bytes(99)
    with pytest.raises(images.ImageError, match="limit"):
        images.open_rgb(io.BytesIO(bomb))


def test_postscript_is_not_run():
    with pytest.raises(images.ImageError, match="not a picture"):
        opened(quarters(), "EPS")


@pytest.mark.parametrize("start", [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM"])
def test_random_bytes_raise_nothing_else(start):
    rng = np.random.default_rng(5)
    for _ in range(30):
        with pytest.raises(images.ImageError):
            images.open_rgb(io.BytesIO(start + rng.bytes(200)), 16)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_mangled_pictures_raise_nothing_else(format):
    rng = np.random.default_rng(6)
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    options = {"exif": exif} if format in ("JPEG", "PNG", "TIFF", "WEBP") else {}
    whole = np.frombuffer(encoded(smooth(24, 16), format, **options), np.uint8)
    refused = 0
    for _ in range(80):
        mangled = whole.copy()
        spots = rng.integers(0, min(len(whole), 400), rng.integers(1, 8))
        mangled[spots] = rng.integers(0, 256, len(spots))
        try:
            assert images.open_rgb(io.BytesIO(mangled.tobytes()), 16).size == (16, 16)
        except images.ImageError as error:
            refused += 1
            assert str(error)
    assert refused  # the damage was enough to matter


def test_litter_of_operating_systems_is_known():
    assert all(map(images.is_litter, (".DS_Store", "Thumbs.db", "desktop.ini", "._photo.jpg")))
    assert not any(map(images.is_litter, ("photo.jpg", ".photo.jpg", "_photo.jpg", "thumbs.jpg")))
