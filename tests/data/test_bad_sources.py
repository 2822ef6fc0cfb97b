"""Every kind of bad source: one plain sentence with the way out, the rest listed and readable, nothing written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tarfile
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuner.data import stores
from tuner.data.item import Listing
from tuner.data.sources import listing
from tuner.data.sources.common import Report
from tuner.recipe import ColumnsSpec, DataSet

from .clouds import bucket, cutter, moto  # noqa: F401
from .test_sources import IMAGE, hub_shard, tarred, texts, write, zipped


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def state(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file() and "home" not in p.relative_to(folder).parts
    }


def check(found: Listing, says: str | list[str], good: list[str], level: str = "error") -> None:
    """Each sentence is there, is one line with a way out, and the good items are listed and can be read."""
    told = [p.text for p in found.problems if p.level == level]
    for part in [says] if isinstance(says, str) else says:
        assert any(part in t for t in told), (part, found.problems)
    for text in (p.text for p in found.problems if p.level != "note"):
        assert text.endswith(".")
        assert ";" in text or ", or set" in text
        assert text.isprintable()
    assert [e.name for e in found.entries] == good
    assert all(stores.read(e.ref) for e in found.entries)


# -- zip ---------------------------------------------------------------------------------------------------------------

GOOD = {"good.png": b"good", "sub/fine.png": b"fine"}


def with_members(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # on double names
        for name, data in (*members, *GOOD.items()):
            file.writestr(name, data)
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def patched(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def locked(data: bytes) -> bytes:
    """The same zip with its first member marked as encrypted, in both of its headers."""
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = data.index(magic) + at
        data = data[:place] + b"\1\0" + data[place + 2 :]
    return data


def method(number: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        place = data.index(b"PK\1\2") + 10
        return data[:place] + struct.pack("<H", number) + data[place + 2 :]

    return change


ZIPS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absolute": (lambda p: with_members(p, ("/etc/x.png", b"x")), "/etc/x.png in {} has a name that points outside"),
    "dots": (lambda p: with_members(p, ("../../x.png", b"x")), "../../x.png in {} has a name that points outside"),
    "backslash dots": (lambda p: with_members(p, ("a\\..\\..\\x.png", b"x")), "points outside the archive"),
    "drive": (lambda p: with_members(p, ("C:/x.png", b"x")), "C:/x.png in {} has a name that points outside"),
    "link": (lambda p: with_members(p, (link("l.png"), b"/etc/passwd")), "l.png in {} is a link; pack the file itself"),
    "bomb": (
        lambda p: with_members(p, ("b.png", bytes(70 * 2**20))),
        "to 73,400,320 bytes, as only an attack would; remove it from the archive",
    ),
    "locked": (lambda p: patched(with_members(p, ("l.png", b"x")), locked), "l.png in {} is locked with a password"),
    "method": (lambda p: patched(with_members(p, ("m.png", b"x")), method(98)), "m.png in {} is packed by method 98"),
    "many": (
        lambda p: with_members(p, *((f"../{n}.png", b"x") for n in range(9))),
        "../0.png and 8 others in {}: each has a name that points outside the archive",
    ),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_zip(kind, tmp_path):
    make, says = ZIPS[kind]
    path = make(tmp_path / "x.zip")
    before = state(tmp_path)
    found = listing(0, DataSet(path=str(path)))
    check(found, says.format(path), list(GOOD))
    assert "data.0.on_problem=skip" in texts(found, "error")
    assert {p.remedy["data.0.on_problem"] for p in found.problems if p.level == "error"} == {"skip"}
    skipped = listing(0, DataSet(path=str(path), on_problem="skip"))
    check(skipped, says.format(path), list(GOOD), "warning")
    assert not texts(skipped, "error")
    assert state(tmp_path) == before


def test_zip_with_double_members(tmp_path):
    path = with_members(tmp_path / "x.zip", ("d.png", b"first"), ("d.png", b"second"))
    found = listing(0, DataSet(path=str(path)))
    check(found, "has 1 name more than once (first: d.png); the last of each is used", ["d.png", *GOOD], "warning")
    assert stores.read(found.entries[0].ref) == b"second"


def test_zip_with_strange_names(tmp_path):
    names = ["a\nb.png", "ü/…/漢.png", " .png ", "x.png/y.png", "a!/b.png", "%21.png", "9" * 3000 + ".png"]
    path = with_members(
        tmp_path / "x.zip", *((n, n.encode()) for n in names), (".png", b"x"), ("__MACOSX/._a.png", b"x")
    )
    found = listing(0, DataSet(path=str(path)))
    by = {e.name: stores.read(e.ref) for e in found.entries}
    assert {n: n.encode() for n in names if n != " .png "} == {n: d for n, d in by.items() if n not in GOOD}
    assert all(p.text.isprintable() for p in found.problems)
    assert "2 hidden" in texts(found, "note")


def test_zip_that_unpacks_to_more_than_it_states(tmp_path):
    """The size in both headers lies; reading stops one byte beyond it."""
    path = with_members(tmp_path / "x.zip", ("a.png", bytes(10_000_000)))
    patched(path, lambda d: d.replace(struct.pack("<I", 10_000_000), struct.pack("<I", 1000)))
    found = listing(0, DataSet(path=str(path)))
    with pytest.raises(stores.Unreadable, match="unpacks to more than the 1,000 bytes that it states"):
        stores.read(found.entries[0].ref)
    assert [stores.read(e.ref) for e in found.entries[1:]] == list(GOOD.values())


def test_zip_with_a_damaged_member(tmp_path):
    path = tmp_path / "x.zip"
    zipped(path, {"a.png": os.urandom(5000), **GOOD})
    patched(path, lambda d: d[:1000] + bytes(100) + d[1100:])
    found = listing(0, DataSet(path=str(path)))
    with pytest.raises(stores.Unreadable, match=r"a.png in .*x.zip is damaged or cut off; pack"):
        stores.read(found.entries[0].ref)
    assert [stores.read(e.ref) for e in found.entries[1:]] == list(GOOD.values())


def overlapping(path: Path) -> Path:
    """Many names for one packed member (the quine bomb's trick)."""
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = body.compress(bytes(10**6)) + body.flush()
    crc = zlib.crc32(bytes(10**6))
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, crc, len(packed), 10**6, 5, 0) + b"a.png" + packed
    central = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, crc, len(packed), 10**6, 7, 0, 0, 0, 0, 0, 0)
        + b"%03d.png" % n
        for n in range(400)
    )
    path.write_bytes(local + central + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 400, 400, len(central), len(local), 0))
    return path


