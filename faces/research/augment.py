"""Random changes to whole batches of images, as tensors, so that one pass serves 64 photos and runs on any device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Augment:
    """Each image of a batch gets its own flip, turn, shift, zoom and change of light.

    Parameters
    ----------
    flip : probability of a mirror image.
    rotate : largest angle, degrees.
    shift : largest shift, as a fraction of the side, across and down.
    zoom : range of the factor, below 1 smaller; uncovered pixels are black. A wide range teaches a network to take
        crops with other margins than its training photos have.
    fill : probability that uncovered pixels, black edges of the image among them, become one plain colour, white half
        the time, so that what stands on a plain background is known too.
    brightness, contrast : largest relative change.
    grey : probability of losing the colour.
    coarse : probability of losing half the resolution, as a small face that was enlarged has.
    erase : probability of losing a rectangle, a fifth to a half as wide and high as the image, that becomes mid-grey
        (Zhong et al., 1708.04896), so that no single part decides.

    Call it with float ``[n, channels, height, width]`` in 0..1 to get the same back. Randomness comes from torch's
    global generator, which ``training.fit`` seeds anew each epoch.

    >>> Augment(flip=1.0, rotate=0, shift=0, zoom=(1, 1), brightness=0, contrast=0)(torch.eye(2)[None, None])
    tensor([[[[0., 1.],
              [1., 0.]]]])
    """

    flip: float = 0.5
    rotate: float = 10.0
    shift: float = 0.08
    zoom: tuple[float, float] = (0.85, 1.15)
    fill: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.2
    grey: float = 0.0
    coarse: float = 0.0
    erase: float = 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        n = len(x)
        if self.rotate or self.shift or tuple(self.zoom) != (1, 1):
            grid = F.affine_grid(self._matrices(n, x.device), list(x.shape), align_corners=False).to(x.dtype)
            covered = F.grid_sample(_inside(x), grid, align_corners=False) if self.fill else None
            x = F.grid_sample(x, grid, align_corners=False).contiguous(memory_format=torch.channels_last)
            if covered is not None:
                x = x + (1 - covered) * self._colours(n, x)
        elif self.flip:
            mirrored = torch.rand(n, 1, 1, 1, device=x.device) < self.flip
            x = torch.where(mirrored, x.flip(3), x)
        if self.coarse:
            blurred = torch.rand(n, 1, 1, 1, device=x.device) < self.coarse
            half = F.avg_pool2d(x, 2, ceil_mode=True)
            x = torch.where(blurred, F.interpolate(half, x.shape[2:], mode="bilinear"), x)
        if self.grey:
            bare = torch.rand(n, 1, 1, 1, device=x.device) < self.grey
            x = torch.where(bare, x.mean(1, keepdim=True), x)
        if self.brightness or self.contrast:
            gain = (1 + self.contrast * _uniform(n, x.device)).to(x.dtype)
            middle = (0.5 + 0.5 * self.brightness * _uniform(n, x.device)).to(x.dtype)
            x = ((x - 0.5) * gain.view(-1, 1, 1, 1) + middle.view(-1, 1, 1, 1)).clamp_(0, 1)
        if self.erase:
            _, _, height, width = x.shape
            x = torch.where(self._holes(n, height, width, x.device), torch.full_like(x[:1, :1, :1, :1], 0.5), x)
        return x

    def scaled(self, strength: float) -> Augment:
        """The same changes, each so much larger or smaller: 0 leaves only the mirror image, 1 is as it was.

        >>> Augment(rotate=10, zoom=(0.5, 2)).scaled(0.5).rotate
        5.0
        """
        few = {name: min(1.0, getattr(self, name) * strength) for name in ("fill", "grey", "coarse", "erase")}
        sizes = {name: getattr(self, name) * strength for name in ("rotate", "shift", "brightness", "contrast")}
        return replace(self, zoom=tuple(factor**strength for factor in self.zoom), **sizes, **few)

    def _colours(self, n: int, x: torch.Tensor) -> torch.Tensor:
        """What uncovered pixels become: ``[n, channels, 1, 1]``."""
        colours = torch.rand(n, x.shape[1], 1, 1, device=x.device, dtype=x.dtype)
        colours[torch.rand(n, device=x.device) < 0.5] = 1.0
        colours[torch.rand(n, device=x.device) >= self.fill] = 0.0
        return colours

    def _holes(self, n: int, height: int, width: int, device) -> torch.Tensor:
        """Which pixels are erased: bool ``[n, 1, height, width]``."""
        inside = (torch.rand(n, 1, 1, 1, device=device) < self.erase).expand(n, 1, height, width)
        for shape, pixels in (((n, 1, -1, 1), height), ((n, 1, 1, -1), width)):
            length = 0.2 + 0.3 * torch.rand(n, 1, device=device)
            start = torch.rand(n, 1, device=device) * (1 - length)
            at = (torch.arange(pixels, device=device) + 0.5) / pixels
            inside = inside & ((at >= start) & (at < start + length)).view(shape)
        return inside

    def _matrices(self, n: int, device) -> torch.Tensor:
        """Where each output pixel comes from, in the coordinates of ``affine_grid`` (-1..1): ``[n, 2, 3]``."""
        angle = math.radians(self.rotate) * _uniform(n, device)
        low, high = (math.log(z) for z in self.zoom)
        scale = torch.exp(-(low + (high - low) * torch.rand(n, device=device)))
        mirror = torch.where(torch.rand(n, device=device) < self.flip, -1.0, 1.0)
        matrix = torch.empty(n, 2, 3, device=device)
        matrix[:, 0, 0], matrix[:, 0, 1] = mirror * scale * angle.cos(), -scale * angle.sin()
        matrix[:, 1, 0], matrix[:, 1, 1] = mirror * scale * angle.sin(), scale * angle.cos()
        # The side is two units long in these coordinates.
        matrix[:, 0, 2], matrix[:, 1, 2] = (2 * self.shift * _uniform(n, device) for _ in range(2))
        return matrix


def _inside(x: torch.Tensor) -> torch.Tensor:
    """1 where images are, 0 on their black edges: ``[n, 1, height, width]``."""
    bright = x.amax(1, keepdim=True) > 0
    return (bright.any(2, keepdim=True) & bright.any(3, keepdim=True)).to(x.dtype)


def view(
    x: torch.Tensor, *, flip: bool = False, across: float = 1.0, down: float = 1.0, shift: tuple[float, float] = (0, 0)
) -> torch.Tensor:
    """One fixed change for all images of a batch, for test-time augmentation.

    Parameters
    ----------
    x : float ``[n, channels, height, width]``.
    across, down : factors; 1.1 and 1.1 is a crop, 1.1 and 1.0 a stretch, below 1 leaves black around.
    shift : of the content to the right and down, as fractions of the side.

    >>> view(torch.eye(2)[None, None], flip=True)
    tensor([[[[0., 1.],
              [1., 0.]]]])
    """
    mirror = -1.0 if flip else 1.0
    if across == down == 1 and not any(shift):
        return x.flip(3) if flip else x
    matrix = torch.tensor(
        [[mirror / across, 0, -2 * shift[0] * mirror / across], [0, 1 / down, -2 * shift[1] / down]],
        dtype=x.dtype,
        device=x.device,
    )
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _uniform(n: int, device) -> torch.Tensor:
    return torch.rand(n, device=device) * 2 - 1
