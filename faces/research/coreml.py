"""Trained classifiers for Apple's devices: ``python -m faces.export coreml MODEL OUT.mlpackage`` (extra ``coreml``).

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
from pathlib import Path

import torch
from torch import nn

from faces import images, models, recipes
from faces.files import find_files
from faces.predict import TASKS, Model, UsageError

TOLERANCE = 0.02  # largest difference allowed between a probability on a Mac and from onnxruntime: weights are fp16


class _FromPixels(nn.Module):
    """As ``export.Deployed``, but from the float image 0..1 that Core ML hands over."""

    def __init__(self, network: nn.Module, temperature: float):
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.network(image) / self.temperature
        if logits.shape[1] == 1:
            return torch.cat([(-logits).sigmoid(), logits.sigmoid()], 1)
        return logits.softmax(1)


def convert(
    network: nn.Module, out: str | os.PathLike, *, classes: tuple[str, ...], size: int, temperature: float = 1.0
):
    """Write an ML program for classification.

    Parameters
    ----------
    network : takes float ``[n, 3, size, size]`` in 0..1, returns logits ``[n, classes]``, or ``[n, 1]`` for two.
    out : the ``.mlpackage`` to write; one that is there is replaced.

    Returns
    -------
    coremltools.models.MLModel

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
    picture = coremltools.ImageType(
        "image", (1, 3, size, size), scale=1 / 255, color_layout=coremltools.colorlayout.RGB
    )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch.jit's age and of names that the converter changes
        model = coremltools.convert(
            torch.jit.trace(_FromPixels(network.eval(), temperature).eval(), torch.rand(1, 3, size, size)),
            inputs=[picture],
            classifier_config=coremltools.ClassifierConfig(list(classes)),
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS15,
        )
    model.short_description = f"{' or '.join(classes)}, from a {size}×{size} crop of one upright face"
    if out.is_dir():
        shutil.rmtree(out)
    model.save(str(out))
    return model


def export(model: str | os.PathLike, out: str | os.PathLike):
    """Convert a model folder, given by task, name or path, with its temperature; returns what ``convert`` returns.

    Raises
    ------
    UsageError : no such model, one whose weights are not there or not of a classifier, or no coremltools.
    """
    exported = Model(TASKS.get(str(model), model))
    if not exported.classes:
        raise UsageError(f"{exported.name} gives ages; only classifiers can be converted")
    try:
        network, about = recipes.load(exported.folder)
    except models.WeightsError as error:
        raise UsageError(f"{exported.name} cannot be converted: {error}") from None
    heat = about.get("temperature", 1.0)
    return convert(network, out, classes=exported.classes, size=exported.size, temperature=heat)


def check(package: str | os.PathLike, model: Model, folder: str | os.PathLike) -> float:
    """Largest difference of a probability between the package, on a Mac, and the ONNX model, on a folder's photos.

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
    package, worst = coremltools.models.MLModel(str(package)), -1.0
    for name in find_files(folder):
        try:
            square = images.decode(Path(folder) / name, *model.frame)
        except images.ImageError:
            continue
        said = package.predict({"image": Image.fromarray(square)})
        likely = next(value for value in said.values() if isinstance(value, dict))
        expected = dict(zip(model.classes, model.probabilities(square[None])[0], strict=True))
        worst = max(worst, *(abs(likely[name] - float(p)) for name, p in expected.items()))
    if worst < 0:
        raise UsageError(f"{folder} holds no photo to compare on")
    if worst > TOLERANCE:
        raise UsageError(f"the package differs from {model.name} by {worst:.3f} in some probability")
    return worst