UNOPENED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no zip": ("x.zip", lambda p: p.write_bytes(b"<html>404"), "is not a zip archive, or is damaged or cut off"),
    "cut zip": ("x.zip", lambda p: patched(with_members(p), lambda d: d[:-30]), "is damaged or cut off; pack or copy"),
    "empty zip": ("x.zip", lambda p: zipped(p, {}), "has no pictures in it"),
    "overlapping zip": ("x.zip", overlapping, "as only an attack would"),
    "zip of others": ("x.zip", lambda p: zipped(p, {"a.csv": b"file_name\n"}), "has no pictures in it"),
    "no tar": ("x.tar", lambda p: p.write_bytes(b"<html>404" * 100), "is not a tar archive or is damaged"),
    "compressed tar": ("x.tar", lambda p: tarfile.open(p, "w:gz").close(), "is compressed, so that single members"),
    "tar.gz": ("x.tar.gz", lambda p: p.write_bytes(b""), "an archive that cannot be read in place; unpack it"),
    "empty tar": ("x.tar", lambda p: tarred(p, {}), "has no pictures in it"),
    "no parquet": ("x.parquet", lambda p: p.write_bytes(b"PAR1 no"), "is not a Parquet table"),
    "cut parquet": (
        "x.parquet", lambda p: patched(hub_shard(p, range(9)), lambda d: d[: len(d) // 2]), "damaged or cut off",
    ),
    "no rows": ("x.parquet", lambda p: hub_shard(p, range(0)), "has no row that can be used"),
    "numbers": ("x.parquet", lambda p: pq.write_table(pa.table({"image": [1, 2]}), p), "holds a value of the kind int"),
    "no column": ("x.csv", lambda p: p.write_text("where,what\na.png,x\n"), "set data.0.columns.media to one of its "
                  "columns: where, what"),
    "no header": ("x.csv", lambda p: p.write_text("\n\n"), "has no first line with the names of its columns; add one"),
    "double column": ("x.csv", lambda p: p.write_text("file_name,text,text\n"), "has two columns called 'text'"),
    "UTF-16": ("x.csv", lambda p: p.write_bytes("file_name\na.png".encode("utf-16")), "is text in UTF-16; save it in"),
    "empty csv": ("x.csv", lambda p: p.write_bytes(b""), "has no first line"),
    "empty jsonl": ("x.jsonl", lambda p: p.write_bytes(b""), "columns: none"),
    "JSON array": ("x.jsonl", lambda p: p.write_text('[{"file_name": "a.png"}]'), "columns: none"),
    "missing": ("no.parquet", lambda p: None, "which does not exist; correct the path"),
    "missing folder": ("no", lambda p: None, "which does not exist; create the folder"),
    "missing range": ("no-{0..3}.tar", lambda p: None, "which does not exist; correct the path"),
    "wrong range": ("x-{9..0}.tar", lambda p: None, "where {9..0} names 0 files; write it as {000..099}"),
    "a picture": ("a.png", lambda p: p.write_bytes(b"x"), "is a file; set it to the folder that the file is in"),
    "folder of tables": ("f", lambda p: write(p, {"a.csv": b"x"}), "or set it to a file such as a.csv in it"),
    "no bucket": ("s3://", lambda p: None, "names no bucket; write it as s3://bucket/prefix"),
    "no hub id": ("hf://someone", lambda p: None, "names no data set; write it as hf://owner/name"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNOPENED)
def test_nothing_can_be_used(kind, tmp_path):
    name, make, says = UNOPENED[kind]
    path = name if "://" in name else str(tmp_path / name)
    make(Path(path))
    before = state(tmp_path)
    for skip in ("stop", "skip"):
        found = listing(0, DataSet(path=path, on_problem=skip))
        assert found.entries == []
        told = texts(found, "error") + texts(found, "warning")
        assert says in told
        assert path in told
        assert texts(found, "error"), "nothing to train on is always an error"
        assert all(p.text.isprintable() and p.text.endswith(".") for p in found.problems)
    assert state(tmp_path) == before


# -- tar ---------------------------------------------------------------------------------------------------------------


def tar_with(path: Path, *members: tuple[str, bytes | None, bytes]) -> Path:
    """Members (name, type or None for a file, content or target)."""
    with tarfile.open(path, "w") as file:
        for name, kind, data in (*members, *((n, None, d) for n, d in GOOD.items())):
            info = tarfile.TarInfo(name)
            if kind is None:
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = kind, data.decode()
                file.addfile(info)
    return path


TARS: dict[str, tuple[tuple[str, bytes | None, bytes], str]] = {
    "absolute": (("/etc/x.png", None, b"x"), "/etc/x.png in {} has a name that points outside the archive"),
    "dots": (("a/../../x.png", None, b"x"), "a/../../x.png in {} has a name that points outside the archive"),
    "symbolic link": (("l.png", tarfile.SYMTYPE, b"/etc/passwd"), "l.png in {} is a link; pack the file itself"),
    "hard link": (("l.png", tarfile.LNKTYPE, b"good.png"), "l.png in {} is a link; pack the file itself"),
    "pipe": (("p.png", tarfile.FIFOTYPE, b""), "p.png in {} is no plain file; pack only files"),
    "bytes in name": (("\udcff.png", None, b"x"), "has a name that is not text in UTF-8"),
}


@pytest.mark.parametrize("kind", TARS)
def test_tar(kind, tmp_path):
    member, says = TARS[kind]
    path = tar_with(tmp_path / "x.tar", member)
    before = state(tmp_path)
    check(listing(0, DataSet(path=str(path))), says.format(path), list(GOOD))
    check(listing(0, DataSet(path=str(path), on_problem="skip")), says.format(path), list(GOOD), "warning")
    assert state(tmp_path) == before


def test_tar_cut_and_damaged(tmp_path):
    whole = tarred(tmp_path / "a.tar", {"a.png": b"a" * 2000, "b.png": b"b" * 2000, "c.png": b"c" * 2000}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: 2560 * 2 + 1000])
    check(listing(0, DataSet(path=str(tmp_path / "cut.tar"))), "c.png in", ["a.png", "b.png"])
    (tmp_path / "bad.tar").write_bytes(whole[:2560] + b"\xff" * 512 + whole[3072:])
    check(listing(0, DataSet(path=str(tmp_path / "bad.tar"))), "damaged or cut off behind a.png; what follows is lost",
          ["a.png"])  # fmt: skip
    (tmp_path / "two.tar").write_bytes(whole[:7680] + bytes(1024) + whole)
    found = listing(0, DataSet(path=str(tmp_path / "two.tar")))
    check(found, "damaged or cut off behind c.png", ["a.png", "b.png", "c.png"])


def test_missing_and_broken_shards(tmp_path):
    for n in (0, 3):
        tarred(tmp_path / f"{n}.tar", {"x.png": b"x"})
    (tmp_path / "1.tar").write_bytes(b"<html>")
    found = listing(0, DataSet(path=str(tmp_path / "{0..3}.tar")))
    check(found, [f"{tmp_path / '2.tar'} in", "1.tar is not a tar archive"], ["0.tar/x.png", "3.tar/x.png"])


# -- tables ------------------------------------------------------------------------------------------------------------

LINES: dict[str, tuple[str, bytes, str]] = {
    "no JSON": ("jsonl", b'{"file_name": "good.png"', "line 2 in {} is not JSON; correct it, or remove it"),
    "no object": ("jsonl", b'["good.png"]', "line 2 in {} is not a JSON object"),
    "latin-1 JSON": ("jsonl", b'{"file_name": "good.png", "text": "caf\xe9"}', "line 2 in {} is not text in UTF-8"),
    "deep JSON": ("jsonl", b"[" * 100_000, "line 2 in {} is not JSON"),
    "no path": ("jsonl", b'{"text": "x"}', "line 2 in {} names no file in its column file_name; fill it in"),
    "a number": ("jsonl", b'{"file_name": 3}', "line 2 in {} holds a value of the kind int"),
    "a list": ("jsonl", b'{"file_name": ["a.png"]}', "line 2 in {} holds a value of the kind list"),
    "zero byte": ("jsonl", b'{"file_name": "a\\u0000.png"}', "line 2 in {} names the missing file"),
    "half a letter": ("jsonl", b'{"file_name": "\\ud800.png"}', "line 2 in {} names the missing file"),
    "bad crop": ("jsonl", b'{"file_name": "good.png", "crop": [5, 0, 1, 9]}', "line 2 in {} has a crop that is not"),
    "bad crop text": ("csv", b'good.png,x,"1,2"', "line 2 in {} has a crop that is not [left, top, right, bottom]"),
    "missing file": ("csv", b"no.png,x,", "line 2 in {} names the missing file"),
    "a folder": ("csv", b"sub,x,", "which is no file; correct the path"),
    "web link": (
        "csv",
        b"https://x.org/a.png,x,",
        "https://x.org/a.png, a link that is not followed; download the file",
    ),
    "other ending": ("csv", b"notes.md,x,", "notes.md, whose ending is not one of a picture, video or sound"),
    "too many values": ("csv", b"good.png,a,,b,c", "line 2 in {} has 5 values for 3 columns; put quotes around text"),
    "latin-1 CSV": ("csv", b"good.png,caf\xe9,", "line 2 in {} is not text in UTF-8; save the table"),
}


@pytest.mark.parametrize("kind", LINES)
def test_line_of_a_table(kind, tmp_path):
    ending, line, says = LINES[kind]
    write(tmp_path, {**GOOD, "notes.md": b"x"})
    path = tmp_path / f"x.{ending}"
    good = [json.dumps({"file_name": n}).encode() if ending == "jsonl" else f"{n},t,".encode() for n in GOOD]
    if ending == "jsonl":
        good[0] = json.dumps({"file_name": "good.png", "crop": [0, 0, 1, 1]}).encode()
        path.write_bytes(b"\n".join([good[0], line, good[1]]))
    else:
        path.write_bytes(b"\n".join([b"file_name,text,crop", line, *good]))
    before = state(tmp_path)
    check(listing(0, DataSet(path=str(path))), says.format(path), list(GOOD))
    check(listing(0, DataSet(path=str(path), on_problem="skip")), says.format(path), list(GOOD), "warning")
    assert state(tmp_path) == before


@pytest.mark.parametrize("lines", [3, 40_000])
def test_quote_that_is_never_closed(lines, tmp_path):
    """At the end of the file, or at the longest text that CSV may hold, after which reading goes on."""
    write(tmp_path, GOOD)
    rest = ["good.png,x"] * lines
    (tmp_path / "x.csv").write_text("\n".join(["file_name,text", "good.png,a", 'sub/fine.png,"b', *rest]))
    found = listing(0, DataSet(path=str(tmp_path / "x.csv")))
    told = texts(found, "error")
    assert "everything from line 3 to " in told
    last = int(told.split(" to ", 1)[1].split()[0])
    assert last == lines + 3 if lines == 3 else 11_000 < last < 14_000
    assert "look for a quote that is never closed" in told
    assert [e.captions for e in found.entries] == [("a",), *[("x",)] * (lines + 3 - last)]


def test_quote_inside_a_text(tmp_path):
    write(tmp_path, GOOD)
    (tmp_path / "x.csv").write_text('file_name,text\ngood.png,"a "red" one"\nsub/fine.png,"a ""red"" one"\n')
    found = listing(0, DataSet(path=str(tmp_path / "x.csv")))
    check(found, f"line 2 in {tmp_path / 'x.csv'} is not CSV", ["sub/fine.png"])
    assert found.entries[0].captions == ('a "red" one',)


@pytest.mark.parametrize(
    "cell,says", [("{}.png", "names the missing file"), ("https://x.org/{}.png", "a link that is")]
)
def test_many_rows_alike_are_one_problem(cell, says, tmp_path):
    write(tmp_path, GOOD)
    lines = "\n".join([*(cell.format(n) for n in range(20_000)), *GOOD])
    (tmp_path / "x.csv").write_text(f"file_name\n{lines}\n")
    found = listing(0, DataSet(path=str(tmp_path / "x.csv")))
    first = f"20000 rows of {tmp_path / 'x.csv'} cannot be used, as the first of them: line 2 names"
    check(found, [first, says], list(GOOD))
    assert len([p for p in found.problems if p.level == "error"]) == 1


def test_problems_are_bounded():
    report = Report(0, DataSet(path="x"))
    report.refuse("x", ((str(n), f"is bad in way {n}; mend it") for n in range(1000)))
    assert len(report.problems) == 51
    assert report.problems[-1].text.startswith("950 more in x cannot be used; mend those above first")


def test_column_that_is_not_there(tmp_path):
    write(tmp_path, GOOD)
    (tmp_path / "x.csv").write_text("file_name,text\ngood.png,a\n")
    found = listing(2, DataSet(path=str(tmp_path / "x.csv"), columns=ColumnsSpec(caption="prompt")))
    assert (
        f"data.2.columns.caption is 'prompt', which {tmp_path / 'x.csv'} does not have; it has file_name, text."
        in texts(found, "error")
    )


def test_cells_without_bytes(tmp_path):
    cells = [
        {"bytes": b"x", "path": None},
        None,
        {"bytes": None, "path": "no.png"},
        {"bytes": b"z", "path": "../z.png"},
    ]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE)}), tmp_path / "x.parquet")
    found = listing(0, DataSet(path=str(tmp_path / "x.parquet")))
    check(found, ["row 1 in", "names no file in its column image", "row 2 in", "names the missing file"],
          ["row 0", "row 3"])  # fmt: skip


