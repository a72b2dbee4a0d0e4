import numpy as np
import pandas as pd
import pytest
import torch
from torch.autograd import gradcheck

from faces.research import years
from faces.research.heads import Years, total_loss

RANGES = torch.tensor([[26.0, 26], [0, 0], [20, 29], [70, 116], [116, 116]])


def logits(n=5, k=years.BINS, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def outputs_that_say(kind, ages, spread=5.0):
    """Outputs ``[n, k]`` of a kind whose answers are these ages; distributions have this spread."""
    ages = torch.as_tensor(ages, dtype=torch.float32)[:, None]
    if kind == "relu":
        return ages
    if kind == "coral":
        return (ages - 0.5 - torch.arange(years.OLDEST)) * 5 / spread
    if not years.is_distribution(kind):
        return (ages - years.CENTRE) / years.SCALE
    return -0.5 * ((torch.arange(years.BINS) - ages) / spread).square()


@pytest.mark.parametrize("kind", sorted(years.KINDS))
@pytest.mark.parametrize("label", [20, 45, 90])
def test_the_loss_of_every_kind_falls_towards_the_label_from_both_sides(kind, label):
    ages, head = torch.arange(1, 116), Years(kind=kind)
    outputs = outputs_that_say(kind, ages).requires_grad_()
    within = (ages > 15) & (ages < 100)  # distributions near the first and the last year are cut off
    torch.testing.assert_close(head.read(outputs)[within], ages[within].float(), atol=0.1, rtol=0)
    loss = head.loss(outputs, torch.tensor([[label, label]]).float().expand(115, 2))
    assert loss.argmin() == label - 1
    assert (loss[:label].diff() < 0).all() and (loss[label - 1 :].diff() > 0).all()
    loss.sum().backward()
    assert (outputs.grad[ages != label] != 0).any(1).all()


@pytest.mark.parametrize("kind", sorted(years.KINDS))
def test_a_range_costs_nothing_inside_it(kind):
    ages = torch.arange(years.BINS)
    loss = Years(kind=kind).loss(outputs_that_say(kind, ages, 0.1), torch.tensor([[20.0, 29]]).expand(len(ages), 2))
    inside = (ages >= 20) & (ages <= 29)
    assert loss[inside].max() < 1e-4
    assert loss[~inside].min() > 1e-3 and (loss[:21].diff() < 0).all() and (loss[29:].diff() > 0).all()


def test_point_losses_are_the_named_ones():
    one, exact, off = torch.tensor([[1.0]]), torch.tensor([[30.0, 30]]), (years.CENTRE + years.SCALE - 30) / years.SCALE
    beyond = 5 / years.SCALE
    expected = {"mse": off**2, "l1": off, "huber": beyond * (off - beyond / 2)}
    assert {kind: Years(kind=kind).loss(one, exact).item() for kind in expected} == pytest.approx(expected)
    assert Years(kind="relu").loss(torch.tensor([[-4.0]]), exact).item() == 900
    assert Years(kind="relu").read(torch.tensor([[-4.0]])).item() == 0
    with pytest.raises(ValueError, match="no kind of age 'nope'; there are mse"):
        Years(kind="nope")


def test_distributions_are_read_by_mean_median_and_deviation():
    two = torch.full((1, years.BINS), -50.0)
    two[0, [20, 40]] = 50.0
    assert Years(kind="dex").read(two).item() == pytest.approx(30)
    assert years.deviation(two).item() == pytest.approx(10)
    drawn = logits()
    assert years.log_mass(drawn, RANGES)[2].item() == pytest.approx(
        drawn[2].softmax(0)[20:30].sum().log().item(), abs=1e-5
    )
    assert years.distance(torch.tensor([18.0, 25, 31]), torch.tensor([[20.0, 29]])).tolist() == [2, 0, 2]


def test_imitation_is_least_for_the_teachers_own_answer():
    teacher = logits()
    same, other = Years().imitation(teacher, teacher), Years().imitation(teacher.flip(1), teacher)
    entropy = -(teacher.softmax(1) * teacher.log_softmax(1)).sum(1)
    torch.testing.assert_close(same, entropy)
    assert (other > same).all()


def test_a_guides_mean_counts_in_twenties_of_years_so_that_its_maps_are_heard():
    teacher, x = logits(), logits().flip(1)
    apart = (years.mean(x) - years.mean(teacher)).abs()
    alone, guided = (Years().imitation(x, teacher, guided=guided) for guided in (False, True))
    torch.testing.assert_close(alone - guided, apart * (1 - 1 / years.SCALE))
    label = torch.full((len(x), 2), torch.nan)
    beside = total_loss([Years(weight=1.0)], {"age": x, "age/teacher": teacher}, {"age": label})
    torch.testing.assert_close(beside, guided.mean())


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


def test_coral_counts_the_years_that_are_passed_and_never_contradicts_itself():
    head, layer = Years(kind="coral"), years.Ordinal(8)
    assert (layer(torch.randn(5, 8)).diff(dim=1) <= 0).all()
    passed = torch.full((1, years.OLDEST), -5.0)
    passed[0, :42] = 5.0
    assert head.read(passed).item() == 42
    sure = head.loss(passed, torch.tensor([[42.0, 42]])).item()
    assert sure == pytest.approx(years.OLDEST * np.log1p(np.exp(-5)), rel=1e-4)
    assert head.loss(passed, torch.tensor([[40.0, 49]])).item() < sure  # the years inside a range are not asked


def test_ranges():
    table = pd.DataFrame(
        {"age": [26.4, None, None, 120], "age_group": ["20-29", "70+", None, "70+"]}, index=[5, 6, 7, 8]
    )
    found = years.ranges(table)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[26, 26], [70, 116], [np.nan, np.nan], [116, 116]])
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
