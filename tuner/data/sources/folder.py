"""List a local folder: its pictures, the caption and the mask of each. Opens no picture and knows no torch."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Problem
from ..recipe import DataSet

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
UNREADABLE = frozenset(
    {".heic", ".heif", ".jxl", ".psd", ".svg", ".raw", ".dng", ".cr2", ".nef", ".arw", ".exr", ".hdr"}
)
"""Pictures to a person, but not to us: worth a warning where other files get a note."""


@dataclass(frozen=True)
class Found:
    """One picture of a data set: its file, the name to show, and the files that belong to it, where there are any."""

    path: Path
    name: str
    caption: Path | None = None
    mask: Path | None = None


@dataclass
class _Tree:
    """The files below a folder: by their path without ending, and then by ending in lower case."""

    root: Path
    pictures: list[Path] = field(default_factory=list)
    captions: dict[str, Path] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    failed: list[OSError] = field(default_factory=list)

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def stem(self, path: Path) -> str:
        return path.relative_to(self.root).with_suffix("").as_posix()

    def add(self, path: Path) -> None:
        ending = path.suffix.lower()
        if path.name.startswith("."):
            self.hidden.append(path)
        elif ending in PICTURES:
            self.pictures.append(path)
        elif ending == ".txt":
            self.captions[self.stem(path)] = path
        else:
            self.others.append(path)


def listing(number: int, spec: DataSet) -> tuple[list[Found], list[Problem]]:
    """The pictures of data set `number`, in natural order (2.png before 10.png), and what was noticed.

    Hidden files, stray captions and masks, and files that are no pictures are left out and said.
    """
    root, key = Path(spec.path), f"data.{number}.path"
    problems = _no_folder(root, key)
    if problems:
        return [], problems
    mask_root = Path(spec.mask) if spec.mask else None
    if mask_root and (wrong := _no_folder(mask_root, f"data.{number}.mask")):
        return [], wrong
    tree = _walk(root, mask_root)
    if not tree.pictures:
        text = (
            f"{key} is {root}, which has no pictures in it; put pictures there ({_endings(PICTURES)}), "
            "or set it to the folder that has them."
        )
        return [], [Problem("error", key, text), *_notes(tree)]
    masks = _walk(mask_root, None) if mask_root else None
    by_stem = {masks.stem(p): p for p in masks.pictures} if masks else {}
    found = [
        Found(p, tree.name(p), tree.captions.get(tree.stem(p)), by_stem.get(tree.stem(p)))
        for p in sorted(tree.pictures, key=lambda p: _natural(tree.name(p)))
    ]
    return found, [*_notes(tree), *_stray_masks(tree, by_stem)]


def _no_folder(root: Path, key: str) -> list[Problem]:
    if root.is_dir():
        return []
    if root.exists():
        text = f"{key} is {root}, which is a file; set it to the folder that the file is in."
    else:
        text = f"{key} is {root}, which does not exist; create the folder and put pictures in it, or correct the path."
    return [Problem("error", key, text)]


def _walk(root: Path, without: Path | None) -> _Tree:
    """Every file below `root`, links followed (each folder once), except below `without`."""
    tree, seen = _Tree(root), {os.path.realpath(root)}
    if without:
        seen.add(os.path.realpath(without))
    for folder, folders, files in os.walk(root, onerror=tree.failed.append, followlinks=True):
        here = Path(folder)
        tree.hidden += [here / f for f in folders if f.startswith(".")]
        kept = [f for f in folders if not f.startswith(".") and os.path.realpath(here / f) not in seen]
        seen.update(os.path.realpath(here / f) for f in kept)
        folders[:] = sorted(kept)
        for name in sorted(files):
            tree.add(here / name)
    return tree


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key: numbers by value, letters without case, and the exact name to break ties."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts], name


def _endings(endings: Iterable[str]) -> str:
    return " ".join(sorted(endings))


def _notes(tree: _Tree) -> list[Problem]:
    where = str(tree.root)
    problems = [
        Problem("error", where, f"{e.filename} cannot be opened ({e.strerror}); give yourself the right to read it.")
        for e in tree.failed
    ]
    if tree.hidden:
        several = len(tree.hidden) > 1
        count = f"{len(tree.hidden)} hidden files or folders are" if several else "1 hidden file or folder is"
        problems.append(
            Problem(
                "note", where, f"{count} left out (first: {tree.name(tree.hidden[0])}); rename what you want to use."
            )
        )
    stems = {tree.stem(p) for p in tree.pictures}
    stray = [p for s, p in tree.captions.items() if s not in stems]
    if stray:
        count = "1 caption file has" if len(stray) == 1 else f"{len(stray)} caption files have"
        problems.append(
            Problem("note", where, f"{count} no picture of the same name, and no use (first: {tree.name(stray[0])}).")
        )
    return problems + _other_kinds(tree)


def _other_kinds(tree: _Tree) -> list[Problem]:
    """Files that are neither pictures nor captions, by ending."""
    kinds = Counter(p.suffix.lower() or "(no ending)" for p in tree.others)
    pictures = {k: n for k, n in kinds.items() if k in UNREADABLE}
    rest = {k: n for k, n in kinds.items() if k not in UNREADABLE}
    problems = []
    for level, group, what in (
        ("warning", pictures, "of a picture format that cannot be read here and left out; save them as PNG or JPEG"),
        ("note", rest, "neither pictures nor captions and left out"),
    ):
        if group:
            total, names = sum(group.values()), ", ".join(f"{n} {k}" for k, n in sorted(group.items()))
            start = "1 file is" if total == 1 else f"{total} files are"
            problems.append(Problem(level, str(tree.root), f"{start} {what} ({names})."))
    return problems


def _stray_masks(tree: _Tree, masks: dict[str, Path]) -> list[Problem]:
    stems = {tree.stem(p) for p in tree.pictures}
    stray = [p for s, p in masks.items() if s not in stems]
    if not stray:
        return []
    count = "1 mask has" if len(stray) == 1 else f"{len(stray)} masks have"
    return [Problem("note", str(stray[0]), f"{count} no picture of the same name, and no use (first: {stray[0]}).")]
