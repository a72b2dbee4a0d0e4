"""The command ``faces``, and ``process.py``: pictures in, answers out, each file exactly once.

Answers are kept on disk as they come (``faces.outputs.Journal``) and are formatted at the end, so neither memory nor a
killed process is a limit. Needs numpy, Pillow, onnxruntime and tqdm, and no torch.
"""

from __future__ import annotations

import argparse
import codecs
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO

from tqdm import tqdm

from faces import __version__, finding, images, outputs
from faces.files import atomic_write, find_files, write_json
from faces.pipeline import DETECTOR, UNKNOWN, Photo, Pipeline, load_tasks, to_record
from faces.predict import BATCH_SIZE, TASKS, Head, Model, UsageError, homes, printable

RESULTS, ERRORS, RUN = "process_results", "process_errors.json", "process_run.json"
JOURNAL_BATCH = 64  # files that are put into the journal at once
CLOSED: set[str] = set()  # standard streams that were closed when the program started
SKIPPED_NAMES = 1000  # that process_run.json lists at most
# Suffixes of pictures that are not read, RAW photos above all: such a file is an error and not skipped.
UNREAD = re.compile(
    r"\.(jxl|jp2|j2k|jpx|jxr|apng|mpo|pbm|pnm|dib|tga|pcx|psd|svg|exr|hdr|hif|heics"
    r"|dng|cr2|cr3|crw|nef|nrw|arw|sr2|srf|orf|rw2|raf|pef|srw|raw|3fr|iiq|x3f)$",
    re.IGNORECASE,
)
TEXT = bytes({*b"\t\n\f\r\x1b", *range(32, 127), *range(128, 256)})  # what text consists of
# Keys of the results: a task of such a name would overwrite them.
RESERVED = {"file", "face", "faces", "error", "skipped", "box", "score", "label", "probability"}
RESERVED |= {"left", "top", "right", "bottom"}
SUFFIXES_OF_ANSWERS = ("_probability", "_interval", "_low", "_high")


