"""The runtime as a REST service: ``python -m faces.serve --port 8888`` (extra ``serve``).

  POST /predict            a photo -> every task's answer
  POST /glass_no_glass/    a photo -> {"answer": "glass"} or {"answer": "no_glass"}
  GET  /                   a page to drop a photo on
  GET  /health, /metrics   for those who watch over it; /docs describes all of it

A photo comes as the field ``image`` of a form (``curl -F "image=@photo.jpg" …``) or as the body itself. The answer is
about the largest face in it. It is decoded in memory: nothing is written to disk, and nothing is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from faces import __version__, finding, images
from faces.cli import load_tasks, looked_for, seer, tasks_of
from faces.predict import TASKS, Age, Model, Prediction, UsageError, entry, frames_of, place

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import HTMLResponse, PlainTextResponse
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect
except ImportError as missing:
    raise ImportError(
        f"the service needs {missing.name}, which is not installed: pip install '.[serve]' brings all it needs"
    ) from missing

MAX_BYTES = 10_000_000  # of a photo
MAX_PIXELS = 50_000_000  # of a photo; more is refused before it is decoded
BATCH_SIZE = 32  # photos a network sees at once
WAITING = 128  # requests at a time; more are turned away
PAGE = Path(__file__).with_name("page.html")
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
REFUSALS = {
    413: {"description": "The photo is larger than the service takes."},
    415: {"description": "Neither a form nor an image."},
    422: {"description": "No picture that can be decoded, or nobody in it; the reason is in `detail`."},
    503: {"description": "Too many requests at once; try again after the seconds in `Retry-After`."},
}


class Batches:
    """Photos of concurrent requests, answered together.

    While the networks work on one batch, those that arrive gather for the next: an idle service answers at once, a
    busy one in full batches. One thread runs the networks, two decode.

    Parameters
    ----------
    tasks : name -> model.
    size : photos a network sees at once.
    faces : "auto", "crop" or "detect", as for ``process.py``.

    Raises
    ------
    UsageError : the face detector cannot be loaded.
    """

    def __init__(self, tasks: Mapping[str, Model], size: int = BATCH_SIZE, faces: str = "auto"):
        self.tasks, self.size = dict(tasks), size
        self.see = seer(looked_for(faces, tasks.values()))
        self.frames = frames_of(tasks.values())
        self.sizes_seen: list[int] = []
        self.queue: asyncio.Queue = asyncio.Queue()
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self.network = ThreadPoolExecutor(1, thread_name_prefix="network")

    async def answer(self, photo: bytes) -> tuple[finding.Face | None, dict[str, Prediction | Age]]:
        """The largest face of a photo (None where it is the crop of one) and every task's answer about it.

        Raises
        ------
        images.ImageError : it cannot be decoded, or no face was found.
        """
        loop = asyncio.get_running_loop()
        seen = await loop.run_in_executor(self.decoders, self._decode, photo)
        if isinstance(seen, str):
            raise images.ImageError(seen)
        face, squares = seen
        waiting = loop.create_future()
        self.queue.put_nowait((squares, waiting))
        return face, await waiting

    def _decode(self, photo: bytes) -> tuple[finding.Face | None, dict[images.Frame, np.ndarray]] | str:
        """The largest face and its squares, or why there is none: in words, since an error keeps its traceback."""
        try:
            with images.BUDGET.until_done():
                faces, found = self.see(io.BytesIO(photo), self.frames, max_pixels=MAX_PIXELS)
        except images.ImageError as error:
            return str(error)
        if not faces:
            return "no face was found"
        return faces[0], dict(zip(self.frames, found[0], strict=True))

    def _run(self, batch: list[dict[images.Frame, np.ndarray]]) -> list[dict[str, Prediction | Age]]:
        pixels = {frame: np.stack([squares[frame] for squares in batch]) for frame in self.frames}
        answers = [model.predict(pixels[model.frame]) for model in self.tasks.values()]
        return [dict(zip(self.tasks, each, strict=True)) for each in zip(*answers, strict=True)]

    async def work(self) -> None:
        """Answer what is asked, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            while len(batch) < self.size and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            # Who has hung up meanwhile need not be answered.
            batch = [(squares, waiting) for squares, waiting in batch if not waiting.done()]
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(self.network, self._run, [squares for squares, _ in batch])
            except Exception as error:
                for _, waiting in batch:
                    if not waiting.done():
                        waiting.set_exception(error)
            else:
                self.sizes_seen.append(len(batch))
                for (_, waiting), answer in zip(batch, answers, strict=True):
                    if not waiting.done():
                        waiting.set_result(answer)

    def close(self) -> None:
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.network.shutdown(wait=False, cancel_futures=True)


class _InMemory(MultiPartParser):
    spool_max_size = 2 * MAX_BYTES  # what is over the limit is refused before: nothing ever reaches the disk


