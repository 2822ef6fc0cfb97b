"""Tables: which column means what, and what each row says about an item.

A path in a table of the user's is relative to the table and may lead anywhere that the user may read, as any path in a
recipe. A path in a table that came with a folder, an archive, a bucket or a Hub data set stays inside of that.
"""

from __future__ import annotations

import itertools
import json
import os
import posixpath
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ...recipe import ColumnsSpec
from .. import stores
from ..item import Entry, Kind
from .common import SHOWN, File, Report, Row, Tree, folder_of, kind_of, stem_of
from .sheet import Held, Sheet, open_sheet

NAMES: dict[str, tuple[str, ...]] = {
    "media": (
        "file_name", "filename", "file", "path", "file_path", "filepath", "image", "image_path", "image_file", "img",
        "picture", "video", "video_path", "audio", "audio_path", "sound", "media", "jpg", "png", "webp", "mp4", "wav",
        "mp3", "flac", "edited_image", "target_image", "target",
    ),
    "caption": (
        "caption", "captions", "text", "texts", "prompt", "edit_prompt", "edit_instruction", "instruction",
        "description", "txt",
    ),
    "mask": ("mask", "mask_path", "mask_file_name", "mask_image"),
    "control": ("control", "control_path", "control_file_name", "control_image", "conditioning_image"),
    "reference": (
        "reference", "references", "reference_path", "reference_file_name", "reference_image", "reference_images",
        "source_image", "input_image", "original_image", "source",
    ),
    "lyrics": ("lyrics",),
    "crop": ("crop", "crop_box"),
}  # fmt: skip
"""Column names in use, the first that a table has is taken."""

WORDS: dict[Kind, tuple[str, ...]] = {
    "image": ("image", "img", "picture", "jpg", "jpeg", "png", "webp"),
    "video": ("video", "mp4", "webm", "clip"),
    "audio": ("audio", "sound", "wav", "mp3", "flac", "ogg", "music"),
}


class Bad(Exception):
    """Why a row cannot be used, with the way out. about: the part of it that is different in every row."""

    def __init__(self, what: str, about: str = "") -> None:
        super().__init__(what)
        self.about = about


class Refused(NamedTuple):
    """A row that is left out: its place in the table, why, and the part of that which differs from row to row."""

    place: str
    what: str
    about: str = ""


Find = Callable[[str], File]
"""The file that a cell names. Raises `Bad`."""
Finder = Callable[[str], Find]
"""A table's reference → what finds the files that its cells name."""
Pair = Callable[[str, str, Row], Row]
"""(stem, name, row) → the row with the companions that stand in folders of their own."""


def columns(report: Report, sheet: Sheet, need: bool = True) -> dict[str, list[str]] | None:
    """A setting of `columns` → the columns of this table; None, and said, when that cannot be.

    need: whether a table without a column for media is an error.
    """
    chosen: dict[str, list[str]] = {}
    report.used.add("columns")
    for setting in ColumnsSpec.model_fields:
        wanted = getattr(report.spec.columns, setting)
        if wanted:
            chosen[setting] = [wanted] if isinstance(wanted, str) else list(wanted)
            lacking = [c for c in chosen[setting] if c not in sheet.columns]
            if lacking:
                key = report.key(f"columns.{setting}")
                has = ", ".join(sheet.columns) or "no columns"
                report.say("error", key, f"{key} is {lacking[0]!r}, which {sheet.ref} does not have; it has {has}.")
                return None
        elif found := next((c for c in NAMES[setting] if c in _lower(sheet)), None):
            chosen[setting] = [_lower(sheet)[found]]
    if "media" not in chosen:
        spare = [c for c in sheet.columns if c in sheet.binary and c not in _all(chosen)]
        if spare:
            chosen["media"] = spare[:1]
        elif need:
            key, has = report.key("columns.media"), ", ".join(sheet.columns) or "none"
            text = (
                f"{sheet.ref} has no column that is known to hold pictures, videos or sounds; set {key} to one of its "
            )
            report.say("error", key, f"{text}columns: {has}.")
            return None
    _tell(report, sheet, chosen)
    return chosen


def _all(chosen: dict[str, list[str]]) -> list[str]:
    return list(dict.fromkeys(itertools.chain(*chosen.values())))


