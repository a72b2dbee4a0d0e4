"""The installed command ``faces``: its sub-commands, what is missing without extras, and the wheel that brings it."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
import tiny_model
from tiny_model import COLOURS

import faces
from faces import cli, predict
from faces.research import demo

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {*predict.TASKS.values(), *predict.QUICK.values()}


def test_help_names_every_command_and_version_is_told(capsys):
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit) as ended:
            cli.main([option])
        assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in cli.COMMANDS) and f"faces {faces.__version__}\n" in shown


@pytest.mark.parametrize("how", [["--model", "{}"], ["--tasks", "colour={},age={}"]])
def test_one_model_answers_all_its_heads(photos, both, tmp_path, monkeypatch, capsys, how):
    monkeypatch.chdir(tmp_path)
    asked = [part.format(both, both) for part in how]
    assert cli.main(["label", str(photos), *asked, "--faces", "crop"]) == 0
    assert capsys.readouterr().out == "5 photos labelled by both -> process_results.json\n"
    found = json.loads((tmp_path / "process_results.json").read_text())
    assert {name: answer["colour"] for name, answer in found.items()} == COLOURS
    assert found["img_0.jpg"] == {"colour": "red", "age": 25.4, "age_interval": [19, 31]}
    assert (tmp_path / "process_run.json").exists()


def test_a_task_without_its_head_is_refused_and_a_label_is_listed_by_any_head(photos, both, capfdbinary):
    assert cli.main(["label", str(photos), "--tasks", f"height={both}"]) == 2
    assert capfdbinary.readouterr().err == b"faces label: both has no head 'height'; it has colour, age\n"
    assert cli.main(["label", str(photos), "--model", str(both), "--list", "blue", "--faces", "crop"]) == 0
    assert capfdbinary.readouterr().out == f"{photos}/img_1.jpg\n{photos}/img_4.jpg\n".encode()


def test_models_are_listed_with_heads_and_terms(both, monkeypatch):
    (both / "MODEL_CARD.md").write_text("# both\n\n## Training data and its terms\n\nDrawn\npictures.\n")
    monkeypatch.setattr(predict, "ARTIFACTS", both.parent)
    monkeypatch.setattr(predict, "PACKAGED", both / "none")
    with contextlib.redirect_stdout(io.StringIO()) as printed:  # which cannot be reconfigured
        assert cli.main(["models"]) == 0
    lines = printed.getvalue().splitlines()
    assert lines[0].startswith("both  16×16 pixels of a face, 0.0 MB")
    assert lines[1:] == ["  answers colour: blue, red; age: years", "  Drawn pictures."]


@pytest.mark.skipif(os.name == "nt", reason="pipes as POSIX has them")
def test_a_reader_that_has_seen_enough_ends_a_list_quietly():
    command = [sys.executable, "-m", "faces.cli", "models"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.parametrize(("command", "extra"), [("train", "research"), ("serve", "serve")])
def test_a_missing_extra_is_one_sentence(command, extra):
    missing = "fastapi" if extra == "serve" else "torch"
    code = f"import sys; sys.modules[{missing!r}] = None; from faces import cli; sys.exit(cli.main([{command!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    told = f"faces {command}: {missing} is not installed: pip install 'faces[{extra}]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


@pytest.mark.slow
def test_a_model_is_tested_on_a_labelled_folder_without_torch(tmp_path):
    for name, colour in {"red/1.png": "red", "red/2.png": "#90005f", "red/3.png": "blue", "blue/4.png": "blue"}.items():
        tiny_model.picture(tmp_path / "photos" / name, colour)
    (tmp_path / "photos/red/5.png").write_text("no picture")
    model = tiny_model.write(tmp_path / "models" / "tiny")
    arguments = ["evaluate", str(model), str(tmp_path / "photos"), "--output", str(tmp_path / "figures.csv")]
    code = f"import sys; from faces import cli; sys.exit(cli.main({arguments}) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    [row] = (tmp_path / "figures.csv").read_text().splitlines()[1:]
    assert row.startswith("label,acc,photos,,,4,") and ",0.75," in row
    assert re.search(r"label\s+acc\s+photos\s+all photos\s+4\s+75\.0%", done.stdout)


def test_ages_are_tested_and_labels_that_are_not_there_told(tmp_path, both, capsys):
    photos = demo.make(tmp_path / "faces", 12, size=32, flaws=False)
    ages = tiny_model.write(tmp_path / "models" / "ages", age=True)
    assert cli.main(["evaluate", str(ages), str(photos), "--by", "gender"]) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"age\s+mae\s+faces", shown)) == len(re.findall(r"age\s+coverage\s+faces", shown)) >= 2
    colour = tiny_model.write(tmp_path / "models" / "colour", heads=["colour"])
    assert cli.main(["evaluate", str(colour), str(photos)]) == 2
    assert "faces evaluate: no labels of colour: the photos have " in capsys.readouterr().err


def test_the_wheel_carries_the_default_models_and_the_detector():
    carried = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    models = {path.split("/")[0] for path in carried["faces.artifacts"] if path.endswith("/model.onnx")}
    assert models == {*DEFAULTS, "face_finder"}


def link_package(name, site):
    """Link an installed package and all that it needs into another environment."""
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    for top in {path.parts[0] for path in package.files} - {"..", "__pycache__"}:
        if (site / top).exists():
            continue
        (site / top).symlink_to(package.locate_file(top))
    for needed in package.requires or []:
        if "extra ==" not in needed:
            link_package(re.match(r"[\w.-]+", needed)[0], site)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="links and paths as POSIX has them")
def test_the_wheel_labels_from_any_folder(photos, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it would come before what is installed
    source, work = tmp_path / "source", tmp_path / "work"
    shutil.copytree(ROOT / "faces", source / "faces", ignore=shutil.ignore_patterns("__pycache__"))
    for model in (*DEFAULTS, "face_finder", "gender_cnn"):
        shutil.copytree(ROOT / "artifacts" / model, source / "artifacts" / model)
    for name in ("pyproject.toml", "README.md", "LICENSE", "artifacts/SHA256SUMS"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    quick = ["--no-deps", "--no-index"]
    made = subprocess.run([*pip, "wheel", source, "-w", tmp_path, *quick, "--no-build-isolation"], capture_output=True)
    if b"Cannot import 'setuptools" in made.stderr or b"No module named pip" in made.stderr:
        pytest.skip("pip or setuptools is not installed")
    assert made.returncode == 0, made.stderr.decode()
    [wheel] = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", symlinks=True)
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    for package in ("numpy", "pillow", "onnxruntime", "tqdm"):
        link_package(package, site)
    python = tmp_path / "venv/bin/python"
    subprocess.run([*pip, "--python", python, "install", *quick, wheel], check=True)
    work.mkdir()
    command = [tmp_path / "venv/bin/faces", "label", photos, "--tasks", "gender,age,glasses"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(json.loads((work / "process_results.json").read_text())) == sorted(COLOURS)
    assert sorted(path.name for path in work.iterdir()) == ["process_results.json", "process_run.json"]
    listed = subprocess.run([command[0], "models"], cwd=work, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^\w+", listed, re.MULTILINE) == sorted(DEFAULTS)
    lacking = subprocess.run([command[0], "evaluate"], cwd=work, capture_output=True, text=True)
    assert lacking.returncode == 2 and lacking.stderr.endswith("is not installed: pip install 'faces[research]'\n")
