"""Learning beside a trained network: tests on tiny networks and noise."""

import copy

import pytest
import torch
from seeds import SEED
from torch import nn

from faces import models
from faces.hints import Pupil


def stages(width, outputs):
    """Five convolutions, each of half the side of the one before."""
    layers, given = [], 3
    for _ in range(5):
        layers.append(nn.Sequential(nn.Conv2d(given, width, 3, stride=2, padding=1), nn.LeakyReLU()))
        given = width
    return models.Finetuned(nn.Sequential(*layers), width, outputs, dropout=0.0)


@pytest.fixture
def networks():
    torch.manual_seed(SEED)
    guide = stages(8, 3)
    for weight in guide.features.parameters():
        weight.data *= 4  # so that its channels vary far more than the eps of their standardisation
    return stages(4, 5), guide


def test_it_answers_as_the_network_alone_outside_of_training(networks):
    network, guide = networks
    x = torch.rand(4, 3, 40, 40)
    assert torch.equal(Pupil(network, guide, 40).eval()(x), network.eval()(x))


def test_in_training_it_tells_what_both_say_and_how_far_their_maps_are_apart(networks):
    network, guide = networks
    x = torch.rand(4, 3, 40, 40)
    together = Pupil(network, guide, 40).train()
    told = together(x)
    assert told.shape == (4, 5 + 3 + 1) and not guide.training
    torch.testing.assert_close(told[:, 5:8], guide.eval()(x))
    # Readers that say 0 are off by the variance of a standardised channel, 1, at each of the five sides: 20 10 5 3 2.
    assert len(together.readers) == 5
    for reader in together.readers:
        nn.init.zeros_(reader.weight)
        nn.init.zeros_(reader.bias)
    assert together(x)[:, -1].mean().item() == pytest.approx(5, rel=0.02)


def test_a_copy_of_the_guide_is_at_no_distance_from_it(networks):
    """Its readers only have to standardise the channels, as is done with the guide's."""
    _, guide = networks
    x, together = torch.rand(4, 3, 40, 40), Pupil(copy.deepcopy(guide), guide, 40).train()
    seen = guide.standardize(x)
    for layer, reader in zip(guide.features, together.readers, strict=True):
        seen = layer(seen)
        variance, mean = torch.var_mean(seen, (0, 2, 3), correction=0)
        scale = (variance + 1e-5).rsqrt()
        reader.weight.data, reader.bias.data = torch.diag(scale)[:, :, None, None], -mean * scale
    assert together(x)[:, -1].max() < 1e-6


def test_every_stage_of_the_network_learns_from_the_maps_and_the_guide_stays(networks):
    network, guide = networks
    together, x = Pupil(network, guide, 40).train(), torch.rand(8, 3, 40, 40)
    before = {key: value.clone() for key, value in guide.state_dict().items()}
    distance = together(x)[:, -1].mean()
    distance.backward()
    learnt = [*network.features.parameters(), *together.readers.parameters()]
    assert all(parameter.grad.any() for parameter in learnt)
    steepness = torch.stack([parameter.grad.square().sum() for parameter in learnt]).sum().sqrt()
    with torch.no_grad():
        for parameter in learnt:  # a hundredth of the way down the steepest slope
            parameter -= 0.01 * parameter.grad / steepness
    assert together(x)[:, -1].mean() < distance - 0.005 * steepness
    assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())


def test_networks_without_maps_of_one_side_are_refused(networks):
    network, _ = networks
    other = models.Finetuned(nn.Sequential(nn.Conv2d(3, 4, 1, stride=10)), 4, 1)
    with pytest.raises(ValueError, match=r"no maps of one side: \[4\] pixels in the one, \[20, 10, 5, 3, 2\]"):
        Pupil(other, network, 40)
