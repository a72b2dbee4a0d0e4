import copy
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from faces.research import backbones, export, networks
from faces.research.backbones import WeightsError
from faces.research.heads import Classes, Years

HEADS = [Classes("gender", ("female", "male")), Years(), Classes("glasses", ("no", "yes"))]
SMALL = {
    "gender_cnn": {"widths": (4, 8), "hidden": 8},
    "plain_cnn": {},
    "cartoon_cnn": {},
    "small_resnet": {"width": 4},
    "mobilenet_v1": {"width": 0.25, "batch_norm": True},
    "mobilenet_v2": {"width": 0.35},
    "mobilenet_v3_small": {},
    "resnet18": {},
}


def images(n=3, size=64, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backbone", sorted(SMALL))
def test_every_backbone_has_logits_for_every_head_and_drops_out_in_training_only(backbone):
    network = networks.build(backbone, HEADS, size=64, options=SMALL[backbone], mirror=True, dropout=0.5).eval()
    with torch.no_grad():
        outputs, mirrored = network(images()), network(images().flip(3))
        shapes = {"gender": (3, 2), "age": (3, 117), "glasses": (3, 2)}
        assert {name: tuple(output.shape) for name, output in outputs.items()} == shapes
        for name, output in outputs.items():
            assert torch.allclose(output, mirrored[name], atol=1e-5)
            assert torch.equal(network(images())[name], output)
            for parameter in network.heads[name].parameters():
                parameter.mul_(64)  # logits grow as the last layer does, exactly; probabilities would not
            assert torch.equal(network(images())[name], 64 * output)
        assert not torch.equal(network.train()(images())["gender"], network(images())["gender"])


def vggface2(width=8):
    """A file in the layout of the VGGFace2 network, small; and what it computes, as its description has it."""
    draw = torch.Generator().manual_seed(0)
    channels, tensors = width, {}
    tensors["stem.weight"], tensors["stem.bias"] = torch.randn(width, 3, 3, 3, generator=draw) / 500, torch.ones(width)
    for number, (wide, _) in enumerate(backbones.MOBILENET_V1, 1):
        wide = wide * width // 32
        scale = 10 ** torch.linspace(-3, 0, channels).view(-1, 1, 1, 1)
        tensors[f"block{number}.depthwise.weight"] = torch.randn(channels, 1, 3, 3, generator=draw) * scale
        tensors[f"block{number}.depthwise.bias"] = torch.ones(channels)
        tensors[f"block{number}.pointwise.weight"] = torch.randn(wide, channels, 1, 1, generator=draw) / channels**0.5
        tensors[f"block{number}.pointwise.bias"] = torch.ones(wide)
        channels = wide
    tensors["head.feats.weight"] = torch.zeros(4, channels)

    def features(rgb):
        x = rgb.flip(1) * 255 - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)

        def conv(x, name, stride, groups):
            weight = tensors[f"{name}.weight"].to(x)
            total = [max((-(-n // stride) - 1) * stride + weight.shape[-1] - n, 0) for n in x.shape[2:]]
            (top, left) = (n // 2 for n in total)
            x = F.pad(x, (left, total[1] - left, top, total[0] - top))
            return F.relu6(F.conv2d(x, weight, tensors[f"{name}.bias"].to(x), stride, groups=groups))

        x = conv(x, "stem", 2, 1)
        for number, (_, stride) in enumerate(backbones.MOBILENET_V1, 1):
            x = conv(x, f"block{number}.depthwise", stride, x.shape[1])
            x = conv(x, f"block{number}.pointwise", 1, 1)
        return x.mean((2, 3))

    return tensors, features


def test_face_recognition_weights_compute_what_they_did(tmp_path):
    tensors, features = vggface2()
    save_file(tensors, tmp_path / "w.safetensors")
    network = networks.build(
        "mobilenet_v1", HEADS, size=56, options={"width": 0.25}, weights=tmp_path / "w.safetensors"
    ).eval()
    network.double()
    for size in (56, 49):  # even and odd sides of the maps that are halved
        x = images(size=size).double()
        with torch.no_grad():
            assert torch.allclose(network.embed(x), features(x), rtol=1e-4, atol=1e-5)
    kernels = network.features.block3.depthwise
    assert kernels.weight.square().mean((1, 2, 3)).allclose(torch.tensor(2 / 9).double(), rtol=1e-3)


def test_a_frozen_backbone_stays_as_it_is():
    network = networks.build("small_resnet", HEADS, size=32, options={"width": 4}, frozen=True).train()
    before = {name: value.clone() for name, value in network.features.state_dict().items()}
    network(images(size=32))["gender"].sum().backward()
    assert all(parameter.grad is None for parameter in network.features.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.features.state_dict().items())


def test_learning_rates_fall_towards_the_input():
    network = networks.build("resnet18", HEADS, size=64)
    groups = networks.parameter_groups(network, 1.0, 0.5, 0.1)
    assert sum(p.numel() for group in groups for p in group["params"]) == networks.parameter_count(network)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(network.heads["gender"].weight)] == 1.0
    assert rate[id(network.features.layer4[0].conv1.weight)] == 0.5
    assert rate[id(network.features.conv1.weight)] == 0.5**6
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])
    assert len(networks.parameter_groups(network, 1.0, 1.0, 0.1)) == 2


def test_weights_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    save_file({"features.0.weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="is not of this architecture and width"):
        networks.build("small_resnet", HEADS, size=32, weights=tmp_path)
    with pytest.raises(WeightsError, match="no weights to start from"):
        networks.build("small_resnet", HEADS, size=32, weights=tmp_path / "nothing")
    with pytest.raises(WeightsError, match="no ImageNet weights of small_resnet"):
        networks.build("small_resnet", HEADS, size=32, weights="imagenet")
    with pytest.raises(WeightsError, match=r"width 1\.0 only"):
        networks.build("mobilenet_v2", HEADS, size=64, options={"width": 0.5}, weights="imagenet")
    with pytest.raises(ValueError, match="no backbone 'nope'; there are gender_cnn"):
        networks.build("nope", HEADS, size=64)
    with pytest.raises(ValueError, match=r"backbone mobilenet_v2: .*unexpected keyword argument 'depth'"):
        networks.build("mobilenet_v2", HEADS, size=64, options={"depth": 2})
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WeightsError, match="pip install timm"):
        networks.build("timm:efficientnet_lite0", HEADS, size=64)


def test_a_hinted_student_sees_its_guide_in_training_alone():
    student, guide = (networks.build("small_resnet", HEADS[:n], size=32, options={"width": 4}) for n in (3, 2))
    learner = networks.HintedStudent(student, guide, 32).train()
    outputs = learner(images(size=32))
    assert set(outputs) == {"gender", "age", "glasses", "gender/teacher", "age/teacher", "features/penalty"}
    assert torch.equal(outputs["gender/teacher"], guide.eval()(images(size=32))["gender"])
    outputs["features/penalty"].sum().backward()
    assert all(parameter.grad is None for parameter in guide.parameters())
    assert student.features[1][0].weight.grad.abs().sum() > 0
    assert set(learner.eval()(images(size=32))) == {"gender", "age", "glasses"}


def stages(width, head):
    """Five convolutions, each of half the side of the one before; their channels vary far more than 1e-5."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(n, width, 3, 2, 1), nn.LeakyReLU()) for n in (3, *[width] * 4)]
    for layer in layers:
        layer[0].weight.data *= 4
    return networks.Network(nn.Sequential(*layers), width, [head])


def test_hints_are_the_distance_to_the_guides_standardised_maps():
    guide, x = stages(8, HEADS[0]), images(8, 40)
    learner = networks.HintedStudent(stages(4, HEADS[0]), guide, 40).train()
    before = copy.deepcopy(guide.state_dict())
    assert len(learner.readers) == 5 and not guide.training
    learner(x)["features/penalty"].mean().backward()
    learnt = [*learner.student.features.parameters(), *learner.readers.parameters()]
    assert all(parameter.grad.any() for parameter in learnt)
    for reader in learner.readers:
        nn.init.zeros_(reader.weight)
        nn.init.zeros_(reader.bias)
    # Readers that say 0 are off by the variance of a standardised channel, 1, at each of the five sides.
    assert learner(x)["features/penalty"].mean().item() == pytest.approx(5, rel=0.02)
    assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())


def test_a_copy_of_the_guide_is_at_no_distance_from_it():
    guide, seen = stages(8, HEADS[0]), images(8, 40)
    learner = networks.HintedStudent(copy.deepcopy(guide), guide, 40).train()
    for layer, reader in zip(guide.features, learner.readers, strict=True):
        seen = layer(seen)
        variance, mean = torch.var_mean(seen, (0, 2, 3), correction=0)
        scale = (variance + 1e-5).rsqrt()
        reader.weight.data, reader.bias.data = torch.diag(scale)[:, :, None, None], -mean * scale
    assert learner(images(8, 40))["features/penalty"].max() < 1e-6


def test_networks_without_maps_of_one_side_are_refused():
    other = networks.Network(nn.Sequential(nn.Conv2d(3, 4, 1, stride=10)), 4, HEADS[:1])
    with pytest.raises(ValueError, match=r"no maps of one side: \[4\] pixels in the student, \[20, 10, 5, 3, 2\]"):
        networks.HintedStudent(other, stages(4, HEADS[0]), 40)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file of several heads, the network that it was made of, and what it was fitted with."""
    folder = tmp_path_factory.mktemp("exported")
    tensors, _ = vggface2()
    save_file(tensors, folder / "w.safetensors")
    options = {"options": {"width": 0.25}, "weights": folder / "w.safetensors", "mirror": True}
    network = networks.build("mobilenet_v1", [*HEADS, Classes("race", ("a", "b", "c"))], size=48, **options)
    fitted = {"gender": {"scale": 1.5, "shift": [0.0, 0.3]}, "age": {"width": 1.2, "coverage": 0.9}}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    about = {"fitted": fitted, "size": 48, "subject": "picture", "pixels": PIXELS}
    difference = export.export(network, folder / "model.onnx", HEADS, **about)
    assert difference < 1e-2
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return folder / "model.onnx", network, fitted


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 48, 3), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 40])
def test_onnx_of_several_heads_answers_like_each_head_alone_for_any_batch(exported, n):
    path, network, fitted = exported
    session = onnxruntime.InferenceSession(path)
    assert [output.name for output in session.get_outputs()] == ["gender", "age", "glasses"]
    answers = session.run(None, {"pixels": PIXELS[:n]})
    with torch.no_grad():
        outputs = network.eval()(torch.from_numpy(PIXELS[:n]).permute(0, 3, 1, 2).float() / 255)
    for head, answer in zip(HEADS, answers, strict=True):
        expected = head.answer(outputs[head.name], fitted.get(head.name, {})).numpy()
        np.testing.assert_allclose(answer, expected, atol=1e-2 if head.name == "age" else 1e-5)


