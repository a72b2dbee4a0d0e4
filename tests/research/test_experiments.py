import json
import re
import shutil
from dataclasses import replace

import helpers
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from pandas.api.types import is_numeric_dtype
from PIL import Image
from seeds import SEED

from faces import cli, predict, trust
from faces.research import batches, data, demo, experiments, export, heads, networks, training
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
    seed=SEED,
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


MODEL_FOLDER = {"model.onnx", "weights.safetensors", "model.json", "metrics.json", "history.csv", "MODEL_CARD.md"}


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_run_learns_all_columns_and_is_not_trained_again(run, photos, cache, monkeypatch):
    folder, network, history = run
    assert list(network.heads) == ["gender", "age", "glasses"]
    assert history["train_loss"].iloc[1] < 0.9 * history["train_loss"].iloc[0]
    columns = {"epoch", "train_loss", "val_loss", "val_gender_acc", "val_age_mae", "val_glasses_acc", "images_per_s"}
    assert columns <= set(history)
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


def test_other_labels_or_photos_are_another_run(run, photos, cache):
    folder = run[0]
    flipped = photos.assign(gender=photos["gender"].map({"female": "male", "male": "female"}))
    with pytest.raises(training.ResumeError, match="holds another run \\(data was"):
        experiments.train(RECIPE, flipped, folder, cache=cache, progress=False)
    other = photos.assign(sha256=photos["sha256"].to_numpy()[::-1], path=photos["path"].to_numpy()[::-1])
    with pytest.raises(training.ResumeError, match="data was"):
        experiments.train(RECIPE, other, folder, cache=cache, progress=False)
    with pytest.raises(training.ResumeError, match=r"recipe.learning_rate was 0.003, is 0.001"):
        experiments.train(replace(RECIPE, learning_rate=1e-3), photos, folder, cache=cache, progress=False)


def test_a_field_that_recipes_gain_later_counts_as_its_default():
    kept = {"recipe": json.loads(json.dumps(experiments.asdict(RECIPE)))}
    del kept["recipe"]["distill"], kept["recipe"]["augment"]["erase"]
    now = {"recipe": json.loads(json.dumps(experiments.asdict(RECIPE)))}
    assert experiments.with_defaults(kept) == now
    del kept["recipe"]["seed"]
    changed = {"recipe": now["recipe"] | {"seed": 3}}
    assert training.differences(experiments.with_defaults(kept), changed) == ["recipe.seed was 0, is 3"]


def test_stages_start_from_what_fits(photos, cache, tmp_path):
    first = replace(RECIPE, learn={"gender": 1.0}, along={}, epochs=1)
    second = replace(first, learn={"gender": 1.0, "glasses": 1.0}, learning_rate=1e-9, average=0.0)
    second = replace(second, teachers=("before",))
    network, history = experiments.train([first, second], photos, tmp_path, cache=cache, progress=False)
    assert history["stage"].tolist() == [1, 2]
    before = experiments.load(tmp_path / "stage-1")[0].state_dict()
    for name, value in network.state_dict().items():
        if name in before and "running" not in name and "num_batches" not in name:
            assert torch.allclose(value, before[name], atol=1e-6)
    assert same(experiments.load(tmp_path)[0], network)
    assert experiments.load(tmp_path)[1].teachers == (str(tmp_path / "stage-1"),)


def test_a_teacher_that_contradicts_a_label_is_ignored_and_asked_once(run, photos, cache, monkeypatch):
    folder = run[0]
    recipe = replace(RECIPE, teachers=(str(folder),))
    found = heads.of(recipe, photos)
    targets = {head.name: head.targets(photos) for head in found}
    taught = experiments.taught(recipe, found, photos, targets, cache=cache)
    answers = experiments.outputs_of(folder, photos, cache=cache)["gender"]
    wrong = (answers.argmax(1) != targets["gender"][:, 0]) & ~np.isnan(targets["gender"][:, 0])
    assert np.isnan(taught["gender/teacher"]).any(1).tolist() == wrong.tolist()
    right = ~wrong
    np.testing.assert_allclose(taught["gender/teacher"][right].argmax(1), answers[right].argmax(1))
    monkeypatch.setattr(experiments, "outputs_of", helpers.raising(AssertionError("asked again")))
    again = experiments.taught(recipe, found, photos, targets, cache=cache)
    np.testing.assert_array_equal(again["gender/teacher"], taught["gender/teacher"])


