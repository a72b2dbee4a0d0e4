"""Networks. All take float images ``[n, 3, size, size]`` in 0..1 and return logits ``[n, outputs]``.

Two classes need one output: its logit is that of the second class, a sigmoid makes it a probability.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import MobileNet_V2_Weights, ResNet18_Weights, ResNet50_Weights, WeightsEnum
from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models import resnet50 as torchvision_resnet50

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class WeightsError(OSError):
    """Pretrained weights could not be had; says from where they can."""


class Standardize(nn.Module):
    """(x - mean) / std per channel, as the first layer, so that it travels with the weights and into the export."""

    def __init__(self, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def gender_cnn(
    classes: int = 2,
    *,
    size: int = 64,
    widths: tuple[int, ...] = (32, 64, 128),
    hidden: int = 256,
    dropout2d: float = 0.25,
    dropout: float = 0.5,
    standardize: bool = False,
    batch_norm: bool = False,
    padding: int = 0,
) -> nn.Sequential:
    """The plain network for 64×64 faces: convolutions with pooling by three, then two dense layers.

    With the defaults: conv 3→32→64→128, each 3×3, stride 1, no padding, then ReLU, MaxPool 3/3 and Dropout2d 0.25;
    dense 128→256, ReLU, Dropout 0.5, dense 256→2; 126,786 parameters. The other arguments are the small steps
    beyond it that notebook 02 measures.

    Pooling stands before ReLU: the two commute exactly (both are monotonic), and ReLU then handles nine times fewer
    numbers. With ``padding``, or a larger ``size``, the last feature map is larger than 1×1 and all of it goes into
    the dense layer.

    Raises
    ------
    ValueError : images of ``size`` pixels are too small for so many poolings.
    """
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
    layers += [nn.Flatten(), nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Dropout(dropout)]
    layers.append(nn.Linear(hidden, classes))
    return nn.Sequential(*layers)


def plain_cnn(outputs: int = 1, *, size: int = 96, dropout: float = 0.0) -> nn.Sequential:
    """The sequential baseline for 96×96 faces: four convolutions with pooling by two, then three dense layers.

    conv 3→32→64→128→128, each 3×3 with ReLU and MaxPool 2; dense →256→64→outputs. Nothing in it resists
    over-fitting unless ``dropout`` (before the first two dense layers) is given.

    Raises
    ------
    ValueError : images of ``size`` pixels are too small for four poolings.
    """
    layers: list[nn.Module] = []
    channels, side = 3, size
    for width in (32, 64, 128, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        channels, side = width, side // 2
    if side < 1:
        raise ValueError(f"{size} pixels are too few for four poolings by two")
    layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * side * side, 256), nn.ReLU()]
    layers += [nn.Dropout(dropout), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, outputs)]
    return nn.Sequential(*layers)


def cartoon_cnn(classes: int, *, dropout: float = 0.25) -> nn.Sequential:
    """The plain network for 64×64 cartoon characters: six halvings, then three dense layers.

    Six blocks of conv 3×3 (padding 1, with bias), ReLU, MaxPool 2 and BatchNorm, channels 3-16-32-64-128-256-512;
    flatten; dense 512→120→84 with ReLU, dropout, →classes. All layers are registered, so ``to(device)`` moves them.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, 32, 64, 128, 256, 512):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(width)]
        channels = width
    layers += [nn.Flatten(), nn.Linear(512, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(84, classes))


class Residual(nn.Module):
    """x + f(x) for two convolutions f; the identity at first, since the last BatchNorm of f starts at 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(_conv(channels, channels), _conv(channels, channels))
        nn.init.zeros_(self.branch[-1][1].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def _conv(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def small_resnet(outputs: int, *, width: int = 32, depth: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """A residual network to be trained from nothing on small pictures: no dense layer but the last.

    conv 3→w of stride 2, so that a picture costs a quarter; three stages 2w, 4w, 8w, each a convolution, MaxPool 2 and
    ``depth`` residual blocks (none in the second); global average pooling; one dense layer. After the nine-layer
    ResNets of the DAWNBench contest (Page, 2018). With ``width`` 32 it has 1.6 million weights, with 8 a hundred
    thousand.
    """
    layers: list[nn.Module] = [Standardize(), _conv(3, width, 2)]
    for stage, channels in enumerate((2 * width, 4 * width, 8 * width)):
        layers += [_conv(channels // 2, channels), nn.MaxPool2d(2)]
        layers += [Residual(channels) for _ in range(depth if stage != 1 else 0)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * width, outputs)]
    return nn.Sequential(*layers)


class Mirrored(nn.Sequential):
    """The mean of what a network says of an image and of its mirror image; the same layers under the same names.

    >>> double = Mirrored(nn.Flatten(), nn.Linear(2, 1))
    >>> bool((double(torch.tensor([[[[1.0, 2.0]]]])) == double(torch.tensor([[[[2.0, 1.0]]]]))).all())
    True
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (super().forward(x) + super().forward(x.flip(3))) / 2


@torch.no_grad()
def see_grey(network: nn.Module) -> None:
    """Have a network that learnt from grey pictures see colours as the grey that they make, in place.

    On grey pictures nothing changes: the first convolution's three kernels become shares of their sum, the shares of
    red, green and blue in the brightness of a picture (ITU-R BT.601, as Pillow's mode L has them).
    """
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    shares = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1).to(first.weight)
    first.weight.copy_(first.weight.sum(1, keepdim=True) * shares)


