import numpy as np
import pandas as pd
import pytest
import torch
from torch.autograd import gradcheck

from faces import ages
from faces.research import years
from faces.research.heads import Years

RANGES = torch.tensor([[26.0, 26], [0, 0], [20, 29], [70, 116], [116, 116]])


def logits(n=5, k=years.BINS, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", sorted(years.KINDS))
def test_losses_and_readings_equal_the_former_ones(kind):
    old = ages.HEADS[kind]
    outputs, head = logits(k=old.outputs), Years(kind=kind, spread=2.0 if kind == "dldl" else 0.0)
    assert torch.equal(head.loss(outputs, RANGES).mean(), old.loss(outputs, RANGES))
    assert torch.equal(head.read(outputs), old.decode(outputs))
    assert torch.equal(years.KINDS[kind].deviation(outputs), old.spread(outputs))
    assert torch.equal(head.score(outputs, RANGES), ages.miss(old.decode(outputs), RANGES))


def test_imitation_equals_the_former_one():
    student, teacher = logits(), logits(seed=1)
    assert torch.allclose(Years().imitation(student, teacher).mean(), ages.imitation(student, teacher))


def test_an_exact_age_is_its_bin():
    x = logits().double()
    exact = torch.tensor([[3.0, 3.0]] * 5)
    assert torch.allclose(years.cross_entropy(x, exact, 0), -x.log_softmax(1)[:, 3])
    everything = torch.tensor([[0.0, 116.0]] * 5)
    assert torch.allclose(years.cross_entropy(x, everything, 2.0), torch.zeros(5, dtype=torch.double), atol=1e-9)


def test_spread_labels_leave_no_heap():
    """With a spread the best distribution for labels that heap at 26 is wider than the heap."""
    labels = torch.tensor([[25.0, 25.0], [26, 26], [26, 26], [26, 26], [27, 27]])
    peaks = []
    for spread in (0.0, 2.0):
        x = torch.zeros(1, years.BINS, dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS([x], max_iter=200, line_search_fn="strong_wolfe")

        def loss(spread=spread, x=x, optimizer=optimizer):
            optimizer.zero_grad()
            value = years.cross_entropy(x.expand(5, -1), labels.double(), spread).mean()
            value.backward()
            return value

        optimizer.step(loss)
        peaks.append(x.detach().softmax(1).max().item())
    assert peaks[0] == pytest.approx(0.6, abs=0.01)
    assert peaks[1] < 0.25


def test_quantiles():
    certain = torch.full((1, years.BINS), -50.0)
    certain[0, 30] = 50
    assert years.median(certain).item() == pytest.approx(30, abs=1e-4)
    flat = torch.zeros(1, years.BINS)
    for share in (0.05, 0.5, 0.95):
        assert years.quantile(flat, share).item() == pytest.approx(share * years.BINS - 0.5, abs=1e-3)


@pytest.mark.parametrize("kind", ["median", "dldl", "coral", "huber"])
def test_gradients(kind):
    layer = years.KINDS[kind].layer(4)
    x = torch.randn(5, layer(torch.zeros(1, 4)).shape[1], dtype=torch.double, requires_grad=True)
    assert gradcheck(lambda o: years.KINDS[kind].loss(o, RANGES.double(), 2.0), x, fast_mode=True)


def test_ordinal_layer_is_the_former_one():
    torch.manual_seed(0)
    new = years.Ordinal(8)
    torch.manual_seed(0)
    old = ages.Ordinal(8, ages.OLDEST)
    x = torch.randn(3, 8)
    assert torch.equal(new(x), old(x))


def test_ranges():
    table = pd.DataFrame(
        {"age": [26.4, None, None, 120], "age_group": ["20-29", "70+", None, "70+"]}, index=[5, 6, 7, 8]
    )
    found = years.ranges(table)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[26, 26], [70, 116], [np.nan, np.nan], [116, 116]])
    np.testing.assert_array_equal(found[:2], ages.ranges(table.iloc[:2]))
    assert np.isnan(years.ranges(pd.DataFrame({"gender": ["male"]}))).all()


def test_near_duplicates_get_one_age():
    table = pd.DataFrame(
        {
            "age": [20.0, 24, 30, 50, 20, 24, None],
            "age_group": ["20-29"] * 7,
            "group": [0, 0, 1, 1, 2, 2, 3],
            "split": ["train"] * 4 + ["test"] * 2 + ["train"],
        }
    )
    merged = years.merge_duplicates(table)
    np.testing.assert_array_equal(merged["age"], [22, 22, np.nan, np.nan, 20, 24, np.nan])
    assert merged["age_group"].notna().tolist() == [True, True, False, False, True, True, True]


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="no kind of age 'nope'; there are mse"):
        Years(kind="nope")
