"""A deep network that starts from nothing learns beside a trained one: what that says, and what its stages see.

Labels are a few bits a photo and reach the first layers through all others. The maps of a network that has learnt
already are thousands of numbers a photo, for every stage directly: FitNets (Romero et al., 1412.6550).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from faces import models


class Pupil(nn.Module):
    """A network beside its trained guide; in training both see the same (changed) pictures.

    Wherever both have maps of one side, a convolution of 1×1 reads the guide's map out of the pupil's: the last map of
    that side, before it shrinks. The guide is never changed.

    In training it returns ``[n, outputs + guide's outputs + 1]``: the pupil's outputs, the guide's, and how far their
    maps are apart, as the mean squared distance to the guide's standardised channels, summed over the stages. In
    evaluation it returns the pupil's outputs alone.

    Parameters
    ----------
    network, guide : both ``models.Finetuned``.
    size : side of the pictures, pixels; the pairs of maps are found with it.

    Raises
    ------
    ValueError : the two have no maps of one side.
    """

    def __init__(self, network: models.Finetuned, guide: models.Finetuned, size: int):
        super().__init__()
        self.network, self.guide = network, guide.requires_grad_(False)
        mine, theirs = _last_of_each_side(network, size), _last_of_each_side(guide, size)
        sides = [side for side in mine if side in theirs]
        if not sides:
            raise ValueError(f"no maps of one side: {list(mine)} pixels in the one, {list(theirs)} in the other")
        self.mine, self.theirs = ([where[side][0] for side in sides] for where in (mine, theirs))
        self.readers = nn.ModuleList(nn.Conv2d(mine[side][1], theirs[side][1], 1) for side in sides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.network(x)
        with torch.no_grad():
            taught, shown = _through(self.guide, x, self.theirs)
        says, sees = _through(self.network, x, self.mine)
        apart = torch.zeros(len(x), device=x.device)
        for reader, here, there in zip(self.readers, sees, shown, strict=True):
            there = F.batch_norm(there.float(), None, None, training=True)
            apart = apart + (reader(here).float() - there).square().mean((1, 2, 3))
        return torch.cat([says.float(), taught.float(), apart[:, None]], 1)

    def train(self, mode: bool = True) -> Pupil:
        super().train(mode)
        self.guide.eval()
        return self


def _through(model: models.Finetuned, x: torch.Tensor, wanted: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A model's outputs, and the maps after the layers with these numbers."""
    x, maps = model.standardize(x), []
    for number, layer in enumerate(model.features):
        x = layer(x)
        if number in wanted:
            maps.append(x)
    return model.classifier(model.dropout(x.mean((2, 3)))), maps


@torch.no_grad()
def _last_of_each_side(model: models.Finetuned, size: int) -> dict[int, tuple[int, int]]:
    """Side of a map, pixels -> number of the last layer that gives one, and its channels."""
    training, found = model.training, {}
    x = torch.zeros(1, 3, size, size, device=model.standardize.mean.device)
    model.eval()
    for number, layer in enumerate(model.features):
        x = layer(x)
        found[x.shape[2]] = (number, x.shape[1])
    model.train(training)
    return found