def test_a_student_learns_from_photos_without_labels(run, photos, cache, tmp_path):
    unlabelled = photos.assign(gender=photos["gender"].where(photos["split"] != "train"))
    recipe = replace(RECIPE, learn={"gender": 1.0}, along={}, teachers=(str(run[0]),), epochs=1)
    _, history = experiments.train(recipe, unlabelled, tmp_path, cache=cache, progress=False)
    assert history["train_loss"].iloc[0] > 0


@pytest.mark.slow
def test_publish_and_its_onnx_answer_like_the_run(run, photos, cache, tmp_path, monkeypatch):
    folder = run[0]
    metrics = experiments.publish(folder, tmp_path / "model", photos, cache=cache)
    assert {row["head"] for row in metrics["test"]} == {"gender", "age", "glasses"}
    assert (tmp_path / "SHA256SUMS").read_text().endswith("  model/model.onnx\n")
    assert {path.name for path in (tmp_path / "model").iterdir()} == MODEL_FOLDER
    assert list(experiments.load(tmp_path / "model")[0].heads) == ["gender", "age", "glasses"]  # race was learnt along
    test = photos[photos["split"] == "test"].reset_index(drop=True)
    expected = experiments.predict(folder, test, cache=cache)
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx")
    pixels = batches.decode(test, 32, cache=cache)[np.arange(len(test))]
    found, fitted, about = export.from_metadata(tmp_path / "model" / "model.onnx")
    assert about["subject"] == "face"
    assert fitted["age"]["coverage"] == 0.9
    for head, answers in zip(found, session.run(None, {"pixels": pixels}), strict=True):
        table = head.frame(answers)
        for column in table:
            if not is_numeric_dtype(table[column]):
                assert table[column].tolist() == expected[column].tolist()
            else:
                np.testing.assert_allclose(table[column], expected[column], atol=1e-2 if head.name == "age" else 1e-4)
    before = (tmp_path / "model" / "metrics.json").read_bytes()
    with pytest.raises(FileExistsError, match="holds a model already"):
        experiments.publish(folder, tmp_path / "model", photos, cache=cache)
    assert (tmp_path / "model" / "metrics.json").read_bytes() == before
    (tmp_path / "model" / "notes.txt").write_text("mine")
    shutil.copytree(tmp_path / "model", tmp_path / "larger")
    trust.vouch(tmp_path / "larger")
    again = {"cache": cache, "overwrite": True, "int8": True, "in_front_of": str(tmp_path / "larger")}
    small = experiments.publish(folder, tmp_path / "model", photos, **again)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine" and small["test"] != metrics["test"]
    shipped = predict.Model(tmp_path / "model")
    assert [head.sure is None for head in shipped.heads.values()] == [False, True, False]  # gender, age, glasses
    told = [face.label for face in shipped.head("glasses").read(shipped.run(pixels, "glasses"))]
    row = next(row for row in small["test"] if row["head"] == "glasses" and not row["by"])
    known = test["glasses"].notna()
    assert row["mean"] == pytest.approx((test["glasses"] == told)[known].mean(), abs=1e-4)  # of the file itself
    assert networks.load_weights(experiments.load(folder)[0], tmp_path / "model")


def test_what_rounding_moved_is_fitted_again(monkeypatch):
    """Labels are drawn with the probabilities of some logits; the file scales those, and shifts them to one side."""
    gender, age = heads.Classes("gender", ("female", "male")), heads.Years()
    draw, rows = np.random.default_rng(SEED), np.arange(4000)
    logits = draw.normal(0, 2, (len(rows), 2))
    drawn = draw.random(len(rows)) < 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    manifest = pd.DataFrame({"gender": np.where(drawn, "male", "female"), "age": 30.0, "split": "val"})
    fitted = {"gender": {"scale": 0.4, "shift": [0.0, 1.5]}, "age": {"coverage": 0.9}}
    said = gender.answer(torch.from_numpy(logits), fitted["gender"]).numpy()
    monkeypatch.setattr(export, "frame", lambda path, found, pixels, rows: gender.frame(said[rows]))
    [(name, again)] = experiments.refitted("model.onnx", [gender, age], fitted, None, manifest, rows).items()
    assert name == "gender" and again["scale"] == pytest.approx(1, abs=0.15)
    assert again["shift"] == [0, pytest.approx(0, abs=0.2)] and 0.5 <= again["abstain_below"] <= 1


