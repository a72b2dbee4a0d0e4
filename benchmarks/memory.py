"""Peak memory while large and hostile pictures are decoded: python benchmarks/memory.py

Draws folders of pictures of up to 50 megapixels in every format, whole and damaged, and small files that claim to be
large; runs ``process.py`` on each folder, then posts hostile files to ``faces.serve``, 64 at once. Prints the peak of
the resident memory of each run (Linux). ``--write`` keeps those of ``process.py`` on pictures of 50 megapixels.
"""

from __future__ import annotations

import argparse
import io
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

from faces.files import write_json

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "artifacts" / "memory" / "metrics.json"
pillow_heif.register_heif_opener()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Soft noise of any size, quick to draw."""
    small = np.random.default_rng(0).integers(0, 256, (97, 131, len(mode)), dtype=np.uint8)
    return Image.fromarray(small, mode if mode == "RGBA" else None).resize((width, height), Image.Resampling.BILINEAR)


def png(width: int, height: int, colours: int = 2) -> bytes:
    """A whole PNG of one colour: a few kilobytes, whatever its size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[colours])
    packer = zlib.compressobj(9)
    lines = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def blp(width: int, height: int) -> bytes:
    """A texture of 889 bytes with a header that claims more."""
    return struct.pack("<4siBBBBII", b"BLP2", 1, 1, 0, 0, 0, width, height) + bytes(865)