def _lower(sheet: Sheet) -> dict[str, str]:
    return {c.lower(): c for c in reversed(sheet.columns)}


def _tell(report: Report, sheet: Sheet, chosen: dict[str, list[str]]) -> None:
    guessed = {s: c for s, c in chosen.items() if not getattr(report.spec.columns, s)}
    if not guessed or "media" not in chosen:
        return
    taken = ", ".join(f"{s} from {' and '.join(c)}" for s, c in guessed.items())
    rest = [c for c in sheet.columns if c not in _all(chosen)]
    unused = f" Not used: {', '.join(rest[:20])}{' ...' if len(rest) > 20 else ''}." if rest else ""
    text = f"{sheet.ref}: {taken}, by the names of the columns; set {report.key('columns')} to take others.{unused}"
    report.say("note", report.key("columns"), text)


# -- rows --------------------------------------------------------------------------------------------------------------


def from_sheets(report: Report, refs: list[str], find: Finder, pair: Pair) -> list[Entry]:
    """The items of tables, in their order."""
    entries: list[Entry] = []
    names: set[str] = set()
    for ref in refs:
        try:
            sheet = open_sheet(ref)
            chosen = columns(report, sheet)
            if chosen is None:
                continue
            prefix = f"{ref.rsplit('/', 1)[-1]}/" if len(refs) > 1 else ""
            entries += _Maker(report, sheet, chosen, find(ref), prefix).entries(names, pair)
        except stores.Unreadable as error:
            report.unusable(ref, f"{ref} {error.what}")
    return entries


class _Maker:
    """Turns the rows of one table into entries."""

    def __init__(self, report: Report, sheet: Sheet, chosen: dict[str, list[str]], find: Find, prefix: str) -> None:
        self.report, self.sheet, self.chosen, self.find, self.prefix = report, sheet, chosen, find, prefix
        self.version = stores.version(sheet.ref)
        self.kind = _kind_of_column(sheet, chosen["media"][0])

    def entries(self, names: set[str], pair: Pair) -> Iterator[Entry]:
        refused: list[Refused] = []
        wanted = _all(self.chosen)
        for place, values in self.sheet.rows(wanted, lambda p, why: refused.append(Refused(p, why))):
            try:
                entry = self._entry(place, values, names, pair)
            except Bad as bad:
                refused.append(Refused(place, str(bad), bad.about))
            else:
                names.add(entry.name)
                yield entry
        _refuse(self.report, self.sheet.ref, refused)

    def _entry(self, place: str, values: dict[str, Any], names: set[str], pair: Pair) -> Entry:
        column = self.chosen["media"][0]
        file, kind = self._media(column, place, values[column])
        row = pair(stem_of(file.name), file.name, read_row(values, self.chosen, self._companion))
        name = f"{file.name} ({place})" if file.name in names else file.name
        return Entry(
            file.ref, name, kind, file.version, row.captions, "", row.mask, row.control, row.references,
            row.lyrics, "", row.crop,
        )  # fmt: skip

    def _media(self, column: str, place: str, value: Any) -> tuple[File, Kind]:
        if isinstance(value, Held) and value.there:
            name = value.path.replace("\\", "/").lstrip("/") if _plain(value.path) else ""
            ref = stores.inside("table", self.sheet.ref, f"{value.place}/{column}")
            kind = kind_of(name) or self.kind or _kind_of_bytes(stores.read(ref))
            self.kind = self.kind or kind
            return File(self.prefix + (name or place), ref, self.version), kind
        path = value.path if isinstance(value, Held) else value
        if path is None or path == "":
            raise Bad(f"names no file in its column {column}; fill it in, or remove the row")
        if not isinstance(path, str):
            what = type(path).__name__
            raise Bad(f"holds a value of the kind {what} in its column {column}, where a path or bytes should be; "
                      f"set {self.report.key('columns.media')} to another column")  # fmt: skip
        file = self.find(path)
        kind = kind_of(file.name)
        if kind is None:
            raise Bad(
                f"names {path}, whose ending is not one of a picture, video or sound that can be read; convert it", path
            )
        return file, kind

    def _companion(self, column: str, value: Any) -> str:
        if isinstance(value, Held) and value.there:
            return stores.inside("table", self.sheet.ref, f"{value.place}/{column}")
        path = value.path if isinstance(value, Held) else value
        if not isinstance(path, str):
            raise Bad(f"holds no path in its column {column}; correct it")
        return self.find(path).ref if path else ""


