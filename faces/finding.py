"""Detect the faces of a picture, and cut them out with the margin of the training crops.

The detector is YuNet (Wu, Peng and Yu, Machine Intelligence Research 20, 2023): one network of 53,104 parameters on
ONNX Runtime, see ``artifacts/face_finder``. Needs numpy, Pillow and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnxruntime
from PIL import Image

from faces import images, trust
from faces.files import StrPath

STRIDES = (8, 16, 32)  # pixels between the cells of the network's three outputs
OVERLAP = 0.45  # intersection over union above which the less likely of two boxes is dropped
LONG_SIDE = 1000  # pixels: the long side at which a picture is decoded; only for small faces it is decoded at more
SIDE = 640  # pixels: the long side to which larger pictures are scaled down
SMALL = 224  # pixels: the long side to which smaller pictures are enlarged, which finds more faces and fewer false ones
RELIABLE = 18  # pixels of a face: 42 of 43 portraits are found at this size; at 14 pixels 34, at 12 21, at 10 6
LARGEST = 4096  # pixels: the long side is never larger, whatever min_face asks for, which bounds the memory
MIN_SCORE = 0.6


class DetectorError(Exception):
    """Raised if the face detector cannot be loaded; the message says why."""


@dataclass(frozen=True)
class Face:
    """A detected face.

    Attributes
    ----------
    left, top, right, bottom : float
        Edges of its bounding box in pixels of the picture.
    score : float
        Confidence of the detector, 0 to 1.
    landmarks : tuple of five (x, y)
        Right eye, left eye, nose, right and left corner of the mouth, as the person has them.
    """

    left: float
    top: float
    right: float
    bottom: float
    score: float = 1.0
    landmarks: tuple[tuple[float, float], ...] = ()

    @property
    def side(self) -> float:
        """Square root of the area of the box."""
        return float(((self.right - self.left) * (self.bottom - self.top)) ** 0.5)


class Detector:
    """Detects faces.

    Parameters
    ----------
    folder : path
        Holds ``model.onnx``.
    min_face : float, optional
        Smallest face in pixels of the picture (root of the box's area). Smaller ones are dropped, and the picture is
        scaled down no further than such a face allows. By default it is scaled to a long side of 640 pixels at
        most and nothing is dropped.
    min_score : float, default 0.6
        Lowest confidence of a face.
    threads : int, default 1
        Of the network.

    Raises
    ------
    DetectorError
        If the network is missing, damaged or not listed (see ``faces.trust``).
    """

    def __init__(
        self, folder: StrPath, *, min_face: float | None = None, min_score: float = MIN_SCORE, threads: int = 1
    ):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        self.min_face, self.min_score = min_face or 0.0, min_score
        path = Path(folder) / "model.onnx"
        try:
            content = trust.verified(path)
            self.network = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a dozen kinds of its own
            raise DetectorError(f"{path}: {' '.join(str(error).split())[:200]}") from None

    def side(self, largest: float) -> float:
        """The long side, in pixels, to which a picture of the long side ``largest`` is scaled."""
        wanted = max(SIDE, min(LARGEST, largest * RELIABLE / self.min_face)) if self.min_face else SIDE
        return min(max(largest, SMALL), wanted)

    def find(self, picture: Image.Image, scale: float = 1.0) -> list[Face]:
        """The faces of an RGB picture, the largest first.

        Parameters
        ----------
        picture : PIL.Image.Image, mode RGB
        scale : float, default 1
            Size of the original over that of ``picture``, which ``min_face`` refers to.
        """
        factor = min(self.side(max(picture.size) * scale), max(*picture.size, SMALL)) / max(picture.size)
        size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
        small = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0) if size != picture.size else picture
        pixels = np.zeros((-size[1] // 32 * -32, -size[0] // 32 * -32, 3), np.uint8)
        pixels[: size[1], : size[0]] = np.asarray(small)
        found = [np.empty((0, 15))]
        for stride, cells in zip(STRIDES, self.network.run(None, {"pixels": pixels}), strict=True):
            rows, columns = np.nonzero(cells[..., 0] >= self.min_score)
            cells, corner = cells[rows, columns].astype(float), np.stack([columns, rows], 1) * stride
            middle, half = corner + cells[:, 1:3] * stride, np.exp(cells[:, 3:5]) * stride / 2
            points = cells[:, 5:] * stride + np.tile(corner, 5)
            found.append(np.concatenate([cells[:, :1], middle - half, middle + half, points], 1))
        faces = np.concatenate(found)
        faces = faces[non_maximum_suppression(faces[:, 1:5], faces[:, 0], OVERLAP)]
        faces[:, 1:] *= np.tile(np.array(picture.size) / size, 7)
        made = [
            Face(left, top, right, bottom, score, tuple(zip(points[::2], points[1::2], strict=True)))
            for score, left, top, right, bottom, *points in faces.tolist()
        ]
        return sorted((face for face in made if face.side * scale >= self.min_face), key=lambda face: -face.side)


def non_maximum_suppression(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Indices of the boxes ``[n, 4]`` that stay, by descending score.

    Of two boxes whose intersection over union is larger than ``overlap`` the one with the lower score is dropped.
    """
    left, top, right, bottom = boxes.T
    area, order, kept = (right - left) * (bottom - top), np.argsort(-scores, kind="stable"), []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(int(first))
        wide = (np.minimum(right[first], right[rest]) - np.maximum(left[first], left[rest])).clip(0)
        high = (np.minimum(bottom[first], bottom[rest]) - np.maximum(top[first], top[rest])).clip(0)
        order = rest[wide * high <= overlap * (area[first] + area[rest] - wide * high)]
    return kept


def cut(picture: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    """A box of a picture, scaled to ``size`` × ``size`` pixels; beyond the picture its edge is repeated."""
    left, top, right, bottom = box
    inside = (max(left, 0.0), max(top, 0.0), min(right, float(picture.width)), min(bottom, float(picture.height)))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return Image.new("RGB", (size, size))
    if inside == box:
        return picture.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    across, down = size / (right - left), size / (bottom - top)
    width = max(1, min(size, round((inside[2] - inside[0]) * across)))
    height = max(1, min(size, round((inside[3] - inside[1]) * down)))
    x, y = min(round((inside[0] - left) * across), size - width), min(round((inside[1] - top) * down), size - height)
    part = picture.resize((width, height), Image.Resampling.BILINEAR, box=inside, reducing_gap=2.0)
    # The networks are right about more of the faces that the frame cuts than with black.
    beyond = ((y, size - y - height), (x, size - x - width), (0, 0))
    return Image.fromarray(np.pad(np.asarray(part), beyond, mode="edge"))


# Where training crops have their face, measured with this detector by benchmarks/face_margin.py. MARGIN: side of the
# crop over side of the face; BELOW: how far the crop's middle lies below the face's, over side of the face. Both of
# crops in a larger black picture, since the box of a face depends on what is around it.
MARGIN, BELOW = 1.06, 0.08
CROP_MARGIN = (1.0, 1.45)  # the same of crops alone: nearly all lie between these
CROP_OFFSET = 0.2  # and their middle is no further from the face's, down and across


def margin(face: Face) -> tuple[float, float, float, float]:
    """The square around a face that shows it as training crops do: left, top, right, bottom."""
    across, down = (face.left + face.right) / 2, (face.top + face.bottom) / 2 + BELOW * face.side
    half = MARGIN * face.side / 2
    return across - half, down - half, across + half, down + half


def is_crop(faces: list[Face], width: int, height: int) -> bool:
    """Whether the central square of a picture shows its largest face as training crops do."""
    if not faces:
        return False
    face = faces[0]
    offset = max(abs(face.left + face.right - width), abs(face.top + face.bottom - height)) / 2
    smallest, largest = CROP_MARGIN
    return smallest <= min(width, height) / face.side <= largest and offset <= CROP_OFFSET * face.side


def look(
    path: StrPath | BinaryIO,
    frames: Sequence[images.Frame],
    detector: Detector,
    *,
    crops: bool = True,
    max_pixels: int | None = None,
) -> tuple[list[Face | None], list[list[np.ndarray]]]:
    """Detect the faces of a picture and cut them out.

    Parameters
    ----------
    path, max_pixels
        As for ``images.open_rgb``.
    frames : sequence of Frame
        Wanted frames, the largest first. A face is cut out as a square, whichever they are.
    detector : Detector
    crops : bool, default True
        Whether a picture that shows its face as training crops do is taken as a crop; the face is then None.

    Returns
    -------
    faces : list of Face or None
        The largest first, in pixels of the whole picture the right way up.
    squares : list of lists of uint8 arrays ``[size, size, 3]``
        Each face in each frame.

    Raises
    ------
    images.ImageError
        If the file cannot be decoded.
    """
    largest = frames[0].size
    long_side = max(LONG_SIDE, 2 * largest)
    picture = images.open_rgb(path, long_side=long_side, max_pixels=max_pixels)
    full = max(picture.size)
    if full >= long_side:  # a smaller one was not scaled down
        full = max(images.picture_size(path))
    if full > max(picture.size) and detector.side(full) > max(picture.size):
        picture = _again(path, int(detector.side(full)), max_pixels)
    faces = detector.find(picture, scale=full / max(picture.size))
    if crops and is_crop(faces, *picture.size):
        return [None], [images.frames(picture, frames)]
    if not faces:
        return [], []
    scale = full / max(picture.size)
    shortest = min(face.side for face in faces) * MARGIN
    if scale > 1 and shortest < largest:
        # A small face in a large picture: decode more of its pixels.
        again = _again(path, int(max(picture.size) * min(scale, 2 * largest / shortest)), max_pixels)
        factor = max(again.size) / max(picture.size)
        faces, picture = [_scaled(face, factor) for face in faces], again
    squares = [[np.asarray(cut(picture, margin(face), frame.size)) for frame in frames] for face in faces]
    return [_scaled(face, full / max(picture.size)) for face in faces], squares


def _again(path: StrPath | BinaryIO, long_side: int, max_pixels: int | None) -> Image.Image:
    if hasattr(path, "seek"):
        path.seek(0)
    return images.open_rgb(path, long_side=long_side, max_pixels=max_pixels)


def _scaled(face: Face, factor: float) -> Face:
    left, top, right, bottom = (edge * factor for edge in (face.left, face.top, face.right, face.bottom))
    return Face(left, top, right, bottom, face.score, tuple((x * factor, y * factor) for x, y in face.landmarks))
