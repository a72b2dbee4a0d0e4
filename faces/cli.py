"""The command line of ``process.py``: pictures in, answers out, each file exactly once.

What is found is kept on disk as it goes (``faces.outputs.Journal``) and takes its form at the end, so neither memory
nor a killed process is a limit. Needs numpy, Pillow, onnxruntime and tqdm, and no torch.
"""

from __future__ import annotations

import argparse
import codecs
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

from tqdm import tqdm

from faces import __version__, finding, images, outputs
from faces.files import whole_file, write_json
from faces.predict import (
    ARTIFACTS,
    BATCH_SIZE,
    ROOT,
    TASKS,
    UNKNOWN,
    Model,
    UsageError,
    as_crop,
    find_files,
    printable,
    records,
)

RESULTS, ERRORS, RUN = "process_results", "process_errors.json", "process_run.json"
DETECTOR = "face_finder"  # the folder of the face detector in artifacts/
KEPT = 64  # files that are put into the journal at once
NO_PICTURE = re.compile("not a picture|not a photo|^empty")  # what images.ImageError says of other files
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
ANSWERS = {"gender": ["female", "male"], "age": None, "glasses": ["glasses", "no_glasses"]}  # of the tasks in TASKS
SUFFIXES_OF_ANSWERS = ("_probability", "_interval", "_low", "_high")


def process_folder(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    tasks: Mapping[str, Model],
    names: Iterable[str] | None = None,
    recursive: bool = False,
    faces: str = "crop",
    min_face: float | None = None,
    min_score: float = finding.MIN_SCORE,
    form: str = "json",
    html: str | os.PathLike | None = None,
    confidence: bool = False,
    boxes: bool = False,
    min_confidence: float | str = 0.0,
    resume: bool = False,
    batch_size: int = BATCH_SIZE,
    max_pixels: int | None = None,
    progress: bool = True,
) -> tuple[int, int, int]:
    """Answer for every picture of a folder and write ``output``; return how many were read, failed and skipped.

    As ``json`` it becomes ``{"img_1.jpg": "male", …}`` sorted by name; ``faces.outputs.entry`` says what becomes of
    more tasks, probabilities and faces. What could not be read is reported on stderr and written to
    ``process_errors.json`` beside it, name and reason; without errors, one left by an earlier run goes. A file that
    neither by its suffix nor by its content is a picture (notes, sidecars, videos) is skipped.
    ``process_run.json`` tells how all of it came about. They appear only when complete; until then what was found is
    kept in a journal beside them.

    Parameters
    ----------
    tasks : name -> model; the answers of several come under these names.
    names : paths below ``folder``, instead of those that are found there.
    faces : "crop" (each picture is the crop of one face), "detect" (look for faces) or "auto" (look, unless the picture
        is a crop already).
    min_face, min_score : as for ``finding.Detector``.
    form : one of ``outputs.FORMATS``.
    html : also write a page to look at there.
    min_confidence : a face whose label has a lower probability is labelled "unknown" (its probability remains that of
        the label it would have got); "auto" takes each classifier's own threshold.
    resume : go on where a run that was cut short stopped.
    max_pixels : of a picture, as for ``images.open_rgb``.

    Raises
    ------
    UsageError : "auto" confidence for a classifier that has no threshold; the face detector or pyarrow is missing.
    outputs.JournalError : see ``outputs.Journal``.
    """
    for path in filter(None, (output, html)):  # before hours of work, not after
        with suppress(_Enough), whole_file(path):
            raise _Enough
    began, started = time.monotonic(), datetime.now(UTC)
    folder, output = os.fspath(folder), Path(output)
    least = {task: _least(model, min_confidence) for task, model in tasks.items() if model.classes}
    faces = looked_for(faces, tasks.values())
    see = seer(faces, min_face=min_face, min_score=min_score)
    if form == "parquet":
        _needs("pyarrow", "parquet")
    if names is None:
        names = _without_ours(find_files(folder, recursive=recursive), folder, output)
    asked = {"folder": outputs.escaped(os.path.realpath(folder)), "faces": faces, "least": least}
    if faces != "crop":
        asked |= {"min_face": min_face, "min_score": min_score}
    models = {task: {"name": outputs.escaped(model.name), "sha256": model.sha256} for task, model in tasks.items()}
    journal = outputs.Journal(_journal(output), asked | {"models": models}, resume=resume)
    try:
        todo = (name for name in names if name not in journal) if resume else names
        said = records(tasks, folder, todo, see=see, least=least, batch_size=batch_size, max_pixels=max_pixels)
        title = " and ".join(printable(model.name) for model in tasks.values())
        bar = tqdm(unit="photo", desc=title, disable=None if progress and sys.stderr else True, leave=False)
        with bar:
            while part := [(name, _sorted_out(folder, name, record)) for name, record in islice(said, KEPT)]:
                journal.add(part)
                for name, record in part:
                    if "error" in record:
                        _complain(printable(f"{name}: {record['error']}"))
                bar.update(len(part))
        read, failed, skipped = (journal.count(kind) for kind in ("faces", "error", "skipped"))
        ages = [task for task, model in tasks.items() if not model.classes]
        shape = {"tasks": list(tasks), "ages": ages, "confidence": confidence, "boxes": boxes}
        if html:
            from faces import report

            report.write(journal.records("faces"), html, folder=folder, tasks=list(tasks), ages=ages)
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