async def photo_of(request: Request, most: int = MAX_BYTES) -> bytes:
    """The photo in a request's body.

    Raises
    ------
    HTTPException : 413 for more than ``most`` bytes, 415 for neither a form nor an image, 422 for a form without one.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data" and not kind.startswith("image/") and kind != "application/octet-stream":
        raise HTTPException(415, f"send a form with the field `image`, or an image; this is {kind or 'of no type'}")
    # Around the photo a form has some hundred bytes of its own.
    room = most + 10_000 * (kind == "multipart/form-data")
    declared = request.headers.get("content-length", "")
    too_large = HTTPException(413, f"the photo is larger than {most:,} bytes")
    if declared.isdecimal() and int(declared) > room:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > room:
            raise too_large
    if kind != "multipart/form-data":
        return bytes(body)

    async def whole() -> AsyncIterator[bytes]:
        yield bytes(body)

    try:
        form = await _InMemory(request.headers, whole(), max_files=8, max_fields=8).parse()
    except (MultiPartException, KeyError) as error:
        raise HTTPException(422, f"the form cannot be read: {error}") from None
    async with form_closed(form):
        photo = form.get("image")
        if not isinstance(photo, UploadFile):
            raise HTTPException(422, "the form has no file in a field named `image`")
        content = await photo.read()
    if len(content) > most:
        raise too_large
    return content


@asynccontextmanager
async def form_closed(form):
    """A parsed form, closed at the end."""
    try:
        yield form
    finally:
        await form.close()


def create_app(
    tasks: Mapping[str, Model], *, batch_size: int = BATCH_SIZE, waiting: int = WAITING, faces: str = "auto"
) -> FastAPI:
    """The service for some models.

    Parameters
    ----------
    tasks : name -> model; with "glasses" among them ``/glass_no_glass/`` answers too.
    waiting : requests at a time; those beyond get 503.
    faces : "auto", "crop" or "detect", as for ``process.py``.

    Raises
    ------
    UsageError : the face detector cannot be loaded.
    """
    batches = Batches(tasks, batch_size, faces)
    registry = CollectorRegistry()
    count = Counter("faces_requests", "Requests by path and status", ["path", "status"], registry=registry)
    seconds = Histogram("faces_request_seconds", "Time to answer, by path", ["path"], registry=registry)
    present = Gauge("faces_requests_waiting", "Requests that are being answered", registry=registry)
    together = Histogram("faces_batch_photos", "Photos in a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        batches.queue = asyncio.Queue()  # of this event loop
        worker = asyncio.create_task(batches.work())
        yield
        worker.cancel()
        batches.close()

    app = FastAPI(title="faces", version=__version__, description=__doc__, lifespan=lifespan)
    app.state.present, app.state.batches = 0, batches

    async def ask(request: Request) -> tuple[finding.Face | None, dict[str, Prediction | Age]]:
        path, started, status = request.scope["route"].path, time.perf_counter(), 500
        if app.state.present >= waiting:
            count.labels(path, 503).inc()
            raise HTTPException(503, "too many requests at once; try again in a second", {"Retry-After": "1"})
        app.state.present += 1
        present.set(app.state.present)
        try:
            found = await batches.answer(await photo_of(request))
            status = 200
            while batches.sizes_seen:
                together.observe(batches.sizes_seen.pop())
            return found
        except HTTPException as error:
            status = error.status_code
            raise
        except ClientDisconnect:
            status = 499  # the client hung up: nobody reads this, and it is no failure of the service
            raise HTTPException(status, "the client hung up") from None
        except images.ImageError as error:
            status = 422
            raise HTTPException(422, str(error)) from None
        finally:
            app.state.present -= 1
            present.set(app.state.present)
            count.labels(path, status).inc()
            seconds.labels(path).observe(time.perf_counter() - started)

    @app.post("/predict", openapi_extra=UPLOAD, responses=REFUSALS)
    async def predict(request: Request) -> dict:
        """Every task's answer: labels with their probability, ages with their interval; and where the face is."""
        face, answers = await ask(request)
        return entry(answers) | place(face)

    if "glasses" in tasks:

        @app.post("/glass_no_glass/", openapi_extra=UPLOAD, responses=REFUSALS)
        async def glass_no_glass(request: Request) -> dict[str, str]:
            """`glass` if the face wears glasses, `no_glass` if not."""
            answer = (await ask(request))[1]["glasses"]
            return {"answer": "glass" if answer.label == "glasses" else "no_glass"}

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict:
        """That it is up, and what answers."""
        return {"status": "ok", "version": __version__, "models": {task: model.name for task, model in tasks.items()}}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counts and times in the format of Prometheus."""
        return PlainTextResponse(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    return app


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, or 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m faces.serve", description="Answer photos over HTTP; the page at / takes one by drag and drop."
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8888, help="default: %(default)s")
    parser.add_argument("--tasks", type=tasks_of, default=TASKS, metavar="TASK,…", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--faces", choices=("auto", "crop", "detect"), default="auto", help="as for process.py")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help="photos at once (%(default)s)")
    parser.add_argument("--waiting", type=int, default=WAITING, metavar="N", help="requests at once (%(default)s)")
    options = parser.parse_args(argv)
    if min(options.batch_size, options.waiting) < 1:
        parser.error("--batch-size and --waiting are numbers from 1")
    try:
        tasks = load_tasks(options.tasks)
        app = create_app(tasks, batch_size=options.batch_size, waiting=options.waiting, faces=options.faces)
    except UsageError as error:
        print(f"faces.serve: {error}", file=sys.stderr)
        return 2
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