def test_a_small_network_is_sure_from_where_it_loses_nothing():
    """Of 4,000 men it is wrong below .8, of 4,000 women below .7; a larger network is always right."""
    confidence = np.tile(np.linspace(0.5, 1, 4000), 2)
    label = np.repeat(["male", "female"], 4000)
    wrong = confidence < np.where(label == "male", 0.8, 0.7)
    other = np.where(label == "male", "female", "male")
    ours = pd.DataFrame({"gender_predicted": np.where(wrong, other, label), "gender_confidence": confidence})
    theirs = pd.DataFrame({"gender_predicted": label})
    sure = experiments.sure_from(ours, theirs, pd.Series(label, np.arange(8000)[::-1]), "gender")
    assert sure == pytest.approx(0.8, abs=0.001) and (ours["gender_confidence"][wrong] < sure).mean() > 0.99
    assert experiments.sure_from(ours, ours, pd.Series(label), "gender") <= 0.0001
    unlabelled = pd.Series(np.where(label == "male", None, label))
    assert experiments.sure_from(ours, theirs, unlabelled, "gender") == pytest.approx(0.7, abs=0.001)


def test_oversampled_photos_are_shown_more_often(photos, capsys):
    recipe = replace(RECIPE, oversample={"gender": {"female": 2}, "glasses": {"glasses": 3}})
    times = experiments.shown(recipe, photos)
    glasses = photos["glasses"] == "glasses"
    assert (times[glasses] == 3).all() and (times[~glasses & (photos["gender"] == "female")] == 2).all()
    assert times.sum() == 3 * glasses.sum() + 2 * (~glasses & (photos["gender"] == "female")).sum() + (times == 1).sum()
    for column, value in (("gender", "queen"), ("hair", "black")):
        assert (experiments.shown(replace(RECIPE, oversample={column: {value: 2}}), photos) == 1).all()
        assert f"there is no photo whose {column} is '{value}'" in capsys.readouterr().err


def test_run_returns_tables(run, photos, cache):
    tables = experiments.run(photos, recipe=RECIPE, folder=run[0], cache=cache, progress=False)
    assert len(tables["history"]) == 2
    predictions = tables["predictions"]
    assert set(predictions["split"]) == {"val", "test"}
    figures = experiments.evaluate(predictions, experiments.load(run[0])[2], by=["gender"])
    row = figures[(figures["head"] == "gender") & (figures["by"] == "")].iloc[0]
    labelled = predictions[predictions["gender"].notna()]
    assert row["mean"] == pytest.approx((labelled["gender"] == labelled["gender_predicted"]).mean())
    assert row["photos"] == len(labelled)
    assert set(figures.loc[figures["by"] == "gender", "head"]) == {"age", "glasses"}