def _sorted_out(folder: str, name: str, record: dict) -> dict:
    """The record; of a file that neither by its suffix nor by its content is a picture ``{"skipped": why}``."""
    if "error" not in record or Path(name).suffix.lower() in images.SUFFIXES or UNREAD.search(name):
        return record
    if NO_PICTURE.search(record["error"]) or _is_text(Path(folder, name)):
        return {"skipped": record["error"]}
    return record


def _is_text(path: Path) -> bool:
    """Whether a file begins with text, though it may begin as a picture does: "BM" is also how a BMP begins."""
    try:
        if not path.is_file():  # opening a pipe could wait for ever
            return False
        with path.open("rb") as file:
            return not file.read(4096).translate(None, TEXT)
    except (OSError, ValueError):
        return False


def _complain(line: str) -> None:
    """Print a line on stderr; where that cannot be written the line is lost, not the run."""
    try:
        if sys.stderr:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def _discard(stream: IO[str]) -> None:
    """Lead a stream that cannot be written to nowhere, or Python would fail at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Enough(Exception):
    """It could be written."""


def _journal(output: Path) -> Path:
    real = Path(os.path.realpath(output))  # two runs may reach one file by different links
    return real.with_name(f".{real.name}.journal")


def _write_errors(journal: outputs.Journal, path: Path, failed: int) -> None:
    if not failed:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as file:
        errors = outputs.JsonObject(file)
        for name, record in journal.records("error"):
            errors.add(outputs.escaped(name), printable(record["error"]))
        errors.close()


def looked_for(faces: str, models: Iterable[Model]) -> str:
    """``faces`` as it is meant: "auto" becomes "crop" where a model answers about whole pictures, such as cartoons."""
    return "crop" if faces == "auto" and not all(model.of_faces for model in models) else faces


def seer(faces: str, *, min_face: float | None = None, min_score: float = finding.MIN_SCORE):
    """How a picture is looked at: a function of its path, frames and ``max_pixels``, as ``finding.look``.

    Parameters
    ----------
    faces : as ``looked_for`` gives it.
    min_face, min_score : as for ``finding.Detector``.

    Raises
    ------
    UsageError : faces are to be detected and the detector cannot be loaded.
    """
    if faces == "crop":
        return as_crop
    try:
        detector = finding.Detector(ARTIFACTS / DETECTOR, min_face=min_face, min_score=min_score)
    except finding.DetectorError as error:
        raise UsageError(f"no face detector: {printable(str(error))} (--faces crop does without one)") from None
    return partial(finding.look, detector=detector, crops=faces == "auto")


def _needs(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UsageError(f"{package} is not installed: pip install '.[{extra}]' brings it")


def list_folder(
    folder: str | os.PathLike,
    label: str,
    *,
    model: Model,
    names: Iterable[str],
    batch_size: int = BATCH_SIZE,
    max_pixels: int | None = None,
    min_confidence: float | str = 0.0,
    faces: str = "crop",
    min_face: float | None = None,
    min_score: float = finding.MIN_SCORE,
    end: str = "\n",
    file: IO[str] | None = None,
) -> tuple[int, int]:
    """Print the paths of the pictures that show ``label``; return how many were read and how many could not be.

    Paths begin with ``folder`` and are printed as they are found, each with ``end`` after it, so that a pipe can go on
    with them. What could not be read is named on stderr.

    Parameters
    ----------
    label : one of the model's classes; one face with it is enough.
    min_confidence : that the label must have; "auto" as for ``process_folder``.
    min_face, min_score : as for ``finding.Detector``.
    file : where to; standard output by default.
    """
    least, file = {"label": _least(model, min_confidence)}, file or sys.stdout
    read = failed = 0
    see = seer(looked_for(faces, [model]), min_face=min_face, min_score=min_score)
    said = records({"label": model}, folder, names, see=see, least=least, batch_size=batch_size, max_pixels=max_pixels)
    for name, record in said:
        if "skipped" in _sorted_out(os.fspath(folder), name, record):
            continue
        if "error" in record:
            _complain(printable(f"{name}: {record['error']}"))
            failed += 1
            continue
        read += 1
        if any(face["label"] == label for face in record["faces"]):
            # Not a Path: it would drop "./", which saves names that begin with -.
            path = os.path.join(folder, name)  # noqa: PTH118
            # Names are bytes: one that is not UTF-8 comes out as it is on the disk.
            file.buffer.write(os.fsencode(path + end))
            file.buffer.flush()
    return read, failed


def _model_with(label: str, models: Iterable[str]) -> Model:
    """The first of some models that has a class of that name; UsageError lists what there is."""
    known: list[str] = []
    for name in models:
        try:
            model = Model(name)
        except UsageError:
            continue  # a task whose model is not there cannot be meant
        if label in model.classes:
            return model
        known += model.classes
    labels = ", ".join(dict.fromkeys(known)) or "no labels"
    raise UsageError(f"no model tells {printable(label)!r}; there are {labels}")


def _least(model: Model, wanted: float | str) -> float:
    if wanted != "auto":
        return wanted
    if model.abstain_below is None:
        raise UsageError(f"{printable(model.name)} has no threshold of its own: give --min-confidence a number")
    return model.abstain_below


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
    """Paths from a pipe, one a line, or each with a NUL after it where the first of them has one (``find -print0``).

    Names are bytes: one that is not UTF-8 stays what it is. An empty line is no name. What Windows adds is left out:
    a mark at the beginning, and a carriage return at the end of a line unless there is a file of that name.

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

