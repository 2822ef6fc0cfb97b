"""Every kind of source lists the same items: names, kinds, captions, companions, and bytes that can be read."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuner.data import stores
from tuner.data.item import Entry, Listing
from tuner.data.sources import archive, common, listing
from tuner.recipe import ColumnsSpec, DataSet

from .clouds import bucket, cutter, moto  # noqa: F401


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


FILES = {
    "10.png": b"ten", "10.txt": b"caption ten", "2.png": b"two", "2.txt": b"caption two", "a/1.png": b"one",
    "a/1.json": b'{"crop": [0, 1, 20, 30], "caption": "from json", "url": "x"}',
    "song.mp3": b"mp3", "song.txt": b"a song", "song.lyrics": b"la la", "clip.MP4": b"mp4", "clip.txt": b"a clip",
}  # fmt: skip
NAMES = ["2.png", "10.png", "a/1.png", "clip.MP4", "song.mp3"]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(path: Path, files: dict[str, bytes], top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(top + name, data)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def texts(found: Listing, level: str) -> str:
    return "\n".join(p.text for p in found.problems if p.level == level)


def read(ref: str) -> bytes:
    return stores.read(ref) if ref else b""


def seen(entry: Entry) -> tuple:
    """An entry by content, whatever its store."""
    return (
        entry.name, entry.kind, read(entry.ref), entry.captions, read(entry.caption_ref), read(entry.mask),
        read(entry.control), tuple(map(read, entry.references)), entry.lyrics, read(entry.lyrics_ref), entry.crop,
    )  # fmt: skip


EXPECTED = [
    ("2.png", "image", b"two", (), b"caption two", b"", b"", (), "", b"", None),
    ("10.png", "image", b"ten", (), b"caption ten", b"", b"", (), "", b"", None),
    ("a/1.png", "image", b"one", ("from json",), b"", b"", b"", (), "", b"", (0, 1, 20, 30)),
    ("clip.MP4", "video", b"mp4", (), b"a clip", b"", b"", (), "", b"", None),
    ("song.mp3", "audio", b"mp3", (), b"a song", b"", b"", (), "", b"la la", None),
]


@pytest.mark.parametrize("kind", ["folder", "zip", "zipped folder", "tar", "s3", "s3 zip", "s3 tar"])
def test_same_items_from_every_store(kind, tmp_path, request):
    if kind.startswith("s3"):
        store = request.getfixturevalue("bucket")
    if kind == "folder":
        path = str(write(tmp_path / "f", FILES))
    elif kind.endswith(("zip", "zipped folder")):
        path = str(zipped(tmp_path / "f.zip", FILES, "pics/" if kind == "zipped folder" else ""))
    elif kind.endswith("tar"):
        path = str(tarred(tmp_path / "f.tar", FILES))
    else:
        for name, data in FILES.items():
            store.put_object(Key=f"some/pics/{name}", Body=data)
        store.put_object(Key="some/pics2/x.png", Body=b"not below the prefix")
        store.put_object(Key="some/pics/", Body=b"")
        path = "s3://data/some/pics"
    if kind in ("s3 zip", "s3 tar"):
        store.upload_file(path, f"some/{Path(path).name}")
        path = f"s3://data/some/{Path(path).name}"
    found = listing(0, DataSet(path=path))
    assert found.problems == []
    assert [seen(e) for e in found.entries] == EXPECTED
    assert all(e.version and e.version == stores.version(e.ref) for e in found.entries)


def test_folder_says_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "reads_phone_pictures", lambda: False)
    write(tmp_path, {"a.png": b"", ".h.png": b"", ".c/x.png": b"", "stray.txt": b"", "b.lyrics": b"", "n.json": b"{}",
                     "x.HEIC": b"", "y.psd": b"", "z": b""})  # fmt: skip
    found = listing(0, DataSet(path=str(tmp_path)))
    assert [e.name for e in found.entries] == ["a.png"]
    assert "2 hidden files or folders are left out" in texts(found, "note")
    assert "1 caption file has no picture of the same name" in texts(found, "note")
    assert "1 lyrics file has no sound of the same name" in texts(found, "note")
    assert "2 files are neither pictures nor captions and left out (1 (no ending), 1 .json)" in texts(found, "note")
    assert "pip install pillow-heif" in texts(found, "warning")
    assert "save them as PNG or JPEG (1 .psd)" in texts(found, "warning")
    monkeypatch.setattr(common, "reads_phone_pictures", lambda: True)
    assert [e.name for e in listing(0, DataSet(path=str(tmp_path))).entries] == ["a.png", "x.HEIC"]


def test_natural_order_and_links(tmp_path):
    write(tmp_path / "p", {f"{n}.png": b"" for n in ("10", "2", "b/1", "B2", "a1", "a-1", "002", "9" * 30)})
    os.symlink(tmp_path / "p", tmp_path / "p" / "loop")
    found = listing(0, DataSet(path=str(tmp_path / "p")))
    names = ["002.png", "2.png", "10.png", f"{'9' * 30}.png", "a1.png", "a-1.png", "B2.png", "b/1.png"]
    assert [e.name for e in found.entries] == names
    assert found.problems == []


def test_pairs_by_stem(tmp_path):
    files = {"p/a.png": b"a", "p/s/b.png": b"b", "p/c.png": b"c", "p/masks/a.jpg": b"ma", "p/masks/s/b.png": b"mb",
             "p/masks/x.png": b"", "k/a.png": b"ka", "r1/a.png": b"1a", "r2/a.webp": b"2a", "r1/s/b.png": b"1b",
             "k/a.webp": b"kw", "k/notes.md": b""}  # fmt: skip
    root = write(tmp_path, files)
    spec = DataSet(
        path=str(root / "p"), mask=str(root / "p/masks"), control=str(root / "k"),
        reference=[str(root / "r1"), str(root / "r2")],
    )  # fmt: skip
    found = listing(0, spec)
    by = {e.name: e for e in found.entries}
    assert list(by) == ["a.png", "c.png", "s/b.png"]
    assert seen(by["a.png"])[5:8] == (b"ma", b"kw", (b"1a", b"2a"))
    assert seen(by["s/b.png"])[5:8] == (b"mb", b"", ())
    assert seen(by["c.png"])[5:8] == (b"", b"", ())
    notes, warnings = texts(found, "note"), texts(found, "warning")
    assert f"1 mask has no picture of the same name, and no use (first: {root / 'p/masks/x.png'})." in notes
    assert "1 files that are not pictures" in notes
    assert "has both a.png and a.webp; the latter is used" in warnings
    assert "1 picture has a picture of the same name only in some of the 2 folders of data.0.reference" in warnings
    assert "s/b.png" in warnings
    one = listing(0, DataSet(path=str(root / "p"), reference=str(root / "r1"), mask=str(root / "p/masks")))
    assert [len(e.references) for e in one.entries] == [1, 0, 1]


def test_pairs_from_zip_and_s3(tmp_path, bucket):  # noqa: F811
    pictures = zipped(tmp_path / "p.zip", {"a.png": b"a", "b.png": b"b"}, "pictures/")
    masks = zipped(tmp_path / "m.zip", {"a.png": b"ma"}, "masks/")
    found = listing(0, DataSet(path=str(pictures), mask=str(masks)))
    assert [read(e.mask) for e in found.entries] == [b"ma", b""]
    for key in ("p/a.png", "p/masks/a.png", "p/masks/z.png"):
        bucket.put_object(Key=key, Body=key.encode())
    found = listing(0, DataSet(path="s3://data/p", mask="s3://data/p/masks"))
    assert [(e.name, read(e.mask)) for e in found.entries] == [("a.png", b"p/masks/a.png")]
    assert "1 mask has no picture" in texts(found, "note")


# -- webdataset --------------------------------------------------------------------------------------------------------


def test_shards(tmp_path):
    first = {"001.jpg": b"1", "001.txt": b"one", "001.mask.png": b"m1", "001.control.png": b"k1", "001.cls": b"7",
             "001.reference.png": b"r", "001.reference2.png": b"r2"}  # fmt: skip
    second = {
        "001.mp4": b"2",
        "001.json": b'{"prompt": ["x", "y"]}',
        "002.wav": b"3",
        "002.cls": b"4",
        "v1.0.png": b"4",
    }
    for n, files in enumerate((first, second)):
        tarred(tmp_path / f"s-{n:02}.tar", files)
    found = listing(0, DataSet(path=str(tmp_path / "s-{00..01}.tar")))
    assert found.problems == []
    assert [seen(e) for e in found.entries] == [
        ("s-00.tar/001.jpg", "image", b"1", (), b"one", b"m1", b"k1", (b"r", b"r2"), "", b"", None),
        ("s-01.tar/001.mp4", "video", b"2", ("x", "y"), b"", b"", b"", (), "", b"", None),
        ("s-01.tar/002.wav", "audio", b"3", (), b"4", b"", b"", (), "", b"", None),
        ("s-01.tar/v1.0.png", "image", b"4", (), b"", b"", b"", (), "", b"", None),
    ]
    assert [e.name for e in listing(0, DataSet(path=str(tmp_path))).entries] == [e.name for e in found.entries]


def test_ranges():
    assert archive.expand("a{08..10}{1..2}.tar") == [f"a{n}{m}.tar" for n in ("08", "09", "10") for m in "12"]
    assert archive.expand("a{8..10}.tar") == ["a8.tar", "a9.tar", "a10.tar"]
    assert archive.expand("plain.tar") == ["plain.tar"]
    for wrong in ("{5..1}", "{0..9999999}", "{0..999}{0..999}"):
        with pytest.raises(ValueError, match="write it as"):
            archive.expand(wrong)


# -- tables ------------------------------------------------------------------------------------------------------------

ROWS = [
    {"file_name": "2.png", "text": "caption two", "mask": "m/2.png", "crop": "[0, 0, 8, 8]", "extra": "x"},
    {"file_name": "a/1.png", "text": "one, with commas\nand a line", "mask": "", "crop": "", "extra": "y"},
    {"file_name": "song.mp3", "text": "", "mask": "", "crop": "", "extra": "z"},
]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("store", ["local", "s3"])
def test_tables(ending, store, tmp_path, request):
    root = write(tmp_path / "t", {**FILES, "m/2.png": b"mask"})
    path = root / f"list.{ending}"
    if ending == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter=";")
            writer.writeheader()
            writer.writerows(ROWS)
    elif ending == "jsonl":
        path.write_text("\n\n".join(json.dumps(r) for r in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
    where = str(path)
    if store == "s3":
        cloud = request.getfixturevalue("bucket")
        for file in root.rglob("*.*"):
            cloud.upload_file(str(file), f"d/{file.relative_to(root).as_posix()}")
        where = f"s3://data/d/list.{ending}"
    found = listing(3, DataSet(path=where))
    assert [seen(e) for e in found.entries] == [
        ("2.png", "image", b"two", ("caption two",), b"", b"mask", b"", (), "", b"", (0, 0, 8, 8)),
        ("a/1.png", "image", b"one", (ROWS[1]["text"],), b"", b"", b"", (), "", b"", None),
        ("song.mp3", "audio", b"mp3", (), b"", b"", b"", (), "", b"", None),
    ]
    assert [p.text for p in found.problems] == [
        f"{where}: media from file_name, caption from text, mask from mask, crop from crop, by the names of the "
        "columns; set data.3.columns to take others. Not used: extra."
    ]


def test_named_columns_absolute_paths_and_the_same_file_twice(tmp_path):
    root = write(tmp_path, FILES)
    lines = [{"where": str(root / "2.png"), "a": "x", "b": ["y", "z"], "c": "no", "refs": ["10.png", "a/1.png"]},
             {"where": "../t/2.png", "a": "", "b": [], "refs": "10.png", "lyrics": "la"}]  # fmt: skip
    (root / "t").mkdir()
    (root / "t/2.png").write_bytes(b"inner")
    write(root / "t", {"10.png": b"r10", "a/1.png": b"r1"})
    (root / "t/x.jsonl").write_text("\n".join(map(json.dumps, [*lines, lines[1]])))
    columns = ColumnsSpec(media="where", caption=["a", "b"], reference="refs")
    found = listing(0, DataSet(path=str(root / "t/x.jsonl"), columns=columns))
    assert [(e.name, e.captions, e.lyrics) for e in found.entries] == [
        (str(root / "2.png"), ("x", "y", "z"), ""), ("2.png", (), "la"), ("2.png (line 3)", (), "la"),
    ]  # fmt: skip
    assert [tuple(map(read, e.references)) for e in found.entries] == [(b"r10", b"r1"), (b"r10",), (b"r10",)]


def test_table_pairs_with_folders_by_stem(tmp_path):
    root = write(tmp_path, {**FILES, "masks/2.png": b"m2", "masks/a/1.png": b"m1", "masks/z.png": b""})
    (root / "x.csv").write_text("file_name\n2.png\na/1.png\n")
    found = listing(0, DataSet(path=str(root / "x.csv"), mask=str(root / "masks")))
    assert [read(e.mask) for e in found.entries] == [b"m2", b"m1"]
    assert "1 mask has no picture" in texts(found, "note")


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hub_shard(path: Path, numbers: range, feature: str = "Image", column: str = "image", stats: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": f"i{n}".encode(), "path": f"{n}.png" if n % 2 else None} for n in numbers]
    table = pa.table({column: pa.array(cells, IMAGE), "caption": [[f"c{n}", f"d{n}"] for n in numbers]})
    told = json.dumps({"info": {"features": {column: {"_type": feature}, "caption": [{"_type": "Value"}]}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), path, 3, write_statistics=stats)
    return path


@pytest.mark.parametrize("stats", [True, False])
def test_hub_folder_of_parquet(tmp_path, stats):
    hub_shard(tmp_path / "data/train-00000-of-00002.parquet", range(4), stats=stats)
    hub_shard(tmp_path / "data/train-00001-of-00002.parquet", range(4, 6), stats=stats)
    hub_shard(tmp_path / "data/test-00000-of-00001.parquet", range(9, 10))
    (tmp_path / "README.md").write_text("card")
    found = listing(0, DataSet(path=str(tmp_path)))
    assert [(e.name, e.kind, read(e.ref), e.captions) for e in found.entries] == [
        (f"train-0000{n // 4}-of-00002.parquet/{f'{n}.png' if n % 2 else f'row {n % 4}'}", "image", f"i{n}".encode(),
         (f"c{n}", f"d{n}"))
        for n in range(6)
    ]  # fmt: skip
    assert "not 1 of test; set data.0.split" in texts(found, "note")
    assert [read(e.ref) for e in listing(0, DataSet(path=str(tmp_path), split="test")).entries] == [b"i9"]
    missing = listing(0, DataSet(path=str(tmp_path), split="portraits"))
    assert missing.entries == []
    assert "data.0.split is portraits" in texts(missing, "error")
    assert "test, train" in texts(missing, "error")


def test_kinds_of_cells(tmp_path):
    for n, (feature, column, data, kind) in enumerate([
        ("Audio", "thing", b"", "audio"), ("Video", "thing", b"", "video"), ("Value", "audio", b"", "audio"),
        ("Value", "blob", b"fLaC....", "audio"), ("Value", "blob", b"\0\0\0\x20ftypisom", "video"),
        ("Value", "blob", b"\0\0\0\x20ftypavif", "image"), ("Value", "blob", b"\x89PNG", "image"),
    ]):  # fmt: skip
        told = json.dumps({"info": {"features": {column: {"_type": feature}} if feature != "Value" else {}}})
        table = pa.table({column: pa.array([data], pa.binary())}).replace_schema_metadata({"huggingface": told})
        pq.write_table(table, tmp_path / f"{n}.parquet")
        [entry] = listing(0, DataSet(path=str(tmp_path / f"{n}.parquet"))).entries
        assert entry.kind == kind


def test_bytes_of_companions_and_lists(tmp_path):
    table = pa.table({
        "image": pa.array([{"bytes": b"i", "path": None}, {"bytes": None, "path": "beside.png"}], IMAGE),
        "mask": pa.array([{"bytes": b"m", "path": None}, None], IMAGE),
        "references": pa.array([[{"bytes": b"1", "path": None}, {"bytes": b"2", "path": None}], []], pa.list_(IMAGE)),
        "control_image": pa.array([b"k", None], pa.binary()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "x.parquet", write_statistics=False)
    (tmp_path / "beside.png").write_bytes(b"outer")
    found = listing(0, DataSet(path=str(tmp_path / "x.parquet")))
    assert [seen(e)[2:8] for e in found.entries] == [
        (b"i", (), b"", b"m", b"k", (b"1", b"2")), (b"outer", (), b"", b"", b"", ()),
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_imagefolder(tmp_path, ending):
    root = write(tmp_path, {"train/a.png": b"a", "train/m/a.png": b"ma", "train/b.png": b"b", "train/b.txt": b"file b",
                            "test/c.png": b"c", "README.md": b""})  # fmt: skip
    rows = [{"file_name": "a.png", "text": "one", "mask_file_name": "m/a.png"}]
    rows.append({"file_name": "a.png", "text": "two", "mask_file_name": ""})
    table = pa.Table.from_pylist(rows)
    if ending == "parquet":
        pq.write_table(table, root / "train/metadata.parquet")
    elif ending == "csv":
        (root / "train/metadata.csv").write_text("file_name,text,mask_file_name\na.png,one,m/a.png\na.png,two,\n")
    else:
        (root / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = listing(0, DataSet(path=str(root)))
    assert [(e.name, e.captions, read(e.caption_ref), read(e.mask)) for e in found.entries] == [
        ("train/a.png", ("one", "two"), b"", b"ma"), ("train/b.png", (), b"file b", b""),
    ]  # fmt: skip
    assert "only files of the split train are used, not 1 of test" in texts(found, "note")
    assert [e.name for e in listing(0, DataSet(path=str(root), split="test")).entries] == ["test/c.png"]


def hub_stand_in(monkeypatch, folder: Path, asked: list[str]) -> None:
    """The Hub's two calls that we make, answered from a folder."""
    import huggingface_hub

    def info(self, repo, revision=None):
        assert repo == "someone/things"
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        return SimpleNamespace(sha="c" * 40, siblings=[SimpleNamespace(rfilename=n) for n in names])

    def download(repo, path, *, repo_type, revision, local_dir):
        assert (repo, repo_type, revision) == ("someone/things", "dataset", "c" * 40)
        asked.append(path)
        target = Path(local_dir) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((folder / path).read_bytes())
        return str(target)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_hub(tmp_path, monkeypatch, home):
    asked: list[str] = []
    hub_stand_in(monkeypatch, tmp_path / "repo", asked)
    hub_shard(tmp_path / "repo/data/train-00000-of-00001.parquet", range(4))
    hub_shard(tmp_path / "repo/data/validation-00000-of-00001.parquet", range(4, 6))
    for _ in range(2):
        found = listing(0, DataSet(path="hf://someone/things", split="validation"))
        assert [read(e.ref) for e in found.entries] == [b"i4", b"i5"]
    assert asked == ["data/validation-00000-of-00001.parquet"]
    assert {e.version for e in found.entries} == {"c" * 40}
    assert [p.suffix for p in (home / "cache/remote").glob("??/*")] == [".parquet"]
    assert sorted(p.name for p in (home / "cache").iterdir()) == ["remote"]


