"""Draw the pictures of README.md and docs: the group of portraits, its answers, command line, report, service page.

    python tools/pictures.py            # all of them; needs Chromium, its driver and selenium
    python tools/pictures.py group      # one of them

Portraits: DeBruine and Jones, Face Research Lab London Set, CC BY 4.0 (samples/portraits/README.md).
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
SAMPLES, TARGET = ROOT / "samples", ROOT / "docs" / "pictures"
GROUP = SAMPLES / "group.jpg"
PEOPLE = ("025", "119", "136", "061", "087", "140", "038", "024")  # of the London Set, smiling
TASKS = "gender,age,glasses"


def group() -> None:
    """samples/group.jpg: eight portraits in two rows."""
    side, sheet = 320, Image.new("RGB", (4 * 320, 2 * 320), "white")
    for number, person in enumerate(PEOPLE):
        portrait = Image.open(SAMPLES / "portraits" / "london" / f"{person}_smiling.jpg").convert("RGB")
        sheet.paste(portrait.resize((side, side)), (side * (number % 4), side * (number // 4)))
    sheet.save(GROUP, quality=88)


def answers() -> None:
    """The group with boxes and answers, as ``process.py --annotate`` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        _faces("label", str(GROUP), "--tasks", TASKS, "--annotate", folder, "-o", f"{folder}/results.json")
        [drawn] = Path(folder).rglob("group.*")
        Image.open(drawn).convert("RGB").save(TARGET / "answers.jpg", quality=88, comment=b"")


def command_line() -> None:
    """A terminal with a command and what it prints."""
    command = ["label", "samples", "--tasks", TASKS, "--format", "csv", "-o", "-"]
    printed = _faces(*command).stdout.splitlines()
    rows = [[cell.strip('"') for cell in line.split(",")] for line in printed]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["$ faces " + " ".join(command) + " | column -s, -t"]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), 15)
    width = max(font.getbbox(line)[2] for line in lines)
    picture = Image.new("RGB", (int(width) + 40, 22 * len(lines) + 40), "#1e1e2e")
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        pen.text((20, 20 + 22 * number), line, font=font, fill="#f9e2af" if number == 0 else "#cdd6f4")
    picture.save(TARGET / "command_line.png", optimize=True)


def report() -> None:
    """The page of ``--html`` about the portraits."""
    with tempfile.TemporaryDirectory() as folder, _browser(1200, 900) as browser:
        page = Path(folder) / "report.html"
        photos = SAMPLES / "portraits" / "london"
        _faces("label", str(photos), "--tasks", TASKS, "--html", str(page), "-o", f"{folder}/results.json")
        browser.get(page.as_uri())
        time.sleep(2)  # thumbnails are decoded as they come into view
        browser.save_screenshot(str(TARGET / "report.png"))
    _smaller(TARGET / "report.png")


def service() -> None:
    """The service's page with an answer about the group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = subprocess.Popen([sys.executable, "-m", "faces.serve", "--port", str(port)], cwd=ROOT)
    try:
        _wait(lambda: urlopen(f"http://127.0.0.1:{port}/health").close() is None)
        with _browser(900, 900) as browser:
            browser.get(f"http://127.0.0.1:{port}/")
            browser.find_element("css selector", "input[type=file]").send_keys(str(GROUP))
            _wait(lambda: "1 of 1 answered" in browser.find_element("css selector", "body").text)
            time.sleep(1)  # the boxes are drawn
            browser.save_screenshot(str(TARGET / "service.png"))
    finally:
        running.terminate()
        running.wait()
    _smaller(TARGET / "service.png")


def _faces(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "faces.cli", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )


@contextmanager
def _browser(width: int, height: int):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def _wait(ready: Callable[[], bool], seconds: int = 120) -> None:
    for _ in range(seconds):
        with suppress(URLError):
            if ready():
                return
        time.sleep(1)
    raise TimeoutError("the service does not answer")


def _smaller(path: Path) -> None:
    """Write a screenshot with 256 colours, a third as large."""
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = {function.__name__: function for function in (group, answers, command_line, report, service)}
    parser.add_argument("which", nargs="*", choices=[*every, []], default=[], help="default: all")
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().which or every:
        every[name]()


if __name__ == "__main__":
    main()
