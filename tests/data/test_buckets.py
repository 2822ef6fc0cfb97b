"""Buckets: sizes fit the model, shapes stay near, the nearest of all is chosen, small ones keep their own size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.buckets import WIDEST, buckets, choose, frame, shapes, sized, step_of
from tuner.recipe import MediaSpec

multiples = st.sampled_from([8, 16, 32, 64])
sides = st.integers(8, 12000)
fits = st.sampled_from(["area", "edge"])


def one(width: float, height: float, edge: int, multiple: int, fit: str = "area") -> tuple[int, int]:
    """The bucket of one picture."""
    w, h = choose(np.array([width]), np.array([height]), edge, multiple, fit)[0].tolist()
    return w, h


@settings(max_examples=300, deadline=None)
@given(sides, sides, multiples, st.integers(1, 96))
def test_frame_is_inside_and_fits(width, height, multiple, steps):
    edge = multiple * steps
    framing = frame((width, height), one(width, height, edge, multiple))
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
    w, h = one(aspect, 1.0, edge, multiple)
    assert abs(math.log(w / h / aspect)) <= step_of(edge, multiple) / min(w, h)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), multiples, st.integers(1, 96), fits)
def test_nearest_of_all_is_chosen(aspects, multiple, steps, fit):
    edge = multiple * steps
    sizes = shapes(edge, multiple, fit)[1].tolist()
    chosen = choose(np.array(aspects), np.ones(len(aspects)), edge, multiple, fit).tolist()
    for aspect, (w, h) in zip(aspects, chosen, strict=True):
        assert [w, h] in sizes
        assert abs(math.log(w / h / aspect)) <= min(abs(math.log(a / b / aspect)) for a, b in sizes) + 1e-9


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 100), multiples, st.integers(1, 96))
def test_edge_is_the_shorter_side(aspect, multiple, steps):
    edge = multiple * steps
    w, h = one(aspect, 1.0, edge, multiple, "edge")
    assert min(w, h) == edge
    assert max(w, h) <= WIDEST * edge
    assert w % multiple == h % multiple == 0


@settings(max_examples=300, deadline=None)
@given(sides, sides, multiples, st.integers(1, 64), fits)
def test_a_small_item_takes_the_largest_bucket_that_does_not_enlarge_it(width, height, multiple, steps, fit):
    edge, media = multiple * steps, MediaSpec(fit=fit)
    size, own = sized(np.array([width]), np.array([height]), edge, media, multiple)
    (w, h), own = size[0].tolist(), int(own[0])
    if min(width, height) < multiple:
        assert own == 0
        return
    assert 0 < own <= edge
    assert w <= width
    assert h <= height
    assert w % multiple == h % multiple == 0
    step = step_of(edge, multiple)
    for larger in range(own + step, edge + 1, step):
        a, b = one(width, height, larger, multiple, fit)
        assert a > width or b > height, f"{larger} would have done"


@settings(max_examples=100, deadline=None)
@given(sides, sides, multiples, st.integers(1, 64), st.sampled_from(["area", "edge", "exact"]))
def test_small_items_enlarged_or_left_out(width, height, multiple, steps, fit):
    edge = multiple * steps
    given = {"fit": fit, "size": (edge, 2 * edge) if fit == "exact" else None}
    both = np.array([width]), np.array([height])
    large, edges = sized(*both, edge, MediaSpec(small="enlarge", **given), multiple)
    assert edges.tolist() == [edge]
    _, kept = sized(*both, edge, MediaSpec(small="leave_out", **given), multiple)
    w, h = large[0].tolist()
    assert kept.tolist() == [edge if w <= width and h <= height else 0]


@pytest.mark.parametrize("edge,multiple,step", [(1024, 16, 64), (512, 8, 32), (64, 16, 16), (1000, 8, 40), (488, 8, 8)])
def test_steps(edge, multiple, step):
    assert step_of(edge, multiple) == step
    assert (edge, edge) in buckets(edge, multiple)
    assert one(1, 1, edge, multiple) == (edge, edge)


def test_known_sizes():
    assert one(16, 9, 1024, 16) == (1344, 768)
    assert one(3, 4, 1024, 16) == (896, 1152)
    assert one(16, 9, 512, 16, "edge") == (896, 512)
    assert all((h, w) in buckets(1024, 16) for w, h in buckets(1024, 16))
    assert len(buckets(1024, 16)) < 40
