"""From the files of a tree to items: what belongs together has the same name without its ending."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .. import stores
from ..item import Entry
from .common import (
    PHONE,
    PICTURES,
    SOUNDS,
    UNREADABLE,
    VIDEOS,
    File,
    Report,
    Row,
    Tree,
    endings,
    kind_of,
    natural,
    plural,
    stem_of,
)
from .table import Bad, box, overlay, texts

CAPTIONS = (".txt", ".caption", ".cls")
"""Endings of caption files; the first that an item has is taken."""
KEYS = ("caption", "captions", "text", "prompt")
"""Keys of a .json file beside an item that hold captions; `columns.caption` names others."""
PAIRS = ("mask", "control", "reference")


@dataclass
class _Files:
    """The files of a tree by what they are; those beside an item by their stem."""

    media: list[File] = field(default_factory=list)
    captions: dict[str, File] = field(default_factory=dict)
    lyrics: dict[str, File] = field(default_factory=dict)
    notes: dict[str, File] = field(default_factory=dict)
    """The .json files."""
    roles: dict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    """Members of samples such as NAME.mask.png."""
    others: list[File] = field(default_factory=list)

    def add(self, file: File, samples: bool) -> None:
        stem, ending = stem_of(file.name), file.name[len(stem_of(file.name)) :].lower()
        main, _, role = stem.rpartition(".")
        if samples and main and role.rstrip("0123456789") in PAIRS and kind_of(file.name) == "image":
            row, role = self.roles[main], role.rstrip("0123456789")
            if role == "reference":
                row.references = (*row.references, file.ref)
            else:
                setattr(row, role, file.ref)
        elif kind_of(file.name):
            self.media.append(file)
        elif ending in (CAPTIONS if samples else (".txt",)):
            before = self.captions.get(stem)
            if before is None or CAPTIONS.index(ending) < CAPTIONS.index(before.name[len(stem) :].lower()):
                self.captions[stem] = file
        elif ending in (".lyrics", ".json"):
            (self.lyrics if ending == ".lyrics" else self.notes)[stem] = file
        else:
            self.others.append(file)


def items(report: Report, tree: Tree, pairs: Pairs, samples: bool = False) -> list[Entry]:
    """The items of a tree, in natural order, with what belongs to each. Says what is left out.

    samples: webdataset rules, by which NAME.mask.png, NAME.control.png and NAME.reference.png belong to NAME.jpg.
    """
    rows, tables, used = overlay(report, tree)
    files = _Files()
    for file in sorted(tree.files, key=lambda f: f.name) if samples else tree.files:
        if file.name not in tables and file.name not in used:
            files.add(file, samples)
    files.media.sort(key=lambda f: natural(f.name))
    stems = {stem_of(f.name) for f in files.media}
    told, broken = _sidecars(report, tree, files, stems)
    found = []
    for file in files.media:
        stem = stem_of(file.name)
        if stem not in broken:
            row = rows.get(file.name, Row()).over(told.get(stem, Row())).over(files.roles.get(stem, Row()))
            found.append(_entry(file, stem, pairs.add(stem, file.name, row), files))
    _say(report, tree, files, stems)
    return found


def _entry(file: File, stem: str, row: Row, files: _Files) -> Entry:
    kind = kind_of(file.name)
    assert kind is not None
    caption, lyrics = files.captions.get(stem), files.lyrics.get(stem) if kind == "audio" else None
    return Entry(
        file.ref, file.name, kind, file.version, row.captions, caption.ref if caption else "", row.mask, row.control,
        row.references, row.lyrics, lyrics.ref if lyrics else "", row.crop,
    )  # fmt: skip


# -- .json beside an item ----------------------------------------------------------------------------------------------


def _sidecars(report: Report, tree: Tree, files: _Files, stems: set[str]) -> tuple[dict[str, Row], set[str]]:
    """(what the .json files beside items say, stems of those that are broken); the others become `others`."""
    files.others += [f for s, f in files.notes.items() if s not in stems]
    mine = [(s, f) for s, f in files.notes.items() if s in stems]
    wanted = report.spec.columns.caption
    if mine and wanted:
        report.used.add("columns")
    keys = [wanted] if isinstance(wanted, str) else wanted or KEYS
    told: dict[str, Row] = {}
    broken: dict[str, tuple[str, str]] = {}
    with ThreadPoolExecutor(16 if mine and mine[0][1].ref.startswith(("s3://", "hf://")) else 1) as pool:
        for (stem, file), answer in zip(mine, pool.map(lambda sf: _told(sf[1], keys), mine), strict=True):
            if isinstance(answer, str):
                broken[stem] = file.name, answer
            elif answer == Row():
                files.others.append(file)
            else:
                told[stem] = answer
    report.refuse(tree.where, broken.values())
    return told, set(broken)


def _told(file: File, keys: Iterable[str]) -> Row | str:
    """What a .json file says about its item, or why it cannot be used."""
    try:
        value: Any = json.loads(stores.read(file.ref).decode("utf-8-sig"))
        if not isinstance(value, dict):
            return Row()
        captions = tuple(t for k in keys for t in texts(value.get(k)))
        crop = box(value["crop"]) if value.get("crop") is not None else None
        return Row(captions, lyrics="\n".join(texts(value.get("lyrics"))), crop=crop)
    except stores.Unreadable as error:
        return error.what
    except Bad as error:
        return str(error)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return "is not JSON in UTF-8; correct it, or remove it"


# -- masks, control and reference pictures -----------------------------------------------------------------------------


class Pairs:
    """Pictures of the folders that `mask`, `control` and `reference` name, by stem; knows which were used."""

    def __init__(self, report: Report, trees: Iterable[tuple[str, Tree]]) -> None:
        self.report = report
        self.folders: list[tuple[str, Tree, dict[str, File]]] = []
        self.used: list[set[str]] = []
        self.partly: list[tuple[str, int]] = []
        for setting, tree in trees:
            pictures: dict[str, File] = {}
            for file in sorted((f for f in tree.files if kind_of(f.name) == "image"), key=lambda f: f.name):
                if (before := pictures.get(stem_of(file.name))) is not None:
                    text = f"{tree.where} has both {before.name} and {file.name}; the latter is used. Remove one."
                    report.say("warning", report.key(setting), text)
                pictures[stem_of(file.name)] = file
            if others := len(tree.files) - sum(kind_of(f.name) == "image" for f in tree.files):
                text = f"{tree.where} has {others} files that are not pictures; they are not used as {setting}s."
                report.say("note", tree.where, text)
            self.folders.append((setting, tree, pictures))
            self.used.append(set())

    def add(self, stem: str, name: str, row: Row) -> Row:
        """The row with the companions of the stem where it has none; references only when every folder has one."""
        if not self.folders:
            return row
        references: list[str] = []
        folders = 0
        for (setting, _, pictures), used in zip(self.folders, self.used, strict=True):
            folders += setting == "reference"
            if (file := pictures.get(stem)) is None:
                continue
            used.add(stem)
            if setting == "reference":
                references.append(file.ref)
            elif not getattr(row, setting):
                row = row.over(Row(mask=file.ref) if setting == "mask" else Row(control=file.ref))
        if references and not row.references:
            if len(references) == folders:
                return row.over(Row(references=tuple(references)))
            self.partly.append((name, folders))
        return row

    def say(self, one: str) -> None:
        """Problems: pictures of these folders that no item uses, and items with only some of their references."""
        for (setting, _, pictures), used in zip(self.folders, self.used, strict=True):
            stray = [f for s, f in pictures.items() if s not in used]
            if stray:
                word = {"mask": "mask", "control": "control picture", "reference": "reference picture"}[setting]
                count = f"1 {word} has" if len(stray) == 1 else f"{len(stray)} {word}s have"
                text = f"{count} no {one} of the same name, and no use (first: {stray[0].ref})."
                self.report.say("note", stray[0].ref, text)
        if self.partly:
            (name, folders), many = self.partly[0], len(self.partly)
            count = f"1 {one} has" if many == 1 else f"{many} items have"
            key = self.report.key("reference")
            text = f"{count} a picture of the same name only in some of the {folders} folders of {key} (first: {name})"
            self.report.say("warning", key, f"{text}; it counts as having none. Add the rest.")


# -- what is left out --------------------------------------------------------------------------------------------------


def _say(report: Report, tree: Tree, files: _Files, stems: set[str]) -> None:
    one, many = plural(k for f in files.media if (k := kind_of(f.name)))
    if tree.hidden:
        several = len(tree.hidden) > 1
        count = f"{len(tree.hidden)} hidden files or folders are" if several else "1 hidden file or folder is"
        text = f"{count} left out (first: {tree.hidden[0]}); rename what you want to use."
        report.say("note", tree.where, text)
    sounds = {stem_of(f.name) for f in files.media if kind_of(f.name) == "audio"}
    for what, there, known, whose in (
        ("caption file", files.captions, stems, one), ("lyrics file", files.lyrics, sounds, "sound"),
    ):  # fmt: skip
        stray = [f.name for s, f in there.items() if s not in known]
        if stray:
            count = f"1 {what} has" if len(stray) == 1 else f"{len(stray)} {what}s have"
            text = f"{count} no {whose} of the same name, and no use (first: {stray[0]})."
            report.say("note", tree.where, text)
    lone = [s for s in files.roles if s not in stems]
    if lone:
        text = f"{len(lone)} samples have a mask, control or reference but no {one} (first: {lone[0]}); add it."
        report.say("warning", tree.where, text)
    _other_kinds(report, tree, files.others, many)


def _other_kinds(report: Report, tree: Tree, others: list[File], many: str) -> None:
    """Files that are neither media nor beside them, by ending."""
    kinds = Counter(f.name[len(stem_of(f.name)) :].lower() or "(no ending)" for f in others)
    start = "of a picture format that cannot be read here and left out; "
    for level, known, what in (
        ("warning", UNREADABLE, f"{start}save them as PNG or JPEG"),
        ("warning", PHONE, f"{start}run `pip install pillow-heif`, or save them as PNG or JPEG"),
        ("note", None, f"neither {many} nor captions and left out"),
    ):
        group = {k: n for k, n in kinds.items() if (k in known if known else k not in UNREADABLE | PHONE)}
        if group:
            total, names = sum(group.values()), ", ".join(f"{n} {k}" for k, n in sorted(group.items()))
            count = "1 file is" if total == 1 else f"{total} files are"
            report.say(level, tree.where, f"{count} {what} ({names}).")  # pyrefly: ignore[bad-argument-type]


def nothing(report: Report, tree: Tree) -> None:
    """The error of a tree without anything to train on."""
    if not any(k == "error" for k in (p.level for p in report.problems)):
        what = "which has no pictures in it, nor videos or sounds"
        tables = sorted(f.name for f in tree.files if f.name.endswith((".csv", ".jsonl", ".parquet", ".zip", ".tar")))
        there = f" (or set it to a file such as {tables[0]} in it)" if tables else ""
        report.wrong(
            "path",
            f"{what}; put pictures there ({endings(PICTURES)}), videos ({endings(VIDEOS)}) or sounds "
            f"({endings(SOUNDS)}), or set it to the folder that has them{there}.",
        )


def iter_media(tree: Tree) -> Iterator[File]:
    """The pictures, videos and sounds of a tree."""
    return (f for f in tree.files if kind_of(f.name))