def process_folder(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    tasks: Mapping[str, Model],
    names: Iterable[str] | None = None,
    recursive: bool = False,
    form: str = "json",
    html: str | os.PathLike | None = None,
    confidence: bool = False,
    boxes: bool = False,
    min_confidence: float | str = 0.0,
    resume: bool = False,
    progress: bool = True,
    **how,
) -> tuple[int, int, int]:
    """Answer about every picture of a folder and write ``output``.

    As ``json`` it becomes ``{"img_1.jpg": "male", ...}`` sorted by name; see ``faces.outputs.to_json`` for several
    tasks, probabilities and faces. Files that cannot be read are named on stderr and written to
    ``process_errors.json`` beside it; without errors, one of an earlier run is deleted. A file that is no picture by
    suffix and content (notes, sidecars, videos) is skipped. ``process_run.json`` holds models, options and counts.
    These files appear when the run is complete; until then the answers are kept in a journal beside them.

    Parameters
    ----------
    folder, output : path
    tasks, how
        As for ``pipeline.Pipeline``.
    names : iterable of str, optional
        Paths below ``folder``; default all its files, with ``recursive`` those of folders below it too.
    form, confidence, boxes
        As for ``outputs.write``.
    html : path, optional
        Of a page with thumbnails, filters and histograms.
    min_confidence : float or "auto"
        Confidence below which a label becomes "unknown"; "auto" takes each model's own threshold.
    resume : bool
        Continue an interrupted run.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    read, failed, skipped : int
        Numbers of files.

    Raises
    ------
    UsageError
        "auto" for a model without a threshold; the face detector or pyarrow is missing.
    outputs.JournalError
        See ``outputs.Journal``.
    """
    for path in filter(None, (output, html)):  # before hours of work, not after
        with suppress(_Writable), atomic_write(path):
            raise _Writable
    began, started = time.monotonic(), datetime.now(UTC)
    folder, output = os.fspath(folder), Path(output)
    pipeline = Pipeline(tasks, **how)
    labels = {task: asked for task, asked in pipeline.tasks.items() if asked[1].classes}
    thresholds = {task: _threshold(*asked, min_confidence) for task, asked in labels.items()}
    if form == "parquet":
        _check_installed("pyarrow", "parquet")
    if names is None:
        names = _without_ours(find_files(folder, recursive=recursive), folder, output)
    asked = {"folder": outputs.escaped(os.path.realpath(folder)), "thresholds": thresholds} | pipeline.settings
    models = {task: {"name": outputs.escaped(model.name), "sha256": model.sha256} for task, model in tasks.items()}
    journal = outputs.Journal(_journal(output), asked | {"models": models}, resume=resume)
    try:
        todo = (name for name in names if name not in journal) if resume else names
        photos = pipeline.stream(folder, todo)
        bar = tqdm(unit="photo", desc=_models(tasks), disable=None if progress and sys.stderr else True, leave=False)
        with bar:
            while part := [(photo.name, _record(folder, photo, thresholds)) for photo in islice(photos, JOURNAL_BATCH)]:
                journal.add(part)
                for name, record in part:
                    if "error" in record:
                        _print_error(printable(f"{name}: {record['error']}"))
                bar.update(len(part))
        read, failed, skipped = (journal.count(kind) for kind in ("faces", "error", "skipped"))
        ages = [task for task in tasks if task not in labels]
        shape = {"tasks": list(tasks), "ages": ages, "confidence": confidence, "boxes": boxes}
        if html:
            from faces import report

            asked_of = {"tasks": list(tasks), "ages": ages, "progress": progress}
            report.write(journal.records("faces"), html, folder=folder, **asked_of)
        outputs.write(journal.records("faces"), output, form, **shape)
        _write_errors(journal, output.with_name(ERRORS), failed)
        write_json(
            output.with_name(RUN),
            {
                "faces": __version__,
                "models": models,
                "options": asked | {"form": form, "confidence": confidence, "boxes": boxes, "resumed": resume},
                "output": outputs.escaped(output.name),
                "files": {"read": read, "failed": failed, "skipped": skipped},
                "skipped": [outputs.escaped(name) for name, _ in islice(journal.records("skipped"), SKIPPED_NAMES)],
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - began, 3),
            },
        )
    except BaseException:
        journal.close()
        raise
    journal.close(delete=True)
    return read, failed, skipped


def _record(folder: str, photo: Photo, thresholds: Mapping[str, float]) -> dict:
    """A photo as the journal has it."""
    if photo.error is None:
        return {"faces": [to_record(face, thresholds) for face in photo.faces]}
    return {"skipped" if _is_no_picture(folder, photo) else "error": str(photo.error)}


def _is_no_picture(folder: str, photo: Photo) -> bool:
    """Whether an unreadable file is no picture, neither by its suffix nor by its content."""
    if Path(photo.name).suffix.lower() in images.SUFFIXES or UNREAD.search(photo.name):
        return False
    return photo.error.kind == images.NOT_A_PICTURE or _is_text(Path(folder, photo.name))


def _is_text(path: Path) -> bool:
    """Whether a file begins with text, though it may begin as a picture does: "BM" is also how a BMP begins."""
    try:
        if not path.is_file():  # opening a pipe could wait for ever
            return False
        with path.open("rb") as file:
            return not file.read(4096).translate(None, TEXT)
    except (OSError, ValueError):
        return False


