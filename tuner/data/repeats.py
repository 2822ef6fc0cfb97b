"""How often single items are seen in one epoch, where `data.N.repeats_of` names them. Knows no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import Problem
from ..recipe import DataSet

if TYPE_CHECKING:
    from .index import Index


def of(index: Index, datasets: Sequence[DataSet]) -> np.ndarray:
    """Repeats of every row: int64 [rows]."""
    numbers = index.numbers("dataset").astype(np.int64)
    found = np.array([spec.repeats for spec in datasets] or [1], np.int64)[numbers]
    for number, spec in enumerate(datasets):
        if spec.repeats_of:
            rows, each = np.flatnonzero(numbers == number), by_name(spec)
            found[rows] = [each(name) for name in index.table.column("name").take(rows).to_pylist()]
    return found


def by_name(spec: DataSet) -> Callable[[str], int]:
    """Name of an item → its repeats: by its exact name, else by the first pattern that fits, else its data set's."""
    patterns = [(_pattern(name), times) for name, times in spec.repeats_of.items() if "*" in name]

    def each(name: str) -> int:
        if (times := spec.repeats_of.get(name)) is not None:
            return times
        return next((times for pattern, times in patterns if pattern.fullmatch(name)), spec.repeats)

    return each


def unmatched(number: int, spec: DataSet, names: Sequence[str]) -> Iterator[Problem]:
    """One problem for the names and patterns that fit no item: what was meant would not be trained."""
    there = set(names)
    lost = [p for p in spec.repeats_of if p not in there and not _fits(p, names)]
    if not lost or not names:
        return
    key = f"data.{number}.repeats_of"
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    text = f"{key} names {lost[0]}{more}, but {spec.path} holds no such item; correct the name or take it out."
    yield Problem("error", key, text, {key: {p: n for p, n in spec.repeats_of.items() if p not in lost}})


def _fits(name: str, names: Sequence[str]) -> bool:
    pattern = _pattern(name)
    return "*" in name and any(pattern.fullmatch(one) for one in names)


def _pattern(name: str) -> re.Pattern[str]:
    """Only `*` has a meaning: brackets and question marks are common in file names."""
    return re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)
