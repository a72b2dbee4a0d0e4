"""Images of a manifest as batches of tensors: from memory, from a memory-mapped file, or decoded on the way.

Apart from ``data.py`` so that reading, hashing and splitting a folder need no torch.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from faces import images


def load_images(
    manifest: pd.DataFrame,
    size: int,
    *,
    whole: bool = False,
    memory_limit: float = 4e9,
    folder: str | os.PathLike | None = None,
    jobs: int | None = None,
) -> np.ndarray:
    """Decode all images of a manifest once: uint8, shape ``[n, size, size, 3]``, RGB.

    Of each its central square, or, with ``whole``, all of it between black edges.

    Beyond ``memory_limit`` bytes the array is a memory-mapped file in ``folder`` (default: the system's folder for
    temporary files); the operating system then keeps in memory what fits. For sets larger than the disk has room
    for, give ``loader`` the paths instead.

    Raises
    ------
    images.ImageError : naming the first file that cannot be decoded; leave such rows out with ``usable``.
    """
    shape = (len(manifest), size, size, 3)
    if math.prod(shape) <= memory_limit:
        decoded = np.empty(shape, np.uint8)
    else:
        Path(folder or tempfile.gettempdir()).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="faces-", suffix=".images") as file:
            # The name goes at once, the space when the array does: nothing is left behind by a crash.
            decoded = np.memmap(file, np.uint8, "w+", shape=shape)
    paths = manifest["path"].tolist()
    step = 64
    chunks = [[paths[start : start + step], size] for start in range(0, len(paths), step)]
    jobs = jobs or ((os.cpu_count() or 1) if len(paths) > 2000 else 1)
    results = Parallel(n_jobs=jobs, return_as="generator")(
        delayed(images.decode_all)(*chunk, whole) for chunk in chunks
    )
    for number, chunk in enumerate(tqdm(results, total=len(chunks), desc="decoding", leave=False)):
        decoded[number * step : number * step + len(chunk)] = chunk
    return decoded


class Images(torch.utils.data.Dataset):
    """Pairs of image and target, fetched a batch at a time.

    Parameters
    ----------
    source : uint8 array ``[n, size, size, 3]``, or a sequence of n paths that are decoded when asked for.
    targets : array or tensor, ``[n, ...]``.
    size : pixels, for paths only.

    Raises
    ------
    ValueError : as many images as targets are needed, and paths need a ``size``.
    images.ImageError : when fetching, naming the file that cannot be decoded.
    """

    def __init__(self, source: np.ndarray | Sequence[str], targets, size: int | None = None):
        # A column of a frame has labels of its own; what is asked for here are positions.
        self.source = source if _is_decoded(source) else list(source)
        self.size = size
        self.targets = torch.as_tensor(np.asarray(targets))
        if len(self.source) != len(self.targets):
            raise ValueError(f"{len(self.source)} images but {len(self.targets)} targets")
        if not _is_decoded(source) and not size:
            raise ValueError("paths need a size in pixels to be decoded at")

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        if _is_decoded(self.source):
            pixels = self.source[indices]
        else:
            pixels = images.decode_all([self.source[i] for i in indices], self.size)
        # [n, height, width, channel] seen as [n, channel, height, width] is torch's channels_last as it stands.
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2), self.targets[indices]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, targets = self.__getitems__([index])
        return pixels[0], targets[0]


def _is_decoded(source) -> bool:
    return isinstance(source, np.ndarray) and source.ndim == 4


class EpochBatches(torch.utils.data.Sampler):
    """Batches of indices whose order depends on nothing but (seed, epoch), shared out among processes.

    ``set_epoch`` draws the next order, ``share`` gives this process every ``world``-th index. When shuffling, each
    process gets equally many batches (a few images sit out an epoch); otherwise every index comes exactly once.
    """

    def __init__(self, n: int, batch_size: int, *, shuffle: bool, seed: int = 0):
        self.n, self.batch_size, self.shuffle, self.seed = n, batch_size, shuffle, seed
        self.epoch, self.rank, self.world = 0, 0, 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def share(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def _mine(self) -> range:
        even = self.n // self.world * self.world if self.shuffle else self.n
        return range(self.rank, even, self.world)

    def __len__(self) -> int:
        return math.ceil(len(self._mine()) / self.batch_size)

    def __iter__(self):
        order = np.arange(self.n)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        mine = order[self._mine()]
        for start in range(0, len(mine), self.batch_size):
            yield mine[start : start + self.batch_size].tolist()


def _as_they_are(batch):
    return batch


def loader(
    source: np.ndarray | Sequence[str],
    targets,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    size: int | None = None,
    workers: int = 0,
) -> torch.utils.data.DataLoader:
    """A DataLoader of (uint8 ``[n, 3, size, size]``, targets ``[n, ...]``) batches.

    ``source`` is what ``load_images`` returns, or the paths themselves (with ``size``; and ``workers`` processes
    that decode ahead) for sets larger than memory: the batches are the same. The pixels are laid out channels_last.

    Raises
    ------
    ValueError : as many images as targets are needed, and paths need a ``size``.
    images.ImageError : on the way, naming the file that cannot be decoded.
    """
    dataset = Images(source, targets, size)
    batches = EpochBatches(len(dataset), batch_size, shuffle=shuffle, seed=seed)
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_they_are,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
