"""Run the notebooks headless: ``python -m faces.research.notebooks [--only 02] [--profile demo] [-p name value]``.

``--report`` executes those that stand on results from what is committed, without photos, and compares their outputs.
``--publish 01`` makes the tables of the last run the published ones and writes the notebook's outputs.

A profile is a file ``configs/NAME.yaml``: one block of parameters a notebook, and a block ``draw`` of practice sets
to draw first. A parameter that a notebook does not have is an error, and so is a value of another kind than the
notebook says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS, CONFIGS, EXECUTED = ROOT / "notebooks", ROOT / "configs", ROOT / "runs" / "notebooks"
RESULTS, FIGURES = ROOT / "artifacts" / "results", ROOT / "figures"


class RunnerError(ValueError):
    """The notebooks cannot be run as asked; the message is for the user."""


class NotebookError(RuntimeError):
    """A cell failed; the message ends in its error."""


def at_root(*given: str | os.PathLike) -> list[str]:
    """Make the project's folder the working folder, so that paths mean the same in Jupyter and under papermill.

    Returns the given paths as they are to be used from there: one that exists below the folder that the notebook was
    started in was meant from that folder.
    """
    here = Path.cwd()
    os.chdir(ROOT)
    return [str(here / path) if (here / path).exists() else str(path) for path in given]


def find(only: Iterable[str] = ()) -> list[Path]:
    """The notebooks in reading order, or those whose names begin with one of ``only`` ("02")."""
    known = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    only = tuple(only)
    for start in only:
        if not any(path.stem.startswith(start) for path in known):
            raise RunnerError(f"no notebook begins with {start!r}; there are {', '.join(p.stem for p in known)}")
    return [path for path in known if not only or path.stem.startswith(only)]


def read_profile(name: str) -> dict[str, dict]:
    """The blocks of ``configs/NAME.yaml``; RunnerError if there is none, or it names a notebook that is not there."""
    import yaml

    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise RunnerError(f"no profile {name!r}; there are {', '.join(sorted(p.stem for p in CONFIGS.glob('*.yaml')))}")
    blocks = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    unknown = set(blocks) - {notebook.stem for notebook in find()} - {"draw"}
    if unknown:
        raise RunnerError(f"{path} has a block for {', '.join(sorted(unknown))}, which is no notebook")
    return {key: block or {} for key, block in blocks.items()}


def parameters_of(notebook: Path) -> dict[str, str]:
    """Names of a notebook's parameters and the kinds that it declares ("int", "list" …)."""
    import papermill

    return {name: about["inferred_type_name"] for name, about in papermill.inspect_notebook(str(notebook)).items()}


def check(notebook: Path, parameters: dict) -> dict:
    """``parameters`` as the notebook wants them (whole numbers as float where it asks for float).

    Raises
    ------
    RunnerError : a parameter that the notebook does not have, or a value of another kind than it declares.
    """
    declared = parameters_of(notebook)
    checked = {}
    for name, value in parameters.items():
        if name not in declared:
            raise RunnerError(f"{notebook.stem} has no parameter {name!r}; it has {', '.join(declared)}")
        kind = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}.get(declared[name])
        if kind is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value):
            value = float(value)  # YAML takes 3e-4, without a point, for a word
        if kind is float and type(value) is int:
            value = float(value)
        if kind and type(value) is not kind:
            raise RunnerError(f"{notebook.stem}: {name} must be {kind.__name__}, not {value!r}")
        checked[name] = value
    return checked


@contextmanager
def one_kernel() -> Iterator[Any]:
    """A kernel manager for several calls of ``run``: libraries are imported once, which takes longer than most reports.

    Each notebook finds an empty namespace; what it changed in a library stays changed.
    """
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync

    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        # Not by ports: another program may take one between its being found free and the kernel's start.
        how = {"transport": "ipc", "ip": f"{sockets}/k"} if os.name == "posix" else {}
        kernel = AsyncKernelManager(kernel_name="python3", **how)  # papermill starts it
        try:
            yield kernel
        finally:
            run_sync(kernel.shutdown_kernel)(now=True)


def _clear(kernel: Any) -> None:
    from jupyter_core.utils import run_sync

    client = kernel.client()
    client.start_channels()
    run_sync(client.wait_for_ready)()
    run_sync(client.execute_interactive)("%reset -f")
    client.stop_channels()


