"""What every captioner is: something that is shown items and says a text for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from ..data.item import Kind

if TYPE_CHECKING:
    from ..device import Device

PURPOSES = ("general", "person", "style", "object", "motion", "sound")
"""What the captions are to teach. Whatever is described stays free; what is not, the trigger word comes to mean."""


@dataclass(frozen=True)
class Subject:
    """One item to caption. name: with `/` between folders. images: the picture, or stills of a video in order; RGB.

    sound: float32 [samples] in -1..1 at the captioner's rate, or None. tags: what a sound file says of itself.
    """

    name: str
    kind: Kind
    images: tuple[Image.Image, ...] = ()
    sound: np.ndarray | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """A caption, "" when there is nothing to say. whole: not cut off by the limit of tokens."""

    text: str
    whole: bool = True


@dataclass(frozen=True)
class Asked:
    """What the user wants. trigger: the word that the captions will have. limit: most tokens of a caption."""

    purpose: str = "general"
    trigger: str | None = None
    limit: int = 200


class Captioner(Protocol):
    """Says what it is shown.

    name: what is noted as the origin of its captions. kinds: what it can be shown. stills: how many pictures of a video
    it wants. rate, seconds: of the sound that it wants, 0 for none.
    """

    name: str
    kinds: frozenset[Kind]
    stills: int
    rate: int
    seconds: float

    def load(self, where: Device, asked: Asked) -> list[str]:
        """Get ready. Returns sentences that the user should know. Raises `UserError`."""
        ...

    def caption(self, subjects: Sequence[Subject], asked: Asked) -> list[Said]:
        """One text per subject, the same in any company. Raises `UserError`."""
        ...
