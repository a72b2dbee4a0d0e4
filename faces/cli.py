"""The command ``faces``, and ``process.py``: pictures in, answers out, each file exactly once.

Answers are kept on disk as they come (``faces.outputs.Journal``) and are formatted at the end, so neither memory nor a
killed process is a limit. Needs numpy, Pillow, onnxruntime and tqdm, and no torch.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from faces import __version__, images, inputs, outputs
from faces.files import Record, StrPath, atomic_write, find_files, write_json
from faces.options import (
    COPIES,
    ERRORS,
    RESULTS,
    RUN,
    check,
    detection,
    open_streams,
    parse,
    result_format,
    tasks_asked,
)
from faces.pipeline import DETECTOR, Photo, Pipeline, to_record
from faces.predict import TASKS, Head, Label, Model, UsageError, homes, printable

if TYPE_CHECKING:
    from faces.copies import Copies

JOURNAL_BATCH = 64  # files that are put into the journal at once
SKIPPED_NAMES = 1000  # that process_run.json lists at most
# Suffixes of pictures that are not read, RAW photos above all: such a file is an error and not skipped.
UNREAD = re.compile(
    r"\.(jxl|jp2|j2k|jpx|jxr|apng|mpo|pbm|pnm|dib|tga|pcx|psd|svg|exr|hdr|hif|heics"
    r"|dng|cr2|cr3|crw|nef|nrw|arw|sr2|srf|orf|rw2|raf|pef|srw|raw|3fr|iiq|x3f)$",
    re.IGNORECASE,
)
TEXT = bytes({*b"\t\n\f\r\x1b", *range(32, 127), *range(128, 256)})  # what text consists of


def process_folder(
    folder: StrPath | Sequence[str],
    output: StrPath,
    *,
    tasks: Mapping[str, Model],
    names: Iterable[str] | None = None,
    recursive: bool = False,
    form: str = "json",
    html: StrPath | None = None,
    copies: Mapping[str, Any] | None = None,
    confidence: bool = False,
    boxes: bool = False,
    min_confidence: float | str = 0.0,
    resume: bool = False,
    restart: bool = False,
    progress: bool = True,
    **how: Any,
) -> tuple[int, int, int]:
    """Answer about every picture of a folder and write ``output``.

    As ``json`` it becomes ``{"img_1.jpg": "male", ...}`` sorted by name; see ``faces.outputs.to_json`` for several
    tasks, probabilities and faces. Files that cannot be read are named on stderr and written to
    ``process_errors.json`` beside it; without errors, one of an earlier run is deleted. A file that is no picture by
    suffix and content (notes, sidecars, videos) is skipped. ``process_run.json`` holds models, options and counts.
    These files appear when the run is complete; until then the answers are kept in a journal beside them.

    Parameters
    ----------
    folder : path, or sequence of str
        A folder, or any files and folders: names are then their paths.
    output : path
    tasks, how
        As for ``pipeline.Pipeline``.
    names : iterable of str, optional
        Paths below ``folder``; default all its files, with ``recursive`` those of folders below it too.
    form, confidence, boxes
        As for ``outputs.write``.
    html : path, optional
        Of a page with thumbnails, filters and histograms.
    copies : mapping, optional
        The folders ``sort``, ``crops`` and ``annotate``, and ``by`` and ``link``: see ``copies.Copies``.
    min_confidence : float or "auto"
        Confidence below which a label becomes "unknown"; "auto" takes each model's own threshold.
    resume, restart : bool
        Continue an interrupted run, or discard it.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    read, failed, skipped : int
        Numbers of files.

    Raises
    ------
    UsageError
        "auto" for a model without a threshold; the face detector or pyarrow is missing; a link cannot be made.
    outputs.JournalError
        See ``outputs.Journal``.
    """
    for path in (output, html) if html else (output,):  # before hours of work, not after
        with suppress(_Writable), atomic_write(path):
            raise _Writable
    began, started = time.monotonic(), datetime.now(UTC)
    given = [os.fspath(folder)] if isinstance(folder, str | os.PathLike) else list(folder)
    output, copies = Path(output), copies or {}
    several = len(given) > 1 or (names is None and not Path(given[0]).is_dir())
    root = "" if several else given[0]
    pipeline = Pipeline(tasks, **how)
    if how.get("quick") and not pipeline.first:
        _print_error("--quick changes nothing here: no small network can answer before the one that was asked")
    labels = {task: asked for task, asked in pipeline.tasks.items() if asked[1].classes}
    thresholds = {task: _threshold(*asked, min_confidence) for task, asked in labels.items()}
    if form == "parquet":
        _check_installed("pyarrow", "parquet")
    base = inputs.common_folder(given) if several else ""
    copied = _copies(copies, {task: head.classes for task, (_, head) in pipeline.tasks.items()}, root, base)
    if copied and copied.link and names is None:
        copied.check_links(given)

    def listed() -> Iterator[str]:
        found = inputs.find_inputs(given, recursive=recursive) if several else find_files(root, recursive=recursive)
        ours = inputs.is_written(root, output, (output.name, ERRORS, RUN), _made_within(given, html, copies))
        return (name for name in found if not ours(name))

    real = [outputs.escaped(os.path.realpath(each)) for each in given]
    asked = ({"inputs": real} if several else {"folder": real[0]}) | {"thresholds": thresholds} | pipeline.settings
    models = {task: {"name": outputs.escaped(model.name), "sha256": model.sha256} for task, model in tasks.items()}
    journal = outputs.Journal(_journal(output), asked | {"models": models}, resume=resume, restart=restart)
    try:
        silent = not (progress and sys.stderr and sys.stderr.isatty())
        total = None if silent or names is not None else sum(1 for _ in listed())
        todo = listed() if names is None else names
        todo = (name for name in todo if name not in journal) if resume else todo
        photos = pipeline.stream(root, todo)
        bar = {"unit": "photo", "disable": silent, "leave": False}
        with tqdm(desc=_models(tasks), total=total, initial=len(journal), **bar) as shown:
            while part := [(photo.name, _record(root, photo, thresholds)) for photo in islice(photos, JOURNAL_BATCH)]:
                journal.add(part)
                _print_errors(part)
                shown.update(len(part))
        if copied:
            made = tqdm(copied.make(journal.records("faces")), "copies", journal.count("faces"), **bar)
            lost = [(name, {"error": reason}) for name, reason in made if reason]
            journal.add(lost)
            _print_errors(lost)
        read, failed, skipped = (journal.count(kind) for kind in ("faces", "error", "skipped"))
        ages = [task for task in tasks if task not in labels]
        if html:
            from faces import report

            shown = tqdm(journal.records("faces"), "page", read, **bar)
            report.write(shown, html, folder=root, tasks=list(tasks), ages=ages)
        written = {"confidence": confidence, "boxes": boxes}
        outputs.write(journal.records("faces"), output, form, tasks=list(tasks), ages=ages, **written)
        _write_errors(journal, output.with_name(ERRORS), failed)
        options = {"form": form} | written | {"resumed": resume}
        options |= {name: value is True or outputs.escaped(str(value)) for name, value in copies.items() if value}
        write_json(
            output.with_name(RUN),
            {
                "faces": __version__,
                "models": models,
                "options": asked | options,
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


def _copies(wanted: Mapping[str, Any], tasks: Mapping[str, tuple[str, ...]], root: str, base: str) -> Copies | None:
    """The ``copies.Copies`` that are wanted, whose folders are made; None if there are none."""
    folders = {name: Path(wanted[name]) for name in COPIES if wanted.get(name)}
    if not folders:
        return None
    from faces.copies import Copies

    by = tuple(part.removeprefix("{").removesuffix("}") for part in (wanted.get("by") or next(iter(tasks))).split("/"))
    made = Copies(tasks, by=by, link=bool(wanted.get("link")), root=root, base=base, **folders)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    return made


def _made_within(given: Sequence[StrPath], html: StrPath | None, copies: Mapping[str, Any]) -> list[Path]:
    """Folders that are written and lie in a folder that is read."""
    made = [Path(copies[name]).resolve() for name in COPIES if copies.get(name)]
    made += [Path(html).resolve().with_name(f"{Path(html).stem}_files")] if html else []
    read = [Path(path).resolve() for path in given]
    return [folder for folder in made if any(path in folder.parents for path in read)]


def _record(folder: str, photo: Photo, thresholds: Mapping[str, float]) -> Record:
    """A photo as the journal has it."""
    if photo.error is None:
        return {"faces": [to_record(face, thresholds) for face in photo.faces]}
    return {"skipped" if _is_no_picture(folder, photo.name, photo.error) else "error": str(photo.error)}


def _is_no_picture(folder: str, name: str, error: images.ImageError) -> bool:
    """Whether an unreadable file is no picture, neither by its suffix nor by its content."""
    if Path(name).suffix.lower() in images.SUFFIXES or UNREAD.search(name):
        return False
    return error.kind == images.NOT_A_PICTURE or _is_text(Path(folder, name))


def _is_text(path: Path) -> bool:
    """Whether a file begins with text, though it may begin as a picture does: "BM" is also how a BMP begins."""
    try:
        if not path.is_file():  # opening a pipe could wait for ever
            return False
        with path.open("rb") as file:
            return not file.read(4096).translate(None, TEXT)
    except (OSError, ValueError):
        return False


def _print_errors(records: Iterable[tuple[str, Record]]) -> None:
    for name, record in records:
        if "error" in record:
            _print_error(printable(f"{name}: {record['error']}"))


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
    folder: StrPath,
    label: str,
    *,
    model: Model,
    head: Head,
    names: Iterable[str],
    min_confidence: float | str = 0.0,
    end: str = "\n",
    file: TextIO | None = None,
    **how: Any,
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
            if not _is_no_picture(folder, photo.name, photo.error):
                _print_error(printable(f"{photo.name}: {photo.error}"))
                failed += 1
            continue
        read += 1
        answers = [face.answers[task] for face in photo.faces]
        if any(isinstance(a, Label) and a.label == label and a.confidence >= threshold for a in answers):
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
    if not isinstance(wanted, str):
        return wanted
    if head.abstain_below is None:
        raise UsageError(f"{printable(model.name)} has no threshold of its own: give --min-confidence a number")
    return head.abstain_below


# ------------------------------------------------------------------------------------------------------ label


def label(argv: list[str] | None = None, prog: str = "process.py") -> int:
    """Label pictures; returns the exit status (see ``EXAMPLES``)."""
    open_streams()
    options = parse(argv, prog)
    printed = options.listed is not None or options.output == "-"
    output = Path(RESULTS if options.output is None else options.output)
    try:
        form = result_format(options)
        output = Path(f"{RESULTS}.{form}") if options.output in (None, "-") else output
        check(options, output)
        if options.listed is not None:
            return _list(options)
        tasks = tasks_asked(options, {"gender": TASKS["gender"]})
        if options.min_confidence and not any(model.head(task).classes for task, model in tasks.items()):
            raise UsageError("--min-confidence is for labels, and ages alone were asked for")
        with tempfile.TemporaryDirectory(prefix="faces-") if printed else nullcontext(output.parent) as folder:
            output = Path(folder, output.name)
            read, failed, skipped = _process(options, output, tasks, form)
            if printed:
                _print_results(output)
    except (UsageError, outputs.JournalError) as error:
        _print_error(f"{prog}: {printable(str(error))}")
        return 2
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        _discard(sys.stdout)
        return 141  # the status of a program that the signal SIGPIPE ended
    except OSError as error:
        where = error.filename or ("standard output" if printed else output)
        _print_error(f"{prog}: {error.strerror or error}: {printable(str(where))}")
        return 2
    except MemoryError:
        _print_error(f"{prog}: not enough memory; try a smaller --batch-size")
        return 2
    except (KeyboardInterrupt, RuntimeError) as error:
        # An interrupt while Python waits for a lock comes out as its failure to release that lock.
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        instead = " instead of --restart" * options.restart
        advice = "" if printed else f"; the same command with --resume{instead} goes on from here"
        _print_error(f"{prog}: interrupted{advice}")
        return 130
    if not options.quiet:
        _print_summary(options, output, f"{_count(read, 'photo')} labelled by {_models(tasks)}", read, failed, skipped)
    return 1 if failed else 0


def _process(options: argparse.Namespace, output: Path, tasks: Mapping[str, Model], form: str) -> tuple[int, int, int]:
    pipe = options.paths == ["-"]
    how = {name: getattr(options, name) for name in ("recursive", "html", "confidence", "boxes", "min_confidence")}
    how |= {name: getattr(options, name) for name in ("resume", "restart")} | detection(options)
    return process_folder(
        "" if pipe else options.paths,
        output,
        tasks=tasks,
        names=inputs.read_names(sys.stdin.buffer) if pipe else None,
        form=form,
        copies={name: getattr(options, name) for name in (*COPIES, "by", "link")},
        progress=not options.quiet,
        **how,
    )


def _print_results(path: Path) -> None:
    with path.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _print_summary(options: argparse.Namespace, output: Path, done: str, read: int, failed: int, skipped: int) -> None:
    """Print the summary line on standard output, or on stderr where the results are printed; notices on stderr."""
    printed = options.output == "-"
    try:
        if printed:
            _print_error(done)
        else:
            print(f"{done} -> {printable(str(output))}", flush=True)
    except OSError as error:  # the results are there all the same
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            _print_error(f"{options.prog}: {error.strerror or error}: standard output")
    if not read and not failed:
        _print_below(options)
    if skipped:
        where = "" if printed else f" (see {RUN})"
        _print_error(f"{_count(skipped, 'file')} skipped, by name and content no picture{where}")
    if failed:
        where = "" if printed else f" -> {printable(str(output.with_name(ERRORS)))}"
        _print_error(f"{_count(failed, 'file')} could not be read{where}")


def _print_below(options: argparse.Namespace) -> None:
    """Tell of pictures in the folders below, where none was found and none was looked for there."""
    folders = [path for path in options.paths if not options.recursive and Path(path).is_dir()]
    if below := inputs.pictures_below(folders):
        _print_error(f"{_count(below, 'picture')} in the folders below: --recursive labels them too")


def _list(options: argparse.Namespace) -> int:
    pipe, several = options.paths == ["-"], len(options.paths) > 1 or not Path(options.paths[0]).is_dir()
    folder = "" if pipe or several else options.paths[0]
    if pipe:
        names = inputs.read_names(sys.stdin.buffer)
    else:
        find = inputs.find_inputs if several else find_files
        names = find(options.paths if several else folder, recursive=options.recursive)
    model, head = _head_with(options.listed, options)
    read, failed = list_folder(
        folder,
        options.listed,
        model=model,
        head=head,
        names=names,
        min_confidence=options.min_confidence,
        end="\0" if options.null else "\n",
        **detection(options),
    )
    if not read and not failed and not options.quiet:
        _print_below(options)
    return 1 if failed else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# ---------------------------------------------------------------------------------------------- the command faces

# Sub-command -> module and function, the extra that it needs, what it does.
COMMANDS = {
    "label": ("faces.cli", "label", "", "label the faces in a folder of pictures"),
    "serve": ("faces.serve", "main", "serve", "answer photos over HTTP"),
    "scale": ("faces.scale", "main", "scale", "label a folder of any size on many machines"),
    "train": ("faces.research.experiments", "main", "research", "train a network on folders of labelled photos"),
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold what the terminal cannot show
    try:
        run: Callable[..., int] = getattr(import_module(module), function)
        status = run(options.rest, "faces label") if options.command == "label" else run(options.rest)
        if sys.stdout:
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # see label
        _discard(sys.stdout)
        return 141
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
    onnx.add_argument("--int8", action="store_true", help="compute the backbone in 8 bits")
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
            how = {name: getattr(options, name) for name in ("subject", "half", "int8", "overwrite")}
            experiments.publish(options.run, options.target, experiments.prepare(settings), **how)
        else:
            coreml = import_module("faces.research.coreml")
            coreml.export(options.model, options.target)
            if options.check:
                model = Model(TASKS.get(options.model, options.model))
                worst = coreml.check(options.target, model, options.check, options.model)
                print(f"on the photos in {options.check} its probabilities differ by {worst:.4f} at most")
    except (UsageError, ValueError, OSError, RuntimeError) as error:
        _print_error(f"faces export: {printable(str(error))}")
        return 2
    print(f"{printable(options.target)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
