"""Pictures, videos and sounds as the page needs them: of what kind, whether usable, and one still of each."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}
SOUNDS = {".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus"}
ENDINGS = PICTURES | VIDEOS | SOUNDS
MOST_PIXELS = 89_000_000
TOO_LARGE = "it has far too many pixels; make it smaller than 89 megapixels"
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def kind(path: Path) -> str:
    """image, video or audio, by the ending; empty for anything else."""
    ending = path.suffix.lower()
    kinds = (("image", PICTURES), ("video", VIDEOS), ("audio", SOUNDS))
    return next((name for name, endings in kinds if ending in endings), "")


def unreadable(path: Path, ending: str = "") -> str:
    """Why a file is no usable item; empty when it is one. ending: of its real name, where the file lost it."""
    what = kind(path.with_suffix(ending) if ending else path)
    if what in ("video", "audio"):
        try:
            _first(path, what)
        except BROKEN:
            return f"it is damaged or not a {'video' if what == 'video' else 'sound'}"
        return ""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                return TOO_LARGE
            if min(image.size) < 16:
                return f"it is only {image.width} by {image.height} pixels"
            image.load()
    except Image.DecompressionBombError:
        return TOO_LARGE
    except BROKEN:
        return "it is damaged or not a picture"
    return ""


def still(path: Path, edge: int) -> Image.Image:
    """The picture, or the first frame of a video, upright and at most so large. Raises one of `BROKEN`."""
    if kind(path) == "video":
        shown = _first(path, "video").to_image()
        shown.thumbnail((edge, edge))
        return shown
    with Image.open(path) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(TOO_LARGE)
        image.draft("RGB", (edge, edge))
        shown = ImageOps.exif_transpose(image)
        shown.thumbnail((edge, edge))
        return shown


def told(path: Path) -> str:
    """Its size in words: '640 × 480', '2.0 s · 640 × 480', '12.5 s'."""
    try:
        if kind(path) == "image":
            with Image.open(path) as image:
                return f"{image.width} × {image.height}"
        with _opened(path) as held:
            seconds = f"{held.duration / 1e6:.1f} s" if held.duration else ""
            size = f"{held.streams.video[0].width} × {held.streams.video[0].height}" if kind(path) == "video" else ""
            return " · ".join(text for text in (seconds, size) if text)
    except (*BROKEN, IndexError):
        return "unreadable"


def _first(path: Path, what: str) -> Any:
    """The first frame that can be decoded."""
    with _opened(path) as held:
        streams = held.streams.video if what == "video" else held.streams.audio
        frame = next(iter(held.decode(streams[0])), None) if streams else None
    if frame is None:
        raise ValueError("there is nothing in it")
    return frame


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """av is loaded for the first video or sound only: the app starts without it. Its errors become `ValueError`s."""
    av = importlib.import_module("av")
    try:
        with av.open(str(path)) as held:
            yield held
    except av.error.FFmpegError as error:
        raise ValueError(str(error)) from error
