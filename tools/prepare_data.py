"""Turn the official downloads of the data sets into the folders that the published runs read.

    python tools/prepare_data.py utkface  UTKFace/            data/utkface
    python tools/prepare_data.py fairface fairface/           data/fairface
    python tools/prepare_data.py mtfl     MTFL/               data/glasses
    python tools/prepare_data.py simpsons simpsons_dataset/   data/simpsons

Unpack a download first (docs/data.md says where to ask for each). Photos are scaled and encoded as those of the
published runs were. Their names are compared with the hashed names of the published split; a download that lacks some
of them is refused, unless --partial says that fewer will do.

Tried on drawn folders in the official layouts, and not on the originals. What the published photos do not tell: the
exact crop of MTFL's faces (here around the five landmarks, as they lie in the published crops on average), the
resampling filter, how the grey pictures of the Simpsons were brought to a square, and which of their pictures have
which number. Figures on photos made here can therefore differ a little from the published ones.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image, ImageOps
from tqdm import tqdm

from faces.images import SUFFIXES
from faces.research import data

FAIRFACE_PHOTOS = {"train": 40_000, "val": 5_000}  # of the official 86,744 and 10,954: the first ones by number
# Of the landmarks in a published crop: their extent, and where their middle lies.
POINTS_WIDTH, POINTS_TOP = 0.384, 0.545
COLOR6 = ("abraham_grampa_simpson", "bart_simpson", "homer_simpson", "lisa_simpson", "maggie_simpson", "marge_simpson")
GRAY14 = (
    *("abraham_grampa_simpson", "apu_nahasapeemapetilon", "bart_simpson", "charles_montgomery_burns", "chief_wiggum"),
    *("homer_simpson", "krusty_the_clown", "lisa_simpson", "marge_simpson", "milhouse_van_houten", "moe_szyslak"),
    *("ned_flanders", "principal_skinner", "sideshow_bob"),
)
POSES = ("left_profile", "left", "frontal", "right", "right_profile")


class Refused(ValueError):
    """The folder is not the download that it should be."""


class Photo(NamedTuple):
    """A photo to write: where it is, its name below the target, how it is changed, how it is encoded."""

    path: Path
    name: str
    change: Callable[[Image.Image], Image.Image]
    quality: int


def squared(size: int) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.resize((size, size), Image.Resampling.LANCZOS)


def utkface(folder: Path, **_: bool) -> tuple[list[Photo], dict[str, str]]:
    """Aligned and cropped faces, in one folder or in parts."""
    paths = [path for path in sorted(folder.rglob("*.jpg")) if data.UTKFACE_NAME.match(path.name)]
    if not paths:
        raise Refused(f"{folder} holds no photo named as UTKFace's are: AGE_GENDER_RACE_DATE.jpg.chip.jpg")
    return [Photo(path, path.name, squared(128), 85) for path in paths], {}


def fairface(folder: Path, *, partial: bool = False) -> tuple[list[Photo], dict[str, str]]:
    """``fairface_label_train.csv`` and ``fairface_label_val.csv`` beside ``train`` and ``val``."""
    photos, kept, heading = [], [], ["file", "age", "gender", "race", "service_test"]
    for part, count in FAIRFACE_PHOTOS.items():
        table = folder / f"fairface_label_{part}.csv"
        if not table.is_file():
            raise Refused(f"{table} is missing: download the labels beside the photos")
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if list(reader.fieldnames or ()) != heading:
                raise Refused(f"{table} has the columns {reader.fieldnames}, and not {heading}")
            rows = sorted((row for row in reader), key=lambda row: _number(row["file"], table))[:count]
        missing = [row["file"] for row in rows if not (folder / row["file"]).is_file()]
        if missing and not partial:
            raise Refused(f"{len(missing)} photos that {table} names are missing, the first is {missing[0]}")
        rows = [row for row in rows if row["file"] not in set(missing)]
        names = [str(Path(row["file"]).with_suffix(".webp").as_posix()) for row in rows]
        photos += [Photo(folder / row["file"], name, squared(112), 80) for row, name in zip(rows, names, strict=True)]
        kept += [row | {"file": name} for row, name in zip(rows, names, strict=True)]
    return photos, {"fairface_label.csv": _csv(heading, kept)}


def _number(name: str, table: Path) -> int:
    if not Path(name).stem.isdigit():
        raise Refused(f"{table}: {name!r} is not named by a number, as FairFace's photos are")
    return int(Path(name).stem)


def mtfl(folder: Path, *, partial: bool = False) -> tuple[list[Photo], dict[str, str]]:
    """``training.txt`` and ``testing.txt`` beside ``AFLW``, ``lfw_5590`` and ``net_7876``."""
    photos, kept = [], []
    for part, table in (("train", folder / "training.txt"), ("test", folder / "testing.txt")):
        if not table.is_file():
            raise Refused(f"{table} is missing: name the folder that MTFL.zip unpacks to")
        for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
            cells = line.split()
            if not cells:
                continue
            try:
                points = [float(cell) for cell in cells[1:11]]
                gender, smile, glasses, pose = (int(cell) for cell in cells[11:])
                labels = {
                    "glasses": ("glasses", "no_glasses")[glasses - 1],
                    "gender": ("male", "female")[gender - 1],
                    "smile": ("smiling", "not_smiling")[smile - 1],
                    "pose": POSES[pose - 1],
                }
            except (ValueError, IndexError):
                raise Refused(f"{table}, line {number} is not a file, ten coordinates and four labels") from None
            source, _, file = cells[0].replace("\\", "/").rpartition("/")
            path = folder / source / file
            if not path.is_file():
                if partial:
                    continue
                raise Refused(f"{path} is missing, which {table} names in line {number}")
            name = f"{part}/{labels['glasses']}/{source}__{file}"
            photos.append(Photo(path, name, _around(points), 82))
            kept.append({"path": name, "split": part, "source": source, "group": _person(source, file), **labels})
    return photos, {"labels.csv": _csv(list(kept[0]) if kept else ["path"], kept)}


def _around(points: list[float]) -> Callable[[Image.Image], Image.Image]:
    """Cut a square so that the landmarks lie in it as they do in the published crops on average."""
    across, down = points[:5], points[5:]
    side = max(max(across) - min(across), max(down) - min(down)) / POINTS_WIDTH
    left, top = sum(across) / 5 - side / 2, sum(down) / 5 - side * POINTS_TOP
    box = (left, top, left + side, top + side)
    return lambda picture: picture.transform((96, 96), Image.Transform.EXTENT, box, Image.Resampling.BICUBIC)


def _person(source: str, file: str) -> str:
    """What photos of one person or of one original share."""
    stem = Path(file).stem
    if source == "lfw_5590":
        return f"lfw:{re.sub(r'_[0-9]+$', '', stem)}"
    return f"net:{stem.split('_')[0]}" if source == "net_7876" else f"{source.lower()}:{stem.split('-')[-1]}"


def simpsons(folder: Path, **_: bool) -> tuple[list[Photo], dict[str, str]]:
    """A folder a character; six of them in colour, fourteen in grey."""
    homes = {path.name: path for path in sorted(folder.rglob("*")) if path.is_dir() and path.name in GRAY14 + COLOR6}
    if missing := sorted({*COLOR6, *GRAY14} - homes.keys()):
        raise Refused(f"{folder} has no folder {', '.join(missing)}: name the folder of all characters")
    return [*_characters(homes, "color6", COLOR6, _long_side, 85), *_characters(homes, "gray14", GRAY14, _grey, 88)], {}


def _characters(
    homes: dict[str, Path], name: str, characters: tuple, change: Callable, quality: int
) -> Iterator[Photo]:
    for character in characters:
        for path in sorted(homes[character].iterdir()):
            if path.suffix.lower() in SUFFIXES:
                yield Photo(path, f"{name}/{character}/{path.stem}.jpg", change, quality)


def _long_side(picture: Image.Image) -> Image.Image:
    return ImageOps.contain(picture, (104, 104), Image.Resampling.LANCZOS)


def _grey(picture: Image.Image) -> Image.Image:
    return squared(64)(picture.convert("L"))


def _csv(heading: list[str], rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, heading, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


SETS = {"utkface": (utkface, "utkface"), "fairface": (fairface, "fairface"), "mtfl": (mtfl, "glasses")}
SETS["simpsons"] = (simpsons, "")


def lacking(photos: list[Photo], source: str) -> tuple[int, int]:
    """Published photos that are not among these, and photos that were not published."""
    table = pd.read_parquet(data.PUBLISHED_SPLITS).query("source == @source")
    here = data.photo_hashes(pd.DataFrame({"source": source, "name": [photo.name for photo in photos]}))
    return int((~table["photo"].isin(here)).sum()), int((~here.isin(table["photo"])).sum())


def write(photos: list[Photo], tables: dict[str, str], target: Path) -> None:
    """Write a folder as a whole or not at all."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for photo in tqdm(photos, unit="photo", disable=None):
        place = partial / photo.name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with Image.open(photo.path) as picture:
                photo.change(ImageOps.exif_transpose(picture).convert("RGB")).save(place, quality=photo.quality)
        except (OSError, SyntaxError) as error:
            raise Refused(f"{photo.path} cannot be read: {error}; download it anew") from None
    for name, text in tables.items():
        (partial / name).write_text(text, encoding="utf-8")
    partial.replace(target)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, or 2 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("download", type=Path, metavar="DOWNLOAD", help="folder that the download was unpacked to")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder to write; must not exist yet")
    parser.add_argument(
        "--partial", action="store_true", help="take what is there, though published photos are missing"
    )
    options = parser.parse_args(argv)
    layout, source = SETS[options.set]
    try:
        if options.target.exists():
            raise Refused(f"{options.target} is there already: name another folder, or move it away")
        if not options.download.is_dir():
            raise Refused(f"no such folder: {options.download}; unpack the download first")
        photos, tables = layout(options.download, partial=options.partial)
        missing, more = lacking(photos, source) if source else (0, 0)
        if missing and not options.partial:
            raise Refused(
                f"{options.download} lacks {missing:,} of the published photos (and has {more:,} others): unpack all "
                "parts of the official download, or take what is there with --partial"
            )
        write(photos, tables, options.target)
    except (Refused, OSError) as error:
        print(f"prepare_data.py: {error}", file=sys.stderr)
        return 2
    print(
        f"{len(photos):,} photos written to {options.target}" + f"; {missing:,} published ones missing" * bool(missing)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
