"""The runtime on many machines: ``faces scale INPUT OUTPUT`` (extra ``scale``; ``s3`` for s3:// addresses).

INPUT is a folder, here or in an object store (anything that fsspec opens: ``s3://bucket/photos``), OUTPUT a folder for
Parquet files, here or there. Workers of Ray Data hold the networks and are handed paths; the batch of a lost worker is
repeated by another. The rows are those of ``--format parquet``, with a column ``error`` for unreadable files.

Names, of a folder or a list (``--names``), may be any number: a part of them is in memory at once.
"""

from __future__ import annotations

import argparse
import io
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np

from faces import outputs
from faces.files import MACHINE_FOLDERS, Record, is_litter
from faces.inputs import read_names
from faces.options import add_options, detection, positive, tasks_asked
from faces.pipeline import Pipeline, to_record
from faces.predict import TASKS, Model, UsageError, find_model, one_line, printable

try:
    import fsspec
    import pyarrow as pa
    import ray
    from pyarrow import dataset, fs
except ImportError as missing:
    raise ImportError(
        f"many machines need {missing.name}, which is not installed: pip install 'faces[scale]'", name=missing.name
    ) from missing

BATCH = 64  # pictures that a worker is handed at once
NAMES_IN_MEMORY = 1_000_000
BLOCK_SIZE = 256  # pictures that are answered and written at once: little is repeated when a worker is lost


class Worker:
    """Opens, decodes and answers: made once a process, then handed batches of names.

    Parameters
    ----------
    root : str
        Folder or address that the names are below.
    tasks : mapping of str to str
        Task -> model, by name or path; the models must be on every machine.
    how : mapping
        Options of ``pipeline.Pipeline``.
    """

    def __init__(self, root: str, tasks: Mapping[str, str], how: Mapping[str, Any]):
        self.root = root.rstrip("/")
        models = {name: Model(name, threads=1) for name in set(tasks.values())}
        self.pipeline = Pipeline({task: models[name] for task, name in tasks.items()}, **how)
        ages = [task for task, (_, head) in self.pipeline.tasks.items() if not head.classes]
        self.columns = outputs.columns(tasks, ages) | {"error": str}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> pa.Table:
        """Rows of ``outputs.columns`` about the names in the column ``file``."""
        rows: list[Record] = []
        for name in batch["file"].tolist():
            rows += self._rows(os.fsdecode(name))
        return pa.Table.from_pylist(rows, outputs.parquet_schema(self.columns))

    def _rows(self, name: str) -> Iterator[Record]:
        shown = outputs.escaped(name)
        try:
            with fsspec.open(f"{self.root}/{name}", "rb") as file:
                content = io.BytesIO(file.read())
        except Exception as error:  # object stores raise their own
            return iter([{"file": shown, "error": getattr(error, "strerror", None) or one_line(error)}])
        [photo] = self.pipeline.answer([self.pipeline.read(name, content)])
        if photo.error is not None:
            return iter([{"file": shown, "error": str(photo.error)}])
        return outputs.rows(shown, {"faces": [to_record(face) for face in photo.faces]}, self.pipeline.tasks)


