"""How quick the report (``--html``) is in a browser: python benchmarks/report_speed.py

Writes the page of 50,000 drawn faces and has a headless Chromium open it, filter, sort and
scroll. Needs Chromium, its driver and selenium.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from selenium import webdriver
from serve_load import drawn

from faces import report
from faces.files import write_json

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "artifacts" / "report_speed" / "metrics.json"
PICTURES = 64
# Acts, and waits for the second frame after it, when what it did is on the screen.
ACT = """
const done = arguments[arguments.length - 1];
(new Function(arguments[0]))();
requestAnimationFrame(() => requestAnimationFrame(() => done()));
"""
# Milliseconds between frames while the page scrolls, at so many pixels a frame.
SCROLLED = """
const [step, seconds, done] = arguments, times = [];
let end = performance.now() + 1000 * seconds, last = null;
requestAnimationFrame(function frame(now) {
  if (last !== null) times.push(now - last);
  last = now;
  scrollBy(0, step);
  if (now < end) requestAnimationFrame(frame); else done(times);
});
"""
CHOOSE = "{0}.value = '{1}'; {0}.dispatchEvent(new Event('input', {{bubbles: true}}))"
ACTIONS = {
    "filter by label": "document.querySelector('.class').click()",
    "filter by name": CHOOSE.format("search", "7"),
    "filter by confidence": CHOOSE.format("sure", "80"),
    "sort by confidence": CHOOSE.format("sort", "unsure"),
    "sort by age": CHOOSE.format("sort", "age down"),
}
SCROLLS = {"wheel": 100, "page": 800, "scroll bar": 20_000}  # pixels a frame


def records(count: int) -> Iterator[tuple[str, dict]]:
    """Answers about drawn faces, drawn by chance too."""
    rng = np.random.default_rng(0)
    for number in range(count):
        age, sure = rng.uniform(1, 90), rng.uniform(0.5, 1, 2).round(4).tolist()
        face = {"gender": ("female", "male")[number % 2], "gender_probability": sure[0]}
        face |= {"glasses": ("glasses", "no_glasses")[number % 5 > 0], "glasses_probability": sure[1]}
        face |= {"age": round(age, 1), "age_interval": [int(age * 0.8), int(age * 1.2) + 1]}
        yield f"{number % PICTURES}.jpg", {"faces": [face]}


def measure(page: Path, repeats: int) -> dict:
    """Figures of a page, medians of so many openings.

    The milliseconds are those that the thread of the page computes, whatever else runs; the longest time between
    two frames is by the clock.
    """
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))  # else selenium asks the network for one
    took: dict[str, list[float]] = {name: [] for name in ("open", *ACTIONS, *SCROLLS)}
    longest: dict[str, float] = dict.fromkeys(SCROLLS, 0)
    with webdriver.Chrome(options, service) as browser:
        browser.set_script_timeout(120)
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})

        def computed() -> float:
            metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
            return 1000 * next(each["value"] for each in metrics if each["name"] == "TaskDuration")

        for _ in range(repeats):
            browser.get("about:blank")
            browser.get(page.as_uri())
            browser.execute_async_script(ACT, "")
            took["open"].append(computed())  # which counts from the opening on
            for name, script in ACTIONS.items():
                before = computed()
                browser.execute_async_script(ACT, script)
                took[name].append(computed() - before)
                browser.execute_async_script(ACT, "document.getElementById('clear').click()")
            for name, step in SCROLLS.items():
                browser.execute_script("scrollTo(0, 0)")
                before = computed()
                times = browser.execute_async_script(SCROLLED, step, 3)
                took[name].append((computed() - before) / len(times))
                longest[name] = max(longest[name], *times)
    return {
        "computed_ms": {name: round(statistics.median(times), 1) for name, times in took.items()},
        "longest_frame_ms": {name: round(time) for name, time in longest.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--page", type=Path, help="an earlier page of this script, kept by --keep")
    parser.add_argument("--keep", type=Path, help="folder for the page (default: a temporary one)")
    parser.add_argument("--write", action="store_true", help=f"write {OUTPUT.relative_to(ROOT)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        page = options.page or (options.keep or Path(home)) / "report.html"
        if not options.page:
            for number in range(PICTURES):
                (page.parent / f"{number}.jpg").write_bytes(drawn(number))
            tasks = ["gender", "age", "glasses"]
            report.write(records(options.faces), page, folder=page.parent, tasks=tasks, ages=["age"])
        figures = {"faces": options.faces} | measure(page, options.repeats)
    print(figures)
    if options.write:
        figures["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
        write_json(OUTPUT, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
