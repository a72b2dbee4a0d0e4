"""Figures are drawn, are the same each time, and show nobody."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from faces.research import evaluation, plots

mpl.use("agg")


@pytest.fixture(autouse=True)
def closed_figures():
    plots.theme()
    yield
    plt.close("all")


def photos(n):
    rng = np.random.default_rng(0)
    manifest = pd.DataFrame({"gender": rng.choice(["female", "male"], n), "age_group": "20-29", "source": "a"})
    return rng.integers(0, 255, (n, 8, 8, 3), dtype=np.uint8), manifest


def test_a_mean_of_few_photos_is_refused_and_left_blank():
    pixels, manifest = photos(80)
    with pytest.raises(ValueError, match="at least 50"):
        plots.mean_image(pixels, np.arange(49))
    manifest.loc[:59, "gender"] = "female"
    manifest.loc[60:, "gender"] = "male"
    figure = plots.mean_faces(pixels, manifest, "gender", "age_group")
    shown, blank = (ax.images[0].get_array() for ax in figure.axes)
    assert len(np.unique(shown)) > 10
    assert len(np.unique(blank)) == 1
    assert "20 (too few)" in figure.axes[1].get_xlabel()


def test_a_mean_image_is_the_mean_at_full_contrast():
    pixels, _ = photos(60)
    mean = pixels.mean(0)
    drawn = plots.mean_image(pixels, np.arange(60)).astype(float)
    assert np.corrcoef(mean.ravel(), drawn.ravel())[0, 1] > 0.99
    assert drawn.min() < 5 and drawn.max() > 250


def test_counts_carry_their_numbers():
    _, manifest = photos(60)
    ax = plots.counts(manifest, "gender", order=["female", "male"])
    written = [text.get_text() for text in ax.texts]
    assert written == [str(n) for n in manifest["gender"].value_counts()[["female", "male"]]]


def test_history_rings_the_epoch_that_was_kept():
    table = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3, 2, 1], "val_loss": [3, 2, 2.5]})
    table["train_acc"], table["val_acc"] = [0.5, 0.6, 0.7], [0.5, 0.65, 0.6]
    figure = plots.history(table, title="A run", best=2)
    ring = figure.axes[1].lines[-1]
    assert ring.get_xdata() == [2] and ring.get_ydata() == [0.65]


def test_intervals_and_confusion_show_what_the_tables_hold(tmp_path):
    table = pd.DataFrame({"gender": ["f", "f", "m", "m"], "predicted": ["f", "m", "m", "m"], "group": range(4)})
    table["correct"] = table["gender"] == table["predicted"]
    ax = plots.confusion(evaluation.confusion(table, "gender", ["f", "m"]))
    assert [text.get_text() for text in ax.texts] == ["50.0%\n1", "50.0%\n1", "0.0%\n0", "100.0%\n2"]
    plt.figure()
    ax = plots.intervals(evaluation.by_group(table, "gender"), xlabel="accuracy")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["f  (2)", "m  (2)"]
    first = plots.save(ax.figure, tmp_path, "one").read_bytes()
    assert plots.save(ax.figure, tmp_path / "new", "two").read_bytes() == first
