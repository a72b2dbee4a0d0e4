"""Write a trained network as a model folder, and prove that what was written says the same as what was trained.

A model folder holds ``model.onnx`` (for use), ``weights.safetensors`` (to train on from), ``metrics.json``,
``history.csv`` and ``MODEL_CARD.md``. The ONNX graph takes the pixels as decoded, uint8 ``[n, size, size, 3]`` RGB,
and gives probabilities ``[n, classes]``, or for an age regressor years ``[n, 3]``: scaling, standardisation, softmax
and calibration are inside it, and class names and size are in its metadata, so nothing around it can disagree with the
training.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from faces import __version__, trust
from faces.files import write_json
from faces.models import save_weights
from faces.predict import TASKS, Model, UsageError
from faces.research.heads import Classes, Years

TERMS = {
    "utkface": "UTKFace is free for non-commercial research only, and weights trained on it should be taken to inherit "
    "that.",
    "fairface": "FairFace is under CC BY 4.0.",
    "glasses": "The MTFL photos (gathered as `glasses`) are for research use.",
    "color6": "The pictures of `color6` are from the Simpsons Characters Dataset, which is under CC BY-NC-SA 4.0.",
    "gray14": "The pictures of `gray14` are from the Simpsons Characters Dataset, which is under CC BY-NC-SA 4.0.",
}
TOLERANCE = 1e-4  # largest difference allowed between a probability from torch and from onnxruntime
HALF_TOLERANCE = 0.01  # the same where weights are kept in 16 bits
YEARS_TOLERANCE = 0.01  # the same for ages, in years


class ExportError(RuntimeError):
    """The exported network does not say what the trained one says."""


class Deployed(nn.Module):
    """A classifier as it is used: uint8 ``[n, size, size, 3]`` in, probabilities ``[n, classes]`` out.

    Logits are divided by ``temperature``; a single one becomes the probabilities of two classes.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0):
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.permute(0, 3, 1, 2).float() / 255
        logits = self.model(x).float() / self.temperature
        if logits.shape[1] == 1:
            return torch.cat([(-logits).sigmoid(), logits.sigmoid()], 1)
        return logits.softmax(1)


class DeployedAge(nn.Module):
    """An age regressor as it is used: uint8 ``[n, size, size, 3]`` in, ``[n, 3]`` out: age, low, high, in years.

    Parameters
    ----------
    decode, spread : of an ``ages.Head``.
    width : half the width of the interval, in spreads.
    """

    def __init__(self, model: nn.Module, decode: Callable, spread: Callable, width: float):
        super().__init__()
        self.model = model
        self.decode, self.spread, self.width = decode, spread, width

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs = self.model(pixels.permute(0, 3, 1, 2).float() / 255).float()
        age, reach = self.decode(outputs), self.width * self.spread(outputs)
        return torch.stack([age.clamp(min=0), (age - reach).clamp(min=0), age + reach], 1)


def export(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    classes: Sequence[str],
    size: int,
    whole: bool = False,
    pixels: np.ndarray,
    metrics: dict,
    history: pd.DataFrame,
    card: str,
    temperature: float = 1.0,
    abstain_below: float | None = None,
    half: bool = False,
) -> Path:
    """Write a model folder, whole or not at all.

    Parameters
    ----------
    model : takes float ``[n, 3, size, size]`` in 0..1, returns logits ``[n, classes]``, or ``[n, 1]`` for two classes.
    whole : it was trained on whole pictures between black edges, and not on their central squares.
    temperature, abstain_below : found on validation photos (see ``evaluation``); the first goes into the graph, the
        second into its metadata, as the confidence that ``process.py --min-confidence auto`` asks for.
    pixels : real images, uint8 ``[n, size, size, 3]``, on which the export is compared with ``model``.
    metrics : goes to ``metrics.json``, with the versions of the software and the outcome of the comparison added.
    card : text of ``MODEL_CARD.md``.
    half : keep the weights of ``model.onnx`` in 16 bits, which halves it; they are computed with in 32.

    Raises
    ------
    ExportError : some probability differs by more than 1e-4 (with ``half``: 0.01) from torch's; the folder is left as
        it was.
    """
    from faces.research.export import metadata  # it needs this module

    head = Classes(metrics.get("label", "label"), tuple(classes))
    fitted = {} if abstain_below is None else {"abstain_below": round(abstain_below, 4)}
    subject = "face" if set(classes) <= {"female", "male", "glasses", "no_glasses"} else "picture"
    about = metadata([head], {head.name: fitted}, size=size, whole=whole, subject=subject)
    model = copy.deepcopy(model).cpu().eval()
    rest = {"pixels": pixels, "metrics": metrics, "history": history, "card": card, "half": half}
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    return _write(Deployed(model, temperature), folder, about, tolerance=tolerance, **rest)


