"""How fast `process.py` is, beside merely decoding the same files: python benchmarks/process_speed.py DIR [--write]

  crops   the first --photos photos below DIR (default 10,000), crops of one face each; also with --faces crop
  large   --large photos of twelve megapixels (default 500): pictures without people that ship with scikit-image, one
          to four of the crops laid onto each; made once, kept in runs/large

On either, in turn, several times:

  decode     Pillow opens every file and converts it to RGB, nothing else, in one thread (under Python's global lock
             more threads decode JPEGs no faster)
  TASKS      python process.py --tasks TASKS on the same files, from start to exit, with its own choice of all else
  --quick    likewise, with the small network in front

and the median of each and of their ratios, pair by pair. Also the time from the start of process.py to a finished
result for a single photo, and its peak memory with 1,000 and with --many links to one photo. With --write the figures
go into artifacts/process_speed/metrics.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from faces import images
from faces.files import write_json

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "artifacts" / "process_speed" / "metrics.json"
LARGE = ROOT / "runs" / "large"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
ASKED = ("gender", "gender,age,glasses", "gender --quick", "glasses --quick")
DECODE = """
import sys
from pathlib import Path
from PIL import Image
for path in Path(sys.argv[1]).iterdir():
    Image.open(path).convert("RGB")
"""
# Not getrusage: its peak counts the parent's pages too, from the moment between fork and exec.
PEAK = (
    "import atexit, re, runpy; status = '/proc/self/status';"
    " atexit.register(lambda: print('peak', re.search(r'VmHWM:\\s+(\\d+)', open(status).read())[1]));"
    " runpy.run_path('process.py', run_name='__main__')"
)
# As everywhere else, Python may keep the bytecode of what it imports; without it every start would compile all again.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def timed(*command: str) -> float:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env=ENVIRONMENT, **quiet)
    return time.perf_counter() - started


def process(folder: Path, home: Path, tasks: str, *more: str) -> list[str]:
    return [sys.executable, "process.py", str(folder), "--tasks", *tasks.split(), *more, "-o", str(home / "out.json")]


def photos_below(folder: Path, count: int) -> list[Path]:
    """The first so many photos below a folder, by name."""
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES)
    return list(itertools.islice(found, count))


def link(photos: list[Path], folder: Path) -> Path:
    folder.mkdir()
    for number, photo in enumerate(photos):
        (folder / f"{number:06d}{photo.suffix}").symlink_to(photo.resolve())
    return folder


def compared(folder: Path, home: Path, runs: int, *more: str) -> dict:
    """Photos a second of decoding and of process.py, and their ratio, for each of ``ASKED``.

    ``more`` are further arguments of process.py.
    """
    count, figures = len(list(folder.iterdir())), {}
    for tasks in ASKED:
        timed(*process(folder, home, tasks, *more))  # the first run reads the files from the disk
        pairs = []
        for _ in range(runs):
            decoding = timed(sys.executable, "-c", DECODE, str(folder))
            pairs.append((decoding, timed(*process(folder, home, tasks, *more))))
        decode, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
        figures[tasks] = {
            "photos": count,
            "runs": runs,
            "process_photos_per_s": round(count / whole, 1),
            "decode_photos_per_s": round(count / decode, 1),
            "times_decode": round(statistics.median(b / a for a, b in pairs), 2),
        }
        print(tasks, figures[tasks], flush=True)
    return figures


def large_photos(crops: list[Path], count: int) -> list[Path]:
    """Twelve-megapixel photos with faces in them, made where they are not there yet."""
    import skimage.data
    from face_finders import BACKGROUNDS

    LARGE.mkdir(parents=True, exist_ok=True)
    rng, made = np.random.default_rng(0), []
    grounds = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in BACKGROUNDS]
    for number in tqdm(range(count), unit="photo", leave=False):
        path, some = LARGE / f"{number:04d}.jpg", rng.integers(len(crops), size=int(rng.integers(1, 5)))
        places = [(int(rng.integers(0, 3000)), int(rng.integers(0, 2000)), int(rng.integers(200, 1000))) for _ in some]
        if not path.exists():
            picture = grounds[number % len(grounds)].resize((4000, 3000))
            for crop, (left, top, side) in zip(some, places, strict=True):
                picture.paste(images.square(images.open_rgb(crops[crop]), side), (left, top))
            picture.save(path, quality=90)
        made.append(path)
    return made


def peak(folder: Path, home: Path) -> int:
    """Peak memory of process.py in megabytes."""
    command = [sys.executable, "-c", PEAK, *process(folder, home, "gender,age,glasses")[2:]]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return round(int(done.stdout.split()[-1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=500, help="0 leaves them out")
    parser.add_argument("--many", type=int, default=100_000, help="0 leaves the memory out")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {OUTPUT.relative_to(ROOT)}")
    options = parser.parse_args()
    photos = photos_below(options.folder, options.photos)
    if not photos:
        parser.error(f"no photos below {options.folder}")
    figures: dict = {"machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        crops = link(photos, home / "crops")
        figures["crops"] = compared(crops, home, options.runs)
        figures["known_crops"] = compared(crops, home, options.runs, "--faces", "crop")
        if options.large:
            large = link(large_photos(photos, options.large), home / "large")
            figures["large"] = compared(large, home, options.runs)
        one = link(photos[:1], home / "one")
        start = [timed(*process(one, home, "gender")) for _ in range(5 * options.runs)]
        figures["first_result_s"] = round(statistics.median(start), 2)
        if options.many:
            figures["peak_memory_mb"] = {
                str(count): peak(link(photos[:1] * count, home / f"many-{count}"), home)
                for count in (1000, options.many)
            }
    print(json.dumps(figures, indent=2))
    if options.write:
        print(write_json(OUTPUT, figures).relative_to(ROOT))


if __name__ == "__main__":
    main()
