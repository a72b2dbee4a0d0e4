"""Checksums of model files: ``artifacts/SHA256SUMS`` lists the ones that may be used.

The list has the format of ``sha256sum``: ``cd artifacts && sha256sum -c SHA256SUMS`` checks it too.

``python -m faces.trust FOLDER…`` adds model folders of your own to the list beside them.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from faces.files import StrPath, atomic_write

LIST = "SHA256SUMS"


class TrustError(Exception):
    """Raised if a checksum is not listed in SHA256SUMS, or differs."""


def read(folder: Path) -> dict[str, str]:
    """The list of a folder: path below it -> SHA-256; empty if there is none."""
    try:
        lines = (folder / LIST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return {name.lstrip("*"): digest for digest, name in pairs}


def verified(path: StrPath) -> bytes:
    """The content of a file whose checksum is listed beside its folder.

    Raises
    ------
    TrustError
        The checksum is not listed, or differs.
    """
    path = Path(path).resolve()
    content, home = path.read_bytes(), path.parent.parent
    listed = read(home).get(path.relative_to(home).as_posix())
    if listed is None:
        raise TrustError(f"is not listed in {home / LIST}; if you trust it: python -m faces.trust {path.parent}")
    if hashlib.sha256(content).hexdigest() != listed:
        raise TrustError(f"is not what {home / LIST} lists: it is damaged or was swapped; fetch it again")
    return content


def vouch(folder: StrPath) -> list[str]:
    """Add the ONNX files of a model folder to the list beside it; returns their names there."""
    folder = Path(folder).resolve()
    files = sorted(folder.glob("*.onnx"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no model")
    home, sums = folder.parent, read(folder.parent)
    known = {name: digest for name, digest in sums.items() if (home / name).parent != folder}
    added = {path.relative_to(home).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    with atomic_write(home / LIST) as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in sorted((known | added).items()))
    return list(added)


def main(argv: list[str] | None = None) -> int:
    """Add model folders to their lists; returns 0, or 2 with the reason on stderr."""
    folders = sys.argv[1:] if argv is None else argv
    if not folders or any(folder.startswith("-") for folder in folders):
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    try:
        for folder in folders:
            print(*vouch(folder), sep="\n")
    except OSError as error:
        print(f"faces.trust: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