EXAMPLES = f"""examples:
  python process.py photos                         label the faces in every picture of the folder photos
  python process.py photos --recursive             and of the folders below it
  python process.py photos --tasks gender,age      gender, and age in years with its interval
  python process.py photos --faces crop            every picture is the crop of one face: do not look for more
  python process.py photos --confidence            write label and probability
  python process.py photos --min-confidence 0.9    label "{UNKNOWN}" what is less sure than that
  python process.py photos --format csv            one row a face; also jsonl, parquet
  python process.py photos --html report.html      a page to look at, too
  python process.py photos --resume                go on after an interruption
  python process.py photos --list glasses          print the paths of photos in which glasses are worn, one a line
  find . -name "*.jpg" | python process.py -       read the paths from a pipe

exit status:
  0    every file was read
  1    some files could not be read; they are listed in {ERRORS}
  2    nothing was written: wrong usage, no such folder or model, or no room for the results
  130  interrupted; what was found is kept for --resume
"""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="process.py",
        description=f"Label the faces in a folder of pictures; the answers go to {RESULTS}.json beside process.py.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="folder of pictures, or - to read paths from a pipe")
    parser.add_argument("--output", metavar="FILE", help=f"write results here instead ({ERRORS} goes beside it)")
    parser.add_argument("--recursive", action="store_true", help="look into folders below DIR; names become paths")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--tasks",
        type=tasks_of,
        metavar="TASK,…",
        help=f"what to tell of each face: {', '.join(TASKS)}; TASK=MODEL has another model answer (default: gender)",
    )
    asked.add_argument("--model", help="one model alone: a folder in artifacts/, or a path")
    parser.add_argument(
        "--faces",
        choices=("auto", "crop", "detect"),
        default="auto",
        help="take each picture as the crop of one face, or look for faces; auto looks whether it is a crop (default)",
    )
    parser.add_argument(
        "--min-face",
        type=_positive,
        metavar="N",
        help="smallest face, in pixels; smaller: slower",
    )
    parser.add_argument(
        "--min-score",
        type=_score,
        default=finding.MIN_SCORE,
        metavar="P",
        help="lowest face score (default: %(default)s)",
    )
    parser.add_argument("--boxes", action="store_true", help="write where each face is, too (a list a picture)")
    parser.add_argument("--confidence", action="store_true", help="write the probability of each label too")
    parser.add_argument(
        "--min-confidence",
        type=_probability,
        default=0.0,
        metavar="P",
        help=f'label "{UNKNOWN}" what has a lower probability; "auto" takes the model\'s own threshold (default: 0)',
    )
    parser.add_argument("--format", choices=outputs.FORMATS, default="json", help="of the results (default: json)")
    parser.add_argument("--html", metavar="FILE", help="write a page with thumbnails, filters and histograms there too")
    parser.add_argument("--resume", action="store_true", help="go on where a run that was cut short stopped")
    parser.add_argument(
        "--list",
        dest="listed",
        metavar="LABEL",
        help="write no file, print the paths of the pictures that show LABEL (e.g. glasses, female), one a line",
    )
    parser.add_argument("--null", action="store_true", help="with --list: end each path with a NUL, for xargs -0")
    parser.add_argument(
        "--batch-size", type=_positive, default=BATCH_SIZE, metavar="N", help="faces at once (default: %(default)s)"
    )
    parser.add_argument(
        "--max-pixels",
        type=_positive,
        default=images.MAX_PIXELS,
        metavar="N",
        help="of a picture as it is decoded, large JPEGs at a fraction; larger ones are refused (default: %(default)s)",
    )
    return parser.parse_args(argv)


