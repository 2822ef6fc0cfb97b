"""Plan how every item is used: its bucket, how it is scaled and cut to it, or why it is not used.

Everything is columns of numbers: a million items are planned in seconds. Knows no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import Problem
from ..family import Framing, Geometry
from ..recipe import DataSet, MediaSpec
from . import video
from .buckets import sized
from .facts import Look, Unusable
from .index import BLOCK, KINDS, NOUNS, Index
from .item import Item, Kind

CUT = 0.25
"""Share of a picture's area beyond which cutting it off is worth a warning."""
LENGTHS = 64
"""Sounds are cut to one of this many lengths."""
NAMED = 20
"""Unused items of one reason up to this number are named in its sentence; the plan names all."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """What the items of one batch have in common. Sizes in pixels.

    dataset: number of the data set. resolution: the one that was asked for. frames: of a clip, 1 for a picture, 0 for
    sound. samples: of sound, 0 for none. references: sizes of the reference pictures. masked, controlled: whether any
    item of the data set has a mask (those without one count whole), a control picture.
    """

    dataset: int
    kind: Kind
    resolution: int
    width: int
    height: int
    frames: int = 1
    samples: int = 0
    references: tuple[tuple[int, int], ...] = ()
    masked: bool = False
    controlled: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """One item at one size. start: of its clip or sound, in seconds. fps: of its clip."""

    item: Item
    framing: Framing
    bucket: Bucket
    start: float = 0.0
    fps: float = 0.0


@dataclass
class Plan:
    """Every use of an item, in columns, and the items that are not used, with the reason.

    rows: index row of each use, ascending. bucket: place in `buckets`. scaled, corner: [N, 2] as in `Framing`.
    start: seconds.
    unused: (rows, resolution, reason), see `REASONS`; resolution 0: at none.
    """

    index: Index
    datasets: Sequence[DataSet]
    fps: float = 0.0
    buckets: list[Bucket] = field(default_factory=list)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    bucket: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    scaled: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int32))
    corner: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int32))
    start: np.ndarray = field(default_factory=lambda: np.empty(0, np.float64))
    unused: list[tuple[np.ndarray, int, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Planned:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._planned(i, self.index.item(int(self.rows[i])))

    def __iter__(self) -> Iterator[Planned]:
        """Every use in order; much quicker than one by one."""
        start = 0
        for first in range(0, len(self.index), BLOCK):
            end = int(np.searchsorted(self.rows, first + BLOCK))
            items = self.index.items[first : first + BLOCK] if end > start else []
            yield from (self._planned(i, items[self.rows[i] - first]) for i in range(start, end))
            start = end

    def _planned(self, i: int, item: Item) -> Planned:
        bucket = self.buckets[self.bucket[i]]
        (across, down), (left, top) = self.scaled[i].tolist(), self.corner[i].tolist()
        framing = Framing((item.width, item.height), (across, down), (left, top), (bucket.width, bucket.height))
        return Planned(item, framing, bucket, float(self.start[i]), self.fps if item.kind == "video" else 0.0)

    def having(self, *roles: str) -> np.ndarray:
        """The places of all uses whose data set has one of these roles."""
        wanted = np.array([self.datasets[b.dataset].role in roles for b in self.buckets], bool)
        return np.flatnonzero(wanted[self.bucket]) if len(self) else np.empty(0, np.int64)

    def counts(self) -> np.ndarray:
        """Uses per bucket."""
        return np.bincount(self.bucket, minlength=len(self.buckets))


def plan(
    index: Index, datasets: Sequence[DataSet], media: MediaSpec, resolutions: Sequence[int], geometry: Geometry
) -> Plan:
    """Each item once per resolution and clip; items of validation sets only at the first resolution.

    Items that are smaller than their bucket are treated as `media.small` says; one that is already trained at its own
    size by a lower resolution is not repeated at a higher one.
    """
    made = Plan(index, datasets, _fps(media, geometry))
    edges, made.problems = _edges(media, resolutions, geometry)
    pieces = [
        _Piece(made, media, geometry, number, kind).plan(edges if spec.role != "validation" else edges[:1])
        for number, spec in enumerate(datasets)
        for kind in KINDS
        if edges or kind == "audio"
    ]
    _gather(made, [part for piece in pieces for part in piece])
    made.problems += [*_unused(made, media), *_enlarged(made), *_cut(made, media)]
    return made


def _fps(media: MediaSpec, geometry: Geometry) -> float:
    return float(media.fps or geometry.fps)


def _edges(media: MediaSpec, resolutions: Sequence[int], geometry: Geometry) -> tuple[list[int], list[Problem]]:
    """Resolutions as multiples of the model's smallest step, each once, ascending."""
    if media.fit == "exact":
        return _exact(media, geometry)
    edges, problems, multiple = [], [], geometry.multiple
    for number, wanted in enumerate(resolutions):
        key, edge = f"media.resolutions.{number}", wanted // multiple * multiple
        if edge <= 0:
            text = f"{key} is {wanted}, but this model needs at least {multiple}; set it to a multiple of {multiple}."
            problems.append(Problem("error", key, text))
            continue
        if edge != wanted:
            text = f"{key} is {wanted}; {edge} is used, the next lower multiple of {multiple}, which this model needs."
            problems.append(Problem("note", key, text))
        if edge in edges:
            problems.append(Problem("note", key, f"{key} comes to {edge} like another before it; it is used once."))
        else:
            edges.append(edge)
    if media.size is not None:
        text = "media.size has no effect unless media.fit is exact; set media.fit=exact or remove media.size."
        problems.append(Problem("error", "media.size", text, {"media.fit": "exact"}))
    return sorted(edges), problems


