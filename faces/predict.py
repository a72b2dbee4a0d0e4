"""The runtime: exported networks on pictures. Needs numpy, Pillow and onnxruntime, and no torch.

``process.py`` is its command line (``faces.cli``). A model is a folder with a ``model.onnx`` that takes uint8 RGB
squares ``[n, size, size, 3]`` and returns probabilities ``[n, classes]``, or an age with its interval in years
``[n, 3]``; its size, frame, class names and kind are in its metadata, so that nothing here can disagree with how it was
trained.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from faces import finding, images, trust

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"
TASKS = {
    "gender": "gender_mobilenet_v2",
    "age": "age_mobilenet_v2",
    "glasses": "glasses_cnn",
}  # what can be asked, and which model answers
BATCH_SIZE = 16  # faces a network sees at once: more take more memory, and time, since they leave the caches
# Batches that are answered for side by side, and threads that a network has for each: a small network keeps two cores
# busier with two batches than with one, and every batch under way takes memory.
AT_A_TIME = min(4, os.cpu_count() or 1)
THREADS = max(1, (os.cpu_count() or 1) // AT_A_TIME)
UNKNOWN = "unknown"  # the label of a photo that the network is not sure enough of
FACE_LABELS = {"female", "male", "glasses", "no_glasses"}  # what is said of a face, and not of a whole picture
AT_ONCE = 100_000  # names of one folder that are held in memory


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
    threads : of the network's own, for one batch; ``THREADS`` by default.
    verify : refuse a file that ``SHA256SUMS`` beside the folder does not vouch for (see ``faces.trust``).

    A classifier has ``classes``, and ``abstain_below``, the confidence under which it had better not answer, found on
    validation photos, or None. An age regressor has no classes, and ``coverage``, the share of ages that its intervals
    are to hold.

    Raises
    ------
    UsageError : no such model, a file that is not one, or one that nobody vouches for.
    """

    def __init__(self, where: str | os.PathLike = TASKS["gender"], *, threads: int = 0, verify: bool = True):
        self.folder = find_model(where)
        self.name = self.folder.resolve().name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or THREADS
        # Threads that wait in a busy loop for the next batch would take the time of those that decode it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what fails is raised too
        try:
            path = self.folder / "model.onnx"
            content = trust.verified(path) if verify else path.read_bytes()
            self.sha256 = hashlib.sha256(content).hexdigest()
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            about = json.loads(self.session.get_modelmeta().custom_metadata_map["faces"])
            self.coverage = about["age"]["coverage"] if "age" in about else None
            self.classes = () if "age" in about else tuple(about["classes"])
            self.frame = images.Frame(int(about["size"]), bool(about.get("whole", False)))
            self.abstain_below = about.get("abstain_below")
            self.input = self.session.get_inputs()[0].name
            trial = np.zeros((2, self.size, self.size, 3), np.uint8)
            shape = self.session.run(None, {self.input: trial})[0].shape
        except trust.TrustError as error:
            raise UsageError(f"{self._file} {printable(str(error))}") from None
        except KeyError as error:
            raise UsageError(f"{self._file} was not written by faces.export (its metadata has no {error})") from None
        except Exception as error:  # onnxruntime raises a dozen kinds of its own
            raise UsageError(f"{self._file} cannot be loaded: {one_line(error)}") from None
        if shape != (2, len(self.classes) or 3):
            promised = f"names {len(self.classes)} classes" if self.classes else "is to answer with three ages"
            raise UsageError(f"{self._file} {promised} but answers two photos with {shape}")

    @property
    def size(self) -> int:
        """Side of the squares that it takes, pixels."""
        return self.frame.size

    @property
    def of_faces(self) -> bool:
        """Whether it answers about a face, so that faces are worth looking for in a picture."""
        return set(self.classes) <= FACE_LABELS

    @property
    def _file(self) -> str:
        return printable(str(self.folder / "model.onnx"))

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 ``[n, size, size, 3]`` -> what the graph answers: float32 ``[n, classes]``, or years ``[n, 3]``."""
        try:
            return self.session.run(None, {self.input: pixels})[0]
        except (MemoryError, RuntimeException, Fail) as error:  # mostly for want of memory
            message = f"{self.name} failed on a batch of {len(pixels)}, try a smaller one: {one_line(error)}"
        raise UsageError(message)  # out here, or it would keep what the network was working on

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


def frames_of(models: Iterable[Model]) -> list[images.Frame]:
    """How these models want a picture, the largest first."""
    return sorted({model.frame for model in models}, reverse=True)


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

    Of a folder with more than ``AT_ONCE`` files each so many are sorted, since all their names might not fit in memory.

    Every file counts, whatever its name: what is not a picture is reported, not overlooked. Only what operating
    systems leave behind (``.DS_Store``, ``Thumbs.db``) is passed over. With ``recursive`` links to folders are followed
    to what no other way leads to: each folder is listed once. A folder below that cannot be listed is yielded itself,
    as "name/", to be reported.
    """
    return _find_files(Path(folder), "", recursive, Path(os.path.realpath(folder)), set())


