"""The Python examples in the documentation run as they are printed.

A page is one test: its examples share a namespace, top to bottom.  Each is a program or a part of one, and is
started with ``asyncio.run``; there is no ``await`` outside of a function.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from sybil import Document
from sybil.parsers.myst import PythonCodeBlockParser

ROOT = Path(__file__).parents[1]
PAGES = [
    path.relative_to(ROOT)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if not {"_build", "_speed"} & set(path.parts)  # what is made by programs
]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_examples_of_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example of the page runs without an error."""
    monkeypatch.chdir(tmp_path)  # an example may write files
    document = Document.parse(str(ROOT / page), PythonCodeBlockParser())
    document.namespace["__name__"] = "__main__"  # so that what the example guards by it runs, too
    for example in document.examples():
        example.evaluate()
