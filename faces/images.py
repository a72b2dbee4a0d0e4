"""Open any picture as the right-way-up RGB square that the networks were trained on.

Shared by the runtime and by research, so that a photo is decoded in one way only:
what the network saw in training is what ``process.py`` shows it. Needs numpy and Pillow.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Files that desktops leave in folders; they are nobody's photos and nobody's errors.
LITTER = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".localized", ".directory", ".picasa.ini", "icon\r"}
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SUFFIXES |= {".avif", ".heic", ".heif"}
HEIC = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}  # brands, from the 9th byte on
ORIENTATION = 0x0112  # the EXIF tag
MAX_PIXELS = 150_000_000  # a 150-megapixel camera frame; more is taken for a decompression bomb

# Pillow warns of large pictures and odd metadata; what matters of it is decided below. Set once and for all, since
# warnings.catch_warnings is not safe among the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(ValueError):
    """A file could not be read as a picture; the message says why, without the file's name."""


def is_litter(name: str) -> bool:
    """True for the files that an operating system strews (``.DS_Store``, ``._photo.jpg``, ``Thumbs.db``)."""
    return name.lower() in LITTER or name.startswith("._")


def open_rgb(
    path: str | os.PathLike | BinaryIO,
    size: int | None = None,
    *,
    whole: bool = False,
    least: int | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """Open a picture as 8-bit RGB, the right way up.

    Parameters
    ----------
    path : of a file in any format that Pillow reads, or HEIC where pillow-heif is installed, or such a file opened for
        reading; of an animation, the first frame.
    max_pixels : that it may have, default ``MAX_PIXELS``; more is refused before it is decoded.
    size : where only a ``size`` × ``size`` square is wanted in the end. The picture is then cut to its
        central square and scaled down to it with antialiasing; JPEGs are decoded at a fraction of
        their size where that is enough (at least twice ``size``), which is many times faster.
    whole : keep all of the picture in that square, between black edges, and not its centre only.
    least : where not more detail is wanted than a long side of so many pixels shows; the whole picture comes back, a
        large JPEG at the smallest fraction of its size that has as many.

    Returns
    -------
    PIL.Image.Image, mode RGB. EXIF orientation is applied, transparency is laid on white, CMYK,
    grey, palette and 16-bit pictures are converted.

    Raises
    ------
    ImageError : not a picture, truncated, damaged, empty, gone, or of more pixels than ``max_pixels``.
    """
    try:
        with Image.open(path) as image:
            most = MAX_PIXELS if max_pixels is None else max_pixels
            if image.width * image.height > most:
                raise ImageError(f"{image.width}x{image.height} pixels is over the limit of {most}")
            if image.format == "EPS":
                raise ImageError("a PostScript program, not a picture")  # Pillow would have Ghostscript run it
            if whole and size:
                least = 2 * size
            if size and not whole:
                image.draft("RGB", (2 * size, 2 * size))
            elif least:
                scale = min(1.0, least / max(image.size))
                image.draft("RGB", (round(image.width * scale), round(image.height * scale)))
            image.load()
            if image.getexif().get(ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            rgb = _to_rgb(image)
            return square(rgb, size, whole) if size else rgb
    except ImageError:
        raise
    except UnidentifiedImageError:
        beginning = _beginning(path)
        if beginning[4:8] == b"ftyp" and beginning[8:12] in HEIC and "HEIF" not in Image.OPEN:
            _read_heic()
            return open_rgb(path, size, whole=whole, least=least, max_pixels=max_pixels)
        raise ImageError("not a picture in a known format" if beginning else "empty file") from None
    except Image.DecompressionBombError as error:
        raise ImageError(str(error)) from None
    except MemoryError:
        raise ImageError("too large for this machine's memory") from None
    except OSError as error:
        raise ImageError(error.strerror or str(error) or type(error).__name__) from None
    except Exception as error:  # Pillow's decoders meet hostile bytes with many kinds of exception
        raise ImageError(f"damaged picture ({type(error).__name__}: {error})") from None


def _beginning(path: str | os.PathLike | BinaryIO) -> bytes:
    if hasattr(path, "seek"):
        path.seek(0)
        beginning = path.read(12)
        path.seek(0)
        return beginning
    with Path(path).open("rb") as file:
        return file.read(12)


def _read_heic() -> None:
    """Have Pillow read HEIC from now on."""
    try:
        import pillow_heif
    except ImportError:
        raise ImageError("HEIC, which pillow-heif reads: pip install pillow-heif") from None
    pillow_heif.register_heif_opener()
    if "HEIF" not in Image.OPEN:  # or whoever asked would ask for ever
        raise ImageError("HEIC, which this pillow-heif does not read")


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


def decode(path: str | os.PathLike, size: int, whole: bool = False) -> np.ndarray:
    """``open_rgb`` as an array: uint8, shape ``[size, size, 3]``, RGB."""
    return np.asarray(open_rgb(path, size, whole=whole))


class Frame(NamedTuple):
    """How a network wants a picture: as a square of ``size`` pixels, of its centre or of the ``whole`` of it."""

    size: int
    whole: bool = False


def decode_frames(
    path: str | os.PathLike | BinaryIO, wanted: Sequence[Frame], *, max_pixels: int | None = None
) -> list[np.ndarray]:
    """``decode`` in several frames of one decoded picture, the largest first in ``wanted``."""
    largest = wanted[0].size
    detail = {"least": 2 * largest} if any(frame.whole for frame in wanted) else {"size": largest}
    return frames(open_rgb(path, **detail, max_pixels=max_pixels), wanted)


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
            raise ImageError(f"{path}: {error} (leave it out: data.usable(data.scan(manifest)))") from None
    return decoded


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """Grey values of 16-bit, 32-bit or float pictures as uint8.

    Up to 255 they are taken as they are (a float picture up to 1 as a fraction), up to 65,535 as 16-bit,
    above that as 32-bit: Pillow's own conversion would clip all of them to white.
    """
    pixels = np.nan_to_num(pixels, posinf=0, neginf=0)
    if pixels.dtype.kind == "f" and pixels.max(initial=0) <= 1:
        scale = 1 / 255
    elif pixels.dtype.newbyteorder("=") == np.uint16 or 255 < pixels.max(initial=0) <= 65_535:
        scale = 257
    else:
        scale = 1 if pixels.max(initial=0) <= 255 else 2**24
    return np.clip(pixels / scale, 0, 255).round().astype(np.uint8)
