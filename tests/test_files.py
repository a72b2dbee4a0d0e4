"""Files appear whole or not at all."""

import json
import os

import helpers
import pytest

from faces import files

posix = pytest.mark.skipif(os.name == "nt", reason="links and permissions as POSIX has them")


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "file.json"
    with files.atomic_write(path) as file:
        file.write("one\nü\n")
        assert not path.exists()
    assert path.read_bytes() == "one\nü\n".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_goes_wrong_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(error), files.atomic_write(path) as file:
        file.write("new")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_permissions_follow_the_umask_where_a_disk_has_them(tmp_path, monkeypatch):
    umask = os.umask(0o027)
    try:
        files.write_json(tmp_path / "file.json", "old")
    finally:
        os.umask(umask)
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr(type(tmp_path), "chmod", helpers.raising(PermissionError(1, "Operation not permitted")))
    files.write_json(tmp_path / "file.json", "new")
    assert json.loads((tmp_path / "file.json").read_text()) == "new"


@posix
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "elsewhere" / "target.json"
    link.symlink_to(target)
    with files.atomic_write(link) as file:
        file.write("new")
    assert link.is_symlink() and target.read_text() == "new"


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = files.write_json(tmp_path / "new" / "a.json", {"ä": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    with pytest.raises(ValueError, match="not JSON"):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
