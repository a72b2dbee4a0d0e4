"""Every kind of picture comes out as the right-way-up RGB square, every other file as an ImageError."""

import gc
import io
import struct
import threading
import weakref
import zlib

import numpy as np
import pytest
from helpers import chunk, encoded, png, raising
from PIL import Image, PngImagePlugin, TiffImagePlugin

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


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new(mode, (30, 10), (0,) * len(mode))  # black, and fully transparent
    image.paste((0,) * (len(mode) - 1) + (255,), (10, 0, 20, 10))
    image.paste((0,) * (len(mode) - 1) + (51,), (20, 0, 30, 10))  # a fifth of black over white
    pixels = opened(image, "PNG")
    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 10:20] == 0).all()
    assert (pixels[:, 20:] == 204).all()


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_a_transparent_colour_is_laid_on_white(mode):
    image = Image.new("RGB", (20, 10), BLUE)
    image.paste(RED, (10, 0, 20, 10))
    image = image.quantize(2) if mode == "P" else image
    pixels = opened(image, "PNG", transparency=image.getpixel((0, 0)))
    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 10:] == RED).all()


def test_grey_stays_grey_and_one_bit_black_or_white():
    assert (opened(Image.new("L", (8, 8), 90), "PNG") == 90).all()
    assert difference(opened(Image.new("L", (8, 8), 90), "JPEG", 4), 90) < 1.5
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


LATER = [Image.new("RGB", (96, 64), colour) for colour in ("black", "blue")]
ANIMATED = {"save_all": True, "append_images": LATER, "duration": 50}
no_avif = pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="this Pillow knows no AVIF")


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 2}),
        *(("BMP", "RGB", {}), ("PPM", "RGB", {}), ("GIF", "RGB", {}), ("PNG", "P", {})),
        *(("JPEG", "CMYK", {}), ("TIFF", "CMYK", {})),
        *((format, "RGB", ANIMATED) for format in ("GIF", "WEBP", "PNG")),
        pytest.param("AVIF", "RGB", {}, marks=no_avif),
    ],
)
def test_formats_and_modes_keep_their_colours_and_animations_show_their_first_frame(format, mode, options):
    image = quarters().quantize(4) if mode == "P" else quarters().convert(mode)
    for size in (None, 16):
        assert corners(opened(image, format, size, **options)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (900, 1601), (640, 640)])
def test_fast_decoding_of_a_large_jpeg_agrees_with_full_decoding(width, height):
    jpeg = encoded(smooth(width, height), "JPEG", quality=90)
    fast = images.open_rgb(io.BytesIO(jpeg), 64)
    full = images.square(Image.open(io.BytesIO(jpeg)).convert("RGB"), 64)
    assert fast.size == (64, 64)
    assert difference(fast, full) < 1
    assert difference(fast, full.transpose(T.FLIP_LEFT_RIGHT)) > 10  # the measure does tell pictures apart


@pytest.mark.parametrize("upright", [False, True])
def test_the_central_square_is_kept_or_the_whole_picture_between_black_edges(upright):
    image = Image.new("RGB", (120, 40), RED)
    image.paste(GREEN, (40, 0, 80, 40))
    image = image.transpose(T.ROTATE_90) if upright else image
    assert (opened(image, "PNG", 40) == GREEN).all()
    assert (opened(image, "PNG", 10)[1:-1, 1:-1] == GREEN).all()
    pixels = np.asarray(images.open_rgb(io.BytesIO(encoded(image, "PNG")), 60, whole=True))
    pixels = pixels.transpose(1, 0, 2) if upright else pixels
    assert pixels.shape == (60, 60, 3)
    assert not pixels[:20].any() and not pixels[40:].any()
    assert (pixels[22:38, :18] == RED).all() and (pixels[22:38, 22:38] == GREEN).all()
    assert (pixels[22:38, 42:] == RED).all()


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


