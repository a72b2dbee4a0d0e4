"""Decoded pixels, kept on disk and memory-mapped, and batches of them with their targets."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from faces import images

CACHE = "runs/cache"


class Pixels:
    """Decoded squares as an array-like of uint8 ``[n, size, size, 3]``, read from memory-mapped files.

    ``pixels[rows]`` with an array of row numbers reads those rows into memory.
    """

    def __init__(self, shards: Sequence[np.ndarray], where: np.ndarray):
        self.shards, self.where = shards, where  # where: [n, 2], number of the shard and row in it
        self.shape = (len(where), *shards[0].shape[1:])

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        where = self.where[rows]
        found = np.empty((len(where), *self.shape[1:]), np.uint8)
        for shard in np.unique(where[:, 0]):
            members = where[:, 0] == shard
            found[members] = self.shards[shard][where[members, 1]]
        return found


def decode(manifest: pd.DataFrame, size: int, *, whole: bool = False, cache: str | os.PathLike = CACHE) -> Pixels:
    """The pixels of a manifest's rows; each file is decoded once for a size and framing, whatever manifest it is in.

    Parameters
    ----------
    size : side of the squares in pixels.
    whole : keep all of each picture between black edges instead of its central square.
    cache : folder of the decoded squares, by ``contents``.

    Raises
    ------
    images.ImageError : a file cannot be decoded; leave such rows out with ``data.usable``.
    """
    folder = Path(cache) / f"pixels-{size}{'-whole' * whole}"
    folder.mkdir(parents=True, exist_ok=True)
    keys = contents(manifest)
    kept = _index(folder)
    missing = ~keys.isin(kept.index) & ~keys.duplicated()
    if missing.any():
        _decode_shard(folder, manifest.loc[missing, "path"].tolist(), keys[missing].tolist(), size, whole)
        kept = _index(folder)
    shards = sorted(kept["shard"].unique())
    where = kept.loc[keys, ["shard", "row"]]
    numbers = where["shard"].map({name: number for number, name in enumerate(shards)})
    mapped = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in shards]
    return Pixels(mapped, np.stack([numbers, where["row"]], 1).astype(np.int64))


def contents(manifest: pd.DataFrame) -> pd.Series:
    """What tells the file of each row from others: its SHA-256, or else path, size and time of change."""

    def state(path: str) -> str:
        status = Path(path).stat()
        return hashlib.sha256(
            f"{Path(path).resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode("utf-8", "surrogateescape")
        ).hexdigest()

    keys = manifest["sha256"].astype(object) if "sha256" in manifest else pd.Series(None, manifest.index, dtype=object)
    missing = manifest.loc[keys.isna(), "path"]
    return keys.where(keys.notna(), missing.map(state)) if len(missing) else keys


def _index(folder: Path) -> pd.DataFrame:
    """Content -> shard and row, of all shards in a folder."""
    parts = []
    for file in sorted(folder.glob("*.keys")):
        keys = file.read_text().split()
        parts.append(pd.DataFrame({"shard": file.stem, "row": range(len(keys))}, index=keys))
    index = pd.concat(parts) if parts else pd.DataFrame({"shard": [], "row": []})
    return index[~index.index.duplicated()]


def _decode_shard(folder: Path, paths: list[str], keys: list[str], size: int, whole: bool, step: int = 64) -> None:
    """Decode files into a new shard: an array, and beside it the keys of its rows, which make it count."""
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        partial = Path(temporary) / "pixels.npy"
        array = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(paths), size, size, 3))
        chunks = [paths[start : start + step] for start in range(0, len(paths), step)]
        jobs = (os.cpu_count() or 1) if len(paths) > 2000 else 1
        found = Parallel(n_jobs=jobs, return_as="generator")(delayed(images.decode_all)(c, size, whole) for c in chunks)
        for number, chunk in enumerate(tqdm(found, total=len(chunks), desc="decoding", leave=False, disable=None)):
            array[number * step : number * step + len(chunk)] = chunk
        array.flush()
        del array
        partial.replace(folder / f"{name}.npy")
        listed = Path(temporary) / "keys"
        listed.write_text("\n".join(keys))
        listed.replace(folder / f"{name}.keys")


class Batches:
    """Pixels and targets of some rows, a batch at a time, in an order that depends on (seed, epoch) alone.

    Parameters
    ----------
    pixels, targets : uint8 ``[n, size, size, 3]``, and name -> float ``[n, k]``.
    batch_size : of the largest batch; all are equally large but for one row.
    rows : int array; numbers of the rows to take; default all.
    """

    def __init__(
        self,
        pixels: Pixels | np.ndarray,
        targets: Mapping[str, np.ndarray],
        batch_size: int,
        *,
        rows: np.ndarray | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ):
        self.pixels, self.targets, self.batch_size = pixels, targets, batch_size
        self.rows = np.arange(len(pixels)) if rows is None else rows
        self.shuffle, self.seed = shuffle, seed

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def order(self, epoch: int = 0) -> list[np.ndarray]:
        """The row numbers of each batch of an epoch."""
        rows = np.random.default_rng([self.seed, epoch]).permutation(self.rows) if self.shuffle else self.rows
        return np.array_split(rows, max(1, len(self)))

    def take(self, rows: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        """Images uint8 ``[n, 3, size, size]`` (channels last in memory) and targets of some rows."""
        x = torch.from_numpy(np.ascontiguousarray(self.pixels[rows])).permute(0, 3, 1, 2)
        return x, {name: torch.from_numpy(values[rows]) for name, values in self.targets.items()}
