"""How references are spelled, and the error for what they cannot give."""

from __future__ import annotations

import os

from ...errors import UserError

NESTED = ("zip", "tar", "table")
PLAIN = ("s3", "hf")


class Unreadable(UserError):
    """A reference whose bytes cannot be had. what: a predicate and the way out ("is empty; put ..."), without a dot."""

    def __init__(self, ref: str, what: str) -> None:
        super().__init__(f"{said(ref)} {what}.")
        self.ref, self.what = ref, what

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.ref, self.what)


def inside(kind: str, container: str, inner: str) -> str:
    """The reference of a member (kind zip or tar) or of a cell (table) in a container."""
    return f"{kind}://{container.replace('%', '%25').replace('!', '%21')}!/{inner}"


def split(ref: str) -> tuple[str, str, str]:
    """(kind, container, inner): container and inner are empty for what is not in a container."""
    scheme, found, rest = ref.partition("://")
    if found and scheme in NESTED:
        container, found, inner = rest.partition("!/")
        if found:
            return scheme, container.replace("%21", "!").replace("%25", "%"), inner
    return (scheme if found and scheme in PLAIN else "file"), "", ""


def container_of(ref: str) -> str:
    """The file or object that holds these bytes: the reference itself, or the archive or table that it is in."""
    return split(ref)[1] or ref


def said(ref: str) -> str:
    """The reference as a person reads it."""
    scheme, container, inner = split(ref)
    if scheme == "table":
        row, _, column = inner.partition("/")
        return f"row {row} (counted from 0) of {container}, column {column},"
    return f"{inner} in {container}" if inner else ref


def stamp(stat: os.stat_result) -> str:
    """The version of a local file: size, and times of change of content and of inode (which none can set by hand)."""
    return f"{stat.st_size:x}-{stat.st_mtime_ns:x}-{stat.st_ctime_ns:x}"
