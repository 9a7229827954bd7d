"""The package as a whole: what its metadata say, and what importing it needs."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import aiomas_ng

OPTIONAL = ["blosc2", "numpy", "uvloop"]

IMPORT_ALL = f"""
import importlib, pkgutil, sys
if "--hide" in sys.argv:
    sys.modules.update(dict.fromkeys({OPTIONAL}))  # None makes an import raise ImportError
import aiomas_ng
for module in pkgutil.walk_packages(aiomas_ng.__path__, "aiomas_ng."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sorted(name for name in {OPTIONAL} if sys.modules.get(name)))
"""


def import_all(*args: str) -> str:
    """Import every module in a new process; return the optional packages that it imported."""
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALL, *args]
    root = Path(aiomas_ng.__file__).parents[1]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def test_version_is_that_of_the_metadata() -> None:
    """The version has one source, so package and metadata cannot differ."""
    assert aiomas_ng.__version__ == importlib.metadata.version("aiomas_ng")


def test_core_has_two_dependencies() -> None:
    """Without extras, msgpack and arrow are all that is installed."""
    requirements = importlib.metadata.requires("aiomas_ng") or []
    core = {re.match(r"[\w.-]+", line)[0] for line in requirements if "extra ==" not in line}
    assert core == {"arrow", "msgpack"}


def test_type_hints_are_announced() -> None:
    """The marker that tells type checkers to use our hints lies in the package."""
    assert (Path(aiomas_ng.__file__).parent / "py.typed").is_file()


def test_every_module_imports_without_optional_packages() -> None:
    """No module needs an optional package to be imported."""
    assert import_all("--hide") == ""


def test_optional_packages_are_imported_late() -> None:
    """Importing every module imports no optional package, even where it is installed."""
    assert import_all() == ""


def test_names_of_the_package_exist() -> None:
    """Everything that the package says is public is there, and said once."""
    assert len(set(aiomas_ng.__all__)) == len(aiomas_ng.__all__)
    assert [name for name in aiomas_ng.__all__ if not hasattr(aiomas_ng, name)] == []
