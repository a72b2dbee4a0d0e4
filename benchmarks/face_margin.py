"""Where the training crops have their face, as the detector sees it: python benchmarks/face_margin.py [--write]

Each crop is searched twice: pasted into a black picture of twice its size, which gives ``faces.finding`` MARGIN (side
of the crop over side of the face) and BELOW (how far the crop's middle lies below the face's, over side of the face)
for cutting; and alone, which gives CROP_MARGIN and CROP_OFFSET for recognising crops. Quantiles over the crops with
exactly one face.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from faces import finding, images
from faces.files import write_json
from faces.predict import ARTIFACTS, ROOT
from faces.research import data

SOURCES = [ROOT / "data" / name for name in ("fairface", "utkface", "glasses")]


def measure(paths: list[str], detector: finding.Detector, *, framed: bool) -> dict:
    """Share of crops with one face and with any, and quantiles of where it lies."""
    rows = []
    for path in tqdm(paths, unit="crop", leave=False):
        picture = crop = images.open_rgb(path)
        if framed:
            picture = Image.new("RGB", (2 * crop.width, 2 * crop.height))
            picture.paste(crop, (crop.width // 2, crop.height // 2))
        faces = detector.find(picture)
        row = {"faces": len(faces)}
        if len(faces) == 1:
            [face] = faces
            row["margin"] = min(crop.size) / face.side
            row["below"] = (picture.height - face.top - face.bottom) / 2 / face.side
            row["beside"] = (picture.width - face.left - face.right) / 2 / face.side
        rows.append(row)
    table = pd.DataFrame(rows)
    shares = {"one_face": (table["faces"] == 1).mean(), "any_face": (table["faces"] > 0).mean()}
    quantiles = {
        name: {f"{q:.0%}": round(float(np.nanquantile(table[name], q)), 4) for q in (0.02, 0.1, 0.5, 0.9, 0.98)}
        for name in ("margin", "below", "beside")
    }
    return {"crops": len(table)} | {name: round(float(share), 4) for name, share in shares.items()} | quantiles


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", type=Path, default=SOURCES)
    parser.add_argument("--crops", type=int, default=1000, help="of each source (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write artifacts/face_finder/margin.json")
    options = parser.parse_args()
    detector, found = finding.Detector(ARTIFACTS / "face_finder"), {}
    for folder in options.data:
        paths = data.read(folder)["path"]
        paths = paths.sample(min(options.crops, len(paths)), random_state=options.seed).tolist()
        found[folder.name] = {name: measure(paths, detector, framed=name == "framed") for name in ("framed", "alone")}
    print(pd.json_normalize(list(found.values())).set_axis(list(found)).T.to_string())
    if options.write:
        print(write_json(ARTIFACTS / "face_finder" / "margin.json", found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
