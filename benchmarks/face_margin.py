"""How much margin the networks' training crops have around a face: python benchmarks/face_margin.py [--write]

The face finder looks at a sample of the training photos. What it finds there gives ``faces.finding`` its MARGIN (side
of the crop over side of the face) and BELOW (how far the crop's middle lies below the face's, in sides of the face):
the medians over all photos in which exactly one face was found.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from faces import data, finding, images
from faces.files import write_json
from faces.predict import ARTIFACTS, ROOT


def measure(paths: list[str], finder: finding.Finder) -> pd.DataFrame:
    """One row a photo: whether one face was found, the margin about it and the offset of its middle."""
    rows = []
    for path in tqdm(paths, unit="photo", leave=False):
        picture = images.open_rgb(path)
        # As large as crops tend to be: small ones hide their face from the first network.
        if max(picture.size) < 224:
            picture = picture.resize((224, 224 * picture.height // picture.width))
        faces = finder.find(picture)
        row = {"faces": len(faces)}
        if faces:
            face = faces[0]
            side = ((face.right - face.left) * (face.bottom - face.top)) ** 0.5
            row |= {
                "margin": min(picture.size) / side,
                "below": (picture.height - (face.top + face.bottom)) / 2 / side,
                "beside": (picture.width - (face.left + face.right)) / 2 / side,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", type=Path, default=[ROOT / "data" / "utkface", ROOT / "data" / "fairface"])
    parser.add_argument("--photos", type=int, default=1500, help="of each source (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write artifacts/face_finder/margin.json")
    options = parser.parse_args()
    cache = ROOT / "runs" / "cache"
    manifest = data.prepare(options.data, stratify=["gender", "age_group"], seed=options.seed, cache=cache)
    finder, found = finding.Finder(ARTIFACTS / "face_finder", threads=2), {}
    for source, part in manifest[manifest["split"] == "train"].groupby("source"):
        table = measure(part["path"].sample(min(options.photos, len(part)), random_state=options.seed).tolist(), finder)
        alone = table[table["faces"] == 1]
        found[source] = {
            "photos": len(table),
            "one_face": round(float((table["faces"] == 1).mean()), 4),
            "any_face": round(float((table["faces"] > 0).mean()), 4),
            **{
                name: {f"{q:.0%}": round(float(np.quantile(alone[name], q)), 4) for q in (0.1, 0.5, 0.9)}
                for name in ("margin", "below", "beside")
            },
        }
    print(pd.json_normalize(list(found.values())).set_axis(list(found)).T.to_string())
    if options.write:
        print(write_json(ARTIFACTS / "face_finder" / "margin.json", found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
