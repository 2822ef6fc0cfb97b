"""Open video and sound files with FFmpeg: only real media formats, nothing fetched from elsewhere, no noise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import BinaryIO

import av
import av.logging
from av.container import InputContainer
from av.stream import Stream

from .facts import Source, Unusable, opened

av.logging.set_level(None)  # every failure is told by an exception, in our words

LIMIT = 8192 * 8192
"""Most pixels that a video frame may have; a decoder holds up to 17 frames."""

TROUBLE = (
    av.FFmpegError, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RuntimeError,
    OverflowError, MemoryError, AssertionError, ArithmeticError,
)  # fmt: skip
"""What PyAV raises for damaged files: FFmpeg's errors, and Python's where a fact that it relies on is missing."""

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,mxf,nut,ivf,gif,apng,"
    "ogg,mp3,aac,flac,wav,w64,aiff,caf,au,ac3,eac3,dts,amr,amrnb,amrwb,ape,tta,wv,tak,mpc,mpc8,dsf"
)
"""Formats that hold media themselves. Playlists are left out: they make FFmpeg open other files and addresses."""


@contextlib.contextmanager
def container(source: Source) -> Iterator[InputContainer]:
    """An open file. Raises `Unusable` for what is no video or sound."""
    with opened(source) as file:
        lost = _lacks_index(file)
        try:
            held = av.open(
                file,
                "r",
                options={"max_pixels": str(LIMIT)},
                container_options={"format_whitelist": FORMATS, "protocol_whitelist": ""},
                metadata_errors="replace",
                buffer_size=1 << 17,
            )
        except TROUBLE:
            raise Unusable(
                "is cut off: the index at its end is missing; download or record it again, or remove it"
                if lost
                else "is no video or sound of a known kind, or damaged at its start; convert it to mp4, or remove it"
            ) from None
        with held:
            yield held


def seconds_of(stream: Stream, ticks: int | None) -> float:
    """A time of a stream in seconds; 0 for none."""
    return float(ticks * stream.time_base) if ticks is not None and stream.time_base else 0.0


def ticks(stream: Stream, seconds: float) -> int:
    """Seconds as a time of a stream."""
    return int(seconds / (stream.time_base or 1))


def _lacks_index(file: BinaryIO) -> bool:
    """True for an mp4 or mov without its box `moov`, which is written last: a copy or recording that was cut off."""
    end, place, kinds = file.seek(0, 2), 0, set()
    while place + 8 <= end and len(kinds) < 64:
        file.seek(place)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4]), head[4:8]
        if not place and kind not in {b"ftyp", b"mdat", b"wide", b"free"}:
            break
        kinds.add(kind)
        size = int.from_bytes(head[8:16]) if size == 1 else size or end - place
        place += max(size, 8)
    file.seek(0)
    return bool(kinds) and not kinds & {b"moov", b"meta"}
