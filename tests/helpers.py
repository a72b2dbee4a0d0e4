"""What several files of tests need that is no fixture."""

import io
import socket
import struct
import time
import zlib
from urllib.request import urlopen


def raising(error):
    """A function that raises this error whatever it is given."""

    def fail(*_, **__):
        raise error

    return fail


def encoded(picture, form="JPEG", **options):
    """The bytes of a picture's file."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def chunk(kind, content, crc=None):
    """A chunk of a PNG."""
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(size, bits, colours, data, *others):
    """A PNG that announces such pixels, of 0 for grey or 2 for colours, and holds ``data`` and other chunks."""
    head = struct.pack(">IIBBBBB", *size, bits, colours, 0, 0, 0)
    rest = (*others, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(rest)


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answering(process, port):
    """Wait until ``process`` answers on ``port``, or has ended."""
    while process.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/health").close()
            break
        except OSError:
            time.sleep(0.1)
