"""The HTML page of a run: thumbnails, filters and histograms in one file that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from faces import finding, images
from faces.files import atomic_write
from faces.predict import printable

MAX_FACES = 5000  # with a thumbnail on a page; browsers grow slow beyond
SIDE = 112  # of a thumbnail, pixels
PAGE = Path(__file__).with_name("report.html")


def write(
    records: Iterable[tuple[str, dict]],
    path: str | os.PathLike,
    *,
    folder: str | os.PathLike,
    tasks: list[str],
    ages: Iterable[str] = (),
    most: int = MAX_FACES,
) -> int:
    """Write the page atomically.

    Parameters
    ----------
    records : iterable of (str, dict)
        Names and records as ``faces.outputs.Journal`` has them.
    path, folder : path
        Of the page, and of the pictures.
    tasks, ages : list of str
        All tasks, and those that answer in years.
    most : int
        Faces that are shown; the rest is counted.

    Returns
    -------
    int
        Number of faces shown.
    """
    before, after = PAGE.read_text(encoding="utf-8").split("<!-- faces -->")
    shown = left = pictures = 0
    with atomic_write(path, errors="backslashreplace") as file:
        file.write(before)
        for name, record in records:
            pictures += 1
            faces = record["faces"] or [{}]
            wanted = faces[: max(0, most - shown)]
            left += len(faces) - len(wanted)
            for face, thumbnail in zip(wanted, _thumbnails(os.path.join(folder, name), wanted), strict=True):  # noqa: PTH118
                file.write(_figure(name, face, thumbnail, tasks))
                shown += 1
        facts = {
            "about": {"tasks": tasks, "ages": list(ages)},
            "counts": {"pictures": pictures, "shown": shown, "left": left},
        }
        for name, value in facts.items():
            after = after.replace(f"/* {name} */{{}}", _for_script(value))
        file.write(after)
    return shown


def _for_script(value) -> str:
    return json.dumps(value).replace("<", "\\u003c")


def _figure(name: str, face: dict, thumbnail: str, tasks: list[str]) -> str:
    keys = [key for task in tasks for key in (task, f"{task}_probability", f"{task}_interval") if key in face]
    facts = html.escape(json.dumps({key: face[key] for key in keys}), quote=True)
    caption = ", ".join(_caption(face, task) for task in tasks if task in face) or "no face"
    shown = html.escape(printable(name), quote=True)
    picture = f'<img loading="lazy" src="{thumbnail}" alt="">' if thumbnail else '<span class="gone">gone</span>'
    return (
        f'<figure data-facts="{facts}" title="{shown}">{picture}'
        f"<figcaption><b>{html.escape(caption)}</b><br>{shown}</figcaption></figure>\n"
    )


def _caption(face: dict, task: str) -> str:
    if f"{task}_interval" in face:
        return "{:.0f} ({}–{})".format(face[task], *face[f"{task}_interval"])
    return f"{face[task]} {face[f'{task}_probability']:.0%}" if f"{task}_probability" in face else str(face[task])


def _thumbnails(path: str, faces: list[dict]) -> list[str]:
    """Data URIs of the faces of one picture; empty if it is no longer readable."""
    if not faces:
        return []
    try:
        picture = images.open_rgb(path, long_side=1000)
        full = images.picture_size(path)
    except (images.ImageError, OSError):
        return [""] * len(faces)
    scale, made = max(picture.size) / max(full), []
    for face in faces:
        if "box" in face:
            left, top, right, bottom = (edge * scale for edge in face["box"])
            place = finding.margin(finding.Face(left, top, right, bottom))
            small = finding.cut(picture, place, SIDE)
        else:
            small = picture.copy()
            small.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
        content = io.BytesIO()
        small.save(content, "JPEG", quality=80)
        made.append("data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode())
    return made