def _find_files(top: Path, below: str, recursive: bool, real: Path, linked: set[Path]) -> Iterator[str]:
    """``find_files`` of the folder ``below`` the ``top`` one; ``linked`` are the folders that links led to so far."""
    with os.scandir(top / below) as entries:
        # A folder sorts as "name/", which makes this walk yield whole paths in plain string order.
        found = (
            (entry.name + "/" * directory, directory)
            for entry in entries
            for directory in [_is_folder(entry)]
            if not images.is_litter(entry.name)
        )
        while part := sorted(islice(found, AT_ONCE)):
            for name, directory in part:
                if not directory:
                    yield below + name
                elif recursive and _is_new(top / below / name, real / below / name, real, linked):
                    try:
                        yield from _find_files(top, below + name, True, real, linked)
                    except OSError:
                        yield below + name


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where one may not look: it is reported when it is read
        return False


def _is_new(folder: Path, place: Path, top: Path, linked: set[Path]) -> bool:
    """Whether to list a folder: what lies below ``top`` where it lies, at its ``place``; all else once."""
    real = Path(os.path.realpath(folder))
    if real == place or real in linked or real.is_relative_to(top) or top.is_relative_to(real):
        return real == place
    linked.add(real)
    return True


def as_crop(
    path, frames: list[images.Frame], max_pixels: int | None = None
) -> tuple[list[None], list[list[np.ndarray]]]:
    """What ``finding.look`` gives, of a picture that is taken as the crop of one face."""
    return [None], [images.decode_frames(path, frames, max_pixels=max_pixels)]


def predict_files(
    tasks: Mapping[str, Model],
    folder: str | os.PathLike,
    names: Iterable[str],
    *,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
) -> Iterator[tuple[str, dict[str, Prediction | Age] | images.ImageError]]:
    """(name, what each model says or why none could be asked) for every file, taken as the crop of one face.

    In the order given. Worker threads decode some batches ahead while the networks look at others, ``AT_A_TIME`` side
    by side; nothing else is kept, so memory does not grow with the number of files. Each photo is decoded once, however
    many models look at it.

    Parameters
    ----------
    tasks : name -> model; the answers come under the same names.
    names : paths below ``folder``.
    batch_size : photos a network sees at once.
    threads : that decode; the default is 2, since Pillow decodes under Python's global lock and more would only
        wait for each other.
    """
    for name, found in _stream(tasks, folder, names, as_crop, batch_size, threads or 2):
        yield name, found if isinstance(found, images.ImageError) else found[0][1]


def records(
    tasks: Mapping[str, Model],
    folder: str | os.PathLike,
    names: Iterable[str],
    *,
    see: Callable = as_crop,
    least: Mapping[str, float] | None = None,
    max_pixels: int | None = None,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
) -> Iterator[tuple[str, dict]]:
    """(name, record) for every file, in the order given; a record is as ``faces.outputs`` keeps it.

    Parameters
    ----------
    see : how each picture is looked at: ``as_crop``, or ``finding.look`` with its detector.
    least : task -> probability below which a label is "unknown".
    max_pixels : of a picture, as for ``images.open_rgb``.
    tasks, names, batch_size, threads : as for ``predict_files``; to look for faces there is a thread a core.
    """
    workers = threads or (2 if see is as_crop else max(2, os.cpu_count() or 1))
    for name, found in _stream(tasks, folder, names, see, batch_size, workers, max_pixels):
        if isinstance(found, images.ImageError):
            yield name, {"error": str(found)}
        else:
            yield name, {"faces": [entry(answers, least) | place(face) for face, answers in found]}