class Finetuned(nn.Module):
    """A pretrained backbone under a new head: standardise, features, mean over the map, dropout, one dense layer.

    ``frozen`` holds the whole backbone still, the running statistics of its BatchNorm too, which ``train()`` would
    otherwise let drift.
    """

    def __init__(self, features: nn.Module, width: int, outputs: int, *, dropout: float = 0.2):
        super().__init__()
        self.standardize = Standardize(IMAGENET_MEAN, IMAGENET_STD)
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, outputs)
        self.frozen = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.embed(x)))

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """What the head sees of each image: ``[n, width]``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.features(self.standardize(x)).mean((2, 3))

    def freeze(self, frozen: bool = True) -> Finetuned:
        """Hold the backbone still, or (``False``) let all of it learn again."""
        self.frozen = frozen
        self.features.requires_grad_(not frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Finetuned:
        super().train(mode)
        if self.frozen:
            self.features.eval()
        return self

    def keep_outputs(self, n: int) -> Finetuned:
        """Drop all but the first ``n`` outputs, as when only one of several tasks is exported."""
        if not 1 <= n <= self.classifier.out_features:
            raise ValueError(f"{n} outputs cannot be kept of {self.classifier.out_features}")
        head = nn.Linear(self.classifier.in_features, n).to(self.classifier.weight)
        head.weight.data.copy_(self.classifier.weight.data[:n])
        head.bias.data.copy_(self.classifier.bias.data[:n])
        self.classifier = head
        return self


def mobilenet_v2(
    outputs: int = 1, *, width: float = 1.0, dropout: float = 0.2, weights: str | os.PathLike = "imagenet"
) -> Finetuned:
    """MobileNetV2 (Sandler et al., 1801.04381) with a new head; torchvision's, quicker to train on a CPU.

    Parameters
    ----------
    width : the paper's width multiplier (Keras calls it the depth multiplier), 0.35 to 1.0 and above.
    weights : "imagenet" (torchvision's own, downloaded once; for width 1.0 only), "random", or a model folder of
        this architecture, whose backbone is then where training starts.

    Raises
    ------
    WeightsError : the weights cannot be downloaded, or a folder holds none that fit.
    ValueError : ImageNet weights were asked for at another width than 1.0.
    """
    if weights == "imagenet" and width != 1.0:
        raise ValueError(f"there are ImageNet weights for width 1.0 only, not {width}: start from weights='random'")
    network = _of_torchvision(torchvision_mobilenet_v2, MobileNet_V2_Weights.IMAGENET1K_V1, weights, width_mult=width)
    model = Finetuned(network.features, network.last_channel, outputs, dropout=dropout)
    if weights not in ("imagenet", "random"):
        load_backbone(model, weights)
    _quicken(model.features)
    return model


def resnet50(outputs: int = 1, *, dropout: float = 0.0, weights: str | os.PathLike = "imagenet") -> Finetuned:
    """ResNet50 (He et al., 1512.03385; torchvision's) with a new head: global average pooling and one dense layer.

    Parameters
    ----------
    weights : "imagenet" (torchvision's own, downloaded once), "random" (with every residual branch at 0, so that it
        sets out as a shallow network; Goyal et al., 1706.02677), or a model folder of this architecture, whose backbone
        is then where training starts.

    Raises
    ------
    WeightsError : the weights cannot be downloaded, or a folder holds none that fit.
    """
    return _resnet(torchvision_resnet50, ResNet50_Weights.IMAGENET1K_V2, outputs, dropout, weights)


def resnet18(outputs: int = 1, *, dropout: float = 0.0, weights: str | os.PathLike = "imagenet") -> Finetuned:
    """The shallow one of that family, a sixth of the arithmetic; else as ``resnet50``."""
    return _resnet(torchvision_resnet18, ResNet18_Weights.IMAGENET1K_V1, outputs, dropout, weights)


def _resnet(build, imagenet: WeightsEnum, outputs: int, dropout: float, weights: str | os.PathLike) -> Finetuned:
    network = _of_torchvision(build, imagenet, weights, zero_init_residual=True)
    width = network.fc.in_features
    del network.avgpool, network.fc
    # What is left, in order: the stem and the four stages, under torchvision's names.
    model = Finetuned(nn.Sequential(OrderedDict(network.named_children())), width, outputs, dropout=dropout)
    if weights not in ("imagenet", "random"):
        load_backbone(model, weights)
    return model


def _of_torchvision(build, imagenet: WeightsEnum, weights: str | os.PathLike, **settings) -> nn.Module:
    try:
        return build(weights=imagenet if weights == "imagenet" else None, **settings)
    except (URLError, OSError) as error:
        raise WeightsError(
            f"the ImageNet weights could not be downloaded ({error}): set TORCH_HOME to a folder that holds "
            f"hub/checkpoints/{imagenet.url.rsplit('/', 1)[1]}, or start from the weights of a model folder"
        ) from error


def load_backbone(model: Finetuned, folder: str | os.PathLike) -> None:
    """Start from the ``weights.safetensors`` of a model folder: all layers but the head.

    Raises
    ------
    WeightsError : there is no such file, or it is of another architecture or width.
    """
    path = Path(folder) / "weights.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"no weights to start from in {folder}: {error}") from error
    ours = {key: value for key, value in model.state_dict().items() if not key.startswith("classifier.")}
    if any(key not in tensors or tensors[key].shape != value.shape for key, value in ours.items()):
        raise WeightsError(f"{path} is not of this architecture and width")
    model.load_state_dict({key: tensors[key] for key in ours}, strict=False)


def save_weights(model: nn.Module, folder: str | os.PathLike) -> Path:
    """Write ``weights.safetensors`` into a folder, from which ``load_backbone`` starts; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Contiguous copies: safetensors refuses channels_last strides.
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    partial = folder / ".weights.safetensors.partial"
    save_file(tensors, partial)
    partial.replace(folder / "weights.safetensors")
    return folder


class _StridedDepthwise(nn.Conv2d):
    """A depthwise convolution of stride 2 whose gradients are computed at stride 1.

    oneDNN has a quick kernel for the backward pass of depthwise convolutions at stride 1 only; at stride 2 its
    reference code takes more than half of the time of training MobileNetV2. The gradient at stride 2 is the
    one at stride 1 of an output gradient with zeros in between.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return _StridedGradients.apply(x.to(dtype), self.weight.to(dtype))


class _StridedGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None, 2, 1, 1, x.shape[1])

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        spread = torch.zeros_like(x)
        spread[:, :, ::2, ::2] = gradient
        one, wanted = [1, 1], [*ctx.needs_input_grad, False]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            spread, x, weight, None, one, one, one, False, [0, 0], x.shape[1], wanted
        )
        return of_x, of_weight


def _quicken(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels:
            same = (module.stride, module.kernel_size, module.padding, module.bias) == ((2, 2), (3, 3), (1, 1), None)
            if same and module.dilation == (1, 1) and module.padding_mode == "zeros":
                # The same weights under the same names, only another way to their gradients.
                module.__class__ = _StridedDepthwise


def parameter_count(model: nn.Module, *, trainable: bool = False) -> int:
    """Number of parameters, or of those alone that are not frozen."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trainable)
