"""The journal of a run, and the formats of its results.

Needs the standard library only (and pyarrow for Parquet). A record is what is known of one file::

    {"faces": [{"gender": "male", "gender_probability": 0.98, "box": [12, 30, 80, 98], "score": 0.999}, …]}
    {"error": "truncated JPEG"}
    {"skipped": "not a picture in a known format"}

A picture that was taken as a crop of one face has one face without a box.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN, ENOSPC
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote_from_bytes

from faces.files import Record, StrPath, atomic_write

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

VERSION = 3  # of the journal; a run of another version cannot be resumed
LOCKED_BYTE = 1 << 40  # of the journal, far beyond what SQLite reads: locks of Windows keep others from reading
ESCAPE = re.compile(r"\\x[0-9a-f]{2}")
FORMATS = ("json", "jsonl", "csv", "parquet")  # also the endings of such files
NO_FACE = "no_face"  # what stands for a picture in which no face was found


class JournalError(Exception):
    """A run cannot go on from what an earlier one left; the message says why and what to do."""


class Journal:
    """The records of a run in a SQLite file, so that neither memory nor a killed process is a limit.

    A batch is written atomically. The file is locked while it is open, so that two runs cannot write the same results;
    SQLite's own locks are not used, since many network shares have none. Names are kept as bytes.

    Parameters
    ----------
    path : path
        Of the file; it goes when the run is complete.
    settings : dict
        Everything that decides what a record says.
    resume : bool
        Go on from what is there, if it was made with the same settings.
    restart : bool
        Discard what is there.

    Raises
    ------
    JournalError
        Another run has it open; it is no journal; without ``resume`` and ``restart``, it holds records; or ``resume``,
        and it was made with other settings.
    OSError
        The folder cannot be written.
    """

    def __init__(self, path: StrPath, settings: Record, *, resume: bool = False, restart: bool = False):
        self.path, text = Path(path), json.dumps({"journal": VERSION, **settings}, sort_keys=True)
        self.lock = _lock(self.path)
        try:
            if restart:
                self._delete_parts()
                os.truncate(self.path, 0)
            self._open(text, resume)
        except BaseException:
            self.lock.close()
            raise

    def _open(self, settings: str, resume: bool) -> None:
        with _as_oserror(self.path):
            self.store = sqlite3.connect(_without_locks(self.path), isolation_level=None, uri=True)
            try:
                self.store.execute("PRAGMA locking_mode=EXCLUSIVE")  # the journal's log then needs no shared memory
                self.store.execute("PRAGMA journal_mode=WAL")
                self.store.execute("PRAGMA synchronous=NORMAL")
                if not resume:
                    self._drop_empty(settings)
                self.store.execute("CREATE TABLE IF NOT EXISTS about (settings TEXT)")
                shape = "(name BLOB PRIMARY KEY, kind TEXT, record TEXT) WITHOUT ROWID"
                self.store.execute(f"CREATE TABLE IF NOT EXISTS records {shape}")
                found = self.store.execute("SELECT settings FROM about").fetchone()
            except sqlite3.DatabaseError as error:
                self.store.close()
                if "not a database" in str(error) or "malformed" in str(error):
                    raise JournalError(
                        f"{self.path} is no journal of a run, or damaged: --restart discards it"
                    ) from None
                raise
            if found is None:
                self.store.execute("INSERT INTO about VALUES (?)", [settings])
            elif changed := _differences(json.loads(found[0]), json.loads(settings)):
                self.store.close()
                if "journal" in changed:
                    raise JournalError(f"cannot resume: {self.path} is of another version. --restart discards it")
                raise JournalError(
                    f"cannot resume: options or models differ from the interrupted run ({', '.join(changed)}). "
                    f"Use the same ones, or --restart, which discards it ({self.path})"
                )

    def _drop_empty(self, settings: str) -> None:
        """Drop what is there, if it holds no record; otherwise a JournalError."""
        if self.store.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone():
            if number := self.store.execute("SELECT count(*) FROM records").fetchone()[0]:
                same = self.store.execute("SELECT settings FROM about").fetchone() == (settings,)
                self.store.close()
                other = "" if same else " with other inputs, options or models"
                raise JournalError(
                    f"an unfinished run{other} left answers in {self.path} (files: {number:,}): "
                    + "--resume continues it, " * same
                    + "--restart discards it, another --output leaves it there"
                )
            self.store.execute("DROP TABLE records")
        self.store.execute("DROP TABLE IF EXISTS about")

    def add(self, records: Iterable[tuple[str, Record]]) -> None:
        """Add a batch of (name, record) atomically."""
        rows = [(os.fsencode(name), next(iter(record)), json.dumps(record)) for name, record in records]
        with _as_oserror(self.path):
            self.store.execute("BEGIN")
            try:
                self.store.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", rows)
                self.store.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self.store.execute("ROLLBACK")
                raise

    def __contains__(self, name: str) -> bool:
        found = self.store.execute("SELECT 1 FROM records WHERE name = ?", [os.fsencode(name)])
        return found.fetchone() is not None

    def __len__(self) -> int:
        return int(self.store.execute("SELECT count(*) FROM records").fetchone()[0])

    def count(self, kind: str) -> int:
        """Number of files of a kind: "faces" (read), "error" or "skipped"."""
        return int(self.store.execute("SELECT count(*) FROM records WHERE kind = ?", [kind]).fetchone()[0])

    def records(self, kind: str) -> Iterator[tuple[str, Record]]:
        """(name, record) of the files of a kind, in plain order of the names."""
        rows = self.store.execute("SELECT name, record FROM records WHERE kind = ? ORDER BY name", [kind])
        for name, record in rows:
            yield os.fsdecode(name), json.loads(record)

    def close(self, *, delete: bool = False) -> None:
        """Close the file, and delete it if asked."""
        self.store.close()
        if delete:
            self._delete_parts()
            with suppress(PermissionError):  # Windows deletes no open file
                self.path.unlink(missing_ok=True)
        self.lock.close()
        if delete:
            self.path.unlink(missing_ok=True)

    def _delete_parts(self) -> None:
        for ending in ("-wal", "-shm", "-journal"):
            Path(f"{self.path}{ending}").unlink(missing_ok=True)


def _without_locks(path: Path) -> str:
    """URI that has SQLite lock nothing but keep its write-ahead log, which ``nolock=1`` would switch off."""
    place = quote_from_bytes(os.fsencode(path.absolute().as_posix()))
    return f"file://{'' if place[0] == '/' else '/'}{place}?vfs={'win32' if os.name == 'nt' else 'unix'}-none"


def _lock(path: Path) -> IO[bytes]:
    """The open file, locked until it is closed; JournalError if another process has it locked."""
    while True:
        file = path.open("ab")
        try:
            if sys.platform == "win32":
                file.seek(LOCKED_BYTE)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (EAGAIN, EACCES):
                file.close()
                raise JournalError(f"another run is writing there: it has {path} open. Name another --output") from None
            # A share without locks: two runs at once are then the user's to avoid.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the run that had it has just ended and deleted it


def _differences(before: Record, now: Record) -> list[str]:
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


@contextmanager
def _as_oserror(path: Path) -> Iterator[None]:
    """SQLite's errors of a full disk and the like as an OSError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        full = "full" in str(error)
        raise OSError(ENOSPC if full else None, os.strerror(ENOSPC) if full else str(error), str(path)) from None


