"""Augmentation changes each image of a batch on its own, within bounds, repeatably."""

import dataclasses

import pytest
import torch
from seeds import SEED

from faces.research import augment
from faces.research.augment import Augment

STILL = Augment(flip=0, rotate=0, shift=0, zoom=(1, 1), brightness=0, contrast=0)
CHANGES = {
    "flip": {"flip": 0.5},
    "rotate": {"rotate": 30.0},
    "shift": {"shift": 0.2},
    "zoom": {"zoom": (0.5, 2.0)},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 0.4},
    "grey": {"grey": 0.5},
    "coarse": {"coarse": 0.5},
    "erase": {"erase": 0.5},
}


def only(**changes):
    return dataclasses.replace(STILL, **changes)


def noise(n=16, side=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.rand(n, 3, side, side, generator=generator).to(dtype)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(SEED)


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_each_images_own_repeatable_and_leaves_its_input_alone(name):
    change, x = only(**CHANGES[name]), noise()
    before = x.clone()
    assert torch.equal(STILL(x), x) and not torch.allclose(change(x), x, atol=0.01)
    assert torch.equal(x, before)
    changed = change(noise(1).repeat(16, 1, 1, 1))
    assert any(not torch.equal(changed[0], other) for other in changed[1:])
    torch.manual_seed(5)
    first, next_one = change(x), change(x)
    torch.manual_seed(5)
    assert torch.equal(change(x), first)
    assert not torch.equal(first, next_one)
    x = x.contiguous(memory_format=torch.channels_last)
    assert all(each(x).is_contiguous(memory_format=torch.channels_last) for each in (change, Augment()))


@pytest.mark.parametrize("rotate", [0, 1e-6], ids=["alone", "with the other movements"])
def test_flip_mirrors_left_and_right(rotate):
    x = noise()
    assert torch.allclose(only(flip=1.0, rotate=rotate)(x), x.flip(3), atol=1e-4)
    assert torch.allclose(only(flip=0.0, rotate=rotate)(x), x, atol=1e-4)
    mirrored = (only(flip=0.25, rotate=rotate)(noise(400)) - noise(400).flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert 60 <= mirrored.sum() <= 140  # 100 ± 4.6 standard deviations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 3, 12, 12), (1, 3, 12, 12), (4, 1, 9, 12)])
def test_shape_dtype_and_range_are_kept(shape, dtype):
    strong = Augment(rotate=45, shift=0.5, zoom=(0.3, 3), brightness=1.0, contrast=1.0, grey=0.5)
    for change in (Augment(), strong, only(brightness=1.0), only(grey=1.0)):
        for x in (torch.rand(shape).to(dtype), torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)):
            changed = change(x)
            assert changed.shape == x.shape
            assert changed.dtype == dtype
            assert changed.min() >= 0
            assert changed.max() <= 1
            assert changed.isfinite().all()


def test_zooming_out_leaves_black_borders_within_its_range_and_zooming_in_shows_the_middle():
    white = torch.ones(4, 3, 16, 16)
    smaller = only(zoom=(0.5, 0.5))(white)
    assert (smaller[:, :, :3] == 0).all() and (smaller[:, :, -3:] == 0).all()
    assert (smaller[:, :, :, :3] == 0).all() and (smaller[:, :, :, -3:] == 0).all()
    assert (smaller[:, :, 5:11, 5:11] == 1).all()
    assert smaller.mean() == pytest.approx(0.25, abs=0.02)  # half as wide and half as high
    # Measured as the area that a white square takes up after it was zoomed.
    area = only(zoom=(0.5, 0.8))(torch.ones(200, 1, 32, 32)).mean((1, 2, 3)).sqrt()
    assert 0.48 < area.min() < 0.54
    assert 0.76 < area.max() < 0.82
    x = torch.zeros(4, 3, 16, 16)
    x[:, :, 4:12, 4:12] = 1
    larger = only(zoom=(2, 2))(x)
    assert (larger[:, :, 1:-1, 1:-1] == 1).all()


def test_what_is_erased_is_one_grey_rectangle_of_bounded_size():
    changed = only(erase=1.0)(torch.zeros(200, 3, 40, 50))
    assert set(changed.unique().tolist()) == {0.0, 0.5}
    gone = changed[:, 0] > 0
    rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.sum((1, 2)), rows * columns)  # as full as a rectangle
    assert rows.min() in (7, 8, 9) and rows.max() in (19, 20, 21)
    assert columns.min() in (9, 10, 11) and columns.max() in (24, 25, 26)
    kept = (only(erase=0.25)(torch.zeros(400, 3, 40, 50)) == 0).all(3).all(2).all(1).sum()
    assert 260 <= kept <= 340  # 300 ± 4.6 standard deviations
    assert Augment(erase=0.8).scaled(0.5).erase == 0.4 and Augment(erase=0.8).scaled(2).erase == 1