def filesystem(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a folder or address, and the path in it.

    Raises
    ------
    UsageError
        A package for such addresses is missing, or there are none of that kind.
    """
    try:
        system, path = fsspec.core.url_to_fs(address)
        return system, path
    except ImportError as error:
        remedy = ": pip install 'faces[s3]'" if address.startswith(("s3:", "s3a:")) else ""
        raise UsageError(f"{printable(address)} needs a package that is not installed ({error}){remedy}") from None
    except ValueError as error:
        raise UsageError(f"{printable(address)} cannot be opened: {one_line(error)}") from None


@contextmanager
def _reached(address: str) -> Iterator[None]:
    """Have whatever an object store raises, for want of credentials or of a server, be a UsageError."""
    try:
        yield
    except (OSError, UsageError):
        raise
    except Exception as error:
        raise UsageError(f"{printable(address)} cannot be reached: {one_line(error)}") from None


def _folder(root: str) -> tuple[fsspec.AbstractFileSystem, str]:
    system, path = filesystem(root)
    with _reached(root):
        if not system.isdir(path):
            raise UsageError(f"{printable(root)} is no folder")
    return system, path


def names_in(path: str) -> Iterator[str]:
    """Names in a list: the column ``file`` of Parquet, or text as ``inputs.read_names`` reads it.

    Raises
    ------
    UsageError
        There is no such file, or no such column.
    """
    if path.endswith(".parquet"):
        for batch in _parquet(path).to_batches(columns=["file"]):
            yield from batch["file"].to_pylist()
        return
    system, place = filesystem(path)
    if not system.isfile(place):
        raise UsageError(f"{printable(path)} is no file")
    with system.open(place, "rb") as file:
        yield from read_names(file)


def _parquet(path: str) -> dataset.Dataset:
    system, place = filesystem(path)
    try:
        found = dataset.dataset(place, format="parquet", filesystem=fs.PyFileSystem(fs.FSSpecHandler(system)))
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{printable(path)} is no Parquet file: {one_line(error)}") from None
    if "file" not in found.schema.names:
        raise UsageError(f"{printable(path)} has no column file; it has {', '.join(found.schema.names)}")
    return found


def listing(root: str) -> Iterator[str]:
    """Paths of all files below a folder or address, but for those that operating systems make.

    Raises
    ------
    UsageError
        There is no such folder.
    """
    system, path = _folder(root)
    for folder, _, files in system.walk(path):
        below = folder[len(path) :].strip("/")
        if MACHINE_FOLDERS.isdisjoint(below.lower().split("/")):
            for name in sorted(name for name in files if not is_litter(name)):
                yield f"{below}/{name}" if below else name


def run(
    source: str,
    target: str,
    *,
    tasks: Mapping[str, str] | None = None,
    names: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: bool = False,
    **how: Any,
) -> dict[str, float]:
    """Answer about every file below ``source`` and write Parquet files into ``target``.

    All is checked before Ray is started, unless it runs.

    Parameters
    ----------
    source, target : str
        Folders or addresses.
    tasks : mapping of str to str, optional
        Task -> model; default gender.
    names : str, optional
        Text file with a name below ``source`` a line, or Parquet with a column ``file``; default all files.
    workers : int, optional
        Processes that hold the networks; default one a core of the cluster.
    address : str, optional
        Of a Ray cluster.
    progress : bool
        Have Ray show how far it is.
    how
        Options of ``pipeline.Pipeline``.

    Returns
    -------
    dict
        files, workers, seconds.

    Raises
    ------
    UsageError
        No such folder, list or model, or ``target`` is not empty, or a package for such addresses is missing.
    """
    tasks = dict(tasks or {"gender": TASKS["gender"]})
    for name in set(tasks.values()):
        find_model(name)  # a wrong name should fail here, not on every machine
    system, path = filesystem(target)
    with _reached(target):
        if system.exists(path) and system.ls(path):
            raise UsageError(f"{printable(target)} holds something already; name another folder")
    _folder(source)
    found = map(os.fsencode, names_in(names) if names else listing(source))
    part, files = list(islice(found, NAMES_IN_MEMORY)), 0
    if not part:
        raise UsageError(f"{printable(names or source)} holds no {'name' if names else 'file'}")
    start(address)
    began = time.monotonic()
    ray.data.DataContext.get_current().enable_progress_bars = progress
    count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    while part:
        answered = _blocks(part).map_batches(
            Worker,
            fn_constructor_args=(source, tasks, how),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=count),
            # A worker uses a whole core; but were all of them reserved, no process could write the answers.
            num_cpus=0.75,
        )
        answered.write_parquet(path, filesystem=_for_ray(system), ray_remote_args={"num_cpus": 0.25})
        files += len(part)
        part = list(islice(found, NAMES_IN_MEMORY))
    return {"files": files, "workers": count, "seconds": round(time.monotonic() - began, 3)}


def _blocks(names: list[bytes]) -> ray.data.Dataset:
    parts = (names[start : start + BLOCK_SIZE] for start in range(0, len(names), BLOCK_SIZE))
    return ray.data.from_arrow([pa.table({"file": pa.array(part, pa.binary())}) for part in parts])


def _for_ray(system: fsspec.AbstractFileSystem) -> fs.FileSystem:
    return fs.LocalFileSystem() if "file" in system.protocol else fs.PyFileSystem(fs.FSSpecHandler(system))


def start(address: str | None = None, **options: Any) -> None:
    """Connect to the Ray cluster at ``address``, or start one on this machine that asks nothing of the network.

    Does nothing where that was done before.

    Raises
    ------
    TimeoutError
        Ray's own processes did not find each other, three times.
    """
    if ray.is_initialized():
        return
    if address:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, **options)
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray keeps one in HOME
    # Where much else runs, Ray's processes may need longer than its 15 s to find each other.
    os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
    # Without a dashboard Ray still starts its process that reports usage, which asks three clouds whether it runs there
    # even where such reports are switched off. Told that there are no TPUs, it doesn't ask which kind they are.
    ray._private.node.Node.start_api_server = lambda *_, **__: None
    options |= {"include_dashboard": False, "resources": {"TPU": 0}, "log_to_driver": False}
    for _ in range(3):
        try:
            ray.init(ignore_reinit_error=True, **options)
            return
        except Exception as error:  # Ray raises no kind of its own
            ray.shutdown()
            if "timed out" not in str(error):
                raise
    raise TimeoutError("Ray did not start in time: this machine is too busy")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="faces scale", description="Label the faces in a folder of any size, on many machines."
    )
    parser.add_argument("source", metavar="INPUT", help="folder or address of the pictures (s3://bucket/photos)")
    parser.add_argument("target", metavar="OUTPUT", help="folder or address for the Parquet files; new or empty")
    add_options(parser, "gender")
    about = "list of names below INPUT, of any length: text, one a line, or .parquet with a column file"
    parser.add_argument("--names", metavar="FILE", help=about)
    about = "processes that hold the networks (default: one a core)"
    parser.add_argument("--workers", type=positive, metavar="N", help=about)
    parser.add_argument("--address", help="of a Ray cluster; by default one is started on this machine")
    options = parser.parse_args(argv)
    default = {"gender": TASKS["gender"]}
    try:
        asked = options.tasks or default
        tasks = {task: options.model or asked[task] for task in tasks_asked(options, default)}
        how = {name: getattr(options, name) for name in ("names", "workers", "address")} | detection(options)
        done = run(options.source, options.target, tasks=tasks, progress=sys.stderr.isatty(), **how)
    except (UsageError, OSError, ValueError) as error:
        print(f"faces scale: {one_line(error)}", file=sys.stderr)
        return 2
    rate = done["files"] / done["seconds"]
    print(f"{done['files']:,} files by {done['workers']} workers in {done['seconds']} s ({rate:,.0f} a second)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