def test_small_and_thin_pictures_are_scaled_up_and_keep_a_line():
    image = images.square(Image.new("RGB", (500, 1), RED), 16, True)
    assert (np.asarray(image).reshape(-1, 3) == RED).all(1).sum() == 16
    assert opened(Image.new("RGB", (1, 1), RED), "PNG", 8).tolist() == np.full((8, 8, 3), RED).tolist()
    assert opened(Image.new("RGB", (500, 1), RED), "PNG", 8).shape == (8, 8, 3)


def test_decode_all_stacks_and_names_the_damaged_file(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        quarters().save(path)
    decoded = images.decode_all(paths, 16)
    assert decoded.shape == (2, 16, 16, 3) and decoded.dtype == np.uint8
    assert corners(decoded[0].astype(int)) == [RED, GREEN, BLUE, WHITE]
    assert decoded.tolist() == [images.decode(path, 16).tolist() for path in paths]
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(images.ImageError, match=r"b\.png: empty file"):
        images.decode_all(paths, 16)


JPEG = encoded(smooth(64, 48), "JPEG")
PNG = encoded(smooth(64, 48), "PNG")
BAD_FILES = {
    "cut_header.jpg": (JPEG[:30], "known format|[Tt]runcated|damaged", images.DAMAGED),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated", images.DAMAGED),
    "cut.png": (PNG[: len(PNG) // 2], "truncated", images.DAMAGED),
    "nothing.jpg": (b"", "empty file", images.NOT_A_PICTURE),
    "text.jpg": (b"These are words, not a picture.\n" * 20, "not a picture", images.NOT_A_PICTURE),
    "page.png": (b"<!DOCTYPE html><title>404</title>", "not a picture", images.NOT_A_PICTURE),
    "paper.pdf": (b"%PDF-1.7", "not a picture", images.NOT_A_PICTURE),
    "a.jxl": (b"\xff\x0a" + bytes(99), "JPEG XL", images.NOT_SUPPORTED),
    "b.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL", images.NOT_SUPPORTED),
    "a.cr3": (b"\0\0\0\x18ftypcrx " + bytes(99), "RAW", images.NOT_SUPPORTED),
    "a.cr2": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(99), "RAW", images.NOT_SUPPORTED),
    "a.psd": (b"8BPS\0\1" + bytes(99), "Photoshop", images.NOT_A_PICTURE),
    "a.eps": (encoded(quarters(), "EPS"), "not a picture", images.NOT_A_PICTURE),  # a program, which is not run
    "bomb.ppm": (b"P6 65535 65535 255\n" + bytes(99), "limit", images.TOO_LARGE),  # 4 gigapixels, which Pillow refuses
    "a.mp4": (b"\0\0\0\x18ftypisom" + bytes(99), "video", images.NOT_A_PICTURE),
}


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_have_a_plain_reason_and_a_kind(tmp_path, name, size):
    content, reason, kind = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(images.ImageError, match=reason) as caught:
        images.open_rgb(tmp_path / name, size)
    assert name not in str(caught.value)  # whoever reports it puts the name there
    assert "\n" not in str(caught.value) and caught.value.kind == kind


def test_missing_files_and_folders_have_a_plain_reason(tmp_path):
    with pytest.raises(images.ImageError, match="No such file") as caught:
        images.open_rgb(tmp_path / "missing.jpg")
    assert caught.value.kind == images.UNREADABLE
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(images.ImageError, match=r"directory|Permission"):
        images.open_rgb(tmp_path / "folder.jpg")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(images.ImageError, match="96x64 pixels is over the limit of 6143"):
        opened(quarters(), "PNG", 16)
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 64)
    assert opened(quarters(), "PNG", 16).shape == (16, 16, 3)


RAMP = np.linspace(0, 1, 4096).reshape(64, 64)


def tiff(numbers, **tags):
    """A grey TIFF of such numbers; tags by number in place of Pillow's."""
    about = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        about[int(tag[1:])] = value
    file = io.BytesIO()
    Image.fromarray(numbers).save(file, "TIFF", tiffinfo=about)
    return file


