"""Trained classifiers for Apple's devices: ``faces export coreml MODEL OUT.mlpackage`` (extra ``coreml``).

The package takes an image, scales and standardises it itself, and answers with the likelier class and the probability
of every class. Conversion runs on Linux and macOS; only a Mac can run the result, and there ``--check DIR`` compares
its answers with those of ``process.py``.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from faces import images
from faces.files import find_files
from faces.predict import TASKS, Model, UsageError
from faces.research import experiments
from faces.research.backbones import WeightsError
from faces.research.heads import Classes
from faces.research.networks import Network

TOLERANCE = 0.02  # largest difference allowed between a probability on a Mac and from onnxruntime: weights are fp16


class _FromPixels(nn.Module):
    """As ``export.Deployed``, but from the float image 0..1 that Core ML hands over, and with one head."""

    def __init__(self, network: Network, head: Classes, fitted: Mapping):
        super().__init__()
        self.network, self.head, self.fitted = network, head, fitted

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head.answer(self.network(image)[self.head.name], self.fitted)


def convert(network: Network, out: str | os.PathLike, head: Classes, *, size: int, fitted: Mapping | None = None):
    """Write an ML program for classification; returns it as a ``coremltools.models.MLModel``.

    Parameters
    ----------
    out : the ``.mlpackage`` to write; one that is there is replaced.
    head : Classes; which of the network's heads answers.
    size : side of the images in pixels.
    fitted : what its ``calibrate`` gave.

    Raises
    ------
    UsageError : coremltools is not installed, or ``out`` is not fit to be written.
    """
    out = Path(out)
    if out.suffix != ".mlpackage" or not out.absolute().parent.is_dir():
        raise UsageError(f"cannot write {out}: name a file ending in .mlpackage in a folder that exists")
    if out.exists() and not (out / "Manifest.json").is_file():
        raise UsageError(f"{out} is there and is no package; nothing was written")
    # It reports every version that it was not tested with, and that this is no Mac.
    logging.getLogger("coremltools").setLevel(logging.CRITICAL)
    try:
        import coremltools
    except ImportError:
        raise UsageError("coremltools is not installed: pip install '.[coreml]' brings it (Linux or macOS)") from None
    rgb = coremltools.colorlayout.RGB
    picture = coremltools.ImageType("image", (1, 3, size, size), scale=1 / 255, color_layout=rgb)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch.jit's age and of names that the converter changes
        model = coremltools.convert(
            torch.jit.trace(_FromPixels(network, head, fitted or {}).eval(), torch.rand(1, 3, size, size)),
            inputs=[picture],
            classifier_config=coremltools.ClassifierConfig(list(head.classes)),
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS15,
        )
    model.short_description = f"{' or '.join(head.classes)}, from a {size}×{size} crop of one upright face"
    if out.is_dir():
        shutil.rmtree(out)
    model.save(str(out))
    return model


def export(model: str | os.PathLike, out: str | os.PathLike):
    """Convert a model folder, given by task, name or path; returns what ``convert`` returns.

    A task's own question is converted, also of a network that answers several.

    Raises
    ------
    UsageError : no such model, one without weights, one that answers several questions or no class, or no coremltools.
    """
    exported = Model(TASKS.get(str(model), model))
    if (len(exported.heads) > 1 and str(model) not in exported.heads) or not exported.head(str(model)).classes:
        given = ", ".join(exported.heads)
        raise UsageError(f"{exported.name} gives {given}: only a classifier of one label is converted")
    asked = exported.head(str(model)).name
    try:
        network, recipe, found, fitted = experiments.load(exported.folder)
    except WeightsError as error:
        raise UsageError(f"{exported.name} cannot be converted: {error}") from None
    [head] = [head for head in found if isinstance(head, Classes) and head.name == asked]
    return convert(network, out, head, size=recipe.size, fitted=fitted.get(asked))


def check(package: str | os.PathLike, model: Model, folder: str | os.PathLike, question: str = "") -> float:
    """Largest difference of a probability between the package, on a Mac, and the ONNX model, on a folder's photos.

    Parameters
    ----------
    question : the head that was converted, of a model that has several.

    Raises
    ------
    UsageError : this is no Mac, the folder holds no photo, or the difference is too large.
    """
    if platform.system() != "Darwin":
        raise UsageError("only a Mac can run a Core ML package; run the same command there to compare answers")
    import coremltools
    from PIL import Image

    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is no folder of photos to compare on")
    network, worst = coremltools.models.MLModel(str(package)), -1.0
    for name in find_files(folder):
        try:
            square = images.decode(Path(folder) / name, *model.frame)
        except images.ImageError:
            continue
        said = network.predict({"image": Image.fromarray(square)})
        likely = next(value for value in said.values() if isinstance(value, dict))
        expected = dict(zip(model.head(question).classes, model.run(square[None], question)[0], strict=True))
        worst = max(worst, *(abs(likely[name] - float(p)) for name, p in expected.items()))
    if worst < 0:
        raise UsageError(f"{folder} holds no photo to compare on")
    if worst > TOLERANCE:
        raise UsageError(f"the package differs from {model.name} by {worst:.3f} in some probability")
    return worst
