"""The documentation site: pages, notebooks and model cards as they lie in the repository, built by ``make docs``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from faces import __version__  # noqa: E402

project = "faces"
author = "the faces authors"
project_copyright = "2026, the faces authors"
version = release = __version__
html_title = "faces"

# The source folder is the repository itself, so that one link serves on the site and where the files are browsed.
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "notebooks/*.ipynb",
    "artifacts/*/MODEL_CARD.md",
    "samples/README.md",
    "samples/portraits/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
]
exclude_patterns = ["data", "runs", "build", ".*", "**/.*", "tests", "docs/_build", "faces", "cache", "*.egg-info"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "numpydoc"]
nb_execution_mode = "off"  # the notebooks carry their outputs
nb_merge_streams = True
myst_heading_anchors = 3
myst_ref_domains = []

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc says them
autodoc_mock_imports = [  # what only training and drawing need
    "torch",
    "torchvision",
    "sklearn",
    "scipy",
    "joblib",
    "imagehash",
    "matplotlib",
    "seaborn",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime.quantization",
    "cleanlab",
    "captum",
    "timm",
]
numpydoc_show_class_members = False

html_theme = "sphinx_book_theme"
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "show_navbar_depth": 1}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]  # a page at the root of the site that leads to docs/index.html
html_copy_source = False
html_show_sourcelink = False
