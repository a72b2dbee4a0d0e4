"""Backbones by name: each takes ``size`` in pixels and ``imagenet``, and returns the features and their width.

Features take float images ``[n, 3, size, size]`` in 0..1 and return maps ``[n, width, h, w]`` or ``[n, width]``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class WeightsError(OSError):
    """Pretrained weights could not be had; says from where they can."""


class Standardize(nn.Module):
    """(x - mean) / std per channel, as the first layer, so that it travels with the weights and into the export."""

    def __init__(self, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


Backbone = tuple[nn.Sequential, int]


def _gender_cnn(
    *,
    size: int,
    imagenet: bool,
    widths: tuple[int, ...] = (32, 64, 128),
    hidden: int = 256,
    dropout2d: float = 0.25,
    standardize: bool = False,
    batch_norm: bool = False,
    padding: int = 0,
) -> Backbone:
    """The plain network for 64×64 faces: conv 3→32→64→128, each 3×3 with pooling by three, then dense 128→256.

    The other arguments are the small steps beyond it that notebook 02 measures. With a head of two classes it has
    126,786 parameters. Pooling stands before ReLU, with which it commutes, and leaves it nine times fewer numbers.
    """
    _refuse_imagenet(imagenet, "gender_cnn")
    layers: list[nn.Module] = [Standardize()] if standardize else []
    channels, side = 3, size
    for width in widths:
        layers.append(nn.Conv2d(channels, width, 3, padding=padding, bias=not batch_norm))
        layers.append(nn.MaxPool2d(3, 3))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
        if dropout2d:
            layers.append(nn.Dropout2d(dropout2d))
        channels, side = width, (side - 2 + 2 * padding) // 3
    if side < 1:
        raise ValueError(f"{size} pixels are too few for {len(widths)} poolings by three")
    layers += [nn.Flatten(), nn.Linear(channels * side * side, hidden), nn.ReLU()]
    return nn.Sequential(*layers), hidden


def _plain_cnn(*, size: int, imagenet: bool, dropout: float = 0.0) -> Backbone:
    """The sequential baseline for 96×96 faces: four convolutions with pooling by two, then two dense layers.

    Nothing in it resists over-fitting unless ``dropout`` (before the dense layers) is given.
    """
    _refuse_imagenet(imagenet, "plain_cnn")
    layers: list[nn.Module] = []
    for channels, width in pairwise((3, 32, 64, 128, 128)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
    if size < 16:
        raise ValueError(f"{size} pixels are too few for four poolings by two")
    layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(128 * (size // 16) ** 2, 256), nn.ReLU()]
    layers += [nn.Dropout(dropout), nn.Linear(256, 64), nn.ReLU()]
    return nn.Sequential(*layers), 64


def _cartoon_cnn(
    *, size: int, imagenet: bool, batch_norm: bool = True, bias: bool = True, dense_relu: bool = True
) -> Backbone:
    """The plain network for 64×64 cartoon characters: six halvings, then two dense layers.

    ``batch_norm`` and ``bias`` are those of the convolutions, ``dense_relu`` follows each dense layer.
    """
    _refuse_imagenet(imagenet, "cartoon_cnn")
    layers: list[nn.Module] = []
    for channels, width in pairwise((3, 16, 32, 64, 128, 256, 512)):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.BatchNorm2d(width)] * batch_norm
    layers += [nn.Flatten()]
    for channels, width in pairwise((512 * (size // 64) ** 2, 120, 84)):
        layers += [nn.Linear(channels, width), *[nn.ReLU()] * dense_relu]
    return nn.Sequential(*layers), 84


class Residual(nn.Module):
    """x + f(x) for two convolutions f; the identity at first, since the last BatchNorm of f starts at 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(_conv(channels, channels), _conv(channels, channels))
        nn.init.zeros_(self.branch[-1][1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _conv(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _small_resnet(*, size: int, imagenet: bool, width: int = 32, depth: int = 1) -> Backbone:
    """A residual network to be trained from nothing on small pictures: no dense layer but the heads.

    A convolution of stride 2, so that a picture costs a quarter; three stages with ``depth`` residual blocks (none in
    the second). After the nine-layer ResNets of the DAWNBench contest (Page, 2018). With ``width`` 32 it has 1.6
    million weights, with 8 a hundred thousand.
    """
    _refuse_imagenet(imagenet, "small_resnet")
    layers: list[nn.Module] = [Standardize(), _conv(3, width, 2)]
    for stage, channels in enumerate((2 * width, 4 * width, 8 * width)):
        layers += [_conv(channels // 2, channels), nn.MaxPool2d(2)]
        layers += [Residual(channels) for _ in range(depth if stage != 1 else 0)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8 * width


def _refuse_imagenet(imagenet: bool, name: str) -> None:
    if imagenet:
        raise WeightsError(f"there are no ImageNet weights of {name}: start from weights='random'")


@torch.no_grad()
def accept_colour(network: nn.Module) -> None:
    """Have a network that learnt from grey pictures see colours as their luminance, in place (ITU-R BT.601).

    On grey pictures nothing changes: the first convolution's three kernels become shares of their sum. A network that
    standardises each colour otherwise stays as it is.
    """
    layers = list(network.modules())
    if any((layer.std != layer.std[:, :1]).any() for layer in layers if isinstance(layer, Standardize)):
        return
    first = next(layer for layer in layers if isinstance(layer, (nn.Conv2d, SameConv)))
    shares = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1).to(first.weight)
    first.weight.copy_(first.weight.sum(1, keepdim=True) * shares)


class _StridedDepthwise(torch.autograd.Function):
    """A depthwise 3×3 convolution of stride 2 whose gradients are computed at stride 1.

    oneDNN is fast at the backward pass of depthwise convolutions at stride 1 only; at stride 2 its reference code takes
    more than half of the time of training MobileNetV2. The gradient at stride 2 is the one at stride 1 of an output
    gradient with zeros in between. ``same`` is TensorFlow's SAME padding instead of one pixel on each side.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, same):
        ctx.save_for_backward(x, weight)
        # Where the outputs lie among those at stride 1.
        ctx.start = (1 - x.shape[2] % 2, 1 - x.shape[3] % 2) if same else (0, 0)
        return F.conv2d(_same(x) if same else x, weight, bias, 2, 0 if same else 1, groups=x.shape[1])

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        down, across = ctx.start
        spread = torch.zeros_like(x)
        spread[:, :, down::2, across::2] = gradient
        one, wanted = [1, 1], list(ctx.needs_input_grad[:3])
        bias = [x.shape[1]] if wanted[2] else None
        gradients = torch.ops.aten.convolution_backward(
            spread, x, weight, bias, one, one, one, False, [0, 0], x.shape[1], wanted
        )
        return *gradients, None


def _strided_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, same: bool) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        x, weight = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, weight))
    return _StridedDepthwise.apply(x, weight, bias if bias is None else bias.to(x), same)


class _QuickConv(nn.Conv2d):
    """``Conv2d`` of torchvision's depthwise layers of stride 2, with the gradients of ``_StridedDepthwise``."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        return _strided_depthwise(x, self.weight, None, same=False)


def _quicken(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels:
            same = (module.stride, module.kernel_size, module.padding, module.bias) == ((2, 2), (3, 3), (1, 1), None)
            if same and module.dilation == (1, 1) and module.padding_mode == "zeros":
                # The same weights under the same names, only another way to their gradients.
                module.__class__ = _QuickConv


def _torchvision(name: str, *, size: int, imagenet: bool, grey: bool = False, **options) -> Backbone:
    import torchvision  # takes longer than torch itself, and the networks of our own do without

    if imagenet and options.get("width_mult", 1.0) != 1.0:
        raise WeightsError(f"there are ImageNet weights of {name} for width 1.0 only: start from weights='random'")
    kept = torchvision.models.get_model_weights(name).DEFAULT
    if name == "mobilenet_v2":
        kept = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    try:
        network = torchvision.models.get_model(name, weights=kept if imagenet else None, **options)
    except (URLError, OSError) as error:
        raise WeightsError(
            f"the ImageNet weights could not be downloaded ({error}): set TORCH_HOME to a folder that holds "
            f"hub/checkpoints/{kept.url.rsplit('/', 1)[1]}, or start from a model folder or from weights=random"
        ) from error
    if name.startswith("resnet"):
        width = network.fc.in_features
        del network.avgpool, network.fc
        stages = OrderedDict(network.named_children())
    else:
        stages = OrderedDict(network.features.named_children())
        width = network.features[-1].out_channels
    # For grey pictures all colours are standardised alike, as ``accept_colour`` needs it.
    mean, std = ([sum(each) / 3] * 3 if grey else each for each in (IMAGENET_MEAN, IMAGENET_STD))
    features = nn.Sequential(OrderedDict(standardize=Standardize(mean, std), **stages))
    _quicken(features)
    return features, width


def _mobilenet_v2(*, size: int, imagenet: bool, width: float = 1.0, grey: bool = False) -> Backbone:
    return _torchvision("mobilenet_v2", size=size, imagenet=imagenet, grey=grey, width_mult=width)


def _resnet(name: str, *, size: int, imagenet: bool) -> Backbone:
    # Every residual branch starts at 0, so that a random network sets out as a shallow one (Goyal et al., 1706.02677).
    return _torchvision(name, size=size, imagenet=imagenet, zero_init_residual=True)


def from_timm(name: str, *, size: int, imagenet: bool, **options) -> Backbone:
    """A backbone of the package timm, by its name there."""
    try:
        import timm
    except ImportError:
        raise WeightsError(f"timm:{name} needs timm: pip install timm") from None
    network = timm.create_model(name, pretrained=imagenet, num_classes=0, global_pool="", **options)
    about = network.pretrained_cfg
    standardize = Standardize(about.get("mean", IMAGENET_MEAN), about.get("std", IMAGENET_STD))
    return nn.Sequential(OrderedDict(standardize=standardize, network=network)), network.num_features


# The VGGFace2 network's mean colour, RGB in 0..255; it saw BGR minus this, without a scale.
VGGFACE2_MEAN, VGGFACE2_SCALE = (123.68, 116.779, 103.939), 64.0
MOBILENET_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class SameConv(nn.Module):
    """Convolution 3×3 or 1×1 with TensorFlow's SAME padding, optional BatchNorm, ReLU6.

    ``gain`` is a constant factor on each output channel's kernel (the equalised learning rate of Karras et al.,
    1710.10196): kernels into which BatchNorm has been folded differ by a factor of 10,000, and an optimiser whose steps
    are as large for all of them, as Adam's are, would ruin the small ones and never move the large ones.
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, *, groups: int = 1, batch_norm: bool):
        super().__init__()
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(torch.empty(width, channels // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        self.gain: Tensor | None
        self.register_buffer("gain", torch.ones(width, 1, 1, 1))
        self.norm = nn.BatchNorm2d(width) if batch_norm else None
        nn.init.kaiming_normal_(self.weight, mode="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.gain is None else self.weight * self.gain
        if self.stride == 1:
            x = F.conv2d(x, weight, self.bias, padding=self.weight.shape[-1] // 2, groups=self.groups)
        elif self.groups > 1 and self.training and x.device.type == "cpu" and torch.is_grad_enabled():
            x = _strided_depthwise(x, weight, self.bias, same=True)
        else:
            x = F.conv2d(_same(x), weight, self.bias, 2, groups=self.groups)
        return F.relu6(x if self.norm is None else self.norm(x))

    @torch.no_grad()
    def equalise(self) -> None:
        """Move the scale of each output channel's kernel into ``gain``, up to that of a random kernel."""
        scale = self.weight.square().mean((1, 2, 3), keepdim=True).sqrt()
        gain = (scale * (self.weight[0].numel() / 2) ** 0.5).clamp(min=1e-3)
        self.weight.div_(gain / self.gain)
        self.gain.copy_(gain)

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply ``gain`` into the kernel for good: for export."""
        self.weight.mul_(self.gain)
        self.gain = None


def _same(x: Tensor) -> Tensor:
    """Padding of a 3×3 convolution of stride 2: at both ends of an odd side, at the end alone of an even one."""
    height, width = (int(side) % 2 for side in x.shape[2:])  # constants of a traced network too
    return F.pad(x, (width, 1, height, 1))


def _mobilenet_v1(*, size: int, imagenet: bool, width: float = 1.0, batch_norm: bool = False) -> Backbone:
    """MobileNetV1 (Howard et al., 1704.04861) as the VGGFace2 network has it: biases, ReLU6, SAME padding.

    ``batch_norm`` after each convolution is for training from random weights.
    """
    if imagenet:
        raise WeightsError("there are no ImageNet weights of mobilenet_v1: give a file of weights, or 'random'")
    conv = partial(SameConv, batch_norm=batch_norm)
    scaled = lambda channels: max(8, round(channels * width / 8) * 8)  # noqa: E731
    channels = scaled(32)
    mean = tuple(value / 255 for value in VGGFACE2_MEAN)
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        standardize=Standardize(mean, (VGGFACE2_SCALE / 255,) * 3), stem=conv(3, channels, 3, 2)
    )
    for number, (wide, stride) in enumerate(MOBILENET_V1, 1):
        depthwise = conv(channels, channels, 3, stride, groups=channels)
        parts = OrderedDict(depthwise=depthwise, pointwise=conv(channels, scaled(wide), 1))
        stages[f"block{number}"], channels = nn.Sequential(parts), scaled(wide)
    return nn.Sequential(stages), channels


def from_vggface2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VGGFace2 file's tensors under our names, for RGB in 0..1: its BGR order and scale go into the stem."""
    found = {f"features.{key}": value.float() for key, value in tensors.items() if not key.startswith("head.")}
    found["features.stem.weight"] = found["features.stem.weight"].flip(1) * VGGFACE2_SCALE
    for key in [key for key in found if key.endswith(".weight")]:
        kernel = SameConv(found[key].shape[1], *found[key].shape[::3], batch_norm=False)
        kernel.weight.data.copy_(found[key])
        kernel.equalise()
        found |= {key: kernel.weight.data, key.replace(".weight", ".gain"): kernel.gain}
    return found


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "gender_cnn": _gender_cnn,
    "plain_cnn": _plain_cnn,
    "cartoon_cnn": _cartoon_cnn,
    "small_resnet": _small_resnet,
    "mobilenet_v1": _mobilenet_v1,
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3_small": partial(_torchvision, "mobilenet_v3_small"),
    "mobilenet_v3_large": partial(_torchvision, "mobilenet_v3_large"),
    "resnet18": partial(_resnet, "resnet18"),
    "resnet50": partial(_resnet, "resnet50"),
}
