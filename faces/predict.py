"""The runtime: exported networks on folders of photos. Needs numpy, Pillow, onnxruntime and tqdm, and no torch.

``process.py`` is its command line. A model is a folder with a ``model.onnx`` that takes uint8 RGB squares
``[n, size, size, 3]`` and returns probabilities ``[n, classes]``, or an age with its interval in years ``[n, 3]``; its
size, class names and kind are in its metadata, so that nothing here can disagree with how it was trained.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import stat
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import onnxruntime
from tqdm import tqdm

from faces import images
from faces.files import whole_file

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"
TASKS = {
    "gender": "gender_mobilenet_v2",
    "age": "age_mobilenet_v2",
    "glasses": "glasses_cnn",
}  # what can be asked, and which model answers
UNKNOWN = "unknown"  # the label of a photo that the network is not sure enough of
RESULTS, ERRORS = "process_results.json", "process_errors.json"


class UsageError(Exception):
    """The command cannot be carried out as given; the message is one line for the user."""


@dataclass(frozen=True)
class Prediction:
    """What the network says of one photo.

    label : the likeliest class. confidence : its probability. probabilities : of every class, in the model's order.
    """

    label: str
    confidence: float
    probabilities: np.ndarray


@dataclass(frozen=True)
class Age:
    """How old somebody looks: years, and the interval that holds the age as often as the model promises."""

    years: float
    low: float
    high: float


class Model:
    """An exported network, ready to run.

    Parameters
    ----------
    where : the name of a folder under ``artifacts/``, or the path of a folder that holds a ``model.onnx``.
    threads : of the network's own; by default one a core, less one that is left to decoding.

    A classifier has ``classes``, and ``abstain_below``, the confidence under which it had better not answer, found on
    validation photos, or None. An age regressor has no classes, and ``coverage``, the share of ages that its intervals
    are to hold.

    Raises
    ------
    UsageError : no such model, or a file that is not one.
    """

    def __init__(self, where: str | os.PathLike = TASKS["gender"], *, threads: int = 0):
        self.folder = find_model(where)
        self.name = self.folder.resolve().name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or max(1, (os.cpu_count() or 1) - 1)
        # Threads that wait in a busy loop for the next batch would take the time of those that decode it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what fails is raised too
        try:
            self.session = onnxruntime.InferenceSession(
                str(self.folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
            about = json.loads(self.session.get_modelmeta().custom_metadata_map["faces"])
            self.coverage = about["age"]["coverage"] if "age" in about else None
            self.classes = () if "age" in about else tuple(about["classes"])
            self.size, self.abstain_below = int(about["size"]), about.get("abstain_below")
            self.input = self.session.get_inputs()[0].name
            trial = np.zeros((2, self.size, self.size, 3), np.uint8)
            shape = self.session.run(None, {self.input: trial})[0].shape
        except KeyError as error:
            raise UsageError(f"{self._file} was not written by faces.export (its metadata has no {error})") from None
        except Exception as error:  # onnxruntime raises a dozen kinds of its own
            raise UsageError(f"{self._file} cannot be loaded: {_one_line(error)}") from None
        if shape != (2, len(self.classes) or 3):
            promised = f"names {len(self.classes)} classes" if self.classes else "is to answer with three ages"
            raise UsageError(f"{self._file} {promised} but answers two photos with {shape}")

    @property
    def _file(self) -> str:
        return _printable(str(self.folder / "model.onnx"))

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 ``[n, size, size, 3]`` -> what the graph answers: float32 ``[n, classes]``, or years ``[n, 3]``."""
        try:
            return self.session.run(None, {self.input: pixels})[0]
        except Exception as error:  # mostly for want of memory
            message = f"{self.name} failed on a batch of {len(pixels)}, try a smaller one: {_one_line(error)}"
            raise UsageError(message) from None

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Of a classifier: float32 ``[n, classes]``, rows summing to 1.

        Raises
        ------
        UsageError : the model gives ages.
        """
        if not self.classes:
            raise UsageError(f"{self.name} gives ages, not probabilities")
        return self.run(pixels)

    def predict(self, pixels: np.ndarray) -> list[Prediction] | list[Age]:
        """One ``Prediction`` or ``Age`` for every square of ``pixels``, as for ``run``."""
        answers = self.run(pixels)
        if not self.classes:
            return [Age(*map(float, row)) for row in answers]
        return [
            Prediction(self.classes[best], float(row[best]), row) for row in answers for best in [int(row.argmax())]
        ]


def find_model(where: str | os.PathLike) -> Path:
    """The folder of a model given by path or by its name under ``artifacts/``; UsageError lists what there is."""
    for folder in (Path(where), ARTIFACTS / where):
        if (folder / "model.onnx").is_file():
            return folder
    known = sorted(path.parent.name for path in ARTIFACTS.glob("*/model.onnx"))
    known = ", ".join(known) or "those in artifacts/ (there are none)"
    raise UsageError(f"no model {os.fspath(where)!r}: name a folder that holds a model.onnx, or one of {known}")


# ---------------------------------------------------------------------------------------------------- folders


def find_files(folder: str | os.PathLike, *, recursive: bool = False) -> Iterator[str]:
    """Names of the files in ``folder``, sorted; with ``recursive`` paths below it, with forward slashes.

    Every file counts, whatever its name: what is not a picture is reported, not overlooked. Only what operating
    systems leave behind (``.DS_Store``, ``Thumbs.db``) is passed over. Links to folders are not followed. A folder
    below that cannot be listed is yielded itself, as "name/", to be reported.
    """
    with os.scandir(folder) as entries:
        # A folder sorts as "name/", which makes this walk yield whole paths in plain string order.
        found = sorted(
            (entry.name + "/" * directory, directory)
            for entry in entries
            for directory in [entry.is_dir(follow_symlinks=False)]
            if not images.is_litter(entry.name) and (directory or not _links_to_folder(entry))
        )
    for name, directory in found:
        if not directory:
            yield name
        elif recursive:
            try:
                for below in find_files(Path(folder) / name, recursive=True):
                    yield name + below
            except OSError:
                yield name


def _links_to_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where one may not look: it is reported when it is read
        return False


def predict_files(
    tasks: Mapping[str, Model],
    folder: str | os.PathLike,
    names: Iterable[str],
    *,
    batch_size: int = 64,
    threads: int | None = None,
) -> Iterator[tuple[str, dict[str, Prediction | Age] | images.ImageError]]:
    """(name, what each model says or why none could be asked) for every file, in the order given.

    Worker threads decode some batches ahead while the networks run; nothing else is kept, so memory does not
    grow with the number of files. Each photo is decoded once, however many models look at it.

    Parameters
    ----------
    tasks : name -> model; the answers come under the same names.
    names : paths below ``folder``.
    batch_size : photos a network sees at once.
    threads : that decode; the default is 2, since Pillow decodes under Python's global lock and more would only
        wait for each other.
    """
    workers = threads or 2
    sizes = sorted({model.size for model in tasks.values()}, reverse=True)
    ahead: deque = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for batch in _chunks(names, batch_size):
                ahead.append((batch, pool.submit(_decode_batch, folder, batch, sizes)))
                if len(ahead) > workers:
                    yield from _answers(tasks, *ahead.popleft())
            while ahead:
                yield from _answers(tasks, *ahead.popleft())
        finally:
            for _, waiting in ahead:
                waiting.cancel()


def _decode_batch(folder, names, sizes) -> tuple[dict[int, np.ndarray], dict[str, images.ImageError]]:
    squares, errors = [], {}
    for name in names:
        path = os.path.join(folder, name)  # noqa: PTH118 (a Path a photo costs time)
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise images.ImageError("a pipe or device, not a file")  # reading it could wait for ever
            squares.append(images.decode_sizes(path, sizes))
        except images.ImageError as error:
            errors[name] = error
        except OSError as error:
            errors[name] = images.ImageError(error.strerror or str(error))
    return {size: np.stack(some) for size, some in zip(sizes, zip(*squares, strict=True), strict=False)}, errors


def _answers(tasks, names, decoded):
    pixels, errors = decoded.result()
    answers = [model.predict(pixels[model.size]) for model in tasks.values()] if pixels else []
    each = zip(*answers, strict=True)
    for name in names:
        yield name, errors.get(name) or dict(zip(tasks, next(each), strict=True))


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    chunk: list = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# ---------------------------------------------------------------------------------------------------- writing


class JsonObject:
    """Writes one JSON object a pair at a time, so that it need not be held in memory."""

    def __init__(self, file: IO[str]):
        self.file, self.count = file, 0

    def add(self, key: str, value) -> None:
        self.file.write(("," if self.count else "{") + f"\n  {_json(key)}: {_json(value)}")
        self.count += 1

    def close(self) -> None:
        self.file.write("\n}\n" if self.count else "{}\n")


def _json(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # A file name that is not UTF-8: escaped, it survives (os.fsencode turns it back into the name's bytes).
        text = json.dumps(value)
    return text


def process_folder(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    tasks: Mapping[str, Model],
    recursive: bool = False,
    batch_size: int = 64,
    confidence: bool = False,
    min_confidence: float | str = 0.0,
    progress: bool = True,
) -> tuple[int, int]:
    """Predict every photo of a folder and write ``output``; return how many were read and how many could not be.

    ``output`` becomes ``{"img_1.jpg": "male", …}`` sorted by name, or with ``confidence``
    ``{"img_1.jpg": {"label": "male", "probability": 0.98}, …}``. Several tasks, or ages, make it
    ``{"img_1.jpg": {"gender": "male", "age": 34.2, "age_interval": [27, 42]}, …}``. What could not be read is reported
    on stderr and written to ``process_errors.json`` beside it, name and reason; without errors, one left by an earlier
    run goes. Both appear only when complete.

    Parameters
    ----------
    tasks : name -> model; the answers of several come under these names.
    min_confidence : a photo whose label has a lower probability is labelled "unknown" (its probability remains that
        of the label it would have got); "auto" takes each classifier's own threshold.

    Raises
    ------
    UsageError : "auto" was asked for, and a classifier has no threshold.
    """
    output = Path(output)
    errors_path = output.with_name(ERRORS)
    least = {task: _least(model, min_confidence) for task, model in tasks.items() if model.classes}
    names = _without_ours(find_files(folder, recursive=recursive), folder, output)
    bar = tqdm(
        unit="photo", desc=_names(tasks.values()), disable=None if progress and sys.stderr else True, leave=False
    )
    with bar, whole_file(output) as results_file, tempfile.TemporaryFile("w+", encoding="utf-8") as errors_file:
        results, errors = JsonObject(results_file), JsonObject(errors_file)
        for name, answers in predict_files(tasks, folder, names, batch_size=batch_size):
            if isinstance(answers, images.ImageError):
                tqdm.write(_printable(f"{name}: {answers}"), file=sys.stderr)
                errors.add(name, str(answers))
            else:
                results.add(name, _result(answers, least, confidence))
            bar.update()
        results.close()
        errors.close()
        if errors.count:
            errors_file.seek(0)
            with whole_file(errors_path) as file:
                for line in errors_file:
                    file.write(line)
    if not errors.count:
        errors_path.unlink(missing_ok=True)
    return results.count, errors.count


def list_folder(
    folder: str | os.PathLike,
    label: str,
    *,
    model: Model,
    recursive: bool = False,
    batch_size: int = 64,
    min_confidence: float | str = 0.0,
    end: str = "\n",
    file: IO[str] | None = None,
) -> tuple[int, int]:
    """Print the paths of a folder's photos that show ``label``; return how many were read and how many could not be.

    Paths begin with ``folder`` and are printed as they are found, each with ``end`` after it, so that a pipe can go on
    with them. What could not be read is named on stderr.

    Parameters
    ----------
    label : one of the model's classes.
    min_confidence : a photo is listed if its label has at least this probability; "auto" as for ``process_folder``.
    file : where to; standard output by default.
    """
    least, file = _least(model, min_confidence), file or sys.stdout
    read = failed = 0
    names = find_files(folder, recursive=recursive)
    for name, answers in predict_files({"label": model}, folder, names, batch_size=batch_size):
        if isinstance(answers, images.ImageError):
            print(_printable(f"{name}: {answers}"), file=sys.stderr)
            failed += 1
            continue
        read += 1
        if answers["label"].label == label and answers["label"].confidence >= least:
            path = os.path.join(folder, name)  # noqa: PTH118 (a Path would drop "./", which saves names that begin with -)
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
    raise UsageError(
        f"no model tells {_printable(label)!r}; there are {', '.join(dict.fromkeys(known)) or 'no labels'}"
    )


def _least(model: Model, wanted: float | str) -> float:
    if wanted != "auto":
        return wanted
    if model.abstain_below is None:
        raise UsageError(f"{_printable(model.name)} has no threshold of its own: give --min-confidence a number")
    return model.abstain_below


def entry(
    answers: Mapping[str, Prediction | Age], least: Mapping[str, float] | None = None, *, confidence: bool = True
) -> dict:
    """What is said of one photo, as JSON has it.

    Parameters
    ----------
    answers : task -> what its model says.
    least : task -> probability below which a label is "unknown".
    confidence : whether each label's probability is told too.
    """
    said: dict = {}
    for task, answer in answers.items():
        if isinstance(answer, Age):
            said[task] = round(answer.years, 1)
            # Rounded outwards, so that whole years hold as much as the promised interval.
            said[f"{task}_interval"] = [math.floor(answer.low), math.ceil(answer.high)]
        else:
            said[task] = answer.label if answer.confidence >= (least or {}).get(task, 0) else UNKNOWN
            if confidence:
                said[f"{task}_probability"] = round(answer.confidence, 4)
    return said


def _result(answers: dict[str, Prediction | Age], least: dict[str, float], confidence: bool):
    """``entry``, but of a label alone the plain form."""
    said = entry(answers, least, confidence=confidence)
    if len(answers) > 1 or not least:
        return said
    label, *probability = said.values()
    return {"label": label, "probability": probability[0]} if confidence else label


def _names(models: Iterable[Model]) -> str:
    return " and ".join(_printable(model.name) for model in models)


def _without_ours(names: Iterable[str], folder: str | os.PathLike, output: Path) -> Iterator[str]:
    """``names`` less the files that are written, should they lie in the folder that is read."""
    try:
        below = output.parent.resolve().relative_to(Path(folder).resolve())
    except ValueError:
        return iter(names)
    written = [(below / name).as_posix() for name in (output.name, ERRORS)]
    unfinished = tuple((below / f".{name}.").as_posix() for name in (output.name, ERRORS))
    return (name for name in names if name not in written and not name.startswith(unfinished))


# ----------------------------------------------------------------------------------------------- command line

EXAMPLES = f"""examples:
  python process.py photos                        label every face photo in the folder photos
  python process.py photos --recursive            and in the folders below it
  python process.py photos --confidence           write label and probability
  python process.py photos --min-confidence 0.9   label "unknown" what is less sure than that
  python process.py photos --tasks gender,age     gender, and age in years with its interval
  python process.py photos --output labels.json   write to another file
  python process.py photos --list glasses         print the paths of photos in which glasses are worn, one a line

