"""What a run found, kept on disk as it goes, and written in the form that was asked for when it is complete.

Needs the standard library only (and pyarrow for Parquet). A record is what is known of one file::

    {"faces": [{"gender": "male", "gender_probability": 0.98, "box": [12, 30, 80, 98], "score": 0.999}, …]}
    {"error": "truncated JPEG"}

A picture that was taken as a crop of one face has one face without a box.
"""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from errno import ENOSPC
from itertools import islice
from pathlib import Path
from typing import IO, Any

from faces.files import whole_file

FORMATS = ("json", "jsonl", "csv", "parquet")
NO_FACE = "no_face"  # what stands for a picture in which no face was found


class JournalError(Exception):
    """A run cannot go on from what an earlier one left; the message says why and what to do."""


class Journal:
    """The records of a run, on disk, so that neither memory nor a killed process is a limit.

    A SQLite file beside the results; a batch is in it whole or not at all. Names are kept as the bytes that they are on
    the disk.

    Parameters
    ----------
    path : of the file; it goes when the run is complete.
    settings : anything JSON can hold that decides what a record says.
    resume : go on from what is there, if it was made with the same settings; otherwise what is there is dropped.

    Raises
    ------
    JournalError : ``resume``, and what is there was made with other settings, or is no journal.
    OSError : the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike, settings: dict, *, resume: bool = False):
        self.path, text = Path(path), json.dumps(settings, sort_keys=True)
        if not resume:
            self.delete()
        with _as_oserror(self.path):
            self.store = sqlite3.connect(self.path, isolation_level=None)
            try:
                self.store.execute("PRAGMA journal_mode=WAL")
                self.store.execute("PRAGMA synchronous=NORMAL")
                self.store.execute("CREATE TABLE IF NOT EXISTS about (settings TEXT)")
                shape = "(name BLOB PRIMARY KEY, failed INTEGER, record TEXT) WITHOUT ROWID"
                self.store.execute(f"CREATE TABLE IF NOT EXISTS records {shape}")
                found = self.store.execute("SELECT settings FROM about").fetchone()
            except sqlite3.DatabaseError as error:
                if "not a database" in str(error) or "malformed" in str(error):
                    raise JournalError(
                        f"{self.path} is no journal of a run, or damaged: delete it to start anew"
                    ) from None
                raise
            if found is None:
                self.store.execute("INSERT INTO about VALUES (?)", [text])
            elif found[0] != text:
                raise JournalError(
                    f"the run that was cut short had other options or models: give the same ones to go on, or leave "
                    f"--resume out to start anew ({self.path})"
                )

    def add(self, records: Iterable[tuple[str, dict]]) -> None:
        """Keep a batch of (name, record), whole or not at all."""
        rows = [(os.fsencode(name), "error" in record, json.dumps(record)) for name, record in records]
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

    def count(self, *, failed: bool) -> int:
        """How many files were read, or could not be."""
        return self.store.execute("SELECT count(*) FROM records WHERE failed = ?", [failed]).fetchone()[0]

    def records(self, *, failed: bool) -> Iterator[tuple[str, dict]]:
        """(name, record) in plain order of the names."""
        rows = self.store.execute("SELECT name, record FROM records WHERE failed = ? ORDER BY name", [failed])
        for name, record in rows:
            yield os.fsdecode(name), json.loads(record)

    def close(self, *, delete: bool = False) -> None:
        """Let go of the file; with ``delete`` it goes."""
        self.store.close()
        if delete:
            self.delete()

    def delete(self) -> None:
        for ending in ("", "-wal", "-shm", "-journal"):
            Path(f"{self.path}{ending}").unlink(missing_ok=True)


class _as_oserror:
    """SQLite's own words for a full disk and the like, as the OSError that they are."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, sqlite3.OperationalError):
            full = "full" in str(error)
            raise OSError(
                ENOSPC if full else None, os.strerror(ENOSPC) if full else str(error), str(self.path)
            ) from None


# ------------------------------------------------------------------------------------------------------ forms


def entry(record: dict, *, tasks: Iterable[str], confidence: bool = False, boxes: bool = False):
    """What the JSON forms say of one picture.

    One face, or a picture that was taken as one: a label where one task was asked, else {task: answer, …}; with
    ``confidence`` the probabilities too. Several faces, or ``boxes``: a list of such objects, each with its box and
    score. No face: "no_face".
    """
    tasks, faces = list(tasks), record["faces"]
    if not faces:
        return [] if boxes else NO_FACE
    if len(faces) > 1 or boxes:
        return [{**_answers(face, tasks, confidence), **_place(face)} for face in faces]
    [face] = faces
    alone = tasks[0] if len(tasks) == 1 and f"{tasks[0]}_interval" not in face else None
    if alone is None:
        return _answers(face, tasks, confidence)
    if confidence:
        return {"label": face[alone], "probability": face[f"{alone}_probability"]}
    return face[alone]


