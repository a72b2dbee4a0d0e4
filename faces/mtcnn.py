"""Write the face finder's three networks for ONNX Runtime: ``python -m faces.mtcnn FACENET_PYTORCH``.

The weights are those of MTCNN (Zhang et al., 1604.02878) as the PyPI package facenet-pytorch carries them under the MIT
licence, two megabytes. FACENET_PYTORCH is that package, installed or unpacked; none of its code is run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnx
import torch
from torch import nn

from faces import trust
from faces.export import versions
from faces.files import write_json
from faces.predict import ARTIFACTS

SIZES = {"pnet": None, "rnet": 24, "onet": 48}  # pixels that each looks at; the first takes whole pictures


class Stage(nn.Module):
    """One of the three networks: uint8 ``[n, h, w, 3]`` in, (probability of a face, where its edges are) out.

    P-Net answers for every cell: ``[n, h', w']`` and ``[n, h', w', 4]``; R-Net and O-Net for each picture: ``[n]`` and
    ``[n, 4]``, the left, top, right and bottom edge's offsets as shares of the picture; O-Net also where the eyes, the
    nose and the corners of the mouth are, as shares, ``[n, 10]``, five x and five y.
    """

    def __init__(self, widths, pools, dense: int | None):
        super().__init__()
        channels = 3
        for number, (width, size) in enumerate(widths, 1):
            self.add_module(f"conv{number}", nn.Conv2d(channels, width, size))
            self.add_module(f"prelu{number}", nn.PReLU(width))
            channels = width
        self.pools, self.last = pools, len(widths) + 1
        ends = (2, 4, 10) if self.last == 5 else (2, 4)
        if dense:
            self.add_module(f"dense{self.last}", nn.Linear(dense, {4: 128, 5: 256}[self.last]))
            self.add_module(f"prelu{self.last}", nn.PReLU({4: 128, 5: 256}[self.last]))
            for number, outputs in enumerate(ends, 1):
                layer = nn.Linear({4: 128, 5: 256}[self.last], outputs)
                self.add_module(f"dense{self.last + 1}_{number}", layer)
        else:
            for number, outputs in enumerate(ends, 1):
                self.add_module(f"conv{self.last}_{number}", nn.Conv2d(channels, outputs, 1))
        self.dense, self.ends = dense, len(ends)

    def forward(self, pixels: torch.Tensor):
        x = (pixels.permute(0, 3, 1, 2).float() - 127.5) / 128
        for number in range(1, self.last):
            x = getattr(self, f"prelu{number}")(getattr(self, f"conv{number}")(x))
            if number <= len(self.pools):
                x = nn.functional.max_pool2d(x, *self.pools[number - 1], ceil_mode=True)
        if not self.dense:
            likely, edges = getattr(self, f"conv{self.last}_1")(x), getattr(self, f"conv{self.last}_2")(x)
            return likely.softmax(1)[:, 1], edges.permute(0, 2, 3, 1)
        x = x.permute(0, 3, 2, 1).flatten(1)
        x = getattr(self, f"prelu{self.last}")(getattr(self, f"dense{self.last}")(x))
        likely, *rest = (getattr(self, f"dense{self.last + 1}_{number}")(x) for number in range(1, self.ends + 1))
        return likely.softmax(1)[:, 1], *rest


def build() -> dict[str, Stage]:
    """The three networks, with random weights."""
    return {
        "pnet": Stage([(10, 3), (16, 3), (32, 3)], [(2, 2)], None),
        "rnet": Stage([(28, 3), (48, 3), (64, 2)], [(3, 2), (3, 2)], 576),
        "onet": Stage([(32, 3), (64, 3), (64, 3), (128, 2)], [(3, 2), (3, 2), (2, 2)], 1152),
    }


def write(package: Path, folder: Path) -> Path:
    """Write ``pnet.onnx``, ``rnet.onnx``, ``onet.onnx``, the licence and where they come from.

    Raises
    ------
    FileNotFoundError : ``package`` does not hold the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in build().items():
        weights = package / "data" / f"{name}.pt"
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        side = SIZES[name] or 48
        dynamic = {0: torch.export.Dim("n")} | (
            {} if SIZES[name] else {1: torch.export.Dim("h"), 2: torch.export.Dim("w")}
        )
        program = torch.onnx.export(
            network.eval(),
            (torch.zeros(2, side, side + (0 if SIZES[name] else 8), 3, dtype=torch.uint8),),
            dynamo=True,
            input_names=["pixels"],
            output_names=["face", "edges", "points"][: network.ends if network.dense else 2],
            dynamic_shapes={"pixels": dynamic},
            verbose=False,
        )
        onnx.save(program.model_proto, folder / f"{name}.onnx")
    trust.vouch(folder)
    write_json(folder / "metrics.json", {"source": "facenet-pytorch, MIT licence", "made_with": versions()})
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faces.mtcnn", description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="the folder facenet_pytorch")
    parser.add_argument("--out", type=Path, default=ARTIFACTS / "face_finder")
    options = parser.parse_args()
    try:
        print(write(options.package, options.out))
    except FileNotFoundError as error:
        print(f"faces.mtcnn: {error}: name the folder facenet_pytorch of that package", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