def test_parquet_with_a_damaged_page(tmp_path):
    path = hub_shard(tmp_path / "x.parquet", range(9))
    patched(path, lambda d: d[:4] + b"\xff" * 12 + d[16:])
    found = listing(0, DataSet(path=str(path)))
    readable = 0
    for entry in found.entries:
        try:
            readable += stores.read(entry.ref) is not None
        except stores.Unreadable as error:
            assert "write or copy the table anew" in str(error)
    assert readable == 6
    assert len(found.entries) == 9 or "cannot be read" in texts(found, "error")


def test_one_broken_shard_of_a_table(tmp_path):
    hub_shard(tmp_path / "data/train-00000-of-00002.parquet", range(2))
    (tmp_path / "data/train-00001-of-00002.parquet").write_bytes(b"PAR1")
    found = listing(0, DataSet(path=str(tmp_path)))
    check(found, "train-00001-of-00002.parquet is not a Parquet table", [
        "train-00000-of-00002.parquet/row 0", "train-00000-of-00002.parquet/1.png",
    ])  # fmt: skip


def test_metadata_may_not_lead_out(tmp_path):
    write(tmp_path, {"f/good.png": b"g", "secret.png": b"s", "f/metadata.csv": b"file_name,text\n../secret.png,x\n"
                     b"/etc/passwd,x\ns3://data/x.png,x\ngood.png,fine\n"})  # fmt: skip
    found = listing(0, DataSet(path=str(tmp_path / "f")))
    check(found, [f"{name}, which is outside of {tmp_path / 'f'}" for name in ("../secret.png", "/etc/passwd", "s3://")][:2],
          ["good.png"])  # fmt: skip
    assert found.entries[0].captions == ("fine",)
    assert "s3://data/x.png, which is outside" in texts(found, "error")


