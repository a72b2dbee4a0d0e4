"""The options of ``process.py`` and ``faces label``, of which other commands share some."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from faces import __version__, finding, outputs
from faces.pipeline import FACES, UNKNOWN, load_tasks
from faces.predict import BATCH_SIZE, TASKS, Model, UsageError, printable

RESULTS, ERRORS, RUN = "process_results", "process_errors.json", "process_run.json"
COPIES = ("sort", "crops", "annotate")  # folders of ``copies.Copies``
CLOSED: set[str] = set()  # standard streams that were closed when the program started
# Keys of the results: a task of such a name would overwrite them.
RESERVED = {"file", "face", "faces", "error", "skipped", "box", "score", "label", "probability"}
RESERVED |= {"left", "top", "right", "bottom"}
SUFFIXES_OF_ANSWERS = ("_probability", "_interval", "_low", "_high")

EXAMPLES = """examples:
  {0} photos                         label the faces in every picture of the folder photos
  {0} photos --recursive             and of the folders below it (-r)
  {0} a.jpg b.jpg photos             files and folders; names are paths then
  {0} photos --tasks gender,age      gender, and age in years with its interval
  {0} photos --faces crop            every picture is the crop of one face: do not look for more
  {0} photos --confidence            write label and probability
  {0} photos --min-confidence 0.9    label "unknown" what is less sure than that
  {0} photos -o results.csv          one row a face; also .jsonl, .parquet; - is standard output
  {0} photos --html report.html      a page to look at, too
  {0} photos --annotate seen         copies of the pictures with boxes and answers in the folder seen
  {0} photos --crops cut             each face alone, in cut/female, cut/male …
  {0} photos --sort by_label         copies of the photos in by_label/female, … no_face, several, unknown
  {0} photos --tasks gender,age --sort out --by gender/age    out/female/30-39 …
  {0} photos --resume                go on after an interruption
  {0} photos --list glasses          print the paths of photos in which glasses are worn, one a line
  find . -name "*.jpg" | {0} -       read the paths from a pipe

exit status:
  0    every file was read
  1    some files could not be read; they are listed in process_errors.json
  2    no results were written: wrong usage, no such folder or model, or no room for them
  130  interrupted; what was found is kept for --resume
"""


def add_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the options that label, serve and scale share; ``default`` names their default tasks."""
    alone, option = parser.add_mutually_exclusive_group().add_argument, parser.add_argument
    about = f"of {', '.join(TASKS)}; TASK=MODEL has another model answer (default: {default})"
    alone("--tasks", type=tasks_of, metavar="TASK,…", help=about)
    alone("--model", help="one model alone: a folder in artifacts/, or a path")
    about = "take each picture as the crop of one face, or detect faces; auto detects unless it is a crop (default)"
    option("--faces", choices=FACES, default="auto", help=about)
    option("--min-face", type=positive, metavar="N", help="smallest face, in pixels; smaller: slower")
    about = "lowest face score (default: %(default)s)"
    option("--min-score", type=_score, default=finding.MIN_SCORE, metavar="P", help=about)
    about = "of a picture as it is decoded, large JPEGs at a fraction; larger ones are refused"
    option("--max-pixels", type=positive, metavar="N", help=about)
    about = "faces at once (default: %(default)s)"
    option("--batch-size", type=positive, default=BATCH_SIZE, metavar="N", help=about)
    about = "gender and glasses by a small network where it is sure, by the default one elsewhere; not with age"
    option("--quick", action="store_true", help=about)


def detection(options: argparse.Namespace) -> dict[str, Any]:
    """The options of ``add_options`` that ``pipeline.Pipeline`` takes."""
    taken = ("faces", "min_face", "min_score", "max_pixels", "batch_size", "quick")
    return {name: getattr(options, name) for name in taken}


def tasks_asked(options: argparse.Namespace, default: Mapping[str, str]) -> dict[str, Model]:
    """Task -> model, by the options of ``add_options``; a model alone answers all its heads."""
    if options.model is None:
        return load_tasks(options.tasks or default)
    model = Model(options.model)
    if len(model.heads) == 1:
        return {"label" if model.classes else "age": model}
    return {_task_name(name): model for name in model.heads}


