"""Networks: a backbone, built by name, under several heads."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from faces import models
from faces.models import IMAGENET_MEAN, IMAGENET_STD, Standardize, WeightsError
from faces.research.heads import Head


class Network(nn.Module):
    """A backbone and its heads: float ``[n, 3, size, size]`` in 0..1 -> ``{head: outputs [n, k]}``.

    Parameters
    ----------
    features : Module
        Images -> maps ``[n, width, h, w]``, which are averaged, or features ``[n, width]``.
    width : int
        Channels of the features.
    heads : sequence of Head
    dropout : float, default 0.0
        Before the last layers.
    mirror : bool, default False
        In evaluation, average the outputs over the image and its mirror image; exported networks do so too.
    frozen : bool, default False
        Hold the backbone still, the running statistics of its BatchNorm too.
    """

    def __init__(
        self,
        features: nn.Module,
        width: int,
        heads: Sequence[Head],
        *,
        dropout: float = 0.0,
        mirror: bool = False,
        frozen: bool = False,
    ):
        super().__init__()
        self.features, self.width = features, width
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({head.name: head.layer(width) for head in heads})
        self.mirror, self.frozen = mirror, frozen
        if frozen:
            features.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = self.outputs(self.embed(x))
        if self.mirror and not self.training:
            mirrored = self.outputs(self.embed(x.flip(3)))
            outputs = {name: (output + mirrored[name]) / 2 for name, output in outputs.items()}
        return outputs

    def embed(self, x: Tensor) -> Tensor:
        """What the heads see of each image: ``[n, width]``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = self.features(x)
            return x.mean((2, 3)) if x.ndim == 4 else x

    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        """Outputs of every head for features ``[n, width]``."""
        features = self.dropout(features)
        return {name: head(features) for name, head in self.heads.items()}

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        if self.frozen:
            self.features.eval()
        return self

    def stages(self) -> list[nn.Module]:
        """Parts of the backbone in order, for learning rates that fall towards the input."""
        return [stage for stage in self.features.children() if any(True for _ in stage.parameters())]


class HintedStudent(nn.Module):
    """A network beside a trained guide; in training both see the same augmented images (FitNets, 1412.6550).

    Wherever both have maps of one side, a 1×1 convolution predicts the guide's last map of that side from the
    student's. In training ``HEAD/teacher`` are the guide's outputs and ``features/penalty`` is the mean squared error
    of those predictions of the guide's standardised channels; in evaluation the outputs are the student's alone.

    Parameters
    ----------
    student, guide : Network
        The guide is never changed.
    size : int
        Side of the images in pixels.

    Raises
    ------
    ValueError
        The two have no maps of one side.
    """

    def __init__(self, student: Network, guide: Network, size: int):
        super().__init__()
        self.student, self.guide = student, guide.requires_grad_(False)
        mine, theirs = _last_maps(student, size), _last_maps(guide, size)
        sides = [side for side in mine if side in theirs]
        if not sides:
            raise ValueError(f"no maps of one side: {list(mine)} pixels in the student, {list(theirs)} in the guide")
        self.layers = [(mine[side][0], theirs[side][0]) for side in sides]
        self.readers = nn.ModuleList(nn.Conv2d(mine[side][1], theirs[side][1], 1) for side in sides)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if not self.training:
            return self.student(x)
        with torch.no_grad():
            taught, shown = _through(self.guide, x, [theirs for _, theirs in self.layers])
        outputs, seen = _through(self.student, x, [mine for mine, _ in self.layers])
        apart = torch.zeros(len(x), device=x.device)
        for reader, here, there in zip(self.readers, seen, shown, strict=True):
            there = F.batch_norm(there.float(), None, None, training=True)
            apart = apart + (reader(here).float() - there).square().mean((1, 2, 3))
        taught = {f"{name}/teacher": output for name, output in taught.items() if name in outputs}
        return outputs | taught | {"features/penalty": apart}

    def train(self, mode: bool = True) -> HintedStudent:
        super().train(mode)
        self.guide.eval()
        return self


