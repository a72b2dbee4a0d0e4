"""Published models answer as recorded, and the photos of the published data sets keep their split."""

import hashlib
import sys

import pandas as pd
import pytest

from faces.research import data
from faces.research.notebooks import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import golden

STEP = 40  # of the 1,000 pictures; tools/golden.py checks all


@pytest.mark.parametrize("model", golden.published())
def test_answers_are_as_recorded(model):
    assert golden.differences(model, golden.answers(model, STEP), golden.recorded(model, STEP)) == []


def test_a_changed_answer_is_found():
    before = golden.recorded("gender_cnn", STEP)
    assert golden.differences("gender_cnn", before + 2e-4, before)
    assert len(golden.differences("gender_cnn", before[:, ::-1], before)) == 2  # and the labels
    assert golden.differences("age_mobilenet_v2", *[golden.recorded("age_mobilenet_v2", STEP) + x for x in (0.02, 0)])


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """Four photos of a published data set and two of another; the published table in its place."""
    monkeypatch.setattr(data, "PUBLISHED_SPLITS", tmp_path / "splits.parquet")
    manifest = pd.DataFrame(
        {
            "source": ["faces"] * 4 + ["mine"] * 2,
            "name": [f"{n}.jpg" for n in range(6)],
            "split": ["train", "test", "val", "excluded", "train", "train"],
            "group": [0, 1, 2, 3, 1, 4],
        }
    )
    table = manifest[:4].assign(photo=data.photo_hashes(manifest[:4]), split=["test", "val", "val", "train"])
    table[["source", "photo", "split"]].to_parquet(data.PUBLISHED_SPLITS)
    return manifest


def test_published_photos_keep_their_split_and_others_that_drawn(manifest):
    expected = int(hashlib.sha256(b"faces/0.jpg").hexdigest()[:16], 16)
    assert data.photo_hashes(manifest[:1]).tolist() == [expected]
    # The fifth is not published, but a near duplicate of one that is validated on.
    assert data.published_split(manifest)["split"].tolist() == ["test", "val", "val", "excluded", "excluded", "train"]
    assert data.published_split(manifest[4:])["split"].tolist() == ["train", "train"]
    data.PUBLISHED_SPLITS.unlink()
    assert data.published_split(manifest) is manifest


def test_the_published_splits():
    table = pd.read_parquet(data.PUBLISHED_SPLITS)
    assert table["photo"].is_unique
    counts = table.groupby("source", observed=True)["split"].value_counts().unstack(fill_value=0)
    assert counts.loc["fairface", "test"] == 5000  # the official validation photos, all of them
    assert counts.loc["glasses", "test"] == 2995
    assert counts.sum(axis=1).to_dict() == {
        "color6": 7342, "fairface": 45000, "glasses": 12990, "gray14": 15783, "utkface": 23708,
    }  # fmt: skip
