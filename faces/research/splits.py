"""Frozen splits: which photo of a published data set is on which side, whatever is prepared beside it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd

from faces import data

FOLDER = Path(__file__).resolve().parent.parent.parent / "artifacts" / "splits"
SIDES = ("train", "val", "test")  # a near duplicate gives way to a later side


def name_hash(name: str) -> str:
    """Ten hexadecimal digits for the name of a file."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:10]


def freeze(manifest: pd.DataFrame, folder: str | os.PathLike = FOLDER) -> None:
    """Write the split of each source as a table of name hashes, ``SOURCE.csv``."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for source, part in manifest.groupby("source"):
        table = pd.DataFrame({"name": part["name"].map(name_hash), "split": part["split"]})
        if table["name"].duplicated().any():
            raise ValueError(f"two names of {source} have one hash: take more digits")
        table.sort_values("name").to_csv(Path(folder) / f"{source}.csv", index=False)


def apply(manifest: pd.DataFrame, folder: str | os.PathLike = FOLDER) -> pd.DataFrame:
    """Put the photos of sources with a frozen split where that says, and keep near duplicates on one side.

    Parameters
    ----------
    manifest : DataFrame
        As from ``data.prepare``.
    folder : path
        Of the tables that ``freeze`` wrote.

    Returns
    -------
    DataFrame
        With ``split``. Of a group of near duplicates on several sides those of the last (train, val, test) stay, the
        others are "excluded"; unreadable photos too.
    """
    split = manifest["split"].astype(object).copy()
    for source in manifest["source"].unique():
        file = Path(folder) / f"{source}.csv"
        if file.is_file():
            table = pd.read_csv(file, dtype=str).set_index("name")["split"]
            mine = manifest["source"] == source
            split[mine] = manifest.loc[mine, "name"].map(name_hash).map(table).fillna(split[mine])
    if "error" in manifest:
        split[manifest["error"].notna()] = "excluded"
    rank = split.map({side: number for number, side in enumerate(SIDES)})
    last = rank.groupby(manifest["group"]).transform("max")
    return manifest.assign(split=np.where(rank == last, split, "excluded"))


def prepare(roots, *, folder: str | os.PathLike = FOLDER, **options) -> pd.DataFrame:
    """``data.prepare`` with frozen splits applied."""
    return apply(data.prepare(roots, **options), folder)
