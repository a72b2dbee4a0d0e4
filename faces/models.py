"""Networks. All take float images ``[n, 3, size, size]`` in 0..1 and return logits ``[n, outputs]``.

Two classes need one output: its logit is that of the second class, a sigmoid makes it a probability.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import MobileNet_V2_Weights, ResNet18_Weights, ResNet50_Weights, WeightsEnum
from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models import resnet50 as torchvision_resnet50

from faces.research.backbones import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Standardize, WeightsError, _quicken


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
    options = {"widths": widths, "hidden": hidden, "dropout2d": dropout2d, "standardize": standardize}
    options |= {"batch_norm": batch_norm, "padding": padding}
    features, width = BACKBONES["gender_cnn"](size=size, imagenet=False, **options)
    return nn.Sequential(*features, nn.Dropout(dropout), nn.Linear(width, classes))


def plain_cnn(outputs: int = 1, *, size: int = 96, dropout: float = 0.0) -> nn.Sequential:
    """The sequential baseline for 96×96 faces: four convolutions with pooling by two, then three dense layers.

    conv 3→32→64→128→128, each 3×3 with ReLU and MaxPool 2; dense →256→64→outputs. Nothing in it resists
    over-fitting unless ``dropout`` (before the first two dense layers) is given.

    Raises
    ------
    ValueError : images of ``size`` pixels are too small for four poolings.
    """
    features, width = BACKBONES["plain_cnn"](size=size, imagenet=False, dropout=dropout)
    return nn.Sequential(*features, nn.Linear(width, outputs))


def cartoon_cnn(classes: int, *, dropout: float = 0.25) -> nn.Sequential:
    """The plain network for 64×64 cartoon characters: six halvings, then three dense layers.

    Six blocks of conv 3×3 (padding 1, with bias), ReLU, MaxPool 2 and BatchNorm, channels 3-16-32-64-128-256-512;
    flatten; dense 512→120→84 with ReLU, dropout, →classes. All layers are registered, so ``to(device)`` moves them.
    """
    features, width = BACKBONES["cartoon_cnn"](size=64, imagenet=False)
    return nn.Sequential(*features, nn.Dropout(dropout), nn.Linear(width, classes))


def small_resnet(outputs: int, *, width: int = 32, depth: int = 1, dropout: float = 0.0) -> nn.Sequential:
    """A residual network to be trained from nothing on small pictures: no dense layer but the last.

    conv 3→w of stride 2, so that a picture costs a quarter; three stages 2w, 4w, 8w, each a convolution, MaxPool 2 and
    ``depth`` residual blocks (none in the second); global average pooling; one dense layer. After the nine-layer
    ResNets of the DAWNBench contest (Page, 2018). With ``width`` 32 it has 1.6 million weights, with 8 a hundred
    thousand.
    """
    features, channels = BACKBONES["small_resnet"](size=64, imagenet=False, width=width, depth=depth)
    return nn.Sequential(*features, nn.Dropout(dropout), nn.Linear(channels, outputs))


class Mirrored(nn.Sequential):
    """The mean of what a network says of an image and of its mirror image; the same layers under the same names.

    >>> double = Mirrored(nn.Flatten(), nn.Linear(2, 1))
    >>> bool((double(torch.tensor([[[[1.0, 2.0]]]])) == double(torch.tensor([[[[2.0, 1.0]]]]))).all())
    True
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (super().forward(x) + super().forward(x.flip(3))) / 2


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


def parameter_count(model: nn.Module, *, trainable: bool = False) -> int:
    """Number of parameters, or of those alone that are not frozen."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trainable)
