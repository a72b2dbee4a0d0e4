"""What a run found is kept batch by batch and takes every form that the schema allows, and no other."""

import errno
import json
import os
import re
import sqlite3
import sys
from pathlib import Path

import helpers
import pandas as pd
import pytest

from faces import outputs

SCHEMA = json.loads(Path(outputs.__file__).with_name("results.schema.json").read_text(encoding="utf-8"))
CROP = {"faces": [{"gender": "male", "gender_probability": 0.98, "age": 34.2, "age_interval": [27, 42]}]}
PLACED = {"gender": "female", "gender_probability": 0.7, "age": 8.0, "age_interval": [2, 13]}
PLACED |= {"box": [1.0, 2, 3, 4], "score": 0.9}
BOTH = [{"gender": sex, "box": [1.0, 2, 3, 4], "score": 0.9} for sex in ("male", "female")]
GROUP = {"faces": [{**PLACED, "gender": "male"}, PLACED]}
NONE = {"faces": []}


@pytest.mark.parametrize(
    ("record", "asked", "said"),
    [
        (CROP, {"tasks": ["gender"]}, "male"),
        (CROP, {"tasks": ["gender"], "confidence": True}, {"label": "male", "probability": 0.98}),
        (CROP, {"tasks": ["age"]}, {"age": 34.2, "age_interval": [27, 42]}),
        (CROP, {"tasks": ["gender", "age"]}, {"gender": "male", "age": 34.2, "age_interval": [27, 42]}),
        (CROP, {"tasks": ["gender"], "boxes": True}, [{"gender": "male", "box": None, "score": None}]),
        (NONE, {"tasks": ["gender"]}, "no_face"),
        (NONE, {"tasks": ["gender"], "boxes": True}, []),
        (GROUP, {"tasks": ["gender"]}, BOTH),
    ],
)
def test_a_picture_in_the_json_form(record, asked, said):
    jsonschema = pytest.importorskip("jsonschema")
    assert outputs.to_json(record, **asked) == said
    jsonschema.validate({"a.jpg": said}, SCHEMA)


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"a.jpg": None},
        {"a.jpg": 3},
        {"a.jpg": ""},
        {"a.jpg": {"label": "male", "probability": 1.2}},
        {"a.jpg": [{"gender": "male", "box": [1, 2, 3]}]},
        {"a.jpg": {"age": 3.0, "age_interval": [1.5, 2]}},
    ],
)
def test_the_schema_refuses_what_is_never_written(wrong):
    jsonschema = pytest.importorskip("jsonschema")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_flat_rows_are_one_a_face():
    found = list(outputs.rows("a.jpg", GROUP, ["gender", "age"]))
    assert [row["face"] for row in found] == [0, 1] and found[1]["gender"] == "female"
    assert (found[0]["left"], found[0]["age_low"], found[0]["score"]) == (1.0, 2, 0.9)
    [nobody] = outputs.rows("a.jpg", NONE, ["gender"])
    assert nobody["face"] is None and nobody["gender"] is None
    columns = outputs.columns(["gender", "age"], ["age"])
    assert set(found[0]) == set(columns)


