"""Photos in, answers out, in order and in bounded memory: for the command line, the service, Ray Data and Python."""

from __future__ import annotations

import io
import math
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, overload

import numpy as np
from PIL import Image

from faces import annotate, finding, images
from faces.files import Record, StrPath, find_files
from faces.predict import (
    BATCH_SIZE,
    PARALLEL_BATCHES,
    QUICK,
    TASKS,
    Age,
    Label,
    Model,
    UsageError,
    find_model,
    printable,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DETECTOR = "face_finder"  # the face detector's folder, among the models
FACES = ("auto", "crop", "detect")
UNKNOWN = "unknown"  # the label where the model abstains
PLOTTED = 1600  # pixels: the long side at which a photo is plotted, at most its double
PIXELS_AHEAD = 20_000_000  # of faces that are cut out and wait for the networks
ANSWERS = {"gender": ["female", "male"], "age": [], "glasses": ["glasses", "no_glasses"]}  # of the tasks in TASKS

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Face:
    """A face and what is predicted of it.

    Attributes
    ----------
    answers : dict of str to Label or Age
        Task -> prediction.
    box : tuple of 4 floats, or None
        Left, top, right and bottom edge in pixels of the photo; None for a photo taken as the crop of one face.
    score : float or None
        Confidence of the face detector, 0 to 1.
    """

    answers: dict[str, Label | Age]
    box: tuple[float, float, float, float] | None = None
    score: float | None = None


@dataclass(frozen=True)
class Photo(Sequence[Face]):
    """A photo, a sequence of the faces in it.

    Attributes
    ----------
    name : str
    faces : tuple of Face
        The largest first.
    error : images.ImageError or None
        For which it could not be read.
    source : str, binary file or None
        What ``plot`` reads; None for what ``Pipeline`` answers.
    """

    name: str
    faces: tuple[Face, ...] = ()
    error: images.ImageError | None = None
    source: str | BinaryIO | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.faces)

    @overload
    def __getitem__(self, at: int) -> Face: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Face, ...]: ...

    def __getitem__(self, at: int | slice) -> Face | tuple[Face, ...]:
        return self.faces[at]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Show the photo with a box around each face and its answers, as ``--annotate`` draws them.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to show it; default a figure of its own.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            matplotlib is not installed.
        images.ImageError
            The photo cannot be read, or not any more.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            reason = "plot() needs matplotlib, which is not installed: pip install matplotlib"
            raise ImportError(reason, name="matplotlib") from error
        if self.error or self.source is None:
            raise self.error or images.ImageError("where the photo is, is not known", images.UNREADABLE)
        answers = self.faces[0].answers if self.faces else {}
        labels = getattr(next(iter(answers.values()), None), "probabilities", ())
        faces = [to_record(face) for face in self.faces]
        drawn = annotate.draw(*annotate.opened(self.source, PLOTTED), faces, tasks=list(answers), labels=list(labels))
        ax = ax or pyplot.subplots(layout="constrained")[1]
        ax.imshow(np.asarray(drawn))
        ax.set_axis_off()
        return ax


@dataclass(frozen=True)
class Decoded:
    """A file before the networks see it: its faces (None for a crop) and a square of each in every frame."""

    name: str
    faces: Sequence[finding.Face | None] = ()
    squares: Sequence[Sequence[np.ndarray]] = ()
    error: images.ImageError | None = None