def _print_error(line: str) -> None:
    """Print a line on stderr; the run goes on where that cannot be written."""
    try:
        if sys.stderr:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def _discard(stream: IO[str]) -> None:
    """Redirect a stream that cannot be written to the null device, or Python would fail at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Writable(Exception):
    """Raised to end a trial write."""


def _journal(output: Path) -> Path:
    real = Path(os.path.realpath(output))  # two runs may reach one file by different links
    return real.with_name(f".{real.name}.journal")


def _write_errors(journal: outputs.Journal, path: Path, failed: int) -> None:
    if not failed:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        errors = outputs.JsonObject(file)
        for name, record in journal.records("error"):
            errors.add(outputs.escaped(name), printable(record["error"]))
        errors.close()


def _models(tasks: Mapping[str, Model]) -> str:
    return " and ".join(dict.fromkeys(printable(model.name) for model in tasks.values()))


def _check_installed(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UsageError(f"{package} is not installed: pip install 'faces[{extra}]'")


def list_folder(
    folder: str | os.PathLike,
    label: str,
    *,
    model: Model,
    head: Head,
    names: Iterable[str],
    min_confidence: float | str = 0.0,
    end: str = "\n",
    file: IO[str] | None = None,
    **how,
) -> tuple[int, int]:
    """Print the paths of the pictures that show ``label``, as they are found.

    Parameters
    ----------
    folder, names : path, iterable of str
        The paths are the names below the folder, and begin with it.
    label : str
        A class of the head; one face with it is enough.
    model, head, how
        Of ``pipeline.Pipeline``.
    min_confidence : float or "auto"
        Lowest confidence of the label, as for ``process_folder``.
    end, file : str, text stream
        What is printed after each path, and where to; default standard output.

    Returns
    -------
    read, failed : int
        Numbers of files.
    """
    file, task, folder = file or sys.stdout, head.name, os.fspath(folder)
    threshold, read, failed = _threshold(model, head, min_confidence), 0, 0
    for photo in Pipeline({task: model}, **how).stream(folder, names):
        if photo.error is not None:
            if not _is_no_picture(folder, photo):
                _print_error(printable(f"{photo.name}: {photo.error}"))
                failed += 1
            continue
        read += 1
        answers = (face.answers[task] for face in photo.faces)
        if any(answer.label == label and answer.confidence >= threshold for answer in answers):
            # Not a Path: it would drop "./", which saves names that begin with -.
            path = os.path.join(folder, photo.name)  # noqa: PTH118
            # Names are bytes: one that is not UTF-8 comes out as it is on the disk.
            file.buffer.write(os.fsencode(path + end))
            file.buffer.flush()
    return read, failed


def _head_with(label: str, options: argparse.Namespace) -> tuple[Model, Head]:
    """The first head asked for that has a class of that name, and its model; UsageError lists the classes."""
    asked = {None: options.model} if options.model else options.tasks or TASKS
    known: list[str] = []
    for task, name in asked.items():
        try:
            model = Model(name)
            heads = list(model.heads.values()) if task is None else [model.head(task)]
        except UsageError:
            continue  # a task whose model is not there cannot be meant
        for head in heads:
            if label in head.classes:
                return model, head
            known += head.classes
    labels = ", ".join(dict.fromkeys(known)) or "no labels"
    raise UsageError(f"no model tells {printable(label)!r}; there are {labels}")


def _threshold(model: Model, head: Head, wanted: float | str) -> float:
    if wanted != "auto":
        return wanted
    if head.abstain_below is None:
        raise UsageError(f"{printable(model.name)} has no threshold of its own: give --min-confidence a number")
    return head.abstain_below


def _without_ours(names: Iterable[str], folder: str | os.PathLike, output: Path) -> Iterator[str]:
    """``names`` less the files that are written, should they lie in the folder that is read."""
    try:
        below = output.parent.resolve().relative_to(Path(folder).resolve())
    except ValueError:
        return iter(names)
    ours = (output.name, ERRORS, RUN)
    written = [(below / name).as_posix() for name in ours]
    unfinished = tuple((below / f".{name}.").as_posix() for name in ours)
    return (name for name in names if name not in written and not name.startswith(unfinished))


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


# ----------------------------------------------------------------------------------------------- the arguments

EXAMPLES = """examples:
  {0} photos                         label the faces in every picture of the folder photos
  {0} photos --recursive             and of the folders below it
  {0} photos --tasks gender,age      gender, and age in years with its interval
  {0} photos --faces crop            every picture is the crop of one face: do not look for more
  {0} photos --confidence            write label and probability
  {0} photos --min-confidence 0.9    label "unknown" what is less sure than that
  {0} photos --format csv            one row a face; also jsonl, parquet
  {0} photos --html report.html      a page to look at, too
  {0} photos --resume                go on after an interruption
  {0} photos --list glasses          print the paths of photos in which glasses are worn, one a line
  find . -name "*.jpg" | {0} -       read the paths from a pipe