def _plain(path: str) -> bool:
    return bool(path) and ".." not in path.replace("\\", "/").split("/")


def _refuse(report: Report, ref: str, refused: list[Refused]) -> None:
    """Say which rows are left out; many that differ only in the file that they name are one problem."""
    alike: dict[str, list[Refused]] = defaultdict(list)
    for one in refused:
        alike[one.what.replace(one.about, "", 1) if one.about else one.what].append(one)
    rest = []
    for rows in alike.values():
        if len(rows) <= SHOWN or not rows[0].about:
            rest += [(r.place, r.what) for r in rows]
        else:
            first = f"{rows[0].place} {rows[0].what}"
            report.unusable(ref, f"{len(rows)} rows of {ref} cannot be used, as the first of them: {first}")
    report.refuse(ref, rest)


def read_row(values: dict[str, Any], chosen: dict[str, list[str]], companion: Callable[[str, Any], str]) -> Row:
    """What a row says beside its media. companion: (column, value) → reference of a picture. Raises `Bad`."""
    captions = tuple(t for c in chosen.get("caption", ()) for t in texts(values.get(c)))
    if chosen.keys() <= {"media", "caption"}:  # the usual table, and there may be millions of rows
        return Row(captions)

    def refs(setting: str) -> tuple[str, ...]:
        found = []
        for column in chosen.get(setting, ()):
            cell = values.get(column)
            for value in cell if isinstance(cell, list) else [cell]:
                if value is not None and value != "" and not (isinstance(value, Held) and not any(value[1:])):
                    found.append(companion(column, value))
        return tuple(found)

    lyrics = "\n".join(t for c in chosen.get("lyrics", ()) for t in texts(values.get(c)))
    crop = [values.get(c) for c in chosen.get("crop", ())]
    mask, control = refs("mask"), refs("control")
    return Row(
        captions, "", "".join(mask[:1]), "".join(control[:1]), refs("reference"), lyrics,
        box(crop[0]) if crop and crop[0] not in (None, "") else None,
    )  # fmt: skip


def texts(cell: Any) -> tuple[str, ...]:
    """The texts in a cell: one, or each of a list; empty ones are none."""
    if isinstance(cell, list | tuple):
        return tuple(t for c in cell for t in texts(c))
    if cell is None or cell != cell or isinstance(cell, Held | dict):
        return ()
    text = str(cell).strip()
    return (text,) if text else ()


def box(value: Any) -> tuple[int, int, int, int]:
    """A crop box from a list or from text such as "0, 0, 512, 512". Raises `Bad`."""
    if isinstance(value, str):
        try:
            value = json.loads(value if value.strip().startswith("[") else f"[{value}]")
        except (ValueError, RecursionError):
            value = None
    numbers = [n for n in value if isinstance(n, int | float) and abs(n) < 2**31] if isinstance(value, list) else []
    if len(numbers) != 4 or len(value) != 4 or not (0 <= numbers[0] < numbers[2] and 0 <= numbers[1] < numbers[3]):
        raise Bad("has a crop that is not [left, top, right, bottom] in pixels; correct it")
    left, top, right, bottom = (round(n) for n in numbers)
    return left, top, right, bottom


# -- what a cell names -------------------------------------------------------------------------------------------------


def _link(path: str) -> str:
    return path.partition("://")[0].lower() if "://" in path else ""


def beside(report: Report, ref: str) -> Find:
    """Finds files for a table of the user's: relative to the table, absolute, or links s3://bucket/key."""
    base, remote = ref.rpartition("/")[0], ref.startswith("s3://")
    bucket = "/".join(ref.split("/", 3)[:3]) + "/"

    def find(path: str) -> File:
        link = _link(path)
        if link == "s3":
            return File(path.removeprefix("s3://"), path, "")
        if link:
            raise Bad(f"names {path}, a link that is not followed; download the file and write its path", path)
        if not remote:
            return _local(os.path.normpath(os.path.join(base, path)), base)
        full = "s3://" + posixpath.normpath(posixpath.join(base[5:], path))
        if path.startswith("/") or not full.startswith(bucket):
            raise Bad(
                f"names {path}, which leads out of the bucket; write it relative to the table, or as s3://...", path
            )
        return File(full.removeprefix(base).lstrip("/"), full, "")

    return find


