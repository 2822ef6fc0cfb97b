"""List data sets of every kind: folders, zips, tables, webdataset shards, the Hub, S3 stores. Opens no picture.

Nothing raises for bad data: what cannot be used is a problem with the way out, the rest of the data set is listed.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ...recipe import DataSet
from .. import stores
from ..item import Entry, Listing
from . import archive, folder, group, hub, s3, table
from .common import Report, Tree, natural, plural
from .sheet import ENDINGS

__all__ = ["listing"]

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")


def listing(number: int, spec: DataSet) -> Listing:
    """The items of data set `number` of a recipe, in natural order or that of their table, and what was noticed."""
    report = Report(number, spec)
    try:
        entries = _listed(report)
    except stores.Unreadable as error:
        report.say("error", report.key("path"), f"{report.key('path')} is {spec.path}; {error}")
        entries = []
    except UserError as error:
        report.say("error", report.key("path"), str(error))
        entries = []
    _settings_without_use(report)
    return Listing(entries, report.problems)


def _listed(report: Report) -> list[Entry]:
    trees = _companions(report)
    if trees is None:
        return []
    pairs = group.Pairs(report, trees)
    path = report.spec.path
    if path.lower().endswith(PACKED):
        report.wrong("path", "an archive that cannot be read in place; unpack it, or pack it as .zip or plain .tar.")
        return []
    if path.lower().endswith((".tar", *ENDINGS)) and not Path(path).is_dir():
        entries = _files(report, path, pairs)
    else:
        tree = _tree(report, "path", path)
        entries = _of_tree(report, tree, pairs) if tree else []
    pairs.say(plural(e.kind for e in entries)[0])
    return entries


def _files(report: Report, path: str, pairs: group.Pairs) -> list[Entry]:
    """The items of shards or tables that a path with or without a range names."""
    try:
        paths = archive.expand(path) if not Path(path).is_file() else [path]
    except ValueError as error:
        report.wrong("path", f"{error}.")
        return []
    there = [p for p in paths if "://" in p or Path(p).is_file()]
    lacking = [p for p in paths if p not in set(there)] if len(there) < len(paths) else []
    if not there:
        report.wrong("path", "which does not exist; correct the path.")
        return []
    report.refuse(path, [(p, "does not exist; put it back, or correct the range") for p in lacking])
    if path.lower().endswith(".tar"):
        return _samples(report, archive.shards(report, path, there), pairs)
    return _rows(report, there, pairs, lambda ref: table.beside(report, ref))


def _rows(report: Report, refs: list[str], pairs: group.Pairs, find: table.Finder) -> list[Entry]:
    entries = table.from_sheets(report, refs, find, pairs.add)
    if not entries and not any(p.level == "error" for p in report.problems):
        report.wrong("path", "which has no row that can be used; see the warnings on its rows.")
    return entries


def _samples(report: Report, tree: Tree, pairs: group.Pairs) -> list[Entry]:
    entries = group.items(report, tree, pairs, samples=True)
    if not entries:
        group.nothing(report, tree)
    return entries


def _of_tree(report: Report, tree: Tree, pairs: group.Pairs) -> list[Entry]:
    """The items of a folder, zip, bucket or Hub data set: its media files, else its tables, else its shards."""
    media = any(group.iter_media(tree))
    shards = sorted((f for f in tree.files if f.name.endswith(hub.SHARDS)), key=lambda f: natural(f.name))
    tables = any(f.name.rsplit("/", 1)[-1].startswith("metadata.") for f in tree.files)
    if (
        tree.nests
        and (tree.where.startswith("hf://") or (tables if media else shards))
        and not hub.choose(report, tree)
    ):
        return []
    if not media and shards and tree.nests:
        kept = {f.ref for f in tree.files}
        refs = [f.ref for f in shards if f.ref in kept]
        names = {f.ref: f.name for f in tree.files}
        parquet = [r for r in refs if r.endswith(".parquet")]
        if parquet:
            return _rows(report, parquet, pairs, lambda ref: table.within(tree, names[ref]))
        return _samples(report, archive.shards(report, tree.where, refs), pairs)
    entries = group.items(report, tree, pairs)
    if not entries:
        group.nothing(report, tree)
    return entries


def _companions(report: Report) -> list[tuple[str, Tree]] | None:
    """(setting, tree) for each folder of masks, control and reference pictures; None when one cannot be used."""
    trees = []
    for setting in group.PAIRS:
        value = getattr(report.spec, setting)
        for path in [value] if isinstance(value, str) else value or []:
            tree = _tree(report, setting, path)
            if tree is None:
                return None
            trees.append((setting, tree))
    return trees


def _tree(report: Report, setting: str, path: str) -> Tree | None:
    """The files of a folder, zip, S3 prefix or Hub data set; None, and said, when a folder cannot be used."""
    if path.startswith("s3://") and not path.lower().endswith(".zip"):
        tree = s3.objects(path)
        inside = [f"{p.rstrip('/')}/" for p in _paths_of_companions(report) if p != path and p.startswith(path)]
        tree.files = [f for f in tree.files if not f.ref.startswith(tuple(inside))]
        return tree
    if path.startswith("hf://"):
        return hub.remote(path)
    if path.lower().endswith(".zip") and ("://" in path or Path(path).is_file()):
        return archive.zipped(report, path)
    root = str(Path(path))
    if why := folder.missing(root):
        report.say("error", report.key(setting), f"{report.key(setting)} is {root}, {why}")
        return None
    return folder.walk(report, root, [p for p in _paths_of_companions(report) if p != path and "://" not in p])


def _paths_of_companions(report: Report) -> list[str]:
    spec = report.spec
    references = [spec.reference] if isinstance(spec.reference, str) else spec.reference or []
    return [p for p in (spec.mask, spec.control, *references) if p]


def _settings_without_use(report: Report) -> None:
    """A setting that did nothing is said."""
    columns = [f"columns.{k}" for k, v in report.spec.columns.model_dump().items() if v]
    for setting, given in (("columns", columns[:1]), ("split", ["split"] if report.spec.split != "train" else [])):
        if given and setting not in report.used and not any(p.level == "error" for p in report.problems):
            has = "table" if setting == "columns" else "splits"
            key = report.key(given[0])
            report.say("warning", key, f"{key} is set, but {report.spec.path} has no {has}; remove the setting.")
