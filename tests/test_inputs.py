"""Which files a command reads: of folders, of several paths, and of lists from a pipe."""

import io
import json
import os

import helpers
import pytest
from tiny_model import picture

from faces import cli, inputs, predict

posix = pytest.mark.skipif(os.name == "nt", reason="links and names as POSIX has them")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working folder with files in folders."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "one/a.jpg", "one/b.jpg", "one/deep/c.jpg", "one/deep/d/e.jpg", "two/a.jpg", "one/.DS_Store"):
        picture(tmp_path / name, "red" if "b" not in name else "blue") if "jpg" in name else (tmp_path / name).touch()
    return tmp_path


def found(*paths, recursive=False):
    return [path.replace(os.sep, "/") for path in inputs.find_inputs(paths, recursive=recursive)]


def test_files_and_folders_in_any_mixture(work, folder):
    assert cli.label(["a.jpg", "one", "./two/", "--model", str(folder), "-q"]) == 0
    results = json.loads((work / "process_results.json").read_text())
    assert results == {"a.jpg": "red", "one/a.jpg": "red", "one/b.jpg": "blue", "./two/a.jpg": "red"}
    options = json.loads((work / cli.RUN).read_text())["options"]
    assert options["inputs"] == [os.path.realpath(name) for name in ("a.jpg", "one", "two")]
    assert cli.label(["one/b.jpg", "--model", str(folder), "-q"]) == 0
    assert json.loads((work / "process_results.json").read_text()) == {"one/b.jpg": "blue"}


def test_each_file_once_however_often_it_is_named(work):
    twice = [work / "one" / "a.jpg", "./one/a.jpg", "one/a.jpg"]
    assert found(*map(str, twice)) == [str(twice[0]).replace(os.sep, "/")]
    assert found("one/a.jpg", "one", "one/", str(work / "one")) == ["one/a.jpg", "one/b.jpg"]
    assert found("one", "./one/b.jpg") == ["./one/b.jpg", "one/a.jpg"]
    everything = ["one/a.jpg", "one/b.jpg", "one/deep/c.jpg", "one/deep/d/e.jpg"]
    for paths in (("one", "one/deep"), ("one/deep", "one"), ("one/deep/d", "one", "one/deep"), ("one", "one/a.jpg")):
        assert sorted(found(*paths, recursive=True)) == everything
    assert sorted(found("one", "one/deep")) == ["one/a.jpg", "one/b.jpg", "one/deep/c.jpg"]
    assert len(found(".", "two", recursive=True)) == 6


@posix
def test_links_lead_to_files_that_are_named_already(work):
    (work / "link.jpg").symlink_to("one/a.jpg")
    (work / "folder").symlink_to("one")
    assert found("one/a.jpg", "link.jpg") == ["one/a.jpg"]
    assert found("folder", "one") == ["folder/a.jpg", "folder/b.jpg"]
    (work / "two" / "to one").symlink_to(work / "one")
    assert sorted(found("two", "one", recursive=True)) == [
        *("one/a.jpg", "one/b.jpg", "one/deep/c.jpg", "one/deep/d/e.jpg", "two/a.jpg")
    ]


def test_several_inputs_do_not_include_what_is_written(work, folder):
    (work / "one" / "deep" / "x.jpg").touch()  # so that errors are written, too
    for _ in range(2):
        asked = ["one", "two", "-r", "--model", str(folder), "-o", "one/labels.json", "--annotate", "one/seen"]
        assert cli.label(asked) == 1
        results = json.loads((work / "one" / "labels.json").read_text())
        assert len(results) == 5 and all("seen" not in name for name in results)
        assert json.loads((work / "one" / cli.RUN).read_text())["files"]["skipped"] == 0


def test_several_inputs_are_listed_and_resumed(work, folder, capsys, monkeypatch):
    assert cli.label(["two", "one/b.jpg", "--model", str(folder), "--list", "blue"]) == 0
    assert capsys.readouterr().out == "one/b.jpg\n"
    rest = ["one", "a.jpg", "--model", str(folder), "-q"]
    monkeypatch.setattr(cli.outputs, "write", helpers.raising(OSError(28, "full", "x")))
    assert cli.label(rest) == 2
    monkeypatch.undo()
    monkeypatch.chdir(work)
    assert cli.label(["two", *rest, "--resume"]) == 2
    assert "options or models differ from the interrupted run (inputs)" in capsys.readouterr().err
    assert cli.label([*rest, "--resume"]) == 0
    assert len(json.loads((work / "process_results.json").read_text())) == 3


def test_the_folder_that_several_inputs_share(work):
    assert inputs.common_folder(["one", "two/a.jpg"]) == str(work)
    assert inputs.common_folder(["one/a.jpg", "one/b.jpg"]) == inputs.common_folder(["one"]) == str(work / "one")


@pytest.mark.parametrize("block", [1, 3, 7, 1 << 16])
def test_names_are_split_wherever_the_pipe_breaks(block):
    class Pipe(io.BytesIO):
        def read(self, _size=-1):
            return super().read(block)

    assert list(inputs.read_names(Pipe(b"a\nbb\n\nccc"))) == ["a", "bb", "ccc"]
    assert list(inputs.read_names(Pipe(b"a.jpg\r\nb.jpg\r\n\r\nc"))) == ["a.jpg", "b.jpg", "c"]
    assert list(inputs.read_names(Pipe(b"\xef\xbb\xbfa.jpg\n"))) == ["a.jpg"]
    assert list(inputs.read_names(Pipe(b"a\r\0b\n\0"))) == ["a\r", "b\n"]
    assert list(inputs.read_names(Pipe(b"a.jpg\nb.jpg\r\n"))) == ["a.jpg", "b.jpg"]
    assert list(inputs.read_names(Pipe(b"a\0b\0c\0d\0e\0"))) == ["a", "b", "c", "d", "e"]
    assert list(inputs.read_names(Pipe(b""))) == []


@pytest.mark.parametrize("form", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_list_that_cannot_be_read_or_is_utf16_with_or_without_its_mark_is_refused(form, tmp_path):
    unreadable = pytest.raises(predict.UsageError, match="list of paths cannot be read")
    with (tmp_path / "list").open("wb") as file, unreadable:
        inputs.read_names(file)
    for names in ("a.jpg\n", "a.jpg\nb.jpg\n"):
        with pytest.raises(predict.UsageError, match="UTF-16"):
            inputs.read_names(io.BytesIO(names.encode(form)))


@posix
def test_a_name_that_ends_in_a_carriage_return_is_itself_where_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a\r").touch()
    assert list(inputs.read_names(io.BytesIO(b"a\r\nb\r\n"))) == ["a\r", "b"]
