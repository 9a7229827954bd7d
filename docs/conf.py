"""Configuration of Sphinx; ``sphinx-build -n -W docs docs/_build/html`` needs no network."""

from __future__ import annotations

import builtins
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sphinx.application import Sphinx  # noqa: E402

import aiomas_ng  # noqa: E402

project = "aiomas_ng"
author = "The aiomas_ng authors"
copyright = "The aiomas_ng authors"  # the name that Sphinx reads
version = release = aiomas_ng.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_speed"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# References into the standard library and the dependencies are not resolved: that needs their inventories,
# which are on the network. References into this package all have to resolve.
_STDLIB = "|".join(sorted(map(re.escape, sys.stdlib_module_names)))
_BUILTINS = "|".join(name for name in dir(builtins) if not name.startswith("_"))
_TYPING = r"Any|Callable|Coroutine|Awaitable|Iterable|Iterator|AsyncIterator|Mapping|Sequence|Path"
nitpick_ignore_regex = [
    (r"py:.*", rf"(?:{_STDLIB})(?:\..+)?"),
    (r"py:.*", rf"(?:{_BUILTINS})(?:\..+)?"),
    (r"py:.*", rf"(?:{_TYPING})"),
    (r"py:.*", r"(?:arrow|msgpack|numpy|blosc2|uvloop)(?:\..+)?"),
    (r"py:class", r"Arrow"),
    # What has no page of its own because nobody uses it by name: private classes, type variables.
    (r"py:class", r"(?:aiomas_ng\.\w+\.)?(?:_\w+|T)"),
    (
        r"py:class",
        r"aiomas_ng\._(?:core|io|coap)\..+|Link|Budget|CallOptions|Peers|Remote|Reopener|EventQueue",
    ),
    (r"py:class", r"Serializers|AttributeValue"),
    (r"py:(?:data|func)", r"WINDOW|MAX_OPTIONS|is_no_cache_key"),
]


def keep_colons(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep "this: that" at the beginning of an attribute's docstring as it is.

    Napoleon takes it for a type and a description, unless something else comes first; an empty comment does
    not show.
    """
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # Napoleon has 500


html_theme = "furo"
html_title = f"aiomas_ng {release}"
