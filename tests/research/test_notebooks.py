"""The notebooks keep their form, and the runner refuses what it should.

They are run in test_gender_notebooks.py and its like, files of their own so that several can run at once.
"""

import re
from pathlib import Path

import nbformat
import pytest
import yaml

from faces.research import notebooks

ALL = notebooks.find()
NAMES = [path.stem for path in ALL]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=ALL, ids=NAMES)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_form(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert "**Question.**" in notebook.cells[0].source
    assert notebook.cells[1].metadata.tags == ["parameters"]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    assert "steps.open(" in "".join(cell.source for cell in code(notebook))
    assert code(notebook)[-1].source == "step.status()"
    assert any("## In this notebook we have seen" in cell.source for cell in notebook.cells)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_committed_outputs_are_those_of_the_code_that_ran(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.metadata["ran"] == notebooks.code_hash(cell) for cell in cells)
    assert any(output.get("data", {}).get("image/png") for cell in cells for output in cell.outputs)
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs)
    assert not any(cell.outputs for cell in cells if "photos" in cell.metadata.get("tags", []))
    assert path.stat().st_size <= 1_500_000
    assert sum(len(cell.source.splitlines()) for cell in cells) <= 150
    # Nothing that depends on where and when it ran.
    assert all(set(cell.metadata) <= {"tags", "ran"} for cell in notebook.cells)
    texts = [str(notebooks.outputs_of(cell)) for cell in cells]
    assert not any(re.search(r"/tmp/|/home/|Path\(| object at 0x|\d\d:\d\d:\d\d", text) for text in texts)


def test_parameters_are_typed_commented_and_computed_from_nothing(notebook):
    for line in notebook.cells[1].source.splitlines():
        name, value = re.fullmatch(r"(\w+: (?:int|float|str|bool|list|dict)) = (.+?)  # .{10,}", line).groups()
        yaml.safe_load(value)
        assert "(" not in value, name


@pytest.mark.parametrize("profile", ["demo", "full"])
def test_profiles_name_only_parameters_that_the_notebooks_have(profile):
    blocks = notebooks.read_profile(profile)
    assert set(NAMES) <= set(blocks)
    for path in ALL:
        notebooks.check(path, blocks[path.stem])


# ------------------------------------------------------------------------------------------------- the runner


def little_notebook(folder, *cells, parameters="n: int = 1  # how many\nrate: float = 0.1  # how fast"):
    notebook = nbformat.v4.new_notebook()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.cells = [nbformat.v4.new_code_cell(parameters), *map(nbformat.v4.new_code_cell, cells)]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    path = Path(folder) / "01_little.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.mark.slow
