"""Model files are what the list beside them says, or are not used."""

import hashlib
import subprocess
import sys

import pytest

from faces import trust
from faces.research import notebooks


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.onnx").write_bytes(b"weights")
    return tmp_path / "mine"


def test_a_listed_file_is_returned_and_another_refused(folder):
    with pytest.raises(trust.TrustError, match=r"is not listed in .* python -m faces\.trust"):
        trust.verified(folder / "model.onnx")
    assert trust.vouch(folder) == ["mine/model.onnx"]
    assert trust.verified(folder / "model.onnx") == b"weights"
    (folder / "model.onnx").write_bytes(b"Weights")
    with pytest.raises(trust.TrustError, match="damaged or was swapped"):
        trust.verified(folder / "model.onnx")


def test_vouching_again_replaces_and_keeps_the_others(folder, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.onnx").write_bytes(b"others")
    trust.vouch(tmp_path / "theirs")
    trust.vouch(folder)
    (folder / "model.onnx").write_bytes(b"new")
    trust.vouch(folder)
    assert trust.read(tmp_path) == {
        "mine/model.onnx": hashlib.sha256(b"new").hexdigest(),
        "theirs/model.onnx": hashlib.sha256(b"others").hexdigest(),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="sha256sum is GNU's")
def test_the_list_is_one_of_sha256sums(folder, tmp_path):
    trust.vouch(folder)
    done = subprocess.run(["sha256sum", "-c", trust.LIST], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "mine/model.onnx: OK\n"


def test_the_command_vouches_or_says_why_not(folder, tmp_path, capsys):
    assert trust.main([str(folder)]) == 0 and capsys.readouterr().out == "mine/model.onnx\n"
    assert trust.main([str(tmp_path)]) == 2 and "holds no model" in capsys.readouterr().err
    assert trust.main([]) == 2


def test_every_published_model_is_listed_and_intact():
    artifacts = notebooks.ROOT / "artifacts"
    files = sorted(artifacts.glob("*/*.onnx"))
    assert files and sorted(trust.read(artifacts)) == [path.relative_to(artifacts).as_posix() for path in files]
    for path in files:
        trust.verified(path)
