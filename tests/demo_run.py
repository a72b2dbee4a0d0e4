"""Run notebooks on drawn faces as `make demo` does, but into a folder of one's own."""

import re
from pathlib import Path

import nbformat

from faces.research import notebooks


def run(home: Path, kernel, *only: str) -> Path:
    """Run the notebooks whose names begin with one of ``only``; figures, artifacts and copies go below ``home``."""
    parameters = {
        "out_dir": str(home),
        "figures_dir": str(home / "figures"),
        "artifacts_dir": str(home / "artifacts"),
        "cache_dir": str(home / "cache"),
        "run_dir": str(home / "runs"),
    }
    # A parameter is given only where one of these notebooks has it.
    known = {name for path in notebooks.find(only) for name in notebooks.parameters_of(path)}
    parameters = {name: value for name, value in parameters.items() if name in known}
    notebooks.run_profile("demo", only=only, parameters=parameters, folder=home / "notebooks", kernel=kernel)
    return home


def check(home: Path, without: tuple[str, ...] = ()) -> None:
    """Every cell of every copy ran, and every figure that it promises was written, but for those named."""
    for path in (home / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells)
        saved = [name for cell in cells for name in re.findall(r'figures, f?"(\d\d_[\w{}]+)"', cell.source)]
        stepped = [name for cell in cells for name in re.findall(r'step\.figure\(.*f?"([\w{}]+)"\)', cell.source)]
        saved += [f"{path.name[:2]}_{name}" for name in stepped]
        assert saved
        for name in set(saved) - set(without):
            assert list((home / "figures").glob(re.sub(r"\{\w+\}", "*", name) + ".png")), name
