"""The files that a command names: a folder, several paths, or a list from a pipe."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO

from faces.files import StrPath, find_files
from faces.images import SUFFIXES
from faces.predict import UsageError

COUNTED_BELOW = 100_000  # files of the folders below that are looked through for pictures


def find_inputs(paths: Sequence[str], *, recursive: bool = False) -> Iterator[str]:
    """Paths of the files that several paths name, each file once.

    Parameters
    ----------
    paths : sequence of str
        Files and folders. A file of a folder is the folder's path as given, joined with its name.
    recursive : bool, default False
        Also the files below the folders.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        (folders if os.path.isdir(path) else files).setdefault(os.path.realpath(path), path)  # noqa: PTH112
    yield from files.values()
    ends = {os.path.basename(path) for each in files.items() for path in each}  # noqa: PTH119

    @lru_cache(maxsize=64)
    def owner(folder: str) -> str | None:
        """The innermost of the folders given that holds this one."""
        real = Path(os.path.realpath(folder))
        return next((str(each) for each in (real, *real.parents) if str(each) in folders), None)

    for real, path in folders.items():
        for name in find_files(path, recursive=recursive):
            file = os.path.join(path, name)  # noqa: PTH118
            folder, end = os.path.split(file)
            if (end in ends and os.path.realpath(file) in files) or owner(folder) not in (real, None):
                continue
            yield file


def common_folder(paths: Sequence[str]) -> str:
    """The innermost folder that holds all files and folders given; of a single folder the folder itself."""
    places = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 (resolve would follow links)
    try:
        return os.path.commonpath([place if place.is_dir() else place.parent for place in places])
    except ValueError:  # several drives
        return ""


def pictures_below(folders: Iterable[str]) -> int:
    """Number of pictures, by their suffixes, in the folders below some folders; of huge ones only the first."""
    names = (name for folder in folders for name in find_files(folder, recursive=True) if "/" in name)
    return sum(Path(name).suffix.lower() in SUFFIXES for name in islice(names, COUNTED_BELOW))


def is_written(root: str, output: Path, names: Sequence[str], folders: Iterable[StrPath]) -> Callable[[str], bool]:
    """Whether a name below ``root`` is what a run writes: ``names`` beside ``output``, or all in some ``folders``."""
    beside, made = os.path.realpath(output.parent), [os.path.realpath(each) + os.sep for each in folders]
    unfinished = tuple(f".{name}." for name in names)

    @lru_cache(maxsize=64)
    def place(folder: str) -> tuple[bool, bool]:
        real = os.path.realpath(os.path.join(root, folder))  # noqa: PTH118
        return real == beside, (real + os.sep).startswith(tuple(made))

    def check(name: str) -> bool:
        folder, end = os.path.split(name)
        is_beside, is_made = place(folder)
        return is_made or (is_beside and (end in names or end.startswith(unfinished)))

    return check


def read_names(file: IO[bytes]) -> Iterator[str]:
    """Paths from a pipe, one a line, or each ended by a NUL if the first one is (``find -print0``).

    Names are bytes and need not be UTF-8. Empty lines, a byte order mark at the beginning, and a carriage return at the
    end of a line are left out, the latter unless there is a file of that name.

    Raises
    ------
    UsageError : the list is UTF-16 or cannot be read.
    """
    beginning = b""
    while len(beginning) < 8 and (block := _read(file)):
        beginning += block
    if _is_utf16(beginning):
        raise UsageError("the list of paths is UTF-16: save it as UTF-8")
    return _names(beginning.removeprefix(codecs.BOM_UTF8), file)


def _names(rest: bytes, file: IO[bytes]) -> Iterator[str]:
    end = None
    while True:
        if end is None and (b"\0" in rest or b"\n" in rest):
            end = b"\0" if b"\0" in rest else b"\n"
        if end:
            *whole, rest = rest.split(end)
            yield from filter(None, (_name(line, end) for line in whole))
        if not (block := _read(file)):
            break
        rest += block
    if name := _name(rest, end):
        yield name


def _name(line: bytes, end: bytes | None) -> str:
    name = os.fsdecode(line)
    return name[:-1] if name.endswith("\r") and end != b"\0" and not os.path.lexists(name) else name


def _is_utf16(beginning: bytes) -> bool:
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    # Without that mark every other byte of ASCII is a NUL; so it is in a list of one-letter names, which has no lines.
    return b"\n" in beginning and any(not any(beginning[at:8:2]) for at in (0, 1))


def _read(file: IO[bytes]) -> bytes:
    try:
        return file.read(1 << 16)
    except OSError as error:
        raise UsageError(f"the list of paths cannot be read: {error.strerror or error}") from None
