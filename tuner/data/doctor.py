"""The dataset doctor: looks at every item once and says what is odd, and what would help. It changes no file.

Knows no torch. How the limits were measured stands in the sentences below the constants: on 21 photographs (among
them the sample pictures of scikit-image and scikit-learn) and 29 drawings and emoji, each sharp and blurred.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import av
import imagehash
import numpy as np
from PIL import Image, ImageOps

from ..errors import Problem
from ..recipe import MediaSpec, Recipe
from . import media, repeats, stores, video
from .container import TROUBLE, container
from .item import Item

EDGE = 512
"""Pictures are measured at this longest edge in pixels, so that limits mean the same for all; never enlarged."""
SHARP = 0.1
"""Least sharpness (see `_sharpness`). Sharp photographs and drawings had 0.30 and more, a motion-blurred one 0.15;
photographs under a Gaussian blur of 1/150 of their longest edge had 0.09 and less."""
NEAR = 6
"""Most bits (of 64) in which perceptual hashes of look-alikes differ. Copies saved again, resized, brightened or cut by
1 % at each side differed by 0 to 2 bits in nine cases of ten (8 after the cut); two pictures of different things by 16
or more among 1,225 pairs."""
COLOURS = 40.0
"""Most mean difference (of 255) of the 8x8 thumbnails of look-alikes: the hash sees no colour. Copies as above had 34
and less, different things with like hashes 50 and more."""
FLAT = 10
DARK, BRIGHT = 40, 215
"""Grey values of 255: everything but the brightest (darkest) 1 % of the picture is darker (brighter)."""
SILENT = 0.001
"""Loudest sample of a silent sound, where 1 is full scale (-60 dB)."""
STILL = 5
"""Most difference (of 255) of any of the 32x32 mean greys between frames of a video in which nothing moves. Compression
drifts by 1 or 2; a small thing that moves changes the part where it is by far more."""

SHAPES = {
    "1:3": 1 / 3, "1:2": 1 / 2, "9:16": 9 / 16, "2:3": 2 / 3, "3:4": 3 / 4, "4:5": 4 / 5, "1:1": 1.0,
    "5:4": 5 / 4, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "2:1": 2.0, "3:1": 3.0,
}  # fmt: skip
SECONDS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
MANY_VIEWS = 500
"""A rule of thumb: adapters usually know a picture by heart after one or two hundred views."""
FEW_SHARE = 4
"""How many times larger one data set's share of the steps may be than another's before it is said."""

KINDS = {"image": ("picture", "pictures"), "video": ("video", "videos"), "audio": ("sound", "sounds")}
Name = tuple[int, str]
"""Number of the data set, name of the item in it."""


@dataclass(frozen=True)
class Finding:
    """Something odd: a plain sentence, the items it is about (or groups of them), and recipe values that would help."""

    kind: str
    level: Literal["warning", "note"]
    text: str
    items: tuple[Name, ...] = ()
    groups: tuple[tuple[Name, ...], ...] = ()
    remedy: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain JSON values."""
        return {
            "kind": self.kind,
            "level": self.level,
            "text": self.text,
            "items": [_plain_name(n) for n in self.items],
            "groups": [[_plain_name(n) for n in group] for group in self.groups],
            "remedy": self.remedy,
        }


@dataclass
class Report:
    """What an examination found. kinds: items of each kind. shapes, lengths: label → items, empty ones left out.

    size: median of the square root of width x height in pixels, 0 without pictures.
    """

    kinds: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    size: int = 0
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "kinds": self.kinds, "shapes": self.shapes, "lengths": self.lengths, "size": self.size,
            "findings": [f.as_dict() for f in self.findings],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look at an item told. low, high: grey values of 255 that 1 % are below and above. hash: of 64 bits."""

    error: str = ""
    sharpness: float = 1.0
    low: int = 0
    high: int = 255
    hash: int | None = None
    colours: bytes = b""
    silent: bool = False
    still: bool = False

    @property
    def flat(self) -> bool:
        """Whether nearly the whole picture has one brightness."""
        return self.high - self.low < FLAT


def report(
    items: Sequence[Item],
    problems: Sequence[Problem],
    recipe: Recipe,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Everything that `tuner check --data` tells, as plain JSON values; `plain` makes text of it.

    items, problems: of the index. recipe: with the resolutions that will be used. progress: (looked at, all).
    """
    sizes = [max(recipe.media.size or (0,))] if recipe.media.fit == "exact" else recipe.media.resolutions or []
    found = examine(items, sizes, progress, recipe.media)
    found.findings += [
        *_unusable(problems),
        *_leaks(items, recipe),
        *_triggers(items, recipe),
        *_sharing(items, recipe),
    ]
    found.findings += _resolution(found.size, recipe)
    found.findings.sort(key=lambda f: f.level == "note")
    return {
        "ok": not any(f.level == "warning" for f in found.findings),
        "items": len(items),
        **found.as_dict(),
        "views": _views(items, recipe),
        "problems": [p.as_dict() for p in problems],
    }


