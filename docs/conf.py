"""How Sphinx builds these pages: sphinx-build -W -b html docs docs/_build/html, with the extra ``docs`` installed."""

project = "pykvm"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "pykvm"
# An example may be half a program, or one that assemblers know and the highlighter does not.
suppress_warnings = ["misc.highlighting_failure"]
