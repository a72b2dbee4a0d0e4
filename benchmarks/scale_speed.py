"""What a worker of faces.scale does, and how far two do twice as much: python benchmarks/scale_speed.py DIR [--write]

On links to the first --photos photos below DIR, every run a command of its own, --runs times in turn:

  process    python process.py, from start to exit
  WORKERS    python -m faces.scale --workers WORKERS on the same files, from start to exit

and of these the medians. Ray takes long to start, so the rate is taken from the times at which the workers had a batch
ready: from when the last of them had its first until the first of them had its last. The start is what the whole run
took beyond so many photos at that rate. Each worker decodes and answers in one thread, but Ray's own processes want
some of the same cores: with as many workers as cores that is part of what a photo costs, and with fewer it is not, so
the speed-up is somewhat less than that of the workers alone.

Every run must have answered for every photo, workers of any number alike, and as process.py does: the same faces and
labels, and numbers that differ by no more than their rounding (a worker asks about one photo at a time, process.py
about sixteen, and then sums are added up in another order). With --write the figures go into
artifacts/process_speed/scaling.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from process_speed import ASKED, ROOT, link, photos_below
from pyarrow import parquet

from faces.files import write_json

OUTPUT = ROOT / "artifacts" / "process_speed" / "scaling.json"
# python -m faces.scale, whose workers note down when they had answered for how many photos.
NOTED = """
import os, sys, time
from faces import scale

class Noted(scale.Worker):
    notes = sys.argv.pop()

    def __call__(self, batch):
        rows = super().__call__(batch)
        with open(f"{self.notes}/{os.getpid()}", "a") as file:
            print(time.time(), len(batch["file"]), file=file)
        return rows

scale.Worker = Noted
sys.exit(scale.main())
"""

# (file, number of the face in it) -> the row about it
Rows = dict[tuple[str, int | None], dict]


def read_rows(paths: Iterable[Path]) -> Rows:
    """The rows of some Parquet files; SystemExit where one comes twice, or a file could not be read."""
    found = [row for path in paths for row in parquet.read_table(path).to_pylist()]
    broken = [row["file"] for row in found if row.pop("error", None)]
    if broken:
        sys.exit(f"{len(broken)} files could not be read, {broken[0]} the first: this is about those that can")
    rows = {(row["file"], row["face"]): row for row in found}
    if len(rows) < len(found):
        sys.exit(f"{len(found) - len(rows)} rows came twice")
    return rows


def step_of(column: str) -> float:
    """The last digit that a column of numbers is rounded to."""
    if column.endswith(("_low", "_high")):
        return 1
    return 1e-4 if column.endswith(("_probability", "score")) else 0.1


def compare(ours: Rows, wanted: Rows) -> dict[str, float]:
    """Largest difference in each column of numbers; SystemExit where there is another row or label, or a larger one."""
    if ours.keys() != wanted.keys():
        sys.exit(f"{len(ours.keys() ^ wanted.keys())} faces were found by one and not by the other")
    largest: dict[str, float] = {}
    for key, row in wanted.items():
        for column in row.keys() - {"file", "face"}:
            value, other = row[column], ours[key][column]
            if not isinstance(value, int | float) or other is None:
                if other != value:
                    sys.exit(f"{key[0]}: {column} is {other!r} and not {value!r}")
                continue
            difference = abs(other - value)
            if difference > 1.5 * step_of(column):
                sys.exit(f"{key[0]}: {column} is {other} and not {value}")
            largest[column] = max(largest.get(column, 0.0), round(difference, 4))
    return dict(sorted(largest.items()))


def timed(*command: str) -> float:
    """Seconds that a command takes; SystemExit with the last it said where it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
    took = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}\na run failed with exit status {done.returncode}")
    return took


