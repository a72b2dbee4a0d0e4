"""Open any picture as the right-way-up RGB square that the networks were trained on.

Shared by the runtime and by research, so that a photo is decoded in one way only:
what the network saw in training is what ``process.py`` shows it. Needs numpy and Pillow.
"""

from __future__ import annotations

import ctypes
import io
import logging
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib import import_module
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from faces.files import StrPath

Result = TypeVar("Result")

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SUFFIXES |= {".avif", ".heic", ".heif"}
# Pillow's names of the formats that photos come in. Its other decoders, of icons, textures and maps, are never tried.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
HEIC = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}  # brands, from the 9th byte on
# Other files by their first bytes: pictures that are not supported, and what is no photo.
UNSUPPORTED = {
    b"\xff\x0a": "a JPEG XL picture, which is not read",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture, which is not read",
    b"II\xbc\x01": "a JPEG XR picture, which is not read",
    b"v/1\x01": "an OpenEXR picture, which is not read",
    b"#?RADIANCE": "a Radiance HDR picture, which is not read",
}
NO_PICTURES = {
    b"8BPS": "a Photoshop document, not a picture",
    b"%!PS": "a PostScript program, not a picture",
    b"\xc5\xd0\xd3\xc6": "a PostScript program, not a picture",
    b"%PDF": "a PDF document, not a picture",
    b"DDS ": "a texture, not a photo",
    b"BLP": "a texture, not a photo",
    b"\0\0\1\0": "an icon, not a photo",
    b"icns": "an icon, not a photo",
    b"\x1aE\xdf\xa3": "a video, not a picture",
}
# Kinds of an ImageError.
DAMAGED, NOT_A_PICTURE, NOT_SUPPORTED = "damaged", "not a picture", "not supported"
TOO_LARGE, UNREADABLE = "too large", "unreadable"
RAW = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of TIFF, and the photometric interpretations of what only a RAW converter makes a picture of.
SUBFILE_TYPE, OLD_SUBFILE_TYPE, BITS, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 254, 255, 258, 262, 284, 339
SENSOR_DATA = (32803, 34892)
MAX_PAGES = 64  # of a TIFF that are looked through for the largest
# Pixels of a decoded picture: a 150-megapixel camera frame. Of a large JPEG that is decoded at a fraction of its size
# they are those of the fraction. All that a decoder takes may be MAX_PIXEL_BYTES times as many bytes.
MAX_PIXELS = 150_000_000
MAX_PIXEL_BYTES = 8
MAX_RETURNED = 25_000_000  # pixels; where less detail is asked for, larger pictures come back at a fraction
STRIP = 1_000_000  # pixels that are converted at a time
# What white may be in pictures of more than 8 bits that do not use the scale that they declare.
SCALES = (1, 2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1, 2**24 - 1, 2**31 - 1, 2**32 - 1)
# Bytes a pixel that decoders take beside the picture: WebP and AVIF for frames of their own, TIFF for strips.
DECODER_BYTES = {"WEBP": 8, "AVIF": 12, "HEIF": 12, "JPEG2000": 24, "TIFF": 4, "GIF": 1}
# What Pillow's decoders raise at damaged files, besides OSError.
DECODER_ERRORS = (SyntaxError, ValueError, LookupError, EOFError, OverflowError, RuntimeError, struct.error, zlib.error)

# Pillow warns of large pictures and odd metadata; what matters of it is decided below. Set once and for all, since
# warnings.catch_warnings is not safe among the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or its errors would be printed, without a file's name
for _name in ("Avif", "Bmp", "Gif", "Jpeg2K", "Png", "Ppm", "WebP"):
    with suppress(ImportError):  # an older Pillow knows no AVIF
        import_module(f"PIL.{_name}ImagePlugin")


# glibc would keep freed blocks of up to 32 MB, of each thread its own: the largest picture once more for every thread.
# Larger blocks than MMAP_BYTES are given back; smaller ones are kept, which is faster.
MMAP_BYTES, TRIM_BYTES = 8_000_000, 32_000_000
with suppress(OSError, AttributeError, TypeError):  # another C library
    ctypes.CDLL(None).mallopt(-3, MMAP_BYTES)  # M_MMAP_THRESHOLD
    ctypes.CDLL(None).mallopt(-1, TRIM_BYTES)  # M_TRIM_THRESHOLD


