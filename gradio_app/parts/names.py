"""Names from outside (uploads, titles) made safe for this machine's file system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container
from pathlib import PurePosixPath, PureWindowsPath

RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}


def safe_stem(text: str, fallback: str = "untitled") -> str:
    """Letters, digits, dots, dashes and underscores; never hidden, never a path, at most 80 characters."""
    plain = unicodedata.normalize("NFKC", text)
    plain = re.sub(r"[^\w.-]+", "-", plain).strip("-._ ")
    plain = re.sub(r"-{2,}", "-", plain)[:80].rstrip("-._ ")
    return f"{plain}-file" if plain.lower() in RESERVED else plain or fallback


def safe_file(name: str, fallback: str = "picture") -> str:
    """A file name without its folders, its stem made safe, its ending in small letters."""
    last = PureWindowsPath(PurePosixPath(name).name).name
    stem, dot, ending = last.rpartition(".")
    if not dot:
        stem, ending = last, ""
    ending = re.sub(r"[^a-z0-9]", "", ending.lower())[:8]
    return safe_stem(stem, fallback) + (f".{ending}" if ending else "")


def unused(name: str, taken: Container[str]) -> str:
    """The name itself, or with -2, -3, ... before its ending when it is taken."""
    if name not in taken:
        return name
    stem, dot, ending = name.rpartition(".")
    if not dot:
        stem, ending = name, ""
    number = 2
    while f"{stem}-{number}{dot}{ending}" in taken:
        number += 1
    return f"{stem}-{number}{dot}{ending}"
