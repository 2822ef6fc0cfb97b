"""The cache: by content, atomic, self-healing, shared by processes; and the tensors that go in."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from torch.utils.data import Dataset

from tuner.data import cache as module
from tuner.data.cache import Cache, Writer
from tuner.data.fill import Encoder, Keys, everything_told, fill_media, fill_text
from tuner.data.plan import plan
from tuner.data.tensor import pixels
from tuner.data.workers import ahead
from tuner.errors import UserError
from tuner.recipe import DataSet, MediaSpec
from tuner.types import Parts

from .conftest import GEOMETRY, Fake, nothing, picture, planned

PARTS = Parts("transformer")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def key(number: int) -> str:
    """Keys are sha256 in hexadecimal."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" * 4


def entry(number: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), float(number)), "b": torch.arange(number + 1, dtype=torch.bfloat16)}


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return got.keys() == expected.keys() and all(
        torch.equal(got[k], v) and got[k].dtype == v.dtype for k, v in expected.items()
    )


def files(cache: Cache) -> list[Path]:
    return sorted(p for p in cache.root.rglob("*") if p.is_file())


def shards(cache: Cache) -> list[Path]:
    return sorted(cache.folder.glob("*.safetensors"))


def folder_of(path: Path, count: int = 5) -> DataSet:
    for number in range(count):
        picture(path / f"{number}.png", (64, 64), (number * 50 % 256, number, 255))
    return DataSet(path=str(path))


def keys_of(spec: DataSet, fake: Fake, media: str = "w", text: str = "t", **more) -> Keys:
    return Keys(planned([spec], **more), fake, media, text)


def fill(cache: Cache, keys: Keys, fake: Fake, **more) -> list[str]:
    fill_media(cache, keys, Encoder(fake, PARTS, GEOMETRY), more.pop("progress", nothing), **more)
    return keys.all()


# -- entries -----------------------------------------------------------------------------------------------------------

dtypes = st.sampled_from([
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int64, torch.int32, torch.bool,
    torch.float8_e4m3fn,
])  # fmt: skip
shapes = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "cond.x/y"]), st.tuples(dtypes, shapes), min_size=1),
                min_size=1, max_size=4))  # fmt: skip
def test_round_trip_of_any_dtype_and_shape(specs):
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        entries = {
            key(i): {n: (torch.rand(shape) * 100).to(dtype) for n, (dtype, shape) in spec.items()}
            for i, spec in enumerate(specs)
        }
        cache.write(entries)
        for other in (cache, Cache(Path(folder))):
            assert other.missing([*entries, key(99), key(99)]) == [key(99)]
            for k, expected in entries.items():
                got = other.get(k)
                assert {n: (t.dtype, t.shape) for n, t in got.items()} == {
                    n: (t.dtype, t.shape) for n, t in expected.items()
                }
                assert all(torch.equal(_bytes(got[n]), _bytes(t)) for n, t in expected.items())
        assert cache.verify()["damaged"] == []


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_views_and_tensors_that_share_memory(cache):
    whole = torch.arange(12).reshape(3, 4)
    cache.put(key(0), {"row": whole[1], "again": whole[1], "column": whole[:, 1], "all": whole, "twice": whole})
    assert {k: v.tolist() for k, v in cache.get(key(0)).items()} == {
        "row": [4, 5, 6, 7], "again": [4, 5, 6, 7], "column": [1, 5, 9], "all": whole.tolist(), "twice": whole.tolist(),
    }  # fmt: skip
    cache.write({key(1): {"a": whole}, key(2): {"a": whole}})
    assert torch.equal(cache.get(key(2))["a"], whole)


def test_what_is_put_may_be_changed_afterwards(cache):
    mine, writer = torch.ones(4), Writer(cache)
    writer.put(key(0), {"a": mine})
    mine.zero_()
    writer.flush()
    assert cache.get(key(0))["a"].tolist() == [1, 1, 1, 1]


def test_shards_are_written_by_size_number_and_time(cache, monkeypatch):
    monkeypatch.setattr(module, "SHARD_ENTRIES", 3)
    writer = Writer(cache)
    for i in range(7):
        writer.put(key(i), entry(0))
    assert len(shards(cache)) == 2
    writer.flush()
    assert len(shards(cache)) == 3
    monkeypatch.setattr(module, "SHARD_BYTES", 40)
    writer.put(key(8), {"a": torch.zeros(10)})
    assert len(shards(cache)) == 4
    monkeypatch.setattr(module, "SHARD_SECONDS", 0.0)
    writer.put(key(9), {"a": torch.zeros(1)})
    assert len(shards(cache)) == 5
    writer.flush()
    assert len(shards(cache)) == 5
    assert cache.missing(map(key, range(10))) == [key(7)]


