"""Results as data: what is expensive is computed once, kept as tables, and read back where there are no photos.

Positional arguments of a step are inputs (tables, or folders of photos), keyword arguments are settings. A
``pathlib.Path`` among the settings says where to work and is neither compared nor kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from faces.files import write_json

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "artifacts" / "results"
PRIVATE = ("path", "name", "sha256", "phash", "identity")  # columns that are neither published nor compared
Tables: TypeAlias = pd.DataFrame | dict[str, pd.DataFrame]


class StaleResult(RuntimeError):
    """The kept tables are missing, damaged, or of other settings or inputs than the notebook asks for."""


class Steps:
    """The expensive steps of one notebook.

    Parameters
    ----------
    folder : holds ``STEP.TABLE.parquet`` and ``index.json``.
    data_dirs : folders of photos; if empty, steps are only read.
    out_dir : where this run writes: figures, tables, checkpoints.
    """

    def __init__(self, folder: Path, data_dirs: list[Path], out_dir: Path):
        self.folder, self.data_dirs, self.out_dir = folder, data_dirs, out_dir
        self.cache = out_dir / "cache"
        self._asked: list[str] = []

    @property
    def computes(self) -> bool:
        """Whether photos were given, so that steps are computed and not only read."""
        return bool(self.data_dirs)

    def __call__(self, step: str, function: Callable[..., Tables], *inputs: Any, **settings: Any) -> Tables:
        """Return ``function(*inputs, **settings)``, as computed before or now.

        Parameters
        ----------
        step : name of the step and of its files.
        function : returns a table or a dict of tables.
        *inputs : DataFrame, dict of DataFrame, or folders
            Tables are compared by their public columns, folders not at all.
        **settings : plain data or dataclasses, compared value by value.

        Raises
        ------
        StaleResult : without photos: the kept result is missing or was computed from something else.
        """
        wanted = {"inputs": [_content(table) for table in inputs], "settings": _plain(settings)}
        kept = self.index().get(step)
        changes = _changes(kept, wanted, settings)
        if self.computes and not changes and kept.get("folders", self.folders) != self.folders:
            changes = "other photos than before"
        if changes:
            if not self.computes:
                raise StaleResult(
                    f"{self.folder / 'index.json'}, step {step}: {changes}. Undo the change, or compute it again: "
                    "set data_dirs to folders of photos"
                )
            self.write(
                step, function(*inputs, **settings), wanted | {"function": function.__name__, "folders": self.folders}
            )
        self._asked.append(step)
        return self.read(step)  # what was written, so that computing and reading show the same digits

    @cached_property
    def folders(self) -> str:
        """A hash of where the photos lie, their sizes and times of change: a run on other photos computes anew."""
        digest = hashlib.sha256()
        for folder in self.data_dirs:
            for place, below, files in os.walk(folder):
                below.sort()
                for name in sorted(files):
                    state = os.lstat(os.path.join(place, name))  # noqa: PTH118 (a Path a photo costs time)
                    line = f"{place}/{name} {state.st_size} {state.st_mtime_ns}\n"
                    digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def index(self) -> dict[str, dict]:
        """What is kept, by step: settings, hashes of input and output tables, commit."""
        path = self.folder / "index.json"
        if not path.is_file():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise StaleResult(f"{path} is damaged; delete it to compute its steps again") from None

    def read(self, step: str) -> Tables:
        """The tables of a kept step; StaleResult if a file is not the one that the index describes."""
        tables = {}
        for table, content in self.index()[step]["tables"].items():
            path = self._file(step, table)
            tables[table] = pd.read_parquet(path) if path.is_file() else None
            if tables[table] is None or _content(tables[table]) != content:
                raise StaleResult(f"{path} is not the table that index.json describes; delete it from index.json")
        return tables[""] if list(tables) == [""] else tables

    def write(self, step: str, tables: Tables, about: dict) -> None:
        """Keep the tables of a step; ``about`` has settings and inputs, and may have a commit or a source."""
        tables = tables if isinstance(tables, dict) else {"": tables}
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {}
        for table, frame in tables.items():
            path = self._file(step, table)
            partial = path.with_suffix(".partial")
            frame.reset_index(drop=True).to_parquet(partial, compression="zstd")
            partial.replace(path)
            kept[table] = _content(pd.read_parquet(path))
        index = self.index() | {step: {"commit": commit()} | about | {"tables": kept}}
        write_json(self.folder / "index.json", dict(sorted(index.items())))

    def figure(self, figure: Any, name: str) -> None:
        """Write a figure as ``NN_name.png`` below ``out_dir``; the notebook shows it itself."""
        path = self.out_dir / "figures" / f"{self.folder.name}_{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})

    def status(self) -> pd.DataFrame:
        """The steps of this notebook so far, and the commit or source that each comes from."""
        index = self.index()
        rows = [{"step": s, "commit": index[s].get("source") or index[s]["commit"]} for s in dict.fromkeys(self._asked)]
        return pd.DataFrame(rows, columns=["step", "commit"]).set_index("step")

    def _file(self, step: str, table: str) -> Path:
        return self.folder / (f"{step}.{table}.parquet" if table else f"{step}.parquet")


def open(number: str, data_dirs: Iterable[str | Path] | str, out_dir: str | Path) -> Steps:
    """The steps of the notebook with the two digits ``number``.

    Parameters
    ----------
    data_dirs : relative ones are looked for here, then in the project; if empty, the published results are read.
    out_dir : where a run writes; a relative one is taken from the project's folder.
    """
    given = [data_dirs] if isinstance(data_dirs, str) else list(data_dirs)
    folders = [Path(folder) if Path(folder).exists() else ROOT / folder for folder in given]
    out = ROOT / out_dir
    return Steps(out / number if folders else PUBLISHED / number, [folder.resolve() for folder in folders], out)


def publish(run: Steps, folder: Path) -> None:
    """Copy computed tables to ``folder`` without their private columns, and rows of photos in another order."""
    public = Steps(folder, [], folder)
    for step, about in run.index().items():
        tables = run.read(step)
        clean = {}
        for name, table in (tables if isinstance(tables, dict) else {"": tables}).items():
            hidden = [column for column in table if column in PRIVATE]
            clean[name] = table.drop(columns=hidden).sample(frac=1, random_state=0) if hidden else table
        public.write(step, clean, {key: value for key, value in about.items() if key != "folders"})


def _content(value: Any) -> Any:
    """Hash of a table's public columns, whatever the order of its rows; None for folders."""
    if isinstance(value, dict):
        return {name: _content(table) for name, table in value.items()}
    if isinstance(value, pd.DataFrame):
        columns, *rows = value.drop(columns=list(PRIVATE), errors="ignore").to_csv(index=False).splitlines()
        return hashlib.sha256("\n".join([columns, *sorted(rows)]).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    several = isinstance(value, (list, tuple)) and all(isinstance(part, (str, Path)) for part in value)
    if value is None or several or isinstance(value, (str, Path)):
        return None
    raise TypeError(f"a step takes tables and folders, not {type(value).__name__}; settings go by keyword")


def _plain(settings: dict) -> dict:
    def as_data(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        raise TypeError(f"a setting must be plain data, not {type(value).__name__}")

    settings = {name: value for name, value in settings.items() if not isinstance(value, Path)}
    return json.loads(json.dumps(settings, default=as_data))


def _changes(kept: dict | None, wanted: dict, settings: dict) -> str:
    """What differs, in words; empty if nothing."""
    if kept is None:
        return "there is no result"
    changes = differences(kept["settings"], wanted["settings"], settings)
    if not changes and kept["inputs"] != wanted["inputs"]:
        changes = ["an input table has changed"]
    return ", ".join(changes)


def differences(old: Any, new: Any, given: Any = None, name: str = "") -> list[str]:
    """What differs between two pieces of plain data, in words; ``given`` are the dataclasses that the new one is of.

    >>> differences({"recipe": {"epochs": 8}}, {"recipe": {"epochs": 12}})
    ['recipe.epochs was 8, is 12']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        if is_dataclass(given):  # a field that it had not yet counts as having had its default
            old = _defaults(given) | old
        parts = {key: getattr(given, key, None) if is_dataclass(given) else (given or {}).get(key) for key in old | new}
        return [
            change
            for key in sorted(parts)
            for change in differences(old.get(key), new.get(key), parts[key], f"{name}.{key}" if name else key)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        given = given if isinstance(given, (list, tuple)) else [None] * len(new)
        return [
            c
            for i, (a, b, g) in enumerate(zip(old, new, given, strict=True))
            for c in differences(a, b, g, f"{name}[{i}]")
        ]
    return [] if old == new else [f"{name} was {old!r}, is {new!r}"]


def _defaults(given: Any) -> dict:
    found = {}
    for field in fields(given):
        if hasattr(field.default, "get_default"):  # a pydantic Field
            found[field.name] = field.default.get_default(call_default_factory=True)
        elif field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
    return _plain(found)


def commit() -> str:
    """The commit that is checked out, with a + where files differ from it; unknown outside of a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=8", "HEAD") + ("+" if git("status", "--porcelain", "--", "faces") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
