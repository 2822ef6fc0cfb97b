"""The files of a local folder. Opens none of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from .. import stores
from .common import File, Report, Tree


def walk(report: Report, root: str, without: Iterable[str] = ()) -> Tree:
    """Every file below `root`, links followed (each folder once), except below the folders in `without`."""
    tree, refused = Tree(root), []
    seen = {os.path.realpath(f) for f in (root, *without)}
    waiting = [("", root)]
    while waiting:
        prefix, folder = waiting.pop()
        try:
            with os.scandir(folder) as scan:
                found = sorted(scan, key=lambda e: e.name)
        except OSError as error:
            text = f"{folder} cannot be opened ({error.strerror}); give yourself the right to read it."
            report.say("error", root, text)
            continue
        for one in found:
            name = prefix + one.name
            if _is_folder(one):
                if one.name.startswith("."):
                    tree.hidden.append(name)
                elif (real := os.path.realpath(one.path)) not in seen:
                    seen.add(real)
                    waiting.append((f"{name}/", one.path))
            elif why := _add(tree, name, one):
                refused.append((name, why))
    report.refuse(root, refused)
    return tree


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def _add(tree: Tree, name: str, entry: os.DirEntry[str]) -> str:
    """Take a file in; returns why it cannot be used."""
    try:
        info = entry.stat()
    except OSError as error:
        if entry.is_symlink():
            return "is a link to nothing; put its target back, or remove the link"
        return f"cannot be read ({error.strerror}); put it back, or list the folder again"
    if not stat.S_ISREG(info.st_mode):
        return "is no plain file; remove it"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is not text in UTF-8; rename it"
    tree.add(File(name, entry.path, stores.stamp(info)))
    return ""


def missing(root: str) -> str:
    """Why a local folder cannot be used, "" when it can."""
    path = Path(root)
    if path.is_dir():
        return ""
    if path.exists():
        return "which is a file; set it to the folder that the file is in."
    return "which does not exist; create the folder and put pictures in it, or correct the path."
