import pytest
import torch

from faces.research import experiments, training
from faces.research.experiments import Augment, Recipe

RECIPE = Recipe(
    learn={"gender": 1.0, "age": 0.05, "glasses": 1.0},
    along={"race": 0.3},
    backbone="small_resnet",
    options={"width": 4},
    weights="random",
    size=32,
    epochs=2,
    batch_size=16,
    learning_rate=3e-3,
    augment=Augment(rotate=5, shift=0.02, zoom=(0.9, 1.1)),
    average=0.2,
    mirror=True,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(photos, cache, tmp_path_factory):
    """A finished run: its folder, network and history."""
    folder = tmp_path_factory.mktemp("run") / "run"
    network, history = experiments.train(RECIPE, photos, folder, cache=cache, progress=False)
    return folder, network, history


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_run_learns_all_columns(run, photos):
    _, network, history = run
    assert list(network.heads) == ["gender", "age", "glasses"]
    assert history["train_loss"].iloc[1] < history["train_loss"].iloc[0]
    columns = {"epoch", "train_loss", "val_loss", "val_gender_acc", "val_age_mae", "val_glasses_acc", "images_per_s"}
    assert columns <= set(history)


def test_a_finished_run_is_not_trained_again(run, photos, cache, monkeypatch):
    folder, network, history = run
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    again, same_history = experiments.train(RECIPE, photos, folder, cache=cache, progress=False)
    assert same(network, again)
    assert same_history["val_loss"].tolist() == history["val_loss"].tolist()


@pytest.mark.parametrize("steps", [2, 5])
def test_a_killed_run_ends_with_the_same_weights(run, photos, cache, tmp_path, monkeypatch, steps):
    """Killed within the first epoch (4 steps) or the second, with a checkpoint after every step."""
    _, network, history = run
    calls = []

    def killed(self, x):
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return x.flip(3)

    fit = training.fit
    monkeypatch.setattr(training, "fit", lambda *args, **options: fit(*args, **options, save_every=0.0))
    plain = experiments.train(RECIPE, photos, tmp_path / "plain", cache=cache, progress=False)[0]
    assert same(network, plain)
    original = Augment.__call__
    monkeypatch.setattr(Augment, "__call__", lambda self, x: (killed(self, x), original(self, x))[1])
    with pytest.raises(KeyboardInterrupt):
        experiments.train(RECIPE, photos, tmp_path / "killed", cache=cache, progress=False)
    monkeypatch.setattr(Augment, "__call__", original)
    resumed, again = experiments.train(RECIPE, photos, tmp_path / "killed", cache=cache, progress=False)
    assert same(network, resumed)
    figures = ["train_loss", "val_loss", "train_age_mae", "val_gender_acc"]
    assert again[figures].to_numpy().tolist() == history[figures].to_numpy().tolist()