def test_keys_that_begin_alike(cache):
    """The index looks at eight bytes first."""
    alike = [f"{'ab' * 8}{i:048x}" for i in (1 << 150, 2 << 150, 3 << 150)]
    for i, k in enumerate(alike[:2]):
        cache.put(k, entry(i))
    assert cache.missing(alike) == alike[2:]
    assert all(same(cache.get(k), entry(i)) for i, k in enumerate(alike[:2]))


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, bytes]:
    """The files of a cache with entries 0, 1, 2 in one shard."""
    cache = Cache(tmp_path_factory.mktemp("good"))
    cache.write({key(i): entry(i) for i in range(3)})
    assert [p.suffix for p in files(cache)] == [".keys", ".safetensors"]
    return {p.suffix: p.read_bytes() for p in files(cache)}


def written(root: str, content: dict[str, bytes]) -> Cache:
    cache = Cache(Path(root))
    cache.folder.mkdir()
    for suffix, data in content.items():
        (cache.folder / f"x{suffix}").write_bytes(data)
    return cache


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([(".keys",), (".safetensors",), (".keys", ".safetensors")]))
def test_cut_off_anywhere(good, data, which):
    """A shard cut at any byte is made anew; a list cut at any byte is made from its shard; never a wrong tensor."""
    cut = {s: b[: data.draw(st.integers(0, len(b) - 1))] if s in which else b for s, b in good.items()}
    with tempfile.TemporaryDirectory() as root:
        cache = written(root, cut)
        wanted = [key(i) for i in range(3)]
        if ".safetensors" in which:
            assert cache.missing(wanted) == wanted
            assert files(cache) == []
            with pytest.raises(UserError, match="made anew"):
                cache.get(wanted[0])
            cache.write({key(i): entry(i) for i in range(3)})
        for again in (cache, Cache(cache.root)):
            assert again.missing(wanted) == []
            assert all(same(again.get(key(i)), entry(i)) for i in range(3))
        now = {p.suffix: p.read_bytes() for p in files(cache)}
        assert now[".safetensors"] == good[".safetensors"]
        assert len(now[".keys"]) == len(good[".keys"]), "the list is there again"
        assert cache.verify() == {"entries": 3, "damaged": []}


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 255))
def test_verify_finds_any_changed_byte(good, data, mask):
    """Wherever it is: in the numbers, the names, the types or the shapes; the rest of the cache stays."""
    shard = bytearray(good[".safetensors"])
    shard[data.draw(st.integers(0, len(shard) - 1))] ^= mask
    with tempfile.TemporaryDirectory() as root:
        cache = written(root, {**good, ".safetensors": bytes(shard)})
        cache.put(key(9), entry(9))
        told = cache.verify()
        if told["damaged"]:
            assert told == {"entries": 1, "damaged": ["x.safetensors"]}
            assert cache.missing(map(key, (0, 1, 2, 9))) == [key(0), key(1), key(2)]
        else:  # another kind of white space in the header, say
            assert all(same(cache.get(key(i)), entry(i)) for i in range(3))
        assert same(cache.get(key(9)), entry(9))


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 255))
def test_a_changed_list_of_keys_is_not_believed(good, data, mask):
    keys = bytearray(good[".keys"])
    keys[data.draw(st.integers(0, len(keys) - 1))] ^= mask
    with tempfile.TemporaryDirectory() as root:
        cache = written(root, {**good, ".keys": bytes(keys)})
        assert cache.missing(map(key, range(3))) == []
        assert all(same(cache.get(key(i)), entry(i)) for i in range(3))
        assert (cache.folder / "x.keys").read_bytes() != keys, "it is mended"


def test_most_changed_bytes_do_matter(good):
    """The test above would pass if verify found nothing: it finds every change of every byte of the numbers."""
    shard, start = good[".safetensors"], 8 + int.from_bytes(good[".safetensors"][:8], "little")
    with tempfile.TemporaryDirectory() as root:
        cache = written(root, good)
        for at in range(start, len(shard)):
            (cache.folder / "x.safetensors").write_bytes(shard[:at] + bytes([shard[at] ^ 1]) + shard[at + 1 :])
            assert module._verified(cache.folder / "x.safetensors") is None


