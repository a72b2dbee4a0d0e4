"""Many machines say what one says, also when a worker is lost; on a local cluster of two workers."""

import json
import os
import signal
import sys
import threading
import time

import helpers
import numpy as np
import pytest
import tiny_model
from PIL import Image

from faces import cli, predict

ray = pytest.importorskip("ray")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
from faces import scale  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store():
    """An S3 server on this machine, which Ray's workers and this process find by AWS_* variables; None without moto."""
    try:
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield None
        return
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "any")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield scale.filesystem("s3://photos")[0]
    server.stop()


@pytest.fixture(scope="module")
def cluster(store):
    try:
        scale.start(num_cpus=2, configure_logging=False)
    except TimeoutError as error:
        pytest.skip(str(error))
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(400):
        path = folder / f"{number % 4}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (number % 256, 0, 255 - number % 256)).save(path)
    (folder / "broken.jpg").write_bytes(b"")
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir" / "preview.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return {"colour": str(tiny_model.write(home / "tiny")), "age": str(tiny_model.write(home / "ages", age=True))}


def rows(folder):
    found = [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
    return {row["file"]: row for row in found}, len(found)


def expected(photos, models, tmp_path):
    tasks = {task: predict.Model(model) for task, model in models.items()}
    output = tmp_path / "one.jsonl"
    cli.process_folder(photos, output, tasks=tasks, recursive=True, form="jsonl", progress=False)
    return {row["file"]: row["faces"][0] for row in map(json.loads, output.read_text().splitlines())}


def check(found, count, wanted):
    assert count == len(found) == len(wanted) + 1  # nobody twice
    assert found["broken.jpg"]["error"] == "empty file" and found["broken.jpg"]["colour"] is None
    for name, face in wanted.items():
        assert (found[name]["colour"], found[name]["error"]) == (face["colour"], None)
        assert found[name]["age"] == pytest.approx(face["age"], abs=0.11)
        assert [found[name]["age_low"], found[name]["age_high"]] == face["age_interval"]


def test_from_one_s3_address_to_another(cluster, store, photos, models, tmp_path, capsys):
    if not store:
        pytest.skip("moto is not installed")
    store.mkdir("photos")
    store.put(f"{photos}/", "photos/new/", recursive=True)
    store.mkdir("answers")
    tasks = ",".join(f"{task}={model}" for task, model in models.items())
    asked = ["s3://photos/new", "s3://answers/first", "--tasks", tasks, "--faces", "crop", "--workers", "2"]
    assert scale.main(asked) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.startswith("401 files by 2 workers")
    store.invalidate_cache()
    store.get("answers/first/", f"{tmp_path}/out/", recursive=True)
    check(*rows(tmp_path / "out"), expected(photos, models, tmp_path))
    assert scale.main(asked) == 2 and "s3://answers/first holds something already" in capsys.readouterr().err
    asked[:2] = "s3://photos/old", "s3://answers/second"
    assert scale.main(asked) == 2 and "s3://photos/old is no folder" in capsys.readouterr().err


def test_a_store_that_lets_nobody_in_is_one_line(models, monkeypatch, capsys):
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert scale.main(["s3://photos/new", "s3://answers/new", "--model", models["colour"], "--faces", "crop"]) == 2
    expected = "faces scale: s3://answers/new cannot be reached: Unable to locate credentials\n"
    assert capsys.readouterr().err == expected


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are refused elsewhere")
def test_names_that_are_not_utf8_and_folders_of_systems(models, tmp_path):
    photos = tmp_path / "photos"
    (photos / "@eaDir").mkdir(parents=True)
    (photos / "@eaDir" / "preview.jpg").touch()
    try:
        tiny_model.picture(photos / os.fsdecode(b"caf\xe9.png"), "red")
    except OSError:
        pytest.skip("this file system refuses the name")
    (photos / "broken.jpg").touch()
    names = list(scale.listing(str(photos)))
    batch = {"file": np.array([os.fsencode(name) for name in names], object)}
    broken, red = scale.Worker(str(photos), models, {"faces": "crop"})(batch).to_pylist()
    assert (broken["file"], broken["error"]) == ("broken.jpg", "empty file")
    assert (red["file"], red["colour"]) == (r"caf\xe9.png", "red") and red["age"] == pytest.approx(25.4, abs=0.2)


def test_a_lost_worker_costs_nothing_but_time(cluster, photos, models, tmp_path, monkeypatch):
    lost = tmp_path / "lost"

    class Slow(scale.Worker):
        def __call__(self, batch):
            time.sleep(0.2)
            if not lost.exists():
                lost.write_text(str(os.getpid()))
            return super().__call__(batch)

    monkeypatch.setattr(scale, "Worker", Slow)

    def kill():
        while not lost.exists():
            time.sleep(0.05)
        time.sleep(0.1)
        os.kill(int(lost.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    scale.run(str(photos), str(tmp_path / "out"), tasks=models, faces="crop", workers=2)
    killer.join(timeout=60)
    assert lost.exists()
    check(*rows(tmp_path / "out"), expected(photos, models, tmp_path))


@pytest.mark.parametrize("form", ["text", "parquet"])
def test_names_may_come_from_a_list(cluster, photos, models, tmp_path, monkeypatch, form):
    monkeypatch.setattr(scale, "NAMES_IN_MEMORY", 200)  # so that they come in two parts
    names = sorted(f"{number % 4}/{number}.jpg" for number in range(0, 400, 7)) * 5 + ["broken.jpg", "gone.jpg"]
    if form == "text":
        listed = tmp_path / "names.txt"
        listed.write_text("\n".join(names))
    else:
        (tmp_path / "names.parquet").mkdir()  # in one group of rows, which is taken apart
        listed = tmp_path / "names.parquet"
        parquet.write_table(pyarrow.table({"file": names, "other": names}), listed / "part.parquet")
    done = scale.run(str(photos), str(tmp_path / "out"), tasks=models, names=str(listed), faces="crop", workers=2)
    found, count = rows(tmp_path / "out")
    assert done["files"] == count == len(names) and set(found) == set(names) and done["workers"] == 2
    assert found["gone.jpg"]["error"] == "No such file or directory" and found["0/28.jpg"]["colour"] == "blue"
    assert len(list((tmp_path / "out").glob("*.parquet"))) > 1


def test_all_is_checked_before_ray_is_started(photos, models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale, "start", helpers.raising(AssertionError("Ray was started")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    parquet.write_table(pyarrow.table({"path": ["a.jpg"]}), tmp_path / "other.parquet")
    (tmp_path / "empty.txt").touch()
    new = str(tmp_path / "new")

    def refused(*arguments):
        assert scale.main([*map(str, arguments), "--model", models["colour"], "--faces", "crop"]) == 2
        return capsys.readouterr().err

    assert "full holds something already" in refused(photos, tmp_path / "full")
    assert "none is no folder" in refused(tmp_path / "none", new)
    assert "none.txt is no file" in refused(photos, new, "--names", tmp_path / "none.txt")
    assert "empty.txt holds no name" in refused(photos, new, "--names", tmp_path / "empty.txt")
    assert "has no column file; it has path" in refused(photos, new, "--names", tmp_path / "other.parquet")
    assert "none.parquet is no Parquet file" in refused(photos, new, "--names", tmp_path / "none.parquet")
    assert "wxyz://photos cannot be opened" in refused("wxyz://photos", new)
    monkeypatch.setattr(scale.fsspec.core, "url_to_fs", helpers.raising(ImportError("Install s3fs to access S3")))
    assert "pip install 'faces[s3]'" in refused("s3://bucket/photos", "s3://bucket/answers")
    assert scale.main([str(photos), new, "--model", "cow"]) == 2
    assert "no model 'cow'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scale.main([str(photos), new, "--workers", "0"])
    assert "--workers: '0' is not a whole number above 0" in capsys.readouterr().err