def test_hub_table_may_not_lead_out(tmp_path):
    table = pa.table({"image": ["../../etc/passwd", "/etc/passwd", "images/a.png"]})
    write(tmp_path, {"r/images/a.txt": b""})
    pq.write_table(table, tmp_path / "r/train.parquet")
    found = listing(0, DataSet(path=str(tmp_path / "r")))
    assert found.entries == []
    assert "/etc/passwd, which is outside of" in texts(found, "error")
    assert "names the missing file images/a.png" in texts(found, "error")


# -- folders -----------------------------------------------------------------------------------------------------------


def test_strange_files_in_a_folder(tmp_path):
    root = write(tmp_path / "p", {**GOOD, "bad.png": b"x", "bad.json": b"{", "c.png": b"x", "c.json": b'{"crop": [1]}',
                                  "e.png": b"x", "e.json": b'{"caption": "caf\xe9"}'})  # fmt: skip
    os.symlink(root / "nowhere", root / "dangling.png")
    os.symlink(root / "loop.png", root / "loop.png")
    os.mkfifo(root / "pipe.png")
    (root / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    found = listing(0, DataSet(path=str(root)))
    check(found, [
        f"dangling.png in {root} is a link to nothing", f"loop.png in {root} is a link to nothing",
        f"pipe.png in {root} is no plain file", f"\\udcff.png in {root} has a name that is not text in UTF-8",
        f"bad.json in {root} is not JSON in UTF-8", f"e.json in {root} is not JSON in UTF-8",
        f"c.json in {root} has a crop that is not",
    ], list(GOOD))  # fmt: skip


def test_folder_without_rights(tmp_path, monkeypatch):
    root = write(tmp_path, {**GOOD, "closed/x.png": b"x"})
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    check(listing(0, DataSet(path=str(root))), "closed cannot be opened (Permission denied); give yourself", list(GOOD))


def test_vanishes_between_listing_and_read(tmp_path):
    write(tmp_path / "p", GOOD)
    archive = zipped(tmp_path / "x.zip", GOOD)
    for path in (tmp_path / "p", archive):
        found = listing(0, DataSet(path=str(path)))
        if path == archive:
            zipped(archive, {"sub/fine.png": b"fine"})
        else:
            (tmp_path / "p/good.png").unlink()
        with pytest.raises(stores.Unreadable, match=r"is not (there|in the archive) \(any more\)"):
            stores.read(found.entries[0].ref)
        assert stores.read(found.entries[1].ref) == b"fine"
        assert stores.version(found.entries[1].ref) == found.entries[1].version or path == archive


@pytest.mark.parametrize("setting", ["mask", "control", "reference"])
def test_companion_folders(setting, tmp_path):
    write(tmp_path / "p", GOOD)
    found = listing(0, DataSet(path=str(tmp_path / "p"), **{setting: str(tmp_path / "no")}))
    assert f"data.0.{setting} is {tmp_path / 'no'}, which does not exist" in texts(found, "error")
    (tmp_path / "file").write_bytes(b"")
    found = listing(0, DataSet(path=str(tmp_path / "p"), **{setting: str(tmp_path / "file")}))
    assert f"data.0.{setting} is {tmp_path / 'file'}, which is a file" in texts(found, "error")
    (tmp_path / "m.zip").write_bytes(b"no")
    found = listing(0, DataSet(path=str(tmp_path / "p"), **{setting: str(tmp_path / "m.zip")}))
    assert "m.zip is not a zip archive" in texts(found, "error")


# -- S3 and the Hub ----------------------------------------------------------------------------------------------------


def test_missing_bucket_and_prefix(bucket):  # noqa: F811
    found = listing(0, DataSet(path="s3://nowhere/p"))
    assert "data.0.path is s3://nowhere/p; s3://nowhere/p is not there" in texts(found, "error")
    assert "correct the bucket or the key, or AWS_ENDPOINT_URL" in texts(found, "error")
    assert "has no pictures in it" in texts(listing(0, DataSet(path="s3://data/no")), "error")
    assert "is not there" in texts(listing(0, DataSet(path="s3://data/no.parquet")), "error")


@pytest.fixture
def checked(bucket, moto):  # noqa: F811
    """The server checks keys, as a real one does."""

    def ask(count: str) -> None:
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{moto}/moto-api/reset-auth", count.encode(), headers, method="POST")
        urllib.request.urlopen(request).close()

    bucket.put_object(Key="p/a.png", Body=b"x")
    ask("0")
    yield bucket
    ask("inf")


def test_wrong_keys(checked, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    found = listing(0, DataSet(path="s3://data/p"))
    assert found.entries == []
    assert "s3://data/p may not be read with these keys" in texts(found, "error")
    assert "AWS_SECRET_ACCESS_KEY" in texts(found, "error")
    assert "secret" not in texts(found, "error")


def test_no_keys(bucket, monkeypatch):  # noqa: F811
    bucket.put_object(Key="p/a.png", Body=b"x", ACL="public-read")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    found = listing(0, DataSet(path="s3://data/p"))
    assert "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION or AWS_PROFILE" in texts(found, "error")
    monkeypatch.setenv("TUNER_S3_ANONYMOUS", "1")
    assert [stores.read(e.ref) for e in listing(0, DataSet(path="s3://data/p")).entries] == [b"x"]
    monkeypatch.delenv("TUNER_S3_ANONYMOUS")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "profile (nobody) could not be found" in texts(listing(0, DataSet(path="s3://data/p")), "error")


def test_no_network(bucket, monkeypatch):  # noqa: F811
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    found = listing(0, DataSet(path="s3://data/p"))
    assert "could not be read in 4 attempts" in texts(found, "error")
    assert "AWS_ENDPOINT_URL (http://127.0.0.1:9)" in texts(found, "error")
    assert all(p.text.isprintable() for p in found.problems)


def test_network_vanishes_in_mid_read(bucket, cutter):  # noqa: F811
    for name, data in GOOD.items():
        bucket.put_object(Key=f"p/{name}", Body=data)
    found = listing(0, DataSet(path="s3://data/p"))
    cutter.cuts = 4
    with pytest.raises(stores.Unreadable, match=r"s3://data/p/good.png could not be read in 4 attempts"):
        stores.read(found.entries[0].ref)
    assert [stores.read(e.ref) for e in found.entries] == list(GOOD.values())


def test_s3_object_is_deleted_after_listing(bucket):  # noqa: F811
    for name, data in GOOD.items():
        bucket.put_object(Key=f"p/{name}", Body=data)
    found = listing(0, DataSet(path="s3://data/p"))
    bucket.Object("p/good.png").delete()
    with pytest.raises(stores.Unreadable, match=r"s3://data/p/good\.png is not there"):
        stores.read(found.entries[0].ref)
    assert stores.read(found.entries[1].ref) == b"fine"


def test_s3_table_may_not_leave_its_bucket(bucket):  # noqa: F811
    bucket.put_object(Key="d/a.png", Body=b"a")
    bucket.put_object(Key="d/x.csv", Body=b"file_name\n../../other/a.png\n/etc/passwd\na.png\n")
    check(listing(0, DataSet(path="s3://data/d/x.csv")),
          ["../../other/a.png, which leads out of the bucket", "/etc/passwd, which leads out"], ["a.png"])  # fmt: skip


def test_hub_that_cannot_be_asked(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    found = listing(0, DataSet(path="hf://someone/things"))
    assert "could not be fetched from the Hub (ConnectionError: no route to host); check the name" in texts(
        found, "error"
    )
    assert all(p.text.isprintable() for p in found.problems)
