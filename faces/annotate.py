"""Draw faces' boxes and answers into a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import BinaryIO

from PIL import Image, ImageDraw, ImageFont

from faces import images
from faces.files import Record

# Okabe and Ito's colours, told apart by colour-blind readers too; black and grey are left out.
PALETTE = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#0072b2", "#d55e00")
OTHER = "#d0d0d0"  # of ages, of "unknown", and where there is no face
SMALLEST = 480  # pixels of the long side; smaller pictures are enlarged, so that text is readable
LONG_SIDE = 32_767  # of a decoded picture; it has less than twice as many pixels, and a JPEG at most 65,535
NO_FACE = "no face"

Box = tuple[float, float, float, float]


def opened(source: str | BinaryIO, long_side: int = LONG_SIDE) -> tuple[Image.Image, float]:
    """A picture, as ``images.open_rgb`` scales it down, and its size over that of the file's."""
    picture = images.open_rgb(source, long_side=long_side)
    full = picture.size
    with suppress(images.ImageError):  # metadata that Pillow fails on, and that open_rgb reads without
        full = images.picture_size(source)
    return picture, max(picture.size) / max(full)


def caption(face: Record, tasks: Iterable[str]) -> str:
    """The answers about a face, one a line: "female 98%", "34 (27-42)"."""
    return "\n".join(_answer(face, task) for task in tasks if task in face)


def _answer(face: Record, task: str) -> str:
    if f"{task}_interval" in face:
        return "{:.0f} ({}-{})".format(face[task], *face[f"{task}_interval"])  # the font knows no dash
    return f"{face[task].replace('_', ' ')} {face[f'{task}_probability']:.0%}"


def draw(
    picture: Image.Image, scale: float, faces: Sequence[Record], *, tasks: Sequence[str], labels: Sequence[str] = ()
) -> Image.Image:
    """A copy of a picture with a box around each face and its answers on a plate beside it.

    Parameters
    ----------
    picture : PIL.Image.Image, mode RGB
    scale : float
        Size of ``picture`` over that of the picture to which the boxes refer.
    faces : sequence of mapping
        As ``pipeline.to_record`` gives them; one without a box is taken as the whole picture.
    tasks : sequence of str
        Whose answers are written; the first one's label decides the colour.
    labels : sequence of str
        Labels of the first task, in the order of ``PALETTE``.

    Returns
    -------
    PIL.Image.Image
        A picture whose long side is below ``SMALLEST`` pixels comes back enlarged.
    """
    factor = max(1.0, SMALLEST / max(picture.size))
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    canvas = picture.resize(size, Image.Resampling.BICUBIC) if factor > 1 else picture.copy()
    pen = ImageDraw.Draw(canvas)
    boxes = [[edge * scale * factor for edge in face["box"]] if "box" in face else None for face in faces]
    colours = dict(zip(labels, PALETTE * len(labels), strict=False))
    shown = [(colours.get(face.get(tasks[0], ""), OTHER), caption(face, tasks)) for face in faces]
    for box, (colour, _) in zip(boxes, shown, strict=True):
        if box:  # a dark edge on either side makes the line visible on any background
            width = max(2, round(min(max(size) / 300, (box[2] - box[0]) / 25)))
            pen.rectangle(_within(box, size), outline="black", width=width + 2)
            pen.rectangle(_within([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], size), outline=colour, width=width)
    taken: list[Box] = []
    for box, (colour, text) in zip(boxes or [None], shown or [(OTHER, NO_FACE)], strict=True):
        taken.append(_plate(pen, text, box, colour, size, taken))
    return canvas


def _within(box: Sequence[float], size: Sequence[int]) -> Box:
    left, top = (min(max(0, box[i]), size[i] - 2) for i in (0, 1))
    return left, top, max(left + 1, min(box[2], size[0] - 1)), max(top + 1, min(box[3], size[1] - 1))


@lru_cache(maxsize=32)
def _font(height: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(height)


def _plate(
    pen: ImageDraw.ImageDraw, text: str, box: Sequence[float] | None, colour: str, size: Sequence[int], taken: list[Box]
) -> Box:
    """Write a text on a filled plate at a box, or in the corner; returns the plate's edges."""
    side = max(box[2] - box[0], box[3] - box[1]) if box else max(size)
    height = round(min(max(side / 7, max(size) / 150, 11), max(size) / 32))
    while True:
        font, pad = _font(height), max(2, height // 5)
        _, _, right, bottom = pen.multiline_textbbox((0, 0), text, font=font, spacing=pad)
        width, tall = right + 2 * pad, bottom + 2 * pad
        if height <= 8 or (width <= size[0] and tall <= size[1]):
            break
        height -= 1
    left, top = max(0.0, min(box[0] if box else 0.0, size[0] - width)), 0.0
    if box:  # above the box, below it, within it: the first place that is in the picture and free
        places = (box[1] - tall, box[3], box[1], box[3] - tall)
        fits = [at for at in places if 0 <= at <= size[1] - tall]
        free = [at for at in fits if not any(_overlap((left, at, left + width, at + tall), each) for each in taken)]
        top = [*free, *fits, max(0.0, min(box[1], size[1] - tall))][0]
    plate = (left, top, left + width - 1, top + tall - 1)
    pen.rectangle(plate, fill=colour, outline="black")
    pen.multiline_text((left + pad, top + pad), text, fill=_ink(colour), font=font, spacing=pad)
    return plate


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _ink(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 95 else "white"