@pytest.mark.parametrize(
    "numbers",
    [(RAMP * (2**bits - 1)).round().astype(np.uint16) for bits in (8, 10, 12, 16)]
    + [(RAMP * most).astype(np.int32) for most in (255, 65_535, 70_000, 2**31 - 2**8)]
    + [(RAMP * most).astype(np.float32) for most in (1, 1.02, 255, 65_535)]
    + [(RAMP * 2 - 1).astype(np.float32)],
    ids=lambda numbers: f"{numbers.dtype} to {numbers.max():.6g}",
)
def test_numbers_are_scaled_by_what_they_declare_or_use(numbers):
    grey = np.asarray(images.open_rgb(tiff(numbers)))[..., 0].astype(int)
    bound = 0.51 if numbers.dtype == np.float32 and numbers.min() == 0 and numbers.max() in (1, 255) else 2
    assert np.abs(grey - RAMP * 255).max() < bound and (np.diff(grey.ravel()) >= 0).all()
    assert (grey[0, 0], grey[-1, -1]) == (0, 255)


def test_one_bright_pixel_does_not_darken_the_rest():
    numbers = (RAMP * 65_535).astype(np.int32)
    numbers[0, 0] = 10**9
    assert np.abs(np.asarray(images.open_rgb(tiff(numbers)))[1:, :, 0] - RAMP[1:] * 255).max() < 2


@pytest.mark.parametrize("bits", [12, 16])
def test_white_may_be_zero(bits):
    numbers = ((1 - RAMP) * (2**bits - 1)).round().astype(np.uint16)
    content = bytearray(tiff(numbers).getvalue())
    at = content.index(struct.pack("<HHI", images.PHOTOMETRIC, 3, 1))
    content[at + 8] = 0
    assert np.abs(np.asarray(images.open_rgb(io.BytesIO(content)))[..., 0] - RAMP * 255).max() < 2


def test_dark_16_bit_colours_are_refused_not_shown_black():
    bright, dark = (
        png((8, 8), 16, 2, (b"\0" + struct.pack(">3H", *[2**16 - 1 >> shift] * 3) * 8) * 8) for shift in (0, 4)
    )
    assert (np.asarray(images.open_rgb(io.BytesIO(bright))) == 255).all()
    with pytest.raises(images.ImageError, match="16 bits a sample, of which at most 12 are used"):
        images.open_rgb(io.BytesIO(dark))


@pytest.mark.parametrize(("marked", "shown"), [([1, 0], "red"), ([0, 0], "red"), ([0, 1], "blue"), ([1, 1], None)])
def test_the_largest_page_that_is_no_thumbnail_counts(marked, shown):
    small, large = Image.new("RGB", (8, 8), "blue"), Image.new("RGB", (32, 32), "red")
    for page, mark in zip((small, large), marked, strict=True):
        page.encoderinfo = {"tiffinfo": {images.SUBFILE_TYPE: mark}}
    file = io.BytesIO()
    small.save(file, "TIFF", save_all=True, append_images=[large], tiffinfo={images.SUBFILE_TYPE: marked[0]})
    if not shown:
        with pytest.raises(images.ImageError, match="RAW"):
            images.open_rgb(file)
        return
    expected = Image.new("RGB", (1, 1), shown).getpixel((0, 0))
    assert images.open_rgb(file).getpixel((0, 0)) == expected
    assert images.picture_size(file) == ((32, 32) if shown == "red" else (8, 8))


def test_damaged_metadata_of_a_png_does_not_cost_the_picture():
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1)))
    for odd in (text, chunk(b"tEXt", b"a\0b", crc=0), chunk(b"eXIf", b"\0\x08\0\x02"), chunk(b"iCCP", b"a\0\x09")):
        assert (np.asarray(images.open_rgb(io.BytesIO(png((2, 2), 8, 0, b"\0\x07\x07" * 2, odd)))) == 7).all()


def test_orientation_is_applied_beside_tags_that_cannot_be_written_again():
    exif = Image.Exif()
    exif[images.ORIENTATION], exif[0x011A] = 6, 72.0
    content = bytearray(exif.tobytes())
    at = content.index(struct.pack(">HHI", 0x011A, 5, 1))
    content[at + 3] = 2  # a resolution in letters
    stored = quarters().transpose(STORED[6])
    assert corners(opened(stored, "JPEG", exif=bytes(content))) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("size", [(3000, 1), (20_000, 9), (1, 3000)])
