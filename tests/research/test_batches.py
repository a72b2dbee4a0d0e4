"""Pixels are those of each file, batches those of each row, in an order that depends on seed and epoch alone."""

import numpy as np
import pandas as pd
import pytest
import torch

from faces import images
from faces.research import batches
from faces.research.batches import Batches

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
TARGETS = {"age": np.arange(20, dtype=np.float32).reshape(10, 2)}


def test_pixels_equal_decoding_one_by_one_and_are_decoded_once_also_from_several_shards(photos, tmp_path, monkeypatch):
    batches.decode(photos.iloc[40:60], 32, cache=tmp_path)
    pixels = batches.decode(photos, 32, cache=tmp_path)
    assert pixels.shape == (96, 32, 32, 3) and len(list(tmp_path.glob("*/*.npy"))) == 2
    rows = np.array([50, 3, 95, 40, 3])
    assert pixels[rows].dtype == np.uint8
    for found, row in zip(pixels[rows], rows, strict=True):
        assert (images.decode(photos["path"][row], 32) == found).all()
    monkeypatch.setattr(batches, "_decode_shard", lambda *_: pytest.fail("decoded again"))
    again = batches.decode(photos.iloc[[3, 1, 3]].drop(columns="path").assign(path="moved.png"), 32, cache=tmp_path)
    assert (again[np.arange(3)] == pixels[np.array([3, 1, 3])]).all()


def test_a_changed_file_without_a_checksum_is_decoded_anew(photos, tmp_path):
    copy = tmp_path / "a.png"
    for path in photos["path"][:2]:
        copy.write_bytes(open(path, "rb").read())  # noqa: PTH123, SIM115
        found = batches.decode(pd.DataFrame({"path": [str(copy)]}), 32, cache=tmp_path / "cache")
        assert (found[np.array([0])][0] == images.decode(path, 32)).all()


def test_whole_pictures_are_kept_apart_from_their_central_squares(photos, tmp_path):
    batches.decode(photos[:3], 32, cache=tmp_path)
    batches.decode(photos[:3], 32, whole=True, cache=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"pixels-32", "pixels-32-whole"}


def test_a_damaged_file_is_named_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(images.ImageError, match=r"bad\.jpg: empty file"):
        batches.decode(pd.DataFrame({"path": [str(tmp_path / "bad.jpg")]}), 32, cache=tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*/*"))


def test_batches_are_channels_last_bytes_with_the_targets_of_their_rows():
    feed = Batches(PIXELS, TARGETS, 4)
    x, targets = feed.take(np.array([7, 2]))
    assert x.shape == (2, 3, 8, 8) and x.dtype == torch.uint8 and x.is_contiguous(memory_format=torch.channels_last)
    assert (x.permute(0, 2, 3, 1).numpy() == PIXELS[[7, 2]]).all()
    assert targets["age"].tolist() == [[14, 15], [4, 5]]


def test_unshuffled_batches_hold_the_rows_in_order_and_are_equally_large():
    rows = np.array([1, 3, 4, 6, 7, 8, 9])
    feed = Batches(PIXELS, TARGETS, 3, rows=rows)
    assert np.concatenate(feed.order()).tolist() == rows.tolist()
    assert [len(some) for some in feed.order(5)] == [3, 2, 2] and len(feed) == 3


def test_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        feed = Batches(PIXELS, TARGETS, 4, shuffle=True, seed=seed)
        return np.concatenate(feed.order(epoch)).tolist()

    expected = order(0, 3)
    torch.manual_seed(99)
    assert order(0, 3) == expected and sorted(expected) == list(range(10))
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((0, 3), (0, 4), (1, 3), (1, 0), (0, 1))}) == 5
