import ipywidgets
from matplotlib import pyplot as plt

from faces.research import explore


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
