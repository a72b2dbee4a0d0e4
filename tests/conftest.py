"""What several test files share."""

import pytest

from faces import demo


@pytest.fixture(scope="session")
def drawn_faces(tmp_path_factory):
    """Folder of 120 distinct drawn faces, 64 pixels, with UTKFace names; plus copies and one truncated file.

    Made once for all tests, so read from it only: a test that changes files draws its own with `demo.make`.
    """
    return demo.make(tmp_path_factory.mktemp("drawn") / "faces", 120, size=64)
