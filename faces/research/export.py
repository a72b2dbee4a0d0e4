"""A network with several heads as one ONNX graph, compared with what it was made of.

The graph takes pixels as decoded, uint8 ``[n, size, size, 3]`` RGB, and has one output a head, named like it:
probabilities ``[n, classes]``, or age, low and high in years ``[n, 3]``. Standardisation, mirror, softmax and what was
fitted on validation rows are inside; the metadata say size, framing, subject, heads and fitted values.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from faces import __version__
from faces.research import cards
from faces.research.backbones import SameConv
from faces.research.batches import Pixels
from faces.research.heads import Classes, Head, Years, from_dict
from faces.research.networks import Network
from faces.research.steps import commit

SUBJECTS = ("face", "picture")
# Largest differences, of a probability and of an age or its interval in years; the same with weights in 16 bits.
TOLERANCES = {Classes: (1e-4, 0.02), Years: (0.01, 1.0)}


class ExportError(RuntimeError):
    """The exported network answers otherwise than the trained one."""


class Deployed(nn.Module):
    """A network as it is used: uint8 ``[n, size, size, 3]`` -> one answer a head, in the order of ``heads``."""

    def __init__(self, network: Network, heads: Sequence[Head], fitted: Mapping[str, Mapping]):
        super().__init__()
        self.network = copy.deepcopy(network).cpu().eval()
        self.network.heads = nn.ModuleDict({head.name: self.network.heads[head.name] for head in heads})
        for module in self.network.modules():
            if isinstance(module, SameConv):
                module.fold()
        self.answers, self.fitted = list(heads), {head.name: dict(fitted.get(head.name, {})) for head in heads}

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(pixels.permute(0, 3, 1, 2).float() / 255)
        return tuple(head.answer(outputs[head.name].float(), self.fitted[head.name]) for head in self.answers)


def metadata(heads: Sequence[Head], fitted: Mapping[str, Mapping], *, size: int, whole: bool, subject: str) -> dict:
    """What the graph says about itself; ``from_metadata`` reads it back."""
    if subject not in SUBJECTS:
        raise ValueError(f"subject must be one of {', '.join(SUBJECTS)}, not {subject!r}")
    about = {head.name: asdict(head) | {"fitted": dict(fitted.get(head.name, {}))} for head in heads}
    return {"schema": 2, "version": __version__, "size": size, "whole": whole, "subject": subject, "heads": about}


def from_metadata(path: str | os.PathLike) -> tuple[list[Head], dict[str, dict], dict]:
    """The heads of an exported network, what was fitted of each, and the rest of its metadata."""
    about = json.loads({prop.key: prop.value for prop in onnx.load(path).metadata_props}["faces"])
    heads = about.pop("heads")
    return [from_dict(head) for head in heads.values()], {name: head["fitted"] for name, head in heads.items()}, about


def export(
    network: Network,
    path: str | os.PathLike,
    heads: Sequence[Head],
    *,
    fitted: Mapping[str, Mapping] | None = None,
    size: int,
    whole: bool = False,
    subject: str = "face",
    pixels: np.ndarray,
    half: bool = False,
) -> float:
    """Write a network as one ONNX file with a dynamic batch; returns the largest difference in any answer.

    Parameters
    ----------
    path : of the file.
    heads : those that answer; others of the network are left out.
    fitted : head -> what its ``calibrate`` gave.
    size, whole : side of the images, and whether they are whole pictures between black edges.
    subject : {"face", "picture"}; what an image shows.
    pixels : uint8 array ``[n, size, size, 3]``; images on which the file is compared with the network.
    half : store weights in 16 bits; they are computed with in 32.


    Raises
    ------
    ExportError : the file differs from the network by more than ``TOLERANCES``.
    """
    fitted = fitted or {}
    deployed = Deployed(network, heads, fitted).eval()
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["pixels"], "output_names": [head.name for head in heads]}
        shapes = {"pixels": {0: torch.export.Dim("n")}}
        program = torch.onnx.export(deployed, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # stack traces of this machine
        part.doc_string = ""
    about = metadata(heads, fitted, size=size, whole=whole, subject=subject)
    onnx.helper.set_model_props(proto, {"faces": json.dumps(about)})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    if half:
        halve(path)
    return compare(deployed, path, pixels, half=half)


def compare(deployed: Deployed, path: str | os.PathLike, pixels: np.ndarray, *, half: bool = False) -> float:
    """Largest difference of an ONNX file's answers from torch's; ExportError beyond the tolerance."""
    if not len(pixels):
        raise ExportError("an export must be compared with its original on some images, and none were given")
    session, worst = _session(path), 0.0
    # Batches of different size, so that a batch size frozen into the graph shows.
    for part in np.array_split(pixels, [1, *range(33, len(pixels), 32)]):
        if not len(part):
            continue
        with torch.inference_mode():
            expected = deployed(torch.from_numpy(np.ascontiguousarray(part)))
        for head, one, other in zip(deployed.answers, expected, session.run(None, {"pixels": part}), strict=True):
            difference = float(np.abs(one.numpy() - other).max())
            if not difference <= TOLERANCES[type(head)][half]:
                raise ExportError(f"the exported {head.name} differs from the trained one by {difference:.1e}")
            worst = max(worst, difference)
    return worst


def frame(path: str | os.PathLike, heads: Sequence[Head], pixels: Pixels, rows: np.ndarray) -> pd.DataFrame:
    """The answers of an ONNX file about some images as columns of a table; see ``frame`` of each head."""
    session, parts = _session(path), []
    for some in np.array_split(rows, -(-len(rows) // 256)):
        answers = session.run(None, {"pixels": pixels[some]})
        parts.append(pd.concat([head.frame(answer) for head, answer in zip(heads, answers, strict=True)], axis=1))
    return pd.concat(parts, ignore_index=True)


def _session(path: str | os.PathLike) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(Path(path).read_bytes(), providers=["CPUExecutionProvider"])


# -------------------------------------------------------------------------------------------------- smaller files


def halve(path: str | os.PathLike) -> None:
    """Store the weights of an ONNX file in 16 bits, each cast to 32 before use; onnxruntime does so on loading."""
    proto = onnx.load(path)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for weights in proto.graph.initializer:
        name = weights.name
        if weights.data_type == onnx.TensorProto.FLOAT and math.prod(weights.dims) >= 64:
            kept = onnx.numpy_helper.to_array(weights).astype(np.float16)
            weights.CopyFrom(onnx.numpy_helper.from_array(kept, f"{name}.half"))
            proto.graph.node.append(onnx.helper.make_node("Cast", [weights.name], [name], to=onnx.TensorProto.FLOAT))
    proto.graph.node.extend(nodes)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def quantize(source: str | os.PathLike, target: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write an exported network again with the weights and activations of its backbone in 8 bits.

    Static quantisation, with a scale a channel of the weights and a range of each activation (Jacob et al.,
    1712.05877). The last dense layer of every head and all after it, calibration and softmax too, stay in float.

    Parameters
    ----------
    source, target : ONNX files; they may be the same.
    pixels : uint8 ``[n, size, size, 3]``: a few hundred training images, on which the ranges of activations are found.

    Raises
    ------
    ExportError : no images.
    """
    if not len(pixels):
        raise ExportError("8-bit ranges must be found on some images, and none were given")
    about = onnx.load(source).metadata_props
    with tempfile.TemporaryDirectory() as temporary:
        prepared = Path(temporary) / "prepared.onnx"
        # BatchNorm is folded into the convolutions first: each then has one range, not two.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_static(
                prepared,
                target,
                _Calibration(pixels),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "Add", "Clip", "GlobalAveragePool", "ReduceMean"],
                nodes_to_exclude=_head_nodes(prepared),
                per_channel=True,
                # Seven bits a weight: without VNNI, sums of two products of eight bits overflow (ONNX Runtime's
                # documentation, "Quantize ONNX models").
                reduce_range=True,
                calibrate_method=CalibrationMethod.MinMax,
            )
    proto = onnx.load(target)
    onnx.helper.set_model_props(proto, {prop.key: prop.value for prop in about})
    onnx.save(proto, target)