class ImageError(ValueError):
    """A file could not be read as a picture.

    Parameters
    ----------
    message : str
        The reason, without the file's name.
    kind : {"damaged", "not a picture", "not supported", "too large", "unreadable"}
    """

    def __init__(self, message: str, kind: str = DAMAGED):
        super().__init__(message)
        self.kind = kind


class Budget:
    """Memory of all decoders together, in bytes.

    A picture counts until it is returned or, within ``until_done``, until that ends or the thread decodes again. One
    that needs more than the budget is decoded alone.
    """

    def __init__(self, total: int):
        self.total, self.used = total, 0
        self._turn, self._freed, self._mine = threading.Lock(), threading.Condition(), threading.local()

    def take(self, size: int) -> None:
        """Release what this thread holds and wait for ``size`` bytes, first come, first served."""
        if getattr(self._mine, "size", 0):
            self._hold(0)
        with self._turn, self._freed:
            if self.used and self.used + size > self.total:
                self._freed.wait_for(lambda: not self.used or self.used + size <= self.total)
            self.used += size
        self._mine.size = size

    def decoded(self, size: int) -> None:
        """Give back all but the ``size`` bytes of the picture that was decoded."""
        self._hold(size if getattr(self._mine, "keeps", False) else 0)

    @contextmanager
    def until_done(self) -> Iterator[None]:
        """Have the last picture that this thread decodes count until the end."""
        self._mine.keeps = True
        try:
            yield
        finally:
            self._mine.keeps = False
            self._hold(0)

    def _hold(self, size: int) -> None:
        with self._freed:
            self.used += size - getattr(self._mine, "size", 0)
            self._mine.size = size
            self._freed.notify_all()


BUDGET = Budget(200_000_000)