def place(face: finding.Face | None) -> dict:
    """Where a face is, as a record has it: box in pixels, and score; nothing for a picture that is a crop."""
    if face is None:
        return {}
    box = [round(edge, 1) for edge in (face.left, face.top, face.right, face.bottom)]
    return {"box": box, "score": round(face.score, 4)}


def _stream(tasks, folder, names, see, batch_size, workers, max_pixels=None):
    frames = frames_of(tasks.values())
    # Finding faces can take a thread so long that a few pictures are enough for it.
    chunk = batch_size if see is as_crop else max(1, batch_size // 8)
    ahead: deque = deque()  # what is being looked at
    asked: deque = deque()  # what the networks are being asked about
    gathered: list[tuple[str, object]] = []
    waiting, left = 0, True  # faces among them; whether there are names left
    with ThreadPoolExecutor(workers, "decode") as pool, ThreadPoolExecutor(AT_A_TIME, "ask") as networks:
        try:
            parts = _chunks(names, chunk)
            while left or ahead or asked:
                while left and len(ahead) <= workers:
                    if part := next(parts, None):
                        ahead.append((part, pool.submit(_see_batch, folder, part, frames, see, max_pixels)))
                    else:
                        left = False
                if ahead:
                    part, done = ahead.popleft()
                    seen = done.result()
                    gathered += zip(part, seen, strict=True)
                    waiting += sum(len(found[0]) for found in seen if not isinstance(found, images.ImageError))
                last = not (left or ahead)
                if gathered and (waiting >= batch_size or len(gathered) >= batch_size or last):
                    asked.append(networks.submit(_answers, tasks, frames, batch_size, gathered))
                    gathered, waiting = [], 0
                while asked and (asked[0].done() or len(asked) > AT_A_TIME or last):
                    yield from asked.popleft().result()
        finally:
            for late in (*(done for _, done in ahead), *asked):
                late.cancel()


def _see_batch(folder, names, frames, see, max_pixels) -> list:
    """For each name its faces and their squares, or an ImageError."""
    seen: list = []
    for name in names:
        path = os.path.join(folder, name)  # noqa: PTH118 (a Path a photo costs time)
        try:
            if "\0" in name:
                raise images.ImageError("a name with a NUL within, which no file has")
            mode = os.stat(path).st_mode  # noqa: PTH116
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise images.ImageError("a pipe or device, not a file")  # reading it could wait for ever
            with images.BUDGET.until_done():
                seen.append(see(path, frames, max_pixels=max_pixels))
        except (images.ImageError, OSError) as error:
            # A new error, since one that was raised keeps what its traceback leads to.
            seen.append(images.ImageError(getattr(error, "strerror", None) or str(error)))
    return seen


def _answers(tasks, frames, batch_size, gathered) -> list:
    """(name, an ImageError, or each face and what every model says of it) of what was seen in some files."""
    squares = [some for _, found in gathered if not isinstance(found, images.ImageError) for some in found[1]]
    each: list[dict] = []
    for start in range(0, len(squares), batch_size):
        part = squares[start : start + batch_size]
        pixels = {frame: np.stack(some) for frame, some in zip(frames, zip(*part, strict=True), strict=True)}
        answers = [model.predict(pixels[model.frame]) for model in tasks.values()]
        each += [dict(zip(tasks, said, strict=True)) for said in zip(*answers, strict=True)]
    rest = iter(each)
    return [
        (name, found if isinstance(found, images.ImageError) else [(face, next(rest)) for face in found[0]])
        for name, found in gathered
    ]


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    chunk: list = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


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


def printable(name: str) -> str:
    """A name fit for any terminal: control characters and what is not UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def one_line(error: Exception) -> str:
    """What an exception says, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
