"""Steps of the notebooks that explore data: tables that need the photos, or their private columns, once."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from faces import images
from faces.research import data, evaluation
from faces.research.plots import FEWEST_IN_A_MEAN


def copies(photos: pd.DataFrame, *, labels: Sequence[str]) -> pd.DataFrame:
    """Count exact copies (same bytes) and near copies (same group) of each source, and how often labels disagree.

    A row for each source and kind has ``sets``, ``files`` and ``differ_in_LABEL``.
    """
    photos = data.usable(photos)
    rows = []
    for source, part in photos.groupby("source"):
        for kind, key in (("exact", "sha256"), ("near", "group")):
            sets = part[part.duplicated(key, keep=False)].groupby(key)
            row = {"source": source, "kind": kind, "sets": sets.ngroups, "files": int(sets.size().sum())}
            row |= {f"differ_in_{name}": int((sets[name].nunique() > 1).sum()) for name in labels if name in part}
            rows.append(row)
    return pd.DataFrame(rows)


def pair_distances(photos: pd.DataFrame, *, label: str) -> pd.DataFrame:
    """Count pairs of photos by the distance of their perceptual hashes, and the pairs whose labels differ.

    A row for each 4 bits up to 75 has ``bits`` (the first), ``pairs``, ``labelled`` and ``differ``.
    """
    photos = data.usable(photos)
    first, second, bits = data.near_pairs(data.hash_codes(photos["phash"]), 75)
    values, known = photos[label].to_numpy(), photos[label].notna().to_numpy()
    table = pd.DataFrame({"bits": bits // 4 * 4, "labelled": known[first] & known[second]})
    table["differ"] = table["labelled"] & (values[first] != values[second])
    found = table.groupby("bits").agg(pairs=("differ", "size"), labelled=("labelled", "sum"), differ=("differ", "sum"))
    return found.reindex(range(0, 76, 4), fill_value=0).rename_axis("bits").reset_index()


def mean_faces(photos: pd.DataFrame, *, by: Sequence[str], size: int = 64) -> pd.DataFrame:
    """Average the photos of each combination of values of ``by``.

    The table has ``by``, ``photos`` (how many) and ``pixels``, the bytes of a uint8 array ``[size, size, 3]``; missing
    below 50 photos, whose average might show a person.
    """
    rows = []
    for values, part in data.usable(photos, *by).groupby(list(by)):
        total = np.zeros((size, size, 3))
        for start in range(0, len(part), 2000):
            total += images.decode_all(part["path"].iloc[start : start + 2000].tolist(), size).sum(0, dtype=np.float64)
        mean = (total / len(part)).round().astype(np.uint8).tobytes()
        shown = mean if len(part) >= FEWEST_IN_A_MEAN else None
        rows.append(dict(zip(by, values, strict=True)) | {"photos": len(part), "pixels": shown})
    return pd.DataFrame(rows)


def age_distributions(photos: pd.DataFrame, *, sample: int, draws: int, seed: int) -> dict[str, pd.DataFrame]:
    """Fit distributions to the ages by maximum likelihood and test whether the ages could come from them.

    Continuous families take ages as spread evenly over their year. The test is a parametric bootstrap of
    Kolmogorov and Smirnov's distance on ``sample`` photos, with ``draws`` simulated samples.

    Returns
    -------
    ``fits``: ``family``, ``AIC``, ``distance``, ``p``; ``densities``: ``family``, ``age``, ``density``.
    """
    from scipy import stats

    rng = np.random.default_rng(seed)
    years = np.sort(data.usable(photos, "age")["age"].to_numpy(float))
    spread = years + rng.random(len(years))
    part = rng.permutation(spread)[:sample]
    grid = np.linspace(0.5, 116.5, 117)
    families = {"normal": (stats.norm, {}), "Gumbel": (stats.gumbel_r, {}), "gamma": (stats.gamma, {"loc": 0})}
    families |= {"Weibull": (stats.weibull_min, {"loc": 0}), "log-normal": (stats.lognorm, {"loc": 0})}
    rows = [_poisson(years, sample, draws, rng)]
    densities = {"age": grid, "Poisson": stats.poisson(years.mean()).pmf(np.floor(grid))}
    for name, (family, known) in families.items():
        fitted = family(*family.fit(spread, **{f"f{key}": value for key, value in known.items()}))
        aic = 2 * (family.numargs + 2 - len(known)) - 2 * fitted.logpdf(spread).sum()
        tested = stats.goodness_of_fit(family, part, known_params=known, statistic="ks", n_mc_samples=draws, rng=rng)
        rows.append([name, aic, stats.kstest(spread, fitted.cdf).statistic, tested.pvalue])
        densities[name] = fitted.pdf(grid)
    for parts in (2, 3):
        distance, mixture = _mixture_distance(spread, parts, seed)
        observed, of_part = _mixture_distance(part, parts, seed)
        simulated = [_mixture_distance(of_part.sample(len(part))[0][:, 0], parts, seed)[0] for _ in range(draws // 4)]
        p = (1 + sum(d >= observed for d in simulated)) / (1 + len(simulated))
        rows.append([f"{parts} normals", mixture.aic(spread[:, None]), distance, p])
        densities[f"{parts} normals"] = np.exp(mixture.score_samples(grid[:, None]))
    curves = pd.DataFrame(densities).melt("age", var_name="family", value_name="density")
    fits = pd.DataFrame(rows, columns=["family", "AIC", "distance", "p"])
    return {"fits": fits, "densities": curves[["family", "age", "density"]]}


def _poisson(years: np.ndarray, sample: int, draws: int, rng: np.random.Generator) -> list:
    from scipy import stats

    def distance(ages: np.ndarray) -> float:
        share = np.bincount(ages.astype(int), minlength=200)[:200].cumsum() / len(ages)
        return abs(share - stats.poisson(ages.mean()).cdf(np.arange(200))).max()

    part = rng.permutation(years)[:sample]
    simulated = [distance(rng.poisson(part.mean(), len(part))) for _ in range(draws)]
    p = (1 + sum(d >= distance(part) for d in simulated)) / (1 + draws)
    return ["Poisson", 2 - 2 * stats.poisson(years.mean()).logpmf(years).sum(), distance(years), p]


def _mixture_distance(sample: np.ndarray, parts: int, seed: int) -> tuple:
    """Distance of a sample from the normal mixture that is fitted to it, and that mixture."""
    from scipy import stats
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(parts, random_state=seed).fit(sample[:, None])
    normals = stats.norm(mixture.means_[:, 0], np.sqrt(mixture.covariances_[:, 0, 0]))
    return stats.kstest(sample, lambda x: normals.cdf(x[:, None]) @ mixture.weights_).statistic, mixture


def learning_curve(
    photos: pd.DataFrame, *, points: int, epochs: int, batch_size: int, size: int, seed: int, folder: Path
) -> pd.DataFrame:
    """Train the small network on ever larger parts of the training photos, with equal numbers of steps.

    The table has ``photos``, and in ``train`` and ``val`` mean absolute errors in years.
    """
    from faces.research import experiments, years

    known = data.usable(photos, "age")
    known = years.merge_duplicates(known[known["split"] != "excluded"].reset_index(drop=True)).dropna(subset="age")
    recipe = experiments.Recipe(
        learn={"age": 1.0},
        along={},
        backbone="gender_cnn",
        options={"standardize": True, "batch_norm": True, "padding": 1, "dropout2d": 0.0},
        weights="random",
        size=size,
        dropout=0.5,
        batch_size=batch_size,
        learning_rate=2e-3,
        warmup=0.3,
        age_loss="dex",
        age_spread=0.0,
        augment=experiments.Augment(rotate=10, shift=0.05, zoom=(0.8, 1.25)),
        average=0.0,
        seed=seed,
    )
    learn = np.random.default_rng(seed).permutation(np.flatnonzero(known["split"] == "train"))
    checked, rows = np.flatnonzero(known["split"] == "val"), []
    for halvings in reversed(range(points)):
        members = learn[: len(learn) // 2**halvings]
        few, place = known.iloc[[*members, *checked]], folder / f"{halvings}_halvings"
        stage = replace(recipe, epochs=epochs * 2**halvings)
        _, history = experiments.train(stage, few, place, cache=folder / "cache", keep="best")
        last = history.iloc[-1]
        rows.append({"photos": len(members), "train": last["train_age_mae"], "val": last["val_age_mae"]})
    return pd.DataFrame(rows)


def share(flags: pd.Series, groups: pd.Series) -> str:
    """A percentage with its 95% bootstrap interval, in words."""
    return evaluation.words(evaluation.bootstrap(flags.astype(float), groups))


def interact(show: Callable, **controls) -> None:
    """Widgets under which a text and a figure are drawn anew whenever one is moved.

    As ``ipywidgets.interact``, whose ``controls`` it takes, but without its Output widget, on which nbclient, and so
    papermill, sometimes waits for ever. ``show``, called with the value of every control by name, returns a text, and
    a figure or None.
    """
    import ipywidgets
    from IPython.display import display
    from matplotlib import pyplot as plt

    widgets = {name: ipywidgets.interactive.widget_from_abbrev(control) for name, control in controls.items()}
    text, picture = ipywidgets.HTML(), ipywidgets.Image(format="png")

    def draw(_: object = None) -> None:
        said, figure = show(**{name: widget.value for name, widget in widgets.items()})
        text.value, content = html.escape(said), io.BytesIO()
        if figure is not None:
            figure.savefig(content, format="png")
            plt.close(figure)
        picture.value = content.getvalue()

    for name, widget in widgets.items():
        widget.description = name
        widget.observe(draw, "value")
    draw()
    display(ipywidgets.VBox([*widgets.values(), text, picture]))
