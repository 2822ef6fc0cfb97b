"""CSV, JSONL and Parquet files as rows of plain values; the bytes in a Parquet table stay where they are."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import stores
from ..stores import cells

ENDINGS = (".csv", ".jsonl", ".parquet")
BATCH = 65536
"""Rows of a Parquet table that are plain values at a time."""
Refuse = Callable[[str, str], None]
"""Called with (place in the table, why) for each row that cannot be used."""


class Held(NamedTuple):
    """A cell with bytes (not read here). place: ROW or ROW.PLACE of its reference. path: the name that it came with."""

    place: str
    path: str
    there: bool


@dataclass
class Sheet:
    """A table. kind: what it holds by its own metadata (a column → image, video, audio). column: of a cell's row."""

    ref: str
    columns: list[str]
    rows: Callable[[list[str], Refuse], Iterator[tuple[str, dict[str, Any]]]]
    """(columns, refuse) → (place as people say it, values by column) for each row."""
    binary: frozenset[str] = frozenset()
    """Columns of bytes."""
    kinds: dict[str, str] | None = None


def open_sheet(ref: str) -> Sheet:
    """The table at a reference (a file, an object, or a small member of an archive). Raises `stores.Unreadable`."""
    if ref.lower().endswith(".parquet"):
        return _parquet(ref)
    path = stores.local(ref)
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise stores.Unreadable(ref, f"cannot be opened ({error.strerror}); put it back, or correct the path") from None
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise stores.Unreadable(ref, "is text in UTF-16; save it in UTF-8")
    return _jsonl(ref, path) if ref.lower().endswith(".jsonl") else _csv(ref, path)


# -- CSV ---------------------------------------------------------------------------------------------------------------


def _csv(ref: str, path: Path) -> Sheet:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
    separator = max(",;\t", key=first.count)
    try:
        columns = [c.strip() for c in next(csv.reader([first], delimiter=separator, strict=True), [])]
    except csv.Error:
        columns = []
    if not any(columns):
        raise stores.Unreadable(ref, "has no first line with the names of its columns; add one, such as file_name,text")
    if len(set(columns)) < len(columns):
        twice = next(c for c in columns if columns.count(c) > 1)
        raise stores.Unreadable(ref, f"has two columns called {twice!r}; rename one")

    def rows(wanted: list[str], refuse: Refuse) -> Iterator[tuple[str, dict[str, Any]]]:
        places = [(c, columns.index(c)) for c in wanted]
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=separator, strict=True)  # an open quote would eat rows
            next(reader)
            for place, cells in _csv_rows(reader, refuse):
                if len(cells) > len(columns):
                    many = (
                        f"has {len(cells)} values for {len(columns)} columns; put quotes around text with {separator!r}"
                    )
                    refuse(place, many)
                elif not _is_text("".join(cells)):
                    refuse(place, "is not text in UTF-8; save the table in that encoding")
                else:
                    yield place, {c: cells[n] if n < len(cells) else None for c, n in places}

    return Sheet(ref, columns, rows)


def _csv_rows(reader: Any, refuse: Refuse) -> Iterator[tuple[str, list[str]]]:
    while True:
        first = reader.line_num + 1
        place = f"line {first}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > first:
                place = f"everything from line {first} to {reader.line_num}"
            refuse(place, f"is not CSV ({error}); look for a quote that is never closed, or not doubled inside a text")
            continue
        if cells:
            yield place, cells


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# -- JSONL -------------------------------------------------------------------------------------------------------------


def _jsonl(ref: str, path: Path) -> Sheet:
    def rows(wanted: list[str], refuse: Refuse) -> Iterator[tuple[str, dict[str, Any]]]:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip(b" \t\r\n\xef\xbb\xbf"):
                    continue
                try:
                    value = json.loads(line.decode("utf-8-sig"))
                except UnicodeDecodeError:
                    refuse(f"line {number}", "is not text in UTF-8; save the table in that encoding")
                except (ValueError, RecursionError):
                    refuse(f"line {number}", "is not JSON; correct it, or remove it")
                else:
                    if isinstance(value, dict):
                        yield f"line {number}", {c: value.get(c) for c in wanted} if wanted else value
                    else:
                        refuse(
                            f"line {number}", 'is not a JSON object such as {"file_name": ..., "text": ...}; write one'
                        )

    columns: dict[str, None] = {}
    for number, (_, value) in enumerate(rows([], lambda *_: None)):
        columns |= dict.fromkeys(value)
        if number > 100:  # names that first appear later are only of use when a setting names them
            break
    return Sheet(ref, list(columns), rows)


