"""Bytes by reference: files, members of archives, cells of tables, objects of cloud stores. Knows no torch.

A reference is one of

    /abs/file.png                        a file
    s3://bucket/key                      an object of an S3 store
    hf://owner/name@COMMIT/path          a file of a Hugging Face data set
    zip://CONTAINER!/member              a member of an archive; also tar://
    table://CONTAINER!/ROW/COLUMN        the bytes in a cell of a Parquet table, rows counted from 0;
                                         ROW.PLACE/COLUMN where the cell holds a list

CONTAINER is one of the first three, with % and ! in it written %25 and %21: zip:///abs/a.zip!/member,
tar://s3://bucket/x.tar!/member. Everything works from any thread and process; what failed raises `Unreadable`.
"""

from __future__ import annotations

from pathlib import Path

from . import archives, cells, remote
from .refs import Unreadable, container_of, inside, said, split, stamp

__all__ = ["Unreadable", "container_of", "inside", "local", "read", "said", "split", "stamp", "version"]


def read(ref: str) -> bytes:
    """All bytes behind a reference. Raises `Unreadable`."""
    scheme, container, inner = split(ref)
    if scheme in archives.OPENERS:
        return archives.read(scheme, container, inner)
    if scheme == "table":
        return cells.read(container, inner)
    path = local(ref)
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(ref, _why(error)) from None


def local(ref: str) -> Path:
    """A local file with these bytes, not to be changed: the file itself, else a copy in the remote cache."""
    scheme, _, _ = split(ref)
    if scheme == "file":
        return Path(ref)
    if scheme in remote.FETCHERS:
        return remote.local(ref)
    return remote.kept(ref, version(ref), lambda: read(ref))


def version(ref: str) -> str:
    """A short text that changes when the bytes do; of a member or a cell, that of its container."""
    scheme, container, _ = split(ref)
    if scheme != "file":
        return remote.version(ref) if scheme in remote.FETCHERS else version(container)
    try:
        return stamp(Path(ref).stat())
    except OSError as error:
        raise Unreadable(ref, _why(error)) from None


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is not there (any more); put it back, or correct the path"
    if isinstance(error, IsADirectoryError):
        return "is a folder; name a file"
    return f"cannot be read ({error.strerror or error}); give yourself the right to read it, and check the disk"