def test_hub_pictures_are_fetched_when_read(tmp_path, monkeypatch):
    asked: list[str] = []
    hub_stand_in(monkeypatch, tmp_path / "repo", asked)
    write(
        tmp_path / "repo", {"x/train/a.png": b"a", "x/train/a.txt": b"t", "x/test/b.png": b"b", "y/train/c.png": b"c"}
    )
    found = listing(0, DataSet(path="hf://datasets/someone/things/x"))
    assert [e.name for e in found.entries] == ["train/a.png"]
    assert asked == []
    assert (read(found.entries[0].ref), read(found.entries[0].caption_ref)) == (b"a", b"t")
    tarred(tmp_path / "repo/z/shard-0.tar", {"1.png": b"in tar"})
    found = listing(0, DataSet(path="hf://someone/things@main/z"))
    assert [read(e.ref) for e in found.entries] == [b"in tar"]


def test_hub_of_several_data_sets(tmp_path, monkeypatch):
    hub_stand_in(monkeypatch, tmp_path / "repo", [])
    for name in ("cats", "dogs"):
        hub_shard(tmp_path / f"repo/{name}/train-00000-of-00001.parquet", range(2))
    found = listing(0, DataSet(path="hf://someone/things"))
    assert "several data sets (cats, dogs); add the folder of one" in texts(found, "error")
    assert len(listing(0, DataSet(path="hf://someone/things/dogs")).entries) == 2


def test_settings_without_use_are_said(tmp_path):
    write(tmp_path, FILES)
    found = listing(0, DataSet(path=str(tmp_path), split="test", columns=ColumnsSpec(mask="m")))
    assert "data.0.split is set" in texts(found, "warning")
    assert "data.0.columns.mask is set" in texts(found, "warning")


def test_one_million_rows_would_not_hold_bytes(tmp_path, monkeypatch):
    """Listing a table of bytes reads none of them."""
    from tuner.data.stores import cells

    hub_shard(tmp_path / "x.parquet", range(50))
    monkeypatch.setattr(cells.Table, "column", lambda *_: pytest.fail("bytes were read"))
    assert len(listing(0, DataSet(path=str(tmp_path / "x.parquet"))).entries) == 50
