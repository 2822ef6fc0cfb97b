"""Batches: the right tensors and texts, the same for any number of workers, ahead of the training, and quick."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tuner.data.cache import Cache
from tuner.data.fill import Encoder, Keys, everything_told, fill_media, fill_text
from tuner.data.index import Index
from tuner.data.loader import Loader
from tuner.data.plan import Plan, plan
from tuner.data.sampler import Rules, Sampler, uses
from tuner.errors import UserError
from tuner.recipe import DataSet, MediaSpec
from tuner.types import Batch, Parts

from .conftest import GEOMETRY, Fake, nothing, picture, planned


class Editing(Fake):
    """Caches its reference pictures' means, and its prompts look at them."""

    reads = frozenset({"references"})

    def media_cond(self, parts, media):
        rows = zip(*media.references, strict=True) if media.references else [()] * len(media.pixels)
        return [{"reference": torch.stack([r.mean() for r in row])} for row in rows]

    def encode_text(self, parts, prompts):
        plain = super().encode_text(parts, prompts)
        return [
            {**c, "seen": torch.stack([r.mean() for r in p.references])} for c, p in zip(plain, prompts, strict=True)
        ]


def loader_of(made: Plan, cache: Cache, fake: Fake, **more) -> Loader:
    """Everything encoded. more: of the sampler's rules and of the loader."""
    rules = {k: more.pop(k) for k in ("accumulate", "last") if k in more}
    keys = Keys(made, fake, "w", "t")
    encoder = Encoder(fake, Parts("transformer"), GEOMETRY)
    fill_media(cache, keys, encoder, nothing)
    fill_text(cache, everything_told(keys), encoder, nothing)
    chosen = made.having("train", "regularisation")
    times = [spec.repeats * spec.weight for spec in made.datasets]
    rank = {k: more.pop(k) for k in ("rank", "world") if k in more}
    given = uses(chosen, made.bucket[chosen], [b.dataset for b in made.buckets], times)
    sampler = Sampler(given, Rules(more.pop("batch", 1), seed=0, **{"accumulate": 1, **rules}), **rank)
    return Loader(sampler, cache, keys, fake, **more)


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        size = (64, 64) if number < 4 else (128, 64)
        picture(tmp_path / "p" / f"{number}.png", size, (number * 40, 0, 0), caption="x" * (number + 1))
    return tmp_path / "p"


@pytest.fixture
def build(folder, tmp_path):
    def make(*, mask=False, **more):
        spec = DataSet(path=str(folder), mask=str(tmp_path / "m") if mask else None, on_problem="skip")
        return loader_of(planned([spec]), Cache(tmp_path / "cache"), Fake(), **more)

    return make


def run(loader: Loader, start: int, count: int) -> list[list[Batch]]:
    steps = loader.steps(start)
    taken = [next(steps) for _ in range(count)]
    steps.close()
    return taken


def same(a: Batch, b: Batch) -> bool:
    masks = a.mask is b.mask if a.mask is None or b.mask is None else torch.equal(a.mask, b.mask)
    return (a.keys, a.draws, a.of, a.role) == (b.keys, b.draws, b.of, b.role) and masks and torch.equal(
        a.latents, b.latents
    ) and a.cond.keys() == b.cond.keys() and all(torch.equal(a.cond[k], b.cond[k]) for k in a.cond)  # fmt: skip


def assert_same(a: list[list[Batch]], b: list[list[Batch]]) -> None:
    assert len(a) == len(b)
    for s, t in zip(a, b, strict=True):
        assert len(s) == len(t)
        assert all(same(x, y) for x, y in zip(s, t, strict=True))


def nothing_is_left() -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and multiprocessing.active_children():
        time.sleep(0.02)
    assert multiprocessing.active_children() == []
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]


def number_of(key: str) -> int:
    return int(key[-5])


