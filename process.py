#!/usr/bin/env python3
"""Label every face photo in a folder: python process.py DIR (see --help)."""

import sys

try:
    from faces.cli import label
except ModuleNotFoundError as error:
    remedy = "run `make run` once, then `. .venv/bin/activate` (or `pip install -e .`)"
    print(f"process.py: {error.name} is not installed; {remedy}", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:  # nothing was begun
    sys.exit(130)

if __name__ == "__main__":
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold what the terminal cannot show
    sys.exit(label())