@pytest.mark.slow
def test_metadata_give_the_heads_back(exported):
    path, _, fitted = exported
    found, kept, about = export.from_metadata(path)
    assert (found, kept) == (HEADS, fitted | {"glasses": {}})
    assert (about["size"], about["whole"], about["subject"]) == (48, False, "picture")
    with pytest.raises(ValueError, match="subject must be one of face, picture"):
        export.metadata(HEADS, {}, size=48, whole=False, subject="cat")


@pytest.mark.slow
def test_weights_in_16_bits(exported, tmp_path):
    path, network, fitted = exported
    shutil.copyfile(path, tmp_path / "half.onnx")
    export.halve(tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.75 * path.stat().st_size
    assert 0 < export.compare(export.Deployed(network, HEADS, fitted), tmp_path / "half.onnx", PIXELS, half=True) < 0.5


@pytest.mark.slow
def test_an_export_that_answers_otherwise_is_refused(exported):
    path, network, fitted = exported
    other = fitted | {"gender": {"scale": 0.0}}
    with pytest.raises(export.ExportError, match="the exported gender differs from the trained one by"):
        export.compare(export.Deployed(network, HEADS, other).eval(), path, PIXELS)
    with pytest.raises(export.ExportError, match="none were given"):
        export.compare(export.Deployed(network, HEADS, fitted), path, PIXELS[:0])
