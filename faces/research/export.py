"""A network with several heads as one ONNX graph, compared with what it was made of.

The graph takes pixels as decoded, uint8 ``[n, size, size, 3]`` RGB, and has one output a head, named like it:
probabilities ``[n, classes]``, or age, low and high in years ``[n, 3]``. Standardisation, mirror, softmax and what was
fitted on validation rows are inside; the metadata say size, framing, subject, heads and fitted values.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from faces import __version__
from faces.export import HALF_TOLERANCE, TOLERANCE, YEARS_TOLERANCE, ExportError, halve
from faces.research.backbones import SameConv
from faces.research.heads import Classes, Head, from_dict
from faces.research.networks import Network

SUBJECTS = ("face", "picture")


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
    """Write a network as one ONNX file with a dynamic batch.

    Parameters
    ----------
    network : Network
    path : path
        Of the file.
    heads : sequence of Head
        Those that answer; others of the network are left out.
    fitted : mapping, optional
        Head -> what its ``calibrate`` gave.
    size, whole : int, bool
        Side of the images, and whether they are whole pictures between black edges.
    subject : {"face", "picture"}
        What an image shows.
    pixels : uint8 array ``[n, size, size, 3]``
        Images on which the file is compared with the network.
    half : bool, default False
        Store weights in 16 bits; they are computed with in 32.

    Returns
    -------
    float
        The largest difference in any answer.

    Raises
    ------
    ExportError
        The file differs from the network by more than 1e-4 in a probability (0.01 with ``half``) or .01 years in an
        age (half a year with ``half``).
    """
    fitted = fitted or {}
    deployed = Deployed(network, heads, fitted).eval()
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed,
            (example,),
            dynamo=True,
            input_names=["pixels"],
            output_names=[head.name for head in heads],
            dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
            verbose=False,
        )
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
    session = onnxruntime.InferenceSession(Path(path).read_bytes(), providers=["CPUExecutionProvider"])
    worst = 0.0
    # Batches of different size, so that a batch size frozen into the graph shows.
    for part in np.array_split(pixels, [1, *range(33, len(pixels), 32)]):
        if not len(part):
            continue
        with torch.inference_mode():
            expected = deployed(torch.from_numpy(np.ascontiguousarray(part)))
        for head, one, other in zip(deployed.answers, expected, session.run(None, {"pixels": part}), strict=True):
            difference = float(np.abs(one.numpy() - other).max())
            years = YEARS_TOLERANCE * (50 if half else 1)
            tolerance = (HALF_TOLERANCE if half else TOLERANCE) if isinstance(head, Classes) else years
            if not difference <= tolerance:
                raise ExportError(f"the exported {head.name} differs from the trained one by {difference:.1e}")
            worst = max(worst, difference)
    return worst
