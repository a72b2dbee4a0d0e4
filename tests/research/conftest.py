import numpy as np
import pandas as pd
import pytest
from PIL import Image

from faces.research import data


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> pd.DataFrame:
    """A manifest of 96 squares of 32 pixels: bright ones are male, red ones wear glasses, blue ones are old."""
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    rows = []
    for number in range(96):
        male, glasses, age = number % 2, number // 2 % 2, int(draw.integers(5, 90))
        colour = np.array([60 + 60 * male + 80 * glasses, 60 + 60 * male, 40 + 60 * male + age]).clip(0, 255)
        pixels = (colour + draw.normal(0, 12, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        path = folder / f"{number:03d}.png"
        Image.fromarray(pixels).save(path)
        rows.append(
            {
                "path": str(path),
                "name": path.name,
                "source": "drawn",
                "gender": ("female", "male")[male] if number % 3 else None,
                "glasses": ("no_glasses", "glasses")[glasses] if number % 4 != 1 else None,
                "age": float(age) if number % 5 else None,
                "age_group": None if number % 5 else "20-29",
                "group": number,
                "split": ("train", "train", "train", "val", "test")[number // 4 % 5],
            }
        )
    return data.scan(pd.DataFrame(rows))