# -- Parquet -----------------------------------------------------------------------------------------------------------


def _parquet(ref: str) -> Sheet:
    import pyarrow as pa  # noqa: PLC0415  (only Parquet needs it)

    packed = stores.container_of(ref) != ref
    table = cells.opened(str(stores.local(ref)) if packed else ref)[0]
    schema = table.file.schema_arrow
    binary = frozenset(f.name for f in schema if _holds_bytes(f.type, pa))

    def rows(wanted: list[str], refuse: Refuse) -> Iterator[tuple[str, dict[str, Any]]]:
        for group, first in enumerate(table.starts):
            parts = [_values(table, group, first, c, c in binary) for c in wanted]
            number = first
            try:
                for number, row in enumerate(zip(*parts, strict=True), first):
                    yield f"row {number}", dict(zip(wanted, row, strict=True))
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                refuse(f"rows {number} and on", f"cannot be read ({cells.first_line(error)}); write the table anew")

    return Sheet(ref, schema.names, rows, binary, _features(schema.metadata))


def _holds_bytes(kind: Any, pa: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    """What Hugging Face's `datasets` wrote about the columns: a column → image, video or audio."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {c: f["_type"].lower() for c, f in features.items() if isinstance(f, dict) and "_type" in f}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _values(table: cells.Table, group: int, first: int, column: str, binary: bool) -> Iterator[Any]:
    """The values of a column of a row group, one by one."""
    import pyarrow as pa  # noqa: PLC0415

    if not binary:
        for batch in table.file.iter_batches(BATCH, row_groups=[group], columns=[column], use_threads=False):
            yield from batch.column(0).to_pylist()
        return
    kind = table.file.schema_arrow.field(column).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _held_lists(table, group, first, column)
        return
    struct = pa.types.is_struct(kind)
    there = _there(table, group, f"{column}.bytes" if struct else column)
    if struct and kind.get_field_index("path") >= 0:
        batches = table.file.iter_batches(BATCH, row_groups=[group], columns=[f"{column}.path"], use_threads=False)
        paths = (str((v or {}).get("path") or "") for b in batches for v in b.column(0).to_pylist())
    else:
        paths = ("" for _ in range(table.file.metadata.row_group(group).num_rows))
    for number, (path, full) in enumerate(zip(paths, there, strict=True), first):
        yield Held(str(number), path, full)


def _there(table: cells.Table, group: int, leaf: str) -> Iterator[bool]:
    """Whether each cell holds bytes: from the statistics where they tell, else by reading a few rows at a time."""
    data = table.file.metadata.row_group(group)
    chunk = next(c for c in map(data.column, range(data.num_columns)) if c.path_in_schema == leaf)
    nulls = chunk.statistics.null_count if chunk.statistics and chunk.statistics.has_null_count else -1
    if nulls in (0, data.num_rows):
        yield from (nulls == 0 for _ in range(data.num_rows))
        return
    for batch in table.file.iter_batches(64, row_groups=[group], columns=[leaf], use_threads=False):
        column = batch.column(0)
        yield from (column.field("bytes") if leaf.endswith(".bytes") else column).is_valid().to_pylist()


def _held_lists(table: cells.Table, group: int, first: int, column: str) -> Iterator[list[Held]]:
    number = first
    for batch in table.file.iter_batches(16, row_groups=[group], columns=[column], use_threads=False):
        for cell in batch.column(0).to_pylist():
            items = [v if isinstance(v, dict) else {"bytes": v} for v in cell or ()]
            yield [
                Held(f"{number}.{n}", str(v.get("path") or ""), v.get("bytes") is not None) for n, v in enumerate(items)
            ]
            number += 1
