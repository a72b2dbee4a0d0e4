"""The service as its users meet it: over HTTP, one by one and all at once."""

import asyncio
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import helpers
import pytest
import tiny_model
from PIL import Image, ImageFile

fastapi = pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
httpx = pytest.importorskip("httpx2", reason="the extra `serve` is not installed")

from fastapi.testclient import TestClient  # noqa: E402

from faces import images, pipeline, predict, serve  # noqa: E402


def photo(colour="red", size=(40, 30), kind="JPEG"):
    return helpers.encoded(Image.new("RGB", size, colour), kind)


RED, BLUE = photo("red"), photo("blue")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "glasses": predict.Model(tiny_model.write(folder / "spectacles", classes=["no_glasses", "glasses"])),
        "age": predict.Model(tiny_model.write(folder / "ages", age=True, size=24)),
    }


@pytest.fixture(scope="module")
def client(tasks):
    with TestClient(serve.create_app(pipeline.Pipeline(tasks, "crop"))) as client:
        yield client


@pytest.fixture(scope="module")
def detecting(tasks):
    """A service that looks for the faces of every picture, as by default."""
    with TestClient(serve.create_app(pipeline.Pipeline(tasks))) as client:
        yield client


def form(content, name="image", file="photo.jpg"):
    return {"files": {name: (file, content, "image/jpeg")}}


def test_the_largest_face_of_a_scene_is_answered_for(detecting, scene):
    found = detecting.post("/predict", **form(helpers.encoded(scene))).json()
    left, top, right, bottom = found["box"]
    assert (left + right) / 2 == pytest.approx(723, abs=15) and (top + bottom) / 2 == pytest.approx(316, abs=15)
    assert found["score"] > 0.9 and found["glasses"] in ("glasses", "no_glasses")
    nobody = detecting.post("/glass_no_glass/", **form(photo("grey", (1200, 800))))
    assert (nobody.status_code, nobody.json()) == (422, {"detail": "no face was found"})


def several(*photos):
    return {"files": [("image", (name, content, "image/jpeg")) for name, content in photos]}


def test_every_face_of_every_photo_is_answered_for(detecting, scene):
    two = Image.new("RGB", (1200, 600), "grey")
    two.paste(scene.crop((500, 200, 1012, 712)), (0, 50))
    two.paste(scene.crop((500, 200, 1012, 712)).resize((400, 400)), (700, 100))
    nobody = photo("grey", (600, 400))
    sent = several(("two.jpg", helpers.encoded(two)), ("nobody.jpg", nobody), ("letter.jpg", b"dear diary"))
    reply = detecting.post("/v1/predict", **sent)
    two, none, letter = reply.json()["photos"]
    assert reply.status_code == 200 and [face["box"][0] > 600 for face in two["faces"]] == [False, True]
    assert list(two["faces"][0]) == ["glasses", "glasses_probability", "age", "age_interval", "box", "score"]
    assert none == {"file": "nobody.jpg", "faces": []}
    assert letter["file"] == "letter.jpg" and "not a picture" in letter["error"]
    alone = detecting.post("/v1/predict", content=nobody, headers={"content-type": "image/jpeg"})
    assert alone.json() == {"photos": [{"file": "", "faces": []}]}


def test_several_photos_are_answered_or_refused(client):
    reds = client.post("/v1/predict", **several(("a.jpg", RED), ("b.jpg", BLUE))).json()["photos"]
    assert [(each["file"], each["faces"][0]["glasses"]) for each in reds] == [
        ("a.jpg", "glasses"),
        ("b.jpg", "no_glasses"),
    ]
    for path in ("/predict", "/glass_no_glass/"):
        refused = client.post(path, **several(("a.jpg", RED), ("b.jpg", BLUE)))
        assert refused.status_code == 422 and "POST /v1/predict takes several" in refused.json()["detail"]
    many = client.post("/v1/predict", **several(*[("a.jpg", RED)] * (serve.MAX_PHOTOS + 1)))
    assert many.status_code == 422 and "Too many files" in many.json()["detail"]
    unread = client.post("/v1/predict", **several(("a.jpg", b"x"), ("b.jpg", b"")))
    assert unread.status_code == 422 and "not a picture" in unread.json()["detail"]
    large = client.post("/v1/predict", **several(("a.jpg", RED), ("b.jpg", b"\xff" * (serve.MAX_BYTES + 1))))
    assert large.status_code == 413