def export_age(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    decode: Callable[[torch.Tensor], torch.Tensor],
    spread: Callable[[torch.Tensor], torch.Tensor],
    width: float,
    coverage: float,
    size: int,
    pixels: np.ndarray,
    metrics: dict,
    history: pd.DataFrame,
    card: str,
) -> Path:
    """Write the model folder of an age regressor, whole or not at all; else as ``export``.

    Parameters
    ----------
    decode, spread : what the outputs mean in years (those of an ``ages.Head``); they go into the graph.
    width, coverage : half the width of the intervals, in spreads, and the share of ages that they are to hold.

    Raises
    ------
    ExportError : some age differs by more than a hundredth of a year from torch's; the folder is left as it was.
    """
    from faces.research.export import metadata  # it needs this module

    fitted = {"age": {"width": width, "coverage": coverage}}
    about = metadata([Years("age", "median")], fitted, size=size, whole=False, subject="face")
    deployed = DeployedAge(copy.deepcopy(model).cpu().eval(), decode, spread, width)
    rest = {"pixels": pixels, "metrics": metrics, "history": history, "card": card, "tolerance": YEARS_TOLERANCE}
    return _write(deployed, folder, about, **rest)


def _write(deployed, folder, about, *, pixels, metrics, history, card, tolerance, half=False) -> Path:
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        partial = Path(temporary)
        write_onnx(deployed, partial / "model.onnx", about)
        if half:
            halve(partial / "model.onnx")
        difference = compare(deployed, partial, pixels, tolerance)
        save_weights(deployed.model, partial)
        checked = {"images": len(pixels), "largest_difference": float(f"{difference:.1e}"), "tolerance": tolerance}
        write_json(partial / "metrics.json", metrics | {"export": checked, "made_with": versions()})
        history.round(6).to_csv(partial / "history.csv", index=False)
        (partial / "MODEL_CARD.md").write_text(card.strip() + "\n", encoding="utf-8")
        _move(partial, folder)
    return folder


