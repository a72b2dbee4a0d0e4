"""Steps compute with photos, read without, and say what makes a result stale."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pydantic
import pytest

from faces.research import steps


@dataclass(frozen=True)
class Recipe:
    epochs: int = 8
    rate: float = 0.1


@dataclass(frozen=True)
class LaterRecipe(Recipe):
    average: float = 0.0


def photos(folders, *, ages=(30, 20, 40)):
    return pd.DataFrame({"path": ["b", "a", "c"], "name": ["b", "a", "c"], "age": list(ages)})


def older(table, *, recipe=None, years=1, folder=None):
    return {"ages": pd.DataFrame({"age": table["age"] + years / 3}), "count": pd.DataFrame({"photos": [len(table)]})}


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    monkeypatch.setattr(steps, "PUBLISHED", tmp_path / "artifacts" / "results")
    (tmp_path / "photos").mkdir()
    return tmp_path


def test_published_results_are_read_without_photos_digit_by_digit(house):
    full = steps.open("01", ["photos"], "runs")
    computed = full("older", older, full("photos", photos, full.data_dirs), recipe=[Recipe()], folder=house / "x")
    steps.publish(full, house / "artifacts" / "results" / "01")
    report = steps.open("01", [], "elsewhere")
    read = report("older", older, report("photos", photos, report.data_dirs), recipe=[Recipe()], folder=Path("y"))
    pd.testing.assert_frame_equal(read["ages"], computed["ages"])
    assert report.status().index.tolist() == ["photos", "older"]
    assert not (house / "elsewhere").exists()


def test_private_columns_are_not_published_and_rows_are_shuffled_alike_each_time(house):
    full = steps.open("01", ["photos"], "runs")
    full("photos", photos, full.data_dirs, ages=list(range(3)))
    for folder in ("one", "two"):
        steps.publish(full, house / folder)
    public = pd.read_parquet(house / "one" / "photos.parquet")
    assert public.columns.tolist() == ["age"] and sorted(public["age"]) == [0, 1, 2]
    assert public["age"].tolist() != [0, 1, 2]
    assert (house / "one" / "photos.parquet").read_bytes() == (house / "two" / "photos.parquet").read_bytes()
    assert (
        full.index()["photos"]["tables"] == json.loads((house / "one" / "index.json").read_text())["photos"]["tables"]
    )


def test_what_is_done_is_not_computed_again_unless_settings_or_parents_change(house):
    calls = []

    def counted(table, **settings):
        calls.append(settings)
        return older(table, **settings)

    full = steps.open("01", ["photos"], "runs")
    first = full("photos", photos, full.data_dirs)
    for years, expected in ((1, 1), (1, 1), (2, 2)):
        full("older", counted, first, years=years)
        assert len(calls) == expected
    again = steps.open("01", ["photos"], "runs")
    again("older", counted, again("photos", photos, again.data_dirs), years=2)
    assert len(calls) == 2
    again("older", counted, again("photos", photos, again.data_dirs, ages=[1, 2, 3]), years=2)
    assert len(calls) == 3


def test_stale_results_say_which_value_differs(house):
    full = steps.open("01", ["photos"], "runs")
    full("older", older, full("photos", photos, full.data_dirs), recipe=Recipe())
    full("stages", older, full("photos", photos, full.data_dirs), recipe=[Recipe(), Recipe(3)])
    steps.publish(full, house / "artifacts" / "results" / "01")
    report = steps.open("01", [], "runs")
    table = report("photos", photos, [])
    with pytest.raises(steps.StaleResult, match=r"recipe.epochs was 8, is 12.*set data_dirs"):
        report("older", older, table, recipe=Recipe(epochs=12))
    with pytest.raises(steps.StaleResult, match=r"recipe\[1\].epochs was 3, is 4"):
        report("stages", older, table, recipe=[Recipe(), Recipe(4)])
    with pytest.raises(steps.StaleResult, match="years was None, is 2"):
        report("older", older, table, recipe=Recipe(), years=2)
    with pytest.raises(steps.StaleResult, match="an input table has changed"):
        report("older", older, table.assign(age=1), recipe=Recipe())
    with pytest.raises(steps.StaleResult, match="step new: there is no result"):
        report("new", older, table)
    report("older", older, table, recipe=LaterRecipe())  # a later field counts as having had its default
    with pytest.raises(steps.StaleResult, match=r"recipe.average was 0.0, is 0.1"):
        report("older", older, table, recipe=LaterRecipe(average=0.1))


def test_arrays_and_networks_and_a_table_that_the_index_does_not_describe_are_refused(house):
    full = steps.open("01", ["photos"], "runs")
    with pytest.raises(TypeError, match="settings go by keyword"):
        full("x", older, 3)
    with pytest.raises(TypeError, match="plain data, not object"):
        full("x", older, photos([]), years=object())
    full("photos", photos, full.data_dirs)
    pd.DataFrame({"age": [1]}).to_parquet(full.folder / "photos.parquet")
    with pytest.raises(steps.StaleResult, match=r"photos.parquet is not the table"):
        full("photos", photos, full.data_dirs)


def test_relative_folders_are_found_from_any_working_folder(house, monkeypatch):
    (house / "elsewhere" / "mine").mkdir(parents=True)
    monkeypatch.chdir(house / "elsewhere")
    opened = steps.open("01", ["mine", "photos"], "runs")
    assert opened.data_dirs == [house / "elsewhere" / "mine", house / "photos"]
    assert opened.folder == house / "runs" / "01"


def test_other_photos_are_computed_anew(house):
    seen = []

    def look(folders):
        seen.append(folders)
        return photos(folders)

    def run(*folders):
        steps.open("01", [str(house / name) for name in folders], house / "runs")("photos", look, list(folders))

    run("photos")
    run("photos")
    assert len(seen) == 1
    (house / "photos" / "new.jpg").touch()
    run("photos")
    (house / "others").mkdir()
    (house / "others" / "a.jpg").touch()
    run("others")
    assert len(seen) == 3


def test_fields_that_pydantic_declares_count_as_having_had_their_default(tmp_path):
    @pydantic.dataclasses.dataclass
    class Later:
        epochs: int = pydantic.Field(3, ge=1)
        sizes: list = pydantic.Field(default_factory=lambda: [64])

    step = steps.Steps(tmp_path, [], tmp_path)
    step.write("run", pd.DataFrame({"a": [1]}), {"inputs": [], "settings": {"recipe": {"epochs": 3}}})
    assert len(step("run", None, recipe=Later())) == 1
    with pytest.raises(steps.StaleResult, match=r"recipe\.epochs was 3, is 4"):
        step("run", None, recipe=Later(epochs=4))