# ------------------------------------------------------------------------------------------------------ forms


def to_json(record: Record, *, tasks: Iterable[str], confidence: bool = False, boxes: bool = False) -> Any:
    """A picture in the JSON formats.

    One face: its label if one task was asked, else {task: answer, …}; with ``confidence`` the probabilities too.
    Several faces: a list of such objects, each with its box and score. No face: "no_face". With ``boxes`` every picture
    is a list, empty without a face; box and score are None of a picture that was taken as the crop of one face.
    """
    tasks, faces = list(tasks), record["faces"]
    if not faces:
        return [] if boxes else NO_FACE
    if len(faces) > 1 or boxes:
        return [
            {**_answers(face, tasks, confidence), "box": face.get("box"), "score": face.get("score")} for face in faces
        ]
    [face] = faces
    alone = tasks[0] if len(tasks) == 1 and f"{tasks[0]}_interval" not in face else None
    if alone is None:
        return _answers(face, tasks, confidence)
    if confidence:
        return {"label": face[alone], "probability": face[f"{alone}_probability"]}
    return face[alone]


def _answers(face: Record, tasks: list[str], confidence: bool) -> Record:
    wanted = [
        key for task in tasks for key in (task, f"{task}_interval", *([f"{task}_probability"] if confidence else []))
    ]
    return {key: face[key] for key in wanted if key in face}


