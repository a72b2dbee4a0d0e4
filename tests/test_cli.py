"""The command line's work: what is written, what is refused, what becomes of an interruption."""

import csv
import io
import json
import os
import sys
from functools import partial

import helpers
import numpy as np
import pytest
import tiny_model
from tiny_model import COLOURS, picture

from faces import cli, files, images, outputs, pipeline, predict, trust

posix = pytest.mark.skipif(os.name == "nt", reason="links and permissions as POSIX has them")


def test_a_path_may_be_that_of_a_file_or_an_empty_folder_or_none(model, photos, tmp_path, monkeypatch):
    run = partial(cli.process_folder, output=tmp_path / "labels.json", tasks={"colour": model})
    (tmp_path / "note.abc").write_text("a note")
    assert run(photos / "img_0.jpg") == (1, 0, 0) and run(tmp_path / "note.abc") == (0, 0, 1)
    assert run("", names=[str(photos / "img_1.jpg"), "a\0b"]) == (1, 1, 0)
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty") == (0, 0, 0) and json.loads((tmp_path / "labels.json").read_text()) == {}
    monkeypatch.setattr(sys, "stderr", None)  # as where there is no terminal
    assert run(photos) == (5, 0, 0)


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("where", ["photos", "photos/below"])
def test_what_is_written_is_not_read(model, photos, tmp_path, recursive, where):
    picture(photos / "below" / "a.jpg", "red")
    (photos / "img_9.jpg").touch()
    (photos / f".{cli.ERRORS}.x7_2").touch()  # left by a run that was killed
    output = tmp_path / where / "labels.json"
    unfinished = 1 if where == "photos/below" else 0
    for _ in range(2):
        counts = cli.process_folder(photos, output, tasks={"colour": model}, recursive=recursive)
        assert counts == (5 + recursive, 1, unfinished)
    assert output.parent / cli.ERRORS in output.parent.iterdir()


def looked_at(monkeypatch, interrupted_at=None):
    """The names of the files that are opened from here on; so many are opened before Ctrl-C is pressed."""
    seen, opened = [], images.open_rgb

    def open_rgb(path, *rest, **options):
        seen.append(os.path.basename(path))  # noqa: PTH119
        if len(seen) == interrupted_at:
            raise KeyboardInterrupt
        return opened(path, *rest, **options)

    monkeypatch.setattr(images, "open_rgb", open_rgb)
    return seen


def pipe(monkeypatch, paths, end=b"\n"):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(end.join(map(os.fsencode, paths)))))