def _local(path: str, base: str) -> File:
    """A local file as the tables of users name it; base: the table's folder."""
    try:
        info = os.stat(path)
        path.encode()
    except (OSError, ValueError):
        raise Bad(f"names the missing file {path}; put it back, or correct the path", path) from None
    if not stat.S_ISREG(info.st_mode):
        raise Bad(f"names {path}, which is no file; correct the path", path)
    return File(path[len(base) + 1 :] if path.startswith(f"{base}/") else path, path, stores.stamp(info))


def within(tree: Tree, table: str) -> Find:
    """Finds files for a table that is itself a file of a tree: only files of the tree, relative to the table."""
    files, base = {f.name: f for f in tree.files}, folder_of(table)

    def find(path: str) -> File:
        name = posixpath.normpath(posixpath.join(base, path.replace("\\", "/")))
        if _link(path) or name.startswith(("/", "../")):
            raise Bad(f"names {path}, which is outside of {tree.where}; only files in it are used", path)
        if name not in files:
            raise Bad(f"names the missing file {name}; put it back, or correct the path", name)
        return files[name]

    return find


def overlay(report: Report, tree: Tree) -> tuple[dict[str, Row], set[str], set[str]]:
    """What the files `metadata.csv`, `.jsonl` and `.parquet` of a tree say.

    Returns rows by the name of the media file, the names of these tables, and those of companions that rows name.
    """
    rows: dict[str, list[Row]] = defaultdict(list)
    tables, used = set(), set()
    by_ref = {f.ref: f.name for f in tree.files}
    for file in tree.files:
        if file.name.rsplit("/", 1)[-1] not in ("metadata.csv", "metadata.jsonl", "metadata.parquet"):
            continue
        try:
            sheet = open_sheet(file.ref)
        except stores.Unreadable as error:
            report.unusable(file.name, f"{file.name} in {tree.where} {error.what}")
            tables.add(file.name)
            continue
        chosen = columns(report, sheet, need=False)
        if chosen is None or "media" not in chosen:
            continue
        tables.add(file.name)
        find, refused = within(tree, file.name), []
        wanted = _all(chosen)
        for place, values in sheet.rows(wanted, lambda p, why, r=refused: r.append(Refused(p, why))):
            try:
                name = find(str(values[chosen["media"][0]] or "")).name
                rows[name].append(read_row(values, chosen, lambda _, v, f=find: f(str(v)).ref))
            except Bad as bad:
                refused.append(Refused(place, str(bad), bad.about))
                continue
            used.update(
                by_ref[r] for r in (rows[name][-1].mask, rows[name][-1].control, *rows[name][-1].references) if r
            )
        _refuse(report, f"{file.name} in {tree.where}", refused)
    return {n: _merged(r) for n, r in rows.items()}, tables, used


def _merged(rows: list[Row]) -> Row:
    """One row from all that name a file: its captions are those of all."""
    first = rows[0]
    for other in rows[1:]:
        first = Row(first.captions + other.captions).over(first.over(other))
    return first


def _kind_of_column(sheet: Sheet, column: str) -> Kind | None:
    told = (sheet.kinds or {}).get(column, "")
    for kind, words in WORDS.items():
        if told == kind or (not told and any(w in column.lower() for w in words)):
            return kind
    return None


def _kind_of_bytes(data: bytes) -> Kind:
    """By the first bytes of a file; a picture when in doubt."""
    if data[:4] in (b"fLaC", b"OggS") or data[:3] == b"ID3" or data[:2] in (b"\xff\xfb", b"\xff\xf3") \
            or (data[:4] == b"RIFF" and data[8:12] == b"WAVE"):  # fmt: skip
        return "audio"
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand == b"M4A ":
        return "audio"
    pictures = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    return "video" if data[:4] == b"\x1a\x45\xdf\xa3" or (brand and brand not in pictures) else "image"