def _head_nodes(path: Path) -> list[str]:
    """The nodes of every head from its last dense layer on: a sum of years in 256 steps would be off by months."""
    graph = onnx.load(path).graph
    matrices = {weights.name for weights in graph.initializer if len(weights.dims) == 2}
    made_by = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    waiting = [output.name for output in graph.output]
    while waiting:
        node = made_by.get(waiting.pop())
        if node and node.name not in found and node.op_type != "Conv":
            found.add(node.name)
            if not (node.op_type in ("Gemm", "MatMul") and matrices.intersection(node.input)):
                waiting += node.input
    return sorted(found)


class _Calibration(CalibrationDataReader):
    def __init__(self, pixels: np.ndarray):
        self.batches = iter([{"pixels": pixels[start : start + 32]} for start in range(0, len(pixels), 32)])

    def get_next(self):
        return next(self.batches, None)


def versions() -> dict[str, str]:
    """The commit and the versions of the packages that decide the numbers."""
    packages = {"torch": torch.__version__, "onnx": onnx.__version__, "numpy": np.__version__}
    return {"commit": commit(), "faces": __version__, "python": platform.python_version()} | packages


# ----------------------------------------------------------------------------------------------------- terms of use

UTKFACE = "UTKFace is free for non-commercial research only, and weights trained on it should be taken to inherit that."
SIMPSONS = "The pictures of {} are from the Simpsons Characters Dataset, which is under CC BY-NC-SA 4.0."
# Terms of photos -> how their rows in a manifest are recognised, whatever their folder is called.
TERMS = {
    UTKFACE: lambda rows: rows["name"].str.contains(r"(?:^|/)\d{1,3}_[01]_(?:[0-4]_)?\d{8,}").mean() > 0.5,
    "FairFace is under CC BY 4.0.": lambda rows: _holds(
        rows, "race", "Latino_Hispanic", "East Asian", "Middle Eastern"
    ),
    "The MTFL photos (gathered as {}) are for research use.": lambda rows: (
        rows["name"].str.contains(r"(?:^|/)(?:AFLW|lfw_5590|net_7876)_").mean() > 0.5
    ),
    SIMPSONS: lambda rows: _holds(rows, "label", "homer_simpson", "bart_simpson", "lisa_simpson"),
}
# Published sources, for tables without labels or names.
NAMED = dict(zip(("utkface", "fairface", "glasses", "color6"), TERMS, strict=True)) | {"gray14": SIMPSONS}


