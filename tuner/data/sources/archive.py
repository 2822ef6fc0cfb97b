"""The members of zip archives and of webdataset shards (tar), read in place."""

from __future__ import annotations

import re

from .. import stores
from ..stores import archives
from .common import File, Report, Tree

MOST = 100_000
"""Shards that one path may name."""


def zipped(report: Report, ref: str) -> Tree:
    """The members of a zip archive. Raises `stores.Unreadable` when it is none."""
    tree = Tree(ref, nests=False)
    _members(report, tree, "zip", ref, "")
    tree.unwrap()
    return tree


def shards(report: Report, where: str, refs: list[str]) -> Tree:
    """The members of webdataset shards; of several, each name begins with that of its shard."""
    tree = Tree(where, nests=False)
    for ref in refs:
        try:
            _members(report, tree, "tar", ref, f"{ref.rsplit('/', 1)[-1]}/" if len(refs) > 1 else "")
        except stores.Unreadable as error:
            report.unusable(ref, f"{ref} {error.what}")
    return tree


def _members(report: Report, tree: Tree, kind: str, ref: str, prefix: str) -> None:
    archive = archives.opened(kind, ref)
    version = stores.version(ref)
    for name in archive.members:
        tree.add(File(prefix + name, stores.inside(kind, ref, name), version))
    report.refuse(ref, archive.refused)
    if archive.twice:
        count = "1 name" if len(archive.twice) == 1 else f"{len(archive.twice)} names"
        text = f"{ref} has {count} more than once (first: {archive.twice[0]}); the last of each is used. Pack it anew."
        report.say("warning", ref, text)
    for what in archive.notes:
        report.unusable(ref, f"{ref} {what}")


def expand(path: str) -> list[str]:
    """All paths that a path with ranges such as {000..099} names; a path without any names itself.

    Raises `ValueError` with the reason when a range cannot be counted.
    """
    paths = [path]
    while found := re.search(r"\{(\d+)\.\.(\d+)\}", paths[0]):
        first, last = found[1], found[2]
        numbers = range(int(first), int(last) + 1)
        if not numbers or len(numbers) * len(paths) > MOST:
            raise ValueError(f"where {found[0]} names {len(numbers)} files; write it as {{000..099}}, smallest first")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        texts = [str(n).zfill(width) for n in numbers]
        paths = [p.replace(found[0], t, 1) for p in paths for t in texts]
    return paths