def _through(network: Network, x: Tensor, wanted: Sequence[int]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """A network's outputs, and the maps after the layers with these numbers."""
    maps = []
    for number, layer in enumerate(network.features):
        x = layer(x)
        if number in wanted:
            maps.append(x)
    return network.outputs(x.mean((2, 3)) if x.ndim == 4 else x), maps


@torch.no_grad()
def _last_maps(network: Network, size: int) -> dict[int, tuple[int, int]]:
    """Side of a map in pixels -> number of the last layer that gives one, and its channels."""
    training, found = network.training, {}
    x = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    network.eval()
    for number, layer in enumerate(network.features):
        x = layer(x)
        if x.ndim == 4:
            found[x.shape[2]] = (number, x.shape[1])
    network.train(training)
    return found


def build(
    backbone: str,
    heads: Sequence[Head],
    *,
    size: int,
    options: Mapping | None = None,
    weights: str | os.PathLike = "random",
    dropout: float = 0.0,
    mirror: bool = False,
    frozen: bool = False,
) -> Network:
    """A network by the name of its backbone.

    Parameters
    ----------
    backbone : str
        A key of ``BACKBONES``, or ``timm:NAME`` where timm is installed.
    size : int
        Side of the images in pixels.
    options : mapping, optional
        Arguments of the backbone.
    weights : str or path, default "random"
        "imagenet", "random", a folder with ``weights.safetensors``, or a safetensors file.

    Raises
    ------
    ValueError
        No such backbone, or it has no such option.
    WeightsError
        The weights cannot be had or do not fit.
    """
    imagenet, options = str(weights) == "imagenet", dict(options or {})
    if backbone.startswith("timm:"):
        builder: Callable = partial(_timm, backbone.removeprefix("timm:"))
    elif backbone in BACKBONES:
        builder = BACKBONES[backbone]
    else:
        raise ValueError(f"no backbone {backbone!r}; there are {', '.join(BACKBONES)} and timm:NAME")
    try:
        features, width = builder(size=size, imagenet=imagenet, **options)
    except TypeError as error:
        raise ValueError(f"backbone {backbone}: {error}") from None
    network = Network(features, width, heads, dropout=dropout, mirror=mirror, frozen=frozen)
    if str(weights) not in ("imagenet", "random"):
        load_weights(network, weights)
    return network


def load_weights(network: Network, source: str | os.PathLike) -> list[str]:
    """Start from another network: every tensor whose name and shape fit is taken.

    Parameters
    ----------
    source : path
        A folder with ``weights.safetensors``, or a safetensors file, also the VGGFace2 MobileNetV1's own layout.

    Returns
    -------
    list of str
        The names that were taken.

    Raises
    ------
    WeightsError
        The file cannot be read, or no tensor of the backbone fits.
    """
    path = Path(source)
    path = path / "weights.safetensors" if path.is_dir() else path
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"no weights to start from in {path}: {error}") from error
    if "stem.weight" in tensors:
        tensors = _from_vggface2(tensors)
    return take(network, tensors, str(path))


def take(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> list[str]:
    """Copy every tensor whose name and shape fit; returns their names."""
    state = network.state_dict()
    fit = {
        key: value.to(state[key]) for key, value in tensors.items() if key in state and state[key].shape == value.shape
    }
    network.load_state_dict(fit, strict=False)
    wanted = {name for name, _ in network.named_parameters() if name.startswith("features.")}
    if wanted and not wanted & fit.keys():
        raise WeightsError(f"{source} is not of this architecture and width")
    return sorted(fit)


# ------------------------------------------------------------------------------------------------------- backbones
# Each takes size and imagenet and returns the features and their width.


def _without_imagenet(build: Callable[..., nn.Sequential], takes_size: bool = False) -> Callable:
    """A network of ``faces.models`` that has no ImageNet weights, without its last layer and the dropout before it."""

    def backbone(*, size: int, imagenet: bool, **options) -> tuple[nn.Module, int]:
        if imagenet:
            raise WeightsError(f"there are no ImageNet weights of {build.__name__}: start from weights='random'")
        layers = list(build(2, **({"size": size} if takes_size else {}), **options))
        width = layers.pop().in_features
        if isinstance(layers[-1], nn.Dropout):
            layers.pop()
        return nn.Sequential(*layers), width

    return backbone


def _torchvision(name: str, *, size: int, imagenet: bool, **options) -> tuple[nn.Module, int]:
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
            f"hub/checkpoints/{kept.url.rsplit('/', 1)[1]}, or start from the weights of a model folder"
        ) from error
    if name.startswith("resnet"):
        width = network.fc.in_features
        del network.avgpool, network.fc
        stages = OrderedDict(network.named_children())
    else:
        stages = OrderedDict(network.features.named_children())
        width = network.features[-1].out_channels
    features = nn.Sequential(OrderedDict(standardize=Standardize(IMAGENET_MEAN, IMAGENET_STD), **stages))
    models._quicken(features)
    return features, width


def _mobilenet_v2(*, size: int, imagenet: bool, width: float = 1.0) -> tuple[nn.Module, int]:
    return _torchvision("mobilenet_v2", size=size, imagenet=imagenet, width_mult=width)


def _resnet(name: str, *, size: int, imagenet: bool) -> tuple[nn.Module, int]:
    # Every residual branch starts at 0, so that a random network sets out as a shallow one (Goyal et al., 1706.02677).
    return _torchvision(name, size=size, imagenet=imagenet, zero_init_residual=True)