exit status:
  0    every file was read
  1    some files could not be read; they are listed in process_errors.json
  2    nothing was written: wrong usage, no such folder or model, or no room for the results
  130  interrupted; what was found is kept for --resume
"""


def add_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the options that label, serve and scale share; ``default`` names their default tasks."""
    alone, option = parser.add_mutually_exclusive_group().add_argument, parser.add_argument
    about = f"of {', '.join(TASKS)}; TASK=MODEL has another model answer (default: {default})"
    alone("--tasks", type=tasks_of, metavar="TASK,…", help=about)
    alone("--model", help="one model alone: a folder in artifacts/, or a path")
    about = "take each picture as the crop of one face, or detect faces; auto detects unless it is a crop (default)"
    option("--faces", choices=("auto", "crop", "detect"), default="auto", help=about)
    option("--min-face", type=_positive, metavar="N", help="smallest face, in pixels; smaller: slower")
    about = "lowest face score (default: %(default)s)"
    option("--min-score", type=_score, default=finding.MIN_SCORE, metavar="P", help=about)
    about = "of a picture as it is decoded, large JPEGs at a fraction; larger ones are refused"
    option("--max-pixels", type=_positive, metavar="N", help=about)
    about = "faces at once (default: %(default)s)"
    option("--batch-size", type=_positive, default=BATCH_SIZE, metavar="N", help=about)


def detection(options: argparse.Namespace) -> dict:
    """The options of ``add_options`` that ``pipeline.Pipeline`` takes."""
    return {name: getattr(options, name) for name in ("faces", "min_face", "min_score", "max_pixels", "batch_size")}


def tasks_asked(options: argparse.Namespace, default: Mapping[str, str]) -> dict[str, Model]:
    """Task -> model, by the options of ``add_options``; a model alone answers all its heads."""
    if options.model is None:
        return load_tasks(options.tasks or default)
    model = Model(options.model)
    if len(model.heads) == 1:
        return {"label" if model.classes else "age": model}
    return {_task_name(name): model for name in model.heads}


