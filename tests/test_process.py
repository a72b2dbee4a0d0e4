"""process.py as a user runs it: a copy with only the runtime beside it, in a process of its own."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_model
from PIL import Image
from tiny_model import picture

import faces
from faces import trust
from faces.predict import TASKS

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ("process.py", "faces/__init__.py", "faces/report.html") + tuple(
    f"faces/{name}.py"
    for name in (
        *("annotate", "cli", "copies", "files", "finding", "images", "inputs", "options", "outputs", "pipeline"),
        *("predict", "report", "trust"),
    )
)
TIMEOUT = 600  # seconds, for a machine with much else to do
posix = pytest.mark.skipif(os.name == "nt", reason="links, pipes, signals and permissions as POSIX has them")
not_root = pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    """A folder with the runtime alone, and tiny models under the names of those that answer."""
    folder = tmp_path_factory.mktemp("tool")
    for name in RUNTIME:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for model in set(TASKS.values()):
        tiny_model.write(folder / "artifacts" / model, heads=[task for task in TASKS if TASKS[task] == model])
    quick = tiny_model.metadata(("gender", tiny_model.CLASSES, {"sure": 0.9}), size=12)
    tiny_model.write(folder / "artifacts" / "faces_small", heads=["gender"], about=quick, size=12)
    shutil.copytree(ROOT / "artifacts" / "face_finder", folder / "artifacts" / "face_finder")
    trust.vouch(folder / "artifacts" / "face_finder")
    return folder


@pytest.fixture
def results(tool, tmp_path_factory, monkeypatch):
    """Where results go by default: into the working folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    return Path.cwd() / "process_results.json"


def process(tool, *arguments, prelude=None, stdout=subprocess.PIPE, text=True, **environment):
    """Run process.py on crops, after the line of Python ``prelude`` if there is one."""
    command = [sys.executable, tool / "process.py", *arguments]
    command += [] if "--faces" in arguments else ["--faces", "crop"]
    if prelude:
        command[1:2] = [
            "-c",
            f"{prelude}; import runpy, sys; tool = {str(tool)!r}; sys.path.insert(0, tool);"
            " runpy.run_path(tool + '/process.py', run_name='__main__')",
        ]
    how = {"encoding": "utf-8", "errors": "replace"} if text else {}
    how |= {"stdout": stdout, "stderr": subprocess.PIPE, "timeout": TIMEOUT, "env": {**os.environ, **environment}}
    done = subprocess.run(command, **how)
    assert "Traceback" not in str(done.stderr), done.stderr
    return done


def errors_beside(output):
    return output.with_name("process_errors.json")


def test_the_plain_command(tool, results, tmp_path):
    names = ["img_1.jpg", "img_10.jpg", "img_2.jpg", "Jürgen & Zoë.jpg", "two words.jpg", "😀.jpg"]
    if os.name != "nt":
        names += ["line\nbreak.jpg", 'quote".jpg']
    for name in names:
        picture(tmp_path / name, "blue" if "2" in name else "red")
    picture(tmp_path / "below" / "img_3.jpg", "red")
    for litter in (".DS_Store", "Thumbs.db", "._img_1.jpg"):
        (tmp_path / litter).write_bytes(b"\0")
    done = process(tool, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(names)} photos labelled by {TASKS['gender']} -> {results.name}\n"
    text = results.read_text("utf-8")
    assert list(json.loads(text).items()) == [(n, "blue" if n == "img_2.jpg" else "red") for n in sorted(names)]
    assert '  "img_1.jpg": "red",\n' in text and '"Jürgen & Zoë.jpg"' in text and '"😀.jpg"' in text
    assert not errors_beside(results).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are refused elsewhere")
def test_quick_has_the_small_network_answer(tool, results, photos):
    for asked, small in (("gender,glasses", False), ("gender", True)):  # the small one knows no glasses
        said = process(tool, photos, "--tasks", asked, "--quick").stderr
        assert ("--quick changes nothing" in said) is not small
        options = json.loads(results.with_name("process_run.json").read_text())["options"]
        assert ("faces_small" in options.get("quick", {})) is small
    assert json.loads(results.read_text()) == tiny_model.COLOURS