def test_thin_jpegs(size):
    for wanted in ({"long_side": 100}, {"size": 16}, {"size": 16, "whole": True}):
        assert images.open_rgb(io.BytesIO(encoded(Image.new("RGB", size), "JPEG")), **wanted).width


@pytest.mark.parametrize("format", ["BLP", "DDS", "ICO", "TGA", "PCX", "SGI", "IM"])
def test_formats_of_no_photo_are_not_decoded(format):
    with pytest.raises(images.ImageError):
        opened(quarters().quantize(8) if format == "BLP" else quarters(), format)


def test_what_libtiff_says_is_the_reason_and_not_printed(capfd):
    content = bytearray(encoded(smooth(60, 60), "TIFF", compression="tiff_deflate"))
    middle = len(content) // 2
    content[middle : middle + 99] = b"x" * 99
    with pytest.raises(images.ImageError, match=r"damaged picture \(.*[Dd]ecod|decoder error"):
        images.open_rgb(io.BytesIO(content))
    assert capfd.readouterr().err == ""


def test_large_jpegs_count_by_what_is_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 5_000)
    large, progressive = (encoded(smooth(400, 400), "JPEG", progressive=how) for how in (False, True))
    assert images.open_rgb(io.BytesIO(large), 25).size == (25, 25)
    with pytest.raises(images.ImageError, match="400x400 pixels is over the limit of 5000"):
        images.open_rgb(io.BytesIO(large))
    with pytest.raises(images.ImageError, match="400x400 pixels as progressive JPEG take 0 MB"):
        images.open_rgb(io.BytesIO(progressive), 25)


def test_the_one_strip_of_a_compressed_tiff_counts_as_stored_too(monkeypatch):
    taken, one, several, lzw = [], {"strip_size": 2**20}, {"strip_size": 600}, {"compression": "tiff_lzw"}
    monkeypatch.setattr(images.BUDGET, "take", taken.append)
    for options in (several, one, several | lzw, one | lzw):
        file = io.BytesIO(encoded(smooth(60, 60), "TIFF", **options))
        images.open_rgb(file)
    [stored] = Image.open(file).tag_v2[TiffImagePlugin.STRIPBYTECOUNTS]
    assert [size - taken[0] for size in taken] == [0, 0, 0, stored]


def test_a_kept_error_keeps_no_pixels(monkeypatch):
    seen = []
    load = PngImagePlugin.PngImageFile.load

    def watched(image):
        seen.append(weakref.ref(image))
        return load(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", watched)
    content = encoded(smooth(300, 300), "PNG")
    with pytest.raises(images.ImageError) as kept:
        images.open_rgb(io.BytesIO(content[: len(content) // 2]))
    gc.collect()
    assert seen and all(image() is None for image in seen)
    assert kept.value.__context__ is None


@pytest.mark.parametrize("kind", [AttributeError, TypeError, ZeroDivisionError])
@pytest.mark.parametrize("place", ["_to_rgb", "square"])
def test_a_bug_is_not_a_damaged_picture(monkeypatch, kind, place):
    monkeypatch.setattr(images, place, raising(kind("a bug")))
    with pytest.raises(kind, match="a bug"):
        opened(quarters(), "PNG", 16)


def test_the_budget_is_kept_and_what_is_larger_is_decoded_alone():
    budget, most, lock = images.Budget(100), [], threading.Lock()
    at_once = []

    def work(size):
        for _ in range(20):
            with budget.until_done():
                budget.take(size)
                with lock:
                    at_once.append(size)
                    most.append(sum(at_once))
                    assert size <= 100 or at_once == [size]
                with lock:
                    at_once.remove(size)
                budget.decoded(size // 10)

    threads = [threading.Thread(target=work, args=(size,)) for size in (30, 40, 60, 250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(most) == 80 and all(total <= 100 or total == 250 for total in most) and budget.used == 0
