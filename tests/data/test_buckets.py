"""Buckets: sizes fit the model, shapes stay near, every picture gets one place per resolution."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.buckets import buckets, choose, frame, plan, step_of
from tuner.family import Geometry

from .conftest import item, texts

multiples = st.sampled_from([8, 16, 32, 64])
sides = st.integers(8, 12000)


@settings(max_examples=300, deadline=None)
@given(sides, sides, multiples, st.integers(1, 96))
def test_frame_is_inside_and_fits(width, height, multiple, steps):
    edge = multiple * steps
    framing = frame((width, height), choose(width / height, edge, multiple))
    (w, h), (sw, sh), (left, top) = framing.size, framing.scaled, framing.corner
    assert w % multiple == h % multiple == 0
    assert min(w, h) >= multiple
    assert left >= 0
    assert top >= 0
    assert left + w <= sw
    assert top + h <= sh
    assert sw == w or sh == h or min(sw / w, sh / h) < 1 + 1 / min(w, h)
    assert abs(w * h - edge * edge) <= max(w, h) * step_of(edge, multiple)


@settings(max_examples=300, deadline=None)
@given(st.floats(0.25, 4), multiples, st.integers(16, 96))
def test_shape_stays_near(aspect, multiple, steps):
    """Within two bucket steps of the short side, for shapes up to 4:1."""
    edge = multiple * steps
    w, h = choose(aspect, edge, multiple)
    assert abs(math.log(w / h / aspect)) <= step_of(edge, multiple) / min(w, h)


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 100), multiples, st.integers(1, 96))
def test_nearest_of_all_is_chosen(aspect, multiple, steps):
    edge = multiple * steps
    errors = [abs(math.log(w / h / aspect)) for w, h in buckets(edge, multiple)]
    w, h = choose(aspect, edge, multiple)
    assert (w, h) in buckets(edge, multiple)
    assert abs(math.log(w / h / aspect)) <= min(errors) + 1e-9


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(sides, sides), max_size=20), st.lists(st.integers(64, 1024), min_size=1, max_size=3))
def test_every_item_once_per_resolution(sizes, resolutions):
    items = [item(w, h, f"{i}.png") for i, (w, h) in enumerate(sizes)]
    planned, _ = plan(items, resolutions, Geometry(16, 8))
    edges = list(dict.fromkeys(r // 16 * 16 for r in resolutions))
    assert [(p.item, p.resolution) for p in planned] == [(i, e) for i in items for e in edges]
    assert all(p.framing.original == (p.item.width, p.item.height) for p in planned)


@pytest.mark.parametrize("edge,multiple,step", [(1024, 16, 64), (512, 8, 32), (64, 16, 16), (1000, 8, 40), (488, 8, 8)])
def test_steps(edge, multiple, step):
    assert step_of(edge, multiple) == step
    assert (edge, edge) in buckets(edge, multiple)
    assert choose(1.0, edge, multiple) == (edge, edge)


def test_known_sizes():
    assert choose(16 / 9, 1024, 16) == (1344, 768)
    assert choose(3 / 4, 1024, 16) == (896, 1152)
    assert all((h, w) in buckets(1024, 16) for w, h in buckets(1024, 16))
    assert len(buckets(1024, 16)) < 40


def test_problems():
    items = [item(32, 32, "small.png"), item(64, 64), item(2000, 100, "wide.png")]
    _, problems = plan(items, [64], Geometry(16, 8))
    assert "1 picture is smaller than its bucket and is enlarged up to 2 times (first: small.png)" in texts(
        problems, "note"
    )
    assert "first: wide.png" in texts(problems, "warning")
    _, problems = plan(items, [8], Geometry(16, 8))
    assert "media.resolutions.0 is 8" in texts(problems)
    planned, problems = plan([item()], [50, 60], Geometry(16, 8))
    assert [p.resolution for p in planned] == [48]
    assert "media.resolutions.0 is 50; 48 is used" in texts(problems, "note")
    assert "it is used once" in texts(problems, "note")
