"""How fast the gender networks train on this machine, in images/s: python benchmarks/training_speed.py [--write]

Random pixels train as fast as faces do, so no data are needed: each network's own size of image and of batch, three
epochs of which the first is not counted, in fp32 and in bf16. The earlier work that the small network comes from took
3.5 hours for 20 epochs of about 80,000 images of 64×64 on a CPU: 127 images/s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from faces.files import write_json
from faces.research import networks, training
from faces.research.augment import Augment
from faces.research.batches import Batches
from faces.research.experiments import Recipe
from faces.research.heads import Classes

ROOT = Path(__file__).resolve().parent.parent
EARLIER_WORK = 20 * 80_000 / (3.5 * 3600)


@dataclass(frozen=True)
class Case:
    """What is timed: ``images`` random images of ``size`` pixels an epoch."""

    backbone: str
    size: int
    images: int
    batch_size: int
    augment: Augment | None
    dropout: float
    options: dict = field(default_factory=dict)


PLUS = {"standardize": True, "batch_norm": True, "padding": 1, "dropout2d": 0.0}
CASES = {
    "gender_cnn": Case("gender_cnn", 64, 12_800, 64, None, 0.5),
    "gender_cnn_plus": Case("gender_cnn", 64, 12_800, 64, Augment(), 0.5, PLUS),
    "gender_mobilenet_v2": Case("mobilenet_v2", 96, 1_280, Recipe().batch_size, Recipe().augment, 0.2),
}
HEADS = [Classes("gender", ("female", "male"))]


def measure(case: Case, precision: str) -> float:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (case.images, case.size, case.size, 3), dtype=np.uint8)
    targets = {"gender": rng.integers(0, 2, (case.images, 1)).astype(np.float32)}
    network = networks.build(case.backbone, HEADS, size=case.size, options=case.options, dropout=case.dropout)
    with tempfile.TemporaryDirectory() as folder:
        history = training.fit(
            network,
            HEADS,
            Batches(pixels, targets, case.batch_size, shuffle=True),
            Batches(pixels, targets, 256, rows=np.arange(256)),
            optimizer=torch.optim.Adam(network.parameters(), 3e-4),
            epochs=3,
            folder=folder,
            augment=case.augment,
            precision=precision,
            progress=False,
        )
    return float(history["images_per_s"].iloc[1:].median())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="add the figures to artifacts/MODEL/metrics.json")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    options = parser.parse_args()
    for name in options.models:
        speeds = {precision: round(measure(CASES[name], precision)) for precision in ("fp32", "bf16")}
        figures = {
            "images_per_s": speeds,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {training.pick_device()}",
        }
        if name.startswith("gender_cnn"):
            figures["earlier_work_images_per_s"] = round(EARLIER_WORK)
            figures["times_earlier_work"] = round(max(speeds.values()) / EARLIER_WORK, 1)
        print(name, json.dumps(figures, indent=2))
        if options.write:
            path = ROOT / "artifacts" / name / "metrics.json"
            about = json.loads(path.read_text(encoding="utf-8")) | {"training_speed": figures}
            write_json(path, about)


if __name__ == "__main__":
    training.keep_freed_memory()
    main()
