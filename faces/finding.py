"""Find the faces in a picture, and cut them out with the margin that the networks were trained with.

MTCNN (Zhang et al., 1604.02878) on ONNX Runtime: a first network slides over the picture at many scales, a second and
a third look at what it found more closely. Needs numpy, Pillow and onnxruntime; its two megabytes of weights lie in
``artifacts/face_finder``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from faces import images, trust

STRIDE, CELL = 2, 12  # pixels between what P-Net looks at, and how large that is
SHRINK = 0.709  # each scale of the pyramid to the next: half the area
THRESHOLDS = (0.6, 0.7, 0.8)  # of the three networks' probabilities
OVERLAP = (0.5, 0.7, 0.7, 0.7)  # above which the weaker of two boxes goes: of a scale, of all, after R-Net, after O-Net


class FinderError(Exception):
    """The face finder's networks cannot be had; the message says why."""


@dataclass(frozen=True)
class Face:
    """Where a face is: its box in pixels of the picture (edges, floats), how likely it is one, and its eyes.

    eyes : (x, y) of the eye on the left of the picture and of that on its right.
    """

    left: float
    top: float
    right: float
    bottom: float
    score: float
    eyes: tuple[tuple[float, float], tuple[float, float]]


class Finder:
    """Finds faces.

    Parameters
    ----------
    folder : holds ``pnet.onnx``, ``rnet.onnx`` and ``onet.onnx``.
    side : a larger picture is scaled down until its long side has so many pixels.
    smallest : faces below so many pixels, after that scaling, are not looked for.
    threads : of the networks' own.

    Raises
    ------
    FinderError : a network is not there, or nobody vouches for it (see ``faces.trust``).
    """

    def __init__(self, folder: str | os.PathLike, *, side: int = 640, smallest: int = 24, threads: int = 1):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        self.side, self.smallest = side, smallest
        networks = []
        for name in ("pnet", "rnet", "onet"):
            path = Path(folder) / f"{name}.onnx"
            try:
                content = trust.verified(path)
                networks.append(onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]))
            except Exception as error:  # onnxruntime raises a dozen kinds of its own
                raise FinderError(f"{path}: {' '.join(str(error).split())[:200]}") from None
        self.pnet, self.rnet, self.onet = networks

    def find(self, picture: Image.Image) -> list[Face]:
        """The faces of an RGB picture, the largest first."""
        factor = min(1.0, self.side / max(picture.size))
        size = tuple(max(1, round(edge * factor)) for edge in picture.size)
        small = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0) if factor < 1 else picture
        boxes = self._propose(small)
        boxes = self._refine(small, boxes, self.rnet, 24, THRESHOLDS[1])[0]
        boxes, points = self._refine(small, boxes, self.onet, 48, THRESHOLDS[2])
        scale = np.array(picture.size * 2) / np.array(small.size * 2)
        found = []
        for box, eyes in zip(boxes, points, strict=True):
            left, top, right, bottom = (box[:4] * scale).tolist()
            (x1, y1), (x2, y2) = sorted((eyes * scale[:2]).tolist())
            found.append(Face(left, top, right, bottom, float(box[4]), ((x1, y1), (x2, y2))))
        return sorted(found, key=lambda face: (face.left - face.right) * (face.bottom - face.top))

    def _propose(self, picture: Image.Image) -> np.ndarray:
        scale, proposed = CELL / self.smallest, [np.empty((0, 5))]
        while min(picture.size) * scale >= CELL:
            size = tuple(int(edge * scale + 1) for edge in picture.size)
            pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
            likely, edges = self.pnet.run(None, {"pixels": pixels[None]})
            rows, columns = np.nonzero(likely[0] >= THRESHOLDS[0])
            corner = np.stack([columns, rows], 1) * STRIDE
            cells = np.concatenate([(corner + 1) / scale, (corner + CELL) / scale, likely[0][rows, columns, None]], 1)
            kept = keep(cells, OVERLAP[0])
            proposed.append(_moved(cells[kept], edges[0][rows, columns][kept]))
            scale *= SHRINK
        boxes = np.concatenate(proposed)
        return boxes[keep(boxes, OVERLAP[1])]

    def _refine(self, picture, boxes, network, size, threshold) -> tuple[np.ndarray, np.ndarray]:
        if not len(boxes):
            return np.empty((0, 5)), np.empty((0, 2, 2))
        squares = _squares(boxes)
        pixels = np.stack([np.asarray(cut(picture, tuple(box), size)) for box in squares[:, :4].tolist()])
        likely, edges, *points = network.run(None, {"pixels": pixels})
        sure = likely >= threshold
        squares, edges = squares[sure], edges[sure]
        squares[:, 4] = likely[sure]
        boxes = _moved(squares, edges)
        last = bool(points)
        eyes = np.zeros((len(boxes), 2, 2))
        if last:
            shares = points[0][sure]
            corner, extent = squares[:, None, :2], (squares[:, 2:4] - squares[:, :2])[:, None]
            eyes = corner + np.stack([shares[:, [0, 1]], shares[:, [5, 6]]], 2) * extent
        kept = keep(boxes, OVERLAP[2 + last], smaller=last)
        return boxes[kept], eyes[kept]


