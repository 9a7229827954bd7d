"""Files of an authority: private where they have to be, and never half written."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

__all__ = ["PRIVATE", "PUBLIC", "make_directory", "write"]

#: Permissions of private keys, and of what everybody may read.
PRIVATE: Final = 0o600
PUBLIC: Final = 0o644
#: Permissions of a directory that has private keys in it.
DIRECTORY: Final = 0o700


def make_directory(path: Path) -> None:
    """Make a directory that only its owner can look into; one that is there stays as it is."""
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=DIRECTORY)


def write(path: Path, content: bytes, mode: int, *, force: bool) -> None:
    """Write a file as a whole or not at all.

    Args:
        path: The file.
        content: What is to be in it.
        mode: Its permissions, from the very beginning.
        force: Replace a file that is there.

    Raises:
        FileExistsError: There is one, and *force* is not set.
        OSError: It cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # Whatever the umask is: others could not read it for a moment either.
    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if force:
            os.replace(draft, path)
        else:
            os.link(draft, path)  # unlike a rename, it fails if there is something
    except FileExistsError as error:
        raise FileExistsError(
            error.errno, "is there already; --force or force=True replaces it", str(path)
        ) from (None)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
