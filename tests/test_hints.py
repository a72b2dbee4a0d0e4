"""Learning beside a trained network: tests on tiny networks and noise."""

import pytest
import torch
from torch import nn

from faces import models
from faces.hints import Pupil


@pytest.fixture
def networks():
    torch.manual_seed(0)
    network = models.mobilenet_v2(5, width=0.25, dropout=0.0, weights="random")
    guide = models.mobilenet_v2(3, width=0.35, weights="random").train()
    for _ in range(30):  # its BatchNorms learn what they see, as in training
        guide(torch.rand(8, 3, 40, 40))
    return network, guide


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
    assert together(x)[:, -1].mean().item() == pytest.approx(5, rel=0.1)


@pytest.mark.slow
def test_the_network_learns_the_maps_and_the_guide_stays(networks):
    network, guide = networks
    together, x = Pupil(network, guide, 40).train(), torch.rand(8, 3, 40, 40)
    before = {key: value.clone() for key, value in guide.state_dict().items()}
    first = network.features[0][0].weight.clone()
    optimizer = torch.optim.AdamW([p for p in together.parameters() if p.requires_grad], 3e-3)
    apart = []
    for _ in range(40):
        distance = together(x)[:, -1].mean()
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        apart.append(distance.item())
    assert apart[-1] < 0.6 * apart[0]
    assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())
    assert not torch.equal(network.features[0][0].weight, first)


def test_networks_without_maps_of_one_side_are_refused(networks):
    network, _ = networks
    other = models.Finetuned(nn.Sequential(nn.Conv2d(3, 4, 1, stride=10)), 4, 1)
    with pytest.raises(ValueError, match=r"no maps of one side: \[4\] pixels in the one, \[20, 10, 5, 3, 2\]"):
        Pupil(other, network, 40)
