"""Notebook 07, end to end on drawn faces."""

import demo_run
import pytest

from faces import predict
from faces.research import steps

pytestmark = pytest.mark.slow
NOTEBOOKS = ("07",)  # of the fixture `executed`


def test_every_cell_runs_and_every_figure_is_written(executed):
    demo_run.check(executed)


def test_one_exported_network_answers_every_question_and_is_compared_on_the_same_photos(executed):
    model = predict.Model(executed / "models" / "faces_mobilenet_v1", verify=False)
    assert set(model.heads) == {"gender", "age", "glasses"}
    answers = steps.Steps(executed / "07", [], executed).read("answers")
    one, *others = (table.notna() for table in answers.values())
    assert {"gender_predicted", "age_low", "glasses_confidence"} <= set(one)
    assert all(len(other) == len(one) for other in others)
    groups = [table["group"].tolist() for table in answers.values()]
    assert all(other == groups[0] for other in groups)


def test_the_small_network_knows_from_where_it_is_sure(executed):
    small = predict.Model(executed / "models" / "faces_small", verify=False)
    assert [head.sure is not None for head in small.heads.values()] == [True, False, True]  # gender, age, glasses
    kept = steps.Steps(executed / "07", [], executed)
    assert len(kept.read("small_answers")["faces_small"]) == len(kept.read("answers")["faces_mobilenet_v1"])
