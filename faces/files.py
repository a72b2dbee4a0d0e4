"""Files written whole or not at all: shared by the runtime and by research; needs the standard library only."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: str | os.PathLike, *, errors: str = "strict") -> Iterator[IO[str]]:
    """A UTF-8 text file that appears under its name only when it is complete; on an error the old one stays.

    Parameters
    ----------
    errors : as for ``open``, what becomes of characters that are not UTF-8.

    Raises
    ------
    OSError : the folder does not exist or cannot be written; it names ``path``.
    """
    path = Path(os.path.realpath(path))  # a link stays one: the file that it names is replaced
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # not the temporary name
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors=errors, newline="\n") as file:
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


def write_json(path: str | os.PathLike, content: dict) -> Path:
    """Write JSON that diffs well, whole or not at all; folders are made, NaN is refused with a ValueError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path
