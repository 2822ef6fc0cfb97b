"""Scan data sets once: content, size and captions of every item, and all that is wrong with them. Knows no torch.

The index is columnar (Arrow, Parquet on disk), so that millions of rows are planned without an object for each.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..errors import Problem
from ..recipe import DataSet
from . import captions, repeats, stores
from .facts import SAYS, Look
from .item import Companion, Entry, Item, Kind
from .looks import Looks, Wanted
from .sources import listing

SHOWN = 3
"""Notes of one kind up to this number name every file; more are counted."""
BLOCK, KEPT = 1024, 4096
"""Rows that are made into values at once, and most of them that are kept."""
KINDS: tuple[Kind, ...] = ("image", "video", "audio")
NOUNS = {"image": ("picture", "pictures"), "video": ("video", "videos"), "audio": ("sound", "sounds")}

COMPANION = pa.struct([("ref", pa.string()), ("digest", pa.binary(32)), ("width", pa.int32()), ("height", pa.int32())])
SCHEMA = pa.schema(
    [
        ("dataset", pa.int16()),
        ("kind", pa.int8()),
        ("ref", pa.string()),
        ("name", pa.string()),
        ("digest", pa.binary(32)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames", pa.int32()),
        ("fps", pa.float32()),
        ("seconds", pa.float64()),
        ("rate", pa.int32()),
        ("captions", pa.list_(pa.string())),
        ("caption_from", pa.string()),
        ("lyrics", pa.string()),
        ("mask", COMPANION),
        ("control", COMPANION),
        ("references", pa.list_(COMPANION)),
        ("crop", pa.list_(pa.int32(), 4)),
    ]
)


@dataclass
class Index:
    """What the data sets hold, a row an item. Use `stop_on_errors(index.problems)` before training."""

    table: pa.Table = field(default_factory=SCHEMA.empty_table)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._columns: dict[str, Any] = {}
        self._known: dict[int, Item] = {}

    def __len__(self) -> int:
        return self.table.num_rows

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers as an array [rows]."""
        if name not in self._columns:
            self._columns[name] = self.table.column(name).to_numpy()
        return self._columns[name]

    def digests(self) -> np.ndarray:
        """The contents' sha256: uint8 [rows, 32]."""
        flat = self.table.column("digest").combine_chunks()
        data = np.frombuffer(flat.buffers()[1], np.uint8) if len(flat) else np.empty(0, np.uint8)
        return data[flat.offset * 32 : (flat.offset + len(flat)) * 32].reshape(-1, 32)

    def item(self, row: int) -> Item:
        """One row as a value; those of small indices are kept."""
        found = self._known.get(row)
        if found is None:
            [found] = self._block(row, row + 1)
            if len(self._known) < KEPT:
                self._known[row] = found
        return found

    def _block(self, start: int, end: int) -> list[Item]:
        """Rows from `start` to before `end`: many at once are ten times faster than one by one."""
        return [_value(row) for row in self.table.slice(start, end - start).to_pylist()]

    def crops(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether each of these rows has a recorded crop [N], and that box [N, 4] (left, top, right, bottom)."""
        column = self.table.column("crop")
        there, boxes = np.zeros(len(rows), bool), np.zeros((len(rows), 4), np.int32)
        if column.null_count < len(column):
            taken = column.take(pa.array(rows)).combine_chunks()
            there = taken.is_valid().to_numpy(zero_copy_only=False)
            boxes[there] = taken.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
        return there, boxes

    def texts(self) -> list[str]:
        """Every caption once, in order of the alphabet."""
        flat = [chunk.flatten() for chunk in self.table.column("captions").chunks]
        return sorted(pa.chunked_array(flat, pa.string()).unique().to_pylist())

    @property
    def items(self) -> Sequence[Item]:
        """Every row as a value, made when asked for."""
        return _Items(self)

    def save(self, path: Path) -> None:
        """Write it as Parquet; the problems are not kept."""
        parquet.write_table(self.table, path)

    @staticmethod
    def load(path: Path) -> Index:
        """Read what `save` wrote, memory-mapped where it can be."""
        return Index(parquet.read_table(path, schema=SCHEMA, memory_map=True))

    @staticmethod
    def of(items: Iterable[Item], problems: Iterable[Problem] = ()) -> Index:
        """An index of given items."""
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        for item in items:
            for name, value in _row(item).items():
                columns[name].append(value)
        arrays = [pa.array(columns[f.name], f.type) for f in SCHEMA]
        return Index(pa.Table.from_arrays(arrays, schema=SCHEMA), list(problems))


class _Items(Sequence[Item]):
    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            start, end, step = row.indices(len(self))
            whole = self._index._block(start, end) if step == 1 and end > start else None
            return whole or [self._index.item(i) for i in range(start, end, step)]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return self._index.item(row % len(self))

    def __iter__(self) -> Iterator[Item]:
        return (item for start in range(0, len(self), BLOCK) for item in self[start : start + BLOCK])


def _value(row: dict[str, Any]) -> Item:
    changed: dict[str, Any] = {
        "kind": KINDS[row["kind"]],
        "digest": row["digest"].hex(),
        "captions": tuple(row["captions"]),
        "mask": _companion(row["mask"]),
        "control": _companion(row["control"]),
        "references": tuple(_companion(r) for r in row["references"] or ()),
        "crop": tuple(row["crop"]) if row["crop"] else None,
    }
    return Item(**{**row, **changed})


def _companion(value: dict[str, Any] | None) -> Companion | None:
    return None if value is None else Companion(**{**value, "digest": value["digest"].hex()})


def _row(item: Item) -> dict[str, Any]:
    def plain(c: Companion | None) -> dict[str, Any] | None:
        return (
            None
            if c is None
            else {"ref": c.ref, "digest": bytes.fromhex(c.digest), "width": c.width, "height": c.height}
        )

    row = {name: getattr(item, name) for name in SCHEMA.names}
    return {
        **row,
        "kind": KINDS.index(item.kind),
        "digest": bytes.fromhex(item.digest),
        "mask": plain(item.mask),
        "control": plain(item.control),
        "references": [plain(r) for r in item.references],
    }


@dataclass
class _Scan:
    """One data set being scanned."""

    number: int
    spec: DataSet
    kinds: frozenset[Kind]
    problems: list[Problem] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    bare: list[Entry] = field(default_factory=list)
    """Items without any caption."""
    unpaired: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    """Setting (mask, control, reference) → items that lack one."""

    def key(self, name: str) -> str:
        return f"data.{self.number}.{name}"

    def file_problem(self, ref: str, what: str) -> None:
        """An error about one file, or, where the user said so, a warning that it is left out."""
        skip, name = self.key("on_problem"), stores.said(ref)
        if self.spec.on_problem == "skip":
            self.problems.append(Problem("warning", ref, f"{name} {what}. It is left out ({skip} is skip)."))
        else:
            text = f"{name} {what}, or set {skip}=skip to leave such files out."
            self.problems.append(Problem("error", ref, text, {skip: "skip"}))


def scan(
    datasets: Sequence[DataSet],
    kinds: frozenset[Kind] = frozenset({"image"}),
    progress: Callable[[int, int], None] | None = None,
    store: Path | None = None,
) -> Index:
    """Read and decode everything in the data sets once.

    kinds: what the family trains; other files are said and left out. progress: called with (files read, files).
    store: a folder (`home.cache_folder()`) to remember in, so that unchanged files are not decoded again.
    Never raises for bad files: they become problems, and are left out of the items.
    """
    scans = [_Scan(number, spec, kinds) for number, spec in enumerate(datasets)]
    wanted: list[tuple[Wanted, Looks]] = []
    for one in scans:
        _list(one)
        looks = Looks(store, one.spec.path)
        wanted += [(w, looks) for entry in one.entries for w in _wanted(entry, one.spec)]
    seen: list[Look] = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, look in enumerate(pool.map(lambda pair: pair[1].at(pair[0]), wanted), 1):
            seen.append(look)
            if progress:
                progress(done, len(wanted))
    for looks in {id(looks): looks for _, looks in wanted}.values():
        looks.save()
    items: list[Item] = []
    problems: list[Problem] = []
    rest = iter(seen)
    for one in scans:
        items += _items(one, rest)
        problems += one.problems
    return Index.of(items, [*problems, *_without_training(items, datasets)])


def _list(scan: _Scan) -> None:
    """List one data set; what the family cannot train is said and left out."""
    found = listing(scan.number, scan.spec)
    scan.problems += [*found.problems, *repeats.unmatched(scan.number, scan.spec, [e.name for e in found.entries])]
    scan.entries = [e for e in found.entries if e.kind in scan.kinds]
    for kind in KINDS:
        others = [e for e in found.entries if e.kind == kind and kind not in scan.kinds]
        if not others:
            continue
        trains = " and ".join(NOUNS[k][1] for k in KINDS if k in scan.kinds)
        count = f"1 {NOUNS[kind][0]} is" if len(others) == 1 else f"{len(others)} {NOUNS[kind][1]} are"
        text = f"{count} left out (first: {others[0].name}): this model trains {trains}."
        level = "warning" if scan.entries else "error"
        text += "" if scan.entries else f" Set {scan.key('path')} to a data set of {trains}, or choose another family."
        scan.problems.append(Problem(level, scan.key("path"), text))


def _wanted(entry: Entry, spec: DataSet) -> list[Wanted]:
    """The files of an entry, itself first, in a fixed order."""
    files = [Wanted(entry.ref, entry.kind, entry.version, spec.background)]
    for ref, paper in ((entry.mask, "black"), (entry.control, "black"), *((r, "white") for r in entry.references)):
        if ref:
            files.append(Wanted(ref, "image", _version(ref), paper))
    return files


def _version(ref: str) -> str:
    """ "" for what cannot be reached: the look will say why."""
    try:
        return stores.version(ref)
    except stores.Unreadable:
        return ""


def _without_training(items: list[Item], datasets: Sequence[DataSet]) -> list[Problem]:
    if not items or any(datasets[i.dataset].role != "validation" for i in items):
        return []
    text = "data has nothing to train on: data.0.role is validation; set it to train, or add a data set to train on."
    return [Problem("error", "data.0.role", text, {"data.0.role": "train"})]


def _items(scan: _Scan, looks: Iterator[Look]) -> list[Item]:
    notes: list[tuple[str, tuple[str, str], str]] = []
    items = []
    for entry in scan.entries:
        files = _wanted(entry, scan.spec)
        facts = dict(zip((f.ref for f in files), (next(looks) for _ in files), strict=True))
        item = _item(scan, entry, facts)
        if item is None:
            continue
        notes += [(entry.name, note, entry.ref) for note in facts[entry.ref].notes]
        if entry.mask:
            notes += [(f"mask of {entry.name}", note, entry.mask) for note in facts[entry.mask].notes]
        items.append(item)
    scan.problems += (
        _gather(notes, NOUNS[scan.entries[0].kind][1] if scan.entries else "")
        + _bare(scan)
        + _unpaired(scan)
        + _copies(items, scan)
    )
    if scan.entries and not items and not any(p.level == "error" for p in scan.problems):
        what = NOUNS[scan.entries[0].kind][0]
        text = f"{scan.key('path')} is {scan.spec.path}, where no {what} can be used; see the warnings on its files."
        scan.problems.append(Problem("error", scan.key("path"), text))
    return items


def _item(scan: _Scan, entry: Entry, facts: dict[str, Look]) -> Item | None:
    """One usable item, or None after saying why not."""
    own = facts[entry.ref]
    if own.error:
        scan.file_problem(entry.ref, own.error)
        return None
    taken = _captions(scan, entry)
    lyrics = None if taken is None else _lyrics(scan, entry)
    if taken is None or lyrics is None:
        return None
    companions = _companions(scan, entry, facts)
    if companions is None:
        return None
    return Item(
        dataset=scan.number,
        ref=entry.ref,
        name=entry.name,
        kind=entry.kind,
        digest=own.digest,
        width=own.width,
        height=own.height,
        captions=taken[0],
        caption_from=taken[1],
        frames=own.frames,
        fps=own.fps,
        seconds=own.seconds,
        rate=own.rate,
        lyrics=lyrics,
        crop=entry.crop,
        **companions,
    )


# -- captions --------------------------------------------------------------------------------------------------------


def _text(scan: _Scan, ref: str) -> str | None:
    """A text file's content, or None after saying why not."""
    try:
        return captions.read_text(stores.read(ref)).strip()
    except stores.Unreadable as reason:
        scan.file_problem(ref, reason.what)
    except ValueError:
        scan.file_problem(ref, "is not text in UTF-8; save it in that encoding")
    return None


def _lyrics(scan: _Scan, entry: Entry) -> str | None:
    return _text(scan, entry.lyrics_ref) if entry.lyrics_ref else entry.lyrics


def _captions(scan: _Scan, entry: Entry) -> tuple[tuple[str, ...], str] | None:
    """(final captions, where they came from), or None when the item cannot be used without one."""
    spec, texts, origin = scan.spec, (), ""
    if spec.caption_from in ("auto", "column") and entry.captions:
        texts, origin = entry.captions, f"the captions of {spec.path}"
    elif spec.caption_from in ("auto", "file") and entry.caption_ref:
        text = _text(scan, entry.caption_ref)
        if text is None:
            return None
        texts, origin = (text,), entry.caption_ref
    elif spec.caption_from == "name":
        texts, origin = (captions.from_name(entry.name),), entry.ref
    texts = tuple(t for t in texts if t.strip())
    if not texts and spec.caption is not None:
        texts, origin = (spec.caption.strip(),), scan.key("caption")
    elif not texts:
        scan.bare.append(entry)
        if not spec.trigger:
            return None
        texts, origin = ("",), scan.key("trigger")
    try:
        return captions.final(texts, spec) or ("",), origin
    except captions.NoTrigger:
        key = scan.key("trigger")
        if not any(p.where == key and p.level == "error" for p in scan.problems):  # one setting solves all of them
            text = f"{origin} says [trigger], but {key} is not set; set it to the word that should stand there."
            scan.problems.append(Problem("error", key, text))
        return None


def _bare(scan: _Scan) -> list[Problem]:
    if not scan.bare:
        return []
    one, many = NOUNS[scan.bare[0].kind]
    several = len(scan.bare) > 1
    count = f"{len(scan.bare)} {many} have no caption" if several else f"1 {one} has no caption"
    first = f"(first: {scan.bare[0].ref})" if several else f"({scan.bare[0].ref})"
    if scan.spec.trigger:
        them = "They" if several else "It"
        text = f"{count} {first}. {them} will be trained with the trigger word alone."
        return [Problem("warning", scan.key("trigger"), text)]
    if scan.spec.on_problem == "skip":
        them = "They are" if several else "It is"
        text = f"{count} {first}. {them} left out ({scan.key('on_problem')} is skip)."
        return [Problem("warning", scan.key("caption"), text)]
    beside = "beside each" if several else "beside it"
    text = f"{count} {first}; write a .txt {beside}, or set {scan.key('caption')} or {scan.key('trigger')}."
    return [Problem("error", scan.key("caption"), text)]


def long_captions(
    index: Index, datasets: Sequence[DataSet], tokens: Callable[[str], list[tuple[str, int, int]]], family: str
) -> list[Problem]:
    """Captions with more tokens than a tokenizer of the family takes: one problem per caption and its origin.

    tokens: see `Family.token_counts`; asked again for a caption that several items have.
    """
    problems: dict[tuple[str, str], Problem] = {}
    columns = (index.table.column(name).to_pylist() for name in ("captions", "caption_from", "ref", "dataset"))
    for texts, origin, ref, dataset in zip(*columns, strict=True):
        for text in texts:
            beyond = [c for c in tokens(text) if c[1] > c[2]]
            if beyond and (text, origin) not in problems:
                skip = datasets[dataset].on_problem == "skip"
                problems[text, origin] = _too_long((ref, origin, dataset, skip), beyond, family)
    return list(problems.values())


def _too_long(about: tuple[str, str, int, bool], counts: list[tuple[str, int, int]], family: str) -> Problem:
    ref, origin, dataset, skip = about
    what = " and ".join(f"{has} tokens, but {name} of {family} takes {takes}" for name, has, takes in counts)
    text, key = f"The caption of {ref} has {what}", f"data.{dataset}.on_problem"
    if skip:
        return Problem("warning", origin, f"{text}; what is beyond is cut off ({key} is skip).")
    text = f"{text}; shorten {origin}, or set {key}=skip to train with the cut caption."
    return Problem("error", origin, text, {key: "skip"})


# -- companions and gathered notes -------------------------------------------------------------------------------------


def _companions(scan: _Scan, entry: Entry, facts: dict[str, Look]) -> dict[str, Any] | None:
    """Mask, control and references as companions, or None when the item cannot be used."""
    wanted = {"mask": scan.spec.mask, "control": scan.spec.control, "reference": scan.spec.reference}
    columns = scan.spec.columns
    refs = {"mask": (entry.mask,), "control": (entry.control,), "reference": entry.references}
    found: dict[str, list[Companion]] = {}
    for name, given in refs.items():
        present = [ref for ref in given if ref]
        expected = bool(wanted[name] or getattr(columns, name))
        setting = wanted[name]
        many = len(setting) if isinstance(setting, list) else 1
        if expected and len(present) < many:
            scan.unpaired[name].append(entry)
            if name != "mask" or scan.spec.on_problem != "skip":
                return None
        if any(_bad_companion(scan, name, ref, facts) for ref in present):
            return None
        found[name] = [Companion(r, facts[r].digest, facts[r].width, facts[r].height) for r in present]
    if found["mask"] and entry.kind != "audio":
        _shape_of_mask(scan, found["mask"][0], facts[entry.ref])
    return {
        "mask": found["mask"][0] if found["mask"] else None,
        "control": found["control"][0] if found["control"] else None,
        "references": tuple(found["reference"]),
    }


def _bad_companion(scan: _Scan, name: str, ref: str, facts: dict[str, Look]) -> bool:
    if facts[ref].error:
        scan.file_problem(ref, facts[ref].error)
    elif name == "mask" and facts[ref].blank:
        scan.file_problem(ref, "is all black, so that nothing of the picture would count; paint what counts white")
    else:
        return False
    return True


def _shape_of_mask(scan: _Scan, mask: Companion, own: Look) -> None:
    if abs(mask.width * own.height / (mask.height * own.width) - 1) > 0.02:
        text = (
            f"{mask.ref} is {mask.width}x{mask.height} pixels, but its picture {own.width}x{own.height}; "
            "it is stretched to fit. Draw it in the shape of the picture if that is wrong."
        )
        scan.problems.append(Problem("warning", mask.ref, text))


def _unpaired(scan: _Scan) -> list[Problem]:
    """Items that lack a mask, control or reference; every one is named."""
    problems, skip = [], scan.key("on_problem")
    for name, entries in scan.unpaired.items():
        one, many = NOUNS[entries[0].kind]
        word = {"mask": "mask", "control": "control picture", "reference": "reference picture"}[name]
        count = f"{len(entries)} {many} have no {word}" if len(entries) > 1 else f"1 {one} has no {word}"
        names = ", ".join(e.ref for e in entries)
        where, several = getattr(scan.spec, name) or scan.spec.path, len(entries) > 1
        if scan.spec.on_problem == "skip":
            fate = ("all of them counts" if several else "the whole picture counts") if name == "mask" else (
                "they are left out" if several else "it is left out"
            )  # fmt: skip
            problems.append(Problem("warning", scan.key(name), f"{count} ({names}); {fate} ({skip} is skip)."))
            continue
        way = "let the whole of such pictures count" if name == "mask" else "leave such items out"
        text = f"{count} ({names}); put a picture of the same name into {where}, or set {skip}=skip to {way}."
        problems.append(Problem("error", scan.key(name), text, {skip: "skip"}))
    return problems


def _gather(notes: list[tuple[str, tuple[str, str], str]], noun: str) -> list[Problem]:
    """Notes on conversions: a few name every file, many of one kind are counted."""
    kinds: dict[tuple[str, str], list[tuple[str, str, str]]] = defaultdict(list)
    for name, (kind, detail), ref in notes:
        kinds[kind, "" if kind in {"animation", "pages"} else detail].append((name, ref, detail))
    problems = []
    for (kind, shared), files in kinds.items():
        one, many = SAYS[kind]
        if len(files) <= SHOWN:
            problems += [Problem("note", ref, f"{name} {one.format(detail)}") for name, ref, detail in files]
        else:
            name, ref, _ = files[0]
            problems.append(Problem("note", ref, f"{len(files)} {noun} (first: {name}) {many.format(shared)}"))
    return problems


def _copies(items: list[Item], scan: _Scan) -> list[Problem]:
    """Items with the same content: allowed, but seldom meant."""
    first: dict[str, Item] = {}
    copies = [(i, first[i.digest]) for i in items if first.setdefault(i.digest, i) is not i]
    if not copies:
        return []
    a, b = copies[0]
    one, many = NOUNS[a.kind]
    count = f"1 {one} is an exact copy" if len(copies) == 1 else f"{len(copies)} {many} are exact copies"
    text = f"{count} of another (first: {a.name} of {b.name}) and trained beside it; remove it if not meant."
    return [Problem("note", scan.key("path"), text)]