def test_what_an_interrupt_recommends_works(photos, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rest, paths = ["--model", str(folder), "--batch-size", "1"], sorted(photos.iterdir())
    for arguments, advice in (
        ([str(photos), "--list", "red"], ""),
        ([str(photos), "-o", "-"], ""),
        ([str(photos), "--restart"], "; the same command with --resume instead of --restart goes on from here"),
        (["-", "-o", "piped.json"], "; the same command with --resume goes on from here"),
    ):
        with monkeypatch.context() as patch:
            looked_at(patch, interrupted_at=2)
            pipe(patch, paths)
            assert cli.label([*arguments, *rest]) == 130
        assert capsys.readouterr().err == f"process.py: interrupted{advice}\n"
    pipe(monkeypatch, paths[1:])
    assert cli.label(["-", "-o", "piped.json", *rest, "--resume"]) == 0
    found = json.loads((tmp_path / "piped.json").read_text())
    assert found.items() >= {str(path): COLOURS[path.name] for path in paths[1:]}.items()


def test_want_of_memory_is_one_line(photos, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(np, "stack", helpers.raising(MemoryError))
    assert cli.label([str(photos), "--output", str(tmp_path / "a.json"), "--model", str(folder)]) == 2
    assert capsys.readouterr().err == "process.py: not enough memory; try a smaller --batch-size\n"
    assert not (tmp_path / "a.json").exists()


def test_a_run_goes_on_without_redoing_or_losing_anything(photos, model, tmp_path, monkeypatch):
    (photos / "img_9.jpg").touch()
    output, kept = tmp_path / "labels.json", []
    add = outputs.Journal.add

    def killed(journal, records):
        add(journal, records)
        kept.extend(name for name, _ in records)
        raise SystemExit  # as good as a kill -9: nothing is tidied up

    monkeypatch.setattr(cli, "JOURNAL_BATCH", 2)
    monkeypatch.setattr(outputs.Journal, "add", killed)
    with pytest.raises(SystemExit):
        cli.process_folder(photos, output, tasks={"colour": model}, batch_size=1)
    monkeypatch.setattr(outputs.Journal, "add", add)
    assert kept == ["img_0.jpg", "img_1.jpg"] and not output.exists()
    picture(photos / "img_00.jpg", "blue")  # new since then
    (photos / "img_1.jpg").unlink()  # gone since then, but it was answered for
    seen = looked_at(monkeypatch)
    assert cli.process_folder(photos, output, tasks={"colour": model}, resume=True) == (6, 1, 0)
    assert sorted(seen) == ["img_00.jpg", "img_2.jpg", "img_3.jpg", "img_4.jpg", "img_9.jpg"]
    assert json.loads(output.read_text()) == COLOURS | {"img_00.jpg": "blue"}
    assert json.loads((tmp_path / cli.RUN).read_text())["files"] == {"read": 6, "failed": 1, "skipped": 0}


def test_a_journal_is_neither_continued_with_other_options_nor_dropped_unasked(photos, model, tmp_path, monkeypatch):
    output = tmp_path / "labels.json"
    monkeypatch.setattr(outputs, "write", helpers.raising(OSError(28, "No space left", "x")))
    with pytest.raises(OSError, match="No space left"):
        cli.process_folder(photos, output, tasks={"colour": model})
    monkeypatch.undo()
    with pytest.raises(outputs.JournalError, match="options or models differ"):
        cli.process_folder(photos, output, tasks={"other": model}, resume=True)
    with pytest.raises(outputs.JournalError, match="--resume continues it, --restart discards it"):
        cli.process_folder(photos, output, tasks={"colour": model})
    with pytest.raises(outputs.JournalError, match=r"run with other inputs.*\(files: 5\): --restart discards it"):
        cli.process_folder(photos, output, tasks={"other": model})
    seen = looked_at(monkeypatch)
    assert cli.process_folder(photos, output, tasks={"other": model}, restart=True) == (5, 0, 0) and len(seen) == 5


def rows_of(path, form):
    if form == "json":
        return [{"file": name} | answer for name, answer in json.loads(path.read_text()).items()]
    if form == "jsonl":
        read = map(json.loads, path.read_text().splitlines())
        return [{"file": row["file"]} | row["faces"][0] for row in read]
    if form == "csv":
        return list(csv.DictReader(path.read_text().splitlines()))
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("form", outputs.FORMATS)
def test_every_form_says_the_same_and_is_the_ending_of_the_output(photos, folder, ages, tmp_path, monkeypatch, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    asked = [str(photos), "--tasks", f"colour={folder},age={ages}", "-q"]
    assert cli.label([*asked, "-o", f"by_ending.{form.upper()}"]) == 0
    assert cli.label([*asked, "-o", "by_option", "--format", form]) == 0
    assert cli.label([*asked, "--format", form]) == 0
    written = [tmp_path / name for name in (f"by_ending.{form.upper()}", "by_option", f"process_results.{form}")]
    assert len({path.read_bytes() for path in written}) == 1
    rows = rows_of(written[0], form)
    assert [(row["file"], row["colour"]) for row in rows] == sorted(COLOURS.items())
    assert form == "json" or float(rows[0]["colour_probability"]) > 0.9
    low, high = (rows[0]["age_low"], rows[0]["age_high"]) if form in ("csv", "parquet") else rows[0]["age_interval"]
    assert float(low) <= float(rows[0]["age"]) <= float(high)


@pytest.mark.parametrize("form", [None, *outputs.FORMATS])
def test_results_on_standard_output(photos, folder, tmp_path, monkeypatch, capfdbinary, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    (photos / "img_9.jpg").touch()
    (photos / "notes.txt").touch()
    asked = [str(photos), "--model", str(folder), *(["--format", form] if form else [])]
    before = sorted(tmp_path.rglob("*"))
    assert cli.label([*asked, "--output", "-"]) == 1
    out, err = capfdbinary.readouterr()
    assert sorted(tmp_path.rglob("*")) == before
    assert err.decode().splitlines() == [
        *("img_9.jpg: empty file", "5 photos labelled by tiny", "1 file skipped, by name and content no picture"),
        "1 file could not be read",
    ]
    assert cli.label([*asked, "--output", "labels"]) == 1
    assert out == (tmp_path / "labels").read_bytes()


def test_a_reader_of_the_results_that_has_gone(photos, folder, monkeypatch, capsys):
    class Pipe(io.BytesIO):
        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Pipe(), write_through=True))
    assert cli.label([str(photos), "--model", str(folder), "-o", "-"]) == 141
    assert capsys.readouterr().err == ""


def test_quiet_leaves_errors_alone(photos, folder, tmp_path, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.chdir(tmp_path)
    (photos / "img_9.jpg").touch()
    (photos / "notes.txt").touch()
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert cli.label([str(photos), "--model", str(folder), "--quiet"]) == 1
    assert sys.stderr.getvalue() == "img_9.jpg: empty file\n" and capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert cli.label([str(photos), "--model", str(folder)]) == 1
    assert " 0/7 [" in sys.stderr.getvalue()  # the bar knows how many there are


def test_the_bar_of_a_resumed_run_begins_where_it_was(photos, model, tmp_path, monkeypatch):
    bars, totals = [], []
    monkeypatch.setattr(outputs, "write", helpers.raising(OSError(28, "No space left", "x")))
    with pytest.raises(OSError, match="No space left"):
        cli.process_folder(photos, tmp_path / "labels.json", tasks={"colour": model})
    monkeypatch.undo()
    picture(photos / "img_7.jpg", "red")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = cli.tqdm

    def shown(*given, **how):
        bars.append(how)
        totals.append(given[2] if given else None)
        return bar(*given, **how)

    monkeypatch.setattr(cli, "tqdm", shown)
    written = {"html": tmp_path / "page.html", "copies": {"sort": tmp_path / "sorted"}}
    cli.process_folder(photos, tmp_path / "labels.json", tasks={"colour": model}, resume=True, **written)
    assert (bars[0]["total"], bars[0]["initial"]) == (6, 5)
    assert totals == [None, 6, 6]  # of copies and page too


def test_photos_in_subfolders_alone_are_told_of(photos, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("below", "below/deeper"):
        picture(tmp_path / "all" / name / "a.jpg", "red")
    told = "2 pictures in the folders below: --recursive labels them too\n"
    asked = [str(tmp_path / "all"), "--model", str(folder)]
    assert cli.label(asked) == 0 and capsys.readouterr().err == told
    assert cli.label([*asked, "--list", "red"]) == 0 and capsys.readouterr() == ("", told)
    assert cli.label([*asked, "--recursive"]) == 0 and capsys.readouterr().err == ""
    assert cli.label([*asked, str(photos / "img_0.jpg")]) == 0 and capsys.readouterr().err == ""


def test_the_run_is_told_beside_the_results(photos, model, tmp_path):
    cli.process_folder(photos, tmp_path / "labels.json", tasks={"colour": model}, confidence=True)
    run = json.loads((tmp_path / cli.RUN).read_text())
    assert run["models"] == {"colour": {"name": model.name, "sha256": model.sha256}}
    assert run["files"] == {"read": 5, "failed": 0, "skipped": 0} and run["options"]["confidence"] is True
    assert run["output"] == "labels.json" and run["seconds"] > 0


@pytest.mark.parametrize("end", [b"\n", b"\0"])
def test_paths_come_from_a_pipe(photos, folder, tmp_path, monkeypatch, end):
    wanted = [photos / "img_1.jpg", photos / "a b\nc.jpg" if end == b"\0" else photos / "a b.jpg"]
    picture(wanted[1], "red")
    pipe(monkeypatch, wanted, end)
    output = tmp_path / "labels.json"
    assert cli.label(["-", "--model", str(folder), "--output", str(output)]) == 0
    assert json.loads(output.read_text()) == {str(wanted[0]): "blue", str(wanted[1]): "red"}


@posix
def test_two_runs_cannot_reach_one_output_by_a_link(photos, model, tmp_path):
    (tmp_path / "link.json").symlink_to("labels.json")
    journal = outputs.Journal(cli._journal(tmp_path / "labels.json"), {})
    for name in ("labels.json", "link.json"):
        with pytest.raises(outputs.JournalError, match="another run is writing there"):
            cli.process_folder(photos, tmp_path / name, tasks={"colour": model})
    journal.close(delete=True)


@pytest.mark.parametrize(
    ("name", "content", "is_skipped"),
    [
        ("notes.md", b"BMW and others: a list\n", True),
        ("notes", "P6 is a street in K\u00f6ln\n".encode("latin-1"), True),
        ("a.xmp", "<x/>".encode("utf-16"), True),
        ("cut.txt", b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0", False),
        ("a.NEF", b"\0\1\2 whatever", False),
        ("a.jxl", b"words", False),
        ("a.jpg", b"words", False),
    ],
)
def test_only_what_is_no_picture_by_suffix_and_content_is_skipped(model, tmp_path, name, content, is_skipped):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / name).write_bytes(content)
    counts = cli.process_folder(tmp_path / "photos", tmp_path / "o.json", tasks={"colour": model})
    assert counts == (0, not is_skipped, is_skipped)


KEYS = ("box", "score", "file", "left", "probability", "gender_low", "age_interval", "Box", " box ", "A_Low")
SHARE = 'is neither a probability from 0 to 1 nor "auto"'


@pytest.fixture
def refused(photos, folder, tmp_path, capsys):
    """Runs the command line with ``{photos}`` and so on filled in, and returns its one line of complaint."""

    def run(*arguments):
        places = {"photos": photos, "model": folder, "tmp": tmp_path}
        (tmp_path / "old.json").write_text("old")
        before = sorted(tmp_path.rglob("*"))
        try:
            status = cli.label([argument.format(**places) for argument in arguments])
        except SystemExit as exit:  # argparse leaves this way
            status = exit.code
        out, err = capsys.readouterr()
        *usage, line = err.splitlines()
        assert (status, out) == (2, "")
        assert line.startswith("process.py: ")
        assert not usage or usage[0].startswith("usage: ")
        assert sorted(tmp_path.rglob("*")) == before  # no results, no errors, nothing half made
        assert (tmp_path / "old.json").read_text() == "old"
        return line.replace(str(tmp_path), "TMP")

    return run


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{tmp}/none"], "TMP/none does not exist"),
        (["{photos}", "{tmp}/none.jpg"], "TMP/none.jpg does not exist"),
        (["{photos}", "-"], "- reads all paths from a pipe: leave the others out"),
        ([""], "DIR is empty; name a folder"),
        ([], "the following arguments are required: DIR"),
        *(
            (["{photos}", "--output", f"{{tmp}}{file}"], f"cannot write TMP{file}: name a file in a folder that exists")
            for file in ("", "/no/a.json")
        ),
        (["{photos}", "--output", ""], "cannot write .: name a file in a folder that exists"),
        (
            ["{photos}", "--output", "{tmp}/process_errors.json"],
            "cannot write TMP/process_errors.json: that name is taken by what is written beside it",
        ),
        (["{photos}", "--batch-size", "0"], "argument --batch-size: '0' is not a whole number above 0"),
        (["{photos}", "--batch-size", "x"], "argument --batch-size: 'x' is not a whole number above 0"),
        (["{photos}", "--colour"], "unrecognized arguments: --colour"),
        (["{photos}", "--resume", "--restart"], "argument --restart: not allowed with argument --resume"),
        (
            ["{photos}", "--output", "-", "--resume"],
            "--resume is for results in a file: what is printed is kept nowhere",
        ),
        (
            ["{photos}", "--output", "{tmp}/a.csv", "--format", "json"],
            "--format json contradicts the ending of TMP/a.csv: leave one of them out",
        ),
        (
            ["{photos}", "--output", "{tmp}/a.xlsx"],
            "cannot tell the format of TMP/a.xlsx by its ending: end it in one of json, jsonl, csv, parquet, "
            "or name --format",
        ),
        (["{photos}", "--html", ""], "cannot write .: name a file in a folder that exists"),
        (["{photos}", "--html", "{tmp}/old.json"], "--html and --output name one file: name two"),
        (["{photos}", "--tasks", "age"], "argument --model: not allowed with argument --tasks"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(refused, arguments, complaint):
    line = refused(
        *arguments,
        *(["--model", "{model}", "--output", "{tmp}/old.json"] if not {"-o", "--output"} & set(arguments) else []),
    )
    assert line.removeprefix("process.py: ").removeprefix("error: ") == complaint


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        *((["--tasks", f"{task}=gender_cnn"], "is a key of the results") for task in KEYS),
        *((["--tasks", f"{asked}=gender_cnn"], "give the task another name") for asked in ("glasses", "age")),
        (["--tasks", "gender=age_mobilenet_v2"], "give the task another name"),
        (["--tasks", "height"], "no task 'height'; there are gender, age, glasses, or name a model: TASK=MODEL"),
        (["--tasks", "gender,gender"], "'gender' is asked for twice"),
        (["--tasks", "gender,Gender=gender_cnn"], "'Gender' is asked for twice"),
        (["--tasks", "caf\udce9=gender_cnn"], "caf\\udce9 cannot be the name of a task"),
        *((["--tasks", wanted], "no task ''") for wanted in ("", "gender,")),
        *((["--tasks", wanted], f"no task '{wanted}'") for wanted in ("gender=", "=gender_cnn")),
        *((["--min-confidence", value], SHARE) for value in ("1.1", "-0.1", "nan", "sure", "")),
        *((["--min-score", value], f"argument --min-score: '{value}' is not") for value in ("0", "high")),
        (["--min-face", "0"], "argument --min-face: '0' is not"),
    ],
)
def test_tasks_and_values_that_there_are_not(refused, arguments, complaint):
    assert complaint in refused("{photos}", "--output", "{tmp}/a.json", *arguments)


def test_list_refuses_what_it_cannot_do(refused, ages):
    for arguments, complaint in {
        ("--list", "hats", "--model", "{model}"): "no model tells 'hats'; there are blue, red",
        ("--list", "hats", "--model", str(ages)): "no model tells 'hats'; there are no labels",
        ("--list", "red", "--confidence"): "--list writes no file and prints paths alone",
        ("--null",): "--null is for --list",
    }.items():
        assert complaint in refused("{photos}", *arguments)


def test_parquet_without_its_package_is_refused_before_anything_is_done(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    line = refused("{photos}", "--model", "{model}", "--format", "parquet", "--output", "{tmp}/a.parquet")
    assert line == "process.py: pyarrow is not installed: pip install 'faces[parquet]'"


@posix
def test_a_pipe_or_device_is_not_replaced_by_results(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    line = refused("{photos}", "--output", "{tmp}/pipe")
    assert line == "process.py: cannot write TMP/pipe: name a file in a folder that exists"


def test_an_output_folder_that_takes_no_files(refused, monkeypatch):
    def refuse(dir, prefix):
        raise PermissionError(13, "Permission denied", f"{dir}/{prefix}x7_2")

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    line = refused("{photos}", "--model", "{model}", "--output", "{tmp}/a.json")
    assert line == "process.py: Permission denied: TMP/a.json"


def test_unknown_model_lists_the_known_ones(refused, tmp_path, monkeypatch):
    for name in ("zebra", "ant"):
        tiny_model.write(tmp_path / "artifacts" / name)
    (tmp_path / "artifacts" / "empty").mkdir()
    monkeypatch.setattr(predict, "ARTIFACTS", tmp_path / "artifacts")
    line = refused("{photos}", "--model", "cow", "--output", "{tmp}/a.json")
    assert line == "process.py: no model 'cow': name a folder that holds a model.onnx, or one of ant, zebra"
    monkeypatch.setattr(predict, "ARTIFACTS", tmp_path / "nowhere")
    assert refused("{photos}", "--model", "cow").endswith("or one of those in artifacts/ (there are none)")


def write_garbage(folder):
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"\x08\x07garbage" * 50)
    trust.vouch(folder)


def swap(folder):
    tiny_model.write(folder)
    sums = (folder.parent / trust.LIST).read_bytes()
    tiny_model.write(folder, classes=["left", "right"])
    (folder.parent / trust.LIST).write_bytes(sums)


def write_unlisted(folder):
    tiny_model.write(folder)
    (folder.parent / trust.LIST).unlink()


def written(**how):
    return partial(tiny_model.write, **how)


ODD = {
    "swapped": (swap, " is not what TMP/SHA256SUMS lists: it is damaged or was swapped"),
    "unlisted": (
        write_unlisted,
        " is not listed in TMP/SHA256SUMS; if you trust it: python -m faces.trust TMP/odd",
    ),
    "garbage": (write_garbage, " cannot be loaded"),
    "no metadata": (written(about={}), " was not exported by faces"),
    "empty metadata": (written(about={"faces": '{"schema": 2}'}), " was not exported by faces"),
    "damaged metadata": (written(about={"faces": "["}), " cannot be loaded"),
    "other size": (written(about=tiny_model.metadata(("label", ["a", "b"]), size=17)), " cannot be loaded"),
    "schema 1": (
        written(about={"faces": '{"classes": ["a", "b"], "size": 16}'}),
        " has metadata of schema 1, and 2 is read: python tools/schema2.py FOLDER converts it",
    ),
    "schema 3": (
        written(about=tiny_model.metadata(schema=3)),
        " has metadata of schema 3, and 2 is read: update faces",
    ),
    "other classes": (written(outputs=3), ": head label has 2 classes but output [2, 3] of 2 images"),
}


@pytest.mark.parametrize(("write", "complaint"), ODD.values(), ids=ODD)
def test_a_file_that_is_no_model_of_ours(refused, tmp_path, write, complaint):
    write(tmp_path / "odd")
    line = refused("{photos}", "--model", "{tmp}/odd", "--output", "{tmp}/a.json")
    assert line.startswith(f"process.py: {os.path.join('TMP', 'odd', 'model.onnx')}{complaint}")  # noqa: PTH118


def test_names_are_printed_without_control_characters():
    assert predict.printable("a\nb\x1b[31m ü 😀 caf\udce9") == "a\\nb\\x1b[31m ü 😀 caf\\udce9"


def labels_of(photos, tmp_path, *arguments, model):
    output = tmp_path / "labels.json"
    status = cli.label([str(photos), "--model", str(model), "--output", str(output), *arguments])
    return status, json.loads(output.read_text()) if output.exists() else None


@pytest.fixture
def unsure(photos):
    picture(photos / "img_5.jpg", (90, 0, 80))  # nearly as blue as red
    return photos


def test_what_is_not_sure_enough_is_unknown(unsure, tmp_path, folder):
    plain = labels_of(unsure, tmp_path, model=folder)[1]
    assert plain["img_5.jpg"] == "red"
    assert labels_of(unsure, tmp_path, "--min-confidence", "0", model=folder)[1] == plain
    found = labels_of(unsure, tmp_path, "--min-confidence", "0.99", "--confidence", model=folder)[1]
    assert found["img_5.jpg"]["label"] == "unknown" and 0.5 < found["img_5.jpg"]["probability"] < 0.99
    assert found["img_0.jpg"]["label"] == "red"


def test_a_model_may_carry_its_own_threshold(unsure, tmp_path, folder, capsys):
    about = tiny_model.metadata(("label", tiny_model.CLASSES, {"abstain_below": 0.99}))
    careful = tiny_model.write(tmp_path / "careful", about=about)
    assert predict.Model(careful).abstain_below == 0.99
    assert labels_of(unsure, tmp_path, "--min-confidence", "auto", model=careful)[1]["img_5.jpg"] == "unknown"
    (tmp_path / "labels.json").unlink()
    assert labels_of(unsure, tmp_path, "--min-confidence", "auto", model=folder) == (2, None)
    assert "has no threshold of its own: give --min-confidence a number" in capsys.readouterr().err


@pytest.fixture(scope="module")
def ages(tmp_path_factory):
    """An age regressor that looks at larger squares than the classifier."""
    return tiny_model.write(tmp_path_factory.mktemp("models") / "ages", age=True, size=24)


def test_an_age_regressor_gives_years_and_no_probabilities(ages):
    model = predict.Model(ages)
    assert (model.classes, model.coverage, model.size) == ((), 0.9, 24)
    [age] = model.head().read(model.run(np.full((1, 24, 24, 3), (200, 0, 0), np.uint8)))
    assert (age.years, age.low, age.high) == pytest.approx((20, 14.5, 25.5))
    with pytest.raises(predict.UsageError, match="ages gives ages, not probabilities"):
        model.probabilities(np.zeros((1, 24, 24, 3), np.uint8))


def test_several_models_look_at_one_decoded_photo(photos, tmp_path, folder, ages, monkeypatch):
    opened, open_rgb = [], images.open_rgb
    monkeypatch.setattr(images, "open_rgb", lambda path, size=None, **_: opened.append(size) or open_rgb(path, size))
    (photos / "img_9.jpg").touch()
    output = tmp_path / "labels.json"
    asked = ["--tasks", f"colour={folder},age={ages}", "--confidence", "--faces", "crop"]
    assert cli.label([str(photos), "--output", str(output), *asked]) == 1
    assert opened == [24] * 6
    found = json.loads(output.read_text())
    assert list(found["img_0.jpg"]) == ["colour", "colour_probability", "age", "age_interval"]
    assert {name: entry["colour"] for name, entry in found.items()} == COLOURS
    assert found["img_0.jpg"]["age"] == 25.4 and found["img_1.jpg"]["age_interval"] == [0, 6]
    alone = ["--output", str(output), "--tasks", f"colour={folder}"]
    assert cli.label([str(photos), *alone]) == 1 and json.loads(output.read_text()) == COLOURS
    assert cli.label([str(photos), *alone, "--boxes"]) == 1  # which crops have none of
    assert json.loads(output.read_text())["img_0.jpg"] == [{"colour": "red", "box": None, "score": None}]


@pytest.mark.parametrize("how", [["--model", "{}"], ["--tasks", "age={}"]])
def test_ages_alone(photos, tmp_path, ages, how):
    output = tmp_path / "labels.json"
    assert cli.label([str(photos), "--output", str(output), "--faces", "crop", how[0], how[1].format(ages)]) == 0
    assert json.loads(output.read_text())["img_0.jpg"] == {"age": 25.4, "age_interval": [19, 31]}


def test_thresholds_are_for_labels(refused, ages, photos, tmp_path, folder):
    rest = ["{photos}", "--output", "{tmp}/a.json", "--min-confidence", "0.99", "--tasks"]
    assert refused(*rest, f"age={ages}").endswith("--min-confidence is for labels, and ages alone were asked for")
    picture(photos / "img_5.jpg", (90, 0, 80))
    assert cli.label([part.format(photos=photos, tmp=tmp_path) for part in rest] + [f"a={ages},c={folder}"]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["img_5.jpg"]["c"] == "unknown"


def test_faces_are_looked_for_only_where_a_model_answers_about_faces(tmp_path):
    cartoons = predict.Model(tiny_model.write(tmp_path / "cartoons", classes=["bart", "lisa"]))
    glasses = predict.Model(tiny_model.write(tmp_path / "worn", classes=["glasses", "no_glasses"]))
    years = predict.Model(tiny_model.write(tmp_path / "years", age=True))
    assert pipeline.Pipeline({"glasses": glasses, "age": years}).faces == "auto"
    assert pipeline.Pipeline({"who": cartoons, "glasses": glasses}).faces == "crop"
    assert pipeline.Pipeline({"who": cartoons}, "detect").faces == "detect"
