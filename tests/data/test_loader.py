"""Batches: the right tensors, the right dropout, one step ahead, and quick."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from PIL import Image

from tuner.data.buckets import plan
from tuner.data.cache import Cache, Encoder, fill_media, fill_text
from tuner.data.index import scan
from tuner.data.loader import Keys, Loader, Memory
from tuner.data.sampler import Sampler
from tuner.errors import UserError
from tuner.family import Geometry
from tuner.recipe import DataSet

from .conftest import Fake, picture


@pytest.fixture
def build(tmp_path, parts):
    for number in range(6):
        size = (64, 64) if number < 4 else (128, 64)
        picture(tmp_path / "p" / f"{number}.png", size, (number * 40, 0, 0), caption="x" * (number + 1))

    def make(batch=1, accumulate=1, mask=False, **more):
        spec = DataSet(path=str(tmp_path / "p"), mask=str(tmp_path / "m") if mask else None, on_problem="skip")
        planned, _ = plan(scan([spec], 16).items, [64], Geometry(16, 8))
        fake, cache = Fake(), Cache(tmp_path / "cache")
        encoder = Encoder(fake, parts, "w")
        media = fill_media(cache, planned, encoder)
        text = fill_text(cache, ["", *(p.item.caption for p in planned)], encoder)
        return Loader(Sampler(planned, batch, accumulate, 0), planned, cache, Keys(media, text), fake, **more)

    return make


def run(loader, start, count):
    steps = loader.steps(start)
    taken = [next(steps) for _ in range(count)]
    steps.close()
    return taken


def same(a, b):
    return a.keys == b.keys and a.draws == b.draws and torch.equal(a.latents, b.latents) and all(
        torch.equal(a.cond[k], b.cond[k]) for k in a.cond
    )  # fmt: skip


def test_batch(build):
    loader = build(batch=4)
    batch = next(b for s in run(loader, 0, 2) for b in s if len(b.keys) == 4)
    assert batch.latents.shape == (4, 3, 8, 8)
    assert batch.draws == (0, 1, 2, 3)
    assert batch.of == 4
    assert batch.mask is None
    for row, key in enumerate(batch.keys):
        number = int(key[-5])
        assert torch.allclose(batch.latents[row, 0], torch.tensor(number * 40 / 127.5 - 1))
        assert batch.cond["text"][row, 0] == number + 1
    assert batch.cond["size"].tolist() == [[64, 64, 0, 0, 64, 64]] * 4


def test_resume_is_exact(build):
    through = run(build(batch=2, caption_dropout=0.5), 0, 20)
    resumed = run(build(batch=2, caption_dropout=0.5), 7, 13)
    assert all(same(a, b) for s, t in zip(through[7:], resumed, strict=True) for a, b in zip(s, t, strict=True))


def test_accumulation_gives_the_same_items_text_and_places(build):
    two, one = build(batch=2, caption_dropout=0.5), build(batch=1, accumulate=2, caption_dropout=0.5)
    for a, b in zip(run(two, 0, 12), run(one, 0, 12), strict=True):
        assert [k for x in a for k in x.keys] == [k for x in b for k in x.keys]
        assert [d for x in a for d in x.draws] == [d for x in b for d in x.draws]
        assert torch.equal(torch.cat([x.cond["text"] for x in a]), torch.cat([x.cond["text"] for x in b]))


def test_caption_dropout_share(build):
    none, some, every = (build(caption_dropout=p) for p in (0.0, 0.3, 1.0))
    empty = [sum(float(s[0].cond["text"][0, 0]) == 0 for s in run(x, 0, 600)) / 600 for x in (none, some, every)]
    assert empty[0] == 0
    assert abs(empty[1] - 0.3) < 0.06
    assert empty[2] == 1
    assert every.fixed([0]).cond["text"][0, 0] == 1


def test_masks_with_ones_for_those_without(build, tmp_path):
    (tmp_path / "m").mkdir()
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    half.save(tmp_path / "m" / "0.png")
    loader = build(batch=4, mask=True)
    batch = next(b for s in run(loader, 0, 2) for b in s if len(b.keys) == 4)
    assert batch.mask.shape == (4, 1, 8, 8)
    means = {k[-5]: float(m.mean()) for k, m in zip(batch.keys, batch.mask, strict=True)}
    assert means == {"0": 0.5, "1": 1.0, "2": 1.0, "3": 1.0}


def test_errors_reach_the_consumer_and_threads_end(build):
    loader = build(memory=0)
    steps = loader.steps()
    next(steps)
    for path in loader.cache.root.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        for _ in range(3):
            next(steps)
    other = build().steps()
    next(other)
    other.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]


def test_memory_is_bounded(tmp_path):
    cache = Cache(tmp_path)
    for name in "abc":
        cache.put(name * 4, {"x": torch.zeros(100)})
    memory = Memory(cache, 800)
    for name in "abca":
        memory.get(name * 4)
        assert memory.used <= 800
    assert memory.get("aaaa") is memory.get("aaaa")


def test_overhead_is_small(build):
    """Under 1 ms of this thread's and the loader's time per step of one picture, once pictures are in memory."""
    steps = build().steps()
    for _ in range(12):
        next(steps)
    best = min(_timed(steps) for _ in range(5))
    steps.close()
    assert best < 1e-3


def _timed(steps, count=100):
    start = time.process_time()
    for _ in range(count):
        next(steps)
    return (time.process_time() - start) / count
