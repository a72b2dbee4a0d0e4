"""What several test files share."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several at a time, each with as many threads as there are cores, would wait for each other in busy loops.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from faces import demo


@pytest.fixture(scope="session")
def drawn_faces(tmp_path_factory):
    """Folder of 120 distinct drawn faces, 64 pixels, with UTKFace names; plus copies and one truncated file.

    Made once for all tests, so read from it only: a test that changes files draws its own with `demo.make`.
    """
    return demo.make(tmp_path_factory.mktemp("drawn") / "faces", 120, size=64)
