"""Bytes by reference: right from every store, thread and process; cached once, within the limit, by version."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.data import stores
from tuner.data.stores import archives, cells, remote
from tuner.errors import UserError

from .clouds import bucket, cutter, moto  # noqa: F401


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def content(number: int, size: int = 5000) -> bytes:
    return (f"{number}-".encode() * size)[:size]


def zipped(path: Path, count: int = 20, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for n in range(count):
            file.writestr(f"f/{n}.png", content(n))
    return path


def tarred(path: Path, count: int = 20) -> Path:
    with tarfile.open(path, "w") as file:
        for n in range(count):
            info = tarfile.TarInfo(f"{'long/' * 30}{n}.png")
            info.size = 5000
            file.addfile(info, io.BytesIO(content(n)))
    return path


def tabled(path: Path, count: int = 20, group: int = 6) -> Path:
    cells = [{"bytes": content(n), "path": f"{n}.png"} for n in range(count)]
    pq.write_table(pa.table({"a.b/c": cells, "raw": [content(n) for n in range(count)],
                             "many": [[content(n), content(n + 1)] for n in range(count)]}),
                   path, row_group_size=group)  # fmt: skip
    return path


def refs_of(folder: Path) -> dict[str, bytes]:
    """References of every kind → what they hold."""
    (folder / "a!b%21").mkdir()
    odd = folder / "a!b%21"
    (odd / "plain!/x.png").parent.mkdir()
    (odd / "plain!/x.png").write_bytes(content(0))
    a, b, c = zipped(odd / "x.zip"), tarred(odd / "x.tar"), tabled(odd / "x.parquet")
    stored, bz = zipped(odd / "s.zip", method=zipfile.ZIP_STORED), zipped(odd / "b.zip", method=zipfile.ZIP_BZIP2)
    found = {str(odd / "plain!/x.png"): content(0)}
    for n in range(20):
        for path in (a, stored, bz):
            found[stores.inside("zip", str(path), f"f/{n}.png")] = content(n)
        found[stores.inside("tar", str(b), f"{'long/' * 30}{n}.png")] = content(n)
        found[stores.inside("table", str(c), f"{n}/a.b/c")] = content(n)
        found[stores.inside("table", str(c), f"{n}/raw")] = content(n)
        found[stores.inside("table", str(c), f"{n}.1/many")] = content(n + 1)
    return found


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda t: f"/{t}")


@given(st.sampled_from(["zip", "tar", "table"]), names, st.text(min_size=1))
def test_references_are_exact(kind, container, inner):
    assert stores.split(stores.inside(kind, container, inner)) == (kind, container, inner)
    assert stores.container_of(stores.inside(kind, container, inner)) == container


def test_every_store_from_threads(tmp_path):
    refs = refs_of(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(stores.read, refs)) == list(refs.values())
    for ref, data in list(refs.items())[:8]:
        assert stores.local(ref).read_bytes() == data
        assert stores.version(ref)
        assert stores.version(ref) == stores.version(stores.container_of(ref))


def _same(refs: dict[str, bytes]) -> bool:
    return all(stores.read(r) == d for r, d in refs.items())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_every_store_from_processes(method, tmp_path):
    refs = refs_of(tmp_path)
    assert _same(refs)  # archives are open before the fork
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_same, [refs, refs, refs]) == [True] * 3


def test_containers_are_opened_once(tmp_path, monkeypatch):
    path, opened = tarred(tmp_path / "x.tar"), []
    real = archives.OPENERS["tar"]
    monkeypatch.setitem(archives.OPENERS, "tar", lambda r, p: (opened.append(r), real(r, p))[1])
    for n in range(20):
        stores.read(stores.inside("tar", str(path), f"{'long/' * 30}{n}.png"))
    assert opened == [str(path)]
    tarred(path, 30)
    assert stores.read(stores.inside("tar", str(path), f"{'long/' * 30}29.png")) == content(29)
    assert opened == [str(path)] * 2

    table, decoded = tabled(tmp_path / "x.parquet"), []
    column = cells.Table.column
    monkeypatch.setattr(cells.Table, "column", lambda s, g, c: (decoded.append(g), column(s, g, c))[1])
    for n in range(20):
        stores.read(stores.inside("table", str(table), f"{n}/raw"))
    assert decoded == [0, 1, 2, 3]


def test_row_groups_are_dropped_beyond_the_budget(tmp_path, monkeypatch):
    path = tabled(tmp_path / "x.parquet", 40, 10)
    monkeypatch.setattr(cells, "BUDGET", 120_000)
    for n in range(40):
        stores.read(stores.inside("table", str(path), f"{n}/raw"))
    kept = [v.nbytes for k, v in cells._columns.items()]
    assert sum(kept) <= 120_000 or len(kept) == 1
    assert len(kept) >= 2


def test_version_follows_the_bytes(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    before = stores.version(str(path))
    times = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert stores.version(str(path)) != before


def test_what_is_gone(tmp_path):
    archive, table = zipped(tmp_path / "x.zip"), tabled(tmp_path / "x.parquet")
    wrong = {
        str(tmp_path / "no.png"): "is not there",
        str(tmp_path): "is a folder",
        stores.inside("zip", str(archive), "no.png"): "is not in the archive",
        stores.inside("zip", str(tmp_path / "no.zip"), "a.png"): "cannot be opened",
        stores.inside("table", str(table), "99/raw"): "has 20 rows",
        stores.inside("table", str(table), "1/no"): "cannot be read",
        stores.inside("table", str(table), "1.7/many"): "holds no bytes",
    }
    for ref, says in wrong.items():
        with pytest.raises(stores.Unreadable, match=says) as raised:
            stores.read(ref)
        assert "; " in str(raised.value) and str(raised.value).endswith(".")
        again = pickle.loads(pickle.dumps(raised.value))
        assert (str(again), again.what) == (str(raised.value), raised.value.what)


def test_imports_nothing_heavy():
    code = (
        "import sys, tuner.data.stores, tuner.data.sources; "
        "assert not {'torch', 'pyarrow', 's3fs', 'botocore', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- remote ------------------------------------------------------------------------------------------------------------


def put(bucket, key: str, data: bytes) -> str:  # noqa: F811
    bucket.put_object(Key=key, Body=data)
    return f"s3://data/{key}"


def gets(server) -> list[str]:
    return [p for c, p in server.asked if c == "GET" and "list-type" not in p]


def test_s3_object_is_fetched_once_per_version(bucket, cutter):  # noqa: F811
    ref = put(bucket, "a/ü b.png", b"one")
    assert stores.read(ref) == stores.read(ref) == b"one"
    assert stores.local(ref).suffix == ".png"
    assert len(gets(cutter)) == 1
    before = stores.version(ref)
    put(bucket, "a/ü b.png", b"two")
    assert stores.read(ref) == b"two"
    assert stores.version(ref) != before
    assert len(gets(cutter)) == 2
    assert stores.read(put(bucket, "empty.png", b"")) == b""


def test_s3_containers(bucket, cutter, tmp_path):  # noqa: F811
    for kind, path, inner in (
        ("zip", zipped(tmp_path / "x.zip"), "f/7.png"),
        ("tar", tarred(tmp_path / "x.tar"), f"{'long/' * 30}7.png"),
        ("table", tabled(tmp_path / "x.parquet"), "7/raw"),
    ):
        ref = stores.inside(kind, put(bucket, path.name, path.read_bytes()), inner)
        cutter.asked.clear()
        for _ in range(5):
            assert stores.read(ref) == content(7)
        assert [c for c, _ in cutter.asked] == ["HEAD", "GET"]


def test_s3_in_chunks_and_through_cuts(bucket, cutter, monkeypatch):  # noqa: F811
    monkeypatch.setattr("tuner.data.stores.s3.CHUNK", 1000)
    data = os.urandom(3500)
    ref = put(bucket, "big.bin", data)
    cutter.cuts = 3
    assert stores.read(ref) == data
    assert len(gets(cutter)) == 4 + 3
    assert cutter.cuts == 0


def test_s3_that_stays_broken_is_one_sentence(bucket, cutter, home):  # noqa: F811
    ref = put(bucket, "big.bin", b"x" * 1000)
    cutter.cuts = 1000
    with pytest.raises(stores.Unreadable, match="could not be read in 4 attempts") as raised:
        stores.read(ref)
    assert "\n" not in str(raised.value)
    assert "AWS_ENDPOINT_URL" in str(raised.value)
    assert len(gets(cutter)) == 4
    assert not list((home / "cache" / "remote").glob("??/*"))
    cutter.cuts = 0
    assert stores.read(ref) == b"x" * 1000


def test_s3_object_that_changes_while_it_is_read(bucket, monkeypatch):  # noqa: F811
    monkeypatch.setattr("tuner.data.stores.s3.CHUNK", 1000)
    ref = put(bucket, "a.bin", b"1" * 3000)
    chunk = remote.s3._chunk

    def change(*asked):
        got = chunk(*asked)
        put(bucket, "a.bin", b"2" * 3000)
        return got

    monkeypatch.setattr(remote.s3, "_chunk", change)
    with pytest.raises(stores.Unreadable, match="was changed while it was read"):
        stores.read(ref)


def test_least_recently_used_goes_first(bucket, cutter, monkeypatch, home):  # noqa: F811
    monkeypatch.setenv("TUNER_REMOTE_CACHE_GB", str(10_000 / 1e9))
    monkeypatch.setattr(remote, "_room", remote._Room())
    refs = [put(bucket, f"{n}.bin", content(n, 3000)) for n in range(4)]
    for age, ref in enumerate(refs[:3]):
        os.utime(stores.local(ref), (1000 + age, 1000 + age))
    stores.read(refs[0])  # now the most recent
    stores.read(refs[3])
    cutter.asked.clear()
    assert stores.read(refs[0]) == content(0, 3000)
    assert stores.read(refs[2]) == content(2, 3000)
    assert gets(cutter) == []
    assert stores.read(refs[1]) == content(1, 3000)
    assert len(gets(cutter)) == 1
    assert sum(p.stat().st_size for p in (home / "cache" / "remote").glob("??/*")) <= 10_000
    with pytest.raises(stores.Unreadable, match="TUNER_REMOTE_CACHE_GB"):
        stores.read(put(bucket, "huge.bin", b"x" * 10_001))


@pytest.mark.parametrize("value", ["much", "0", "-1", "nan"])
def test_wrong_limit(value, bucket, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TUNER_REMOTE_CACHE_GB", value)
    with pytest.raises(UserError, match=f"TUNER_REMOTE_CACHE_GB is '{value}'"):
        stores.read(put(bucket, "a.bin", b"x"))


def test_many_threads_fetch_an_object_once(bucket, cutter):  # noqa: F811
    ref = put(bucket, "a.bin", content(1))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(stores.read, [ref] * 16)) == {content(1)}
    assert len(gets(cutter)) == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_s3_from_processes(method, bucket):  # noqa: F811
    refs = {put(bucket, f"{n}.bin", content(n)): content(n) for n in range(6)}
    assert stores.read(next(iter(refs))) == content(0)  # the parent's connection is open before the fork
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(_same, [refs, refs]).get(60) == [True, True]


def test_full_disk(bucket, monkeypatch):  # noqa: F811
    def full(*_):
        raise OSError(28, "No space left on device")

    ref = put(bucket, "a.bin", b"x")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(stores.Unreadable, match=r"No space left on device.*TUNER_HOME"):
        stores.read(ref)
