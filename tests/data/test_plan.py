"""The plan: nothing is lost, nothing is enlarged unasked, cuts lie inside, clips and sounds obey the family's rules."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.buckets import choose
from tuner.data.index import Index
from tuner.data.item import Companion
from tuner.data.plan import REASONS, Plan, plan
from tuner.errors import Problem
from tuner.family import Geometry
from tuner.recipe import DataSet, MediaSpec

from .conftest import GEOMETRY, item, texts

VIDEO = Geometry(16, 8, frame_step=4, fps=16.0, frames=33)
FILM = replace(VIDEO, sample_rate=16000, channels=1, hop=320)
SOUND = Geometry(sample_rate=44100, channels=2, hop=2048, seconds=10.0)

side = st.integers(1, 400)
crop = st.none() | st.tuples(
    st.integers(-20, 400), st.integers(-20, 400), st.integers(1, 300), st.integers(1, 300)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
items = st.lists(st.tuples(side, side, st.integers(0, 2), crop), max_size=25)
media = st.builds(
    MediaSpec,
    fit=st.sampled_from(["area", "edge", "exact"]),
    size=st.just((96, 64)),
    small=st.sampled_from(["own", "enlarge", "leave_out"]),
    crop=st.sampled_from(["center", "random", "top", "recorded"]),
).map(lambda m: m if m.fit == "exact" else m.model_copy(update={"size": None}))
resolutions = st.lists(st.integers(16, 256), min_size=1, max_size=3)


def made(listed, spec: MediaSpec, edges, roles=("train", "regularisation", "validation"), geometry=GEOMETRY) -> Plan:
    index = Index.of(
        item(w, h, f"{i}.png", dataset=d, crop=box)
        for i, (w, h, d, box) in enumerate(sorted(listed, key=lambda x: x[2]))
    )
    return plan(index, [DataSet(path="x", role=r) for r in roles], spec, edges, geometry)


def wanted_edges(spec: MediaSpec, edges) -> list[int]:
    return [78] if spec.fit == "exact" else sorted({r // 16 * 16 for r in edges})  # sqrt(96 * 64) is 78.4


def region(one, spec: MediaSpec) -> tuple[int, int, int, int]:
    """What is to be framed of an item."""
    if spec.crop != "recorded" or one.crop is None:
        return 0, 0, one.width, one.height
    return max(one.crop[0], 0), max(one.crop[1], 0), min(one.crop[2], one.width), min(one.crop[3], one.height)


@settings(max_examples=300, deadline=None)
@given(items, media, resolutions)
def test_every_item_has_one_bucket_per_resolution_or_a_reason(listed, spec, edges):
    got = made(listed, spec, edges)
    fates = Counter((int(row), got.buckets[b].resolution) for row, b in zip(got.rows, got.bucket, strict=True))
    for rows, resolution, reason in got.unused:
        assert reason in REASONS
        fates.update((int(r), e) for r in rows for e in ([resolution] if resolution else wanted_edges(spec, edges)))
    for row, one in enumerate(got.index.items):
        held = got.datasets[one.dataset].role == "validation"
        expected = wanted_edges(spec, edges)[: 1 if held else None]
        fate = {e: n for (r, e), n in fates.items() if r == row and e in expected}
        assert fate == dict.fromkeys(expected, 1)
    named = {n for p in got.problems for n in p.text.replace(",", " ").replace(":", " ").split()}
    for rows, _, _ in got.unused:
        assert all(got.index.item(int(r)).name in named for r in rows), "a sentence names every one of a few"
    assert [p.item.name for p in got] == [got[i].item.name for i in range(len(got))]


@settings(max_examples=300, deadline=None)
@given(items, media, resolutions)
def test_cuts_lie_inside_and_cover_the_region(listed, spec, edges):
    for p in made(listed, spec, edges):
        (w, h), (across, down), (left, top) = p.framing.size, p.framing.scaled, p.framing.corner
        assert (w, h) == (p.bucket.width, p.bucket.height)
        assert w % 16 == h % 16 == 0
        assert 0 <= left <= across - w
        assert 0 <= top <= down - h
        x, y, right, bottom = region(p.item, spec)
        scale = max(w / (right - x), h / (bottom - y))
        # one pixel for rounding the picture, the corner and the cut; the whole is stretched by less than a pixel
        assert abs(across - max(w, p.item.width * scale)) <= 1
        assert abs(down - max(h, p.item.height * scale)) <= 1
        slack = 1.5 + scale
        assert left >= x * scale - slack
        assert top >= y * scale - slack
        assert left + w <= right * scale + slack
        assert top + h <= bottom * scale + slack
        assert min(abs(w - (right - x) * scale), abs(h - (bottom - y) * scale)) < 1e-6, "one side is kept whole"
        if spec.small != "enlarge":
            assert across <= p.item.width
            assert down <= p.item.height
        if spec.crop == "top":
            assert top == 0
        if spec.crop == "center":
            assert abs(left - (across - w) / 2) <= 1
            assert abs(top - (down - h) / 2) <= 1


@settings(max_examples=50, deadline=None)
@given(items, st.permutations(range(25)))
def test_random_crops_depend_on_content_alone(listed, order):
    """However items are named, ordered or mixed, and differently for each resolution."""
    spec = MediaSpec(crop="random")
    plain = [item(w, h, f"{i}.png") for i, (w, h, _, _) in enumerate(listed)]
    moved = [replace(plain[i], name=f"elsewhere/{i}", ref="else") for i in order if i < len(plain)]
    a, b = (plan(Index.of(x), [DataSet(path="x")], spec, [32, 64], GEOMETRY) for x in (plain, moved))
    where = [{(p.item.digest, p.bucket.resolution): p.framing for p in got} for got in (a, b)]
    assert where[0] == where[1]


def test_random_crops_are_spread():
    wide = [item(400, 100, f"{i}.png") for i in range(400)]
    got = plan(Index.of(wide), [DataSet(path="x")], MediaSpec(crop="random", fit="exact", size=(96, 96)), [], GEOMETRY)
    share = got.corner[:, 0] / (got.scaled[:, 0] - 96)
    assert np.histogram(share, 4, (0, 1))[0].min() > 60
    assert (got.corner[:, 1] == 0).all()
    other = plan(got.index, got.datasets, MediaSpec(crop="random"), [64, 80], GEOMETRY)
    first, second = (other.corner[[other.buckets[b].resolution == e for b in other.bucket]] for e in (64, 80))
    assert len(np.unique(np.sign(first[:, 0] - second[:, 0]))) > 1


clip_settings = st.builds(
    MediaSpec,
    clips=st.integers(0, 5),
    frames=st.none() | st.integers(1, 100),
    fps=st.none() | st.sampled_from([6.0, 16.0, 25.0]),
    seconds=st.none() | st.floats(0.1, 5),
    sound=st.booleans(),
)
films = st.lists(
    st.tuples(st.floats(0.01, 20), st.sampled_from([10.0, 23.976, 30.0, 60.0]), st.booleans()), max_size=10
)


@settings(max_examples=200, deadline=None)
@given(films, clip_settings, st.sampled_from([4, 8]))
def test_clips_obey_the_rule_and_lie_inside(listed, spec, step):
    geometry = replace(FILM, frame_step=step)
    index = Index.of(
        item(64, 64, f"{i}.mp4", kind="video", frames=round(s * f), fps=f, seconds=s, rate=48000 * has)
        for i, (s, f, has) in enumerate(listed)
    )
    clips, frames, fps, sound = spec.clips, spec.frames, spec.fps, spec.sound
    got = plan(index, [DataSet(path="x")], spec, [64], geometry)
    rate = fps or 16.0
    seen: dict[str, list[float]] = {}
    for p in got:
        assert p.fps == rate
        assert (p.bucket.frames - 1) % step == 0
        assert 1 <= p.bucket.frames <= (frames or 33)
        assert p.start >= 0
        assert p.start + p.bucket.frames / rate <= p.item.seconds + 1e-5
        assert p.bucket.samples % 320 == 0
        assert p.bucket.samples <= p.bucket.frames / rate * 16000 + 1
        assert bool(p.bucket.samples) == bool(sound and p.item.rate and round(p.bucket.frames / rate * 16000) >= 320)
        seen.setdefault(p.item.name, []).append(p.start)
    lost = [int(r) for rows, _, reason in got.unused for r in rows if reason == "short"]
    assert sorted([*seen, *(index.item(r).name for r in lost)]) == sorted(i.name for i in index.items)
    for name, starts in seen.items():
        assert len(set(starts)) == len(starts), f"{name} has the same clip twice"
        assert len(starts) <= (clips or 1000)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0.001, 60), max_size=15), st.integers(0, 6), st.none() | st.floats(0.5, 30), st.integers(1, 4096)
)
def test_sounds_are_whole_frames_and_lie_inside(lengths, clips, seconds, hop):
    geometry = replace(SOUND, hop=hop)
    index = Index.of(item(0, 0, f"{i}.wav", kind="audio", seconds=s, rate=48000) for i, s in enumerate(lengths))
    got = plan(index, [DataSet(path="x")], MediaSpec(clips=clips, seconds=seconds), [], geometry)
    seen = Counter()
    for p in got:
        assert p.bucket.samples > 0
        assert p.bucket.samples % hop == 0
        assert p.bucket.samples <= (seconds or 10) * 44100
        assert p.start >= 0
        assert p.start * 44100 + p.bucket.samples <= p.item.seconds * 44100 + 1
        assert (p.bucket.width, p.bucket.height, p.bucket.frames) == (0, 0, 0)
        seen[p.item.name] += 1
    lost = {index.item(int(r)).name for rows, _, _ in got.unused for r in rows}
    assert lost.isdisjoint(seen)
    assert lost | set(seen) == {i.name for i in index.items}
    assert all(n <= (clips or 100000) for n in seen.values())
    assert len({(p.item.name, p.start) for p in got}) == len(got), "the same cut twice"
    assert len({b.samples for b in got.buckets}) <= 2 * 64 + 1


def said(listed, spec: MediaSpec, edges, **data: Any) -> list[Problem]:
    return plan(Index.of(listed), [DataSet(path="x", **data)], spec, edges, GEOMETRY).problems


def test_what_is_said_of_sizes():
    listed = [item(32, 32, "small.png"), item(64, 64), item(2000, 100, "wide.png")]
    problems = said(listed, MediaSpec(small="enlarge"), [64])
    assert "1 picture is smaller than its bucket and is enlarged up to 2 times (first: small.png)" in texts(
        problems, "note"
    )
    assert "first: wide.png" in texts(problems, "warning")
    assert "media.resolutions.0 is 8" in texts(said(listed, MediaSpec(), [8]))
    got = plan(Index.of([item()]), [DataSet(path="x")], MediaSpec(), [50, 60], GEOMETRY)
    assert [p.bucket.resolution for p in got] == [48]
    assert "media.resolutions.0 is 50; 48 is used" in texts(got.problems, "note")
    assert "it is used once" in texts(got.problems, "note")


def test_small_items_keep_their_own_size_and_are_trained_once():
    listed = [item(40, 40, "small.png"), item(200, 200, "large.png")]
    got = plan(Index.of(listed), [DataSet(path="x")], MediaSpec(), [64, 128], GEOMETRY)
    assert [(p.item.name, p.bucket.resolution, p.framing.size) for p in got] == [
        ("small.png", 64, (32, 32)), ("large.png", 64, (64, 64)), ("large.png", 128, (128, 128)),
    ]  # fmt: skip
    assert [(rows.tolist(), edge, why) for rows, edge, why in got.unused] == [([0], 128, "done")]
    assert "1 picture is smaller than the highest resolution" in texts(got.problems, "note")
    assert not texts(got.problems) + texts(got.problems, "warning")


def test_left_out_at_one_resolution_only_is_said():
    """Of small=leave_out, an item that a lower resolution trains is listed for the higher one."""
    got = plan(Index.of([item(70, 70)]), [DataSet(path="x")], MediaSpec(small="leave_out"), [64, 128], GEOMETRY)
    assert [(rows.tolist(), edge, why) for rows, edge, why in got.unused] == [([0], 128, "done")]
    assert not texts(got.problems, "warning")
    got = plan(Index.of([item(50, 50)]), [DataSet(path="x")], MediaSpec(small="leave_out"), [64, 128], GEOMETRY)
    assert [why for _, _, why in got.unused] == ["small", "small"]
    assert "Set media.small=own to train it smaller" in texts(got.problems, "warning")


def test_exact_does_not_offer_what_has_no_effect():
    problems = said([item(50, 50)], MediaSpec(fit="exact", size=(64, 64)), [])
    assert "media.small=enlarge" in texts(problems, "warning")
    assert problems[0].remedy == {"media.small": "enlarge"}


@pytest.mark.parametrize("width,height", [(31, 16), (16, 47), (20, 16), (16, 16)])
def test_the_smallest_items_fit_the_smallest_bucket(width, height):
    got = plan(Index.of([item(width, height)]), [DataSet(path="x")], MediaSpec(), [64], GEOMETRY)
    assert len(got) == 1
    assert not got.unused


@pytest.mark.parametrize("mode,level", [("stop", "error"), ("skip", "warning")])
def test_items_that_cannot_be_used(mode, level):
    listed = [item(8, 200, "tiny.png"), item(64, 64, "out.png", crop=(70, 0, 90, 20)), item(64, 64, "good.png")]
    got = plan(Index.of(listed), [DataSet(path="x", on_problem=mode)], MediaSpec(crop="recorded"), [64], GEOMETRY)
    assert [p.item.name for p in got] == ["good.png"]
    both = texts(got.problems, level)
    assert "1 picture is smaller than this model can take" in both
    assert "tiny.png (8x200)" in both
    assert "1 picture has a recorded crop outside of the picture" in both
    assert "out.png (64x64, crop [70, 0, 90, 20])" in both


def test_recorded_crops_are_only_used_when_asked_for():
    cut = item(400, 100, "a.png", crop=(300, 0, 400, 100))
    here = plan(Index.of([cut]), [DataSet(path="x")], MediaSpec(crop="recorded"), [96], GEOMETRY)[0].framing
    assert (here.scaled, here.corner, here.size) == ((384, 96), (288, 0), (96, 96))
    wide = item(1000, 100, "b.png", crop=(0, 0, 100, 100))
    assert "much wider" in texts(said([wide], MediaSpec(), [64]), "warning")
    assert "much wider" not in texts(said([wide], MediaSpec(crop="recorded"), [64]), "warning")


def test_buckets_are_not_shared_by_data_sets_resolutions_or_references():
    def ref(w, h):
        return Companion("r", "00" * 32, w, h)

    listed = [
        item(64, 64, "a"), item(64, 64, "b", dataset=1), item(64, 64, "c", references=(ref(64, 64),)),
        item(64, 64, "d", references=(ref(128, 64),)), item(64, 64, "e", references=(ref(128, 64), ref(64, 64))),
        item(64, 64, "f", references=(ref(128, 64),)),
    ]  # fmt: skip
    listed.sort(key=lambda i: i.dataset)
    got = plan(Index.of(listed), [DataSet(path="x")] * 2, MediaSpec(), [64], GEOMETRY)
    of = {p.item.name: got.bucket[i] for i, p in enumerate(got)}
    assert len(set(of.values())) == 5
    assert of["d"] == of["f"]
    assert got[0].bucket.references == ()
    assert {p.item.name: p.bucket.references for p in got}["e"] == ((96, 48), (64, 64))


@pytest.mark.parametrize("small", ["own", "leave_out"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_small_reference_keeps_its_own_size(small, exact):
    """It is neither enlarged nor shrunk to nothing."""
    listed = [item(256, 256, references=(Companion("r", "00" * 32, 100, 100),))]
    spec = MediaSpec(small=small, fit="exact", size=(128, 128)) if exact else MediaSpec(small=small)
    got = plan(Index.of(listed), [DataSet(path="x")], spec, [128], GEOMETRY)
    assert got[0].bucket.references == ((96, 96),)


def test_masked_and_controlled_items_mark_their_buckets():
    mask = Companion("m", "00" * 32, 64, 64)
    got = plan(
        Index.of([item(name="a", mask=mask), item(name="b"), item(name="c", dataset=1, control=mask)]),
        [DataSet(path="x")] * 2, MediaSpec(), [64], GEOMETRY,
    )  # fmt: skip
    assert [(b.masked, b.controlled) for b in (got.buckets[k] for k in got.bucket)] == [
        (True, False), (True, False), (False, True),
    ]  # fmt: skip


def test_an_empty_index_and_a_saved_one(tmp_path):
    empty = plan(Index(), [DataSet(path="x")], MediaSpec(), [64], GEOMETRY)
    assert len(empty) == 0
    assert list(empty) == []
    listed = [
        item(64, 80, "ä.png", captions=("a", "b"), crop=(1, 2, 3, 40), lyrics="la",
             mask=Companion("m", "11" * 32, 5, 6), references=(Companion("r", "22" * 32, 7, 8),)),
        item(64, 80, "v.mp4", kind="video", frames=9, fps=24.0, seconds=0.375, rate=48000),
    ]  # fmt: skip
    Index.of(listed).save(tmp_path / "index.parquet")
    loaded = Index.load(tmp_path / "index.parquet")
    assert list(loaded.items) == listed
    assert [loaded.item(i) for i in range(2)] == listed
    assert loaded.items[-1] == listed[1]
    assert loaded.items[0:2] == listed
    assert loaded.texts() == ["a", "b", "v.mp4"]


def test_choose_of_many_is_choose_of_each():
    random = np.random.default_rng(0)
    w, h = random.integers(16, 4000, (2, 500))
    many = choose(w, h, 512, 16)
    assert many.tolist() == [choose(w[i : i + 1], h[i : i + 1], 512, 16)[0].tolist() for i in range(500)]