def test_a_good_shard_outlives_a_disk_that_cannot_be_written_to(cache, monkeypatch):
    """Its list is lost and cannot be written again: it is read without one, and not deleted."""
    cache.put(key(0), entry(0))
    next(cache.folder.glob("*.keys")).unlink()
    monkeypatch.setattr(os, "replace", raising(OSError(errno.EROFS, "Read-only file system")))
    other = Cache(cache.root)
    assert other.missing([key(0)]) == []
    assert same(other.get(key(0)), entry(0))
    assert len(files(cache)) == 1


def test_a_shard_that_cannot_be_opened_for_now_is_not_deleted(cache, monkeypatch):
    cache.put(key(0), entry(0))
    before = files(cache)
    monkeypatch.setattr(module, "safe_open", raising(PermissionError(errno.EACCES, "Permission denied")))
    next(cache.folder.glob("*.keys")).write_bytes(b"")
    assert Cache(cache.root).missing([key(0)]) == [key(0)]
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        cache.verify()
    assert files(cache) == before


def test_of_two_copies_the_whole_one_is_taken(cache):
    """Two processes made the same entry; one shard is lost after the other knew of it."""
    for _ in range(2):
        cache.put(key(0), entry(0))
    for number in range(2):
        reader = Cache(cache.root)
        assert reader.has(key(0))
        lost = shards(cache)[number]
        data = lost.read_bytes()
        lost.unlink()
        assert same(reader.get(key(0)), entry(0))
        lost.write_bytes(data)


