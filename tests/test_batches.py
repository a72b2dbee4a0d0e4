"""Batches: the same pixels from memory, from a mapped file and from paths, in an order that seed and epoch decide."""

import numpy as np
import pandas as pd
import pytest
import torch

from faces import batches, images
from faces.research import data

SIZE = 16


@pytest.fixture(scope="module")
def manifest(drawn_faces):
    return data.usable(data.scan(data.read(drawn_faces)), "gender")


@pytest.fixture(scope="module")
def pixels(manifest):
    return batches.load_images(manifest, SIZE)


def epoch_of(sampler, epoch=0, rank=0, world=1):
    sampler.set_epoch(epoch)
    sampler.share(rank, world)
    return list(sampler)


def flat(lists):
    return [index for indices in lists for index in indices]


def same(these, those):
    return len(these) == len(those) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(these, those, strict=True)
    )


# ------------------------------------------------------------------------------------------------- pixels


def test_load_images_equals_decoding_one_by_one(manifest, pixels):
    assert pixels.shape == (len(manifest), SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert len(manifest) > 100  # more than one piece of work
    for path, found in zip(manifest["path"], pixels, strict=True):
        assert (images.decode(path, SIZE) == found).all()


def test_beyond_the_memory_limit_a_mapped_file_holds_the_same(manifest, pixels, tmp_path):
    folder = tmp_path / "made" / "on demand"
    mapped = batches.load_images(manifest, SIZE, memory_limit=pixels.nbytes - 1, folder=folder)
    assert isinstance(mapped, np.memmap)
    assert (mapped == pixels).all()
    assert list(folder.iterdir()) == []
    in_memory = batches.load_images(manifest[:3], SIZE, memory_limit=3 * SIZE * SIZE * 3, folder=folder)
    assert not isinstance(in_memory, np.memmap)


def test_a_damaged_file_is_named(drawn_faces):
    everything = data.scan(data.read(drawn_faces))
    (damaged,) = everything.loc[everything["error"].notna(), "name"]
    with pytest.raises(images.ImageError, match=damaged) as caught:
        batches.load_images(everything, SIZE)
    assert "usable" in str(caught.value)  # and what to do about it


@pytest.mark.slow
def test_several_processes_decode_the_same(manifest, pixels):
    assert (batches.load_images(manifest, SIZE, jobs=2) == pixels).all()


def test_nothing_to_load(manifest):
    assert batches.load_images(manifest[:0], SIZE).shape == (0, SIZE, SIZE, 3)


# ------------------------------------------------------------------------------------------------ batches


def test_batches_are_channels_last_bytes(manifest, pixels):
    ages = torch.tensor(manifest["age"].to_numpy(), dtype=torch.float32)
    x, y = next(iter(batches.loader(pixels, ages, 32)))
    assert x.shape == (32, 3, SIZE, SIZE)
    assert x.dtype == torch.uint8
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert (x.permute(0, 2, 3, 1).numpy() == pixels[:32]).all()
    assert torch.equal(y, ages[:32])


def test_targets_may_have_several_columns(pixels):
    targets = np.arange(2 * len(pixels)).reshape(-1, 2)
    seen = torch.cat([y for _, y in batches.loader(pixels, targets, 50)])
    assert torch.equal(seen, torch.from_numpy(targets))


def test_the_last_batch_holds_the_rest(pixels):
    loader = batches.loader(pixels[:10], range(10), 4)
    assert [len(x) for x, _ in loader] == [4, 4, 2]
    assert len(loader) == 3


def test_array_mapped_file_and_paths_give_the_same_batches(manifest, pixels, tmp_path):
    targets, options = np.arange(len(manifest)), {"shuffle": True, "seed": 3}
    mapped = batches.load_images(manifest, SIZE, memory_limit=0, folder=tmp_path)
    loaders = [
        batches.loader(pixels, targets, 32, **options),
        batches.loader(mapped, targets, 32, **options),
        batches.loader(manifest["path"].tolist(), targets, 32, size=SIZE, **options),
        batches.loader(manifest["path"].tolist(), targets, 32, size=SIZE, workers=2, **options),
    ]
    first = list(loaders[0])
    loaders[0].batch_sampler.set_epoch(1)
    second = list(loaders[0])
    assert not same(first, second)
    for loader in loaders[1:]:
        assert same(list(loader), first)
        loader.batch_sampler.set_epoch(1)
        assert same(list(loader), second)


@pytest.mark.parametrize("kind", [lambda s: s, lambda s: s.to_numpy(), lambda s: s.to_numpy(dtype=str), list])
def test_paths_may_come_as_a_column_of_a_frame(manifest, pixels, kind):
    """Its rows go by their position: the index of a filtered manifest has holes."""
    part = manifest.iloc[::2]
    assert list(part.index[:3]) != [0, 1, 2]
    loader = batches.loader(kind(part["path"]), range(len(part)), 8, size=SIZE)
    assert same(list(loader), list(batches.loader(pixels[::2], range(len(part)), 8)))


def test_one_image_at_a_time(pixels):
    dataset = batches.Images(pixels, range(len(pixels)))
    x, y = dataset[7]
    assert (x.permute(1, 2, 0).numpy() == pixels[7]).all()
    assert y == 7


def test_damage_on_the_way_is_named(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    with pytest.raises(images.ImageError, match=r"bad\.jpg: empty file"):
        next(iter(batches.loader([str(tmp_path / "bad.jpg")], [0], 1, size=SIZE)))


def test_mismatched_lengths_and_missing_size_are_refused(pixels):
    with pytest.raises(ValueError, match="10 images but 9 targets"):
        batches.loader(pixels[:10], range(9), 4)
    with pytest.raises(ValueError, match="2 images but 3 targets"):
        batches.loader(pd.Series(["a", "b"]), range(3), 4, size=SIZE)
    with pytest.raises(ValueError, match="size in pixels"):
        batches.loader(["a.jpg"], [0], 1)


# -------------------------------------------------------------------------------------------------- order


def test_unshuffled_order_is_the_order_of_the_rows():
    sampler = batches.EpochBatches(10, 4, shuffle=False)
    assert epoch_of(sampler) == epoch_of(sampler, epoch=1) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch, history=()):
        sampler = batches.EpochBatches(100, 8, shuffle=True, seed=seed)
        for before in history:
            epoch_of(sampler, before)
        return epoch_of(sampler, epoch)

    expected = order(0, 3)
    torch.manual_seed(99)
    np.random.default_rng().random(5)
    assert order(0, 3, history=(0, 1, 2, 3)) == expected
    assert order(0, 4) != expected
    assert order(1, 3) != expected
    assert order(1, 0) != order(0, 1)
    assert sorted(flat(expected)) == list(range(100))


@pytest.mark.parametrize("n", [3, 7, 30, 31, 32])
def test_three_processes_share_the_unshuffled_indices(n):
    sampler = batches.EpochBatches(n, 4, shuffle=False)
    shares = [flat(epoch_of(sampler, rank=rank, world=3)) for rank in range(3)]
    assert sorted(flat(shares)) == list(range(n))


@pytest.mark.parametrize("n", [3, 7, 30, 31, 32])
def test_three_processes_get_equally_many_shuffled_batches(n):
    sampler = batches.EpochBatches(n, 4, shuffle=True)
    for epoch in range(3):
        shares = []
        for rank in range(3):
            shares.append(epoch_of(sampler, epoch, rank, 3))
            assert len(sampler) == len(shares[-1])
        assert len({tuple(map(len, share)) for share in shares}) == 1
        indices = flat(flat(shares))
        assert len(indices) == len(set(indices)) == n // 3 * 3


def test_every_image_has_its_turn_in_some_epoch():
    sampler = batches.EpochBatches(31, 4, shuffle=True)
    seen = [{index for rank in range(3) for index in flat(epoch_of(sampler, epoch, rank, 3))} for epoch in range(5)]
    assert len(set.union(*seen)) == 31
    assert len(set.intersection(*seen)) < 30  # it is not always the same one that sits out