def examine(
    items: Sequence[Item],
    resolutions: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
    spec: MediaSpec | None = None,
) -> Report:
    """Look at every item once, in threads, and report what is odd. Reads only.

    resolutions: edges in pixels that items will be scaled to, as `spec.fit` says (default: by area).
    """
    by_digest: dict[str, Item] = {}
    for item in items:
        by_digest.setdefault(item.digest, item)
    seen: dict[str, Seen] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (digest, one) in enumerate(zip(by_digest, pool.map(_look, by_digest.values()), strict=True), 1):
            seen[digest] = one
            if progress:
                progress(done, len(by_digest))
    sized = [i for i in items if i.width]
    out = Report(kinds=dict(Counter(str(i.kind) for i in items)))
    out.shapes = _ordered(Counter(_shape(i.width, i.height) for i in sized), SHAPES)
    out.lengths = _ordered(Counter(_length(i.seconds) for i in items if i.kind != "image"), map(_label, SECONDS))
    out.size = int(np.median([(i.width * i.height) ** 0.5 for i in sized])) if sized else 0
    out.findings = [
        *_failed(items, seen),
        *_copies(items),
        *_look_alikes(list(by_digest.values()), seen),
        *_odd(items, seen),
        *_small(sized, resolutions, spec or MediaSpec()),
        *_captions(items),
    ]
    return out


def plain(found: dict[str, Any]) -> str:
    """The report for a terminal."""
    counts = ", ".join(f"{n} {KINDS[kind][n != 1]}" for kind, n in found["kinds"].items())
    lines = [f"{counts or 'No items'}. Only looked at; no file was changed.", ""]
    for finding in found["findings"]:
        lines.append(f"{'look' if finding['level'] == 'warning' else 'note'}  {finding['text']}")
        remedy = " ".join(f"{k}={v}".replace(" ", "") for k, v in finding["remedy"].items())
        lines += [f"      could help: {remedy}"] if remedy else []
    lines += [] if found["findings"] else ["Nothing odd was found."]
    for title, counted in (("Shapes", found["shapes"]), ("Lengths", found["lengths"])):
        widest = max(counted.values(), default=1)
        lines += ["", f"{title}:"] if counted else []
        lines += [f"  {k:>10}  {n:>6}  {'#' * max(1, round(30 * n / widest))}" for k, n in counted.items()]
    if found["size"]:
        lines += ["", f"Half of the items are larger than {found['size']} x {found['size']} pixels (by area)."]
    lines += [
        f"data.{v['dataset']}: {v['items']} items, {v['share']:.0%} of the steps, each seen {v['views']:.1f} times."
        for v in found["views"]
    ]
    return "\n".join(lines) + "\n"


# -- looking -----------------------------------------------------------------------------------------------------------


