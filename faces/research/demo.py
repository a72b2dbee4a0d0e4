"""Drawn faces with labels, so that every notebook runs without data and without a network.

`make` writes a folder of cartoon faces (`faces.research.drawing`) in the layout of a public data set:

    python -m faces.research.demo data/demo --n 400 --layout utkface

The cues for gender overlap on purpose (some men wear their hair long, small children look alike), so that a
classifier has something to learn and something to get wrong. What drawings yield says nothing about photos.
"""

import argparse
import csv
import datetime
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from faces.research.drawing import GENDERS, GLASSES, SKINS, draw_face

SETTINGS_FILE = ".demo.json"
# fmt: off
FAIRFACE_AGES = ((3, "0-2"), (10, "3-9"), (20, "10-19"), (30, "20-29"), (40, "30-39"), (50, "40-49"),
                 (60, "50-59"), (70, "60-69"), (999, "more than 70"))
# fmt: on


def _encode(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _person(seed, index, size):
    """One labelled face; it rests on `seed` and `index` alone, so larger sets hold the smaller ones."""
    rng = np.random.default_rng([seed, index])
    # Broad and thinning out with age, with heaps at 1 and 26 as scraped sets have them.
    ages = 1, 26, rng.integers(1, 86), np.clip(rng.normal(33, 13), 1, 85)
    age, gender = int(rng.choice(np.array(ages), p=[0.05, 0.06, 0.49, 0.40])), GENDERS[rng.integers(2)]
    glasses = GLASSES[rng.choice(4, p=[0.40, 0.40, 0.14, 0.06])] if rng.random() < 0.25 else None
    skin = int(rng.integers(len(SKINS)))
    image = draw_face(rng, gender, age, glasses=glasses, skin=skin, size=size)
    return {"gender": gender, "age": age, "skin": skin, "glasses": glasses, "jpeg": _encode(image, 92)}


def _near_copy(rng, face):
    """The same face as another site would serve it: cropped by 1 to 3 pixels, compressed again."""
    image = Image.open(io.BytesIO(face["jpeg"]))
    left, top, right, bottom = (int(k) for k in rng.integers(1, 4, 4))
    cropped = image.resize(image.size, box=(left, top, image.width - right, image.height - bottom))
    return {**face, "jpeg": _encode(cropped, int(rng.integers(60, 88)))}


def _flaws(rng, faces, broken, conflicts):
    """What real sets suffer from: exact copies (some mislabelled), near copies, a truncated file."""
    exact, near = max(1, round(0.02 * len(faces))), max(1, round(0.03 * len(faces)))
    picks = rng.choice(len(faces), exact + near, replace=exact + near > len(faces))
    copies = [dict(faces[i]) for i in picks[:exact]]
    if conflicts:
        copies[0]["age"] += 9 if copies[0]["age"] < 60 else -9
        copies[-1]["gender"] = GENDERS[copies[-1]["gender"] == "female"]
    cut = {**broken, "jpeg": broken["jpeg"][: len(broken["jpeg"]) // 3]}
    return copies + [_near_copy(rng, faces[i]) for i in picks[exact:]] + [cut]


# Each layout turns faces into their file names, and the name and rows of its label file, if it has one.


def _utkface(faces, rng):
    taken, names = datetime.datetime(2017, 1, 16, 17, 45), []
    for face in faces:
        taken += datetime.timedelta(milliseconds=int(rng.integers(500, 90_000)))
        stamp = f"{taken:%Y%m%d%H%M%S}{taken.microsecond // 1000:03d}"
        gender, race = int(face["gender"] == "female"), SKINS[face["skin"]][1]
        names.append(f"{face['age']}_{gender}_{race}_{stamp}.jpg.chip.jpg")
    return names, None, []


def _class_folders(faces, rng):
    return [f"{face['gender']}/{i:04d}.jpg" for i, face in enumerate(faces)], None, []


def _age_csv(faces, rng):
    rows = [{"file_name": f"{i:06d}.jpg", "real_age": face["age"]} for i, face in enumerate(faces)]
    return [f"final_files/{row['file_name']}" for row in rows], "labels.csv", rows


def _fairface(faces, rng):
    rows = []
    for i, face in enumerate(faces):
        name = f"val/{i // 6 + 1}.jpg" if i % 6 == 5 else f"train/{i - i // 6 + 1}.jpg"
        bucket = next(bucket for end, bucket in FAIRFACE_AGES if face["age"] < end)
        labels = {"age": bucket, "gender": face["gender"].capitalize(), "race": SKINS[face["skin"]][2]}
        rows.append({"file": name, **labels, "service_test": bool(rng.random() < 0.5)})
    return [row["file"] for row in rows], "fairface_label.csv", rows


def _glasses(faces, rng):
    rows = []
    for i, face in enumerate(faces):
        split, worn = ("test" if i % 4 == 3 else "train"), ("glasses" if face["glasses"] else "no_glasses")
        labels = {"split": split, "glasses": worn, "gender": face["gender"], "pose": "frontal"}
        rows.append({"path": f"{split}/{worn}/{i:04d}.jpg", **labels})
    return [row["path"] for row in rows], "labels.csv", rows


LAYOUTS = {"utkface": _utkface, "class_folders": _class_folders, "age_csv": _age_csv, "fairface": _fairface}
LAYOUTS["glasses"] = _glasses


def _write(root, faces, names, table, rows):
    for name, face in zip(names, faces, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(face["jpeg"])
    if table:
        with (root / table).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _already_made(folder, settings):
    """True if `folder` holds this very set, False if it is free; anything else in it is not ours to touch."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / SETTINGS_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        found = None
    if found != settings:
        what = "files that are no demo set" if found is None else f"a demo set with other settings, {found}"
        raise FileExistsError(f"{folder} holds {what}. Nothing changed: name another folder or remove it.")
    return True


def make(folder, n=400, seed=0, *, layout="utkface", size=128, flaws=True):
    """Write a folder of labelled drawn faces in the layout of a public data set.

    The same settings give the same files, byte for byte under one version of Pillow and numpy. The set is
    written beside `folder` and then renamed, so that an interrupted run leaves no half set under its name.

    Parameters
    ----------
    folder : made if missing, and returned. If it holds this set already, nothing is written.
    n, seed : number of distinct faces; not negative.
    layout : a key of `LAYOUTS`: names and label files as the public sets have them; `age_csv` has no gender column.
    size : width and height in pixels.
    flaws : add on top what real sets suffer from: 2% exact copies (in `utkface` one with another age, one with another
        gender), 3% near copies (cropped by 1 to 3 pixels, compressed again), at least one each, and one truncated
        file.

    Raises
    ------
    ValueError : for an unknown layout, or `n` below 1.
    FileExistsError : if `folder` holds anything else. Nothing is deleted.

    >>> with tempfile.TemporaryDirectory() as home:
    ...     photos = make(f"{home}/demo", n=2, size=32, layout="class_folders")
    ...     print(sorted(path.name for path in photos.iterdir() if path.is_dir()))
    ['female', 'male']
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    if n < 1:
        raise ValueError(f"n is {n}; at least one face is needed")
    folder = Path(folder)
    settings = {"version": 1, "n": n, "seed": seed, "layout": layout, "size": size, "flaws": flaws}
    if _already_made(folder, settings):
        return folder
    rng = np.random.default_rng([seed, n])
    faces = [_person(seed, i, size) for i in range(n)]
    if flaws:
        faces += _flaws(rng, faces, _person(seed, n, size), layout == "utkface")
    faces = [faces[i] for i in rng.permutation(len(faces))]

    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write(unfinished, faces, *LAYOUTS[layout](faces, rng))
        (unfinished / SETTINGS_FILE).write_text(json.dumps(settings) + "\n", "utf-8")
        unfinished.chmod(0o755)  # mkdtemp hides it from everyone else
        try:
            if target.exists():
                target.rmdir()  # empty, as checked above; Windows does not rename over it
            unfinished.rename(target)
        except OSError:
            if not _already_made(folder, settings):  # else another process was quicker with the same set
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def main(argv=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="faces demo", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=400, help="distinct faces (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=LAYOUTS, default="utkface", help="(default %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default %(default)s)")
    parser.add_argument("--no-flaws", action="store_true", help="no copies and no broken file")
    a = parser.parse_args(argv)
    try:
        print(make(a.folder, a.n, a.seed, layout=a.layout, size=a.size, flaws=not a.no_flaws))
    except (ValueError, FileExistsError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