def _moved(boxes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Boxes ``[n, 5]`` with their four edges moved by shares of their size ``[n, 4]``."""
    extent = boxes[:, 2:4] - boxes[:, :2]
    return np.concatenate([boxes[:, :4] + edges * np.tile(extent, 2), boxes[:, 4:]], 1)


def _squares(boxes: np.ndarray) -> np.ndarray:
    """The squares about the middle of each box, as wide as its longer side."""
    middle, half = (boxes[:, :2] + boxes[:, 2:4]) / 2, (boxes[:, 2:4] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.concatenate([middle - half, middle + half, boxes[:, 4:]], 1)


def keep(boxes: np.ndarray, overlap: float, *, smaller: bool = False) -> np.ndarray:
    """Which boxes ``[n, 5]`` stay when of any two that overlap the less likely goes; their numbers, likeliest first.

    Overlap is the shared area over that of both together, or with ``smaller`` over that of the smaller one, so that of
    a face within a face one stays.
    """
    left, top, right, bottom, score = boxes.T
    area, order, kept = (right - left) * (bottom - top), np.argsort(-score, kind="stable"), []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        wide = (np.minimum(right[first], right[rest]) - np.maximum(left[first], left[rest])).clip(0)
        high = (np.minimum(bottom[first], bottom[rest]) - np.maximum(top[first], top[rest])).clip(0)
        shared = wide * high
        whole = np.minimum(area[first], area[rest]) if smaller else area[first] + area[rest] - shared
        order = rest[shared <= overlap * np.maximum(whole, 1e-9)]
    return np.array(kept, int)


def cut(picture: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    """A box of a picture, which may reach beyond it (black there), scaled to ``size`` × ``size`` pixels."""
    left, top, right, bottom = box
    inside = (max(left, 0.0), max(top, 0.0), min(right, float(picture.width)), min(bottom, float(picture.height)))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return Image.new("RGB", (size, size))
    if inside == box:
        return picture.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    across, down = size / (right - left), size / (bottom - top)
    corner = (round((inside[0] - left) * across), round((inside[1] - top) * down))
    part = (
        max(1, min(size - corner[0], round((inside[2] - inside[0]) * across))),
        max(1, min(size - corner[1], round((inside[3] - inside[1]) * down))),
    )
    whole = Image.new("RGB", (size, size))
    whole.paste(picture.resize(part, Image.Resampling.BILINEAR, box=inside, reducing_gap=2.0), corner)
    return whole


# ------------------------------------------------------------------------------------------------ whole pictures

SEEN = 1000  # pixels: the long side at which faces are looked for; only where one is small is more decoded
THUMBNAIL = 160  # pixels: a picture of no longer side is taken as a crop, unless faces are to be detected in it
FALLBACK = 320  # pixels: so is one of no longer side in which no face is found
# Where the networks' training crops have their face, measured with this finder (benchmarks/face_margin.py): how many
# times longer the crop's side is than the face's (the root of its box's area), and how far the crop's middle lies below
# the face's, as a share of the face's.
MARGIN, BELOW = 1.09, 0.06
ALIKE = 0.8  # a picture whose face fills it like a training crop's, give or take so much, is taken as it is


def margin(face: Face) -> tuple[float, float, float, float]:
    """The square about a face that shows it as the networks' training crops did: left, top, right, bottom."""
    side = ((face.right - face.left) * (face.bottom - face.top)) ** 0.5
    across, down = (face.left + face.right) / 2, (face.top + face.bottom) / 2 + BELOW * side
    half = MARGIN * side / 2
    return across - half, down - half, across + half, down + half


def is_crop(faces: list[Face], width: int, height: int) -> bool:
    """Whether a picture shows its largest face like a training crop, so that its central square is as good as a cut."""
    if not faces:
        return False
    left, top, right, bottom = margin(faces[0])
    side = min(width, height)
    apart = max(abs((left + right) - width), abs((top + bottom) - height)) / 2
    return ALIKE <= (right - left) / side <= 1 / ALIKE and apart <= (1 - ALIKE) * side / 2


def look(
    path, frames: Sequence[images.Frame], finder: Finder, *, crops: bool = True, max_pixels: int | None = None
) -> tuple[list[Face | None], list[list[np.ndarray]]]:
    """The faces of a picture, and each in several frames.

    Parameters
    ----------
    path, max_pixels : as for ``images.open_rgb``.
    frames : that are wanted, the largest first. A face is cut out as a square, whichever they are.
    crops : whether a picture may be taken as a crop of one face; the face is then None.

    Returns
    -------
    The faces, boxes in pixels of the whole picture the right way up, the largest first; and for each the squares,
    uint8 ``[size, size, 3]``.

    Raises
    ------
    images.ImageError : the file is no picture that can be decoded.
    """
    largest = frames[0].size
    picture = images.open_rgb(path, least=max(SEEN, 2 * largest), max_pixels=max_pixels)
    if crops and max(picture.size) <= THUMBNAIL:
        return [None], [images.frames(picture, frames)]
    faces = finder.find(picture)
    if crops and (is_crop(faces, *picture.size) or (not faces and max(picture.size) <= FALLBACK)):
        return [None], [images.frames(picture, frames)]
    if not faces:
        return [], []
    full = images.picture_size(path)
    scale = max(full) / max(picture.size)
    shortest = min(face.right - face.left for face in faces) * MARGIN
    if scale > 1 and shortest < largest:
        # A small face in a large picture: more of its pixels are to be had.
        more = max(picture.size) * min(scale, 2 * largest / shortest)
        if hasattr(path, "seek"):
            path.seek(0)
        again = images.open_rgb(path, least=int(more), max_pixels=max_pixels)
        factor = max(again.size) / max(picture.size)
        faces, picture = [_scaled(face, factor) for face in faces], again
    squares = [[np.asarray(cut(picture, margin(face), frame.size)) for frame in frames] for face in faces]
    return [_scaled(face, max(full) / max(picture.size)) for face in faces], squares


def _scaled(face: Face, factor: float) -> Face:
    eyes = tuple((x * factor, y * factor) for x, y in face.eyes)
    return Face(face.left * factor, face.top * factor, face.right * factor, face.bottom * factor, face.score, eyes)
