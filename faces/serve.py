"""The runtime as a REST service: ``faces serve --port 8888`` (extra ``serve``).

  POST /v1/predict         photos -> every task's answer about every face
  POST /predict            a photo -> every task's answer about its largest face
  POST /glass_no_glass/    a photo -> {"answer": "glass"} or {"answer": "no_glass"}, about its largest face
  GET  /                   a page to drop photos on
  GET  /health, /metrics   for monitoring; /docs describes all of it

A photo comes as the field ``image`` of a form (``curl -F "image=@photo.jpg" …``; /v1/predict takes several) or as the
body itself. It is decoded in memory: nothing is written to disk, and nothing is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import sys
import time
from collections import Counter as Counts
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from faces import __version__
from faces.options import add_options, detection, positive, tasks_asked
from faces.pipeline import Photo, Pipeline, to_record
from faces.predict import TASKS, UsageError, printable

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as missing:
    raise ImportError(
        f"the service needs {missing.name}, which is not installed: pip install 'faces[serve]'", name=missing.name
    ) from missing

MAX_BYTES = 10_000_000  # of a photo
MAX_BODY = 40_000_000  # of all photos of a request
MAX_PHOTOS = 16  # of a request
MAX_PIXELS = 50_000_000  # of a photo; more is refused before it is decoded
HEADER_SECONDS = 20  # for the headers of a request
SHUTDOWN_SECONDS = 10  # for requests under way when the service is stopped
PAGE, DOCS = (Path(__file__).with_name(name) for name in ("page.html", "docs.html"))
FILE = {"type": "string", "format": "binary"}
DETAIL = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}
REFUSALS = {
    408: "The photo came too slowly.",
    413: "The photo is larger than the service takes.",
    415: "Neither a form nor an image.",
    422: "Not a picture that can be decoded, or no face in it; the reason is in `detail`.",
    429: "Too many requests at once from one address.",
    503: "Too many requests at once; try again after the seconds in `Retry-After`.",
}


def _face_schema(pipeline: Pipeline) -> dict[str, Any]:
    """JSON schema of a face in the answers."""
    share = {"type": "number", "minimum": 0, "maximum": 1}
    found: dict[str, dict[str, Any]] = {}
    for task, (_, head) in pipeline.tasks.items():
        if head.classes:
            found |= {task: {"type": "string", "enum": list(head.classes)}, f"{task}_probability": share}
        else:
            years = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
            found |= {task: {"type": "number"}, f"{task}_interval": years | {"description": "lowest and highest"}}
    edges = "left, top, right and bottom edge in pixels of the photo the right way up; none for the crop of one face"
    box = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4, "description": edges}
    found |= {"box": box, "score": share | {"description": "confidence of the face detector"}}
    return {"type": "object", "required": [key for key in found if key not in ("box", "score")], "properties": found}


def _photos_schema(face: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of the answer of /v1/predict."""
    photo = {
        "file": {"type": "string", "description": "name of the uploaded file; empty for a body that is an image"},
        "faces": {"type": "array", "items": face},
        "error": {"type": "string", "description": "why the photo cannot be read; it then has no faces"},
    }
    photos = {"type": "array", "items": {"type": "object", "required": ["file"], "properties": photo}}
    return {"type": "object", "required": ["photos"], "properties": {"photos": photos}}


def _described(answer: dict[str, Any], image: dict[str, Any], **refusals: str) -> dict[str, Any]:
    """What the OpenAPI document says of a path that takes photos."""
    form = {"type": "object", "required": ["image"], "properties": {"image": image}}
    content = {"multipart/form-data": {"schema": form}, "image/*": {"schema": FILE}}
    content["application/octet-stream"] = {"schema": FILE}
    told = REFUSALS | {int(status): text for status, text in refusals.items()}
    refused = {
        status: {"description": text, "content": {"application/json": {"schema": DETAIL}}}
        for status, text in told.items()
    }
    answered = {200: {"description": "The answer.", "content": {"application/json": {"schema": answer}}}}
    return {"openapi_extra": {"requestBody": {"required": True, "content": content}}, "responses": answered | refused}


