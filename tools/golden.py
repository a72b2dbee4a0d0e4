"""Golden answers: what every published model says of 1,000 fixed pictures, and the published split of every photo.

    python tools/golden.py check            # compare all models with the recorded answers
    python tools/golden.py record [MODEL…]  # record them anew, after a model was published
    python tools/golden.py split DIR…       # add the split of a data set to the published table; no photo in it moves

A picture is a public portrait, its mirror image, or a drawn face. Answers are kept in ``tests/golden``, splits where
``faces.research.data`` reads them.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from faces import images, predict  # noqa: E402
from faces.research import data, demo, drawing  # noqa: E402

ANSWERS = ROOT / "tests/golden/answers.parquet"
PICTURES = 1000
PROBABILITY, YEARS, MARGIN = 1e-4, 0.01, 1e-3  # largest differences; labels are compared where the margin is larger
# The kernels for 8 bits differ between processors: without VNNI instructions sums saturate at 16 bits.
PROBABILITY_INT8, YEARS_INT8, MARGIN_INT8 = 0.1, 4.0, 0.2


@functools.cache
def squares(size: int, whole: bool, step: int = 1) -> np.ndarray:
    """Every ``step``-th of the fixed pictures as squares: uint8 ``[n, size, size, 3]``."""
    return np.stack([images.frames(picture(n), [images.Frame(size, whole)])[0] for n in range(0, PICTURES, step)])


@functools.cache
def picture(number: int) -> Image.Image:
    """One of the fixed pictures."""
    portraits = sorted((ROOT / "samples/portraits").glob("*/*.jpg"))
    if number < 2 * len(portraits):
        portrait = Image.open(portraits[number // 2]).convert("RGB")
        return ImageOps.mirror(portrait) if number % 2 else portrait
    rng = np.random.default_rng([7, number])
    gender, age = demo.GENDERS[rng.integers(2)], int(rng.integers(1, 90))
    glasses = drawing.GLASSES[rng.integers(4)] if rng.random() < 0.3 else None
    return drawing.draw_face(rng, gender, age, glasses=glasses)


def published() -> list[str]:
    """The names of the models in ``artifacts/`` that answer pictures."""
    return sorted(
        path.parent.name for path in predict.ARTIFACTS.glob("*/model.onnx") if path.parent.name != "face_finder"
    )


def answers(model: str, step: int = 1) -> np.ndarray:
    """What a published model says of every ``step``-th picture, its heads side by side: float32 ``[n, outputs]``."""
    network = predict.Model(model)
    pixels = squares(*network.frame, step)
    parts = [network.answers(part) for part in np.array_split(pixels, max(1, len(pixels) // 16))]
    return np.concatenate([np.hstack(list(part.values())) for part in parts])


def recorded(model: str, step: int = 1) -> np.ndarray:
    """The recorded answers; KeyError where there are none."""
    table = pd.read_parquet(ANSWERS)
    if not (table["model"] == model).any():
        raise KeyError(f"no golden answers of {model}: python tools/golden.py record {model}")
    return np.stack(table.loc[table["model"] == model, "answer"])[::step]


def differences(model: str, now: np.ndarray, before: np.ndarray) -> list[str]:
    """What is not as recorded, a sentence each; empty where all is well."""
    if now.shape != before.shape:
        return [f"{model} answers with {now.shape[1:]}, recorded are {before.shape[1:]}"]
    heads = list(predict.Model(model).heads.values())
    cuts = np.cumsum([head.width for head in heads])[:-1]
    parts = zip(heads, np.split(now, cuts, axis=1), np.split(before, cuts, axis=1), strict=True)
    return [line for head, *answers in parts for line in _differences(model, head, *answers)]


def _differences(model: str, head: predict.Head, now: np.ndarray, before: np.ndarray) -> list[str]:
    int8, found = model.endswith("_int8"), []
    exact, eight_bits = (PROBABILITY, PROBABILITY_INT8) if head.classes else (YEARS, YEARS_INT8)
    bound = eight_bits if int8 else exact
    if (worst := float(np.abs(now - before).max())) > bound:
        found.append(f"{model}, {head.name}: an answer differs by {worst:.5f}, allowed are {bound}")
    if head.classes:
        ranked = np.sort(before, 1)
        clear = ranked[:, -1] - ranked[:, -2] > (MARGIN_INT8 if int8 else MARGIN)
        if changed := int((now.argmax(1) != before.argmax(1))[clear].sum()):
            found.append(f"{model}, {head.name}: {changed} labels changed")
    return found


def record(models: Sequence[str]) -> None:
    """Write the answers of some models, and keep those of the others that are still published."""
    kept = pd.read_parquet(ANSWERS) if ANSWERS.is_file() else pd.DataFrame(columns=["model", "answer"])
    kept = kept[kept["model"].isin(published()) & ~kept["model"].isin(models)]
    new = [pd.DataFrame({"model": model, "answer": list(answers(model))}) for model in models]
    table = pd.concat([kept, *new]).sort_values("model", kind="stable", ignore_index=True)
    table.to_parquet(ANSWERS, compression="zstd")


def add_split(folders: Sequence[str]) -> None:
    """Split data sets by near-duplicate groups and add them to the published table."""
    manifest = data.split(
        data.group(data.scan(data.read(folders))), stratify=["gender", "age_group", "glasses", "label"]
    )
    table = pd.read_parquet(data.PUBLISHED_SPLITS)
    new = manifest.assign(photo=data.photo_hashes(manifest))[["source", "photo", "split"]]
    new = new[~new["source"].isin(table["source"])]
    table = pd.concat([table, new]).sort_values(["source", "photo"]).astype({"source": "category", "split": "category"})
    table.to_parquet(data.PUBLISHED_SPLITS, compression="zstd", index=False)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, or 1 where answers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("check", "record", "split"))
    parser.add_argument("names", nargs="*", help="models (default: all that are published), or folders to split")
    options = parser.parse_args(argv)
    if options.action == "split":
        add_split(options.names)
        return 0
    models = options.names or published()
    if options.action == "record":
        record(models)
        return 0
    wrong = [line for model in models for line in differences(model, answers(model), recorded(model))]
    print("\n".join(wrong) or f"{', '.join(models)}: as recorded")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
