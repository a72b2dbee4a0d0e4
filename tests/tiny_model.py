"""Networks for tests, written in a blink and without torch: one tells red from blue, one takes red for age."""

import json
from pathlib import Path

from onnx import TensorProto, helper, save
from PIL import Image

from faces import trust

CLASSES, SIZE = ["blue", "red"], 16
# The pictures of the fixture ``photos``, and what the first network says of them.
COLOURS = {"img_0.jpg": "red", "img_1.jpg": "blue", "img_2.jpg": "red", "img_3.jpg": "red", "img_4.jpg": "blue"}


def picture(path, colour):
    """Write a small picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)


def write(folder, *, metadata=None, outputs=2, age=False, size=SIZE, whole=False, classes=CLASSES):
    """Write ``folder/model.onnx``: softmax over (blue - red, red - blue), of the means over the picture.

    With ``age``: a tenth of the red (0 to 25.5 years) less a tenth of the blue, and an interval of 5.5 years about it.
    """
    outputs = 3 if age else outputs
    about = {"age": {"coverage": 0.9}} if age else {"classes": classes}
    metadata = {"faces": json.dumps(about | {"size": size, "whole": whole})} if metadata is None else metadata
    weights = [-0.1, 0.1, 0, 0, 0.1, -0.1] if outputs == 2 else [0.1 * age] * 3 + [0.0] * 3 + [-0.1 * age] * 3
    reach = helper.make_tensor("reach", TensorProto.FLOAT, [3], [0.0, -5.5, 5.5])
    last = [
        [helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1)],
        [helper.make_node("Relu", ["logits"], ["years"]), helper.make_node("Add", ["years", "reach"], ["around"]),
         helper.make_node("Relu", ["around"], ["probabilities"])],
    ][age]  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], ["means"], axes=[1, 2], keepdims=0),
            helper.make_node("MatMul", ["means", "weights"], ["logits"]),
            *last,
        ],
        "red_or_blue",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", outputs])],
        [helper.make_tensor("weights", TensorProto.FLOAT, [3, outputs], weights), *([reach] if age else [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    Path(folder).mkdir(parents=True, exist_ok=True)
    save(model, str(Path(folder) / "model.onnx"))
    trust.vouch(folder)
    return Path(folder)