def gif(width: int, height: int) -> bytes:
    """A GIF whose first frame claims to be large and asks for its place to be cleared afterwards."""
    control = b"!\xf9\x04\x08\0\0\0\0"
    frame = struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0x80, 0, 0) + bytes(6) + control + b"," + frame + b"\x02\x02D\x01\0;"


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def folders() -> dict[str, Callable[[], dict[str, bytes]]]:
    """Name -> what draws the contents of a folder; 50 megapixels are 8,160 × 6,120."""
    large = 8160, 6120

    def repeated(name: str, content: bytes, times: int) -> dict[str, bytes]:
        return {f"{number}_{name}": content for number in range(times)}

    def saved(format: str, mode: str = "RGB", times: int = 3, size=large, **options) -> dict[str, bytes]:
        return repeated(f"{format}.{format.lower()}", encoded(noise(*size, mode), format, **options), times)

    plain = png(*large, 6)
    cut = encoded(noise(4000, 3000), "PNG", compress_level=1)
    return {
        "small photos": lambda: saved("JPEG", size=(640, 480), times=60),
        "12 megapixels, JPEG": lambda: saved("JPEG", size=(4000, 3000), times=12),
        "50 megapixels, JPEG": lambda: saved("JPEG"),
        "50 megapixels, progressive JPEG": lambda: saved("JPEG", progressive=True, times=2),
        "50 megapixels, progressive JPEG 4:4:4": lambda: saved("JPEG", progressive=True, subsampling=0, times=2),
        "200 megapixels, JPEG": lambda: saved("JPEG", size=(16320, 12240), times=2),
        "50 megapixels, PNG": lambda: repeated("a.png", png(*large), 4),
        "50 megapixels, PNG with alpha": lambda: repeated("a.png", plain, 4),
        "50 megapixels, TIFF in one strip": lambda: saved("TIFF", compression="tiff_lzw", strip_size=2**30, times=2),
        "50 megapixels, uncompressed TIFF": lambda: saved("TIFF", times=2),
        "50 megapixels, BMP": lambda: saved("BMP", times=2),
        "50 megapixels, WebP": lambda: saved("WEBP", method=0, times=2),
        "50 megapixels, AVIF": lambda: saved("AVIF", speed=10, times=2),
        "50 megapixels, HEIC": lambda: saved("HEIF", times=2),
        "24 megapixels, JPEG 2000": lambda: saved("JPEG2000", size=(6000, 4000), times=2),
        "24 megapixels, WebP": lambda: saved("WEBP", size=(6000, 4000), method=0, times=2),
        "24 megapixels, AVIF": lambda: saved("AVIF", size=(6000, 4000), speed=10, times=2),
        "40 whole PNGs of 12 megapixels": lambda: repeated("a.png", cut, 40),
        "40 truncated PNGs of 12 megapixels": lambda: repeated("a.png", cut[: len(cut) * 9 // 10], 40),
        "hostile": lambda: (
            repeated("a.blp", blp(7000, 7000), 10)
            | repeated("b.png", plain[:5000], 10)
            | repeated("c.gif", gif(16000, 11000), 10)
        ),
        "144 megapixels, PNG": lambda: repeated("a.png", png(12000, 12000), 2),
    }


def peak_of_command(contents: dict[str, bytes], *options: str) -> tuple[float, float]:
    """Peak in MB and seconds of ``process.py`` on a folder."""
    with tempfile.TemporaryDirectory() as home:
        photos = Path(home) / "photos"
        photos.mkdir()
        for name, content in contents.items():
            (photos / name).write_bytes(content)
        command = [sys.executable, str(ROOT / "process.py"), str(photos), "--output", f"{home}/out.json", *options]
        started = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            peak = 0.0
            while child.poll() is None:
                peak = max(peak, peak_of(child.pid))
                time.sleep(0.05)
        return peak, time.monotonic() - started


def peak_of(process: int) -> float:
    """Peak in MB of a process so far. (What ``wait4`` tells is that of the process that started it, where larger.)"""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM:")), 0.0)


def peak_of_service(content: bytes, posts: int) -> tuple[float, dict[int, int]]:
    """Peak in MB of ``faces.serve`` when so many post one file at once, and the statuses that they get."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "faces.serve", "--port", str(port), "--tasks", "glasses", "--per-client", "999"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                except OSError:
                    time.sleep(0.1)

            def post(_) -> int:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/predict", content, {"content-type": "application/octet-stream"}
                )
                try:
                    return urllib.request.urlopen(request, timeout=300).status
                except urllib.error.HTTPError as error:
                    return error.code

            with ThreadPoolExecutor(posts) as pool:
                statuses = list(pool.map(post, range(posts)))
            peak = peak_of(server.pid)
        finally:
            server.terminate()
    return peak, {status: statuses.count(status) for status in sorted(set(statuses))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name holds these")
    parser.add_argument("--posts", type=int, default=64, help="to the service at once (default: %(default)s)")
    parser.add_argument("--tasks", default="gender", help="of process.py (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help=f"write {OUTPUT.relative_to(ROOT)} and leave it at that")
    options = parser.parse_args()
    only, peaks = "50 megapixels, " if options.write else options.only, {}
    for name, drawn in folders().items():
        if only in name:
            peak, seconds = peak_of_command(drawn(), "--tasks", options.tasks)
            peaks[name.removeprefix(only)] = round(peak)
            print(f"process.py, {name}: {peak:.0f} MB, {seconds:.1f} s", flush=True)
    if options.write:
        write_json(OUTPUT, {"tasks": options.tasks, "peak_mb_50_megapixels": peaks})
        return 0
    posted = {
        "a PNG with alpha of 49 megapixels": lambda: png(7000, 7000, 6),
        "a PNG of 400 megapixels": lambda: png(20000, 20000, 0),
        "a BLP of 889 bytes": lambda: blp(7000, 7000),
        "a GIF of 176 megapixels": lambda: gif(16000, 11000),
        "a TIFF of 49 megapixels": lambda: encoded(Image.new("RGB", (7000, 7000)), "TIFF", compression="tiff_deflate"),
        "a WebP of 49 megapixels": lambda: encoded(Image.new("RGB", (7000, 7000)), "WEBP", method=0),
        "a WebP of 20 megapixels": lambda: encoded(Image.new("RGB", (5000, 4000)), "WEBP", method=0),
        "10 MB that are no picture": lambda: bytes(10_000_000),
    }
    for name, drawn in posted.items():
        if options.only in name:
            peak, statuses = peak_of_service(drawn(), options.posts)
            print(f"faces.serve, {options.posts} posts of {name}: {peak:.0f} MB, {statuses}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
