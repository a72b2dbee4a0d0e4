"""Core ML packages hold the right input, classes and weights; what cannot be converted is refused in one line."""

import sys

import numpy as np
import pytest
import tiny_model
import torch
from seeds import SEED

from faces import export, models
from faces.predict import Model, UsageError
from faces.research import coreml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    pytest.importorskip("coremltools")
    torch.manual_seed(SEED)
    network = models.small_resnet(2, width=4).eval()
    out = tmp_path_factory.mktemp("apple") / "glasses.mlpackage"
    coreml.convert(network, out, classes=("glasses", "no_glasses"), size=48, temperature=2.0)
    return network, out


def test_the_package_takes_an_image_and_names_the_classes(converted):
    from coremltools.models.utils import load_spec

    spec = load_spec(str(converted[1]))
    [taken] = spec.description.input
    image = taken.type.imageType
    assert (image.width, image.height) == (48, 48)
    assert image.colorSpace == image.RGB
    assert spec.description.predictedFeatureName
    program = spec.mlProgram.functions["main"]
    [block] = program.block_specializations.values()
    [last] = [operation for operation in block.operations if operation.type == "classify"]
    named = last.inputs["classes"].arguments[0].value.immediateValue.list.values
    assert [one.immediateValue.tensor.strings.values[0] for one in named] == ["glasses", "no_glasses"]


def test_the_package_holds_the_networks_weights_and_its_temperature(converted):
    import coremltools

    network, out = converted
    model = coremltools.models.MLModel(str(out), skip_model_load=True)
    kept = [about.val for about in coremltools.optimize.coreml.get_weights_metadata(model, 2).values()]
    dense = network[-1].weight.detach().numpy()
    assert any(one.shape == dense.shape and np.allclose(one, dense, atol=1e-3) for one in kept)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(one.shape[2:] == (3, 3) for one in kept) == len(convolutions)
    spec = coremltools.models.utils.load_spec(str(out))
    [block] = spec.mlProgram.functions["main"].block_specializations.values()
    kinds = [operation.type for operation in block.operations]
    # Divided by 2, in whichever way the converter writes it.
    assert {"real_div", "mul"} & set(kinds[kinds.index("linear") : kinds.index("softmax")])


def test_a_package_is_replaced_and_nothing_else_is(converted, tmp_path):
    network, _ = converted
    shape = {"classes": ("a", "b"), "size": 48}
    out = tmp_path / "a.mlpackage"
    coreml.convert(network, out, **shape)
    coreml.convert(network, out, **shape)
    other = tmp_path / "mine.mlpackage"
    other.write_text("dear diary")
    with pytest.raises(UsageError, match="is no package; nothing was written"):
        coreml.convert(network, other, **shape)
    assert other.read_text() == "dear diary"
    with pytest.raises(UsageError, match=r"name a file ending in \.mlpackage in a folder that exists"):
        coreml.convert(network, tmp_path / "a.mlmodel", **shape)


def test_a_mobilenet_with_one_output_answers_with_two_classes(tmp_path):
    pytest.importorskip("coremltools")
    network = models.mobilenet_v2(1, width=0.35, weights="random")
    model = coreml.convert(network, tmp_path / "a.mlpackage", classes=("female", "male"), size=48)
    [block] = model.get_spec().mlProgram.functions["main"].block_specializations.values()
    [joined] = [operation for operation in block.operations if operation.type == "concat"]
    assert len(joined.inputs["values"].arguments) == 2


def test_without_the_extra_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    assert export.main(["coreml", "gender", str(tmp_path / "a.mlpackage")]) == 2
    assert capsys.readouterr().err == (
        "faces.export: coremltools is not installed: pip install '.[coreml]' brings it (Linux or macOS)\n"
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ({"age": True}, "gives ages; only classifiers can be converted"),
        ({}, "cannot be converted: no trained model in"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, capsys, write, message):
    folder = tiny_model.write(tmp_path / "tiny", **write)
    assert export.main(["coreml", str(folder), str(tmp_path / "a.mlpackage")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.mlpackage").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac can do it")
def test_only_a_mac_can_compare_answers(tmp_path):
    model = Model(tiny_model.write(tmp_path / "tiny"))
    with pytest.raises(UsageError, match="only a Mac can run a Core ML package"):
        coreml.check(tmp_path / "a.mlpackage", model, tmp_path)
