import ipywidgets
import pytest
from matplotlib import pyplot as plt

from faces.research import experiments, explore


def test_a_figure_is_drawn_anew_when_a_control_moves_and_nothing_waits_for_an_answer(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    explore.interact(
        lambda level, kind: (f"{kind} <{level}>", plt.figure() if level else None), level=(0, 4, 2), kind=["a", "b"]
    )
    [box] = shown
    level, kind, text, picture = box.children
    assert (level.description, kind.description) == ("level", "kind")
    assert text.value == "a &lt;2&gt;" and bytes(picture.value).startswith(b"\x89PNG")
    level.value, kind.value = 0, "b"
    assert (text.value, bytes(picture.value)) == ("b &lt;0&gt;", b"")
    assert not any(isinstance(widget, ipywidgets.Output) for widget in box.children) and not plt.get_fignums()


@pytest.mark.slow
def test_a_learning_curve_trains_on_ever_more_photos_with_equally_many_steps(photos, tmp_path, monkeypatch):
    epochs, train = [], experiments.train
    monkeypatch.setattr(
        experiments, "train", lambda recipe, *rest, **how: epochs.append(recipe.epochs) or train(recipe, *rest, **how)
    )
    curve = explore.learning_curve(photos, points=2, epochs=1, batch_size=16, size=32, seed=0, folder=tmp_path)
    number = (photos["age"].notna() & (photos["split"] == "train")).sum()
    assert curve["photos"].tolist() == [number // 2, number] and epochs == [2, 1]
    assert curve[["train", "val"]].gt(0).all(axis=None)
