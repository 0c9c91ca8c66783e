"""Sphinx configuration: sphinx-build -W -q docs build/docs"""

import re

import openmm_lsd

project = "openmm-lsd"
version = release = openmm_lsd.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"openmm-lsd {release}"
highlight_language = "none"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = False


def plain_text(app, what, name, obj, options, lines):
    """Docstrings are written to be read as they are: equations are indented, |x| is a norm."""
    if lines and lines[0].startswith("Alias for field"):
        lines.clear()
    result, before, literal = [], "x", False
    for line in lines:
        indented = line.startswith("    ")
        if line and not indented:
            literal = False
        elif indented and not literal and not before[0].isspace() and not result[-1]:
            literal = True
            result += [] if before.endswith("::") else ["::", ""]
        if line:
            before = line
        if not literal:
            parts = re.split("(``.+?``)", line)
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            line = "".join(parts)
        result.append(line)
    lines[:] = result


def setup(app):
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # before napoleon
