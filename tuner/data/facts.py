"""What is known of a picture, video or sound after one look, why one cannot be used, and how its bytes are opened."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .item import Kind

Source = Path | bytes
"""A file, or its bytes for callers that hold them (of an archive, a cloud store)."""

CHANGED = "was changed while it was in use; start again, so that it is read anew."

SAYS = {
    "animation": (
        "is an animation of {} frames; its first frame is used. "
        "Save the frame you want as a picture of its own if you want another.",
        "are animations; their first frames are used. "
        "Save the frames you want as pictures of their own if you want others.",
    ),
    "pages": (
        "has {} pages; its first page is used. Save the others as pictures of their own if you want them.",
        "have several pages; their first pages are used. Save the others as pictures of their own if you want them.",
    ),
    "transparent": (
        "is partly transparent; it is put on {}. Fill the background yourself if you want another.",
        "are partly transparent; they are put on {}. Fill the background yourself if you want another.",
    ),
    "colours": (
        "is in {} colours; they are converted to sRGB. Save it as an sRGB picture if they come out wrong.",
        "are in {} colours; they are converted to sRGB. Save them as sRGB pictures if they come out wrong.",
    ),
    "profile": (
        "has the colour profile {}; its colours are converted to sRGB.",
        "have the colour profile {}; their colours are converted to sRGB.",
    ),
    "bad profile": (
        "has a colour profile that cannot be applied; it is read as sRGB. Save it as sRGB if that looks wrong.",
        "have colour profiles that cannot be applied; they are read as sRGB. Save them as sRGB if that looks wrong.",
    ),
    "deep": (
        "has {} bits per colour; it is scaled to 8 bits.",
        "have {} bits per colour; they are scaled to 8 bits.",
    ),
    "hdr": (
        "is in HDR or wide colours ({}); they are converted to those of ordinary video (BT.709).",
        "are in HDR or wide colours ({}); they are converted to those of ordinary video (BT.709).",
    ),
    "interlaced": (
        "is interlaced; its frames are used as they are. Deinterlace it first if moving edges show combs.",
        "are interlaced; their frames are used as they are. Deinterlace them first if moving edges show combs.",
    ),
    "pixel shape": (
        "has pixels that are not square ({}); it is stretched to how players show it.",
        "have pixels that are not square ({}); they are stretched to how players show them.",
    ),
    "variable": (
        "has a variable frame rate ({} frames a second); its frames are taken by their times.",
        "have a variable frame rate; their frames are taken by their times.",
    ),
    "promise": (
        "says that it has {} of it; what is there is used. Get it again if something is missing.",
        "say that they are longer than they are; what is there is used. Get them again if something is missing.",
    ),
    "surround": (
        "has {} sound channels; they are mixed down. Mix it yourself if you want another balance.",
        "have {} sound channels; they are mixed down. Mix them yourself if you want another balance.",
    ),
    "loud": (
        "is louder than full scale (peak {}); what is above is cut. Lower its volume if it sounds distorted.",
        "are louder than full scale; what is above is cut. Lower their volume if they sound distorted.",
    ),
}
"""Kind of note → its sentence for one file and for several, after the name or number."""


class Unusable(Exception):
    """A file that cannot be trained on. The message follows the file's name: "is empty (0 bytes); replace it"."""


@dataclass(frozen=True)
class Look:
    """What a look at a file told. error: why it cannot be used, "" when it can. blank: all black, or all silent.

    width, height: upright, as shown (0 for sound). frames, fps: exact number and average rate (videos only).
    seconds: length of a video or sound. rate: samples per second of its sound, 0 for none; channels: of its sound.
    """

    digest: str = ""
    width: int = 0
    height: int = 0
    notes: tuple[tuple[str, str], ...] = ()
    error: str = ""
    blank: bool = False
    kind: Kind = "image"
    frames: int = 0
    fps: float = 0.0
    seconds: float = 0.0
    rate: int = 0
    channels: int = 0


@contextlib.contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """The bytes of a regular file, from its start. Raises `Unusable` if it is empty or cannot be read."""
    if isinstance(source, bytes):
        file: BinaryIO = io.BytesIO(source)
        size = len(source)
    else:
        try:
            if not stat.S_ISREG(source.stat().st_mode):  # a pipe would be waited for without end
                raise Unusable("is not a file; remove it, or put a file in its place")
            file = source.open("rb")
            size = os.fstat(file.fileno()).st_size
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise Unusable(f"cannot be read ({why}); give yourself the right to read it, or remove it") from None
    with file:
        if not size:
            raise Unusable("is empty (0 bytes); put the file there again, or remove it")
        yield file


def digest(source: Source) -> str:
    """The sha256 of the bytes, without holding all of a file. Raises `Unusable`."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with opened(source) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()  # pyrefly: ignore[bad-argument-type]
        except OSError as error:
            raise Unusable(f"cannot be read to its end ({error.strerror or error}); copy it again") from None


@contextlib.contextmanager
def steady(source: Source) -> Iterator[None]:
    """Raises `Unusable` at the end if the file was written to meanwhile."""
    before = _stamp(source)
    yield
    if _stamp(source) != before:
        raise Unusable(CHANGED)


def _stamp(source: Source) -> tuple[int, ...] | None:
    if isinstance(source, bytes):
        return None
    try:
        now = source.stat()
    except (OSError, ValueError):
        return None
    return now.st_size, now.st_mtime_ns, now.st_ino


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file that takes this name only when all is written; after any error nothing is left of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w+b") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
