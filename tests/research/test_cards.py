"""Model cards begin with a header that model hubs read."""

import json
import re

import pytest
import yaml

from faces import predict
from faces.research import cards

ROW = {"source": "utkface", "head": "age", "metric": "mae", "photos": 9, "groups": 8, "mean": 4.7, "low": 4, "high": 5}
CARDS = sorted(predict.ARTIFACTS.glob("*/MODEL_CARD.md"))


def read(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_a_header_names_terms_data_and_figures_of_whole_test_sets():
    rows = [ROW | {"by": ""}, ROW | {"by": "gender", "value": "male", "mean": 9.9}, ROW | {"by": "", "metric": "bias"}]
    about = read(cards.header({"model": "ages", "test": rows}, ["utkface", "fairface"]))
    assert about["license_name"] == "non-commercial-research" and about["datasets"] == ["fairface", "utkface"]
    [result] = about["model-index"][0]["results"]
    assert result["dataset"] == {"name": "utkface", "type": "utkface", "split": "test"}
    assert result["metrics"] == [{"type": "age mae", "value": 4.7}]


@pytest.mark.parametrize(
    ("sources", "licence"),
    [("gray14", "cc-by-nc-sa-4.0"), ("fairface", "cc-by-4.0"), ("glasses", "other"), ("mine", "other")],
)
def test_the_strictest_terms_of_the_training_photos_decide(sources, licence):
    assert cards.licence([sources])["license"] == licence
    assert cards.licence([sources, "utkface"])["license"] != "cc-by-4.0"


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_published_cards_carry_the_header_of_their_metrics(path):
    text = path.read_text(encoding="utf-8")
    assert {"license", "datasets", "metrics", "tags"} <= read(text).keys()
    if trained_on := re.search(r"^Trained on: ([^.]+)\.", text, re.MULTILINE):  # the face finder was trained by others
        metrics = json.loads(path.with_name("metrics.json").read_text(encoding="utf-8"))
        header = cards.header(metrics, trained_on[1].split(", "))
        assert text.startswith(header), f"{path}: run python tools/cards.py"
        assert text.count("\n---\n") == 1
