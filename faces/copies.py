"""Copies of labelled pictures: sorted into folders, each face alone, or with boxes and answers drawn.

Nothing is moved and no other file overwritten. A copy that is there already is not made again.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from PIL import Image

from faces import annotate, finding, images
from faces.files import Record
from faces.outputs import NO_FACE, escaped
from faces.pipeline import ordered
from faces.predict import UsageError

SEVERAL = "several"  # folder of photos whose faces belong into different ones
NAME_BYTES = 230  # of a copy, that a number fits behind it: file systems allow for 255
JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}
THREADS = 2


@dataclass(frozen=True)
class Copies:
    """What to make of each labelled picture, and where.

    Attributes
    ----------
    tasks : mapping of str to sequence of str
        Task -> its labels; none for ages.
    sort, crops, annotate : Path or None
        Folders for copies of the pictures, for the faces in them, and for copies with boxes and answers.
    by : sequence of str
        Tasks whose answers name the folders of ``sort`` and ``crops``, one below the other; ages as decades.
    link : bool
        Make hard links in ``sort``.
    root, base : str
        Folder to which the names of the pictures refer; what their copies' paths leave out of those names.
    """

    tasks: Mapping[str, tuple[str, ...]]
    sort: Path | None = None
    crops: Path | None = None
    annotate: Path | None = None
    by: tuple[str, ...] = ()
    link: bool = False
    root: str = ""
    base: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        if unknown := [task for task in self.by if task not in self.tasks]:
            raise UsageError(f"--by {unknown[0]}: no such task is asked for; there are {', '.join(self.tasks)}")

    def check_links(self, paths: Iterable[str]) -> None:
        """UsageError if files in or at some paths cannot be linked in ``sort``, as far as is known before."""
        for path in paths:
            folder = path if os.path.isdir(path) else os.path.dirname(os.path.realpath(path))  # noqa: PTH112, PTH120
            if self.sort and os.stat(folder).st_dev != self.sort.stat().st_dev:  # noqa: PTH116
                reason = "(other disk): leave --link out to copy"
                raise UsageError(f"no link from {path} to {self.sort} can be made {reason}")

    def make(self, records: Iterable[tuple[str, Record]]) -> Iterator[tuple[str, str | None]]:
        """Copy pictures, given by name and record; yields each name, and the reason if it could not be read.

        Raises
        ------
        OSError, UsageError
            A copy cannot be written, or a link cannot be made.
        """
        with ThreadPoolExecutor(THREADS, "copy") as pool:
            try:
                yield from ordered(pool, self._make, records, ahead=2 * THREADS)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _make(self, named: tuple[str, Record]) -> tuple[str, str | None]:
        name, record = named
        source = os.path.join(self.root, name)  # noqa: PTH118
        try:
            if self.sort:
                self._sort(source, self.sort / self._sorted(record["faces"]) / self._below(name))
            if self.crops or self.annotate:
                with images.BUDGET.until_done():
                    self._draw(source, name, record["faces"])
        except images.ImageError as error:
            return name, str(error)
        except OSError as error:
            if error.filename != source:
                raise
            return name, error.strerror
        return name, None

    def _below(self, name: str) -> Path:
        """Path of a picture's copy below the folder of copies."""
        with suppress(ValueError):  # another drive
            name = os.path.relpath(name, self.base) if self.base else name
        return Path(*(part for part in Path(name).parts if part != ".." and part != Path(name).anchor))

    def _folder(self, face: Record) -> str:
        return "/".join(_folder_name(face, task) for task in self.by)

    def _sorted(self, faces: Iterable[Record]) -> str:
        folders = {self._folder(face) for face in faces}
        return SEVERAL if len(folders) > 1 else next(iter(folders), NO_FACE)

    def _sort(self, source: str, target: Path) -> None:
        with open(source, "rb"):  # noqa: PTH123 (an error here is the picture's, a later one the copy's)
            pass
        write = _link if self.link else _copy
        self._write(target, lambda place: _is_copy(source, place), lambda place: write(source, place))

    def _draw(self, source: str, name: str, faces: list[Record]) -> None:
        """Make the pictures of the faces, and the one with boxes."""
        below, opened, tasks = self._below(name), cache(annotate.opened), list(self.tasks)

        def crop(face: Record) -> Image.Image:
            return _crop(*opened(source), face)

        def drawn() -> Image.Image:
            return annotate.draw(*opened(source), faces, tasks=tasks, labels=self.tasks[tasks[0]])

        for number, face in enumerate(faces if self.crops else (), 1):
            target = Path(self.crops or "", self._folder(face), below.parent, f"{below.stem}_{number}.jpg")
            self._save(target, source, name, number, [face], partial(crop, face))
        if self.annotate:
            target = self.annotate / (f"{below}" if below.suffix.lower() in JPEG else f"{below}.jpg")
            self._save(target, source, name, 0, faces, drawn)

    def _save(
        self, target: Path, source: str, name: str, number: int, faces: list[Record], make: Callable[[], Image.Image]
    ) -> None:
        """Write a JPEG whose comment says of which picture it is, and of which state of it."""
        about = os.stat(source)  # noqa: PTH116
        state = hashlib.sha256(repr((faces, self.tasks, about.st_size, about.st_mtime_ns)).encode()).hexdigest()
        # Not the path itself, which would go with every copy that is handed on.
        mark = f"faces: {hashlib.sha256(escaped(name).encode()).hexdigest()}, {number or 'all'}\n".encode()
        comment = mark + state.encode()
        self._write(
            target,
            lambda place: _is_ours(place, mark, comment),
            lambda place: make().save(place, "JPEG", quality=92, subsampling=0, comment=comment),
        )

    def _write(self, target: Path, check: Callable[[Path], bool | None], write: Callable[[Path], None]) -> None:
        """Have ``write`` make a file, under a name that is free or that of an earlier version (see ``_place``)."""
        if _place(target, check) is None:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{os.getpid()}-{threading.get_ident()}.partial")
        try:
            write(unfinished)
            with self.lock:
                if place := _place(target, check):
                    unfinished.replace(place)
        finally:
            unfinished.unlink(missing_ok=True)