def test_a_journal_keeps_whole_batches_in_order_of_names(tmp_path):
    journal = outputs.Journal(tmp_path / "j", {"a": 1})
    journal.add([("b", CROP), ("a\udce9", NONE)])
    journal.add([("é", {"error": "gone"})])

    def broken():
        yield "c", CROP
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.add(broken())
    assert "b" in journal and "é" in journal and "c" not in journal
    journal.close()
    again = outputs.Journal(tmp_path / "j", {"a": 1}, resume=True)
    assert [name for name, _ in again.records("faces")] == ["a\udce9", "b"]
    assert list(again.records("error")) == [("é", {"error": "gone"})]
    assert [again.count(kind) for kind in ("faces", "error", "skipped")] == [2, 1, 0]
    again.close(delete=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_journal_is_not_touched(tmp_path):
    (tmp_path / "j").write_bytes(b"dear diary" * 100)
    for resume in (False, True):
        with pytest.raises(outputs.JournalError, match="is no journal of a run, or damaged: --restart discards it"):
            outputs.Journal(tmp_path / "j", {}, resume=resume)
        assert (tmp_path / "j").read_bytes() == b"dear diary" * 100
    outputs.Journal(tmp_path / "j", {}, restart=True).close(delete=True)


def test_a_journal_with_answers_is_discarded_only_if_asked(tmp_path):
    journal = outputs.Journal(tmp_path / "j", {})
    journal.close()
    journal = outputs.Journal(tmp_path / "j", {"other": 1})  # there was nothing in it
    journal.add([("a", CROP), ("b", {"error": "gone"})])
    journal.close()
    for _ in range(2):
        with pytest.raises(outputs.JournalError, match=r"in .*j \(files: 2\): --resume continues it, --restart"):
            outputs.Journal(tmp_path / "j", {"other": 1})
    again = outputs.Journal(tmp_path / "j", {"other": 1}, resume=True)
    assert len(again) == 2
    again.close()
    with pytest.raises(outputs.JournalError, match=r"cannot resume: options or models differ .*or --restart"):
        outputs.Journal(tmp_path / "j", {}, resume=True)
    fresh = outputs.Journal(tmp_path / "j", {}, restart=True)
    assert len(fresh) == 0
    fresh.close(delete=True)


def test_a_full_disk_is_an_oserror(tmp_path):
    journal = outputs.Journal(tmp_path / "j", {})
    journal.store.execute("PRAGMA max_page_count = 12")
    with pytest.raises(OSError, match="No space left") as error:
        journal.add((f"{number:05}", CROP) for number in range(10_000))
    assert error.value.filename == str(tmp_path / "j")
    assert journal.count("faces") == 0  # the batch is not there in part
    journal.close()


def test_two_runs_cannot_have_one_journal(tmp_path):
    first = outputs.Journal(tmp_path / "j", {})
    first.add([("a", CROP)])
    for resume in (False, True):
        with pytest.raises(outputs.JournalError, match="another run is writing there"):
            outputs.Journal(tmp_path / "j", {}, resume=resume)
    first.close()
    second = outputs.Journal(tmp_path / "j", {}, resume=True)
    assert second.count("faces") == 1
    second.close(delete=True)


def test_a_journal_of_another_version_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "VERSION", 1)
        outputs.Journal(tmp_path / "first", {}).close()
    with pytest.raises(outputs.JournalError, match="is of another version"):
        outputs.Journal(tmp_path / "first", {}, resume=True)
    store = sqlite3.connect(tmp_path / "j", isolation_level=None)
    store.execute("PRAGMA journal_mode=WAL")
    store.execute("CREATE TABLE about (settings TEXT)")
    store.execute("CREATE TABLE records (name BLOB PRIMARY KEY, failed INTEGER, record TEXT) WITHOUT ROWID")
    store.execute("INSERT INTO about VALUES ('{}')")
    store.close()
    with pytest.raises(outputs.JournalError, match="is of another version"):
        outputs.Journal(tmp_path / "j", {}, resume=True)
    outputs.Journal(tmp_path / "j", {}).close(delete=True)


def test_a_journal_has_a_log_so_that_a_batch_does_not_wait_for_the_disk(tmp_path):
    journal = outputs.Journal(tmp_path / "50% a?b#c", {})
    journal.add([("a", CROP)])
    assert journal.store.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["50% a?b#c", "50% a?b#c-wal"]
    journal.close(delete=True)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_where_there_are_no_file_locks(tmp_path, monkeypatch):
    unsupported = helpers.raising(OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr("msvcrt.locking" if sys.platform == "win32" else "fcntl.flock", unsupported)
    journal = outputs.Journal(tmp_path / "j", {})
    journal.add([("a", CROP)])
    assert journal.count("faces") == 1
    journal.close(delete=True)


def test_escaped_names_are_utf8_and_tell_their_bytes():
    for name in ("a.jpg", "é", "a\\b", os.fsdecode(b"caf\xe9"), r"caf\xe9", os.fsdecode(b"a\\b\xe9")):
        text = outputs.escaped(name)
        text.encode("utf-8")
        if re.search(r"\\x[0-9a-f]{2}", text):  # the rule that the README gives
            back = re.sub(r"\\(\\|x..)", lambda m: "\\" if m[1] == "\\" else chr(0xDC00 + int(m[1][1:], 16)), text)
        else:
            back = text
        assert back == name


@pytest.mark.parametrize("form", outputs.FORMATS)
def test_every_reader_takes_every_name(tmp_path, form):
    names = ["a\rb.jpg", os.fsdecode(b"caf\xe9.jpg"), "line\nbreak.jpg", 'quo"te, comma.jpg']
    path = tmp_path / "out"
    outputs.write([(name, CROP) for name in names], path, form, tasks=["gender", "age"], ages=["age"])
    content = path.read_bytes()
    if form == "parquet":
        read = pd.read_parquet(path)["file"].tolist()
    elif form == "csv":
        read = pd.read_csv(path)["file"].tolist()
    else:
        lines = path.read_text("utf-8").rstrip("\n").split("\n")
        read = list(json.loads(content)) if form == "json" else [json.loads(line)["file"] for line in lines]
    assert read == [outputs.escaped(name) for name in names]