def test_answers_are_as_the_openapi_document_says(detecting, client):
    jsonschema = pytest.importorskip("jsonschema")
    paths = client.get("/openapi.json").json()["paths"]
    with (predict.ROOT / "samples" / "portraits" / "london" / "001_smiling.jpg").open("rb") as file:
        portrait = file.read()
    for path in ("/v1/predict", "/predict", "/glass_no_glass/"):
        for service, content in ((client, RED), (detecting, portrait), (client, b"x")):
            reply = service.post(path, **form(content))
            told = paths[path]["post"]["responses"][str(reply.status_code)]["content"]["application/json"]
            jsonschema.validate(reply.json(), told["schema"])
            assert reply.status_code == (422 if content == b"x" else 200)


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "application/octet-stream", "form"])
def test_predict_tells_every_task(client, kind):
    content = photo("red", kind="PNG") if kind == "image/png" else RED
    sent = form(content) if kind == "form" else {"content": content, "headers": {"content-type": kind}}
    reply = client.post("/predict", **sent)
    assert reply.status_code == 200
    found = reply.json()
    assert list(found) == ["glasses", "glasses_probability", "age", "age_interval"]
    assert found["glasses"] == "glasses" and found["age_interval"][0] <= found["age"] <= found["age_interval"][1]


def test_health_metrics_docs_and_page(client):
    assert client.get("/health").json()["models"] == {"glasses": "spectacles", "age": "ages"}
    client.post("/predict", **form(RED))
    text = client.get("/metrics").text
    assert 'faces_requests_total{path="/predict",status="200"}' in text
    assert "faces_requests_in_flight" in text and "faces_request_seconds_bucket" in text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/predict", "/predict", "/glass_no_glass/", "/health", "/metrics"} == set(paths)
    assert "multipart/form-data" in paths["/predict"]["post"]["requestBody"]["content"]
    for path, word in (("/", "Drop photos"), ("/docs", "openapi.json")):
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html") and word in page.text
        assert "http://" not in page.text and "https://" not in page.text  # it needs nothing from elsewhere


def test_without_a_glasses_model_that_path_is_not_there(tasks, tmp_path):
    shades = predict.Model(tiny_model.write(tmp_path / "shades", classes=["bare", "shaded"]))
    for others in ({"age": tasks["age"]}, {"glasses": shades}):
        with TestClient(serve.create_app(pipeline.Pipeline(others, "crop"))) as client:
            assert client.post("/glass_no_glass/", **form(RED)).status_code == 404


def test_a_decompression_bomb_is_refused_before_it_is_decoded(client, monkeypatch):
    decoded, bomb = [], helpers.png((9_000, 9_000), 8, 2, bytes(1000))  # far more pixels than its bytes hold
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    reply = client.post("/predict", **form(bomb, file="bomb.png"))
    assert reply.status_code == 422 and "9000x9000 pixels is over the limit" in reply.json()["detail"]
    assert not decoded


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no picture", "not a picture in a known format"),
        (RED[: len(RED) // 2], "runcated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "a PostScript program"),
    ],
    ids=["empty", "text", "truncated", "postscript"],
)
def test_what_is_no_picture_gets_422_with_the_reason(client, content, reason):
    reply = client.post("/predict", **form(content))
    assert reply.status_code == 422 and reason in reply.json()["detail"]


def test_what_is_neither_form_nor_image_gets_415_and_a_broken_form_422(client):
    assert client.post("/predict", json={"image": "photo.jpg"}).status_code == 415
    assert client.post("/predict").status_code == 415
    assert client.post("/glass_no_glass/", content="x", headers={"content-type": "text/plain"}).status_code == 415
    assert "field named `image`" in client.post("/predict", **form(RED, name="picture")).json()["detail"]
    assert client.post("/predict", files={"image": (None, "text")}).status_code == 422
    for kind in ("multipart/form-data", "multipart/form-data; boundary=xyz"):
        broken = client.post("/predict", content=b"garbage", headers={"content-type": kind})
        assert broken.status_code == 422, kind


