"""What every kind of source shares: endings, natural order, trees of named files, and how problems are worded."""

from __future__ import annotations

import importlib.util
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from ...errors import Problem
from ...recipe import DataSet
from ..item import Kind

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})
SOUNDS = frozenset({".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus"})
PHONE = frozenset({".heic", ".heif"})
"""Pictures that Pillow reads only with the package pillow-heif."""
UNREADABLE = frozenset({".jxl", ".psd", ".svg", ".raw", ".dng", ".cr2", ".nef", ".arw", ".exr", ".hdr"})
"""Pictures to a person, but not to us: worth a warning where other files get a note."""
SHOWN = 3
"""Problems of one kind up to this number name every file; more are counted."""
KINDS = 50
"""Kinds of problems of one file or folder that are told."""


@cache
def reads_phone_pictures() -> bool:
    """Whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def kind_of(name: str) -> Kind | None:
    """What a file is by its ending; None when it is no picture, video or sound that we read."""
    ending = os.path.splitext(name)[1].lower()
    if ending in PICTURES or (ending in PHONE and reads_phone_pictures()):
        return "image"
    if ending in VIDEOS:
        return "video"
    return "audio" if ending in SOUNDS else None


def stem_of(name: str) -> str:
    """The name without its ending, folders kept: what belongs together has the same one."""
    return os.path.splitext(name)[0]


def natural(name: str) -> tuple[str, str]:
    """Sort key: numbers by value, letters without case, and the exact name to break ties."""
    return re.sub(r"[0-9]+", _by_value, name.casefold()), name


def _by_value(found: re.Match[str]) -> str:
    digits = found[0].lstrip("0")
    return f"\0{len(digits):05}{digits}"


def endings(of: Iterable[str]) -> str:
    """Endings for a sentence."""
    return " ".join(sorted(of))


BOOK = ".tuner-captions.json"
"""Where the captioning job notes the origin of captions: our own file, that nobody need be told of."""


class File(NamedTuple):
    """A file of a tree: its name with `/` between folders, its reference, and the version of its bytes."""

    name: str
    ref: str
    version: str


@dataclass
class Tree:
    """The files of a folder, an archive or a prefix. where: as people see it. nests: archives in it can be opened."""

    where: str
    files: list[File] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    nests: bool = True

    def add(self, file: File) -> None:
        """Take a file in, or count it as hidden."""
        parts = file.name.split("/")
        if parts[-1] == BOOK:
            return
        if any(p.startswith(".") or p == "__MACOSX" for p in parts):
            self.hidden.append(file.name)
        else:
            self.files.append(file)

    def unwrap(self) -> None:
        """Drop the one folder that everything is in, as zips of a folder have it, so that names pair with others."""
        tops = {f.name.partition("/")[0] if "/" in f.name else "" for f in self.files}
        if len(tops) == 1 and (top := tops.pop()):
            self.files = [f._replace(name=f.name[len(top) + 1 :]) for f in self.files]


@dataclass
class Row:
    """What a table, a .json file or members of a sample say about an item; all may be empty."""

    captions: tuple[str, ...] = ()
    caption_ref: str = ""
    mask: str = ""
    control: str = ""
    references: tuple[str, ...] = ()
    lyrics: str = ""
    crop: tuple[int, int, int, int] | None = None

    def over(self, other: Row) -> Row:
        """This row, with what it lacks from the other."""
        return Row(*(getattr(self, n) or getattr(other, n) for n in self.__dataclass_fields__))


@dataclass
class Report:
    """Problems of one data set, worded the same way everywhere."""

    number: int
    spec: DataSet
    problems: list[Problem] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Of the settings `columns` and `split` those that mattered."""
    _said: set[tuple[str, str, str]] = field(default_factory=set)

    def key(self, name: str) -> str:
        """The dotted recipe key of a setting of this data set."""
        return f"data.{self.number}.{name}"

    def say(self, level: Literal["error", "warning", "note"], where: str, text: str) -> None:
        """Add a problem; names may hold line breaks and bytes that are no text, sentences may not."""
        text, where = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in t) for t in (text, where))
        if (level, where, text) not in self._said:
            self._said.add((level, where, text))
            self.problems.append(Problem(level, where, text))

    def wrong(self, setting: str, what: str) -> None:
        """An error of a setting, after which nothing of the data set can be used."""
        self.say("error", self.key(setting), f"{self.key(setting)} is {getattr(self.spec, setting)}, {what}")

    def unusable(self, where: str, what: str) -> None:
        """Something that is left out: an error, or, where the user said so, a warning. what: "is ...; way out"."""
        skip = self.key("on_problem")
        count = len(self.problems)
        if self.spec.on_problem == "skip":
            self.say("warning", where, f"{what}. It is left out ({skip} is skip).")
        else:
            self.say("error", where, f"{what}, or set {skip}=skip to leave such files out.")
        for problem in self.problems[count:]:
            if problem.level == "error":
                problem.remedy[skip] = "skip"

    def refuse(self, where: str, refused: Iterable[tuple[str, str]]) -> None:
        """Several things in one file or folder that are left out, each (name, "is ...; way out")."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for name, what in refused:
            kinds[what].append(name)
        for number, (what, names) in enumerate(kinds.items()):
            if number == KINDS:
                self.unusable(where, f"{len(kinds) - KINDS} more in {where} cannot be used; mend those above first")
                return
            if len(names) <= SHOWN:
                for name in names:
                    self.unusable(where, f"{name} in {where} {what}")
            else:
                self.unusable(where, f"{names[0]} and {len(names) - 1} others in {where}: each {what}")


def plural(kinds: Iterable[Kind]) -> tuple[str, str]:
    """(one, many): what items of these kinds are called."""
    words = {"image": ("picture", "pictures"), "video": ("video", "videos"), "audio": ("sound", "sounds")}
    found = set(kinds)
    return words[found.pop()] if len(found) == 1 else ("item", "items")


def folder_of(name: str) -> str:
    """The folder part of a name, "" at the top."""
    parent = str(PurePosixPath(name).parent)
    return "" if parent == "." else parent