def _timm(name: str, *, size: int, imagenet: bool, **options) -> tuple[nn.Module, int]:
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
        self.register_buffer("gain", torch.ones(width, 1, 1, 1))
        self.norm = nn.BatchNorm2d(width) if batch_norm else None
        nn.init.kaiming_normal_(self.weight, mode="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.gain is None else self.weight * self.gain
        if self.stride == 1:
            x = F.conv2d(x, weight, self.bias, padding=self.weight.shape[-1] // 2, groups=self.groups)
        elif self.groups > 1 and self.training and x.device.type == "cpu" and torch.is_grad_enabled():
            if torch.is_autocast_enabled("cpu"):
                x, weight = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, weight))
            x = _StridedDepthwise.apply(x, weight, self.bias.to(x))
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
    height, width = x.shape[2] % 2, x.shape[3] % 2
    return F.pad(x, (width, 1, height, 1))


class _StridedDepthwise(torch.autograd.Function):
    """A depthwise 3×3 convolution of stride 2 whose gradients are computed at stride 1.

    oneDNN is fast at the backward pass of depthwise convolutions at stride 1 only; the gradient at stride 2 is the one
    at stride 1 of an output gradient with zeros in between.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.conv2d(_same(x), weight, bias, 2, groups=x.shape[1])

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        down, across = 1 - x.shape[2] % 2, 1 - x.shape[3] % 2  # where the outputs lie among those at stride 1
        spread = torch.zeros_like(x)
        spread[:, :, down::2, across::2] = gradient
        one = [1, 1]
        return torch.ops.aten.convolution_backward(
            spread, x, weight, [x.shape[1]], one, one, one, False, [0, 0], x.shape[1], list(ctx.needs_input_grad)
        )


def _mobilenet_v1(*, size: int, imagenet: bool, width: float = 1.0, batch_norm: bool = False) -> tuple[nn.Module, int]:
    """MobileNetV1 (Howard et al., 1704.04861) as the VGGFace2 network has it: biases, ReLU6, SAME padding.

    batch_norm : after each convolution; for training from random weights.
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
        parts = {
            "depthwise": conv(channels, channels, 3, stride, groups=channels),
            "pointwise": conv(channels, scaled(wide), 1),
        }
        stages[f"block{number}"] = nn.Sequential(OrderedDict(parts))
        channels = scaled(wide)
    return nn.Sequential(stages), channels


def _from_vggface2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VGGFace2 file's tensors under our names, for RGB in 0..1: its BGR order and scale go into the stem."""
    found = {f"features.{key}": value.float() for key, value in tensors.items() if not key.startswith("head.")}
    found["features.stem.weight"] = found["features.stem.weight"].flip(1) * VGGFACE2_SCALE
    for key in [key for key in found if key.endswith(".weight")]:
        kernel = SameConv(found[key].shape[1], *found[key].shape[::3], batch_norm=False)
        kernel.weight.data.copy_(found[key])
        kernel.equalise()
        found |= {key: kernel.weight.data, key.replace(".weight", ".gain"): kernel.gain}
    return found


BACKBONES: dict[str, Callable[..., tuple[nn.Module, int]]] = {
    "gender_cnn": _without_imagenet(models.gender_cnn, takes_size=True),
    "plain_cnn": _without_imagenet(models.plain_cnn, takes_size=True),
    "cartoon_cnn": _without_imagenet(models.cartoon_cnn),
    "small_resnet": _without_imagenet(models.small_resnet),
    "mobilenet_v1": _mobilenet_v1,
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3_small": partial(_torchvision, "mobilenet_v3_small"),
    "mobilenet_v3_large": partial(_torchvision, "mobilenet_v3_large"),
    "resnet18": partial(_resnet, "resnet18"),
    "resnet50": partial(_resnet, "resnet50"),
}


def parameter_groups(network: Network, rate: float, stage_decay: float, weight_decay: float) -> list[dict]:
    """Parameters for an optimiser, with discriminative learning rates (Howard & Ruder, 1801.06146).

    The heads learn at ``rate``, the last stage of the backbone at ``rate * stage_decay``, the one before at that times
    ``stage_decay`` again. Weight decay is on matrices and kernels only.
    """
    stages = [list(network.heads.parameters())]
    stages += [list(stage.parameters()) for stage in reversed(network.stages())]
    if stage_decay == 1:
        stages = [[parameter for stage in stages for parameter in stage]]
    groups = []
    for depth, stage in enumerate(stages):
        for decay, few in ((weight_decay, False), (0.0, True)):
            parameters = [p for p in stage if p.requires_grad and (p.ndim <= 1) == few]
            if parameters:
                groups.append({"params": parameters, "lr": rate * stage_decay**depth, "weight_decay": decay})
    return groups


def parameter_count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def layer_table(network: Network, size: int):
    """The parts of a network's backbone, by name: side of their maps in pixels, channels, parameters."""
    import pandas as pd

    x, rows = torch.zeros(1, 3, size, size), []
    network.eval()
    for name, part in network.features.named_children():
        x = part(x)
        side = x.shape[2] if x.ndim == 4 else 1
        rows.append({"layer": name, "side": side, "channels": x.shape[1], "parameters": parameter_count(part)})
    return pd.DataFrame(rows).set_index("layer")
