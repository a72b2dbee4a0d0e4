"""Faces: notebooks, training and a folder tool for labelled photos of faces.

Nothing is imported here, so that ``import faces`` is cheap and the runtime
(``faces.predict``) never pulls in torch.
"""

import os

__version__ = "0.1.0"

# Dependencies that report their use to their makers are told not to. This has to be set before the first import of
# onnxruntime, whose own disable_telemetry_events() comes too late: merely imported it writes a device id into HOME.
os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
