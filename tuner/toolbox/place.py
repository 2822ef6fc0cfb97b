"""Where a tool writes: never over what is there, whole or not at all, and only where it fits on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint import enough_space
from ..errors import UserError


@contextmanager
def new(target: Path, needed: int = 0) -> Iterator[Path]:
    """A partial path beside `target` that takes its name when all went well, and is deleted when not.

    needed: bytes, where they are known beforehand. Raises `UserError` when `target` exists, its folder does not, or
    the disk is full.
    """
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} is there already and is not overwritten; give another name, or delete it first.")
    parent = target.parent
    if not parent.is_dir():
        raise UserError(f"{target} cannot be written: the folder {parent} does not exist; make it first.")
    partial = parent / f".partial-{target.name}"
    _remove(partial)
    try:
        with enough_space(parent, needed, "try again."):
            yield partial
            partial.rename(target)
    except PermissionError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); choose another folder.") from None
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
