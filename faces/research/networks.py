"""Networks: a backbone, built by name, under several heads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from faces.research.backbones import BACKBONES, WeightsError, from_timm, from_vggface2
from faces.research.heads import Head


class Network(nn.Module):
    """A backbone and its heads: float ``[n, 3, size, size]`` in 0..1 -> ``{head: outputs [n, k]}``.

    Parameters
    ----------
    features : images -> maps ``[n, width, h, w]``, which are averaged, or features ``[n, width]``.
    width : channels of the features.
    dropout : before the last layers.
    mirror : in evaluation, average the outputs over the image and its mirror image; exported networks do so too.
    frozen : hold the backbone still, the running statistics of its BatchNorm too.
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
    student, guide : the guide is never changed.
    size : side of the images in pixels.

    Raises
    ------
    ValueError : the two have no maps of one side.
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
    backbone : a key of ``BACKBONES``, or ``timm:NAME`` where timm is installed.
    size : side of the images in pixels.
    options : arguments of the backbone.
    weights : "imagenet", "random", a folder with ``weights.safetensors``, or a safetensors file.

    Raises
    ------
    ValueError : no such backbone, or it has no such option.
    WeightsError : the weights cannot be had or do not fit.
    """
    builder: Callable | None = BACKBONES.get(backbone)
    if backbone.startswith("timm:"):
        builder = partial(from_timm, backbone.removeprefix("timm:"))
    if builder is None:
        raise ValueError(f"no backbone {backbone!r}; there are {', '.join(BACKBONES)} and timm:NAME")
    try:
        features, width = builder(size=size, imagenet=str(weights) == "imagenet", **(options or {}))
    except TypeError as error:
        raise ValueError(f"backbone {backbone}: {error}") from None
    network = Network(features, width, heads, dropout=dropout, mirror=mirror, frozen=frozen)
    if str(weights) not in ("imagenet", "random"):
        load_weights(network, weights)
    return network


def load_weights(network: Network, source: str | os.PathLike) -> list[str]:
    """Start from another network: every tensor whose name and shape fit is taken; returns their names.

    Parameters
    ----------
    source : a folder with ``weights.safetensors``, or a safetensors file, also the VGGFace2 MobileNetV1's own layout.

    Raises
    ------
    WeightsError : the file cannot be read, or no tensor of the backbone fits.
    """
    path = Path(source)
    path = path / "weights.safetensors" if path.is_dir() else path
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"no weights to start from in {path}: {error}") from error
    if "stem.weight" in tensors:
        tensors = from_vggface2(tensors)
    state = network.state_dict()
    fit = {key: value for key, value in tensors.items() if key in state and state[key].shape == value.shape}
    network.load_state_dict({key: value.to(state[key]) for key, value in fit.items()}, strict=False)
    wanted = {name for name, _ in network.named_parameters() if name.startswith("features.")}
    if wanted and not wanted & fit.keys():
        raise WeightsError(f"{path} is not of this architecture and width")
    return sorted(fit)


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
