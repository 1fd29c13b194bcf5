"""How Sphinx builds the site of these pages; `make docs` puts it into build/site."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "tunemath"
author = copyright = "the tunemath authors"
version = release = version_of("tunemath")
extensions = ["generated", "mathml", "myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_ext", "templates", "**.ipynb"]

myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "tunemath"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = html_show_sourcelink = html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1c5a9e", "color-brand-content": "#1c5a9e"},
    "dark_css_variables": {"color-brand-primary": "#7db4ea", "color-brand-content": "#7db4ea"},
}
# What is copied from an example is what a person would type.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