def terms(photos: pd.DataFrame) -> list[str]:
    """A sentence on the terms of each source; known data sets are recognised by the names and labels of the photos."""
    found = []
    for source, rows in photos.groupby("source"):
        known = NAMED.get(source) or next((text for text, shows in TERMS.items() if shows(rows)), None)
        found.append(known.format(f"`{source}`") if known else f"{source}: the terms of its owners.")
    return found


def _holds(rows: pd.DataFrame, column: str, *values: str) -> bool:
    return column in rows and rows[column].isin(values).any()


FAILURES = {
    "face": "Whole scenes: the network expects one face, upright, filling most of the picture.",
    "picture": "Pictures of another kind, or framed otherwise, than those it was trained on: it answers all the same.",
    "gender": "The labels name how somebody was seen by an annotator, as one of two. The network can say nothing else, "
    "and nothing of how a person identifies.",
    "age": "An age is how old somebody looks in one photo, learnt from labels that were mostly guessed from photos; "
    "the very young and the old are drawn towards the middle.",
}
CARD = """# {name}

Predicts {heads} from a {size}×{size} {image}. {parameters:,} weights.

## Measured

| test photos of | number | metric | value | 95% interval |
|---|---|---|---|---|
{table}

Intervals: bootstrap over groups of near-duplicate photos. All figures: `metrics.json`.

## Known failures

{failures}

## Intended use

Teaching, research, and sorting one's own photos, with errors in mind. Not for decisions about people, not for \
identification or surveillance, not for anybody who did not agree to it.

## Training data and its terms

Trained on: {sources}. {terms}
"""


def card(metrics: Mapping, figures: pd.DataFrame, photos: pd.DataFrame, subject: str) -> str:
    """The text of MODEL_CARD.md.

    Parameters
    ----------
    metrics, figures : the content of metrics.json, and as from ``evaluation.figures``.
    photos : the training rows of the manifest.
    """
    names = [head["name"] for head in metrics["heads"]]
    shown = figures.assign(unit=np.where(figures["metric"] == "mae", "{:.2f} years", "{:.1%}"))
    table = [
        f"| {row.source} | {row.photos:,} | {row.head} {row.metric} "
        f"| {row.unit.format(row.mean)} | {row.unit.format(row.low)} – {row.unit.format(row.high)} |"
        for row in shown[shown["by"] == ""].itertuples()
    ]
    failures = []
    for (head, metric, source), rows in shown[shown["by"] == "age_group"].groupby(["head", "metric", "source"]):
        if metric != "coverage" and len(rows) > 1:
            worst = rows.loc[rows["mean"].idxmax() if metric == "mae" else rows["mean"].idxmin()]
            value = worst["unit"].format(worst["mean"])
            failures.append(
                f"{source}: {head} is worst in age group {worst['value']} ({value}, {worst['photos']:,} photos)."
            )
    failures += [FAILURES[key] for key in (subject, *names) if key in FAILURES]
    sources = sorted(photos["source"].unique())
    return cards.header(metrics, sources) + CARD.format(
        name=metrics["model"],
        heads=", ".join(
            f"{head['name']} ({' or '.join(head['classes']) if 'classes' in head else 'years, with an interval'})"
            for head in metrics["heads"]
        ),
        size=metrics["recipe"]["size"],
        image=("crop of one face" if subject == "face" else "picture")
        + ", the whole of it between black edges" * metrics["recipe"]["whole"],
        parameters=metrics["parameters"],
        table="\n".join(table),
        failures="\n".join(f"- {text}" for text in failures),
        sources=", ".join(sources),
        terms=" ".join(terms(photos)),
    )