def _place(target: Path, check: Callable[[Path], bool | None]) -> Path | None:
    """The first of "a.jpg", "a (2).jpg" … that is free or may be replaced; None if the copy is there already.

    ``check`` says of a file that is there whether it is this copy (True), an earlier version of it (False) or another
    file (None).
    """
    stem = target.stem
    while stem and len(os.fsencode(stem + target.suffix)) > NAME_BYTES:
        stem = stem[:-1]
    number = 0
    while True:
        number += 1
        place = target.with_name(f"{stem} ({number}){target.suffix}" if number > 1 else stem + target.suffix)
        if not os.path.lexists(place):
            return place
        if (found := check(place)) is not None:
            return None if found else place


def _is_copy(source: str, place: Path) -> bool | None:
    same = place.is_file() and (place.samefile(source) or filecmp.cmp(source, place, shallow=False))
    return True if same else None


def _is_ours(place: Path, mark: bytes, whole: bytes) -> bool | None:
    """As ``_place`` asks; a picture of ours says in its comment from which photo and answers it was made."""
    try:
        with Image.open(place) as picture:
            comment = picture.info.get("comment", b"")
    except (OSError, Image.DecompressionBombError, *images.DECODER_ERRORS):
        return None
    return comment == whole if isinstance(comment, bytes) and comment.startswith(mark) else None


def _copy(source: str, place: Path) -> None:
    shutil.copyfile(source, place)
    with suppress(OSError):  # a memory stick may know no permissions
        shutil.copystat(source, place)


def _link(source: str, place: Path) -> None:
    try:
        os.link(os.path.realpath(source), place)
    except OSError as error:
        raise UsageError(f"no link to {source} can be made ({error.strerror}): leave --link out to copy") from None


def _crop(picture: Image.Image, scale: float, face: Record) -> Image.Image:
    """The square that the networks saw, at the picture's resolution; all of a picture that was taken as a crop."""
    if "box" not in face:
        return picture
    square = finding.margin(finding.Face(*(edge * scale for edge in face["box"])))
    return finding.cut(picture, square, max(1, round(square[2] - square[0])))


def _folder_name(face: Record, task: str) -> str:
    """The answer as the name of a folder: a label, or a decade ("30-39")."""
    if f"{task}_interval" in face:
        decade = int(face[task]) // 10 * 10
        return f"{decade:02}-{decade + 9:02}"
    return re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", face[task]).strip(" .") or "_"
