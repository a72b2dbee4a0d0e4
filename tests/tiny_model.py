"""A network for tests, written in a blink and without torch: it tells red pictures from blue ones."""

import json
from pathlib import Path

from onnx import TensorProto, helper, save

CLASSES, SIZE = ["blue", "red"], 16


def write(folder, *, metadata=None, outputs=2):
    """Write ``folder/model.onnx``: softmax over (blue - red, red - blue), of the means over the picture."""
    metadata = {"faces": json.dumps({"classes": CLASSES, "size": SIZE})} if metadata is None else metadata
    weights = [-0.1, 0.1, 0, 0, 0.1, -0.1] if outputs == 2 else [0.0] * 3 * outputs
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], ["means"], axes=[1, 2], keepdims=0),
            helper.make_node("MatMul", ["means", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        ],
        "red_or_blue",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", outputs])],
        [helper.make_tensor("weights", TensorProto.FLOAT, [3, outputs], weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    Path(folder).mkdir(parents=True, exist_ok=True)
    save(model, str(Path(folder) / "model.onnx"))
    return Path(folder)
