"""tools/tables.py: figures and help texts as Markdown."""

import argparse
import json
import sys

import pytest

from faces import cli, predict
from faces.research import evaluation
from faces.research.notebooks import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import tables


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.split("\n") if line][2:]


def test_options_are_those_of_the_command_and_know_their_defaults():
    rows = dict(cells(tables.options("label")))
    assert "`DIR`" in "".join(rows) and any("--recursive" in name for name in rows)
    assert "(default: 0.6)" in rows["`--min-score P`"]
    assert not any("%(" in text or "--help" in name for name, text in rows.items())


def test_a_bar_in_a_help_text_does_not_end_the_cell(monkeypatch):
    def main(argv):
        parser = argparse.ArgumentParser()
        parser.add_argument("--way", help="a | b, 5 %% each (default: %(default)s)", default="a")
        parser.parse_args(argv)

    monkeypatch.setattr(cli, "main", main)
    assert tables.options().splitlines()[-1] == "| `--way WAY` | a \\| b, 5 % each (default: a) |"


def test_every_published_network_is_listed_with_its_measured_figures():
    listed = tables.models()
    assert {path.parent.name for path in predict.ARTIFACTS.glob("*/model.onnx")} - {"face_finder"} == set(
        tables.networks()
    )
    assert all(f"[`{name}`](../artifacts/{name}/MODEL_CARD.md)" in listed for name in tables.networks())
    for name, model in tables.networks().items():
        for head in model.heads:
            if head in ("gender", "age"):
                assert f"| `{name}` |" in tables.results(head)


def test_a_figure_of_the_results_is_the_committed_one():
    path = predict.ARTIFACTS / predict.TASKS["gender"] / "metrics.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["test"]
    [row] = (row for row in rows if (row["head"], row["source"], row["by"]) == ("gender", "fairface", ""))
    mean, *bounds = (f"{100 * row[name]:.1f}" for name in ("mean", "low", "high"))
    assert f"{mean}% ({'–'.join(bounds)})" in tables.results("gender")


def test_the_minors_that_pass_are_those_of_the_default_network():
    checks = evaluation.false_adults(tables._ages()).query("share == 'pass'").set_index("limit")["mean"]
    row = cells(tables.minors())[0]
    assert row[0] == "13–17"
    assert [share.split(" (")[0] for share in row[2:]] == [f"{checks[limit]:.1%}" for limit in (18, 25)]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_blocks_of_pages_are_filled(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("[[[cog ") == text.count("[[[end]]]")
    assert "]]] -->\n<!-- [[[end" not in text, "run make tables"


def test_epochs_and_years_are_no_shares():
    rows = cells(tables.runs("06", "frozen.history", {"epoch": "epoch", "val_age_mae": "validation"}))
    assert [epoch for epoch, _ in rows] == [str(number) for number in range(1, 11)]
    assert all(3 < float(years) < 9 for _, years in rows)