def test_batch(build):
    loader = build(batch=4)
    batch = next(b for s in run(loader, 0, 2) for b in s if len(b.keys) == 4)
    assert batch.latents.shape == (4, 3, 8, 8)
    assert batch.draws == (0, 1, 2, 3)
    assert batch.of == 4
    assert batch.mask is None
    assert batch.control is None
    assert (batch.role, batch.strength) == ("train", 1.0)
    for row, key in enumerate(batch.keys):
        assert torch.allclose(batch.latents[row, 0], torch.tensor(number_of(key) * 40 / 127.5 - 1))
        assert batch.cond["text"][row, 0] == number_of(key) + 1
    assert batch.cond["size"].tolist() == [[64, 64, 0, 0, 64, 64]] * 4


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_resume_is_exact_for_any_number_of_workers(build, workers):
    """In the middle of an epoch: names, places, values, texts."""
    through = run(build(batch=2, caption_dropout=0.5), 0, 20)
    assert build(batch=2).sampler.steps_per_epoch == 3
    for start in (0, 7):
        resumed = run(build(batch=2, caption_dropout=0.5, workers=workers), start, 20 - start)
        assert_same(through[start:], resumed)
    nothing_is_left()


def test_resume_with_weights_ranks_and_filled_steps(folder, tmp_path):
    """Where epochs differ in length, and two ranks share them."""
    specs = [DataSet(path=str(folder), weight=0.5), DataSet(path=str(folder), weight=2.25, role="regularisation")]
    made = planned(specs, (48, 64))

    def make(**more) -> Loader:
        return loader_of(made, Cache(tmp_path / "cache"), Fake(), caption_dropout=0.3, batch=2, **more)

    for rank in range(2):
        through = run(make(rank=rank, world=2, last="fill"), 0, 30)
        for workers in (0, 1):
            assert_same(through[13:], run(make(rank=rank, world=2, last="fill", workers=workers), 13, 17))
    both = [run(make(rank=r, world=2), 0, 30) for r in range(2)]
    whole = run(make(accumulate=2), 0, 30)
    for one, two, all_of_it in zip(*both, whole, strict=True):
        assert [d for b in one + two for d in b.draws] == [d for b in all_of_it for d in b.draws]
        assert [k for b in one + two for k in b.keys] == [k for b in all_of_it for k in b.keys]
        a, b = (torch.cat([x.cond["text"] for x in step]) for step in (one + two, all_of_it))
        assert torch.equal(a, b)


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