def test_a_name_that_is_not_utf8(tool, results, tmp_path):
    try:
        picture(tmp_path / os.fsdecode(b"caf\xe9.jpg"), "red")
        (tmp_path / os.fsdecode(b"caf\xe8 \xf0\x9f\x98\x80.jpg")).touch()
    except OSError:
        pytest.skip("this file system refuses the name")
    done = process(tool, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("caf\\udce8 😀.jpg: empty file\n")
    assert json.loads(results.read_text("utf-8")) == {r"caf\xe9.jpg": "red"}
    assert list(json.loads(errors_beside(results).read_text("utf-8"))) == [r"caf\xe8 😀.jpg"]


@posix
def test_folder_and_output_whose_names_are_not_utf8(tool, tmp_path):
    folder, output = tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / os.fsdecode(b"r\xe9.json")
    picture(folder / "a.jpg", "red")
    done = process(tool, folder, "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(output.read_text("utf-8")) == {"a.jpg": "red"}
    run = json.loads((tmp_path / "process_run.json").read_text("utf-8"))
    assert run["output"] == r"r\xe9.json" and run["options"]["folder"].endswith(r"/caf\xe9")
    assert len(list(tmp_path.iterdir())) == 3  # and no journal


def test_what_is_no_picture_is_skipped_and_counted(tool, results, tmp_path):
    picture(tmp_path / "a.jpg", "red")
    picture(tmp_path / "photo without suffix", "blue")
    (tmp_path / "a.xmp").write_text("<x:xmpmeta/>")
    (tmp_path / "a.txt").touch()
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    page = tmp_path / "report.html"
    for _ in range(2):  # the second time its own report lies there
        done = process(tool, tmp_path, "--html", page)
        assert done.returncode == 0
        assert json.loads(results.read_text()) == {"a.jpg": "red", "photo without suffix": "blue"}
    run = json.loads(results.with_name("process_run.json").read_text())
    assert run["files"] == {"read": 2, "failed": 0, "skipped": 4}
    assert run["skipped"] == ["a.txt", "a.xmp", "clip.mp4", "report.html"]
    assert "4 files skipped" in done.stderr
    (tmp_path / "b.jpg").write_text("no picture, though named like one")
    assert process(tool, tmp_path).returncode == 1


RESEARCH = ["torch", "torchvision", "pandas", "sklearn", "matplotlib", "scipy", "seaborn", "onnx", "papermill"]
NO_NETWORK = (
    "import socket; refuse = lambda *_, **__: (_ for _ in ()).throw(RuntimeError('network'));"
    " socket.socket.__init__ = socket.create_connection = socket.getaddrinfo = refuse"
)


def test_neither_research_nor_network_is_needed_for_answers_and_copies(tool, results, tmp_path):
    picture(tmp_path / "photos" / "below" / "a.jpg", "red")
    picture(tmp_path / "photos" / "b.jpg", "blue")
    wanted = [f"--{name}={tmp_path / name}" for name in ("sort", "crops", "annotate")]
    photos = [tmp_path / "photos" / "below", tmp_path / "photos" / "b.jpg"]
    prelude = f"import sys; sys.modules.update(dict.fromkeys({RESEARCH})); {NO_NETWORK}"
    done = process(tool, *photos, *wanted, "-qo", "-", prelude=prelude)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {str(photos[0] / "a.jpg"): "red", str(photos[1]): "blue"}
    made = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert made == [
        *("annotate/b.jpg", "annotate/below/a.jpg", "crops/blue/b_1.jpg", "crops/red/below/a_1.jpg"),
        *("photos/b.jpg", "photos/below/a.jpg", "sort/blue/b.jpg", "sort/red/below/a.jpg"),
    ]
    assert not results.exists()


@pytest.mark.slow
@posix
def test_outputs_that_are_streams_are_refused(tool, tmp_path):
    picture(tmp_path / "photos" / "a.jpg", "red")
    (tmp_path / "link").symlink_to("/dev/stdout")
    log = tmp_path / "log"
    log.write_text("earlier\n")
    (tmp_path / "fd").symlink_to("/dev/fd")
    for output in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", tmp_path / "link", tmp_path / "fd" / "1"):
        with log.open("a") as file:
            done = process(tool, tmp_path / "photos", "--output", output, stdout=file)
        assert done.returncode == 2 and "name a file" in done.stderr
    assert log.read_text() == "earlier\n"


@pytest.mark.slow
@posix
def test_closed_streams(tool, results, tmp_path):
    picture(tmp_path / "a.jpg", "red")
    (tmp_path / "b.jpg").write_text("no picture")
    command = f"{sys.executable} {tool / 'process.py'}"
    crops = f"{tmp_path} --faces crop"

    def shell(line):
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=TIMEOUT)
        return done.returncode, done.stdout, done.stderr

    assert shell(f"{command} {crops} --list red 2>&-") == (1, f"{tmp_path}/a.jpg\n", "")
    status, _, complaint = shell(f"{command} {crops} --list red >&-")
    assert status == 2 and complaint.count("\n") == 1 and "standard output" in complaint
    status, _, complaint = shell(f"{command} - <&-")
    assert status == 2 and complaint.count("\n") == 1 and "standard input" in complaint
    assert shell(f"{command} {crops} >&- 2>&-")[0] == 1
    assert json.loads(results.read_text()) == {"a.jpg": "red"}
    if Path("/dev/full").exists():
        status, _, complaint = shell(f"{command} {crops} --list red >/dev/full")
        assert (status, complaint.count("\n")) == (2, 1) and "standard output" in complaint.splitlines()[-1]
        results.unlink()
        assert shell(f"{command} {crops} 2>/dev/full")[0] == 1 and results.exists()
        (tmp_path / "b.jpg").unlink()
        no_room = "process.py: No space left on device: standard output\n"
        assert shell(f"{command} {crops} >/dev/full") == (0, "", no_room)
    assert shell(f"{command} {crops} | true")[2] == ""


def test_a_terminal_that_cannot_show_the_name(tool, tmp_path):
    picture(tmp_path / "a.jpg", "red")
    output = tmp_path / "日本.json"
    done = process(tool, tmp_path, "--output", output, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u65e5\\u672c.json" in done.stdout and output.exists()


@pytest.fixture
def troubled(tmp_path):
    """A folder with two good photos, and its bad files with the beginnings of the reasons."""
    picture(tmp_path / "good.jpg", "red")
    picture(tmp_path / "good_2.jpg", "blue", (400, 300))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good_2.jpg").read_bytes()[:-200])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.jpg").write_text("not a picture")
    bad = {"cut.jpg": "", "empty.jpg": "empty file", "notes.jpg": "not a picture in a known format"}
    if os.name != "nt":
        (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
        (tmp_path / "self.jpg").symlink_to("self.jpg")
        os.mkfifo(tmp_path / "pipe.jpg")
        bad |= {"dangling.jpg": "No such file", "self.jpg": "Too many levels", "pipe.jpg": "a pipe or device"}
    return tmp_path, bad


def test_unreadable_files_are_reported_and_the_good_ones_labelled(tool, results, troubled):
    folder, bad = troubled
    done = process(tool, folder, "--faces", "crop")
    assert done.returncode == 1
    assert json.loads(results.read_text()) == {"good.jpg": "red", "good_2.jpg": "blue"}
    reasons = json.loads(errors_beside(results).read_text())
    assert list(reasons) == sorted(bad)
    assert all(reason and reason.startswith(bad[name]) for name, reason in reasons.items())
    *lines, last = done.stderr.splitlines()
    assert lines == [f"{name}: {reason}" for name, reason in reasons.items()]
    assert last == f"{len(bad)} files could not be read -> {errors_beside(results).name}"

    for name in bad:
        (folder / name).unlink()
    done = process(tool, folder, "--faces", "crop")
    assert (done.returncode, done.stderr) == (0, "")
    assert not errors_beside(results).exists()


@posix
@not_root
def test_what_may_not_be_read(tool, results, tmp_path):
    picture(tmp_path / "mine.jpg", "red")
    picture(tmp_path / "private.jpg", "red")
    picture(tmp_path / "private" / "a.jpg", "red")
    (tmp_path / "private.jpg").chmod(0)
    (tmp_path / "private").chmod(0)
    try:
        done = process(tool, tmp_path, "--recursive")
    finally:
        (tmp_path / "private").chmod(0o700)
    assert done.returncode == 1
    assert json.loads(results.read_text()) == {"mine.jpg": "red"}
    reasons = json.loads(errors_beside(results).read_text())
    assert reasons == {"private.jpg": "Permission denied", "private/": "Permission denied"}


def test_help(tool):
    done = process(tool, "--help", COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) < 80
    assert "\n  python process.py photos --recursive " in done.stdout
    done = process(tool, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"faces {faces.__version__}\n", "")


SLOWLY = """
import signal, sys, time
from faces import images
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
decode = images.decode_frames
def slowly(path, frames, **options):
    print("decoding", flush=True)
    time.sleep(0.05)
    return decode(path, frames, **options)
images.decode_frames = slowly
import runpy
runpy.run_path("process.py", run_name="__main__")
"""


@pytest.mark.slow
@posix
def test_ctrl_c_leaves_the_old_results_and_what_to_go_on_from(tool, tmp_path):
    for number in range(400):
        picture(tmp_path / "photos" / f"{number}.jpg", "red")
    output = tmp_path / "labels.json"
    output.write_text("old"), errors_beside(output).write_text("old too")
    command = [sys.executable, "-c", SLOWLY, tmp_path / "photos", "--output", output, "--faces", "crop"]
    with subprocess.Popen(
        command, cwd=tool, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=TIMEOUT)
    assert child.returncode == 130
    assert err == "process.py: interrupted; the same command with --resume goes on from here\n"
    assert (output.read_text(), errors_beside(output).read_text()) == ("old", "old too")
    kept = {"labels.json", "photos", "process_errors.json"}
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {".labels.json.journal", *kept}
    done = process(tool, tmp_path / "photos", "--output", output, "--resume", "--faces", "crop")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(output.read_text()) == {f"{number}.jpg": "red" for number in range(400)}
    assert {path.name for path in tmp_path.iterdir()} == {"labels.json", "photos", "process_run.json"}


def test_list_prints_the_paths_with_that_label_and_nothing_else(tool, results, tmp_path):
    colours = {"a b.jpg": "red", "below/c.jpg": "red", "d.jpg": "blue", "-e.jpg": "red"}
    for name, colour in colours.items():
        picture(tmp_path / name, colour)
    done = process(tool, tmp_path, "--list", "red", text=False)
    assert done.returncode == 0 and done.stdout == f"{tmp_path}/-e.jpg\n{tmp_path}/a b.jpg\n".encode()
    done = process(tool, tmp_path, "--list", "red", "--recursive", "--null", text=False)
    assert sorted(done.stdout.split(b"\0")) == sorted(
        [b"", *(os.fsencode(tmp_path / name) for name, colour in colours.items() if colour == "red")]
    )
    assert not results.exists()


@posix
def test_list_prints_names_as_they_are_on_the_disk(tool, results, tmp_path):
    picture(tmp_path / "a.jpg", "red")
    odd = os.fsencode(tmp_path) + b"/\xff\n.jpg"
    shutil.copy(tmp_path / "a.jpg", odd)
    (tmp_path / "broken.jpg").write_bytes(b"")
    done = process(tool, tmp_path, "--list", "red", "--null", text=False)
    assert done.returncode == 1  # for the broken one
    assert done.stdout.split(b"\0") == [os.fsencode(tmp_path / "a.jpg"), odd, b""]


@posix
def test_a_reader_that_has_seen_enough_is_no_error(tool, results, tmp_path):
    for number in range(300):
        picture(tmp_path / f"{number}.jpg", "red", (8, 8))
    command = [sys.executable, tool / "process.py", tmp_path, "--list", "red", "--batch-size", "1", "--faces", "crop"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == os.fsencode(tmp_path / "0.jpg") + b"\n"
        child.stdout.close()
        assert child.wait(timeout=TIMEOUT) == 141 and child.stderr.read() == b""


def test_a_missing_dependency_is_one_line(tool, results, tmp_path):
    done = process(tool, tmp_path, prelude="import sys; sys.modules['onnxruntime'] = None")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "process.py: onnxruntime is not installed; run `make run` once, then `. .venv/bin/activate` "
        "(or `pip install -e .`)\n"
    )
    assert not results.exists()


def test_importing_faces_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import faces; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "['faces']\n"


# Not getrusage: its peak counts the parent's pages too, from the moment between fork and exec.
PEAK = (
    "import atexit, re; status = '/proc/self/status'; peak = lambda: re.search(r'VmHWM:\\s+(\\d+)',"
    " open(status).read())[1]; atexit.register(lambda: print('peak', peak()))"
)


def peak(tool, results, photo, count, *arguments):
    """The most memory that a folder of so many links to a photo takes, in bytes."""
    folder = photo.parent / f"{count} of {photo.stem}"
    folder.mkdir()
    for number in range(count):
        os.link(photo, folder / f"{number}{photo.suffix}")
    done = process(tool, folder, *arguments, prelude=PEAK)
    assert len(json.loads(results.read_text())) == count
    return int(done.stdout.split()[-1]) * 1024


from_proc = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


@from_proc
@pytest.mark.slow
def test_memory_does_not_grow_with_the_folder(tool, results, tmp_path):
    picture(tmp_path / "one.jpg", "red", (600, 600))
    many, few = (peak(tool, results, tmp_path / "one.jpg", count) for count in (3000, 300))
    assert many - few < 25 * 1024**2


@from_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode", "bytes_a_pixel"),
    [("png", "RGBA", 12), ("png", "RGB", 6), ("bmp", "RGB", 6)]
    + [("webp", "RGB", 14.5), ("tif", "RGB", 10), ("jpg", "RGB", 8)],
)
def test_of_large_pictures_only_one_is_in_memory(tool, results, tmp_path, kind, mode, bytes_a_pixel):
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("another C library than glibc")
    how = {"tif": {"compression": "tiff_lzw", "strip_size": 2**30}, "jpg": {"progressive": True, "subsampling": 0}}
    how = how.get(kind, {"compress_level": 1, "method": 0})
    for size in (4500, 40):
        Image.new(mode, (size, size), (255, 0, 0, 255)[: len(mode)]).save(tmp_path / f"{size}.{kind}", **how)
    alone = "--batch-size=1"  # so that several threads decode
    large, small = (peak(tool, results, tmp_path / f"{size}.{kind}", 6, alone) for size in (4500, 40))
    assert large - small < bytes_a_pixel * 4500**2