def test_too_large_gets_413_however_it_is_sent(client):
    large = b"\xff" * (serve.MAX_BYTES + 1)
    assert client.post("/predict", content=large, headers={"content-type": "image/jpeg"}).status_code == 413
    assert client.post("/predict", **form(large)).status_code == 413

    def pieces():  # without a length, as streams come
        for _ in range(serve.MAX_BYTES // 1_000_000 + 1):
            yield b"\xff" * 1_000_000

    assert client.post("/predict", content=pieces(), headers={"content-type": "image/jpeg"}).status_code == 413


def test_the_largest_that_is_taken_never_touches_the_disk(client, monkeypatch):
    import tempfile

    refuse = helpers.raising(AssertionError("an upload was written to disk"))
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    content = photo(size=(900, 900), kind="BMP") + b"\0" * 3_000_000
    assert 5_000_000 < len(content) < serve.MAX_BYTES
    reply = client.post("/predict", **form(content))
    assert reply.json()["glasses"] in ("glasses", "no_glasses")  # it was decoded


class Fake:
    """The model of spectacles, with something else before each of its answers."""

    name, subject, frame = "fake", "face", images.Frame(16)

    def __init__(self, model, before):
        self.model, self.before, self.head = model, before, model.head

    def answers(self, pixels, heads=()):
        self.before()
        return self.model.answers(pixels, heads)


def service(model, **limits):
    return serve.create_app(pipeline.Pipeline({"glasses": model}, "crop"), serve.Load(**limits))


async def ask(app, *contents):
    """The replies to concurrent posts, of which ``None`` is a GET of /health."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        asks = (client.get("/health") if c is None else client.post("/glass_no_glass/", **form(c)) for c in contents)
        return await asyncio.gather(*asks)


def test_concurrent_requests_get_their_own_answers(tasks):
    photos = [RED if n % 3 else BLUE for n in range(64)]
    replies = asyncio.run(ask(service(tasks["glasses"], per_client=64), *photos))
    assert [reply.json()["answer"] for reply in replies] == ["glass" if n % 3 else "no_glass" for n in range(64)]


def test_overload_is_refused_and_told_and_survived(tasks):
    enough = threading.Event()
    app = service(Fake(tasks["glasses"], lambda: enough.wait(60)), max_requests=4)

    async def storm():
        first = [asyncio.create_task(ask(app, RED)) for _ in range(4)]
        while True:
            [health] = await ask(app, None)
            if health.status_code == 503:
                break
        [refused] = await ask(app, RED)
        enough.set()
        return health, refused, [reply for [reply] in await asyncio.gather(*first)], await ask(app, RED, None)

    health, refused, first, after = asyncio.run(storm())
    assert health.json()["status"] == "saturated"
    assert refused.headers["retry-after"] == "1" and "too many requests" in refused.json()["detail"]
    assert refused.status_code == 503 and {reply.status_code for reply in first} == {200}
    assert [reply.status_code for reply in after] == [200, 200]


def test_one_address_has_few_places_and_bodies_a_budget(tasks):
    replies = asyncio.run(ask(service(tasks["glasses"], per_client=3), *[RED] * 12))
    assert sorted(reply.status_code for reply in replies) == [200] * 3 + [429] * 9
    app = service(tasks["glasses"], max_bytes=len(RED) + 1000)
    [large, small] = asyncio.run(ask(app, RED + bytes(2000), RED))
    assert (large.status_code, small.status_code) == (503, 200)


def test_a_network_that_fails_fails_its_request_alone(tasks):
    failures = [predict.UsageError("not today")]

    def fail():
        if failures:
            raise failures.pop()

    with TestClient(service(Fake(tasks["glasses"], fail)), raise_server_exceptions=False) as client:
        assert client.post("/predict", **form(RED)).status_code == 500
        assert client.post("/predict", **form(RED)).status_code == 200


class Served:
    """The command ``faces serve`` in a process of its own, with quick limits."""

    LIMITS = "serve.HEADER_SECONDS = 3; serve.SHUTDOWN_SECONDS = 3; serve.Load.grace = 2; serve.Load.min_rate = 1000"

    def __init__(self, tasks):
        self.port = helpers.free_port()
        wanted = ",".join(f"{task}={model.folder}" for task, model in tasks.items())
        arguments = ["--port", str(self.port), "--tasks", wanted, "--faces", "crop"]
        code = f"import sys; from faces import serve; {self.LIMITS}; sys.exit(serve.main({arguments}))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=predict.ROOT, env=os.environ
        )
        helpers.answering(self.process, self.port)

    def get(self, path):
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=60)

    def post(self, content=RED):
        return httpx.post(f"http://127.0.0.1:{self.port}/glass_no_glass/", timeout=60, **form(content))

    def connect(self, sent=b""):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(sent)
        return connection

    def stop(self):
        """Stop it; returns seconds and what it wrote on stderr."""
        began = time.monotonic()
        self.process.terminate()
        _, errors = self.process.communicate(timeout=120)
        return time.monotonic() - began, errors


@pytest.fixture(scope="module")
def served(tasks):
    running = Served(tasks)
    yield running
    if running.process.poll() is None:
        _, errors = running.stop()
        assert "Traceback" not in errors, errors


HEADERS = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 50000\r\n"


@pytest.mark.slow
def test_many_are_answered_at_once_and_slow_uploads_hinder_nobody_and_are_ended(served):
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: served.post(), range(40)))
    assert {reply.json()["answer"] for reply in replies} == {"glass"}
    slow = [served.connect(HEADERS + b"\r\n" + bytes(10)) for _ in range(31)]
    assert served.post().status_code == 200 and served.get("/health").json()["status"] == "ok"
    for connection in slow:
        with connection, connection.makefile("rb") as reply:
            assert b" 408 " in reply.readline()
    assert served.post().status_code == 200


@pytest.mark.slow
def test_connections_without_a_request_are_closed(served):
    serve._allow_connections()
    idle = [served.connect() for _ in range(1000)] + [served.connect(HEADERS) for _ in range(20)]
    again = served.connect(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert again.recv(10_000).startswith(b"HTTP/1.1 200")
    again.sendall(HEADERS)
    idle.append(again)
    assert served.post().status_code == 200
    for connection in idle:
        with connection:
            assert connection.recv(1) == b""
    half = [served.connect(HEADERS + b"\r\n" + bytes(10)) for _ in range(20)]
    for connection in half:
        connection.shutdown(socket.SHUT_WR)
    assert served.post().status_code == 200
    for connection in half:
        connection.close()
    assert 'status="500"' not in served.get("/metrics").text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_many_hostile_posts_keep_to_the_budget(served):
    def peak():
        with open(f"/proc/{served.process.pid}/status") as file:  # noqa: PTH123
            return next(int(line.split()[1]) / 1000 for line in file if line.startswith("VmHWM"))

    gif = b"GIF89a" + struct.pack("<HH", 7000, 7000) + b"\x80\0\0" + bytes(6) + b"," + bytes(4)
    gif += struct.pack("<HH", 7000, 7000) + b"\0\x02\x02\x4c\x01\0;"
    before = peak()
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(served.post, [gif, helpers.png((7_000, 7_000), 8, 2, bytes(1000))] * 32))
    assert {reply.status_code for reply in replies} == {422}
    assert peak() - before < 600  # MB; 64 pictures of 49 million pixels would take 10,000


@pytest.mark.slow
def test_a_stalled_upload_does_not_keep_the_service_from_stopping(tasks):
    running = Served(tasks)
    stalled = running.connect(HEADERS + b"\r\n" + bytes(10))
    seconds, errors = running.stop()
    stalled.close()
    assert seconds < 60 and "Traceback" not in errors, errors
    assert f"http://127.0.0.1:{running.port}" in errors  # it says where it is


def test_what_it_cannot_be_started_with_is_one_line(capsys):
    assert serve.main(["--tasks", "glasses=nowhere"]) == 2
    assert capsys.readouterr().err.startswith("faces serve: no model 'nowhere'")
    with pytest.raises(SystemExit):
        serve.main(["--port", "65536"])
    assert capsys.readouterr().err.endswith("faces serve: error: --port is a number up to 65535\n")


def test_head_answers_and_a_client_that_hangs_up_is_no_failure(tasks):
    app = serve.create_app(pipeline.Pipeline(tasks, "crop"))
    sent = []

    async def post():
        scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/predict", "raw_path": b"/predict"}
        scope |= {"query_string": b"", "headers": [(b"content-type", b"image/jpeg")], "client": None, "server": None}
        incoming = iter([{"type": "http.request", "body": RED[:10], "more_body": True}, {"type": "http.disconnect"}])

        async def receive():
            return next(incoming)

        async def send(message):
            sent.append(message)

        await app({**scope, "scheme": "http", "root_path": "", "asgi": {"version": "3.0"}}, receive, send)

    with TestClient(app) as client:
        assert client.head("/health").status_code == client.head("/").status_code == 200
        asyncio.run(post())
        metrics = client.get("/metrics").text
    assert 'status="499"' in metrics and 'status="500"' not in metrics
