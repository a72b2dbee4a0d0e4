from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from seeds import SEED

from faces.research import heads
from faces.research.heads import Classes, Years, total_loss

ROWS = pd.DataFrame(
    {
        "gender": ["female", "male", None, "male"],
        "age": [26.0, None, None, None],
        "age_group": ["20-29", "70+", None, None],
        "race": ["East Asian", "White", None, "Asian"],
        "split": ["train"] * 4,
    }
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def loss_of(head, logits, *targets):
    """The loss of one head for class numbers, None for unknown."""
    known = torch.tensor([[torch.nan if target is None else target] for target in targets], dtype=logits.dtype)
    return total_loss([head], {head.name: logits}, {head.name: known})


# Not both: torch weighs the smoothed part by class too.
@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), (None, 0.1), ((0.5, 2.0, 0.7), 0.0)])
def test_class_loss_without_gamma_is_cross_entropy(weights, smoothing):
    logits, targets = drawn(6, 3), [0, 1, 1, 0, 2, 0]
    head = Classes("x", ("a", "b", "c"), smoothing=smoothing, class_weights=weights)
    weight = weights and torch.tensor(weights, dtype=torch.double)
    expected = F.cross_entropy(logits, torch.tensor(targets), weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(loss_of(head, logits, *targets), expected)
    assert torch.allclose(head.answer(logits, {}), logits.softmax(1))


def test_focal_loss_is_the_formula_and_counts_what_is_wrong():
    logits, targets = 3 * drawn(6, 3), [0, 1, 1, 0, 2, 0]
    p = logits.softmax(1)[torch.arange(6), targets]
    for gamma in (0.5, 2.0, 5.0):
        head = Classes("x", ("a", "b", "c"), gamma=gamma)
        torch.testing.assert_close(loss_of(head, logits, *targets), ((1 - p) ** gamma * -p.log()).mean())
    certain = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss_of(Classes("x", ("a", "b"), gamma=2.0), certain, 0, 0).backward()
    assert certain.grad.isfinite().all()


def test_heads_are_weighted_and_unknown_labels_left_out():
    one, other = Classes("a", ("x", "y")), Classes("b", ("x", "y", "z"), 0.3)
    outputs = {"a": drawn(3, 2), "b": drawn(3, 3, seed=1)}
    nan = torch.nan
    targets = {"a": torch.tensor([[0.0], [nan], [1.0]]).double(), "b": torch.tensor([[nan], [nan], [2.0]]).double()}
    expected = F.cross_entropy(outputs["a"][[0, 2]], torch.tensor([0, 1]))
    expected = expected + 0.3 * F.cross_entropy(outputs["b"][2:], torch.tensor([2]))
    torch.testing.assert_close(total_loss([one, other], outputs, targets), expected)


def three():
    found = [Classes("gender", ("female", "male"), 1.0), Years(weight=0.1), Classes("glasses", ("no", "yes"), 0.5)]
    outputs = {"gender": drawn(5, 2), "age": drawn(5, 117, seed=1), "glasses": drawn(5, 2, seed=2)}
    nan = torch.nan
    targets = {
        "gender": torch.tensor([[0.0], [1], [nan], [1], [nan]]),
        "age": torch.tensor([[26.0, 26], [20, 29], [nan, nan], [nan, nan], [nan, nan]]),
        "glasses": torch.tensor([[nan], [nan], [nan], [1.0], [nan]]),
    }
    return found, outputs, {name: values.double() for name, values in targets.items()}


def test_the_gradient_of_an_unlabelled_row_is_exactly_zero():
    found, outputs, targets = three()
    for output in outputs.values():
        output.requires_grad_()
    total_loss(found, outputs, targets).backward()
    for head in found:
        unknown = targets[head.name].isnan().any(1)
        gradient = outputs[head.name].grad
        assert (gradient[unknown] == 0).all()
        assert (gradient[~unknown].abs().sum(1) > 0).all()


def test_a_head_without_any_label_has_no_gradient_and_no_loss_and_penalties_are_added():
    found, outputs, targets = three()
    more = total_loss(found, outputs | {"age/penalty": torch.tensor([1.0, 3.0])}, targets)
    assert more.item() == pytest.approx(total_loss(found, outputs, targets).item() + 2, abs=1e-6)
    targets = {name: torch.full_like(values, torch.nan) for name, values in targets.items()}
    outputs["gender"].requires_grad_()
    loss = total_loss(found, outputs, targets)
    loss.backward()
    assert loss.item() == 0
    assert (outputs["gender"].grad == 0).all()


def test_a_teacher_counts_where_it_is_known():
    found, outputs, targets = three()
    head, teacher = found[0], drawn(5, 2, seed=3)
    teacher[0] = torch.nan
    found_loss = total_loss([head], outputs, targets | {"gender/teacher": teacher}, distill=0.25)
    own = head.loss(outputs["gender"][[0, 1, 3]], targets["gender"][[0, 1, 3]])
    like = head.imitation(outputs["gender"][1:], teacher[1:])
    expected = own[0] + 0.75 * own[1] + 0.25 * like[0] + like[1] + 0.75 * own[2] + 0.25 * like[2] + like[3]
    assert found_loss.item() == pytest.approx(expected.item() / 5, abs=1e-12)


def test_what_contradicts_a_label():
    gender = Classes("gender", ("female", "male"))
    assert gender.contradicts(torch.tensor([[2.0, 1], [2, 1]]), torch.tensor([[0.0], [1]])).tolist() == [False, True]
    certain = torch.full((2, 117), -50.0).index_fill(1, torch.tensor([40]), 50.0)
    assert Years().contradicts(certain, torch.tensor([[31.0, 31], [20, 29]])).tolist() == [False, True]


def recipe(**changes):
    about = {"learn": {"gender": 1.0, "age": 0.1}, "along": {"race": 0.3, "pose": 0.3}, "balance": ("gender",)}
    about |= {"gamma": 0.0, "smoothing": 0.05, "age_loss": "dldl", "age_spread": 2.0}
    return SimpleNamespace(**(about | changes))


def test_heads_of_a_recipe():
    found = heads.of(recipe(), ROWS)
    assert [head.name for head in found] == ["gender", "age", "race"]
    assert found[0].class_weights == (1.5, 0.75)
    assert found[2].classes == ("Asian", "White")
    targets = found[0].targets(ROWS)
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, [[0], [1], [np.nan], [1]])
    np.testing.assert_array_equal(found[2].targets(ROWS), [[0], [1], [np.nan], [0]])
    assert np.isnan(found[0].targets(ROWS.drop(columns="gender"))).all()
    with pytest.raises(ValueError, match="column 'pose' needs two classes; it has none"):
        heads.of(recipe(learn={"pose": 1.0}), ROWS)
    with pytest.raises(ValueError, match="no head of a network can be called 'type'"):
        heads.of(recipe(learn={"type": 1.0}), ROWS)
    with pytest.raises(ValueError, match="no age to learn"):
        heads.of(recipe(learn={"age": 1.0}), ROWS[["gender", "split"]])