def run(
    notebook: Path,
    parameters: dict | None = None,
    *,
    folder: Path = EXECUTED,
    progress: bool = True,
    kernel: Any = None,
) -> Path:
    """Execute one notebook with papermill and return the executed copy.

    The copy is kept in ``folder`` whatever happens: it shows how far a failed run came. The kernel is a new one of the
    kind ``python3``, or that of ``one_kernel``.

    Raises
    ------
    RunnerError : before anything runs, see ``check``.
    NotebookError : a cell failed; the message ends in its error.
    """
    import papermill

    if kernel is None:
        with one_kernel() as kernel:
            return run(notebook, parameters, folder=folder, progress=progress, kernel=kernel)
    parameters = check(notebook, parameters or {})
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / notebook.name
    if kernel.has_kernel:
        _clear(kernel)
    how = {"kernel_name": "python3", "cwd": str(ROOT), "progress_bar": progress, "km": kernel}
    try:
        papermill.execute_notebook(str(notebook), str(executed), parameters, **how)
    except papermill.PapermillExecutionError as error:
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        where = f"{notebook.stem} failed in cell {error.cell_index}; what ran is in {executed}"
        raise NotebookError(f"{where}\n{trace}") from None
    return executed


def on_steps(notebook: Path) -> bool:
    """Whether a notebook stands on results, so that it can be executed without photos."""
    return "steps.open(" in notebook.read_text(encoding="utf-8")


def code_hash(cell) -> str:
    """Hash of a code cell's source, kept in its metadata when it is executed."""
    return hashlib.sha256(cell.source.encode()).hexdigest()[:16]


def outputs_of(cell) -> list:
    """What a reader sees of a cell, comparable between machines: a figure only counts as one."""
    shown = []
    for output in cell.outputs:
        data = output.get("data", {})
        is_figure = "image/png" in data
        texts = {} if is_figure else {kind: text for kind, text in data.items() if not kind.startswith("image/")}
        shown.append([output.output_type, is_figure, texts, output.get("text", "")])
    return shown


def merge_streams(outputs: list) -> list:
    """Outputs with neighbouring texts of one stream joined: how a kernel cuts them up depends on its speed."""
    merged: list = []
    for output in outputs:
        if merged and output.output_type == "stream" == merged[-1].output_type and output.name == merged[-1].name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def execute_from_results(notebook: Path, folder: Path, kernel: Any = None):
    """Execute a notebook from committed results and return it clean, as it is published.

    No warnings, progress bars or representations of figures; execution counts 1 to n; the hash of each cell that ran.
    Figures are written to ``folder/figures``.
    """
    import nbformat

    given = {"data_dirs": [], "out_dir": str(folder)}
    executed = nbformat.read(run(notebook, given, folder=folder, progress=False, kernel=kernel), 4)
    executed.cells = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in executed.cells:  # papermill writes down when each ran
        cell.metadata = nbformat.from_dict({name: cell.metadata[name] for name in ("tags",) if cell.metadata.get(name)})
    for count, cell in enumerate((cell for cell in executed.cells if cell.cell_type == "code"), 1):
        cell.metadata["ran"] = code_hash(cell)
        cell.execution_count = count
        cell.outputs = merge_streams([output for output in cell.outputs if output.get("name") != "stderr"])
        for output in cell.outputs:
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
            if output.output_type == "execute_result":
                output.execution_count = count
            if "image/png" in output.get("data", {}):
                output.data.pop("text/plain", None)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    executed.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return executed


def report(only: Iterable[str] = ()) -> bool:
    """Execute notebooks from committed results, print a table of their state, and tell whether all are as committed."""
    import nbformat

    rows, differing = [], []
    with one_kernel() as kernel, tempfile.TemporaryDirectory() as folder:
        for notebook in filter(on_steps, find(only)):
            started = time.perf_counter()
            executed = execute_from_results(notebook, Path(folder), kernel)
            committed = nbformat.read(notebook, 4)
            pairs = enumerate(zip(committed.cells, executed.cells, strict=True))
            cells = [str(i) for i, (a, b) in pairs if b.cell_type == "code" and outputs_of(a) != outputs_of(b)]
            if cells:
                differing.append(f"{notebook.stem}: other outputs than committed in cells {', '.join(cells)}")
            index = json.loads((RESULTS / notebook.stem[:2] / "index.json").read_text(encoding="utf-8"))
            commits = sorted({about.get("source") or about["commit"] for about in index.values()})
            seconds = f"{time.perf_counter() - started:.0f}"
            rows.append([notebook.stem, seconds, str(len(index)), ", ".join(commits)])
    for row in [["notebook", "seconds", "steps", "from commit"], *rows]:
        print("{:<32} {:>7} {:>5}  {}".format(*row))
    from importlib.metadata import version

    print(", ".join(f"{name} {version(name)}" for name in ("numpy", "pandas", "matplotlib", "scipy", "scikit-learn")))
    print("\n".join(differing))
    return not differing


