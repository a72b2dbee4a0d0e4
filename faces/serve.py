"""The runtime as a REST service: ``faces serve --port 8888`` (extra ``serve``).

  POST /predict            a photo -> every task's answer
  POST /glass_no_glass/    a photo -> {"answer": "glass"} or {"answer": "no_glass"}
  GET  /                   a page to drop a photo on
  GET  /health, /metrics   for monitoring; /docs describes all of it

A photo comes as the field ``image`` of a form (``curl -F "image=@photo.jpg" …``) or as the body itself. The answer is
about the largest face in it. It is decoded in memory: nothing is written to disk, and nothing is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import sys
import time
from collections import Counter as Counts
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from faces import __version__
from faces.cli import add_options, detection, tasks_asked
from faces.pipeline import Face, Pipeline, to_record
from faces.predict import TASKS, UsageError

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
MAX_PIXELS = 50_000_000  # of a photo; more is refused before it is decoded
HEADER_SECONDS = 20  # for the headers of a request
SHUTDOWN_SECONDS = 10  # for requests under way when the service is stopped
PAGE = Path(__file__).with_name("page.html")
FILE = {"type": "string", "format": "binary"}
FORM = {"type": "object", "required": ["image"], "properties": {"image": FILE}}
CONTENT = {"multipart/form-data": {"schema": FORM}, "image/*": {"schema": FILE}}
UPLOAD = {"requestBody": {"required": True, "content": CONTENT}}
REFUSALS = {
    408: {"description": "The photo came too slowly."},
    413: {"description": "The photo is larger than the service takes."},
    415: {"description": "Neither a form nor an image."},
    422: {"description": "Not a picture that can be decoded, or no face in it; the reason is in `detail`."},
    429: {"description": "Too many requests at once from one address."},
    503: {"description": "Too many requests at once; try again after the seconds in `Retry-After`."},
}


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
    bytes: int = 0
    clients: Counts = field(default_factory=Counts)

    @property
    def saturated(self) -> bool:
        return self.in_flight >= self.max_requests or self.bytes >= self.max_bytes

    @contextmanager
    def client(self, address: str):
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
    def place(self):
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
                self.bytes += len(chunk)
                if len(body) > most:
                    raise _too_large()
                if self.bytes > self.max_bytes:
                    raise _busy()
            yield bytes(body)
        finally:
            self.bytes -= len(body)


def _busy() -> HTTPException:
    return HTTPException(503, "too many requests at once; try again in a second", {"Retry-After": "1"})


def _too_large() -> HTTPException:
    return HTTPException(413, f"the photo is larger than {MAX_BYTES:,} bytes")


class _InMemory(MultiPartParser):
    spool_max_size = 2 * MAX_BYTES  # larger bodies are refused before: nothing ever reaches the disk


@asynccontextmanager
async def photo_of(request: Request, load: Load) -> AsyncIterator[bytes]:
    """The photo in a request's body, which counts until the end.

    Raises
    ------
    HTTPException
        413 for more than ``MAX_BYTES``, 415 for neither a form nor an image, 422 for a form without an image.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data" and not kind.startswith("image/") and kind != "application/octet-stream":
        raise HTTPException(415, f"send a form with the field `image`, or an image; this is {kind or 'of no type'}")
    # Around the photo a form has some hundred bytes of its own.
    most = MAX_BYTES + 10_000 * (kind == "multipart/form-data")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large()
    async with load.body(request, most) as body:
        content = await _image_field(request, body) if kind == "multipart/form-data" else body
        if len(content) > MAX_BYTES:
            raise _too_large()
        yield content


async def _image_field(request: Request, body: bytes) -> bytes:
    async def whole() -> AsyncIterator[bytes]:
        yield body

    try:
        form = await _InMemory(request.headers, whole(), max_files=8, max_fields=8).parse()
    except (MultiPartException, KeyError) as error:
        raise HTTPException(422, f"the form cannot be read: {error}") from None
    try:
        photo = form.get("image")
        if not isinstance(photo, UploadFile):
            raise HTTPException(422, "the form has no file in a field named `image`")
        return await photo.read()
    finally:
        await form.close()


def largest_face(pipeline: Pipeline, photo: bytes) -> Face | str:
    """The answers about the largest face of a photo, or why there are none."""
    decoded = pipeline.read("photo", io.BytesIO(photo))
    if decoded.error is not None:
        return str(decoded.error)
    if not decoded.faces:
        return "no face was found"
    [answered] = pipeline.answer([replace(decoded, faces=decoded.faces[:1], squares=decoded.squares[:1])])
    return answered.faces[0]


def create_app(pipeline: Pipeline, load: Load | None = None) -> FastAPI:
    """The service for some models.

    Parameters
    ----------
    pipeline : Pipeline
        With a task "glasses" ``/glass_no_glass/`` answers too. Photos of more than ``MAX_PIXELS`` are refused unless it
        has a limit of its own.
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
    Gauge("faces_body_bytes", "Bytes of bodies in memory", registry=registry).set_function(lambda: load.bytes)
    pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="photo")

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="faces", version=__version__, description=__doc__, lifespan=lifespan)

    async def ask(request: Request) -> Face:
        path, started, status = request.scope["route"].path, time.perf_counter(), 500
        try:
            with load.client(request.client.host if request.client else ""):
                async with photo_of(request, load) as photo:
                    with load.place():
                        work = asyncio.get_running_loop().run_in_executor(pool, largest_face, pipeline, photo)
                        found = await work
            if isinstance(found, str):
                raise HTTPException(422, found)
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

    @app.post("/predict", openapi_extra=UPLOAD, responses=REFUSALS)
    async def predict(request: Request) -> dict:
        """Every task's answer: labels with their probability, ages with their interval; and where the face is."""
        return to_record(await ask(request))

    if "glasses" in pipeline.tasks:

        @app.post("/glass_no_glass/", openapi_extra=UPLOAD, responses=REFUSALS)
        async def glass_no_glass(request: Request) -> dict[str, str]:
            """`glass` if the face wears glasses, `no_glass` if not."""
            answer = (await ask(request)).answers["glasses"]
            return {"answer": "glass" if answer.label == "glasses" else "no_glass"}

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses={503: {"description": "Saturated: photos are refused at the moment."}})
    async def health() -> JSONResponse:
        """Whether it takes photos, and which models answer."""
        about = {"status": "saturated" if load.saturated else "ok", "version": __version__}
        about |= {"models": {task: model.name for task, (model, _) in pipeline.tasks.items()}}
        return JSONResponse(about, 503 if load.saturated else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counts and times in the format of Prometheus."""
        return PlainTextResponse(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    return app


class Protocol(H11Protocol):
    """HTTP/1.1 that closes connections on which no request comes in time."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._close_idle)

    def _close_idle(self, before=None) -> None:
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
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{about} (%(default)s)")
    options = parser.parse_args(argv)
    if min(options.max_requests, options.per_client) < 1:
        parser.error("--max-requests and --per-client are numbers from 1")
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
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
