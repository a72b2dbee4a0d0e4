"""An exported folder says what the trained network says, or is not written at all."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from seeds import SEED

from faces import export, models, predict

pytestmark = pytest.mark.slow

PIXELS = np.random.default_rng(SEED).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
FIGURES = {"photos": 10, "accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}}
METRICS = {
    "weights": 5,
    "test": {"utkface": FIGURES},
    "test_by_age_group": {"utkface": {"0-2": {"mean": 0.7, "photos": 3}, "20-29": {"mean": 0.95, "photos": 7}}},
}


def network(**options):
    """A network whose batch-norm statistics are not the initial ones."""
    torch.manual_seed(SEED)
    model = models.gender_cnn(**options).train()
    model(torch.rand(16, 3, 64, 64))
    return model.eval()


def write(folder, model, pixels=PIXELS, **options):
    history = pd.DataFrame({"epoch": [1, 2], "val_acc": [0.5, 0.612345678]})
    return export.export(
        model,
        folder,
        classes=["female", "male"],
        size=64,
        pixels=pixels,
        metrics=METRICS,
        history=history,
        card="# A card",
        **options,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = network(standardize=True, batch_norm=True, padding=1)
    return model, write(tmp_path_factory.mktemp("artifacts") / "net", model)


def test_the_folder_is_complete_and_self_describing(exported):
    model, folder = exported
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.onnx", "weights.safetensors", "metrics.json", "history.csv", "MODEL_CARD.md"}
    assert {path.name for path in folder.parent.iterdir()} == {"net", "SHA256SUMS"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"] == METRICS["test"]
    assert metrics["export"]["images"] == 7 and metrics["export"]["largest_difference"] < 1e-4
    assert metrics["made_with"]["torch"] == torch.__version__
    loaded = predict.Model(folder)
    assert loaded.classes == ("female", "male") and loaded.size == 64
    again = models.gender_cnn(standardize=True, batch_norm=True, padding=1)
    again.load_state_dict(load_file(folder / "weights.safetensors"))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_probabilities_are_those_of_torch_for_any_batch(exported, n):
    model, folder = exported
    x = torch.from_numpy(PIXELS[:n]).permute(0, 3, 1, 2).float() / 255
    expected = model(x).softmax(1).detach().numpy()
    np.testing.assert_allclose(predict.Model(folder).probabilities(PIXELS[:n]), expected, atol=1e-5)


def test_the_graph_tells_nothing_of_the_machine_that_wrote_it(exported):
    _, folder = exported
    proto = onnx.load(folder / "model.onnx")
    assert [prop.key for prop in proto.metadata_props] == ["faces"]
    text = str(proto)
    assert "site-packages" not in text and "File " not in text


def test_a_network_that_comes_out_different_is_not_written(tmp_path, monkeypatch):
    model = network()
    folder = write(tmp_path / "net", model)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = network(hidden=128)
    honest = export.write_onnx

    def swapped(_, path, about):
        honest(export.Deployed(network(standardize=True)), path, about)

    monkeypatch.setattr(export, "write_onnx", swapped)
    with pytest.raises(export.ExportError, match="differs from the trained one"):
        write(folder, other)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"net", "SHA256SUMS"}


def test_sixteen_bits_are_half_of_the_size_and_say_about_the_same(exported, tmp_path):
    model, folder = exported
    halved = write(tmp_path / "net", model, half=True)
    sizes = [(where / "model.onnx").stat().st_size for where in (folder, halved)]
    assert sizes[1] < 0.6 * sizes[0]
    before, after = (predict.Model(where).probabilities(PIXELS) for where in (folder, halved))
    assert 0 < np.abs(before - after).max() < 0.01
    assert json.loads((halved / "metrics.json").read_text())["export"]["tolerance"] == export.HALF_TOLERANCE


def test_an_export_must_be_compared_on_something(tmp_path):
    with pytest.raises(export.ExportError, match="none were given"):
        write(tmp_path / "net", network(), PIXELS[:0])
    assert not (tmp_path / "net").exists()


def test_model_card_takes_its_figures_from_the_metrics():
    card = export.model_card(
        "net", task="gender", sources=["utkface", "mine"], metrics=METRICS | {"elsewhere": {"mtfl": FIGURES}}
    )
    assert "| utkface, test split | 10 | 90.0% | 80.0% – 95.0% |" in card
    assert "| mtfl, never trained on | 10 | 90.0% |" in card
    assert "least accurate for age group 0-2 (70.0% of 3 photos)" in card
    assert "Trained on: utkface, mine. UTKFace is free for non-commercial research only" in card
    assert "mine: the terms of its owners." in card
    for heading in ("Measured", "Known failures", "Intended use", "Training data and its terms"):
        assert f"## {heading}" in card


BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "mean", "std")


@pytest.mark.parametrize(
    "path", sorted(predict.ARTIFACTS.glob("*/weights.safetensors")), ids=lambda path: path.parent.name
)
def test_published_models_tell_how_many_weights_they_have(path):
    tensors = load_file(path)
    count = sum(tensors[name].numel() for name in tensors if not name.endswith(BUFFERS))
    for folder in filter(Path.exists, (path.parent, path.parent.with_name(f"{path.parent.name}_int8"))):
        assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["weights"] == count
        assert f"{count:,} weights." in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_published_cards_quote_the_terms_of_all_that_was_learnt_from():
    texts = [card.read_text(encoding="utf-8") for card in predict.ARTIFACTS.glob("*/MODEL_CARD.md")]
    # The face finder's card is not one of these: its weights were trained by others.
    learnt = [(text, found[1].split(", ")) for text in texts if (found := re.search(r"\nTrained on: ([^.]+)\. ", text))]
    assert {"utkface", "glasses", "color6", "gray14"} <= {source for _, sources in learnt for source in sources}
    assert all(export.TERMS[source] in text for text, sources in learnt for source in sources)


# -------------------------------------------------------------------------------- one output, temperature, 8 bits


def mobilenet(outputs=1):
    torch.manual_seed(SEED)
    model = models.mobilenet_v2(outputs, width=0.35, weights="random").train()
    for _ in range(3):
        model(torch.rand(16, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    model, folder = mobilenet(), tmp_path_factory.mktemp("calibrated") / "net"
    options = {"classes": ["female", "male"], "size": 64, "pixels": PIXELS, "metrics": METRICS, "card": "# A card"}
    history = pd.DataFrame({"epoch": [1]})
    return model, export.export(model, folder, history=history, temperature=1.7, abstain_below=0.83, **options)


def test_one_output_becomes_two_probabilities_at_the_given_temperature(calibrated):
    model, folder = calibrated
    x = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
    male = (model(x) / 1.7).sigmoid().detach().numpy()
    loaded = predict.Model(folder)
    np.testing.assert_allclose(loaded.probabilities(PIXELS), np.concatenate([1 - male, male], 1), atol=1e-5)
    assert loaded.abstain_below == 0.83 and loaded.classes == ("female", "male")


def test_eight_bits_are_a_quarter_of_the_size_and_say_about_the_same(calibrated):
    _, folder = calibrated
    measured = {}

    def describe(model):
        measured["probabilities"] = model.probabilities(PIXELS)
        return {"model": "small"}, "# Small"

    small = export.quantize(folder, folder.parent / "small", pixels=PIXELS, describe=describe)
    assert {path.name for path in small.iterdir()} == {"model.onnx", "metrics.json", "MODEL_CARD.md"}
    assert {path.name for path in folder.parent.iterdir()} == {"net", "small", "SHA256SUMS"}
    assert (small / "model.onnx").stat().st_size < 0.45 * (folder / "model.onnx").stat().st_size
    loaded = predict.Model(small)
    assert loaded.classes == ("female", "male") and loaded.size == 64 and loaded.abstain_below == 0.83
    np.testing.assert_allclose(loaded.probabilities(PIXELS), measured["probabilities"], atol=1e-6)
    np.testing.assert_allclose(loaded.probabilities(PIXELS), predict.Model(folder).probabilities(PIXELS), atol=0.1)
    assert json.loads((small / "metrics.json").read_text())["made_with"]["torch"] == torch.__version__
    kinds = {node.op_type for node in onnx.load(small / "model.onnx").graph.node}
    assert "QuantizeLinear" in kinds


def test_eight_bits_need_images(calibrated):
    with pytest.raises(export.ExportError, match="none were given"):
        export.quantize(calibrated[1], calibrated[1].parent / "none", pixels=PIXELS[:0], describe=None)
    assert not (calibrated[1].parent / "none").exists()
