"""Core ML packages hold the right input, classes and weights; what cannot be converted is refused in one line."""

import sys

import numpy as np
import pytest
import tiny_model
import torch
from seeds import SEED

from faces import cli
from faces.predict import Model, UsageError
from faces.research import coreml, networks
from faces.research.heads import Classes

GLASSES = Classes("glasses", ("glasses", "no_glasses"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    pytest.importorskip("coremltools")
    torch.manual_seed(SEED)
    network = networks.build("small_resnet", [GLASSES], size=48, options={"width": 4}).eval()
    out = tmp_path_factory.mktemp("apple") / "glasses.mlpackage"
    coreml.convert(network, out, GLASSES, size=48, fitted={"scale": 0.5})
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


def test_the_package_holds_the_networks_weights_and_its_scale(converted):
    import coremltools

    network, out = converted
    model = coremltools.models.MLModel(str(out), skip_model_load=True)
    kept = [about.val for about in coremltools.optimize.coreml.get_weights_metadata(model, 2).values()]
    dense = network.heads["glasses"].weight.detach().numpy()
    assert any(one.shape == dense.shape and np.allclose(one, dense, atol=1e-3) for one in kept)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(one.shape[2:] == (3, 3) for one in kept) == len(convolutions)
    spec = coremltools.models.utils.load_spec(str(out))
    [block] = spec.mlProgram.functions["main"].block_specializations.values()
    kinds = [operation.type for operation in block.operations]
    assert {"real_div", "mul"} & set(kinds[kinds.index("linear") : kinds.index("softmax")])


def test_a_package_is_replaced_and_nothing_else_is(converted, tmp_path):
    network, _ = converted
    out = tmp_path / "a.mlpackage"
    for _ in range(2):
        coreml.convert(network, out, GLASSES, size=48)
    other = tmp_path / "mine.mlpackage"
    other.write_text("dear diary")
    with pytest.raises(UsageError, match="is no package; nothing was written"):
        coreml.convert(network, other, GLASSES, size=48)
    assert other.read_text() == "dear diary"
    with pytest.raises(UsageError, match=r"name a file ending in \.mlpackage in a folder that exists"):
        coreml.convert(network, tmp_path / "a.mlmodel", GLASSES, size=48)


def test_a_published_model_is_converted(tmp_path):
    pytest.importorskip("coremltools")
    assert cli.export(["coreml", "glasses", str(tmp_path / "a.mlpackage")]) == 0
    assert (tmp_path / "a.mlpackage" / "Manifest.json").is_file()


def test_without_the_extra_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    assert cli.export(["coreml", "gender", str(tmp_path / "a.mlpackage")]) == 2
    assert capsys.readouterr().err == (
        "faces export: coremltools is not installed: pip install '.[coreml]' brings it (Linux or macOS)\n"
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ({"age": True}, "gives age: only a classifier of one label is converted"),
        ({"heads": ["label", "age"]}, "gives label, age: only a classifier of one label is converted"),
        ({}, "cannot be converted: no trained network in"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, capsys, write, message):
    folder = tiny_model.write(tmp_path / "tiny", **write)
    assert cli.export(["coreml", str(folder), str(tmp_path / "a.mlpackage")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.mlpackage").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac can do it")
def test_only_a_mac_can_compare_answers(tmp_path):
    model = Model(tiny_model.write(tmp_path / "tiny"))
    with pytest.raises(UsageError, match="only a Mac can run a Core ML package"):
        coreml.check(tmp_path / "a.mlpackage", model, tmp_path)