class Pipeline:
    """Models and, where faces are to be detected, the detector.

    Parameters
    ----------
    tasks : mapping of str to Model
        Each task is answered by the head of its name, or by the model's only head. A model of several tasks runs once.
    faces : {"auto", "crop", "detect"}
        Whether each picture is the crop of one face, or faces are to be detected; "auto" detects, unless the picture
        shows its face as a crop does. Models of whole pictures make "auto" mean "crop".
    min_face, min_score, max_pixels
        As for ``finding.Detector`` and ``images.open_rgb``.
    batch_size : int
        Faces that a network sees at once.
    quick : bool
        Have a small model answer before a model of ``predict.QUICK``, which is asked where it is not sure. Ages are
        always the model's own.

    Raises
    ------
    UsageError
        A model has several heads and none of the task's name, ``faces`` is another word, or the face detector cannot be
        loaded.
    """

    def __init__(
        self,
        tasks: Mapping[str, Model],
        faces: str = "auto",
        *,
        min_face: float | None = None,
        min_score: float = finding.MIN_SCORE,
        max_pixels: int | None = None,
        batch_size: int = BATCH_SIZE,
        quick: bool = False,
    ):
        if faces not in FACES:
            raise UsageError(f"faces is {faces!r}; give one of {', '.join(FACES)}")
        self.tasks = {task: (model, model.head(task)) for task, model in tasks.items()}
        self.wanted: dict[Model, list[str]] = {}
        for model, head in self.tasks.values():
            self.wanted.setdefault(model, []).append(head.name)
        self.first = {model: first for model in self.wanted if quick and (first := self._in_front(model))}
        self.frames = sorted({model.frame for model in (*self.wanted, *self.first.values())}, reverse=True)
        self.faces = "crop" if faces == "auto" and any(model.subject != "face" for model in self.wanted) else faces
        self.max_pixels, self.batch_size = max_pixels, batch_size
        self.look: Callable[..., Any] = _as_crop
        self.settings: dict[str, Any] = {"faces": self.faces}  # that decide the answers
        if self.first:
            self.settings["quick"] = {first.name: first.sha256 for first in self.first.values()}
        if self.faces != "crop":
            self.settings |= {"min_face": min_face, "min_score": min_score}
            try:
                detector = finding.Detector(find_model(DETECTOR), min_face=min_face, min_score=min_score)
            except (UsageError, finding.DetectorError) as error:
                raise UsageError(f"no face detector: {printable(str(error))} (--faces crop does without one)") from None
            self.look = partial(finding.look, detector=detector, crops=self.faces == "auto")

    def read(self, name: str, source: str | BinaryIO) -> Decoded:
        """Decode a file and cut out its faces; a file that cannot be read has an error instead."""
        try:
            if isinstance(source, str):
                _check_file(source)
            with images.BUDGET.until_done():
                return Decoded(name, *self.look(source, self.frames, max_pixels=self.max_pixels))
        except (images.ImageError, OSError) as error:
            reason, kind = getattr(error, "strerror", None) or str(error), getattr(error, "kind", images.UNREADABLE)
        # A new error, since one that was raised keeps the pixels that its traceback leads to.
        return Decoded(name, error=images.ImageError(reason, kind))

    def _in_front(self, model: Model) -> Model | None:
        """The small model that can answer before this one all that is asked of it."""
        if model.name not in QUICK or not all(model.heads[name].classes for name in self.wanted[model]):
            return None
        first = Model(QUICK[model.name])
        sure = {name for name, head in first.heads.items() if head.sure is not None}
        return first if sure.issuperset(self.wanted[model]) else None

    def _answers(self, model: Model, heads: list[str], pixels: Mapping[images.Frame, np.ndarray]) -> dict[str, Any]:
        """Outputs of a model about squares, or of the small model before it where that is sure of every head."""
        if model not in self.first:
            return model.answers(pixels[model.frame], heads)
        first = self.first[model]
        outputs = first.answers(pixels[first.frame], heads)
        unsure = np.any([outputs[name].max(1) < (first.heads[name].sure or 0) for name in heads], axis=0)
        if unsure.any():
            for name, rest in model.answers(pixels[model.frame][unsure], heads).items():
                outputs[name][unsure] = rest
        return outputs

    def answer(self, decoded: Sequence[Decoded]) -> list[Photo]:
        """The answers of every model about the faces of some files."""
        squares = [each for file in decoded for each in file.squares]
        answers: list[dict[str, Label | Age]] = []
        for start in range(0, len(squares), self.batch_size):
            part = squares[start : start + self.batch_size]
            pixels = {frame: np.stack(each) for frame, each in zip(self.frames, zip(*part, strict=True), strict=True)}
            outputs = {model: self._answers(model, heads, pixels) for model, heads in self.wanted.items()}
            columns = [head.read(outputs[model][head.name]) for model, head in self.tasks.values()]
            answers += [dict(zip(self.tasks, row, strict=True)) for row in zip(*columns, strict=True)]
        rest = iter(answers)
        return [
            Photo(file.name, tuple(_face(found, next(rest)) for found in file.faces), file.error) for file in decoded
        ]

    def stream(self, folder: StrPath, names: Iterable[str], *, threads: int | None = None) -> Iterator[Photo]:
        """Answers about any number of files of a folder, in the order of their names.

        Parameters
        ----------
        folder : path
        names : iterable of str
            Paths below it.
        threads : int, optional
            That decode; default 2 for crops, since Pillow decodes under Python's global lock, else one a core.
        """
        crops, folder = self.look is _as_crop, os.fspath(folder)
        threads = threads or (2 if crops else max(2, os.cpu_count() or 1))
        # Detection can take so long that a few pictures are enough for a thread.
        parts = _chunks(names, self.batch_size if crops else max(1, self.batch_size // 8))
        reading, answering = ThreadPoolExecutor(threads, "read"), ThreadPoolExecutor(PARALLEL_BATCHES, "answer")

        def read(part: list[str]) -> list[Decoded]:
            return [self.read(name, os.path.join(folder, name)) for name in part]  # noqa: PTH118 (a Path costs time)

        try:
            decoded = ordered(reading, read, parts, ahead=threads + 1, size=_pixels, most=PIXELS_AHEAD)
            batches = self._batches(chain.from_iterable(decoded))
            yield from chain.from_iterable(ordered(answering, self.answer, batches, ahead=PARALLEL_BATCHES))
        finally:
            for pool in (reading, answering):
                pool.shutdown(cancel_futures=True)

    def _batches(self, decoded: Iterable[Decoded]) -> Iterator[list[Decoded]]:
        """Files gathered until they are, or have faces, as many as a batch."""
        batch: list[Decoded] = []
        for file in decoded:
            batch.append(file)
            if max(len(batch), sum(len(each.faces) for each in batch)) >= self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def ordered(
    pool: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
    size: Callable[[Result], int] | None = None,
    most: int = 0,
) -> Iterator[Result]:
    """Results in the order of the items, of which few are taken before their results are wanted.

    Parameters
    ----------
    ahead : int
        Items that are taken at most.
    size, most : callable, int, optional
        No item is taken while the results that wait are larger than ``most``.
    """
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        while waiting and (waiting[0].done() or len(waiting) > ahead or (size and _size(waiting, size) > most)):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _size(waiting: Iterable[Future[Result]], size: Callable[[Result], int]) -> int:
    return sum(size(future.result()) for future in waiting if future.done())


def _pixels(decoded: list[Decoded]) -> int:
    return sum(square.shape[0] ** 2 for file in decoded for each in file.squares for square in each)


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def _as_crop(
    source: str | BinaryIO, frames: Sequence[images.Frame], *, max_pixels: int | None
) -> tuple[list[None], list[list[np.ndarray]]]:
    """As ``finding.look``, of a picture that is the crop of one face."""
    return [None], [images.decode_frames(source, frames, max_pixels=max_pixels)]


def _check_file(path: str) -> None:
    if "\0" in path:
        raise images.ImageError("a name with a NUL within, which no file has", images.UNREADABLE)
    mode = os.stat(path).st_mode  # noqa: PTH116
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading it could wait for ever
        raise images.ImageError("a pipe or device, not a file", images.UNREADABLE)


def _face(found: finding.Face | None, answers: dict[str, Label | Age]) -> Face:
    if found is None:
        return Face(answers)
    return Face(answers, (found.left, found.top, found.right, found.bottom), found.score)


def load_tasks(asked: Mapping[str, str]) -> dict[str, Model]:
    """Task -> loaded model; a model of several tasks is loaded once.

    Raises
    ------
    UsageError
        A model is not there, or answers something else than the task of that name does.
    """
    loaded: dict[str, Model] = {}
    for name in asked.values():
        if name not in loaded:
            loaded[name] = Model(name)
    for task, name in asked.items():
        head = loaded[name].head(task)
        if task in TASKS and name != TASKS[task] and sorted(head.classes) != ANSWERS[task]:
            answers = " or ".join(head.classes) or "with an age"
            raise UsageError(
                f"{printable(loaded[name].name)} answers {answers}, not {task}: give the task another name"
            )
    return {task: loaded[name] for task, name in asked.items()}


def to_record(face: Face, thresholds: Mapping[str, float] | None = None) -> Record:
    """A face as the journal, JSON Lines and the service have it.

    Parameters
    ----------
    face : Face
    thresholds : mapping of str to float, optional
        Task -> confidence below which the label is "unknown".
    """
    record: Record = {}
    for task, answer in face.answers.items():
        if isinstance(answer, Age):
            record[task] = round(answer.years, 1)
            # Rounded outwards, so that whole years hold as much as the promised interval.
            record[f"{task}_interval"] = [math.floor(answer.low), math.ceil(answer.high)]
        else:
            record[task] = answer.label if answer.confidence >= (thresholds or {}).get(task, 0) else UNKNOWN
            record[f"{task}_probability"] = round(answer.confidence, 4)
    if face.box is not None and face.score is not None:
        record |= {"box": [round(edge, 1) for edge in face.box], "score": round(face.score, 4)}
    return record


# ------------------------------------------------------------------------------------------------ for Python users


@lru_cache(maxsize=4)
def _loaded(tasks: tuple[tuple[str, str], ...], **how: Any) -> Pipeline:
    return Pipeline(load_tasks(dict(tasks)), **how)


def _pipeline(tasks: Iterable[str] | Mapping[str, str], **how: Any) -> Pipeline:
    tasks = [tasks] if isinstance(tasks, str) else tasks
    asked = dict(tasks) if isinstance(tasks, Mapping) else {task: TASKS.get(task, "") for task in tasks}
    if not asked:
        raise UsageError(f"no task is asked for; there are {', '.join(TASKS)}")
    if unknown := [task for task, model in asked.items() if not model]:
        raise UsageError(f"no task {unknown[0]!r}; there are {', '.join(TASKS)}, or name a model: {{task: model}}")
    return _loaded(tuple(asked.items()), **how)


def label(
    photo: StrPath | Image.Image | np.ndarray, tasks: Iterable[str] | Mapping[str, str] = ("gender",), **how: Any
) -> Photo:
    """Predict the faces of a photo.

    Parameters
    ----------
    photo : path, PIL image, or uint8 array ``[height, width, 3]``
    tasks : str, iterable of str, or mapping of str to str; default ("gender",)
        Of gender, age and glasses; or task -> folder of a model.
    how
        Other options of ``Pipeline``.

    Returns
    -------
    Photo
        A sequence of Face, the largest first; ``plot`` shows it.

    Raises
    ------
    images.ImageError
        The photo cannot be read.
    TypeError
        An array of other numbers, whose scale is not known.
    UsageError
        No such task or model.

    Examples
    --------
    >>> import faces
    >>> [face] = faces.label("samples/eileen_collins.jpg", tasks=["gender", "age"])
    >>> face.answers["gender"].label
    'female'
    """
    pipeline = _pipeline(tasks, **how)
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8:
            raise TypeError(f"an array of {photo.dtype}: give one of uint8, 0 to 255")
        photo = Image.fromarray(photo)
    source: str | io.BytesIO
    if isinstance(photo, Image.Image):
        name, source = "image", io.BytesIO()
        images.upright(photo).save(source, "BMP")
    else:
        name = source = str(Path(photo))  # which refuses the bytes of a picture
    [answered] = pipeline.answer([pipeline.read(name, source)])
    if answered.error:
        raise images.ImageError(f"{name}: {answered.error}", answered.error.kind)
    return replace(answered, source=source)


def label_folder(
    folder: StrPath, tasks: Iterable[str] | Mapping[str, str] = ("gender",), *, recursive: bool = False, **how: Any
) -> Iterator[Photo]:
    """Predict the faces of every file of a folder, in flat memory.

    Parameters
    ----------
    folder : path
    recursive : bool, default False
        Also of the folders below.
    tasks, how
        As for ``label``.

    Yields
    ------
    Photo
        In the order of ``files.find_files``; a file that cannot be read has an ``error``.
    """
    photos = _pipeline(tasks, **how).stream(folder, find_files(folder, recursive=recursive))
    return (replace(photo, source=os.path.join(folder, photo.name)) for photo in photos)  # noqa: PTH118
