"""How fast `process.py` is, beside merely decoding the same files: python benchmarks/process_speed.py DIR

Takes the first --photos photos below DIR (default 5,000), runs in turn, several times,

  decode    Pillow opens every file and converts it to RGB, nothing else, in one thread (under Python's global lock
            more threads decode JPEGs no faster)
  process   python process.py on a folder of links to the same files, from start to exit

and reports the median of each and of their ratios, pair by pair; and the time from the start of process.py to a
finished result for a single photo. With --write the figures go into artifacts/MODEL/metrics.json as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faces.files import write_json

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
DECODE = """
import sys
from pathlib import Path
from PIL import Image
for path in Path(sys.argv[1]).iterdir():
    Image.open(path).convert("RGB")
"""


def timed(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def link(photos: list[Path], folder: Path) -> Path:
    folder.mkdir()
    for number, photo in enumerate(photos):
        (folder / f"{number:06d}{photo.suffix}").symlink_to(photo.resolve())
    return folder


def measure(photos: list[Path], model: str, runs: int) -> dict:
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        many, one = link(photos, home / "many"), link(photos[:1], home / "one")
        process = [sys.executable, "process.py", "--model", model, "--output", str(home / "out.json")]
        timed(*process, str(many))  # the first run reads the files from the disk
        pairs = [(timed(sys.executable, "-c", DECODE, str(many)), timed(*process, str(many))) for _ in range(runs)]
        start = [timed(*process, str(one)) for _ in range(runs)]
    decode, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "photos": len(photos),
        "runs": runs,
        "process_photos_per_s": round(len(photos) / whole),
        "decode_photos_per_s": round(len(photos) / decode),
        "times_decode": round(statistics.median(b / a for a, b in pairs), 2),
        "first_result_s": round(statistics.median(start), 2),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=5000)
    parser.add_argument("--model", default="gender_cnn")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="add the figures to artifacts/MODEL/metrics.json")
    options = parser.parse_args()
    found = (path for path in sorted(options.folder.rglob("*")) if path.suffix.lower() in SUFFIXES)
    photos = list(itertools.islice(found, options.photos))
    if not photos:
        parser.error(f"no photos below {options.folder}")
    figures = measure(photos, options.model, options.runs)
    print(json.dumps(figures, indent=2))
    if options.write:
        path = ROOT / "artifacts" / options.model / "metrics.json"
        about = json.loads(path.read_text(encoding="utf-8")) | {"process_speed": figures}
        write_json(path, about)


if __name__ == "__main__":
    main()
