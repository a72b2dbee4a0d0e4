"""The plain network is the documented one, to the parameter."""

import copy

import pytest
import torch
from seeds import SEED
from torch import nn

from faces import models
from faces.models import Standardize, gender_cnn, parameter_count
from faces.research import backbones

EXTRAS = {"standardize": True, "batch_norm": True, "padding": 1}


def logits_of(model, n=2, size=64):
    return model.eval()(torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(SEED)))


def kinds(model):
    return [type(layer).__name__ for layer in model]


def test_the_plain_network_is_the_documented_one():
    model = gender_cnn()
    stage = ["Conv2d", "MaxPool2d", "ReLU", "Dropout2d"]
    assert kinds(model) == [*stage, *stage, *stage, "Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(3, 32), (32, 64), (64, 128)]
    assert {(c.kernel_size, c.stride, c.padding) for c in convolutions} == {((3, 3), (1, 1), (0, 0))}
    assert {(p.kernel_size, p.stride, p.padding) for p in model if isinstance(p, nn.MaxPool2d)} == {(3, 3, 0)}
    dense = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [(d.in_features, d.out_features) for d in dense] == [(128, 256), (256, 2)]
    assert {d.p for d in model if isinstance(d, nn.Dropout2d)} == {0.25}
    assert {d.p for d in model if isinstance(d, nn.Dropout)} == {0.5}


def test_the_plain_network_has_126_786_parameters():
    assert parameter_count(gender_cnn()) == 126_786


def test_pooling_before_relu_changes_nothing():
    torch.manual_seed(SEED)
    model = gender_cnn(dropout2d=0, dropout=0)
    swapped = list(model)
    for i, layer in enumerate(model):
        if isinstance(layer, nn.MaxPool2d):
            swapped[i : i + 2] = swapped[i + 1], swapped[i]
    usual = nn.Sequential(*swapped)
    assert kinds(usual)[:3] == ["Conv2d", "ReLU", "MaxPool2d"]
    assert torch.equal(logits_of(usual), logits_of(model))
    gradients = []
    for net in (model, usual):
        net.zero_grad()
        logits_of(net, 4).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("settings", "n", "size"),
    [
        ({}, 3, 64),
        ({"classes": 9}, 2, 64),
        ({"classes": 1, **EXTRAS}, 2, 64),
        ({"size": 128}, 1, 128),
        ({"size": 53}, 1, 53),
        ({"size": 27, "padding": 1}, 1, 27),
        ({"size": 32, "widths": (8, 16)}, 2, 32),
        ({"dropout2d": 0, "hidden": 10}, 2, 64),
    ],
)
def test_one_row_of_logits_an_image(settings, n, size):
    model = gender_cnn(**settings)
    logits = logits_of(model, n, size)
    assert logits.shape == (n, settings.get("classes", 2))
    assert logits.isfinite().all()
    # Logits, not probabilities: they grow as the last layer's weights do, exactly, as these grow by a power of two.
    for parameter in [layer for layer in model if isinstance(layer, nn.Linear)][-1].parameters():
        parameter.data *= 64
    assert torch.equal(logits_of(model, n, size), 64 * logits)


@pytest.mark.parametrize("settings", [{"size": 52}, {"size": 8}, {"size": 26, "padding": 1}, {"widths": (8,) * 4}])
def test_too_small_images_are_refused(settings):
    with pytest.raises(ValueError, match=f"{settings.get('size', 64)} pixels are too few"):
        gender_cnn(**settings)


def test_with_all_extras_it_stays_small():
    model = gender_cnn(**EXTRAS)
    assert parameter_count(model) < 500_000
    assert kinds(model)[:5] == ["Standardize", "Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert kinds(model).count("BatchNorm2d") == 3


def test_dropout_is_active_in_training_only():
    torch.manual_seed(SEED)
    model, x = gender_cnn(), torch.rand(1, 3, 64, 64)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_standardize_numbers():
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    assert Standardize()(x).flatten().tolist() == [-2.0, 0.0, 2.0]
    own = Standardize(mean=(0.0, 0.25, 0.5), std=(1.0, 0.5, 0.125))
    assert own(x).flatten().tolist() == [0.0, 0.5, 4.0]
    assert own(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5, 7)


def test_standardize_travels_with_the_weights_and_is_not_trained():
    own, other = Standardize(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)), Standardize()
    other.load_state_dict(own.state_dict())
    assert torch.equal(other(torch.ones(1, 3, 1, 1)), own(torch.ones(1, 3, 1, 1)))
    assert parameter_count(own) == 0


