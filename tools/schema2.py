"""Rewrite the metadata and the output's name of exported networks of the first schema; nothing else changes.

    python tools/schema2.py FOLDER [--name HEAD] [--subject picture]

The head is named after what it answers: age, gender, glasses, or ``label`` for other classes. Nodes and initialisers
are compared byte for byte before the file is replaced, and the model is listed anew in SHA256SUMS.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from faces import trust  # noqa: E402
from faces.research.export import metadata  # noqa: E402
from faces.research.heads import Classes, Years  # noqa: E402

NAMES = {("female", "male"): "gender", ("glasses", "no_glasses"): "glasses"}


def convert(folder: Path, name: str | None = None, subject: str | None = None) -> None:
    """Rewrite ``folder/model.onnx``."""
    path = folder / "model.onnx"
    proto = onnx.load(path)
    old = {prop.key: prop.value for prop in proto.metadata_props}
    about = json.loads(old["faces"])
    if "schema" in about:
        raise ValueError(f"{path} is of schema {about['schema']} already")
    if "age" in about:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        head = Years(name or "age", metrics["recipe"]["head"])
        fitted = {"width": metrics["intervals"]["width"], "coverage": about["age"]["coverage"]}
    else:
        classes = tuple(about["classes"])
        head = Classes(name or NAMES.get(tuple(sorted(classes)), "label"), classes)
        fitted = {"abstain_below": about["abstain_below"]} if "abstain_below" in about else {}
    subject = subject or ("face" if head.name in ("age", "gender", "glasses") else "picture")
    new = metadata([head], {head.name: fitted}, size=about["size"], whole=about.get("whole", False), subject=subject)
    before, [output] = copy.deepcopy(proto), proto.graph.output
    for node in proto.graph.node:
        node.output[:] = [head.name if made == output.name else made for made in node.output]
    output.name = head.name
    onnx.helper.set_model_props(proto, {"faces": json.dumps(new | {"version": about["version"]})})
    onnx.checker.check_model(proto)
    _same(before, proto)
    onnx.save(proto, path)
    trust.vouch(folder)
    print(f"{folder.name}: {head.name}, about a {subject}")


def _same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """ValueError unless initialisers are equal byte for byte, and nodes but for the name of the output."""
    old, new = ([part.SerializeToString() for part in proto.graph.initializer] for proto in (before, after))
    renamed = {before.graph.output[0].name: after.graph.output[0].name}
    for node in before.graph.node:
        node.output[:] = [renamed.get(made, made) for made in node.output]
    nodes = ([node.SerializeToString() for node in proto.graph.node] for proto in (before, after))
    if old != new or len({tuple(part) for part in nodes}) != 1:
        raise ValueError("weights or nodes would change")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path)
    parser.add_argument("--name", help="of the head (default: by its classes)")
    parser.add_argument("--subject", choices=("face", "picture"), help="what an image shows (default: by the head)")
    options = parser.parse_args(argv)
    for folder in options.folders:
        convert(folder, options.name, options.subject)
    return 0


if __name__ == "__main__":
    sys.exit(main())
