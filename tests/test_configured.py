"""A file says what is trained: read, refused where it is wrong, and carried out to a model folder."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from seeds import SEED

from faces import batches, configured, predict, recipes, training
from faces.research import demo, evaluation


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return demo.make(tmp_path_factory.mktemp("pictures") / "people", 90, layout="class_folders", size=64)


@pytest.fixture
def config(pictures, tmp_path):
    """A whole file, for a run of two epochs; and where its model folder goes."""
    sections = {
        "dataset_parameters": {"traindir": str(pictures), "image_size": 80, "whole": True},
        "model_parameters": {"network": "small_resnet", "width": 4, "mirror": True},
        "training_parameters": {
            **{"batch_size": 16, "num_epochs": 2, "one_cycle": True, "average": 0.1},
            **{"augment": True, "strength": 1.5, "erase": 0.5},
        },
        "output_parameters": {
            "out_model_directory": str(tmp_path / "artifacts" / "people"),
            "run_directory": str(tmp_path / "runs"),
            "cache_directory": str(tmp_path / "cache"),
        },
    }
    path = tmp_path / "people.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.mark.slow
def test_a_file_becomes_a_model_folder_that_can_be_used_and_loaded(config, tmp_path, capsys):
    assert configured.main([str(config)]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "artifacts" / "people"
    assert "macro-F1" in said and f"python process.py DIR --model {folder}" in said
    model = predict.Model(folder)
    assert model.classes == ("female", "male") and model.frame == (80, True)
    network, about = recipes.load(folder)
    assert about["settings"]["training"]["num_epochs"] == 2
    assert about["f1"]["low"] <= about["f1"]["value"] <= about["f1"]["high"]
    square = np.random.default_rng(0).integers(0, 256, (3, 80, 80, 3), dtype=np.uint8)
    with torch.inference_mode():
        logits = network(torch.from_numpy(square).permute(0, 3, 1, 2).float() / 255) / about["temperature"]
    assert np.allclose(logits.softmax(1), model.probabilities(square), atol=1e-4)
    assert np.allclose(model.probabilities(square), model.probabilities(square[:, :, ::-1].copy()), atol=1e-4)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("training_parameters", "num_epoch", 3, r"line \d+: training_parameters.num_epoch is not known .*num_epochs"),
        ("training_parameters", "num_epochs", "many", "training_parameters.num_epochs must be a whole number"),
        ("model_parameters", "dropout_rate", 1.5, "model_parameters.dropout_rate must be below 1, not 1.5"),
        ("dataset_parameters", "traindir", "nowhere", "nowhere"),
    ],
)
def test_what_is_wrong_is_named(config, capsys, section, key, value, message):
    sections = yaml.safe_load(config.read_text())
    sections[section][key] = value
    config.write_text(yaml.safe_dump(sections, sort_keys=False))
    assert configured.main([str(config)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(message, said), said


def test_pictures_that_resemble_the_given_test_are_left_out_of_training(pictures, tmp_path):
    held_out = tmp_path / "held_out"
    for path in sorted(pictures.glob("*/*.jpg"))[::9]:
        copy = held_out / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    chosen = configured.DatasetParameters(traindir=str(pictures), testdir=str(held_out))
    manifest = configured.prepare(chosen)
    test = manifest[manifest["split"] == "test"]
    assert test["path"].str.startswith(str(held_out)).all() and len(test) >= 8
    assert not manifest.loc[manifest["split"] == "train", "sha256"].isin(test["sha256"]).any()


@pytest.mark.slow
def test_losses_and_networks_are_those_that_were_asked_for(pictures, tmp_path):
    chosen = configured.settings_of({"dataset_parameters": {"traindir": str(pictures)}})
    chosen = replace(chosen, training=replace(chosen.training, num_epochs=3, batch_size=32, balance_classes=True))
    manifest = configured.prepare(chosen.dataset)
    pixels = batches.load_images(manifest, 64)
    model, history = configured.train(chosen, manifest, pixels, tmp_path / "focal", progress=False)
    other = replace(chosen, training=replace(chosen.training, loss="cross_entropy"))
    _, of_other = configured.train(other, manifest, pixels, tmp_path / "plain", progress=False)
    assert history["train_loss"].iloc[0] < of_other["train_loss"].iloc[0]  # easy pictures count less
    assert sum(isinstance(layer, torch.nn.MaxPool2d) for layer in model) == 6
    curve = configured.by_epoch(chosen, manifest, pixels, tmp_path / "focal", "test", most=2)
    assert curve["epoch"].tolist() == [1, 3]
    training.rollback(model, tmp_path / "focal", 3)
    rows = np.flatnonzero(manifest["split"] == "test")
    said = training.predict(configured.answering(model, chosen.model), batches.loader(pixels[rows], rows, 256))
    frame = evaluation.predictions(manifest.iloc[rows], said, ["female", "male"], configured.LABEL)
    assert curve["f1"].iloc[1] == pytest.approx(configured.scores(frame)["f1"])
    with pytest.raises(ValueError, match="cartoon_cnn takes pictures of 64 pixels, not 96"):
        configured.build(chosen.model, 2, 96)


@pytest.mark.slow
def test_what_learnt_from_grey_pictures_sees_colours_as_grey(pictures, tmp_path):
    chosen = configured.settings_of(
        {"dataset_parameters": {"traindir": str(pictures)}, "model_parameters": {"network": "small_resnet", "width": 4}}
    )
    manifest = configured.prepare(chosen.dataset)
    colour = batches.load_images(manifest, 64)
    grey = np.repeat(colour.mean(3, keepdims=True).astype(np.uint8), 3, axis=3)
    torch.manual_seed(SEED)
    network = configured.build(chosen.model, 2, 64).eval()
    as_grey = np.stack([np.asarray(Image.fromarray(square).convert("L").convert("RGB")) for square in colour[:20]])
    pairs = [torch.from_numpy(some).permute(0, 3, 1, 2).float() / 255 for some in (colour[:20], as_grey)]
    with torch.inference_mode():
        before = (network(pairs[0]) - network(pairs[1])).abs().max()
    folder, about = configured.publish(chosen, network, pd.DataFrame(), manifest, grey, tmp_path / "grey")
    # Logits, since probabilities of an untrained network are all but equal.
    logits = [np.log(predict.Model(folder).probabilities(some)) for some in (colour[:20], as_grey)]
    after = np.abs(logits[0] - logits[1]).max() * about["temperature"]
    assert about["grey"] and after < 0.1 * before


def test_macro_f1_and_its_interval():
    truth, said = list("aaaabbbbcc"), list("aaabbbbbcb")
    frame = pd.DataFrame({"label": truth, "predicted": said, "group": range(10)})
    frame["correct"] = frame["label"] == frame["predicted"]
    value, low, high = configured.f1_interval(frame)
    assert value == pytest.approx(configured.scores(frame)["f1"]) and low < value < high
    alone = configured.f1_interval(frame.assign(group=0))
    assert alone[0] == alone[1] == alone[2]  # one group cannot vary


def test_macro_f1_of_a_class_that_the_test_lacks():
    frame = pd.DataFrame({"label": list("aaaabbbb"), "predicted": list("aaacbbbc"), "group": range(8)})
    frame["correct"] = frame["label"] == frame["predicted"]
    assert configured.f1_interval(frame)[0] == pytest.approx(6 / 7)  # F1 of a and of b: 3 found, 1 missed
    assert configured.scores(frame)["f1"] == pytest.approx(6 / 7)