@dataclass
class Load:
    """Requests that are uploaded or answered, and their limits.

    A request takes one of ``max_requests`` places once its body is complete, so that slow uploads take none.

    Parameters
    ----------
    max_requests : int
        Photos that are answered, or wait for it, at once.
    per_client : int
        Requests at once from one address, uploads included.
    max_bytes : int
        Size of all bodies at once.
    body_seconds, grace, min_rate : float
        Longest time of an upload; and seconds after which it must have brought so many bytes a second on average.
    """

    max_requests: int = 128
    per_client: int = 32
    max_bytes: int = 200_000_000
    body_seconds: float = 120.0
    grace: float = 10.0
    min_rate: float = 10_000.0
    in_flight: int = 0
    held: int = 0
    clients: Counts[str] = field(default_factory=Counts)

    @property
    def saturated(self) -> bool:
        """Whether no further photo is taken."""
        return self.in_flight >= self.max_requests or self.held >= self.max_bytes

    @contextmanager
    def client(self, address: str) -> Iterator[None]:
        """Count a request of an address; 429 if it has too many."""
        if self.clients[address] >= self.per_client:
            raise HTTPException(429, "too many requests at once from this address", {"Retry-After": "1"})
        self.clients[address] += 1
        try:
            yield
        finally:
            self.clients[address] -= 1
            self.clients += Counts()  # drops addresses without requests

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for the time of an answer; 503 if none is free."""
        if self.in_flight >= self.max_requests:
            raise _busy()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @asynccontextmanager
    async def body(self, request: Request, most: int) -> AsyncIterator[bytes]:
        """The body of a request, counted until the end; 408 if it comes too slowly, 413 if it is too large."""
        loop, body, stream = asyncio.get_running_loop(), bytearray(), request.stream()
        began = loop.time()
        try:
            while True:
                late = began + min(self.body_seconds, self.grace + len(body) / self.min_rate)
                try:
                    async with asyncio.timeout_at(late):
                        chunk = await anext(stream, None)
                except TimeoutError:
                    raise HTTPException(408, "the photo came too slowly", {"Connection": "close"}) from None
                except asyncio.CancelledError:
                    raise HTTPException(503, "the service is stopping") from None
                if chunk is None:
                    break
                body += chunk
                self.held += len(chunk)
                if len(body) > most:
                    raise _too_large()
                if self.held > self.max_bytes:
                    raise _busy()
            yield bytes(body)
        finally:
            self.held -= len(body)


def _busy() -> HTTPException:
    return HTTPException(503, "too many requests at once; try again in a second", {"Retry-After": "1"})


def _too_large() -> HTTPException:
    return HTTPException(413, f"the photo is larger than {MAX_BYTES:,} bytes")


class _InMemory(MultiPartParser):
    spool_max_size = 2 * MAX_BODY  # larger bodies are refused before: nothing ever reaches the disk


@asynccontextmanager
async def photos_of(request: Request, load: Load, most: int) -> AsyncIterator[list[tuple[str, bytes]]]:
    """Names and contents of the photos in a request's body, which counts until the end.

    Raises
    ------
    HTTPException
        413 for a photo of more than ``MAX_BYTES`` or more than ``MAX_BODY`` in all, 415 for neither a form nor an
        image, 422 for a form without an image or with more than ``most``.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = kind == "multipart/form-data"
    if not form and not kind.startswith("image/") and kind != "application/octet-stream":
        raise HTTPException(415, f"send a form with the field `image`, or an image; this is {kind or 'of no type'}")
    # Around a photo a form has some hundred bytes of its own.
    limit = (MAX_BODY if most > 1 else MAX_BYTES + 10_000) if form else MAX_BYTES
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large()
    async with load.body(request, limit) as body:
        photos = await _image_fields(request, body, most) if form else [("", body)]
        if any(len(content) > MAX_BYTES for _, content in photos):
            raise _too_large()
        yield photos


async def _image_fields(request: Request, body: bytes, most: int) -> list[tuple[str, bytes]]:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _InMemory(request.headers, whole(), max_files=MAX_PHOTOS, max_fields=8).parse()
    except (MultiPartException, KeyError) as error:
        raise HTTPException(422, f"the form cannot be read: {error}") from None
    try:
        files = [file for file in form.getlist("image") if isinstance(file, UploadFile)]
        if not files:
            raise HTTPException(422, "the form has no file in a field named `image`")
        if len(files) > most:
            raise HTTPException(422, f"the form has {len(files)} files named `image`: POST /v1/predict takes several")
        return [(printable(file.filename or ""), await file.read()) for file in files]
    finally:
        await form.close()


def answer(pipeline: Pipeline, photo: bytes, faces: int | None = None) -> Photo:
    """The answers about the largest ``faces`` of a photo, by default about all."""
    decoded = pipeline.read("photo", io.BytesIO(photo))
    [answered] = pipeline.answer([replace(decoded, faces=decoded.faces[:faces], squares=decoded.squares[:faces])])
    return answered


def _entry(name: str, photo: Photo) -> dict[str, Any]:
    """A photo in the answer of /v1/predict."""
    if photo.error is not None:
        return {"file": name, "error": str(photo.error)}
    return {"file": name, "faces": [to_record(face) for face in photo.faces]}


