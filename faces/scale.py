"""The runtime on many machines: ``faces scale INPUT OUTPUT`` (extra ``scale``).

INPUT is a folder, here or in an object store (anything that fsspec opens: ``s3://bucket/photos``), OUTPUT a folder for
Parquet files, here or there. Workers of Ray Data hold the networks and are handed paths; the batch of a lost worker is
repeated by another. The rows are those of ``--format parquet``, with a column ``error`` for unreadable files.
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

from faces import outputs
from faces.cli import add_options, detection, tasks_asked
from faces.files import MACHINE_FOLDERS, is_litter
from faces.pipeline import Pipeline, load_tasks, to_record
from faces.predict import TASKS, Model, UsageError, one_line, printable

try:
    import fsspec
    import pyarrow as pa
    import ray
except ImportError as missing:
    raise ImportError(
        f"many machines need {missing.name}, which is not installed: pip install 'faces[scale]'", name=missing.name
    ) from missing

BATCH = 64  # pictures that a worker is handed at once
BLOCK_SIZE = 256  # pictures that are answered and written at once: little is repeated when a worker is lost


class Worker:
    """Opens, decodes and answers: made once a process, then handed batches of paths.

    Parameters
    ----------
    tasks : mapping of str to str
        Task -> model, by name or path; the models must be on every machine.
    how : mapping
        Options of ``pipeline.Pipeline``.
    """

    def __init__(self, tasks: Mapping[str, str], how: Mapping):
        models = {name: Model(name, threads=1) for name in set(tasks.values())}
        self.pipeline = Pipeline({task: models[name] for task, name in tasks.items()}, **how)
        ages = [task for task, (_, head) in self.pipeline.tasks.items() if not head.classes]
        self.columns = outputs.columns(tasks, ages) | {"error": str}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> pa.Table:
        rows: list[dict] = []
        for root, name in zip(batch["root"].tolist(), batch["name"].tolist(), strict=True):
            rows += self._rows(root, os.fsdecode(name))
        return pa.Table.from_pylist(rows, outputs.parquet_schema(self.columns))

    def _rows(self, root: str, name: str) -> Iterator[dict]:
        shown = outputs.escaped(name)
        try:
            with fsspec.open(f"{root.rstrip('/')}/{name}", "rb") as file:
                content = io.BytesIO(file.read())
        except OSError as error:
            return iter([{"file": shown, "error": error.strerror or str(error)}])
        [photo] = self.pipeline.answer([self.pipeline.read(name, content)])
        if photo.error is not None:
            return iter([{"file": shown, "error": str(photo.error)}])
        return outputs.rows(shown, {"faces": [to_record(face) for face in photo.faces]}, self.pipeline.tasks)


def listing(root: str) -> Iterator[str]:
    """Paths of all files below a folder or address, but for those that operating systems make.

    Raises
    ------
    UsageError
        There is no such folder.
    """
    system, path = fsspec.core.url_to_fs(root)
    if not system.isdir(path):
        raise UsageError(f"{printable(root)} is no folder")
    for folder, _, files in system.walk(path):
        below = folder[len(path) :].strip("/")
        if MACHINE_FOLDERS.isdisjoint(below.lower().split("/")):
            for name in sorted(name for name in files if not is_litter(name)):
                yield f"{below}/{name}" if below else name


def run(
    source: str, target: str, *, tasks: Mapping[str, str] | None = None, workers: int | None = None, **how
) -> dict[str, float]:
    """Answer about every file below ``source`` and write Parquet files into ``target``.

    Parameters
    ----------
    source, target : str
        Folders or addresses.
    tasks : mapping of str to str, optional
        Task -> model; default gender.
    workers : int, optional
        Processes that hold the networks; default one a core of the cluster.
    how
        Options of ``pipeline.Pipeline``.

    Returns
    -------
    dict
        files, workers, seconds.

    Raises
    ------
    UsageError
        No such folder or model, or ``target`` is not empty.
    """
    tasks = dict(tasks or {"gender": TASKS["gender"]})
    load_tasks(tasks)  # a wrong name should fail here, not on every machine
    system, path = fsspec.core.url_to_fs(target)
    if system.exists(path) and system.ls(path):
        raise UsageError(f"{printable(target)} holds something already; name another folder")
    began = time.monotonic()
    names = [os.fsencode(name) for name in listing(source)]  # bytes: they need not be UTF-8
    if not names:
        raise UsageError(f"{printable(source)} holds no file")
    count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    blocks = [
        pa.table({"root": [source] * len(part), "name": pa.array(part, pa.binary())})
        for part in (names[start : start + BLOCK_SIZE] for start in range(0, len(names), BLOCK_SIZE))
    ]
    answered = ray.data.from_arrow(blocks).map_batches(
        Worker,
        fn_constructor_args=(tasks, how),
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=count),
        # A worker uses a whole core; but were all of them reserved, no process could write the answers.
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
        prog="faces scale", description="Label the faces in a folder of any size, on many machines."
    )
    parser.add_argument("source", metavar="INPUT", help="folder or address of the pictures (s3://bucket/photos)")
    parser.add_argument("target", metavar="OUTPUT", help="folder or address for the Parquet files; new or empty")
    add_options(parser, "gender")
    parser.add_argument("--workers", type=int, help="processes that hold the networks (default: one a core)")
    parser.add_argument("--address", help="of a Ray cluster; by default one is started on this machine")
    options = parser.parse_args(argv)
    try:
        start(options.address)
        tasks = dict.fromkeys(tasks_asked(options, {}), options.model) if options.model else options.tasks
        done = run(options.source, options.target, tasks=tasks, workers=options.workers, **detection(options))
    except (UsageError, OSError, ValueError) as error:
        print(f"faces scale: {one_line(error)}", file=sys.stderr)
        return 2
    rate = done["files"] / done["seconds"]
    print(f"{done['files']:,} files by {done['workers']} workers in {done['seconds']} s ({rate:,.0f} a second)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
