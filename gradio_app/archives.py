"""Zip files from outside: unpacked with care. A zip may lie about sizes, so bytes are counted as they are written."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

MOST_FILES = 10_000
LARGEST_FILE = 1 << 30
LARGEST_TOTAL = 8 << 30
PIECE = 1 << 20


class Refused(Exception):
    """A sentence about what is wrong with a zip."""


def unpack(archive: Path, into: Path, largest: int = LARGEST_TOTAL) -> list[tuple[Path, str]]:
    """Write the files of a zip to new names under `into`; pairs of (file, its name as the user knows it).

    No name from the zip is ever used as a path. Folders become part of the name, but for one that holds everything.
    """
    into.mkdir(parents=True, exist_ok=True)
    room = min(largest, shutil.disk_usage(into).free // 2)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if _wanted(entry)]
            _refuse(entries, room)
            names = flat([entry.filename for entry in entries])
            made: list[tuple[Path, str]] = []
            for number, (entry, name) in enumerate(zip(entries, names, strict=True)):
                target = into / f"{number:05d}"
                room -= _write(opened, entry, target, min(room, LARGEST_FILE))
                made.append((target, name))
            return made
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, ValueError) as error:
        raise Refused("This zip is damaged or of an unknown kind; pack the pictures again.") from error


def flat(names: list[str]) -> list[str]:
    """File names without folders that stay apart: `a/x.png, b/x.png` → `a-x.png, b-x.png`; `all/x.png` → `x.png`."""
    parts = [[p for p in PurePosixPath(n.replace("\\", "/")).parts if p not in ("/", "..", ".")] for n in names]
    while parts and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    return ["-".join(p) or "file" for p in parts]


def _wanted(entry: zipfile.ZipInfo) -> bool:
    """Files only: no folders, no links, nothing hidden, not the copies that macOS puts beside."""
    parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
    hidden = any(p == "__MACOSX" for p in parts) or (bool(parts) and parts[-1].startswith("."))
    return not entry.is_dir() and not stat.S_ISLNK(entry.external_attr >> 16) and not hidden


def _refuse(entries: list[zipfile.ZipInfo], room: int) -> None:
    if len(entries) > MOST_FILES:
        raise Refused(f"This zip holds more than {MOST_FILES:,} files; make several smaller ones.")
    if any(entry.flag_bits & 1 for entry in entries):
        raise Refused("This zip has a password; pack the pictures without one.")
    if sum(entry.file_size for entry in entries) > room:
        raise Refused(_too_large(room))


def _write(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, most: int) -> int:
    """Copy one file piece by piece; the size that counts is what really comes out."""
    done = 0
    with opened.open(entry) as source, target.open("wb") as file:
        while piece := source.read(PIECE):
            done += len(piece)
            if done > most:
                raise Refused(_too_large(most))
            file.write(piece)
    return done


def _too_large(most: int) -> str:
    return f"This zip would unpack to more than {most / 1e9:.1f} GB; make several smaller ones."