def rows(name: str, record: Record, tasks: Iterable[str]) -> Iterator[Record]:
    """A picture in CSV and Parquet: one row a face; a picture without a face has a row without answers."""
    for number, face in enumerate(record["faces"] or [{}]):
        row: Record = {"file": name, "face": number if face else None}
        for task in tasks:
            row[task] = face.get(task) if face else None
            if f"{task}_interval" in face:
                row[f"{task}_low"], row[f"{task}_high"] = face[f"{task}_interval"]
            elif f"{task}_probability" in face:
                row[f"{task}_probability"] = face[f"{task}_probability"]
        row |= dict(zip(("left", "top", "right", "bottom"), face.get("box", [None] * 4), strict=True))
        yield row | {"score": face.get("score")}


def columns(tasks: Iterable[str], ages: Iterable[str]) -> dict[str, type]:
    """Columns of CSV and Parquet and their types; ``ages`` are the tasks that answer in years."""
    ages, found = set(ages), {"file": str, "face": int}
    for task in tasks:
        if task in ages:
            found |= {task: float, f"{task}_low": int, f"{task}_high": int}
        else:
            found |= {task: str, f"{task}_probability": float}
    return found | dict.fromkeys(("left", "top", "right", "bottom", "score"), float)


class JsonObject:
    """Writes a JSON object pair by pair."""

    def __init__(self, file: IO[str]):
        self.file, self.count = file, 0

    def add(self, key: str, value: object) -> None:
        """Write a pair."""
        self.file.write(("," if self.count else "{") + f"\n  {as_json(key)}: {as_json(value)}")
        self.count += 1

    def close(self) -> None:
        """Write the closing brace."""
        self.file.write("\n}\n" if self.count else "{}\n")


def as_json(value: object) -> str:
    """JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False)


def escaped(name: str) -> str:
    r"""A file's name as text that every reader of UTF-8 accepts.

    Bytes that are not UTF-8 become ``\xNN`` and backslashes in such a name are doubled. So is a name escaped that
    holds ``\xNN`` itself: a name in the results was escaped exactly if it holds that.

    >>> escaped("caf\udce9.jpg"), escaped("café.jpg")
    ('caf\\xe9.jpg', 'café.jpg')
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        pass
    else:
        if not ESCAPE.search(name):
            return name
    return os.fsencode(name.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


class _UnixLines:
    r"""Replaces the line endings of csv.writer by a line feed.

    With "\r\n" as its line ending the writer quotes names that hold either character, which before Python 3.13 it
    does for those of its own line ending alone.
    """

    def __init__(self, file: IO[str]):
        self.file = file

    def write(self, row: str) -> None:
        self.file.write(row.removesuffix("\r\n") + "\n")


def write(
    records: Iterable[tuple[str, Record]],
    path: StrPath,
    form: str,
    *,
    tasks: list[str],
    ages: Iterable[str] = (),
    confidence: bool = False,
    boxes: bool = False,
) -> None:
    """Write the results atomically.

    Parameters
    ----------
    records : iterable of (str, dict)
        Names and records of the pictures.
    path : path
    form : {"json", "jsonl", "csv", "parquet"}
    tasks, ages : list of str
        All tasks, and those that answer in years.
    confidence, boxes : bool
        Whether JSON has probabilities, and boxes of single faces.
    """
    records = ((escaped(name), record) for name, record in records)
    if form == "parquet":
        return _write_parquet(records, Path(path), tasks, ages)
    with atomic_write(path) as file:
        if form == "json":
            whole = JsonObject(file)
            for name, record in records:
                whole.add(name, to_json(record, tasks=tasks, confidence=confidence, boxes=boxes))
            whole.close()
        elif form == "jsonl":
            for name, record in records:
                file.write(as_json({"file": name, **record}) + "\n")
        elif form == "csv":
            writer = csv.DictWriter(_UnixLines(file), list(columns(tasks, ages)))
            writer.writeheader()
            writer.writerows(row for name, record in records for row in rows(name, record, tasks))
        else:
            raise ValueError(f"no form {form!r}; there are {', '.join(FORMATS)}")


def parquet_schema(columns: Mapping[str, type]) -> Any:
    """The pyarrow schema of some columns."""
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int32(), float: pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in columns.items()])


def _write_parquet(records: Iterable[tuple[str, Record]], path: Path, tasks: list[str], ages: Iterable[str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = parquet_schema(columns(tasks, ages))
    flat = (row for name, record in records for row in rows(name, record, tasks))
    partial = path.with_name(f".{path.name}.partial")
    try:
        with parquet.ParquetWriter(partial, schema) as writer:
            while part := list(islice(flat, 10_000)):
                writer.write_table(pa.Table.from_pylist(part, schema))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
