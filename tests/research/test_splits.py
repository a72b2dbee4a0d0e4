import pandas as pd
import pytest

from faces.research import splits


def manifest(names, split, source="set", **columns):
    table = pd.DataFrame({"name": names, "source": source, "split": split, "group": range(len(names))})
    return table.assign(**columns)


def test_a_frozen_split_outlives_another_draw(tmp_path):
    splits.freeze(manifest(["a", "b", "c"], ["train", "val", "test"]), tmp_path)
    assert (tmp_path / "set.csv").read_text().startswith("name,split\n")
    other = pd.concat(
        [manifest(["c", "new", "a", "b"], ["train", "test", "val", "train"]), manifest(["a"], "val", "other", group=9)],
        ignore_index=True,
    )
    assert splits.apply(other, tmp_path)["split"].tolist() == ["test", "test", "train", "val", "val"]


def test_near_duplicates_stay_on_one_side(tmp_path):
    table = manifest(
        list("abcdef"), ["train", "val", "test", "train", "train", "train"], group=[0, 0, 0, 1, 1, 2]
    ).assign(error=[None] * 5 + ["damaged"])
    assert splits.apply(table, tmp_path)["split"].tolist() == [
        "excluded",
        "excluded",
        "test",
        "train",
        "train",
        "excluded",
    ]


def test_published_splits():
    sizes = {
        "utkface": {"train": 17767, "val": 2392, "test": 3546, "excluded": 3},
        "fairface": {"train": 35969, "val": 3998, "test": 5000, "excluded": 33},
        "glasses": {"train": 8996, "val": 999, "test": 2995},
    }
    for source, counts in sizes.items():
        table = pd.read_csv(splits.FOLDER / f"{source}.csv")
        assert table["split"].value_counts().to_dict() == counts


def test_names_of_one_hash_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "name_hash", lambda name: "0")
    with pytest.raises(ValueError, match="one hash"):
        splits.freeze(manifest(["a", "b"], "train"), tmp_path)
