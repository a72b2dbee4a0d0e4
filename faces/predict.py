"""An exported network on pixels. Needs numpy and onnxruntime, and no torch.

A model is a folder with a ``model.onnx`` that takes uint8 RGB squares ``[n, size, size, 3]`` and has one output a head:
probabilities ``[n, classes]``, or age, low and high in years ``[n, 3]``. Its metadata tell size, framing, subject and
heads, and what was fitted of each on validation images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from faces import images, trust
from faces.files import StrPath

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"  # of a checkout
PACKAGED = Path(__file__).resolve().parent / "artifacts"  # of an installed wheel
# Task -> the model that answers it by default, by the head of that name or its only head. Several tasks may have one.
TASKS = dict.fromkeys(("gender", "age", "glasses"), "faces_mobilenet_v1")
# Model -> a small one that can answer before it, see ``Head.sure``.
QUICK = {"faces_mobilenet_v1": "faces_small"}
SCHEMA = 2  # of the metadata
BATCH_SIZE = 16  # larger batches take more memory, and more time, since they leave the processor's caches
# Batches that are run side by side, and threads of each: small networks use cores better in two batches than in one.
PARALLEL_BATCHES = min(4, os.cpu_count() or 1)
THREADS = max(1, (os.cpu_count() or 1) // PARALLEL_BATCHES)


class UsageError(Exception):
    """The command cannot be carried out as given; the message is one line for the user."""


@dataclass(frozen=True)
class Label:
    """Predicted class of a face or picture.

    Attributes
    ----------
    label : str
        The most probable class.
    confidence : float
        Its probability.
    probabilities : dict of str to float
        Of every class, in the order of the model.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Age:
    """Predicted age in years, with its prediction interval."""

    years: float
    low: float
    high: float


@dataclass(frozen=True)
class Head:
    """What a model answers: one of several classes, or an age in years.

    Attributes
    ----------
    name : str
    classes : tuple of str
        In the order of the probabilities; empty for an age.
    abstain_below : float or None
        Confidence below which the model abstains.
    coverage : float or None
        Share of the ages that the intervals are to hold.
    sure : float or None
        Of a small model: confidence from which its answers were as often right as those of the model that it can
        answer before.
    """

    name: str
    classes: tuple[str, ...] = ()
    abstain_below: float | None = None
    coverage: float | None = None
    sure: float | None = None

    @property
    def width(self) -> int:
        """Number of columns of the answers: the classes, or age, low and high."""
        return len(self.classes) or 3

    def read(self, answers: np.ndarray) -> list[Label] | list[Age]:
        """Rows of ``Model.run`` as objects."""
        if not self.classes:
            return [Age(*row) for row in answers.tolist()]
        rows = zip(answers.argmax(1).tolist(), answers.tolist(), strict=True)
        return [Label(self.classes[best], row[best], dict(zip(self.classes, row, strict=True))) for best, row in rows]