@pytest.mark.parametrize("head", [*three()[0], Classes("x", ("a", "b"), class_weights=(1.0, 2.0), gamma=2.0)])
def test_a_head_is_plain_data(head):
    import json

    assert heads.from_dict(json.loads(json.dumps(asdict(head)))) == head
    assert heads.from_dict(asdict(head) | {"of a later version": 1}) == head


def overconfident(n=4000, scale=2.5, shift=0.8):
    """Logits whose probabilities fit once they are scaled and shifted."""
    draw = np.random.default_rng(SEED)
    true = draw.normal(0, 2, n)
    targets = (draw.random(n) < 1 / (1 + np.exp(-true))).astype(np.float32)
    z = (true - shift) * scale
    return np.stack([np.zeros(n), z], 1).astype(np.float32), targets[:, None]


def test_calibration_finds_scale_and_shift():
    logits, targets = overconfident()
    targets[:100] = np.nan
    fitted = Classes("x", ("a", "b")).calibrate(logits, targets)
    assert fitted["scale"] == pytest.approx(1 / 2.5, abs=0.05)
    assert fitted["shift"][1] == pytest.approx(0.8, abs=0.15)
    assert 0.5 < fitted["abstain_below"] <= 1


def test_calibration_leaves_calibrated_logits_as_they_are():
    logits, targets = overconfident(n=60, scale=1.0, shift=0.0)
    head = Classes("x", ("a", "b"))
    found = torch.from_numpy(logits).double()
    before = torch.nn.functional.cross_entropy(found, torch.from_numpy(targets[:, 0]).long()).item()
    after = head.answer(found, head.calibrate(logits, targets)).log()
    assert torch.nn.functional.nll_loss(after, torch.from_numpy(targets[:, 0]).long()).item() <= before + 1e-9


def test_intervals_hold_as_many_ages_as_promised():
    draw = np.random.default_rng(SEED)
    age = draw.integers(20, 60, 2400).astype(np.float32)
    centre = age + draw.normal(0, 5, 2400)
    outputs = (-0.5 * ((np.arange(117) - centre[:, None]) / 3) ** 2).astype(np.float32)
    targets = np.stack([age, age], 1)
    targets[:50] = [20, 29]
    head = Years()
    fitted = head.calibrate(outputs[:1200], targets[:1200])
    answers = head.answer(torch.from_numpy(outputs[1200:]), fitted).numpy()
    table = head.frame(answers)
    assert table.columns.tolist() == ["age_predicted", "age_low", "age_high"]
    covered = (table["age_low"] <= age[1200:]) & (age[1200:] <= table["age_high"])
    assert covered.mean() == pytest.approx(fitted["coverage"], abs=0.06)  # five standard deviations
    assert head.calibrate(outputs[50:55], targets[50:55]) == {}


def test_intervals_are_longer_where_more_is_likely_and_hold_the_age_itself():
    far = np.arange(117) - 30.0
    outputs = torch.from_numpy(np.where(far < 0, far, -0.1 * far)).float()[None]
    [[age, low, high]] = Years().answer(outputs, {"temperature": 1.5, "width": 0.8})
    assert high - age > 2 * (age - low) > 0
    [[age, low, high]] = Years().answer(outputs, {"temperature": 1.0, "width": 0.0})
    assert low < age == high  # the median lies below the mean


def test_answers_as_a_table():
    table = Classes("glasses", ("no", "yes")).frame(np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert table["glasses_predicted"].tolist() == ["no", "yes"]
    assert table["glasses_confidence"].tolist() == [0.9, 0.8]
    assert table["glasses_p_yes"].tolist() == [0.1, 0.8]