def create_app(pipeline: Pipeline, load: Load | None = None) -> FastAPI:
    """The service for some models.

    Parameters
    ----------
    pipeline : Pipeline
        With a task "glasses" that has such a class ``/glass_no_glass/`` answers too. Photos of more than ``MAX_PIXELS``
        are refused unless it has a limit of its own.
    load : Load, optional
        The limits.
    """
    load = load or Load()
    pipeline.max_pixels = pipeline.max_pixels or MAX_PIXELS
    registry = CollectorRegistry()
    count = Counter("faces_requests", "Requests by path and status", ["path", "status"], registry=registry)
    seconds = Histogram("faces_request_seconds", "Time to answer, by path", ["path"], registry=registry)
    Gauge("faces_requests_in_flight", "Photos that are answered", registry=registry).set_function(
        lambda: load.in_flight
    )
    Gauge("faces_body_bytes", "Bytes of bodies in memory", registry=registry).set_function(lambda: load.held)
    pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="photo")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown(wait=False, cancel_futures=True)

    about = (__doc__ or "").split("\n\n")[-1].replace("``", "`")
    app = FastAPI(
        title="faces", version=__version__, description=about, lifespan=lifespan, docs_url=None, redoc_url=None
    )

    async def ask(request: Request, photos: int, faces: int | None) -> list[tuple[str, Photo]]:
        """Names of the photos of a request, and the answers; 422 if none can be read."""
        path, started, status = request.scope["route"].path, time.perf_counter(), 500
        try:
            with load.client(request.client.host if request.client else ""):
                async with photos_of(request, load, photos) as sent:
                    with load.place():
                        found = [(name, await in_pool(answer, pipeline, photo, faces)) for name, photo in sent]
            if all(photo.error is not None for _, photo in found):
                raise HTTPException(422, "; ".join(dict.fromkeys(str(photo.error) for _, photo in found)))
            if faces == 1 and not found[0][1].faces:
                raise HTTPException(422, "no face was found")
            status = 200
            return found
        except HTTPException as error:
            status = error.status_code
            raise
        except ClientDisconnect:
            status = 499  # the client hung up: no failure of the service
            raise HTTPException(status, "the client hung up") from None
        finally:
            count.labels(path, status).inc()
            seconds.labels(path).observe(time.perf_counter() - started)

    def in_pool(function: Callable[..., Photo], *arguments: Any) -> Awaitable[Photo]:
        return asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    face = _face_schema(pipeline)
    several = {"type": "array", "items": FILE, "minItems": 1, "maxItems": MAX_PHOTOS}
    none = "None of the photos can be decoded, or more than the service takes at once; the reason is in `detail`."

    @app.post("/v1/predict", **_described(_photos_schema(face), several, **{"422": none}))
    async def predict_all(request: Request) -> JSONResponse:
        """Every task's answer about every face of one or several photos.

        Labels come with their probability, ages with their interval, and each face with where it is.
        """
        return JSONResponse({"photos": [_entry(*each) for each in await ask(request, MAX_PHOTOS, None)]})

    @app.post("/predict", **_described(face, FILE))
    async def predict(request: Request) -> JSONResponse:
        """Every task's answer about the largest face of a photo, and where that is."""
        [(_, photo)] = await ask(request, 1, 1)
        return JSONResponse(to_record(photo.faces[0]))

    if "glasses" in pipeline.tasks and "glasses" in pipeline.tasks["glasses"][1].classes:
        word = {"type": "object", "required": ["answer"], "properties": {"answer": {"enum": ["glass", "no_glass"]}}}

        @app.post("/glass_no_glass/", **_described(word, FILE))
        async def glass_no_glass(request: Request) -> JSONResponse:
            """`glass` if the largest face wears glasses, `no_glass` if not."""
            [(_, photo)] = await ask(request, 1, 1)
            wears = to_record(photo.faces[0])["glasses"] == "glasses"
            return JSONResponse({"answer": "glass" if wears else "no_glass"})

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses={503: {"description": "Saturated: photos are refused at the moment."}})
    async def health() -> JSONResponse:
        """Whether it takes photos, and which models answer."""
        about: dict[str, Any] = {"status": "saturated" if load.saturated else "ok", "version": __version__}
        about |= {"models": {task: model.name for task, (model, _) in pipeline.tasks.items()}}
        return JSONResponse(about, 503 if load.saturated else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counts and times in the format of Prometheus."""
        return PlainTextResponse(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(DOCS.read_text(encoding="utf-8"))

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    return app


class Protocol(H11Protocol):
    """HTTP/1.1 that closes connections on which no request comes in time."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._close_idle)

    def _close_idle(self, before: object = None) -> None:
        """Close if no request has begun since the last call; uvicorn's own limit ends with the first byte."""
        if self.transport.is_closing():
            return
        if self.cycle is before:
            self.transport.close()
        else:
            busy = not self.cycle.response_complete
            self.loop.call_later(HEADER_SECONDS, self._close_idle, object() if busy else self.cycle)


def _allow_connections() -> None:
    """Raise the limit of open files, which connections count as, as far as the system lets."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="faces serve", description="Answer photos over HTTP; the page at / takes one by drag and drop."
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8888, help="default: %(default)s")
    add_options(parser, ",".join(TASKS))
    for name, about in (("max-requests", "photos at once"), ("per-client", "requests at once from one address")):
        default = getattr(Load, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=f"{about} (%(default)s)")
    options = parser.parse_args(argv)
    if not 0 <= options.port < 2**16:
        parser.error("--port is a number up to 65535")
    try:
        pipeline = Pipeline(tasks_asked(options, TASKS), **detection(options))
    except UsageError as error:
        print(f"faces serve: {error}", file=sys.stderr)
        return 2
    _allow_connections()
    uvicorn.run(
        create_app(pipeline, Load(options.max_requests, options.per_client)),
        host=options.host,
        port=options.port,
        http=Protocol,
        access_log=False,  # what it logs else is the address, when it listens
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
