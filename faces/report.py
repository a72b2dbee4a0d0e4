"""The HTML page of a run: thumbnails, filters and histograms, which needs no network.

A page that is opened from the disk may load scripts and images but no data, so ``report.html`` has a folder
``report_files`` beside it: a script with a row for each photo, and a thumbnail of each face.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_from_bytes

from PIL import Image

from faces import finding, images
from faces.files import Record, StrPath, atomic_write
from faces.outputs import escaped
from faces.pipeline import ordered

MAX_FACES = 200_000  # with a row and a thumbnail; browsers grow slow beyond
SIDE = 160  # of a thumbnail, pixels
LONGEST = 4000  # pixels: the long side at which a photo with a small face is decoded, at most
PER_FOLDER = 1000  # thumbnails
THUMBNAILS = "face_thumbnails"  # folder that files.find_files passes over
PAGE = Path(__file__).with_name("report.html")


def write(
    records: Iterable[tuple[str, Record]],
    path: StrPath,
    *,
    folder: StrPath,
    tasks: list[str],
    ages: Iterable[str] = (),
    most: int = MAX_FACES,
) -> int:
    """Write the page, and rows and thumbnails into a folder beside it.

    An earlier page of that name stays whole until the new one is.

    Parameters
    ----------
    records : iterable of (str, dict)
        Names and records as ``faces.outputs.Journal`` has them.
    path, folder : path
        Of the page, and of the pictures.
    tasks, ages : list of str
        All tasks, and those that answer in years.
    most : int
        Faces (and pictures without a face) that are shown; the rest is counted.

    Returns
    -------
    int
        Number of faces and of pictures without a face that are shown.

    Raises
    ------
    OSError
        The page or a file beside it cannot be written.
    """
    path = Path(path)
    home = path.with_name(f"{path.stem}_files") / THUMBNAILS
    place = home / secrets.token_hex(4)
    place.mkdir(parents=True)
    counts: Counter[str] = Counter(pictures=0, faces=0, without=0, shown=0)
    make = partial(_row, os.fspath(folder), place, tasks)
    threads = os.cpu_count() or 1
    try:
        with ThreadPoolExecutor(threads) as pool, (place / "rows.js").open("w", encoding="utf-8") as file:
            file.write("const rows = [\n")
            rows = ordered(pool, make, _shown(records, most, counts), ahead=2 * threads)
            for row in rows:
                file.write(json.dumps(row, separators=(",", ":")) + ",\n")
            file.write("];\n")
        about: dict[str, Any] = {"tasks": tasks, "ages": list(ages), "counts": dict(counts), "perFolder": PER_FOLDER}
        about |= {"photos": _address(folder, path.parent), "files": _quoted(os.fspath(place.relative_to(path.parent)))}
        page = PAGE.read_text(encoding="utf-8").replace("FILES", about["files"])
        with atomic_write(path) as file:
            file.write(page.replace("/* about */ {}", json.dumps(about).replace("<", "\\u003c")))
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    for earlier in home.iterdir():
        if earlier != place:
            shutil.rmtree(earlier, ignore_errors=True)
    return counts["shown"]


def _shown(
    records: Iterable[tuple[str, Record]], most: int, counts: Counter[str]
) -> Iterator[tuple[str, list[Record], int]]:
    """Name, faces and number of the first thumbnail of what is shown; all is counted."""
    for name, record in records:
        faces, first = record["faces"], counts["shown"]
        counts.update(pictures=1, faces=len(faces), without=not faces)
        if first < most:
            counts["shown"] += min(len(faces) or 1, most - first)
            yield name, faces[: most - first], first


def _row(folder: str, place: Path, tasks: list[str], shown: tuple[str, list[Record], int]) -> list[Any]:
    """A photo as the page reads it: name, faces, number of its first thumbnail (-1: none), address if not the name."""
    name, faces, first = shown
    thumbnails = _thumbnails(os.path.join(folder, name), faces)  # noqa: PTH118 (name may be absolute)
    for number, thumbnail in enumerate(thumbnails, first):
        target = place / str(number // PER_FOLDER) / f"{number}.jpg"
        target.parent.mkdir(exist_ok=True)
        thumbnail.save(target, "JPEG", quality=80)
    row = [escaped(name), [_face(face, tasks) for face in faces], first if thumbnails else -1]
    address = Path(name).absolute().as_uri() if os.path.isabs(name) else _quoted(name)  # noqa: PTH117
    return row if address == quote(escaped(name)) else [*row, address]


def _face(face: Record, tasks: list[str]) -> list[Any]:
    """An answer a task, [label, probability] or [years, low, high]; then the box, if there is one."""
    answers = [
        [face[task], *face.get(f"{task}_interval", [face.get(f"{task}_probability")])] if task in face else None
        for task in tasks
    ]
    return answers + ([face["box"]] if "box" in face else [])


def _quoted(path: str) -> str:
    return quote_from_bytes(os.fsencode(path.replace(os.sep, "/")))


def _address(folder: StrPath, start: Path) -> str:
    """The folder of the photos as the page refers to it, ending in a slash."""
    with suppress(ValueError):  # on another drive of Windows
        return _quoted(os.path.relpath(os.fspath(folder) or ".", os.fspath(start) or ".")) + "/"
    return Path(folder).absolute().as_uri() + "/"


def _thumbnails(path: str, faces: list[Record]) -> list[Image.Image]:
    """Of the faces of one picture, or of one without; empty if it is no longer readable."""
    boxes = [finding.Face(*face["box"]) for face in faces if "box" in face]
    try:
        full = max(images.picture_size(path))
        wanted = max([full * SIDE / max(box.side, 1) for box in boxes], default=2 * SIDE)
        picture = images.open_rgb(path, long_side=int(min(wanted, LONGEST)))
    except (images.ImageError, OSError):
        return []
    scale, made = max(picture.size) / full, []
    for face in faces or [{}]:
        if "box" in face:
            place = finding.margin(finding.Face(*(edge * scale for edge in face["box"])))
            made.append(finding.cut(picture, place, SIDE))
        else:
            made.append(picture.copy())
            made[-1].thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return made
