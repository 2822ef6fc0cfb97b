"""Work of other processes, made ahead of its use; their errors arrive in their own words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..errors import UserError


@dataclass(frozen=True)
class Failure:
    """What a data set yields instead of raising a `UserError`, which would arrive wrapped in a traceback."""

    text: str


def ahead(data: Dataset[Any], workers: int) -> Iterator[Any]:
    """Everything that `data` yields, in order. workers: processes; 0: this thread, nothing ahead.

    Raises `UserError` in place of a `Failure`, and when a process was ended from outside. The processes end with the
    iterator.
    """
    try:
        for one in DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None):
            if isinstance(one, Failure):
                raise UserError(one.text)
            yield one
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"A process that prepares data has died, most often for lack of memory ({str(error).splitlines()[0]}). "
            "Close other programs, or use fewer workers, and start again or resume: what is cached stays."
        ) from None
