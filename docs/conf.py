"""Sphinx settings. `make docs` builds with them; a warning is an error."""

import os
import re
import shutil
from pathlib import Path

import qbs

HERE = Path(__file__).resolve().parent
NOTEBOOKS = HERE.parent / "notebooks"

project = "qbs"
author = "The qbs developers"
copyright = author
release = version = qbs.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"qbs {release}"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Notebooks are stored without output and run in the build. Continuous integration runs them all; at home one
# that did not change is not run again: remove docs/_build after changing the library.
nb_execution_mode = "force" if os.environ.get("CI") else "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

# A word between single backquotes is code, and a link when it names something documented here.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def copy_notebooks() -> None:
    """Copy notebooks/ to docs/notebooks/, leaving alone what is the same and removing what is gone."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    sources = {path.name: path for path in NOTEBOOKS.glob("*.ipynb")}
    for old in target.iterdir():
        if old.is_file() and old.name not in sources:
            old.unlink()
    for name, source in sources.items():
        copy = target / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            shutil.copyfile(source, copy)


def read_docstring(*event):
    r"""Turn what docstrings write as Markdown, \(...\) and fenced code, into reStructuredText."""
    lines = event[-1]
    text = re.sub(r"\\\((.+?)\\\)", lambda match: f":math:`{match[1]}`", "\n".join(lines), flags=re.DOTALL)
    result, inside = [], False
    for line in text.split("\n"):
        fence = re.fullmatch(r"(\s*)```(\w*)", line)
        if fence and not inside:
            result += ["", f"{fence[1]}.. code-block:: {fence[2] or 'text'}", ""]
        elif not fence:
            result.append(f"    {line}" if inside and line.strip() else line)
        else:
            result.append("")
        inside ^= bool(fence)
    lines[:] = result


def setup(app):
    copy_notebooks()
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