def parse(argv: list[str] | None, prog: str) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"Label the faces in pictures; the answers go to {RESULTS}.json in the working folder.",
        epilog=EXAMPLES.format("python process.py" if prog == "process.py" else prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(prog=prog)
    option = parser.add_argument
    option("paths", metavar="DIR", nargs="+", help="folder of pictures, several files and folders, or - for a pipe")
    option("-r", "--recursive", action="store_true", help="also pictures in folders below DIR; names become paths")
    add_options(parser, "gender")
    option("--version", action="version", version=f"faces {__version__}")
    option = parser.add_argument_group("results").add_argument
    about = f"write results here instead ({ERRORS} goes beside it), or - for standard output"
    option("-o", "--output", metavar="FILE", help=about)
    about = "of the results (default: by the ending of FILE, or json)"
    option("--format", dest="form", choices=outputs.FORMATS, help=about)
    option("--boxes", action="store_true", help="write where each face is, too (always a list a picture)")
    option("--confidence", action="store_true", help="write the probability of each label too")
    about = f'label "{UNKNOWN}" what has a lower probability; "auto" takes the model\'s own threshold (default: 0)'
    option("--min-confidence", type=_probability, default=0.0, metavar="P", help=about)
    option("--html", metavar="FILE", help="write a page with thumbnails, filters and histograms there too")
    about = "write no file, print the paths of the pictures that show LABEL (e.g. glasses, female), one a line"
    option("--list", dest="listed", metavar="LABEL", help=about)
    option("--null", action="store_true", help="with --list: end each path with a NUL, for xargs -0")
    option = parser.add_argument_group("copies of the pictures (no file is moved or overwritten)").add_argument
    option("--annotate", metavar="DIR", help="copies with boxes and answers drawn into them")
    option("--crops", metavar="DIR", help="each face alone, in a folder named by its label")
    about = f"copies in folders named by label, {outputs.NO_FACE}, {UNKNOWN}, or several for faces of different labels"
    option("--sort", metavar="DIR", help=about)
    option("--by", metavar="TASK/…", help="tasks that name the folders of --sort and --crops (default: the first)")
    option("--link", action="store_true", help="with --sort: hard links instead of copies")
    group = parser.add_argument_group("the run")
    option = group.add_mutually_exclusive_group().add_argument
    option("--resume", action="store_true", help="continue an interrupted run")
    option("--restart", action="store_true", help="discard an interrupted run")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no summary; errors are printed")
    return parser.parse_intermixed_args(argv)  # paths before and behind options


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


def positive(text: str) -> int:
    """A whole number above 0, of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _probability(text: str) -> float | str:
    if text == "auto":
        return text
    return _number(text, lambda number: 0 <= number <= 1, 'neither a probability from 0 to 1 nor "auto"')


def check(options: argparse.Namespace, output: Path) -> None:
    """UsageError for what cannot be carried out as given."""
    copies = [getattr(options, name) for name in COPIES if getattr(options, name) is not None]
    files = (options.output, options.form, options.confidence, options.html, options.resume, options.restart)
    if options.listed is not None and (any(files) or copies):
        raise UsageError("--list writes no file and prints paths alone: leave the options for results out")
    for wanted, needed, name in (
        (options.null, options.listed is not None, "--null is for --list"),
        (options.link, options.sort, "--link is for --sort"),
        (options.by, options.sort or options.crops, "--by is for --sort and --crops"),
    ):
        if wanted and not needed:
            raise UsageError(name)
    if "stdout" in CLOSED and (options.listed is not None or options.output == "-"):
        raise UsageError(f"{'--list' if options.listed else '-'} prints to standard output, which is closed")
    if options.output == "-" and options.resume:
        raise UsageError("--resume is for results in a file: what is printed is kept nowhere")
    _check_inputs(options)
    page = [] if options.html is None else [Path(options.html)]
    if any(os.path.realpath(path) == os.path.realpath(output) for path in page):
        raise UsageError("--html and --output name one file: name two")
    for path in (output, *page):
        if not path.parent.is_dir() or (path.exists() and not path.is_file()):
            raise UsageError(f"cannot write {printable(str(path))}: name a file in a folder that exists")
        if _is_device(path):
            raise UsageError(
                f"cannot write {printable(str(path))}: name a file, since results appear when complete, or -"
            )
        if path.name.lower() in (ERRORS, RUN):
            raise UsageError(f"cannot write {printable(str(path))}: that name is taken by what is written beside it")
    for path in copies:
        if not path or (os.path.lexists(path) and not Path(path).is_dir()):
            raise UsageError(f"cannot write copies into {printable(path)!r}: name a folder")
        if any(Path(given).is_dir() and Path(path).resolve() == Path(given).resolve() for given in options.paths):
            raise UsageError(f"cannot write copies into {printable(path)}, which is read: name another folder")


def _check_inputs(options: argparse.Namespace) -> None:
    if "-" in options.paths:
        if len(options.paths) > 1:
            raise UsageError("- reads all paths from a pipe: leave the others out")
        if "stdin" in CLOSED:
            raise UsageError("- reads paths from standard input, which is closed")
        if options.recursive:
            raise UsageError("--recursive is for folders; from a pipe come paths of files")
        return
    for path in options.paths:
        if not path:
            raise UsageError("DIR is empty; name a folder")
        if not os.path.lexists(path):
            raise UsageError(f"{printable(path)} does not exist")


def result_format(options: argparse.Namespace) -> str:
    """The format of the results, by --format or the ending of --output.

    UsageError if these contradict, or the ending is that of no format.
    """
    ending, name = Path(options.output or "").suffix[1:].lower(), printable(options.output or "")
    if options.form:
        if ending in outputs.FORMATS and ending != options.form:
            raise UsageError(f"--format {options.form} contradicts the ending of {name}: leave one of them out")
        return str(options.form)
    if ending and ending not in outputs.FORMATS:
        known = ", ".join(outputs.FORMATS)
        raise UsageError(f"cannot tell the format of {name} by its ending: end it in one of {known}, or name --format")
    return ending or outputs.FORMATS[0]


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


def open_streams() -> None:
    """Give every standard stream that is closed the null device, so that no file of ours takes its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, mode, closefd=False))
                CLOSED.add(name)
