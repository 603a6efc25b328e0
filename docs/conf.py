"""Settings of the pages; `make pages` builds them, `make docs` serves them too."""

import importlib.metadata
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "_extensions"))

project = "optabs"
author = "The optabs authors"
copyright = author
version = release = importlib.metadata.version("optabs")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "mathml",
    "names",
    "offline",
    "outside",
    "written",
]

default_role = "literal"
maximum_signature_line_length = 60
add_module_names = False
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # "Returns:" holds text, not a type
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the code shows them

nitpicky = True
nitpick_ignore_regex = [
    # They have pages elsewhere, and a build without a network cannot look those up.
    (r"py:.*", r"(collections|jax|np|numpy|optax|os|pathlib)\..*"),
    (r"py:class", r"Any|ArrayLike|Callable|Literal|Mapping|Mesh|Sequence"),
    # What they stand for is in the text.
    (r"py:class", r"Expert|Storage|Feature|Inheritance|Sample"),
]

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"optabs {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

# `make notebooks` runs them; the pages show what they store.
nb_execution_mode = "off"
nb_output_stderr = "remove"  # bars of progress
# The pictures beside widgets are shown; their scripts would come from another host.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
