"""The runtime on many machines: ``python -m faces.scale INPUT OUTPUT`` (extra ``scale``).

INPUT is a folder, here or in an object store (anything that fsspec opens: ``s3://bucket/photos``), OUTPUT a folder for
Parquet files, here or there. On Ray Data: a pool of workers holds the networks, each is handed paths, opens and decodes
the pictures and answers; what a lost worker had not finished is done again by another. One row a face, as ``process.py
--format parquet`` has it, with a column ``error`` for files that could not be read.
"""

from __future__ import annotations

import argparse
import io
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping

import numpy as np

from faces import images, outputs
from faces.cli import load_tasks, looked_for, seer, tasks_of
from faces.predict import TASKS, Model, UsageError, entry, frames_of, place, printable

try:
    import fsspec
    import pyarrow as pa
    import ray
except ImportError as missing:
    raise ImportError(
        f"many machines need {missing.name}, which is not installed: pip install '.[scale]' brings all it needs"
    ) from missing

BATCH_SIZE = 64  # pictures that a worker is handed at once
PIECE = 256  # pictures that are answered for and written at once: little is done twice when a worker is lost


class Worker:
    """Opens, decodes and answers: made once a process, then handed batches of paths.

    Parameters
    ----------
    tasks : name -> model, by name or path; the folder ``artifacts`` must be on every machine.
    faces : "auto", "crop" or "detect", as for ``process.py``.
    """

    def __init__(self, tasks: Mapping[str, str], faces: str):
        self.models = {task: Model(model, threads=1) for task, model in tasks.items()}
        self.frames = frames_of(self.models.values())
        self.see = seer(looked_for(faces, self.models.values()))
        ages = [task for task, model in self.models.items() if not model.classes]
        self.columns = outputs.columns(self.models, ages) | {"error": str}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> pa.Table:
        rows: list[dict] = []
        for root, name in zip(batch["root"].tolist(), batch["name"].tolist(), strict=True):
            rows += self._rows(root, name)
        return pa.Table.from_pylist(rows, schema_of(self.columns))

    def _rows(self, root: str, name: str) -> Iterator[dict]:
        try:
            with fsspec.open(f"{root.rstrip('/')}/{name}", "rb") as file:
                content = io.BytesIO(file.read())
            faces, squares = self.see(content, self.frames)
        except (images.ImageError, OSError) as error:
            return iter([{"file": name, "error": getattr(error, "strerror", None) or str(error)}])
        answers: list[dict] = [{} for _ in faces]
        if faces:
            columns = zip(*squares, strict=True)
            pixels = {frame: np.stack(some) for frame, some in zip(self.frames, columns, strict=True)}
            for task, model in self.models.items():
                for answer, said in zip(answers, model.predict(pixels[model.frame]), strict=True):
                    answer[task] = said
        record = {"faces": [entry(said) | place(face) for face, said in zip(faces, answers, strict=True)]}
        return outputs.rows(name, record, self.models)


def schema_of(columns: Mapping[str, type]) -> pa.Schema:
    """The Parquet schema of flat rows."""
    kinds = {str: pa.string(), int: pa.int32(), float: pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in columns.items()])


def listing(root: str) -> Iterator[str]:
    """Paths of all files below a folder or address; what operating systems leave behind is passed over.

    Raises
    ------
    UsageError : there is no such folder.
    """
    system, path = fsspec.core.url_to_fs(root)
    if not system.isdir(path):
        raise UsageError(f"{printable(root)} is no folder")
    for folder, _, files in system.walk(path):
        below = folder[len(path) :].strip("/")
        for name in sorted(files):
            if not images.is_litter(name):
                yield f"{below}/{name}" if below else name


def run(
    source: str,
    target: str,
    *,
    tasks: Mapping[str, str] | None = None,
    faces: str = "auto",
    workers: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> dict[str, float]:
    """Answer for every file below ``source`` and write Parquet files into ``target``; return counts and seconds.

    Parameters
    ----------
    tasks : name -> model; gender by default.
    workers : processes that hold the networks; by default one a core of the cluster.

    Raises
    ------
    UsageError : no such folder or model, or ``target`` holds something already.
    """
    tasks = dict(tasks or {"gender": TASKS["gender"]})
    load_tasks(tasks)  # a wrong name should fail here, not on every machine
    system, path = fsspec.core.url_to_fs(target)
    if system.exists(path) and system.ls(path):
        raise UsageError(f"{printable(target)} holds something already; name another folder")
    began = time.monotonic()
    names = list(listing(source))
    if not names:
        raise UsageError(f"{printable(source)} holds no file")
    count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    blocks = [
        pa.table({"root": [source] * len(part), "name": part})
        for part in (names[start : start + PIECE] for start in range(0, len(names), PIECE))
    ]
    answered = ray.data.from_arrow(blocks).map_batches(
        Worker,
        fn_constructor_args=(tasks, faces),
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=count),
        # A worker uses up a core; but were all of them bespoken, nobody could write down what the workers say.
        num_cpus=0.75,
    )
    answered.write_parquet(target, ray_remote_args={"num_cpus": 0.25})
    return {"files": len(names), "workers": count, "seconds": round(time.monotonic() - began, 3)}


def start(address: str | None = None, **options) -> None:
    """Connect to the Ray cluster at ``address``, or start one on this machine that asks nothing of the network."""
    if address:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, **options)
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray keeps one in HOME
    # Where much else runs, Ray's processes may need longer than its 15 s to find each other.
    os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
    # Without a dashboard Ray still starts its process that reports usage, which asks three clouds whether it runs there
    # even where such reports are switched off. Told that there are no TPUs, it doesn't ask which kind they are.
    ray._private.node.Node.start_api_server = lambda *_, **__: None
    ray.init(include_dashboard=False, resources={"TPU": 0}, log_to_driver=False, ignore_reinit_error=True, **options)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m faces.scale", description="Label the faces in a folder of any size, on many machines."
    )
    parser.add_argument("source", metavar="INPUT", help="folder or address of the pictures (s3://bucket/photos)")
    parser.add_argument("target", metavar="OUTPUT", help="folder or address for the Parquet files; new or empty")
    parser.add_argument("--tasks", type=tasks_of, help=f"as for process.py: {', '.join(TASKS)} (default: gender)")
    parser.add_argument("--faces", choices=("auto", "crop", "detect"), default="auto", help="as for process.py")
    parser.add_argument("--workers", type=int, help="processes that hold the networks (default: one a core)")
    parser.add_argument("--address", help="of a Ray cluster; by default one is started on this machine")
    options = parser.parse_args(argv)
    try:
        start(options.address)
        done = run(options.source, options.target, tasks=options.tasks, faces=options.faces, workers=options.workers)
    except (UsageError, OSError, ValueError) as error:
        print(f"faces.scale: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 2
    rate = done["files"] / done["seconds"]
    print(f"{done['files']:,} files by {done['workers']} workers in {done['seconds']} s ({rate:,.0f} a second)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
