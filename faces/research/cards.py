"""The YAML header of a model card, which model hubs read: licence, training data, metrics.

``experiments.publish`` writes it with a new card; ``python tools/cards.py`` renews those in ``artifacts``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import yaml

BOUNDS = ("low", "high")
UNRANKED = ("loss", "bias", "interval_years")  # left out of the header
# Source of the training photos -> the licence that weights trained on it are taken to inherit.
NON_COMMERCIAL = {"utkface", "glasses"}
SHARE_ALIKE = {"color6", "gray14"}


def test_rows(metrics: Mapping) -> list[dict]:
    """The figures of whole test sets in the content of a ``metrics.json``, of this version or an earlier one.

    Returns
    -------
    list of dict: with ``source``, ``split`` ("test", or "all" of a source that was never trained on), ``head``,
    ``metric``, ``photos``, ``value``, ``low`` and ``high``.
    """
    if isinstance(metrics["test"], list):
        whole = (row for row in metrics["test"] if not row.get("by"))
        keys = ("source", "head", "metric", "photos", *BOUNDS)
        return [{key: row[key] for key in keys} | {"value": row["mean"], "split": "test"} for row in whole]
    rows = []
    for split, sources in (("test", metrics["test"]), ("all", metrics.get("elsewhere", {}))):
        for source, figures in sources.items():
            about = {"source": source, "split": split, "head": "", "photos": figures["photos"]}
            measured = {name: figure for name, figure in figures.items() if isinstance(figure, Mapping)}
            rows += [about | {"metric": name, **figure} for name, figure in measured.items()]
    return rows


def header(metrics: Mapping, sources: Iterable[str]) -> str:
    """The YAML header of a model card, between two lines ``---`` as model hubs expect it.

    Parameters
    ----------
    metrics : content of ``metrics.json``.
    sources : of the training photos, whose terms decide the licence.
    """
    sources, rows = sorted(sources), [row for row in test_rows(metrics) if row["metric"] not in UNRANKED]
    results: dict[tuple, dict] = {}
    for row in rows:
        dataset = {"name": row["source"], "type": row["source"], "split": row["split"]}
        empty = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": []}
        measured = results.setdefault((row["source"], row["split"]), empty)["metrics"]
        measured.append({"type": f"{row['head']} {row['metric']}".strip(), "value": row["value"]})
    about = {
        **licence(sources),
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "datasets": sources,
        "metrics": sorted({row["metric"] for row in rows}),
        "tags": ["computer-vision", "cartoons" if SHARE_ALIKE & set(sources) else "faces"],
        "model-index": [{"name": metrics["model"], "results": list(results.values())}],
    }
    return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---\n\n"


def licence(sources: Iterable[str]) -> dict[str, str]:
    """The licence of weights trained on some sources, as keys of a card's header."""
    if SHARE_ALIKE & set(sources):
        return {"license": "cc-by-nc-sa-4.0"}
    if set(sources) == {"fairface"}:
        return {"license": "cc-by-4.0"}
    known = "non-commercial-research" if NON_COMMERCIAL & set(sources) else "terms-of-the-training-photos"
    return {"license": "other", "license_name": known}
