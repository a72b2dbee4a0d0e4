"""How much the service bears: python benchmarks/serve_load.py

Starts ``faces.serve`` in a process of its own on the loopback and sends it drawn faces, from few and from many clients
at once, each of which waits for its answer before it asks again. Then more clients than the service lets in: those
beyond must get 503 at once, and the others their answers as before.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import numpy as np

from faces.files import write_json
from faces.research.drawing import draw_face

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "artifacts" / "serve_load" / "metrics.json"


def drawn(number: int) -> bytes:
    """A drawn face as the bytes of a JPEG."""
    rng, file = np.random.default_rng(number), io.BytesIO()
    face = draw_face(rng, "female" if number % 2 else "male", 20 + number % 50, size=256)
    face.save(file, "JPEG", quality=90)
    return file.getvalue()


async def load(base: str, path: str, photos: list[bytes], clients: int, seconds: float) -> dict:
    """What ``clients`` at a time see in ``seconds``: answers a second, their times, and refusals."""
    answered, refused, failed = [], [], []
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(base_url=base, limits=limits, timeout=60) as client:
        end = time.perf_counter() + seconds

        async def one(number: int) -> None:
            while time.perf_counter() < end:
                started = time.perf_counter()
                reply = await client.post(
                    path, files={"image": ("face.jpg", photos[number % len(photos)], "image/jpeg")}
                )
                took = time.perf_counter() - started
                {200: answered, 503: refused}.get(reply.status_code, failed).append(took)
                if reply.status_code == 503:
                    await asyncio.sleep(0.1)
                number += clients

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(clients)))
        took = time.perf_counter() - began
    figures = {"clients": clients, "answers_per_s": round(len(answered) / took, 1), "answered": len(answered)}
    for name, times in (("answer", answered), ("refusal", refused)):
        if times:
            p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e3
            figures |= {f"{name}_p50_ms": round(float(p50), 1), f"{name}_p99_ms": round(float(p99), 1)}
    return figures | {"refused": len(refused), "failed": len(failed)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="glasses", help="what the service answers (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="at once, each in turn")
    parser.add_argument("--waiting", type=int, default=128, help="requests that the service lets in")
    parser.add_argument("--seconds", type=float, default=10, help="for each number of clients")
    parser.add_argument("--write", action="store_true", help=f"write {OUTPUT.relative_to(ROOT)}")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    photos, base = [drawn(number) for number in range(64)], f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "faces.serve", "--port", str(port), "--tasks", options.tasks]
    with subprocess.Popen(
        [*command, "--max-requests", str(options.waiting), "--per-client", "9999"], cwd=ROOT
    ) as server:
        try:
            for _ in range(200):
                try:
                    httpx2.get(f"{base}/health")
                    break
                except httpx2.TransportError:
                    if server.poll() is not None:
                        return 1  # it has said why
                    time.sleep(0.1)
            path = "/glass_no_glass/" if options.tasks == "glasses" else "/predict"
            rows = []
            for clients in (*options.clients, 3 * options.waiting):
                rows.append(asyncio.run(load(base, path, photos, clients, options.seconds)))
                print(rows[-1], flush=True)
            alive = httpx2.get(f"{base}/health").status_code == 200
        finally:
            server.terminate()
    if options.write:
        about = {"tasks": options.tasks, "waiting": options.waiting, "seconds_each": options.seconds, "load": rows}
        about["machine"] = f"{os.cpu_count()} cores, shared with the clients, {platform.machine()}, {platform.system()}"
        print(write_json(OUTPUT, about).relative_to(ROOT))
    return int(not alive or any(row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
