"""Notebooks 05 and 06, end to end on drawn faces."""

import demo_run
import pytest

from faces.research import experiments, steps

pytestmark = pytest.mark.slow
NOTEBOOKS = ("05", "06")  # of the fixture `executed`


def test_every_notebook_runs_and_writes_what_it_promises(executed):
    demo_run.check(executed)


def test_what_the_ages_are_like_is_measured(executed):
    step = steps.Steps(executed / "05", [], executed)
    fits = step.read("distributions")["fits"]
    names = {"Poisson", "normal", "Gumbel", "gamma", "Weibull", "log-normal", "2 normals", "3 normals"}
    assert set(fits["family"]) == names
    assert fits["p"].between(0, 1, inclusive="right").all() and fits["distance"].between(0, 1).all()
    assert len(step.read("learning_curve")) == 3


def test_the_large_network_was_trained_beside_the_small_one_and_both_answer_the_same_photos(executed):
    home = executed / "06"
    step = steps.Steps(home, [], executed)
    large, small = (step.read(name)["predictions"] for name in ("regime_2", "small"))
    assert large["group"].equals(small["group"]) and set(large["split"]) == {"val", "test"}
    _, recipe, found, _ = experiments.load(home / "regime_2")
    assert (
        recipe.guide == str(home / "small") and recipe.weights == str(home / "regime_1") and found[0].kind == "median"
    )
    assert experiments.load(home / "frozen")[1].frozen
    assert set(step.read("margins")["network"]) == {"ResNet50", "MobileNetV2", "random margins", "crops as they are"}
    assert {"age_resnet50", "age_mobilenetv2"} <= {path.name for path in home.iterdir()}
