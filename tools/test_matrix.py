"""Run the tests, without those that execute notebooks, under other kernels, thread counts and seeds, one after another.

    python tools/test_matrix.py                       # everything: hours on two cores
    python tools/test_matrix.py tests/test_golden.py  # arguments go to pytest
    python tools/test_matrix.py runtime               # process.py, pipeline and images, without settings of torch

Prints a Markdown table; the exit status is 1 if a test failed under some setting. With fewer processors than threads,
OMP_NUM_THREADS still takes effect: sums are then split differently.
"""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
FIXED = {"OMP_NUM_THREADS": "1", "FACES_TEST_SEED": "0"}
SETTINGS = [
    *({"ATEN_CPU_CAPABILITY": kernels} for kernels in ("default", "avx2", "avx512")),
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    # As numpy 2.4 calls them; a name that it doesn't know is passed over.
    *(
        {"NPY_DISABLE_CPU_FEATURES": features}
        for features in ("X86_V4 AVX512_ICL AVX512_SPR", "X86_V3 X86_V4 AVX512_ICL AVX512_SPR")
    ),
    *({"OMP_NUM_THREADS": threads} for threads in ("1", "2", "4")),
    *({"FACES_TEST_SEED": seed} for seed in ("1", "2", "3", "4")),
]
RUNTIME = [f"tests/test_{name}.py" for name in ("process", "pipeline", "images")]
NOTEBOOKS = tuple(path.name for path in ROOT.glob("tests/test_*_notebook*.py")) + ("test_papermill.py",)


def run(setting: dict[str, str], arguments: list[str]) -> int:
    """Number of failed tests; prints the table's row."""
    environment = {k: v for k, v in os.environ.items() if k not in set().union(*SETTINGS)} | FIXED | setting
    command = [sys.executable, "-m", "pytest", "-q", "--durations=0", "--durations-min=20", "-p", "no:cacheprovider"]
    command += [f"--ignore=tests/{name}" for name in NOTEBOOKS]
    with TemporaryDirectory() as folder:
        report, start = Path(folder) / "report.xml", time.perf_counter()
        ended = subprocess.run(
            [*command, f"--junitxml={report}", *arguments], cwd=ROOT, env=environment, stdout=sys.stderr
        ).returncode
        seconds = time.perf_counter() - start
        suite = ET.parse(report).getroot().find("testsuite") if report.exists() else None
    name = " ".join(f"{key}={value}" for key, value in setting.items())
    if suite is None:
        print(f"| `{name}` | pytest ended with status {ended} | | | {seconds:.0f} |", flush=True)
        return 1
    total, skipped = int(suite.get("tests")), int(suite.get("skipped"))
    failed = int(suite.get("failures")) + int(suite.get("errors"))
    print(f"| `{name}` | {total - failed - skipped} | {failed} | {skipped} | {seconds:.0f} |", flush=True)
    return failed


def main(arguments: list[str]) -> int:
    cpu = Path("/proc/cpuinfo")
    has_avx512 = cpu.exists() and "avx512f" in cpu.read_text()
    print("| setting | passed | failed | skipped | seconds |\n|---|---|---|---|---|", flush=True)
    settings = [s for s in SETTINGS if has_avx512 or s.get("ATEN_CPU_CAPABILITY") != "avx512"]
    if arguments[:1] == ["runtime"]:
        settings = [s for s in settings if s.keys() <= {"NPY_DISABLE_CPU_FEATURES", "OMP_NUM_THREADS"}]
        arguments = RUNTIME + arguments[1:]
    return int(sum(run(setting, arguments) for setting in settings) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