def test_all_of_several_captions_are_drawn(folder, tmp_path):
    """Evenly, by step and place; another seed draws others; validation takes the first."""
    found = planned([DataSet(path=str(folder))]).index
    several = [
        replace(i, captions=("", "a", "bb", "cccc")[: 4 if number else 1]) for number, i in enumerate(found.items)
    ]
    made = plan(Index.of(several), [DataSet(path=str(folder))], MediaSpec(), [64], GEOMETRY)

    def make(**more) -> Loader:
        return loader_of(made, Cache(tmp_path / "cache"), Fake(), **more)

    drawn: dict[int, Counter[int]] = {i: Counter() for i in range(6)}
    for [batch] in run(make(), 0, 1200):
        drawn[number_of(batch.keys[0])][int(batch.cond["id"][0])] += 1
    assert drawn[0] == {0: 200}
    for number in range(1, 6):
        assert set(drawn[number]) == {0, 1, 2, 4}
        assert min(drawn[number].values()) > 25
    assert_same(run(make(batch=2), 0, 20), run(make(batch=2, workers=1), 0, 20))
    texts = [[int(b.cond["id"][0]) for [b] in run(make(seed=seed), 0, 50)] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert make().fixed([1, 2]).cond["id"].tolist() == [0, 0]


def test_masks_with_ones_for_those_without(build, tmp_path):
    (tmp_path / "m").mkdir()
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    half.save(tmp_path / "m" / "0.png")
    loader = build(batch=4, mask=True)
    batch = next(b for s in run(loader, 0, 2) for b in s if len(b.keys) == 4)
    assert batch.mask.shape == (4, 1, 8, 8)
    means = {number_of(k): float(m.mean()) for k, m in zip(batch.keys, batch.mask, strict=True)}
    assert means == {0: 0.5, 1: 1.0, 2: 1.0, 3: 1.0}


def test_control_pictures(folder, tmp_path):
    for number in range(6):
        size = (64, 64) if number < 4 else (128, 64)
        picture(tmp_path / "c" / f"{number}.png", size, (0, number * 40, 255), caption=None)
    spec = DataSet(path=str(folder), control=str(tmp_path / "c"))
    for [batch] in run(loader_of(planned([spec]), Cache(tmp_path / "cache"), Fake(), batch=4), 0, 4):
        assert batch.control.shape[-2:] == tuple(8 * v for v in batch.latents.shape[-2:])
        for key, one in zip(batch.keys, batch.control, strict=True):
            assert torch.allclose(one[1], torch.tensor(number_of(key) * 40 / 127.5 - 1))
            assert torch.allclose(one[2], torch.tensor(1.0))


def test_a_reference_set(folder, tmp_path):
    """What was cached beside the latents, and prompts that look at the pictures, also in the empty prompt."""
    for number in range(6):
        picture(tmp_path / "r" / f"{number}.png", (64, 64), (number * 30,) * 3, caption=None)
    spec = DataSet(path=str(folder), reference=str(tmp_path / "r"))
    for dropout in (0.0, 1.0):
        loader = loader_of(planned([spec]), Cache(tmp_path / "cache"), Editing(), batch=4, caption_dropout=dropout)
        for [batch] in run(loader, 0, 4):
            expected = torch.tensor([[number_of(k) * 30 / 127.5 - 1] for k in batch.keys])
            assert torch.allclose(batch.cond["reference"], expected, atol=1e-5)
            assert torch.allclose(batch.cond["seen"], expected, atol=1e-5)
            assert bool((batch.cond["id"] == 0).all()) == (dropout == 1)
    before = Keys(planned([spec]), Editing(), "w", "t")
    picture(tmp_path / "r" / "2.png", (64, 64), (1, 2, 3), caption=None)
    after = Keys(planned([spec]), Editing(), "w", "t")
    assert [a == b for a, b in zip(before.all(), after.all(), strict=True)] == [True, True, False, True, True, True]
    assert len(everything_told(before).keys() - everything_told(after).keys()) == 2, "its caption and the empty one"


def test_a_mixed_plan(folder, tmp_path):
    """Masked pictures, a regularisation set, a slider's strength and a second resolution; no batch mixes them."""
    (tmp_path / "m").mkdir()
    Image.new("L", (64, 64), 255).save(tmp_path / "m" / "0.png")
    picture(tmp_path / "v" / "9.png", (64, 64), (9, 9, 9))
    specs = [
        DataSet(path=str(folder), mask=str(tmp_path / "m"), on_problem="skip", repeats=2, strength=-0.5),
        DataSet(path=str(folder), role="regularisation"),
        DataSet(path=str(tmp_path / "v"), role="validation"),
    ]
    made = planned(specs, (32, 64))
    loader = loader_of(made, Cache(tmp_path / "cache"), Fake(), batch=4)
    seen: Counter[tuple] = Counter()
    for step in run(loader, 0, loader.sampler.steps_per_epoch):
        for batch in step:
            first = batch.role == "train"
            assert batch.strength == (-0.5 if first else 1.0)
            assert (batch.mask is not None) == first
            seen.update((batch.role, number_of(k), tuple(batch.latents.shape[-2:])) for k in batch.keys)
    sizes = {n: [(4, 4), (8, 8)] if n < 4 else [(3, 6), (6, 12)] for n in range(6)}
    assert {(r, n) for r, n, _ in seen} == {(r, n) for r in ("train", "regularisation") for n in range(6)}
    assert all(count == (2 if role == "train" else 1) for (role, _, _), count in seen.items())
    assert len(seen) == 2 * 6 * 2
    assert all(shape in sizes[n] for _, n, shape in seen if n < 4)
    held = loader.fixed([int(i) for i in made.having("validation")])
    assert held.role == "validation"
    assert len(held.keys) == 1, "at the first resolution alone"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_errors_reach_the_consumer_and_nothing_is_left(build, workers):
    loader = build(workers=workers)
    shutil.rmtree(loader.cache.folder)
    loader.cache = Cache(loader.cache.root)
    with pytest.raises(UserError, match="missing or damaged") as raised:
        next(loader.steps())
    assert "Traceback" not in str(raised.value)
    nothing_is_left()
    other = build(workers=workers).steps()
    next(other)
    other.close()
    nothing_is_left()
    dropped = build(workers=workers).steps()
    next(dropped)
    del dropped
    nothing_is_left()


def test_overhead_is_small(build):
    """Under 1 ms of this thread's and the loader's time per step of one picture."""
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