def _look(item: Item) -> Seen:
    try:
        if item.kind == "audio":
            return Seen(silent=_silent(item))
        if item.kind == "image":
            return _measure(_reduced(stores.read(item.ref)))
        frames = video.stills(stores.local(item.ref), 5)
        one = _measure(frames[len(frames) // 2].copy())
        greys = [np.asarray(f.convert("L").resize((32, 32), Image.Resampling.BOX), np.int16) for f in frames]
        still = len(greys) > 1 and all(np.abs(grey - greys[0]).max() <= STILL for grey in greys[1:])
        silent = item.rate > 0 and _silent(item)
        return Seen(one.error, one.sharpness, one.low, one.high, one.hash, one.colours, silent, still)
    except stores.Unreadable as error:
        return Seen(error=error.what)
    except media.Unusable as error:
        return Seen(error=str(error))
    except (*media.BROKEN, *TROUBLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Seen(error=f"cannot be decoded ({error}); save it again, or remove it")


def _reduced(data: bytes) -> Image.Image:
    """The picture, upright and RGB. JPEGs are decoded at a fraction of their size, in a fraction of the time."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            image.draft(image.mode, (EDGE, EDGE))
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    return media.decode(data).image


def _measure(image: Image.Image) -> Seen:
    image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    grey = np.asarray(image.convert("L"), np.float32)
    low, high = np.percentile(grey, (1, 99))
    one = Seen(low=int(low), high=int(high))
    if one.flat:
        return one
    key = int(str(imagehash.phash(image)), 16)
    colours = image.convert("RGB").resize((8, 8), Image.Resampling.BOX).tobytes()
    return Seen(sharpness=_sharpness(grey, float(high - low)), low=int(low), high=int(high), hash=key, colours=colours)


def _sharpness(grey: np.ndarray, contrast: float) -> float:
    """How strong the sharpest edges are for the contrast of the picture: the 99.5th percentile of the Laplacian's
    absolute value by the range of grey values; about 1 for a sharp edge, falling with the square of the blur.

    The usual variance of the Laplacian calls flat artwork and fog blurred, because most of them has no edges at all.
    """
    if min(grey.shape) < 3:
        return 1.0
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(np.percentile(np.abs(edges), 99.5)) / contrast


def _silent(item: Item) -> bool:
    """Whether no sample is louder than `SILENT`. Stops at the first one that is."""
    to_float = av.AudioResampler(format="flt", layout="mono")
    with container(stores.local(item.ref)) as held:
        if not held.streams.audio:
            return False
        for frame in held.decode(audio=0):
            for part in to_float.resample(frame):
                if np.abs(part.to_ndarray()).max(initial=0) > SILENT:
                    return False
    return True


# -- what was seen -----------------------------------------------------------------------------------------------------

ODD: dict[str, tuple[Callable[[Seen], bool], str, str, str]] = {
    "blurred": (
        lambda s: not s.flat and s.sharpness < SHARP,
        "is very blurred",
        "are very blurred",
        "blur is learnt like anything else; leave out what should not be",
    ),
    "dark": (
        lambda s: not s.flat and s.high <= DARK,
        "is very dark",
        "are very dark",
        "brighten a copy, or leave it out, if the model should not learn it",
    ),
    "bright": (
        lambda s: not s.flat and s.low >= BRIGHT,
        "is very bright",
        "are very bright",
        "darken a copy, or leave it out, if the model should not learn it",
    ),
    "flat": (
        lambda s: s.flat,
        "has one brightness everywhere",
        "have one brightness everywhere",
        "there is nothing in it to learn; replace or remove it",
    ),
    "still": (lambda s: s.still, "does not move", "do not move", "the model would learn to hold still"),
    "silent": (lambda s: s.silent, "is silent", "are silent", "replace or remove it, unless silence is meant"),
}
"""Kind of finding → its test, its verb for one item and for several, and what follows."""


def _failed(items: Sequence[Item], seen: dict[str, Seen]) -> Iterator[Finding]:
    bad = [i for i in items if seen[i.digest].error]
    if bad:
        text = (
            f"{_count(bad, 'cannot be read', 'cannot be read')}: {bad[0].name} {seen[bad[0].digest].error.rstrip('.')}."
        )
        yield Finding("unreadable", "warning", text, _names(bad))


def _odd(items: Sequence[Item], seen: dict[str, Seen]) -> Iterator[Finding]:
    for kind, (test, one, many, then) in ODD.items():
        them = [i for i in items if not seen[i.digest].error and test(seen[i.digest])]
        them = [i for i in them if i.kind != "audio" or kind == "silent"]
        if them:
            yield Finding(kind, "warning", f"{_count(them, one, many)}; {then}.", _names(them))


def _copies(items: Sequence[Item]) -> Iterator[Finding]:
    files: dict[str, dict[str, Item]] = defaultdict(dict)
    for item in items:  # the same file in two data sets (for two sizes, say) is no copy
        files[item.digest].setdefault(item.ref, item)
    groups = [tuple(group.values()) for group in files.values() if len(group) > 1]
    if groups:
        extra = sum(len(g) - 1 for g in groups)
        text = (
            f"{_count([g[1] for g in groups], 'is an exact copy', 'are exact copies', extra, False)} of another "
            f"(first: {groups[0][1].name} of {groups[0][0].name}); a copy counts twice. Remove it if not meant."
        )
        yield Finding("copies", "warning", text, groups=tuple(_names(g) for g in groups))


def _look_alikes(items: list[Item], seen: dict[str, Seen]) -> Iterator[Finding]:
    """items: one per content."""
    hashed = [i for i in items if seen[i.digest].hash is not None]
    keys = np.array([seen[i.digest].hash for i in hashed], np.uint64)
    colours = np.frombuffer(b"".join(seen[i.digest].colours for i in hashed), np.uint8).reshape(len(hashed), 192)
    groups = [_names([hashed[n] for n in group]) for group in alike(keys, colours)]
    if groups:
        count = sum(len(g) for g in groups)
        text = (
            f"{count} items look nearly the same as another, in {len(groups)} group{'s' if len(groups) > 1 else ''} "
            f"(first: {groups[0][0][1]} and {groups[0][1][1]}); together they count as much as that many different "
            "ones. Keep the best of each group."
        )
        yield Finding("look_alikes", "warning", text, groups=tuple(groups))


def alike(keys: np.ndarray, colours: np.ndarray) -> list[list[int]]:
    """Groups (of two or more numbers, ascending) of pictures that look alike; time grows about linearly.

    keys: [n] uint64 perceptual hashes. colours: [n, 192] uint8, 8x8 RGB thumbnails.
    Pictures of equal hash and equal coarse mean colour are compared with the first of their sort only, so that
    thousands of equal hashes cost no square.
    """
    if not len(keys):
        return []
    sort = np.stack([keys, _coarse(colours)], 1)
    _, first, which = np.unique(sort, axis=0, return_index=True, return_inverse=True)
    rest = np.flatnonzero(first[which] != np.arange(len(keys)))
    pairs = np.concatenate([np.stack([first[which[rest]], rest], 1), first[near(keys[first])]])
    apart = [_apart(colours, part) for part in np.array_split(pairs, max(1, len(pairs) // 100_000))]
    return _groups(pairs[np.concatenate(apart) <= COLOURS], len(keys))


def near(keys: np.ndarray, block: int = 4_000_000) -> np.ndarray:
    """All pairs [m, 2] of numbers of hashes ([n] uint64) that differ in `NEAR` bits or fewer.

    Of four bands of 16 bits, hashes that differ in at most 7 bits agree in one up to a single bit: so only
    hashes with such a band are compared. block: most comparisons held at once.
    """
    found = [np.zeros((0, 2), np.int64)]
    for band in range(4):
        part = (keys >> np.uint64(16 * band) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(part, kind="stable")
        starts = np.searchsorted(part[order], np.arange(65537))
        for flip in (0, *(1 << bit for bit in range(16))):
            low, high = starts[part ^ flip], starts[(part ^ flip) + 1]
            for some in _blocks(high - low, block):
                left = np.repeat(some, (high - low)[some])
                ends = np.cumsum((high - low)[some])
                right = order[np.arange(len(left)) + np.repeat(high[some] - ends, (high - low)[some])]
                fits = (left < right) & (np.bitwise_count(keys[left] ^ keys[right]) <= NEAR)
                found.append(np.stack([left[fits], right[fits]], 1))
    return np.unique(np.concatenate(found), axis=0)


def _blocks(counts: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Numbers of hashes in runs whose comparisons are about `most` together."""
    run = np.cumsum(counts) // most
    edges = np.flatnonzero(np.diff(run, prepend=-1))
    return (np.arange(a, b) for a, b in zip(edges, [*edges[1:], len(counts)], strict=True))


def _coarse(colours: np.ndarray) -> np.ndarray:
    means = colours.reshape(-1, 64, 3).mean(1).astype(np.uint64) // 64
    return means[:, 0] * 16 + means[:, 1] * 4 + means[:, 2]


def _apart(colours: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return np.abs(colours[pairs[:, 0]].astype(np.int16) - colours[pairs[:, 1]]).mean(1)


def _groups(pairs: np.ndarray, count: int) -> list[list[int]]:
    """What pairs connect, by union-find."""
    parent = list(range(count))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    for a, b in pairs.tolist():
        parent[max(root(a), root(b))] = min(root(a), root(b))
    groups: dict[int, list[int]] = defaultdict(list)
    for n in sorted(set(pairs.ravel().tolist())):
        groups[root(n)].append(n)
    return list(groups.values())


def _small(sized: Sequence[Item], resolutions: Sequence[int], spec: MediaSpec) -> Iterator[Finding]:
    does = {
        "own": "they are trained in a bucket of their own size",
        "enlarge": "they are enlarged, and the model learns that softness",
        "leave_out": "they are left out",
    }[spec.small]
    for resolution in resolutions:
        them = [i for i in sized if _enlarged(i, resolution, spec) > 1]
        if them:
            size = f"{spec.size[0]}x{spec.size[1]}" if spec.fit == "exact" and spec.size else str(resolution)
            text = f"{_count(them, 'is', 'are')} too small for {size} pixels; {does} (media.small is {spec.small})."
            level = "note" if spec.small == "own" else "warning"
            yield Finding("small", level, text, _names(them))


def _enlarged(item: Item, resolution: int, spec: MediaSpec) -> float:
    """By what factor the item's edges would have to grow."""
    if spec.fit == "exact" and spec.size:
        return max(spec.size[0] / item.width, spec.size[1] / item.height)
    own = min(item.width, item.height) if spec.fit == "edge" else (item.width * item.height) ** 0.5
    return resolution / own


# -- captions ----------------------------------------------------------------------------------------------------------


def _captions(items: Sequence[Item]) -> Iterator[Finding]:
    bare = [i for i in items if not any(i.captions)]
    if bare:
        text = (
            f"{_count(bare, 'has no caption', 'have no caption')}; write one, or let `python -m tuner caption` do it."
        )
        yield Finding("no_caption", "warning", text, _names(bare))
    same: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in items:
        if any(item.captions) and not item.caption_from.startswith("data."):  # one for all is what settings are for
            same[item.captions].append(item)
    groups = [g for g in same.values() if len({i.digest for i in g}) > 1]
    if groups:
        count = sum(len(g) for g in groups)
        text = (
            f"{count} items share a caption with another, in {len(groups)} group{'s' if len(groups) > 1 else ''} "
            f"(first: {groups[0][0].name} and {groups[0][1].name}); what sets them apart cannot be asked for later."
        )
        yield Finding("same_caption", "note", text, groups=tuple(_names(g) for g in groups))


def _triggers(items: Sequence[Item], recipe: Recipe) -> Iterator[Finding]:
    for number, spec in enumerate(recipe.data):
        own = [i for i in items if i.dataset == number]
        them = [i for i in own if spec.trigger and i.captions and all(c == spec.trigger for c in i.captions)]
        if them:
            text = (
                f"{_count(them, 'has', 'have')} nothing but the trigger word as caption; everything in it is learnt "
                "as part of that word. Describe what should not be."
            )
            yield Finding("only_trigger", "note", text, _names(them))


# -- with the recipe ---------------------------------------------------------------------------------------------------


def _unusable(problems: Sequence[Problem]) -> Iterator[Finding]:
    """Files that the index could not use, from its own sentences."""
    files = [p for p in problems if p.level != "note" and re.search(r"[\\/]", p.where)]
    if files:
        count = "1 file has a problem" if len(files) == 1 else f"{len(files)} files have problems"
        yield Finding("unusable", "warning", f"{count}. First: {files[0].text}")


def _leaks(items: Sequence[Item], recipe: Recipe) -> Iterator[Finding]:
    roles = [spec.role for spec in recipe.data]
    trained = {i.digest for i in items if roles[i.dataset] != "validation"}
    them = [i for i in items if roles[i.dataset] == "validation" and i.digest in trained]
    if them:
        text = (
            f"{_count(them, 'is', 'are')} both trained on and validated with; the validation loss will look better "
            "than it is. Take them out of one of the two."
        )
        yield Finding("leak", "warning", text, _names(them))


def _views(items: Sequence[Item], recipe: Recipe) -> list[dict[str, Any]]:
    """Per data set that is trained on: items, share of the steps (0 to 1), and how often each item is seen."""
    train, each = recipe.train, [repeats.by_name(spec) for spec in recipe.data]
    drawn: Counter[int] = Counter()
    for item in items:
        times = each[item.dataset](item.name)
        drawn[item.dataset] += times * (max(recipe.media.clips, 1) if item.kind == "video" else 1)
    sets = [n for n, spec in enumerate(recipe.data) if spec.role != "validation" and drawn[n]]
    entries = {n: drawn[n] * recipe.data[n].weight for n in sets}
    total = sum(entries.values())
    seen = train.steps * train.batch * train.accumulate
    count = Counter(i.dataset for i in items)
    return [
        {"dataset": n, "items": count[n], "share": entries[n] / total, "views": seen * entries[n] / total / count[n]}
        for n in sets
    ]


def _sharing(items: Sequence[Item], recipe: Recipe) -> Iterator[Finding]:
    views = _views(items, recipe)
    steps = recipe.train.steps
    for view in views:
        key, each = f"data.{view['dataset']}", f"{view['views']:.1f} times in {steps} steps"
        if view["views"] < 1:
            remedy = {"train.steps": math.ceil(round(steps / view["views"], 6))}
            text = f"The {view['items']} items of {key} are seen {each}: not all of them once."
            yield Finding("few_views", "warning", text, remedy=remedy)
        if view["views"] > MANY_VIEWS:
            remedy = {"train.steps": max(1, round(steps * MANY_VIEWS / view["views"]))}
            text = f"Each of the {view['items']} items of {key} is seen {each}; long before, it is known by heart."
            yield Finding("many_views", "note", text, remedy=remedy)
    trained = [v for v in views if recipe.data[v["dataset"]].role == "train"]
    most = max((v["share"] for v in trained), default=0)
    for view in trained:
        if (times := most / view["share"]) >= FEW_SHARE:
            n = view["dataset"]
            text = f"data.{n} gets {view['share']:.0%} of the steps, another data set {most:.0%}."
            remedy = {f"data.{n}.repeats": round(recipe.data[n].repeats * times)}
            yield Finding(
                "small_share", "note", f"{text} More repeats make it count as much, if it should.", remedy=remedy
            )


def _resolution(size: int, recipe: Recipe) -> Iterator[Finding]:
    """Whether the largest resolution is more than half of the items have."""
    wanted = recipe.media.resolutions if recipe.media.fit != "exact" else None
    if not wanted or not size or size >= max(wanted):
        return
    fits = [r for r in wanted if r <= size] or ([size // 64 * 64] if size >= 64 else [])
    text = f"Half of the items have fewer pixels than {size} x {size}, but media.resolutions asks for {max(wanted)}."
    yield Finding("resolution", "note", text, remedy={"media.resolutions": fits} if fits else {})


# -- words -------------------------------------------------------------------------------------------------------------


def _names(items: Iterable[Item]) -> tuple[Name, ...]:
    return tuple((i.dataset, i.name) for i in items)


def _plain_name(name: Name) -> dict[str, Any]:
    return {"dataset": name[0], "name": name[1]}


def _count(items: Sequence[Item], one: str, many: str, count: int = 0, first: bool = True) -> str:
    """`2 pictures are dark (first: a.png)`, `1 picture is dark (a.png)`, or `items` where kinds are mixed."""
    number = count or len(items)
    kinds = {i.kind for i in items}
    words = KINDS[items[0].kind] if len(kinds) == 1 else ("item", "items")
    text = f"1 {words[0]} {one}" if number == 1 else f"{number} {words[1]} {many}"
    if not first:
        return text
    return f"{text} ({items[0].name})" if number == 1 else f"{text} (first: {items[0].name})"


def _shape(width: int, height: int) -> str:
    return min(SHAPES, key=lambda name: abs(np.log(width / height / SHAPES[name])))


def _length(seconds: float) -> str:
    return _label(max(edge for edge in SECONDS if edge <= seconds or edge == 0))


def _label(edge: int) -> str:
    place = SECONDS.index(edge) + 1
    return f"{edge}-{SECONDS[place]} s" if place < len(SECONDS) else f"{edge} s or more"


def _ordered(counts: Counter[str], order: Iterable[str]) -> dict[str, int]:
    return {name: counts[name] for name in order if counts[name]}
