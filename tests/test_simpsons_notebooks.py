"""Notebook 09 end to end on drawn people in class folders, and its settings files."""

import json
from dataclasses import replace

import demo_run
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from faces.research import cartoons, data, experiments, steps

NOTEBOOKS = ("09",)  # of the fixture `executed`


@pytest.mark.slow
def test_the_notebook_runs_from_pictures_to_named_ones(executed):
    demo_run.check(executed)
    index = json.loads((executed / "09" / "index.json").read_text())
    assert {"people", "by_epoch", "steps_people", "splits_people", "on_plain_people", "drawings"} <= set(index)
    compared = pd.read_parquet(executed / "09" / "steps_people.parquet")
    assert len(compared) == 9 and compared["test_f1"].between(0, 1).all()
    named = pd.read_csv(executed / "named.csv")
    assert named.loc[named["error"].notna(), "file"].tolist() == ["male/0071.jpg"]  # a truncated one
    assert named["label"].notna().sum() == len(named) - 1


@pytest.mark.parametrize(("file", "model"), [("simpsons", "simpsons_color6"), ("simpsons_gray14", "simpsons_gray14")])
def test_settings_files_hold_the_published_recipe(file, model):
    settings = experiments.read_settings(steps.ROOT / "configs" / f"{file}.yaml")
    published = experiments.load(steps.ROOT / "artifacts" / model)[1]
    assert replace(published, learn=settings.recipe.learn) == settings.recipe
    with pytest.raises(experiments.SettingsError, match="epoch"):
        experiments.read_settings(steps.ROOT / "configs" / f"{file}.yaml", ["recipe.epoch=3"])


def test_the_ladder_ends_in_the_recipe_and_changes_one_thing_at_a_time():
    recipe = experiments.read_settings(steps.ROOT / "configs" / "simpsons.yaml").recipe
    ladder = cartoons.ladder(recipe, epochs=2, width=4, wide=8)
    assert ladder["published"] is recipe and ladder["… larger"].options == {"width": 8}
    assert {r.epochs for r in list(ladder.values())[:-1]} == {2}
    assert ladder["plain, focal loss"].gamma == 2 and ladder["plain, weighted classes"].balance == ("label",)


def test_a_random_split_has_the_same_proportions():
    photos = pd.DataFrame({"label": list("ab") * 50, "split": ["train"] * 70 + ["val"] * 10 + ["test"] * 20})
    random = cartoons.at_random(photos, label="label", seed=0)
    assert random["split"].value_counts().to_dict() == {"train": 70, "test": 20, "val": 10}
    assert (random["split"] != photos["split"]).any()


def test_pictures_shrink_on_a_plain_background(tmp_path, monkeypatch):
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "one.png")
    photos = pd.DataFrame({"path": [str(tmp_path / "one.png")], "split": "test", "group": 0, "label": "red"})
    seen = []

    def answer(run, manifest, cache):
        for path in manifest["path"]:
            with Image.open(path) as square:
                seen.append((square.size, square.getpixel((0, 0)), square.getpixel((square.width // 2,) * 2)))
        return manifest.assign(label_predicted="red", label_confidence=1.0)

    monkeypatch.setattr(experiments, "predict", answer)
    where = {"run": tmp_path, "folder": tmp_path / "altered", "cache": tmp_path}
    table = cartoons.on_plain(photos, label="label", scales=[1.0, 0.5], **where)
    assert seen[1] == ((80, 80), (255, 255, 255), (255, 0, 0)) and seen[2][1] == (0, 0, 0)
    assert table[["background", "scale"]].to_numpy().tolist()[::3] == [["white", 1.0], ["black", 0.5]]


def test_a_folder_without_pictures_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture in"):
        cartoons.name_pictures(tmp_path, "simpsons_color6")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        cartoons.name_pictures(tmp_path / "gone", "simpsons_color6")


def test_abstention_is_fitted_on_validation_rows():
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"label_confidence": draw.random(400), "split": ["val", "test"] * 200, "label": "a"})
    table["label_predicted"] = np.where(table["label_confidence"] > 0.5, "a", "b")
    found = cartoons.abstention(table, "label", 0.02)
    assert 0.45 < found["threshold"] < 0.55 and found["risk"] <= 0.05


def test_published_pictures_are_split_as_before():
    if not (steps.ROOT / "artifacts" / "results" / "09" / "index.json").is_file():
        pytest.skip("not published")
    published = steps.Steps(steps.PUBLISHED / "09", [], steps.ROOT / "runs")
    for name in ("color6", "gray14"):
        photos = published.read(f"photos_{name}")
        metrics = json.loads((steps.ROOT / "artifacts" / f"simpsons_{name}" / "metrics.json").read_text())
        kept = data.usable(photos, "label").query("split != 'excluded'")
        counts = metrics["data"]["photos"]
        assert kept["split"].value_counts().to_dict() == counts.get(name, counts)
