"""Scan data sets once: content, size and caption of every picture, and all that is wrong with them. Knows no torch."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import Problem
from ..recipe import DataSet
from . import media
from .looks import Looks
from .sources import Found, listing

if TYPE_CHECKING:
    from ..family import Family

PLACEHOLDER = "[trigger]"
SHOWN = 3
"""Notes of one kind up to this number name every file; more are counted."""


@dataclass(frozen=True)
class Item:
    """One usable picture of a data set.

    digest and mask_digest: sha256 of the files' bytes. width, height: pixels, upright. caption: final text, trigger in.
    caption_from: the file or setting that the caption came from. on_problem, repeats, role: as in its data set.
    """

    dataset: int
    path: Path
    digest: str
    width: int
    height: int
    caption: str
    caption_from: str
    mask: Path | None = None
    mask_digest: str | None = None
    repeats: int = 1
    role: Literal["train", "validation"] = "train"
    on_problem: Literal["stop", "skip"] = "stop"


@dataclass
class Index:
    """What the data sets hold. Use `stop_on_errors(index.problems)` before training."""

    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass
class _Scan:
    """One data set being scanned."""

    number: int
    spec: DataSet
    smallest: int
    problems: list[Problem] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    bare: list[Found] = field(default_factory=list)
    """Pictures without any caption."""
    unmasked: list[Found] = field(default_factory=list)

    def key(self, name: str) -> str:
        return f"data.{self.number}.{name}"

    def file_problem(self, path: Path, what: str) -> None:
        """An error about one file, or, where the user said so, a warning that it is left out."""
        skip = self.key("on_problem")
        if self.spec.on_problem == "skip":
            self.problems.append(Problem("warning", str(path), f"{path} {what}. It is left out ({skip} is skip)."))
        else:
            text = f"{path} {what}, or set {skip}=skip to leave such files out."
            self.problems.append(Problem("error", str(path), text, {skip: "skip"}))


def scan(
    datasets: Sequence[DataSet],
    smallest: int,
    progress: Callable[[int, int], None] | None = None,
    store: Path | None = None,
) -> Index:
    """Read and decode every picture and mask of the data sets once.

    smallest: least width and height in pixels, the family's multiple. progress: called with (pictures read, pictures).
    store: a folder (`home.cache_folder()`) to remember in, so that unchanged files are not decoded again.
    Never raises for bad files: they become problems, and are left out of the items.
    """
    scans = [_Scan(number, spec, smallest) for number, spec in enumerate(datasets)]
    found: list[tuple[Found, Looks]] = []
    for one in scans:
        one.found, problems = listing(one.number, one.spec)
        one.problems += problems
        looks = Looks(store, Path(one.spec.path))
        found += [(f, looks) for f in one.found]
    seen = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, pair in enumerate(pool.map(_look, found), 1):
            seen.append(pair)
            if progress:
                progress(done, len(found))
    for looks in {id(looks): looks for _, looks in found}.values():
        looks.save()
    index, rest = Index(), iter(seen)
    for one in scans:
        index.items += _items(one, [(f, *next(rest)) for f in one.found])
        index.problems += one.problems
    return _without_training(index)


def _look(which: tuple[Found, Looks]) -> tuple[media.Look, media.Look | None]:
    found, looks = which
    return looks.at(found.path), looks.at(found.mask, "black") if found.mask else None


def _without_training(index: Index) -> Index:
    if index.items and all(i.role == "validation" for i in index.items):
        text = (
            "data has nothing to train on: data.0.role is validation; set it to train, or add a data set to train on."
        )
        index.problems.append(Problem("error", "data.0.role", text, {"data.0.role": "train"}))
    return index


def _items(scan: _Scan, looks: list[tuple[Found, media.Look, media.Look | None]]) -> list[Item]:
    notes: list[tuple[str, tuple[str, str], Path]] = []
    items = []
    for found, picture, mask in looks:
        if error := picture.error or _too_small(picture, scan.smallest):
            scan.file_problem(found.path, error)
            continue
        notes += [(found.name, note, found.path) for note in picture.notes]
        taken = _caption(scan, found)
        if taken is None:
            continue
        mask_path, fits = _mask(scan, found, picture, mask)
        if not fits:
            continue
        if mask and mask_path:
            notes += [(f"mask of {found.name}", note, mask_path) for note in mask.notes]
        items.append(
            Item(
                scan.number, found.path, picture.digest, picture.width, picture.height, *taken,
                mask_path, mask.digest if mask and mask_path else None,
                scan.spec.repeats, scan.spec.role, scan.spec.on_problem,
            )
        )  # fmt: skip
    scan.problems += _gather(notes) + _bare(scan) + _unmasked(scan) + _copies(items, scan)
    if looks and not items and not any(p.level == "error" for p in scan.problems):
        text = f"{scan.key('path')} is {scan.spec.path}, where no picture can be used; see the warnings on its files."
        scan.problems.append(Problem("error", scan.key("path"), text))
    return items


def _too_small(look: media.Look, smallest: int) -> str:
    if min(look.width, look.height) >= smallest:
        return ""
    return (
        f"is {look.width}x{look.height} pixels, but this model needs at least {smallest} on each side; "
        "use a larger picture, or remove it"
    )


# -- captions --------------------------------------------------------------------------------------------------------


def _caption(scan: _Scan, found: Found) -> tuple[str, str] | None:
    """(final caption, where it came from), or None when the picture cannot be used without one."""
    text, origin = "", ""
    if found.caption:
        try:
            text, origin = found.caption.read_text(encoding="utf-8-sig").strip(), str(found.caption)
        except UnicodeDecodeError:
            scan.file_problem(found.caption, "is not text in UTF-8; save it in that encoding")
            return None
        except OSError as error:
            scan.file_problem(found.caption, f"cannot be read ({error.strerror}); give yourself the right to read it")
            return None
    if not text and scan.spec.caption is not None:
        text, origin = scan.spec.caption.strip(), scan.key("caption")
    elif not text:
        scan.bare.append(found)
        return (scan.spec.trigger, scan.key("trigger")) if scan.spec.trigger else None
    if PLACEHOLDER in text and not scan.spec.trigger:
        key = scan.key("trigger")
        text = f"{origin} says {PLACEHOLDER}, but {key} is not set; set it to the word that should stand there."
        if not any(p.where == key and p.level == "error" for p in scan.problems):  # one setting solves all of them
            scan.problems.append(Problem("error", key, text))
        return None
    return with_trigger(text, scan.spec.trigger), origin


def with_trigger(caption: str, trigger: str | None) -> str:
    """The caption with the trigger word in it: at its placeholder, else where it stands already, else in front."""
    if not trigger:
        return caption
    if PLACEHOLDER in caption:
        return caption.replace(PLACEHOLDER, trigger)
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _bare(scan: _Scan) -> list[Problem]:
    if not scan.bare:
        return []
    several = len(scan.bare) > 1
    count = f"{len(scan.bare)} pictures have no caption" if several else "1 picture has no caption"
    first = f"(first: {scan.bare[0].path})" if several else f"({scan.bare[0].path})"
    if scan.spec.trigger:
        them = "They" if several else "It"
        text = f"{count} {first}. {them} will be trained with the trigger word alone."
        return [Problem("warning", scan.key("trigger"), text)]
    if scan.spec.on_problem == "skip":
        them = "They are" if several else "It is"
        text = f"{count} {first}. {them} left out ({scan.key('on_problem')} is skip)."
        return [Problem("warning", scan.key("caption"), text)]
    beside = "beside each" if several else "beside it"
    text = f"{count} {first}; write a .txt {beside}, or set {scan.key('caption')} or {scan.key('trigger')}."
    return [Problem("error", scan.key("caption"), text)]


def long_captions(items: Iterable[Item], family: Family, tokenizers: dict[str, Any]) -> list[Problem]:
    """Captions with more tokens than a tokenizer of the family takes: one problem per caption file or setting."""
    problems: dict[tuple[str, str], Problem] = {}
    counts: dict[str, list[tuple[str, int, int]]] = {}
    for item in items:
        if item.caption not in counts:
            counts[item.caption] = [c for c in family.token_counts(tokenizers, item.caption) if c[1] > c[2]]
        if counts[item.caption] and (item.caption, item.caption_from) not in problems:
            said = _too_long(item, counts[item.caption], family.name)
            problems[item.caption, item.caption_from] = said
    return list(problems.values())


def _too_long(item: Item, counts: list[tuple[str, int, int]], family: str) -> Problem:
    what = " and ".join(f"{has} tokens, but {name} of {family} takes {takes}" for name, has, takes in counts)
    text = f"The caption of {item.path} has {what}"
    key = f"data.{item.dataset}.on_problem"
    if item.on_problem == "skip":
        return Problem("warning", item.caption_from, f"{text}; what is beyond is cut off ({key} is skip).")
    text = f"{text}; shorten {item.caption_from}, or set {key}=skip to train with the cut caption."
    return Problem("error", item.caption_from, text, {key: "skip"})


# -- masks and gathered notes ------------------------------------------------------------------------------------------


def _mask(scan: _Scan, found: Found, picture: media.Look, mask: media.Look | None) -> tuple[Path | None, bool]:
    """(mask to use, whether the picture can be used)."""
    if not scan.spec.mask:
        return None, True
    if mask is None or found.mask is None:
        scan.unmasked.append(found)
        return None, scan.spec.on_problem == "skip"
    if mask.error:
        scan.file_problem(found.mask, mask.error)
        return None, False
    if mask.blank:
        scan.file_problem(
            found.mask, "is all black, so that nothing of the picture would count; paint what counts white"
        )
        return None, False
    if abs(mask.width * picture.height / (mask.height * picture.width) - 1) > 0.02:
        text = (
            f"{found.mask} is {mask.width}x{mask.height} pixels, but its picture {picture.width}x{picture.height}; "
            "it is stretched to fit. Draw it in the shape of the picture if that is wrong."
        )
        scan.problems.append(Problem("warning", str(found.mask), text))
    return found.mask, True


def _unmasked(scan: _Scan) -> list[Problem]:
    if not scan.unmasked:
        return []
    several = len(scan.unmasked) > 1
    count = f"{len(scan.unmasked)} pictures have no mask" if several else "1 picture has no mask"
    first = f"(first: {scan.unmasked[0].path})" if several else f"({scan.unmasked[0].path})"
    skip = scan.key("on_problem")
    if scan.spec.on_problem == "skip":
        whole = "all of them counts" if several else "the whole picture counts"
        return [Problem("warning", scan.key("mask"), f"{count} {first}; {whole} ({skip} is skip).")]
    text = (
        f"{count} {first}; put a picture of the same name into {scan.spec.mask}, or set {skip}=skip to let "
        f"the whole of such pictures count."
    )
    return [Problem("error", scan.key("mask"), text, {skip: "skip"})]


def _gather(notes: list[tuple[str, tuple[str, str], Path]]) -> list[Problem]:
    """Notes on conversions: a few name every file, many of one kind are counted."""
    kinds: dict[tuple[str, str], list[tuple[str, Path, str]]] = defaultdict(list)
    for name, (kind, detail), path in notes:
        kinds[kind, "" if kind in {"animation", "pages"} else detail].append((name, path, detail))
    problems = []
    for (kind, shared), files in kinds.items():
        one, many = media.SAYS[kind]
        if len(files) <= SHOWN:
            problems += [Problem("note", str(path), f"{name} {one.format(detail)}") for name, path, detail in files]
        else:
            name, path, _ = files[0]
            problems.append(Problem("note", str(path), f"{len(files)} pictures (first: {name}) {many.format(shared)}"))
    return problems


def _copies(items: list[Item], scan: _Scan) -> list[Problem]:
    """Pictures with the same content: allowed, but seldom meant."""
    first: dict[str, Item] = {}
    copies = [(i, first[i.digest]) for i in items if first.setdefault(i.digest, i) is not i]
    if not copies:
        return []
    a, b = copies[0]
    count = "1 picture is an exact copy" if len(copies) == 1 else f"{len(copies)} pictures are exact copies"
    text = f"{count} of another (first: {a.path.name} of {b.path.name}) and trained beside it; remove it if not meant."
    return [Problem("note", scan.key("path"), text)]
