"""Notebook 08, end to end on drawn faces."""

import demo_run
import pytest

from faces.research import experiments, steps

pytestmark = pytest.mark.slow
NOTEBOOKS = ("08",)  # of the fixture `executed`


def test_every_notebook_runs_and_writes_what_it_promises(executed):
    demo_run.check(executed)


def test_the_small_network_was_taught_by_the_default_one_also_on_photos_without_a_label(executed):
    home = executed / "08"
    _, recipe, found, _ = experiments.load(home / "network")
    assert recipe.teachers == ("faces_mobilenet_v1",) and recipe.options == {"width": 4}
    assert found[0].classes == ("glasses", "no_glasses")
    kept = steps.Steps(home, [], executed).read("network")
    assert len(kept["history"]) == 3 and {"f1", "auc"} < set(kept["teacher"]["metric"])
    assert (home / "glasses_cnn" / "model.onnx").is_file()


def test_every_trial_and_width_was_judged_and_portraits_were_asked_with_glasses_at_every_place(executed):
    step = steps.Steps(executed / "08", [], executed)
    trials = step.read("trials")
    assert (trials["what"].groupby(["run", "metric"])["seed"].nunique() == 2).all()
    assert trials["what"]["run"].nunique() == 5 and set(trials["sizes"]["width"]) == {2}
    assert (trials["what"]["low"].fillna(0) <= trials["what"]["high"].fillna(1)).all()
    answers = step.read("portraits")["answers"]
    assert (answers.groupby("place").size() == 102).all() and answers["p_glasses"].between(0, 1).all()