def _exact(media: MediaSpec, geometry: Geometry) -> tuple[list[int], list[Problem]]:
    multiple = geometry.multiple
    if media.size is None:
        text = "media.fit is exact, but media.size is empty; set media.size=[width, height]."
        return [], [Problem("error", "media.size", text)]
    if any(edge % multiple or edge < multiple for edge in media.size):
        rounded = [max(1, round(edge / multiple)) * multiple for edge in media.size]
        text = f"media.size is {list(media.size)}; both must be multiples of {multiple}, for example {rounded}."
        return [], [Problem("error", "media.size", text, {"media.size": rounded})]
    return [round(math.sqrt(media.size[0] * media.size[1]))], []


@dataclass
class _Part:
    """Uses of one kind, data set and resolution, before they are put together. `extra`: place in `_Piece.extras`."""

    rows: np.ndarray
    size: np.ndarray
    scaled: np.ndarray
    corner: np.ndarray
    start: np.ndarray
    extra: np.ndarray
    extras: list[tuple[int, int, tuple[tuple[int, int], ...]]]
    flags: np.ndarray
    resolution: int
    dataset: int
    kind: int


class _Piece:
    """The items of one kind in one data set."""

    def __init__(self, made: Plan, media: MediaSpec, geometry: Geometry, dataset: int, kind: Kind) -> None:
        index = made.index
        self.made, self.media, self.geometry, self.dataset, self.kind = made, media, geometry, dataset, kind
        mine = (index.numbers("dataset") == dataset) & (index.numbers("kind") == KINDS.index(kind))
        self.rows = np.flatnonzero(mine)

    def plan(self, edges: Sequence[int]) -> list[_Part]:
        """One part per resolution."""
        if not len(self.rows):
            return []
        if self.kind == "audio":
            return self._sounds()
        region = self._region()
        least = region[:, 2:].min(1)
        outside, tiny = least <= 0, (least > 0) & (least < self.geometry.multiple)
        self._leave_out(self.rows[outside], 0, "outside")
        self._leave_out(self.rows[tiny], 0, "tiny")
        good = ~outside & ~tiny
        rows, region, done = self.rows[good], region[good], np.zeros(good.sum(), np.int32)
        return [self._at(rows, region, edge, done) for edge in edges]

    def _leave_out(self, rows: np.ndarray, resolution: int, reason: str) -> None:
        if len(rows):
            self.made.unused.append((rows, resolution, reason))

    def _region(self) -> np.ndarray:
        """Left, top, width, height [N, 4] of what is framed: the recorded crop where it counts, else everything.

        Of a crop that lies outside of its picture the width or height is not above 0.
        """
        index = self.made.index
        width, height = (index.numbers(n)[self.rows] for n in ("width", "height"))
        region = np.stack([np.zeros_like(width), np.zeros_like(width), width, height], 1).astype(np.float64)
        if self.media.crop == "recorded":
            there, boxes = index.crops(self.rows)
            first = np.maximum(boxes[:, :2], 0)
            last = np.minimum(boxes[:, 2:], np.stack([width, height], 1))
            region[there] = np.concatenate([first, last - first], 1)[there]
        return region

    def _at(self, rows: np.ndarray, region: np.ndarray, edge: int, done: np.ndarray) -> _Part:
        """The uses at one resolution. done: [rows] largest edge at which each is used so far; changed here."""
        size, own = sized(region[:, 2], region[:, 3], edge, self.media, self.geometry.multiple)
        small = own == 0
        self._leave_out(rows[small & (done == 0)], edge, "small")
        again = (own < edge) & (own <= done) & (done > 0)
        self._leave_out(rows[again], edge, "done")
        used = ~small & ~again
        done[used] = own[used]
        scaled, corner = self._framed(rows[used], region[used], size[used], edge)
        part = _Part(
            rows[used], size[used], scaled, corner, np.zeros(used.sum()), np.zeros(used.sum(), np.int64),
            [(1, 0, ())], self._flags(rows[used]), edge, self.dataset, KINDS.index(self.kind),
        )  # fmt: skip
        if self.kind == "video":
            part = self._clips(part)
        return self._referring(part, edge)

    def _framed(
        self, rows: np.ndarray, region: np.ndarray, size: np.ndarray, edge: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(scaled [N, 2], corner [N, 2]): the region scaled to cover the size, and where the size is cut from it."""
        index = self.made.index
        whole = np.stack([index.numbers("width")[rows], index.numbers("height")[rows]], 1)
        scale = (size / region[:, 2:]).max(1, keepdims=True, initial=0)
        scaled = np.maximum(size, np.rint(whole * scale)).astype(np.int32)
        spare = np.maximum(np.rint(region[:, 2:] * scale) - size, 0)
        share = np.full((len(rows), 2), 0.5)
        if self.media.crop == "top":
            share[:, 1] = 0.0
        elif self.media.crop == "random":
            share = _share(index.digests()[rows], edge)
        corner = np.floor(np.rint(region[:, :2] * scale) + spare * share).astype(np.int32)
        return scaled, np.clip(corner, 0, scaled - size)

    def _flags(self, rows: np.ndarray) -> np.ndarray:
        table = self.made.index.table
        masked, controlled = (table.column(n).is_valid().to_numpy()[rows].any() for n in ("mask", "control"))
        return np.full(len(rows), int(masked) + 2 * int(controlled), np.int64)

    def _clips(self, part: _Part) -> _Part:
        """Each video once per clip; those too short for one are left out."""
        index, g = self.made.index, self.geometry
        frames = self.media.frames or g.frames
        if self.media.seconds:
            frames = min(frames, max(1, int(self.media.seconds * self.made.fps)))
        places, starts, extra, none = [], [], [], []
        ids: dict[tuple[int, int, tuple], int] = {}
        for place, row in enumerate(part.rows):
            about = Look(**{n: index.numbers(n)[row].item() for n in ("frames", "fps", "seconds", "rate")})
            try:
                found = video.clips(about, frames=frames, fps=self.made.fps, step=g.frame_step, clips=self.media.clips)
            except Unusable:
                none.append(row)
                continue
            for clip in found:
                samples = 0
                if g.sample_rate and self.media.sound and about.rate:
                    samples = round(clip.frames / self.made.fps * g.sample_rate) // g.hop * g.hop
                places.append(place)
                starts.append(clip.start_seconds)
                extra.append(ids.setdefault((clip.frames, samples, ()), len(ids)))
        self._leave_out(np.array(none, np.int64), part.resolution, "short")
        return _repeated(part, np.array(places, np.int64), np.array(starts), np.array(extra, np.int64), list(ids))

    def _sounds(self) -> list[_Part]:
        """Sounds, cut to one of some lengths; several clips where they are asked for."""
        index, g = self.made.index, self.geometry
        longest = self.media.seconds or g.seconds
        most = int(longest * g.sample_rate) // g.hop * g.hop
        unit = max(g.hop, most // LENGTHS // g.hop * g.hop)
        has = (index.numbers("seconds")[self.rows] * g.sample_rate).astype(np.int64)
        take = np.minimum(has, most)
        take = np.where(take >= unit, take // unit * unit, take // g.hop * g.hop)
        short = take == 0
        self._leave_out(self.rows[short], 0, "short")
        rows, has, take = self.rows[~short], has[~short], take[~short]
        lengths, extra = np.unique(take, return_inverse=True)
        n, none = len(rows), np.zeros((len(rows), 2), np.int32)
        part = _Part(
            rows, none, none, none, np.zeros(n), extra, [(0, int(v), ()) for v in lengths],
            np.zeros(n, np.int64), 0, self.dataset, KINDS.index("audio"),
        )  # fmt: skip
        places, starts = _spread(has, take, self.media.clips)
        return [_repeated(part, places, starts / g.sample_rate, extra[places], part.extras)]

    def _referring(self, part: _Part, edge: int) -> _Part:
        """Put the sizes of reference pictures into the buckets, so that a batch has one size in each place."""
        column = self.made.index.table.column("references")
        lengths = pc.call_function("list_value_length", [column]).fill_null(0).to_numpy()[part.rows]
        if not lengths.any():
            return part
        flat = pc.call_function("list_flatten", [column.take(pa.array(part.rows))]).combine_chunks()
        own = np.stack([flat.field(name).to_numpy() for name in ("width", "height")], 1)
        originals, place = np.unique(own, axis=0, return_inverse=True)
        sizes = [self._size_of(width, height, edge) for width, height in originals.tolist()]
        names = list(dict.fromkeys(sizes))
        slots = np.full((len(lengths), lengths.max()), -1)
        slots[np.arange(slots.shape[1]) < lengths[:, None]] = np.array([names.index(s) for s in sizes])[place.ravel()]
        kinds, extra = np.unique(np.column_stack([part.extra, slots]), axis=0, return_inverse=True)
        part.extra = extra.ravel()
        part.extras = [
            (*part.extras[old][:2], tuple(names[s] for s in rest if s >= 0)) for old, *rest in kinds.tolist()
        ]
        return part

    def _size_of(self, width: int, height: int, edge: int) -> tuple[int, int]:
        """The size of a reference picture; one that is small keeps about its own, whatever becomes of small items."""
        multiple, media = self.geometry.multiple, self.media
        if media.small != "enlarge":
            media = media.model_copy(update={"small": "own"})
        one = np.array([width]), np.array([height])
        size, own = sized(*one, edge, media, multiple)
        if not own[0] and media.fit == "exact":
            size, own = sized(*one, edge, media.model_copy(update={"fit": "area"}), multiple)
        across, down = size[0].tolist() if own[0] else (multiple, multiple)
        return across, down


def _share(digests: np.ndarray, edge: int) -> np.ndarray:
    """Two numbers in [0, 1) per item [N, 2], random but fixed by its content and the resolution."""
    words = np.ascontiguousarray(digests[:, :16]).view(np.uint64)
    mixed = (words + np.uint64(edge)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _repeated(part: _Part, places: np.ndarray, start: np.ndarray, extra: np.ndarray, extras: list[Any]) -> _Part:
    return _Part(
        part.rows[places], part.size[places], part.scaled[places], part.corner[places], start, extra, extras,
        part.flags[places], part.resolution, part.dataset, part.kind,
    )  # fmt: skip


def _spread(has: np.ndarray, take: np.ndarray, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """(place, first sample) of each cut: from the start, `clips` spread evenly, or (0) as many as fit end to end."""
    count = np.maximum(has // take, 1) if clips == 0 else np.full(len(has), clips)
    count = np.minimum(count, np.maximum(has - take, 0) + 1)  # no two that are the same
    places = np.repeat(np.arange(len(has)), count)
    number = np.arange(len(places)) - np.repeat(np.cumsum(count) - count, count)
    spare = np.maximum(has - take, 0)[places]
    of = np.maximum(count - 1, 1)[places]
    start = number * take[places] if clips == 0 else number * spare // of
    return places, np.minimum(start, spare).astype(np.float64)


def _gather(made: Plan, parts: list[_Part]) -> None:
    """Put the parts together in the order of the items, and number their buckets."""
    parts = [p for p in parts if len(p.rows)]
    if not parts:
        return
    extras: dict[tuple, int] = {}
    keys, shared = [], []
    for number, part in enumerate(parts):
        ids = np.array([extras.setdefault(e, len(extras)) for e in part.extras], np.int64)
        shared.append((part.dataset, KINDS[part.kind], part.resolution))
        low = (part.size[:, 0].astype(np.int64) << 18 | part.size[:, 1]) << 2 | part.flags
        keys.append((low, ids[part.extra], np.full(len(low), number)))
    low, extra, number = (np.concatenate(column) for column in zip(*keys, strict=True))
    combined = number * len(extras) + extra
    order = np.argsort(np.concatenate([p.rows for p in parts]), kind="stable")
    _, low_id = np.unique(low, return_inverse=True)
    ids, first, bucket = np.unique(combined * (low_id.max() + 1) + low_id, return_index=True, return_inverse=True)
    names = list(extras)
    for place in first:
        dataset, kind, resolution = shared[number[place]]
        frames, samples, references = names[extra[place]]
        width, height, flags = low[place] >> 20, low[place] >> 2 & (1 << 18) - 1, low[place] & 3
        made.buckets.append(
            Bucket(dataset, kind, resolution, int(width), int(height), frames, samples, references,
                   bool(flags & 1), bool(flags & 2))
        )  # fmt: skip
    made.rows = np.concatenate([p.rows for p in parts])[order]
    made.bucket = bucket.astype(np.int32)[order]
    made.scaled, made.corner = (np.concatenate([getattr(p, n) for p in parts])[order] for n in ("scaled", "corner"))
    made.start = np.concatenate([p.start for p in parts])[order]


# -- what was noticed --------------------------------------------------------------------------------------------------

REASONS = {
    "tiny": "is smaller than this model can take at all",
    "outside": "has a recorded crop that lies outside of it",
    "small": "is smaller than its bucket (media.small and media.fit say what becomes of such items)",
    "short": "is too short for one clip",
    "done": "is too small for this resolution, and trained at a lower one already",
}


def _unused(made: Plan, media: MediaSpec) -> list[Problem]:
    """One sentence per data set and reason; few items are named, many counted (the plan names every one)."""
    grouped: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)
    datasets = made.index.numbers("dataset") if len(made.index) else np.empty(0)
    for rows, _, reason in made.unused:
        for number in np.unique(datasets[rows]):
            grouped[int(number), reason].append(rows[datasets[rows] == number])
    return [_said(made, media, key, np.unique(np.concatenate(rows))) for key, rows in grouped.items()]


def _said(made: Plan, media: MediaSpec, about: tuple[int, str], rows: np.ndarray) -> Problem:
    number, reason = about
    items = [made.index.item(row) for row in rows[:NAMED].tolist()]
    one, many = NOUNS[items[0].kind]
    names = ", ".join(f"{i.name} ({_measure(i, media)})" for i in items) + (" and more" if len(rows) > NAMED else "")
    several = len(rows) > 1
    count = f"{len(rows)} {many} are" if several else f"1 {one} is"
    them = "them" if several else "it"
    if reason == "done":
        text = f"{count} smaller than the highest resolution and trained at lower ones alone: {names}."
        return Problem("note", "media.resolutions", text)
    if reason == "small":
        text, own = f"{count} smaller than the bucket and left out: {names}.", media.fit != "exact"
        way = f"Set media.small=own to train {them} smaller" if own else f"Set media.small=enlarge to enlarge {them}"
        remedy = {"media.small": "own" if own else "enlarge"}
        return Problem("warning", "media.small", f"{text} {way}, or lower media.{_size_setting(media)}.", remedy)
    skip, key = made.datasets[number].on_problem == "skip", f"data.{number}.on_problem"
    what, way = _wrong(reason, items[0].kind)
    count = count.removesuffix(" are").removesuffix(" is") if reason == "outside" else count
    what = what.replace("have", "have" if several else "has")
    if skip:
        return Problem("warning", key, f"{count} {what}; left out ({key} is skip): {names}.")
    text = f"{count} {what}: {names}; {way}, remove {them}, or set {key}=skip to leave such items out."
    return Problem("error", key, text, {key: "skip"})


def _size_setting(media: MediaSpec) -> str:
    return "size" if media.fit == "exact" else "resolutions"


def _wrong(reason: str, kind: Kind) -> tuple[str, str]:
    """(what is wrong with such items, what to do)."""
    if reason == "outside":
        return "have a recorded crop outside of the picture", "correct the crop, set media.crop=center"
    if reason == "short":
        return "too short for one clip", "use longer ones" + (", or a higher media.fps" if kind == "video" else "")
    return "smaller than this model can take", "use larger ones"


def _measure(item: Item, media: MediaSpec) -> str:
    if item.kind == "audio":
        return f"{item.seconds:.2f} s"
    crop = f", crop {list(item.crop)}" if media.crop == "recorded" and item.crop else ""
    return f"{item.width}x{item.height}{crop}" + (f", {item.seconds:.2f} s" if item.kind == "video" else "")


def _enlarged(made: Plan) -> list[Problem]:
    """Say how many items are smaller than their bucket."""
    if not len(made):
        return []
    own = np.stack([made.index.numbers(n)[made.rows] for n in ("width", "height")], 1)
    larger = np.flatnonzero((made.scaled > own).any(1))
    if not len(larger):
        return []
    scale = (made.scaled[larger] / own[larger]).max(1)
    item = made.index.item(int(made.rows[larger[0]]))
    one, many = NOUNS[item.kind]
    count = len(np.unique(made.rows[larger]))
    start = (
        f"1 {one} is smaller than its bucket and is"
        if count == 1
        else f"{count} {many} are smaller than their bucket and are"
    )
    text = (
        f"{start} enlarged up to {scale.max():.3g} times (first: {item.ref}). "
        f"Use larger {many} or a lower media.resolutions for sharper results."
    )
    return [Problem("note", "media.resolutions", text)]


def _cut(made: Plan, media: MediaSpec) -> list[Problem]:
    """Warn of items that lose much of their area."""
    if not len(made):
        return []
    sizes = np.array([(b.width, b.height) for b in made.buckets], np.float64)[made.bucket]
    area = made.scaled.astype(np.float64).prod(1)
    share = np.where(area > 0, 1 - sizes.prod(1) / np.maximum(area, 1), 0)
    if media.crop == "recorded":
        share[made.index.crops(made.rows)[0]] = 0  # cut on purpose
    much = np.flatnonzero(share > CUT)
    if not len(much):
        return []
    item, count = made.index.item(int(made.rows[much[0]])), len(np.unique(made.rows[much]))
    one, many = NOUNS[item.kind]
    start = f"1 {one} is" if count == 1 else f"{count} {many} are"
    text = (
        f"{start} much wider or taller than the sizes that are trained; up to {share.max():.0%} of the area is cut off "
        f"(first: {item.ref}). Cut out yourself what should be learned if the middle is not it."
    )
    return [Problem("warning", "media.resolutions", text)]
