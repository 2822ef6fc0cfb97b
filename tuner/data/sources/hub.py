"""Hugging Face data sets: their files on the Hub, and the files of one split."""

from __future__ import annotations

import re
from collections import Counter

from ..stores import hub
from .common import File, Report, Tree, folder_of

SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""The words in names of folders and shards that the Hub takes for splits."""
SHARDS = (".parquet", ".tar")


def remote(ref: str) -> Tree:
    """The files of `hf://owner/name[@revision][/folder]`. Raises `stores.Unreadable`."""
    tree, start = Tree(ref), ref.rstrip("/")
    below = hub.parts(start)[2]
    for found in hub.files(start):
        _, commit, path = hub.parts(found)
        tree.add(File(path[len(below) :].lstrip("/"), found, commit))
    return tree


def split_of(name: str) -> str:
    """The split that a file belongs to by its name, "" when the name says nothing."""
    *folders, file = name.split("/")
    if name.endswith(SHARDS):
        if found := re.fullmatch(r"(.+)-\d{4,}-of-\d{4,}(?:-[0-9a-f]+)?\.\w+", file):
            return SPLITS.get(found[1], found[1])
        folders += re.split(r"[\W_]+", file)
    return next((SPLITS[f.lower()] for f in folders if f.lower() in SPLITS), "")


def choose(report: Report, tree: Tree) -> bool:
    """Leave only the files of the wanted split, and say how many others there are. False when there are none."""
    report.used.add("split")
    wanted = SPLITS.get(report.spec.split, report.spec.split)
    of = {f.name: split_of(f.name) for f in tree.files}
    there = Counter(s for s in of.values() if s) or Counter({"train": len(of)})
    if wanted not in there:
        names = ", ".join(sorted(there))
        report.wrong("split", f"which {tree.where} does not have; set it to one of these: {names}.")
        return False
    if wanted in of.values():
        media = [f for f in tree.files if of[f.name] in ("", wanted)]
        others = ", ".join(f"{n} of {s}" for s, n in sorted(there.items()) if s != wanted)
        if others:
            text = f"{tree.where}: only files of the split {wanted} are used, not {others}; set {report.key('split')}."
            report.say("note", report.key("split"), text)
        tree.files = media
    folders = sorted({_config(f.name) for f in tree.files if f.name.endswith(SHARDS)})
    if len(folders) > 1:
        names = ", ".join(f or "(top)" for f in folders)
        report.wrong("path", f"which holds several data sets ({names}); add the folder of one to the path.")
        return False
    return True


def _config(name: str) -> str:
    parts = [p for p in folder_of(name).split("/") if p != "data" and p.lower() not in SPLITS]
    return "/".join(parts)
