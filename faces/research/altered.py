"""Altered pictures: files of their own with rows of their own, so that networks can be asked about them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from faces import images
from faces.research import drawing, evaluation

EYES = ((0.33, 0.40), (0.67, 0.40))  # where eyes are on average in frontal crops, as shares of the side
OF_FILES = ("path", "name", "sha256", "phash", "width", "height")  # columns that an altered file does not share


def zoom(image: Image.Image, factor: float) -> Image.Image:
    """Cut out more tightly (above 1), or more loosely with a black margin (below 1); the size stays."""
    width, height = (max(1, round(side * factor)) for side in image.size)
    canvas = Image.new("RGB", image.size)
    canvas.paste(image.resize((width, height)), ((image.width - width) // 2, (image.height - height) // 2))
    return canvas


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Scale down to a longer side of so many pixels; smaller pictures stay as they are."""
    factor = side / max(image.size)
    return image if factor >= 1 else image.resize([max(1, round(length * factor)) for length in image.size])


def compress(image: Image.Image, quality: int) -> Image.Image:
    """Encode as JPEG of this quality, 1 to 95, and decode again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def wear(image: Image.Image, seed: int, *, eyes: Sequence = EYES, jitter: float = 0.02) -> Image.Image:
    """Draw glasses of a random kind at the eyes, given as shares of the side, or up to about ``jitter`` beside them."""
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big")])
    places = np.array(eyes) + rng.normal(0, jitter, (1, 2)) + rng.normal(0, jitter / 2, (2, 2))
    return drawing.put_on(rng, image, places * image.size, drawing.GLASSES[rng.integers(len(drawing.GLASSES))])


def save(
    photos: pd.DataFrame, folder: Path, change: Callable[[Image.Image, float], Image.Image], values: Sequence
) -> pd.DataFrame:
    """Alter every photo once for each value, and write the results as PNG.

    Parameters
    ----------
    photos : DataFrame
        With ``path``.
    folder : Path
        Where the files go; those that are there already are kept.
    change : callable
        (image, value) -> image, e.g. ``zoom``.
    values : sequence

    Returns
    -------
    DataFrame
        The rows of ``photos`` once for each value, with ``path`` of the altered file and ``value``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for value in values:
        paths = []
        for path in photos["path"]:
            content = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:20]
            paths.append(folder / f"{content}_{change.__name__}_{value}.png")
            if not paths[-1].is_file():
                partial = paths[-1].with_suffix(".partial")
                change(images.open_rgb(path), value).save(partial, "PNG", compress_level=1)
                partial.replace(paths[-1])
        rows = photos.drop(columns=list(OF_FILES), errors="ignore")
        parts.append(rows.assign(path=[str(path) for path in paths], value=value))
    return pd.concat(parts, ignore_index=True)


def with_drawn_glasses(photos: pd.DataFrame, *, share: float, seed: int, folder: Path) -> pd.DataFrame:
    """The photos, and besides a share of the frontal training faces without glasses with glasses drawn onto them."""
    bare = photos[(photos["split"] == "train") & (photos["glasses"] == "no_glasses")]
    bare = bare[bare["pose"] == "frontal"] if "pose" in bare else bare
    drawn = save(bare.sample(frac=share, random_state=seed), folder, wear, [seed])
    return pd.concat([photos, drawn.drop(columns="value").assign(glasses="glasses")], ignore_index=True)


def ask(
    photos: pd.DataFrame,
    *,
    change: str,
    values: Sequence,
    networks: Mapping[str, str],
    number: int,
    seed: int,
    folder: Path,
    cache: Path,
) -> pd.DataFrame:
    """What trained networks answer about photos as one change makes them.

    Parameters
    ----------
    change : str
        Name of a change of this module, e.g. "zoom".
    networks : mapping of str to str
        Name -> folder of its run below ``folder``.
    number : int
        Take so many photos, drawn at random with ``seed``.

    Returns
    -------
    DataFrame
        A row for each network, value and photo, as from ``experiments.predict``, with ``network`` and ``value``.
    """
    from faces.research import experiments  # brings torch, which reading results does without

    rows = save(
        photos.sample(min(number, len(photos)), random_state=seed), folder / "altered", globals()[change], values
    )
    parts = [
        experiments.predict(folder / run, rows, cache=cache).assign(network=name) for name, run in networks.items()
    ]
    return pd.concat(parts, ignore_index=True)


def age_errors(photos: pd.DataFrame, **options) -> pd.DataFrame:
    """Mean absolute error of ages by network and value, with intervals; options as for ``ask``."""
    return mean_errors(ask(photos, **options))


def mean_errors(answers: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute error by network and value: network, value, photos, mean, low, high."""
    rows = []
    for (network, value), part in answers.groupby(["network", "value"], sort=False):
        figures = evaluation.bootstrap((part["age_predicted"] - part["age"]).abs(), part["group"])
        about = {"network": network, "value": value, "photos": len(part)}
        rows.append(about | dict(zip(("mean", "low", "high"), figures, strict=True)))
    return pd.DataFrame(rows)


def hide(pixels: np.ndarray, *, patch: int, stride: int) -> np.ndarray:
    """One image with a grey square over each part in turn: uint8 ``[rows * columns, size, size, 3]``."""
    starts = range(0, len(pixels) - patch + 1, stride)
    hidden = np.repeat(pixels[None], len(starts) ** 2, 0)
    for number, (top, left) in enumerate((top, left) for top in starts for left in starts):
        hidden[number, top : top + patch, left : left + patch] = 128
    return hidden