def _arguments(argv: list[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"Label the faces in a folder of pictures; the answers go to {RESULTS}.json in the working folder.",
        epilog=EXAMPLES.format("python process.py" if prog == "process.py" else prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("folder", metavar="DIR", help="folder of pictures, or - to read paths from a pipe")
    option("--output", metavar="FILE", help=f"write results here instead ({ERRORS} goes beside it)")
    option("--recursive", action="store_true", help="also pictures in folders below DIR; names become paths")
    add_options(parser, "gender")
    option("--boxes", action="store_true", help="write where each face is, too (a list a picture)")
    option("--confidence", action="store_true", help="write the probability of each label too")
    about = f'label "{UNKNOWN}" what has a lower probability; "auto" takes the model\'s own threshold (default: 0)'
    option("--min-confidence", type=_probability, default=0.0, metavar="P", help=about)
    option("--format", dest="form", choices=outputs.FORMATS, default="json", help="of the results (default: json)")
    option("--html", metavar="FILE", help="write a page with thumbnails, filters and histograms there too")
    option("--resume", action="store_true", help="continue an interrupted run")
    about = "write no file, print the paths of the pictures that show LABEL (e.g. glasses, female), one a line"
    option("--list", dest="listed", metavar="LABEL", help=about)
    option("--null", action="store_true", help="with --list: end each path with a NUL, for xargs -0")
    return parser.parse_args(argv)


def tasks_of(text: str) -> dict[str, str]:
    """Task -> model, from the argument of ``--tasks``."""
    asked: dict[str, str] = {}
    for part in text.split(","):
        task, chosen, model = (piece.strip() for piece in part.partition("="))
        if task.lower() in map(str.lower, asked):  # some readers of tables ignore the case of column names
            raise argparse.ArgumentTypeError(f"{task!r} is asked for twice")
        try:
            _task_name(task)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if not task or (chosen and not model) or not (chosen or task in TASKS):
            known = ", ".join(TASKS)
            raise argparse.ArgumentTypeError(f"no task {part!r}; there are {known}, or name a model: TASK=MODEL")
        asked[task] = model or TASKS[task]
    return asked


def _task_name(task: str) -> str:
    """The name of a task; UsageError if it cannot be a key of the results."""
    if not task.isprintable():
        raise UsageError(f"{printable(task)} cannot be the name of a task: give it a printable one")
    if task.lower() in RESERVED or task.lower().endswith(SUFFIXES_OF_ANSWERS):
        reserved = ", ".join([*sorted(RESERVED), *("…" + ending for ending in SUFFIXES_OF_ANSWERS)])
        raise UsageError(f"{task!r} is a key of the results; name the task otherwise than {reserved}")
    return task


def _number(text: str, allowed: Callable[[float], bool], what: str) -> float:
    with suppress(ValueError):
        if allowed(number := float(text)):
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is {what}")


def _score(text: str) -> float:
    return _number(text, lambda number: 0 < number <= 1, "not a number above 0, up to 1")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _probability(text: str) -> float | str:
    if text == "auto":
        return text
    return _number(text, lambda number: 0 <= number <= 1, 'neither a probability from 0 to 1 nor "auto"')


def _check(options: argparse.Namespace, output: Path) -> None:
    """UsageError for what cannot be carried out as given."""
    if options.listed is not None and (options.output or options.confidence or options.html or options.resume):
        raise UsageError("--list writes no file and prints paths alone: leave the options for results out")
    if options.null and options.listed is None:
        raise UsageError("--null is for --list")
    if not options.folder:
        raise UsageError("DIR is empty; name a folder")
    if "stdout" in CLOSED and options.listed is not None:
        raise UsageError("--list prints to standard output, which is closed")
    if options.folder == "-":
        if "stdin" in CLOSED:
            raise UsageError("- reads paths from standard input, which is closed")
        if options.recursive:
            raise UsageError("--recursive is for folders; from a pipe come paths of files")
        if options.resume:
            raise UsageError("--resume is for folders: a pipe may bring other paths than before")
    elif not Path(options.folder).is_dir():
        what = "is a file, not a folder" if Path(options.folder).exists() else "does not exist"
        raise UsageError(f"{printable(options.folder)} {what}")
    for path in filter(None, (output, options.html and Path(options.html))):
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            raise UsageError(f"cannot write {printable(str(path))}: name a file in a folder that exists")
        if _is_device(path):
            raise UsageError(f"cannot write {printable(str(path))}: name a file, since results appear when complete")
        if path.name.lower() in (ERRORS, RUN):
            raise UsageError(f"cannot write {printable(str(path))}: that name is taken by what is written beside it")


def _is_device(path: Path) -> bool:
    """Whether a path leads to a device or an open stream, such as /dev/stdout, which may itself be a file."""
    for _ in range(40):  # links at most
        folder = Path(os.path.realpath(path.parent))
        if os.name == "posix" and (str(folder) in ("/dev", "/dev/fd") or folder.is_relative_to("/proc")):
            return True
        path = folder / path.name
        if not path.is_symlink():
            break
        path = folder / path.readlink()
    return False


def _open_streams() -> None:
    """Give every standard stream that is closed the null device, so that no file of ours takes its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, mode, closefd=False))
                CLOSED.add(name)


def label(argv: list[str] | None = None, prog: str = "process.py") -> int:
    """Label a folder; returns the exit status (see ``EXAMPLES``)."""
    _open_streams()
    options = _arguments(argv, prog)
    output = Path(f"{RESULTS}.{options.form}" if options.output is None else options.output)
    try:
        _check(options, output)
        names = read_names(sys.stdin.buffer) if options.folder == "-" else None
        folder = "" if names is not None else options.folder
        if options.listed is not None:
            return _list(options, folder, names)
        tasks = tasks_asked(options, {"gender": TASKS["gender"]})
        if options.min_confidence and not any(model.head(task).classes for task, model in tasks.items()):
            raise UsageError("--min-confidence is for labels, and ages alone were asked for")
        forms = ("recursive", "form", "html", "confidence", "boxes", "min_confidence", "resume")
        how = {name: getattr(options, name) for name in forms} | detection(options)
        read, failed, skipped = process_folder(folder, output, tasks=tasks, names=names, **how)
    except (UsageError, outputs.JournalError) as error:
        _print_error(f"{prog}: {printable(str(error))}")
        return 2
    except OSError as error:
        where = error.filename or ("standard output" if options.listed is not None else output)
        _print_error(f"{prog}: {error.strerror or error}: {printable(str(where))}")
        return 2
    except MemoryError:
        _print_error(f"{prog}: not enough memory; try a smaller --batch-size")
        return 2
    except (KeyboardInterrupt, RuntimeError) as error:
        # An interrupt while Python waits for a lock comes out as its failure to release that lock.
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        _print_error(f"{prog}: interrupted; the same command with --resume goes on from here")
        return 130
    try:
        print(f"{_count(read, 'photo')} labelled by {_models(tasks)} -> {printable(str(output))}", flush=True)
    except OSError as error:  # the results are there all the same
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            _print_error(f"{prog}: {error.strerror or error}: standard output")
    if skipped:
        _print_error(f"{_count(skipped, 'file')} skipped, by name and content no picture (see {RUN})")
    if failed:
        errors = printable(str(output.with_name(ERRORS)))
        _print_error(f"{_count(failed, 'file')} could not be read -> {errors}")
    return 1 if failed else 0


def _list(options: argparse.Namespace, folder: str, names: Iterable[str] | None) -> int:
    model, head = _head_with(options.listed, options)
    try:
        _, failed = list_folder(
            folder,
            options.listed,
            model=model,
            head=head,
            names=find_files(folder, recursive=options.recursive) if names is None else names,
            min_confidence=options.min_confidence,
            end="\0" if options.null else "\n",
            **detection(options),
        )
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        _discard(sys.stdout)
        return 141  # the status of a program that the signal SIGPIPE ended
    return 1 if failed else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# ---------------------------------------------------------------------------------------------- the command faces

# Sub-command -> module and function, the extra that it needs, what it does.
COMMANDS = {
    "label": ("faces.cli", "label", "", "label the faces in a folder of pictures"),
    "serve": ("faces.serve", "main", "serve", "answer photos over HTTP"),
    "scale": ("faces.scale", "main", "scale", "label a folder of any size on many machines"),
    "train": ("faces.research.experiments", "main", "research", "train a network as a settings file says"),
    "evaluate": ("faces.research.evaluate", "main", "research", "test a model on labelled photos"),
    "export": ("faces.cli", "export", "research", "write a trained network as ONNX or Core ML"),
    "models": ("faces.cli", "models", "", "list the models that can be found"),
    "notebooks": ("faces.research.notebooks", "main", "research", "run the notebooks"),
    "demo": ("faces.research.demo", "main", "research", "draw a practice set of labelled faces"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command ``faces``; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="faces",
        description="Label photos of faces, and train, test and export the networks that do.",
        epilog="commands:\n"
        + "".join(f"  {name:10}{about[3]}\n" for name, about in COMMANDS.items())
        + "\nfaces COMMAND --help describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"faces {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help="options of the command")
    options = parser.parse_args(argv)
    module, function, extra, _ = COMMANDS[options.command]
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold what the terminal cannot show
    try:
        run = getattr(import_module(module), function)
        return run(options.rest, "faces label") if options.command == "label" else run(options.rest)
    except ImportError as error:
        missing = error.name or ""
        if not extra or missing.startswith("faces"):
            raise
        _print_error(f"faces {options.command}: {missing} is not installed: pip install 'faces[{extra}]'")
        return 2


def models(argv: list[str] | None = None) -> int:
    """List the models: name, heads, size of the images and of the file, and the terms of their training data."""
    argparse.ArgumentParser(prog="faces models", description=models.__doc__).parse_args(argv)
    for folder in sorted({path.parent for home in homes() for path in home.glob("*/model.onnx")}):
        try:
            model = Model(folder)
        except UsageError as error:
            if folder.name != DETECTOR:
                print(f"{folder.name}: {error}")
            continue
        heads = "; ".join(f"{head.name}: {', '.join(head.classes) or 'years'}" for head in model.heads.values())
        size = (folder / "model.onnx").stat().st_size / 1e6
        default = [task for task, name in TASKS.items() if name == folder.name]
        print(f"{folder.name}  {model.size}×{model.size} pixels of a {model.subject}, {size:.1f} MB")
        print(f"  answers {heads}" + f" (default for {', '.join(default)})" * bool(default))
        with suppress(OSError):
            card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
            print("  " + " ".join(card.partition("## Training data and its terms")[2].split()))
    return 0


def export(argv: list[str] | None = None) -> int:
    """Write a trained network for use elsewhere."""
    parser = argparse.ArgumentParser(prog="faces export", description=export.__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    onnx = kinds.add_parser("onnx", help="a finished run as a model folder, tested on the test photos of some folders")
    onnx.add_argument("run", metavar="RUN", help="folder of the run")
    onnx.add_argument("target", metavar="MODEL", help="folder to write")
    onnx.add_argument("data", metavar="DIR", nargs="+", help="folders of labelled photos, those it was trained on")
    onnx.add_argument("--subject", choices=("face", "picture"), default="face", help="what an image shows")
    onnx.add_argument("--half", action="store_true", help="store the weights in 16 bits")
    onnx.add_argument("--overwrite", action="store_true", help="replace a model folder that is there already")
    apple = kinds.add_parser("coreml", help="a model as an ML program for Apple's devices (extra coreml)")
    apple.add_argument("model", metavar="MODEL", help=f"a task ({', '.join(TASKS)}), a name, or a folder")
    apple.add_argument("target", metavar="OUT.mlpackage", help="the package to write")
    apple.add_argument("--check", metavar="DIR", help="on a Mac: compare its answers on these photos with the model's")
    options = parser.parse_args(argv)
    try:
        if options.kind == "onnx":
            experiments = import_module("faces.research.experiments")
            settings = experiments.Settings(data=options.data, run=options.run, recipe=experiments.Recipe())
            how = {"subject": options.subject, "half": options.half, "overwrite": options.overwrite}
            experiments.publish(options.run, options.target, experiments.prepare(settings), **how)
        else:
            coreml = import_module("faces.research.coreml")
            coreml.export(options.model, options.target)
            if options.check:
                model = Model(TASKS.get(options.model, options.model))
                worst = coreml.check(options.target, model, options.check)
                print(f"on the photos in {options.check} its probabilities differ by {worst:.4f} at most")
    except (UsageError, ValueError, OSError, RuntimeError) as error:
        _print_error(f"faces export: {printable(str(error))}")
        return 2
    print(f"{printable(options.target)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
