"""Networks. All take float images ``[n, 3, size, size]`` in 0..1 and return logits ``[n, classes]``."""

from __future__ import annotations

import torch
from torch import nn


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


def parameter_count(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