def raising(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("name,error,says", [
    ("os.replace", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space left"),
    ("os.replace", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "no space left"),
    ("os.replace", OSError(errno.EACCES, os.strerror(errno.EACCES)), r"cannot be written \(Permission denied\)"),
    ("tuner.data.cache.save_file", SafetensorError("I/O error: No space left on device (os error 28)"), "no space"),
    ("tuner.data.cache.save_file", OSError(errno.EROFS, "Read-only file system"), "cannot be written"),
    ("os.fsync", OSError(errno.EIO, os.strerror(errno.EIO)), "cannot be written"),
])  # fmt: skip
def test_write_errors(cache, monkeypatch, name, error, says):
    with monkeypatch.context() as patch:
        patch.setattr(name, raising(error))
        with pytest.raises(UserError, match=says) as raised:
            cache.put(key(0), {"a": torch.zeros(1)})
    assert str(cache.root) in str(raised.value)
    assert "TUNER_HOME" in str(raised.value)
    assert files(cache) == []
    cache.put(key(0), entry(0))
    assert same(cache.get(key(0)), entry(0))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Cache(tmp_path / "file" / "cache").put(key(0), entry(0))


def test_an_entry_that_is_gone(cache):
    cache.put(key(0), entry(0))
    assert cache.has(key(0))
    shutil.rmtree(cache.folder)
    with pytest.raises(UserError, match="missing or damaged; start or resume"):
        cache.get(key(0))


# -- prune -------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), max_size=5), st.sets(st.integers(0, 9))
)
def test_prune_keeps_exactly_what_is_asked_for(groups, keep):
    with tempfile.TemporaryDirectory() as root:
        cache, reader = Cache(Path(root)), Cache(Path(root))
        for group in groups:
            cache.write({key(i): entry(i) for i in group})
        held = {i for group in groups for i in group}
        reader.refresh()
        told = cache.prune({key(i) for i in keep})
        assert told["entries"] == sum(i not in keep for group in groups for i in group)
        for one in (cache, reader, Cache(Path(root))):
            assert [k for k in map(key, range(10)) if k not in one.missing(map(key, range(10)))] or not held & keep
            assert all(same(one.get(key(i)), entry(i)) for i in held & keep)
        fresh = Cache(Path(root))
        assert fresh.missing(map(key, range(10))) == [key(i) for i in range(10) if i not in held & keep]
        assert cache.verify()["damaged"] == []
        assert all(p.suffix in (".keys", ".safetensors") for p in files(cache))


def test_prune_while_another_reads(cache):
    """A reader that knew of the old shards, in the middle of its work, finds what stays in the new ones."""
    for start in range(0, 60, 6):
        cache.write({key(i): entry(i) for i in range(start, start + 6)})
    keep, failed, stop = [i for i in range(60) if i % 3], [], threading.Event()

    def read(reader: Cache) -> None:
        while not stop.is_set():
            i = random.choice(keep)
            try:
                assert same(reader.get(key(i)), entry(i))
            except (AssertionError, UserError, KeyError, RuntimeError, OSError) as error:
                failed.append(error)
                return

    readers = [threading.Thread(target=read, args=[Cache(cache.root)]) for _ in range(2)]
    for thread in readers:
        thread.start()
    time.sleep(0.05)
    for last in (60, 40, 20):
        keep = [i for i in keep if i < last]
        time.sleep(0.05)
        Cache(cache.root).prune({key(i) for i in keep})
    time.sleep(0.05)
    stop.set()
    for thread in readers:
        thread.join()
    assert failed == []
    assert Cache(cache.root).size()["entries"] == len(keep)


def test_prune_looks_only_at_old_shards_and_sweeps(cache):
    cache.put(key(0), entry(0))
    cache.put(key(1), entry(1))
    week = time.time() - 7 * 86400
    for path in files(cache):
        os.utime(path, (week, week))
    reader = Cache(cache.root)
    reader.refresh()
    reader.used([key(1)])
    for name, old in {"a.1.tmp": True, "b.1.tmp": False, "orphan.keys": True}.items():
        (cache.folder / name).write_bytes(b"x")
        if old:
            os.utime(cache.folder / name, (week, week))
    assert cache.prune(None) == {"entries": 0, "bytes": 0}
    names = {p.name for p in files(cache)}
    assert "b.1.tmp" in names
    assert not {"a.1.tmp", "orphan.keys"} & names
    told = cache.prune(set(), older=5)
    assert told["entries"] == 1
    assert told["bytes"] > 0
    assert cache.missing([key(0), key(1)]) == [key(0)]


def test_prune_of_a_damaged_shard(cache):
    cache.put(key(0), entry(0))
    [path] = shards(cache)
    path.write_bytes(path.read_bytes()[:30])
    assert cache.prune({key(0)})["entries"] == 0
    assert shards(cache) == []


# -- filling -----------------------------------------------------------------------------------------------------------


def test_fill_media(cache, tmp_path, fake):
    spec = folder_of(tmp_path / "p")
    picture(tmp_path / "p" / "wide.png", (256, 64))
    told = []
    keys = keys_of(spec, fake)
    names = fill(cache, keys, fake, batch=2, progress=lambda done, of, **more: told.append((done, of, more)))
    assert fake.calls == [2, 2, 1, 1]
    assert [t[:2] for t in told] == [(2, 6), (4, 6), (5, 6), (6, 6)]
    assert told[-1][2]["bytes"] == 5 * 3 * 8 * 8 * 4 + 3 * 4 * 16 * 4
    assert cache.size()["entries"] == 6
    latents = cache.get(names[1])["latents"]
    assert latents.shape == (3, 8, 8)
    assert latents.dtype == torch.float32
    assert torch.allclose(latents[0], torch.tensor(50 / 127.5 - 1))
    assert cache.get(names[5])["latents"].shape == (3, 4, 16)

    assert fill(cache, keys, fake) == names
    assert fake.calls == [2, 2, 1, 1]
    [path] = shards(cache)
    path.write_bytes(b"torn")
    fill(Cache(cache.root), keys, fake, batch=6)
    assert sum(fake.calls) == 12


def test_copies_are_encoded_once(cache, tmp_path, fake):
    picture(tmp_path / "a" / "x.png")
    picture(tmp_path / "b" / "y.png")
    made = planned([DataSet(path=str(tmp_path / "a")), DataSet(path=str(tmp_path / "b"))])
    names = fill(cache, Keys(made, fake, "w", "t"), fake)
    assert names[0] == names[1]
    assert fake.calls == [1]


def test_one_picture_replaced_is_one_picture_encoded(cache, tmp_path, fake):
    """Under the same name; and all of them with another autoencoder."""
    spec = folder_of(tmp_path / "p")
    before = fill(cache, keys_of(spec, fake), fake)
    assert sum(fake.calls) == 5
    picture(tmp_path / "p" / "3.png", colour=(1, 2, 3))
    after = fill(cache, keys_of(spec, fake), fake)
    assert sum(fake.calls) == 6
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, True, False, True]
    assert torch.allclose(cache.get(after[3])["latents"][2], torch.tensor(3 / 127.5 - 1))
    fill(cache, keys_of(spec, fake, media="another autoencoder"), fake)
    assert sum(fake.calls) == 11


