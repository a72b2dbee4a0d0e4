"""How fast the gender networks train on this machine, in images/s: python benchmarks/training_speed.py [--write]

Random pixels train as fast as faces do, so no data are needed: 12,800 images of 64×64, batches of 64, the optimiser
of each recipe, three epochs of which the first is not counted. The earlier work that this network comes from took
3.5 hours for 20 epochs of about 80,000 images on a CPU: 127 images/s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from faces import batches, models, training
from faces.augment import Augment
from faces.files import write_json

ROOT = Path(__file__).resolve().parent.parent
EARLIER_WORK = 20 * 80_000 / (3.5 * 3600)
RECIPES = {
    "gender_cnn": ({}, None),
    "gender_cnn_plus": ({"standardize": True, "batch_norm": True, "padding": 1, "dropout2d": 0.0}, Augment()),
}


def measure(network: dict, augment: Augment | None, precision: str) -> float:
    rng = np.random.default_rng(0)
    pixels, targets = rng.integers(0, 256, (12_800, 64, 64, 3), dtype=np.uint8), rng.integers(0, 2, 12_800)
    model = models.gender_cnn(**network)
    with tempfile.TemporaryDirectory() as folder:
        history = training.fit(
            model,
            batches.loader(pixels, targets, 64, shuffle=True),
            batches.loader(pixels[:256], targets[:256], 256),
            loss=cross_entropy,
            optimizer=torch.optim.Adam(model.parameters(), 3e-4),
            epochs=3,
            folder=folder,
            augment=augment,
            precision=precision,
            progress=False,
        )
    return float(history["images_per_s"].iloc[1:].median())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="add the figures to artifacts/MODEL/metrics.json")
    options = parser.parse_args()
    for name, (network, augment) in RECIPES.items():
        speeds = {precision: round(measure(network, augment, precision)) for precision in ("fp32", "bf16")}
        figures = {
            "images_per_s": speeds,
            "earlier_work_images_per_s": round(EARLIER_WORK),
            "times_earlier_work": round(max(speeds.values()) / EARLIER_WORK, 1),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {training.pick_device()}",
        }
        print(name, json.dumps(figures, indent=2))
        if options.write:
            path = ROOT / "artifacts" / name / "metrics.json"
            about = json.loads(path.read_text(encoding="utf-8")) | {"training_speed": figures}
            write_json(path, about)


if __name__ == "__main__":
    main()
