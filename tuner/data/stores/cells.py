"""Cells of Parquet tables that hold the bytes of a picture, video or sound; a row group is decoded at a time."""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from . import remote
from .refs import Unreadable, inside

BUDGET = 256 * 2**20
"""Bytes of decoded columns kept per process; the newest stays whatever its size."""
KEPT = 64
"""Tables held open per process."""


class Table:
    """An open Parquet file. starts: first row of each row group. Raises `Unreadable`."""

    def __init__(self, ref: str, path: Path) -> None:
        import pyarrow as pa  # noqa: PLC0415  (only tables need it)
        import pyarrow.parquet as pq  # noqa: PLC0415

        try:
            self.file = pq.ParquetFile(path)  # not memory-mapped: a file cut while in use must not kill us
        except (pa.ArrowException, OSError) as error:
            what = f"is not a Parquet table, or is damaged or cut off ({first_line(error)}); write or copy it anew"
            raise Unreadable(ref, what) from None
        groups = [self.file.metadata.row_group(n).num_rows for n in range(self.file.metadata.num_row_groups)]
        self.starts = list(itertools.accumulate(groups, initial=0))[:-1]
        self.rows, self.ref, self.lock = sum(groups), ref, threading.Lock()

    def column(self, group: int, column: str) -> Any:
        """A column of a row group as an arrow array; decoded by one thread at a time."""
        import pyarrow as pa  # noqa: PLC0415

        try:
            with self.lock:
                return self.file.read_row_group(group, columns=[column], use_threads=False).column(column)
        except (pa.ArrowException, OSError, KeyError) as error:
            where = inside("table", self.ref, f"{self.starts[group]}/{column}")
            raise Unreadable(where, f"cannot be read ({first_line(error)}); write or copy the table anew") from None


def first_line(error: Exception) -> str:
    """What a library said, short enough for a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


_tables: OrderedDict[tuple[str, str], Table] = OrderedDict()
_columns: OrderedDict[tuple[str, str, int, str], Any] = OrderedDict()
_lock = threading.Lock()


def opened(container: str) -> tuple[Table, str]:
    """(the table at a reference, its version)."""
    path, version = remote.held(container)
    key = container, version
    with _lock:
        if key in _tables:
            _tables.move_to_end(key)
            return _tables[key], version
    table = Table(container, path)
    with _lock:
        _tables[key] = table
        while len(_tables) > KEPT:
            _tables.popitem(last=False)
    return table, version


def read(container: str, inner: str) -> bytes:
    """The bytes in a cell. Raises `Unreadable`."""
    place, _, column = inner.partition("/")
    row, _, item = place.partition(".")
    table, version = opened(container)
    ref = inside("table", container, inner)
    if not row.isdigit() or int(row) >= table.rows:
        raise Unreadable(ref, f"does not exist, as the table has {table.rows} rows; list the data anew")
    group = bisect.bisect_right(table.starts, int(row)) - 1
    value = _column(table, version, group, column)[int(row) - table.starts[group]].as_py()
    if item:
        value = value[int(item)] if isinstance(value, list) and int(item) < len(value) else None
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise Unreadable(ref, "holds no bytes; write the table anew")
    return value


def _column(table: Table, version: str, group: int, column: str) -> Any:
    key = table.ref, version, group, column
    with _lock:
        if key in _columns:
            _columns.move_to_end(key)
            return _columns[key]
    values = table.column(group, column)
    with _lock:
        _columns[key] = values
        while len(_columns) > 1 and sum(v.nbytes for v in _columns.values()) > BUDGET:
            _columns.popitem(last=False)
    return values


def _after_fork() -> None:
    """Nothing that another thread may hold at the moment of the fork is used by the child."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _tables.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