def test_settings_files(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("data: [photos]\nrun: runs/x\nrecipe: {learn: {gender: 1}, augment: {rotate: 5}}\n")
    settings = experiments.read_settings(path, ["recipe.epochs=3", "limit=50"])
    assert (settings.recipe.epochs, settings.limit, settings.recipe.augment.rotate) == (3, 50, 5.0)
    assert experiments.read_settings(path, ["epochs=4"]).recipe.epochs == 4
    for wrong, message in (
        ("recipe.epoch=3", "recipe.*epoch.*nexpected"),
        ("recipe.epochs=0", "recipe.*epochs.*greater than or equal to 1"),
        ("recipe.augment.turn=1", "augment.*turn.*nexpected"),
        ("recipe.augment=5", "augment"),
        ("recipe.augment.rotate.x=5", "does not fit the settings"),
        ("nonsense", "is not KEY=VALUE"),
    ):
        with pytest.raises(experiments.SettingsError, match=message):
            experiments.read_settings(path, [wrong])
    path.write_text("data: [photos]\nrun: x\nrecipe: [{epochs: 1}, {epochs: 2, weights: random}]\n")
    assert [stage.epochs for stage in experiments.read_settings(path, ["recipe.1.seed=7"]).recipe] == [1, 2]
    assert [stage.seed for stage in experiments.read_settings(path, ["recipe.1.seed=7"]).recipe] == [0, 7]
    assert [stage.augment.rotate for stage in experiments.read_settings(path, ["augment.rotate=7"]).recipe] == [7, 7]
    assert [stage.epochs for stage in experiments.read_settings(path, ["epochs=3"]).recipe] == [3, 3]
    for text, message in (
        (
            "dataset_parameters: {traindir: x}\nmodel_parameters: {}\n",
            "of an earlier version .*write the keys data, run",
        ),
        ("- a\n", "must hold the keys data, run and recipe"),
        ("data: [\n", "cannot be read: while parsing"),
    ):
        path.write_text(text)
        with pytest.raises(experiments.SettingsError, match=message) as error:
            experiments.read_settings(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(experiments.SettingsError, match=r"cannot be read: .*No such file"):
        experiments.read_settings(tmp_path / "none.yaml")


def test_a_guide_is_imitated_and_left_behind(run, photos, cache, tmp_path):
    recipe = replace(RECIPE, learn={"gender": 1.0}, along={}, guide=str(run[0]), epochs=1)
    network, _ = experiments.train(recipe, photos, tmp_path, cache=cache, progress=False)
    assert list(network.heads) == ["gender"]
    assert same(experiments.load(tmp_path)[0], network)


TINY = ["backbone=small_resnet", "options.width=4", "weights=random", "size=32", "epochs=1"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder that the command is called from, with a folder of labelled pictures."""
    monkeypatch.chdir(tmp_path)
    pets = demo.make(tmp_path / "pets", 60, layout="class_folders", size=40)
    (pets / "female").rename(pets / "cats")
    (pets / "male").rename(pets / "dogs")
    return tmp_path


@pytest.mark.slow
def test_class_folders_become_a_model_for_process_py(home, capsys):
    assert cli.main(["train", "pets", *TINY]) == 0
    shown = capsys.readouterr()
    assert re.match(r"pets: \d+ images by class folders\nlabel: (cats|dogs) \d+, ", shown.err)
    assert len(re.findall("left out: pets/.*", shown.err)) == 1
    assert re.match(r"pets: label: \d+ of \d+ test photos right, too few to tell how good it is\n", shown.out)
    assert shown.out.endswith("runs/pets written; use it with: python process.py DIR --model runs/pets\n")
    folder = home / "runs" / "pets"
    assert {path.name for path in folder.iterdir()} == MODEL_FOLDER
    recipe = experiments.load(folder)[1]
    assert (recipe.batch_size, recipe.learning_rate) == (16, pytest.approx(1e-3 * 8**-0.5))  # few photos, small batches
    model = predict.Model(folder)
    assert model.classes == ("cats", "dogs") and model.subject == "picture"
    assert cli.label(["pets/cats", "--model", "runs/pets"]) == 0
    assert set(json.loads((home / "process_results.json").read_text()).values()) <= {"cats", "dogs"}
    before = (folder / "model.onnx").read_bytes()
    assert cli.main(["train", "pets", *TINY]) == 2
    assert "runs/pets holds a model already: name another folder, or overwrite it" in capsys.readouterr().err
    assert cli.main(["train", "pets", *TINY, "seed=3", "recipe.seed=3", "--overwrite"]) == 0
    assert (folder / "model.onnx").read_bytes() != before


@pytest.mark.slow
def test_a_settings_file_and_its_recipe_on_other_folders(home, capsys):
    (home / "mine.yaml").write_text(
        "data: [pets]\nrun: runs/a/b\nstratify: [label]\nrecipe:\n  learn: {label: 1}\n  along: {}\n  batch_size: 32\n"
    )
    assert cli.main(["train", "mine.yaml", *TINY]) == 0
    assert {path.name for path in (home / "runs/a/b").iterdir()} == MODEL_FOLDER
    assert cli.main(["train", "pets", "--recipe", "mine.yaml", "--name", "second", *TINY]) == 0
    assert experiments.load(home / "runs/second")[1].batch_size == 32
    capsys.readouterr()
    assert cli.main(["train", "mine.yaml", "pets"]) == 2
    assert cli.main(["train", "mine.yaml", "--label", "smile"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "or one settings file" in told[0] and "mine.yaml says what is learnt" in told[1]


@pytest.mark.slow
def test_an_interrupted_command_goes_on(home, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "publish", helpers.raising(KeyboardInterrupt))
        assert cli.main(["train", "pets", *TINY]) == 130
    assert "interrupted; run the same command again to go on" in capsys.readouterr().err
    monkeypatch.setattr(torch.optim.AdamW, "step", None)  # nothing is trained again
    assert cli.main(["train", "pets", *TINY]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such data folder: nowhere"),
        (["pets", "--label", "smile"], "the data have no label `smile`"),
        (["pets", "weights=nowhere"], "no weights to start from in nowhere"),
        (["pets", "size=16"], "recipe.size: Input should be greater than or equal to 32"),
        (["pets", "epoch=3"], "epoch: Unexpected keyword argument"),
        (["pets", "--name", "./pets"], "holds the photos: name another folder for the run"),
        (["pets", "recipe.learn={type: 1}"], "no head of a network can be called 'type'"),
        (["epochs=3"], "name folders of photos"),
    ],
)
def test_what_cannot_be_trained_is_told_in_one_line_before_any_photo_is_opened(
    home, capsys, monkeypatch, arguments, message
):
    monkeypatch.setattr(data, "scan", lambda *_, **__: pytest.fail("photos were opened"))
    assert cli.main(["train", arguments[0], *TINY, *arguments[1:]]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("faces train: ") and message in last
    assert not (home / "runs").exists()


def test_a_single_class_and_too_few_photos_are_refused(home, capsys):
    names = sorted(path.relative_to(home / "pets").as_posix() for path in (home / "pets").glob("*/*.jpg"))
    (home / "pets" / "labels.csv").write_text("\n".join(["file,smile", *(f"{name},1" for name in names)]))
    assert cli.main(["train", "pets", "--label", "smile", *TINY]) == 2
    told = capsys.readouterr().err
    assert re.match(r"pets: \d+ images by labels.csv\nsmile: 1 \d+\n", told)
    assert "column 'smile' needs two classes; it has 1" in told
    (home / "pets" / "labels.csv").unlink()
    for path in sorted((home / "pets").glob("*/*.jpg"))[1:-1]:
        path.unlink()
    assert cli.main(["train", "pets", *TINY]) == 2
    assert "images are too few to split, or all near duplicates" in capsys.readouterr().err


def test_without_a_network_the_remedies_are_told(home, capsys, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", helpers.raising(OSError("no route")))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", torch.hub.load_state_dict_from_url)
    assert cli.main(["train", "pets", "epochs=1"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "set TORCH_HOME to a folder that holds hub/checkpoints/mobilenet_v2-" in last and "weights=random" in last


@pytest.mark.slow
def test_what_learnt_from_grey_pictures_sees_colours_as_grey(photos, cache, tmp_path):
    colour = photos.assign(gender=photos["gender"].fillna("male"))
    grey = colour.copy()
    (tmp_path / "grey").mkdir()
    for number, path in enumerate(colour["path"]):
        grey.loc[number, "path"] = str(tmp_path / "grey" / f"{number}.png")
        Image.open(path).convert("L").save(grey.loc[number, "path"])
    grey = data.scan(grey.drop(columns=["error", "width", "height", "sha256", "phash"]))
    recipe = replace(RECIPE, learn={"gender": 1.0}, along={}, epochs=1)
    experiments.train(recipe, grey, tmp_path / "run", cache=cache, progress=False)
    experiments.publish(tmp_path / "run", tmp_path / "model", grey, cache=cache)
    model = predict.Model(tmp_path / "model")
    rows = np.arange(20)
    told = [model.run(batches.decode(table, 32, cache=cache)[rows], "gender") for table in (colour, grey)]
    np.testing.assert_allclose(*told, atol=0.02)
