"""No door of the project asks the network: each runs with name look-ups made to fail, and in a new HOME."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import helpers
import nbformat
import pytest
import tiny_model

from faces.research import demo, notebooks

# Look-ups by Python code, wherever it runs.
AUDIT = """
import os, socket, sys, traceback

def audit(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        name = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        if name in (None, "", "localhost", socket.gethostname()) or name.replace(".", "").isdigit() or ":" in name:
            return
        with open(os.environ["LOOKED_UP"], "a") as file:
            file.write(f"{name}\\n")
        with open(os.environ["LOOKED_UP"] + ".by", "a") as file:
            file.write(f"{sys.argv}\\n{''.join(traceback.format_stack())}\\n")
        raise OSError(f"looked up {name}")

sys.addaudithook(audit)
"""
# Look-ups by compiled code, such as that of onnxruntime and Ray.
PRELOADED = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int refused(const char *name) {
    char own[256] = "", address[16];
    gethostname(own, sizeof own - 1);
    if (!name || !*name || !strcmp(name, "localhost") || !strcmp(name, own)
        || inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1)
        return 0;
    FILE *file = fopen(getenv("LOOKED_UP"), "a");
    if (file) { fprintf(file, "%s\n", name); fclose(file); }
    return 1;
}

typedef const struct addrinfo *Hints;

int getaddrinfo(const char *name, const char *service, Hints hints, struct addrinfo **found) {
    int (*own)(const char *, const char *, Hints, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    return refused(name) ? EAI_FAIL : own(name, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
    struct hostent *(*own)(const char *) = dlsym(RTLD_NEXT, "gethostbyname");
    return refused(name) ? NULL : own(name);
}
"""
# What IPython, matplotlib and fontconfig keep there, whoever uses them.
THEIRS = (".ipython", ".config/matplotlib", ".cache/matplotlib", ".cache/fontconfig")


class Guarded:
    """Commands whose look-ups of names, but for localhost and this machine's own, fail and are written down."""

    def __init__(self, folder: Path, shim: Path | None):
        self.home, self.looked_up = folder / "home", folder / "looked_up"
        self.home.mkdir()
        (folder / "sitecustomize.py").write_text(AUDIT)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "JUPYTER_", "RAY_"))}
        for name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "MPLCONFIGDIR", "IPYTHONDIR"):
            kept.pop(name, None)
        self.env = kept | {"HOME": str(self.home), "LOOKED_UP": str(self.looked_up), "PYTHONPATH": str(folder)}
        if shim:
            self.env["LD_PRELOAD"] = str(shim)

    def start(self, *command: str | Path) -> subprocess.Popen:
        command = [sys.executable, *map(str, command)]
        return subprocess.Popen(command, cwd=notebooks.ROOT, env=self.env, stderr=subprocess.PIPE, text=True)

    def run(self, *command: str | Path, status: int = 0) -> None:
        with self.start(*command) as process:
            _, errors = process.communicate()
        assert process.returncode == status, errors

    def names(self) -> list[str]:
        return self.looked_up.read_text().split() if self.looked_up.exists() else []

    def check(self) -> None:
        by = self.looked_up.with_suffix(".by")
        assert self.names() == [], by.read_text() if by.exists() else "looked up by compiled code"
        files = [path.relative_to(self.home) for path in self.home.rglob("*") if not path.is_dir()]
        assert [str(path) for path in files if not any(path.is_relative_to(theirs) for theirs in THEIRS)] == []


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The library that looks after compiled code; None where there is no compiler for it."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or not compiler:
        return None
    source = tmp_path_factory.mktemp("shim") / "shim.c"
    source.write_text(PRELOADED)
    library = source.with_suffix(".so")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def guarded(tmp_path, shim):
    return Guarded(tmp_path, shim)


def test_a_look_up_is_noticed(guarded, shim):
    guarded.run("-c", "import socket; socket.getaddrinfo('localhost', 80); socket.getaddrinfo('127.0.0.1', 80)")
    assert guarded.names() == []
    ask = "import socket; socket.{}('example.org'{})"
    guarded.run("-c", ask.format("getaddrinfo", ", 80"), status=1)
    guarded.run("-c", ask.format("gethostbyname", ""), status=1)
    assert guarded.names() == ["example.org"] * 2
    if shim:
        guarded.run("-c", "import ctypes; ctypes.CDLL(None).gethostbyname(b'example.net')")
        assert guarded.names()[2:] == ["example.net"]


def test_the_command(guarded, tmp_path):
    guarded.run("process.py", "samples", "--tasks", "gender,age,glasses", "--output", tmp_path / "results.json")
    guarded.check()


@pytest.mark.slow
def test_the_service(guarded):
    port, photo = helpers.free_port(), (notebooks.ROOT / "samples" / "grace_hopper.jpg").read_bytes()
    with guarded.start("-m", "faces.serve", "--port", str(port)) as server:
        helpers.answering(server, port)
        with urlopen(Request(f"http://127.0.0.1:{port}/predict", photo, {"Content-Type": "image/jpeg"})) as answer:
            assert b"gender" in answer.read()
        server.terminate()
    guarded.check()


@pytest.mark.slow
def test_a_training(guarded, tmp_path):
    photos = demo.make(tmp_path / "photos", 60, layout="class_folders", size=40)
    wanted = ["epochs=1", "size=32", "backbone=small_resnet", "options.width=4", "weights=random"]
    where = ["--name", tmp_path / "trained", "--cache", tmp_path / "cache"]
    guarded.run("-m", "faces.cli", "train", photos, *where, *wanted)
    guarded.check()


@pytest.mark.slow
def test_a_notebook(guarded, tmp_path):
    lines = ["from faces import predict", "from faces.research import plots", "import matplotlib.pyplot as plt"]
    cell = "\n".join([*lines, "predict.Model()", "plt.plot([1, 2])"])
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), tmp_path / "little.ipynb")
    guarded.run("-m", "papermill", "-k", "python3", tmp_path / "little.ipynb", tmp_path / "out.ipynb")
    guarded.check()


@pytest.mark.slow
def test_many_machines(guarded, tmp_path):
    pytest.importorskip("ray")
    tiny_model.write(tmp_path / "tiny")
    wanted = ["--tasks", f"colour={tmp_path / 'tiny'}", "--workers", "1"]
    try:
        guarded.run("-m", "faces.scale", "samples", tmp_path / "answers", *wanted)
    except AssertionError as error:
        if "did not start in time" not in str(error):
            raise
        pytest.skip("Ray did not start in time, three times: this machine is too busy")
    assert list((tmp_path / "answers").glob("*.parquet"))
    guarded.check()