def tasks_of(text: str) -> dict[str, str]:
    """Task -> model, from what ``--tasks`` was given."""
    asked: dict[str, str] = {}
    for part in text.split(","):
        task, chosen, model = (piece.strip() for piece in part.partition("="))
        if not task.isprintable():
            raise argparse.ArgumentTypeError(f"{printable(task)} cannot be the name of a task: give it a printable one")
        if task.lower() in map(str.lower, asked):  # some readers of tables do not tell large letters from small ones
            raise argparse.ArgumentTypeError(f"{task!r} is asked for twice")
        if task.lower() in RESERVED or task.lower().endswith(SUFFIXES_OF_ANSWERS):
            reserved = ", ".join([*sorted(RESERVED), *("…" + ending for ending in SUFFIXES_OF_ANSWERS)])
            raise argparse.ArgumentTypeError(
                f"{task!r} is a key of the results; name the task otherwise than {reserved}"
            )
        if not task or (chosen and not model) or not (chosen or task in TASKS):
            known = ", ".join(TASKS)
            raise argparse.ArgumentTypeError(f"no task {part!r}; there are {known}, or name a model: TASK=MODEL")
        asked[task] = model or TASKS[task]
    return asked


def _score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 < score <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, up to 1")
    return score


def load_tasks(asked: Mapping[str, str]) -> dict[str, Model]:
    """Task -> loaded model.

    Raises
    ------
    UsageError : a model is not there, or answers something else than the task of that name does.
    """
    tasks = {task: Model(model) for task, model in asked.items()}
    for task, model in tasks.items():
        answers = sorted(model.classes) if model.classes else None
        if task in TASKS and asked[task] != TASKS[task] and answers != ANSWERS[task]:
            said = " or ".join(answers) if answers else "with an age"
            raise UsageError(f"{printable(model.name)} answers {said}, not {task}: give the task another name")
    return tasks


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _probability(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a probability from 0 to 1 nor "auto"')
    return value


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


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status (see ``EXAMPLES``)."""
    _open_streams()
    options = _arguments(argv)
    output = ROOT / f"{RESULTS}.{options.format}" if options.output is None else Path(options.output)
    try:
        _check(options, output)
        names = read_names(sys.stdin.buffer) if options.folder == "-" else None
        folder = "" if names is not None else options.folder
        if options.listed is not None:
            return _list(options, folder, names)
        if options.model is None:
            asked = options.tasks or {"gender": TASKS["gender"]}
            tasks = load_tasks(asked)
        else:
            model = Model(options.model)
            tasks = {"label" if model.classes else "age": model}
        if options.min_confidence and not any(model.classes for model in tasks.values()):
            raise UsageError("--min-confidence is for labels, and ages alone were asked for")
        read, failed, skipped = process_folder(
            folder,
            output,
            tasks=tasks,
            names=names,
            recursive=options.recursive,
            faces=options.faces,
            min_face=options.min_face,
            min_score=options.min_score,
            form=options.format,
            html=options.html,
            confidence=options.confidence,
            boxes=options.boxes,
            min_confidence=options.min_confidence,
            resume=options.resume,
            batch_size=options.batch_size,
            max_pixels=options.max_pixels,
        )
    except (UsageError, outputs.JournalError) as error:
        _complain(f"process.py: {printable(str(error))}")
        return 2
    except OSError as error:
        where = error.filename or ("standard output" if options.listed is not None else output)
        _complain(f"process.py: {error.strerror or error}: {printable(str(where))}")
        return 2
    except MemoryError:
        _complain("process.py: not enough memory; try a smaller --batch-size")
        return 2
    except (KeyboardInterrupt, RuntimeError) as error:
        # An interrupt that strikes while Python waits for a lock comes out as its failure to release that lock.
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        _complain("process.py: interrupted; the same command with --resume goes on from here")
        return 130
    models = " and ".join(printable(model.name) for model in tasks.values())
    try:
        print(f"{_count(read, 'photo')} labelled by {models} -> {printable(str(output))}", flush=True)
    except OSError as error:  # the results are there all the same
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            _complain(f"process.py: {error.strerror or error}: standard output")
    if skipped:
        _complain(f"{_count(skipped, 'file')} skipped, by name and content no picture (see {RUN})")
    if failed:
        errors = printable(str(output.with_name(ERRORS)))
        _complain(f"{_count(failed, 'file')} could not be read -> {errors}")
    return 1 if failed else 0


def _list(options: argparse.Namespace, folder: str, names: Iterable[str] | None) -> int:
    asked = [options.model] if options.model else (options.tasks or TASKS).values()
    model = _model_with(options.listed, asked)
    try:
        _, failed = list_folder(
            folder,
            options.listed,
            model=model,
            names=find_files(folder, recursive=options.recursive) if names is None else names,
            batch_size=options.batch_size,
            max_pixels=options.max_pixels,
            min_confidence=options.min_confidence,
            faces=options.faces,
            min_face=options.min_face,
            min_score=options.min_score,
            end="\0" if options.null else "\n",
        )
    except BrokenPipeError:  # whoever read has seen enough, as `head` has
        _discard(sys.stdout)
        return 141  # what a shell says of a program that the signal SIGPIPE ended
    return 1 if failed else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
