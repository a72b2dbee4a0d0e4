"""Networks for tests, written in a blink and without torch: one head tells red from blue, one takes red for age."""

import json
from pathlib import Path

from onnx import TensorProto, helper, save
from PIL import Image

from faces import trust

CLASSES, SIZE = ["blue", "red"], 16
# The pictures of the fixture ``photos``, and what the first network says of them.
COLOURS = {"img_0.jpg": "red", "img_1.jpg": "blue", "img_2.jpg": "red", "img_3.jpg": "red", "img_4.jpg": "blue"}


def picture(path, colour, size=(40, 30)):
    """Write a small picture of one colour; a JPEG where the name does not say which kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, None if path.suffix else "JPEG")


def metadata(*heads, size=SIZE, whole=False, subject="picture", **more):
    """The metadata of an exported network; a head is a name of an age, or (name, classes[, fitted])."""
    about = {}
    for head in heads:
        name, classes, fitted = (*head, {})[:3] if isinstance(head, tuple) else (head, None, {"coverage": 0.9})
        about[name] = {"name": name, "fitted": fitted} | ({} if classes is None else {"classes": list(classes)})
    about = {"schema": 2, "size": size, "whole": whole, "subject": subject, "heads": about}
    return {"faces": json.dumps(about | more)}


def write(folder, *, heads=("label",), about=None, outputs=2, age=False, size=SIZE, whole=False, classes=CLASSES):
    """Write ``folder/model.onnx`` with some heads.

    One named ``age`` answers a tenth of the red (0 to 25.5 years) less a tenth of the blue, times ``age``, and an
    interval of 5.5 years about it; any other the softmax over (blue - red, red - blue), of the means over the picture.
    ``age`` alone means that head alone. ``about`` replaces the metadata.
    """
    heads = ("age",) if age else heads
    subject = "picture" if "age" not in heads and "glasses" not in (*heads, *classes) else "face"
    described = [name if name == "age" else (name, classes) for name in heads]
    about = metadata(*described, size=size, whole=whole, subject=subject) if about is None else about
    red_or_blue = [-0.1, 0.1, 0, 0, 0.1, -0.1] if outputs == 2 else [0.0] * 3 * outputs
    years = [0.1 * (age or 1)] * 3 + [0.0] * 3 + [-0.1 * (age or 1)] * 3
    weights = [
        helper.make_tensor("red_or_blue", TensorProto.FLOAT, [3, outputs], red_or_blue),
        helper.make_tensor("red_years", TensorProto.FLOAT, [3, 3], years),
        helper.make_tensor("reach", TensorProto.FLOAT, [3], [0.0, -5.5, 5.5]),
    ]
    nodes, shapes = [], [3 if name == "age" else outputs for name in heads]
    for name in heads:
        if name == "age":
            nodes += [
                helper.make_node("MatMul", ["means", "red_years"], ["sums"]),
                helper.make_node("Relu", ["sums"], ["years"]),
                helper.make_node("Add", ["years", "reach"], ["around"]),
                helper.make_node("Relu", ["around"], ["age"]),
            ]
        else:
            nodes += [
                helper.make_node("MatMul", ["means", "red_or_blue"], [f"{name}_logits"]),
                helper.make_node("Softmax", [f"{name}_logits"], [name], axis=-1),
            ]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], ["means"], axes=[1, 2], keepdims=0),
            *nodes,
        ],
        "red_or_blue",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in zip(heads, shapes, strict=True)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, about)
    Path(folder).mkdir(parents=True, exist_ok=True)
    save(model, str(Path(folder) / "model.onnx"))
    trust.vouch(folder)
    return Path(folder)
