"""Renew the YAML headers of the model cards in artifacts/ from metrics.json: python tools/cards.py [--check]."""

import json
import re
import sys
from pathlib import Path

from faces.research import cards

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"


def renewed(path: Path) -> str:
    """A card with the header that its folder's metrics.json asks for; others' weights keep theirs."""
    text = path.read_text(encoding="utf-8")
    sources = re.search(r"^Trained on: ([^.]+)\.", text, re.MULTILINE)
    if not sources:
        return text
    body = re.sub(r"\A---\n.*?\n---\n\s*", "", text, flags=re.DOTALL)
    metrics = json.loads(path.with_name("metrics.json").read_text(encoding="utf-8"))
    return cards.header(metrics, sources[1].split(", ")) + body


def main() -> int:
    old = [path for path in sorted(ARTIFACTS.glob("*/MODEL_CARD.md")) if renewed(path) != path.read_text("utf-8")]
    for path in old:
        if "--check" in sys.argv:
            print(f"{path}: the header is not that of metrics.json; run python tools/cards.py", file=sys.stderr)
        else:
            path.write_text(renewed(path), encoding="utf-8")
    return int("--check" in sys.argv and bool(old))


if __name__ == "__main__":
    sys.exit(main())