def _move(partial: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in partial.iterdir():
        # Into files as the umask wants them, not readable by their owner only.
        shutil.copyfile(path, folder / f".{path.name}.partial")
        (folder / f".{path.name}.partial").replace(folder / path.name)
    trust.vouch(folder)


def write_onnx(deployed: nn.Module, path: str | os.PathLike, about: dict) -> None:
    """Write a ``Deployed`` or ``DeployedAge`` as one ONNX file with a dynamic batch.

    ``about`` becomes the metadata that ``predict.Model`` reads.
    """
    example = torch.zeros(2, about["size"], about["size"], 3, dtype=torch.uint8)
    # The exporter reports every optional package that it does without.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed.eval(),
            (example,),
            dynamo=True,
            input_names=["pixels"],
            output_names=list(about["heads"]),
            dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
            verbose=False,
        )
    proto = program.model_proto
    # Stack traces of the exporting machine are nobody's business.
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(proto, {"faces": json.dumps(about)})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def halve(path: str | os.PathLike) -> None:
    """Keep the weights of an ONNX file in 16 bits, each cast to 32 before use; onnxruntime does so on loading."""
    proto = onnx.load(path)
    casts = []
    for weights in proto.graph.initializer:
        if weights.data_type != onnx.TensorProto.FLOAT or math.prod(weights.dims) < 64:
            continue
        name = weights.name
        kept = onnx.numpy_helper.to_array(weights).astype(np.float16)
        weights.CopyFrom(onnx.numpy_helper.from_array(kept, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [weights.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def quantize(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    pixels: np.ndarray,
    describe: Callable[[Model], tuple[dict, str]],
) -> Path:
    """Write an exported model again with weights and activations in 8 bits: a quarter of the size.

    Static quantisation: the ranges of the activations are those seen on ``pixels``; weights have a scale a channel
    (Jacob et al., 1712.05877). What comes before the first convolution and after the last layer stays as it was.

    Parameters
    ----------
    source : folder of the model as ``export`` wrote it.
    pixels : training images to calibrate on, uint8 ``[n, size, size, 3]``; a few hundred will do.
    describe : given the 8-bit model, measures it: what goes into ``metrics.json``, and the text of ``MODEL_CARD.md``.

    Raises
    ------
    ExportError : there are no images to calibrate on.
    """
    if not len(pixels):
        raise ExportError("8-bit ranges must be found on some images, and none were given")
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        partial = Path(temporary)
        prepared = partial / "prepared.onnx"
        # BatchNorm is folded into the convolutions first: each then has one range, not two.
        quant_pre_process(Path(source) / "model.onnx", prepared, skip_symbolic_shape=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_static(
                prepared,
                partial / "model.onnx",
                _Calibration(pixels),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "Add", "Clip", "GlobalAveragePool", "ReduceMean"],
                nodes_to_exclude=_after_the_last_layer(prepared),
                per_channel=True,
                # Seven bits a weight: without VNNI, sums of two products of eight bits overflow (ONNX Runtime's
                # documentation, "Quantize ONNX models").
                reduce_range=True,
                calibrate_method=CalibrationMethod.MinMax,
            )
        prepared.unlink()
        proto = onnx.load(partial / "model.onnx")
        about = {prop.key: prop.value for prop in onnx.load(Path(source) / "model.onnx").metadata_props}
        onnx.helper.set_model_props(proto, {"faces": about["faces"]})
        onnx.save(proto, partial / "model.onnx")
        metrics, card = describe(Model(partial, verify=False))
        write_json(partial / "metrics.json", metrics | {"made_with": versions()})
        (partial / "MODEL_CARD.md").write_text(card.strip() + "\n", encoding="utf-8")
        _move(partial, folder)
    return folder


def _after_the_last_layer(path: Path) -> list[str]:
    """The nodes that turn logits into answers: a sum of years in 256 steps would be off by months."""
    nodes = list(onnx.load(path).graph.node)
    last = max(number for number, node in enumerate(nodes) if node.op_type in ("Gemm", "Conv"))
    return [node.name for node in nodes[last + 1 :]]


class _Calibration(CalibrationDataReader):
    def __init__(self, pixels: np.ndarray):
        self.batches = iter([{"pixels": pixels[start : start + 32]} for start in range(0, len(pixels), 32)])

    def get_next(self):
        return next(self.batches, None)


FAILURES = {
    "faces": "Whole scenes: the network expects one face, upright, filling most of the picture.",
    "gender": "The labels name how somebody was seen by an annotator, as one of two. The network can say nothing else, "
    "and nothing of how a person identifies.",
    "age": "An age is how old somebody looks in one photo, learnt from labels that were mostly guessed from photos; "
    "the very young and the old are drawn towards the middle.",
    "label": "Pictures of another kind, or framed otherwise, than those it was trained on: it answers all the same.",
}


def model_card(
    name: str, *, task: str, sources: Sequence[str], metrics: dict, failures: Sequence[str] = ("faces", "gender")
) -> str:
    """The text of ``MODEL_CARD.md``; its figures are taken from ``metrics``, the content of ``metrics.json``.

    Parameters
    ----------
    sources : of the training photos; the terms of those in ``TERMS`` are quoted.
    metrics : with ``test`` (source -> ``evaluation.summary`` or ``ages.summary``), ``test_by_age_group`` (source ->
        records) and, where measured, ``elsewhere``.
    failures : keys of ``FAILURES``, the known ones to name besides the age group that is served worst.
    """
    lines = [f"# {name}", "", f"Predicts {task}. {metrics['weights']:,} weights.", "", "## Measured", ""]
    held_out = {f"{source}, test split": figures for source, figures in metrics["test"].items()}
    other = {f"{source}, never trained on": figures for source, figures in metrics.get("elsewhere", {}).items()}
    figure = "mae" if all("mae" in figures for figures in (held_out | other).values()) else "accuracy"
    shown = "{:.2f}" if figure == "mae" else "{:.1%}"
    heading = {"mae": "mean absolute error, years", "accuracy": "accuracy"}[figure]
    lines += [f"| photos | number | {heading} | 95 % interval |", "|---|---|---|---|"]
    for where, figures in (held_out | other).items():
        low, value, high = (shown.format(figures[figure][key]) for key in ("low", "value", "high"))
        lines.append(f"| {where} | {figures['photos']:,} | {value} | {low} – {high} |")
    lines += ["", "Intervals are bootstrapped over groups of near-duplicate photos. More in `metrics.json`.", ""]
    lines += ["## Known failures", ""]
    for source, ages in metrics.get("test_by_age_group", {}).items():
        if len(ages) > 1:
            worst, figures = (max if figure == "mae" else min)(ages.items(), key=lambda item: item[1]["mean"])
            share = f"{figures['mean']:.1f} years off" if figure == "mae" else f"{figures['mean']:.1%}"
            share = f"{share} {'on' if figure == 'mae' else 'of'} {figures['photos']:,} photos"
            lines.append(f"- {source}: least accurate for age group {worst} ({share}).")
    lines += [
        *(f"- {FAILURES[key]}" for key in failures),
        "",
        "## Intended use",
        "",
        "Teaching, research, and sorting one's own photos, with errors in mind. Not for decisions about people, not "
        "for identification or surveillance, not for anybody who did not agree to it.",
        "",
        "## Training data and its terms",
        "",
        f"Trained on: {', '.join(sources)}. "
        + " ".join(TERMS.get(source, f"{source}: the terms of its owners.") for source in sources),
    ]
    return "\n".join(lines)


def compare(deployed: nn.Module, folder: str | os.PathLike, pixels: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Largest difference between torch's and the exported network's answers on ``pixels``.

    Raises
    ------
    ExportError : it is more than ``tolerance``, or there are no images to compare on.
    """
    if not len(pixels):
        raise ExportError("an export must be compared with its original on some images, and none were given")
    deployed = deployed.eval()
    with torch.inference_mode():
        expected = np.concatenate([deployed(torch.from_numpy(part)).numpy() for part in _parts(pixels, 64)])
    exported = Model(folder, verify=False)
    # In batches of different size, so that a batch frozen into the graph shows.
    cut = max(1, len(pixels) // 3)
    found = np.concatenate([exported.run(part) for some in (pixels[:cut], pixels[cut:]) for part in _parts(some, 64)])
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:
        raise ExportError(f"the exported network differs from the trained one by {difference:.1e} in some answer")
    return difference


def _parts(pixels: np.ndarray, size: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(pixels[start : start + size]) for start in range(0, len(pixels), size)]


def versions() -> dict[str, str]:
    """What a result was made with: the state of the code and of the packages that decide the numbers."""
    return {
        "commit": commit(),
        "faces": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "numpy": np.__version__,
    }


def commit() -> str:
    """The git commit of the code, with ``+changes`` where the working tree differs from it; "unknown" without git."""
    try:
        ask = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
        name = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **ask).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--", "*.py", "*.ipynb"], **ask).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + "+changes" * bool(changed)


# ------------------------------------------------------------------------------------------------ command line


def main(argv: list[str] | None = None) -> int:
    """Convert a model folder for other machines; returns the exit status: 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m faces.export", description="Convert a trained model folder for other machines."
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    apple = kinds.add_parser("coreml", help="an ML program for Apple's devices (extra coreml)")
    apple.add_argument("model", help=f"a task ({', '.join(TASKS)}), a folder in artifacts/, or a path")
    apple.add_argument("out", metavar="OUT.mlpackage", help="the package to write")
    apple.add_argument("--check", metavar="DIR", help="on a Mac: compare its answers on these photos with process.py's")
    options = parser.parse_args(argv)
    from faces.research import coreml  # it needs this module

    try:
        coreml.export(options.model, options.out)
        print(f"{options.out} written")
        if options.check:
            worst = coreml.check(options.out, Model(TASKS.get(options.model, options.model)), options.check)
            print(f"on the photos in {options.check} its probabilities differ by {worst:.4f} at most")
    except UsageError as error:
        print(f"faces.export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