def _answers(face: dict, tasks: list[str], confidence: bool) -> dict:
    wanted = [
        key for task in tasks for key in (task, f"{task}_interval", *([f"{task}_probability"] if confidence else []))
    ]
    return {key: face[key] for key in wanted if key in face}


def _place(face: dict) -> dict:
    return {key: face[key] for key in ("box", "score") if key in face}


def rows(name: str, record: dict, tasks: Iterable[str]) -> Iterator[dict[str, Any]]:
    """One flat row a face, as CSV and Parquet have it; a picture without a face has a row without answers."""
    for number, face in enumerate(record["faces"] or [{}]):
        row: dict[str, Any] = {"file": name, "face": number if face else None}
        for task in tasks:
            row[task] = face.get(task) if face else None
            if f"{task}_interval" in face:
                row[f"{task}_low"], row[f"{task}_high"] = face[f"{task}_interval"]
            elif f"{task}_probability" in face:
                row[f"{task}_probability"] = face[f"{task}_probability"]
        row |= dict(zip(("left", "top", "right", "bottom"), face.get("box", [None] * 4), strict=True))
        yield row | {"score": face.get("score")}


def columns(tasks: Iterable[str], ages: Iterable[str]) -> dict[str, type]:
    """The columns of the flat forms and what they hold; ``ages`` are the tasks that answer in years."""
    ages, found = set(ages), {"file": str, "face": int}
    for task in tasks:
        if task in ages:
            found |= {task: float, f"{task}_low": int, f"{task}_high": int}
        else:
            found |= {task: str, f"{task}_probability": float}
    return found | dict.fromkeys(("left", "top", "right", "bottom", "score"), float)


class JsonObject:
    """Writes one JSON object a pair at a time, so that it need not be held in memory."""

    def __init__(self, file: IO[str]):
        self.file, self.count = file, 0

    def add(self, key: str, value) -> None:
        self.file.write(("," if self.count else "{") + f"\n  {as_json(key)}: {as_json(value)}")
        self.count += 1

    def close(self) -> None:
        self.file.write("\n}\n" if self.count else "{}\n")


def as_json(value) -> str:
    """JSON in UTF-8, with what is not UTF-8 (in a file's name) escaped: os.fsencode turns it back into its bytes."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    return text


def write(
    records: Iterable[tuple[str, dict]],
    path: str | os.PathLike,
    form: str,
    *,
    tasks: list[str],
    ages: Iterable[str] = (),
    confidence: bool = False,
    boxes: bool = False,
) -> None:
    """Write (name, record) pairs as json, jsonl, csv or parquet, whole or not at all.

    Raises
    ------
    OSError : the file cannot be written.
    ModuleNotFoundError : Parquet without pyarrow.
    """
    said = {"tasks": tasks, "confidence": confidence, "boxes": boxes}
    if form == "parquet":
        return _write_parquet(records, Path(path), tasks, ages)
    with whole_file(path, errors="backslashreplace" if form == "csv" else "strict") as file:
        if form == "json":
            whole = JsonObject(file)
            for name, record in records:
                whole.add(name, entry(record, **said))
            whole.close()
        elif form == "jsonl":
            for name, record in records:
                file.write(as_json({"file": name, **record}) + "\n")
        elif form == "csv":
            writer = csv.DictWriter(file, list(columns(tasks, ages)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for name, record in records for row in rows(name, record, tasks))
        else:
            raise ValueError(f"no form {form!r}; there are {', '.join(FORMATS)}")


def _write_parquet(records, path: Path, tasks: list[str], ages: Iterable[str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {str: pa.string(), int: pa.int32(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns(tasks, ages).items()])
    flat = (row for name, record in records for row in rows(name, record, tasks))
    partial = path.with_name(f".{path.name}.partial")
    try:
        with parquet.ParquetWriter(partial, schema) as writer:
            while part := list(islice(flat, 10_000)):
                for row in part:  # Parquet's text is UTF-8
                    row["file"] = row["file"].encode("utf-8", "backslashreplace").decode()
                writer.write_table(pa.Table.from_pylist(part, schema))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