def rate_of(notes: Path, workers: int) -> float:
    """Photos a second while all workers were at work, from what they noted down."""
    found = [np.loadtxt(path, ndmin=2).T for path in notes.iterdir()]
    began, ended = max((times[0] for times, _ in found), default=0), min((times[-1] for times, _ in found), default=0)
    if len(found) != workers or ended <= began:
        sys.exit(f"{len(found)} of {workers} workers had something to do, or only by turns: more photos are needed")
    # A batch is spread evenly over the time that it took, so that it does not matter where the times cut it.
    photos = (np.diff(np.interp([began, ended], times, counts.cumsum())) for times, counts in found)
    return float(sum(photos)[0] / (ended - began))


def measure(tasks: str, folder: Path, home: Path, workers: list[int], runs: int) -> dict:
    """All runs of one choice of tasks, in turn."""
    count = len(list(folder.iterdir()))
    output, said, notes = home / "out.parquet", home / "rows", home / "notes"
    asked = [str(folder), "--tasks", *tasks.split()]
    process = [sys.executable, "process.py", *asked, "--format", "parquet", "--output", str(output)]
    scale = [sys.executable, "-c", NOTED, *asked, str(said)]
    timed(*process)  # the first run reads the files from the disk
    wanted = read_rows([output])
    first, largest, seconds, rates = None, {}, defaultdict(list), defaultdict(list)
    for _ in range(runs):
        seconds[0].append(timed(*process))
        for number in workers:
            for place in (said, notes):
                shutil.rmtree(place, ignore_errors=True)
            notes.mkdir()
            seconds[number].append(timed(*scale, "--workers", str(number), str(notes)))
            rates[number].append(rate_of(notes, number))
            rows = read_rows(said.glob("*.parquet"))
            largest, first = compare(rows, wanted), first or rows
            if rows != first:
                sys.exit(f"{number} workers do not say what {workers[0]} said")
            print(f"{tasks}, workers {number}: {seconds[number][-1]:.1f} s, {rates[number][-1]:.1f}/s", flush=True)
    took = {number: statistics.median(some) for number, some in seconds.items()}
    rate = {number: statistics.median(some) for number, some in rates.items()}
    figures = {}
    for number in workers:
        more = rate[number] / rate[workers[0]]
        figures[str(number)] = {
            "seconds": round(took[number], 2),
            "start_s": round(took[number] - count / rate[number], 2),
            "photos_per_s": round(rate[number], 1),
            "core_s_a_photo": float(f"{number / rate[number]:.3g}"),
            "speed_up": round(more, 2),
            "efficiency": round(more / (number / workers[0]), 3),
        }
    return {
        "process": {"seconds": round(took[0], 2), "photos_per_s": round(count / took[0], 1)},
        "workers": figures,
        "rows": {"compared": len(wanted), "largest_difference": largest},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--photos", type=int, default=8000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="the first is what others are held to")
    parser.add_argument("--tasks", nargs="+", default=list(ASKED), help="as for process.py; each of these in turn")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {OUTPUT.relative_to(ROOT)}")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    if min(options.workers) < 1 or max(options.workers) > cores:
        parser.error(f"--workers are from 1 to {cores}, one a core")
    photos = photos_below(options.folder, options.photos)
    if not photos:
        parser.error(f"no photos below {options.folder}")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report home
    figures: dict = {
        "machine": f"{cores} cores, {platform.machine()}, {platform.system()}",
        "cores": cores,
        "versions": {name: version(name) for name in ("ray", "onnxruntime", "pillow")},
        "photos": len(photos),
        "bytes_a_photo": round(statistics.mean(path.stat().st_size for path in photos)),
        "runs": options.runs,
        "tasks": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        folder = link(photos, home / "photos")
        for tasks in options.tasks:
            figures["tasks"][tasks] = measure(tasks, folder, home, options.workers, options.runs)
    print(json.dumps(figures, indent=2))
    if options.write:
        print(write_json(OUTPUT, figures).relative_to(ROOT))


if __name__ == "__main__":
    main()