exit status:
  0    every file was read
  1    some files could not be read; they are listed in {ERRORS}
  2    nothing was done: wrong usage, no such folder, no such model, or the results cannot be written
  130  interrupted; nothing was written
"""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="process.py",
        description=f"Label every face photo in a folder; the answers go to {RESULTS} beside process.py.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="folder of photos, each a crop of one face")
    parser.add_argument("--output", metavar="FILE", help=f"write results here instead ({ERRORS} goes beside it)")
    parser.add_argument("--recursive", action="store_true", help="look into folders below DIR; names become paths")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--tasks",
        type=tasks_of,
        metavar="TASK,…",
        help=f"what to tell of each photo: {', '.join(TASKS)}; TASK=MODEL has another model answer (default: gender)",
    )
    asked.add_argument("--model", help="one model alone: a folder in artifacts/, or a path")
    parser.add_argument(
        "--list",
        dest="listed",
        metavar="LABEL",
        help="write no file, print the paths of the photos that show LABEL (e.g. glasses, female), one a line",
    )
    parser.add_argument(
        "--null", action="store_true", help="with --list: end each path with a NUL, as xargs -0 wants it"
    )
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="photos at once (default: 64)")
    parser.add_argument("--confidence", action="store_true", help="write the probability of each label too")
    parser.add_argument(
        "--min-confidence",
        type=_probability,
        default=0.0,
        metavar="P",
        help=f'label "{UNKNOWN}" what has a lower probability; "auto" takes the model\'s own threshold (default: 0)',
    )
    return parser.parse_args(argv)


def tasks_of(text: str) -> dict[str, str]:
    """Task -> model, from what ``--tasks`` was given."""
    asked: dict[str, str] = {}
    for part in text.split(","):
        task, chosen, model = part.strip().partition("=")
        if task in asked:
            raise argparse.ArgumentTypeError(f"{task!r} is asked for twice")
        if not task or (chosen and not model) or not (chosen or task in TASKS):
            known = ", ".join(TASKS)
            raise argparse.ArgumentTypeError(f"no task {part!r}; there are {known}, or name a model: TASK=MODEL")
        asked[task] = model or TASKS[task]
    return asked


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


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status (see ``EXAMPLES``)."""
    options = _arguments(argv)
    output = ROOT / RESULTS if options.output is None else Path(options.output)
    shown = _printable(str(output))
    try:
        if options.listed is not None and (options.output or options.confidence):
            raise UsageError("--list writes no file and prints paths alone: leave out --output and --confidence")
        if options.null and options.listed is None:
            raise UsageError("--null is for --list")
        if not options.folder:
            raise UsageError("DIR is empty; name a folder")
        if not Path(options.folder).is_dir():
            what = "is a file, not a folder" if Path(options.folder).exists() else "does not exist"
            raise UsageError(f"{_printable(options.folder)} {what}")
        if not output.parent.is_dir() or (output.exists() and not output.is_file()):
            raise UsageError(f"cannot write {shown}: name a file in a folder that exists")
        if output.name.lower() == ERRORS:
            raise UsageError(f"cannot write {shown}: that name is for the list of unreadable files")
        if options.listed is not None:
            return _list(options)
        if options.model is None:
            asked = options.tasks or {"gender": TASKS["gender"]}
            tasks = {task: Model(model) for task, model in asked.items()}
        else:
            model = Model(options.model)
            tasks = {"label" if model.classes else "age": model}
        if options.min_confidence and not any(model.classes for model in tasks.values()):
            raise UsageError("--min-confidence is for labels, and ages alone were asked for")
        read, failed = process_folder(
            options.folder,
            output,
            tasks=tasks,
            recursive=options.recursive,
            batch_size=options.batch_size,
            confidence=options.confidence,
            min_confidence=options.min_confidence,
        )
    except UsageError as error:
        print(f"process.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"process.py: {error.strerror or error}: {_printable(str(error.filename or output))}", file=sys.stderr)
        return 2
    except MemoryError:
        print("process.py: not enough memory; try a smaller --batch-size", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, RuntimeError) as error:
        # An interrupt that strikes while Python waits for a lock comes out as its failure to release that lock.
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        print("process.py: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(f"{_count(read, 'photo')} labelled by {_names(tasks.values())} -> {shown}")
    if failed:
        errors = _printable(str(output.with_name(ERRORS)))
        print(f"{_count(failed, 'file')} could not be read -> {errors}", file=sys.stderr)
    return 1 if failed else 0


def _list(options: argparse.Namespace) -> int:
    asked = [options.model] if options.model else (options.tasks or TASKS).values()
    model = _model_with(options.listed, asked)
    try:
        _, failed = list_folder(
            options.folder,
            options.listed,
            model=model,
            recursive=options.recursive,
            batch_size=options.batch_size,
            min_confidence=options.min_confidence,
            end="\0" if options.null else "\n",
        )
    except BrokenPipeError:  # whoever read has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell says of a program that the signal SIGPIPE ended
    return 1 if failed else 0


def _printable(name: str) -> str:
    """A name fit for any terminal: control characters and what is not UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
