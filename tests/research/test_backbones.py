"""The backbones are the documented ones, to the parameter."""

from urllib.error import URLError

import helpers
import pytest
import torch
import torchvision
from seeds import SEED
from torch import nn

from faces.research import backbones, networks
from faces.research.backbones import BACKBONES, Standardize, WeightsError
from faces.research.heads import Classes

GENDER = Classes("gender", ("female", "male"))


def build(name, size=64, **options):
    return BACKBONES[name](size=size, imagenet=False, **options)


def images(n=2, size=64):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(SEED))


def kinds(model):
    return [type(layer).__name__ for layer in model]


def test_the_64_pixel_network():
    features, width = build("gender_cnn")
    stage = ["Conv2d", "MaxPool2d", "ReLU", "Dropout2d"]
    assert kinds(features) == [*stage, *stage, *stage, "Flatten", "Linear", "ReLU"]
    convolutions = [layer for layer in features if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(3, 32), (32, 64), (64, 128)]
    assert {(c.kernel_size, c.stride, c.padding) for c in convolutions} == {((3, 3), (1, 1), (0, 0))}
    assert {(p.kernel_size, p.stride, p.padding) for p in features if isinstance(p, nn.MaxPool2d)} == {(3, 3, 0)}
    assert width == 256
    assert networks.parameter_count(networks.build("gender_cnn", [GENDER], size=64)) == 126_786
    extras = {"standardize": True, "batch_norm": True, "padding": 1}
    assert kinds(build("gender_cnn", **extras)[0])[:5] == ["Standardize", "Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, 53), ({"padding": 1}, 27), ({"widths": (8, 16)}, 32), ({"dropout2d": 0, "hidden": 10}, 64)],
)
def test_the_64_pixel_network_at_other_sizes(options, size):
    features, width = build("gender_cnn", size, **options)
    assert features(images(3, size)).shape == (3, width)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gender_cnn", {"size": 52}),
        ("gender_cnn", {"size": 26, "padding": 1}),
        ("gender_cnn", {"size": 64, "widths": (8,) * 4}),
        ("plain_cnn", {"size": 15}),
    ],
)
def test_too_small_images_are_refused(name, options):
    with pytest.raises(ValueError, match=f"{options['size']} pixels are too few"):
        build(name, **options)


def test_standardize_travels_with_the_weights_and_is_not_trained():
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    assert Standardize()(x).flatten().tolist() == [-2.0, 0.0, 2.0]
    own, other = Standardize(mean=(0.0, 0.25, 0.5), std=(1.0, 0.5, 0.125)), Standardize()
    assert own(x).flatten().tolist() == [0.0, 0.5, 4.0]
    other.load_state_dict(own.state_dict())
    assert torch.equal(other(x), own(x)) and networks.parameter_count(own) == 0


def test_the_96_pixel_network_and_the_cartoon_network():
    features, width = build("plain_cnn", 96)
    assert kinds(features).count("Conv2d") == 4 and kinds(features).count("Linear") == 2 and width == 64
    features, width = build("cartoon_cnn")
    assert kinds(features)[:24] == ["Conv2d", "ReLU", "MaxPool2d", "BatchNorm2d"] * 6
    convolutions = [layer for layer in features if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16, 32, 64, 128, 256, 512]
    assert all(c.bias is not None for c in convolutions)
    assert [d.in_features for d in features if isinstance(d, nn.Linear)] == [512, 120] and width == 84
    features, _ = build("cartoon_cnn", batch_norm=False, bias=False, dense_relu=False)
    assert kinds(features) == ["Conv2d", "ReLU", "MaxPool2d"] * 6 + ["Flatten", "Linear", "Linear"]
    assert all(layer.bias is None for layer in features if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize(("width", "weights"), [(32, 1_650_000), (8, 105_000)])
def test_the_small_resnet_scales_and_begins_as_its_skeleton(width, weights):
    network = networks.build("small_resnet", [GENDER], size=64, options={"width": width}).eval()
    assert networks.parameter_count(network) == pytest.approx(weights, rel=0.05)
    block, x = backbones.Residual(8).eval(), torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), x)
    x, shades = images(), torch.rand(2, 1, 64, 64).expand(2, 3, 64, 64)
    with torch.no_grad():
        before, coloured = network(shades)["gender"], network(x)["gender"]
        backbones.accept_colour(network)
        assert torch.allclose(network(shades)["gender"], before, atol=1e-5)
        assert not torch.allclose(network(x)["gender"], coloured, atol=1e-6)
        luminance = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        assert torch.allclose(network(x)["gender"], network(luminance.expand_as(x))["gender"], atol=1e-5)


def test_resnet50_is_torchvisions():
    features, width = build("resnet50")
    # 25,557,032 weights with torchvision's thousand classes.
    assert networks.parameter_count(features) == 25_557_032 - (2048 * 1000 + 1000) and width == 2048
    branches = [module.bn3.weight for module in features.modules() if hasattr(module, "bn3")]
    assert len(branches) == 16 and not any(weight.any() for weight in branches)  # a shallow network at first
    for weight in branches:
        nn.init.uniform_(weight)
    original = torchvision.models.resnet50(weights=None)
    original.load_state_dict(features.state_dict(), strict=False)
    original.fc = nn.Identity()
    x = images()
    with torch.no_grad():
        expected = original.eval()(features.standardize(x))
        torch.testing.assert_close(features.eval()(x).mean((2, 3)), expected)


@pytest.mark.parametrize(("name", "file"), [("mobilenet_v2", "mobilenet_v2-"), ("resnet50", r"resnet50-11ad3fa6\.pth")])
def test_weights_that_cannot_be_had_are_told_with_the_remedy(monkeypatch, name, file):
    monkeypatch.setattr(torchvision.models, "get_model", helpers.raising(URLError("no route")))
    with pytest.raises(WeightsError, match=rf"set TORCH_HOME to a folder that holds hub/checkpoints/{file}"):
        BACKBONES[name](size=64, imagenet=True)


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("same", [True, False])
def test_quick_gradients_of_strided_depthwise_convolutions(side, same):
    if same:
        conv = backbones.SameConv(3, 3, 3, 2, groups=3, batch_norm=False)
    else:
        conv = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1, groups=3, bias=False))
        backbones._quicken(conv)
    conv = conv.double()
    x = torch.rand(2, 3, side, side, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(conv, x)
    found = []
    for quick in (True, False):
        conv.train(quick).zero_grad()
        if not same:
            conv[0].__class__ = backbones._QuickConv if quick else nn.Conv2d
        conv(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in conv.parameters()])
    for quick, plain in zip(*found, strict=True):
        assert torch.allclose(quick, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conv.train().float()(x.float()).float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in conv.parameters())