def test_shift_moves_by_at_most_its_fraction_of_the_side():
    x = torch.zeros(300, 1, 33, 33)
    x[:, :, 16, 16] = 1
    moved = only(shift=0.25)(x)
    places = torch.arange(33.0)
    mass = moved.sum((1, 2, 3))
    for axis in (2, 3):
        centre = (moved.sum((1, 5 - axis)) * places).sum(1) / mass - 16
        assert 7.5 < centre.abs().max() <= 33 * 0.25 + 1e-3
        assert centre.abs().min() < 1
        assert (centre > 0).any() and (centre < 0).any()


def test_rotation_stays_within_its_angle():
    x = torch.zeros(200, 1, 41, 41)
    x[:, :, 20, 36] = 1  # to the right of the middle
    turned = only(rotate=20)(x)
    places = torch.arange(41.0) - 20
    down = (turned.sum((1, 3)) * places).sum(1)
    across = (turned.sum((1, 2)) * places).sum(1)
    angles = torch.rad2deg(torch.atan2(down, across))
    assert 17 < angles.max() <= 20.5
    assert -20.5 <= angles.min() < -17


def test_brightness_shifts_and_contrast_spreads_and_grey_takes_the_colour():
    grey = torch.full((200, 3, 4, 4), 0.5)
    brighter = only(brightness=0.2)(grey)
    assert (brighter - brighter[:, :1, :1, :1] == 0).all()  # the same for the whole image
    assert 0.4 - 1e-6 <= brighter.min() < 0.41
    assert 0.59 < brighter.max() <= 0.6 + 1e-6
    assert torch.allclose(only(contrast=0.2)(grey), grey)  # the middle stays
    spread = only(contrast=0.2)(torch.full((200, 3, 4, 4), 0.75)) - 0.5
    assert 0.2 - 1e-6 <= spread.min() < 0.21
    assert 0.29 < spread.max() <= 0.3 + 1e-6
    x = noise()
    assert torch.allclose(only(grey=1.0)(x), x.mean(1, keepdim=True).expand_as(x))


@pytest.mark.parametrize("side", [12, 13])
def test_coarse_images_lose_fine_detail_and_keep_their_mean(side):
    x = noise(side=side)
    coarse = only(coarse=1.0)(x)
    assert coarse.shape == x.shape
    steps = lambda image: (image[..., 1:] - image[..., :-1]).abs().mean()  # noqa: E731
    assert steps(coarse) < 0.5 * steps(x)
    assert torch.allclose(coarse.mean((2, 3)), x.mean((2, 3)), atol=0.05)


def test_views_are_the_same_for_every_image_and_undo_each_other_and_shift_to_the_right_and_down():
    x = noise()
    assert torch.equal(augment.view(x), x)
    assert torch.equal(augment.view(x, flip=True), x.flip(3))
    cropped = augment.view(x, across=1.2, down=1.2)
    assert cropped.shape == x.shape and (cropped > 0).all()
    assert (augment.view(x, across=0.5)[..., 0] == 0).all()  # black where nothing is left
    flipped_crop = augment.view(x, flip=True, across=1.2, down=1.2)
    assert torch.allclose(flipped_crop.flip(3), cropped, atol=1e-5)
    x = torch.zeros(1, 1, 8, 8)
    x[..., 2, 3] = 1
    assert torch.allclose(augment.view(x, shift=(0.25, 0.125))[..., 3, 5], torch.ones(1), atol=1e-5)


def test_strength_scales_every_change():
    full = Augment(rotate=20, shift=0.1, zoom=(0.5, 2.0), brightness=0.4, contrast=0.2, grey=0.8, coarse=0.3)
    assert full.scaled(1) == full
    none = full.scaled(0)
    x = torch.rand(4, 3, 16, 16)
    mirrored = none(x)
    assert all(torch.equal(b, a) or torch.equal(b, a.flip(2)) for a, b in zip(x, mirrored, strict=True))
    twice = full.scaled(2)
    assert (twice.rotate, twice.zoom, twice.grey, twice.flip) == (40, (0.25, 4.0), 1.0, full.flip)


def test_uncovered_pixels_and_black_edges_become_one_colour():
    x = torch.full((64, 3, 24, 24), 0.5)
    x[:, :, :4] = 0  # an edge above the picture
    half = Augment(flip=0, rotate=0, shift=0, zoom=(0.5, 0.5), brightness=0, contrast=0)
    small = dataclasses.replace(half, fill=1.0)(x)
    around = torch.cat([small[:, :, :8].flatten(2), small[:, :, -5:].flatten(2)], 2)
    assert torch.allclose(around, around[:, :, :1].expand_as(around))
    assert 20 < (around[:, :, 0] == 1).all(1).sum() < 44  # white half the time
    assert torch.allclose(small[:, :, 12:16, 8:16], torch.tensor(0.5))
    assert (half(x)[:, :, :8] == 0).all()
