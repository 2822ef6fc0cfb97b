"""Members of zip and tar archives, read in place: nothing is ever unpacked to where a member's name says."""

from __future__ import annotations

import bz2
import os
import struct
import tarfile
import threading
import weakref
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from . import remote
from .refs import Unreadable, inside

STORED, DEFLATED, BZIP2 = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2
RATIO = 200
"""Unpacked bytes per packed byte above which large content is taken for a bomb (deflate can reach 1032)."""
SMALL = 64 * 2**20
"""Members below this many bytes may have any ratio: an all-black mask packs a thousandfold."""
LARGEST = 4 * 2**30
"""Most bytes of one packed member, which is held in memory."""
KEPT = 64
"""Archives held open per process."""


class Member(NamedTuple):
    """Where a member is. offset: of its header (zip) or its bytes (tar). packed, size: bytes. crc: None for tar."""

    offset: int
    packed: int
    size: int
    method: int
    crc: int | None


@dataclass
class Archive:
    """An open archive. members: by name, the last of equal names. refused: (name, why). notes: what else was seen."""

    ref: str
    kind: str
    fd: int
    members: dict[str, Member] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        weakref.finalize(self, os.close, self.fd)

    def at(self, offset: int, size: int) -> bytes:
        """Bytes at an offset. Threads and forked processes do not disturb each other."""
        if hasattr(os, "pread"):
            parts = []
            while size > 0 and (part := os.pread(self.fd, min(size, 2**30), offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        with self.lock, open(self.fd, "rb", closefd=False) as file:  # Windows
            file.seek(offset)
            return file.read(size)

    def add(self, name: str, member: Member, why: str = "") -> None:
        """Take a member in, or refuse it for a reason of the archive's kind or because of its name or size."""
        why = why or _bad_name(name) or _bad_size(member)
        if why:
            self.refused.append((name, why))
            return
        if name in self.members:
            self.twice.append(name)
        self.members[name] = member

    def read(self, name: str) -> bytes:
        """The bytes of a member."""
        ref = inside(self.kind, self.ref, name)
        member = self.members.get(name)
        if member is None:
            why = dict(self.refused).get(name, "is not in the archive (any more); pack it again, or list the data anew")
            raise Unreadable(ref, why)
        try:
            start = member.offset if member.crc is None else self._data_start(member)
            packed = self.at(start, member.packed)
        except (OSError, struct.error) as error:
            raise Unreadable(ref, f"cannot be read ({error}); check the disk, or pack the archive anew") from None
        data = _unpack(ref, packed, member)
        if len(data) != member.size or (member.crc is not None and zlib.crc32(data) != member.crc):
            raise Unreadable(ref, "is damaged or cut off; pack the archive anew")
        return data

    def _data_start(self, member: Member) -> int:
        magic, name, extra = struct.unpack("<4s22xHH", self.at(member.offset, 30))
        if magic != b"PK\3\4":
            raise OSError("no member is where the archive's list says")
        return member.offset + 30 + name + extra


def _bad_name(name: str) -> str:
    if name.startswith("/") or PureWindowsPath(name).drive or ".." in PurePosixPath(name).parts or "\0" in name:
        return "has a name that points outside the archive; pack it under a plain name"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is not text in UTF-8; pack it under a plain name"
    return ""


def _bad_size(member: Member) -> str:
    if member.size > SMALL and member.size > RATIO * max(member.packed, 1):
        return (
            f"says that it unpacks from {member.packed:,} to {member.size:,} bytes, as only an attack would; "
            "remove it from the archive"
        )
    if member.size > LARGEST:
        return f"has {member.size / 2**30:.1f} GB; unpack the archive and set the path to the folder"
    return ""


def _unpack(ref: str, packed: bytes, member: Member) -> bytes:
    """Never makes more than one byte beyond the size that the archive stated."""
    if member.method == STORED:
        return packed
    opener = zlib.decompressobj(-15) if member.method == DEFLATED else bz2.BZ2Decompressor()
    try:
        data = opener.decompress(packed, member.size + 1)
    except (zlib.error, OSError, ValueError, EOFError):
        data = b""
    if len(data) > member.size:
        raise Unreadable(ref, f"unpacks to more than the {member.size:,} bytes that it states; pack the archive anew")
    return data


# -- opening -----------------------------------------------------------------------------------------------------------


def open_zip(ref: str, path: Path) -> Archive:
    """The list of a zip's members. Raises `Unreadable`."""
    archive = Archive(ref, "zip", os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
    except (zipfile.BadZipFile, UnicodeDecodeError, ValueError, NotImplementedError, struct.error, EOFError):
        raise Unreadable(ref, "is not a zip archive, or is damaged or cut off; pack or copy it anew") from None
    packed, size, length = sum(i.compress_size for i in infos), sum(i.file_size for i in infos), path.stat().st_size
    if packed > length or (size > 2**30 and size > RATIO * length):
        what = f"has {length:,} bytes but says that it unpacks to {size:,}, as only an attack would; do not use it"
        raise Unreadable(ref, what)
    for info in infos:
        name = info.filename.replace("\\", "/")
        if not name.endswith("/"):
            member = Member(info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
            archive.add(name, member, _zip_refusal(info))
    return archive


def _zip_refusal(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 0x1:
        return "is locked with a password; pack the archive without one"
    if (info.external_attr >> 16) & 0o170000 == 0o120000:
        return "is a link; pack the file itself"
    if info.compress_type not in (STORED, DEFLATED, BZIP2):
        return f"is packed by method {info.compress_type}, which is not read here; pack the archive anew with deflate"
    return ""


def open_tar(ref: str, path: Path) -> Archive:
    """The list of a tar's members, by one pass over its headers. Raises `Unreadable`."""
    archive = Archive(ref, "tar", os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
    if archive.at(0, 2) == b"\x1f\x8b" or archive.at(0, 3) == b"BZh" or archive.at(0, 4) == b"\x28\xb5\x2f\xfd":
        raise Unreadable(ref, "is compressed, so that single members cannot be reached; uncompress it to a plain .tar")
    length, last = path.stat().st_size, ""
    try:
        with tarfile.open(path, "r:") as file:
            while (info := file.next()) is not None:
                file.members = []  # pyrefly: ignore[missing-attribute]   tarfile would keep every header
                last = info.name
                if info.isdir():
                    continue
                if info.offset_data + info.size > length:
                    archive.refused.append((last, "is cut off; copy the archive anew"))
                    continue
                member = Member(info.offset_data, info.size, info.size, STORED, None)
                archive.add(last.removeprefix("./"), member, _tar_refusal(info))
            end = file.offset
        broken = any(archive.at(end, 10240))
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        if not last:
            raise Unreadable(ref, f"is not a tar archive or is damaged ({error}); pack or copy it anew") from None
        broken = True
    if broken:
        archive.notes.append(f"is damaged or cut off behind {last}; what follows is lost, copy the archive anew")
    return archive


def _tar_refusal(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "is a link; pack the file itself"
    if not info.isreg() or info.issparse():
        return "is no plain file; pack only files"
    return ""


OPENERS: dict[str, Callable[[str, Path], Archive]] = {"zip": open_zip, "tar": open_tar}

_open: OrderedDict[tuple[str, str, str], Archive] = OrderedDict()
_lock = threading.Lock()


def opened(kind: str, container: str) -> Archive:
    """The archive (kind zip or tar) at a reference; held open until others push it out or it changes."""
    path, version = remote.held(container)
    key = kind, container, version
    with _lock:
        if key in _open:
            _open.move_to_end(key)
            return _open[key]
    archive = OPENERS[kind](container, path)
    with _lock:
        for old in [k for k in _open if k[:2] == key[:2]]:
            del _open[old]
        _open[key] = archive
        while len(_open) > KEPT:
            _open.popitem(last=False)
    return archive


def read(kind: str, container: str, member: str) -> bytes:
    """The bytes of a member. Raises `Unreadable`."""
    return opened(kind, container).read(member)


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  (the child may inherit it held by a thread that it does not have)
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
