"""Settings from a file: what is right is taken as it is, what is wrong is refused by name and line."""

from dataclasses import dataclass

import pytest

from faces import settings
from faces.settings import SettingsError, setting


@dataclass(frozen=True)
class Training:
    batch_size: int = setting(64, least=1)
    learning_rate: float = setting(1e-3, least=0)
    loss: str = setting("focal", choices=("focal", "cross_entropy"))
    shuffle: bool = setting(True)


@dataclass(frozen=True)
class Dataset:
    traindir: str = setting()
    share: float = setting(0.1, least=0, below=1)


KINDS = {"dataset": Dataset, "training": Training}


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_given_is_taken_and_the_rest_has_defaults(tmp_path):
    path = written(tmp_path, "dataset:\n  traindir: photos\ntraining:\n  learning_rate: 1e-4\n  batch_size: 8\n")
    found = settings.read(path, KINDS)
    assert found == {"dataset": Dataset("photos", 0.1), "training": Training(8, 1e-4, "focal", True)}
    assert settings.read(written(tmp_path, "dataset: {traindir: x, share: 0}"), KINDS)["dataset"].share == 0.0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("dataset:\n  traindir: x\ntraning:\n  loss: focal\n", "line 3: traning is not known (did you mean training?)"),
        ("dataset:\n  traindir: x\n  trainddir: y\n", "line 3: dataset.trainddir is not known (did you mean"),
        ("dataset:\n  share: 0.5\n", "line 1: dataset.traindir is missing"),
        ("training:\n  loss: focal\n", "line 1: dataset.traindir is missing"),
        ("dataset:\n  traindir: 7\n", "line 2: dataset.traindir must be text, not 7"),
        ("dataset:\n  traindir: x\n\n  share: 1\n", "line 4: dataset.share must be below 1, not 1.0"),
        ("dataset:\n  traindir: x\n  share: .nan\n", "line 3: dataset.share must be 0 or more, not nan"),
        ("dataset: x\n", "line 1: dataset must be a section of keys and values, not 'x'"),
        ("dataset: {traindir: x}\ntraining: {batch_size: 0}\n", "line 2: training.batch_size must be 1 or more, not 0"),
        ("dataset: {traindir: x}\ntraining: {batch_size: 1.5}\n", "batch_size must be a whole number, not 1.5"),
        ("dataset: {traindir: x}\ntraining: {batch_size: true}\n", "batch_size must be a whole number, not True"),
        ("dataset: {traindir: x}\ntraining: {learning_rate: fast}\n", "learning_rate must be a number, not 'fast'"),
        ("dataset: {traindir: x}\ntraining: {shuffle: 1}\n", "training.shuffle must be true or false, not 1"),
        ("dataset: {traindir: x}\ntraining: {loss: mse}\n", "must be one of focal, cross_entropy, not 'mse'"),
        ("- a\n- b\n", "must hold sections, dataset, training"),
        ("dataset: [\n", "is not YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name_and_line(tmp_path, text, complaint):
    path = written(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        settings.read(path, KINDS)
    assert complaint in str(error.value) and str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        settings.read(tmp_path / "none.yaml", KINDS)


def test_a_section_by_itself_names_the_place_it_came_from():
    with pytest.raises(SettingsError, match=r"^notebook: training\.los is not known \(did you mean loss\?\)"):
        settings.section(Training, {"los": "focal"}, name="training", where="notebook")