class Model:
    """An exported network, ready to run.

    Parameters
    ----------
    where : path or str
        A folder that holds a ``model.onnx``, or the name of one in ``artifacts/`` or in the package.
    threads : int, optional
        Threads for one batch; default ``THREADS``.
    verify : bool, default True
        Refuse a file whose checksum is not listed in SHA256SUMS (see ``faces.trust``).

    Attributes
    ----------
    heads : dict of str to Head
    frame : images.Frame
        Size and framing of the squares.
    subject : {"face", "picture"}
        What a square shows.
    sha256 : str
        Checksum of the file.

    Raises
    ------
    UsageError
        No such model, not an exported network, or not listed.
    """

    def __init__(self, where: StrPath = TASKS["gender"], *, threads: int = 0, verify: bool = True):
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
            if about.get("schema", 1) == SCHEMA:
                self._describe(about)
        except trust.TrustError as error:
            raise UsageError(f"{self._file} {printable(str(error))}") from None
        except KeyError as error:
            raise UsageError(f"{self._file} was not exported by faces: its metadata have no {error}") from None
        except Exception as error:  # onnxruntime raises a dozen kinds of its own
            raise UsageError(f"{self._file} cannot be loaded: {one_line(error)}") from None
        if (found := about.get("schema", 1)) != SCHEMA:
            remedy = "python tools/schema2.py FOLDER converts it" if found == 1 else "update faces"
            raise UsageError(f"{self._file} has metadata of schema {found}, and {SCHEMA} is read: {remedy}")
        for head, shape in self._shapes.items():
            if shape != (2, self.heads[head].width):
                count = len(self.heads[head].classes) or "no"
                raise UsageError(f"{self._file}: head {head} has {count} classes but output {list(shape)} of 2 images")

    def _describe(self, about: Mapping[str, Any]) -> None:
        self.frame, self.subject = images.Frame(int(about["size"]), bool(about["whole"])), about["subject"]
        self.heads = {}
        for name, head in about["heads"].items():
            fitted = head.get("fitted", {})
            classes = tuple(head.get("classes", ()))
            self.heads[name] = Head(name, classes, *map(fitted.get, ("abstain_below", "coverage", "sure")))
        self._input = self.session.get_inputs()[0].name
        trial = np.zeros((2, self.size, self.size, 3), np.uint8)
        answers = self.session.run(list(self.heads), {self._input: trial})
        self._shapes = {name: answer.shape for name, answer in zip(self.heads, answers, strict=True)}

    @property
    def size(self) -> int:
        """Side of the squares in pixels."""
        return self.frame.size

    @property
    def _file(self) -> str:
        return printable(str(self.folder / "model.onnx"))

    def head(self, name: str = "") -> Head:
        """The head of that name, or the only one whatever its name; UsageError if there are several others."""
        if name not in self.heads and len(self.heads) > 1:
            raise UsageError(f"{printable(self.name)} has no head {name!r}; it has {', '.join(self.heads)}")
        return self.heads.get(name) or next(iter(self.heads.values()))

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the only head; empty for an age."""
        return self.head().classes

    @property
    def abstain_below(self) -> float | None:
        """Of the only head."""
        return self.head().abstain_below

    @property
    def coverage(self) -> float | None:
        """Of the only head."""
        return self.head().coverage

    def answers(self, pixels: np.ndarray, heads: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Outputs of one run.

        Parameters
        ----------
        pixels : uint8 array ``[n, size, size, 3]``
        heads : sequence of str, optional
            The heads to answer; default all.

        Returns
        -------
        dict of str to float32 array
            Head -> probabilities ``[n, classes]``, or age, low and high ``[n, 3]``.
        """
        heads = list(heads) or list(self.heads)
        try:
            return dict(zip(heads, self.session.run(heads, {self._input: pixels}), strict=True))
        except (MemoryError, RuntimeException, Fail) as error:  # mostly for want of memory
            message = f"{self.name} failed on a batch of {len(pixels)}, try a smaller one: {one_line(error)}"
        raise UsageError(message)  # out here, or it would keep what the network was working on

    def run(self, pixels: np.ndarray, head: str = "") -> np.ndarray:
        """``answers`` of one head, by default the only one."""
        name = self.head(head).name
        return self.answers(pixels, [name])[name]

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """``run`` of the only head; UsageError if that is an age."""
        if not self.classes:
            raise UsageError(f"{self.name} gives ages, not probabilities")
        return self.run(pixels)


def homes() -> list[Path]:
    """Folders of models: ``artifacts/`` of a checkout, then the package's own."""
    return [ARTIFACTS, PACKAGED]


def find_model(where: StrPath) -> Path:
    """The folder of a model given by path or name; UsageError lists the models that there are."""
    for folder in (Path(where), *(home / where for home in homes())):
        if (folder / "model.onnx").is_file():
            return folder
    found = sorted({path.parent.name for home in homes() for path in home.glob("*/model.onnx")})
    known = ", ".join(found) or "those in artifacts/ (there are none)"
    raise UsageError(f"no model {os.fspath(where)!r}: name a folder that holds a model.onnx, or one of {known}")


def printable(name: str) -> str:
    """A name fit for any terminal: control characters and what is not UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def one_line(error: Exception) -> str:
    """The message of an exception, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
