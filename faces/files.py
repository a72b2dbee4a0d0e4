"""Files listed, and written whole or not at all: shared by the runtime and by research; standard library only."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]
Record: TypeAlias = dict[str, Any]  # what is known of a file or a face, see ``faces.outputs``

# Files that desktops leave in folders; they are neither photos nor errors.
LITTER = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".localized", ".directory", ".picasa.ini", "icon\r"}
# Folders that systems make among people's photos: previews, recycle bins, copies.
MACHINE_FOLDERS = {"@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot", "__macosx"}
MACHINE_FOLDERS |= {"$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "lost.dir"}
MACHINE_FOLDERS |= {"lost+found", "__pycache__", "network trash folder", "temporary items", "ipod photo cache"}
MACHINE_FOLDERS |= {"face_thumbnails"}  # beside the page of faces.report
NAMES_IN_MEMORY = 100_000  # of one folder


def is_litter(name: str) -> bool:
    """Whether an operating system made this file (``.DS_Store``, ``._photo.jpg``, ``Thumbs.db``)."""
    return name.lower() in LITTER or name.startswith("._")


def find_files(folder: StrPath, *, recursive: bool = False) -> Iterator[str]:
    """Names of the files in a folder, sorted.

    Every file counts, whatever its name, except those of operating systems (``.DS_Store``, ``Thumbs.db``). Of a folder
    with more than ``NAMES_IN_MEMORY`` files each so many are sorted.

    Parameters
    ----------
    folder : path
    recursive : bool, default False
        Also the files below, as paths with forward slashes. Folders of systems (``@eaDir``, ``__MACOSX``) are passed
        over. Links to folders are followed to what no other way leads to: each folder is listed once. A folder that
        cannot be listed is yielded itself, as "name/", to be reported.
    """
    return _find_files(Path(folder), "", recursive, Path(os.path.realpath(folder)), set())


def _find_files(top: Path, below: str, recursive: bool, real: Path, linked: set[Path]) -> Iterator[str]:
    """``find_files`` of the folder ``below`` the ``top`` one; ``linked`` are the folders that links led to so far."""
    with os.scandir(top / below) as entries:
        # A folder sorts as "name/", which makes this walk yield whole paths in plain string order.
        found = (
            (entry.name + "/" * directory, directory)
            for entry in entries
            for directory in [_is_folder(entry)]
            if not (entry.name.lower() in MACHINE_FOLDERS if directory else is_litter(entry.name))
        )
        while part := sorted(islice(found, NAMES_IN_MEMORY)):
            for name, directory in part:
                if not directory:
                    yield below + name
                elif recursive and _is_new(top / below / name, real / below / name, real, linked):
                    try:
                        yield from _find_files(top, below + name, True, real, linked)
                    except OSError:
                        yield below + name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to a place without permission: reported when it is read
        return False


def _is_new(folder: Path, place: Path, top: Path, linked: set[Path]) -> bool:
    """Whether to list a folder: below ``top`` at its own ``place`` only; elsewhere once."""
    real = Path(os.path.realpath(folder))
    if real == place or real in linked or real.is_relative_to(top) or top.is_relative_to(real):
        return real == place
    linked.add(real)
    return True


@contextmanager
def atomic_write(path: StrPath) -> Iterator[IO[str]]:
    """A UTF-8 text file that replaces ``path`` once it is complete; on an error the old file stays.

    Raises
    ------
    OSError
        The folder does not exist or cannot be written; it names ``path``.
    """
    path = Path(os.path.realpath(path))  # a link stays one: the file that it names is replaced
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # not the temporary name
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            yield file
        # mkstemp makes files that only their owner may read; a result is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        with suppress(OSError):  # a memory stick may know no permissions
            Path(partial).chmod(0o666 & ~umask)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def write_json(path: StrPath, content: dict[str, Any]) -> Path:
    """Write JSON that diffs well, atomically; folders are made, NaN is refused with a ValueError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path