def publish(number: str, run_folder: Path) -> None:
    """Make the tables of a run the published ones, and write the outputs and figures of its notebook.

    Raises
    ------
    RunnerError : there is no such run, or the notebook does not stand on results.
    """
    import nbformat

    from faces.research import steps

    notebook = find([number])[0]
    index = run_folder / number / "index.json"
    if not on_steps(notebook):
        raise RunnerError(f"{notebook.stem} has no steps to publish")
    if index.is_file():
        shutil.rmtree(RESULTS / number, ignore_errors=True)
        steps.publish(steps.Steps(index.parent, [], run_folder), RESULTS / number)
    elif not (RESULTS / number / "index.json").is_file():
        raise RunnerError(f"{index} is missing: run the notebook on photos first")
    with tempfile.TemporaryDirectory() as folder:
        executed = execute_from_results(notebook, Path(folder))
        for figure in FIGURES.glob(f"{number}_*.png"):
            figure.unlink()
        for figure in sorted((Path(folder) / "figures").glob("*.png")):
            shutil.copy(figure, FIGURES / figure.name)
    nbformat.write(executed, notebook)


def _read_parameters(file: str) -> dict:
    import yaml

    try:
        parameters = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RunnerError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(parameters, dict):
        raise RunnerError(f"{file} must hold parameters and their values")
    return parameters


def run_profile(
    profile: str,
    *,
    only: Iterable[str] = (),
    data: Iterable[str | os.PathLike] = (),
    parameters: dict | None = None,
    folder: Path = EXECUTED,
    kernel: Any = None,
) -> list[Path]:
    """Run notebooks with a profile's parameters and, over those, ``parameters``; return the executed copies.

    ``data`` takes the place of all the profile's photos: as ``data_dirs``, with ``elsewhere_dirs`` and ``more_dirs``
    left empty; notebooks that read other photos, such as cartoons, then run only where ``only`` names them.
    ``parameters`` reach every notebook that has them; one that none of the notebooks has is refused, and nothing is
    run unless all parameters of all notebooks are good.
    """
    data, only = list(data), list(only)
    blocks, notebooks, parameters = read_profile(profile), find(only), parameters or {}
    declared = {notebook: parameters_of(notebook) for notebook in notebooks}
    if data and not only:
        faces = [n for n, names in declared.items() if "data_dirs" in names and "pictures_dir" not in names]
        notebooks = [notebook for notebook in notebooks if notebook in faces]
    for name in parameters:
        if not any(name in names for names in declared.values()):
            known = sorted(set().union(*declared.values()))
            raise RunnerError(f"none of these notebooks has a parameter {name!r}; they have {', '.join(known)}")
    # Notebooks run in the project's folder; these paths were meant from here.
    own = {"data_dirs": [str(Path(where).resolve()) for where in data], "elsewhere_dirs": [], "more_dirs": []}
    photos = own if data else {}
    wanted = {}
    for notebook in notebooks:
        given = {name: value for name, value in (photos | parameters).items() if name in declared[notebook]}
        wanted[notebook] = check(notebook, blocks.get(notebook.stem, {}) | given)
    for where, settings in blocks.get("draw", {}).items():
        from faces.research import demo

        demo.make(ROOT / where, **settings)
    executed = []
    for notebook in notebooks:
        started = time.perf_counter()
        print(f"{notebook.stem} …", file=sys.stderr, flush=True)
        executed.append(run(notebook, wanted[notebook], folder=folder, kernel=kernel))
        print(f"{notebook.stem} done in {time.perf_counter() - started:.0f} s -> {executed[-1]}", file=sys.stderr)
    return executed


def main(argv: list[str] | None = None) -> int:
    """Command line: 0 when every notebook ran, 1 when a cell failed, 2 for wrong usage."""
    import yaml

    parser = argparse.ArgumentParser("python -m faces.research.notebooks", description="Run the notebooks headless.")
    several: dict[str, Any] = {"action": "append", "default": []}
    add = parser.add_argument
    add("--only", **several, metavar="NN", help="only notebooks that begin so")
    add("--profile", default="full", help="parameters from configs/PROFILE.yaml (default: %(default)s)")
    add("--data", nargs="+", default=[], metavar="DIR", help="folders of labelled photos, for the profile's")
    add("-p", dest="parameters", nargs=2, **several, metavar=("NAME", "VALUE"), help="set a parameter")
    add("-f", dest="files", **several, metavar="FILE", help="YAML of parameters, as papermill -f takes")
    add("--report", action="store_true", help="execute from committed results and compare outputs")
    add("--publish", metavar="NN", help="publish the tables and outputs of the last run of a notebook")
    options = parser.parse_args(argv)
    try:
        if options.publish:
            publish(options.publish, ROOT / "runs")
            return 0
        if options.report:
            return 0 if report(options.only) else 1
        parameters = {name: value for file in options.files for name, value in _read_parameters(file).items()}
        parameters |= {name: yaml.safe_load(value) for name, value in options.parameters}
        run_profile(options.profile, only=options.only, data=options.data, parameters=parameters)
    except (RunnerError, yaml.YAMLError, FileExistsError) as error:
        print(f"faces.research.notebooks: {error}", file=sys.stderr)
        return 2
    except NotebookError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # For the kernels, what training.keep_freed_memory() does.
    os.environ |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    sys.exit(main())