def test_frozen_parameters_count_unless_only_trainable_ones_are_asked_for():
    model = gender_cnn()
    model[0].requires_grad_(False)
    assert parameter_count(model) == 126_786
    assert parameter_count(model, trainable=True) == 126_786 - (3 * 9 * 32 + 32)


# ------------------------------------------------------------------------------------------------- 96 pixels


def test_the_plain_96_pixel_network_has_four_convolutions_and_three_dense_layers():
    model = models.plain_cnn()
    assert kinds(model).count("Conv2d") == 4 and kinds(model).count("Linear") == 3
    assert logits_of(model, 3, 96).shape == (3, 1)
    assert logits_of(models.plain_cnn(4, size=40, dropout=0.5), 2, 40).shape == (2, 4)
    with pytest.raises(ValueError, match="15 pixels are too few"):
        models.plain_cnn(size=15)


def little(outputs=1, width=0.35):
    torch.manual_seed(SEED)
    return models.mobilenet_v2(outputs, width=width, weights="random")


@pytest.mark.parametrize(("width", "outputs", "size"), [(0.35, 1, 64), (0.5, 3, 96), (1.0, 15, 33)])
def test_mobilenet_takes_widths_sizes_and_outputs(width, outputs, size):
    assert logits_of(little(outputs, width), 2, size).shape == (2, outputs)


def test_a_frozen_backbone_keeps_weights_and_batchnorm_while_the_head_learns():
    model = little().freeze().train()
    before = copy.deepcopy(model.state_dict())
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(p) for p in learnt} == {id(p) for p in model.classifier.parameters()}
    optimizer = torch.optim.SGD(learnt, 0.1)
    model(torch.rand(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"classifier.weight", "classifier.bias"}
    model.freeze(False).train()
    model(torch.rand(4, 3, 64, 64)).square().sum().backward()
    assert not torch.equal(model.state_dict()["features.0.1.running_mean"], before["features.0.1.running_mean"])
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("size", [64, 65])
def test_quick_gradients_are_the_usual_ones(size):
    model = little().train()
    model.dropout.p = 0
    usual = copy.deepcopy(model)
    for module in usual.modules():
        if isinstance(module, backbones._QuickConv):
            module.__class__ = nn.Conv2d
    strided = [module for module in model.modules() if isinstance(module, backbones._QuickConv)]
    assert len(strided) == 4
    x = torch.rand(3, 3, size, size)
    for network in (model, usual):
        network(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5 * float(theirs.grad.abs().max()))


def test_quick_gradients_under_autocast():
    model = little().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.rand(2, 3, 64, 64)).float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_first_outputs_can_be_kept_alone():
    model = little(5)
    every = logits_of(model, 3)
    assert torch.allclose(logits_of(model.keep_outputs(2), 3), every[:, :2])
    with pytest.raises(ValueError, match="3 outputs cannot be kept of 2"):
        model.keep_outputs(3)


