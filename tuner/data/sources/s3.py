"""The objects below a prefix of an S3 store."""

from __future__ import annotations

from ..stores import s3
from .common import File, Tree


def objects(ref: str) -> Tree:
    """Every object below `s3://bucket/prefix`. Raises `stores.Unreadable`."""
    start = len(ref.rstrip("/")) + 1
    tree = Tree(ref)
    for found, etag in s3.below(ref):
        tree.add(File(found[start:], found, etag))
    return tree
