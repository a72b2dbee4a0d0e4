"""An exported file answers like the network that it was made of, in 32, 16 and 8 bits; its card tells whose photos."""

import re

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from seeds import SEED

from faces import predict
from faces.research import experiments, export, networks
from faces.research.heads import Classes, Years

pytestmark = pytest.mark.slow

HEADS = [Classes("gender", ("female", "male")), Years(kind="median")]
PIXELS = np.random.default_rng(SEED).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
FITTED = {"gender": {"scale": 1.7, "abstain_below": 0.8}, "age": {"width": 1.2, "coverage": 0.9}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file of two heads, and the network, whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(SEED)
    network = networks.build("small_resnet", HEADS, size=32, options={"width": 8}, mirror=True).train()
    network(torch.rand(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("exported") / "net" / "model.onnx"
    path.parent.mkdir()
    export.export(network.eval(), path, HEADS, fitted=FITTED, size=32, pixels=PIXELS)
    return path, network


def answers(path, pixels=PIXELS):
    model = predict.Model(path.parent, verify=False)
    return [model.run(pixels, head) for head in ("gender", "age")]


def test_the_graph_tells_nothing_of_the_machine_that_wrote_it(exported):
    proto = onnx.load(exported[0])
    assert [prop.key for prop in proto.metadata_props] == ["faces"]
    assert "site-packages" not in str(proto) and "File " not in str(proto)


def test_eight_bits_of_the_backbone_and_floats_of_every_head(exported, tmp_path):
    path, _ = exported
    small = tmp_path / "small" / "model.onnx"
    small.parent.mkdir()
    export.quantize(path, small, PIXELS)
    assert small.stat().st_size < 0.7 * path.stat().st_size
    model = predict.Model(small.parent, verify=False)
    assert model.head("gender").abstain_below == 0.8 and model.head("age").coverage == 0.9
    for found, expected, tolerance in zip(answers(small), answers(path), (0.05, 3.0), strict=True):
        assert 0 < np.abs(found - expected).max() < tolerance
    graph = onnx.load(small).graph
    kernels = {w.name: w.data_type for w in graph.initializer if list(w.dims[2:]) == [3, 3]}
    assert set(kernels.values()) == {onnx.TensorProto.INT8}
    dense = [node for node in graph.node if node.op_type == "Gemm"]
    floats = {w.name for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT}
    assert len(dense) >= 2 and all(node.input[1] in floats for node in dense)
    with pytest.raises(export.ExportError, match="none were given"):
        export.quantize(path, small, PIXELS[:0])


def test_a_network_with_other_dense_layers_keeps_only_the_last_ones_in_float(tmp_path):
    network = networks.build("gender_cnn", HEADS[:1], size=32, options={"widths": (8, 8), "hidden": 64})
    path = tmp_path / "model.onnx"
    export.export(network, path, HEADS[:1], size=32, pixels=PIXELS)
    export.quantize(path, path, PIXELS)
    kinds = sorted(w.data_type for w in onnx.load(path).graph.initializer if len(w.dims) == 2)
    assert kinds == [onnx.TensorProto.FLOAT, onnx.TensorProto.INT8]


PUBLISHED = sorted(path.parent for path in predict.ARTIFACTS.glob("*/weights.safetensors"))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_weights_answer_like_their_onnx_file(folder):
    network, recipe, heads, fitted = experiments.load(folder)
    model = predict.Model(folder)
    assert model.frame == (recipe.size, recipe.whole) and list(model.heads) == [head.name for head in heads]
    squares = np.random.default_rng(SEED).integers(0, 256, (8, recipe.size, recipe.size, 3), dtype=np.uint8)
    with torch.inference_mode():
        found = export.Deployed(network, heads, fitted).eval()(torch.from_numpy(squares))
    for head, answer in zip(heads, found, strict=True):
        # Weights are kept in 16 bits.
        assert np.abs(model.run(squares, head.name) - answer.numpy()).max() < (0.2 if head.name == "age" else 0.01)


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_published_cards_tell_how_many_weights_there_are(folder):
    network, *_ = experiments.load(folder)
    count = networks.parameter_count(network)
    for rows in network.heads.values():
        # Two classes that were published with one logit, the other being 0.
        count -= 0 if rows.weight[0].any() else rows.in_features + 1
    for card in predict.ARTIFACTS.glob(f"{folder.name}*/MODEL_CARD.md"):
        if card.parent.name in (folder.name, f"{folder.name}_int8"):
            assert f"{count:,} weights." in card.read_text(encoding="utf-8")


def test_published_cards_quote_the_terms_of_all_that_was_learnt_from():
    texts = [card.read_text(encoding="utf-8") for card in predict.ARTIFACTS.glob("*/MODEL_CARD.md")]
    # The face finder's card is not one of these: its weights were trained by others.
    learnt = [(text, found[1].split(", ")) for text in texts if (found := re.search(r"\nTrained on: ([^.]+)\. ", text))]
    assert set(export.NAMED) <= {source for _, sources in learnt for source in sources}
    assert all(export.NAMED[source].format(f"`{source}`") in text for text, sources in learnt for source in sources)


def rows_of(source, name, **labels):
    return pd.DataFrame({"source": source, "name": [name] * 3, **labels})


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (rows_of("my photos", "26_0_2_20170104023102422.jpg.chip.jpg"), "UTKFace is free for non-commercial"),
        (rows_of("faces", "train/1.jpg", race=["White", "Latino_Hispanic", None]), "FairFace is under CC BY 4.0."),
        (rows_of("mtfl", "train/glasses/lfw_5590__a.jpg"), "The MTFL photos (gathered as `mtfl`) are for research"),
        (rows_of("toons", "a/pic_0001.jpg", label="homer_simpson"), "The pictures of `toons` are from the Simpsons"),
        (rows_of("utkface", "renamed.jpg"), "UTKFace is free for non-commercial"),
        (rows_of("pets", "cats/1.jpg", label="cats"), "pets: the terms of its owners."),
    ],
)
def test_terms_are_known_by_the_photos_and_not_by_the_name_of_a_folder(rows, told):
    [sentence] = export.terms(rows)
    assert sentence.startswith(told)


def test_a_card_takes_its_figures_from_the_tests():
    head = {"name": "age"}
    metrics = {"model": "net", "parameters": 1234, "heads": [head], "recipe": {"size": 64, "whole": False}}
    row = {"head": "age", "metric": "mae", "source": "faces", "by": "", "value": "", "photos": 10, "groups": 10}
    row |= {"mean": 4.567, "low": 4.0, "high": 5.1}
    ages = [row | {"by": "age_group", "value": v, "mean": m} for v, m in (("0-2", 1.0), ("70+", 9.04))]
    metrics["test"] = [row, *ages]
    text = export.card(metrics, pd.DataFrame([row, *ages]), rows_of("pets", "1.jpg"), "face")
    assert text.startswith("---\nlicense: ") and "value: 4.567" in text
    assert "Predicts age (years, with an interval) from a 64×64 crop of one face. 1,234 weights." in text
    assert "| faces | 10 | age mae | 4.57 years | 4.00 years – 5.10 years |" in text
    assert "- faces: age is worst in age group 70+ (9.04 years, 10 photos)." in text
    assert "An age is how old somebody looks" in text and "Trained on: pets. pets: the terms of its owners." in text
    assert re.findall("^## (.*)", text, re.MULTILINE) == [
        *("Measured", "Known failures", "Intended use", "Training data and its terms")
    ]
