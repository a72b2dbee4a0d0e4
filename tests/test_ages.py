"""Age heads against their definitions, intervals against simulation, and a regressor trained on drawn faces."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from seeds import SEED
from torch import nn

from faces import ages, batches, export, models, predict, training
from faces.ages import HEADS
from faces.research import data, demo

EXACT = torch.tensor([[30.0, 30.0]])


def logits_at(*years, height=50.0):
    """Distributions that are all but certain of one year each."""
    logits = torch.zeros(len(years), ages.BINS)
    logits[range(len(years)), list(years)] = height
    return logits


# ------------------------------------------------------------------------------------------------------- heads


def test_a_miss_is_the_distance_to_the_nearest_end_of_the_range():
    ranges = torch.tensor([[20.0, 29], [20, 29], [20, 29], [40, 40]])
    assert ages.miss(torch.tensor([18.0, 25, 31, 44]), ranges).tolist() == [2, 0, 2, 4]


def outputs_that_say(name, years, *, spread=5.0):
    """Outputs ``[n, outputs]`` of a head whose answers are these years; distributions have this spread."""
    years = torch.as_tensor(years, dtype=torch.float32)[:, None]
    if name == "relu":
        return years
    if HEADS[name].outputs == 1:
        return (years - ages.CENTRE) / ages.SCALE
    if name == "coral":
        return (years - 0.5 - torch.arange(ages.OLDEST)) * 5 / spread
    return -0.5 * ((torch.arange(ages.BINS) - years) / spread).square()


def losses_of(name, outputs, low, high):
    """The loss of each row alone, and the gradient of each."""
    outputs = outputs.clone().requires_grad_()
    each = torch.stack(
        [HEADS[name].loss(row, torch.tensor([[low, high]], dtype=torch.float32)) for row in outputs.split(1)]
    )
    each.sum().backward()
    return each.detach(), outputs.grad


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("label", [20, 45, 90])
def test_the_loss_of_every_head_falls_towards_the_label_from_both_sides(name, label):
    years = torch.arange(1, 116)
    outputs = outputs_that_say(name, years)
    within = (years > 15) & (years < 100)  # distributions near the first and the last year are cut off
    torch.testing.assert_close(HEADS[name].decode(outputs)[within], years[within].float(), atol=0.1, rtol=0)
    loss, slope = losses_of(name, outputs, label, label)
    assert loss.argmin() == label - 1
    assert (loss[:label].diff() < 0).all() and (loss[label - 1 :].diff() > 0).all()
    assert (slope[years != label] != 0).any(1).all()  # nowhere is nothing to be learnt


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.slow
def test_a_range_punishes_nothing_inside_it(name):
    years = torch.arange(ages.BINS)
    loss, _ = losses_of(name, outputs_that_say(name, years, spread=0.1), 20, 29)
    inside = (years >= 20) & (years <= 29)
    assert loss[inside].max() < 1e-4
    assert loss[~inside].min() > 1e-3 and (loss[:21].diff() < 0).all() and (loss[29:].diff() > 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_losses_are_means_over_the_batch_with_finite_gradients(name):
    torch.manual_seed(SEED)
    head = HEADS[name]
    outputs = (torch.randn(3, head.outputs) * 5).requires_grad_()
    ranges = torch.tensor([[0.0, 0], [116, 116], [70, 116]])
    together = head.loss(outputs, ranges)
    apart = [head.loss(outputs[i : i + 1], ranges[i : i + 1]).item() for i in range(3)]
    assert together.item() == pytest.approx(np.mean(apart), rel=1e-5)
    together.backward()
    assert outputs.grad.isfinite().all()
    assert head.decode(outputs).shape == head.spread(outputs).shape == (3,)
    assert (head.spread(outputs) > 0).all()


def test_point_losses_are_the_named_ones():
    outputs, scale = torch.tensor([[1.0]]), ages.SCALE
    off = (ages.CENTRE + scale - 30) / scale
    assert HEADS["mse"].loss(outputs, EXACT).item() == pytest.approx(off**2)
    assert HEADS["l1"].loss(outputs, EXACT).item() == pytest.approx(off)
    beyond = 5 / scale
    assert HEADS["huber"].loss(outputs, EXACT).item() == pytest.approx(beyond * (off - beyond / 2))
    assert HEADS["relu"].loss(torch.tensor([[-4.0]]), EXACT).item() == 900
    assert HEADS["relu"].decode(torch.tensor([[-4.0]])).item() == 0


def test_dex_is_cross_entropy_read_by_its_mean():
    logits = torch.randn(4, ages.BINS, generator=torch.Generator().manual_seed(2))
    years = torch.tensor([3, 30, 71, 116])
    expected = nn.functional.cross_entropy(logits, years)
    assert HEADS["dex"].loss(logits, years[:, None].repeat(1, 2).float()).item() == pytest.approx(expected.item())
    two = logits_at(20, 20)
    two[0, 40] = 50.0
    assert HEADS["dex"].decode(two).tolist() == pytest.approx([30, 20])
    assert HEADS["dex"].spread(two).tolist() == pytest.approx([10, 0.5])


def test_the_mass_of_a_range_is_the_sum_of_its_years():
    logits = torch.randn(2, ages.BINS, generator=torch.Generator().manual_seed(3))
    ranges = torch.tensor([[0.0, 2], [70, 116]])
    likely = logits.softmax(1)
    expected = [likely[0, :3].sum().log(), likely[1, 70:].sum().log()]
    assert ages.log_mass(logits, ranges).tolist() == pytest.approx([x.item() for x in expected], abs=1e-5)


def test_the_median_halves_the_distribution():
    assert ages.median(logits_at(0, 33, 116)).tolist() == pytest.approx([0, 33, 116], abs=1e-3)
    flat = torch.full((1, ages.BINS), -50.0)
    flat[0, 10:20] = 0.0
    assert ages.median(flat).item() == pytest.approx(14.5, abs=1e-3)
    drawn = torch.randn(1, ages.BINS, generator=torch.Generator().manual_seed(4)) * 2
    cumulated = drawn.softmax(1)[0].cumsum(0)
    year = int((cumulated < 0.5).sum())
    assert year - 0.5 <= ages.median(drawn).item() <= year + 0.5


def test_coral_counts_the_years_that_are_passed_and_never_contradicts_itself():
    head, layer = HEADS["coral"], ages.Ordinal(8, ages.OLDEST)
    logits = layer(torch.randn(5, 8))
    assert (logits.diff(dim=1) <= 0).all()
    passed = torch.full((1, ages.OLDEST), -5.0)
    passed[0, :42] = 5.0
    assert head.decode(passed).item() == 42
    sure = head.loss(passed, torch.tensor([[42.0, 42.0]])).item()
    assert sure == pytest.approx(ages.OLDEST * np.log1p(np.exp(-5)), rel=1e-4)
    # In a range, the years inside are not asked.
    assert head.loss(passed, torch.tensor([[40.0, 49.0]])).item() < sure


def test_unknown_heads_and_networks_are_named():
    with pytest.raises(ValueError, match="no head 'ridge'; there are mse, l1, huber"):
        ages.head_of("ridge")
    with pytest.raises(ValueError, match="no network 'vgg16'; there are resnet50, resnet18, mobilenet_v2"):
        ages.build(ages.Recipe(network="vgg16"), 1)


# ------------------------------------------------------------------------------------------------------ labels


def test_ranges_of_years_and_groups():
    manifest = pd.DataFrame(
        {"path": list("abcd"), "age": [31.0, None, None, 120], "age_group": ["30-39", "3-9", "70+", None]}
    )
    assert ages.ranges(manifest).tolist() == [[31, 31], [3, 9], [70, 116], [116, 116]]
    assert ages.ranges(manifest.drop(columns="age_group").iloc[[0, 3]]).tolist() == [[31, 31], [116, 116]]
    with pytest.raises(ValueError, match=r"no age is known of b \(and 1 others\)"):
        ages.ranges(manifest.drop(columns="age_group"))


def test_near_duplicates_in_training_get_one_age_and_contradictions_go():
    manifest = pd.DataFrame(
        {
            "path": list("abcdefgh"),
            "group": [1, 1, 2, 2, 3, 4, 4, 5],
            "split": ["train"] * 5 + ["test"] * 2 + ["train"],
            "age": [20, 23, 10, 40, 33, 1, 90, np.nan],
        }
    )
    settled = ages.settle(manifest)
    assert settled["path"].tolist() == list("abefgh")
    assert settled["age"].tolist()[:5] == [21.5, 21.5, 33, 1, 90] and np.isnan(settled["age"].iloc[5])
    assert ages.ranges(settled.iloc[:3]).tolist() == [[22, 22], [22, 22], [33, 33]]
    assert manifest["age"].iloc[0] == 20  # the manifest that came in is as it was
    assert ages.settle(manifest[["path"]]).equals(manifest[["path"]])


def test_buckets_count_completed_years():
    assert ages.bucket([0, 2.9, 3, 9.99, 10, 69.9, 70, 116, -1]).tolist() == [
        *("0-2", "0-2", "3-9", "3-9", "10-19", "60-69", "70+", "70+", "0-2")
    ]


# --------------------------------------------------------------------------------------------------- intervals


def said_of(predicted, spread=1.0):
    predicted = np.asarray(predicted, float)
    return np.stack([predicted, np.broadcast_to(spread, len(predicted))], 1)


def frame_of(truth, predicted, spread=1.0, width=1.0):
    manifest = pd.DataFrame({"age": truth, "group": range(len(truth))})
    return ages.predictions(manifest, ages.intervals(said_of(predicted, spread), width))


def test_intervals_cover_what_they_promise():
    """Residuals as skewed and uneven as one likes: split conformal intervals hold their coverage on average."""
    rng = np.random.default_rng(SEED)
    covered = []
    for _ in range(200):
        spread = rng.uniform(1, 8, 600)
        truth = 50 + spread * (rng.exponential(1, 600) - 1)
        width = ages.interval_width(said_of(np.full(300, 50), spread[:300]), truth[:300], 0.9)
        covered.append(frame_of(truth[300:], np.full(300, 50), spread[300:], width)["covered"].mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.01)  # six standard deviations of that mean


def test_the_width_is_the_corrected_quantile():
    said = said_of(np.arange(1, 10))
    assert ages.interval_width(said, np.zeros(9), 0.9) == 9
    assert ages.interval_width(said, np.zeros(9), 0.5) == 5
    with pytest.raises(ValueError, match="9 photos are too few for intervals of coverage"):
        ages.interval_width(said, np.zeros(9), 0.95)


def test_predictions_tell_errors_and_intervals():
    frame = frame_of([10, 2, 50], [12, 1, 40], [1, 2, 3], 2.0)
    assert frame["error"].tolist() == [2, -1, -10] and frame["absolute"].tolist() == [2, 1, 10]
    assert frame["low"].tolist() == [10, 0, 34] and frame["high"].tolist() == [14, 5, 46]
    assert frame["covered"].tolist() == [1, 1, 0] and frame["reach"].tolist() == [4, 5, 12]
    about = ages.summary(frame)
    assert about["mae"]["value"] == pytest.approx(13 / 3, abs=1e-4) and about["bias"]["value"] == -3
    assert about["cs5"]["value"] == about["coverage"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert ages.cumulative_score(frame, 1) == pytest.approx(1 / 3)
    assert "covered" not in ages.predictions(frame[["age", "group"]], np.array([1.0, 2, 3]))


def test_the_figures_of_tested_photos():
    manifest = pd.DataFrame(
        {
            "source": ["years", "years", "years", "groups"],
            "age": [10, 30, 70, np.nan],
            "age_group": ["10-19", "30-39", "70+", "3-9"],
            "gender": ["female", "male", "male", "male"],
            "group": range(4),
        }
    )
    about = ages.tested(manifest, ages.intervals(said_of([12, 30, 60, 9.9]), 2.0))
    assert about["test"]["years"]["photos"] == 3 and about["test"]["years"]["mae"]["value"] == 4
    assert about["test_21_to_60"]["years"]["mae"]["value"] == 0
    assert about["test_by_gender"]["years"]["male"]["mean"] == 5
    accuracy = {source: figures["mean"] for source, figures in about["age_group_accuracy"].items()}
    assert accuracy == {"years": 0.6667, "groups": 1.0}


# ------------------------------------------------------------------------------------------ the worst bracket


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (0, 0, 0.0)),
        ([7], (0, 1, 7.0)),
        ([-7], (0, 1, -7.0)),
        ([0, 0], (0, 1, 0.0)),
        ([-3, -1, -2], (1, 2, -1.0)),
        ([1, -3, 4, -1, 2, -5], (2, 5, 5.0)),
        ([2, -1, 2, -9, 3], (0, 3, 3.0)),
        ([1, 2, 3], (0, 3, 6.0)),
    ],
)
def test_the_largest_contiguous_sum(values, expected):
    assert ages.find_max_subarray(values) == expected


@pytest.mark.parametrize("length", range(1, 6))
def test_the_largest_contiguous_sum_against_brute_force(length):
    """Of all short sequences; of equal sums the one that ends first, and of those the shortest."""
    spans = list(itertools.combinations(range(length + 1), 2))
    for values in itertools.product((-2, -1, 0, 1, 3), repeat=length):
        best = max(spans, key=lambda span: (sum(values[slice(*span)]), -span[1], span[0]))
        assert ages.find_max_subarray(values) == (*best, sum(values[slice(*best)]))


def test_excess_error_year_by_year():
    frame = frame_of([0, 0, 3], [2, 4, 3])
    assert ages.excess_by_age(frame).tolist() == [1, 0, 0, -2]


# ---------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ages")
    roots = [
        demo.make(folder / "years", 180, seed=1, layout="utkface", size=48, flaws=False),
        demo.make(folder / "buckets", 90, seed=2, layout="fairface", size=48, flaws=False),
    ]
    manifest = data.usable(data.prepare(roots, stratify=["age_group"]))
    manifest = manifest[manifest["split"] != "excluded"].reset_index(drop=True)
    return manifest, batches.load_images(manifest, 40)


SMALL = ages.Recipe(
    network="mobilenet_v2", size=40, width=0.35, weights="random", epochs=1, batch_size=32, dropout=0, augment=None
)


def convolution(recipe, outputs):
    """A network that learns anything plain in little time, on every machine: one convolution, no batch norm."""
    torch.manual_seed(SEED)
    return models.Finetuned(nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU()), 16, outputs)


@pytest.fixture
def simple(monkeypatch):
    """In place of a deep network a convolution; and the recipe to train it by."""
    monkeypatch.setattr(ages, "build", convolution)
    return replace(SMALL, seed=SEED, head="dex", epochs=15, learning_rate=0.1, stage_decay=1.0)


@pytest.mark.parametrize("head", ["dldl", "coral", "huber"])
@pytest.mark.slow
def test_a_regressor_trains_on_years_and_groups_with_side_tasks(drawn, tmp_path, head):
    manifest, pixels = drawn
    recipe = replace(SMALL, head=head)
    model, history = ages.train(recipe, manifest, tmp_path, pixels=pixels, progress=False)
    assert {"train_mae", "val_mae"} < set(history) and len(history) == 1
    outputs = training.predict(model, batches.loader(pixels[:8], np.zeros(8), 8))
    assert outputs.shape == (8, HEADS[head].outputs)
    again = ages.load(models.save_weights(model, tmp_path / "kept"), recipe)
    assert again(torch.rand(2, 3, 40, 40)).shape == (2, HEADS[head].outputs)
    with pytest.raises(models.WeightsError, match="holds no resnet50 with the head"):
        ages.load(tmp_path / "kept", replace(recipe, network="resnet50"))


@pytest.mark.parametrize("head", ["huber", "dldl", "dex"])
def test_it_learns(simple, tmp_path, head):
    """Ages that are plain to see, as brightness, are told on photos that it did not train on."""
    rng = np.random.default_rng(SEED)
    years = rng.integers(0, 90, 400)
    pixels = (years * 2 + 30)[:, None, None, None] + rng.integers(-20, 20, (400, 40, 40, 3))
    split = np.repeat(["train", "val"], [320, 80])
    manifest = pd.DataFrame({"path": "drawn", "age": years, "group": range(400), "split": split})
    recipe = replace(simple, head=head)
    model, _ = ages.train(recipe, manifest, tmp_path, pixels=pixels.astype(np.uint8), progress=False)
    outputs = training.predict(model, batches.loader(pixels[320:].astype(np.uint8), np.zeros(80), 80))
    off = np.abs(ages.answers(outputs, HEADS[head])[:, 0] - years[320:]).mean()
    assert off < 0.5 * np.abs(years - np.median(years)).mean()


def answered(model, pixels, head):
    """The ages that a network says, and its outputs."""
    outputs = training.predict(model, batches.loader(pixels, np.zeros(len(pixels)), 80))
    return ages.answers(outputs, HEADS[head])[:, 0], outputs


def test_a_student_imitates_its_teacher_where_it_was_asked(simple, drawn, tmp_path):
    manifest, pixels = drawn
    taught = np.full((len(manifest), ages.BINS), np.nan)
    alone, _ = ages.train(simple, manifest, tmp_path / "alone", pixels=pixels, progress=False)
    unasked, _ = ages.train(simple, manifest, tmp_path / "unasked", pixels=pixels, teacher=taught, progress=False)
    taught[::2] = 0
    taught[::2, 90] = 20  # a teacher who takes everybody for ninety
    asked, _ = ages.train(simple, manifest, tmp_path / "asked", pixels=pixels, teacher=taught, progress=False)
    says = [answered(model, pixels, simple.head) for model in (alone, unasked, asked)]
    assert np.array_equal(says[0][1], says[1][1])
    assert says[2][0].mean() > says[0][0].mean() + 5


def test_a_network_beside_a_guide_says_what_that_says(simple, drawn, tmp_path):
    manifest, pixels = drawn
    alone, _ = ages.train(simple, manifest, tmp_path / "alone", pixels=pixels, progress=False)
    guide = convolution(simple, ages.BINS)
    guide.classifier.bias.data[90] = 20  # it takes everybody for ninety
    beside, history = ages.train(simple, manifest, tmp_path / "beside", pixels=pixels, guide=guide, progress=False)
    says = [answered(model, pixels, "dex") for model in (alone, beside)]
    assert says[1][1].shape == (len(pixels), ages.BINS) and says[1][0].mean() > says[0][0].mean() + 5
    # A run goes on from its own checkpoints, and not from one without a guide.
    _, same = ages.train(simple, manifest, tmp_path / "beside", pixels=pixels, guide=guide, progress=False)
    assert same["val_mae"].tolist() == history["val_mae"].tolist()
    with pytest.raises(training.ResumeError):
        ages.train(simple, manifest, tmp_path / "alone", pixels=pixels, guide=guide, progress=False)


@pytest.mark.slow
def test_a_guide_needs_a_distribution_over_years_and_no_other_teacher(drawn, tmp_path):
    manifest, pixels = drawn
    guide, taught = ages.build(SMALL, ages.BINS), np.zeros((len(manifest), ages.BINS))
    for recipe, more in ((replace(SMALL, head="huber"), {}), (SMALL, {"teacher": taught})):
        with pytest.raises(ValueError, match="a guide takes the place of a teacher"):
            ages.train(recipe, manifest, tmp_path, pixels=pixels, guide=guide, progress=False, **more)


def test_imitation_is_least_for_the_teachers_own_answer():
    taught = torch.randn(2, ages.BINS, generator=torch.Generator().manual_seed(5))
    same, other = ages.imitation(taught, taught), ages.imitation(taught.flip(1), taught)
    entropy = -(taught.softmax(1) * taught.log_softmax(1)).sum(1).mean()
    assert same.item() == pytest.approx(entropy.item(), rel=1e-5) and other > same


def test_learning_rates_fall_towards_the_first_layers():
    model = ages.build(SMALL, 4)
    groups = ages.parameter_groups(model, 1.0, 0.5, 0.1)
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate_of) == len(list(model.parameters()))
    assert rate_of[id(model.classifier.weight)] == 1.0
    rates = [rate_of[id(next(iter(stage.parameters())))] for stage in model.features]
    assert rates == sorted(rates) and rates[-1] == 0.5
    assert {group["weight_decay"] for group in groups for p in group["params"] if p.ndim == 1} == {0.0}


# ------------------------------------------------------------------------------------------------------ export


@pytest.mark.slow
def test_a_published_regressor_says_what_the_trained_one_says(drawn, tmp_path):
    manifest, pixels = drawn
    torch.manual_seed(SEED)
    model, head = ages.build(SMALL, ages.BINS).eval(), HEADS["dldl"]
    history = pd.DataFrame({"epoch": [1]})
    folder, figures = ages.publish(
        model, SMALL, tmp_path / "age_net", manifest=manifest, pixels=pixels, history=history, metrics={"mine": 1}
    )
    shipped = predict.Model(folder)
    assert (shipped.coverage, shipped.classes, shipped.size) == (0.9, (), 40)
    said = ages.answers(training.predict(model, batches.loader(pixels[:5], np.zeros(5), 5)), head)
    found = shipped.head().read(shipped.run(pixels[:5]))
    np.testing.assert_allclose([age.years for age in found], said[:, 0], atol=0.01)
    reach = figures["intervals"]["width"] * said[:, 1]
    np.testing.assert_allclose([age.high - age.years for age in found], reach, atol=0.02)
    assert all(0 <= age.low <= age.years for age in found)
    written = json.loads((folder / "metrics.json").read_text())
    assert written["export"]["tolerance"] == 0.01 and written["mine"] == 1
    rows = (manifest["split"] == "test").to_numpy()
    again = ages.tested(manifest[rows].reset_index(drop=True), shipped.run(pixels[rows]))
    for source, about in again["test"].items():
        assert about["mae"]["value"] == pytest.approx(written["test"][source]["mae"]["value"], abs=0.01)
    assert set(written["age_group_accuracy"]) == {"years", "buckets"}

    def describe(model):
        assert model.head().read(model.run(pixels[:1]))[0].high > 0
        return figures, ages.card_of(figures, manifest, 40)

    small = predict.Model(export.quantize(folder, tmp_path / "small", pixels=pixels[:40], describe=describe))
    assert small.coverage == 0.9
    np.testing.assert_allclose(small.run(pixels[:20]), shipped.run(pixels[:20]), atol=3)


def test_the_card_of_a_regressor_tells_years():
    figures = {"photos": 10, "mae": {"value": 4.567, "low": 4.0, "high": 5.1}}
    by_age = {"0-2": {"photos": 4, "mean": 1.0}, "70+": {"photos": 6, "mean": 9.04}}
    metrics = {"weights": 5, "test": {"utkface": figures}, "test_by_age_group": {"utkface": by_age}}
    card = export.model_card("net", task="age", sources=["utkface"], metrics=metrics, failures=["faces", "age"])
    assert "| utkface, test split | 10 | 4.57 | 4.00 – 5.10 |" in card
    assert "| photos | number | mean absolute error, years | 95 % interval |" in card
    assert "least accurate for age group 70+ (9.0 years off on 6 photos)" in card
