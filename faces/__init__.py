"""Faces: notebooks, training and a folder tool for labelled photos of faces.

Nothing is imported here, so that ``import faces`` is cheap; ``label`` and ``label_folder`` load what they need.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from faces.pipeline import label, label_folder

__version__ = "0.1.0"
__all__ = ["label", "label_folder"]

# Dependencies that report their use to their makers are told not to. This has to be set before the first import of
# onnxruntime, whose own disable_telemetry_events() comes too late: merely imported it writes a device id into HOME.
os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


def __getattr__(name: str) -> object:
    if name in __all__:
        from faces import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'faces' has no attribute {name!r}")
