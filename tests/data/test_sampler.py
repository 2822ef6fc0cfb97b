"""The order of items: complete, disjoint over ranks, the same however a step is cut, and resumable anywhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.index import Index
from tuner.data.plan import plan
from tuner.data.sampler import Draw, Rules, Sampler, Uses, uses
from tuner.recipe import DataSet, MediaSpec

from .conftest import GEOMETRY, item

TIMES = (1.0, 2.0, 3.0, 0.5, 1.5, 2.25, 0.1)
specs = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 12)), min_size=1, max_size=6, unique_by=lambda b: b[0])
"""(place in TIMES, items) of each bucket."""
small = st.integers(1, 4)
lasts = st.sampled_from(["smaller", "fill"])


def listed(spec, whole: bool = False) -> Uses:
    """Uses 0, 1, ... in the buckets of a spec, mixed."""
    bucket = np.concatenate([np.full(n, b) for b, (_, n) in enumerate(spec)])
    bucket = np.random.default_rng(0).permutation(bucket)
    times = np.array([TIMES[t % 3 if whole else t] for t, _ in spec])
    return Uses(np.arange(len(bucket)), bucket, times[bucket])


def epoch(sampler: Sampler, number: int = 0) -> list[list[list[Draw]]]:
    """The steps of one epoch, by walking from the start."""
    steps, k = [], 0
    while True:
        step = sampler.step(k)
        place = sampler._place(k)[0]
        if place > number:
            return steps
        steps += [step] if place == number else []
        k += 1


def flat(step: list[list[Draw]]) -> list[Draw]:
    return [d for micro in step for d in micro]


@settings(max_examples=100, deadline=None)
@given(specs, small, st.tuples(small, small), lasts, st.integers(0, 3))
def test_complete_and_disjoint_over_ranks(spec, batch, cut, last, number):
    """Over all ranks every item is drawn as often as its repeats say; each step comes from one bucket."""
    accumulate, world = cut
    given = listed(spec, whole=True)
    ranks = [Sampler(given, Rules(batch, accumulate, 7, last), rank=r, world=world) for r in range(world)]
    n = ranks[0].steps_per_epoch
    seen: Counter[int] = Counter()
    for k in range(number * n, (number + 1) * n):
        steps = [s.step(k) for s in ranks]
        draws = [d for step in steps for d in flat(step)]
        assert all(0 < len(micro) <= batch for step in steps for micro in step)
        assert all(len(step) <= accumulate for step in steps)
        assert [d.place for d in draws] == list(range(len(draws)))
        assert {d.of for d in draws} == {len(draws)}
        assert {d.epoch for d in draws} == {number}
        assert len({int(given.bucket[d.index]) for d in draws}) == 1
        assert len(draws) == ranks[0].size or last == "smaller"
        seen.update(d.index for d in draws)
    expected = Counter({i: int(t) for i, t in enumerate(given.times)})
    if last == "smaller":
        assert seen == expected
        assert ranks[0].items_per_epoch == seen.total()
    else:
        assert all(seen[i] >= n for i, n in expected.items())
        assert seen.total() == n * ranks[0].size


@settings(max_examples=50, deadline=None)
@given(specs, small, st.integers(2, 4))
def test_two_ranks_never_share_an_item_that_is_seen_once(spec, batch, world):
    once = listed([(0, n) for _, n in spec])
    ranks = [Sampler(once, Rules(batch, 1, 3), rank=r, world=world) for r in range(world)]
    seen = [{d.index for k in range(s.steps_per_epoch) for d in flat(s.step(k))} for s in ranks]
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(once.index)


@settings(max_examples=60, deadline=None)
@given(specs, small, small, lasts)
def test_fractions_see_every_item_equally_often(spec, batch, world, last):
    """Up to any epoch, two items of one bucket differ by one draw, and each has its weight times the epochs, +-1.

    This holds for buckets of one item too: 0.5 is every second epoch for it.
    """
    given = listed([(3 + t % 4, n) for t, n in spec])
    ranks = [Sampler(given, Rules(batch, 1, 5), rank=r, world=world) for r in range(world)]
    filled = Sampler(given, Rules(batch, world, 5, last))
    seen, k, plain = np.zeros(len(given.index)), 0, Sampler(given, Rules(batch, world, 5))
    for number in range(24):
        while plain._place(k)[0] == number:
            draws = [d for s in ranks for d in flat(s.step(k))]
            assert draws == flat(plain.step(k))
            more = [d.index for d in flat(filled.step(k))]
            assert more[: len(draws)] == [d.index for d in draws]
            assert len(more) == (filled.size if last == "fill" else len(draws))
            seen += np.bincount([d.index for d in draws], minlength=len(seen))
            k += 1
        assert np.abs(seen - given.times * (number + 1)).max() <= 1 + 1e-9
        for b in set(given.bucket.tolist()):
            assert np.ptp(seen[given.bucket == b]) <= 1


@settings(max_examples=50, deadline=None)
@given(specs, small, small, st.integers(0, 99), lasts)
def test_accumulation_gives_the_same_steps(spec, batch, accumulate, seed, last):
    given = listed(spec)
    one = Sampler(given, Rules(batch * accumulate, 1, seed, last))
    for cut in ((batch, accumulate), (1, batch * accumulate)):
        other = Sampler(given, Rules(*cut, seed, last))
        assert other.steps_per_epoch == one.steps_per_epoch
        for k in range(40):
            assert flat(one.step(k)) == flat(other.step(k))


@settings(max_examples=50, deadline=None)
@given(specs, small, st.integers(1, 6), st.integers(0, 99), lasts)
def test_ranks_cut_the_same_order(spec, batch, world, seed, last):
    given = listed(spec)
    whole = Sampler(given, Rules(batch, world, seed, last))
    ranks = [Sampler(given, Rules(batch, 1, seed, last), rank=r, world=world) for r in range(world)]
    for k in range(40):
        assert [d for s in ranks for d in flat(s.step(k))] == flat(whole.step(k))


@settings(max_examples=50, deadline=None)
@given(specs, small, st.integers(0, 99), st.lists(st.integers(0, 200), min_size=1, max_size=10), lasts)
def test_resume_anywhere(spec, batch, seed, places, last):
    given = listed(spec)
    through = Sampler(given, Rules(batch, 1, seed, last))
    steps = [through.step(k) for k in range(201)]
    for k in places:
        assert Sampler(given, Rules(batch, 1, seed, last)).step(k) == steps[k]


@settings(max_examples=60, deadline=None)
@given(specs, small, st.integers(0, 99), st.lists(st.integers(1, 5), min_size=72, max_size=72))
def test_single_items_have_repeats_of_their_own(spec, batch, seed, repeats):
    """Each is drawn as often as its own repeats say, over the epochs also at fractions; any step is found at once."""
    given = listed(spec)
    each = np.array(repeats[: len(given.index)])
    mixed = Uses(given.index, given.bucket, given.times, each)
    through, seen, k = Sampler(mixed, Rules(batch, 1, seed)), np.zeros(len(each)), 0
    while through._place(k)[0] < 3:
        step = through.step(k)
        assert Sampler(mixed, Rules(batch, 1, seed)).step(k) == step
        seen += np.bincount([d.index for d in flat(step)], minlength=len(seen))
        k += 1
    assert (np.abs(seen - 3 * given.times * each) <= np.where(given.times % 1, each, 0) + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(specs, small, st.integers(1, 4))
def test_the_same_repeats_for_all_are_those_of_the_data_set(spec, batch, times):
    """A recipe without repeats of single items keeps its order, and so does one that names all."""
    given = listed(spec)
    one = Sampler(Uses(given.index, given.bucket, given.times * times), Rules(batch, 1, 5))
    other = Sampler(Uses(given.index, given.bucket, given.times, np.full(len(given.index), times)), Rules(batch, 1, 5))
    assert [one.step(k) for k in range(40)] == [other.step(k) for k in range(40)]


def test_a_far_step_is_found_where_epochs_differ():
    """Half a time of three items: no walk from the start is needed that a resume would feel."""
    given = Uses(np.arange(3), np.zeros(3, np.int64), np.full(3, 0.5))
    sampler = Sampler(given, Rules(1, 1, 0))
    assert sampler.step(150_000)[0][0].epoch == pytest.approx(100_000, abs=1)


def test_epochs_and_seeds_differ():
    given = listed([(0, 20)])
    first = Sampler(given, Rules(2, 1, 0))
    assert epoch(first) != epoch(first, 1)
    assert epoch(first) != epoch(Sampler(given, Rules(2, 1, 1)))
    assert epoch(first) == epoch(first)


def test_what_is_held_for_validation_is_not_drawn():
    mixed = plan(
        Index.of([item(), item(name="v.png", dataset=1), item(name="r.png", dataset=2)]),
        [DataSet(path="x"), DataSet(path="x", role="validation"), DataSet(path="x", role="regularisation")],
        MediaSpec(), [64], GEOMETRY,
    )  # fmt: skip
    chosen = mixed.having("train", "regularisation")
    found = uses(chosen, mixed.bucket[chosen], [b.dataset for b in mixed.buckets], [1.0, 1.0, 2.0])
    sampler = Sampler(found, Rules(1, 1, 0))
    assert sampler.steps_per_epoch == 3
    drawn = Counter(mixed[d.index].item.name for step in epoch(sampler) for d in flat(step))
    assert drawn == {"a.png": 1, "r.png": 2}
    assert [mixed[int(i)].item.name for i in mixed.having("validation")] == ["v.png"]
    assert sampler.per_bucket() == [(1, 1), (2, 2)]


def test_nothing_to_draw():
    nothing = Uses(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    assert Sampler(nothing, Rules(1, 1, 0)).steps_per_epoch == 0
    assert uses(np.empty(0, np.int64), np.empty(0, np.int64), [], []).index.size == 0


def test_order_is_pinned():
    """A changed order would break every resume: this is the order of today."""
    whole = Sampler(listed([(0, 6)]), Rules(2, 1, 0))
    assert [[d.index for d in flat(s)] for s in epoch(whole)] == PINNED
    parts = Sampler(listed([(0, 3), (3, 3), (4, 2)]), Rules(2, 1, 0, "fill"))
    assert [[d.index for d in flat(parts.step(k))] for k in range(10)] == PINNED_PARTS
    large = Sampler(listed([(0, 1000), (5, 300)]), Rules(4, 1, 1))
    total = 0
    for k in range(700):
        for d in flat(large.step(k)):
            total = (total * 31 + d.index) % 1_000_000_007
    assert total == PINNED_SUM


PINNED = [[1, 4], [5, 0], [3, 2]]
PINNED_PARTS = [[3, 7], [7, 7], [0, 5], [5, 6], [2, 2], [4, 1], [7, 3], [5, 6], [3, 3], [0, 5]]
PINNED_SUM = 549505656
