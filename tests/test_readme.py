"""README and samples: links lead somewhere, every notebook is reached, and samples hold what is said of them.

The tables are held by ``cog --check`` in ``make lint``.
"""

import csv
import re
from pathlib import Path

import pytest

from faces import cli
from faces.research import notebooks

README = (notebooks.ROOT / "README.md").read_text(encoding="utf-8")
SAMPLES = notebooks.ROOT / "samples"


def test_the_landing_page_is_short_and_leads_to_what_exists_and_to_every_notebook():
    assert len(README.splitlines()) <= 130
    assert all(f"notebooks/{path.name}" in README for path in notebooks.find())
    targets = re.findall(r'\]\(([^)#:]+)\)|(?:href|src)="([^"#:]+)"', README)
    assert len(targets) > 20
    for target in (one or other for one, other in targets):
        assert (notebooks.ROOT / target).exists(), target


def test_committed_results_stay_small():
    """As CONTRIBUTING.md says; each version of them stays in a clone."""
    assert sum(path.stat().st_size for path in (notebooks.ROOT / "artifacts" / "results").rglob("*")) < 20e6


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What ``make run`` prints."""
    makefile = (notebooks.ROOT / "Makefile").read_text(encoding="utf-8")
    samples = re.search(r"^SAMPLES := (.+)$", makefile, re.MULTILINE)[1].split()
    output = tmp_path_factory.mktemp("samples") / "results.csv"
    paths = [str(notebooks.ROOT / sample) for sample in samples]
    assert cli.label([*paths, "--tasks", "gender,age,glasses", "--output", str(output)]) == 0
    with output.open(encoding="utf-8", newline="") as file:
        return [row | {"file": Path(row["file"]).name} for row in csv.DictReader(file)]


def test_samples_are_credited(rows):
    about = (SAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in about for path in SAMPLES.glob("*.jpg"))
    assert len(rows) == 21 and sum(row["file"] == "group.jpg" for row in rows) == 8


def test_the_samples_that_are_said_to_be_wrong_are_wrong_and_the_others_right(rows):
    about = (SAMPLES / "README.md").read_text(encoding="utf-8")
    alone = {row["file"]: row for row in rows if row["file"] != "group.jpg"}
    wrong = {name for name in alone if f"{name}` |" in about.partition("are wrong")[2]}
    assert len(wrong) == 2
    for name, row in alone.items():
        gender = "male" if name.startswith(("male_", "024")) else "female"
        age_is_wrong = name == "024_neutral.jpg" and abs(float(row["age"]) - 47) > 10
        assert (row["gender"] != gender or age_is_wrong) == (name in wrong), name
    group = [row for row in rows if row["file"] == "group.jpg"]
    placed = sorted(group, key=lambda row: (float(row["top"]) > 320, float(row["left"])))
    assert [row["gender"] for row in placed] == ["female", "male", "female", "male"] * 2
    inside = [
        float(row["age_low"]) <= age <= float(row["age_high"])
        for row, age in zip(placed, (21, 39, 54, 40, 31, 42, 40, 47), strict=True)
    ]
    assert inside == [True] * 7 + [False]  # the last is the man of the portrait
    assert all(row["glasses"] == "no_glasses" for row in group)
