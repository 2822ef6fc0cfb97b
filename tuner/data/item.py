"""Plain values of the data engine: what a source lists, and what the index knows of it. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..errors import Problem

Kind = Literal["image", "video", "audio"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture, video or sound as its source lists it; nothing of it has been opened.

    ref: where its bytes are, for `stores.read`. name: unique in its data set, `/` between folders; what people see.
    version: a short text that changes when the bytes do (size and times, an etag), "" if the store cannot say.
    captions: texts that came with it (columns of a table). caption_ref: the text file beside it, or "".
    mask, control, lyrics_ref: refs of what belongs to it, or "". references: refs of pictures to edit from.
    lyrics: text that came with it. crop: recorded box (left, top, right, bottom) in upright pixels.
    """

    ref: str
    name: str
    kind: Kind
    version: str = ""
    captions: tuple[str, ...] = ()
    caption_ref: str = ""
    mask: str = ""
    control: str = ""
    references: tuple[str, ...] = ()
    lyrics: str = ""
    lyrics_ref: str = ""
    crop: tuple[int, int, int, int] | None = None


@dataclass
class Listing:
    """What a data set holds, in natural order (2.png before 10.png), and what was noticed while listing."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Companion:
    """A picture that belongs to an item: mask, control or reference. digest: sha256. width, height: upright pixels."""

    ref: str
    digest: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Item:
    """One usable picture, video or sound of a data set.

    dataset: number in the recipe. digest: sha256 of the bytes. width, height: upright pixels (0 for sound).
    frames, fps: of a video as it is (0 for others). seconds: length of video or sound. rate: samples per second of its
    sound, 0 when it has none. captions: final texts, trigger in, one or several. caption_from: the file or setting.
    """

    dataset: int
    ref: str
    name: str
    kind: Kind
    digest: str
    width: int
    height: int
    captions: tuple[str, ...]
    caption_from: str
    frames: int = 0
    fps: float = 0.0
    seconds: float = 0.0
    rate: int = 0
    lyrics: str = ""
    mask: Companion | None = None
    control: Companion | None = None
    references: tuple[Companion, ...] = ()
    crop: tuple[int, int, int, int] | None = None