def open_rgb(
    path: StrPath | BinaryIO,
    size: int | None = None,
    *,
    whole: bool = False,
    long_side: int | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """Open a picture as 8-bit RGB, the right way up.

    EXIF orientation is applied, transparency is laid on white, CMYK, grey, palette and 16-bit pictures are converted
    (see ``_levels``).

    Parameters
    ----------
    path : path or binary file
        In one of ``FORMATS`` (HEIC where pillow-heif is installed); of an animation the first frame, of a TIFF the
        largest page that is not marked as a thumbnail.
    size : int, optional
        Return the central square, scaled down to ``size`` × ``size`` pixels with antialiasing. JPEGs are decoded at a
        fraction of their size where that has at least twice as many pixels, which is many times faster.
    whole : bool, default False
        Return all of the picture in that square, between black edges.
    long_side : int, optional
        Return the whole picture at the smallest fraction of its size whose long side has so many pixels, and of
        ``MAX_RETURNED`` pixels at most.
    max_pixels : int, optional
        Refuse to decode more; default ``MAX_PIXELS``.

    Returns
    -------
    PIL.Image.Image
        Mode RGB.

    Raises
    ------
    ImageError
        Not a picture, damaged, empty, gone, or too large. It keeps no pixels.
    """
    if whole and size:
        long_side = 2 * size
    limit, rgb, kind = MAX_PIXELS if max_pixels is None else max_pixels, None, TOO_LARGE
    try:
        rgb = _open_rgb(path, None if whole else size, long_side, limit)
        rgb = square(rgb, size, whole) if size else rgb  # the large picture goes before the next one is let in
        return rgb
    except ImageError as error:
        reason, kind = str(error), error.kind
    except MemoryError:
        reason = "too large for this machine's memory"
    finally:
        BUDGET.decoded(4 * rgb.width * rgb.height if rgb and not size else 0)
    # Out here, since an error keeps what the frames of its traceback hold, and that of the error before it.
    raise ImageError(reason, kind)


def picture_size(path: StrPath | BinaryIO) -> tuple[int, int]:
    """Width and height in pixels of what ``open_rgb`` decodes, from its header; turned or not.

    Raises
    ------
    ImageError : not a picture.
    """
    with _reading(path) as file:
        return _opened(file, MAX_PIXELS).size


class _Damaged(ImageError):
    """Pillow gave up on the contents of a file."""


def _open_rgb(path: StrPath | BinaryIO, size: int | None, long_side: int | None, limit: int) -> Image.Image:
    with _reading(path) as file:
        try:
            return _load(file, size, long_side, limit)
        except _Damaged as error:
            reason, kind = str(error), error.kind
        bare = _without_metadata(file)
        if bare is None:
            raise ImageError(reason, kind)
        return _load(bare, size, long_side, limit)


def _load(file: BinaryIO, size: int | None, long_side: int | None, limit: int) -> Image.Image:
    image = _opened(file, limit)
    (width, height), factor, coefficients = image.size, 1, 0
    if long_side:
        factor = max(max(width, height) // long_side, math.ceil(math.sqrt(width * height / MAX_RETURNED)))
    elif size and (image.format in ("JPEG", "MPO") or width * height > MAX_RETURNED):
        factor = min(width, height) // (2 * size)
    factor = max(1, factor)
    tags = getattr(image, "tag_v2", {})
    if tags.get(PLANES) == 2 and max(tags.get(BITS, (1,))) > 8:
        raise ImageError("a TIFF with planes of more than 8 bits, which Pillow does not read", NOT_SUPPORTED)
    if isinstance(image, JpegImagePlugin.JpegImageFile) and not _pillow(_in_one_scan, image):
        coefficients = _coefficients(image, width * height)
    if factor > 1:  # of the fractions that JPEG offers, the smallest that is large enough
        _pillow(image.draft, "RGB", (max(1, width // factor), max(1, height // factor)))
    factor = 1 if size and image.size != (width, height) else max(1, factor * max(image.size) // max(width, height))
    pixels = image.width * image.height
    if pixels > limit:
        raise ImageError(f"{width}x{height} pixels is over the limit of {limit} (--max-pixels)", TOO_LARGE)
    takes = pixels * (_pixel_bytes(image.mode) + DECODER_BYTES.get(image.format or "", 0)) + coefficients
    match tags.get(TiffImagePlugin.STRIPBYTECOUNTS):
        case (int(stored),) if image.tile and image.tile[0][0] == "libtiff":  # the one strip is mapped whole
            takes += stored
    if takes > MAX_PIXEL_BYTES * limit:
        form = "progressive JPEG" if coefficients else image.format
        allowed = f"the limit of {limit} pixels (--max-pixels) allows for {MAX_PIXEL_BYTES * limit // 10**6} MB"
        raise ImageError(f"{width}x{height} pixels as {form} take {takes // 10**6} MB to decode, {allowed}", TOO_LARGE)
    BUDGET.take(takes + 4 * pixels // factor**2)
    if image.format == "WEBP" and hasattr(image, "_decoder"):
        image._decoder = _OneFrame(image._decoder)
    wide = image.mode[0] not in "IF" and image.tile and ";16" in str(image.tile[0][3])
    _pillow(image.load, format=image.format)
    if wide and _hardly_used(image):
        raise ImageError(
            "16 bits a sample, of which at most 12 are used: how bright it is cannot be told", NOT_SUPPORTED
        )
    return upright(image, factor)


class _OneFrame:
    """Pillow's decoder of WebP, whose own frames (8 bytes a pixel) go once the first one has been handed over."""

    def __init__(self, decoder: Any):
        self.decoder = decoder

    def get_next(self) -> Any:
        decoder, self.decoder = self.decoder, None
        return decoder.get_next()

    def reset(self) -> None:
        """Called by Pillow where a frame is damaged."""


def _pixel_bytes(mode: str) -> int:
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


def _reading(path: StrPath | BinaryIO) -> Any:
    return nullcontext(path) if hasattr(path, "read") else _pillow(open, path, "rb")


def _pillow(call: Callable[..., Result], *arguments: Any, format: str | None = None) -> Result:
    """A call of Pillow's decoders, with an ImageError for what they raise at damaged files."""
    errors = _libtiff_errors() if format == "TIFF" else []
    errors.clear()
    try:
        return call(*arguments)
    except (ImageError, UnidentifiedImageError):
        raise
    except OSError as error:
        detail = error.strerror or str(error) or type(error).__name__
        kind = UNREADABLE if error.strerror else DAMAGED
        raise ImageError(f"damaged picture ({errors[-1]})" if errors else detail, kind) from None
    except DECODER_ERRORS as error:
        raise _Damaged(f"damaged picture ({type(error).__name__}: {error})") from None


class _Messages(threading.local):
    def __init__(self) -> None:
        self.errors: list[str] = []


_messages = _Messages()


def _libtiff_errors() -> list[str]:
    """Errors of libtiff in this thread; it would print them on stderr, without the file's name."""
    _collect_libtiff()
    return _messages.errors


@cache
def _collect_libtiff() -> Any:
    with suppress(OSError, AttributeError, TypeError):  # a Pillow without it, or one that hides it
        libtiff = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
        write = ctypes.CDLL(None).vsnprintf
        write.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]

        def collect(module: bytes, form: bytes, values: int) -> None:
            line = ctypes.create_string_buffer(200)
            write(line, len(line), form, values)
            _libtiff_errors().append(line.value.decode(errors="replace").removeprefix("tempfile.tif: "))

        handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(collect)
        libtiff.TIFFSetWarningHandler(None)
        libtiff.TIFFSetErrorHandler(handler)
        return handler  # kept, or libtiff would call what is gone


def _opened(file: BinaryIO, limit: int) -> ImageFile:
    """A picture of which only the header has been read."""
    file.seek(0)
    beginning = file.read(32)
    if not beginning:
        raise ImageError("empty file", NOT_A_PICTURE)
    if beginning.startswith(b"GIF8"):
        BUDGET.take(BUDGET.total)  # Pillow may fill a whole frame when it opens one
    if Image.MAX_IMAGE_PIXELS and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # Pillow's own limit, which holds for what it does before it tells the size
    try:
        return _pillow(_identified, file, beginning, limit)
    except UnidentifiedImageError:
        pass
    if beginning[4:8] == b"ftyp" and beginning[8:12] in HEIC and "HEIF" not in Image.OPEN:
        _read_heic()
        return _opened(file, limit)
    raise _Damaged(*_what_it_is(beginning))


def _identified(file: BinaryIO, beginning: bytes, limit: int) -> ImageFile:
    try:
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError:
        if not beginning.startswith(b"\xff\xd8"):
            raise ImageError(f"more pixels than the limit of {limit} (--max-pixels)", TOO_LARGE) from None
        file.seek(0)
        image = JpegImagePlugin.jpeg_factory(file)  # of which a fraction may be decoded
    if isinstance(image, TiffImagePlugin.TiffImageFile) and (page := _page(image)) is not None:
        image = Image.open(file, formats=["TIFF"])
        image.seek(page)
    return image


def _what_it_is(beginning: bytes) -> tuple[str, str]:
    """Why a file is not read, by its first bytes, and the kind of that error."""
    brand = beginning[8:12]
    if beginning.startswith(RAW) or beginning[8:10] == b"CR":
        return "a RAW photo, which is not read", NOT_SUPPORTED
    if beginning[4:8] == b"ftyp":
        if brand in HEIC:
            return "HEIC of a kind that pillow-heif does not read", NOT_SUPPORTED
        if brand in (b"avif", b"avis"):
            return "AVIF, damaged or of a kind that this Pillow does not read", NOT_SUPPORTED
        if brand == b"crx ":
            return "a RAW photo, which is not read", NOT_SUPPORTED
        return "a video, not a picture", NOT_A_PICTURE
    if beginning[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a TIFF that is damaged or of a kind that Pillow does not read", DAMAGED
    for known, kind in ((UNSUPPORTED, NOT_SUPPORTED), (NO_PICTURES, NOT_A_PICTURE)):
        for start, what in known.items():
            if beginning.startswith(start):
                return what, kind
    return "not a picture in a known format", NOT_A_PICTURE


def _page(image: TiffImagePlugin.TiffImageFile) -> int | None:
    """Number of a TIFF's largest page that is not marked as a thumbnail, the first of several; None if it has one."""
    best, largest, several = None, 0, getattr(image, "is_animated", False)
    for page in range(MAX_PAGES if several else 1):
        try:
            image.seek(page)
        except EOFError:
            break
        except (OSError, TypeError, *DECODER_ERRORS):
            if image.tag_v2.get(PHOTOMETRIC) in SENSOR_DATA:
                best = None
            break
        tags, pixels = image.tag_v2, image.width * image.height
        # Bit 0 marks a smaller version of another page, bit 2 a mask of one.
        reduced = tags.get(SUBFILE_TYPE, 0) & 5 or tags.get(OLD_SUBFILE_TYPE) == 2
        if not reduced and pixels > largest:
            best, largest = page, pixels
    if best is None:
        raise ImageError("a RAW photo, of which only a thumbnail could be read", NOT_SUPPORTED)
    return best if several else None


def _in_one_scan(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether the first scan of a JPEG, whose header Pillow has just read, holds all of it."""
    if "progressive" in image.info or image.fp is None:
        return False
    start = b"\xff\xda\0" + bytes([6 + 2 * image.layers, image.layers])
    image.fp.seek(-len(start) - 3 - 2 * image.layers, io.SEEK_CUR)
    return image.fp.read(len(start)) == start


def _coefficients(image: JpegImagePlugin.JpegImageFile, pixels: int) -> int:
    """Bytes that libjpeg keeps of all of a JPEG, at whatever fraction, where no scan of it holds all components."""
    across, down = (max(each[i] for each in image.layer) for i in (1, 2))
    return sum(2 * pixels * each[1] * each[2] for each in image.layer) // max(1, across * down)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where metadata is damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of whatever kind: a call of Pillow alone
        return 1
    return value if isinstance(value, int) else 1


def _without_metadata(file: BinaryIO) -> BinaryIO | None:
    """A PNG or AVIF without the metadata that Pillow may fail on; None for other files."""
    file.seek(0)
    content = file.read(32)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        content += file.read()
        kept, at = [content[:8]], 8
        while at + 12 <= len(content):
            (length,) = struct.unpack_from(">I", content, at)
            chunk, at = content[at : at + 12 + length], at + 12 + length
            whole = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
            if chunk[4:8] in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (chunk[4:8] in (b"tRNS", b"eXIf") and whole):
                kept.append(chunk)
        bare = b"".join(kept)
    elif content[4:12] in (b"ftypavif", b"ftypavis"):
        content += file.read()
        bare = content.replace(b"Exif", b"skip", 8)  # the type of an item, which decoders then pass over
    else:
        return None
    return io.BytesIO(bare) if bare != content else None


def _read_heic() -> None:
    """Register HEIC with Pillow."""
    try:
        import pillow_heif
    except ImportError:
        raise ImageError("HEIC, which pillow-heif reads: pip install pillow-heif", NOT_SUPPORTED) from None
    pillow_heif.register_heif_opener()
    if "HEIF" not in Image.OPEN:  # or whoever asked would ask for ever
        raise ImageError("HEIC, which this pillow-heif does not read", NOT_SUPPORTED)


def square(image: Image.Image, size: int, whole: bool = False) -> Image.Image:
    """Central square of an RGB image, scaled to ``size`` × ``size`` pixels with antialiasing.

    ``whole`` keeps all of the image instead, in the middle of a square that is black elsewhere.
    """
    width, height = image.size
    if whole and width != height:
        scale = size / max(width, height)
        shape = max(1, round(width * scale)), max(1, round(height * scale))
        framed = Image.new("RGB", (size, size))
        inner = image.resize(shape, Image.Resampling.BILINEAR, reducing_gap=2.0)
        framed.paste(inner, ((size - shape[0]) // 2, (size - shape[1]) // 2))
        return framed
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if (width, height) == (size, size):
        return image
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def decode(path: StrPath | BinaryIO, size: int, whole: bool = False) -> np.ndarray:
    """``open_rgb`` as an array: uint8, shape ``[size, size, 3]``, RGB."""
    return np.asarray(open_rgb(path, size, whole=whole))


class Frame(NamedTuple):
    """Size and framing of a network's input: a square of ``size`` pixels, of the centre or of the ``whole`` picture."""

    size: int
    whole: bool = False


def decode_frames(
    path: StrPath | BinaryIO, wanted: Sequence[Frame], *, max_pixels: int | None = None
) -> list[np.ndarray]:
    """``decode`` in several frames of one decoded picture, the largest first in ``wanted``."""
    largest = wanted[0].size
    size, long_side = (None, 2 * largest) if any(frame.whole for frame in wanted) else (largest, None)
    return frames(open_rgb(path, size, long_side=long_side, max_pixels=max_pixels), wanted)


def frames(image: Image.Image, wanted: Sequence[Frame]) -> list[np.ndarray]:
    """An RGB image in several frames, the largest first in ``wanted``: uint8 ``[size, size, 3]`` each."""
    if any(frame.whole for frame in wanted):
        return [np.asarray(square(image, *frame)) for frame in wanted]
    # Each but the first from the first, which is far smaller than a photo.
    largest = square(image, wanted[0].size)
    return [np.asarray(largest), *(np.asarray(square(largest, frame.size)) for frame in wanted[1:])]


def decode_all(paths: Sequence[str], size: int, whole: bool = False) -> np.ndarray:
    """``decode`` for many files: uint8, shape ``[n, size, size, 3]``; an ImageError names the file."""
    decoded = np.empty((len(paths), size, size, 3), np.uint8)
    for number, path in enumerate(paths):
        try:
            decoded[number] = decode(path, size, whole)
        except ImageError as error:
            raise ImageError(f"{path}: {error} (leave it out: data.usable(data.scan(manifest)))", error.kind) from None
    return decoded


def upright(image: Image.Image, factor: int = 1) -> Image.Image:
    """A decoded picture as ``open_rgb`` gives it, the right way up, scaled down by a whole factor."""
    turn, rgb = TURNS.get(_orientation(image)), _to_rgb(image, factor)
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(image: Image.Image, factor: int = 1) -> Image.Image:
    """A decoded picture as RGB, scaled down by a whole factor; converted in strips, so that no copies pile up."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.reduce(factor) if factor > 1 else image
    levels = _levels(image) if image.mode[0] in "IF" else None
    rows = max(1, STRIP // (image.width * factor)) * factor
    rgb = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))) if rows < image.height else image
        strip = _strip_to_rgb(strip, levels)
        rgb.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return rgb


def _strip_to_rgb(image: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    if levels:
        black, white = levels
        grey = (_numbers(image) - black) * (255 / (white - black))
        return Image.fromarray(np.clip(grey, 0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def _numbers(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.dtype == np.int32 and _declared(image)[0] > 2**31:
        pixels = pixels.view(np.uint32)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(pixels.astype(np.float64), posinf=0, neginf=0)


def _levels(image: Image.Image) -> tuple[float, float]:
    """The numbers that are black and white in a picture of more than 8 bits, or of floats.

    Black is 0 and white the largest number that the file's bits can hold, 1 for floats. Where the brightest pixels
    (all but a thousandth are darker) are over that, or below a sixteenth of it, white is the smallest of ``SCALES``
    that holds them, or the brightest themselves where they are below a sixteenth of that too. Where the darkest are
    negative, by more than a sixteenth of the brightest, black is the darkest and white the brightest. A TIFF whose
    zero is white is the other way round.
    """
    shape = min(image.width, 1000), min(image.height, 1000)
    sample = _numbers(image if shape == image.size else image.resize(shape, Image.Resampling.NEAREST))
    darkest, brightest = np.percentile(sample, (0.1, 99.9))
    declared, inverted = _declared(image)
    black, white = 0.0, float(declared)
    if darkest < min(0, -brightest / 16):
        black, white = darkest, max(brightest, darkest + 1e-9)
    elif brightest > 0 and not declared / 16 <= brightest <= declared:
        white = next((scale for scale in SCALES if brightest <= scale), brightest)
        if white > 16 * brightest:
            white = brightest
    return (white, black) if inverted else (black, white)


def _declared(image: Image.Image) -> tuple[float, bool]:
    """The largest number that a file's samples can be, and whether zero is white."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:  # Pillow widens the samples of other formats to 16 bits
        return 1 if image.mode == "F" else 2**16 - 1, False
    bits, kind = tags.get(BITS, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0]
    return 1 if kind == 3 else 2 ** (bits - (kind == 2)) - 1, tags.get(PHOTOMETRIC, 0) == 0


def _hardly_used(image: Image.Image) -> bool:
    """Whether a picture of 16-bit samples, of which Pillow keeps the upper 8, is nothing below a sixteenth of them."""
    colours = len([band for band in image.getbands() if band not in "Aa"])
    counts = np.reshape(image.histogram(), (-1, 256))[:colours]
    return bool(counts[:, 16:].sum() <= counts.sum() / 1000)