def test_notebooks_of_one_kernel_find_it_empty_and_keep_what_it_imported(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir(), second.mkdir()
    with notebooks.one_kernel() as kernel:
        notebooks.run(little_notebook(first, "import colorsys"), folder=tmp_path / "ran", progress=False, kernel=kernel)
        cell = "import sys\nassert 'colorsys' in sys.modules and 'colorsys' not in globals()"
        notebooks.run(little_notebook(second, cell), folder=tmp_path / "ran", progress=False, kernel=kernel)


@pytest.mark.slow
def test_a_failing_cell_is_reported_last_and_the_executed_copy_is_kept(tmp_path):
    path = little_notebook(tmp_path, "print('so far')", "1 / 0", "print('never')")
    with pytest.raises(notebooks.NotebookError) as error:
        notebooks.run(path, folder=tmp_path / "ran", progress=False)
    assert str(error.value).endswith("ZeroDivisionError: division by zero")
    assert "failed in cell 2" in str(error.value)
    kept = (tmp_path / "ran" / path.name).read_text()
    assert "so far" in kept and "ZeroDivisionError" in kept


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epoch": 3}, r"no parameter 'epoch'; it has n, rate"),
        ({"n": "three"}, "n must be int, not 'three'"),
        ({"n": True}, "n must be int, not True"),
        ({"n": 1.5}, "n must be int, not 1.5"),
        ({"rate": "fast"}, "rate must be float"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(tmp_path, parameters, message):
    path = little_notebook(tmp_path)
    with pytest.raises(notebooks.RunnerError, match=message):
        notebooks.run(path, parameters, folder=tmp_path / "ran")
    assert not (tmp_path / "ran").exists()


def test_numbers_reach_the_notebook_as_it_wants_them(tmp_path):
    assert notebooks.check(little_notebook(tmp_path), {"rate": 1, "n": 2}) == {"rate": 1.0, "n": 2}
    assert notebooks.check(little_notebook(tmp_path), {"rate": "3e-4"}) == {"rate": 3e-4}


def test_a_file_of_parameters_is_one_of_papermills(tmp_path, monkeypatch, capsys):
    path, given = little_notebook(tmp_path), {}
    monkeypatch.setattr(notebooks, "find", lambda only=(): [path])
    monkeypatch.setattr(notebooks, "read_profile", lambda _: {})
    monkeypatch.setattr(notebooks, "run", lambda path, parameters, **_: given.update(parameters) or path)
    file = tmp_path / "mine.yaml"
    file.write_text("n: 5\nrate: 0.5\n")
    assert notebooks.main(["-f", str(file), "-p", "n", "7"]) == 0
    assert given == {"n": 7, "rate": 0.5}
    file.write_text("- 1\n")
    assert notebooks.main(["-f", str(file)]) == 2 and "must hold parameters and their values" in capsys.readouterr().err
    assert notebooks.main(["-f", str(tmp_path / "none.yaml")]) == 2 and "cannot be read" in capsys.readouterr().err


def test_own_photos_take_the_place_of_all_the_profiles_photos(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(notebooks, "run", lambda path, parameters, **_: given.setdefault(path.stem, parameters))
    monkeypatch.chdir(tmp_path)
    notebooks.run_profile("full", data=["mine", "yours"], parameters={"epochs": 3})
    assert list(given) == [name for name in NAMES if "simpsons" not in name]  # they are not about faces
    for parameters in given.values():
        assert parameters["data_dirs"] == [str(tmp_path / "mine"), str(tmp_path / "yours")]
    assert given["02_train_gender_cnn"]["elsewhere_dirs"] == [] and given["02_train_gender_cnn"]["epochs"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "77"], "no notebook begins with '77'; there are 01_explore_gender_data"),
        (["--profile", "huge"], "no profile 'huge'; there are demo, "),
        (
            ["-p", "epoch", "3"],
            "none of these notebooks has a parameter 'epoch'; they have accepted_risk, altered_photos",
        ),
        (["--only", "02", "-p", "epochs", "many"], "02_train_gender_cnn: epochs must be int, not 'many'"),
    ],
)
def test_the_command_refuses_with_one_line(capsys, arguments, message):
    assert notebooks.main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1


@pytest.mark.slow
def test_report_gives_what_is_committed_without_photos_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    same, told = notebooks.report(), capsys.readouterr().out
    assert same, told
    assert all(name in told for name in NAMES) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_report_tells_which_cells_differ(tmp_path, monkeypatch, capsys):
    path = little_notebook(
        tmp_path,
        "from faces.research import steps\nstep = steps.open('01', data_dirs, out_dir)",
        "print('now')",
        parameters="data_dirs: list = []  # photos\nout_dir: str = 'runs'  # of a run",
    )
    monkeypatch.setattr(notebooks, "find", lambda only=(): [path])
    assert not notebooks.report()
    assert "01_little: other outputs than committed in cells 2" in capsys.readouterr().out


def test_publish_needs_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "RESULTS", tmp_path / "results")
    with pytest.raises(notebooks.RunnerError, match="run the notebook on photos first"):
        notebooks.publish("01", tmp_path)


def test_paths_are_meant_from_where_the_notebook_was_started(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert notebooks.at_root("mine", "figures") == [str(tmp_path / "mine"), "figures"]
    assert Path.cwd() == notebooks.ROOT