def test_batching_and_workers_do_not_change_latents(tmp_path):
    for number in range(6):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (70, 90, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    spec = DataSet(path=str(tmp_path), caption="x")
    one, four, two = (Cache(tmp_path / n) for n in ("one", "four", "two"))
    names = fill(one, keys_of(spec, Fake()), Fake(), batch=1)
    fill(four, keys_of(spec, Fake()), Fake(), batch=4)
    fill(two, keys_of(spec, Fake()), Fake(), batch=1, workers=2)
    for k in names:
        torch.testing.assert_close(one.get(k)["latents"], four.get(k)["latents"], rtol=1e-6, atol=1e-6)
        assert torch.equal(one.get(k)["latents"], two.get(k)["latents"])


def test_keys_follow_content_not_names(tmp_path, fake):
    picture(tmp_path / "a" / "x.png", (100, 64))
    picture(tmp_path / "b" / "deep" / "y.png", (100, 64))
    picture(tmp_path / "c" / "x.png", (100, 64), colour=(0, 0, 0))

    def first(folder: str, fake: Fake = fake, media: str = "w", **more) -> str:
        data = {k: more.pop(k) for k in ("background",) if k in more}
        return keys_of(DataSet(path=str(tmp_path / folder), **data), fake, media, **more).media(0)

    base = first("a")
    assert base == first("b")
    others = [
        first("c"), first("a", media="other weights"), first("a", Fake(1)), first("a", resolutions=(48,)),
        first("a", crop="top", fit="exact", size=(96, 32)), first("a", fit="exact", size=(96, 32)),
        first("a", background="black"),
    ]  # fmt: skip
    assert len({base, *others}) == 8
    assert base == first("a", media="w", small="leave_out", crop="center"), "how the same cut came about is no matter"
    edit = Fake()
    edit.task = "edit"
    assert first("a", edit) != base
    shutil.move(tmp_path / "a", tmp_path / "moved")
    (tmp_path / "moved" / "x.png").rename(tmp_path / "moved" / "z.png")
    (tmp_path / "moved" / "x.txt").rename(tmp_path / "moved" / "z.txt")
    assert first("moved") == base
    moved = planned([DataSet(path=str(tmp_path / "moved"))])
    told = everything_told(Keys(moved, fake, "w", "t"))
    assert {t.text for t in told.values()} == {"a thing", ""}
    assert told.keys() == everything_told(Keys(moved, fake, "v", "t")).keys()
    assert told.keys().isdisjoint(everything_told(Keys(moved, fake, "w", "u")))
    assert told.keys().isdisjoint(everything_told(Keys(moved, Fake(1), "w", "t")))


def test_a_changed_caption_is_a_new_text_and_the_same_picture(cache, tmp_path, fake):
    spec = folder_of(tmp_path / "p", 2)
    keys = keys_of(spec, fake)
    encoder = Encoder(fake, PARTS, GEOMETRY)
    media = fill(cache, keys, fake)
    fill_text(cache, everything_told(keys), encoder, nothing)
    assert fake.calls == [2, 2]
    (tmp_path / "p" / "1.txt").write_text("another thing")
    again = keys_of(spec, fake)
    assert again.all() == media
    fill_text(cache, everything_told(again), encoder, nothing)
    assert fake.calls == [2, 2, 1]


def test_mask_and_control_go_with_their_picture(cache, tmp_path, fake):
    """The right half of a wide picture counts; the cut takes the middle of both."""
    picture(tmp_path / "p" / "a.png", (200, 40))
    mask = Image.new("L", (100, 20), 0)
    mask.paste(255, (50, 0, 100, 20))
    for name in ("m", "c"):
        (tmp_path / name).mkdir()
        mask.save(tmp_path / name / "a.png")
    spec = DataSet(path=str(tmp_path / "p"), mask=str(tmp_path / "m"), control=str(tmp_path / "c"))
    keys = keys_of(spec, fake)
    [name] = fill(cache, keys, fake)
    entry = cache.get(name)
    assert entry["mask"].shape == (1, *entry["latents"].shape[-2:])
    assert entry["mask"].dtype == torch.float32
    w = entry["mask"].shape[-1]
    assert entry["mask"][..., : w // 2].max() == 0
    assert entry["mask"][..., w // 2 :].min() == 1
    width, height = keys.plan[0].framing.size
    assert entry["control"].shape == (3, height, width)
    assert entry["control"].dtype == torch.uint8
    assert entry["control"][:, :, : width // 2 - 2].max() <= 8
    assert entry["control"][:, :, width // 2 + 2 :].min() >= 247
    names = {name}
    for fewer in ({"mask": None}, {"control": None}, {"mask": None, "control": None}):
        names.add(keys_of(spec.model_copy(update=fewer), fake).media(0))
    assert len(names) == 4
    mask.paste(255, (40, 0, 100, 20))
    mask.save(tmp_path / "m" / "a.png")
    assert keys_of(spec, fake).media(0) not in names


def test_pixels_are_the_scaled_and_cut_picture(tmp_path):
    """Scaling only the box equals scaling the whole and cutting (within the rounding of 8 bits, off the edges)."""
    x = np.linspace(0, 255, 300)[None, :].repeat(90, 0)
    Image.fromarray(np.stack([x, x[:, ::-1], x], -1).astype(np.uint8)).save(tmp_path / "a.png")
    [one] = planned([DataSet(path=str(tmp_path), caption="x")])
    got = pixels(one)
    with Image.open(tmp_path / "a.png") as image:
        whole = np.array(image.resize(one.framing.scaled, Image.Resampling.LANCZOS), np.float32)
    (left, top), (w, h) = one.framing.corner, one.framing.size
    expected = torch.from_numpy(whole[top : top + h, left : left + w] / 127.5 - 1).permute(2, 0, 1)
    assert got.shape == (3, h, w)
    assert (got - expected)[..., 2:-2].abs().max() <= 2 / 127.5
    assert got.min() >= -1
    assert got.max() <= 1


def test_long_thin_picture_takes_little_memory(tmp_path):
    Image.new("RGB", (20000, 16)).save(tmp_path / "a.png")
    [one] = planned([DataSet(path=str(tmp_path), caption="x")], (512,), small="enlarge")
    assert np.prod(one.framing.scaled) > 50_000_000
    assert pixels(one).shape == (3, *one.framing.size[::-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_file_changed_after_the_scan(cache, tmp_path, fake, workers):
    """Said in its own words from a worker too; what was encoded before stays, and no process does."""
    keys = keys_of(folder_of(tmp_path / "p"), fake)
    picture(tmp_path / "p" / "4.png", colour=(9, 9, 9))
    with pytest.raises(UserError, match=r"4\.png was changed while it was in use") as raised:
        fill(cache, keys, fake, batch=1, workers=workers)
    assert "Traceback" not in str(raised.value)
    assert cache.size()["entries"] == 4
    (tmp_path / "p" / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png is not there \(any more\)"):
        fill(Cache(tmp_path / "other"), keys, fake, batch=1, workers=workers)
    wait_for_no_children()


def wait_for_no_children() -> None:
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert multiprocessing.active_children() == []


class _Dies(Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> int:
        if i == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return i


def test_a_worker_that_is_killed_is_said():
    with pytest.raises(UserError, match="most often for lack of memory"):
        list(ahead(_Dies(), 1))
    wait_for_no_children()


def test_fill_text(cache, tmp_path, fake):
    picture(tmp_path / "p" / "0.png", caption="a")
    picture(tmp_path / "p" / "1.png", caption="bb", colour=(1, 1, 1))
    picture(tmp_path / "p" / "2.png", caption="a", colour=(2, 2, 2))
    keys, told = keys_of(DataSet(path=str(tmp_path / "p")), fake), []
    wanted = everything_told(keys)
    encoder = Encoder(fake, PARTS, GEOMETRY)
    fill_text(cache, wanted, encoder, lambda done, of, **_: told.append((done, of)), 2)
    assert [t.text for t in wanted.values()] == ["", "a", "bb"]
    assert fake.calls == [2, 1]
    assert told == [(2, 3), (3, 3)]
    by_text = {t.text: k for k, t in wanted.items()}
    assert cache.get(by_text["bb"])["text"].tolist() == [2.0] * 4
    fill_text(cache, wanted, encoder, nothing)
    assert fake.calls == [2, 1]


# -- processes ---------------------------------------------------------------------------------------------------------


class Slow(Fake):
    """Takes a millisecond per batch, so that a kill falls anywhere in it."""

    def encode_media(self, parts, media):
        time.sleep(0.001)
        return super().encode_media(parts, media)


def _filling(root: Path, keys: Keys, start=None) -> None:
    module.SHARD_ENTRIES = 2
    if start:
        start.wait()
    fill(Cache(root), keys, Slow(), batch=1, workers=0)


def expected(keys: Keys) -> dict[str, torch.Tensor]:
    return {
        k: torch.nn.functional.avg_pool2d(pixels(p)[None], 8)[0] for k, p in zip(keys.all(), keys.plan, strict=True)
    }


def test_a_writer_killed_at_any_moment_leaves_a_cache_that_a_second_fill_completes(cache, tmp_path):
    """Twelve SIGKILLs, each somewhere in the writing of shards; whole entries only, and their number never falls."""
    keys = keys_of(folder_of(tmp_path / "p", 120), Slow())
    right, moments, there, killed = expected(keys), random.Random(0), 0, 0
    for _ in range(60):
        process = FORK.Process(target=_filling, args=[cache.root, keys])
        process.start()
        time.sleep(moments.uniform(0.005, 0.06))
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:  # on a busy machine it may be done before the kill, which shows nothing
            shutil.rmtree(cache.root)
            there = 0
            continue
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        fresh = Cache(cache.root)
        missing = fresh.missing(right)
        assert all(torch.equal(fresh.get(k)["latents"], right[k]) for k in right if k not in missing)
        assert len(right) - len(missing) >= there
        there = len(right) - len(missing)
        if killed >= 12 and 0 < there < len(right):
            break
    assert killed >= 12
    assert 0 < there < len(right)
    slow = Slow()
    fill(Cache(cache.root), keys, slow)
    assert sum(slow.calls) == len(right) - there
    last = Cache(cache.root)
    assert all(torch.equal(last.get(k)["latents"], v) for k, v in right.items())
    assert last.verify()["damaged"] == []


def test_two_processes_that_fill_the_same_plan_at_once(cache, tmp_path):
    keys, start = keys_of(folder_of(tmp_path / "p", 40), Slow()), FORK.Barrier(3)
    both = [FORK.Process(target=_filling, args=[cache.root, keys, start]) for _ in range(2)]
    for process in both:
        process.start()
    start.wait()
    reader, right = Cache(cache.root), expected(keys)
    while any(p.is_alive() for p in both):
        for k in set(right) - set(reader.missing(right)):
            assert torch.equal(reader.get(k)["latents"], right[k])
    assert [p.exitcode for p in both] == [0, 0]
    last = Cache(cache.root)
    assert last.missing(right) == []
    assert all(torch.equal(last.get(k)["latents"], v) for k, v in right.items())
    assert last.verify()["damaged"] == []
    assert not list(cache.folder.glob("*.tmp"))


def test_a_cache_goes_to_other_processes_as_its_folder(cache):
    import pickle

    cache.put(key(0), entry(0))
    cache.get(key(0))
    assert same(pickle.loads(pickle.dumps(cache)).get(key(0)), entry(0))


def test_a_plan_of_videos_names_its_clips_in_the_keys(fake):
    from tuner.data.index import Index

    from .conftest import item
    from .test_plan import VIDEO

    film = item(64, 64, "a.mp4", kind="video", frames=320, fps=16.0, seconds=20.0)
    specs = [DataSet(path="x")]
    many = plan(Index.of([film]), specs, MediaSpec(clips=3), [64], VIDEO)
    assert len(set(Keys(many, fake, "w", "t").all())) == 3
    slower = plan(Index.of([film]), specs, MediaSpec(clips=3, fps=8.0), [64], VIDEO)
    assert set(Keys(many, fake, "w", "t").all()).isdisjoint(Keys(slower, fake, "w", "t").all())
    renamed = plan(Index.of([replace(film, name="b", ref="b")]), specs, MediaSpec(clips=3), [64], VIDEO)
    assert Keys(renamed, fake, "w", "t").all() == Keys(many, fake, "w", "t").all()
