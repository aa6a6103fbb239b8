"""Sphinx's configuration: `make docs` builds into site/, and every warning is an error."""

import importlib.metadata

project = "vipp"
author = "The vipp authors"
release = importlib.metadata.version("vipp")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax itself among the static files: formulas show offline, too
    "sphinx.ext.napoleon",
]
exclude_patterns = []

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": "program",  # of an objective: the decorated function, documented above it
}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

doctest_global_setup = "import os; os.environ.setdefault('JAX_PLATFORMS', 'cpu')"
doctest_test_doctest_blocks = ""  # docstrings are tested by pytest

html_theme = "furo"
html_title = f"vipp {release}"
html_copy_source = False
html_show_sphinx = False
