import numpy as np
import pandas as pd
import pytest
from PIL import Image

from faces import images
from faces.research import altered, evaluation


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((40, 40, 3), 100 + 50 * number, np.uint8)).save(path)
    return pd.DataFrame({"path": map(str, paths), "age": [20, 30], "group": [0, 1], "sha256": "x"})


def test_altered_photos_are_files_with_labels_but_no_fingerprints_of_the_originals(photos, tmp_path):
    rows = altered.save(photos, tmp_path / "altered", altered.zoom, [0.5, 2.0])
    assert rows["value"].tolist() == [0.5, 0.5, 2, 2] and rows["age"].tolist() == [20, 30] * 2
    assert "sha256" not in rows and len(set(rows["path"])) == 4
    loose, tight = (np.asarray(images.open_rgb(rows["path"][number])) for number in (0, 2))
    assert loose.shape == tight.shape == (40, 40, 3)
    assert not loose[:9].any() and (loose[12:28, 12:28] == 100).all() and (tight == 100).all()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "altered").iterdir()}
    altered.save(photos, tmp_path / "altered", altered.zoom, [0.5, 2.0])
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "altered").iterdir()}


def test_shrinking_never_enlarges_and_glasses_depend_on_seed_and_picture_alone():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8))
    assert altered.shrink(image, 30).size == (20, 30) and altered.shrink(image, 100).size == (40, 60)
    square = image.resize((64, 64))
    worn = [np.asarray(altered.wear(square, seed)) for seed in (1, 1, 2)]
    assert (worn[0] == worn[1]).all() and (worn[0] != worn[2]).any() and (worn[0] != np.asarray(square)).any()
    assert np.asarray(altered.compress(square, 5)).shape == (64, 64, 3)


def test_hidden_patches_are_grey_one_at_a_time():
    hidden = altered.hide(np.zeros((8, 8, 3), np.uint8), patch=4, stride=2)
    assert hidden.shape == (9, 8, 8, 3) and ((hidden == 128).sum((1, 2, 3)) == 48).all()
    assert hidden[1, 0, 2, 0] == 128 and hidden[0, 4].sum() == 0


def test_errors_of_altered_photos_by_network_and_value():
    answers = pd.DataFrame({"network": "a", "value": [1, 1, 2], "age": 30.0, "age_predicted": [31, 29, 35], "group": 1})
    assert altered.mean_errors(answers)["mean"].tolist() == [1, 5]


def test_balanced_mean_counts_cells_alike_with_the_interval_of_a_mean_where_there_is_one_cell():
    rng = np.random.default_rng(0)
    values, groups = pd.Series(rng.random(200)), pd.Series(range(200))
    one = evaluation.balanced_mean(values, pd.Series("a", values.index), groups)
    assert one == pytest.approx(evaluation.bootstrap(values, groups))
    cells = pd.Series(["a"] * 190 + ["b"] * 10)
    mean, low, high = evaluation.balanced_mean(values, cells, groups)
    assert mean == pytest.approx((values[:190].mean() + values[190:].mean()) / 2) and low < mean < high


def test_minors_pass_and_adults_are_asked():
    frame = pd.DataFrame({"age": [13, 17, 17, 20, 40], "age_predicted": [12, 18, 26, 17, 30], "group": range(5)})
    rates = evaluation.false_adults(frame).set_index(["limit", "ages"])["mean"]
    assert rates[18, "13–17"] == pytest.approx(2 / 3) and rates[25, "13–17"] == pytest.approx(1 / 3)
    assert rates[18, "18–24"] == 1 and rates[25, "25+"] == 0
    limits = {"Who looks 18 passes", "Who looks 25 passes"}
    assert set(evaluation.by_limit({"a": evaluation.false_adults(frame)})) == limits


def test_the_worst_bracket_is_weighed_by_photos():
    frame = pd.DataFrame(
        {"age": [20] * 8 + [50] * 3 + [90], "absolute": [1.0] * 8 + [6.0] * 3 + [2.0], "group": range(12)}
    )
    assert evaluation.worst_bracket(frame).startswith("50 to 50 years, 6.0 years off")
    wide = frame.assign(age=[20] * 8 + [45, 50, 60] + [55])  # 55 is but a little below the mean
    assert evaluation.worst_bracket(wide).startswith("45 to 60 years, 5.0 years off")


def test_whipples_index_of_no_heaps_and_of_nothing_else():
    ages, groups = pd.Series(np.arange(23.0, 63)), pd.Series(range(40))
    assert evaluation.whipple(ages, groups)[0] == 100
    assert evaluation.whipple(pd.Series([25.0, 30.0, 45.0]), groups[:3])[0] == 500