def test_training_can_start_from_the_backbone_of_a_model_folder(tmp_path):
    trained = little(4)
    assert models.save_weights(trained.to(memory_format=torch.channels_last), tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    torch.manual_seed(SEED + 1)
    started = models.mobilenet_v2(2, width=0.35, weights=tmp_path)
    for key, value in started.state_dict().items():
        assert key.startswith("classifier.") or torch.equal(value, trained.state_dict()[key])
    with pytest.raises(models.WeightsError, match="not of this architecture and width"):
        models.mobilenet_v2(2, width=0.5, weights=tmp_path)
    with pytest.raises(models.WeightsError, match="no weights to start from in"):
        models.mobilenet_v2(2, width=0.35, weights=tmp_path / "nowhere")


def test_weights_that_cannot_be_had_are_told_with_the_remedy(monkeypatch):
    def unreachable(**_):
        raise models.URLError("no route")

    with pytest.raises(ValueError, match=r"for width 1\.0 only, not 0\.5"):
        models.mobilenet_v2(width=0.5)
    monkeypatch.setattr(models, "torchvision_mobilenet_v2", unreachable)
    with pytest.raises(models.WeightsError, match="set TORCH_HOME to a folder that holds"):
        models.mobilenet_v2()


def test_resnet50_is_torchvisions_with_another_head(tmp_path):
    torch.manual_seed(SEED)
    model = models.resnet50(3, weights="random")
    assert logits_of(model, 2, 64).shape == (2, 3)
    # 25,557,032 weights with torchvision's thousand classes.
    assert parameter_count(model) == 25_557_032 - (2048 * 1000 + 1000) + (2048 * 3 + 3)
    branches = [module.bn3.weight for module in model.modules() if hasattr(module, "bn3")]
    assert len(branches) == 16 and not any(weight.any() for weight in branches)  # a shallow network at first
    for weight in branches:
        torch.nn.init.uniform_(weight)
    original = models.torchvision_resnet50(weights=None)
    original.load_state_dict(
        {key.removeprefix("features."): value for key, value in model.state_dict().items() if "features." in key},
        strict=False,
    )
    original.fc, x = torch.nn.Identity(), torch.rand(2, 3, 64, 64)
    expected = original.eval()(model.standardize(x))
    torch.testing.assert_close(model.eval().embed(x), expected)
    started = models.resnet50(1, weights=models.save_weights(model, tmp_path))
    assert torch.equal(started.features.conv1.weight, model.features.conv1.weight)
    with pytest.raises(models.WeightsError, match="not of this architecture"):
        models.mobilenet_v2(1, weights=tmp_path)


def test_resnet50_weights_that_cannot_be_had(monkeypatch):
    def unreachable(**_):
        raise models.URLError("no route")

    monkeypatch.setattr(models, "torchvision_resnet50", unreachable)
    with pytest.raises(models.WeightsError, match=r"holds hub/checkpoints/resnet50-11ad3fa6\.pth"):
        models.resnet50()


# ------------------------------------------------------------------------------------------ trained from nothing


def test_the_cartoon_network_is_the_documented_one():
    model = models.cartoon_cnn(6, dropout=0.3)
    assert kinds(model)[:24] == ["Conv2d", "ReLU", "MaxPool2d", "BatchNorm2d"] * 6
    assert kinds(model)[24:] == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Dropout", "Linear"]
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16, 32, 64, 128, 256, 512]
    assert {(c.kernel_size, c.padding, c.bias is not None) for c in convolutions} == {((3, 3), (1, 1), True)}
    dense = [(layer.in_features, layer.out_features) for layer in model if isinstance(layer, nn.Linear)]
    assert dense == [(512, 120), (120, 84), (84, 6)]
    assert logits_of(model, 2, 64).shape == (2, 6)
    assert model.to(torch.float64)[0].weight.dtype == torch.float64  # every layer moves along


@pytest.mark.parametrize(("width", "weights"), [(32, 1_650_000), (8, 105_000)])
def test_the_small_resnet_scales_and_begins_as_its_skeleton(width, weights):
    torch.manual_seed(SEED)
    model = models.small_resnet(4, width=width)
    assert parameter_count(model) == pytest.approx(weights, rel=0.05)
    assert logits_of(model, 2, 64).shape == (2, 4)
    assert logits_of(models.small_resnet(1, width=4, depth=2), 2, 96).shape == (2, 1)
    double = models.Mirrored(*model).eval()
    assert double.state_dict().keys() == model.state_dict().keys()
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(double(x), (model.eval()(x) + model(x.flip(3))) / 2, atol=1e-6)
    assert torch.allclose(double(x), double(x.flip(3)), atol=1e-6)
    assert not torch.allclose(double(x), model(x), atol=1e-6)
    shades = torch.rand(2, 1, 64, 64).expand(2, 3, 64, 64)
    before, coloured = model(shades), model(x)
    backbones.accept_colour(model)
    assert torch.allclose(model(shades), before, atol=1e-5) and not torch.allclose(model(x), coloured, atol=1e-5)
    brightness = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    assert torch.allclose(model(x), model(brightness.expand_as(x)), atol=1e-5)
    block = backbones.Residual(8).eval()
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), x)
